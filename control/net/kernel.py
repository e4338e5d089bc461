"""Facts about the kernel's networking, most of which files under /sys and /proc tell: queues, drivers, sysctls."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SYS_NET = Path("/sys/class/net")
PROC_NET = Path("/proc/sys/net")
SO_RCVBUFFORCE = 33  # a socket option that may exceed the system's limit, and needs CAP_NET_ADMIN


@dataclass(frozen=True, kw_only=True)
class Interface:
    """A network interface as /sys shows it."""

    name: str
    index: int
    mtu: int  # bytes of IP packet
    up: bool
    ethernet: bool
    driver: str  # "" for virtual devices without one
    receive_queues: int


def interface(name: str) -> Interface | None:
    """The interface of this name; None when there is none."""
    path = SYS_NET / name
    try:
        flags = int(_read(path / "flags"), 16)
        return Interface(
            name=name,
            index=int(_read(path / "ifindex")),
            mtu=int(_read(path / "mtu")),
            up=bool(flags & 1),
            ethernet=_read(path / "type") == "1",
            driver=(path / "device" / "driver").resolve().name
            if (path / "device" / "driver").exists()
            else "",
            receive_queues=sum(1 for queue in (path / "queues").glob("rx-*")),
        )
    except (OSError, ValueError):
        return None


def sysctl(name: str) -> str | None:
    """A sysctl under net, by its path (`ipv4/ip_forward`); None when the kernel has none."""
    try:
        return _read(PROC_NET / name)
    except OSError:
        return None


def _read(path: Path) -> str:
    return path.read_text().strip()
