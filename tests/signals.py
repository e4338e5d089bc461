"""Signals to processes whose numbers others tell us."""

from __future__ import annotations

import os
import signal


def send(pid: int, number: signal.Signals) -> None:
    """os.kill, but for 0 and below: that would be our own process group, so what is told is wrong."""
    assert pid > 0, f"got process {pid} to send {number.name} to, want one that runs"
    os.kill(pid, number)
