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
        help="write what agreed with which peer as a table of Markdown",
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
    if path is not None:
        rows = [*conformance.rows_of(_reports), *_planned]
        run = {
            "date": date.today().isoformat(),
            "arguments": " ".join(session.config.invocation_params.args),
            "ended": ", interrupted before its end" if exitstatus == pytest.ExitCode.INTERRUPTED else "",
        }
        path.write_text(conformance.render(rows, {**_versions(), **run}))


def _versions() -> dict[str, str]:
    """Of the peers."""
    from tests.peers.linux.kernel import find_kernel
    from tests.peers.strongswan import CHARON

    said = subprocess.run([CHARON, "--version"], check=False, capture_output=True, text=True).stdout
    strongswan = re.search(r"strongSwan U?([\d.]+)", said)
    return {
        "linux": f"Debian's kernel {find_kernel().version}",
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
