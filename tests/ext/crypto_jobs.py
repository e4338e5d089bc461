"""What the tests of the crypto engines share: engines, random jobs, and the same work done by `cryptography`."""

from __future__ import annotations

import hashlib
import hmac
import json
import platform
import random
from dataclasses import replace
from pathlib import Path

from cryptography.hazmat.primitives.ciphers import Cipher as BlockCipher
from cryptography.hazmat.primitives.ciphers import algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from dataplane.engine import open_engine
from dataplane.model import Cipher, Integrity
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
}
# Every suite that an SA can have: cipher, bytes of key, integrity.
SUITES = [
    *((Cipher.AES_GCM, length, Integrity.NONE) for length in (16, 24, 32)),
    (Cipher.CHACHA20_POLY1305, 32, Integrity.NONE),
    *((Cipher.AES_CBC, length, integrity) for length in (16, 24, 32) for integrity in ICV_LENGTHS),
    *((Cipher.NULL, 0, integrity) for integrity in ICV_LENGTHS),
]


def engines() -> dict[str, EngineHandle]:
    """Every engine that this machine is meant to have; one that cannot be opened fails the tests."""
    names = ["ipsec-mb", "openssl"] if platform.machine() == "x86_64" else ["openssl"]
    return {name: open_engine(name) for name in names}


def vectors(name: str) -> list[dict[str, str]]:
    """The rows of tests/vectors/NAME.json as dictionaries."""
    data = json.loads((VECTORS / f"{name}.json").read_text())
    return [dict(zip(data["columns"], row, strict=True)) for row in data["rows"]]


def random_job(chance: random.Random, *, longest: int = 9000, suite: tuple | None = None) -> JobSpec:
    """A job of any suite, size and, for half of them, with extended sequence numbers."""
    cipher, key_length, integrity = suite or chance.choice(SUITES)
    aead = cipher in (Cipher.AES_GCM, Cipher.CHACHA20_POLY1305)
    length = chance.choice((0, 1, chance.randrange(100), chance.randrange(longest + 1)))
    if cipher is Cipher.AES_CBC:
        length = 16 + length // 16 * 16
    return JobSpec(
        cipher=cipher,
        integrity=integrity,
        key=chance.randbytes(key_length),
        integrity_key=chance.randbytes(integrity_key_length(integrity)),
        nonce=chance.randbytes(12),
        aad=chance.randbytes(chance.choice((8, 12) if aead else (0, 4))),
        header=chance.randbytes(8),
        text=chance.randbytes(length),
    )


def integrity_key_length(integrity: Integrity) -> int:
    """Bytes of key that ESP uses it with: as many as its hash gives."""
    return hashlib.new(HASHES[integrity]).digest_size if integrity else 0


def sealed(spec: JobSpec, result: JobResult) -> JobSpec:
    """The job that opens what `spec` was sealed to."""
    return replace(spec, text=result.text, icv=result.icv)


def payload(spec: JobSpec, text: bytes) -> bytes:
    """What has to come back from opening: all of the text, or with CBC what follows the IV."""
    return text[16:] if spec.cipher == Cipher.AES_CBC else text


def expected(spec: JobSpec) -> tuple[bytes, bytes]:
    """Text and ICV that sealing must give, by the `cryptography` package and hmac."""
    if spec.cipher == Cipher.AES_GCM:
        whole = AESGCM(spec.key).encrypt(spec.nonce, spec.text, spec.aad)
        return whole[:-16], whole[-16:]
    if spec.cipher == Cipher.CHACHA20_POLY1305:
        whole = ChaCha20Poly1305(spec.key).encrypt(spec.nonce, spec.text, spec.aad)
        return whole[:-16], whole[-16:]
    text = spec.text
    if spec.cipher == Cipher.AES_CBC:
        encryptor = BlockCipher(algorithms.AES(spec.key), modes.CBC(bytes(16))).encryptor()
        text = encryptor.update(text) + encryptor.finalize()
    if spec.integrity == Integrity.NONE:
        return text, b""
    # RFC 4303 section 2.2.1: the high half of the sequence number is hashed after the text.
    digest = hmac.digest(spec.integrity_key, spec.header + text + spec.aad, HASHES[Integrity(spec.integrity)])
    return text, digest[: ICV_LENGTHS[Integrity(spec.integrity)]]


ENGINES = engines()
