"""Traffic flow confidentiality: padded packets and dummy packets, sent and received (RFC 4303 sections 2.6 and 2.7)."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from dataplane.model import TFC_MTU, EspProposal
from tests.esp import Peer, strip, trailer_for, unseal
from tests.exchange.suites import NULL_SHA256, SUITES, inbound_sa, outbound_sa, suite_id
from tests.gateway import MakeGateway
from tests.packets import ip, tcp_packet, udp_packet

GCM, CHACHA, CBC, NULL = FOUR = [SUITES[0], SUITES[3], SUITES[4], NULL_SHA256]


@pytest.mark.parametrize("esn", [False, True], ids=["32", "esn"])
@pytest.mark.parametrize("suite", FOUR, ids=suite_id)
@pytest.mark.parametrize("outer", [4, 6])
def test_padded(make_gateway: MakeGateway, suite: EspProposal, outer: int, esn: bool) -> None:
    """Outer packets of one length whatever is inside, zeros between packet and trailer, and the peer takes them."""
    suite = replace(suite, esn=esn)
    for padding in (1000, TFC_MTU):
        gateway = make_gateway()
        ours = outbound_sa(suite, family=outer, tfc_padding=padding)
        theirs = inbound_sa(suite, family=outer)
        back = replace(
            theirs,
            spi=ours.spi,
            encryption_key=ours.encryption_key,
            integrity_key=ours.integrity_key,
            local=ours.remote,
            remote=ours.local,
        )
        gateway.add(ours, replace(back, name="in"))
        gateway.protect("out")
        most = min(padding, ours.inner_mtu(1500))
        packets = [udp_packet(family, bytes(size)) for size in (0, 1, 2, 3, 500, 900) for family in (4, 6)]
        packets += [tcp_packet(4, b"x" * 77), ip(4, bytes(most - 20), protocol=253)]
        sent = gateway.send(packets)
        assert sent.passed["out"] == (len(packets), sum(map(len, packets)))  # bytes that carry something
        assert len({len(wire) for wire in sent.packets}) == 1
        at = 20 if outer == 4 else 40
        for number, (packet, wire) in enumerate(zip(packets, sent.packets, strict=True), 1):
            text, next_header = strip(unseal(ours, wire[at:], number))
            assert text == packet.ljust(most, bytes(1)) and next_header == (4 if packet[0] >> 4 == 4 else 41)
        received = gateway.receive(sent.packets)
        assert received.packets == packets


def test_no_shorter_than_they_are(make_gateway: MakeGateway) -> None:
    """A packet above the length stays as it is; one above the MTU is no longer padded but refused or cut."""
    gateway = make_gateway()
    spec = outbound_sa(GCM, tfc_padding=100)
    gateway.add(spec)
    gateway.protect("out")
    sent = gateway.send([udp_packet(4, bytes(72)), udp_packet(4, bytes(73)), udp_packet(4, bytes(1400))])
    lengths = [len(strip(unseal(spec, wire[20:], at))[0]) for at, wire in enumerate(sent.packets, 1)]
    assert lengths == [100, 101, 1428]
    cut = gateway.send([udp_packet(4, bytes(1460))])
    lengths = [len(strip(unseal(spec, wire[20:], at))[0]) for at, wire in enumerate(cut.packets, 4)]
    assert len(lengths) == 2 and min(lengths) == 100


@pytest.mark.parametrize("suite", FOUR, ids=suite_id)
def test_received(make_gateway: MakeGateway, suite: EspProposal) -> None:
    """What lies behind the inner packet is cut off, be it random; dummies are dropped, counted and move the window."""
    gateway = make_gateway()
    spec = inbound_sa(suite)
    gateway.add(spec)
    peer = Peer(spec)
    chance = random.Random(3)
    packets, wires = [], []
    for family in (4, 6):
        for size in (1, 2, 7, 200, 1000):
            packet = udp_packet(family, chance.randbytes(30), **_ends(family))
            packets.append(packet)
            text = packet + chance.randbytes(size)
            next_header = 4 if family == 4 else 41
            wires.append(
                peer.packet(packet, text=text + trailer_for(text, spec.proposal.alignment, next_header))
            )
    for size in (0, 1, 13, 1200):
        text = chance.randbytes(size)
        wires.append(peer.packet(b"", text=text + trailer_for(text, spec.proposal.alignment, 59)))
    result = gateway.receive(wires)
    assert result.packets == packets
    assert (result.verdicts, result.drops) == ({"pass": len(packets), "dummy": 4}, {"in": {"dummy": 4}})
    assert gateway.replay_top("in") == len(wires)


def _ends(family: int) -> dict[str, object]:
    return (
        {"source": "10.2.0.1", "destination": "10.1.0.1"}
        if family == 4
        else {"source": "2001:db8:2::1", "destination": "2001:db8:1::1"}
    )
