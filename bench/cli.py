"""`esplanade bench kernels|tables|ports|chain|ike`: measure, print a table, write JSON and plots.

Results go to bench/results/NAME.json with plots beside them, and to the file that --json names.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from pathlib import Path

from bench.machine import describe_machine
from bench.options import Options
from bench.plots import draw
from bench.report import RESULTS, format_table, write_json
from control.lab import LabError

BENCHES = {
    "kernels": "encapsulate and decapsulate beside the bare cipher call, per algorithm and size",
    "tables": "cost of lookup with 1, 1,000 and 100,000 SAs under random access",
    "ports": "packets per second received and forwarded, per driver",
    "ike": "handshakes per CPU second beside strongSwan's, and a thousand tunnels",
    "chain": "iperf3 through two gateways, per driver, beside plain kernel forwarding",
}


def main(argv: Sequence[str]) -> int:
    """Run one benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(prog="esplanade bench", description=__doc__.splitlines()[0])
    benches = parser.add_subparsers(dest="name", required=True, metavar="|".join(BENCHES))
    for name, text in BENCHES.items():
        bench = benches.add_parser(name, help=text, description=text)
        bench.add_argument("--json", type=Path, metavar="FILE", help="write machine and results there, too")
        bench.add_argument("--seconds", type=float, metavar="S", help="length of one measurement")
        bench.add_argument("--rounds", type=int, metavar="N", help="measurements whose median counts")
        bench.add_argument("--no-plots", action="store_true", help="do not draw")
        bench.add_argument(
            "--only", action="append", metavar="NAME", help="this algorithm, driver or system only"
        )
    arguments = parser.parse_args(argv)
    machine = describe_machine()
    options = Options(seconds=arguments.seconds, rounds=arguments.rounds, only=tuple(arguments.only or ()))
    module = importlib.import_module(f"bench.{arguments.name}")
    try:
        rows = module.run(options)
    except LabError as error:
        print(f"esplanade bench {arguments.name}: {error}")
        return 1
    print(format_table(rows))
    for path in filter(None, [RESULTS / f"{arguments.name}.json", arguments.json]):
        write_json(path, machine, rows)
    if not arguments.no_plots:
        for path in draw(arguments.name, rows):
            print(f"drew {path}")
    return 0
