"""Packets that the benches send."""

from __future__ import annotations

import socket
import struct
from ipaddress import IPv4Address

# The simple Internet mix: 7 packets of 64 bytes, 4 of 576 and 1 of 1500 (here 1420, which a tunnel on 1500 carries).
IMIX = (64, 576, 64, 64, 576, 64, 1420, 64, 576, 64, 64, 576)


def udp_packet(
    source: IPv4Address, destination: IPv4Address, size: int, *, port: int = 9, fill: int = 0
) -> bytes:
    """An IPv4 packet of `size` bytes (28 or more) with a UDP datagram of bytes `fill`, all checksums right."""
    addresses = source.packed + destination.packed
    header = struct.pack("!BBHHHBBH", 0x45, 0, size, 0, 0, 64, socket.IPPROTO_UDP, 0)
    header = header[:10] + struct.pack("!H", _checksum(header + addresses)) + addresses
    # A UDP checksum of zero is none (RFC 768).
    datagram = struct.pack("!HHHH", port, port, size - len(header), 0)
    return header + datagram + bytes([fill]) * (size - len(header) - 8)


def _checksum(data: bytes) -> int:
    """The Internet checksum of an even number of bytes (RFC 1071)."""
    # One's complement addition is addition modulo 0xFFFF.
    return 0xFFFF - int.from_bytes(data, "big") % 0xFFFF
