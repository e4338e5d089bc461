"""What the tests of the crypto engines share: engines, random jobs, and the same work done by `cryptography`."""

from __future__ import annotations

import hashlib
import hmac
import json
import platform
import random
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from cryptography.hazmat.primitives.ciphers import Cipher as BlockCipher
from cryptography.hazmat.primitives.ciphers import algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESCCM, AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.cmac import CMAC

from dataplane.engine import open_engine
from dataplane.model import Cipher, Integrity, SaSpec
from ext.crypto import EngineHandle, JobResult, JobSpec

VECTORS = Path(__file__).parent.parent / "vectors"
HASHES = {
    Integrity.HMAC_SHA2_256: "sha256",
    Integrity.HMAC_SHA2_384: "sha384",
    Integrity.HMAC_SHA2_512: "sha512",
    Integrity.HMAC_SHA1: "sha1",
}
ICV_LENGTHS = {
    Integrity.NONE: 0,
    Integrity.HMAC_SHA2_256: 16,
    Integrity.HMAC_SHA2_384: 24,
    Integrity.HMAC_SHA2_512: 32,
    Integrity.HMAC_SHA1: 12,
    Integrity.AES_XCBC: 12,
    Integrity.AES_CMAC: 12,
    Integrity.AES_GMAC: 16,
}
#: What goes with any cipher that has no integrity of its own.
SEPARATE = tuple(integrity for integrity in Integrity if integrity is not Integrity.AES_GMAC)


class Suite(NamedTuple):
    """Algorithms of a key: the cipher, bytes of its key, integrity, and of an AEAD bytes of ICV.

    AES_GMAC as integrity (AH's) stands here with a key of `key_length` bytes, which its null cipher has none of.
    """

    cipher: Cipher
    key_length: int
    integrity: Integrity = Integrity.NONE
    tag: int = 16

    @property
    def name(self) -> str:
        """For test ids."""
        tag = f"-{self.tag}" if self.cipher.is_aead else ""
        return f"{self.cipher.name}-{8 * self.key_length}-{self.integrity.name}{tag}"

    @property
    def icv_length(self) -> int:
        """Bytes."""
        return self.tag if self.cipher.is_aead else ICV_LENGTHS[self.integrity]


# Every suite that an SA can have.
SUITES = [
    *(Suite(Cipher.AES_GCM, length) for length in (16, 24, 32)),
    Suite(Cipher.CHACHA20_POLY1305, 32),
    *(Suite(Cipher.AES_CBC, length, integrity) for length in (16, 24, 32) for integrity in SEPARATE),
    *(Suite(Cipher.NULL, 0, integrity) for integrity in SEPARATE),
    *(Suite(Cipher.AES_GCM, length, tag=tag) for length in (16, 24, 32) for tag in (12, 8)),
    *(Suite(Cipher.AES_CCM, length, tag=tag) for length in (16, 24, 32) for tag in (16, 12, 8)),
    *(Suite(Cipher.AES_GMAC, length) for length in (16, 24, 32)),
    *(Suite(Cipher.AES_CTR, length, integrity) for length in (16, 24, 32) for integrity in SEPARATE),
    *(Suite(Cipher.NULL, length, Integrity.AES_GMAC) for length in (16, 24, 32)),
]


def engines() -> dict[str, EngineHandle]:
    """Every engine that this machine is meant to have; one that cannot be opened fails the tests."""
    names = ["ipsec-mb", "openssl"] if platform.machine() == "x86_64" else ["openssl"]
    return {name: open_engine(name) for name in names}


def vectors(name: str) -> list[dict[str, str]]:
    """The rows of tests/vectors/NAME.json as dictionaries."""
    data = json.loads((VECTORS / f"{name}.json").read_text())
    return [dict(zip(data["columns"], row, strict=True)) for row in data["rows"]]


def random_job(chance: random.Random, *, longest: int = 9000, suite: Suite | None = None) -> JobSpec:
    """A job of any suite, size and, for half of them, with extended sequence numbers."""
    suite = suite or chance.choice(SUITES)
    cipher, key_length, integrity, _ = suite
    length = chance.choice((0, 1, chance.randrange(100), chance.randrange(longest + 1)))
    if cipher is Cipher.AES_CBC:
        length = 16 + length // 16 * 16
    nonce = chance.randbytes(12)
    aad = chance.randbytes(chance.choice((8, 12) if cipher.is_aead else (0, 4)))
    header = chance.randbytes(8)
    if cipher is Cipher.AES_GMAC:
        header = aad[:4] + aad[-4:] + nonce[4:]  # as in a packet: what is covered lies there
    gmac = integrity is Integrity.AES_GMAC
    return JobSpec(
        cipher=cipher,
        integrity=integrity,
        key=chance.randbytes(0 if gmac else key_length),
        integrity_key=chance.randbytes(key_length if gmac else integrity_key_length(integrity)),
        nonce=nonce,
        aad=aad,
        header=header,
        text=chance.randbytes(length),
        icv_length=suite.icv_length,
    )


def integrity_key_length(integrity: Integrity) -> int:
    """Bytes of key that ESP uses it with: HMACs as many as the hash gives."""
    if integrity in HASHES:
        return hashlib.new(HASHES[integrity]).digest_size
    return 16 if integrity else 0


def sealed(spec: JobSpec, result: JobResult) -> JobSpec:
    """The job that opens what `spec` was sealed to."""
    return replace(spec, text=result.text, icv=result.icv)


