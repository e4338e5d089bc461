"""The raw driver: ESP and AH, IP protocols 50 and 51, over raw sockets, one per worker, family and protocol.

    worker k: open_port -> sockets bound to the port's addresses, DF as the outer header says (IPv4) or set (IPv6)

Every raw socket gets a copy of every packet, so with several workers each socket carries a filter that takes the SPIs
of its own worker (SPI modulo number of workers). What a dead worker should have had is lost until it is back.

Option `seldom` = "on": another port reads the interface, and what comes here are packets that were fragmented.

The kernel reassembles fragments before we see anything, and keeps IPv6 extension headers to itself: AH behind some
fails its ICV here. Needs CAP_NET_RAW.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

from dataplane.model import PortSpec, Protocol, Role
from dataplane.ports.sockets import (
    IPV6_HDRINCL,
    JEQ_K,
    LD_W_ABS,
    LD_W_IND,
    LDX_B_MSH,
    MOD_K,
    RET_K,
    SO_ATTACH_FILTER,
    Instruction,
    attach_program,
    families,
    mark,
    set_buffers,
)
from ext.packet import Pool
from ext.udpio import RawPort

IPV6_RECVHOPLIMIT = 51
RECEIVE_BUFFER = 8 << 20  # bytes, as the kernel counts them
SEND_BUFFER = 4 << 20


def share_filter(family: int, protocol: Protocol, worker: int, workers: int) -> list[Instruction]:
    """The program that keeps packets whose SPI is `worker`'s.

    An IPv4 raw socket's filter sees the IP header first, an IPv6 one's the payload.
    """
    spi = 4 if protocol is Protocol.AH else 0
    load: list[Instruction] = (
        [(LDX_B_MSH, 0, 0, 0), (LD_W_IND, 0, 0, spi)] if family == 4 else [(LD_W_ABS, 0, 0, spi)]
    )
    return [
        *load,
        (MOD_K, 0, 0, workers),
        (JEQ_K, 0, 1, worker),
        (RET_K, 0, 0, 0xFFFFFFFF),
        (RET_K, 0, 0, 0),
    ]


def open_socket(
    family: int, address: str, protocol: Protocol = Protocol.ESP, program: list[Instruction] | None = None
) -> int:
    """A bound, non-blocking raw socket of `family` (4 or 6) that sends whole packets; the caller owns it.

    OSError names the address.
    """
    domain = socket.AF_INET if family == 4 else socket.AF_INET6
    try:
        with socket.socket(domain, socket.SOCK_RAW | socket.SOCK_NONBLOCK, protocol) as sock:
            if program is not None:
                attach_program(sock, SO_ATTACH_FILTER, program)
            if family == 4:
                sock.setsockopt(socket.IPPROTO_IP, socket.IP_HDRINCL, 1)
            else:
                sock.setsockopt(socket.IPPROTO_IPV6, IPV6_HDRINCL, 1)
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS, 1)
                sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVHOPLIMIT, 1)
            set_buffers(sock, RECEIVE_BUFFER, SEND_BUFFER)
            mark(sock)
            sock.bind((address, 0))
            return sock.detach()
    except OSError as error:
        raise OSError(error.errno, f"raw {protocol.name} socket on {address}: {error.strerror}") from None


def open_port(spec: PortSpec, queue: int, workers: int, pool: Pool, fds: Mapping[str, int]) -> RawPort:
    """Worker `queue`'s sockets."""
    opened: dict[tuple[Protocol, int], int] = {}
    try:
        for family, address in families(spec.addresses).items():
            for protocol in Protocol:
                program = share_filter(family, protocol, queue, workers) if workers > 1 else None
                opened[protocol, family] = open_socket(family, address, protocol, program)
    except OSError:
        for fd in opened.values():
            os.close(fd)
        raise
    return RawPort(
        pool,
        spec.name,
        opened.get((Protocol.ESP, 4), -1),
        opened.get((Protocol.ESP, 6), -1),
        opened.get((Protocol.AH, 4), -1),
        opened.get((Protocol.AH, 6), -1),
        role=0 if spec.role is Role.PROTECTED else 1,
        mtu=spec.mtu,
        addresses=spec.addresses,
        seldom=spec.options.get("seldom") == "on",
    )
