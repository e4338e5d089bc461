"""What every test directory shares: the `root` and `full` markers, and what they mean here.

A test marked `root` makes network namespaces. Without root it fails and says so: a skipped test would look
like a passed one. A test marked `full` is left out unless --full is given.
"""

from __future__ import annotations

import os

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --full."""
    parser.addoption("--full", action="store_true", help="run the tests that take long, too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave `full` tests out unless --full is given."""
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