def payload(spec: JobSpec, text: bytes) -> bytes:
    """What has to come back from opening: all of the text, or with CBC what follows the IV."""
    return text[16:] if spec.cipher == Cipher.AES_CBC else text


def expected(spec: JobSpec) -> tuple[bytes, bytes]:
    """Text and ICV that sealing must give, by the `cryptography` package and hmac."""
    length = spec.icv_length
    if spec.cipher == Cipher.AES_GCM:
        text, tag = gcm(spec.key, spec.nonce, spec.text, spec.aad)
        return text, tag[:length]
    if spec.cipher == Cipher.CHACHA20_POLY1305:
        whole = ChaCha20Poly1305(spec.key).encrypt(spec.nonce, spec.text, spec.aad)
        return whole[:-16], whole[-16:]
    if spec.cipher == Cipher.AES_CCM:
        whole = AESCCM(spec.key, tag_length=length or 16).encrypt(spec.nonce[1:], spec.text, spec.aad)
        return whole[: len(spec.text)], whole[len(spec.text) :]
    if spec.cipher == Cipher.AES_GMAC:
        return spec.text, gcm(spec.key, spec.nonce, b"", spec.aad + spec.nonce[4:] + spec.text)[1]
    text = spec.text
    if spec.cipher == Cipher.AES_CBC:
        encryptor = BlockCipher(algorithms.AES(spec.key), modes.CBC(bytes(16))).encryptor()
        text = encryptor.update(text) + encryptor.finalize()
    if spec.cipher == Cipher.AES_CTR:
        first = spec.nonce + (1).to_bytes(4, "big")
        encryptor = BlockCipher(algorithms.AES(spec.key), modes.CTR(first)).encryptor()
        text = encryptor.update(text) + encryptor.finalize()
    # RFC 4303 section 2.2.1: the high half of the sequence number is hashed after the text.
    return text, mac_of(spec, spec.header + text + spec.aad)[: ICV_LENGTHS[Integrity(spec.integrity)]]


def esp_packet(spec: SaSpec, text: bytes, number: int, iv: bytes) -> bytes:
    """ESP header to ICV of an SA's packet with this 64-bit number and IV, which is empty where it is implicit.

    `text` has its trailer; with CBC it is whole blocks.
    """
    proposal = spec.proposal
    header = spec.spi.to_bytes(4, "big") + (number & 0xFFFFFFFF).to_bytes(4, "big")
    key = spec.encryption_key[: len(spec.encryption_key) - proposal.salt_length]
    salt = spec.encryption_key[len(key) :].rjust(4, b"\0")
    if proposal.is_aead:
        aad = header[:4] + (number.to_bytes(8, "big") if proposal.esn else header[4:])
    else:
        aad = (number >> 32).to_bytes(4, "big") if proposal.esn else b""
    before = header + iv
    if proposal.cipher is Cipher.AES_CBC:
        # `expected` enciphers the IV with the text: what becomes this IV is its decryption.
        decryptor = BlockCipher(algorithms.AES(key), modes.ECB()).decryptor()
        before, text = header, decryptor.update(iv) + decryptor.finalize() + text
    job = JobSpec(
        cipher=proposal.cipher,
        integrity=proposal.integrity,
        key=key,
        integrity_key=spec.integrity_key,
        nonce=salt + (iv if len(iv) == 8 else number.to_bytes(8, "big")),
        aad=aad,
        header=before,
        text=text,
        icv_length=proposal.icv_length,
    )
    ciphertext, icv = expected(job)
    return before + ciphertext + icv


def gcm(key: bytes, nonce: bytes, text: bytes, aad: bytes) -> tuple[bytes, bytes]:
    """Ciphertext and tag."""
    whole = AESGCM(key).encrypt(nonce, text, aad)
    return whole[:-16], whole[-16:]


def mac_of(spec: JobSpec, message: bytes) -> bytes:
    """What the job's integrity algorithm makes of `message`, whole."""
    if spec.integrity == Integrity.NONE:
        return b""
    if spec.integrity == Integrity.AES_GMAC:
        return gcm(spec.integrity_key, spec.nonce, b"", message)[1]
    if spec.integrity == Integrity.AES_CMAC:
        cmac = CMAC(algorithms.AES(spec.integrity_key))
        cmac.update(message)
        return cmac.finalize()
    if spec.integrity == Integrity.AES_XCBC:
        return xcbc(spec.integrity_key, message)
    return hmac.digest(spec.integrity_key, message, HASHES[Integrity(spec.integrity)])


def xcbc(key: bytes, message: bytes) -> bytes:
    """AES-XCBC-MAC (RFC 3566 section 4.2), which `cryptography` has only the blocks of."""

    def encipher(key: bytes, text: bytes) -> bytes:
        encryptor = BlockCipher(algorithms.AES(key), modes.CBC(bytes(16))).encryptor()
        return (encryptor.update(text) + encryptor.finalize())[-16:]

    last = encipher(key, bytes([2] * 16))
    body, end = message[: max(0, len(message) - 1) // 16 * 16], message[max(0, len(message) - 1) // 16 * 16 :]
    if len(end) < 16:
        last = encipher(key, bytes([3] * 16))
        end = (end + b"\x80").ljust(16, b"\0")
    end = bytes(a ^ b for a, b in zip(end, last, strict=True))
    return encipher(encipher(key, bytes([1] * 16)), body + end)


ENGINES = engines()
