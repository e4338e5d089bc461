"""SA bundles, AH around ESP: scapy takes off the AH and then opens the ESP, and we do with what scapy has made.

scapy's two SAs know nothing of each other: it seals a packet with ESP and authenticates the result, as any packet, with
AH in transport mode, and the reverse.
"""

from __future__ import annotations

import random
from dataclasses import replace
from ipaddress import ip_network
from itertools import product

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import HBHOptUnknown, IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrHopByHop, Pad1
from scapy.layers.ipsec import ESP, SecurityAssociation
from scapy.packet import bind_layers, split_layers

from control.config.proposal import format_proposal
from dataplane.model import (
    Action,
    Cipher,
    Df,
    EspProposal,
    Fragment,
    Integrity,
    Mode,
    PolicySpec,
    Protocol,
    SaSpec,
    SelectorSpec,
)
from tests import packets as make
from tests.ah import Peer
from tests.conformance import BUNDLE, SCAPY
from tests.conftest import Agreement
from tests.exchange import test_scapy_ah as ah
from tests.exchange import test_transport as transport
from tests.exchange.suites import SPI_IN, SPI_OUT, inbound_sa, mirror, outbound_sa, suite_id
from tests.exchange.test_scapy import CROSSING, inner_packets, parse
from tests.exchange.test_scapy import scapy_sa as scapy_tunnel
from tests.exchange.test_scapy_ah_transport import whole_icv
from tests.exchange.test_transport import ends, host_selector
from tests.ext.test_dummies import seconds_of
from tests.ext.test_fragments import together
from tests.fuzz.world import turned
from tests.gateway import ANY4, ANY6, Gateway, MakeGateway, engine_and_way  # noqa: F401
from tests.packets import udp_packet

GCM = EspProposal(cipher=Cipher.AES_GCM, key_bits=128)
CBC = EspProposal(cipher=Cipher.AES_CBC, key_bits=256, integrity=Integrity.HMAC_SHA2_512)
CHACHA = EspProposal(cipher=Cipher.CHACHA20_POLY1305, key_bits=256)
NULL = EspProposal(cipher=Cipher.NULL, key_bits=0, integrity=Integrity.HMAC_SHA1)
SHA256 = EspProposal(cipher=Cipher.NULL, key_bits=0, integrity=Integrity.HMAC_SHA2_256)
SHA512 = EspProposal(cipher=Cipher.NULL, key_bits=0, integrity=Integrity.HMAC_SHA2_512)
CMAC = EspProposal(cipher=Cipher.NULL, key_bits=0, integrity=Integrity.AES_CMAC)
GMAC = EspProposal(cipher=Cipher.NULL, key_bits=256, integrity=Integrity.AES_GMAC)
SUITES = [(GCM, SHA256), (CBC, SHA512), (CHACHA, GMAC), (NULL, CMAC)]
SIZES = [0, 1, 2, 3, 13, 64, 777, 1400]
CASES = [
    *((esp, auth, 1) for esp, auth in SUITES),
    *((replace(esp, esn=True), replace(auth, esn=True), CROSSING) for esp, auth in SUITES[:2]),
    (GCM, replace(SHA256, esn=True), CROSSING),
]
PARAMETERS = [
    pytest.param(
        *(esp, auth, first),
        id=f"{suite_id(esp)}-{suite_id(auth)}-{first:x}",
        marks=pytest.mark.full if esp in (CBC, NULL) or esp.esn != auth.esn else (),
    )
    for esp, auth, first in CASES
]


def bundle(
    esp: EspProposal, auth: EspProposal, *, family: int = 4, mode: Mode = Mode.TUNNEL, first: int = 1
) -> dict[str, SaSpec]:
    """Our four SAs: "out" goes into "ah-out", and "in" comes by "ah-in"."""
    inside = (host_selector(family),)
    found = {
        "ah-out": outbound_sa(auth, family=family, seed=2, spi=SPI_OUT + 2),
        "ah-in": inbound_sa(auth, family=family, seed=3, spi=SPI_IN + 2, selectors=inside),
        "out": outbound_sa(esp, family=family, mode=mode),
        "in": inbound_sa(
            esp, family=family, mode=mode, selectors=(ANY4, ANY6) if mode is Mode.TUNNEL else inside
        ),
    }
    for name, spec in found.items():
        changes: dict[str, object] = {"name": name, "sequence": first if spec.proposal.esn else 1}
        if name.startswith("ah"):
            changes |= {"protocol": Protocol.AH, "mode": Mode.TRANSPORT}
        else:
            around = found[f"ah-{name}"]
            changes |= {"outer": f"ah-{name}", "outer_length": around.ah_length}
        found[name] = replace(spec, **changes)  # type: ignore[arg-type]
    return found


