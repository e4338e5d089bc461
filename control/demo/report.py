"""What the demo found: results, why one does not pass, the table at the end, the JSON file."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

CHILD_REKEYS, IKE_REKEYS = 2, 1  # at least


@dataclass(frozen=True, kw_only=True)
class Plain:
    """Kernel forwarding without a tunnel; end hosts keep their offloads."""

    tcp_gbps: float
    udp_gbps: float


@dataclass(frozen=True, kw_only=True)
class Rekeys:
    """How often SAs got new keys, one side or the other asking for them."""

    child: int = 0
    ike: int = 0

    def __add__(self, other: Rekeys) -> Rekeys:
        return Rekeys(child=self.child + other.child, ike=self.ike + other.ike)


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What the tapped cable showed; packets are those between the gateways."""

    pings_sent: int
    pings_lost: int
    cleartext_packets: int
    esp_packets: int
    ah_packets: int
    active_mode: str
    ike_suite: str
    esp_suite: str
    rekeys: Rekeys


@dataclass(frozen=True, kw_only=True)
class DriverResult(Proof):
    """What one driver showed: the proof, and speed; `rekeys` are those of both."""

    tcp_gbps: float
    udp_gbps: float
    protocol: str

    @property
    def passed(self) -> bool:
        """True when the tunnel lost nothing, hid everything and changed its keys."""
        return not verdict(self)


def verdict(result: DriverResult) -> str:
    """Why a result does not pass."""
    reasons = []
    if result.pings_lost:
        reasons.append(f"{result.pings_lost} of {result.pings_sent} pings lost")
    if result.cleartext_packets:
        reasons.append(f"{result.cleartext_packets} packets in clear between the gateways")
    if result.protocol == "ah":
        if not result.ah_packets:
            reasons.append("no AH packet between the gateways")
        if result.esp_packets:
            reasons.append(f"{result.esp_packets} ESP packets between the gateways")
        return ", ".join(reasons)
    if not result.esp_packets:
        reasons.append("no ESP packet between the gateways")
    rekeys = result.rekeys
    if rekeys.child < CHILD_REKEYS or rekeys.ike < IKE_REKEYS:
        reasons.append(f"{rekeys.child} rekeys of child SAs and {rekeys.ike} of IKE SAs only")
    return ", ".join(reasons)


HEADINGS = (
    "",
    "mode",
    "TCP Gb/s",
    "UDP Gb/s",
    "pings lost",
    "ESP packets",
    "AH packets",
    "in clear",
    "rekeys",
)


def format_table(plain: Plain, results: dict[str, DriverResult]) -> str:
    """The table that ends the demo."""
    rows: list[Sequence[str]] = [
        HEADINGS,
        ("plain", "kernel forwarding", f"{plain.tcp_gbps:.2f}", f"{plain.udp_gbps:.2f}", *[""] * 5),
    ]
    for driver, result in results.items():
        rows.append(
            (
                driver,
                result.active_mode,
                f"{result.tcp_gbps:.2f}",
                f"{result.udp_gbps:.2f}",
                f"{result.pings_lost} of {result.pings_sent}",
                str(result.esp_packets),
                str(result.ah_packets),
                str(result.cleartext_packets),
                f"{result.rekeys.child} + {result.rekeys.ike}",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), row[1].ljust(widths[1])]
        cells += [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    used = dict.fromkeys(suites(each) for each in results.values())
    return "\n".join(["", *lines, "", *used, ""])


def suites(result: Proof) -> str:
    """The algorithms, in one line."""
    if result.ike_suite:
        return f"IKE {result.ike_suite}, ESP {result.esp_suite}"
    return f"AH {result.esp_suite}, keys by hand"


def write_json(path: Path, plain: Plain, results: dict[str, DriverResult]) -> None:
    """{"drivers": {driver: result}, "plain": ...}; figures rounded to what they are worth."""

    def rounded(values: dict[str, object]) -> dict[str, object]:
        return {key: round(value, 3) if isinstance(value, float) else value for key, value in values.items()}

    def flat(result: DriverResult) -> dict[str, object]:
        values = asdict(result)
        rekeys = values.pop("rekeys")
        return values | {f"{what}_rekeys": count for what, count in rekeys.items()}

    document = {
        "drivers": {driver: rounded(flat(result)) for driver, result in results.items()},
        "plain": rounded(asdict(plain)),
    }
    path.write_text(json.dumps(document, indent=2) + "\n")


def say(line: str) -> None:
    """A progress line, to standard error, so that standard output holds the table alone."""
    print(line, file=sys.stderr, flush=True)
