"""What a process that holds keys and packets gives up: core dumps, swap, its user, capabilities, new privileges.

Through libc by ctypes where Python has no call: each is made once per process, before its first packet.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import pwd
import resource
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)

PR_SET_DUMPABLE = 4
PR_SET_NAME = 15
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4
CAPABILITY_VERSION_3 = 0x20080522
MCL_CURRENT = 1
MCL_ONFAULT = 4
CAP_LAST = 63
USER = "esplanade"
NOBODY = 65534


class _CapabilityHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapabilityData(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


def _prctl(option: int, first: int = 0) -> int:
    zero = ctypes.c_ulong(0)
    return int(_LIBC.prctl(option, ctypes.c_ulong(first), zero, zero, zero))


def set_name(name: str) -> None:
    """What `top` and `ps` show, 15 characters."""
    _LIBC.prctl(PR_SET_NAME, ctypes.c_char_p(name.encode()[:15]), 0, 0, 0)


def no_core_dumps() -> None:
    """No core file, and no other process without privileges may look into this one."""
    _prctl(PR_SET_DUMPABLE, 0)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def lock_memory() -> str:
    """Keep what is mapped now out of swap, page by page as it is used; "" or why the kernel refused."""
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    if _LIBC.mlockall(MCL_CURRENT | MCL_ONFAULT) != 0:
        return os.strerror(ctypes.get_errno())
    return ""


def unprivileged_user() -> tuple[int, int]:
    """(uid, gid) for workers: the system user "esplanade" where there is one, else nobody's."""
    with contextlib.suppress(KeyError):
        entry = pwd.getpwnam(USER)
        return entry.pw_uid, entry.pw_gid
    return NOBODY, NOBODY


def drop_user(uid: int, gid: int) -> None:
    """Stop being root: without capabilities root still owns root's files. Nothing to do for anyone else.

    A user that this user namespace does not map (EINVAL) leaves us root of the namespace alone.
    """
    if os.geteuid() != 0:
        return
    try:
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EPERM):
            raise
    no_core_dumps()  # a change of user makes a process dumpable again


def drop_privileges(uid: int, gid: int) -> None:
    """Give up root and every capability, for good: bounding and ambient sets too, and no program brings one back.

    OSError when the kernel does not do it: a worker must not go on then.
    """
    last = CAP_LAST
    with contextlib.suppress(OSError, ValueError):
        last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    for capability in range(last + 1):
        # Fails without CAP_SETPCAP; then there is no bounding set of ours to shrink.
        _prctl(PR_CAPBSET_DROP, capability)
    _prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    drop_user(uid, gid)
    header = _CapabilityHeader(CAPABILITY_VERSION_3, 0)
    if _LIBC.capset(ctypes.byref(header), ctypes.byref((_CapabilityData * 2)())) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"drop capabilities: {os.strerror(error)}")
    if _prctl(PR_SET_NO_NEW_PRIVS, 1) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"no_new_privs: {os.strerror(error)}")
