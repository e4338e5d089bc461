"""scapy's AH and ours: every algorithm both ways, every mix of families, ESN, options and extension headers.

scapy has no AES-GMAC in AH: GmacOfAh is one, while what the ICV covers stays scapy's to say.
scapy is told ESN's high half; its only other shortcut is that it takes ICV padding for part of the ICV, which for the
32-byte ICV over IPv6 it then compares.
"""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from scapy.layers.inet import IP, IPOption_LSRR, IPOption_NOP, IPOption_Router_Alert, IPOption_Timestamp
from scapy.layers.inet6 import (
    HBHOptUnknown,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    Pad1,
    PadN,
    RouterAlert,
)
from scapy.layers.ipsec import AH, AUTH_ALGOS, AuthAlgo, SecurityAssociation
from scapy.packet import Packet

from control.config.proposal import format_proposal
from dataplane.model import Cipher, EspProposal, Integrity, Protocol, SaSpec
from tests.ah import Peer, ah_offset, open_packet
from tests.conformance import SCAPY
from tests.conftest import Agreement
from tests.exchange.suites import AH_GMACS, HMACS, inbound_sa, outbound_sa, scapy_names, suite_id
from tests.exchange.test_scapy import CROSSING, MIXES, SIZES, inner_packets, parse
from tests.gateway import MakeGateway
from tests.packets import udp_packet

SUITES = [
    *(
        EspProposal(cipher=Cipher.NULL, key_bits=0, integrity=integrity)
        for integrity in (*HMACS, Integrity.AES_CMAC)
    ),
    *AH_GMACS,
]
CASES = [
    *((suite, 1, *mix) for suite in SUITES for mix in MIXES),
    *((replace(suite, esn=True), CROSSING, outer, 4) for suite in SUITES for outer in (4, 6)),
    (replace(SUITES[0], esn=True), 0x1_2345_6789_ABCD, 4, 6),
]
AH_SA = {"protocol": Protocol.AH}


class GmacOfAh(AuthAlgo):
    """AES-GMAC by RFC 4543 section 4: the ICV field is an IV, which is covered, and a tag of salt and IV for nonce."""

    def __init__(self) -> None:
        super().__init__("AES-GMAC", mac=AESGCM, digestmod=None, icv_size=24, key_size=(20, 28, 36))
        self.iv = b""
        self.key = b""
        self.text = b""

    def new_mac(self, key: bytes) -> GmacOfAh:
        """One packet's."""
        self.key, self.text = key, b""
        return self

    def update(self, text: bytes) -> None:
        """More of what is covered."""
        self.text += text

    def finalize(self) -> bytes:
        """The ICV field. scapy has zeroed all of it; the IV is covered."""
        at = ah_offset(self.text) + 12
        text = self.text[:at] + self.iv + self.text[at + len(self.iv) :]
        return self.iv + AESGCM(self.key[:-4]).encrypt(self.key[-4:] + self.iv, b"", text)

    def sign(self, pkt: Packet, key: bytes, esn_en: bool = False, esn: int = 0) -> Packet:
        """With the number for IV."""
        self.iv = struct.pack(">II", esn, pkt[AH].seq)
        return super().sign(pkt, key, esn_en, esn)

    def verify(self, pkt: Packet, key: bytes, esn_en: bool = False, esn: int = 0) -> None:
        """With the IV that has come."""
        self.iv = pkt[AH].icv[:8]
        super().verify(pkt, key, esn_en, esn)


AUTH_ALGOS["AES-GMAC"] = GmacOfAh()


def scapy_sa(spec: SaSpec, tunnel_header: Packet | None) -> SecurityAssociation:
    """The same SA as scapy sees it."""
    return SecurityAssociation(
        AH,
        spi=spec.spi,
        auth_algo=scapy_names(spec.proposal).auth,
        auth_key=spec.integrity_key,
        tunnel_header=tunnel_header,
        esn_en=spec.proposal.esn,
    )


def outer_of(spec: SaSpec, **fields: object) -> Packet:
    """The header that the peer of inbound SA `spec` sends by."""
    layer = IP if spec.local.version == 4 else IPv6
    return layer(src=str(spec.remote), dst=str(spec.local), **fields)


def about_ah(agreement: Agreement, suite: EspProposal, **rest: str) -> None:
    """What a test with scapy is about, unless it is AES-GMAC, which is not scapy's."""
    if suite.integrity is not Integrity.AES_GMAC:
        words = format_proposal(replace(suite, esn=False), Protocol.AH)
        agreement(peer=SCAPY, protocol="ah", suite=words, esn=suite.esn, **rest)


