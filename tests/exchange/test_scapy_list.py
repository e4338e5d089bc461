"""scapy's own list of ESP and AH cases (its test/scapy/layers/ipsec.uts), each between scapy and this gateway.

What that list seals and opens by itself goes from scapy to us and from us to scapy here, with its packets: a TCP
segment of eight bytes, between two hosts or in a tunnel. Where the list alters a packet, so do we, both ways; every
packet is cut anywhere in its ICV, too. Its algorithms that may not be used any more, or not without integrity, are
refused by name. Keys have the lengths that RFCs want; the list's are shorter for HMAC.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import (
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.ipsec import AH, ESP, IPSecIntegrityError, SecurityAssociation
from scapy.packet import Packet, Raw

from control.config.proposal import parse_ah_proposal, parse_proposal
from dataplane.model import Mode, Protocol, SaSpec
from tests.exchange import test_scapy, test_scapy_ah, test_transport
from tests.exchange.suites import inbound_sa, outbound_sa
from tests.exchange.test_public_packets import cut
from tests.exchange.test_scapy import parse
from tests.exchange.test_transport import ends, host_selector
from tests.gateway import ANY4, ANY6, Gateway, MakeGateway

#: Algorithms of the list by mode and family: of ESP with IPv4 in both modes, of ESP with IPv6, of AH by family.
ESP4 = (
    *("null-sha1", "null-sha256", "null-sha384", "null-sha512", "null-aescmac", "aes128-sha1"),
    *("aes128gcm16", "aes128gcm16-esn", "aes128ccm8", "aes128ccm16"),
    *("aes128gmac", "aes128gmac-esn", "aes128-sha256-esn"),
)
ESP6 = ("null-sha1", "aes128-sha1", "aes128gcm16", "aes128ccm16")
AH4 = ("sha1", "sha256", "sha384", "sha512", "aescmac", "aescmac-esn")
AH6 = ("sha1", "sha256")
#: And those of it that are refused here: alone, with integrity, as integrity.
REFUSED = (
    *("null", "aes128", "aes128ctr", "null-md5", "aes128-md5", "des", "3des", "blowfish", "cast"),
    *("des-sha256", "3des-sha256", "blowfish128-sha256", "cast128-sha256"),
)
HIGH = 0x200  # the high half of extended numbers, as in the list


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One of the list."""

    protocol: str
    mode: str
    family: int
    suite: str
    encap: bool = False

    def __str__(self) -> str:
        return f"{self.protocol}-{self.mode}-{self.family}-{self.suite}" + "-udp" * self.encap


def entries() -> Iterator[Entry]:
    """All of them."""
    for protocol, family, suites in (("esp", 4, ESP4), ("esp", 6, ESP6), ("ah", 4, AH4), ("ah", 6, AH6)):
        for mode in ("transport", "tunnel"):
            for suite in suites:
                yield Entry(protocol=protocol, mode=mode, family=family, suite=suite)
    for mode, family in (("tunnel", 4), ("transport", 4), ("transport", 6)):
        yield Entry(protocol="esp", mode=mode, family=family, suite="null-sha256", encap=True)


LIST = list(entries())


