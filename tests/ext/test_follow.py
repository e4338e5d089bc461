"""Authenticated ESP in UDP that comes from another address or port is told, once per place, and passes as ever."""

from __future__ import annotations

import struct
from dataclasses import replace
from ipaddress import ip_address

import pytest

from dataplane.follow import Sources
from dataplane.model import Encap, Source
from tests.esp import Peer
from tests.exchange.suites import SUITES, inbound_sa, suite_id
from tests.gateway import (
    Gateway,
    MakeGateway,
    engine_and_way,  # noqa: F401  (fixture)
)
from tests.packets import CLIENT4, SERVER4, UDP, ip, udp_packet

INNER = udp_packet(4, b"x", source=SERVER4, destination=CLIENT4)
PORT = 4500
ELSEWHERE = {4: ip_address("203.0.113.77"), 6: ip_address("2001:db8:ffff::77")}


class Lab:
    """A gateway with one inbound SA in UDP, its peer, and what control hears."""

    def __init__(self, gateway: Gateway, *, family: int = 4, **fields: object) -> None:
        spec = inbound_sa(fields.pop("suite", SUITES[0]), family=family, encap=True, **fields)  # type: ignore[arg-type]
        gateway.add(spec)
        self.gateway, self.spec, self.peer, self.family = gateway, spec, Peer(spec), family
        self.sources = Sources(gateway.tables.view)

    def packet(self, port: int = PORT, *, source: object = None, number: int | None = None) -> bytes:
        """One of the peer's, from a port and address."""
        esp = self.peer.esp(INNER, number=number)
        head = struct.pack(">HHHH", port, PORT, 8 + len(esp), 0)
        ends = {"source": source or self.spec.remote, "destination": self.spec.local}
        return ip(self.family, head + esp, protocol=UDP, **ends)

    def receive(self, *packets: bytes) -> None:
        """All of them pass."""
        assert self.gateway.receive(packets).verdicts == {"pass": len(packets)}

    def heard(self) -> list[Source]:
        """What control takes now."""
        return self.sources.take({self.gateway.indices["in"]: "in"}) if self.sources.news else []

    def place(self, port: int, source: object = None) -> Source:
        """What is to be heard."""
        return Source(sa="in", address=source or self.spec.remote, port=port)  # type: ignore[arg-type]


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("suite", SUITES, ids=suite_id)
def test_another_port_or_address(make_gateway: MakeGateway, suite: object, family: int) -> None:
    lab = Lab(make_gateway(), family=family, suite=suite)
    lab.receive(lab.packet(), lab.packet())
    assert lab.heard() == []
    lab.receive(lab.packet(20001))
    assert lab.heard() == [lab.place(20001)]
    assert lab.heard() == [] and not lab.sources.news
    lab.receive(lab.packet(20001), lab.packet(20001))
    assert lab.heard() == [], "the same place once"
    lab.receive(lab.packet(source=ELSEWHERE[family]))
    assert lab.heard() == [lab.place(PORT, ELSEWHERE[family])]
    lab.receive(lab.packet(20001))
    lab.receive(lab.packet(20002))
    assert lab.heard() == [lab.place(20002)], "the last place"


def test_what_was_moved_is_where_it_is(make_gateway: MakeGateway) -> None:
    """After control has moved the SA its new place is no news, and the old one is."""
    lab = Lab(make_gateway())
    lab.receive(lab.packet(20001, source=ELSEWHERE[4]))
    assert lab.heard() == [lab.place(20001, ELSEWHERE[4])]
    moved = replace(lab.spec, remote=ELSEWHERE[4], encap=Encap(source_port=PORT, destination_port=20001))
    lab.gateway.tables.readdress_inbound(lab.gateway.indices["in"], moved)
    lab.receive(lab.packet(20001, source=ELSEWHERE[4]))
    assert lab.heard() == []
    lab.receive(lab.packet())
    assert lab.heard() == [lab.place(PORT)]
    lab.receive(lab.packet(20001, source=ELSEWHERE[4]))
    lab.receive(lab.packet())
    assert lab.heard() == [], "it is back where control has heard of it last"


def test_what_is_not_the_peers_tells_nothing(make_gateway: MakeGateway) -> None:
    """A forged packet, a repeated one and one that is late: no proof of where the peer is now."""
    lab = Lab(make_gateway())
    old = lab.packet(20001)  # number 1, held up
    forged = bytearray(lab.packet(20002))
    forged[-1] ^= 1
    good = lab.packet()
    lab.receive(good)
    assert lab.gateway.receive([bytes(forged)]).verdicts == {"integrity": 1}
    again = bytearray(good)
    again[20:22] = struct.pack(">H", 20003)
    assert lab.gateway.receive([bytes(again)]).verdicts == {"replay": 1}
    lab.receive(old)
    assert lab.heard() == []


def test_many_places_in_one_batch(make_gateway: MakeGateway) -> None:
    """One look per batch and SA: the next batch tells."""
    lab = Lab(make_gateway())
    lab.receive(lab.packet(), *(lab.packet(20001) for _ in range(30)))
    assert lab.heard() == []
    lab.receive(*(lab.packet(20001) for _ in range(30)))
    assert lab.heard() == [lab.place(20001)]


def test_without_a_window_and_with_extended_numbers(make_gateway: MakeGateway) -> None:
    lab = Lab(make_gateway(), replay_window=0)
    lab.receive(lab.packet(20001))
    assert lab.heard() == [lab.place(20001)]
    lab = Lab(make_gateway(), suite=replace(SUITES[0], esn=True), sequence=2**32 - 1)
    lab.receive(lab.packet(), lab.packet())
    lab.receive(lab.packet(20001))
    assert lab.heard() == [lab.place(20001)]


def test_an_sa_that_went_tells_nothing(make_gateway: MakeGateway) -> None:
    lab = Lab(make_gateway())
    lab.receive(lab.packet(20001))
    assert lab.sources.take({}) == []
    assert lab.heard() == []


def test_without_udp_nothing_is_compared(make_gateway: MakeGateway) -> None:
    """ESP of its own may come from anywhere; nobody follows it."""
    gateway = make_gateway()
    spec = inbound_sa(SUITES[0])
    gateway.add(spec)
    sources = Sources(gateway.tables.view)
    packet = Peer(spec).wrap(Peer(spec).esp(INNER), source=ELSEWHERE[4])
    assert gateway.receive([packet]).verdicts == {"pass": 1}
    assert not sources.news
