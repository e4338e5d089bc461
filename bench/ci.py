"""`esplanade bench --ci`: a few ratios, in under three minutes, that a regression in any part of the packet path moves.

    kernels   look-up to finish beside the bare cipher call                      any machine
    rings     a worker's whole loop between memory ports beside the same call    any machine
    scaling   two workers on one SA beside one                                   two CPUs
    rate      one worker on AF_XDP beside the same sockets with nothing between  root, for namespaces; two CPUs
    chain     TCP through two gateways beside plain forwarding                   root

Rounds go over all probes in turn, so a bad minute is one round of each; what is unclear after five gets more
(bench.gate). What the machine does not allow is listed as not measured: it is for who reads the summary to want it.
"""

from __future__ import annotations

import os
import platform
import re
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from bench import chain, dut, rate, rings, scaling
from bench.gate import (
    Baseline,
    Figure,
    Finding,
    Judgement,
    exit_status,
    judge,
    markdown,
    read_baseline,
    write_baseline,
)
from bench.options import Options, slowdown
from bench.quiet import foremost, network_foremost, undisturbed
from bench.report import Row
from bench.tunnels import Tunnels, inner_packet, tunnels
from control.config.proposal import parse_proposal
from control.lab import LabError
from ext.kernelbench import measure

ROUNDS = 5
MOST_ROUNDS = 15
ALGORITHMS = ("aes128gcm16", "aes256gcm16", "aes128-sha256", "chacha20poly1305")
SIZES = (64, 1420)
# Whoever uses the other half of the core slows the walk down by half, and SHA-NI by a third: where others do,
# short packets are at 1.43 or at 1.60 of the bare call, from one minute to the next.
SHARED_CORE_SLACK = {("aes128-sha256", 64): 2.0}
SLICES = 60  # in a round
BATCHES = 4
RING_SIZES = ("64", "1408", "imix")
CHAIN = {"tun": "plain-tso", "xdp": "plain"}  # system -> what it is beside
CHAIN_SECONDS = 1
# iperf3, two gateways and two hosts on a CI machine's few cores vary by far more than code between two commits does.
CHAIN_SLACK = 4.0
SCALING_SLACK = 2.0
RATE_DRIVER, RATE_SIZES = "xdp", (64, 1400)
RATE_SECONDS = 1.0
RATE_SLACK = 2.0


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Something that measures the ratios of `figures` together, by name, one round per call."""

    figures: tuple[Figure, ...]
    round: Callable[[], Mapping[str, float]]


def run(
    baseline_path: Path | None,
    tolerance: float,
    new_baseline: Path | None,
    machine: Mapping[str, Any],
    options: Options,
) -> tuple[int, str, list[Row]]:
    """Measure and judge; exit status, Markdown, rows. Without a baseline, measure only (status 0).

    What becomes a baseline has all the rounds there are: its luck would be every later run's bad luck.
    """
    cpu = cpu_name()
    baseline = Baseline(cpu=cpu, ratios={}) if baseline_path is None else read_baseline(baseline_path, cpu)
    found: dict[str, list[float]] = {}
    with ExitStack() as stack:
        groups = {name: make for name, make in PROBES.items() if options.wants(name)}
        probes = [probe for make in groups.values() for probe in make(stack)]
        figures = [figure for probe in probes for figure in probe.figures]
        todo: Sequence[Probe] = probes
        for number in range(MOST_ROUNDS):
            if number >= ROUNDS and new_baseline is None:
                todo = more_to_tell(probes, found, baseline, cpu, tolerance)
            if not todo:
                break
            print(f"round {number + 1}: {len(todo)} of {len(probes)} probes", file=sys.stderr, flush=True)
            for probe in todo:
                for name, ratio in _round(probe).items():
                    found.setdefault(name, []).append(ratio)
    known = {figure.name for figure in figures}
    tried = known - found.keys()
    unknown = [
        name for name in baseline.ratios if name not in known and options.wants(name.partition(" ")[0])
    ]
    figures += [Figure(name=name) for name in unknown]
    judgements = [
        judge(figure, found.get(figure.name, ()), baseline, cpu=cpu, tolerance=tolerance)
        for figure in figures
    ]
    # What was tried and never came to anything is no pass.
    judgements = [
        replace(each, finding=Finding.UNCLEAR) if each.figure.name in tried else each for each in judgements
    ]
    if new_baseline is not None:
        medians = {name: statistics.median(ratios) for name, ratios in found.items()}
        write_baseline(new_baseline, machine, cpu, medians)
    text = markdown(judgements, baseline, cpu=cpu, tolerance=tolerance)
    status = 0 if baseline_path is None else exit_status(judgements)
    return status, text, [row(each, found) for each in judgements]


def _round(probe: Probe) -> Mapping[str, float]:
    """One round; nothing when the machine did not let it come to an end."""
    try:
        return {name: ratio for name, ratio in probe.round().items() if ratio > 0}
    except (LabError, ZeroDivisionError) as error:
        print(f"{probe.figures[0].name}: {error}", file=sys.stderr, flush=True)
        return {}


def more_to_tell(
    probes: Sequence[Probe],
    found: Mapping[str, Sequence[float]],
    baseline: Baseline,
    cpu: str,
    tolerance: float,
) -> list[Probe]:
    """The probes of which more rounds could tell more; none when the run's status is decided."""
    findings = {
        figure.name: judge(figure, found.get(figure.name, ()), baseline, cpu=cpu, tolerance=tolerance).finding
        for probe in probes
        for figure in probe.figures
    }
    if Finding.SLOWER in findings.values():
        return []
    unclear = {name for name, finding in findings.items() if finding is Finding.UNCLEAR}
    return [probe for probe in probes if unclear & {figure.name for figure in probe.figures}]


