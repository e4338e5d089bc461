"""Rekeying, deleting, creating: one act at a time, by either side, with and without a key exchange."""

from __future__ import annotations

import pytest

from control.ike.events import ChildClosed, ChildEstablished, ChildOutboundReady, Closed
from tests.control.ike.pair import Pair, Side, child, connection_a, connection_b, esp

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
