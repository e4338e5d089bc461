"""Packets out of a tunnel that the link inside does not take whole: cut or answered, as any router does it, and never
lost without a word (RFC 1812 5.2.6, RFC 4443 3.2, RFC 8200 5).
"""

from __future__ import annotations

import random
from ipaddress import ip_network

from dataplane.model import AdjacencySpec, RouteSpec
from tests.esp import Peer, open_packet
from tests.exchange.suites import SUITES, inbound_sa, outbound_sa
from tests.ext.test_forwarding import check_error, returning, ttl_of
from tests.ext.test_fragments import together
from tests.gateway import (
    ETHERNET,
    HOST_MAC,
    IP,
    Gateway,
    MakeGateway,
    engine_and_way,  # noqa: F401  (fixture)
)

GCM = SUITES[0]
NARROW = 1280  # bytes
DATA = random.Random(11).randbytes(1400)


def narrow(make_gateway: MakeGateway, link: int = ETHERNET) -> tuple[Gateway, Peer]:
    """A gateway whose protected network takes smaller packets than its tunnel, and its peer."""
    gateway = make_gateway(link=link)
    gateway.add(outbound_sa(GCM), inbound_sa(GCM))
    gateway.protect("out")
    mac = HOST_MAC if link == ETHERNET else b""
    inside = AdjacencySpec(port="lan", destination_mac=mac, mtu=NARROW)
    gateway.set_routes(
        [RouteSpec(prefix=ip_network(prefix), adjacency=inside) for prefix in ("0.0.0.0/0", "::/0")]
    )
    return gateway, Peer(inbound_sa(GCM))


def test_cut_where_its_sender_allows_it(make_gateway: MakeGateway) -> None:
    gateway, peer = narrow(make_gateway)
    good, large = returning(4), returning(4, DATA[:1300], ttl=9)
    result = gateway.receive([peer.packet(good), peer.packet(large), peer.packet(good)])
    assert result.verdicts == {"pass": 4, "fragmented": 1}
    assert result.drops == {} and result.back == []
    assert result.passed["in"] == (3, 2 * len(good) + len(large))
    pieces = result.packets[2:]
    assert all(len(piece) <= NARROW and ttl_of(piece) == 8 for piece in pieces)
    assert together(pieces) == large[20:]
    assert {link[:6] for link in result.links} == {HOST_MAC}


def test_the_kernel_gets_pieces(make_gateway: MakeGateway) -> None:
    """As long as the neighbour inside is not known packets go by raw sockets, which take none beyond the link's MTU."""
    gateway = make_gateway(link=ETHERNET, mtu=NARROW)
    gateway.add(outbound_sa(GCM), inbound_sa(GCM))
    gateway.protect("out")
    gateway.set_routes([RouteSpec(prefix=ip_network("0.0.0.0/0"), adjacency=None)])
    peer = Peer(inbound_sa(GCM))
    good, large, whole = returning(4), returning(4, DATA[:1300]), returning(4, DATA[:1300], df=True)
    result = gateway.receive([peer.packet(packet) for packet in (good, large, good, whole)])
    assert result.verdicts == {"to_kernel": 5, "fragmented": 1}
    assert result.passed["in"] == (4, 2 * len(good) + len(large) + len(whole))
    assert [len(packet) <= NARROW for packet in result.kernel] == [True] * 4 + [False]
    pieces = [packet for packet in result.kernel if packet not in (good, whole)]
    assert together(pieces) == large[20:]


def test_exactly_what_fits_passes(make_gateway: MakeGateway) -> None:
    gateway, peer = narrow(make_gateway)
    for family in (4, 6):
        size = NARROW - len(returning(family))
        result = gateway.receive([peer.packet(returning(family, DATA[:size]))])
        assert result.verdicts == {"pass": 1}
        assert len(result.packets[0]) == NARROW


def test_answered_where_it_must_not_be_cut(make_gateway: MakeGateway) -> None:
    """The sender behind the tunnel hears of the link's MTU, through the tunnel."""
    gateway, peer = narrow(make_gateway)
    for number, family in enumerate((4, 6), 1):
        large = returning(family, DATA[:1300], **({"df": True} if family == 4 else {}))
        good = returning(family)
        result = gateway.receive([peer.packet(good), peer.packet(large), peer.packet(good)])
        assert result.verdicts == {"pass": 3, "too_big": 1, "icmp_sent": 1}
        assert result.drops == {"in": {"too_big": 1}}
        assert len(result.packets) == 2
        _, answer = open_packet(outbound_sa(GCM), result.back[0], number)
        check_error(answer, large, *((3, 4, NARROW) if family == 4 else (2, 0, NARROW)))


def test_many_at_once_and_nothing_lost(make_gateway: MakeGateway) -> None:
    """A whole batch of them, each in two: frames last, and the order of each packet's pieces holds."""
    gateway, peer = narrow(make_gateway)
    packets = [returning(4, DATA[: 1290 + number]) for number in range(64)]
    result = gateway.receive([peer.packet(packet) for packet in packets])
    assert result.verdicts == {"pass": 128, "fragmented": 64}
    for number, packet in enumerate(packets):
        assert together(result.packets[2 * number : 2 * number + 2]) == packet[20:]


def test_a_host_takes_what_comes(make_gateway: MakeGateway) -> None:
    """To the kernel of this host, by a port without links, a packet goes as it is: it says itself what is too big."""
    gateway, peer = narrow(make_gateway, link=IP)
    large = returning(4, DATA[:1300], df=True)
    result = gateway.receive([peer.packet(large)])
    assert result.packets == [large]