def added(gateway: Gateway, sas: dict[str, SaSpec], family: int, mode: Mode) -> Gateway:
    """The gateway with a bundle and a policy by it."""
    gateway.add(*sas.values())
    gateway.protect("out", [host_selector(family)] if mode is Mode.TRANSPORT else [ANY4, ANY6])
    return gateway


def scapy_esp(spec: SaSpec, *, from_us: bool) -> object:
    """An SA of ESP as scapy sees it."""
    if spec.mode is Mode.TUNNEL:
        return scapy_tunnel(spec, from_us=from_us)
    return transport.scapy_sa(spec)


def authenticate(around: SecurityAssociation, sealed: bytes, **numbers: int) -> bytes:
    """AH by scapy around a packet of ESP, which it may not know as such: it would put the ICV where ESP has its own."""
    layers = ((IP, {"proto": 50}), (IPv6, {"nh": 50}))
    for layer, field in layers:
        split_layers(layer, ESP, **field)
    try:
        return bytes(around.encrypt(parse(sealed), **numbers))
    finally:
        for layer, field in layers:
            bind_layers(layer, ESP, **field)


def between(family: int, mode: Mode, *, back: bool) -> list[bytes]:
    """Packets that a bundle takes: of protected hosts of both families, or of its own two."""
    if mode is Mode.TUNNEL:
        return [packet for inner in (4, 6) for packet in inner_packets(inner, SIZES)]
    return [make.udp_packet(family, data, **ends(family, back=back)) for data in transport.payloads(SIZES)]


@pytest.mark.parametrize(("family", "mode"), list(product((4, 6), Mode)))
@pytest.mark.parametrize(("esp", "auth", "first"), PARAMETERS)
def test_agreement(
    make_gateway: MakeGateway,
    esp: EspProposal,
    auth: EspProposal,
    first: int,
    family: int,
    mode: Mode,
    agreement: Agreement,
) -> None:
    """Both ways, every size; both SAs count every packet."""
    if auth.integrity is not Integrity.AES_GMAC and esp.esn == auth.esn:
        words = (
            format_proposal(replace(esp, esn=False)),
            format_proposal(replace(auth, esn=False), Protocol.AH),
        )
        mixes = [f"IPv{family}"] if mode is Mode.TRANSPORT else [f"{inner}in{family}" for inner in (4, 6)]
        for mix in mixes:
            about = {"protocol": BUNDLE, "mode": mode.value, "mix": mix, "esn": esp.esn}
            agreement(peer=SCAPY, suite=" in ".join(words), **about)
    sas = bundle(esp, auth, family=family, mode=mode, first=first)
    gateway = added(make_gateway(mtu=1700), sas, family, mode)
    inner = between(family, mode, back=False)
    sent = gateway.send(inner)
    assert sent.verdicts == {"pass": len(inner)}
    assert sent.passed["out"] == (len(inner), sum(map(len, inner)))
    outer_ah, inner_esp = ah.scapy_sa(sas["ah-out"], None), scapy_esp(sas["out"], from_us=True)
    sizes = 0
    for at, (packet, wire) in enumerate(zip(inner, sent.packets, strict=True)):
        number, esp_number = sas["ah-out"].sequence + at, sas["out"].sequence + at
        if family == 4:
            assert make.checksum(wire[:20]) == 0
        whole_icv(sas["ah-out"], wire, number)
        bare = bytes(outer_ah.decrypt(parse(wire), esn=number >> 32))
        assert len(bare) == len(wire) - sas["ah-out"].ah_length
        sizes += len(bare)
        opened = bytes(inner_esp.decrypt(parse(bare), esn=esp_number >> 32))
        if mode is Mode.TRANSPORT:
            assert opened == packet
        else:
            assert opened[12:] == packet[12:]  # behind what a hop changes
    assert sent.passed["ah-out"] == (len(inner), sizes)

    inner = between(family, mode, back=True)
    outer_ah, inner_esp = ah.scapy_sa(sas["ah-in"], None), scapy_esp(sas["in"], from_us=False)
    outer_ah.seq_num = inner_esp.seq_num = 0  # scapy's way to number 2^32
    wires = []
    for at, packet in enumerate(inner):
        number, esp_number = sas["ah-in"].sequence + at, sas["in"].sequence + at
        sealed = inner_esp.encrypt(parse(packet), seq_num=esp_number & 0xFFFFFFFF, esn=esp_number >> 32)
        wires.append(authenticate(outer_ah, bytes(sealed), seq_num=number & 0xFFFFFFFF, esn=number >> 32))
    got = gateway.receive(wires)
    assert got.verdicts == {"pass": len(inner)}
    if mode is Mode.TRANSPORT:
        assert got.packets == inner
    assert got.passed["in"] == (len(inner), sum(map(len, inner)))
    assert got.passed["ah-in"][0] == len(inner)
    for name in ("in", "ah-in"):
        assert gateway.replay_top(name) == sas[name].sequence + len(inner) - 1
    again = gateway.receive(wires)
    assert again.verdicts == {"replay": len(inner)}
    assert again.drops == {"ah-in": {"replay": len(inner)}}