def row(each: Judgement, found: Mapping[str, Sequence[float]]) -> Mapping[str, object]:
    """{figure, finding, ratio, baseline, change, rounds, runs}."""
    return {
        "figure": each.figure.name,
        "finding": each.finding.value,
        "ratio": each.ratio,
        "baseline": each.baseline,
        "change": each.change,
        "rounds": each.rounds,
        "runs": list(found.get(each.figure.name, ())),
    }


def cpu_name() -> str:
    """What a baseline is filed under: name, family, model and number of CPUs in use."""
    text = Path("/proc/cpuinfo").read_text()

    def field(key: str) -> str:
        match = re.search(rf"^{key}\s*:\s*(.*)$", text, re.MULTILINE)
        return match[1].strip() if match else "?"

    name = field("model name") if "model name" in text else platform.machine()
    return (
        f"{name} (family {field('cpu family')}, model {field('model')}), {len(os.sched_getaffinity(0))} CPUs"
    )


# ---- the probes


def kernel_probes(stack: ExitStack) -> Iterator[Probe]:
    """Both directions of an algorithm and size."""
    for algorithm in ALGORITHMS:
        tunnel = stack.enter_context(tunnels(parse_proposal(algorithm)))
        for size in SIZES:
            names = [f"kernels {algorithm} {way} {size} B" for way in rings.WAYS]
            slack = SHARED_CORE_SLACK.get((algorithm, size), 1.0)
            yield _both_ways(names, partial(kernel_slice, algorithm, tunnel, size), slack)


def kernel_slice(algorithm: str, tunnel: Tunnels, size: int) -> tuple[float, float]:
    """Ratios of one slice, out and in."""
    seal, open_ = (rings.bare(algorithm, tunnel, (size,), call, BATCHES * 64) for call in ("seal", "open"))
    ours = measure(tunnel.view, tunnel.engine, inner_packet(size), BATCHES, slowdown=slowdown())
    return ours.out / seal, ours.into / open_


def ring_probes(stack: ExitStack) -> Iterator[Probe]:
    """Both directions of AES-128-GCM with rings, by size."""
    algorithm = ALGORITHMS[0]
    tunnel, worker = stack.enter_context(rings.rig(algorithm))
    for size in RING_SIZES:
        names = [f"rings {algorithm} {way} {size}{'' if size == 'imix' else ' B'}" for way in rings.WAYS]
        yield _both_ways(names, partial(ring_slice, algorithm, tunnel, worker, rings.SIZES[size]))


