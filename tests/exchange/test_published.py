"""Complete packets that RFCs print come out of the outbound walk byte for byte, and go through the inbound one.

RFC 3602 section 4 (no integrity algorithm: an SA that configuration refuses and the kernels can do), RFC 7634
appendix A, and draft-mcgrew-gcm-test-01, which has AES-GMAC too. The mask that makes an SA's IVs is chosen so that
the published IV comes out. Of the outer header the ID is ours to choose: RFC 6864 asks for nothing of it in a
packet that is not cut up.

The draft's packets name next header 1 behind whole IP packets: no tunnel mode. Inbound they end as "next_header",
which only a packet with a good ICV, replay check and padding can reach. Outbound they are compared with that one byte
exchanged: GCM is a stream cipher, so that only this byte of the text and the ICV differ.
"""

from __future__ import annotations

from ipaddress import IPv4Address, ip_network

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher as BlockCipher
from cryptography.hazmat.primitives.ciphers import algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from dataplane.model import Cipher, EspProposal, Mode, SelectorSpec
from tests.exchange.suites import mirror, outbound_sa
from tests.ext.crypto_jobs import vectors
from tests.gateway import MakeGateway
from tests.packets import ESP, ICMP, checksum, ip4

CIPHERS = {
    "aes-cbc": Cipher.AES_CBC,
    "chacha20-poly1305": Cipher.CHACHA20_POLY1305,
    "aes-gcm": Cipher.AES_GCM,
    "aes-gmac": Cipher.AES_GMAC,
}
# draft-mcgrew-gcm-test-01, the test of ENCR_NULL_AUTH_AES_GMAC (RFC 4543): key with salt, the packet from SPI to ICV.
GMAC_KEY = bytes.fromhex("4c80cdefbb5d10da906ac73c3613a63422433c64")
GMAC_PACKET = bytes.fromhex(
    "00004321000000070000000000000000"
    "45000030da3a00008001df3bc0a80005c0a800010800c6cd020007006162636465666768696a6b6c6d6e6f7071727374"
    "01020201f2a9a836e155106aa8dcd618e4099aaa"
)
PUBLISHED = vectors("esp_packets")
TRANSPORT = [row for row in vectors("rfc3602") if row["esp_header"].startswith("00004321")]
GCM = [row for row in vectors("esp_aead") if row["cipher"] == "aes-gcm"]


