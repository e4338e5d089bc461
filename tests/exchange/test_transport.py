"""ESP in transport mode: scapy opens what we seal and we open what it seals, whatever headers stand before ESP.

The hosts of these tests are the outer addresses themselves: packets keep their own IP header (RFC 4303 section 3.1.1).
"""

from __future__ import annotations

import random
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import (
    HBHOptUnknown,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.ipsec import ESP, SecurityAssociation

from control.config import format_proposal, parse_proposal
from dataplane.model import Action, EspProposal, Mode, PolicySpec, SaSpec, SelectorSpec
from tests import packets as make
from tests.conformance import SCAPY
from tests.conftest import Agreement
from tests.exchange.suites import OUTER, SUITES, inbound_sa, mirror, outbound_sa, scapy_names, suite_id
from tests.gateway import MakeGateway

SIZES = [*range(18), 63, 64, 127, 129, 255, 511, 777, 1024, 1337, 1399, 1400]
SOME = [SUITES[0], SUITES[3], SUITES[4], SUITES[-1]]
CROSSING = 2**32 - 20
CASES = [
    *((suite, 1) for suite in SUITES),
    *((replace(suite, esn=True), CROSSING) for suite in SOME),
]


def scapy_sa(spec: SaSpec) -> SecurityAssociation:
    """The same SA as scapy sees it: without a tunnel header."""
    names = scapy_names(spec.proposal)
    header = None
    if spec.encap is not None:
        header = UDP(sport=spec.encap.source_port, dport=spec.encap.destination_port)
    return SecurityAssociation(
        ESP,
        spi=spec.spi,
        crypt_algo=names.crypt,
        crypt_key=spec.encryption_key or None,
        auth_algo=names.auth,
        auth_key=spec.integrity_key or None,
        nat_t_header=header,
        esn_en=spec.proposal.esn,
    )


def parse(packet: bytes) -> IP | IPv6:
    """A packet as scapy sees it."""
    return IP(packet) if packet[0] >> 4 == 4 else IPv6(packet)


def ends(family: int, *, back: bool = False) -> dict[str, object]:
    """From this gateway to its peer, or back."""
    ours, theirs = OUTER[family]
    return {"source": theirs, "destination": ours} if back else {"source": ours, "destination": theirs}


def payloads(sizes: list[int]) -> list[bytes]:
    """Random bytes of these sizes."""
    chance = random.Random(7)
    return [chance.randbytes(size) for size in sizes]


def transport_pair(suite: EspProposal, family: int = 4, **rest: object) -> tuple[SaSpec, SaSpec]:
    """Our two SAs in transport mode."""
    ours = outbound_sa(suite, family=family, mode=Mode.TRANSPORT, **rest)  # type: ignore[arg-type]
    theirs = inbound_sa(suite, family=family, mode=Mode.TRANSPORT, selectors=(host_selector(family),), **rest)  # type: ignore[arg-type]
    return ours, theirs


def host_selector(family: int, **rest: object) -> SelectorSpec:
    """Between this gateway and its peer."""
    local, remote = OUTER[family]
    return SelectorSpec.from_networks(ip_network(local), ip_network(remote), **rest)


@pytest.mark.parametrize(
    ("suite", "first"), CASES, ids=[f"{suite_id(suite)}-{first:x}" for suite, first in CASES]
)
def test_agreement(make_gateway: MakeGateway, suite: EspProposal, first: int, agreement: Agreement) -> None:
    """Both ways, at every size, with ESN across 2**32."""
    keywords = format_proposal(replace(suite, esn=False))
    agreement(peer=SCAPY, mode="transport", suite=keywords, mix="IPv4", esn=suite.esn)
    gateway = make_gateway(mtu=1600)
    ours, theirs = transport_pair(suite, sequence=first)
    gateway.add(ours, theirs)
    gateway.protect("out", [host_selector(4)])

    inner = [make.udp_packet(4, data, tos=3, df=True, **ends(4)) for data in payloads(SIZES)]
    sent = gateway.send(inner)
    assert sent.verdicts == {"pass": len(inner)}
    peer = scapy_sa(ours)
    for number, (packet, wire) in enumerate(zip(inner, sent.packets, strict=True), first):
        outer = parse(wire)
        assert (outer.src, outer.dst, outer.tos, outer.ttl, str(outer.flags)) == (
            str(ours.local),
            str(ours.remote),
            3,
            64,
            "DF",
        )
        assert outer[ESP].seq == number & 0xFFFFFFFF
        assert outer.len == len(wire)
        assert bytes(peer.decrypt(outer, esn=number >> 32)) == packet

    inner = [make.udp_packet(4, data, tos=3, **ends(4, back=True)) for data in payloads(SIZES)]
    peer = scapy_sa(theirs)
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
@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("suite", SOME, ids=suite_id)
def test_families(
    make_gateway: MakeGateway, suite: EspProposal, family: int, encap: bool, agreement: Agreement
) -> None:
    """IPv4 and IPv6, bare and in UDP (RFC 3948); UDP, TCP, ICMP and protocols without ports inside."""
    agreement(peer=SCAPY, mode="transport", suite=format_proposal(suite), mix=f"IPv{family}", encap=encap)
    gateway = make_gateway()
    ours, theirs = transport_pair(suite, family, encap=encap)
    gateway.add(ours, theirs)
    gateway.protect("out", [host_selector(family)])

    def packets(back: bool) -> list[bytes]:
        way = ends(family, back=back)
        return [
            *(make.udp_packet(family, data, **way) for data in payloads([0, 1, 13, 100, 1337])),
            *(make.tcp_packet(family, data, **way) for data in payloads([0, 7, 1300])),
            make.ip(family, b"", protocol=253, **way),
            make.ip(family, b"\x45" * 20, protocol=4, **way),
        ]

    inner = packets(False)
    sent = gateway.send(inner)
    assert sent.verdicts == {"pass": len(inner)}
    assert sent.passed == {"out": (len(inner), sum(map(len, inner)))}
    for packet, wire in zip(inner, sent.packets, strict=True):
        seen = parse(wire)
        if encap:
            assert (seen[UDP].sport, seen[UDP].dport, seen[UDP].len) == (4500, 4500, len(seen[UDP]))
            if family == 4:
                assert seen[UDP].chksum == 0
            else:
                given = seen[UDP].chksum
                del seen[UDP].chksum
                assert given == IPv6(bytes(seen))[UDP].chksum != 0
        given = parse(wire)
        if family == 4:
            del given.chksum
            del given.len
        else:
            del given.plen
        assert bytes(given) == wire
        assert bytes(scapy_sa(ours).decrypt(parse(wire))) == packet

    inner = packets(True)
    peer = scapy_sa(theirs)
    received = gateway.receive([bytes(peer.encrypt(parse(packet))) for packet in inner])
    assert received.verdicts == {"pass": len(inner)}
    assert received.packets == inner
    assert received.passed == {"in": (len(inner), sum(map(len, inner)))}


@pytest.mark.parametrize("keywords", ["aes128gcm8", "null-sha1", "null-sha256", "aes256ccm8-esn"])
def test_the_least_that_linux_takes(make_gateway: MakeGateway, keywords: str) -> None:
    """ESP in UDP over IPv6 is padded to 40 bytes, and by the numbers that padding has (RFC 4303 section 2.4)."""
    here, there = make_gateway(), make_gateway()
    ours, _ = transport_pair(parse_proposal(keywords), 6, encap=True)
    here.add(ours)
    here.protect("out", [host_selector(6)])
    there.add(mirror(ours, selectors=(SelectorSpec.from_networks(*map(ip_network, reversed(OUTER[6]))),)))
    inner = [make.ip(6, b"", protocol=253, **ends(6))]
    inner += [make.udp_packet(6, data, **ends(6)) for data in payloads(list(range(13)))]
    sent = here.send(inner)
    assert sent.verdicts == {"pass": len(inner)}
    sizes = [parse(wire)[UDP].len - 8 for wire in sent.packets]
    assert sizes[0] == 40 and sizes == sorted(sizes)
    assert there.receive(sent.packets).packets == inner


OPTIONS = [
    b"\x01" * 4,
    bytes([7, 39, 4]) + bytes(36) + b"\x00",
    b"\x94\x04\0\0",
    b"\x44\x0c\x05\0" + bytes(8),
]


@pytest.mark.parametrize("encap", [False, True], ids=["esp", "udp"])
@pytest.mark.parametrize("suite", SOME, ids=suite_id)
def test_ipv4_options(make_gateway: MakeGateway, suite: EspProposal, encap: bool) -> None:
    """Options stay where they are, before ESP, from one word of them to all ten."""
    gateway = make_gateway()
    ours, theirs = transport_pair(suite, encap=encap)
    gateway.add(ours, theirs)
    gateway.protect("out", [host_selector(4)])
    inner = [make.udp_packet(4, b"text", options=options, **ends(4)) for options in OPTIONS]
    sent = gateway.send(inner)
    assert sent.verdicts == {"pass": len(inner)}
    for options, packet, wire in zip(OPTIONS, inner, sent.packets, strict=True):
        assert wire[20 : 20 + len(options)] == options
        assert make.checksum(wire[: 20 + len(options)]) == 0
        assert bytes(scapy_sa(ours).decrypt(parse(wire))) == packet
    inner = [make.udp_packet(4, b"text", options=options, **ends(4, back=True)) for options in OPTIONS]
    peer = scapy_sa(theirs)
    received = gateway.receive([bytes(peer.encrypt(parse(packet))) for packet in inner])
    assert received.verdicts == {"pass": len(inner)}
    assert received.packets == inner


def _chains() -> dict[str, tuple[list[object], int]]:
    """Extension headers, and how many of them stay before ESP."""

    def option(size: int) -> HBHOptUnknown:
        return HBHOptUnknown(otype=0x1E, optdata=bytes(size))

    hop = IPv6ExtHdrHopByHop(options=[option(4)])
    long_hop = IPv6ExtHdrHopByHop(options=[option(60)])
    destination = IPv6ExtHdrDestOpt(options=[option(9)])
    routing = IPv6ExtHdrRouting(addresses=["2001:db8::9"], segleft=0)
    return {
        "hop": ([hop], 1),
        "long": ([long_hop], 1),
        "destination": ([destination], 0),
        "hop-destination": ([hop, destination], 1),
        "routing": ([routing], 1),
        "all": ([hop, destination, routing, destination], 3),
    }


CHAINS = _chains()


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("suite", SOME, ids=suite_id)
def test_extension_headers(make_gateway: MakeGateway, suite: EspProposal, name: str) -> None:
    """What routers read stays before ESP; options for the last hop alone are enciphered. scapy puts them before."""
    chain, stays = CHAINS[name]
    gateway = make_gateway()
    ours, theirs = transport_pair(suite, 6)
    gateway.add(ours, theirs)
    gateway.protect("out", [host_selector(6)])

    def packet(back: bool) -> bytes:
        way = ends(6, back=back)
        layers = IPv6(src=str(way["source"]), dst=str(way["destination"]))
        for header in chain:
            layers /= header.copy()  # type: ignore[attr-defined]
        return bytes(layers / UDP(sport=4000, dport=5000) / b"some text")

    inner = packet(False)
    sent = gateway.send([inner])
    assert sent.verdicts == {"pass": 1}
    front = 40 + sum(len(bytes(header)) for header in chain[:stays])  # type: ignore[arg-type]
    wire, sent_before = sent.packets[0], [inner]
    assert wire[front : front + 4] == ours.spi.to_bytes(4, "big")
    assert bytes(scapy_sa(ours).decrypt(parse(wire))) == inner

    inner = packet(True)
    received = gateway.receive([bytes(scapy_sa(theirs).encrypt(parse(inner)))])
    assert received.verdicts == {"pass": 1}
    assert received.packets == [inner]

    # Our own placement of the headers is undone as well.
    far = make_gateway()
    local, remote = OUTER[6]
    far.add(mirror(ours, selectors=(SelectorSpec.from_networks(ip_network(remote), ip_network(local)),)))
    received = far.receive([wire])
    assert received.verdicts == {"pass": 1}
    assert received.packets == sent_before


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("known", [True, False])
def test_checksums_behind_nat(make_gateway: MakeGateway, family: int, known: bool) -> None:
    """RFC 3948 section 3.1.2: what both hosts summed before NAT is right again for the addresses that arrived."""
    gateway = make_gateway()
    before = (ip_address("10.9.8.7"), ip_address("10.255.0.1"))
    if family == 6:
        before = (ip_address("fd00::7"), ip_address("fd12:3456::ffff:1"))
    local, remote = before
    ours, theirs = transport_pair(SUITES[0], family, encap=True)
    theirs = replace(theirs, nat_original=before if known else None)
    gateway.add(ours, theirs)
    theirs_ends = ends(family, back=True)

    def both(build: object, **fields: object) -> tuple[bytes, bytes]:
        """A packet as its sender made it, and as it has to come out: with other addresses."""
        ends_before = {"source": remote, "destination": local}
        return (
            build(family, **ends_before, **fields),  # type: ignore[operator]
            build(family, **theirs_ends, **fields),  # type: ignore[operator]
        )

    pairs = [
        *(both(make.udp_packet, data=data) for data in payloads([0, 1, 2, 99, 1000])),
        *(both(make.tcp_packet, data=data) for data in payloads([0, 1, 2, 99, 1000])),
    ]
    peer = scapy_sa(theirs)
    arrived = []
    for sent, _ in pairs:
        outer = peer.encrypt(parse(sent))
        outer.src, outer.dst = str(theirs_ends["source"]), str(theirs_ends["destination"])
        if family == 4:
            del outer.chksum
        arrived.append(bytes(outer))
    received = gateway.receive(arrived)
    assert received.verdicts == {"pass": len(pairs)}
    assert received.packets == [wanted for _, wanted in pairs]


def test_udp_without_checksum_behind_nat(make_gateway: MakeGateway) -> None:
    """Over IPv4 a UDP checksum of zero says that there is none, and stays (RFC 768)."""
    for original in (None, (ip_address("10.9.8.7"), ip_address("10.0.0.1"))):
        gateway = make_gateway()
        ours, theirs = transport_pair(SUITES[0], encap=True)
        theirs = replace(theirs, nat_original=original)
        gateway.add(ours, theirs)
        way = ends(4, back=True)
        inner = make.ip(4, make.udp(b"data", none=True, **way), **way)  # type: ignore[arg-type]
        received = gateway.receive([bytes(scapy_sa(theirs).encrypt(parse(inner)))])
        assert received.packets == [inner]


def test_checksum_untouched_without_udp(make_gateway: MakeGateway) -> None:
    """Where no NAT can have been, a wrong checksum is the sender's, and the stack's to find."""
    gateway = make_gateway()
    ours, theirs = transport_pair(SUITES[0])
    gateway.add(ours, theirs)
    inner = bytearray(make.udp_packet(4, b"data", **ends(4, back=True)))
    inner[27] ^= 1
    assert gateway.receive([bytes(scapy_sa(theirs).encrypt(parse(bytes(inner))))]).packets == [bytes(inner)]


def test_refused_outbound(make_gateway: MakeGateway) -> None:
    """Fragments (RFC 4303 section 3.1.1), and packets between other hosts than the SA's."""
    for family in (4, 6):
        gateway = make_gateway()
        ours, _ = transport_pair(SUITES[0], family)
        gateway.add(ours)
        gateway.protect("out")
        other = {**ends(family), "destination": "192.0.2.77" if family == 4 else "2001:db8:f::77"}
        assert gateway.send([make.udp_packet(family, b"x", **other)]).drops == {"out": {"wrong_address": 1}}
        wrong = make.udp_packet(10 - family, b"x", **ends(10 - family))
        assert gateway.send([wrong]).drops == {"out": {"wrong_address": 1}}
        assert gateway.send([make.udp_packet(family, b"x", **ends(family))]).verdicts == {"pass": 1}
    for piece in ({"more": True}, {"offset": 1480}):
        packet = make.ip4(make.udp(bytes(8), **ends(4)), **ends(4), **piece)  # type: ignore[arg-type]
        gateway = make_gateway()
        ours, _ = transport_pair(SUITES[0])
        gateway.add(ours)
        gateway.protect("out", [host_selector(4)])
        assert gateway.send([packet]).verdicts == {"fragment": 1}
        assert gateway.sequence("out")[0] == 1


def test_refused_inbound(make_gateway: MakeGateway) -> None:
    """Dummies, another protocol than the selector's, a port outside it, a fragment inside."""
    gateway = make_gateway()
    ours, theirs = transport_pair(SUITES[0], 6)
    only = host_selector(6, protocol=17, remote_ports=(1701, 1701))
    gateway.add(ours, replace(theirs, selectors=(only,)))
    peer = scapy_sa(theirs)
    way = ends(6, back=True)

    def arrive(packet: bytes) -> object:
        return gateway.receive([bytes(peer.encrypt(parse(packet)))]).verdicts

    assert arrive(make.udp_packet(6, b"l2tp", ports=(1701, 1701), **way)) == {"pass": 1}
    assert arrive(make.udp_packet(6, b"l2tp", ports=(1702, 1701), **way)) == {"inner_selectors": 1}
    assert arrive(make.tcp_packet(6, b"l2tp", ports=(1701, 1701), **way)) == {"inner_selectors": 1}
    assert arrive(make.ip(6, b"anything", protocol=59, **way)) == {"dummy": 1}
    # A fragment header behind ESP: no host that keeps to RFC 4303 sends one, and scapy does not split there.
    piece = bytes([17, 0, 0, 1]) + bytes(4) + make.udp(b"data", ports=(1701, 1701), **way)  # type: ignore[arg-type]
    assert arrive(make.ip(6, piece, protocol=44, **way)) == {"inner_malformed": 1}


def test_path_mtu(make_gateway: MakeGateway) -> None:
    """The largest packet that passes fits the path, with options and without; one byte more gets an answer."""
    for suite in SOME:
        for family, encap in ((4, False), (4, True), (6, False), (6, True)):
            gateway = make_gateway(lan_addresses=OUTER[family][:1])
            ours, _ = transport_pair(suite, family, encap=encap)
            gateway.add(ours)
            gateway.protect("out", [host_selector(family)])
            most = ours.inner_mtu(1500)
            room = most - (28 if family == 4 else 48)
            sent = gateway.send([make.udp_packet(family, bytes(room), **ends(family))])
            assert sent.verdicts == {"pass": 1}
            block = ours.proposal.alignment
            assert 1500 - 2 * block < len(sent.packets[0]) <= 1500
            df = {"df": True} if family == 4 else {}
            over = make.udp_packet(family, bytes(room + 1), **df, **ends(family))
            assert gateway.send([over]).verdicts["too_big"] == 1
            if family == 4:
                for words in range(1, 11):
                    packet = make.udp_packet(
                        4, bytes(room - 4 * words), options=b"\x01" * 4 * words, **ends(4)
                    )
                    assert len(gateway.send([packet]).packets[0]) <= 1500


def test_selectors_down_to_ports(make_gateway: MakeGateway) -> None:
    """One SA for L2TP, another for ssh, the rest in clear: policies of one pair of hosts, in their order."""
    gateway = make_gateway()
    ours, _ = transport_pair(SUITES[0])
    ssh = replace(ours, name="ssh", spi=0xC0000002)
    gateway.add(ours, ssh)
    l2tp = host_selector(4, protocol=17, local_ports=(1701, 1701), remote_ports=(1701, 1701))
    gateway.set_policies(
        [
            PolicySpec(name="l2tp", action=Action.PROTECT, selector=l2tp, sa="out"),
            PolicySpec(
                name="ssh",
                action=Action.PROTECT,
                selector=host_selector(4, protocol=6, remote_ports=(22, 22)),
                sa="ssh",
            ),
            PolicySpec(name="rest", action=Action.BYPASS, selector=host_selector(4)),
        ]
    )
    mixed = [
        make.udp_packet(4, b"a", ports=(1701, 1701), **ends(4)),
        make.udp_packet(4, b"b", ports=(1701, 1702), **ends(4)),
        make.tcp_packet(4, b"c", ports=(40000, 22), **ends(4)),
        make.tcp_packet(4, b"d", ports=(22, 40000), **ends(4)),
        make.udp_packet(4, b"e", ports=(1701, 1701), **ends(4)),
    ]
    sent = gateway.send(mixed)
    assert sent.verdicts == {"pass": 3, "bypassed": 2}
    assert sent.kernel == [mixed[1], mixed[3]]
    assert sent.passed["out"][0] == 2
    assert sent.passed["ssh"][0] == 1


def test_runs_of_both_modes_share_a_batch(make_gateway: MakeGateway) -> None:
    """Tunnel and transport packets in one batch, interleaved: each leaves in its own way."""
    gateway = make_gateway()
    ours, theirs = transport_pair(SUITES[0])
    tunnel = outbound_sa(SUITES[0], name="tunnel", spi=0xC0000003, seed=3)
    tunnel_in = inbound_sa(SUITES[0], name="tunnel in", spi=0xD0000003, seed=3)
    gateway.add(ours, theirs, tunnel, tunnel_in)
    everything = SelectorSpec.from_networks(ip_network("0.0.0.0/0"), ip_network("0.0.0.0/0"))
    gateway.set_policies(
        [
            PolicySpec(name="hosts", action=Action.PROTECT, selector=host_selector(4), sa="out"),
            PolicySpec(name="nets", action=Action.PROTECT, selector=everything, sa="tunnel"),
        ]
    )
    inner = []
    for number, data in enumerate(payloads([40] * 40)):
        inner.append(make.udp_packet(4, data, **(ends(4) if number % 3 else {})))
    sent = gateway.send(inner)
    assert sent.verdicts == {"pass": 40}
    by_spi = {ours.spi: scapy_sa(ours), tunnel.spi: scapy_sa(tunnel)}
    by_spi[tunnel.spi].tunnel_header = IP()
    opened = [bytes(by_spi[parse(wire)[ESP].spi].decrypt(parse(wire))) for wire in sent.packets]
    assert sorted(opened) == sorted(inner)

    back = []
    for number, data in enumerate(payloads([40] * 40)):
        spec = theirs if number % 3 else tunnel_in
        peer = scapy_sa(spec)
        if spec is tunnel_in:
            peer.tunnel_header = IP(src=str(spec.remote), dst=str(spec.local))
        packet = make.udp_packet(4, data, **(ends(4, back=True) if number % 3 else {}))
        back.append((packet, bytes(peer.encrypt(parse(packet), seq_num=number + 1))))
    received = gateway.receive([wire for _, wire in back])
    assert received.verdicts == {"pass": 40}
    assert received.packets == [packet for packet, _ in back]
