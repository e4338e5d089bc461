"""A NAT's mapping changes while only ESP flows: the dataplane has seen it, and the endpoint follows, or asks first."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from control.ike.events import Datagram, PathChanged
from control.ike.numbers import Exchange
from control.ike.wire.header import parse_header
from tests.control.ike.pair import ADDRESS_A, ADDRESS_B, Pair
from tests.control.ike.test_mobike import NAT, made

OLD, NEW = 14500, 24500


class Behind:
    """A is behind a NAT, whose mapping of port 4500 is `offset` more; earlier ones may live on."""

    def __init__(self, **rest: Any) -> None:
        self.offset = 10000
        self.alive = {10000}
        rest.setdefault("dpd_delay", 0.0)
        self.pair = made(**rest)
        self.pair.wire.translate = self.translate
        self.pair.up()
        assert self.path == (NAT, OLD)

    def translate(self, datagram: Datagram) -> Datagram | None:
        """What the NAT makes of a datagram; None for one to a mapping that is no more."""
        path = datagram.path
        if path.local == ADDRESS_A:
            path = replace(path, local=NAT, local_port=path.local_port + self.offset)
        elif path.remote == NAT:
            offset = path.remote_port // 10000 * 10000
            if offset not in self.alive:
                return None
            path = replace(path, remote=ADDRESS_A, remote_port=path.remote_port - offset)
        return replace(datagram, path=path)

    def change(self, offset: int = 20000, *, old_lives: bool = False) -> None:
        """Another mapping."""
        self.offset = offset
        self.alive = {offset, *(self.alive if old_lives else ())}

    def seen(self, port: int = NEW, *, address: Any = NAT) -> None:
        """B's dataplane has had a packet of A's child from there."""
        self.pair.b.endpoint.source_seen(self.pair.b.ikes[0], address, port, self.pair.now)
        self.pair.collect()

    @property
    def path(self) -> tuple[Any, int]:
        """Where B takes A to be."""
        path = self.pair.b.endpoint.snapshot()[0].path
        return path.remote, path.remote_port

    @property
    def moves(self) -> list[int]:
        """Ports to which B's children went."""
        return [event.path.remote_port for event in self.pair.b.of(PathChanged)]


def requests_to(pair: Pair, port: int) -> int:
    """INFORMATIONAL messages that B has sent to a port of the NAT."""
    return sum(
        datagram.path.remote_port == port
        and not datagram.keepalive
        and parse_header(datagram.data)[0].exchange == Exchange.INFORMATIONAL
        for datagram in pair.carried
        if datagram.path.local == ADDRESS_B
    )


def test_without_mobike_what_was_authenticated_is_followed() -> None:
    """RFC 7296 section 2.23; nothing is asked, and nothing is sent."""
    behind = Behind(mobike=False)
    behind.change()
    sent = behind.pair.b.sent
    behind.seen()
    assert behind.moves == [NEW] and behind.path == (NAT, NEW)
    assert behind.pair.b.sent == sent
    behind.pair.b.endpoint.rekey_child(next(iter(behind.pair.b.children)), behind.pair.now)
    behind.pair.run()
    behind.pair.check_children()
    behind.seen()
    assert behind.moves == [NEW], "the same place is no news"


def test_with_mobike_the_peer_must_answer_there() -> None:
    behind = Behind()
    behind.change()
    behind.seen()
    assert behind.moves == [], "not before COOKIE2 is back (RFC 4555 section 3.7)"
    behind.pair.run()
    assert behind.moves == [NEW] and behind.path == (NAT, NEW)
    behind.pair.b.endpoint.rekey_ike(behind.pair.b.ikes[0], behind.pair.now)
    behind.pair.run()
    behind.pair.check_children()


def test_nobody_there_changes_nothing() -> None:
    """Packets that somebody sent on from elsewhere: the peer answers where it was, and lives on there."""
    behind = Behind()
    behind.seen(44500)
    behind.pair.run(200.0)
    assert requests_to(behind.pair, 44500) == 1
    assert behind.moves == [] and behind.path == (NAT, OLD)
    assert not behind.pair.b.closed and not behind.pair.a.closed
    behind.pair.b.endpoint.rekey_child(next(iter(behind.pair.b.children)), behind.pair.now)
    behind.pair.run()
    behind.pair.check_children()


def test_a_lost_probe_is_repeated_there() -> None:
    behind = Behind()
    behind.change()
    count = len(behind.pair.carried)
    behind.pair.wire.drop = lambda number, datagram: number == count
    behind.seen()
    behind.pair.run(60.0)
    assert behind.moves == [NEW]


def test_many_reports_make_one_probe() -> None:
    behind = Behind()
    for port in range(30000, 30010):
        behind.seen(port)
    assert sum(requests_to(behind.pair, port) for port in range(30000, 30010)) == 1


@pytest.mark.parametrize("mobike", [True, False])
def test_only_a_peer_behind_a_nat_is_followed(mobike: bool) -> None:
    """And none that finds us behind one (RFC 7296 section 2.23)."""
    behind = Behind(mobike=mobike)
    ike = behind.pair.a.ikes[0]
    behind.pair.a.endpoint.source_seen(ike, ADDRESS_B, 7777, behind.pair.now)
    behind.pair.run(30.0)
    assert behind.pair.a.of(PathChanged) == []
    plain = made(mobike=mobike).up()
    count = len(plain.carried)
    plain.b.endpoint.source_seen(plain.b.ikes[0], ADDRESS_A, 7777, plain.now)
    plain.run(1.0)
    assert plain.b.of(PathChanged) == [] and len(plain.carried) == count


def test_an_ike_sa_that_was_rekeyed_meanwhile_follows_all_the_same() -> None:
    behind = Behind(mobike=False)
    old = behind.pair.b.ikes[0]
    behind.pair.b.endpoint.rekey_ike(old, behind.pair.now)
    behind.pair.run(0.015)  # the answer is not here yet
    behind.change()
    behind.pair.b.endpoint.source_seen(old, NAT, NEW, behind.pair.now)
    behind.pair.run(60.0)
    assert behind.path == (NAT, NEW)
    behind.pair.b.endpoint.source_seen(987654, NAT, NEW, behind.pair.now)  # of one that is gone
