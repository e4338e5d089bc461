"""Cutting and joining super-frames, against a plain segmentation written with scapy, and against each other."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from ext import porttool
from ext.memory import MemoryPort
from ext.packet import Pool

NEEDS_CSUM, DATA_VALID = 1, 2
TCPV4, UFO, TCPV6, UDP_L4, ECN = 1, 3, 4, 5, 0x80
WHOLE = 16
POOL = Pool(128)
PORTS = {0: MemoryPort(POOL, link=0), 1: MemoryPort(POOL, link=1)}


def vnet(flags: int, kind: int, gso_size: int, start: int = 0, offset: int = 0, hdr_len: int = 0) -> bytes:
    """A virtio_net_hdr."""
    return struct.pack("=BBHHHH", flags, kind, hdr_len, gso_size, start, offset)


def cut(link: int, header: bytes, data: bytes) -> list[bytes]:
    """All segments; frames are conserved."""
    batches = porttool.cut(PORTS[link], header, data)
    assert POOL.free_count == 128
    assert all(flags == WHOLE for batch in batches for _, flags in batch)
    assert all(len(batch) == 64 for batch in batches[:-1])
    return [content for batch in batches for content, _ in batch]


def ip_header(family: int, ecn: int, identification: int) -> Packet:
    """An IP header whose lengths and checksum scapy fills in."""
    if family == 4:
        return IP(src="10.1.0.2", dst="10.2.0.77", id=identification, flags="DF", ttl=61, tos=ecn)
    return IPv6(src="fd00:1::2", dst="fd00:2::77", hlim=61, tc=ecn, fl=0x12345)


def plain_tcp(ip: Packet, tcp: Packet, payload: bytes, size: int) -> list[bytes]:
    """The segments by scapy: what a stack without offload would have sent."""
    segments = []
    for index, at in enumerate(range(0, len(payload), size)):
        network, transport = ip.copy(), tcp.copy()
        if network.version == 4:
            network.id = (ip.id + index) & 0xFFFF
        transport.seq = (tcp.seq + at) & 0xFFFFFFFF
        if index:
            transport.flags = str(transport.flags).replace("C", "")
        if at + size < len(payload):
            transport.flags = str(transport.flags).replace("F", "").replace("P", "")
        segments.append(bytes(network / transport / payload[at : at + size]))
    return segments


def half_made(packet: Packet, start: int, offset: int) -> bytes:
    """The packet's bytes with only the pseudo-header sum in its checksum field."""
    data = bytearray(bytes(packet))
    length = len(data) - start
    proto = 6 if offset == 16 else 17
    if data[0] >> 4 == 4:
        pseudo = data[12:20] + struct.pack("!HH", proto, length)
    else:
        pseudo = data[8:40] + struct.pack("!IHH", length, 0, proto)
    total = sum(struct.unpack(f"!{len(pseudo) // 2}H", pseudo))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    data[start + offset : start + offset + 2] = struct.pack("!H", total)
    return bytes(data)


