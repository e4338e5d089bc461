"""How long a packet is on its way through one gateway that has half the work it can do, beside plain forwarding.

First the rate without loss is found (bench.rate); half of it is then offered, packet by packet, evenly spaced. Latency
is from before the sender's system call to after the receiver's look into its ring, on one clock. Plain kernel
forwarding has a laboratory of its own and the same rate in turns; `added` is ours less its, of the same percentile.

Apart from that: what a worker costs that has nothing to do, and how long the first packet takes that wakes it.

The sender is on one CPU, the worker on another. Where somebody else wants these CPUs, p99 is how long the scheduler
lets them wait: it belongs to the machine.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np

from bench.dut import DRIVERS, Bench, Dut, bench
from bench.options import Options
from bench.quiet import network_foremost
from bench.rate import no_loss, on_cpu, through_worker, two_cpus
from bench.report import Row
from control.lab import LabError
from ext.traffic import Exchange, exchange

SIZES = (64, 1400)
LOAD = 0.5
SECONDS = 0.5
ROUNDS = 5
IDLE_SECONDS = 1.0
WAKE_RATE = 20.0  # packets per second: each finds the worker asleep
PERCENTILES = {"p50_us": 50.0, "p99_us": 99.0, "p999_us": 99.9}


def run(options: Options) -> list[Row]:
    """Rows {driver, mode, size, load, mpps, p50_us, p99_us, p999_us, plain_*, added_p50_us, added_p99_us, lost, runs},
    and those of `measure_idle`.

    Percentiles are medians over the rounds; runs: each round's p99_us.
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
                shown = {key: round(float(str(rows[-1][key])), 1) for key in PERCENTILES}
                print(f"{driver} {size} B: {shown}", file=sys.stderr, flush=True)
            idle.append(measure_idle(ends, dut, cpus))
    return [*rows, *idle]


def measure_idle(ends: Bench, dut: Dut, cpus: tuple[int, int]) -> Row:
    """{driver, mode, idle_cpu_percent, wake_p50_us, wake_p99_us, wakes}: a worker that sleeps, and is woken."""
    with on_cpu(cpus[1]):
        share = dut.idle_cpu_percent(IDLE_SECONDS)
    done = through_worker(ends, dut, (SIZES[0],), WAKE_RATE, cpus, 2 * IDLE_SECONDS)
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
    free = no_loss(lambda rate: through_worker(ends, dut, (size,), rate, cpus))
    rate = LOAD * free.pps
    if rate <= 0:
        raise LabError(f"{dut.driver}, {size} B: there is no rate at which nothing is lost")
    ours, kernel = [], []
    for _ in range(options.rounds or ROUNDS):
        ours.append(through_worker(ends, dut, (size,), rate, cpus, seconds))
        with on_cpu(cpus[0]):
            frames = plain.frames((size,), clear=True)
            kernel.append(exchange(plain.source, frames, rate, seconds, plain.receive()))
    with_us, without = percentiles(ours), percentiles(kernel)
    return {
        "driver": dut.driver,
        "mode": dut.mode,
        "size": size,
        "load": LOAD,
        "mpps": rate / 1e6,
        **{name: statistics.median(values) for name, values in with_us.items()},
        **{f"plain_{name}": statistics.median(values) for name, values in without.items()},
        **{
            f"added_{name}": statistics.median(with_us[name]) - statistics.median(without[name])
            for name in ("p50_us", "p99_us")
        },
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
