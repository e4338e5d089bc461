"""The table of conformance says what the tests' reports say, the worst of several, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.conformance import LIBIPSEC, LINUX, PROPERTY, SCAPY, planned, render, rows_of
from tests.peers.linux.cases import Case
from tests.rules.cython_source import ROOT

VERSIONS = {
    "linux": "kernel 1",
    "scapy": "2",
    "strongswan": "3",
    "date": "2030-01-02",
    "command": "./run test --full",
    "ended": ", interrupted before its end",
}


@dataclass(kw_only=True)
class Report:
    """As much of a report of pytest as is looked at."""

    outcome: str = "passed"
    user_properties: list[tuple[str, Any]] = field(default_factory=list)


def about(outcome: str = "passed", **fields: object) -> Report:
    """A report of a test that was about one thing."""
    known = {"peer": LINUX, "protocol": "esp", "mode": "tunnel", "suite": "aes128gcm16", "mix": "4in4"}
    row = {**known, "esn": False, "encap": False, **fields}
    return Report(outcome=outcome, user_properties=[("other", 1), (PROPERTY, row)])


def test_table() -> None:
    """Ways per cell, failures struck, dashes where nothing was tried, sections for what there is."""
    page = render(
        rows_of(
            [
                about(peer=SCAPY, suite="null-sha256"),
                about(),
                about(encap=True),
                about("failed", esn=True),
                about(mix="6in4", esn=True, encap=True),
                about(mix="6in4", esn=True, encap=True),
                about(peer=LIBIPSEC, encap=True),
                about("failed", peer=LIBIPSEC, encap=True),
                about(protocol="ah", mode="transport", mix="IPv6", suite="sha256"),
                Report(),
            ]
        ),
        VERSIONS,
    )
    assert "scapy 2" in page and "strongSwan 3" in page and "kernel 1" in page
    assert (
        "of 2030-01-02, made by\n`./run test --full`, interrupted before its end: 5 ways passed, 2 failed"
        in page
    )
    _, tunnel, transport = page.split("\n## ")
    assert tunnel.startswith("ESP, tunnel mode\n")
    assert tunnel.splitlines()[2:] == [
        "| algorithms | Linux 4in4 | Linux 4in6 | Linux 6in4 | Linux 6in6 | scapy | strongSwan libipsec |",
        "|---|---|---|---|---|---|---|",
        "| `aes128gcm16` | P ~~E~~ U | – | B | – | – | ~~U~~ |",
        "| `null-sha256` | – | – | – | – | P | – |",
    ]
    assert transport.splitlines()[0] == "AH, transport mode"
    assert transport.splitlines()[-1] == "| `sha256` | – | P | – | – |"


def test_what_was_not_run_is_said() -> None:
    """Collected cases are in brackets until a report tells of them."""

    @dataclass
    class Call:
        params: dict[str, object]

    @dataclass
    class Item:
        callspec: Call

    cases = [
        Case(suite="aes128gcm16"),
        Case(suite="aes128gcm16", esn=True),
        Case(suite="null-sha256", encap=True),
    ]
    items = [*(Item(Call({"case": case})) for case in cases), Item(Call({"case": "other"})), object()]
    page = render([*rows_of([about("failed"), about(suite="other", mix="6in6")]), *planned(items)], VERSIONS)
    assert "2030-01-02" in page and "1 ways passed, 1 failed, 2 were not run" in page.replace("\n", " ")
    assert [line for line in page.splitlines() if line.startswith("| `")] == [
        "| `aes128gcm16` | ~~P~~ (E) | – | – | – | – | – |",
        "| `other` | – | – | – | P | – | – |",
        "| `null-sha256` | (U) | – | – | – | – | – |",
    ]


AGREES = """
def test_it(agreement):
    agreement(peer="scapy", suite="null-sha256")
"""
NO_KERNEL = """
from control.lab.space import LabError
from tests.peers.linux import kernel

def none():
    raise LabError("no kernel")

kernel.find_kernel = none
"""


def pages(directory: Path, text: str, *options: str) -> list[str]:
    """Run one file of tests where there is neither build/ nor a peer; the pages of Markdown that are there then."""
    (directory / "test_it.py").write_text(text)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", "-p", "no:cacheprovider"]
    result = subprocess.run(
        [*command, "--rootdir", str(directory), *options, "test_it.py"],
        check=False,
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ROOT), "ESPLANADE_CHARON": str(directory / "none")},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*.md"))


@pytest.mark.parametrize(
    ("options", "page"),
    [((), "build/conformance.md"), (("--conformance", "new/table.md"), "new/table.md")],
)
def test_a_run_writes_the_table(options: tuple[str, ...], page: str, tmp_path: Path) -> None:
    """Without an option as well, and where the directory, strongSwan and the guest's kernel are missing."""
    assert pages(tmp_path, NO_KERNEL + AGREES, *options) == [page]
    assert "| `null-sha256` | – | – | – | – | P | – |" in (tmp_path / page).read_text()


def test_a_run_without_peers_leaves_the_table_alone(tmp_path: Path) -> None:
    """What has nothing to say does not take the place of what has, unless it is told to."""
    assert pages(tmp_path, "def test_it():\n    pass\n") == []
    assert pages(tmp_path, "def test_it():\n    pass\n", "--conformance", "table.md") == ["table.md"]
