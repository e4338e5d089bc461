"""Addresses change while SAs live (RFC 4555, RFC 7296 section 2.23)."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from control.ike.events import Datagram, IkeClosed, PathChanged, PeerPath
from control.ike.numbers import Exchange, NotifyType
from control.ike.v2 import send
from control.ike.v2.negotiate import dynamic_addresses
from control.ike.v2.sa import IkeSa
from control.ike.v2.task import Incoming
from control.ike.v2.tasks import mobike
from control.ike.wire.payloads import NotifyPayload, Payload
from tests.control.ike.pair import ADDRESS_A, ADDRESS_B, Pair, Side, connection_a, connection_b
from tests.control.ike.planes import Plane

NEW = ip_address("192.0.2.7")
NAT = ip_address("198.51.100.1")


def made(**rest: Any) -> Pair:
    rest.setdefault("remote_addresses", (ADDRESS_B,))
    a = connection_a(local_addresses=(), **rest)
    b = replace(connection_b(**rest), remote_addresses=())
    return Pair(a=a, b=b)


def move(pair: Pair, side: Side, new: Any = NEW) -> None:
    old = side.addresses[0]
    side.addresses = (new,)
    side.endpoint.address_changed(old, new, pair.now)


def test_the_initiator_moves_and_all_children_follow() -> None:
    pair = made().up()
    move(pair, pair.a)
    pair.run()
    (ours,), (theirs,) = pair.a.of(PathChanged), pair.b.of(PathChanged)
    assert ours.path.local == NEW and ours.path.remote == ADDRESS_B
    assert theirs.path.remote == NEW and theirs.path.local == ADDRESS_B
    assert not ours.encapsulated and not theirs.encapsulated
    assert len(pair.a.ikes) == len(pair.b.ikes) == 1
    pair.b.endpoint.rekey_child(next(iter(pair.b.children)), pair.now)
    pair.b.endpoint.rekey_ike(pair.b.ikes[0], pair.now)
    pair.run(60.0)
    pair.check_children()
    assert next(iter(pair.a.children.values())).path.local == NEW
    assert pair.a.rekeyed


def test_a_move_after_the_ike_sa_was_rekeyed_by_the_other_side() -> None:
    """Who decides on addresses is the first IKE SA's initiator, whoever rekeyed it."""
    pair = made().up()
    pair.b.endpoint.rekey_ike(pair.b.ikes[0], pair.now)
    pair.run()
    assert not pair.a.endpoint.snapshot()[0].initiator
    move(pair, pair.a)
    pair.run()
    assert pair.b.of(PathChanged)[0].path.remote == NEW


def test_a_move_with_a_request_under_way() -> None:
    """The same request goes by the new path, and the move after it."""
    pair = made().up()
    pair.wire.drop = lambda number, datagram: datagram.path.local == ADDRESS_A
    pair.a.endpoint.rekey_child(next(iter(pair.a.children)), pair.now)
    pair.run(0.5)
    move(pair, pair.a)
    pair.run(20.0)
    pair.check_children()
    assert pair.b.of(PathChanged)[0].path.remote == NEW
    # The child that was made on the way has moved with the others.
    assert pair.a.of(PathChanged)


def esp_goes_to(pair: Pair) -> set[Any]:
    """Addresses of A that the dataplanes of both sides use, by the events that they were told."""
    found = set()
    for side in pair.sides:
        plane = Plane()
        for event in side.log:
            plane.apply(event, pair.now)
        found |= {path.local if side is pair.a else path.remote for path in plane.paths.values()}
    return found


@pytest.mark.parametrize("who", ["a", "b"])
def test_a_move_that_crosses_a_rekeying_of_the_ike_sa(who: str) -> None:
    """Its answer comes on an IKE SA whose children the successor has by then: they follow all the same."""
    pair = made().up()
    pair.a.addresses = (NEW, ADDRESS_A)
    pair.a.endpoint.address_changed(ADDRESS_A, NEW, pair.now)
    side = pair.a if who == "a" else pair.b
    side.endpoint.rekey_ike(side.ikes[0], pair.now)
    pair.run(100.0)
    assert pair.a.rekeyed and pair.b.rekeyed
    pair.check_children()
    assert esp_goes_to(pair) == {NEW}
    # And what is made from now on is there, too.
    pair.b.endpoint.rekey_child(next(iter(pair.b.children)), pair.now)
    pair.b.endpoint.rekey_ike(pair.b.ikes[0], pair.now)
    pair.run(100.0)
    pair.check_children()
    assert esp_goes_to(pair) == {NEW}


