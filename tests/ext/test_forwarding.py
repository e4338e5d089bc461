"""What a tunnel does to headers: TTL, TOS, DF, sizes, checksums, MSS, and the ICMP errors it answers with."""

from __future__ import annotations

import itertools
import random
import struct
from dataclasses import replace
from ipaddress import ip_network

import pytest

from dataplane.model import Action, Df, PolicySpec, SelectorSpec
from tests.esp import Peer, open_packet
from tests.exchange.suites import NULL_SHA256, SUITES, inbound_sa, outbound_sa, suite_id
from tests.gateway import (
    ANY4,
    ANY6,
    ETHERNET,
    HOST_MAC,
    IP,
    LAN_MAC,
    PEER_MAC,
    WAN_MAC,
    MakeGateway,
    engine_and_way,  # noqa: F401  (fixture)
)
from tests.packets import (
    CLIENT4,
    CLIENT6,
    ICMP,
    ICMPV6,
    SERVER4,
    SERVER6,
    TCP,
    UDP,
    checksum,
    ip,
    ip4,
    ip6,
    ip_address,
    tcp,
    tcp_packet,
    transport_sums_right,
    udp,
    udp_packet,
)

GCM, CHACHA, CBC, NULL = FOUR = [SUITES[0], SUITES[3], SUITES[4], NULL_SHA256]
MIXES = [(outer, inner) for outer in (4, 6) for inner in (4, 6)]
NOT_ECT, ECT1, ECT0, CE = 0, 1, 2, 3


def tos_of(packet: bytes) -> int:
    """DSCP and ECN."""
    return packet[1] if packet[0] >> 4 == 4 else int.from_bytes(packet[:2], "big") >> 4 & 0xFF


def ttl_of(packet: bytes) -> int:
    """TTL or hop limit."""
    return packet[8] if packet[0] >> 4 == 4 else packet[7]


def returning(family: int, data: bytes = b"", **fields: object) -> bytes:
    """A UDP packet from the server to the client, as it comes out of the tunnel."""
    ends = (SERVER4, CLIENT4) if family == 4 else (SERVER6, CLIENT6)
    return udp_packet(family, data, **{"source": ends[0], "destination": ends[1], **fields})


# --- ECN and DSCP -------------------------------------------------------------------------------------

# RFC 6040 section 4.2, figure 4: the inner field after decapsulation, by [inner][outer]; None: dropped.
DECAPSULATED = {
    NOT_ECT: {NOT_ECT: NOT_ECT, ECT0: NOT_ECT, ECT1: NOT_ECT, CE: None},
    ECT0: {NOT_ECT: ECT0, ECT0: ECT0, ECT1: ECT1, CE: CE},
    ECT1: {NOT_ECT: ECT1, ECT0: ECT1, ECT1: ECT1, CE: CE},
    CE: {NOT_ECT: CE, ECT0: CE, ECT1: CE, CE: CE},
}


@pytest.mark.parametrize(("outer", "inner"), MIXES)
def test_ecn_inward(make_gateway: MakeGateway, outer: int, inner: int) -> None:
    """All sixteen of RFC 6040; the inner DSCP stays, the outer one goes (RFC 2983)."""
    gateway = make_gateway()
    spec = inbound_sa(CBC, family=outer)
    gateway.add(spec)
    peer = Peer(spec)
    for inside, row in DECAPSULATED.items():
        for outside, expected in row.items():
            packet = returning(inner, b"ecn", tos=0xB8 | inside)
            result = gateway.receive([peer.packet(packet, tos=0x48 | outside)])
            if expected is None:
                assert (result.verdicts, result.drops) == ({"ecn": 1}, {"in": {"ecn": 1}})
            else:
                assert result.packets == [returning(inner, b"ecn", tos=0xB8 | expected)]


