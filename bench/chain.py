"""iperf3 from client to server: plain kernel forwarding, with and without TSO, and two gateways of one kind.

Every system has a laboratory of its own, and all stand side by side, idle but for the one whose turn it is: rounds
alternate between the systems, so that a machine that is slow for a minute is slow for all of them, and the median of a
system's rounds counts. `plain` has TSO, GSO and GRO switched off on the end hosts' interfaces, so that the kernel, too,
forwards packets and not super-frames. The peers (bench.peers) are what Debian has of other userspace tunnels.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from bench.options import Options
from bench.report import Row
from control.lab import Lab
from control.lab.gateway import DRIVERS, Gateways, make_lab
from control.lab.topology import address
from control.lab.traffic import Throughput, iperf3, ping

PLAIN = ("plain-tso", "plain")
PEERS = ("strongswan", "wireguard-go")
SYSTEMS = (*PLAIN, *DRIVERS)
PROTOS = ("tcp", "udp")
SECONDS = 4
ROUNDS = 3

Traffic = Callable[[str, int], Throughput]  # (proto, seconds)


def run(options: Options) -> list[Row]:
    """Rows {system, proto, gbps, ratio_plain_tso, ratio_plain, lost_percent, spread, runs}; plain ones always run.

    spread: highest less lowest round, of the median.
    """
    wanted = [*DRIVERS, *(PEERS if options.peers else ())]
    systems = [*PLAIN, *filter(options.wants, wanted)]
    seconds = max(1, round(options.seconds or SECONDS))
    found: dict[tuple[str, str], list[Throughput]] = {
        (name, proto): [] for name in systems for proto in PROTOS
    }
    with ExitStack() as stack:
        traffic = {name: stack.enter_context(system(name)) for name in systems}
        for number in range(options.rounds or ROUNDS):
            for (name, proto), results in found.items():
                results.append(traffic[name](proto, seconds))
                _tell(f"round {number + 1}: {name:12} {proto} {results[-1].gbps:6.2f} Gb/s")
    return [row(name, proto, found) for name, proto in found]


def row(name: str, proto: str, found: dict[tuple[str, str], list[Throughput]]) -> Row:
    """One figure; its ratios are medians of each round's own."""
    runs = [result.gbps for result in found[name, proto]]
    middle = statistics.median(runs)

    def beside(other: str) -> float:
        pairs = zip(found[name, proto], found[other, proto], strict=True)
        return statistics.median(ours.gbps / theirs.gbps for ours, theirs in pairs)

    return {
        "system": name,
        "proto": proto,
        "gbps": middle,
        "ratio_plain_tso": beside("plain-tso"),
        "ratio_plain": beside("plain"),
        "lost_percent": statistics.median(result.lost_percent for result in found[name, proto]),
        "spread": (max(runs) - min(runs)) / middle if middle else 0.0,
        "runs": runs,
    }


@contextmanager
def system(name: str) -> Iterator[Traffic]:
    """A system in a laboratory of its own, ready for traffic."""
    with ExitStack() as stack:
        if name in DRIVERS:
            lab = stack.enter_context(make_lab(name))
            stack.enter_context(Gateways(lab, name))
        elif name in PLAIN:
            lab = stack.enter_context(Lab())
            if name == "plain":
                lab.set_offloads(False)
        else:
            from bench import peers

            lab = stack.enter_context(Lab(routed=False))
            stack.enter_context(peers.tunnel(name, lab))
        target = address("server", "eth0")
        ping(lab.client, target, count=5)  # neighbours are known before anything counts
        yield lambda proto, seconds: iperf3(lab.client, lab.server, target, proto=proto, seconds=seconds)


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
