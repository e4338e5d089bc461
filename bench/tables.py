"""What it costs that there are many SAs: packets of 64 bytes, each of an SA picked at random, beside one SA.

1, 1,000 and 100,000 tunnels lie in tables side by side, each with its own outbound and inbound SA, policy and keys;
slices of them take turns, and the shortest slice of each counts. With one SA all 64 packets of a batch are
of one flow; with many, nearly every packet needs its own policy, SA, keys and counters, from memory. What it costs to
fetch these lines and do nothing with them stands beside.
"""

from __future__ import annotations

import statistics
import sys
import time
from contextlib import ExitStack

from bench.options import Options
from bench.quiet import undisturbed
from bench.report import Row
from bench.tunnels import BASE, inner_packet, tunnels
from control.config.proposal import parse_proposal
from ext.kernelbench import Timing, fetch, measure

COUNTS = (1, 1_000, 100_000)
ALGORITHM = "aes128gcm16"
SIZE = 64
WAYS = ("out", "in")
SLICES = 100
BATCHES = 32  # 2,048 packets


def run(options: Options) -> list[Row]:
    """Rows {sas, direction, size, ns, ratio, ...}; `only` picks counts of SAs (1 always runs).

    ns: nanoseconds per packet from look-up to finish, shortest slice; ratio: median over slices of ns / ns with one
    SA in the same turn; fetch_ns: to fetch the lines alone; ns_with_parse: with link and IP header parsed;
    fill_seconds: to add this many tunnels.
    """
    counts = [count for count in COUNTS if count == COUNTS[0] or options.wants(str(count))]
    packet = inner_packet(SIZE)
    slices: dict[int, list[Timing]] = {count: [] for count in counts}
    fetches: dict[tuple[int, str], list[float]] = {(n, way): [] for n in counts for way in WAYS}
    fill: dict[int, float] = {}
    with ExitStack() as stack, undisturbed():
        filled = {}
        for count in counts:
            begun = time.monotonic()
            filled[count] = stack.enter_context(tunnels(parse_proposal(ALGORITHM), count))
            fill[count] = time.monotonic() - begun
            print(f"{count} tunnels added in {fill[count]:.1f} s", file=sys.stderr, flush=True)
        for number in range(options.rounds or SLICES):
            for count, tunnel in filled.items():
                timing = measure(tunnel.view, tunnel.engine, packet, BATCHES, count, BASE, number + 1)
                slices[count].append(timing)
                for way in WAYS:
                    lines = (tunnel.view, tunnel.engine, 64 * BATCHES, 2 * count, way == "in", number + 1)
                    fetches[count, way].append(fetch(*lines))
    return [
        row(count, way, slices, fill[count]) | {"fetch_ns": min(fetches[count, way])}
        for count in counts
        for way in WAYS
    ]


def row(count: int, direction: str, slices: dict[int, list[Timing]], fill: float) -> Row:
    """One figure."""
    walk = {n: [timing.out if direction == "out" else timing.into for timing in slices[n]] for n in slices}
    parse = [timing.out_parse if direction == "out" else timing.in_parse for timing in slices[count]]
    pairs = zip(walk[count], walk[COUNTS[0]], strict=True)
    return {
        "sas": count,
        "direction": direction,
        "size": SIZE,
        "ns": min(walk[count]),
        "ratio": statistics.median(ours / one for ours, one in pairs),
        "ns_with_parse": min(ours + before for ours, before in zip(walk[count], parse, strict=True)),
        "algorithm": ALGORITHM,
        "fill_seconds": fill,
    }
