"""Packets over the MTU of their tunnel that may be fragmented: before encapsulation or after it (RFC 4301 7)."""

from __future__ import annotations

import random
import struct
from ipaddress import ip_network
from itertools import pairwise

import pytest

from dataplane.model import Df, EspProposal, Fragment, SelectorSpec
from tests.esp import open_packet
from tests.exchange.suites import NULL_SHA256, SUITES, outbound_sa, suite_id
from tests.gateway import ETHERNET, FRAMES, MakeGateway
from tests.packets import ICMP, UDP, checksum, ip4, ip6, udp_packet

GCM, CHACHA, CBC, NULL = FOUR = [SUITES[0], SUITES[3], SUITES[4], NULL_SHA256]
DATA = random.Random(5).randbytes(2000)


def parts_of(packet: bytes) -> tuple[tuple[object, ...], int, bool, bytes]:
    """(what all fragments of one packet share, offset in bytes, more to come, payload) of an IP fragment."""
    if packet[0] >> 4 == 4:
        head = (packet[0] & 15) * 4
        assert checksum(packet[:head]) == 0 and int.from_bytes(packet[2:4], "big") == len(packet)
        field = int.from_bytes(packet[6:8], "big")
        assert field & 0xC000 == 0, "DF on a fragment"
        key = packet[1], packet[4:6], packet[8:10], packet[12:20]
        return key, (field & 0x1FFF) * 8, bool(field & 0x2000), packet[head:]
    assert int.from_bytes(packet[4:6], "big") == len(packet) - 40 and packet[6] == 44
    field = int.from_bytes(packet[42:44], "big")
    return (
        (packet[:4], packet[7:40], packet[40], packet[44:48]),
        field & ~7,
        bool(field & 1),
        packet[48:],
    )


def together(pieces: list[bytes]) -> bytes:
    """The payload of a packet's fragments, which must be in order, gapless, and of 8 n bytes but for the last."""
    key, offset, _, _ = parts_of(pieces[0])
    assert offset == 0
    payload = b""
    for piece in pieces:
        other, offset, more, data = parts_of(piece)
        assert (other, offset) == (key, len(payload))
        assert more == (piece is not pieces[-1])
        assert not more or len(data) % 8 == 0
        payload += data
    return payload