def test_ecn_of_a_leader(make_gateway: MakeGateway) -> None:
    """The first of a flow falls to its ECN field; the ones behind it are judged by their own ports."""
    for family in (4, 6):
        gateway = make_gateway()
        narrow = SelectorSpec.from_networks(
            ip_network("10.1.0.0/16" if family == 4 else "2001:db8:1::/48"),
            ip_network("10.2.0.0/16" if family == 4 else "2001:db8:2::/48"),
            protocol=UDP,
            local_ports=(53, 53),
        )
        spec = inbound_sa(GCM, selectors=(narrow,))
        gateway.add(spec)
        peer = Peer(spec)
        good, bad = returning(family, ports=(4000, 53)), returning(family, ports=(4000, 54))
        for flow, verdicts in ((good, {"ecn": 1, "pass": 3}), (bad, {"ecn": 1, "inner_selectors": 3})):
            result = gateway.receive([peer.packet(flow, tos=CE), *(peer.packet(flow) for _ in range(3))])
            assert result.verdicts == verdicts
        # A batch of other flows before it, so that what the fields held then does not fit.
        for first, second in ((good, bad), (bad, good)):
            gateway.receive([peer.packet(first) for _ in range(8)])
            result = gateway.receive([peer.packet(second, tos=CE), *(peer.packet(second) for _ in range(7))])
            assert result.verdicts == {"ecn": 1, "pass" if second is good else "inner_selectors": 7}


@pytest.mark.parametrize("suite", FOUR, ids=suite_id)
@pytest.mark.parametrize(("outer", "inner"), MIXES)
def test_tos_outward(make_gateway: MakeGateway, suite: object, outer: int, inner: int) -> None:
    """RFC 6040 section 4.1: ECN is always copied; DSCP is copied or as configured. The inner packet is untouched."""
    for dscp in (None, 0, 46, 63):
        gateway = make_gateway()
        spec = outbound_sa(suite, family=outer, dscp=dscp)  # type: ignore[arg-type]
        gateway.add(spec)
        gateway.protect("out")
        tosses = [*range(8), 0x2C, 0xB8, 0xB9, 0xFC, 0xFF]
        packets = [udp_packet(inner, b"tos", tos=tos) for tos in tosses]
        sent = gateway.send(packets)
        for number, (tos, packet, wire) in enumerate(zip(tosses, packets, sent.packets, strict=True), 1):
            header, opened = open_packet(spec, wire, number)
            assert tos_of(header) == (tos if dscp is None else dscp << 2 | tos & 3), (dscp, hex(tos))
            assert opened == packet
            assert outer == 6 or checksum(header) == 0


@pytest.mark.parametrize(("outer", "inner"), MIXES)
def test_every_combination_outward(make_gateway: MakeGateway, outer: int, inner: int) -> None:
    """RFC 4301 section 5.1.2.1 and RFC 6040 section 4.1, row by row: 256 bytes of DSCP and ECN, DF, each setting."""
    dfs = (False, True) if inner == 4 else (True,)
    for df, dscp in itertools.product(Df, (None, 0, 10, 63)):
        gateway = make_gateway()
        gateway.add(outbound_sa(GCM, family=outer, df=df, dscp=dscp))
        gateway.protect("out")
        rows = [(tos, inner_df) for tos in range(256) for inner_df in dfs]
        packets = [udp_packet(inner, tos=tos, **({"df": bit} if inner == 4 else {})) for tos, bit in rows]
        sent = gateway.send(packets).packets
        for (tos, bit), wire in zip(rows, sent, strict=True):
            assert tos_of(wire) == (tos if dscp is None else dscp << 2 | tos & 3)
            if outer == 4:
                assert wire[6] == {Df.COPY: bit, Df.SET: True, Df.CLEAR: False}[df] << 6


