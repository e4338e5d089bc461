"""AH in transport mode against scapy: any payload, IPv4 options and IPv6 extension headers before the AH."""

from __future__ import annotations

from dataclasses import replace

import pytest
from scapy.layers.inet6 import (
    HBHOptUnknown,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    Pad1,
)
from scapy.layers.ipsec import AH, SecurityAssociation
from scapy.packet import Packet, Raw

from dataplane.model import EspProposal, Mode, Protocol, SaSpec
from tests import packets as make
from tests.ah import ah_offset, field_length, icv_of
from tests.conftest import Agreement
from tests.exchange.suites import inbound_sa, mirror, outbound_sa, suite_id
from tests.exchange.test_scapy import CROSSING, parse
from tests.exchange.test_scapy_ah import SUITES, about_ah, scapy_sa
from tests.exchange.test_transport import ends, host_selector, payloads
from tests.fuzz.world import turned
from tests.gateway import MakeGateway

CASES = [*((suite, 1) for suite in SUITES), *((replace(suite, esn=True), CROSSING) for suite in SUITES)]


def pair(suite: EspProposal, family: int, **rest: object) -> tuple[SaSpec, SaSpec]:
    """Our two SAs between this gateway and its peer."""
    common = {"family": family, "mode": Mode.TRANSPORT, "protocol": Protocol.AH, **rest}
    ours = outbound_sa(suite, **common)  # type: ignore[arg-type]
    return ours, inbound_sa(suite, selectors=(host_selector(family),), **common)  # type: ignore[arg-type]


def whole_icv(spec: SaSpec, wire: bytes, number: int) -> None:
    """An implementation of our own finds the ICV right."""
    at = ah_offset(wire) + 12
    assert wire[at : at + field_length(spec)] == icv_of(spec, wire, number)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize(
    ("suite", "first"), CASES, ids=[f"{suite_id(suite)}-{first:x}" for suite, first in CASES]
)
def test_agreement(
    make_gateway: MakeGateway, suite: EspProposal, first: int, family: int, agreement: Agreement
) -> None:
    """UDP, TCP, protocols without ports and nothing at all, both ways; TOS, TTL and DF are the packet's own."""
    about_ah(agreement, suite, mode="transport", mix=f"IPv{family}")
    gateway = make_gateway(mtu=1600)
    ours, theirs = pair(suite, family, sequence=first)
    gateway.add(ours, theirs)
    gateway.protect("out", [host_selector(family)])

    def packets(back: bool) -> list[bytes]:
        way = ends(family, back=back)
        flags = {"df": True} if family == 4 else {"label": 77}
        return [
            *(
                make.udp_packet(family, data, tos=0xBB, ttl=7, **flags, **way)
                for data in payloads([0, 1, 2, 1399])
            ),
            *(make.tcp_packet(family, data, **way) for data in payloads([0, 7, 1300])),
            make.ip(family, b"", protocol=253, **way),
            make.ip(family, b"\x45" * 20, protocol=4, **way),
        ]

    inner = packets(False)
    sent = gateway.send(inner)
    assert sent.verdicts == {"pass": len(inner)}
    assert sent.passed == {"out": (len(inner), sum(map(len, inner)))}
    peer = scapy_sa(ours, None)
    for number, (packet, wire) in enumerate(zip(inner, sent.packets, strict=True), first):
        whole_icv(ours, wire, number)
        assert len(wire) == len(packet) + ours.ah_length
        seen = parse(wire)
        if family == 4:
            assert make.checksum(wire[:20]) == 0
            assert (seen.tos, seen.ttl, seen.flags) == tuple(
                getattr(parse(packet), field) for field in ("tos", "ttl", "flags")
            )
        else:
            assert (seen.tc, seen.fl, seen.hlim) == (parse(packet).tc, parse(packet).fl, parse(packet).hlim)
        assert bytes(peer.decrypt(seen, esn=number >> 32)) == packet

    inner = packets(True)
    peer = scapy_sa(theirs, None)
    peer.seq_num = 0
    wires = [
        bytes(peer.encrypt(parse(packet), seq_num=number & 0xFFFFFFFF, esn=number >> 32))
        for number, packet in enumerate(inner, first)
    ]
    received = gateway.receive([aged(wire) for wire in wires])
    assert received.verdicts == {"pass": len(inner)}
    assert received.packets == [aged(packet) for packet in inner]
    assert received.passed == {"in": (len(inner), sum(map(len, inner)))}