@pytest.mark.parametrize("suite", FOUR, ids=suite_id)
@pytest.mark.parametrize("outer", [4, 6])
@pytest.mark.parametrize("mtu", [1500, 1400, 576])
def test_before(make_gateway: MakeGateway, suite: EspProposal, outer: int, mtu: int) -> None:
    """Without DF the pieces go into the tunnel, each within the path's MTU; their receiver has the packet again."""
    gateway = make_gateway(mtu=mtu)
    spec = outbound_sa(suite, family=outer)
    gateway.add(spec)
    gateway.protect("out")
    number = 1
    for size in (spec.inner_mtu(mtu) + 1, spec.inner_mtu(mtu) + 9, 1500, 1673):
        packet = ip4(DATA[: size - 20], protocol=UDP, identification=size, tos=0xB9)
        small = udp_packet(4)
        result = gateway.send([small, packet, small])
        opened = [open_packet(spec, wire, at)[1] for at, wire in enumerate(result.packets, number)]
        number += len(opened)
        assert opened[0] == opened[-1] == small and all(len(wire) <= mtu for wire in result.packets)
        pieces = opened[1:-1]
        assert together(pieces) == packet[20:]
        assert {(piece[1], piece[4:6], piece[8:10]) for piece in pieces} == {
            (0xB9, packet[4:6], packet[8:10])
        }
        made = -(-(size - 20) // ((spec.inner_mtu(mtu) - 20) // 8 * 8))
        assert len(pieces) == made
        assert result.verdicts == {"pass": 2 + made, "fragmented": made - 1}
        assert result.drops == {} and result.passed["out"][0] == 2 + made


@pytest.mark.parametrize("where", [Fragment.BEFORE, Fragment.AFTER])
@pytest.mark.parametrize("outer", [4, 6])
def test_nothing_overtakes_the_pieces(make_gateway: MakeGateway, where: Fragment, outer: int) -> None:
    """Linux gives up a datagram when 64 packets come between two of its fragments, so all leave as they came.

    These are datagrams of six fragments each, as a host's link of 1,500 bytes makes them: all but the last are too big
    for the tunnel.
    """
    gateway = make_gateway(link=ETHERNET)
    spec = outbound_sa(GCM, family=outer, fragment=where)
    gateway.add(spec)
    gateway.protect("out")
    packets = [
        ip4(
            DATA[:1480] if part < 5 else DATA[:100],
            protocol=UDP,
            identification=number,
            offset=1480 * part,
            more=part < 5,
        )
        for number in range(20)
        for part in range(6)
    ]
    result = gateway.send(packets)
    assert result.verdicts["too_big"] == 0 and result.verdicts["icmp_sent"] == 0
    if where is Fragment.BEFORE:
        inner = [open_packet(spec, wire, at)[1] for at, wire in enumerate(result.packets, 1)]
        places = [
            (int.from_bytes(packet[4:6]), (int.from_bytes(packet[6:8]) & 0x1FFF) * 8) for packet in inner
        ]
        assert places == sorted(places)
        assert {packet[8] for packet in inner} == {63}
        return
    numbers = [number_of(wire) for wire in result.packets]
    assert [number for number in numbers if number is not None] == list(range(1, len(packets) + 1))


def number_of(wire: bytes) -> int | None:
    """The ESP number of a packet, or of a first fragment."""
    if wire[0] >> 4 == 4:
        first, esp = int.from_bytes(wire[6:8]) & 0x1FFF == 0, 20
    else:
        cut = wire[6] == 44
        first, esp = not cut or int.from_bytes(wire[42:44]) & ~7 == 0, 48 if cut else 40
    return int.from_bytes(wire[esp + 4 : esp + 8]) if first else None


def test_a_hop_is_counted_once(make_gateway: MakeGateway) -> None:
    """On an Ethernet port every piece has one hop less than the packet, and costs a sequence number."""
    gateway = make_gateway(link=ETHERNET)
    spec = outbound_sa(GCM)
    gateway.add(spec)
    gateway.protect("out")
    result = gateway.send([ip4(DATA[:1480], protocol=UDP, ttl=2), ip4(DATA[:1480], protocol=UDP, ttl=1)])
    assert result.verdicts == {"pass": 2, "fragmented": 1, "ttl": 1, "icmp_sent": 1}
    assert [open_packet(spec, wire, at)[1][8] for at, wire in enumerate(result.packets, 1)] == [1, 1]
    assert gateway.sequence("out")[0] == 3


def test_fragments_of_fragments(make_gateway: MakeGateway) -> None:
    """A piece that is a fragment already keeps its place in the packet and what comes behind it."""
    gateway = make_gateway(mtu=1000)
    spec = outbound_sa(GCM)
    gateway.add(spec)
    gateway.protect("out")
    whole = DATA[:1992]
    for more in (True, False):
        middle = ip4(whole[480:1880], protocol=UDP, identification=77, offset=480, more=more)
        start = gateway.sequence("out")[0]
        result = gateway.send([middle])
        pieces = [open_packet(spec, wire, at)[1] for at, wire in enumerate(result.packets, start)]
        parts = [parts_of(piece) for piece in pieces]
        assert [part[1] for part in parts] == [480, 480 + len(parts[0][3])]
        assert [part[2] for part in parts] == [True, more]
        assert b"".join(part[3] for part in parts) == whole[480:1880]


def test_options(make_gateway: MakeGateway) -> None:
    """RFC 791 section 3.1: options with the copied flag are in every piece, the others in the first alone."""
    gateway = make_gateway(mtu=700)
    spec = outbound_sa(GCM)
    gateway.add(spec)
    gateway.protect("out")
    record_route = bytes([7, 7, 4, 0, 0, 0, 0])
    security = bytes([0x82, 11, *range(9)])
    for options, kept in (
        (record_route + bytes([1]) + security + bytes(1), security + bytes(1)),
        (record_route + bytes(1), b""),
        (security + bytes([1]), security + bytes(1)),
        (bytes([0x82, 40, 1, 1]), b""),  # longer than the header: nothing that could be copied
        (bytes([0x82, 1, 1, 1]), b""),
    ):
        packet = ip4(DATA[:1200], protocol=UDP, options=options)
        start = gateway.sequence("out")[0]
        result = gateway.send([packet])
        first, *later = [open_packet(spec, wire, at)[1] for at, wire in enumerate(result.packets, start)]
        assert together([first, *later]) == DATA[:1200]
        assert first[20 : 20 + len(options)] == options
        assert {piece[20 : (piece[0] & 15) * 4] for piece in later} == {kept}


def test_pieces_go_where_the_packet_would(make_gateway: MakeGateway) -> None:
    """Later pieces show no ports: they follow their packet's SA, not the policy that would take them by themselves."""
    gateway = make_gateway()
    spec = outbound_sa(GCM)
    gateway.add(spec)
    net = ip_network("0.0.0.0/0")
    gateway.protect(
        "out",
        [
            SelectorSpec.from_networks(
                net, net, protocol=UDP, local_ports=(4000, 4000), remote_ports=(5000, 5000)
            )
        ],
    )
    result = gateway.send([udp_packet(4, DATA[:1470])])
    assert result.verdicts == {"pass": 2, "fragmented": 1}


@pytest.mark.parametrize("encap", [False, True], ids=["esp", "udp"])
@pytest.mark.parametrize("suite", FOUR, ids=suite_id)
@pytest.mark.parametrize("outer", [4, 6])
def test_after(make_gateway: MakeGateway, suite: EspProposal, outer: int, encap: bool) -> None:
    """As configured: one number, one ICV, and the outer packet comes in fragments."""
    gateway = make_gateway(mtu=1300)
    spec = outbound_sa(suite, family=outer, encap=encap, fragment=Fragment.AFTER)
    gateway.add(spec)
    gateway.protect("out")
    for number, size in enumerate((1300, 1452, 1600), 1):
        packet = ip4(DATA[: size - 20], protocol=UDP)
        result = gateway.send([packet])
        assert result.verdicts == {"pass": 2, "fragmented": 1}
        assert all(len(piece) <= 1300 for piece in result.packets)
        payload = together(result.packets)
        protocol = UDP if encap else 50
        assert result.packets[0][9 if outer == 4 else 40] == protocol
        whole = ip4(payload, protocol=protocol) if outer == 4 else ip6(payload, protocol=protocol)
        assert open_packet(spec, whole, number)[1] == packet
        assert result.passed["out"] == (1, size)
    assert gateway.sequence("out")[0] == 4


@pytest.mark.parametrize("outer", [4, 6])
def test_who_is_cut_where(make_gateway: MakeGateway, outer: int) -> None:
    """DF of the inner packet against DF of the SA and its `fragment` (RFC 4301 section 8.1)."""
    packets = {
        "free": ip4(DATA[:1400], protocol=UDP),
        "df": ip4(DATA[:1400], protocol=UDP, df=True),
        "ipv6": ip6(DATA[:1240]),
        "jumbo": ip6(DATA[:1241]),
    }
    expected = {
        (Df.COPY, Fragment.BEFORE): {"free": "before", "df": 1, "ipv6": "after", "jumbo": 1},
        (Df.COPY, Fragment.AFTER): {"free": "after", "df": 1, "ipv6": "after", "jumbo": 1},
        (Df.SET, Fragment.BEFORE): {"free": "before", "df": 1, "ipv6": "after", "jumbo": 1},
        (Df.SET, Fragment.AFTER): {"free": "before", "df": 1, "ipv6": "after", "jumbo": 1},
        (Df.CLEAR, Fragment.BEFORE): {"free": "before", "df": "after", "ipv6": "after", "jumbo": 1},
        (Df.CLEAR, Fragment.AFTER): {"free": "after", "df": "after", "ipv6": "after", "jumbo": 1},
    }
    for (df, fragment), fates in expected.items():
        gateway = make_gateway(mtu=1280)
        gateway.add(outbound_sa(GCM, family=outer, df=df, fragment=fragment))
        gateway.protect("out")
        for name, fate in fates.items():
            before = gateway.sequence("out")[0]
            result = gateway.send([packets[name]])
            numbers = gateway.sequence("out")[0] - before
            if fate == 1:
                assert (result.verdicts, numbers) == ({"too_big": 1, "icmp_sent": 1}, 0), (df, fragment, name)
            else:
                assert result.verdicts == {"pass": 2, "fragmented": 1}, (df, fragment, name)
                assert numbers == (2 if fate == "before" else 1), (df, fragment, name)


def test_ids_of_outer_fragments_differ(make_gateway: MakeGateway) -> None:
    """RFC 8200 section 4.5: packets that can be on the way at one time have different identifications."""
    gateway = make_gateway(mtu=1280)
    gateway.add(outbound_sa(GCM, family=6))
    gateway.protect("out")
    result = gateway.send([ip6(DATA[:1240])] * 64)
    assert len(result.packets) == 128
    ids = [packet[44:48] for packet in result.packets]
    assert len(set(ids)) == 64 and ids[::2] == ids[1::2]
    assert all(one != other for one, other in pairwise(ids[::2]))


def test_what_cannot_be_cut_is_dropped_by_name(make_gateway: MakeGateway) -> None:
    """No room for 8 bytes of payload, and more pieces than there are frames: dropped, counted, no frame lost."""
    gateway = make_gateway(mtu=80)
    spec = outbound_sa(GCM)
    gateway.add(spec)
    gateway.protect("out")
    assert spec.inner_mtu(80) == 26
    result = gateway.send([ip4(DATA[:100], protocol=UDP)])
    assert (result.verdicts, result.drops) == ({"too_big": 1}, {"out": {"too_big": 1}})
    gateway = make_gateway(mtu=128)
    gateway.add(spec)
    gateway.protect("out")
    result = gateway.send([ip4(DATA[:1480], protocol=UDP, identification=at) for at in range(64)])
    made = result.verdicts["pass"]
    assert made == len(result.packets) and made % 31 == 0 and made // 31 + result.verdicts["too_big"] == 64
    assert gateway.pool.free_count == FRAMES


@pytest.mark.parametrize("outer", [4, 6])
def test_batches_of_giants(make_gateway: MakeGateway, outer: int) -> None:
    """64 packets of many pieces each, both ways to cut mixed with small packets: all arrive, each in order."""
    gateway = make_gateway(mtu=700)
    spec = outbound_sa(CBC, family=outer)
    gateway.add(spec)
    gateway.protect("out")
    chance = random.Random(outer)
    packets = []
    for at in range(64):
        size = chance.choice((0, 100, 900, 1480))
        body = struct.pack(">I", at) + DATA[:size]
        packets.append(
            ip4(body, protocol=ICMP, identification=at) if chance.randrange(3) else ip6(body[:1240])
        )
    result = gateway.send(packets)
    assert not {"too_big", "no_frame"} & set(result.verdicts)
    done: list[bytes] = []
    waiting: dict[object, list[bytes]] = {}
    number = 0
    for wire in result.packets:
        whole = wire
        cut = int.from_bytes(wire[6:8], "big") & 0x3FFF if outer == 4 else wire[6] == 44
        if cut:
            key, _, more, _ = parts_of(wire)
            waiting.setdefault(key, []).append(wire)
            if more:
                continue
            payload = together(waiting.pop(key))
            whole = ip4(payload, protocol=50) if outer == 4 else ip6(payload, protocol=50)
        at = 20 if outer == 4 else 40
        number = int.from_bytes(whole[at + 4 : at + 8], "big")
        done.append(open_packet(spec, whole, number)[1])
    assert not waiting
    inner: list[bytes] = []
    for packet in done:
        if packet[0] >> 4 == 4 and int.from_bytes(packet[6:8], "big") & 0x3FFF:
            key, _, more, _ = parts_of(packet)
            waiting.setdefault(key, []).append(packet)
            if more:
                continue
            first = waiting[key][0]
            packet = ip4(
                together(waiting.pop(key)), protocol=ICMP, identification=int.from_bytes(first[4:6], "big")
            )
        inner.append(packet)
    assert sorted(inner) == sorted(packets)
