"""What times and refusals lead to: rekeying in time, expiry, trying again, setting up anew, closing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from control.ike.events import ChildClosed, ChildEstablished, ChildFailed, Closed, IkeFailed, Noted
from control.ike.numbers import Exchange
from control.ike.selectors import resolve
from control.ike.settings import Lifetime, StartAction
from control.ike.v2 import negotiate
from control.ike.v2.parts import Timer
from control.ike.v2.states import State
from control.ike.v2.task import Outgoing
from control.ike.v2.tasks import create_child, rekey_child, rekey_ike
from control.ike.v2.tasks.delete import DeleteIke
from tests.control.ike.pair import (
    ADDRESS_B,
    Pair,
    Side,
    child,
    connection_a,
    connection_b,
    esp,
    ike,
    mirror,
    network,
    psk,
)


def made(**rest: Any) -> Pair:
    return Pair(a=connection_a(**rest), b=connection_b(**rest)).up()


def with_child(**rest: Any) -> Pair:
    return made(children=(child(**rest),))


def mixed(ours: dict[str, Any], theirs: dict[str, Any]) -> Pair:
    """A child with other settings on B's side."""
    a = connection_a(children=(child(**ours),))
    b = mirror(connection_a(children=(child(**theirs),)), name="b-a")
    return Pair(a=a, b=b).up()


