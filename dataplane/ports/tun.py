"""TUN devices: control makes the device and keeps it, every worker opens a queue of it.

    create_device   (control, CAP_NET_ADMIN) device with offloads; the returned descriptor keeps it alive and,
                    its own queue being detached, gets no packets
    open_queue      (worker) one more queue, non-blocking
    open_port       (worker) the queue as a port

Addresses, MTU and link state are control's affair (netlink). A device made here is gone when the last
descriptor is closed.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Mapping

from dataplane.model import PortSpec, Role
from ext.packet import Pool
from ext.tunio import TunPort

TUNSETIFF = 0x400454CA
TUNSETOFFLOAD = 0x400454D0
TUNSETQUEUE = 0x400454D9
IFF_TUN = 0x0001
IFF_MULTI_QUEUE = 0x0100
IFF_DETACH_QUEUE = 0x0400
IFF_NO_PI = 0x1000
IFF_VNET_HDR = 0x4000
QUEUE_FLAGS = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR | IFF_MULTI_QUEUE

TUN_F_CSUM = 0x01
TUN_F_TSO = 0x02 | 0x04 | 0x08  # TCP over IPv4, over IPv6, with ECN
TUN_F_USO = 0x20 | 0x40  # UDP over IPv4, over IPv6: Linux 6.2


def open_queue(interface: str) -> int:
    """A non-blocking descriptor of a queue of TUN device `interface`, which is made if it does not exist.

    OSError names the device and what the kernel said (EBUSY: not multi-queue or other flags; EPERM: CAP_NET_ADMIN).
    """
    name = interface.encode()
    if not 0 < len(name) < 16:
        raise ValueError(f"TUN device name {interface!r} has {len(name)} bytes; it may have 1 to 15")
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name, QUEUE_FLAGS))
    except OSError as error:
        os.close(fd)
        raise OSError(error.errno, f"TUN device {interface}: {error.strerror}") from None
    return fd


def set_offloads(fd: int) -> str:
    """Ask for uncut super-frames; returns what is on: "tso+uso", "tso" or "" (the device still works)."""
    for flags, name in ((TUN_F_CSUM | TUN_F_TSO | TUN_F_USO, "tso+uso"), (TUN_F_CSUM | TUN_F_TSO, "tso")):
        try:
            fcntl.ioctl(fd, TUNSETOFFLOAD, flags)
        except OSError:
            continue
        return name
    return ""


def create_device(interface: str) -> int:
    """Make the device, set its offloads, and return the descriptor that keeps it while it is open."""
    fd = open_queue(interface)
    try:
        set_offloads(fd)
        # A queue that nobody reads must not be given packets.
        fcntl.ioctl(fd, TUNSETQUEUE, struct.pack("16sH22x", b"", IFF_DETACH_QUEUE))
    except OSError:
        os.close(fd)
        raise
    return fd


def open_port(spec: PortSpec, queue: int, workers: int, pool: Pool, fds: Mapping[str, int]) -> TunPort:
    """Worker `queue`'s queue; taken from fds["tun"] where control opened it, else opened by name."""
    fd = os.dup(fds["tun"]) if "tun" in fds else open_queue(spec.interface)
    return TunPort(
        pool,
        spec.name,
        fd,
        role=0 if spec.role is Role.PROTECTED else 1,
        mtu=spec.mtu,
        addresses=(),  # the kernel takes no ICMP error from an address of its own (ext/icmp.pyx)
        offloads=set_offloads(fd),
    )
