"""How long a packet is on its way through one gateway that has half the work it can do, beside plain forwarding.

First the rate without loss is found (bench.rate); half of it is then offered, packet by packet, evenly spaced. Latency
is from before the sender's system call to after the receiver's look into its ring, on one clock. Plain kernel
forwarding has a laboratory of its own and the same rate in turns; `added` is ours less its, of the same percentile.
So has the bare forward of the gateway's own sockets: it crosses the same two CPUs, and encrypts nothing.

Apart from that: what a worker costs that has nothing to do, and how long the first packet takes that wakes it.

The sender is on one CPU, the worker on another, both in the real-time class where that is permitted (bench.quiet): the
scheduler lets them wait for nobody, as on CPUs that are set aside. What still stops a CPU is beneath the kernel
(`steal`), and can only add. So rounds are short and many, and beside the median round's p99 stands the lowest's
(`least_p99_us`): the nearest that this machine came to the gateway's own.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np

from bench.dut import DRIVERS, Bench, Dut, bench
from bench.options import Options
from bench.quiet import network_foremost, reserved
from bench.rate import no_loss, on_cpu, through, two_cpus
from bench.report import Row
from control.lab import LabError
from ext.traffic import Exchange, exchange

SIZES = (64, 1400)
LOAD = 0.5
SECONDS = 0.1
ROUNDS = 15
IDLE_SECONDS = 1.0
WAKE_RATE = 20.0  # packets per second: each finds the worker asleep
PERCENTILES = {"p50_us": 50.0, "p99_us": 99.0, "p999_us": 99.9}


def run(options: Options) -> list[Row]:
    """Rows {driver, mode, size, load, mpps, p50_us, p99_us, p999_us, least_p99_us, plain_*, bare_*, added_p50_us,
    added_p99_us, least_added_p99_us, lost, runs}, and those of `measure_idle`.

    Percentiles are medians over the rounds, `least_*` the lowest round's; runs: each round's p99_us.
    """
    cpus = two_cpus()
    rows: list[Row] = []
    idle: list[Row] = []
    for driver in filter(options.wants, DRIVERS):
        with ExitStack() as stack:
            plain = stack.enter_context(bench())
            ends = stack.enter_context(bench())
            dut = stack.enter_context(Dut(ends, driver))
            stack.enter_context(network_foremost())
            for size in SIZES:
                rows.append(measure(plain, ends, dut, size, cpus, options))
                shown = {key: round(float(str(rows[-1][key])), 1) for key in (*PERCENTILES, "least_p99_us")}
                print(f"{driver} {size} B: {shown}", file=sys.stderr, flush=True)
            idle.append(measure_idle(ends, dut, cpus))
    return [*rows, *idle]


def measure_idle(ends: Bench, dut: Dut, cpus: tuple[int, int]) -> Row:
    """{driver, mode, idle_cpu_percent, wake_p50_us, wake_p99_us, wakes}: a worker that sleeps, and is woken."""
    with on_cpu(cpus[1]):
        share = dut.idle_cpu_percent(IDLE_SECONDS)
    done = through(ends, dut, (SIZES[0],), WAKE_RATE, cpus, 2 * IDLE_SECONDS)
    woken = percentiles([done])
    return {
        "driver": dut.driver,
        "mode": dut.mode,
        "idle_cpu_percent": share,
        "wake_p50_us": woken["p50_us"][0],
        "wake_p99_us": woken["p99_us"][0],
        "wakes": done.received,
    }


def measure(plain: Bench, ends: Bench, dut: Dut, size: int, cpus: tuple[int, int], options: Options) -> Row:
    """One driver and size."""
    seconds = options.seconds or SECONDS
    free = no_loss(lambda rate: through(ends, dut, (size,), rate, cpus))
    rate = LOAD * free.pps
    if rate <= 0:
        raise LabError(f"{dut.driver}, {size} B: there is no rate at which nothing is lost")
    ours, kernel, bare = [], [], []
    for _ in range(options.rounds or ROUNDS):
        with reserved():
            ours.append(through(ends, dut, (size,), rate, cpus, seconds))
        with reserved(), on_cpu(cpus[0]):
            frames = plain.frames((size,), clear=True)
            kernel.append(exchange(plain.source, frames, rate, seconds, plain.receive()))
        if dut.has_bare:
            with reserved():
                bare.append(through(ends, dut, (size,), rate, cpus, seconds, bare=True))
    with_us, without = percentiles(ours), percentiles(kernel)
    sockets = percentiles(bare)
    return {
        "driver": dut.driver,
        "mode": dut.mode,
        "size": size,
        "load": LOAD,
        "mpps": rate / 1e6,
        **{name: statistics.median(values) for name, values in with_us.items()},
        "least_p99_us": min(with_us["p99_us"]),
        **{f"plain_{name}": statistics.median(values) for name, values in without.items()},
        **{f"bare_{name}": statistics.median(values) if values else None for name, values in sockets.items()},
        **{
            f"added_{name}": statistics.median(with_us[name]) - statistics.median(without[name])
            for name in ("p50_us", "p99_us")
        },
        "least_added_p99_us": min(with_us["p99_us"]) - min(without["p99_us"]),
        "lost": sum(each.sent - each.received for each in ours),
        "runs": with_us["p99_us"],
    }


def percentiles(runs: Sequence[Exchange]) -> dict[str, list[float]]:
    """Microseconds, round by round; of what arrived."""
    arrived = [
        latencies[latencies > 0] for latencies in (np.frombuffer(run.latencies, np.uint32) for run in runs)
    ]
    if any(len(each) == 0 for each in arrived):
        raise LabError("latency: nothing arrived in a round")
    return {
        name: [float(np.percentile(each, share)) / 1e3 for each in arrived]
        for name, share in PERCENTILES.items()
    }
