"""What the drivers on kernel sockets share: making one, its buffers, and classic BPF programs for it."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import socket
import struct
from collections.abc import Sequence

from dataplane.model import OUTER_MARK, Address

SO_RCVBUFFORCE = 33
SO_SNDBUFFORCE = 32
SO_ATTACH_FILTER = 26
SO_ATTACH_REUSEPORT_CBPF = 51
IP_MTU_DISCOVER = 10
IPV6_MTU_DISCOVER = 23
IPV6_HDRINCL = 36
PMTUDISC_PROBE = 3  # IP_PMTUDISC_PROBE and IPV6_PMTUDISC_PROBE: DF, and only the interface's MTU counts

# Classic BPF, linux/filter.h: (code, jump if true, jump if false, operand)
Instruction = tuple[int, int, int, int]
LD_W_ABS = 0x20
LD_W_IND = 0x40
LDX_B_MSH = 0xB1  # X = 4 * (byte & 15): an IPv4 header's length
JEQ_K = 0x15
MOD_K = 0x94
ADD_K = 0x04
RET_K = 0x06
RET_A = 0x16


def set_buffers(sock: socket.socket, receive: int, send: int) -> None:
    """Ask for socket buffers (bytes) beyond the system's limits; without CAP_NET_ADMIN the limits stand."""
    for force, plain, size in (
        (SO_RCVBUFFORCE, socket.SO_RCVBUF, receive),
        (SO_SNDBUFFORCE, socket.SO_SNDBUF, send),
    ):
        try:
            sock.setsockopt(socket.SOL_SOCKET, force, size)
        except PermissionError:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, plain, size)


def mark(sock: socket.socket) -> None:
    """What the socket sends passes by the rules of transport mode; without the capability there are no such rules."""
    with contextlib.suppress(PermissionError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, OUTER_MARK)


def attach_program(sock: socket.socket, option: int, program: Sequence[Instruction]) -> None:
    """Set SO_ATTACH_FILTER or SO_ATTACH_REUSEPORT_CBPF."""
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *each) for each in program))
    sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("@HP", len(program), ctypes.addressof(code)))


def families(addresses: Sequence[Address]) -> dict[int, str]:
    """Family (4 or 6) to the address to bind: the only one of that family, else any.

    Without addresses both families are served where the kernel has them.
    """
    if not addresses:
        return {4: "0.0.0.0", 6: "::"} if has_ipv6() else {4: "0.0.0.0"}
    chosen: dict[int, str] = {}
    for address in addresses:
        several = address.version in chosen
        chosen[address.version] = ("0.0.0.0", "::")[address.version == 6] if several else str(address)
    return chosen


def has_ipv6() -> bool:
    """False where the kernel was started without IPv6."""
    try:
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close()
    except OSError as error:
        if error.errno == errno.EAFNOSUPPORT:
            return False
        raise
    return True