class Meeting:
    """A gateway and scapy with the two SAs of an entry."""

    def __init__(self, entry: Entry, gateway: Gateway) -> None:
        self.entry, self.gateway = entry, gateway
        ah = entry.protocol == "ah"
        proposal = (parse_ah_proposal if ah else parse_proposal)(entry.suite)
        self.first = HIGH << 32 | 1 if proposal.esn else 1
        self.tunnel = entry.mode == "tunnel"
        selectors = (ANY4, ANY6) if self.tunnel else (host_selector(entry.family),)
        common = {
            "family": entry.family,
            "mode": Mode(entry.mode),
            "protocol": Protocol.AH if ah else Protocol.ESP,
            "encap": entry.encap,
            "sequence": self.first,
        }
        self.ours = outbound_sa(proposal, **common)  # type: ignore[arg-type]
        self.theirs = inbound_sa(proposal, selectors=selectors, **common)  # type: ignore[arg-type]
        gateway.add(self.ours, self.theirs)
        gateway.protect("out", list(selectors))

    def scapy(self, spec: SaSpec) -> SecurityAssociation:
        """One of the SAs as scapy has it."""
        from_us = spec is self.ours
        if self.entry.protocol == "ah":
            header = test_scapy_ah.outer_of(spec) if self.tunnel else None
            return test_scapy_ah.scapy_sa(spec, header)
        made = test_scapy.scapy_sa(spec, from_us=from_us) if self.tunnel else test_transport.scapy_sa(spec)
        if not self.tunnel and spec.proposal.is_aead:
            made.icv_size = made.crypt_algo.icv_size = spec.proposal.tag_length
        return made

    def packet(self, *, back: bool) -> bytes:
        """The list's: from our side, or from theirs."""
        layer = IP if self.entry.family == 4 else IPv6
        if self.tunnel:
            near, far = ("1.1.1.1", "2.2.2.2") if self.entry.family == 4 else ("11::22", "22::11")
            source, destination = (far, near) if back else (near, far)
        else:
            source, destination = map(str, ends(self.entry.family, back=back).values())
        return bytes(layer(src=source, dst=destination) / TCP(sport=45012, dport=80) / Raw(b"testdata"))

    def sealed(self, packet: bytes, high: int = 0) -> bytes:
        """By scapy, with the first number, or another high half than it should have."""
        number = self.first
        return bytes(
            self.scapy(self.theirs).encrypt(
                parse(packet), seq_num=number & 0xFFFFFFFF, esn=(number >> 32) + high
            )
        )

    def opened(self, wire: bytes, high: int = 0) -> bytes:
        """By scapy, as the first number."""
        return bytes(self.scapy(self.ours).decrypt(parse(wire), esn=(self.first >> 32) + high))


def altered(entry: Entry, wire: bytes) -> bytes:
    """As the list alters it: ESP's number or text; behind AH the port, of AH's tunnel the outer source."""
    if entry.protocol == "esp" and entry.suite.startswith("null"):
        return wire.replace(b"testdata", b"besrdaka")
    if entry.protocol == "ah" and entry.mode == "transport":
        return wire.replace(bytes.fromhex("afd40050"), bytes.fromhex("afd4002e"))
    it = parse(wire)
    if entry.protocol == "esp":
        it[ESP].seq += 1
    else:
        it.src = "192.0.2.77" if entry.family == 4 else "cc::ee"
    if entry.family == 4:
        del it.chksum
    return bytes(it)


@pytest.mark.parametrize("entry", LIST, ids=str)
def test_from_scapy(make_gateway: MakeGateway, entry: Entry) -> None:
    """What scapy seals we open; altered, cut short, or made for another high half, we do not."""
    meeting = Meeting(entry, make_gateway())
    packet = meeting.packet(back=True)
    wire = meeting.sealed(packet)
    bad = meeting.gateway.receive([altered(entry, wire)])
    # Of a tunnel's source the gateway need not ask the ICV: nobody but the peer has the SA.
    assert set(bad.verdicts) <= {"integrity", "peer_address"} and not bad.packets, bad.verdicts
    if meeting.theirs.proposal.esn:
        assert meeting.gateway.receive([meeting.sealed(packet, high=1)]).verdicts == {"integrity": 1}
    length = meeting.theirs.proposal.icv_length
    for less in range(1, length + 1):
        short = meeting.gateway.receive([cut(wire, len(wire) - less)])
        assert not short.packets and "pass" not in short.verdicts, less
    received = meeting.gateway.receive([wire])
    assert (received.verdicts, received.packets) == ({"pass": 1}, [packet])


@pytest.mark.parametrize("entry", LIST, ids=str)
def test_to_scapy(make_gateway: MakeGateway, entry: Entry) -> None:
    """What we seal scapy opens; altered, or as of another high half, it does not."""
    meeting = Meeting(entry, make_gateway())
    packet = meeting.packet(back=False)
    sent = meeting.gateway.send([packet])
    assert sent.verdicts == {"pass": 1}
    (wire,) = sent.packets
    outer = parse(wire)
    assert (outer.src, outer.dst) == (str(meeting.ours.local), str(meeting.ours.remote))
    assert (b"testdata" in wire) == (entry.protocol == "ah" or entry.suite.startswith(("null", "aes128gmac")))
    with pytest.raises(IPSecIntegrityError):
        meeting.opened(altered(entry, wire))
    if meeting.ours.proposal.esn:
        with pytest.raises(IPSecIntegrityError):
            meeting.opened(wire, high=1)
    assert meeting.opened(wire) == packet