@pytest.mark.parametrize(("outer", "inner"), MIXES)
def test_every_combination_inward(make_gateway: MakeGateway, outer: int, inner: int) -> None:
    """RFC 4301 section 5.1.2.1, RFC 6040 section 4.2: the inner DSCP and DF stay whatever the outer ones are."""
    gateway = make_gateway()
    spec = inbound_sa(NULL, family=outer)
    gateway.add(spec)
    peer = Peer(spec)
    chance = random.Random(outer * 10 + inner)
    for tos in range(256):
        df = {"df": bool(tos & 4)} if inner == 4 else {}
        packet = returning(inner, tos=tos, **df)
        outside = [chance.randrange(64) << 2 | ecn for ecn in (NOT_ECT, ECT0, ECT1, CE)]
        extra = {"df": bool(tos & 8)} if outer == 4 else {}
        result = gateway.receive([peer.wrap(peer.esp(packet), tos=each, **extra) for each in outside])
        fields = [DECAPSULATED[tos & 3][each & 3] for each in outside]
        assert result.packets == [
            returning(inner, tos=tos & 0xFC | field, **df) for field in fields if field is not None
        ]
        assert result.verdicts["ecn"] == fields.count(None)


# --- DF and ID ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("encap", [False, True], ids=["esp", "udp"])
@pytest.mark.parametrize("suite", [GCM, CBC], ids=suite_id)
def test_df(make_gateway: MakeGateway, suite: object, encap: bool) -> None:
    """RFC 4301 section 8.1: copied, set or clear; an inner IPv6 packet counts as one that must not be cut up."""
    inner = [udp_packet(4, df=False), udp_packet(4, df=True), udp_packet(6)]
    for df, expected in ((Df.COPY, [0, 1, 1]), (Df.SET, [1, 1, 1]), (Df.CLEAR, [0, 0, 0])):
        gateway = make_gateway()
        gateway.add(outbound_sa(suite, df=df, encap=encap))  # type: ignore[arg-type]
        gateway.protect("out")
        sent = gateway.send(inner)
        assert [wire[6] >> 6 for wire in sent.packets] == expected
        assert all(wire[6] & 0x3F == 0 and wire[7] == 0 for wire in sent.packets)  # never a fragment
        # RFC 6864 section 4: packets that may be cut up want different IDs.
        assert len({wire[4:6] for wire in sent.packets}) == 3


def test_outer_ttl(make_gateway: MakeGateway) -> None:
    """RFC 4301 section 5.1.2: the outer TTL is the SA's, whatever the inner one is."""
    for outer, inner in MIXES:
        gateway = make_gateway()
        gateway.add(outbound_sa(GCM, family=outer, ttl=37))
        gateway.protect("out")
        sent = gateway.send([udp_packet(inner, ttl=ttl) for ttl in (1, 64, 255)])
        assert [ttl_of(wire) for wire in sent.packets] == [37] * 3


# --- TTL ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [4, 6])
def test_forwarding_costs_a_hop(make_gateway: MakeGateway, family: int) -> None:
    """On Ethernet ports each gateway forwards: one hop less on either side, checksums right for any header."""
    gateway = make_gateway(link=ETHERNET)
    ours, theirs = outbound_sa(GCM), inbound_sa(GCM)
    gateway.add(ours, theirs)
    gateway.protect("out")
    chance = random.Random(family)
    many = [
        ip(family, bytes(8), protocol=253, ttl=chance.choice((2, 3, 64, 255)), source=source)
        for source in (
            ip_address(chance.getrandbits(32) | 1 << 31 if family == 4 else chance.getrandbits(128))
            for _ in range(600)
        )
    ]
    # Every header checksum occurs, those near 0xFFFF too: the ID counts through them.
    if family == 4:
        many += [ip4(bytes(8), protocol=253, ttl=9, identification=number) for number in range(0, 65536, 100)]
        many += [ip4(bytes(8), protocol=253, ttl=9, identification=number) for number in _ids_near_wrap()]
    for first in range(0, len(many), 64):
        batch = many[first : first + 64]
        after = [_one_hop_less(packet) for packet in batch]
        start = gateway.sequence("out")[0]
        sent = gateway.send(batch)
        assert [
            open_packet(ours, wire, number)[1] for number, wire in enumerate(sent.packets, start)
        ] == after
        assert set(sent.links) == {PEER_MAC + WAN_MAC + b"\x08\x00"}
        received = gateway.receive([Peer(replace(theirs, sequence=first + at + 1)).packet(packet)
                                    for at, packet in enumerate(batch)])  # fmt: skip
        assert received.packets == after
        ethertype = b"\x08\x00" if family == 4 else b"\x86\xdd"
        assert set(received.links) == {HOST_MAC + LAN_MAC + ethertype}