def aged(packet: bytes) -> bytes:
    """As if from a router: another TTL and DSCP."""
    it = bytearray(packet)
    if it[0] >> 4 == 4:
        it[1], it[8], it[10:12] = it[1] ^ 0x40, 3, b"\0\0"
        it[10:12] = make.checksum(bytes(it[: (it[0] & 15) * 4])).to_bytes(2, "big")
    else:
        it[1], it[7] = it[1] ^ 0x40, 3
    return bytes(it)


OPTIONS = {
    "nops": b"\x01" * 4,
    "record-route": bytes([7, 39, 4]) + bytes(36) + b"\x00",
    "router-alert": b"\x94\x04\0\0",
    "timestamp": b"\x44\x0c\x05\0" + bytes(8),
    "security-and-unknown": b"\x82\x0b" + bytes(range(9)) + b"\x01" + b"\x9e\x04\3\4",
    "route-used-up": b"\x83\x07\x08\x0a\0\0\1\0",
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options(make_gateway: MakeGateway, name: str) -> None:
    """IPv4 options stay before the AH, as they were."""
    gateway = make_gateway()
    ours, theirs = pair(SUITES[0], 4)
    gateway.add(ours, theirs)
    gateway.protect("out", [host_selector(4)])
    packet = make.udp_packet(4, b"text", options=OPTIONS[name], **ends(4))
    [wire] = gateway.send([packet]).packets
    whole_icv(ours, wire, 1)
    assert wire[20 : 20 + len(OPTIONS[name])] == OPTIONS[name]
    assert make.checksum(wire[: 20 + len(OPTIONS[name])]) == 0
    assert bytes(scapy_sa(ours, None).decrypt(parse(wire))) == packet
    back = make.udp_packet(4, b"text", options=OPTIONS[name], **ends(4, back=True))
    sealed = bytes(scapy_sa(theirs, None).encrypt(parse(back)))
    received = gateway.receive([sealed])
    assert (received.verdicts, received.packets) == ({"pass": 1}, [back])


EXTENSIONS: dict[str, Packet] = {
    "hop-by-hop": IPv6ExtHdrHopByHop(options=[HBHOptUnknown(otype=0x3E, optdata=b"may change"), Pad1()]),
    "routing-used-up": IPv6ExtHdrRouting(addresses=["2001:db8::5", "2001:db8::6"], segleft=0),
    "before-routing": IPv6ExtHdrHopByHop(options=[HBHOptUnknown(otype=0x1E, optdata=b"stays")])
    / IPv6ExtHdrDestOpt(options=[HBHOptUnknown(otype=0x3F, optdata=b"changes")])
    / IPv6ExtHdrRouting(addresses=["2001:db8::7"], segleft=0),
    "for-the-last-alone": IPv6ExtHdrDestOpt(options=[HBHOptUnknown(otype=0x3F, optdata=b"covered")]),
}


@pytest.mark.parametrize("name", EXTENSIONS)
def test_extension_headers(make_gateway: MakeGateway, name: str) -> None:
    """Headers for the way stay before the AH, destination options for the last hop alone go behind it."""
    gateway = make_gateway()
    ours, theirs = pair(SUITES[0], 6)
    gateway.add(ours, theirs)
    gateway.protect("out", [host_selector(6)])

    def packet(back: bool) -> bytes:
        source, destination = ends(6, back=back).values()
        return bytes(IPv6(src=str(source), dst=str(destination)) / EXTENSIONS[name] / Raw(b"what follows"))

    [wire] = gateway.send([packet(False)]).packets
    assert (ah_offset(wire) == 40) == (name == "for-the-last-alone")
    whole_icv(ours, wire, 1)
    assert bytes(scapy_sa(ours, None).decrypt(parse(wire))) == packet(False)
    gateway.add(mirror(ours, name="mirror", selectors=(turned(host_selector(6)),)))
    received = gateway.receive([wire])
    assert (received.verdicts, received.packets) == ({"pass": 1}, [packet(False)])
    if "routing" not in name:  # as sender, scapy sends a route on that is used up
        sealed = bytes(scapy_sa(theirs, None).encrypt(parse(packet(True))))
        received = gateway.receive([sealed])
        assert (received.verdicts, received.packets) == ({"pass": 1}, [packet(True)])


def test_a_route_enters_as_it_will_arrive(make_gateway: MakeGateway) -> None:
    """A routing header that has a stop to go: the ICV is made for its end, the packet leaves for its first stop."""
    gateway = make_gateway()
    ours, _ = pair(SUITES[0], 6)
    gateway.add(ours)
    gateway.protect("out", [host_selector(6)])
    source, stop = map(str, ends(6).values())
    for hops in (["2001:db8:9::1"], ["2001:db8:9::1", "2001:db8:9::2", "2001:db8:9::3"]):
        route = IPv6ExtHdrRouting(addresses=hops, segleft=len(hops))
        packet = bytes(IPv6(src=source, dst=stop) / route / Raw(b"what follows"))
        [wire] = gateway.send([packet]).packets
        assert wire[8:40] == packet[8:40] and wire[43] == len(hops)
        number = int.from_bytes(wire[ah_offset(wire) + 8 :][:4], "big")
        whole_icv(ours, wire, number)
        there = IPv6(wire)  # as the last host sees it
        arrived = there[IPv6ExtHdrRouting]
        arrived.addresses, arrived.segleft, there.dst = [stop, *hops[:-1]], 0, hops[-1]
        SecurityAssociation(AH, spi=ours.spi, auth_algo="SHA2-256-128", auth_key=ours.integrity_key).decrypt(
            there
        )


def test_options_that_cannot_be_followed(make_gateway: MakeGateway) -> None:
    """They are dropped by name on the way out, too, and not counted as sent."""
    gateway = make_gateway()
    ours, _ = pair(SUITES[0], 4)
    gateway.add(ours)
    gateway.protect("out", [host_selector(4)])
    bad = make.udp_packet(4, b"bad", options=b"\x44\x00\x00\x00", **ends(4))
    good = make.udp_packet(4, b"good", **ends(4))
    result = gateway.send([good, bad, good])
    assert (result.verdicts, result.passed) == ({"pass": 2, "ip_option": 1}, {"out": (2, 2 * len(good))})
    for number, wire in zip((1, 3), result.packets, strict=True):
        whole_icv(ours, wire, number)


def test_largest(make_gateway: MakeGateway) -> None:
    """The packet that just fits the path."""
    for family in (4, 6):
        gateway = make_gateway()
        ours, _ = pair(SUITES[0], family)
        gateway.add(ours)
        gateway.protect("out", [host_selector(family)])
        room = ours.inner_mtu(1500)
        assert room == 1500 - ours.ah_length
        whole = {"df": True} if family == 4 else {}
        fits, does_not = (
            make.ip(family, bytes(size - (20 if family == 4 else 40)), protocol=253, **whole, **ends(family))
            for size in (room, room + 1)
        )
        result = gateway.send([fits, does_not])
        assert result.verdicts == {"pass": 1, "too_big": 1, "icmp_sent": 1}
        assert len(result.packets[0]) == 1500
