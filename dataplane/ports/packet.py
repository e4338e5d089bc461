"""The packet driver: AF_PACKET sockets on any Ethernet interface, one per worker, joined in a fan-out group.

    control:  Steering.attach_tc keeps the kernel from handling steered packets too; workers get socket_filter_fd
    worker k: open_port -> the filter is in place before the socket is bound: no other packet ever enters it

Options of a PortSpec: `fanout` is "hash" (default: one flow stays with one worker) or "lb" (round robin, which
reorders packets within a flow); `fanout_group` is the group's number, needed only where two gateways share a
network namespace and an interface; `qdisc_bypass` is "on" to skip the interface's queueing discipline.

Limits: as many frames as the socket buffer holds wait (RECEIVE_BUFFER); what comes beyond is lost and counted by
`ethtool -S` or /proc/net/packet, as on any socket.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping

from dataplane.model import PortSpec, Role
from dataplane.ports.errors import PortError
from dataplane.ports.sockets import set_buffers
from ext.packet import Pool
from ext.packetsock import PacketPort

ETH_P_ALL = 0x0003
SOL_PACKET = 263
PACKET_VNET_HDR = 15
PACKET_FANOUT = 18
PACKET_QDISC_BYPASS = 20
PACKET_IGNORE_OUTGOING = 23
SO_ATTACH_BPF = 50

FANOUT = {"hash": 0, "lb": 1}  # PACKET_FANOUT_HASH, PACKET_FANOUT_LB
RECEIVE_BUFFER = 16 << 20  # bytes, as the kernel counts them: about 16,000 small packets
SEND_BUFFER = 4 << 20


def open_socket(
    interface: str,
    *,
    filter_fd: int | None,
    group: int | None,
    fanout: str = "hash",
    qdisc_bypass: bool = False,
) -> int:
    """A bound, non-blocking packet socket; the caller owns the descriptor.

    `filter_fd` is a loaded BPF socket filter, None to see everything; `group` the fan-out group, None for a
    socket of its own. OSError names the interface. Needs CAP_NET_RAW, and CAP_NET_ADMIN for the buffers.
    """
    step = "open a packet socket"
    try:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0) as sock:
            sock.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
            sock.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
            if qdisc_bypass:
                sock.setsockopt(SOL_PACKET, PACKET_QDISC_BYPASS, 1)
            set_buffers(sock, RECEIVE_BUFFER, SEND_BUFFER)
            if filter_fd is not None:
                step = "attach the steering filter"
                sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_BPF, filter_fd)
            step = "bind"
            sock.bind((interface, ETH_P_ALL))
            if group is not None:
                step = f"join fan-out group {group}"
                sock.setsockopt(SOL_PACKET, PACKET_FANOUT, struct.pack("=I", group | FANOUT[fanout] << 16))
            return sock.detach()
    except OSError as error:
        raise OSError(error.errno, f"{interface}: {step}: {error.strerror}") from None


def open_port(spec: PortSpec, queue: int, workers: int, pool: Pool, fds: Mapping[str, int]) -> PacketPort:
    """Worker `queue`'s socket on the interface; fds["filter"] is the steering filter's program."""
    fanout = spec.options.get("fanout", "hash")
    if fanout not in FANOUT:
        raise PortError(f"{spec.name}: fanout is {fanout!r}; it may be {' or '.join(FANOUT)}")
    if "filter" not in fds:
        raise PortError(
            f"{spec.name}: no steering filter for {spec.interface}: the socket would take every packet"
        )
    fd = open_socket(
        spec.interface,
        filter_fd=fds["filter"],
        group=fanout_group(spec) if workers > 1 else None,
        fanout=fanout,
        qdisc_bypass=spec.options.get("qdisc_bypass") == "on",
    )
    return PacketPort(
        pool,
        spec.name,
        fd,
        role=0 if spec.role is Role.PROTECTED else 1,
        mtu=spec.mtu,
        addresses=spec.addresses,
        fanout=fanout if workers > 1 else "",
    )


def fanout_group(spec: PortSpec) -> int:
    """The fan-out group's number, 1 to 65535: the option's, else the interface's index (groups are per namespace)."""
    text = spec.options.get("fanout_group")
    if text is None:
        return socket.if_nametoindex(spec.interface) & 0xFFFF or 1
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise PortError(f"{spec.name}: fanout_group is {text!r}; it may be 1 to 65535")
    return int(text)
