"""AH in the kernels: what the ICV covers and what it does not, byte by byte; lengths, numbers, and every drop."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest

from dataplane.model import Cipher, Df, EspProposal, Integrity, Protocol, SaSpec
from tests import esp
from tests.ah import Peer, ah_offset, header, open_packet, sign
from tests.exchange.suites import AH_GMACS, HMACS, SUITES, inbound_sa, outbound_sa, suite_id
from tests.gateway import (
    ETHERNET,
    Gateway,
    MakeGateway,
    engine_and_way,  # noqa: F401  (fixture)
)
from tests.packets import (
    AH,
    CLIENT4,
    CLIENT6,
    ESP,
    SERVER4,
    SERVER6,
    TCP,
    checksum,
    ip4,
    ip6,
    tcp_packet,
    udp_packet,
)

PROPOSALS = [
    *(
        EspProposal(cipher=Cipher.NULL, key_bits=0, integrity=integrity)
        for integrity in (*HMACS, Integrity.AES_XCBC, Integrity.AES_CMAC)
    ),
    *AH_GMACS,
]
SHA256, SHA512 = PROPOSALS[0], PROPOSALS[2]
GOOD = udp_packet(4, b"good", source=SERVER4, destination=CLIENT4)
GOOD6 = udp_packet(6, b"good", source=SERVER6, destination=CLIENT6)


def add_inbound(gateway: Gateway, proposal: EspProposal = SHA256, **fields: object) -> Peer:
    """An inbound AH SA of the gateway; returns its peer."""
    spec = inbound_sa(proposal, **{"protocol": Protocol.AH, **fields})  # type: ignore[arg-type]
    gateway.add(spec)
    return Peer(spec)


def add_outbound(gateway: Gateway, proposal: EspProposal = SHA256, **fields: object) -> SaSpec:
    """An outbound AH SA that everything leaves by."""
    spec = outbound_sa(proposal, **{"protocol": Protocol.AH, **fields})  # type: ignore[arg-type]
    gateway.add(spec)
    gateway.protect("out")
    return spec


def changed(packet: bytes, at: int, bits: int) -> bytes:
    """Some bits of one byte turned over; the IPv4 header checksum is right again."""
    it = bytearray(packet)
    it[at] ^= bits
    if it[0] >> 4 == 4 and at not in (10, 11):
        it[10:12] = bytes(2)
        it[10:12] = struct.pack(">H", checksum(bytes(it[: (it[0] & 15) * 4])))
    return bytes(it)


# --- what is covered -------------------------------------------------------------------------------------

#: Bits of the first 20 or 40 bytes that may change on the way, by byte: RFC 4302 section 3.3.3.1.
FREE4 = {1: 0xFF, 6: 0xC0, 8: 0xFF}
FREE6 = {0: 0x0F, 1: 0xFF, 2: 0xFF, 3: 0xFF, 7: 0xFF}


@pytest.mark.parametrize("proposal", [SHA256, AH_GMACS[0]], ids=suite_id)
@pytest.mark.parametrize("family", [4, 6])
def test_every_bit(make_gateway: MakeGateway, family: int, proposal: EspProposal) -> None:
    """Each bit of the packet, turned over on the way: it passes where a router may do that, else it does not.

    Bits that make another packet of it (version, lengths, destination, SPI, fragments) never get as far.
    """
    gateway = make_gateway()
    peer = add_inbound(gateway, proposal, family=family)
    free = FREE4 if family == 4 else FREE6
    template = peer.packet(GOOD, number=1)
    start = ah_offset(template)
    # Version, protocol, AH's length and SPI: it is dropped for what it then seems to be.
    others = {0, 9 if family == 4 else 6, start + 1, *range(start + 4, start + 8)}
    number = 1
    for at in range(len(template)):
        for bit in range(8):
            if (at in (2, 3, 10, 11) and family == 4) or (at in (4, 5) and family == 6):
                continue  # lengths and checksum: the parser's affair
            if family == 4 and (at == 0 or (at == 6 and bit < 6) or at == 7):
                continue  # header length and fragments: the parser's, too
            if start + 8 <= at < start + 12:
                continue  # the number itself: test_numbers
            number += 1
            packet = changed(peer.packet(GOOD, number=number), at, 1 << bit)
            result = gateway.receive([packet])
            if free.get(at, 0) >> bit & 1:
                # A router that marks congestion where it may not is ECN's affair (RFC 6040), not AH's.
                ecn = at == 1 and (bit < 2 if family == 4 else 4 <= bit < 6)
                assert result.verdicts == {"pass": 1} or (ecn and result.verdicts == {"ecn": 1}), (at, bit)
            elif at in others:
                assert "pass" not in result.verdicts, (at, bit)
            elif (16 <= at < 20) if family == 4 else (24 <= at < 40):
                assert result.verdicts == {"wrong_address": 1}, (at, bit)
            else:
                assert result.verdicts == {"integrity": 1}, (at, bit)
                assert result.drops == {"in": {"integrity": 1}}


@pytest.mark.parametrize("proposal", AH_GMACS, ids=suite_id)
def test_nonces_of_gmac(make_gateway: MakeGateway, proposal: EspProposal) -> None:
    """RFC 4543 sections 3.1 and 4: the IV, in front of the tag, is the number, or a mask on it; none comes twice."""
    for mask in (None, bytes(range(7, 15))):
        for esn, first in ((False, 2**32 - 70), (True, 2**32 - 35)):
            gateway = make_gateway()
            spec = add_outbound(gateway, replace(proposal, esn=esn), sequence=first, iv_mask=mask)
            wires = gateway.send([udp_packet(4, bytes(at)) for at in range(65)]).packets
            assert len(wires) == 65
            for number, wire in enumerate(wires, first):
                open_packet(spec, wire, number)
                iv = int.from_bytes(wire[32:40], "big") ^ int.from_bytes(mask or b"", "big")
                assert iv == number


def test_fields_of_tunnel_header(make_gateway: MakeGateway) -> None:
    """TOS, DF and TTL of our own outer header are as the SA has them, not the zeros that the ICV was made over."""
    for family in (4, 6):
        for inner in (udp_packet(4, b"x", tos=0xB9, df=True, ttl=9), udp_packet(6, b"x", tos=0xB9, ttl=9)):
            gateway = make_gateway()
            spec = add_outbound(gateway, family=family, ttl=77, df=Df.SET)
            [wire] = gateway.send([inner]).packets
            outer, _ = open_packet(spec, wire, 1)
            if family == 4:
                assert (outer[1], outer[8], outer[9], outer[6] & 0x40) == (0xB9, 77, AH, 0x40)
            else:
                assert (struct.unpack(">I", outer[:4])[0] >> 20 & 0xFF, outer[7], outer[6]) == (0xB9, 77, AH)


@pytest.mark.parametrize("proposal", PROPOSALS, ids=suite_id)
@pytest.mark.parametrize("family", [4, 6])
def test_length_of_the_header(make_gateway: MakeGateway, proposal: EspProposal, family: int) -> None:
    """Section 3.3.3.2.1: AH and ICV fill whole words over IPv4, pairs over IPv6. Linux' pairs over IPv4 pass, too."""
    gateway = make_gateway()
    spec = add_outbound(gateway, proposal, family=family)
    peer = add_inbound(gateway, proposal, family=family)
    length = 12 + proposal.iv_length + proposal.icv_length
    right = length + -length % (4 if family == 4 else 8)
    [wire] = gateway.send([udp_packet(4, b"some")]).packets
    at = ah_offset(wire)
    assert (wire[at + 1] + 2) * 4 == right
    assert len(wire) == at + right + len(udp_packet(4, b"some"))
    for size in range(length, length + 17, 4):
        packet = peer.packet(GOOD, padding=b"\xaa" * (size - length))
        fits = size in (right, length + -length % 8)
        assert gateway.receive([packet]).verdicts == ({"pass": 1} if fits else {"ah_length": 1}), size
    assert open_packet(spec, wire, 1)[1] == udp_packet(4, b"some")