def proposal_of(cipher: str, key: bytes, esn: bool = False) -> EspProposal:
    """The suite of a row; `key` may have its salt."""
    kind = CIPHERS[cipher]
    return EspProposal(cipher=kind, key_bits=8 * (len(key) // 8 * 8), esn=esn)


def mask_for(cipher: str, key: bytes, iv: bytes, sequence: int) -> bytes:
    """SaSpec.iv_mask with which packet number `sequence` gets this IV."""
    number = sequence.to_bytes(8, "big")
    if cipher == "aes-cbc":
        decryptor = BlockCipher(algorithms.AES(key), modes.ECB()).decryptor()
        block = decryptor.update(iv) + decryptor.finalize()
        number = bytes(8) + number
    else:
        block = iv
    return bytes(a ^ b for a, b in zip(block, number, strict=True))


@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: row["name"].replace(" ", "-"))
def test_tunnel_mode(make_gateway: MakeGateway, row: dict[str, str]) -> None:
    """Out and in."""
    key, inner, wire = (bytes.fromhex(row[name]) for name in ("key", "inner", "packet"))
    proposal = proposal_of(row["cipher"], key)
    sequence = int.from_bytes(wire[4:8], "big")
    spec = outbound_sa(
        proposal,
        spi=int.from_bytes(wire[:4], "big"),
        local=IPv4Address(row["source"]),
        remote=IPv4Address(row["destination"]),
        encryption_key=key,
        sequence=sequence,
        iv_mask=mask_for(row["cipher"], key, wire[8 : 8 + proposal.iv_length], sequence),
    )
    gateway = make_gateway()
    gateway.add(spec, mirror(spec, sequence=1))
    gateway.protect("out")
    sent = gateway.send([inner])
    assert sent.verdicts == {"pass": 1}
    assert sent.packets[0][20:] == wire
    outer = sent.packets[0][:20]
    assert checksum(outer) == 0
    if row["outer"]:
        want = bytes.fromhex(row["outer"])
        # all but ID and checksum
        assert outer[:4] + outer[6:10] + outer[12:] == want[:4] + want[6:10] + want[12:]
    received = gateway.receive(
        [ip4(wire, source=row["source"], destination=row["destination"], protocol=ESP)]
    )
    assert (received.verdicts, received.packets) == ({"pass": 1}, [inner])


@pytest.mark.parametrize("row", TRANSPORT, ids=lambda row: row["esp_header"])
def test_transport_mode(make_gateway: MakeGateway, row: dict[str, str]) -> None:
    """Cases 5 and 6 of RFC 3602, out and in: ESP as published, behind an IP header of its hosts."""
    key, iv, text = (bytes.fromhex(row[name]) for name in ("key", "iv", "text"))
    assert text[-1] == ICMP
    near, far = IPv4Address("192.168.123.3"), IPv4Address("192.168.123.100")
    esp = bytes.fromhex(row["esp_header"] + row["iv"] + row["ciphertext"])
    plain, wire = (
        ip4(data, source=near, destination=far, protocol=protocol, identification=0x08F2)
        for data, protocol in ((text[: -2 - text[-2]], ICMP), (esp, ESP))
    )
    sequence = int.from_bytes(esp[4:8], "big")
    spec = outbound_sa(
        proposal_of("aes-cbc", key),
        mode=Mode.TRANSPORT,
        spi=0x4321,
        local=near,
        remote=far,
        encryption_key=key,
        sequence=sequence,
        iv_mask=mask_for("aes-cbc", key, iv, sequence),
    )
    forth = SelectorSpec.from_networks(ip_network(near), ip_network(far))
    back = SelectorSpec.from_networks(ip_network(far), ip_network(near))
    gateway = make_gateway()
    gateway.add(spec, mirror(spec, selectors=(back,), sequence=1))
    gateway.protect("out", [forth])
    sent = gateway.send([plain])
    assert (sent.verdicts, sent.packets) == ({"pass": 1}, [wire])
    received = gateway.receive([wire])
    assert (received.verdicts, received.packets) == ({"pass": 1}, [plain])
    assert gateway.receive([wire]).drops == {"in": {"replay": 1}}


def test_tunnel_sas_take_no_transport_mode(make_gateway: MakeGateway) -> None:
    """The same two packets to an SA of a tunnel: deciphered, padding found good, and then refused by name."""
    gateway = make_gateway()
    assert len(TRANSPORT) == 2
    key = bytes.fromhex(TRANSPORT[0]["key"])
    spec = outbound_sa(proposal_of("aes-cbc", key), spi=0x4321, encryption_key=key)
    gateway.add(mirror(spec))
    packets = [
        ip4(
            bytes.fromhex(row["esp_header"] + row["iv"] + row["ciphertext"]),
            source=spec.local,
            destination=spec.remote,
            protocol=ESP,
        )
        for row in TRANSPORT
    ]
    received = gateway.receive(packets)
    assert received.verdicts == {"next_header": 2}
    assert received.drops == {"in": {"next_header": 2}}


@pytest.mark.parametrize("row", GCM, ids=lambda row: row["aad"])
def test_gcm_inbound(make_gateway: MakeGateway, row: dict[str, str]) -> None:
    """Every packet of the draft; then the same with one bit changed, at every place that the ICV covers."""
    key, nonce, aad = (bytes.fromhex(row[name]) for name in ("key", "nonce", "aad"))
    esn = len(aad) == 12
    sequence = int.from_bytes(aad[4:], "big")
    spi = int.from_bytes(aad[:4], "big")
    wire = aad[:4] + aad[-4:] + nonce[4:] + bytes.fromhex(row["ciphertext"] + row["tag"])
    spec = outbound_sa(
        proposal_of("aes-gcm", key, esn), spi=spi, encryption_key=key + nonce[:4], sequence=sequence
    )
    gateway = make_gateway()
    if spi == 0:
        # RFC 4303 section 2.1: such an SA cannot be.
        with pytest.raises(ValueError, match="SPI 0"):
            gateway.add(mirror(spec))
        return
    gateway.add(mirror(spec))

    def envelope(esp: bytes) -> bytes:
        return ip4(esp, source=spec.local, destination=spec.remote, protocol=ESP)

    changed = []
    for at in range(4, len(wire)):
        # A bit of the number that leaves it within the window or right of it.
        esp = bytearray(wire)
        esp[at] ^= 1 if at != 7 else 1 if sequence % 2 == 0 else 2 if sequence % 4 < 2 else 0
        if bytes(esp) != wire:
            changed.append(envelope(bytes(esp)))
    refused = gateway.receive(changed)
    assert set(refused.verdicts) <= {"integrity", "replay_old", "replay"}
    assert refused.verdicts["integrity"] >= len(wire) - 8
    received = gateway.receive([envelope(wire)])
    assert received.drops == {"in": {"next_header": 1}}, row
    assert gateway.receive([envelope(wire)]).drops == {"in": {"replay": 1}}


def test_gmac(make_gateway: MakeGateway) -> None:
    """The draft's packet: refused where any byte differs, else opened; sent alike but for the next header."""
    spec = outbound_sa(
        proposal_of("aes-gmac", GMAC_KEY),
        spi=0x4321,
        encryption_key=GMAC_KEY,
        sequence=7,
        iv_mask=mask_for("aes-gmac", GMAC_KEY[:16], bytes(8), 7),
    )
    gateway = make_gateway()
    gateway.add(spec, mirror(spec, sequence=1))
    gateway.protect("out")

    def envelope(esp: bytes) -> bytes:
        return ip4(esp, source=spec.local, destination=spec.remote, protocol=ESP)

    changed = [
        envelope(GMAC_PACKET[:at] + bytes([GMAC_PACKET[at] ^ 8]) + GMAC_PACKET[at + 1 :])
        for at in range(7, len(GMAC_PACKET))
    ]
    assert gateway.receive(changed).drops == {"in": {"integrity": len(changed)}}
    # Next header 1, as in the rows of GCM: only a packet with a good ICV gets so far.
    assert gateway.receive([envelope(GMAC_PACKET)]).drops == {"in": {"next_header": 1}}
    inner = GMAC_PACKET[16:64]
    sent = gateway.send([inner])
    assert sent.verdicts == {"pass": 1}
    text = inner + b"\x01\x02\x02\x04"
    tag = AESGCM(GMAC_KEY[:16]).encrypt(GMAC_KEY[16:] + bytes(8), b"", GMAC_PACKET[:16] + text)
    assert sent.packets[0][20:] == GMAC_PACKET[:16] + text + tag


def whole(row: dict[str, str]) -> bool:
    """An inner IP packet with its trailer behind it, under numbers that an outbound SA may use."""
    text, aad = bytes.fromhex(row["text"]), bytes.fromhex(row["aad"])
    length = len(text) - 2 - text[-2]
    return (
        text[0] == 0x45
        and int.from_bytes(text[2:4], "big") == length
        and int.from_bytes(aad[:4], "big") > 0
        and int.from_bytes(aad[4:], "big") < 2**64 - 2**32
    )


@pytest.mark.parametrize("row", [row for row in GCM if whole(row)], ids=lambda row: row["aad"])
def test_gcm_outbound(make_gateway: MakeGateway, row: dict[str, str]) -> None:
    """The draft's text but for the next header; the ICV by `cryptography`."""
    key, nonce, aad, text = (bytes.fromhex(row[name]) for name in ("key", "nonce", "aad", "text"))
    sequence = int.from_bytes(aad[4:], "big")
    spec = outbound_sa(
        proposal_of("aes-gcm", key, len(aad) == 12),
        spi=int.from_bytes(aad[:4], "big"),
        encryption_key=key + nonce[:4],
        sequence=sequence,
        iv_mask=mask_for("aes-gcm", key, nonce[4:], sequence),
    )
    gateway = make_gateway()
    gateway.add(spec)
    gateway.protect("out")
    inner = text[: len(text) - 2 - text[-2]]
    sent = gateway.send([inner])
    assert sent.verdicts == {"pass": 1}
    ciphertext = bytes.fromhex(row["ciphertext"])
    ciphertext = ciphertext[:-1] + bytes([ciphertext[-1] ^ 1 ^ 4])
    tag = AESGCM(key).encrypt(nonce, text[:-1] + b"\x04", aad)[-16:]
    assert sent.packets[0][20:] == aad[:4] + aad[-4:] + nonce[4:] + ciphertext + tag


def test_how_many_are_whole() -> None:
    """The filter above leaves five of the draft's packets."""
    assert sum(map(whole, GCM)) == 5
