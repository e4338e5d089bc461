"""A measurement disturbed as little as the machine allows: one CPU, and first in its queue.

Where the kernel groups sessions (sched_autogroup_enabled), nice values count within a session only, and it is the
session's own that must be raised.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

FIRST = -20  # the nice value
SESSION = Path("/proc/self/autogroup")


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Within: this process, and what it starts, on one CPU and, where that is permitted, before all others."""
    cpus = os.sched_getaffinity(0)
    # Interrupts are mostly served by the first.
    os.sched_setaffinity(0, {max(cpus)})
    try:
        with foremost():
            yield
    finally:
        os.sched_setaffinity(0, cpus)


@contextlib.contextmanager
def foremost() -> Iterator[None]:
    """Within: this thread, and what it starts, before all others, where that is permitted."""
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    session = _session_nice()
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, FIRST)
    _set_session_nice(FIRST)
    try:
        yield
    finally:
        _set_session_nice(session)
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, 0, nice)


def _session_nice() -> int:
    """Nice value of our session's group; 0 where there are none."""
    try:
        return int(SESSION.read_text().split()[-1])
    except (OSError, IndexError):
        return 0


def _set_session_nice(nice: int) -> None:
    with contextlib.suppress(OSError):  # no groups, or no permission
        SESSION.write_text(f"{nice}\n")


@contextlib.contextmanager
def network_foremost() -> Iterator[None]:
    """As `foremost`, and the kernel's own threads that move packets with us: they must not wait for who feeds them."""
    before = {pid: os.getpriority(os.PRIO_PROCESS, pid) for pid in _softirq_threads()}
    with foremost(), contextlib.ExitStack() as undo:
        for pid, nice in before.items():
            with contextlib.suppress(PermissionError):
                os.setpriority(os.PRIO_PROCESS, pid, FIRST)
                undo.callback(os.setpriority, os.PRIO_PROCESS, pid, nice)
        yield


def _softirq_threads() -> list[int]:
    """ksoftirqd of every CPU; none where a container hides them."""
    found = []
    for path in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):
            if path.read_text().startswith("ksoftirqd/"):
                found.append(int(path.parent.name))
    return found
