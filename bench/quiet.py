"""A measurement disturbed as little as the machine allows: one CPU, and first in its queue."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

FIRST = -20  # the nice value


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Within: this process, and what it starts, on one CPU and, where that is permitted, before all others."""
    cpus = os.sched_getaffinity(0)
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    # Interrupts are mostly served by the first.
    os.sched_setaffinity(0, {max(cpus)})
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, FIRST)
    try:
        yield
    finally:
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, 0, nice)
        os.sched_setaffinity(0, cpus)
