"""Child SAs for single workers (RFC 9611): as many as the initiator has workers, beside one that all may use."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from random import Random
from typing import Any

import pytest

from control.ike.events import ChildSa
from control.ike.numbers import NotifyType
from control.ike.settings import EndpointSettings, Lifetime, StartAction
from control.ike.v2.resources import MOST
from tests.control.ike.pair import Pair, Side, Wire, child, connection_a, connection_b


def made(
    workers_a: int,
    workers_b: int = 1,
    *,
    asks: bool = True,
    answers: bool = True,
    wire: Wire | None = None,
    **rest: Any,
) -> Pair:
    """A with so many workers, and B; who of them has `per_cpu_sas`."""
    return Pair(
        a=connection_a(children=(child(per_cpu_sas=asks, **rest),)),
        b=connection_b(children=(child(per_cpu_sas=answers, **rest),)),
        settings_a=EndpointSettings(workers=workers_a),
        settings_b=EndpointSettings(workers=workers_b),
        wire=wire,
    )


def resources(side: Side) -> list[int | None]:
    """What a side's children are bound to: None is the common one."""
    return sorted(
        (each.resource for each in side.sending.values()), key=lambda each: -1 if each is None else each
    )


def check(pair: Pair, workers: int) -> None:
    """One common child and one per worker, all with one another's keys and the same selectors."""
    pair.check_children(workers + 1)
    for side in pair.sides:
        assert resources(side) == [None, *range(workers)]
        assert all(each.shared for each in side.children.values())
        assert len({each.remote_selectors for each in side.children.values()}) == 1


def keys(side: Side) -> set[bytes]:
    """What a side's children encipher with."""
    return {each.encryption_key_out for each in side.sending.values()}


@pytest.mark.parametrize(("workers_a", "workers_b"), [(2, 2), (4, 2), (2, 4), (16, 1)])
def test_one_per_worker_of_the_initiator(workers_a: int, workers_b: int) -> None:
    pair = made(workers_a, workers_b).up()
    check(pair, workers_a)
    assert len(keys(pair.a)) == workers_a + 1


def test_with_one_worker_there_is_one_child() -> None:
    pair = made(1, 4).up()
    pair.check_children(1)
    assert resources(pair.a) == resources(pair.b) == [None]


@pytest.mark.parametrize(("asks", "answers"), [(True, False), (False, True), (False, False)])
def test_both_must_want_it(asks: bool, answers: bool) -> None:
    """A peer that does not know the notification ignores it (RFC 7296 section 3.10.1): one child, as ever."""
    pair = made(4, 4, asks=asks, answers=answers).up()
    pair.check_children(1)
    assert not any(each.shared for side in pair.sides for each in side.children.values())


def test_a_child_that_is_not_the_first_of_its_ike_sa() -> None:
    other = child("other", "10.3.0.0/16", "10.4.0.0/16", per_cpu_sas=True)
    pair = made(3)
    pair.a.endpoint.set_connections([replace(connection_a(), children=(child(), other))])
    b = connection_b(children=(child(), other))
    pair.b.endpoint.set_connections([b])
    pair.up()
    pair.check_children(1)
    pair.initiate("other")
    pair.run()
    pair.check_children(5)
    assert Counter(each.settings.name for each in pair.b.sending.values()) == {"net": 1, "other": 4}


def test_too_many_are_refused_by_name() -> None:
    """TS_MAX_QUEUE (section 5.2): the initiator goes on with what it has, and all that it has stays."""
    pair = made(4)
    pair.up()
    [sa] = pair.a.endpoint.registry
    from control.ike.v2.tasks.create_child import CreateChild

    settings = pair.a.endpoint.connections[0].children[0]
    for number in range(100, 100 + MOST):
        sa.queue(CreateChild(settings, initiator=True, resource=number), pair.now)
    pair.a.endpoint.schedule(sa)
    pair.run(30.0)
    assert len(pair.b.children) == len(pair.a.children) == MOST + 1
    assert any(
        f"{NotifyType.TS_MAX_QUEUE.name}" in note and f"has {MOST} SAs" in note for note in pair.a.notes
    )
    assert any("want 16 or fewer" in text for text in pair.b.failures)
    assert not pair.a.failures and not pair.a.closed and not pair.b.closed
    assert not sa.queued


