"""ESP by hand, on `cryptography`: the peer of the tests, who can also do what no peer should.

peer = Peer(inbound SA of ours)
peer.packet(inner)                          # a good packet, outer header and all
peer.packet(inner, number=7, next_header=59, padding=b"wrong")
"""

from __future__ import annotations

import hmac
import random
import struct

from cryptography.hazmat.primitives.ciphers import Cipher as BlockCipher
from cryptography.hazmat.primitives.ciphers import algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from dataplane.model import Cipher, Integrity, SaSpec
from tests.packets import ESP, UDP, checksum, ip, pseudo

_HASHES = {
    Integrity.HMAC_SHA2_256: "sha256",
    Integrity.HMAC_SHA2_384: "sha384",
    Integrity.HMAC_SHA2_512: "sha512",
    Integrity.HMAC_SHA1: "sha1",
}


def trailer_for(inner: bytes, alignment: int, next_header: int, padding: bytes | None = None) -> bytes:
    """Padding, its length and the next header (RFC 4303 section 2.4)."""
    if padding is None:
        padding = bytes(range(1, 1 + -(len(inner) + 2) % alignment))
    return padding + bytes([len(padding), next_header])


def seal(spec: SaSpec, number: int, text: bytes, iv: bytes | None = None) -> bytes:
    """An ESP packet from its header to its ICV; `text` has its trailer, `number` is the 64-bit one."""
    proposal = spec.proposal
    head = struct.pack(">II", spec.spi, number & 0xFFFFFFFF)
    high = struct.pack(">I", number >> 32) if proposal.esn else b""
    if iv is None:
        iv = random.Random(number).randbytes(proposal.iv_length)
    key = spec.encryption_key[: len(spec.encryption_key) - proposal.salt_length]
    salt = spec.encryption_key[len(key) :]
    if proposal.is_aead:
        kind = AESGCM if proposal.cipher is Cipher.AES_GCM else ChaCha20Poly1305
        return head + iv + kind(key).encrypt(salt + iv, text, head[:4] + high + head[4:])
    if proposal.cipher is Cipher.AES_CBC:
        encryptor = BlockCipher(algorithms.AES(key), modes.CBC(iv)).encryptor()
        text = encryptor.update(text) + encryptor.finalize()
    wire = head + iv + text
    return (
        wire
        + hmac.digest(spec.integrity_key, wire + high, _HASHES[proposal.integrity])[: proposal.icv_length]
    )


def unseal(spec: SaSpec, wire: bytes, number: int) -> bytes:
    """The text of an ESP packet, trailer included; AssertionError when its ICV is wrong."""
    proposal = spec.proposal
    iv = wire[8 : 8 + proposal.iv_length]
    body, icv = wire[8 + len(iv) : -proposal.icv_length], wire[-proposal.icv_length :]
    key = spec.encryption_key[: len(spec.encryption_key) - proposal.salt_length]
    high = struct.pack(">I", number >> 32) if proposal.esn else b""
    if proposal.is_aead:
        kind = AESGCM if proposal.cipher is Cipher.AES_GCM else ChaCha20Poly1305
        nonce = spec.encryption_key[len(key) :] + iv
        return kind(key).decrypt(nonce, body + icv, wire[:4] + high + wire[4:8])
    digest = hmac.digest(spec.integrity_key, wire[: -len(icv)] + high, _HASHES[proposal.integrity])
    assert digest[: len(icv)] == icv, "ICV is wrong"
    if proposal.cipher is Cipher.AES_CBC:
        decryptor = BlockCipher(algorithms.AES(key), modes.CBC(iv)).decryptor()
        body = decryptor.update(body) + decryptor.finalize()
    return body


def strip(text: bytes) -> tuple[bytes, int]:
    """(inner packet, next header) of a text whose padding must be 1, 2, 3, ..."""
    length = text[-2]
    assert text[len(text) - 2 - length : -2] == bytes(range(1, length + 1)), "padding is wrong"
    return text[: len(text) - 2 - length], text[-1]


def open_packet(spec: SaSpec, packet: bytes, number: int) -> tuple[bytes, bytes]:
    """(outer header, inner packet) of an outer packet of SA `spec`; UDP encapsulation is part of the outer header."""
    words = (packet[0] & 15) * 4 if packet[0] >> 4 == 4 else 40
    words += 8 if spec.encap is not None else 0
    inner, next_header = strip(unseal(spec, packet[words:], number))
    assert next_header == (4 if inner[0] >> 4 == 4 else 41)
    return packet[:words], inner


class Peer:
    """Sends to an inbound SA of ours; numbers its packets from SaSpec.sequence."""

    def __init__(self, spec: SaSpec) -> None:
        self.spec = spec
        self.number = spec.sequence

    def esp(
        self,
        inner: bytes,
        *,
        number: int | None = None,
        next_header: int | None = None,
        padding: bytes | None = None,
        text: bytes | None = None,
    ) -> bytes:
        """From the ESP header on; `text` replaces inner packet and trailer."""
        if number is None:
            number, self.number = self.number, self.number + 1
        if text is None:
            if next_header is None:
                next_header = 4 if inner[:1] and inner[0] >> 4 == 4 else 41
            text = inner + trailer_for(inner, self.spec.proposal.alignment, next_header, padding)
        return seal(self.spec, number, text)

    def wrap(self, esp: bytes, *, encap: bool | None = None, **fields: object) -> bytes:
        """The outer header, and UDP before ESP where the SA (or `encap`) says so."""
        family = self.spec.local.version
        ends = {"source": self.spec.remote, "destination": self.spec.local, **fields}
        if encap is None:
            encap = self.spec.encap is not None
        if not encap:
            return ip(family, esp, protocol=ESP, **ends)
        head = struct.pack(">HHHH", 4500, 4500, 8 + len(esp), 0)
        if family == 6:
            start = pseudo(self.spec.remote, self.spec.local, UDP, 8 + len(esp))
            head = head[:6] + struct.pack(">H", checksum(start + head + esp) or 0xFFFF)
        return ip(family, head + esp, protocol=UDP, **ends)

    def packet(self, inner: bytes, *, tos: int = 0, **esp: object) -> bytes:
        """A whole outer packet."""
        return self.wrap(self.esp(inner, **esp), tos=tos)  # type: ignore[arg-type]
