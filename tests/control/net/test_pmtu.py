"""Errors about outer packets: what is read out of them, what is believed, and for how long."""

from __future__ import annotations

import random
import struct
from dataclasses import replace
from ipaddress import ip_address

import pytest

from control.net.pmtu import LEAST, PLATEAUS, WINDOW, OutboundSa, PathMtus, TooBig, read_error
from tests.packets import AH, ESP, UDP, ip

ENDS = {
    4: (ip_address("192.0.2.1"), ip_address("198.51.100.7")),
    6: (ip_address("2001:db8::1"), ip_address("2001:db8:ffff::7")),
}
SPI, NUMBER = 0xC0FFEE01, 5000


def outer(
    family: int, *, encap: bool = False, ah: bool = False, length: int = 1500, number: int = NUMBER
) -> bytes:
    """One of our packets as a router quotes it."""
    esp = struct.pack(">II", SPI, number)
    head = 20 if family == 4 else 40
    if ah:
        esp = struct.pack(">BBH", 50, 4, 0) + esp
    if encap:
        esp = struct.pack(">HHHH", 4500, 4500, length - head, 0) + esp
    return ip(
        family,
        esp.ljust(length - head, b"\xaa"),
        protocol=UDP if encap else AH if ah else ESP,
        source=ENDS[family][0],
        destination=ENDS[family][1],
    )


def error(family: int, mtu: int, quoted: bytes) -> bytes:
    """Fragmentation needed, or packet too big."""
    return (
        struct.pack(">BBHHH", 3, 4, 0, 0, mtu) + quoted
        if family == 4
        else struct.pack(">BBHI", 2, 0, 0, mtu) + quoted
    )


def sa(family: int, **rest: object) -> OutboundSa:
    """The SA that sent NUMBER a little while ago."""
    local, remote = ENDS[family]
    made = OutboundSa(
        name="out", local=local, remote=remote, spi=SPI, encapsulated=False, sequence=NUMBER + 10
    )
    return replace(made, **rest)  # type: ignore[arg-type]


@pytest.mark.parametrize(("encap", "ah"), [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("family", [4, 6])
def test_reading(family: int, encap: bool, ah: bool) -> None:
    packet = outer(family, encap=encap, ah=ah)
    expected = TooBig(
        mtu=1300,
        length=1500,
        local=ENDS[family][0],
        remote=ENDS[family][1],
        spi=SPI,
        number=NUMBER,
        encapsulated=encap,
    )
    least = (20 if family == 4 else 40) + (8 if encap else 4 if ah else 0) + 8
    for quoted in (packet, packet[:528], packet[:least]):
        assert read_error(error(family, 1300, quoted), family) == expected
    for size in range(least):
        assert read_error(error(family, 1300, packet[:size]), family) is None
    wrong = bytearray(error(family, 1300, packet))
    for code in ((3, 1), (0, 4), (11, 0), (2, 1), (8, 0)):
        wrong[0:2] = bytes(code)
        assert read_error(bytes(wrong), family) is None
    other = ip(family, bytes(100), protocol=6, source=ENDS[family][0], destination=ENDS[family][1])
    assert read_error(error(family, 1300, other), family) is None


def test_options_and_fragments() -> None:
    """IPv4: options are stepped over; a later fragment shows no SPI."""
    rest = struct.pack(">II", SPI, NUMBER) + bytes(1000)
    ends = {"source": ENDS[4][0], "destination": ENDS[4][1], "protocol": ESP}
    found = read_error(error(4, 576, ip(4, rest, options=b"\1" * 8, **ends)), 4)
    assert found is not None and (found.spi, found.number) == (SPI, NUMBER)
    assert read_error(error(4, 576, ip(4, rest, offset=8, **ends)), 4) is None


def test_nonsense_is_no_error() -> None:
    chance = random.Random(1)
    for family in (4, 6):
        good = error(family, 1300, outer(family)[:100])
        for _ in range(3000):
            bad = bytearray(good[: chance.randrange(len(good) + 1)])
            for _ in range(chance.randrange(4)):
                if bad:
                    bad[chance.randrange(len(bad))] = chance.randrange(256)
            read_error(bytes(bad), family)


def heard(mtus: PathMtus, family: int = 4, mtu: int = 1300, now: float = 0.0, **rest: object) -> int | None:
    """An error about NUMBER, held against the SA that sent it."""
    found = read_error(error(family, mtu, outer(family)), family)
    assert found is not None
    return mtus.heard(replace(found, **rest), [sa(family)], 1500, now)  # type: ignore[arg-type]


def test_life_of_an_mtu() -> None:
    """Smaller it gets at once, larger only by age; what is told again lives longer."""
    mtus = PathMtus(600.0)
    local, remote = ENDS[4]
    assert mtus.limit(local, remote, 1500) == 1500 and mtus.next_expiry() is None
    assert heard(mtus, mtu=1400, now=10.0) == 1400
    assert heard(mtus, mtu=1300, length=1400, now=20.0) == 1300
    assert heard(mtus, mtu=1350, now=30.0) is None  # more than we know by now: late, or somebody's invention
    assert heard(mtus, mtu=1300, now=40.0) is None and mtus.next_expiry() == 640.0
    assert (mtus.limit(local, remote, 1500), mtus.limit(local, remote, 1280)) == (1300, 1280)
    assert mtus.limit(local, ip_address("198.51.100.8"), 1500) == 1500
    assert mtus.expire(639.0) == []
    assert mtus.expire(640.0) == [(local, remote)]
    assert mtus.limit(local, remote, 1500) == 1500 and mtus.next_expiry() is None


@pytest.mark.parametrize("family", [4, 6])
def test_what_is_not_believed(family: int) -> None:
    """RFC 4301 section 6.1: nobody signs it, so it must fit what we have sent in every respect."""
    mtus = PathMtus(600.0)
    others: list[dict[str, object]] = [
        {"spi": SPI + 1},
        {"number": NUMBER + 10},  # not sent yet
        {"number": NUMBER + 10 - WINDOW - 1},
        {"number": 0},
        {"encapsulated": True},
        {"local": ip_address("203.0.113.1")},
        {"remote": ip_address("203.0.113.1") if family == 4 else ip_address("2001:db8:5::")},
        {"mtu": 1500},  # no smaller than what did not fit
        {"mtu": 1501, "length": 9000},  # larger than our own link
    ]
    for number, rest in enumerate(others, 1):
        assert heard(mtus, family, **rest) is None, rest
        assert mtus.refused == number, rest
        assert mtus.limit(*ENDS[family], 1500) == 1500
    assert heard(mtus, family, mtu=1499) == 1499


@pytest.mark.parametrize("family", [4, 6])
def test_bounds(family: int) -> None:
    """Never below what every path carries; a router that does not say gets the next plateau (RFC 1191 section 5)."""
    assert heard(PathMtus(600.0), family, mtu=68) == LEAST[family]
    assert heard(PathMtus(600.0), family, mtu=0) == 1492
    assert heard(PathMtus(600.0), family, mtu=0, length=1400) == max(1280, LEAST[family])
    assert sorted(PLATEAUS, reverse=True) == list(PLATEAUS)


def test_numbers_that_come_round() -> None:
    """With ESN the wire shows the low half only; and an SA that has sent little has no numbers before 1."""
    mtus = PathMtus(600.0)
    found = read_error(error(4, 1300, outer(4, number=0xFFFFFFFF)), 4)
    assert found is not None
    assert mtus.heard(found, [sa(4, sequence=5)], 1500, 0.0) is None
    assert mtus.heard(found, [sa(4, sequence=(7 << 32) + 5)], 1500, 0.0) == 1300
