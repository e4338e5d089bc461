"""scapy's ipsec layer opens what we seal, and we open what it seals: every suite, mix of families, ESN, size.

scapy shares nothing with this project but `cryptography`, and only the OpenSSL engine shares that one's library.
scapy can do nearly all of our suites (test_reference has the rest); its one shortcut is that ESN's high half is told to
it, never derived.
"""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.ipsec import ESP, SecurityAssociation

from control.config import format_proposal
from dataplane.model import EspProposal, SaSpec
from tests.conformance import SCAPY
from tests.conftest import Agreement
from tests.exchange.suites import ALL_SUITES, SUITES, in_scapy, inbound_sa, outbound_sa, scapy_names, suite_id
from tests.gateway import MakeGateway
from tests.packets import ip, udp_packet

MIXES = [(outer, inner) for outer in (4, 6) for inner in (4, 6)]
# Every length modulo 16 on both sides of a few blocks, then spread to 1400.
SIZES = [*range(18), 63, 64, 127, 129, 255, 511, 777, 1024, 1337, 1399, 1400]


def scapy_sa(spec: SaSpec, *, from_us: bool) -> SecurityAssociation:
    """The same SA as scapy sees it; it encrypts with the tunnel header of whoever sends."""
    names = scapy_names(spec.proposal)
    layer = IP if spec.local.version == 4 else IPv6
    source, destination = (spec.local, spec.remote) if from_us else (spec.remote, spec.local)
    udp_header = None
    if spec.encap is not None:
        udp_header = UDP(sport=spec.encap.source_port, dport=spec.encap.destination_port)
    return SecurityAssociation(
        ESP,
        spi=spec.spi,
        crypt_algo=names.crypt,
        crypt_key=spec.encryption_key or None,
        crypt_icv_size=spec.proposal.tag_length if spec.proposal.is_aead else None,
        auth_algo=names.auth,
        auth_key=spec.integrity_key or None,
        tunnel_header=layer(src=str(source), dst=str(destination)),
        nat_t_header=udp_header,
        esn_en=spec.proposal.esn,
    )


def parse(packet: bytes) -> IP | IPv6:
    """Outer packet as scapy sees it."""
    return IP(packet) if packet[0] >> 4 == 4 else IPv6(packet)


def inner_packets(family: int, sizes: list[int], seed: int = 7) -> list[bytes]:
    """Packets with random payloads of these sizes."""
    chance = random.Random(seed)
    return [udp_packet(family, chance.randbytes(size)) for size in sizes]


CROSSING = 2**32 - 20
THEIRS = [suite for suite in ALL_SUITES if in_scapy(suite)]
CASES = [
    *((suite, 1) for suite in THEIRS),
    *((replace(suite, esn=True), CROSSING) for suite in THEIRS),
    *((replace(SUITES[at], esn=True), 0x1_2345_6789_ABCD) for at in (0, 3, 4, -1)),
]


@pytest.mark.parametrize(
    ("suite", "first"), CASES, ids=[f"{suite_id(suite)}-{first:x}" for suite, first in CASES]
)
def test_agreement(make_gateway: MakeGateway, suite: EspProposal, first: int, agreement: Agreement) -> None:
    """Both ways, at every size; with ESN across 2**32, and with a high half far above 0."""
    agreement(peer=SCAPY, suite=format_proposal(replace(suite, esn=False)), esn=suite.esn)
    gateway = make_gateway(mtu=1600)
    ours, theirs = outbound_sa(suite, sequence=first), inbound_sa(suite, sequence=first)
    gateway.add(ours, theirs)
    gateway.protect("out")
    inner = inner_packets(4, SIZES)

    sent = gateway.send(inner)
    assert sent.verdicts == {"pass": len(inner)}
    peer = scapy_sa(ours, from_us=True)
    for number, (packet, wire) in enumerate(zip(inner, sent.packets, strict=True), first):
        outer = parse(wire)
        assert outer[ESP].seq == number & 0xFFFFFFFF
        assert bytes(peer.decrypt(outer, esn=number >> 32)) == packet

    peer = scapy_sa(theirs, from_us=False)
    # scapy cannot be told number 0, which 2**32 has in its low half: its counter, used instead, is.
    peer.seq_num = 0
    wires = [
        bytes(peer.encrypt(parse(packet), seq_num=number & 0xFFFFFFFF, esn=number >> 32))
        for number, packet in enumerate(inner, first)
    ]
    received = gateway.receive(wires)
    assert received.verdicts == {"pass": len(inner)}
    assert received.packets == inner
    assert gateway.replay_top("in") == first + len(inner) - 1


@pytest.mark.parametrize("encap", [False, True], ids=["esp", "udp"])
@pytest.mark.parametrize(("outer", "inner"), MIXES)
@pytest.mark.parametrize("suite", [SUITES[0], SUITES[3], SUITES[4], SUITES[-1]], ids=suite_id)
def test_families(
    make_gateway: MakeGateway, suite: EspProposal, outer: int, inner: int, encap: bool, agreement: Agreement
) -> None:
    """Inner and outer family in all four mixes, bare and in UDP (RFC 3948)."""
    agreement(peer=SCAPY, suite=format_proposal(suite), mix=f"{inner}in{outer}", encap=encap)
    gateway = make_gateway()
    ours = outbound_sa(suite, family=outer, encap=encap)
    theirs = inbound_sa(suite, family=outer, encap=encap)
    gateway.add(ours, theirs)
    gateway.protect("out")
    packets = inner_packets(inner, [0, 1, 13, 100, 1337])

    sent = gateway.send(packets)
    assert sent.verdicts == {"pass": 5}
    for packet, wire in zip(packets, sent.packets, strict=True):
        seen = parse(wire)
        assert (seen.src, seen.dst) == (str(ours.local), str(ours.remote))
        if encap:
            assert (seen[UDP].sport, seen[UDP].dport, seen[UDP].len) == (4500, 4500, len(seen[UDP]))
            if outer == 4:
                assert seen[UDP].chksum == 0  # RFC 3948 section 2.1
            else:
                given = seen[UDP].chksum  # RFC 8200 section 8.1: never zero
                del seen[UDP].chksum
                assert given == IPv6(bytes(seen))[UDP].chksum != 0
                seen = parse(wire)
        given = parse(wire)
        if outer == 4:
            del given.chksum
        assert bytes(given) == wire  # lengths and the header's checksum are as scapy makes them
        assert bytes(scapy_sa(ours, from_us=True).decrypt(seen)) == packet

    peer = scapy_sa(theirs, from_us=False)
    received = gateway.receive([bytes(peer.encrypt(parse(packet))) for packet in packets])
    assert received.verdicts == {"pass": 5}
    assert received.packets == packets


def test_smallest(make_gateway: MakeGateway) -> None:
    """Headers alone: inner packets without any payload, of a protocol that nobody knows."""
    for number, suite in enumerate(THEIRS):
        gateway = make_gateway()
        ours, theirs = outbound_sa(suite, seed=number), inbound_sa(suite, seed=number)
        gateway.add(ours, theirs)
        gateway.protect("out")
        packets = [ip(4, b"", protocol=253), ip(6, b"", protocol=59)]
        sent = gateway.send(packets)
        assert [bytes(scapy_sa(ours, from_us=True).decrypt(parse(wire))) for wire in sent.packets] == packets
        peer = scapy_sa(theirs, from_us=False)
        received = gateway.receive([bytes(peer.encrypt(parse(packet))) for packet in packets])
        assert received.packets == packets
