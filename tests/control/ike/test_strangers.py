"""Datagrams that belong to no IKE SA: each is counted under what it is, and none leaves anything behind."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from control.ike.events import PeerPath
from control.ike.numbers import Exchange
from control.ike.v2.contacts import COUNTERS, INITIATOR, MAX_INIT
from tests.control.ike.pair import ADDRESS_A, ADDRESS_B, Pair
from tests.rules.cython_source import ROOT

PATH = PeerPath(local=ADDRESS_B, local_port=500, remote=ADDRESS_A, remote_port=500)
OURS, THEIRS = b"\x01" * 8, b"\x02" * 8


def message(
    initiator: bytes = THEIRS,
    responder: bytes = bytes(8),
    *,
    version: int = 0x20,
    exchange: int = Exchange.IKE_SA_INIT,
    size: int = 28,
) -> bytes:
    """A header and zeros, `size` bytes."""
    head = initiator + responder + bytes((0, version, exchange, INITIATOR)) + struct.pack(">II", 0, size)
    return head + bytes(size - 28)


def of_another_peer(pair: Pair) -> bytes:
    """B's SPI of an IKE SA that is there, beside one that is not A's."""
    (sa,) = pair.b.endpoint.registry
    return message(THEIRS, sa.my_spi, exchange=Exchange.INFORMATIONAL)


@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("short", lambda pair: message()[:27]),
        ("version", lambda pair: message(version=0x10)),
        ("version", lambda pair: message(version=0x30)),
        ("unknown_spi", lambda pair: message(THEIRS, OURS, exchange=Exchange.INFORMATIONAL)),
        ("long", lambda pair: message(size=MAX_INIT + 1)),
        ("refused_init", lambda pair: message()),
        ("foreign_spi", of_another_peer),
    ],
)
def test_counted(name: str, build: Callable[[Pair], bytes]) -> None:
    """By its name alone, and no IKE SA comes or goes."""
    pair = Pair().up()
    endpoint = pair.b.endpoint
    before, stood = dict(endpoint.counters), pair.b.ikes
    endpoint.receive_datagram(build(pair), PATH, pair.now)
    assert {
        each: count - before[each] for each, count in endpoint.counters.items() if count != before[each]
    } == {name: 1}
    assert pair.b.ikes == stood


def test_every_counter_is_explained() -> None:
    """The table of the status document says what each is; none is counted that is not shown from the start."""
    text = (ROOT / "docs" / "operations.md").read_text()
    assert not [name for name in COUNTERS if f"`{name}`" not in text]
    sources = "\n".join(path.read_text() for path in (ROOT / "control" / "ike").rglob("*.py"))
    for part in sources.split('counters["')[1:]:
        assert part.partition('"')[0] in COUNTERS
