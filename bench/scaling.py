"""One worker and two, each on a CPU of its own, on one SA or on many: does the second double the rate?

Out: a whole loop between memory ports per worker (bench.rings). In: each worker seals and opens, batch by batch, what
the SA's numbers and replay window are shared for (ext.kernelbench); only the opening counts. Both workers begin
together; what each of them does alone, in turns, is the rate to compare with.

A worker here is a thread: the loops run without Python's lock, and share nothing but what worker processes share.
"""

from __future__ import annotations

import math
import os
import statistics
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from bench.options import Options, slowdown
from bench.quiet import foremost
from bench.report import Row
from bench.rings import BATCH, Rig, flow_frames
from bench.tunnels import BASE, Tunnels, inner_packet, tunnels
from control.config.proposal import parse_proposal
from control.lab.space import LabError
from dataplane.engine import open_engine
from ext.crypto import EngineHandle
from ext.kernelbench import measure
from ext.sa import TablesView

ALGORITHM = "aes128gcm16"
SAS = (1, 1_000)
SIZES = (64, 1408)
WAYS = ("out", "in")
WORKERS = 2
ROUNDS = 5
SLICES = 20  # in a round
SLICE_SECONDS = 0.004
NS_GUESS = {64: 120.0, 1408: 550.0}  # per packet, to make slices about as long as that


@dataclass(kw_only=True)
class Worker:
    """What one thread needs; nothing of it is another's."""

    cpu: int
    view: TablesView
    engine: EngineHandle
    rig: Rig


def run(options: Options) -> list[Row]:
    """Rows {workers, sas, direction, size, mpps, ratio, runs}; ratio: to one worker in the same round, median."""
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < WORKERS:
        print(f"scaling: {len(cpus)} CPU; {WORKERS} are needed, nothing measured", file=sys.stderr)
        return []
    rows: list[Row] = []
    for sas in SAS:
        with foremost(), tunnels(parse_proposal(ALGORITHM), sas, workers=WORKERS) as tunnel:
            workers = make_workers(tunnel, cpus)
            for way in WAYS:
                for size in SIZES:
                    rows += figure(workers, sas, way, size, options)
    return rows


def make_workers(tunnel: Tunnels, cpus: Sequence[int]) -> list[Worker]:
    """One per CPU, the last CPU first, which serves fewer interrupts."""
    made = []
    for index in range(WORKERS):
        view, engine = TablesView(tunnel.view_fd, index), open_engine(tunnel.engine.name)
        made.append(Worker(cpu=cpus[-1 - index], view=view, engine=engine, rig=Rig(view, engine)))
    return made


def figure(workers: Sequence[Worker], sas: int, way: str, size: int, options: Options) -> list[Row]:
    """One worker's row, and both workers'."""
    runs: dict[int, list[float]] = {1: [], len(workers): []}
    ratios: list[float] = []
    with ThreadPoolExecutor(len(workers)) as pool:
        for _ in range(options.rounds or ROUNDS):
            slices = round_of_slices(pool, workers, sas, way, size)
            for count, rates in runs.items():
                rates.append(statistics.median(each[count] for each in slices))
            ratios.append(statistics.median(each[len(workers)] / each[1] for each in slices))
    print(f"{sas} SAs {way} {size} B: {statistics.median(ratios):.2f}", file=sys.stderr, flush=True)
    return [
        {
            "workers": count,
            "sas": sas,
            "direction": way,
            "size": size,
            "mpps": statistics.median(rates),
            "ratio": 1.0 if count == 1 else statistics.median(ratios),
            "runs": rates,
        }
        for count, rates in runs.items()
    ]


def round_of_slices(
    pool: ThreadPoolExecutor, workers: Sequence[Worker], sas: int, way: str, size: int
) -> list[dict[int, float]]:
    """Packets per microsecond by number of workers, slice after slice; those that were torn apart are left out."""
    slices = []
    for _ in range(SLICES):
        # Each alone in its turn: CPUs that others use, too, are not equally fast.
        groups = [*([worker] for worker in workers), workers]
        rates = [together(pool, group, sas, way, size) for group in groups]
        found = [rate for rate in rates if rate is not None]
        if len(found) == len(groups):
            slices.append({1: statistics.fmean(found[:-1]), len(workers): found[-1]})
    if len(slices) < SLICES // 4:
        raise LabError(
            f"scaling: in {SLICES - len(slices)} of {SLICES} slices one worker fell behind the other's replay window: "
            f"CPUs {', '.join(str(worker.cpu) for worker in workers)} are not free"
        )
    return slices


def together(
    pool: ThreadPoolExecutor, workers: Sequence[Worker], sas: int, way: str, size: int
) -> float | None:
    """All workers' packets per microsecond, added up; None when one fell behind the replay window."""
    batches = max(1, round(SLICE_SECONDS * 1e9 / NS_GUESS[size] / BATCH))
    start = threading.Barrier(len(workers))
    act = _out if way == "out" else _into

    def work(worker: Worker) -> float:
        os.sched_setaffinity(0, {worker.cpu})  # of this thread
        start.wait()
        return act(worker, sas, size, batches)

    each = list(pool.map(work, workers))
    return None if any(math.isnan(nanoseconds) for nanoseconds in each) else sum(1e3 / ns for ns in each)


def _out(worker: Worker, sas: int, size: int, batches: int) -> float:
    """Nanoseconds per packet; with many SAs, packet after packet is of another."""
    return worker.rig.out(flow_frames(sas, size), batches * BATCH)


def _into(worker: Worker, sas: int, size: int, batches: int) -> float:
    """Nanoseconds per packet; NaN when this worker was kept from its CPU and its numbers fell behind the window."""
    packet, seed = inner_packet(size), worker.cpu + 1
    try:
        return measure(worker.view, worker.engine, packet, batches, sas, BASE, seed, slowdown()).into
    except RuntimeError as error:
        if "replay" in str(error):
            return math.nan
        raise