def _ids_near_wrap() -> list[int]:
    """IDs that give the header of the packets above the checksums 0xFEFD to 0xFF02 and those around 0."""
    base = int.from_bytes(ip4(bytes(8), protocol=253, ttl=9)[10:12], "big")
    wanted = [0xFEFC, 0xFEFD, 0xFEFE, 0xFEFF, 0xFF00, 0xFF01, 0xFFFD, 0xFFFE, 0, 1]
    return [(base - want) % 0xFFFF for want in wanted]


def _one_hop_less(packet: bytes) -> bytes:
    changed = bytearray(packet)
    if packet[0] >> 4 == 6:
        changed[7] -= 1
        return bytes(changed)
    changed[8] -= 1
    changed[10:12] = bytes(2)
    changed[10:12] = struct.pack(">H", checksum(bytes(changed[:20])))
    return bytes(changed)


def test_hosts_packets_keep_their_ttl(make_gateway: MakeGateway) -> None:
    """On a TUN the kernel has forwarded already: even TTL 1 may pass."""
    gateway = make_gateway(link=IP)
    ours, theirs = outbound_sa(GCM), inbound_sa(GCM)
    gateway.add(ours, theirs)
    gateway.protect("out")
    for family in (4, 6):
        packet = udp_packet(family, ttl=1)
        start = gateway.sequence("out")[0]
        assert open_packet(ours, gateway.send([packet]).packets[0], start)[1] == packet
    peer = Peer(theirs)
    assert gateway.receive([peer.packet(returning(4, ttl=1))]).packets == [returning(4, ttl=1)]


# --- ICMP errors --------------------------------------------------------------------------------------


def check_error(
    answer: bytes, cause: bytes, kind: int, code: int, rest: int, source: str | None = None
) -> None:
    """The ICMP error that answers `cause`: addresses, checksums, type, quotation."""
    family = cause[0] >> 4
    assert transport_sums_right(answer)
    if family == 4:
        assert answer[9] == ICMP and answer[0] == 0x45 and int.from_bytes(answer[2:4], "big") == len(answer)
        assert (answer[12:16], answer[16:20]) == (ip_address(source or "10.1.0.254").packed, cause[12:16])
        assert len(answer) <= 576  # RFC 1812 section 4.3.2.3
        body = answer[20:]
        assert body[8:] == cause[: 576 - 28]
    else:
        assert answer[6] == ICMPV6 and int.from_bytes(answer[4:6], "big") == len(answer) - 40
        assert (answer[8:24], answer[24:40]) == (ip_address(source or "2001:db8:1::fe").packed, cause[8:24])
        assert len(answer) <= 1280  # RFC 4443 section 3.1
        body = answer[40:]
        assert body[8:] == cause[: 1280 - 48]
    assert (body[0], body[1], int.from_bytes(body[4:8], "big")) == (kind, code, rest)
    assert ttl_of(answer) == 64


