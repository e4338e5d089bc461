"""iperf3 from client to server: plain kernel forwarding, with and without TSO, and two gateways of one kind.

Every system has a laboratory of its own, and all stand side by side, idle but for the one whose turn it is: rounds
alternate between the systems, so that a machine that is slow for a minute is slow for all of them, and the median of a
system's rounds counts. `plain` has TSO, GSO and GRO switched off on the end hosts' interfaces, so that the kernel, too,
forwards packets and not super-frames.

iperf3's UDP offers more than any of them can take, and says what came through. `udp-lossless` asks otherwise: what is
the highest rate of packets of 1,400 bytes at which less than one in a thousand is lost? Our own generator and sink find
it (bench.rate), on packet sockets of client and server. The peers (bench.peers) are what Debian has of other
userspace tunnels.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Network

from bench.dut import open_end
from bench.options import Options
from bench.packets import udp_packet
from bench.rate import no_loss
from bench.report import Row
from control.lab import Lab
from control.lab.gateway import DRIVERS, Gateways, make_lab
from control.lab.topology import SEGMENTS, address
from control.lab.traffic import Throughput, iperf3, ping
from dataplane.model import PortSpec, Role
from ext.traffic import exchange

PLAIN = ("plain-tso", "plain")
PEERS = ("strongswan", "wireguard-go")
LOSSLESS = "udp-lossless"
PROTOS = ("tcp", "udp", LOSSLESS)
SECONDS = 4
ROUNDS = 3
TRIAL_SECONDS = 0.3
ALLOWED = 0.001  # of what is sent
SIZE = 1400  # bytes of inner packet
SENDER, TARGET = SEGMENTS["lan-a"][0][2], SEGMENTS["lan-b"][0][99]  # nobody's address, led to the server

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

    def beside(other: str) -> float | None:
        pairs = zip(found[name, proto], found[other, proto], strict=True)
        ratios = [ours.gbps / theirs.gbps for ours, theirs in pairs if theirs.gbps > 0]
        return statistics.median(ratios) if ratios else None

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
        yield (
            lambda proto, seconds: (
                lossless(lab)
                if proto == LOSSLESS
                else iperf3(lab.client, lab.server, target, proto=proto, seconds=seconds)
            )
        )


def lossless(lab: Lab) -> Throughput:
    """Search the highest rate that comes through."""
    macs = [
        bytes.fromhex(lab.mac(*where).replace(":", "")) for where in (("gwa", "lan0"), ("client", "eth0"))
    ]
    frame = macs[0] + macs[1] + b"\x08\x00" + udp_packet(SENDER, TARGET, SIZE)
    lab.spaces["gwb"].ip(
        f"neighbour replace {TARGET} lladdr {lab.mac('server', 'eth0')} dev lan0 nud permanent"
    )
    with ExitStack() as stack:
        ends = [
            open_end(
                lab,
                stack,
                host,
                PortSpec(name=host, role=Role.PROTECTED, driver="packet", interface="eth0"),
                [IPv4Network(TARGET)] if host == "server" else [],
            )
            for host in ("client", "server")
        ]
        found = no_loss(lambda rate: exchange(ends[0], [frame], rate, TRIAL_SECONDS, ends[1]), ALLOWED)
    return Throughput(gbps=found.pps * SIZE * 8 / 1e9, lost_percent=0.0)


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
