"""Outbound numbers: each once, in order, never past the limit, never round again (RFC 4303 section 3.3.3)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dataplane.model import Action, EspProposal, PolicySpec
from ext.sa import TablesView
from tests.esp import open_packet
from tests.exchange.suites import NULL_SHA256, SUITES, outbound_sa, suite_id
from tests.gateway import ANY4, Gateway, MakeGateway
from tests.packets import ip_address, udp_packet

FOUR = [SUITES[0], SUITES[3], SUITES[4], NULL_SHA256]
PACKET = udp_packet(4, b"x")


def numbers_of(gateway: Gateway, count: int) -> list[int]:
    """Send `count` packets; the numbers that those which left had, each verified with the key."""
    spec = gateway.specs["out"]
    sent = gateway.send([PACKET] * count)
    numbers = []
    for wire in sent.packets:
        low = int.from_bytes(wire[24:28], "big")
        number = low
        if spec.proposal.esn:
            high = spec.sequence >> 32
            number = high << 32 | low if low >= spec.sequence & 0xFFFFFFFF else high + 1 << 32 | low
        assert open_packet(spec, wire, number)[1] == PACKET
        numbers.append(number)
    return numbers


@pytest.mark.parametrize("suite", FOUR, ids=suite_id)
def test_the_last_two(make_gateway: MakeGateway, suite: EspProposal) -> None:
    """2**32 - 2 and 2**32 - 1 are sent; then nothing more, however many are tried."""
    gateway = make_gateway()
    gateway.add(outbound_sa(suite, sequence=2**32 - 2))
    gateway.protect("out")
    result = gateway.send([PACKET] * 10)
    assert result.verdicts == {"pass": 2, "sequence_exhausted": 8}
    assert result.drops == {"out": {"sequence_exhausted": 8}}
    assert result.passed == {"out": (2, 2 * len(PACKET))}
    assert [wire[24:28].hex() for wire in result.packets] == ["fffffffe", "ffffffff"]
    for count in (1, 64, 200):
        result = gateway.send([PACKET] * count)
        assert (result.verdicts, result.passed) == ({"sequence_exhausted": count}, {})
    assert gateway.sequence("out")[0] < 2**32 + 64


@pytest.mark.parametrize("suite", FOUR, ids=suite_id)
def test_esn_goes_on_and_ends(make_gateway: MakeGateway, suite: EspProposal) -> None:
    """With ESN 2**32 is a number like others; near 2**64 the SA stops, and the counter never comes round."""
    suite = replace(suite, esn=True)
    gateway = make_gateway()
    gateway.add(outbound_sa(suite, sequence=2**32 - 2))
    gateway.protect("out")
    assert numbers_of(gateway, 5) == [2**32 - 2 + number for number in range(5)]

    end = 2**64 - 2**32
    gateway = make_gateway()
    gateway.add(outbound_sa(suite, sequence=end - 3))
    gateway.protect("out")
    assert numbers_of(gateway, 64) == [end - 3, end - 2, end - 1]
    for _ in range(20):
        assert gateway.send([PACKET] * 64).verdicts == {"sequence_exhausted": 64}
    # 2**16 workers that each look before they add could not carry it past 2**64.
    assert end <= gateway.sequence("out")[0] <= end + 64


def test_reserved(make_gateway: MakeGateway) -> None:
    """Numbers past the reserved mark wait for the mark to rise; one that was skipped is never used."""
    gateway = make_gateway()
    gateway.add(outbound_sa(SUITES[0], sequence=5, sequence_limit=8))
    gateway.protect("out")
    result = gateway.send([PACKET] * 5)
    assert result.verdicts == {"pass": 3, "sequence_unreserved": 2}
    assert result.drops == {"out": {"sequence_unreserved": 2}}
    assert gateway.send([PACKET]).verdicts == {"sequence_unreserved": 1}
    gateway.tables.view.set_limit(gateway.indices["out"], 100)
    seen = {5, 6, 7}
    numbers = numbers_of(gateway, 20)
    assert not seen & set(numbers) and sorted(numbers) == numbers and max(numbers) < 100
    with pytest.raises(ValueError, match="below the present one"):
        gateway.tables.view.set_limit(gateway.indices["out"], 50)


def test_every_number_once(make_gateway: MakeGateway) -> None:
    """Many SAs mixed in every batch, drops among them: each SA's numbers are consecutive, in order of sending."""
    gateway = make_gateway()
    specs = [replace(outbound_sa(SUITES[at % 4], seed=at), name=f"{at}", spi=0xC000 + at) for at in range(9)]
    gateway.add(*specs)
    gateway.set_policies(
        [
            PolicySpec(
                name=f"{at}",
                action=Action.PROTECT,
                selector=replace(ANY4, remote_first=host(at), remote_last=host(at)),
                sa=f"{at}",
            )
            for at in range(9)
        ]
    )
    order = [at * at % 11 for at in range(640)]  # 9 and 10 have no policy
    big = bytes(1450)
    packets = [
        udp_packet(4, big if at % 7 == 3 else b"n%d" % at, destination=host(to), df=True)
        for at, to in enumerate(order)
    ]
    result = gateway.send(packets)
    next_ = dict.fromkeys(range(9), 1)
    wires = iter(result.packets)
    for at, to in enumerate(order):
        if to > 8 or at % 7 == 3:
            continue
        wire = next(wires)
        assert int.from_bytes(wire[20:24], "big") == 0xC000 + to
        assert open_packet(specs[to], wire, next_[to])[1] == packets[at]
        next_[to] += 1
    assert next(wires, None) is None
    # Not one number was spent on a packet that was dropped.
    assert {at: gateway.sequence(f"{at}")[0] for at in range(9)} == next_
    assert {int(name): count for name, (count, _) in result.passed.items()} == {
        at: number - 1 for at, number in next_.items() if number > 1
    }


def host(number: int) -> object:
    """A destination of its own for each SA."""
    return ip_address(0x0A020000 + number)


def test_last_used_is_of_packets_that_passed(make_gateway: MakeGateway) -> None:
    """An SA that only drops is idle."""
    gateway = make_gateway()
    gateway.add(outbound_sa(SUITES[0], sequence=2**32 - 1))
    gateway.protect("out")
    counters = gateway.tables.sa_counters[0]
    index = gateway.indices["out"]
    assert gateway.send([udp_packet(4, bytes(1480), df=True)]).verdicts["too_big"] == 1
    assert counters[index]["last_used"] == 0
    gateway.send([PACKET])
    used = int(counters[index]["last_used"])
    assert used > 0
    assert gateway.send([PACKET]).verdicts == {"sequence_exhausted": 1}
    assert counters[index]["last_used"] == used


def test_a_view_of_its_own(make_gateway: MakeGateway) -> None:
    """Another process adds to the same numbers: a worker that goes on after it repeats none."""
    gateway = make_gateway()
    gateway.add(outbound_sa(SUITES[0]))
    gateway.protect("out")
    assert numbers_of(gateway, 3) == [1, 2, 3]
    other = TablesView(gateway.tables.fd)
    assert other.sequence(gateway.indices["out"]) == gateway.sequence("out")
    gateway.tables.sas["sequence"]["next"][gateway.indices["out"]] += 64
    assert numbers_of(gateway, 2) == [68, 69]