@pytest.mark.parametrize("ttl", [0, 1])
def test_time_exceeded(make_gateway: MakeGateway, ttl: int) -> None:
    """To the sender, by the way it came (RFC 792, RFC 4443 section 3.3)."""
    gateway = make_gateway(link=ETHERNET)
    gateway.add(outbound_sa(GCM))
    gateway.protect("out")
    good = udp_packet(4, b"good")
    for family, size in ((4, 0), (4, 9), (4, 1400), (6, 0), (6, 1337)):
        cause = udp_packet(family, bytes(size), ttl=ttl)
        result = gateway.send([good, cause, good])
        assert result.verdicts == {"pass": 2, "ttl": 1, "icmp_sent": 1}
        assert result.drops == {}
        check_error(result.back[0], cause, *((11, 0, 0) if family == 4 else (3, 0, 0)))
        ethertype = b"\x08\x00" if family == 4 else b"\x86\xdd"
        assert result.back_links == [HOST_MAC + LAN_MAC + ethertype]
    assert gateway.sequence("out")[0] == 11  # no number was spent on them


def test_time_exceeded_through_the_tunnel(make_gateway: MakeGateway) -> None:
    """A decrypted packet's TTL runs out here: the answer goes back through the tunnel, from our protected address."""
    gateway = make_gateway(link=ETHERNET)
    ours, theirs = outbound_sa(CBC, family=6), inbound_sa(GCM)
    gateway.add(ours, theirs)
    gateway.protect("out")
    peer = Peer(theirs)
    for number, family in enumerate((4, 6, 4, 6), 1):
        cause = returning(family, bytes(100 * number), ttl=1)
        good = returning(4)
        result = gateway.receive([peer.packet(good), peer.packet(cause), peer.packet(good)])
        assert result.verdicts == {"pass": 3, "ttl": 1, "icmp_sent": 1}
        assert len(result.packets) == 2 and len(result.back) == 1
        _, answer = open_packet(ours, result.back[0], number)
        check_error(answer, cause, *((11, 0, 0) if family == 4 else (3, 0, 0)))
        assert result.passed["out"] == (1, len(answer))
    # Many at once, more than the answers' own MTU allows and with no policy for them.
    gateway.set_policies([])
    result = gateway.receive([peer.packet(returning(4, ttl=1)) for _ in range(20)])
    assert result.verdicts == {"ttl": 20, "icmp_sent": 20, "no_policy": 20}


@pytest.mark.parametrize("link", [IP, ETHERNET], ids=["ip", "ethernet"])
@pytest.mark.parametrize("suite", FOUR, ids=suite_id)
@pytest.mark.parametrize("outer", [4, 6])
@pytest.mark.parametrize("encap", [False, True], ids=["esp", "udp"])
def test_too_big(make_gateway: MakeGateway, suite: object, outer: int, encap: bool, link: int) -> None:
    """The largest packet that fits makes an outer packet within the path MTU; one byte more is answered."""
    gateway = make_gateway(link=link)
    spec = outbound_sa(suite, family=outer, encap=encap)  # type: ignore[arg-type]
    gateway.add(spec)
    gateway.protect("out")
    mtu = spec.inner_mtu(1500)
    for family, head in ((4, 28), (6, 48)):
        fits = (
            udp_packet(family, bytes(mtu - head), df=True)
            if family == 4
            else udp_packet(6, bytes(mtu - head))
        )
        over = udp_packet(family, bytes(mtu - head + 1), **({"df": True} if family == 4 else {}))
        result = gateway.send([fits, over, fits])
        assert result.verdicts == {"pass": 2, "too_big": 1, "icmp_sent": 1}
        assert result.drops == {"out": {"too_big": 1}}
        assert len(fits) == mtu
        assert 1500 - 15 <= len(result.packets[0]) <= 1500
        check_error(result.back[0], over, *((3, 4, mtu) if family == 4 else (2, 0, max(mtu, 1280))))


def test_packet_too_big_says_1280_at_least(make_gateway: MakeGateway) -> None:
    """RFC 8200 section 5: no IPv6 sender would heed less."""
    gateway = make_gateway(mtu=1300)
    gateway.add(outbound_sa(GCM))
    gateway.protect("out")
    over = udp_packet(6, bytes(1280 - 47))
    check_error(gateway.send([over]).back[0], over, 2, 0, 1280)


