"""Is the peer there? Questions after silence, and what is done when no answer comes (RFC 7296 section 2.4)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from control.ike.events import ChildWanted, Closed
from control.ike.settings import DpdAction, Retransmission
from tests.control.ike.pair import ADDRESS_A, Pair, child, connection_a, connection_b


def made(**rest: Any) -> Pair:
    """Only A asks."""
    return Pair(a=connection_a(**rest), b=connection_b()).up()


def cut(pair: Pair) -> None:
    """Nothing arrives any more."""
    pair.wire.drop = lambda number, datagram: True


def test_a_silent_peer_is_asked_and_its_answer_is_enough() -> None:
    pair = made(dpd_delay=30.0)
    sent = pair.a.sent, pair.b.sent
    pair.run(100.0)
    assert (pair.a.sent - sent[0], pair.b.sent - sent[1]) == (3, 3)
    assert not pair.a.closed


def test_traffic_of_a_child_is_an_answer() -> None:
    pair = made(dpd_delay=30.0)
    sent = pair.a.sent
    for _ in range(20):
        pair.run(10.0)
        pair.a.endpoint.traffic_seen(pair.a.ikes[0], pair.now)
    assert pair.a.sent == sent
    pair.run(31.0)
    assert pair.a.sent == sent + 1


def test_no_question_without_a_delay() -> None:
    pair = made(dpd_delay=0.0)
    sent = pair.a.sent
    pair.run(1000.0)
    assert pair.a.sent == sent


def test_a_dead_peer_is_given_up_with_what_was_done() -> None:
    pair = made(dpd_delay=30.0, retransmission=Retransmission(timeout=2.0, base=2.0, tries=3))
    cut(pair)
    pair.run(31.0)
    pair.a.endpoint.path_error(pair.a.endpoint.snapshot()[0].path, "port unreachable", pair.now)
    pair.run(40.0)
    (closed,) = pair.a.closed
    assert closed.why is Closed.PEER_DEAD and closed.failure is not None
    assert closed.failure.code == "peer_silent"
    assert "192.0.2.2:4500, sent 4 times in 30 s" in closed.failure.text
    assert "port unreachable" in closed.failure.text
    assert not pair.a.ikes and not pair.a.children


def test_dpd_action_restart_begins_anew() -> None:
    again = child(dpd_action=DpdAction.RESTART)
    pair = made(dpd_delay=30.0, children=(again,))
    cut(pair)
    pair.run(200.0)
    assert pair.a.closed[0].why is Closed.PEER_DEAD
    assert pair.a.endpoint.snapshot()[0].state == "connecting"
    pair.wire.drop = lambda number, datagram: False
    pair.run(60.0)
    assert len(pair.a.established) == 2
    assert len(pair.a.sending) == 1


def test_what_cannot_be_set_up_anew_is_told() -> None:
    """The peer came from anywhere, so there is no address to go to."""
    again = child(dpd_action=DpdAction.RESTART)
    b = replace(connection_b(dpd_delay=30.0, children=(again,)), remote_addresses=())
    pair = Pair(a=connection_a(), b=b).up()
    cut(pair)
    pair.run(300.0)
    assert pair.b.closed[0].why is Closed.PEER_DEAD
    assert not pair.b.ikes
    assert any("is not set up anew" in note and "no address of the peer" in note for note in pair.b.notes)
    assert not any("internal error" in note for note in pair.b.notes)


def test_what_has_no_way_to_its_peer_is_wanted_again() -> None:
    """The cable is out: whoever sees the routes is told, once, and initiates when there is one."""
    again = child(dpd_action=DpdAction.RESTART)
    pair = made(dpd_delay=30.0, children=(again,), local_addresses=())
    pair.a.addresses = ()
    pair.run(30.0 + 166.0)
    [wanted] = pair.a.of(ChildWanted)
    assert (wanted.connection, wanted.name) == ("a-b", "net") and "no address of ours" in wanted.reason
    assert pair.a.closed[0].why is Closed.PEER_DEAD and not pair.a.ikes
    pair.a.addresses = (ADDRESS_A,)
    pair.initiate()
    pair.run()
    assert len(pair.a.children) == 1


def test_a_request_under_way_is_the_question() -> None:
    pair = made(dpd_delay=5.0)
    cut(pair)
    pair.a.endpoint.rekey_child(next(iter(pair.a.children)), pair.now)
    pair.run(60.0)
    assert not [note for note in pair.a.notes if "INFORMATIONAL" in note]
    assert [note for note in pair.a.notes if "CREATE_CHILD_SA" in note]
