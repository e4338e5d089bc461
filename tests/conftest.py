"""What every test directory shares: the `root` and `full` markers, what they mean here, and the table of conformance.

A test marked `root` makes network namespaces. Without root it fails and says so: a skipped test would look
like a passed one. A test marked `full` is left out unless --full is given.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path

import pytest

from tests import conformance

TABLE = Path("build", "conformance.md")  # from the root of the tree

_reports: list[pytest.TestReport] = []
_planned: list[conformance.Row] = []
Agreement = Callable[..., None]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --full and --conformance."""
    parser.addoption("--full", action="store_true", help="run the tests that take long, too")
    parser.addoption(
        "--conformance",
        metavar="FILE",
        type=Path,
        help=f"write what agreed with which peer as a table of Markdown there (default: {TABLE})",
    )


@pytest.fixture
def agreement(record_property: Callable[[str, object], None]) -> Agreement:
    """A function by which a test says what it is about, for the table of conformance: the fields of its `Row`."""

    def about(
        *,
        peer: str,
        suite: str,
        protocol: str = "esp",
        mode: str = "tunnel",
        mix: str = "4in4",
        esn: bool = False,
        encap: bool = False,
    ) -> None:
        fields = {"peer": peer, "protocol": protocol, "mode": mode, "suite": suite}
        record_property(conformance.PROPERTY, {**fields, "mix": mix, "esn": esn, "encap": encap})

    return about


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Keep what the table is made of."""
    if report.when == "call":
        _reports.append(report)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Write the table, of a run that was interrupted, too; it says so."""
    path: Path | None = session.config.getoption("--conformance")
    tried = conformance.rows_of(_reports)
    if path is None and not tried:
        return  # the table of a run that tried something stays
    run = {
        "date": date.today().isoformat(),
        "command": " ".join(["./run test", *session.config.invocation_params.args]),
        "ended": ", interrupted before its end" if exitstatus == pytest.ExitCode.INTERRUPTED else "",
    }
    page = conformance.render([*tried, *_planned], {**_versions(), **run})
    try:
        _write(path or session.config.rootpath / TABLE, page)
    except OSError as error:
        if path is not None:
            raise
        # Nobody asked for it: a tree that another user has built is no reason to fail.
        print(f"\n{TABLE} is not written: {error}")


def _write(path: Path, page: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page)


def _versions() -> dict[str, str]:
    """Of the peers, as far as they are there."""
    from control.lab.space import LabError
    from tests.peers.linux.kernel import find_kernel
    from tests.peers.strongswan import CHARON

    try:
        linux = f"Debian's kernel {find_kernel().version}"
    except LabError:
        linux = "Debian's kernel"
    try:
        said = subprocess.run([CHARON, "--version"], check=False, capture_output=True, text=True).stdout
    except OSError:
        said = ""
    strongswan = re.search(r"strongSwan U?([\d.]+)", said)
    return {
        "linux": linux,
        "scapy": version("scapy"),
        "strongswan": strongswan[1] if strongswan else "of this machine",
    }


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Note what there is for the table, then leave `full` tests out unless --full is given."""
    _planned[:] = conformance.planned(items)
    if config.getoption("--full"):
        return
    full = [item for item in items if item.get_closest_marker("full")]
    if full:
        config.hook.pytest_deselected(items=full)
        items[:] = [item for item in items if item not in full]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Fail `root` tests at once where they cannot work."""
    if item.get_closest_marker("root") and os.geteuid() != 0:
        pytest.fail(
            f"{item.nodeid} makes network namespaces and needs root; effective user is {os.geteuid()}. "
            "Run ./run test as root.",
            pytrace=False,
        )