def no_nats_allowed(path: PeerPath) -> NotifyPayload:
    """What a peer says that takes its datagram to go by `path`."""
    ports = path.local_port.to_bytes(2, "big") + path.remote_port.to_bytes(2, "big")
    return NotifyPayload(type=NotifyType.NO_NATS_ALLOWED, data=path.local.packed + path.remote.packed + ports)


@pytest.mark.parametrize("exchange", [Exchange.IKE_AUTH, Exchange.INFORMATIONAL])
@pytest.mark.parametrize("there", [True, False])
def test_a_peer_that_allows_no_nat(there: bool, exchange: Exchange, monkeypatch: pytest.MonkeyPatch) -> None:
    """RFC 4555 section 3.9: where it says that it is must be where its datagram comes from."""
    pair, seal = made(), send.seal

    def said(sa: Any, message: Any, *rest: Any, response: bool) -> Any:
        if message.exchange == exchange and not response and sa.host is pair.a.endpoint:
            path = sa.path if there else replace(sa.path, local=NAT)
            message.add(no_nats_allowed(path))
        return seal(sa, message, *rest, response=response)

    monkeypatch.setattr(send, "seal", said)
    pair.initiate()
    pair.run()
    if exchange == Exchange.INFORMATIONAL:
        move(pair, pair.a)
        pair.run()
        assert bool(pair.b.of(PathChanged)) == bool(pair.a.of(PathChanged)) == there
    else:
        assert bool(pair.a.established) == bool(pair.b.established) == there
    assert there or any("UNEXPECTED_NAT_DETECTED" in text for text in (*pair.a.notes, *pair.a.failures))


def test_two_moves_at_once_end_at_the_last() -> None:
    pair = made().up()
    third = ip_address("192.0.2.8")
    move(pair, pair.a)
    move(pair, pair.a, third)
    pair.run(30.0)
    assert pair.b.of(PathChanged)[-1].path.remote == third
    assert pair.a.of(PathChanged)[-1].path.local == third
    assert pair.a.endpoint.snapshot()[0].path.local == third


def test_traffic_moves_only_after_the_new_way_is_proven() -> None:
    """RFC 4555 section 3.7: an answer to COOKIE2 must come before packets go to a new address."""
    pair = made().up()
    count = len(pair.carried)
    # B's answer to the update arrives, its COOKIE2 does not.
    pair.wire.drop = lambda number, datagram: number >= count + 2
    move(pair, pair.a)
    pair.run(20.0)
    assert pair.a.of(PathChanged)
    assert not pair.b.of(PathChanged)
    pair.wire.drop = lambda number, datagram: False
    pair.run(60.0)
    assert pair.b.of(PathChanged)


