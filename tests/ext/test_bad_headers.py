"""Bad headers: link, IPv4, IPv6 and its extension headers. It is the same parser on both sides, so both see each.

What must hold of each packet is in tests/ext/bad.py; that no drop is forgotten, test_bad_packets.py sees to.
"""

from __future__ import annotations

import struct

import pytest

from tests.ext.bad import BASE6, GOOD_OUT, HEADER_IDS, HEADERS, Pair, chain, extension, framed
from tests.gateway import (
    ETHERNET,
    IP,
    LAN_MAC,
    MakeGateway,
    engine_and_way,  # noqa: F401  (fixture)
)
from tests.packets import (
    CLIENT6,
    ICMP,
    ICMPV6,
    SERVER6,
    TCP,
    UDP,
    ip4,
    ip6,
    udp,
    udp_packet,
)


@pytest.mark.parametrize(("name", "what", "packet"), HEADERS, ids=HEADER_IDS)
def test_headers(make_gateway: MakeGateway, name: str, what: str, packet: bytes) -> None:
    """On either side, with and without link header."""
    for link in (IP, ETHERNET):
        pair = Pair(make_gateway(link=link))
        pair.receive(name, packet)
        pair.send(name, packet)


def test_link_header(make_gateway: MakeGateway) -> None:
    """Runts, VLAN tags, other ethertypes, and an ethertype that does not say what the packet says."""
    pair = Pair(make_gateway(link=ETHERNET))
    frames = [("runt", framed(b"", LAN_MAC)[:length]) for length in range(14)]
    frames += [
        ("runt", framed(b"", LAN_MAC, 0x0800)),
        ("vlan", framed(struct.pack(">HH", 5, 0x0800) + GOOD_OUT, LAN_MAC, 0x8100)),
        ("vlan", framed(struct.pack(">HH", 5, 0x8100), LAN_MAC, 0x88A8)),
        ("not_ip", framed(bytes(28), LAN_MAC, 0x0806)),
        ("not_ip", framed(bytes(64), LAN_MAC, 64)),
        ("not_ip", framed(GOOD_OUT, LAN_MAC, 0)),
        ("version", framed(BASE6, LAN_MAC, 0x0800)),
        ("version", framed(udp_packet(4, bytes(20)), LAN_MAC, 0x86DD)),
    ]
    for name, frame in frames:
        pair.send(name, b"", frame=frame)
        pair.receive(name, b"", frame=frame)


def test_padding_of_short_frames(make_gateway: MakeGateway) -> None:
    """Ethernet pads to 60 bytes: what follows the IP packet is trimmed, not enciphered and not hashed."""
    pair = Pair(make_gateway(link=ETHERNET))
    small = ip4(b"ab", protocol=253)
    sent = pair.gateway.send([framed(small + b"\xee" * 24, LAN_MAC)], raw=True)
    assert sent.passed == {"out": (1, len(small))}
    received = pair.gateway.receive([pair.peer.packet(small) + b"\xee" * 9])
    assert received.packets == [ip4(b"ab", protocol=253, ttl=63)]


def test_good_headers(make_gateway: MakeGateway) -> None:
    """What looks odd and is right: options, zero payload, eight extension headers, atomic fragments, no ports."""
    pair = Pair(make_gateway())
    packets = [
        ip4(b"", protocol=0),
        ip4(udp(), options=bytes([148, 4, 0, 0])),
        ip4(b"x", options=b"\x01" * 40),
        ip6(b"", protocol=59),
        chain(*[0, 60, 43, 60, 60, 60, 60, 60], body=udp(source=CLIENT6, destination=SERVER6)),
        chain(44, body=udp(source=CLIENT6, destination=SERVER6)),
        ip6(extension(UDP, 1200) + udp(source=CLIENT6, destination=SERVER6), protocol=0),
        ip4(b"abc", protocol=TCP),
        ip4(b"a", protocol=ICMP),
        ip4(bytes(8), protocol=UDP, more=True),
        ip4(b"later", protocol=UDP, offset=1480),
        ip6(b"", protocol=ICMPV6),
    ]
    sent = pair.gateway.send(packets)
    assert sent.verdicts == {"pass": len(packets)}
    received = pair.gateway.receive([pair.peer.packet(packet) for packet in packets])
    assert received.packets == packets