def test_largest(make_gateway: MakeGateway) -> None:
    """An inner packet that just fits the path's MTU fills it; one byte more is answered."""
    for family, proposal in ((4, SHA256), (6, SHA256), (4, SHA512), (6, SHA512)):
        gateway = make_gateway()
        spec = add_outbound(gateway, proposal, family=family)
        room = spec.inner_mtu(1500)
        result = gateway.send([udp_packet(4, bytes(room - 28)), udp_packet(4, bytes(room - 27), df=True)])
        assert result.verdicts == {"pass": 1, "too_big": 1, "icmp_sent": 1}
        assert len(result.packets[0]) == 1500


# --- numbers ---------------------------------------------------------------------------------------------


def test_numbers(make_gateway: MakeGateway) -> None:
    """Replays and what lies left of the window; a number is accepted only once its ICV was right."""
    gateway = make_gateway()
    peer = add_inbound(gateway, replay_window=64)
    first = peer.packet(GOOD, number=200)
    assert gateway.receive([first, first]).drops == {"in": {"replay": 1}}
    assert gateway.receive([first]).drops == {"in": {"replay": 1}}
    assert gateway.receive([peer.packet(GOOD, number=136)]).drops == {"in": {"replay_old": 1}}
    assert gateway.receive([peer.packet(GOOD, number=0)]).drops == {"in": {"replay_old": 1}}
    far = peer.packet(GOOD, number=5000)
    assert gateway.receive([changed(far, len(far) - 1, 1)]).drops == {"in": {"integrity": 1}}
    assert gateway.replay_top("in") == 200
    assert gateway.receive([peer.packet(GOOD, number=137)]).verdicts == {"pass": 1}


