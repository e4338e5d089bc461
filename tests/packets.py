"""IP packets by hand, field by field: an implementation of its own, so that nothing is tested against itself.

Addresses are text or ipaddress objects, numbers host order. Checksums are computed byte by byte as RFC 1071 writes it.
"""

from __future__ import annotations

import struct
from ipaddress import ip_address

ICMP, IPIP, TCP, UDP, IPV6, ESP, AH, ICMPV6, NONE = 1, 4, 6, 17, 41, 50, 51, 58, 59
CLIENT4, SERVER4 = "10.1.0.1", "10.2.0.1"
CLIENT6, SERVER6 = "2001:db8:1::1", "2001:db8:2::1"


def checksum(data: bytes) -> int:
    """RFC 1071, an odd byte padded with zero."""
    total = sum(struct.unpack(f">{(len(data) + 1) // 2}H", data + bytes(len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ip4(
    payload: bytes = b"",
    *,
    source: object = CLIENT4,
    destination: object = SERVER4,
    protocol: int = UDP,
    tos: int = 0,
    identification: int = 1,
    df: bool = False,
    more: bool = False,
    offset: int = 0,
    ttl: int = 64,
    options: bytes = b"",
) -> bytes:
    """An IPv4 packet; `offset` in bytes, `options` a multiple of 4 bytes."""
    words = 5 + len(options) // 4
    flags = df << 14 | more << 13 | offset // 8
    header = struct.pack(
        ">BBHHHBBH4s4s",
        4 << 4 | words,
        tos,
        4 * words + len(payload),
        identification,
        flags,
        ttl,
        protocol,
        0,
        ip_address(source).packed,
        ip_address(destination).packed,
    )
    header += options
    return header[:10] + struct.pack(">H", checksum(header)) + header[12:] + payload


def ip6(
    payload: bytes = b"",
    *,
    source: object = CLIENT6,
    destination: object = SERVER6,
    protocol: int = UDP,
    tos: int = 0,
    label: int = 0,
    ttl: int = 64,
) -> bytes:
    """An IPv6 packet; `protocol` is the next header."""
    return (
        struct.pack(">IHBB", 6 << 28 | tos << 20 | label, len(payload), protocol, ttl)
        + ip_address(source).packed
        + ip_address(destination).packed
        + payload
    )


def ip(family: int, payload: bytes = b"", **fields: object) -> bytes:
    """ip4 or ip6."""
    return (ip4 if family == 4 else ip6)(payload, **fields)  # type: ignore[arg-type, operator]


def pseudo(source: object, destination: object, protocol: int, length: int) -> bytes:
    """The pseudo-header of TCP, UDP and ICMPv6."""
    ends = ip_address(source).packed + ip_address(destination).packed
    if len(ends) == 8:
        return ends + struct.pack(">BBH", 0, protocol, length)
    return ends + struct.pack(">II", length, protocol)


def udp(
    data: bytes = b"",
    *,
    source: object = CLIENT4,
    destination: object = SERVER4,
    ports: tuple[int, int] = (4000, 5000),
    half: bool = False,
    none: bool = False,
) -> bytes:
    """A UDP datagram; `half` leaves only the pseudo-header's sum in the checksum field, `none` zero."""
    length = 8 + len(data)
    head = struct.pack(">HHH", *ports, length)
    start = pseudo(source, destination, UDP, length)
    value = ~checksum(start) & 0xFFFF if half else checksum(start + head + b"\0\0" + data) or 0xFFFF
    return head + struct.pack(">H", 0 if none else value) + data


def tcp(
    data: bytes = b"",
    *,
    source: object = CLIENT4,
    destination: object = SERVER4,
    ports: tuple[int, int] = (4000, 80),
    sequence: int = 1,
    flags: int = 0x10,
    options: bytes = b"",
    half: bool = False,
) -> bytes:
    """A TCP segment; `options` are padded to a multiple of 4 bytes."""
    options += bytes(-len(options) % 4)
    words = 5 + len(options) // 4
    head = struct.pack(">HHIIBBHHH", *ports, sequence, 2, words << 4, flags, 65535, 0, 0) + options
    start = pseudo(source, destination, TCP, len(head) + len(data))
    value = ~checksum(start) & 0xFFFF if half else checksum(start + head + data)
    return head[:16] + struct.pack(">H", value) + head[18:] + data


def udp_packet(family: int = 4, data: bytes = b"", **fields: object) -> bytes:
    """A whole UDP packet from the client to the server; `fields` go to the IP header, `ports` to UDP's."""
    ends = {
        "source": fields.get("source", CLIENT4 if family == 4 else CLIENT6),
        "destination": fields.get("destination", SERVER4 if family == 4 else SERVER6),
    }
    ports = fields.pop("ports", (4000, 5000))
    return ip(family, udp(data, ports=ports, **ends), **fields)  # type: ignore[arg-type]


def tcp_packet(family: int = 4, data: bytes = b"", **fields: object) -> bytes:
    """A whole TCP packet; `ports`, `flags`, `options` and `half` go to TCP, the rest to the IP header."""
    ends = {
        "source": fields.get("source", CLIENT4 if family == 4 else CLIENT6),
        "destination": fields.get("destination", SERVER4 if family == 4 else SERVER6),
    }
    segment = {name: fields.pop(name) for name in ("ports", "flags", "half") if name in fields}
    options = fields.pop("tcp_options", b"")
    body = tcp(data, options=options, **ends, **segment)  # type: ignore[arg-type]
    return ip(family, body, protocol=TCP, **fields)


def transport_sums_right(packet: bytes) -> bool:
    """The TCP, UDP or ICMPv6 checksum of an IP packet without extension headers is right; IPv4's header too."""
    if packet[0] >> 4 == 4:
        words = (packet[0] & 15) * 4
        source, destination, protocol = packet[12:16], packet[16:20], packet[9]
        if checksum(packet[:words]) != 0:
            return False
    else:
        words = 40
        source, destination, protocol = packet[8:24], packet[24:40], packet[6]
    body = packet[words:]
    if protocol == ICMP:
        return checksum(body) == 0
    return checksum(pseudo(ip_address(source), ip_address(destination), protocol, len(body)) + body) == 0