def mirrored(sas: dict[str, SaSpec], family: int, mode: Mode) -> dict[str, SaSpec]:
    """The inbound SAs that open what the outbound ones send, as if this gateway were its own peer."""
    selectors = (ANY4, ANY6) if mode is Mode.TUNNEL else (turned(host_selector(family)),)
    around = mirror(sas["ah-out"], name="ah-in", selectors=(turned(host_selector(family)),))
    return {"ah-in": around, "in": mirror(sas["out"], name="in", selectors=selectors, outer="ah-in")}


def looped(gateway: Gateway, **rest: object) -> dict[str, SaSpec]:
    """Outbound bundle and its mirror in one gateway."""
    family, mode = rest.get("family", 4), rest.get("mode", Mode.TUNNEL)
    sas = bundle(GCM, SHA256, **rest)  # type: ignore[arg-type]
    sas |= mirrored(sas, family, mode)  # type: ignore[arg-type]
    added(gateway, sas, family, mode)  # type: ignore[arg-type]
    return sas


def test_neither_without_the_other(make_gateway: MakeGateway) -> None:
    """Bare ESP of a bundle, AH of a bundle with something else in it, and ESP under another AH: dropped by name."""
    gateway = make_gateway()
    sas = looped(gateway)
    inner = udp_packet(4, b"text")
    wires = gateway.send([inner] * 4).packets
    bare = [bytes(ah.scapy_sa(sas["ah-out"], None).decrypt(parse(wire))) for wire in wires]
    got = gateway.receive([bare[0]])
    assert (got.verdicts, got.drops) == ({"bundle": 1}, {"in": {"bundle": 1}})
    assert gateway.replay_top("in") == 0
    # The bundle's AH around no ESP, and around ESP of an SA that is in no bundle or in another one.
    around = ah.scapy_sa(sas["ah-in"], None)
    around.seq_num = 100
    got = gateway.receive([bytes(around.encrypt(parse(make.udp_packet(4, b"bare", **ends(4)))))])
    assert (got.verdicts, got.drops) == ({"bundle": 1}, {"ah-in": {"bundle": 1}})
    lone = mirror(outbound_sa(CHACHA, seed=5), name="lone", spi=SPI_IN + 4)
    strange = mirror(outbound_sa(CHACHA, seed=6), name="strange", spi=SPI_IN + 6, outer="others")
    others = mirror(bundle(CHACHA, SHA512)["ah-out"], name="others", spi=SPI_IN + 8)
    gateway.add(lone, others, strange)
    for spec in (lone, strange):
        sealed = bytes(scapy_tunnel(spec, from_us=False).encrypt(parse(inner), seq_num=9))
        got = gateway.receive([authenticate(around, sealed)])
        assert (got.verdicts, got.drops) == ({"bundle": 1}, {spec.name: {"bundle": 1}}), spec.name
        assert gateway.replay_top(spec.name) == 0
    # Whole packets still pass.
    got = gateway.receive(wires)
    assert got.verdicts == {"pass": 4}


@pytest.mark.parametrize("name", ["hop-by-hop", "for-the-last-alone"])
def test_extension_headers(make_gateway: MakeGateway, name: str) -> None:
    """IPv6 in transport mode: headers for the way stay before both, and what may change in them is not covered."""
    gateway = make_gateway()
    sas = looped(gateway, family=6, mode=Mode.TRANSPORT)
    header = (
        IPv6ExtHdrHopByHop(options=[HBHOptUnknown(otype=0x3E, optdata=b"may change"), Pad1()])
        if name == "hop-by-hop"
        else IPv6ExtHdrDestOpt(options=[HBHOptUnknown(otype=0x3F, optdata=b"covered")])
    )
    source, destination = ends(6).values()
    packet = bytes(IPv6(src=str(source), dst=str(destination)) / header / UDP(sport=5, dport=6) / b"text")
    [wire] = gateway.send([packet]).packets
    bare = ah.scapy_sa(sas["ah-out"], None).decrypt(parse(wire))
    assert bytes(transport.scapy_sa(sas["out"]).decrypt(parse(bytes(bare)))) == packet
    got = gateway.receive([wire])
    assert (got.verdicts, got.packets) == ({"pass": 1}, [packet])