@pytest.mark.parametrize("family", [4, 6])
def test_extended_numbers(make_gateway: MakeGateway, family: int) -> None:
    """The high half is in the ICV and not on the wire: both ways across 2**32, and a wrong half is refused."""
    gateway = make_gateway()
    proposal = replace(SHA256, esn=True)
    start = 2**32 - 3
    spec = add_outbound(gateway, proposal, family=family, sequence=start)
    peer = add_inbound(gateway, proposal, family=family, sequence=start)
    packets = [udp_packet(4, bytes([number])) for number in range(6)]
    sent = gateway.send(packets).packets
    assert [open_packet(spec, wire, start + at)[1] for at, wire in enumerate(sent)] == packets
    wires = [peer.packet(packet) for packet in packets]
    assert gateway.receive(wires).packets == packets
    old = struct.pack(">I", 1)
    wrong = peer.packet(GOOD, number=2**33 + 1)
    assert wrong[ah_offset(wrong) + 8 :][:4] == old
    assert gateway.receive([wrong]).drops in ({"in": {"integrity": 1}}, {"in": {"replay": 1}})


def test_no_room_behind(make_gateway: MakeGateway) -> None:
    """The high half needs four bytes behind the packet: without them it is dropped, not the next frame spoilt."""
    gateway = make_gateway(mtu=2048)
    peer = add_inbound(gateway, replace(SHA256, esn=True))
    full = 2048 - 256 - 20 - 28
    fits, does_not = (peer.packet(ip4(bytes(size - 20), protocol=253)) for size in (full - 4, full - 3))
    result = gateway.receive([fits, does_not])
    assert (result.verdicts, result.drops) == ({"pass": 1, "headroom": 1}, {"in": {"headroom": 1}})


# --- every drop ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("proposal", PROPOSALS, ids=suite_id)
@pytest.mark.parametrize("family", [4, 6])
def test_every_length(make_gateway: MakeGateway, proposal: EspProposal, family: int) -> None:
    """A good packet cut at every length is truncated or fails its ICV; never anything else."""
    gateway = make_gateway()
    peer = add_inbound(gateway, proposal, family=family)
    whole = peer.packet(GOOD, number=9)
    start = ah_offset(whole)
    ah = (whole[start + 1] + 2) * 4
    for length in range(start, len(whole)):
        cut = bytearray(whole[:length])
        field = slice(2, 4) if family == 4 else slice(4, 6)
        cut[field] = struct.pack(">H", length if family == 4 else length - 40)
        packet = changed(bytes(cut), 8, 0)
        name = "ah_truncated" if length < start + ah else "integrity"
        result = gateway.receive([packet])
        assert result.verdicts == {name: 1}, length
        assert result.drops == ({"in": {name: 1}} if length >= start + 12 else {}), length
    assert gateway.receive([whole]).packets == [GOOD]