def ring_slice(
    algorithm: str, tunnel: Tunnels, worker: rings.Rig, sizes: tuple[int, ...]
) -> tuple[float, float]:
    """Ratios of one slice, out and in."""
    each = rings.turn(algorithm, tunnel, worker, sizes)
    return each.out / each.bare_out, each.into / each.bare_in


def _both_ways(names: Sequence[str], slice_: Callable[[], tuple[float, float]], slack: float = 1.0) -> Probe:
    """A probe of two names: medians over a round's slices."""

    def one_round() -> Mapping[str, float]:
        with undisturbed():
            slices = [slice_() for _ in range(SLICES)]
        return dict(zip(names, map(statistics.median, zip(*slices, strict=True)), strict=True))

    return Probe(figures=tuple(Figure(name=name, slack=slack) for name in names), round=one_round)


def scaling_probes(stack: ExitStack) -> Iterator[Probe]:
    """Two workers on one SA, each way, long packets."""
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < scaling.WORKERS:
        return
    tunnel = stack.enter_context(tunnels(parse_proposal(scaling.ALGORITHM), 1, workers=scaling.WORKERS))
    workers = scaling.make_workers(tunnel, cpus)
    pool = stack.enter_context(ThreadPoolExecutor(scaling.WORKERS))
    for way in scaling.WAYS:
        name = f"scaling {scaling.WORKERS} workers, 1 SA, {way} {scaling.SIZES[-1]} B"

        yield Probe(
            figures=(Figure(name=name, higher=True, slack=SCALING_SLACK),),
            round=partial(scaling_round, name, pool, workers, way),
        )


def scaling_round(
    name: str, pool: ThreadPoolExecutor, workers: Sequence[scaling.Worker], way: str
) -> Mapping[str, float]:
    """Both workers' rate, of one's."""
    with foremost():
        slices = scaling.round_of_slices(pool, workers, 1, way, scaling.SIZES[-1])
    return {name: statistics.median(each[scaling.WORKERS] / each[1] for each in slices)}


def rate_probes(stack: ExitStack) -> Iterator[Probe]:
    """One worker between AF_XDP sockets, saturated."""
    if os.geteuid() != 0 or len(os.sched_getaffinity(0)) < 2:
        return
    cpus = rate.two_cpus()
    ends = stack.enter_context(dut.bench())
    worker = stack.enter_context(dut.Dut(ends, RATE_DRIVER))
    names = {size: f"rate {RATE_DRIVER} {size} B, of the bare ports" for size in RATE_SIZES}

    def one_round() -> Mapping[str, float]:
        ratios = {}
        with network_foremost():
            for size, name in names.items():
                ratio = rate.saturated(ends, worker, size, cpus, RATE_SECONDS).ratio
                if ratio is not None:
                    ratios[name] = ratio
        return ratios

    figures = tuple(Figure(name=name, higher=True, slack=RATE_SLACK) for name in names.values())
    yield Probe(figures=figures, round=one_round)


def chain_probes(stack: ExitStack) -> Iterator[Probe]:
    """TCP, in turns; all laboratories stand side by side."""
    if os.geteuid() != 0:
        return
    systems = {name: stack.enter_context(chain.system(name)) for name in {*CHAIN, *CHAIN.values()}}
    names = {name: f"chain {name} TCP, of {beside}" for name, beside in CHAIN.items()}

    def one_round() -> Mapping[str, float]:
        gbps = {name: traffic("tcp", CHAIN_SECONDS).gbps for name, traffic in systems.items()}
        return {names[name]: gbps[name] / gbps[beside] for name, beside in CHAIN.items()}

    figures = tuple(Figure(name=name, higher=True, slack=CHAIN_SLACK) for name in names.values())
    yield Probe(figures=figures, round=one_round)


PROBES: dict[str, Callable[[ExitStack], Iterator[Probe]]] = {
    "kernels": kernel_probes,
    "rings": ring_probes,
    "scaling": scaling_probes,
    "rate": rate_probes,
    "chain": chain_probes,
}