@pytest.mark.parametrize("given", ["none", "another"])
def test_a_peer_that_does_not_give_the_cookie_back(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """RFC 4555 section 3.7: the IKE SA is closed; no packet has gone to the new address."""
    pair = made().up()
    honest = mobike.answer

    def answer(sa: IkeSa, request: Incoming, now: float) -> list[Payload]:
        reply = honest(sa, request, now)
        kept = [each for each in reply if getattr(each, "type", None) != NotifyType.COOKIE2]
        if len(kept) < len(reply) and given == "another":
            kept.append(NotifyPayload(type=NotifyType.COOKIE2, data=bytes(16)))
        return kept

    monkeypatch.setattr(mobike, "answer", answer)
    move(pair, pair.a)
    pair.run()
    assert not pair.b.of(PathChanged)
    [gone] = pair.b.of(IkeClosed)
    assert gone.failure is not None
    assert gone.failure.text == f"the answer from {NEW} has not the COOKIE2 that was sent there, but {given}"
    assert not pair.b.endpoint.snapshot()


def test_a_child_that_is_made_before_the_new_way_is_proven() -> None:
    """It stays where the others are: no peer has ESP sent to an address that it does not have."""
    pair = made().up()
    pair.wire.drop = lambda number, datagram: datagram.path.remote == NEW
    move(pair, pair.a)
    pair.run(0.5)
    [sa] = pair.a.endpoint.registry
    sa.queued.clear()  # a peer that lies does not wait for an answer that cannot come
    sa.active = sa.window.pending = None
    sa.window.next_request += 1
    assert sa.path.local == NEW
    sa.path = replace(sa.path, local=ADDRESS_A)
    pair.a.endpoint.rekey_child(next(iter(pair.a.children)), pair.now)
    pair.run(0.5)
    assert pair.b.endpoint.snapshot()[0].path.remote == NEW
    assert len(pair.b.children) == 2
    assert {child.path.remote for child in pair.b.children.values()} == {ADDRESS_A}
    [other] = pair.b.endpoint.registry
    assert dynamic_addresses(other) == ((ADDRESS_B,), (ADDRESS_A,))


def test_a_move_behind_a_nat_turns_encapsulation_on() -> None:
    pair = made().up()
    assert not next(iter(pair.a.children.values())).encapsulated

    def nat(datagram: Datagram) -> Datagram:
        path = datagram.path
        if path.local == NEW:
            path = replace(path, local=NAT, local_port=path.local_port + 10000)
        elif path.remote == NAT:
            path = replace(path, remote=NEW, remote_port=path.remote_port - 10000)
        return replace(datagram, path=path)

    pair.wire.translate = nat
    move(pair, pair.a)
    pair.run()
    assert pair.a.of(PathChanged)[-1].encapsulated
    theirs = pair.b.of(PathChanged)[-1]
    assert theirs.encapsulated and (theirs.path.remote, theirs.path.remote_port) == (NAT, 14500)
    pair.b.endpoint.rekey_child(next(iter(pair.b.children)), pair.now)
    pair.run()
    pair.check_children()


@pytest.mark.parametrize("mobike", [True, False])
def test_another_mapping_of_a_nat_is_followed(mobike: bool) -> None:
    pair = made(mobike=mobike, dpd_delay=20.0)
    offset = 10000

    def nat(datagram: Datagram) -> Datagram | None:
        path = datagram.path
        if path.local == ADDRESS_A:
            path = replace(path, local=NAT, local_port=path.local_port + offset)
        elif path.remote == NAT:
            if path.remote_port < offset or path.remote_port > offset + 5000:
                return None  # the mapping is gone
            path = replace(path, remote=ADDRESS_A, remote_port=path.remote_port - offset)
        return replace(datagram, path=path)

    pair.wire.translate = nat
    pair.up()
    assert pair.b.endpoint.snapshot()[0].path.remote_port == 14500
    offset = 20000
    pair.run(100.0)
    assert pair.b.of(PathChanged)[-1].path.remote_port == 24500
    assert not pair.a.closed and not pair.b.closed
    pair.b.endpoint.rekey_child(next(iter(pair.b.children)), pair.now)
    pair.run()
    pair.check_children()


def test_without_mobike_the_peer_without_nat_does_not_follow() -> None:
    """So there is a new IKE SA, with all children, and the peer lets the old one go."""
    pair = made(mobike=False).up()
    move(pair, pair.a)
    pair.run()
    assert not pair.b.of(PathChanged)
    assert pair.a.closed[0].failure is not None and pair.a.closed[0].failure.code == "address_lost"
    assert len(pair.a.ikes) == len(pair.b.ikes) == 1
    pair.check_children()
    assert next(iter(pair.b.children.values())).path.remote == NEW


def test_another_family_needs_an_address_that_the_peer_told() -> None:
    pair = made().up()
    new, other = ip_address("2001:db8::1"), ip_address("2001:db8::2")
    move(pair, pair.a, new)
    pair.run(1.0)
    assert not pair.a.of(PathChanged)
    (sa,) = pair.a.endpoint.registry
    sa.peer_addresses = (other,)
    pair.b.addresses = (*pair.b.addresses, other)
    pair.a.endpoint.address_changed(ADDRESS_A, new, pair.now)
    pair.run()
    assert (pair.a.of(PathChanged)[0].path.local, pair.a.of(PathChanged)[0].path.remote) == (new, other)
    assert pair.b.of(PathChanged)[0].path.remote == new
