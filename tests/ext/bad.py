"""Bad packets between good ones, for test_bad_headers.py and test_bad_packets.py: what is the same in both.

`Pair` sends the three and sees that the bad one alone is dropped; HEADERS are packets whose headers are bad, by
themselves or inside a tunnel.
"""

from __future__ import annotations

import struct
from ipaddress import ip_network

from dataplane.model import EspProposal, SelectorSpec
from tests.esp import Peer
from tests.exchange.suites import NULL_SHA256, SUITES, inbound_sa, outbound_sa
from tests.gateway import (
    ETHERNET,
    LAN_MAC,
    WAN_MAC,
    Gateway,
    Result,
)
from tests.packets import (
    CLIENT4,
    SERVER4,
    UDP,
    checksum,
    ip4,
    ip6,
    udp,
    udp_packet,
)

GCM, CHACHA, CBC, NULL = FOUR = [SUITES[0], SUITES[3], SUITES[4], NULL_SHA256]
GOOD = udp_packet(4, b"good", source=SERVER4, destination=CLIENT4)
GOOD_OUT = udp_packet(4, b"good")
SOURCE_MAC = bytes.fromhex("020000000001")

#: What the tunnels are for. The outer addresses are not in it: such packets may come in clear.
LOCAL = [
    SelectorSpec.from_networks(ip_network(local), ip_network(any_))
    for local, any_ in (("10.1.0.0/16", "0.0.0.0/0"), ("2001:db8:1::/48", "::/0"))
]


def framed(packet: bytes, mac: bytes, ethertype: int | None = None) -> bytes:
    """With an Ethernet header."""
    if ethertype is None:
        ethertype = 0x86DD if packet[:1] and packet[0] >> 4 == 6 else 0x0800
    return mac + SOURCE_MAC + struct.pack(">H", ethertype) + packet


def check(result: Result, name: str, sa: str | None) -> None:
    """Two passed, one was dropped for this reason, and nothing else happened."""
    assert result.verdicts == {"pass": 2, name: 1}
    assert result.drops == ({sa: {name: 1}} if sa else {})
    assert (result.kernel, result.back, len(result.packets)) == ([], [], 2)


class Pair:
    """A gateway with one SA in each direction, and the peer of the inbound one."""

    def __init__(self, gateway: Gateway, proposal: EspProposal = GCM, **fields: object) -> None:
        self.gateway = gateway
        family, encap = fields.pop("family", 4), fields.pop("encap", False)
        self.ours = outbound_sa(proposal, family=family, encap=encap)  # type: ignore[arg-type]
        self.theirs = inbound_sa(proposal, family=family, encap=encap, **fields)  # type: ignore[arg-type]
        gateway.add(self.ours, self.theirs)
        gateway.protect("out", LOCAL)
        self.peer = Peer(self.theirs)

    def receive(self, name: str, bad: bytes, *, sa: str | None = None, frame: bytes | None = None) -> None:
        """good, bad, good on the unprotected side; `frame` replaces the bad packet's whole frame."""
        first, last = self.peer.packet(GOOD), self.peer.packet(GOOD)
        if frame is not None:
            result = self.gateway.receive([framed(first, WAN_MAC), frame, framed(last, WAN_MAC)], raw=True)
        else:
            result = self.gateway.receive([first, bad, last])
        check(result, name, sa)
        expected = GOOD
        if self.gateway.link == ETHERNET:
            expected = udp_packet(4, b"good", source=SERVER4, destination=CLIENT4, ttl=63)
        assert result.packets == [expected] * 2

    def send(self, name: str, bad: bytes, *, sa: str | None = None, frame: bytes | None = None) -> None:
        """good, bad, good on the protected side."""
        batch = [GOOD_OUT, bad, GOOD_OUT]
        if frame is not None:
            batch = [framed(GOOD_OUT, LAN_MAC), frame, framed(GOOD_OUT, LAN_MAC)]
        check(self.gateway.send(batch, raw=frame is not None), name, sa)


