"""To be root without one of root's capabilities, for a while."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator

CAPABILITY_VERSION_3 = 0x20080522
_LIBC = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def without(capability: int) -> Iterator[None]:
    """This thread does not have `capability` in effect inside the block, and has it again behind it."""
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    # For bits 0 to 31, then 32 to 63: effective, permitted, inheritable.
    sets = (ctypes.c_uint32 * 6)()
    _check(_LIBC.capget(header, sets))
    less = (ctypes.c_uint32 * 6)(*sets)
    less[capability // 32 * 3] &= ~(1 << capability % 32)
    _check(_LIBC.capset(header, less))
    try:
        yield
    finally:
        _check(_LIBC.capset(header, sets))


def _check(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