NEVER_ANSWERED = [
    ip4(struct.pack(">BBHI", 3, 1, 0, 0) + bytes(20), protocol=ICMP, ttl=1),
    ip4(struct.pack(">BBHI", 11, 0, 0, 0) + bytes(20), protocol=ICMP, ttl=1),
    ip4(struct.pack(">BBHI", 5, 0, 0, 0) + bytes(20), protocol=ICMP, ttl=1),
    ip6(struct.pack(">BBHI", 1, 0, 0, 0) + bytes(20), protocol=ICMPV6, ttl=1),
    ip6(struct.pack(">BBHI", 2, 0, 0, 0) + bytes(20), protocol=ICMPV6, ttl=1),
    ip6(struct.pack(">BBHI", 3, 0, 0, 0) + bytes(20), protocol=ICMPV6, ttl=1),
    udp_packet(4, source="0.0.0.0", ttl=1),
    udp_packet(4, source="127.0.0.1", ttl=1),
    udp_packet(4, source="224.0.0.1", ttl=1),
    udp_packet(4, source="255.255.255.255", ttl=1),
    udp_packet(4, destination="239.1.2.3", ttl=1),
    udp_packet(4, destination="255.255.255.255", ttl=1),
    udp_packet(6, source="::", ttl=1),
    udp_packet(6, source="::1", ttl=1),
    udp_packet(6, source="ff02::1", ttl=1),
    udp_packet(6, destination="ff0e::1", ttl=1),
    ip4(bytes(64), offset=64, ttl=1),
    ip6(struct.pack(">BBHI", UDP, 0, 64, 1) + bytes(64), protocol=44, ttl=1),
]


def test_never_answered(make_gateway: MakeGateway) -> None:
    """RFC 1122 section 3.2.2, RFC 4443 section 2.4 (e): errors, fragments, groups and nobody; but echo is."""
    gateway = make_gateway(link=ETHERNET)
    gateway.add(outbound_sa(GCM))
    gateway.protect("out")
    for packet in NEVER_ANSWERED:
        result = gateway.send([packet])
        assert (result.verdicts, result.back) == ({"ttl": 1}, []), packet.hex()
    echo = ip4(struct.pack(">BBHI", 8, 0, 0, 1) + bytes(20), protocol=ICMP, ttl=1)
    echo6 = ip6(struct.pack(">BBHI", 128, 0, 0, 1) + bytes(20), protocol=ICMPV6, ttl=1)
    for packet in (echo, echo6):
        assert gateway.send([packet]).verdicts == {"ttl": 1, "icmp_sent": 1}
    # A run of one flow: errors among echoes must not be answered because the first was an echo.
    error = ip4(struct.pack(">BBHI", 3, 0, 0, 1) + bytes(20), protocol=ICMP, ttl=1)
    assert gateway.send([echo, error, echo, error]).verdicts == {"ttl": 4, "icmp_sent": 2}
    nobody = make_gateway(link=ETHERNET, lan_addresses=())
    nobody.add(outbound_sa(GCM))
    nobody.protect("out")
    assert nobody.send([udp_packet(4, ttl=1)]).verdicts == {"ttl": 1}


def test_rate_limit(make_gateway: MakeGateway) -> None:
    """A burst of 100, then 1000 a second (RFC 4443 section 2.4 (f)): what is over the limit is counted by name."""
    gateway = make_gateway(link=ETHERNET)
    gateway.add(outbound_sa(GCM))
    gateway.protect("out")
    result = gateway.send([udp_packet(4, ttl=1)] * 1000)
    assert result.verdicts["ttl"] == 1000
    assert result.verdicts["icmp_sent"] + result.verdicts["icmp_limit"] == 1000
    assert 100 <= result.verdicts["icmp_sent"] <= 200
    assert len(result.back) == result.verdicts["icmp_sent"]