def patched(packet: bytes, at: int, value: int, *, sum_again: bool = True) -> bytes:
    """One byte changed; the IPv4 header checksum is mended as far as there is a header to sum."""
    changed = bytearray(packet)
    changed[at] = value
    words = (changed[0] & 15) * 4
    if sum_again and changed[0] >> 4 == 4 and 20 <= words <= len(changed):
        changed[10:12] = bytes(2)
        changed[10:12] = struct.pack(">H", checksum(bytes(changed[:words])))
    return bytes(changed)


BASE4, BASE6 = udp_packet(4, bytes(20)), udp_packet(6, bytes(20))


def extension(next_header: int, size: int = 8, kind: bytes = b"") -> bytes:
    """An IPv6 extension header of `size` bytes that is followed by `next_header`."""
    return bytes([next_header, size // 8 - 1]) + kind + bytes(size - 2 - len(kind))


def chain(*kinds: int, body: bytes = b"", last: int = UDP) -> bytes:
    """An IPv6 packet with these extension headers (0, 43, 60: 8 bytes each; 44: fragment) before `body`."""
    following = [*kinds[1:], last]
    headers = b"".join(extension(following[at]) for at in range(len(kinds)))
    return ip6(headers + body, protocol=kinds[0] if kinds else last)


HEADERS: list[tuple[str, str, bytes]] = [
    ("runt", "nothing", b""),
    ("runt", "one-byte", b"\x45"),
    ("runt", "19-bytes", BASE4[:19]),
    ("runt", "v6-20-bytes", BASE6[:20]),
    ("runt", "v6-39-bytes", BASE6[:39]),
    *(("version", f"{version}", patched(BASE4, 0, version << 4 | 5)) for version in (0, 1, 5, 7, 15)),
    *(("header_length", f"ihl-{words}", patched(BASE4, 0, 0x40 | words)) for words in range(5)),
    ("header_length", "past-the-packet", patched(ip4(b"", protocol=UDP), 0, 0x46)),
    ("length", "below-header", patched(BASE4, 3, 19)),
    ("length", "zero", patched(patched(BASE4, 2, 0), 3, 0)),
    ("length", "past-the-packet", patched(BASE4, 3, len(BASE4) + 1)),
    ("length", "below-options", patched(ip4(b"", options=bytes(8)), 3, 24)),
    ("length", "all-ones", patched(patched(BASE4, 2, 0xFF), 3, 0xFF)),
    ("length", "v6-past-the-packet", patched(BASE6, 5, len(BASE6) - 39)),
    ("length", "v6-all-ones", patched(patched(BASE6, 4, 0xFF), 5, 0xFF)),
    *(("checksum", f"bit-{bit}", patched(BASE4, 10 + bit // 8, BASE4[10 + bit // 8] ^ 1 << bit % 8, sum_again=False))
      for bit in range(16)),
    ("checksum", "of-options", patched(ip4(bytes(8), options=b"\x01" * 40), 59, 0, sum_again=False)),
    ("checksum", "in-ttl", patched(BASE4, 8, 1, sum_again=False)),
    ("extension_header", "cut-in-two", ip6(bytes([UDP, 0, 0, 0]), protocol=0)),
    ("extension_header", "none-there", ip6(b"", protocol=60)),
    ("extension_header", "longer-than-packet", ip6(extension(UDP, 16)[:8], protocol=0)),
    ("extension_header", "longest-in-shortest", ip6(bytes([UDP, 255]) + bytes(14), protocol=43)),
    ("extension_header", "second-cut", ip6(extension(60) + b"\x11", protocol=0)),
    ("extension_header", "fragment-cut", ip6(bytes(7), protocol=44)),
    ("extension_header", "nine", chain(*[60] * 9, body=udp(ports=(1, 2)))),
    ("extension_header", "endless", chain(*[60] * 100)),
    ("extension_header", "jumbogram", ip6(b"", protocol=0) + bytes(64)),
]  # fmt: skip
HEADER_IDS = [f"{name}-{what}" for name, what, _ in HEADERS]
