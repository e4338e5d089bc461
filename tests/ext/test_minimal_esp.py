"""Peers that speak minimal ESP (RFC 9333): numbers from a clock, fixed SPIs, no padding beyond what alignment wants."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from dataplane.model import EspProposal
from tests.esp import Peer
from tests.exchange.suites import NULL_SHA256, SUITES, inbound_sa, suite_id
from tests.gateway import MakeGateway
from tests.packets import CLIENT4, SERVER4, udp_packet

GCM, CHACHA, CBC, NULL = FOUR = [SUITES[0], SUITES[3], SUITES[4], NULL_SHA256]
MILLISECOND = 1 << 10  # numbers of a clock that counts microseconds or so


def returning(text: bytes) -> bytes:
    """An inner packet of the peer's."""
    return udp_packet(4, text, source=SERVER4, destination=CLIENT4)


@pytest.mark.parametrize("esn", [False, True], ids=["32", "esn"])
@pytest.mark.parametrize("suite", FOUR, ids=suite_id)
def test_numbers_from_a_clock(make_gateway: MakeGateway, suite: EspProposal, esn: bool) -> None:
    """Section 3: strictly increasing is all that is asked for. Gaps of any size pass, nothing passes twice."""
    gateway = make_gateway()
    spec = replace(inbound_sa(replace(suite, esn=esn)), spi=256)  # section 2: the least that is not reserved
    gateway.add(spec)
    peer = Peer(spec)
    chance = random.Random(9)
    number, wires, packets = 1, [], []
    # With ESN, half of the number space is as far as a receiver can follow at once (RFC 4303 appendix A2).
    for step in [
        1,
        MILLISECOND,
        1000 * MILLISECOND,
        (1 << 31) - 2048,
        *(chance.randrange(1, 1 << 24) for _ in range(40)),
    ]:
        number += step
        packets.append(returning(b"%d" % number))
        wires.append(peer.packet(packets[-1], number=number))
    assert esn or number < 1 << 32
    for at in range(0, len(wires), 8):
        result = gateway.receive(wires[at : at + 8])
        assert result.packets == packets[at : at + 8]
    assert gateway.replay_top("in") == number
    again = gateway.receive(wires)
    # With ESN, what lies far back counts as far ahead, and its ICV says no.
    assert again.packets == [] and set(again.verdicts) <= {"replay", "replay_old", "integrity"}
    if esn:
        far = number + (3 << 30)
        last = returning(b"far")
        assert gateway.receive([peer.packet(last, number=number + (1 << 30))]).packets == [last]
        assert gateway.receive([peer.packet(last, number=far)]).packets == [last]


@pytest.mark.parametrize("suite", [CHACHA, GCM], ids=suite_id)
def test_no_padding(make_gateway: MakeGateway, suite: EspProposal) -> None:
    """Section 4: a cipher without blocks lets packets of fitting length go without any, and that is enough."""
    gateway = make_gateway()
    spec = inbound_sa(suite)
    gateway.add(spec)
    peer = Peer(spec)
    packets = [returning(bytes(size)) for size in (2, 6, 102)]
    for packet in packets:
        assert (len(packet) + 2) % 4 == 0
    result = gateway.receive([peer.packet(packet, padding=b"") for packet in packets])
    assert result.packets == packets


def test_every_packet_is_needed_none_is_made_up(make_gateway: MakeGateway) -> None:
    """Section 5: a peer may send no dummies, or nothing else for a long time: then they move the window alone."""
    gateway = make_gateway()
    spec = inbound_sa(GCM)
    gateway.add(spec)
    peer = Peer(spec)
    dummies = [
        peer.packet(b"", text=bytes(14) + bytes([0, 59]), number=at * MILLISECOND) for at in range(1, 20)
    ]
    assert gateway.receive(dummies).verdicts == {"dummy": 19}
    assert gateway.replay_top("in") == 19 * MILLISECOND
    last = returning(b"real")
    assert gateway.receive([peer.packet(last, number=20 * MILLISECOND)]).packets == [last]