def test_error_to_a_bypassed_sender_is_the_kernels(make_gateway: MakeGateway) -> None:
    """Bypassed packets are the kernel's to forward: their TTL and size are no business of ours."""
    gateway = make_gateway(link=ETHERNET)
    gateway.set_policies(
        [PolicySpec(name="all", action=Action.BYPASS, selector=each) for each in (ANY4, ANY6)]
    )
    packets = [udp_packet(4, bytes(1470), ttl=1), udp_packet(6, ttl=0)]
    result = gateway.send(packets)
    assert (result.verdicts, result.kernel) == ({"bypassed": 2}, packets)


# --- checksums and MSS --------------------------------------------------------------------------------


@pytest.mark.parametrize("partial", [False, True], ids=["seen", "told"])
@pytest.mark.parametrize("family", [4, 6])
def test_half_made_checksums(make_gateway: MakeGateway, family: int, partial: bool) -> None:
    """What a local stack left to its device is finished, odd lengths and all; whole checksums stay as they are."""
    gateway = make_gateway()
    spec = outbound_sa(GCM)
    gateway.add(spec)
    gateway.protect("out")
    ends = {"source": CLIENT4, "destination": SERVER4} if family == 4 else {}
    ends = ends or {"source": CLIENT6, "destination": SERVER6}
    chance = random.Random(family)
    half, whole = [], []
    for size in (*range(20), 100, 101, 1000, 1001, 1337):
        data = chance.randbytes(size)
        half.append(ip(family, udp(data, half=True, **ends)))
        whole.append(ip(family, udp(data, **ends)))
        half.append(ip(family, tcp(data, half=True, options=b"\1" * 12, **ends), protocol=TCP))
        whole.append(ip(family, tcp(data, options=b"\1" * 12, **ends), protocol=TCP))
    # UDP whose sum comes to zero must say 0xFFFF (RFC 768).
    data = udp(bytes(2), **ends)[6:8]
    assert udp(data, **ends)[6:8] == b"\xff\xff"
    half.append(ip(family, udp(data, half=True, **ends)))
    whole.append(ip(family, udp(data, **ends)))
    assert all(map(transport_sums_right, whole))
    start = gateway.sequence("out")[0]
    sent = gateway.send(half, partial=partial)
    assert [open_packet(spec, wire, number)[1] for number, wire in enumerate(sent.packets, start)] == whole
    if partial:
        return
    untouched = [
        *whole,
        ip(family, udp(b"none", none=True, **ends)),
        ip(family, udp(b"wrong", **ends)[:-1] + b"x"),
        ip(family, udp(b"short", half=True, **ends)[:7]),
        ip(family, tcp(b"", half=True, **ends)[:17], protocol=TCP),
        ip(family, udp(b"other protocol", half=True, **ends), protocol=253),
    ]
    if family == 4:
        # A fragment's checksum is of the whole datagram.
        untouched.append(ip4(udp(b"first", half=True, **ends), more=True))
    start = gateway.sequence("out")[0]
    sent = gateway.send(untouched)
    assert [
        open_packet(spec, wire, number)[1] for number, wire in enumerate(sent.packets, start)
    ] == untouched


def mss(value: int, before: bytes = b"", after: bytes = b"") -> bytes:
    """TCP options with an MSS among others."""
    return before + struct.pack(">BBH", 2, 4, value) + after


