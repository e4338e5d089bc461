"""The command line: `esplanade run | status | up | down | rekey | log | keys | pcap | doctor | pki | demo | bench`.

Exit status: 0 done, 1 failed (the text says why), 2 wrong usage or a configuration with errors.
Each command's code is imported when it is called, so that `status` does not wait for numpy.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from control.config import Config, ConfigError, load
from control.steer import add_commands, socket_path
from control.version import installed_version

DEFAULT_CONFIG = Path("/etc/esplanade/esplanade.toml")
DEFAULT_RUN_DIR = Path("/run/esplanade")
DONE, FAILED, USAGE = 0, 1, 2


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the arguments, run the command, return the exit status."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    if arguments[:1] == ["bench"]:
        # bench has a parser of its own, and is no part of an installed gateway.
        return _bench(arguments[1:])
    parser = build_parser(arguments[:1])
    try:
        chosen = parser.parse_args(arguments)
    except SystemExit as end:  # --help or wrong usage; argparse has said what it is
        return int(end.code or 0)
    try:
        return int(chosen.command(chosen))
    except ConfigError as error:
        for line in error.lines():
            print(line, file=sys.stderr)
        return USAGE
    except BrokenPipeError:
        # The reader of our output (head, say) has gone; keep the interpreter from complaining at exit.
        sys.stdout = open("/dev/null", "w")  # noqa: SIM115
        return DONE
    except KeyboardInterrupt:
        return FAILED


def build_parser(wanted: Sequence[str] = ()) -> argparse.ArgumentParser:
    """Every command, with its options; those of `demo` and `pki` only where `wanted`: they import much."""
    parser = argparse.ArgumentParser(
        prog="esplanade",
        description="IPsec VPN gateway.",
        epilog="Exit status: 0 done, 1 failed, 2 wrong usage or configuration.",
    )
    parser.add_argument("--version", action="version", version=f"esplanade {installed_version()}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_run(commands.add_parser("run", help="run the gateway in the foreground"))
    _add_status(
        commands.add_parser("status", help="show ports, workers, SAs and every drop of the running gateway")
    )
    add_commands(commands)
    _add_pcap(commands.add_parser("pcap", help="encrypt or decrypt a capture file offline; needs no root"))
    _add_doctor(
        commands.add_parser(
            "doctor", help="say what is wrong with this host or configuration, and what mends it"
        )
    )
    pki = commands.add_parser("pki", help="make a CA, and certificates of servers and clients")
    if list(wanted) == ["pki"]:
        _add_pki(pki)
    demo = commands.add_parser(
        "demo", help="two gateways in namespaces of this machine: prove and measure a tunnel"
    )
    if list(wanted) == ["demo"]:
        _add_demo(demo)
    commands.add_parser(
        "bench",
        help="measure kernels, rings, tables, scaling, ports, rate, latency, chain or ike (in a source tree)",
        add_help=False,
    )
    return parser


# ---- run ----------------------------------------------------------------------------------------------------


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-c",
        "--config",
        type=Path,
        default=DEFAULT_CONFIG,
        metavar="FILE",
        help=f"configuration (default: {DEFAULT_CONFIG})",
    )
    parser.add_argument("--log-json", action="store_true", help="log lines are JSON objects")
    parser.add_argument(
        "--check", action="store_true", help="read the configuration, say what is wrong, and end"
    )
    parser.set_defaults(command=_run)


def _run(arguments: argparse.Namespace) -> int:
    config = load(arguments.config)
    if arguments.check:
        for problem in config.warnings:
            print(f"{config.source}: warning: {problem}", file=sys.stderr)
        return _check_credentials(config)
    from control.process import run

    return run(config, log_json=arguments.log_json)


def _check_credentials(config: Config) -> int:
    """Read the files of certificates and keys too, where there are any; nothing of them is kept."""
    from control.pki.load import CredentialFileError, load_credentials

    try:
        load_credentials(
            config.ike.credentials,
            warn=lambda problem: print(f"{config.source}: warning: {problem}", file=sys.stderr),
        )
    except CredentialFileError as error:
        for found in error.problems:
            print(f"{config.source}: {found}", file=sys.stderr)
        return USAGE
    return DONE


# ---- status -------------------------------------------------------------------------------------------------


def _add_status(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="the whole status as one JSON object")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--socket", type=Path, metavar="PATH", help="the gateway's status socket")
    where.add_argument(
        "-c", "--config", type=Path, metavar="FILE", help="ask the gateway that runs this configuration"
    )
    parser.set_defaults(command=_status)


def _status(arguments: argparse.Namespace) -> int:
    from control.admin.render import render_status
    from control.admin.server import StatusError, ask

    try:
        status = ask(socket_path(arguments), "status")
    except StatusError as error:
        print(f"esplanade status: {error}", file=sys.stderr)
        return FAILED
    print(json.dumps(status, indent=2) if arguments.json else render_status(status))
    return DONE


# ---- pcap ---------------------------------------------------------------------------------------------------


def _add_pcap(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", "-c", type=Path, required=True, metavar="FILE", help="SAs and policies to use"
    )
    parser.add_argument(
        "--direction",
        choices=("auto", "in", "out"),
        default="auto",
        help="out: encrypt, in: decrypt, auto: decrypt what is ESP to us (default: auto)",
    )
    parser.add_argument("input", type=Path, metavar="IN", help="capture to read (pcap)")
    parser.add_argument("output", type=Path, metavar="OUT", help="capture to write")
    parser.set_defaults(command=_pcap)


def _pcap(arguments: argparse.Namespace) -> int:
    from control.offline import OfflineError, transform

    try:
        summary = transform(load(arguments.config), arguments.input, arguments.output, arguments.direction)
    except OfflineError as error:
        print(f"esplanade pcap: {error}", file=sys.stderr)
        return FAILED
    print(summary)
    return DONE


# ---- doctor -------------------------------------------------------------------------------------------------


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", "-c", type=Path, metavar="FILE", help="look at what this configuration needs, too"
    )
    parser.add_argument("--json", action="store_true", help="findings as a JSON list")
    parser.set_defaults(command=_doctor)


def _doctor(arguments: argparse.Namespace) -> int:
    from control.doctor import Level, examine, format_findings

    config: Config | None = load(arguments.config) if arguments.config else None
    findings = examine(config)
    if arguments.json:
        print(json.dumps([finding.as_dict() for finding in findings], indent=2))
    else:
        print(format_findings(findings))
    return FAILED if any(finding.level is Level.BAD for finding in findings) else DONE


# ---- pki ----------------------------------------------------------------------------------------------------


def _add_pki(parser: argparse.ArgumentParser) -> None:
    from control.pki.command import add_arguments, run

    add_arguments(parser)
    parser.set_defaults(command=run)


# ---- demo, bench --------------------------------------------------------------------------------------------


def _add_demo(parser: argparse.ArgumentParser) -> None:
    from control.demo.command import add_arguments, run

    add_arguments(parser)
    parser.set_defaults(command=run)


def _bench(argv: list[str]) -> int:
    """bench/ lies beside the packages in a source tree; an installed gateway has none."""
    root = str(Path(__file__).resolve().parents[1])
    if root not in sys.path:
        sys.path.insert(0, root)
    try:
        module = importlib.import_module("bench.cli")
    except ModuleNotFoundError as error:
        if error.name not in ("bench", "bench.cli"):
            print(
                f"esplanade bench: {error}; install the extra: pip install 'esplanade[bench]'",
                file=sys.stderr,
            )
        else:
            print(
                "esplanade bench: benchmarks are part of the source tree; run ./run bench there",
                file=sys.stderr,
            )
        return FAILED
    return int(module.main(argv))
