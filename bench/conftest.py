"""Options of the benchmarks that pytest-benchmark runs (bench/test_kernels.py)."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --slices, --batches and --engine."""
    group = parser.getgroup("kernels")
    group.addoption(
        "--slices", type=int, default=400, metavar="N", help="slices per figure, ours and bare each"
    )
    group.addoption("--batches", type=int, default=8, metavar="N", help="batches of 64 packets in a slice")
    group.addoption("--engine", default="auto", metavar="NAME", help="auto, ipsec-mb or openssl")
