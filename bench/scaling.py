"""One worker and two, each on a CPU of its own, on one SA or on many: does the second double the rate?

Out: a whole loop between memory ports per worker (bench.rings). In: each worker seals and opens, batch by batch, what
the SA's numbers and replay window are shared for (ext.kernelbench); only the opening counts. Both workers begin
together; what each of them does alone, in turns, is the rate to compare with.

One queue (`how` is "dealt"): one worker receives all packets of the SA, as a network card would give them to it, and
deals batches to the other (ext.deal). What it is compared with is, as before, each of them alone, in turns. The SA has
no replay window here, so that a few sealed packets serve again and again.

A worker here is a thread: the loops run without Python's lock, and share nothing but what worker processes share.
"""

from __future__ import annotations

import math
import os
import statistics
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

from bench.options import Options, slowdown
from bench.quiet import foremost
from bench.report import Row
from bench.rings import BATCH, FRAME_SIZE, FRAMES, Rig, flow_frames, plain_frames
from bench.tunnels import BASE, Tunnels, inner_packet, tunnels
from control.config.proposal import parse_proposal
from control.lab.space import LabError
from dataplane.engine import open_engine
from ext.crypto import EngineHandle
from ext.deal import Team, team_size
from ext.kernelbench import measure
from ext.loop import Loop
from ext.sa import TablesView

ALGORITHM = "aes128gcm16"
SAS = (1, 1_000)
SIZES = (64, 1408)
DEALT_SIZES = (64, 512, 1408)
WAYS = ("out", "in")
WORKERS = 2
ROUNDS = 5
SLICES = 20  # in a round
SLICE_SECONDS = 0.004
DEALT_TEMPLATES = 192  # sealed packets that are received in turn
NS_GUESS = {64: 120.0, 512: 250.0, 1408: 550.0}  # per packet, to make slices about as long as that


@dataclass(kw_only=True)
class Worker:
    """What one thread needs; nothing of it is another's."""

    cpu: int
    view: TablesView
    engine: EngineHandle
    rig: Rig


def run(options: Options) -> list[Row]:
    """Rows {workers, sas, direction, size, how, mpps, ratio, runs}; ratio: to one worker in the same round, median.

    how: "shared" is each worker with packets of its own, "dealt" one that receives for both.
    """
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
    for size in DEALT_SIZES:
        with foremost(), dealers(size, cpus) as slice_:
            rows += rows_of(1, "in", size, "dealt", partial(repeat, slice_), options)
    return rows


def repeat(slice_: Callable[[], dict[int, float]]) -> list[dict[int, float]]:
    """A round of slices."""
    return [slice_() for _ in range(SLICES)]


def make_workers(tunnel: Tunnels, cpus: Sequence[int]) -> list[Worker]:
    """One per CPU, the last CPU first, which serves fewer interrupts."""
    made = []
    for index in range(WORKERS):
        view, engine = TablesView(tunnel.view_fd, index), open_engine(tunnel.engine.name)
        made.append(Worker(cpu=cpus[-1 - index], view=view, engine=engine, rig=Rig(view, engine)))
    return made


def figure(workers: Sequence[Worker], sas: int, way: str, size: int, options: Options) -> list[Row]:
    """One worker's row, and both workers'."""
    with ThreadPoolExecutor(len(workers)) as pool:
        one_round = partial(round_of_slices, pool, workers, sas, way, size)
        return rows_of(sas, way, size, "shared", one_round, options)


def rows_of(
    sas: int, way: str, size: int, how: str, one_round: Callable[[], list[dict[int, float]]], options: Options
) -> list[Row]:
    """Rows of one worker and of all, from rounds whose slices are rates by number of workers."""
    runs: dict[int, list[float]] = {1: [], WORKERS: []}
    ratios: list[float] = []
    for _ in range(options.rounds or ROUNDS):
        slices = one_round()
        for count, rates in runs.items():
            rates.append(statistics.median(each[count] for each in slices))
        ratios.append(statistics.median(each[WORKERS] / each[1] for each in slices))
    print(f"{sas} SAs {way} {size} B {how}: {statistics.median(ratios):.2f}", file=sys.stderr, flush=True)
    return [
        {
            "workers": count,
            "sas": sas,
            "direction": way,
            "size": size,
            "how": how,
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


# ---- one queue


@contextmanager
def dealers(size: int, cpus: Sequence[int]) -> Iterator[Callable[[], dict[int, float]]]:
    """A slice: one worker's packets per microsecond alone, and with another's help."""
    with ExitStack() as stack:
        tunnel = stack.enter_context(tunnels(parse_proposal(ALGORITHM), workers=WORKERS, window=0))
        fd = os.memfd_create("frames", os.MFD_CLOEXEC)
        stack.callback(os.close, fd)
        os.ftruncate(fd, team_size(WORKERS, FRAMES, FRAME_SIZE))
        wake = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(WORKERS)]
        stop = os.eventfd(0, os.EFD_NONBLOCK)
        for each in (*wake, stop):
            stack.callback(os.close, each)
        loops, rigs = [], []
        for index in range(WORKERS):
            team = Team(fd, index, WORKERS, wake, frame_count=FRAMES, frame_size=FRAME_SIZE, always=True)
            view, engine = TablesView(tunnel.view_fd, index), open_engine(tunnel.engine.name)
            view.worker_enter(os.getpid())
            rigs.append(Rig(view, engine, team.pool))
            ports = [rigs[-1].inside, rigs[-1].outside]
            loops.append(Loop(view, engine, ports, None, stop, team=team))
        sealed = [rig.seal(plain_frames((size,)), DEALT_TEMPLATES) for rig in rigs]
        packets = max(1, round(SLICE_SECONDS * 1e9 / NS_GUESS[size] / BATCH)) * BATCH

        def rate(index: int, loop: Loop) -> float:
            return 1e3 / rigs[index].open_again(loop, sealed[index], packets)

        def alone(index: int) -> float:
            # On its own CPU: they are not equally fast, and one's speed changes from second to second.
            os.sched_setaffinity(0, {cpus[-1 - index]})
            return rate(index, rigs[index].loop)

        def help_() -> None:
            os.sched_setaffinity(0, {cpus[-WORKERS]})
            loops[1].run()

        def one_slice() -> dict[int, float]:
            each = statistics.fmean(alone(index) for index in reversed(range(WORKERS)))
            thread = threading.Thread(target=help_, name="helper")
            thread.start()
            try:
                rate(0, loops[0])  # until the helper is there
                return {1: each, WORKERS: rate(0, loops[0])}
            finally:
                os.eventfd_write(stop, 1)
                thread.join()
                os.eventfd_read(stop)

        before = os.sched_getaffinity(0)
        stack.callback(os.sched_setaffinity, 0, before)
        os.sched_setaffinity(0, {cpus[-1]})
        yield one_slice