@pytest.fixture(params=["a", "b"])
def which(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def side_of(pair: Pair, which: str) -> Side:
    return pair.a if which == "a" else pair.b


def only(side: Side) -> int:
    (id,) = side.children
    return id


# Children


def test_a_child_is_rekeyed_before_it_expires() -> None:
    pair = mixed({"lifetime": Lifetime(rekey=100.0)}, {"lifetime": Lifetime(rekey=0.0)})
    first = only(pair.a)
    pair.run(89.0)
    assert only(pair.a) == first
    pair.run(15.0)
    assert only(pair.a) != first
    pair.check_children()
    pair.run(1000.0)
    assert len(pair.a.of(ChildEstablished)) > 9
    pair.check_children()
    assert all(event.why is Closed.REPLACED for event in pair.a.of(ChildClosed))


def test_both_rekey_at_their_times_for_days() -> None:
    pair = with_child(lifetime=Lifetime(rekey=3600.0, random=0.0))
    pair.run(86400.0 * 2)
    pair.check_children()
    assert len(pair.a.ikes) == len(pair.b.ikes) == 1
    assert len(pair.a.rekeyed) >= 10
    assert not pair.a.failures and not pair.b.failures


def test_a_child_that_is_not_rekeyed_expires_on_both_sides() -> None:
    pair = mixed({"lifetime": Lifetime(rekey=0.0, life=50.0)}, {"lifetime": Lifetime(rekey=0.0)})
    pair.run(60.0)
    assert not pair.a.children and not pair.b.children
    assert pair.a.of(ChildClosed)[0].why is Closed.EXPIRED
    assert pair.b.of(ChildClosed)[0].why is Closed.PEER


def test_what_the_dataplane_counted_rekeys_and_closes(which: str) -> None:
    pair = made()
    side = side_of(pair, which)
    first = only(side)
    side.endpoint.child_expired(first, False, pair.now)
    pair.run()
    second = only(side)
    assert second != first
    side.endpoint.child_expired(second, True, pair.now)
    pair.run()
    assert not pair.a.children and not pair.b.children
    assert side.of(ChildClosed)[-1].why is Closed.EXPIRED


def test_another_group_is_taken_when_the_peer_wants_it(which: str) -> None:
    ours = {"proposals": esp("aes128gcm16-x25519-ecp256")}
    theirs = {"proposals": esp("aes128gcm16-ecp256")}
    pair = mixed(ours, theirs) if which == "a" else mixed(theirs, ours)
    side = side_of(pair, which)
    side.endpoint.rekey_child(only(side), pair.now)
    pair.run()
    pair.check_children()
    assert next(iter(side.children.values())).suite_name == "aes128gcm16-ecp256"


def test_a_rekeying_that_is_refused_is_told_and_tried_again_until_the_end() -> None:
    """IKE_AUTH does not negotiate key exchanges, so a difference shows only here."""
    pair = mixed(
        {"proposals": esp("aes128gcm16-x25519"), "lifetime": Lifetime(rekey=100.0, life=200.0, random=1.0)},
        {"proposals": esp("aes128gcm16-ecp256")},
    )
    pair.run(110.0)
    pair.check_children()
    failures = pair.a.of(ChildFailed)
    assert failures and failures[0].failure.code == "no_proposal_chosen"
    assert "NO_PROPOSAL_CHOSEN" in str(failures[0].failure)
    assert any("aes128gcm16-x25519" in text and "ecp256" in text for text in pair.b.notes), pair.b.notes
    pair.run(100.0)
    assert len(pair.a.of(ChildFailed)) > 2
    assert not pair.a.children and not pair.b.children


def test_a_child_that_the_peer_forgot_is_made_anew() -> None:
    pair = made()
    (sa,) = pair.b.endpoint.registry
    (forgotten,) = sa.children.values()
    sa.close_child(forgotten, Closed.FAILED)
    pair.a.endpoint.rekey_child(only(pair.a), pair.now)
    pair.run()
    pair.check_children()
    assert pair.a.of(ChildClosed)[0].failure.code == "child_sa_not_found"  # type: ignore[union-attr]


def test_a_second_child_is_made_on_the_same_ike_sa() -> None:
    settings = child(), child("other", "10.3.0.0/16", "10.4.0.0/16")
    pair = made(children=settings)
    pair.initiate("other")
    pair.run()
    pair.check_children(2)
    assert len(pair.a.ikes) == 1
    pair.initiate("other")
    pair.initiate("other")
    pair.run()
    pair.check_children(2)


def test_a_child_whose_selectors_do_not_fit_is_refused_with_both_views() -> None:
    settings = child(), child("other", "10.3.0.0/16", "10.4.0.0/16")
    a = connection_a(children=settings)
    b = mirror(connection_a(children=settings[:1]), name="b-a")
    pair = Pair(a=a, b=b).up()
    pair.initiate("other")
    pair.run()
    pair.check_children(1)
    assert pair.a.of(ChildFailed)[0].failure.code == "ts_unacceptable"
    assert "10.3.0.0/16 === 10.4.0.0/16" in pair.a.failures[0]
    assert any("10.1.0.0/16" in text and "10.3.0.0/16" in text for text in pair.b.notes)


@pytest.mark.parametrize("proposals", ["aes128gcm16", "aes128gcm16-x25519-ke1_mlkem768"])
def test_an_answer_that_was_not_asked_for_is_taken_back(
    which: str, proposals: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The responder has made a child that the initiator does not accept: it goes, and the old one is kept."""
    pair = with_child(proposals=esp(proposals))
    side = side_of(pair, which)
    first = only(side)
    right = negotiate.add_answer

    def wrong(message: Outgoing, agreed: negotiate.Agreed) -> None:
        elsewhere = resolve([network("172.16.0.0/16")], ())
        right(message, replace(agreed, selectors=replace(agreed.selectors, local=elsewhere)))

    monkeypatch.setattr(negotiate, "add_answer", wrong)
    side.endpoint.rekey_child(first, pair.now)
    pair.run(5.0)
    assert only(side) == first and len(pair.other(side).children) == 1
    pair.check_children()
    assert side.of(ChildFailed)[0].failure.code == "ts_unacceptable"
    monkeypatch.setattr(negotiate, "add_answer", right)
    pair.run(60.0)
    assert only(side) != first
    pair.check_children()


def test_a_peer_makes_no_children_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(create_child, "MAX_CHILDREN", 2)
    settings = tuple(child(f"net{n}", f"10.{n}.0.0/16", f"10.{n + 100}.0.0/16") for n in range(3))
    pair = Pair(a=connection_a(children=settings), b=connection_b(children=settings)).up("net0")
    for each in settings:
        pair.initiate(each.name)
        pair.run()
    pair.check_children(2)
    assert pair.a.of(ChildFailed)[0].failure.code == "no_additional_sas"
    assert any("want 2 or fewer" in note for note in pair.b.notes)


# Closing


def test_a_child_is_closed_by_either_side(which: str) -> None:
    pair = made()
    side = side_of(pair, which)
    side.endpoint.terminate_child(only(side), pair.now)
    pair.run()
    assert not pair.a.children and not pair.b.children
    assert side.of(ChildClosed)[0].why is Closed.LOCAL
    assert pair.other(side).of(ChildClosed)[0].why is Closed.PEER
    assert len(pair.a.ikes) == len(pair.b.ikes) == 1
    assert not pair.a.endpoint.registry.child_spis and not pair.b.endpoint.registry.child_spis


def test_the_ike_sa_is_closed_by_either_side(which: str) -> None:
    pair = made()
    side = side_of(pair, which)
    side.endpoint.terminate_ike(side.ikes[0], pair.now)
    pair.run()
    assert not pair.a.ikes and not pair.b.ikes
    assert side.closed[0].why is Closed.LOCAL
    assert pair.other(side).closed[0].why is Closed.PEER
    assert not pair.a.children and not pair.b.children


def test_an_ike_sa_is_closed_while_its_peer_answers() -> None:
    """The peer has an IKE SA, and a child that it would send into until it misses us."""
    pair = Pair(a=connection_a(), b=connection_b())
    pair.wire.drop = lambda number, datagram: (
        datagram.path.local == ADDRESS_B and datagram.data[18] == Exchange.IKE_AUTH
    )
    pair.initiate()
    pair.run(1.0)
    assert pair.b.established
    pair.a.endpoint.terminate_ike(pair.a.ikes[0], pair.now)
    pair.run(1.0)
    assert not pair.a.ikes and not pair.b.ikes
    assert not pair.b.children and [event.why for event in pair.b.closed] == [Closed.PEER]


def test_a_lost_answer_to_the_last_delete_is_given_again() -> None:
    pair = made()
    count = len(pair.carried)
    pair.wire.drop = lambda number, datagram: number == count + 1
    pair.a.endpoint.terminate_ike(pair.a.ikes[0], pair.now)
    pair.run(10.0)
    assert pair.a.closed[0].why is Closed.LOCAL and pair.b.closed[0].why is Closed.PEER
    assert not pair.a.ikes and not pair.b.ikes


def test_close_action_start_sets_a_closed_child_up_again() -> None:
    pair = mixed({"close_action": StartAction.START}, {})
    pair.b.endpoint.terminate_child(only(pair.b), pair.now)
    pair.run()
    pair.check_children()
    assert len(pair.a.ikes) == 1
    pair.b.endpoint.terminate_ike(pair.b.ikes[0], pair.now)
    pair.run()
    pair.check_children()
    assert len(pair.a.established) == 2
    pair.a.endpoint.terminate_child(only(pair.a), pair.now)
    pair.run()
    assert not pair.a.children


SEVERAL = "-x25519-ke1_mlkem768"  # IKE_FOLLOWUP_KE


@pytest.mark.parametrize("what", ["child", "ike", "child crossing", "ike crossing"])
def test_what_the_peer_leaves_half_done_is_let_go(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rekeying without its IKE_FOLLOWUP_KE is over after a while, and ours has its turn (RFC 9370 2.2.4)."""
    lifetime = Lifetime(rekey=300.0, life=500.0, random=1.0)
    rest = {"proposals": ike(f"aes128gcm16-prfsha256{SEVERAL}"), "over_time": 100.0, "random_time": 1.0}
    theirs = connection_a(
        children=(child(proposals=esp("aes128gcm16" + SEVERAL), lifetime=lifetime),), rekey_time=300.0, **rest
    )
    ours = replace(
        theirs, rekey_time=0.0, children=(replace(theirs.children[0], lifetime=Lifetime(rekey=0)),)
    )
    pair = Pair(a=ours, b=mirror(theirs, name="b-a")).up()
    [a], [b] = pair.a.endpoint.registry, pair.b.endpoint.registry
    for kind in (rekey_child.RekeyChild, rekey_ike.RekeyIke):

        def not_of_a(task: Any, sa: Any, now: float, goes_on: Any = kind.goes_on) -> bool:
            return not task.rounds.open if sa is a else goes_on(task, sa, now)

        monkeypatch.setattr(kind, "goes_on", not_of_a)
    # Of two that cross it is B's own that gives way, to what A leaves undone.
    monkeypatch.setattr(create_child.KeyedTask, "has_lower_nonce", lambda act, rival: True)
    for side in pair.sides if "crossing" in what else (pair.a,):
        if "child" in what:
            side.endpoint.rekey_child(only(side), pair.now)
        else:
            side.endpoint.rekey_ike(side.ikes[0], pair.now)
    pair.run(2.0)
    assert len(b.followups) == 1
    pair.run(70.0)
    assert not b.followups
    pair.run(400.0)
    pair.check_children()
    assert pair.b.rekeyed and len(pair.b.of(ChildEstablished)) > 1
    assert {event.why for event in pair.b.of(ChildClosed)} == {Closed.REPLACED}
    assert set(pair.b.endpoint.registry.child_spis) == {each.spi_in for each in pair.b.children.values()}


# The IKE SA


def test_the_ike_sa_is_rekeyed_in_time_and_keeps_what_it_had(which: str) -> None:
    a, b = connection_a(rekey_time=500.0), connection_b(rekey_time=0.0)
    if which == "b":
        a, b = replace(a, rekey_time=0.0), replace(b, rekey_time=500.0)
    pair = Pair(a=a, b=b).up()
    side = side_of(pair, which)
    before = pair.a.endpoint.snapshot()[0]
    pair.run(600.0)
    after = pair.a.endpoint.snapshot()[0]
    assert len(side.rekeyed) == 1 and side.rekeyed[0].new == side.ikes[0]
    assert after.spi_initiator != before.spi_initiator and after.initiator == (which == "a")
    assert (after.local_id, after.remote_id, after.path) == (before.local_id, before.remote_id, before.path)
    assert [each.sa.id for each in after.children] == [each.sa.id for each in before.children]
    assert not pair.a.closed and not pair.b.closed
    pair.a.endpoint.rekey_child(only(pair.a), pair.now)
    pair.run()
    pair.check_children()


def test_the_ike_sa_takes_another_group_when_the_peer_wants_it(which: str) -> None:
    both = ike("aes128gcm16-prfsha256-x25519-ecp256")
    pair = made(proposals=both)
    side = side_of(pair, which)
    (sa,) = pair.other(side).endpoint.registry
    sa.connection = replace(sa.connection, proposals=ike("aes128gcm16-prfsha256-ecp256"))
    side.endpoint.rekey_ike(side.ikes[0], pair.now)
    pair.run()
    assert side.rekeyed[0].suite_name == "aes128gcm16-prfsha256-ecp256"
    assert len(pair.a.ikes) == len(pair.b.ikes) == 1


def test_rekeying_does_not_put_off_reauthentication() -> None:
    pair = made(rekey_time=300.0, reauth_time=1000.0, random_time=1.0)
    due = pair.a.endpoint.snapshot()[0].reauth_at
    assert due
    pair.run(500.0)
    assert pair.a.rekeyed
    assert pair.a.endpoint.snapshot()[0].reauth_at == due


def test_an_ike_sa_whose_rekeying_fails_expires_and_says_so() -> None:
    a = connection_a(rekey_time=100.0, over_time=60.0, random_time=1.0)
    b = connection_b(rekey_time=0.0)
    pair = Pair(a=a, b=b).up()
    (sa,) = pair.b.endpoint.registry
    sa.connection = replace(sa.connection, proposals=ike("aes256gcm16-prfsha384-ecp384"))
    pair.run(300.0)
    assert pair.a.closed[0].why is Closed.EXPIRED
    assert not pair.a.ikes and not pair.b.ikes
    warnings = [event.text for event in pair.a.of(Noted) if event.level == "warning"]
    assert any("NO_PROPOSAL_CHOSEN" in text and "aes128gcm16" in text for text in warnings)


def test_a_reauthentication_that_fails_is_tried_again() -> None:
    """The peer may be unable for a while: the old IKE SA's time is not over yet."""
    a = connection_a(reauth_time=300.0, over_time=100.0, random_time=1.0, rekey_time=0.0)
    pair = Pair(a=a, b=connection_b()).up()
    first = pair.a.ikes
    pair.b.endpoint.set_credentials(psk(b"another"))
    pair.run(330.0)
    assert pair.a.of(IkeFailed) and pair.a.ikes == first
    pair.b.endpoint.set_credentials(psk())
    pair.run(30.0)
    pair.check_children()
    assert [event.why for event in pair.a.closed] == [Closed.REPLACED]
    assert len(pair.a.ikes) == len(pair.b.ikes) == 1


@pytest.mark.parametrize("after", [0.0, 0.005, 0.015, 0.025, 0.035, 0.045, 0.055])
def test_a_reauthentication_that_crosses_a_rekeying_leaves_one_ike_sa(after: float) -> None:
    """It is the old one's successor that goes then, and whose children have others in their places."""
    children = (child(), child("two", "10.3.0.0/16", "10.4.0.0/16"))
    pair = made(children=children)
    pair.initiate("two")
    pair.run()
    pair.a.endpoint.reauthenticate_ike(pair.a.ikes[0], pair.now)
    pair.run(after)
    pair.b.endpoint.rekey_ike(pair.b.ikes[0], pair.now)
    pair.run(60.0)
    assert len(pair.a.ikes) == len(pair.b.ikes) == 1
    assert len(pair.a.established) == 2
    pair.check_children(2)
    assert {event.why for event in pair.a.of(ChildClosed)} == {Closed.REPLACED}


def test_close_action_start_sets_up_again_what_expired_with_its_ike_sa() -> None:
    children = (child(close_action=StartAction.START), child("two", "10.3.0.0/16", "10.4.0.0/16"))
    rest = {"over_time": 30.0, "random_time": 1.0, "rekey_time": 100.0, "children": children}
    b = connection_b(rekey_time=0.0, children=(child(), children[1]))
    pair = Pair(a=connection_a(**rest), b=b).up()
    pair.initiate("two")
    pair.run()
    (sa,) = pair.b.endpoint.registry
    sa.connection = replace(sa.connection, proposals=ike("aes256gcm16-prfsha384-ecp384"))
    pair.run(140.0)
    assert pair.a.closed[0].why is Closed.EXPIRED
    pair.check_children()
    assert [each.settings.name for each in pair.a.children.values()] == ["net"]


@pytest.mark.parametrize("who", ["a", "b"])
def test_a_rekeying_that_is_done_as_the_ike_sa_expires_saves_it(who: str) -> None:
    """The answer comes within the grace that the delete of what has expired has: it does not hit the successor."""
    asks = 30.0 if who == "b" else 0.0
    a = connection_a(rekey_time=100.0, over_time=10.0, random_time=0.001, dpd_delay=asks)
    pair = Pair(a=a, b=connection_b(rekey_time=0.0)).up()
    first = pair.a.endpoint.snapshot()[0].id
    pair.run(80.0)
    pair.wire.loss = (
        1.0  # the request that is under way, whatever it is, has no answer until it is nearly too late
    )
    (sa,) = pair.a.endpoint.registry
    if who == "b":
        sa.timers.pop(Timer.REKEY)  # what is under way is the question whether B lives
        pair.b.endpoint.rekey_ike(pair.b.ikes[0], pair.now)
    pair.run(sa.timers[Timer.EXPIRE] - pair.now + 0.5)
    assert sa.has_task(DeleteIke)
    pair.wire.loss = 0.0
    for side in pair.sides:
        for each in side.endpoint.registry:
            if each.window.pending is not None:
                each.window.pending.due = pair.now
                side.endpoint.schedule(each)
    pair.run(60.0)
    assert not pair.a.closed and not pair.b.closed
    assert pair.a.ikes != [first]
    pair.check_children()


def test_what_was_closed_by_us_is_not_set_up_again_when_its_time_comes() -> None:
    """Its delete stays unanswered until then."""
    a = connection_a(rekey_time=100.0, over_time=30.0, children=(child(close_action=StartAction.START),))
    pair = Pair(a=a, b=connection_b(rekey_time=0.0)).up()
    pair.wire.loss = 1.0
    pair.run(60.0)
    pair.a.endpoint.terminate_ike(pair.a.ikes[0], pair.now)
    pair.run(100.0)
    assert [event.why for event in pair.a.closed] == [Closed.LOCAL]
    assert not pair.a.ikes


def test_a_peer_that_never_deletes_the_old_ike_sa_does_not_keep_it() -> None:
    """The rekeying side falls silent between the answer and its delete."""
    pair = made()
    old = pair.b.endpoint.snapshot()[0].id
    count = len(pair.carried)
    pair.wire.drop = lambda number, datagram: number >= count + 2
    pair.a.endpoint.rekey_ike(pair.a.ikes[0], pair.now)
    pair.run()
    assert len(pair.b.ikes) == 2
    pair.run(70.0)
    assert old not in pair.b.ikes and len(pair.b.ikes) == 1
    assert not pair.b.closed
    assert all(sa.state is State.ESTABLISHED for sa in pair.b.endpoint.registry)