def test_protocol_and_spi_name_an_sa(make_gateway: MakeGateway) -> None:
    """RFC 4301 section 4.1: ESP with the SPI of an AH SA is unknown, and the reverse."""
    gateway = make_gateway()
    peer = add_inbound(gateway)
    esp_spec = inbound_sa(SUITES[0], name="esp", spi=peer.spec.spi + 1)
    gateway.add(esp_spec)
    as_esp = esp.Peer(replace(esp_spec, spi=peer.spec.spi)).packet(GOOD)
    as_ah = Peer(replace(peer.spec, spi=esp_spec.spi)).packet(GOOD)
    unknown = Peer(replace(peer.spec, spi=0xDEAD0000)).packet(GOOD)
    zero = Peer(replace(peer.spec, spi=0)).packet(GOOD)
    result = gateway.receive(
        [as_esp, as_ah, peer.packet(GOOD), unknown, zero, esp.Peer(esp_spec).packet(GOOD)]
    )
    assert (result.verdicts, result.packets) == ({"no_sa": 4, "pass": 2}, [GOOD, GOOD])


def test_next_header(make_gateway: MakeGateway) -> None:
    """A tunnel holds IPv4 or IPv6, and what it says; anything else is dropped after its ICV was right."""
    gateway = make_gateway()
    peer = add_inbound(gateway)
    bad = {
        "next_header": [peer.packet(GOOD, next_header=number) for number in (0, 6, 17, 50, 51, 59, 255)],
        "inner_malformed": [
            peer.packet(GOOD, next_header=41),
            peer.packet(GOOD6, next_header=4),
            peer.packet(b"", next_header=4),
            peer.packet(GOOD[:19]),
            peer.packet(changed(GOOD, 10, 1)),
        ],
    }
    for name, packets in bad.items():
        result = gateway.receive([peer.packet(GOOD), *packets, peer.packet(GOOD)])
        assert result.verdicts == {"pass": 2, name: len(packets)}
        assert result.drops == {"in": {name: len(packets)}}


def test_selectors(make_gateway: MakeGateway) -> None:
    """What comes out must be what the SA is for, as with ESP."""
    gateway = make_gateway()
    spec = inbound_sa(SHA256, protocol=Protocol.AH)
    narrow = tuple(replace(selector, protocol=TCP) for selector in spec.selectors)
    peer = add_inbound(gateway, selectors=narrow)
    tcp = tcp_packet(4, b"yes", source=SERVER4, destination=CLIENT4)
    result = gateway.receive([peer.packet(GOOD), peer.packet(tcp)])
    assert (result.packets, result.drops) == ([tcp], {"in": {"inner_selectors": 1}})


def test_fragments(make_gateway: MakeGateway) -> None:
    """Section 3.4.1: the kernel reassembles; a fragment that reaches the dataplane is dropped by name."""
    gateway = make_gateway()
    peer = add_inbound(gateway)
    body = header(peer.spec, 1, 4) + GOOD
    ends = {"source": peer.spec.remote, "destination": peer.spec.local, "protocol": AH}
    result = gateway.receive([ip4(body, more=True, **ends), ip4(body, offset=64, **ends)])
    assert result.verdicts == {"fragment": 2}


BAD_OPTIONS = {
    "no-length": b"\x01\x01\x01\x94",
    "length-0": b"\x44\x00\x00\x00",
    "length-1": b"\x94\x01\x00\x00",
    "past-the-header": b"\x94\x05\x00\x00",
    "route-that-goes-on": b"\x83\x07\x04\x0a\x00\x00\x01\x00",
    "strict-route-that-goes-on": b"\x89\x0b\x08\x0a\x00\x00\x01\x0a\x00\x00\x02\x00",
}


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_bad_options(make_gateway: MakeGateway, name: str) -> None:
    """IPv4 options that cannot be followed: nobody could say what the ICV covers."""
    gateway = make_gateway()
    peer = add_inbound(gateway)
    ends = {"source": peer.spec.remote, "destination": peer.spec.local, "protocol": AH}
    bad = ip4(header(peer.spec, 7, 4) + GOOD, options=BAD_OPTIONS[name], **ends)
    result = gateway.receive([peer.packet(GOOD), bad, peer.packet(GOOD)])
    assert result.verdicts == {"pass": 2, "ip_option": 1}


