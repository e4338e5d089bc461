"""The SK payload's protection: every suite both ways, the RFC's vector, and every byte that may be wrong."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from control.crypto.errors import IntegrityError, UnsupportedError
from control.crypto.sk import Protection

SUITES = [
    *(Protection(12, bits, integ) for bits in (128, 192, 256) for integ in (2, 5, 8, 12, 13, 14)),
    *(Protection(aead, bits) for bits in (128, 192, 256) for aead in (14, 15, 16, 18, 19, 20)),
    Protection(28, 256),
]
HEADER = bytes(range(32))


def keys(suite: Protection) -> tuple[bytes, bytes]:
    """Keys of the right lengths."""
    return b"E" * suite.encryption_key_length, b"I" * suite.integrity_key_length


@pytest.mark.parametrize("suite", SUITES, ids=lambda one: f"{one.encr_id}-{one.key_bits}-{one.integ_id}")
def test_seal_and_open(suite: Protection) -> None:
    """All lengths around a block come back, in the announced size; IVs differ; another key or header fails."""
    sealer, opener = suite.sealer(*keys(suite)), suite.opener(*keys(suite))
    ivs = set()
    for length in (0, 1, 14, 15, 16, 17, 31, 32, 500):
        payloads = bytes(length)
        body = sealer.seal(HEADER, payloads)
        ivs.add(body[: suite.iv_length])
        assert len(body) == suite.sealed_length(length)
        assert opener.open(HEADER, body) == payloads
        assert suite.payload_room(len(body)) >= length
        assert suite.sealed_length(suite.payload_room(len(body))) <= len(body)
        with pytest.raises(IntegrityError, match="integrity check failed"):
            opener.open(HEADER[:-1] + b"\xff", body)
    assert len(ivs) == 9
    encryption, integrity = keys(suite)
    other = suite.opener(b"F" + encryption[1:], b"F" + integrity[1:] if integrity else b"")
    with pytest.raises(IntegrityError, match="integrity check failed"):
        other.open(HEADER, body)


def test_rfc_7634_appendix_b() -> None:
    """ChaCha20-Poly1305 on an INFORMATIONAL with one notification."""
    suite = Protection(28, 256)
    sealer = suite.sealer(bytes(range(0x80, 0xA0)) + bytes.fromhex("a0a1a2a3"), b"")
    sealer._messages = 0x1011121314151617
    header = bytes.fromhex("c0c1c2c3c4c5c6c7d0d1d2d3d4d5d6d72e202500000000090000004529000029")
    body = sealer.seal(header, bytes.fromhex("0000000c000040010000000a"))
    assert body.hex() == "1011121314151617610394701f8d017f7c129248896b71bfe25236efd7cdc67066906315b2"


def test_gcm_against_the_library() -> None:
    """Nonce is salt | IV, associated data the header, plaintext ends in a zero pad length (RFC 5282)."""
    suite = Protection(20, 128)
    body = suite.sealer(b"K" * 16 + b"salt", b"").seal(HEADER, b"payloads")
    iv, sealed = body[:8], body[8:]
    assert AESGCM(b"K" * 16).decrypt(b"salt" + iv, sealed, HEADER) == b"payloads\0"
    # A truncated ICV is the start of the whole one.
    short = Protection(18, 128).sealer(b"K" * 16 + b"salt", b"").seal(HEADER, b"payloads")
    assert short == body[:-8]


@pytest.mark.parametrize("suite", [Protection(12, 256, 12), Protection(20, 256), Protection(28)])
def test_every_bit_counts(suite: Protection) -> None:
    """One flipped bit anywhere in the body, or a cut, is found."""
    opener = suite.opener(*keys(suite))
    body = suite.sealer(*keys(suite)).seal(HEADER, b"some payloads")
    for at in range(len(body)):
        changed = bytearray(body)
        changed[at] ^= 1
        with pytest.raises(IntegrityError):
            opener.open(HEADER, bytes(changed))
        with pytest.raises(IntegrityError):
            opener.open(HEADER, body[:at])


def test_padding_longer_than_the_plaintext() -> None:
    """A peer with the keys may still send nonsense: the pad length counts bytes that are not there."""
    suite = Protection(20, 128)
    sealed = AESGCM(b"K" * 16).encrypt(b"salt" + bytes(8), b"abc\x04", HEADER)
    with pytest.raises(IntegrityError, match="padding of 4 bytes in 4"):
        suite.opener(b"K" * 16 + b"salt", b"").open(HEADER, bytes(8) + sealed)
    # RFC 7296 section 3.14: padding may have any value and length.
    sealed = AESGCM(b"K" * 16).encrypt(b"salt" + bytes(8), b"abcxyz\x03", HEADER)
    assert suite.opener(b"K" * 16 + b"salt", b"").open(HEADER, bytes(8) + sealed) == b"abc"


@given(
    st.binary(max_size=200), st.sampled_from([Protection(12, 128, 2), Protection(20, 128), Protection(28)])
)
def test_any_bytes_end_in_integrity_error(body: bytes, suite: Protection) -> None:
    """Nothing but IntegrityError comes of random bytes."""
    with pytest.raises(IntegrityError):
        suite.opener(*keys(suite)).open(HEADER, body)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((3, 0, 2), "encryption transform 3"),
        ((12, 100, 2), "100 bits"),
        ((12, 128, 0), "integrity transform 0"),
        ((12, 128, 1), "integrity transform 1"),
        ((20, 128, 12), "AEAD with integrity"),
        ((28, 128), "128 bits"),
    ],
)
def test_unsupported(arguments: tuple[int, ...], text: str) -> None:
    """What is not offered says what was asked for."""
    with pytest.raises(UnsupportedError, match=text):
        Protection(*arguments)


def test_wrong_key_lengths_are_our_mistake() -> None:
    """A ValueError that shows lengths, not keys."""
    with pytest.raises(ValueError, match=r"\(16, 0\) bytes.*\(20, 0\)"):
        Protection(20, 128).sealer(b"K" * 16, b"")


def test_keys_are_not_shown() -> None:
    """Neither sealer nor opener shows its keys."""
    suite = Protection(12, 128, 12)
    assert "EEEE" not in repr(suite.sealer(*keys(suite))) + repr(suite.sealer(*keys(suite))._keys)
