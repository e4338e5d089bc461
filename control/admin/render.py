"""The status as people read it: tables of ports, workers, SAs, then every drop by name.

Takes the same document that `status --json` prints; docs/operations.md describes its keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Row = Sequence[object]


def render_status(status: Mapping[str, Any]) -> str:
    """All of it, ready to print."""
    gateway = status["gateway"]
    parts = [
        f"esplanade {gateway['version']}, pid {gateway['pid']}, up {duration(gateway['uptime'])}, "
        f"engine {gateway['engine']}, {gateway['config']}",
        _ports(status["ports"]),
        _workers(status["workers"]),
        _sas(status["sas"]),
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
            sa["proposal"],
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


def table(headings: Sequence[str], rows: Sequence[Row]) -> str:
    """Columns as wide as they need; numbers to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [
        max([len(heading), *(len(row[column]) for row in cells)]) for column, heading in enumerate(headings)
    ]
    right = [
        bool(rows) and all(isinstance(row[column], int) for row in rows) for column in range(len(headings))
    ]

    def line(row: Sequence[str]) -> str:
        return "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        ).rstrip()

    return "\n".join([line(headings), *(line(row) for row in cells)])


def size(count: int) -> str:
    """Bytes in the largest unit that leaves at least one: 1.5 GB."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"


def duration(seconds: float) -> str:
    """Days, hours, minutes, seconds; the two largest that are not zero."""
    left = int(seconds)
    parts: list[str] = []
    for length, unit in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        amount, left = divmod(left, length)
        if amount or (unit == "s" and not parts):
            parts.append(f"{amount} {unit}")
    return " ".join(parts[:2])