LAST = bytes([AH])
BAD_EXTENSIONS = {
    "option-without-length": (0, LAST + b"\0" + b"\0\0\0\0\0\x3e"),
    "option-past-the-end": (60, LAST + b"\0" + b"\x3e\x05\0\0\0\0"),
    "route-that-goes-on": (43, LAST + b"\x02\x00\x01\0\0\0\0" + bytes(16)),
    "unknown-route-that-goes-on": (43, LAST + b"\x02\x04\x01\0\0\0\0" + bytes(16)),
    "too-long": (60, LAST + bytes([60]) + bytes(6 + 60 * 8)),
}


@pytest.mark.parametrize("name", BAD_EXTENSIONS)
def test_bad_extensions(make_gateway: MakeGateway, name: str) -> None:
    """IPv6 extension headers that cannot be followed, or are more than we put by."""
    gateway = make_gateway()
    peer = add_inbound(gateway, family=6)
    first, extension = BAD_EXTENSIONS[name]
    ends = {"source": peer.spec.remote, "destination": peer.spec.local}
    bad = ip6(extension + header(peer.spec, 7, 4) + GOOD, protocol=first, **ends)
    result = gateway.receive([peer.packet(GOOD), bad, peer.packet(GOOD)])
    assert result.verdicts == {"pass": 2, "extension_header": 1}


# --- together --------------------------------------------------------------------------------------------


def test_all_in_one_batch(make_gateway: MakeGateway) -> None:
    """ESP and AH of every algorithm, both families, by turns in one batch, one bad packet of each: none is mixed up."""
    for link in (1, ETHERNET):
        gateway = make_gateway(link=link, lan_addresses=())
        peers: list[Peer | esp.Peer] = []
        kinds = [(proposal, family) for proposal in PROPOSALS for family in (4, 6)]
        for number, (proposal, family) in enumerate(kinds):
            name = {"name": f"ah{number}", "spi": 0xA000 + number}
            peers.append(add_inbound(gateway, replace(proposal, esn=number % 3 == 0), family=family, **name))
            spec = inbound_sa(SUITES[number], family=family, name=f"esp{number}", spi=0xE000 + number)
            gateway.add(spec)
            peers.append(esp.Peer(spec))
        inner = [
            udp_packet(4, bytes([at]) * at, source=SERVER4, destination=CLIENT4, ttl=2) for at in range(60)
        ]
        wires = [peers[at * 7 % len(peers)].packet(packet) for at, packet in enumerate(inner)]
        bad = {at: changed(wires[at], len(wires[at]) - 1, 4) for at in range(0, 60, 9)}
        result = gateway.receive([bad.get(at, wire) for at, wire in enumerate(wires)])
        assert result.verdicts == {"pass": 60 - len(bad), "integrity": len(bad)}
        ttl = 2 if link else 1
        want = [
            udp_packet(4, bytes([at]) * at, source=SERVER4, destination=CLIENT4, ttl=ttl)
            for at in range(60)
            if at not in bad
        ]
        assert result.packets == want


def test_bursts(make_gateway: MakeGateway) -> None:
    """Long runs of one SA, both ways, and what was sent comes back in."""
    gateway = make_gateway()
    spec = add_outbound(gateway, SHA256, sequence=5)
    gateway.add(
        replace(inbound_sa(SHA256, protocol=Protocol.AH), spi=spec.spi, local=spec.remote, remote=spec.local)
    )
    packets = [udp_packet(4, bytes(at)) for at in range(300)]
    sent = gateway.send(packets)
    assert sent.passed == {"out": (300, sum(map(len, packets)))}
    assert gateway.receive(sent.packets).packets == packets
    assert Integrity.HMAC_SHA2_256 is spec.proposal.integrity
    assert sign(spec, sent.packets[7], 12) == sent.packets[7]
    assert all(wire[9] == AH != ESP for wire in sent.packets)
