"""The way out through the kernel: raw sockets that send whole packets wherever the kernel routes them.

A worker opens one port of this kind for all packets without adjacency and for traffic to this host. Needs CAP_NET_RAW.
"""

from __future__ import annotations

import socket

from dataplane.ports.sockets import IPV6_HDRINCL, has_ipv6, mark, set_buffers
from ext.packet import Pool
from ext.rawsock import KernelPort

SEND_BUFFER = 1 << 20  # bytes, as the kernel counts them


def open_port(pool: Pool, name: str = "kernel") -> KernelPort:
    """Sockets of both families (IPv6 where the kernel has it). OSError says what the kernel refused."""
    opened = []
    for domain in (socket.AF_INET, socket.AF_INET6) if has_ipv6() else (socket.AF_INET,):
        try:
            with socket.socket(domain, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.IPPROTO_RAW) as sock:
                # IPPROTO_RAW implies the header for IPv4 and never receives.
                if domain == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, IPV6_HDRINCL, 1)
                set_buffers(sock, 4096, SEND_BUFFER)
                mark(sock)
                opened.append(sock.detach())
        except OSError as error:
            raise OSError(error.errno, f"raw socket to the kernel's routing: {error.strerror}") from None
    return KernelPort(pool, name, *opened)
