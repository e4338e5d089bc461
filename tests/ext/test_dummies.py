"""Dummy packets that we send (RFC 4303 section 2.6): how many, how they look, and who does not count them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from dataplane.model import EspProposal
from dataplane.records import check_sa
from tests.esp import strip, unseal
from tests.exchange.suites import NULL_SHA256, SUITES, inbound_sa, outbound_sa, suite_id
from tests.gateway import FRAMES, Gateway, MakeGateway
from tests.packets import udp_packet

GCM, CHACHA, CBC, NULL = FOUR = [SUITES[0], SUITES[3], SUITES[4], NULL_SHA256]
MS = 1_000_000  # nanoseconds


def seconds_of(gateway: Gateway, ticks: int, begin: int = 1_000_000 * MS, step: int = 10 * MS) -> list[bytes]:
    """What leaves in so many ticks of the worker's clock."""
    sent = []
    for tick in range(ticks):
        gateway.loop.send_dummies(begin + tick * step)
        sent += gateway.wan.collect()
        assert gateway.pool.free_count == FRAMES
    return sent


@pytest.mark.parametrize("esn", [False, True], ids=["32", "esn"])
@pytest.mark.parametrize("suite", FOUR, ids=suite_id)
@pytest.mark.parametrize("outer", [4, 6])
def test_dummies(make_gateway: MakeGateway, suite: EspProposal, outer: int, esn: bool) -> None:
    """Next header 59 behind bytes of every length, each with a number of its own; a peer drops and counts them."""
    gateway = make_gateway()
    ours = outbound_sa(replace(suite, esn=esn), family=outer, tfc_dummies=200)
    theirs = replace(
        inbound_sa(replace(suite, esn=esn), family=outer),
        name="back",
        spi=ours.spi,
        encryption_key=ours.encryption_key,
        integrity_key=ours.integrity_key,
        local=ours.remote,
        remote=ours.local,
    )
    gateway.add(ours, theirs)
    gateway.protect("out")
    sent = seconds_of(gateway, 200)
    assert 250 < len(sent) < 550  # 400 and more than seven standard deviations
    lengths = set()
    for number, wire in enumerate(sent, 1):
        text, next_header = strip(unseal(ours, wire[20 if outer == 4 else 40 :], number))
        assert next_header == 59
        lengths.add(len(text))
    assert len(lengths) > 150 and max(lengths) <= ours.inner_mtu(1500)
    assert gateway.sequence("out")[0] == len(sent) + 1
    assert gateway.tables.workers[0]["verdicts"][59] == len(sent)
    counters = gateway.tables.sa_counters[0][gateway.indices["out"]]
    assert (counters["packets"], counters["bytes"], counters["last_used"]) == (0, 0, 0)
    # The real ones look the same from outside, and count.
    real = gateway.send([udp_packet(4, bytes(500))])
    assert real.passed["out"] == (1, 528)
    received = gateway.receive([*sent[:64], *real.packets])
    assert received.verdicts == {"dummy": 64, "pass": 1}


def test_chance(make_gateway: MakeGateway) -> None:
    """Neither at even distances nor of one length; a pause of the worker is not made up for by a burst."""
    gateway = make_gateway()
    gateway.add(outbound_sa(GCM, tfc_dummies=100))
    per_tick = Counter(len(seconds_of(gateway, 1, begin=(5000 + 10 * tick) * MS)) for tick in range(400))
    assert per_tick[0] > 80 and per_tick[1] > 80 and sum(per_tick[n] for n in per_tick if n > 1) > 40
    assert len(seconds_of(gateway, 1, begin=3_600_000 * MS)) < 12
    assert seconds_of(gateway, 1, begin=3_600_001 * MS) == []  # the next tick is yet to come


def test_padded_with_the_rest(make_gateway: MakeGateway) -> None:
    """With TFC padding dummies have the length that all packets have."""
    gateway = make_gateway()
    gateway.add(outbound_sa(GCM, tfc_dummies=1000, tfc_padding=65535))
    gateway.protect("out")
    real = gateway.send([udp_packet(4)])
    assert {len(wire) for wire in seconds_of(gateway, 20)} == {len(real.packets[0])}


def test_none_from_an_sa_that_is_gone(make_gateway: MakeGateway) -> None:
    """No more once it is dropped; others go on."""
    gateway = make_gateway()
    one, other = (
        replace(outbound_sa(GCM, tfc_dummies=500), name=name, spi=spi)
        for name, spi in (("a", 300), ("b", 301))
    )
    gateway.add(one, other)
    assert {int.from_bytes(wire[20:24], "big") for wire in seconds_of(gateway, 20)} == {300, 301}
    gateway.tables.drop_sa(gateway.indices["a"])
    gateway.settle()
    assert {int.from_bytes(wire[20:24], "big") for wire in seconds_of(gateway, 20, begin=2_000_000 * MS)} == {
        301
    }
    gateway.tables.drop_sa(gateway.indices["b"])
    gateway.settle()
    assert int(gateway.tables.header[0]["dummy_sas"]) == 0
    assert seconds_of(gateway, 20, begin=3_000_000 * MS) == []


def test_refused() -> None:
    """More than a worker should make."""
    check_sa(outbound_sa(GCM, tfc_dummies=1000))
    with pytest.raises(ValueError, match="tfc_dummies is 1001; it is 0"):
        check_sa(outbound_sa(GCM, tfc_dummies=1001))
