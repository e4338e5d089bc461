"""`esplanade bench [WHAT ...]`: measure, print tables, write JSON and plots. Without WHAT: everything.

Results go to bench/results/NAME.json with plots beside them, machine.txt says what they were measured on, and --json
names a file for all of this run. `--ci` measures a few ratios instead and compares them with a baseline (bench.ci).
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.machine import describe_machine, trace
from bench.options import Options, slowdown
from bench.report import RESULTS, Row, format_table, write_json
from control.lab import LabError

BENCHES = {
    "kernels": "encapsulate and decapsulate beside the bare cipher call, per algorithm and size",
    "rings": "a worker's whole loop between memory ports beside the same call",
    "tables": "cost of lookup with 1, 1,000 and 100,000 SAs under random access",
    "scaling": "two workers beside one, on one SA and on many",
    "ports": "packets per second received and forwarded, per driver",
    "rate": "packets per second of one worker beside its bare ports, and the highest rate without loss",
    "latency": "one way through a gateway under half load, beside plain kernel forwarding",
    "chain": "iperf3 through two gateways, per driver, beside plain kernel forwarding",
    "ike": "handshakes per CPU second beside strongSwan's, and a thousand tunnels",
}
USAGE = 2


def main(argv: Sequence[str]) -> int:
    """Measure what was asked for; returns the exit status (of --ci: 1 slower, 2 too noisy to tell)."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    unknown = [name for name in arguments.what if name not in BENCHES]
    if unknown:
        parser.error(f"no benchmark is called {', '.join(unknown)}; there are {', '.join(BENCHES)}")
    try:
        slowdown()  # not after minutes
    except ValueError as error:
        parser.error(str(error))
    machine = describe_machine()
    options = Options(
        seconds=arguments.seconds,
        rounds=arguments.rounds,
        only=tuple(arguments.only or (arguments.what if arguments.ci else ())),
        peers=arguments.peers,
        profile=arguments.profile,
    )
    if arguments.ci:
        return _ci(arguments, machine, options)
    print(trace(machine))
    failed, rows = [], []
    for name in arguments.what or BENCHES:
        print(f"\n== {name}: {BENCHES[name]}", flush=True)
        try:
            found = importlib.import_module(f"bench.{name}").run(options)
        except LabError as error:
            print(f"esplanade bench {name}: {error}")
            failed.append(name)
            continue
        print(format_table(found))
        write_json(RESULTS / f"{name}.json", machine, found)
        rows += [{"bench": name, **row} for row in found]
        if not arguments.no_plots:
            _draw(name, found)
    (RESULTS / "machine.txt").write_text(trace(machine, rows) + "\n")
    if arguments.json is not None:
        write_json(arguments.json, machine, rows)
    if failed:
        print(f"\nnot measured: {', '.join(failed)}")
    return 1 if failed else 0


def build_parser() -> argparse.ArgumentParser:
    """What `esplanade bench` takes."""
    width = max(map(len, BENCHES))
    parser = argparse.ArgumentParser(
        prog="esplanade bench",
        description=(__doc__ or "").splitlines()[0],
        epilog="\n".join(
            ["WHAT is any of:", *(f"  {name:{width}}  {text}" for name, text in BENCHES.items())]
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", nargs="*", metavar="WHAT", help="see below (default: all of them)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine and results there, too")
    parser.add_argument("--seconds", type=float, metavar="S", help="length of one measurement")
    parser.add_argument("--rounds", type=int, metavar="N", help="measurements whose median counts")
    parser.add_argument("--no-plots", action="store_true", help="do not draw")
    parser.add_argument(
        "--only", action="append", metavar="NAME", help="this algorithm, driver or system only"
    )
    parser.add_argument(
        "--peers", action="store_true", help="chain: strongSwan's kernel-libipsec and wireguard-go beside us"
    )
    parser.add_argument(
        "--profile", action="store_true", help="kernels: nanoseconds of each stage of the walk"
    )
    ci = parser.add_argument_group(
        "for continuous integration",
        "exit status 0: no regression, 1: something is slower, 2: the machine is too noisy to tell",
    )
    ci.add_argument("--ci", action="store_true", help="measure a few ratios and print a summary in Markdown")
    ci.add_argument("--baseline", type=Path, metavar="FILE", help="compare with these ratios")
    ci.add_argument(
        "--tolerance", type=float, default=0.1, metavar="T", help="cost that may be added (0.1: a tenth)"
    )
    ci.add_argument(
        "--write-baseline", type=Path, metavar="FILE", help="file this run's ratios under this CPU"
    )
    return parser


def _ci(arguments: argparse.Namespace, machine: Mapping[str, object], options: Options) -> int:
    from bench import ci
    from bench.gate import BaselineError

    try:
        status, text, rows = ci.run(
            arguments.baseline, arguments.tolerance, arguments.write_baseline, machine, options
        )
    except (BaselineError, LabError) as error:
        print(f"esplanade bench --ci: {error}", file=sys.stderr)
        return USAGE
    print(text)
    if arguments.json is not None:
        write_json(arguments.json, machine, rows)
    return status


def _draw(name: str, rows: Sequence[Row]) -> None:
    from bench.plots import draw

    for path in draw(name, rows):
        print(f"drew {path}")
