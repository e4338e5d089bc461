"""Instructions counted by stepping: exact, and where they should be."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from bench.instructions import count_instructions
from bench.tunnels import inner_packet, parse_suite, tunnels
from ext.kernelbench import STAGES, gigahertz

CIPHER = {"out: seal", "in: open"}


def count(size: int, suite: str = "aes128gcm16") -> dict[str, float]:
    """One batch of packets of that size."""
    proposal, protocol = parse_suite(suite)
    with tunnels(proposal, protocol=protocol) as tunnel:
        return count_instructions(tunnel.view, tunnel.engine, inner_packet(size))


def test_only_the_cipher_looks_at_all_of_a_packet() -> None:
    """Every stage has some instructions; those of all but the cipher do not grow with the packet."""
    short, long_ = count(64), count(1420)
    assert list(short) == list(STAGES)
    assert all(0 < short[stage] < 2000 for stage in STAGES)
    for stage in STAGES:
        assert (long_[stage] > 2 * short[stage]) == (stage in CIPHER), stage
        assert stage in CIPHER or long_[stage] == pytest.approx(short[stage], abs=1), stage


def test_a_child_that_cannot_be_counted_is_named_and_gone(capfd: pytest.CaptureFixture[str]) -> None:
    """The packet is of no tunnel: the child says so, and nothing of it stays."""
    proposal, protocol = parse_suite("aes128gcm16")
    with tunnels(proposal, protocol=protocol) as tunnel, pytest.raises(RuntimeError, match="ended early"):
        count_instructions(tunnel.view, tunnel.engine, bytes(64))
    assert "packet ended as" in capfd.readouterr().err
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_the_clock_is_a_cpus() -> None:
    """Between half a gigahertz and ten."""
    assert 0.5 < max(gigahertz() for _ in range(5)) < 10


def test_the_profile_shows_them() -> None:
    """`./run bench kernels --profile`."""
    command = [
        sys.executable,
        "-m",
        "bench",
        "kernels",
        "--profile",
        "--only",
        "aes128gcm16",
        "--rounds",
        "1",
    ]
    done = subprocess.run([*command, "--no-plots"], capture_output=True, text=True, check=True, timeout=60)
    assert "instructions  per_cycle" in done.stdout
    assert sum(stage in done.stdout for stage in STAGES) == len(STAGES)
