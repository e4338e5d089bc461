"""Rekeying, deleting, creating: one act at a time, by either side, with and without a key exchange."""

from __future__ import annotations

from random import Random

import pytest

from control.ike.events import ChildClosed, ChildEstablished, ChildOutboundReady, Closed
from control.ike.settings import Lifetime
from tests.control.ike.pair import Pair, Side, Wire, child, connection_a, connection_b, esp, ike

PROPOSALS = ["aes128gcm16", "aes128gcm16-x25519", "aes256-sha256-ecp256-ke1_mlkem768"]


def made(**rest: object) -> Pair:
    return Pair(a=connection_a(**rest), b=connection_b(**rest)).up()


@pytest.fixture(params=["a", "b"])
def which(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def side_of(pair: Pair, which: str) -> Side:
    return pair.a if which == "a" else pair.b


@pytest.mark.parametrize("proposal", PROPOSALS)
def test_a_child_is_rekeyed_by_either_side(which: str, proposal: str) -> None:
    pair = made(children=(child(proposals=esp(proposal)),))
    side, other = side_of(pair, which), pair.other(side_of(pair, which))
    old = next(iter(side.children.values()))
    side.log.clear()
    other_old = next(iter(other.children))
    other.log.clear()
    side.endpoint.rekey_child(old.id, pair.now)
    pair.run()
    pair.check_children()
    new = next(iter(side.children.values()))
    assert new.id != old.id and new.spi_in != old.spi_in
    assert new.encryption_key_in != old.encryption_key_in
    assert new.local_selectors == old.local_selectors
    kinds = (ChildEstablished, ChildOutboundReady, ChildClosed)
    mine = [event for event in side.log if isinstance(event, kinds)]
    assert [type(event) for event in mine] == [ChildEstablished, ChildClosed]
    assert mine[0].outbound and mine[0].replaces == old.id
    theirs = [event for event in other.log if isinstance(event, kinds)]
    assert [type(event) for event in theirs] == [ChildEstablished, ChildOutboundReady, ChildClosed]
    assert not theirs[0].outbound and theirs[0].replaces == other_old
    assert theirs[2].why is Closed.REPLACED and theirs[2].replaced_by == theirs[0].child.id


def test_rekeying_the_ike_sa_keeps_its_prf() -> None:
    """Peers disagree on whose PRF makes the new keys, so it changes only where it must."""
    first, second = "aes256-sha256-prfsha384-x25519", "aes128gcm16-prfsha256-prfsha384-x25519"
    a = connection_a(proposals=ike(first, second))
    pair = Pair(a=a, b=connection_b(proposals=ike(second, first))).up()
    assert "prfsha256" in pair.a.established[0].suite_name
    for side in (pair.a, pair.b):
        side.endpoint.rekey_ike(side.ikes[0], pair.now)
        pair.run()
        assert side.rekeyed[-1].suite_name == "aes128gcm16-prfsha256-x25519"


def test_rekeying_the_ike_sa_changes_its_prf_where_it_must() -> None:
    """The responder no longer accepts the old one."""
    both = ("aes128gcm16-prfsha256-x25519", "aes128gcm16-prfsha384-x25519")
    pair = Pair(a=connection_a(proposals=ike(*both)), b=connection_b(proposals=ike(*both))).up()
    [sa] = pair.b.endpoint.registry
    sa.connection = connection_b(proposals=ike(both[1]))
    pair.b.endpoint.rekey_ike(sa.id, pair.now)
    pair.run()
    assert pair.b.rekeyed[-1].suite_name == pair.a.rekeyed[-1].suite_name == both[1]


@pytest.mark.parametrize("seed", range(12))
def test_rekeyings_of_children_that_the_peer_does_not_know_yet(seed: int) -> None:
    """Either side rekeys what it has, known to the other or not, on a bad wire: nobody is left with a half."""
    chance = Random(seed)
    children = tuple(
        child(f"net{n}", f"10.{n}.0.0/16", f"10.{100 + n}.0.0/16", lifetime=Lifetime(rekey=0.0))
        for n in range(4)
    )
    wire = Wire(loss=0.15, repeat=0.1, delay=(0.01, 0.3))
    pair = Pair(a=connection_a(children=children), b=connection_b(children=children), wire=wire)
    for each in children:
        pair.initiate(each.name)
    pair.run(200.0)
    for _ in range(6):
        for side in pair.sides:
            for id in chance.sample(sorted(side.children), k=min(2, len(side.children))):
                side.endpoint.rekey_child(id, pair.now)
        pair.run(chance.choice((0.05, 0.4, 2.0)))
    wire.loss = wire.repeat = 0.0
    pair.run(600.0)
    names = [sorted(each.settings.name for each in side.sending.values()) for side in pair.sides]
    assert names[0] == names[1] == sorted(set(names[0]))
    pair.check_children(len(names[0]))
