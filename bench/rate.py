"""How many packets a second one worker seals, beside the same sockets with nothing in between, and without loss.

Saturated (`mpps`, `bare_mpps`): a generator in the kernel offers more than anything can take; the worker and, in turns
of 50 ms, a bare receive-to-transmit forward of the very same sockets on the same CPU take what they can.
`ratio_bare_port` is of these. Without loss (`no_loss_mpps`, `bare_no_loss_mpps`): the search of RFC 2544 section 26.1
with our own generator, which numbers every packet: the highest rate at which all come back, to within 25,000 packets
per second. `limit` says "generator" where that was as fast as it could send, and more may be possible.

IMIX has no saturated figure: the kernel's generator knows one packet at a time. Neither has `tun`: such a flood drowns
the kernel's forwarding before it, and its two ports have no link in common that could be forwarded between.
"""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from bench.dut import DRIVERS, Bench, Dut, bench
from bench.options import Options
from bench.packets import IMIX
from bench.ports import drain, flood, wait_for_packets
from bench.quiet import network_foremost
from bench.report import Row
from control.lab import LabError
from ext import portbench
from ext.traffic import Exchange, exchange

SIZES: dict[str, tuple[int, ...]] = {"64": (64,), "512": (512,), "1400": (1400,), "imix": IMIX}
SECONDS = 1.0
TURN_SECONDS = 0.05
ROUNDS = 5
TRIAL_SECONDS = 0.25
SETTLE_SECONDS = 0.3  # for which a bare forward goes on after the last packet was sent
TRIES = 3  # a loss that does not come again was the machine's
STEPS = 6  # of the search: halves of halves
KEPT_UP = 0.97  # of what was asked for, or the generator was the limit
HIGHEST = 1.5e6  # packets per second: more than one AF_XDP socket in copy mode sends


@dataclass(frozen=True, kw_only=True)
class Saturated:
    """Million packets per second of the worker and of its bare ports; all three are medians over the turns."""

    mpps: float
    bare_mpps: float
    ratio: float | None  # None when nothing came through


@dataclass(frozen=True, kw_only=True)
class NoLoss:
    """What the search came to."""

    pps: float
    limit: str  # "gateway", or "generator"


def run(options: Options) -> list[Row]:
    """Rows {driver, mode, size, mpps, bare_mpps, ratio_bare_port, no_loss_mpps, bare_no_loss_mpps, limit, runs}."""
    cpus = two_cpus()
    rows: list[Row] = []
    for driver in filter(options.wants, DRIVERS):
        with bench() as ends, Dut(ends, driver) as dut, network_foremost():
            # In this order: with the sink open, sending costs more.
            with taking_floods(ends, driver):
                full = {size: measure_saturated(ends, dut, size, cpus, options) for size in SIZES}
            for size, found in full.items():
                rows.append(found | measure_no_loss(ends, dut, size, cpus))
                shown = {key: rows[-1][key] for key in ("mpps", "ratio_bare_port", "no_loss_mpps")}
                print(f"{driver} {size}: {shown}", file=sys.stderr, flush=True)
    return rows


def two_cpus() -> tuple[int, int]:
    """For the generator, and for what is measured; LabError where there is one."""
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        raise LabError("one CPU; generator and gateway need one each")
    return cpus[0], cpus[-1]


@contextmanager
def taking_floods(ends: Bench, driver: str) -> Iterator[None]:
    """Within: gateway A's interface takes what the kernel's generator sends, which wants NAPI: XDP or GRO brings it."""
    ethtool = ["ethtool", "-K", "lan0", "gro"]
    space = ends.lab.spaces["gwa"]
    if driver != "xdp":
        space.run([*ethtool, "on"])
    try:
        yield
    finally:
        if driver != "xdp":
            space.run([*ethtool, "off"])


