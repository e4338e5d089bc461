"""sd_notify by a plain datagram, and the service manager's watchdog: nothing of systemd is needed to run."""

from __future__ import annotations

import os
import socket
import time


def notify(*lines: str) -> bool:
    """Tell the service manager, e.g. `notify("READY=1", "STATUS=up")`; False where none listens.

    Never waits: a manager that does not read its socket must not hold up the gateway.
    """
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path or path[0] not in "/@":
        return False
    address = "\0" + path[1:] if path[0] == "@" else path
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
            sock.sendto("\n".join(lines).encode(), address)
    except OSError:
        return False
    return True


def notify_reloading() -> bool:
    """Say that a reload begins; Type=notify-reload wants the time with it."""
    return notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")


def watchdog_interval() -> float | None:
    """Seconds between signs of life (half of what the manager allows); None when it wants none."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    if not microseconds.isascii() or not microseconds.isdigit() or int(microseconds) == 0:
        return None
    return int(microseconds) / 2e6
