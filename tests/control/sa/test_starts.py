"""What starts, and how many at once; limits of what a child may carry; how many datagrams an address may send."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest

from control.ike.settings import Lifetime
from control.net.limiter import RateLimiter
from control.sa.lifetimes import SOFT_NUMBERS, Spent, spent
from control.sa.starts import ALL_AT_ONCE, AT_ONCE, Starts
from dataplane.api import SaTraffic

HUB, OTHER = IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2")


def test_few_start_at_once_to_one_peer() -> None:
    """The next begins when one is up, has failed, or has gone without a word."""
    starts = Starts()
    wanted = [("c", str(number)) for number in range(10)]
    for each in wanted + wanted:
        starts.want(each)
    assert starts.waiting() == wanted
    for number in range(AT_ONCE):
        assert starts.may_begin(HUB)
        starts.begun(wanted[number], number, HUB)
    assert not starts.may_begin(HUB) and starts.may_begin(OTHER)
    assert starts.done(2) and not starts.done(2) and starts.may_begin(HUB)
    starts.begun(wanted[4], 4, HUB)
    starts.begun(wanted[5], 4, HUB)  # another child of the same IKE SA
    assert not starts.may_begin(HUB)
    starts.keep([4])
    assert starts.may_begin(HUB) and starts.waiting() == wanted[6:]
    assert starts.cannot(wanted[6], "no route") and not starts.cannot(wanted[6], "no route")
    starts.forget("c")
    assert not starts


def test_few_start_at_once_to_all() -> None:
    """However many peers there are."""
    starts = Starts()
    starts.want(("c", "waits"))
    for number in range(ALL_AT_ONCE):
        starts.begun(("c", str(number)), number, IPv4Address(number))
    assert starts.waiting() == [] and not starts.may_begin(HUB)
    starts.done(0)
    assert starts.waiting() == [("c", "waits")] and starts.may_begin(HUB)


@pytest.mark.parametrize(
    ("lifetime", "esn", "packets", "octets", "want"),
    [
        (Lifetime(), True, 2**40, 2**50, None),
        (Lifetime(), False, SOFT_NUMBERS - 1001, 0, None),
        (Lifetime(), False, SOFT_NUMBERS - 1000, 0, Spent.SOFT),
        (Lifetime(rekey_packets=10, life_packets=20), True, 9, 0, None),
        (Lifetime(rekey_packets=10, life_packets=20), True, 10, 0, Spent.SOFT),
        (Lifetime(rekey_packets=10, life_packets=20), True, 20, 0, Spent.HARD),
        (Lifetime(rekey_bytes=1000, life_bytes=2000), False, 1, 1000, Spent.SOFT),
        (Lifetime(rekey_bytes=1000, life_bytes=2000), False, 1, 2000, Spent.HARD),
    ],
)
def test_limits_of_what_a_child_carries(
    lifetime: Lifetime, esn: bool, packets: int, octets: int, want: Spent | None
) -> None:
    """Either SA decides; numbers of 32 bits are a limit of their own."""
    quiet = SaTraffic(packets=0, bytes=0, last_used=0, number=1)
    # It has moved: some numbers were never used.
    loud = SaTraffic(packets=packets, bytes=octets, last_used=0, number=packets + 1000)
    for traffic in ((quiet, loud), (loud, quiet)):
        assert spent(lifetime, esn=esn, traffic=traffic) is want


def test_one_loud_address_keeps_nobody_waiting() -> None:
    """Its bucket empties and fills again; others have their own; memory is bounded."""
    limiter = RateLimiter(rate=10.0, burst=5.0, most=100)
    assert [limiter.allow(HUB, 0.0) for _ in range(7)] == [True] * 5 + [False] * 2
    assert limiter.allow(OTHER, 0.0) and limiter.refused == 2
    assert [limiter.allow(HUB, 0.25) for _ in range(3)] == [True, True, False]
    for number in range(10000):
        assert limiter.allow(IPv4Address(number), 1.0)
    assert len(limiter._young) + len(limiter._old) <= 201