@pytest.mark.parametrize(
    ("suite", "first", "outer", "inner"),
    CASES,
    ids=[f"{suite_id(suite)}-{first:x}-{inner}in{outer}" for suite, first, outer, inner in CASES],
)
def test_agreement(
    make_gateway: MakeGateway, suite: EspProposal, first: int, outer: int, inner: int, agreement: Agreement
) -> None:
    """Both ways, at every size; what scapy opens an implementation of our own opens, too."""
    about_ah(agreement, suite, mix=f"{inner}in{outer}")
    gateway = make_gateway(mtu=1600)
    ours = outbound_sa(suite, family=outer, sequence=first, **AH_SA)
    theirs = inbound_sa(suite, family=outer, sequence=first, **AH_SA)
    gateway.add(ours, theirs)
    gateway.protect("out")
    packets = inner_packets(inner, SIZES)

    sent = gateway.send(packets)
    assert sent.verdicts == {"pass": len(packets)}
    peer = scapy_sa(ours, outer_of(theirs))
    for number, (packet, wire) in enumerate(zip(packets, sent.packets, strict=True), first):
        assert open_packet(ours, wire, number)[1] == packet
        seen = parse(wire)
        assert (seen[AH].seq, seen[AH].spi) == (number & 0xFFFFFFFF, ours.spi)
        assert bytes(peer.decrypt(seen, esn=number >> 32)) == packet

    peer = scapy_sa(theirs, outer_of(theirs))
    peer.seq_num = 0  # scapy cannot be told number 0, but counts from it
    wires = [
        bytes(peer.encrypt(parse(packet), seq_num=number & 0xFFFFFFFF, esn=number >> 32))
        for number, packet in enumerate(packets, first)
    ]
    by_hand = Peer(theirs)
    fields = {"identification": 1} if outer == 4 else {}
    assert wires == [by_hand.packet(packet, **fields) for packet in packets]
    received = gateway.receive(wires)
    assert received.verdicts == {"pass": len(packets)}
    assert received.packets == packets
    assert gateway.replay_top("in") == first + len(packets) - 1


OPTIONS = {
    "router-alert": [IPOption_Router_Alert()],
    "timestamp": [IPOption_NOP(), IPOption_Timestamp(flg=0, length=8, pointer=9, timestamp=7)],
    "route-used-up": [IPOption_LSRR(routers=["192.0.2.9"], pointer=8), IPOption_NOP()],
    "several": [IPOption_NOP(), IPOption_Router_Alert(), IPOption_Timestamp(flg=0, length=8), IPOption_NOP()],
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options(make_gateway: MakeGateway, name: str) -> None:
    """IPv4 options before the AH: those that may change are zero for the ICV, the others covered."""
    gateway = make_gateway()
    theirs = inbound_sa(SUITES[0], **AH_SA)
    gateway.add(theirs)
    inner = udp_packet(4, b"behind options")
    wire = bytes(scapy_sa(theirs, outer_of(theirs, options=OPTIONS[name])).encrypt(IP(inner)))
    assert wire[0] & 15 > 5
    assert Peer(theirs).packet(inner, options=wire[20 : (wire[0] & 15) * 4], identification=1) == wire
    received = gateway.receive([wire])
    assert (received.verdicts, received.packets) == ({"pass": 1}, [inner])


EXTENSIONS = {
    "hop-by-hop": IPv6ExtHdrHopByHop(options=[RouterAlert()]),
    "mutable": IPv6ExtHdrHopByHop(options=[HBHOptUnknown(otype=0x3E, optdata=b"may change"), Pad1()]),
    "immutable": IPv6ExtHdrDestOpt(
        options=[HBHOptUnknown(otype=0x1E, optdata=b"may not"), PadN(optdata=b"\0\0")]
    ),
    "routing-used-up": IPv6ExtHdrRouting(addresses=["2001:db8::5", "2001:db8::6"], segleft=0),
    "all": IPv6ExtHdrHopByHop(options=[HBHOptUnknown(otype=0x3E, optdata=b"seen")])
    / IPv6ExtHdrDestOpt(options=[HBHOptUnknown(otype=0x3F, optdata=b"here")])
    / IPv6ExtHdrRouting(addresses=["2001:db8::7"], segleft=0)
    / IPv6ExtHdrDestOpt(options=[HBHOptUnknown(otype=0x1F, optdata=b"there")]),
}


@pytest.mark.parametrize("name", EXTENSIONS)
def test_extension_headers(make_gateway: MakeGateway, name: str) -> None:
    """IPv6 extension headers before the AH."""
    gateway = make_gateway()
    theirs = inbound_sa(SUITES[0], family=6, **AH_SA)
    gateway.add(theirs)
    inner = udp_packet(6, b"behind extensions")
    chain = bytes(EXTENSIONS[name])
    last = last_of(EXTENSIONS[name])
    chain = chain[:last] + bytes([51]) + chain[last + 1 :]
    first = {IPv6ExtHdrHopByHop: 0, IPv6ExtHdrDestOpt: 60, IPv6ExtHdrRouting: 43}[type(EXTENSIONS[name])]
    wire = Peer(theirs).packet(inner, extensions=chain, first=first)
    seen = IPv6(wire)
    # scapy, as the receiver, finds the ICV right before we are asked.
    assert bytes(scapy_sa(theirs, outer_of(theirs)).decrypt(seen)) == inner
    received = gateway.receive([wire])
    assert (received.verdicts, received.packets) == ({"pass": 1}, [inner])


def last_of(chain: Packet) -> int:
    """Where the last extension header of a chain begins."""
    offset = 0
    while chain.payload:
        offset += len(chain) - len(chain.payload)
        chain = chain.payload
    return offset
