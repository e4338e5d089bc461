"""`esplanade up | down | rekey | log | keys`: ask the running gateway, print what it tells, line by line.

Exit status: 0 what was asked for has come about, 1 it has not (the last line says why).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from control.admin.server import SOCKET_NAME, CommandError, StatusError, follow

DONE, FAILED = 0, 1
# Files in Wireshark's configuration directory that hold the tables of its protocol preferences.
TABLES = ("ikev2_decryption_table", "esp_sa")


def add_commands(commands: Any) -> None:
    """Add the parsers of all five to an argparse subparsers object."""
    for name, text in (
        ("up", "bring up a connection, or one child of it"),
        ("down", "take a connection down, or one child of it"),
        ("rekey", "give a connection's SAs new keys now"),
    ):
        parser = commands.add_parser(name, help=text)
        parser.add_argument("name", metavar="NAME", help="a connection, connection/child, or a child")
        if name == "rekey":
            parser.add_argument(
                "--what",
                choices=("all", "ike", "child"),
                default="all",
                help="which SAs (default: the children's, then the IKE SA's)",
            )
        parser.add_argument("--json", action="store_true", help="events as JSON objects, one a line")
        parser.add_argument(
            "--timeout", type=float, metavar="S", help="seconds without news to give up after"
        )
        _finish(parser, name)
    parser = commands.add_parser("log", help="follow what happens to IKE and child SAs")
    parser.add_argument("name", metavar="NAME", nargs="?", help="of this connection only")
    parser.add_argument(
        "-n", "--last", type=int, default=20, metavar="N", help="begin with the last N (default: 20)"
    )
    parser.add_argument("--no-follow", action="store_true", help="print the last N and end")
    parser.add_argument("--debug", action="store_true", help="events of level debug, too")
    parser.add_argument("--json", action="store_true", help="events as JSON objects, one a line")
    _finish(parser, "log")
    parser = commands.add_parser(
        "keys", help="export IKE and ESP keys for Wireshark, where the configuration allows it"
    )
    parser.add_argument(
        "directory",
        type=Path,
        metavar="DIR",
        nargs="?",
        help="add to the tables in this directory (~/.config/wireshark); without it, print",
    )
    parser.add_argument("--no-follow", action="store_true", help="export what there is, and end")
    _finish(parser, "keys")


def _finish(parser: argparse.ArgumentParser, name: str) -> None:
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--socket", type=Path, metavar="PATH", help="the gateway's status socket")
    where.add_argument(
        "-c", "--config", type=Path, metavar="FILE", help="ask the gateway that runs this configuration"
    )
    parser.set_defaults(command=run, verb=name)


def socket_path(arguments: argparse.Namespace) -> Path:
    """Where the gateway listens that the arguments mean."""
    from control.cli import DEFAULT_RUN_DIR
    from control.config import load

    if arguments.socket is not None:
        return Path(arguments.socket)
    run_dir = load(arguments.config).gateway.run_dir if arguments.config else DEFAULT_RUN_DIR
    return Path(run_dir) / SOCKET_NAME


def run(arguments: argparse.Namespace) -> int:
    """Give the command and print its items as they come."""
    verb = arguments.verb
    request: dict[str, Any] = {"name": getattr(arguments, "name", None)}
    if verb == "rekey":
        request["what"] = arguments.what
    if verb in ("log", "keys"):
        request["follow"] = not arguments.no_follow
    if verb == "log":
        request["last"] = arguments.last
    items = follow(socket_path(arguments), verb, request, wait=getattr(arguments, "timeout", None))
    try:
        if verb == "keys":
            _export(items, arguments.directory)
        else:
            hidden = ("debug",) if not getattr(arguments, "debug", False) else ()
            for item in items:
                if item.get("level") not in hidden:
                    print(json.dumps(item) if arguments.json else line_of(item), flush=True)
    except StatusError as error:
        print(f"esplanade {verb}: {error}", file=sys.stderr)
        return FAILED
    return DONE


def line_of(item: Mapping[str, Any]) -> str:
    """An event as a person reads it: time of day, level where it is not info, text."""
    text = str(item.get("text", ""))
    if "time" not in item:
        return text
    clock = time.strftime("%H:%M:%S", time.localtime(item["time"]))
    level = item.get("level", "info")
    return f"{clock} {text}" if level == "info" else f"{clock} {level}: {text}"


def _export(items: Iterator[Mapping[str, Any]], directory: Path | None) -> None:
    """Print the lines, or add those that are not there yet to Wireshark's tables, readable by their owner alone."""
    files: dict[str, tuple[TextIO, set[str]]] = {}
    try:
        for item in items:
            table, line = str(item["table"]), str(item["line"])
            if directory is None:
                print(f"{table}: {line}", flush=True)
                continue
            if table not in TABLES:
                continue
            if table not in files:
                files[table] = _open_table(directory / table)
            file, known = files[table]
            if line not in known:
                known.add(line)
                print(line, file=file, flush=True)
    finally:
        for file, _ in files.values():
            file.close()


def _open_table(path: Path) -> tuple[TextIO, set[str]]:
    """A table to append to, and the lines it has."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror}") from None
    file = os.fdopen(descriptor, "a+", encoding="utf-8")
    file.seek(0)
    return file, set(file.read().splitlines())
