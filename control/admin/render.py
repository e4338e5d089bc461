"""The status as people read it: tables of ports, workers, SAs, then every drop by name.

Takes the same document that `status --json` prints; docs/operations.md describes its keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from control.admin.render_ike import render_ike
from control.admin.tables import Row, duration, size, table


def render_status(status: Mapping[str, Any]) -> str:
    """All of it, ready to print."""
    gateway = status["gateway"]
    parts = [
        f"esplanade {gateway['version']}, pid {gateway['pid']}, up {duration(gateway['uptime'])}, "
        f"engine {gateway['engine']}, {gateway['config']}",
        _ports(status["ports"]),
        _workers(status["workers"]),
        render_ike(status["ike"]) if status.get("ike") else "",
        _sas(status["sas"]) if status["sas"] or not status.get("ike") else "",
        _drops(status),
    ]
    return "\n\n".join(part for part in parts if part)


def _ports(ports: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (
            port["name"],
            port["role"],
            port["interface"] or "-",
            port["mode"] or port["driver"],
            port["link"],
            port["rx_packets"],
            size(port["rx_bytes"]),
            port["tx_packets"],
            size(port["tx_bytes"]),
            port["tx_full"],
        )
        for port in ports
    ]
    headings = (
        "port",
        "role",
        "interface",
        "mode",
        "link",
        "rx packets",
        "rx",
        "tx packets",
        "tx",
        "tx full",
    )
    return table(headings, rows)


def _workers(workers: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (
            worker["index"],
            worker["pid"] or "-",
            "-" if worker["cpu"] is None else worker["cpu"],
            worker["restarts"],
            worker["packets"],
            worker["drops"],
        )
        for worker in workers
    ]
    return table(("worker", "pid", "cpu", "restarts", "packets", "drops"), rows)


def _sas(sas: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (
            sa["name"],
            sa["direction"],
            f"0x{sa['spi']:08x}",
            sa["remote"],
            f"ah {sa['proposal']}" if sa.get("protocol") == "ah" else sa["proposal"],
            sa["packets"],
            size(sa["bytes"]),
            sa["sequence"],
            sa["replay_window"] if sa["direction"] == "in" else "-",
            sa["path"] or "-",
            sum(sa["drops"].values()),
        )
        for sa in sas
    ]
    headings = (
        "sa",
        "dir",
        "spi",
        "peer",
        "proposal",
        "packets",
        "bytes",
        "sequence",
        "window",
        "path",
        "drops",
    )
    return table(headings, rows)


def _drops(status: Mapping[str, Any]) -> str:
    """Every reason that occurred: in all, and per SA where it belongs to one."""
    rows: list[Row] = [(name, count, "") for name, count in status["drops"].items() if count]
    for sa in status["sas"]:
        rows += [(name, count, sa["name"]) for name, count in sa["drops"].items() if count]
    rows.sort(key=lambda row: (str(row[0]), str(row[2])))
    text = table(("drop", "packets", "of sa"), rows) if rows else "no drops"
    others = ", ".join(f"{name} {count}" for name, count in status["events"].items())
    return f"{text}\n\n{others}" if others else text
