"""Well-formed inner packets that the fuzzer begins with: every protocol, option and header that the parser knows.

Packets go from the client's networks to tunnel n's: 10.2.n.0/24 and 2001:db8:2:n::/64 (tests/fuzz/world.py).
"""

from __future__ import annotations

import random
import struct

from tests.packets import AH, ESP, ICMP, ICMPV6, NONE, TCP, UDP, ip, ip4, ip6, tcp, udp

SIZES = (0, 1, 2, 7, 8, 15, 16, 33, 64, 100, 300, 700, 1200, 1400, 1430, 1460, 1472, 1500)
SCTP, UDPLITE, GRE = 132, 136, 47
HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION = 0, 43, 44, 60
ROUTER = {4: "172.16.3.1", 6: "2001:db8:dead::1"}  # no tunnel's: its errors go by what they quote
ERRORS = {4: (3, 4, 5, 11, 12), 6: (1, 2, 3, 4)}


def ends(family: int, tunnel: int, chance: random.Random) -> tuple[str, str]:
    """A client's address, and one behind `tunnel`."""
    host = chance.randrange(1, 255)
    if family == 4:
        return f"10.1.{chance.randrange(256)}.{host}", f"10.2.{tunnel}.{host}"
    return f"2001:db8:1::{host:x}", f"2001:db8:2:{tunnel:x}::{host:x}"


def transport(family: int, source: str, destination: str, chance: random.Random) -> tuple[int, bytes]:
    """(protocol, body) of one of the transports, checksum whole, half made or none."""
    data = chance.randbytes(chance.choice(SIZES))
    both = {"source": source, "destination": destination}
    ports = (chance.choice((0, 53, 4500, 40000)), chance.choice((0, 22, 80, 443, 65535)))
    kind = chance.randrange(8)
    if kind < 2:
        return UDP, udp(data, ports=ports, half=chance.random() < 0.3, none=chance.random() < 0.1, **both)
    if kind < 4:
        options = chance.choice(
            (b"", b"\x02\x04\x05\xb4", b"\x01\x02\x04\xff\xff", b"\x02\x04\x02", b"\x02\x00")
        )
        flags = chance.choice((0x02, 0x10, 0x12, 0x18))
        return TCP, tcp(data, ports=ports, flags=flags, options=options, half=chance.random() < 0.3, **both)
    if kind == 4:
        # Echo, errors about nothing (which no error may answer), and what no RFC knows.
        body = bytes([chance.choice((0, 3, 8, 11, 128, 1, 2, 133, 200)), chance.randrange(4)])
        return (ICMP if family == 4 else ICMPV6), body + bytes(6) + data
    if kind == 5:
        return chance.choice((SCTP, UDPLITE)), struct.pack(">HHI", *ports, 0) + data
    if kind == 6:
        return chance.choice((ESP, GRE, NONE, 0, 41, 4, 255)), data
    return chance.choice((UDP, TCP, ICMP, SCTP)), data[: chance.randrange(8)]  # a transport header cut short


def error(family: int, source: str, destination: str, chance: random.Random) -> bytes:
    """An ICMP error from `source` that quotes what `destination` sent there: whole, cut short, or changed."""
    # Now and then it goes to somebody who did not send what it quotes.
    sender, receiver = (destination, source) if chance.random() < 0.9 else (source, destination)
    ends = {"source": sender, "destination": receiver}
    kind = chance.randrange(5)
    data = chance.randbytes(chance.choice(SIZES[:12]))
    ports = (chance.choice((0, 53, 80, 443)), chance.choice((0, 22, 4500, 40000)))
    if kind == 0:
        protocol, body = ESP, struct.pack(">II", 0xC0000000 + chance.randrange(256), 7) + data
    elif kind == 1:
        protocol, body = AH, struct.pack(">BBHII", UDP, 4, 0, 0xC0000000, 7) + bytes(12) + data
    elif kind == 2:
        protocol, body = TCP, tcp(data, ports=ports, **ends)
    else:
        protocol, body = UDP, udp(data, ports=ports, **ends)
    fields: dict[str, object] = {"ttl": chance.choice((0, 1, 63)), **ends}
    if family == 4:
        fields["options"] = chance.choice((b"", b"", b"\x01\x01\x01\x00", bytes(40)))
        fields["offset"] = chance.choice((0,) * 6 + (8, 65528))
    elif chance.random() < 0.2:
        protocol, body = extension_headers(protocol, body, chance)
    quoted = ip(family, body, protocol=protocol, **fields)
    if chance.random() < 0.4:  # RFC 792: the header and eight bytes; or wherever a router ends
        header = len(quoted) - len(body)
        quoted = quoted[: chance.choice((header + 8, header + 4, header, chance.randrange(len(quoted) + 1)))]
    if chance.random() < 0.3:
        quoted = changed(quoted, chance)
    return bytes([chance.choice(ERRORS[family]), chance.randrange(6)]) + bytes(6) + quoted


