"""Encapsulate and decapsulate, per algorithm, direction and size, beside the bare cipher call in the same run.

bench/test_kernels.py measures, under pytest-benchmark; here its record becomes rows. A figure has many short slices,
ours and bare in turn, so that what disturbs the machine disturbs both. Of each the shortest slice counts as `ns` and
`bare_ns`; `ratio` is the median of the slices' own ratios, which one lucky slice cannot move.

`profile` prints the stages of the walk instead.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.instructions import count_instructions
from bench.options import Options
from bench.quiet import undisturbed
from bench.report import RESULTS, Row
from bench.test_kernels import ALGORITHMS, DIRECTIONS, SIZES
from bench.tunnels import inner_packet, parse_suite, tunnels
from ext.kernelbench import STAGES, gigahertz
from ext.kernelbench import profile as profile_walk

ROOT = Path(__file__).resolve().parents[1]
SLICES = 400
BATCHES = 8
PROFILE_SLICES = 200


def run(options: Options) -> list[Row]:
    """Rows {algorithm, direction, size, ns, bare_ns, ratio, gbps, ...}; `rounds` is the number of slices.

    ns, bare_ns: nanoseconds per packet, shortest slice; ns_with_parse: with link and IP header parsed; ratio: median
    of ns / bare_ns by slice; ratio_of_minima: ns / bare_ns; gbps: 10^9 bits of inner packet per second, from ns.
    With `profile`, the stages' rows instead. pytest-benchmark's own JSON goes to bench/results, too.
    """
    if options.profile:
        return profile(options)
    tests = [
        f"bench/test_kernels.py::test_kernel[{algorithm}-{direction}-{size}]"
        for algorithm in filter(options.wants, ALGORITHMS)
        for direction in DIRECTIONS
        for size in SIZES
    ]
    if not tests:
        raise SystemExit(f"--only names no algorithm; there are {', '.join(ALGORITHMS)}")
    # `seconds` is the length of a slice, at about 1,000 ns per packet.
    batches = BATCHES if options.seconds is None else max(1, round(options.seconds * 1e6 / 64))
    with tempfile.TemporaryDirectory() as directory, undisturbed():
        record = Path(directory) / "record.json"
        command = [
            *(sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider"),
            *(f"--slices={options.rounds or SLICES}", f"--batches={batches}"),
            *(f"--benchmark-json={record}", "--benchmark-group-by=group", "--benchmark-columns=min,median"),
            *tests,
        ]
        done = subprocess.run(command, cwd=ROOT, stdout=sys.stderr, check=False)
        if done.returncode != 0:
            raise SystemExit(f"bench/test_kernels.py failed with exit status {done.returncode}")
        RESULTS.mkdir(parents=True, exist_ok=True)
        shutil.copy(record, RESULTS / "kernels-pytest-benchmark.json")
        return [row(each["extra_info"]) for each in json.loads(record.read_text())["benchmarks"]]


def row(info: dict[str, Any]) -> Row:
    """One figure from its slices."""
    walk, parse, bare = info["walk"], info["parse"], info["bare"]
    return {
        **{name: info[name] for name in ("algorithm", "direction", "size")},
        "ns": min(walk),
        "bare_ns": min(bare),
        "ratio": statistics.median(ours / theirs for ours, theirs in zip(walk, bare, strict=True)),
        "ratio_of_minima": min(walk) / min(bare),
        "gbps": 8 * info["size"] / min(walk),
        "ns_with_parse": min(ours + before for ours, before in zip(walk, parse, strict=True)),
        "engine": info["engine"],
    }


def profile(options: Options) -> list[Row]:
    """Rows {algorithm, size, stage, ns, instructions, per_cycle}, each per packet, for the stages of the walks.

    ns: the shortest slice; instructions: counted in one batch; per_cycle: instructions by the cycles that `ns` has at
    the core's fastest clock seen.
    """
    rows: list[Row] = []
    with undisturbed():
        for algorithm in filter(options.wants, ALGORITHMS):
            proposal, protocol = parse_suite(algorithm)
            with tunnels(proposal, protocol=protocol) as tunnel:
                for size in (SIZES[0], SIZES[-1]):
                    packet = inner_packet(size)
                    clocks, slices = [], []
                    for _ in range(options.rounds or PROFILE_SLICES):
                        clocks.append(gigahertz())
                        slices.append(profile_walk(tunnel.view, tunnel.engine, packet, BATCHES))
                    counted = count_instructions(tunnel.view, tunnel.engine, packet)
                    for stage in STAGES:
                        ns = min(each[stage] for each in slices)
                        rows.append(
                            {
                                "algorithm": algorithm,
                                "size": size,
                                "stage": stage,
                                "ns": ns,
                                "instructions": counted[stage],
                                "per_cycle": counted[stage] / (ns * max(clocks)) if ns else None,
                            }
                        )
    return rows
