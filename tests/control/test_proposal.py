"""ESP proposals by strongSwan's keywords."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.config import format_proposal, parse_proposal
from dataplane.model import Cipher, EspProposal, Integrity

SUITES = {
    "aes128gcm16": (Cipher.AES_GCM, 128, Integrity.NONE, False, 20, 0),
    "aes192gcm16-esn": (Cipher.AES_GCM, 192, Integrity.NONE, True, 28, 0),
    "aes256gcm128": (Cipher.AES_GCM, 256, Integrity.NONE, False, 36, 0),
    "chacha20poly1305-noesn": (Cipher.CHACHA20_POLY1305, 256, Integrity.NONE, False, 36, 0),
    "aes128-sha256": (Cipher.AES_CBC, 128, Integrity.HMAC_SHA2_256, False, 16, 32),
    "AES192-SHA384": (Cipher.AES_CBC, 192, Integrity.HMAC_SHA2_384, False, 24, 48),
    "aes256-sha2_512-esn": (Cipher.AES_CBC, 256, Integrity.HMAC_SHA2_512, True, 32, 64),
    "aes-sha256_128": (Cipher.AES_CBC, 128, Integrity.HMAC_SHA2_256, False, 16, 32),
    "aes256-sha1": (Cipher.AES_CBC, 256, Integrity.HMAC_SHA1, False, 32, 20),
    "null-sha-esn": (Cipher.NULL, 0, Integrity.HMAC_SHA1, True, 0, 20),
    "null-sha256": (Cipher.NULL, 0, Integrity.HMAC_SHA2_256, False, 0, 32),
    "aes192gcm12": (Cipher.AES_GCM, 192, Integrity.NONE, False, 28, 0),
    "aes128gcm64-esn": (Cipher.AES_GCM, 128, Integrity.NONE, True, 20, 0),
    "aes128ccm8": (Cipher.AES_CCM, 128, Integrity.NONE, False, 19, 0),
    "aes192ccm12": (Cipher.AES_CCM, 192, Integrity.NONE, False, 27, 0),
    "aes256ccm-esn": (Cipher.AES_CCM, 256, Integrity.NONE, True, 35, 0),
    "aes128gmac": (Cipher.AES_GMAC, 128, Integrity.NONE, False, 20, 0),
    "aes256gmac-esn": (Cipher.AES_GMAC, 256, Integrity.NONE, True, 36, 0),
    "aesctr-sha1": (Cipher.AES_CTR, 128, Integrity.HMAC_SHA1, False, 20, 20),
    "aes256ctr-aescmac": (Cipher.AES_CTR, 256, Integrity.AES_CMAC, False, 36, 16),
    "aes192-aesxcbc": (Cipher.AES_CBC, 192, Integrity.AES_XCBC, False, 24, 16),
    "aes256gcm16iiv-esn": (Cipher.AES_GCM, 256, Integrity.NONE, True, 36, 0),
    "aes128ccm8iiv": (Cipher.AES_CCM, 128, Integrity.NONE, False, 19, 0),
    "chacha20poly1305iiv": (Cipher.CHACHA20_POLY1305, 256, Integrity.NONE, False, 36, 0),
}
#: By word: bytes of ICV, 16 where none of these occurs.
TAGS = {"gcm128": 16, "gcm12": 12, "gcm64": 8, "ccm8": 8, "ccm12": 12}


@pytest.mark.parametrize("text", SUITES)
def test_suites(text: str) -> None:
    cipher, bits, integrity, esn, key, integrity_key = SUITES[text]
    proposal = parse_proposal(text)
    assert (proposal.cipher, proposal.key_bits, proposal.integrity, proposal.esn) == (
        cipher,
        bits,
        integrity,
        esn,
    )
    assert (proposal.encryption_key_length, proposal.integrity_key_length) == (key, integrity_key)
    assert proposal.tag_length == next((TAGS[word] for word in TAGS if word in text), 16)
    assert proposal.implicit_iv == ("iiv" in text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sha256",
        "null",
        "aes128",
        "aes128gcm16-sha256",
        "aes128-aes256-sha256",
        "aes128-sha256-sha512",
        "aes128gcm7",
        "aes128gcm8iiv",
        "aes128ccm16iiv",
        "aes128gmac-sha256",
        "aes128ctr",
        "aes128iiv-sha256",
        "3des-md5",
        "aes128gcm16-modp2048",
        "aes128gcm16-esn-noesn",
        "aes128gcm16-",
        "-",
        "aes128 gcm16",
    ],
)
def test_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^(which|whose|but|of which) "):
        parse_proposal(text)


@given(st.sampled_from(sorted(SUITES)))
def test_format_is_the_inverse(text: str) -> None:
    proposal = parse_proposal(text)
    assert parse_proposal(format_proposal(proposal)) == proposal


@given(st.text(alphabet="aes128gcm16-nulxh5\0é ", max_size=40))
def test_only_value_error(text: str) -> None:
    try:
        assert isinstance(parse_proposal(text), EspProposal)
    except ValueError:
        pass
