"""Pings from inside to inside, through the tunnel between two peers."""

from __future__ import annotations

import re

from control.lab.space import LabError, Program, Space
from tests.peers.wires import INSIDE, OTHER, Wire


def start_echo(wire: Wire, side: str, *, count: int, interval: float = 0.02, version: int = 4) -> Program:
    """Begin to ping the other side's protected address from ours; `lost` counts."""
    source, target = INSIDE[side][version][0], INSIDE[OTHER[side]][version][0]
    deadline = max(3, round(count * interval * 1.5 + 2))
    argv = ["ping", "-n", "-I", source, "-i", f"{interval:g}", "-c", str(count), "-w", str(deadline), target]
    return wire.spaces[side].start(argv)


def lost(program: Program, count: int, timeout: float = 60.0) -> int:
    """How many pings had no answer, once all `count` are over; on a busy machine fewer may have been sent in time."""
    program.wait(timeout)
    text = program.output()
    summary = re.search(r"(\d+) packets transmitted", text)
    if summary is None:
        raise LabError(f"ping: {(program.log() or text).strip()}")
    sent = min(count, int(summary[1]))
    answered = {int(number) for number in re.findall(r"icmp_seq=(\d+) .*time=", text)}
    return sent - len({number for number in answered if number <= sent})


def echo(wire: Wire, side: str = "left", *, count: int = 3, interval: float = 0.02, version: int = 4) -> int:
    """Pings lost of `count`."""
    return lost(start_echo(wire, side, count=count, interval=interval, version=version), count)


def assert_connected(wire: Wire, *, version: int = 4) -> None:
    """A few pings each way, none lost."""
    for side in ("left", "right"):
        missing = echo(wire, side, version=version)
        assert missing == 0, f"{missing} of 3 pings from {side} are lost"


def ping_from(space: Space, source: str, target: str, *, count: int = 3) -> int:
    """Pings lost between two addresses."""
    argv = ["ping", "-n", "-I", source, "-i", "0.05", "-c", str(count), "-w", "3", target]
    return lost(space.start(argv), count)
