"""Instructions per packet and stage of the walk, counted by stepping through a batch.

    a child, made by fork -> walks until all is warm -> stops -> this process steps it through one batch more

Hardware counters would need a machine that shows them; virtual ones rarely do. Stepping takes microseconds per
instruction and counts them exactly, whatever else the machine does. An instruction that repeats itself (`rep movs`)
counts once per repetition.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import traceback

from ext.crypto import EngineHandle
from ext.kernelbench import count_steps, walk_to_be_counted
from ext.sa import TablesView

_PTRACE_TRACEME = 0


def count_instructions(view: TablesView, engine: EngineHandle, packet: bytes) -> dict[str, float]:
    """Of `packet`'s walks out and in through `view`, by the names in ext.kernelbench.STAGES.

    RuntimeError says why where it fails.
    It wants nothing but the right to trace a child of one's own, which containers may lack.
    """
    marks = mmap.mmap(-1, mmap.PAGESIZE)
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(
        0, {min(cpus)}
    )  # a step is a turn for each: on one CPU it takes a quarter of the time
    pid = os.fork()
    if pid == 0:
        _be_counted(view, engine, packet, marks)
    try:
        _, status = os.waitpid(pid, 0)
        if not os.WIFSTOPPED(status):
            raise RuntimeError(f"the child to be counted ended early, with status {status:#x}")
        return count_steps(pid, marks)
    except OSError as error:
        raise RuntimeError(f"cannot count instructions: {error}") from error
    finally:
        _end(pid)
        os.sched_setaffinity(0, cpus)


def _be_counted(view: TablesView, engine: EngineHandle, packet: bytes, marks: mmap.mmap) -> None:
    """The child's life; never returns."""
    try:
        if ctypes.CDLL(None, use_errno=True).ptrace(_PTRACE_TRACEME, 0, None, None) != 0:
            raise OSError(ctypes.get_errno(), "ptrace is not allowed here")
        walk_to_be_counted(view, engine, packet, marks)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def _end(pid: int) -> None:
    """End the child, wherever it is."""
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        pass