@pytest.mark.parametrize("half", [False, True], ids=["whole", "half"])
@pytest.mark.parametrize("family", [4, 6])
def test_mss_clamp(make_gateway: MakeGateway, family: int, half: bool) -> None:
    """SYN and SYN-ACK, at even and odd places, both ways; never raised, never elsewhere, checksum kept right."""
    gateway = make_gateway()
    ours, theirs = outbound_sa(GCM, mss_clamp=True), inbound_sa(GCM, mss_clamp=True)
    gateway.add(ours, theirs)
    gateway.protect("out")
    most = ours.inner_mtu(1500) - (40 if family == 4 else 60)
    cases = [
        (2, mss(9000), mss(most)),
        (2, mss(65535), mss(most)),
        (0x12, mss(most + 1), mss(most)),
        (2, mss(most), mss(most)),
        (2, mss(536), mss(536)),
        (2, mss(0), mss(0)),
        (2, mss(9000, before=b"\1"), mss(most, before=b"\1")),
        (2, mss(9000, before=b"\1\1\1"), mss(most, before=b"\1\1\1")),
        (2, mss(8961, b"\3\3\7", b"\4\2"), mss(most, b"\3\3\7", b"\4\2")),
        (0x10, mss(9000), mss(9000)),  # no SYN
        (2, b"", b""),
        (2, b"\0" + mss(9000), b"\0" + mss(9000)),  # behind the end of options
        (2, b"\1\1\1\2", b"\1\1\1\2"),  # cut in two by the end of the header
        (2, b"\2\3\xff\xff", b"\2\3\xff\xff"),  # of a wrong length
        (2, b"\x08\0" + mss(9000), b"\x08\0" + mss(9000)),  # behind an option of length 0
        (2, b"\x08\xff" + mss(9000), b"\x08\xff" + mss(9000)),  # behind one that is too long
    ]
    before = [
        tcp_packet(family, b"", flags=flags, tcp_options=options, half=half) for flags, options, _ in cases
    ]
    after = [tcp_packet(family, b"", flags=flags, tcp_options=options) for flags, _, options in cases]
    sent = gateway.send(before)
    opened = [open_packet(ours, wire, number)[1] for number, wire in enumerate(sent.packets, 1)]
    assert opened == after
    if not half:
        peer = Peer(theirs)
        assert gateway.receive([peer.packet(packet) for packet in before]).packets == after
    plain = make_gateway()
    plain.add(replace(ours, mss_clamp=False))
    plain.protect("out")
    assert open_packet(ours, plain.send([before[0]]).packets[0], 1)[1] == tcp_packet(
        family, b"", flags=2, tcp_options=mss(9000)
    )


def test_mss_clamp_of_nonsense(make_gateway: MakeGateway) -> None:
    """Data offsets below the header and past the packet, SYNs in fragments: left alone."""
    gateway = make_gateway()
    ours = outbound_sa(GCM, mss_clamp=True)
    gateway.add(ours)
    gateway.protect("out")
    syn = tcp(b"", flags=2, options=mss(9000))
    packets = [ip4(syn[:12] + bytes([words << 4]) + syn[13:], protocol=TCP) for words in (0, 1, 4, 7, 15)]
    packets += [ip4(syn[:length], protocol=TCP) for length in range(20)]
    packets += [ip4(syn, protocol=TCP, more=True), ip4(syn, protocol=TCP, offset=8)]
    sent = gateway.send(packets)
    assert [open_packet(ours, wire, number)[1] for number, wire in enumerate(sent.packets, 1)] == packets


def test_fragments_outward(make_gateway: MakeGateway) -> None:
    """Inner fragments travel as they are; where a policy has ports, later ones match only ANY."""
    gateway = make_gateway()
    ours = outbound_sa(GCM)
    gateway.add(ours)
    ports = replace(ANY4, protocol=UDP, remote_ports=(5000, 5000))
    gateway.set_policies([PolicySpec(name="ports", action=Action.PROTECT, selector=ports, sa="out")])
    first, later = ip4(udp(bytes(64)), more=True), ip4(bytes(64), offset=72)
    result = gateway.send([first, later])
    assert result.verdicts == {"pass": 1, "no_policy": 1}
    gateway.protect("out")
    assert gateway.send(
        [first, later, ip6(struct.pack(">BBHI", UDP, 0, 64, 9) + bytes(9), protocol=44)]
    ).verdicts == {"pass": 3}