@pytest.mark.parametrize(("family", "mode"), list(product((4, 6), Mode)))
def test_largest(make_gateway: MakeGateway, family: int, mode: Mode) -> None:
    """Room for both headers is kept: what just fits fills the path, one byte more is answered."""
    gateway = make_gateway()
    sas = looped(gateway, family=family, mode=mode)
    room = sas["out"].inner_mtu(1500)
    assert room == replace(sas["out"], outer=None, outer_length=0).inner_mtu(1500 - sas["ah-out"].ah_length)
    way = ends(family) if mode is Mode.TRANSPORT else {}
    whole = {"df": True} if family == 4 else {}
    fits, does_not = (
        make.ip(family, bytes(size - (20 if family == 4 else 40)), protocol=253, **whole, **way)
        for size in (room, room + 1)
    )
    result = gateway.send([fits, does_not])
    assert result.verdicts == {"pass": 1, "too_big": 1, "icmp_sent": 1}
    assert 1500 - 4 < len(result.packets[0]) <= 1500
    assert gateway.receive(result.packets).verdicts == {"pass": 1}


def to_host(address: str) -> SelectorSpec:
    """All that goes there."""
    return SelectorSpec.from_networks(ip_network("0.0.0.0/0"), ip_network(address))


def test_among_others(make_gateway: MakeGateway) -> None:
    """Packets of bundles, of plain tunnels and what is refused share batches, and each goes its own way."""
    gateway = make_gateway()
    sas = bundle(GCM, SHA256)
    sas |= mirrored(sas, 4, Mode.TUNNEL)
    plain = outbound_sa(CHACHA, name="plain", spi=SPI_OUT + 9, seed=9)
    gateway.add(*sas.values(), plain, mirror(plain, name="plain-in"))
    inside = [udp_packet(4, b"%d" % number, destination=f"10.2.0.{number % 3 + 1}") for number in range(60)]
    gateway.set_policies(
        [
            PolicySpec(name=sa, action=Action.PROTECT, selector=to_host(host), sa=sa)
            for host, sa in (("10.2.0.1", "out"), ("10.2.0.2", "plain"))
        ]
    )
    sent = gateway.send(inside)
    assert sent.verdicts == {"pass": 40, "no_policy": 20}
    assert {name: count for name, (count, _) in sent.passed.items()} == {"out": 20, "ah-out": 20, "plain": 20}
    got = gateway.receive(sent.packets)
    assert got.verdicts == {"pass": 40}
    # Among the flows order may change, where one waits for its second SA; in each of them it does not.
    for which in (0, 1):
        numbers = [int(packet[28:]) for packet in got.packets if packet[19] == which + 1]
        assert numbers == list(range(which, 60, 3))


def test_numbers_run_out(make_gateway: MakeGateway) -> None:
    """When the AH has no numbers left nothing leaves, and the drop is the AH's."""
    gateway = make_gateway()
    sas = bundle(GCM, SHA256)
    sas["ah-out"] = replace(sas["ah-out"], sequence=2**32 - 2)
    added(gateway, sas, 4, Mode.TUNNEL)
    sent = gateway.send([udp_packet(4, b"text")] * 5)
    assert sent.verdicts == {"pass": 2, "sequence_exhausted": 3}
    assert sent.drops == {"ah-out": {"sequence_exhausted": 3}}
    assert sent.passed["ah-out"][0] == 2


@pytest.mark.parametrize("family", [4, 6])
def test_cut_after(make_gateway: MakeGateway, family: int) -> None:
    """What is cut after encapsulation is cut behind the AH: put together again, it is whole."""
    gateway = make_gateway(mtu=1280)
    sas = bundle(GCM, SHA256, family=family)
    sas["out"] = replace(sas["out"], fragment=Fragment.AFTER, df=Df.CLEAR)
    gateway.add(*sas.values(), *mirrored(sas, family, Mode.TUNNEL).values())
    gateway.protect("out")
    packet = make.ip(4, bytes(range(250)) * 6, protocol=253)
    sent = gateway.send([packet])
    assert sent.verdicts == {"pass": 2, "fragmented": 1}
    assert all(len(piece) <= 1280 for piece in sent.packets)
    head, body = sent.packets[0][: 20 if family == 4 else 40], together(sent.packets)
    if family == 4:
        whole = bytearray(head + body)
        whole[2:4], whole[6:8], whole[10:12] = len(whole).to_bytes(2, "big"), b"\0\0", b"\0\0"
        whole[10:12] = make.checksum(bytes(whole[:20])).to_bytes(2, "big")
    else:
        whole = bytearray(head + body)
        whole[4:7] = len(body).to_bytes(2, "big") + bytes([make.AH])
    got = gateway.receive([bytes(whole)])
    assert (got.verdicts, got.packets) == ({"pass": 1}, [packet])
    assert gateway.replay_top("in") == gateway.replay_top("ah-in") == 1


