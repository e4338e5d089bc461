"""A measurement disturbed as little as the machine allows: one CPU, and first in its queue.

Where the kernel groups sessions (sched_autogroup_enabled), nice values count within a session only, and it is the
session's own that must be raised. What runs keeps its CPU to the end of its slice even so, three milliseconds or more;
whoever asks for a shorter slice (Linux 6.12) is let in before.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import struct
from collections.abc import Iterator
from pathlib import Path

FIRST = -20  # the nice value
SLICE_NS = 100_000  # the shortest that the kernel takes
OWN_PRIORITY, NETWORK_PRIORITY = (
    10,
    20,
)  # of SCHED_FIFO: the kernel's threads must not wait for those they feed
SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}
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
    session = _session_nice()
    _set_session_nice(FIRST)
    try:
        with _raised(0):
            yield
    finally:
        _set_session_nice(session)


@contextlib.contextmanager
def _raised(pid: int) -> Iterator[None]:
    """Within: a thread (0: this one) has the highest priority and short slices, where that is permitted."""
    nice = os.getpriority(os.PRIO_PROCESS, pid)
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, pid, FIRST)
    _set_slice(pid, SLICE_NS)
    try:
        yield
    finally:
        _set_slice(pid, 0)
        with contextlib.suppress(PermissionError, ProcessLookupError):
            os.setpriority(os.PRIO_PROCESS, pid, nice)


def _set_slice(pid: int, nanoseconds: int) -> None:
    """Ask for slices of this length, 0 for the kernel's own; older kernels take no notice. See sched_setattr(2)."""
    number = SCHED_SETATTR.get(platform.machine())
    if number is not None and os.sched_getscheduler(pid) == os.SCHED_OTHER:
        nice = os.getpriority(os.PRIO_PROCESS, pid)
        # size, policy SCHED_OTHER, flags, nice, priority, runtime, deadline, period
        attributes = struct.pack("=IIQiIQQQ", 48, 0, 0, nice, 0, nanoseconds, 0, 0)
        ctypes.CDLL(None).syscall(number, pid, ctypes.create_string_buffer(attributes, 48), 0)


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
    with foremost(), contextlib.ExitStack() as stack:
        for pid in _softirq_threads():
            stack.enter_context(_raised(pid))
        yield


@contextlib.contextmanager
def reserved() -> Iterator[None]:
    """Within: this thread, what it starts and the kernel's network threads run before all else, as on CPUs set aside.

    In the real-time class, where that is permitted; no longer than half a second at a time, because the kernel keeps
    a twentieth of every second for the others.
    """
    with contextlib.ExitStack() as stack:
        for pid in _softirq_threads():
            stack.enter_context(_real_time(pid, NETWORK_PRIORITY))
        stack.enter_context(_real_time(0, OWN_PRIORITY))
        yield


@contextlib.contextmanager
def _real_time(pid: int, priority: int) -> Iterator[None]:
    policy, parameters = os.sched_getscheduler(pid), os.sched_getparam(pid)
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(pid, os.SCHED_FIFO, os.sched_param(priority))
    try:
        yield
    finally:
        with contextlib.suppress(PermissionError, ProcessLookupError):
            os.sched_setscheduler(pid, policy, parameters)


def _softirq_threads() -> list[int]:
    """ksoftirqd of every CPU; none where a container hides them."""
    found = []
    for path in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):
            if path.read_text().startswith("ksoftirqd/"):
                found.append(int(path.parent.name))
    return found
