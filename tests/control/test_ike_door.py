"""How much one sender may send: a forger of its address takes nothing from a peer, and a loud host only from itself."""

from __future__ import annotations

import struct
from collections import Counter

from control.ike.events import PeerPath
from control.ike.numbers import Exchange, NotifyType
from control.ike.v2.contacts import INITIATOR
from control.ike.v2.tasks.dpd import Liveness
from control.ike_door import DROP, Door
from control.net.limiter import BURST
from tests.control.ike.pair import ADDRESS_A, Pair

A = (str(ADDRESS_A), 500)
ALL = int(BURST)


def forged(exchange: int = Exchange.INFORMATIONAL, responder: bytes = b"\x02" * 8, size: int = 28) -> bytes:
    """A header and zeros, as anyone can send them."""
    head = b"\x01" * 8 + responder + bytes((0, 0x20, exchange, INITIATOR))
    return head + struct.pack(">II", 0, size) + bytes(size - 28)


def flood(door: Door, data: bytes, now: float, count: int = 2 * ALL) -> Counter[bytes | None]:
    """What becomes of a datagram that comes as often as that in no time, from A's address."""
    return Counter(door.answer(data, A, now) for _ in range(count))


def liveness(pair: Pair) -> bytes:
    """A datagram that only A can send."""
    [sa] = pair.a.endpoint.registry
    pair.a.endpoint.act(sa, pair.now, lambda: sa.queue(Liveness(), pair.now))
    [datagram] = pair.a.endpoint.datagrams_to_send()
    return datagram.data


def test_forged_headers_take_nothing_from_an_ike_sa() -> None:
    """What names no IKE SA counts for the address; the peer's own datagrams all pass."""
    pair = Pair().up()
    door = Door(pair.b.endpoint)
    assert flood(door, forged(), pair.now) == {None: ALL, DROP: ALL}
    assert flood(door, forged()[:20], pair.now) == {DROP: 2 * ALL}
    assert door.refused == 3 * ALL
    assert flood(door, liveness(pair), pair.now, ALL) == {None: ALL}


def test_an_ike_sa_has_a_limit_of_its_own() -> None:
    """Who repeats its messages without end is cut off, and whoever else is at its address is not."""
    pair = Pair().up()
    door = Door(pair.b.endpoint)
    assert flood(door, liveness(pair), pair.now) == {None: ALL, DROP: ALL}
    assert flood(door, forged(), pair.now, ALL) == {None: ALL}


def test_a_cookie_opens_the_door_for_a_real_peer() -> None:
    """A connects while its address is flooded, whenever one of its datagrams comes, by all that a forger can make."""
    pair = Pair()
    endpoint = pair.b.endpoint
    door, take = Door(endpoint), endpoint.receive_datagram
    begun: list[bytes] = []

    def through(data: bytes, path: PeerPath, now: float) -> None:
        for each in (forged(), forged(Exchange.IKE_SA_INIT, bytes(8), 300), *begun):
            assert flood(door, each, now, ALL + 1)[None] <= ALL
        answer = door.answer(data, (path.remote_text, path.remote_port), now)
        if answer is None:
            take(data, path, now)
            return
        assert answer[36 - 2 : 36] == NotifyType.COOKIE.to_bytes(2, "big")
        begun.append(data)  # a forger may have made this very message
        pair.a.endpoint.receive_datagram(
            answer,
            PeerPath(
                local=path.remote, local_port=path.remote_port, remote=path.local, remote_port=path.local_port
            ),
            now,
        )

    endpoint.receive_datagram = through  # type: ignore[method-assign]
    pair.up()
    assert len(begun) == 1 and endpoint.counters["cookies"] > ALL
    pair.check_children()


def test_a_good_cookie_is_no_way_around_the_limit() -> None:
    """Who shows where it is, and goes on sending, is cut off as well."""
    pair = Pair()
    door = Door(pair.b.endpoint)
    flood(door, forged(), pair.now)
    pair.initiate()
    first = pair.carried[-1].data
    cookie = door.answer(first, A, pair.now)
    assert cookie
    answer = pair.carried[-1].path
    pair.a.endpoint.receive_datagram(cookie, answer, pair.now)
    pair.collect()
    proven = pair.carried[-1].data
    assert len(proven) > len(first)
    assert flood(door, proven, pair.now) == {None: ALL, DROP: ALL}
    elsewhere = ("192.0.2.99", 500)
    assert door.answer(proven, elsewhere, pair.now) is None  # nobody has sent from there yet