def test_cut_before(make_gateway: MakeGateway) -> None:
    """Pieces that are enciphered one by one each fit with both headers."""
    gateway = make_gateway(mtu=1280)
    looped(gateway)
    packet = make.ip(4, bytes(1400), protocol=253)
    sent = gateway.send([packet])
    assert sent.verdicts == {"pass": 2, "fragmented": 1}
    got = gateway.receive(sent.packets)
    assert got.verdicts == {"pass": 2}
    assert together(got.packets) == packet[20:]


def test_dummies(make_gateway: MakeGateway) -> None:
    """They are under AH as all others are, and count as little."""
    gateway = make_gateway()
    sas = bundle(GCM, SHA256)
    sas["out"] = replace(sas["out"], tfc_dummies=200)
    sas |= mirrored(sas, 4, Mode.TUNNEL)
    sas["in"] = replace(sas["in"], tfc_dummies=0)
    added(gateway, sas, 4, Mode.TUNNEL)
    sent = seconds_of(gateway, 20)
    assert sent and {wire[9] for wire in sent} == {make.AH}
    got = gateway.receive(sent)
    assert got.verdicts == {"dummy": len(sent)}
    counters = gateway.tables.sa_counters[0][gateway.indices["out"]]
    assert (counters["packets"], counters["bytes"], counters["last_used"]) == (0, 0, 0)


@pytest.mark.parametrize("family", [4, 6])
def test_whatever_is_in_the_ah(make_gateway: MakeGateway, family: int) -> None:
    """Authentic AH of a bundle around anything: each packet has a verdict, and only ESP of the bundle passes."""
    chance = random.Random(family)
    gateway = make_gateway()
    sas = looped(gateway, family=family)
    peer = Peer(sas["ah-in"])
    good = gateway.send([udp_packet(4, b"text")] * 40).packets
    esp = [wire[sas["ah-out"].ah_length + (20 if family == 4 else 40) :] for wire in good]
    inner_ah = good[0][20 if family == 4 else 40 :]
    spi = sas["in"].spi.to_bytes(4, "big")
    wires = []
    for _ in range(2000):
        next_header, body = chance.choice(
            [
                (make.ESP, spi + chance.randbytes(chance.randrange(60))),
                (make.ESP, spi[: chance.randrange(5)]),
                (make.ESP, chance.randbytes(chance.randrange(60))),
                (make.ESP, broken(chance, chance.choice(esp))),
                (make.AH, inner_ah),
                (make.UDP, chance.randbytes(chance.randrange(40))),
                (make.UDP, b"\x11\x94\x11\x94" + (8 + len(esp[0])).to_bytes(2, "big") + bytes(2) + esp[0]),
                (make.IPIP, udp_packet(4)),
                (make.IPV6, udp_packet(6)),
                (chance.randrange(256), chance.randbytes(chance.randrange(80))),
            ]
        )
        wires.append(peer.packet(body, next_header=next_header))
    got = gateway.receive(wires)
    assert got.packets == got.kernel == []
    assert sum(got.verdicts.values()) == len(wires) and not got.verdicts["pass"]
    assert {"bundle", "esp_truncated", "no_sa"} <= set(got.verdicts)
    assert gateway.replay_top("in") == 0
    # The AH of the good ones is old by now; under an AH of today they pass.
    again = [peer.packet(each, next_header=make.ESP) for each in esp]
    assert gateway.receive(again).verdicts == {"pass": len(esp)}


def broken(chance: random.Random, esp: bytes) -> bytes:
    """A packet of ESP with a wrong bit behind its SPI, or cut short."""
    if chance.randrange(2):
        return esp[: chance.randrange(len(esp))]
    at = chance.randrange(4, len(esp))
    return esp[:at] + bytes([esp[at] ^ 1 << chance.randrange(8)]) + esp[at + 1 :]