@pytest.mark.parametrize("who", ["a", "b"])
def test_a_rekeyed_child_is_bound_as_before(who: str) -> None:
    pair = made(3).up()
    side = pair.a if who == "a" else pair.b
    before = keys(pair.a)
    for each in list(side.children):
        side.endpoint.rekey_child(each, pair.now)
        pair.run(15.0)
    check(pair, 3)
    assert not before & keys(pair.a)


def test_the_ike_sa_is_rekeyed_with_all() -> None:
    pair = made(2).up()
    pair.b.endpoint.rekey_ike(pair.b.ikes[0], pair.now)
    pair.run(30.0)
    check(pair, 2)


@pytest.mark.parametrize("who", ["a", "b"])
def test_a_worker_s_child_may_go_and_stays_away(who: str) -> None:
    """Section 3: a peer may close what it does not use; `close_action` is for the common child."""
    pair = made(3, close_action=StartAction.START).up()
    side = pair.a if who == "a" else pair.b
    gone = next(each.id for each in side.children.values() if each.resource == 1)
    side.endpoint.terminate_child(gone, pair.now)
    pair.run(20.0)
    assert resources(pair.a) == resources(pair.b) == [None, 0, 2]


def test_the_common_child_takes_the_others_along() -> None:
    pair = made(3).up()
    common = next(each.id for each in pair.a.children.values() if each.resource is None)
    pair.a.endpoint.terminate_child(common, pair.now)
    pair.run(20.0)
    assert not pair.a.children and not pair.b.children
    assert pair.a.ikes and pair.b.ikes
    pair.initiate()
    pair.run()
    check(pair, 3)


def test_a_dead_peer_s_children_come_back_once() -> None:
    from control.ike.settings import DpdAction

    pair = made(2, dpd_action=DpdAction.RESTART)
    pair.up()
    pair.wire.drop = lambda number, datagram: True
    pair.b.endpoint.registry.remove(next(iter(pair.b.endpoint.registry)), linger=False, now=pair.now)
    pair.a.endpoint.rekey_ike(pair.a.ikes[0], pair.now)
    pair.run(170.0)
    assert pair.a.closed
    pair.wire.drop = lambda number, datagram: False
    pair.run(300.0)
    assert resources(pair.a) == [None, 0, 1]


@pytest.mark.parametrize("seed", range(12))
def test_any_order_on_a_bad_wire_ends_with_one_of_each(seed: int) -> None:
    """Rekeyings of random children by either side, at once, on a wire that loses, repeats and reorders."""
    chance = Random(seed)
    wire = Wire(loss=0.15, repeat=0.1, delay=(0.01, 0.3))
    pair = made(3, 2, wire=wire, lifetime=Lifetime(rekey=0.0))
    pair.initiate()
    pair.run(200.0)
    for _ in range(6):
        for side in pair.sides:
            for each in chance.sample(sorted(side.children), k=min(2, len(side.children))):
                side.endpoint.rekey_child(each, pair.now)
        if chance.random() < 0.3:
            side = chance.choice(pair.sides)
            side.endpoint.rekey_ike(side.ikes[-1], pair.now)
        pair.run(chance.choice((0.05, 0.4, 2.0)))
    wire.loss = wire.repeat = 0.0
    pair.run(600.0)
    pair.check_children(4)
    for side in pair.sides:  # one that had to be made anew may have another number on either side
        found = resources(side)
        assert found[0] is None and len(set(found)) == 4


def test_what_a_peer_calls_its_resource_is_only_read() -> None:
    """Section 5.1: opaque, of any length; the responder counts its own workers."""
    from control.ike.wire.payloads import NotifyPayload

    pair = made(2)
    from control.ike.v2 import resources as module

    kept = module.info
    names = itertools.cycle((b"", b"cpu 7", bytes(300)))
    try:
        module.info = lambda resource: NotifyPayload(type=NotifyType.SA_RESOURCE_INFO, data=next(names))  # type: ignore[assignment]
        pair.up()
    finally:
        module.info = kept
    check(pair, 2)
    bound: list[ChildSa] = list(pair.b.children.values())
    assert sorted(each.resource for each in bound if each.resource is not None) == [0, 1]