@pytest.mark.parametrize("suite", ["aes128ctr-sha256", "aes128gcm16"])
def test_no_padding_to_a_block(make_gateway: MakeGateway, suite: str) -> None:
    """Ciphers that count pad to four bytes alone (RFC 4303 section 2.4), and a packet that needs none has none."""
    gateway = make_gateway()
    spec = outbound_sa(parse_proposal(suite))
    gateway.add(spec)
    gateway.protect("out")
    for size in range(1, 20):
        packet = bytes(IP(src="1.1.1.1", dst="2.2.2.2") / TCP() / Raw(bytes(size)))
        (wire,) = gateway.send([packet]).packets
        text = len(wire) - 20 - 8 - spec.proposal.iv_length - spec.proposal.icv_length
        assert text == len(packet) + 2 + -(len(packet) + 2) % 4


@pytest.mark.parametrize("suite", REFUSED)
def test_refused(suite: str) -> None:
    """The list's algorithms that RFC 8221 forbids, and its ciphers without integrity."""
    word = suite.split("-")[0]
    with pytest.raises(ValueError, match=rf"but {word} |but md5 |no integrity"):
        parse_proposal(suite)
    with pytest.raises(ValueError, match="but md5 is broken"):
        parse_ah_proposal("md5")


def extended(packet: Packet) -> Packet:
    """IPv6 with what the list puts behind it, up to TCP."""
    return packet / TCP(sport=45012, dport=80) / Raw(b"testdata")


def test_ah_behind_a_route(make_gateway: MakeGateway) -> None:
    """A route of three stops, as its last one gets it: scapy's AH, covered as of arrival, is good to us."""
    meeting = Meeting(Entry(protocol="ah", mode="transport", family=6, suite="sha1"), make_gateway())
    source, last = map(str, ends(6, back=True).values())
    stops = ["aa::bb", "cc::dd", last]
    route = IPv6ExtHdrRouting(addresses=stops)
    sent = meeting.scapy(meeting.theirs).encrypt(
        IPv6(bytes(extended(IPv6(src=source, dst="22::11") / IPv6ExtHdrHopByHop() / route))), seq_num=1
    )
    assert isinstance(sent[AH].underlayer, IPv6ExtHdrRouting) and isinstance(sent[AH].payload, TCP)
    arrived = sent.copy()
    arrived[IPv6ExtHdrRouting].addresses = ["22::11", *stops[:-1]]
    arrived[IPv6ExtHdrRouting].segleft = 0
    arrived.dst = last
    received = meeting.gateway.receive([bytes(arrived)])
    assert received.verdicts == {"pass": 1}
    assert bytes(parse(received.packets[0])[TCP]) == bytes(sent[TCP])


def test_ah_before_a_fragment_header(make_gateway: MakeGateway) -> None:
    """The list's longest chain: AH goes before its last options, as in scapy; a fragment has to be whole first."""
    meeting = Meeting(Entry(protocol="ah", mode="transport", family=6, suite="sha1"), make_gateway())

    def chain(*, back: bool) -> Packet:
        source, destination = map(str, ends(6, back=back).values())
        head = IPv6(src=source, dst=destination) / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt()
        return head / IPv6ExtHdrRouting() / IPv6ExtHdrDestOpt()

    whole = bytes(extended(chain(back=False)))
    (wire,) = meeting.gateway.send([whole]).packets
    seen = IPv6(wire)
    assert isinstance(seen[AH].underlayer, IPv6ExtHdrRouting) and seen[AH].nh == 60
    assert meeting.opened(wire) == whole
    # RFC 4302 section 3.3.4: AH is applied to whole packets. This one says that it is one piece, and is dropped.
    piece = bytes(extended(chain(back=False) / IPv6ExtHdrFragment()))
    assert meeting.gateway.send([piece]).verdicts == {"fragment": 1}
    sealed = meeting.scapy(meeting.theirs).encrypt(IPv6(bytes(extended(chain(back=True)))), seq_num=1)
    received = meeting.gateway.receive([bytes(sealed)])
    assert (received.verdicts, received.packets) == ({"pass": 1}, [bytes(extended(chain(back=True)))])
