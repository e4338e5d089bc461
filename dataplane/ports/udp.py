"""The udp driver: ESP in UDP (RFC 3948) over kernel sockets, one per worker and family, joined by SO_REUSEPORT.

    worker k: open_port -> sockets bound to the port's addresses and encapsulation port, UDP_GRO and DF set

Which worker gets a datagram: the kernel's hash of addresses and ports, so all SAs between two gateways meet at one
worker; with `reuseport_filter` on the group (option `spread` = "spi", the default with several workers) each SPI goes
to one worker instead. The same program gives datagrams with the non-ESP marker, which are IKE, to the first socket of
the group when control owns that one (option `control` = "on"; `open_control` makes it before any worker's).

Option `seldom` = "on": another port reads the interface, and what comes here are datagrams that were fragmented. The
kernel reassembles fragments and checks UDP checksums before we see anything.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from ipaddress import ip_address

from dataplane.model import Address, PortSpec, Role
from dataplane.ports.errors import PortError
from dataplane.ports.sockets import (
    ADD_K,
    IP_MTU_DISCOVER,
    IPV6_MTU_DISCOVER,
    JEQ_K,
    LD_W_ABS,
    MOD_K,
    PMTUDISC_PROBE,
    RET_A,
    RET_K,
    SO_ATTACH_REUSEPORT_CBPF,
    Instruction,
    attach_program,
    families,
    mark,
    set_buffers,
)
from ext.packet import Pool
from ext.udpio import UdpPort

UDP_GRO = 104
IP_PKTINFO = 8
IP_RECVTOS = 13
RECEIVE_BUFFER = 8 << 20  # bytes, as the kernel counts them
SEND_BUFFER = 4 << 20


def reuseport_filter(workers: int, *, control: bool = False) -> list[Instruction]:
    """The program that picks a socket of the group by the first four bytes of the payload, which are the SPI.

    With `control` the group's first socket is control's and gets what begins with the non-ESP marker (RFC 3948
    section 2.2); so does a keepalive, which is too short to hold an SPI. Sockets count in the order of their bind().
    """
    first = 1 if control else 0
    program: list[Instruction] = [(LD_W_ABS, 0, 0, 0)]  # beyond the end: the program returns 0
    if control:
        program += [(JEQ_K, 0, 1, 0), (RET_K, 0, 0, 0)]
    return [*program, (MOD_K, 0, 0, workers), (ADD_K, 0, 0, first), (RET_A, 0, 0, 0)]


def open_socket(family: int, address: str, port: int, program: list[Instruction] | None = None) -> int:
    """A bound, non-blocking UDP socket of `family` (4 or 6); the caller owns the descriptor.

    `program` steers the whole SO_REUSEPORT group. OSError names address and port.
    """
    domain = socket.AF_INET if family == 4 else socket.AF_INET6
    try:
        with socket.socket(domain, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == 4:
                sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
                sock.setsockopt(socket.IPPROTO_IP, IP_RECVTOS, 1)
                sock.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, PMTUDISC_PROBE)
            else:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS, 1)
                sock.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, PMTUDISC_PROBE)
            sock.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
            set_buffers(sock, RECEIVE_BUFFER, SEND_BUFFER)
            mark(sock)
            sock.bind((address, port))
            if program is not None:
                attach_program(sock, SO_ATTACH_REUSEPORT_CBPF, program)
            return sock.detach()
    except OSError as error:
        raise OSError(error.errno, f"UDP {address} port {port}: {error.strerror}") from None


def open_control(spec: PortSpec, workers: int) -> dict[Address, int]:
    """Control's own sockets in the groups of this port, by the address they are bound to; the caller owns them.

    To be called before the first worker opens its own: the kernel counts a group's sockets in the order of bind().
    """
    program = reuseport_filter(workers, control=True)
    opened: dict[Address, int] = {}
    try:
        for family, address in families(spec.addresses).items():
            opened[ip_address(address)] = open_socket(family, address, spec.encap_port, program)
    except BaseException:
        for fd in opened.values():
            os.close(fd)
        raise
    return opened


def open_port(spec: PortSpec, queue: int, workers: int, pool: Pool, fds: Mapping[str, int]) -> UdpPort:
    """Worker `queue`'s sockets; fds["udp4"] and fds["udp6"] where control opened them."""
    spread = spec.options.get("spread", "spi")
    if spread not in ("spi", "hash"):
        raise PortError(f"{spec.name}: spread is {spread!r}; it may be spi or hash")
    shared = spec.options.get("control") == "on"
    if shared and spread == "hash":
        raise PortError(
            f"{spec.name}: spread = hash knows no IKE; it cannot be had where IKE shares the port"
        )
    program = (
        reuseport_filter(workers, control=shared) if shared or (workers > 1 and spread == "spi") else None
    )
    opened = {}
    for family, address in families(spec.addresses).items():
        lent = fds.get(f"udp{family}")
        if lent is not None:
            opened[family] = socket.socket(fileno=lent).dup().detach()
        else:
            opened[family] = open_socket(family, address, spec.encap_port, program)
    return UdpPort(
        pool,
        spec.name,
        opened.get(4, -1),
        opened.get(6, -1),
        role=0 if spec.role is Role.PROTECTED else 1,
        mtu=spec.mtu,
        addresses=spec.addresses,
        seldom=spec.options.get("seldom") == "on",
    )