def measure_saturated(
    ends: Bench, dut: Dut, size: str, cpus: tuple[int, int], options: Options
) -> dict[str, object]:
    """Worker and bare ports in turns."""
    sizes = SIZES[size]
    seconds = options.seconds or SECONDS
    rounds = [
        saturated(ends, dut, sizes[0], cpus, seconds)
        for _ in range((options.rounds or ROUNDS) if len(sizes) == 1 and dut.has_bare else 0)
    ]

    def middle(values: list[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return statistics.median(known) if known else None

    return {
        "driver": dut.driver,
        "mode": dut.mode,
        "size": size,
        "mpps": middle([each.mpps for each in rounds]),
        "bare_mpps": middle([each.bare_mpps for each in rounds]),
        "ratio_bare_port": middle([each.ratio for each in rounds]),
        "runs": [each.mpps for each in rounds],
    }


def measure_no_loss(ends: Bench, dut: Dut, size: str, cpus: tuple[int, int]) -> dict[str, object]:
    """The searches."""
    sizes = SIZES[size]
    free = no_loss(lambda rate: through(ends, dut, sizes, rate, cpus))
    bare = no_loss(lambda rate: through(ends, dut, sizes, rate, cpus, bare=True)) if dut.has_bare else None
    return {
        "no_loss_mpps": free.pps / 1e6,
        "bare_no_loss_mpps": None if bare is None else bare.pps / 1e6,
        "limit": free.limit,
    }


# ---- saturated


def saturated(ends: Bench, dut: Dut, size: int, cpus: tuple[int, int], seconds: float) -> Saturated:
    """One flood, in which worker and bare ports have the same sockets in short turns."""
    frame = ends.frames((size,), clear=False)[0]
    drain(dut.ports[0])
    forward = partial(portbench.forward, dut.ports[0], dut.ports[1])
    turns = []
    with on_cpu(cpus[1]), flood(ends.lab, frame, seconds, cpus[0]):
        wait_for_packets(dut.ports[0])
        for _ in range(max(1, round(seconds / (2 * TURN_SECONDS)))):
            ours = dut.rate_for(TURN_SECONDS)
            packets, nanoseconds = forward(TURN_SECONDS)
            turns.append((ours, packets * 1e3 / nanoseconds))
    ratios = [ours / bare for ours, bare in turns if bare]
    return Saturated(
        mpps=statistics.median(ours for ours, _ in turns),
        bare_mpps=statistics.median(bare for _, bare in turns),
        ratio=statistics.median(ratios) if ratios else None,
    )


# ---- without loss


def no_loss(trial: Callable[[float], Exchange], allowed: float = 0.0) -> NoLoss:
    """The highest rate at which `trial` loses nothing, or no more than the share `allowed`."""
    low, high, best, limit = 0.0, HIGHEST, 0.0, "gateway"
    for _ in range(STEPS):
        rate = (low + high) / 2
        reached, kept_up = _passes(trial, rate, allowed)
        if reached is None:
            high = rate
            continue
        if reached > best:
            best, limit = reached, "gateway" if kept_up else "generator"
        if kept_up:
            low = rate
        else:
            high = rate  # more cannot be asked of it
    return NoLoss(pps=best, limit=limit)


def _passes(trial: Callable[[float], Exchange], rate: float, allowed: float) -> tuple[float | None, bool]:
    """The rate that went through whole, and whether it was the one asked for; (None, ...) when some were lost."""
    for _ in range(TRIES):
        done = trial(rate)
        sent = done.sent * 1e9 / done.nanoseconds
        if done.sent and done.sent - done.received <= allowed * done.sent:
            return sent, sent >= KEPT_UP * rate
    return None, True


def through(
    ends: Bench,
    dut: Dut,
    sizes: tuple[int, ...],
    rate: float,
    cpus: tuple[int, int],
    seconds: float = TRIAL_SECONDS,
    *,
    bare: bool = False,
) -> Exchange:
    """One run through the worker, or, `bare`, through its ports alone."""
    sink = ends.receive()
    busy = dut.forwarding(cpus[1], seconds + SETTLE_SECONDS) if bare else dut.working(cpus[1])
    with busy, on_cpu(cpus[0]):
        frames = ends.frames(sizes, clear=bare)
        return exchange(ends.source, frames, rate, seconds, sink, dut.next_sequence())


@contextmanager
def on_cpu(cpu: int) -> Iterator[None]:
    """This thread, on that CPU."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
