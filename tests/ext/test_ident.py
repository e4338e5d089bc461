"""The IPv4 ID of what we send: never 0, and not the same for the SAs between two gateways at the same time."""

from __future__ import annotations

import pytest

from dataplane.model import Protocol, SaSpec
from tests.exchange.suites import NULL_SHA256, SUITES, outbound_sa
from tests.gateway import MakeGateway
from tests.packets import checksum, udp_packet


def ident_of(packet: bytes) -> int:
    """The ID of an IPv4 packet whose header is whole."""
    assert packet[0] == 0x45 and checksum(packet[:20]) == 0
    return int.from_bytes(packet[4:6], "big")


@pytest.mark.parametrize("spec", [
    outbound_sa(SUITES[0]),  # the way of packets that are alike
    outbound_sa(SUITES[4]),
    outbound_sa(NULL_SHA256, protocol=Protocol.AH),
], ids=["alike", "any", "ah"])  # fmt: skip
def test_every_number_but_zero(make_gateway: MakeGateway, spec: SaSpec) -> None:
    """All of 65,536 packets in a row; two share one, far from each other."""
    gateway = make_gateway()
    gateway.add(spec)
    gateway.protect("out")
    packet = udp_packet(4)
    idents = [ident_of(each) for _ in range(1024) for each in gateway.send([packet] * 64).packets]
    assert len(idents) == 65536
    assert set(idents) == set(range(1, 65536))


def test_sas_begin_apart(make_gateway: MakeGateway) -> None:
    """RFC 6864 4.3: the pieces of packets that are on the way together must not fit each other."""
    begun = set()
    for spi in range(0x1000, 0x1000 + 64):
        gateway = make_gateway()
        gateway.add(outbound_sa(SUITES[0], spi=spi))
        gateway.protect("out")
        begun.add(ident_of(gateway.send([udp_packet(4)]).packets[0]))
    assert len(begun) == 64
