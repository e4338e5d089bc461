"""Keys stay out of text: no repr, str or error message of a specification holds key bytes."""

from __future__ import annotations

import dataclasses
from ipaddress import ip_address

import pytest

from dataplane.model import Cipher, Direction, EspProposal, Integrity, SaSpec

ENCRYPTION_KEY = bytes(range(0x41, 0x41 + 20))
INTEGRITY_KEY = bytes(range(0x21, 0x21 + 32))


def spec(**changes: object) -> SaSpec:
    """An SA with keys whose bytes are easy to find in text."""
    values: dict[str, object] = {
        "name": "probe",
        "direction": Direction.OUT,
        "spi": 0x1000,
        "local": ip_address("192.0.2.1"),
        "remote": ip_address("192.0.2.2"),
        "proposal": EspProposal(cipher=Cipher.AES_CBC, key_bits=128, integrity=Integrity.HMAC_SHA2_256),
        "encryption_key": ENCRYPTION_KEY,
        "integrity_key": INTEGRITY_KEY,
        "iv_mask": b"MASKMASK",
    }
    return SaSpec(**{**values, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("render", [repr, str, "{}".format, "{0!r}".format, lambda sa: repr({"sa": [sa]})])
def test_specification_shows_no_key(render) -> None:
    """Neither the bytes as text, nor in hex, nor the names of the fields."""
    text = render(spec())
    for secret in (ENCRYPTION_KEY, INTEGRITY_KEY, b"MASKMASK"):
        for length in (4, len(secret)):
            assert secret[:length].decode() not in text
            assert secret[:length].hex() not in text.lower()
    assert "_key" not in text
    assert "probe" in text


def test_copies_keep_the_secret() -> None:
    """dataclasses.replace, by which SAs are rekeyed, makes specifications that are as silent."""
    assert "ABCDE" not in repr(dataclasses.replace(spec(), spi=7))


def test_wrong_arguments_do_not_echo_keys() -> None:
    """The error for a misspelt argument names the argument, not the values of the others."""
    with pytest.raises(TypeError) as raised:
        spec(encryption_keys=ENCRYPTION_KEY)
    assert "ABCDE" not in str(raised.value)
