"""Complete ESP and AH packets of public test sets: ours are the same byte for byte, and theirs go through.

tests/vectors/ipsec_packets.json has them, with their sources. Both modes, both families in every mix, ESN, UDP, an IPv6
hop-by-hop header before AH. What is ours to choose is chosen as theirs: IVs by the mask that makes them, numbers by the
first of the SA. The ID of an outer IPv4 header is not: ESP is compared without it, and AH, which covers it, with the
ICV that an implementation in this tree's tests makes for our ID, and which makes the published one for theirs.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address, ip_network

import pytest

from control.config.proposal import parse_ah_proposal, parse_proposal
from dataplane.model import Cipher, Direction, Encap, Mode, Protocol, SaSpec, SelectorSpec
from tests.ah import ah_offset, field_length, icv_of
from tests.exchange.suites import mirror
from tests.exchange.test_published import mask_for
from tests.ext.crypto_jobs import vectors
from tests.gateway import ANY4, ANY6, Gateway, MakeGateway
from tests.packets import checksum

ROWS = vectors("ipsec_packets")
#: Extended numbers that a packet does not show: the high half.
HIGH = {
    "scapy, aes128-sha256-esn": 68,
    "Linux for scapy, aes128gcm16-esn": 1,
    "Linux for scapy, aes128gmac-esn": 1,
}


@dataclass(frozen=True, kw_only=True)
class Published:
    """One row, and the SA that makes its packet."""

    plain: bytes
    packet: bytes
    begin: int  # of ESP or AH in the packet
    sa: SaSpec


def published(row: dict[str, str]) -> Published:
    """The SA of a row: SPI, addresses and number are in its packet."""
    plain, packet = bytes.fromhex(row["plain"]), bytes.fromhex(row["packet"])
    protocol = Protocol[row["protocol"].upper()]
    proposal = (parse_ah_proposal if protocol is Protocol.AH else parse_proposal)(row["proposal"])
    encryption_key, integrity_key = bytes.fromhex(row["encryption_key"]), bytes.fromhex(row["integrity_key"])
    begin = header_length(packet) + (8 if row["encap"] else 0)
    at = begin + (4 if protocol is Protocol.AH else 0)
    spi, low = int.from_bytes(packet[at : at + 4], "big"), int.from_bytes(packet[at + 4 : at + 8], "big")
    sequence = HIGH.get(row["name"], 0) << 32 | low
    iv = packet[at + 8 : at + 8 + proposal.iv_length]
    cipher = "aes-cbc" if proposal.cipher is Cipher.AES_CBC else "counter"
    version = packet[0] >> 4
    size, where = (4, 12) if version == 4 else (16, 8)
    return Published(
        plain=plain,
        packet=packet,
        begin=begin,
        sa=SaSpec(
            name="out",
            direction=Direction.OUT,
            spi=spi,
            local=ip_address(packet[where : where + size]),
            remote=ip_address(packet[where + size : where + 2 * size]),
            proposal=proposal,
            mode=Mode(row["mode"]),
            protocol=protocol,
            encryption_key=encryption_key,
            integrity_key=integrity_key,
            encap=Encap() if row["encap"] else None,
            sequence=sequence,
            iv_mask=mask_for(cipher, encryption_key, iv, sequence) if iv else None,
            negotiated=True,
        ),
    )


def header_length(packet: bytes) -> int:
    """Bytes up to what is behind the IP header and, here, the hop-by-hop options."""
    if packet[0] >> 4 == 4:
        return (packet[0] & 15) * 4
    return 40 if packet[6] else 48 + packet[41] * 8


def selectors(sa: SaSpec) -> list[SelectorSpec]:
    """Of transport mode the two hosts; of a tunnel everything."""
    if sa.mode is Mode.TUNNEL:
        return [ANY4, ANY6]
    return [SelectorSpec.from_networks(ip_network(sa.local), ip_network(sa.remote))]


def ready(make_gateway: MakeGateway, sa: SaSpec) -> Gateway:
    """A gateway that sends by the SA and opens what it sends."""
    gateway = make_gateway()
    back = selectors(sa) if sa.mode is Mode.TUNNEL else [selectors(mirror(sa))[0]]
    gateway.add(sa, mirror(sa, selectors=tuple(back), sequence=sa.sequence, iv_mask=None))
    gateway.protect("out", selectors(sa))
    return gateway


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["name"].replace(" ", "-"))
def test_outbound(make_gateway: MakeGateway, row: dict[str, str]) -> None:
    """What is inside goes out as the published packet."""
    it = published(row)
    sent = ready(make_gateway, it.sa).send([it.plain])
    assert sent.verdicts == {"pass": 1}
    (wire,) = sent.packets
    if it.packet[0] >> 4 == 6 and it.sa.encap is not None:
        # Zero, which only IPv4 allows without ado (RFC 8200 section 8.1), is theirs; ours is right.
        summed = slice(it.begin - 2, it.begin)
        assert wire[summed] != bytes(2) and it.packet[summed] == bytes(2)
        wire = wire[: summed.start] + bytes(2) + wire[summed.stop :]
    if it.sa.mode is Mode.TRANSPORT or it.packet[0] >> 4 == 6:
        assert wire == it.packet
        return
    assert checksum(wire[:20]) == 0
    same = [*range(4), *range(7, 10), *range(12, 20)]  # all but ID, DF (of a made-up header) and checksum
    assert [wire[at] for at in same] == [it.packet[at] for at in same]
    if it.sa.protocol is Protocol.ESP:
        assert wire[20:] == it.packet[20:]
        return
    icv = ah_offset(it.packet) + 12
    after = icv + field_length(it.sa)
    assert icv_of(it.sa, it.packet, it.sa.sequence) == it.packet[icv:after]
    assert icv_of(it.sa, wire, it.sa.sequence) == wire[icv:after]
    assert wire[20:icv] + wire[after:] == it.packet[20:icv] + it.packet[after:]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["name"].replace(" ", "-"))
def test_inbound(make_gateway: MakeGateway, row: dict[str, str]) -> None:
    """The published packet goes in: cut anywhere in its ICV, or with any byte of it changed, not; whole, once."""
    it = published(row)
    gateway = ready(make_gateway, it.sa)
    proposal = it.sa.proposal
    ah = it.sa.protocol is Protocol.AH
    icv = it.begin + 12 if ah else len(it.packet) - proposal.icv_length
    length = field_length(it.sa) if ah else proposal.icv_length
    bad = [flipped(it.packet, at) for at in range(icv, icv + length)]
    bad += [flipped(it.packet, at) for at in range(icv + length if ah else it.begin + 8, len(it.packet), 7)]
    refused = gateway.receive(bad[:60])
    assert refused.verdicts == {"integrity": len(bad[:60])}
    short = [cut(it.packet, len(it.packet) - less) for less in range(1, min(length, 24) + 1)]
    assert "pass" not in gateway.receive(short).verdicts
    received = gateway.receive([it.packet])
    assert (received.verdicts, received.packets) == ({"pass": 1}, [it.plain])
    assert gateway.receive([it.packet]).verdicts == {"replay": 1}


def flipped(packet: bytes, at: int) -> bytes:
    """With one bit changed."""
    return packet[:at] + bytes([packet[at] ^ 0x10]) + packet[at + 1 :]


def cut(packet: bytes, length: int) -> bytes:
    """The first so many bytes, in headers that say so."""
    it = bytearray(packet[:length])
    if it[0] >> 4 == 4:
        it[2:4], it[10:12] = length.to_bytes(2, "big"), b"\0\0"
        it[10:12] = checksum(bytes(it[: (it[0] & 15) * 4])).to_bytes(2, "big")
        udp, after = it[9] == 17, 20
    else:
        it[4:6] = (length - 40).to_bytes(2, "big")
        udp, after = 17 in (it[6], it[40]), header_length(packet)
    if udp:
        it[after + 4 : after + 6] = (length - after).to_bytes(2, "big")
    return bytes(it)


def test_what_there_is() -> None:
    """Both protocols in both modes, over and under both families."""
    kinds = {
        (row["protocol"], row["mode"], row["plain"][0], row["packet"][0])
        for row in ROWS
        if row["name"].startswith("ODP")
    }
    mixes = {("tunnel", inner, outer) for inner in "46" for outer in "46"} | {
        ("transport", each, each) for each in "46"
    }
    assert kinds == {(protocol, *mix) for protocol in ("esp", "ah") for mix in mixes}
