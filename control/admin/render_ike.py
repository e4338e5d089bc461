"""The IKE part of the status as people read it: connections, below each its SAs, then pools, datagrams, last errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from control.admin.tables import duration, size, table


def render_ike(ike: Mapping[str, Any]) -> str:
    """All of it, ready to print; nothing where there is nothing."""
    parts = [
        _connections(ike["connections"]),
        _ike_sas(ike["ike_sas"]),
        _children(ike["ike_sas"]),
        _pools(ike["pools"]),
        _datagrams(ike["datagrams"]),
        _errors(ike["connections"]),
    ]
    return "\n\n".join(part for part in parts if part)


def _connections(connections: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (
            connection["name"],
            connection["state"],
            ", ".join(connection["remote"]),
            ", ".join(
                f"{child['name']}{'' if child['up'] else ' (down)'}" for child in connection["children"]
            ),
        )
        for connection in connections
    ]
    return table(("connection", "state", "peer", "children"), rows)


def _ike_sas(sas: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (
            f"{sa['connection'] or '-'}[{sa['id']}]",
            sa["state"],
            sa["local"],
            sa["remote"],
            f"{sa['remote_id'] or '-'}{' (' + sa['eap_identity'] + ')' if sa['eap_identity'] else ''}",
            sa["suite"] or "-",
            "+".join(sa["nat"]) or "-",
            _time(sa["established"]),
            _time(_first(sa["rekey_in"], sa["reauth_in"])),
        )
        for sa in sas
    ]
    headings = ("ike sa", "state", "local", "remote", "peer's id", "suite", "nat", "up for", "rekey in")
    return table(headings, rows) if rows else ""


def _children(sas: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (
            f"{child['name']}{{{child['id']}}}",
            child["state"],
            child["mode"] + (" in UDP" if child["encapsulated"] else ""),
            child["suite"],
            f"{child['spi_in']}/{child['spi_out']}",
            f"{', '.join(child['local_ts'])} === {', '.join(child['remote_ts'])}",
            child["packets_in"],
            size(child["bytes_in"]),
            child["packets_out"],
            size(child["bytes_out"]),
            _time(child["rekey_in"]),
        )
        for sa in sas
        for child in sa["children"]
    ]
    headings = (
        *("child sa", "state", "mode", "suite", "spi in/out", "traffic"),
        *("in packets", "in", "out packets", "out", "rekey in"),
    )
    return table(headings, rows) if rows else ""


def _pools(pools: Sequence[Mapping[str, Any]]) -> str:
    rows = [(pool["name"], ", ".join(pool["ranges"]), pool["lent"], pool["size"]) for pool in pools]
    return table(("pool", "addresses", "lent", "of"), rows) if rows else ""


def _datagrams(counters: Mapping[str, int]) -> str:
    """What happened at all; nothing where nothing did."""
    found = ", ".join(f"{name} {count}" for name, count in counters.items() if count)
    return f"ike datagrams: {found}" if found else ""


def _errors(connections: Sequence[Mapping[str, Any]]) -> str:
    """The last failure of each connection that has not been established since."""
    lines = []
    for connection in connections:
        error = connection["last_error"]
        if error is not None:
            advice = f"; {error['advice']}" if error["advice"] else ""
            lines.append(f"{connection['name']}: {duration(error['age'])} ago: {error['text']}{advice}")
    return "\n".join(lines)


def _first(*times: float | None) -> float | None:
    """The nearest of the times that there are."""
    return min((time for time in times if time is not None), default=None)


def _time(seconds: float | None) -> str:
    return "-" if seconds is None else duration(seconds)
