"""Key derivation against NIST's ACVP vectors for IKEv2, and the additions of later RFCs."""

from __future__ import annotations

import json
from typing import Any

import pytest

from control.crypto import keys
from control.crypto.prf import prf
from control.crypto.sk import Protection
from tests.control.crypto.known import VECTORS

TESTS = json.loads((VECTORS / "acvp_ikev2.json").read_text())["tests"]
NI, NR, SPI_I, SPI_R = b"i" * 32, b"r" * 32, b"I" * 8, b"R" * 8


@pytest.mark.parametrize("test", TESTS, ids=lambda test: f"prf-{test['prf']}-{test['spiInit']}")
def test_acvp(test: dict[str, Any]) -> None:
    """SKEYSEED, the keys of an IKE SA, of children with and without PFS, and SKEYSEED of a rekeying."""
    value = {name: bytes.fromhex(text) for name, text in test.items() if name != "prf"}
    function = prf(test["prf"])
    ni, nr = value["nInit"], value["nResp"]
    seed = keys.skeyseed(function, ni, nr, value["gir"])
    assert seed == value["sKeySeed"]
    suite = Protection(20, 128)
    all_keys = keys.ike_keys(function, suite, seed, ni, nr, value["spiInit"], value["spiResp"])
    material = all_keys.d + all_keys.ai + all_keys.ar + all_keys.ei + all_keys.er + all_keys.pi + all_keys.pr
    assert material == value["derivedKeyingMaterial"][: len(material)]
    for name, secrets in (
        ("derivedKeyingMaterialChild", []),
        ("derivedKeyingMaterialDh", [value.get("girNew")]),
    ):
        if name in value:
            got = keys.keymat(function, all_keys.d, ni, nr, len(value[name]), secrets)
            assert got == value[name]
    if "sKeySeedReKey" in value:
        assert keys.skeyseed_rekey(function, all_keys.d, [value["girNew"]], ni, nr) == value["sKeySeedReKey"]


def test_lengths_and_order() -> None:
    """Each key has its algorithm's length, and they are cut from prf+ in the RFC's order."""
    function, suite = prf(6), Protection(12, 256, 14)
    made = keys.ike_keys(function, suite, b"seed", NI, NR, SPI_I, SPI_R)
    lengths = [len(key) for key in (made.d, made.ai, made.ar, made.ei, made.er, made.pi, made.pr)]
    assert lengths == [48, 64, 64, 32, 32, 48, 48]
    stream = function.plus(b"seed", NI + NR + SPI_I + SPI_R, sum(lengths))
    assert made.d + made.ai + made.ar + made.ei + made.er + made.pi + made.pr == stream
    assert "d=" not in repr(made)


@pytest.mark.parametrize("number", [4, 8])
def test_fixed_key_prf_takes_half_a_key_of_each_nonce(number: int) -> None:
    """RFC 7296 section 2.14: the first 64 bits of each, for SKEYSEED only."""
    function = prf(number)
    assert keys.skeyseed(function, NI, NR, b"secret") == function(NI[:8] + NR[:8], b"secret")
    assert keys.skeyseed(function, NI, NR, b"secret") != function(NI + NR, b"secret")


def test_child_keys() -> None:
    """Encryption before integrity, initiator before responder (RFC 7296 section 2.17)."""
    made = keys.child_keys(prf(5), b"d" * 32, NI, NR, 20, 32, [b"one", b"two"])
    stream = prf(5).plus(b"d" * 32, b"one" + NI + NR + b"two", 104)
    assert made.encryption_i + made.integrity_i + made.encryption_r + made.integrity_r == stream
    assert (len(made.encryption_i), len(made.integrity_r)) == (20, 32)


def test_additional_exchanges() -> None:
    """RFC 9370: SKEYSEED(n) = prf(SK_d(n-1), SK(n) | Ni | Nr); a rekeying puts SK(1)... behind the nonces."""
    function = prf(5)
    assert keys.skeyseed_update(function, b"d" * 32, b"kem", NI, NR) == function(b"d" * 32, b"kem" + NI + NR)
    assert keys.skeyseed_rekey(function, b"d" * 32, [b"0", b"1", b"2"], NI, NR) == function(
        b"d" * 32, b"0" + NI + NR + b"1" + b"2"
    )


def test_ppk() -> None:
    """RFC 8784 section 3: SK_d, SK_pi and SK_pr are prf+(PPK, ...) of the old ones."""
    function = prf(5)
    old = b"d" * 32, b"i" * 32, b"r" * 32
    assert keys.mix_ppk(function, b"ppk", *old) == tuple(function.plus(b"ppk", key, 32) for key in old)


def test_signed_octets() -> None:
    """RFC 7296 section 2.15, with IntAuth of RFC 9242 at the end."""
    function = prf(5)
    plain = keys.signed_octets(function, b"message", b"nonce", b"p" * 32, b"identity")
    assert plain == b"message" + b"nonce" + function(b"p" * 32, b"identity")
    assert (
        keys.signed_octets(function, b"message", b"nonce", b"p" * 32, b"identity", b"more") == plain + b"more"
    )
    assert keys.intermediate_auth(function, b"p", b"before", b"head", b"inner") == function(
        b"p", b"before" + b"head" + b"inner"
    )