@settings(max_examples=60, deadline=None)
@given(
    family=st.sampled_from([4, 6]),
    link=st.sampled_from([0, 1]),
    length=st.integers(1, 65000),
    size=st.integers(48, 1600),
    sequence=st.integers(0, 2**32 - 1),
    identification=st.integers(0, 65535),
    flags=st.sampled_from(["A", "PA", "FPA", "CA", "CEPA"]),
    options=st.sampled_from([[], [("Timestamp", (7, 8))], [("NOP", None)] * 4]),
    seed=st.binary(min_size=7, max_size=7),
)
def test_tcp_like_a_stack_without_offload(
    family: int,
    link: int,
    length: int,
    size: int,
    sequence: int,
    identification: int,
    flags: str,
    options: list[object],
    seed: bytes,
) -> None:
    """Every segment equals, byte for byte, what plain segmentation gives."""
    length = min(length, size * 200)
    payload = (seed * (length // 7 + 1))[:length]
    ip = ip_header(family, 1, identification)
    tcp = TCP(sport=4660, dport=443, seq=sequence, ack=99, window=501, flags=flags, options=options)
    whole = ip / tcp / payload
    start = 20 if family == 4 else 40
    ethernet = bytes(
        Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02", type=0x800 if family == 4 else 0x86DD)
    )
    prefix = ethernet if link == 0 else b""
    kind = (TCPV4 if family == 4 else TCPV6) | (ECN if "C" in flags else 0)
    header = vnet(NEEDS_CSUM, kind, size, start + len(prefix), 16, hdr_len=length % 2000)
    segments = cut(link, header, prefix + half_made(whole, start, 16))
    assert segments == [prefix + segment for segment in plain_tcp(ip, tcp, payload, size)]


@settings(max_examples=40, deadline=None)
@given(
    family=st.sampled_from([4, 6]),
    length=st.integers(1, 60000),
    size=st.integers(500, 1600),
    checksum=st.booleans(),
)
def test_udp_like_a_stack_without_offload(family: int, length: int, size: int, checksum: bool) -> None:
    """UDP datagrams get their own length and checksum; without checksum they stay without."""
    payload = (b"esplanade" * (length // 9 + 1))[:length]
    ip = ip_header(family, 2, 7)
    udp = UDP(sport=5000, dport=6000) if checksum else UDP(sport=5000, dport=6000, chksum=0)
    start = 20 if family == 4 else 40
    data = half_made(ip / udp / payload, start, 6) if checksum else bytes(ip / udp / payload)
    segments = cut(1, vnet(NEEDS_CSUM if checksum else 0, UDP_L4, size, start, 6), data)
    expected = []
    for index, at in enumerate(range(0, length, size)):
        network = ip.copy()
        if family == 4:
            network.id = 7 + index
        expected.append(bytes(network / udp.copy() / payload[at : at + size]))
    assert segments == expected


def test_extension_headers_are_skipped_by_csum_start() -> None:
    """With an IPv6 destination option the transport header is where the kernel says."""
    packet = IPv6(src="fd00::1", dst="fd00::2") / IPv6ExtHdrDestOpt() / TCP(flags="A", seq=5) / bytes(3000)
    segments = cut(1, vnet(NEEDS_CSUM, TCPV6, 1000, 48, 16), bytes(packet))
    assert [len(segment) for segment in segments] == [1068] * 3
    for index, segment in enumerate(segments):
        parsed = IPv6(segment)
        assert parsed[TCP].seq == 5 + 1000 * index
        assert bytes(IPv6(segment)) == bytes(_without_checksum(parsed))


def _without_checksum(packet: Packet) -> Packet:
    """A copy whose TCP checksum scapy computes anew."""
    fresh = packet.copy()
    del fresh[TCP].chksum
    return fresh


def test_a_plain_packet_gets_its_checksum_and_stays_where_it_lies() -> None:
    """Checksum completed as a device would; already whole packets are not touched."""
    packet = ip_header(4, 0, 1) / TCP(flags="PA", seq=1, ack=2) / b"hello"
    data = half_made(packet, 20, 16)
    assert cut(1, vnet(NEEDS_CSUM, 0, 0, 20, 16), data) == [bytes(packet)]
    assert cut(1, vnet(DATA_VALID, 0, 0), data) == [data]


def test_nonsense_is_delivered_truncated() -> None:
    """A super-frame that makes no sense arrives as its head, whose length field then names the drop."""
    good = bytes(ip_header(4, 0, 1) / TCP(flags="A") / bytes(5000))
    room = 2048 - 256
    bad_version = b"\x65" + good[1:]
    fragment = good[:6] + b"\x20\x00" + good[8:]
    short_tcp = good[:32] + b"\x40" + good[33:]
    udp = bytes(ip_header(4, 0, 1) / UDP() / bytes(5000))
    for header, data in [
        (vnet(NEEDS_CSUM, UFO, 1000, 20, 16), good),
        (vnet(NEEDS_CSUM, TCPV6, 1000, 20, 16), good),
        (vnet(NEEDS_CSUM, TCPV4, 0, 20, 16), good),
        (vnet(NEEDS_CSUM, TCPV4, 1770, 20, 16), good),  # a segment that no frame holds
        (vnet(NEEDS_CSUM, TCPV4, 1000, 20, 16), bad_version),
        (vnet(NEEDS_CSUM, TCPV4, 1000, 20, 16), fragment),
        (vnet(NEEDS_CSUM, TCPV4, 1000, 20, 16), short_tcp),
        (vnet(NEEDS_CSUM, TCPV4, 1000, 20, 16), udp),
        (vnet(0, 0, 0), good),
    ]:
        assert [len(segment) for segment in cut(1, header, data)] == [room]
    assert cut(1, vnet(NEEDS_CSUM, TCPV4, 1000, 65535, 65535), good[:30]) == [good[:30]]


@settings(max_examples=300, deadline=None)
@given(
    header=st.binary(min_size=10, max_size=10),
    kind=st.sampled_from([0, 1, 3, 4, 5, 0x81, 0x84]),
    head=st.binary(max_size=80),
    family=st.sampled_from([b"", b"\x45", b"\x4f", b"\x60"]),
    length=st.integers(1, 65550),
    link=st.sampled_from([0, 1]),
)
def test_any_bytes_conserve_frames(
    header: bytes, kind: int, head: bytes, family: bytes, length: int, link: int
) -> None:
    """Whatever the header says, every frame comes back and no promise of receive is broken (porttool checks)."""
    data = ((bytes(14) if link == 0 else b"") + family + head + bytes(length))[:length]
    porttool.cut(PORTS[link], header[:1] + bytes([kind]) + header[2:], data)
    assert POOL.free_count == 128


@pytest.mark.parametrize("frame_size", [16384, 1 << 17])
def test_jumbo_frames_hold_the_head_of_a_super_frame(frame_size: int) -> None:
    """What lies in a frame longer than a page moves before the rest of the super-frame, and over nothing else."""
    port = MemoryPort(Pool(64, frame_size), link=1)
    payload = bytes(range(250)) * 240
    content = bytes(IP(src="10.0.0.1", dst="10.0.0.2") / TCP(sport=1, dport=2, seq=5) / payload)
    for _ in range(8):  # an area that was written over shows when the next is taken
        batches = porttool.cut(port, vnet(NEEDS_CSUM, TCPV4, 8960, 20, 16), content)
        packets = [packet for batch in batches for packet, _ in batch]
        assert len(packets) == 7
        assert b"".join(packet[40:] for packet in packets) == payload


def test_an_empty_pool_only_delays() -> None:
    """Cutting goes on when frames are free again (here: as they are given back)."""
    port = MemoryPort(Pool(3), link=1)
    data = bytes(ip_header(4, 0, 1) / TCP(flags="A") / bytes(10000))
    batches = porttool.cut(port, vnet(NEEDS_CSUM, TCPV4, 1000, 20, 16), data)
    assert [len(batch) for batch in batches] == [3, 3, 3, 1]
    assert port.pool.free_count == 3


def join(link: int, packets: list[bytes]) -> list[tuple[bytes, bytes, int]]:
    """Runs made of packets; that undoing gives them back is checked on the way."""
    joined = porttool.join(PORTS[link], packets)
    assert POOL.free_count == 128
    assert sum(count for _, _, count, _ in joined) == len(packets)
    assert sorted(packet for *_, undone in joined for packet in undone) == sorted(packets)
    return [(about, content, count) for about, content, count, _ in joined]


@settings(max_examples=60, deadline=None)
@given(
    family=st.sampled_from([4, 6]),
    proto=st.sampled_from(["tcp", "udp"]),
    link=st.sampled_from([0, 1]),
    count=st.integers(2, 60),
    size=st.integers(1, 1400),
    last=st.integers(1, 1400),
    flags=st.sampled_from(["A", "PA", "FA"]),
)
def test_joining_then_cutting_gives_the_packets_back(
    family: int, proto: str, link: int, count: int, size: int, last: int, flags: str
) -> None:
    """One run of equal packets and a shorter last one; cut again, it is what it was."""
    payload = bytes(index % 251 for index in range((count - 1) * size + min(last, size)))[:65000]
    prefix = bytes(12) + (b"\x08\x00" if family == 4 else b"\x86\xdd") if link == 0 else b""
    ip = ip_header(family, 0, 65530)
    if proto == "tcp":
        tcp = TCP(sport=1, dport=2, seq=2**32 - 5, ack=3, flags=flags, options=[("Timestamp", (1, 2))])
        packets = plain_tcp(ip, tcp, payload, size)
    else:
        packets = []
        for index, at in enumerate(range(0, len(payload), size)):
            network = ip.copy()
            if family == 4:
                network.id = (ip.id + index) & 0xFFFF
            packets.append(bytes(network / UDP(sport=1, dport=2) / payload[at : at + size]))
    packets = [prefix + packet for packet in packets][:64]
    (about, content, number), *more = join(link, packets)
    assert not more
    assert number == len(packets)
    if number > 1:
        assert cut(link, about, content) == packets


def tcp4(seq: int, payload: bytes = b"x" * 100, **fields: object) -> bytes:
    """A segment of one flow; keywords of IP begin with ip_."""
    ip_fields = {key[3:]: value for key, value in fields.items() if key.startswith("ip_")}
    tcp_fields = {key: value for key, value in fields.items() if not key.startswith("ip_")}
    ip = IP(**{"src": "10.0.0.1", "dst": "10.0.0.2", "flags": "DF", **ip_fields})
    return bytes(
        ip / TCP(**{"sport": 1, "dport": 2, "seq": seq, "ack": 1, "flags": "A", **tcp_fields}) / payload
    )


def counts(packets: list[bytes]) -> list[int]:
    """Sizes of the runs, in the order in which they leave."""
    return [count for _, _, count in join(1, packets)]


def test_what_does_not_join() -> None:
    """Every reason why a second packet starts a run of its own."""
    first = tcp4(0)
    assert counts([first, tcp4(100)]) == [2]
    broken = bytearray(tcp4(100))
    broken[-1] ^= 1
    for other in [
        tcp4(99),
        tcp4(100, ack=2),
        tcp4(100, window=7),
        tcp4(100, flags="SA"),
        tcp4(100, flags="RA"),
        tcp4(100, flags="CA"),
        tcp4(100, flags="UA"),
        tcp4(100, payload=b""),
        tcp4(100, payload=b"x" * 101),
        tcp4(100, options=[("NOP", None)]),
        tcp4(100, ip_ttl=63),
        tcp4(100, ip_tos=1),
        tcp4(100, ip_flags=0),
        tcp4(100, ip_src="10.0.0.3"),
        tcp4(100, dport=3),
        tcp4(100, ip_options=[b"\x01\x01\x01\x01"]),
        tcp4(100, ip_frag=5),
        bytes(broken),
    ]:
        assert counts([first, other]) == [1, 1]
    assert counts([bytes(broken[:-1]) + bytes([broken[-1]]), tcp4(200)]) == [1, 1]
    assert counts([tcp4(0, ip_flags=0, ip_id=5), tcp4(100, ip_flags=0, ip_id=6)]) == [2]
    assert counts([tcp4(0, ip_flags=0, ip_id=5), tcp4(100, ip_flags=0, ip_id=8)]) == [1, 1]
    assert counts([tcp4(0, flags="PA"), tcp4(100)]) == [1, 1]
    assert counts([tcp4(0), tcp4(100, flags="PA"), tcp4(200)]) == [2, 1]
    assert counts([tcp4(0), tcp4(100, payload=b"short"), tcp4(105)]) == [2, 1]
    assert counts([b"\x45", b"", bytes(40)]) == [1, 1, 1]


def test_flows_interleaved_keep_their_order() -> None:
    """Packets of ten flows in turn: eight are followed at a time, and nothing is reordered inside a flow."""
    packets = [tcp4(100 * turn, sport=flow) for turn in range(6) for flow in range(1, 11)]
    runs = porttool.join(PORTS[1], packets)
    left = [packet for *_, undone in runs for packet in undone]
    for flow in range(1, 11):
        mine = [packet for packet in left if packet[20:22] == flow.to_bytes(2, "big")]
        assert mine == [tcp4(100 * turn, sport=flow) for turn in range(6)]
    assert counts([tcp4(100 * turn, sport=flow) for turn in range(8) for flow in range(1, 9)]) == [8] * 8


def test_a_packet_that_cannot_join_closes_its_flow() -> None:
    """Data, pure acknowledgement, data: the second data packet must not overtake."""
    assert counts([tcp4(0), tcp4(100, payload=b""), tcp4(100)]) == [1, 1, 1]


def test_a_run_ends_at_64_kilobytes() -> None:
    """An IP packet holds 65535 bytes at most."""
    packets = [tcp4(index * 1400, payload=bytes(1400)) for index in range(64)]
    assert counts(packets) == [46, 18]


@pytest.mark.parametrize("size", [1, 2, 3, 63, 64, 65, 1447, 1448])
def test_checksums_of_any_length(size: int) -> None:
    """The summing loop's tail: every length modulo 4, against scapy."""
    packet = ip_header(6, 0, 0) / TCP(flags="A") / bytes(range(256))[: size % 256] / bytes(size - size % 256)
    assert cut(1, vnet(NEEDS_CSUM, 0, 0, 40, 16), half_made(packet, 40, 16)) == [bytes(packet)]