def changed(packet: bytes, chance: random.Random) -> bytes:
    """A few bytes of the headers are others."""
    spoilt = bytearray(packet)
    for _ in range(chance.randrange(1, 5) if packet else 0):
        at = chance.randrange(min(len(spoilt), 60))
        spoilt[at] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
    return bytes(spoilt)


def extension_headers(protocol: int, body: bytes, chance: random.Random) -> tuple[int, bytes]:
    """(next header, payload) with a chain of up to nine IPv6 extension headers before `body`."""
    for _ in range(chance.choice((1, 1, 2, 3, 8, 9))):
        kind = chance.choice((HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION, DESTINATION))
        if kind == FRAGMENT:
            offset = chance.choice((0, 0, 1, 8, 1480, 65528)) & 0xFFF8
            head = struct.pack(">BBHI", protocol, 0, offset | chance.randrange(2), 7)
        else:
            units = chance.choice((0, 0, 0, 1, 2, 31))
            head = bytes([protocol, units, 1, 4 + 8 * units]) + bytes(4 + 8 * units)
        protocol, body = kind, head + body
    return protocol, body


def inner_packet(tunnel: int, chance: random.Random) -> bytes:
    """One well-formed packet to `tunnel`."""
    family = chance.choice((4, 6))
    source, destination = ends(family, tunnel, chance)
    protocol, body = transport(family, source, destination, chance)
    if protocol in (ICMP, ICMPV6) and chance.random() < 0.5:
        body = error(family, source, destination, chance)
        source = ROUTER[family] if chance.random() < 0.8 else source
    both = {"source": source, "destination": destination}
    common = {"tos": chance.choice((0, 1, 2, 3, 0xB8, 0xFF)), "ttl": chance.choice((0, 1, 2, 3, 64, 255))}
    if family == 6:
        if chance.random() < 0.3:
            protocol, body = extension_headers(protocol, body, chance)
        return ip6(body, protocol=protocol, **both, **common)
    options = chance.choice(
        (b"", b"", b"", b"\x01\x01\x01\x00", bytes(40), b"\x94\x04\x00\x00", b"\x07\x27\x04" + bytes(37))
    )
    return ip4(
        body,
        protocol=protocol,
        options=options,
        df=chance.random() < 0.5,
        more=chance.random() < 0.1,
        offset=chance.choice((0,) * 12 + (8, 1480, 65528)),
        **both,
        **common,
    )


def plaintexts(tunnel: int, chance: random.Random) -> bytes:
    """What a hostile peer with the right key may have enciphered for `tunnel`, its trailer left out."""
    kind = chance.randrange(10)
    whole = inner_packet(tunnel, chance)
    if kind < 3:
        return whole
    if kind == 3:
        return whole[: chance.randrange(len(whole) + 1)]
    if kind == 4:
        return chance.randbytes(chance.choice(SIZES))
    if kind == 5:  # another's traffic
        return ip(chance.choice((4, 6)), chance.randbytes(20), protocol=UDP)
    return changed(whole, chance)
