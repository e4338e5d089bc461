"""iperf3 from client to server: plain kernel forwarding, with and without TSO, and two gateways per driver.

Rounds alternate between the systems, each with a lab of its own, and the median of a system's rounds counts: a
machine that is slow for a minute is slow for all of them. `plain` has TSO, GSO and GRO switched off on the end
hosts' interfaces, so that the kernel, too, forwards packets and not super-frames.
"""

from __future__ import annotations

import statistics
import sys
from contextlib import ExitStack

from bench.options import Options
from bench.report import Row
from control.lab import Lab
from control.lab.gateway import DRIVERS, Gateways, make_lab
from control.lab.topology import address
from control.lab.traffic import iperf3, ping

SYSTEMS = ("plain-tso", "plain", *DRIVERS)
PROTOS = ("tcp", "udp")
SECONDS = 4
ROUNDS = 3


def run(options: Options) -> list[Row]:
    """Rows {system, proto, gbps, ratio_plain_tso, ratio_plain, lost_percent, runs}; both plain systems always run."""
    systems = [name for name in SYSTEMS if name.startswith("plain") or options.wants(name)]
    seconds = max(1, round(options.seconds or SECONDS))
    gbps: dict[tuple[str, str], list[float]] = {(name, proto): [] for name in systems for proto in PROTOS}
    lost: dict[tuple[str, str], list[float]] = {key: [] for key in gbps}
    for number in range(options.rounds or ROUNDS):
        for system in systems:
            for proto, figure, loss in measure(system, seconds):
                gbps[system, proto].append(figure)
                lost[system, proto].append(loss)
                print(
                    f"round {number + 1}: {system:9} {proto} {figure:6.2f} Gb/s", file=sys.stderr, flush=True
                )
    medians = {key: statistics.median(figures) for key, figures in gbps.items()}
    return [
        {
            "system": system,
            "proto": proto,
            "gbps": medians[system, proto],
            "ratio_plain_tso": medians[system, proto] / medians["plain-tso", proto],
            "ratio_plain": medians[system, proto] / medians["plain", proto],
            "lost_percent": statistics.median(lost[system, proto]),
            "runs": gbps[system, proto],
        }
        for system in systems
        for proto in PROTOS
    ]


def measure(system: str, seconds: int) -> list[tuple[str, float, float]]:
    """(proto, Gb/s, per cent lost) of one system, in a lab of its own."""
    target = address("server", "eth0")
    with ExitStack() as stack:
        if system in DRIVERS:
            lab = stack.enter_context(make_lab(system))
            stack.enter_context(Gateways(lab, system))
        else:
            lab = stack.enter_context(Lab())
            if system == "plain":
                lab.set_offloads(False)
        ping(lab.client, target, count=5)  # neighbours are known before anything counts
        results = [
            (proto, iperf3(lab.client, lab.server, target, proto=proto, seconds=seconds)) for proto in PROTOS
        ]
    return [(proto, result.gbps, result.lost_percent) for proto, result in results]
