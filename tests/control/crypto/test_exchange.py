"""Key exchanges: RFC and Wycheproof known answers, both sides of every group, and what must be refused."""

from __future__ import annotations

import pytest

from control.crypto import exchange
from control.crypto.errors import PublicValueError, UnsupportedError
from tests.control.crypto.known import rows

GROUPS = [2, 5, 14, 15, 16, 19, 20, 21, 28, 29, 30, 31, 32, 36, 37]
MODP = {2: 1024, 5: 1536, 14: 2048, 15: 3072, 16: 4096, 17: 6144, 18: 8192}


@pytest.mark.parametrize("group", GROUPS)
def test_both_sides_agree(group: int) -> None:
    """Public values have the announced lengths, secrets are equal, and no secret is in a repr."""
    mine = exchange.offer(group)
    public, secret = exchange.answer(group, mine.public)
    assert mine.finish(public) == secret
    assert len(mine.public) == exchange.public_length(group, initiator=True)
    assert len(public) == exchange.public_length(group, initiator=False)
    assert secret.hex() not in repr(mine)
    assert "Private" not in repr(mine)
    assert exchange.is_supported(group)


def test_known_answers() -> None:
    """RFC 5903, 7748 and 8031: from a private key to the public value and the secret."""
    for row in rows("rfc_exchange.json"):
        mine = exchange.offer(row["group"], bytes.fromhex(row["private"]))
        assert mine.public.hex() == row["public"], row["where"]
        assert mine.finish(bytes.fromhex(row["peer"])).hex() == row["secret"], row["where"]


def test_wycheproof_curves() -> None:
    """Edge cases of coordinates; points that are on no curve, and low orders, are refused."""
    refused = 0
    for row in rows("wycheproof_exchange.json"):
        mine = exchange.offer(row["group"], bytes.fromhex(row["private"]))
        peer = bytes.fromhex(row["peer"])
        if row["secret"]:
            assert mine.finish(peer).hex() == row["secret"], row
        else:
            refused += 1
            with pytest.raises(PublicValueError):
                mine.finish(peer)
    assert refused > 20


def test_wycheproof_mlkem() -> None:
    """Seed to encapsulation key, ciphertext to secret; keys with coefficients beyond the modulus are refused."""
    for row in rows("wycheproof_mlkem.json"):
        if row["secret"]:
            mine = exchange.offer(row["group"], bytes.fromhex(row["seed"]))
            assert mine.public.hex() == row["public"]
            assert mine.finish(bytes.fromhex(row["ciphertext"])).hex() == row["secret"]
        else:
            with pytest.raises(PublicValueError, match="ML_KEM_"):
                exchange.answer(row["group"], bytes.fromhex(row["public"]))


@pytest.mark.parametrize("group", MODP)
def test_primes_are_the_rfcs(group: int) -> None:
    """As RFC 3526 prints them: 64 ones at both ends, pi in between; and both p and (p-1)/2 look prime."""
    bits = MODP[group]
    prime = exchange.modp_prime(bits)
    text = f"{prime:x}"
    assert len(text) == bits // 4
    assert text.startswith("ffffffffffffffffc90fdaa22168c234c4c6628b80dc1cd1")
    last = {1024: "49286651ece65381", 2048: "15728e5a8aacaa68", 3072: "4b82d120a93ad2ca"}
    assert text.endswith(last.get(bits, "") + "ffffffffffffffff")
    if bits <= 3072:
        assert pow(3, prime - 1, prime) == 1
        assert pow(3, prime // 2 - 1, prime // 2) == 1


@pytest.mark.parametrize("group", [2, 14])
def test_small_subgroups_are_refused(group: int) -> None:
    """0, 1, p-1, p and what is beyond, by both sides (RFC 6989 section 2.1)."""
    prime = exchange.modp_prime(MODP[group])
    size = MODP[group] // 8
    mine = exchange.offer(group)
    for value in (0, 1, prime - 1, prime, prime + 1, (1 << 8 * size) - 1):
        public = value.to_bytes(size, "big")
        with pytest.raises(PublicValueError, match="between 2 and p-2"):
            exchange.answer(group, public)
        with pytest.raises(PublicValueError, match=f"MODP_{MODP[group]}"):
            mine.finish(public)


@pytest.mark.parametrize("group", GROUPS)
def test_wrong_lengths_are_refused(group: int) -> None:
    """A byte too few or too many, or nothing, for either side."""
    mine = exchange.offer(group)
    for initiator in (True, False):
        want = exchange.public_length(group, initiator=initiator)
        for length in (0, want - 1, want + 1):
            with pytest.raises(PublicValueError, match=f"{length} bytes.*wants {want}"):
                if initiator:
                    exchange.answer(group, bytes(length))
                else:
                    mine.finish(bytes(length))


@pytest.mark.parametrize("group", [31, 32])
def test_zero_secret_is_refused(group: int) -> None:
    """RFC 8031 section 5: small-order points give an all-zero secret."""
    size = exchange.public_length(group, initiator=True)
    for point in (bytes(size), bytes([1]) + bytes(size - 1)):
        with pytest.raises(PublicValueError, match="CURVE"):
            exchange.answer(group, point)


@pytest.mark.parametrize("group", [0, 1, 22, 35, 99])
def test_unknown_groups(group: int) -> None:
    """Those that are broken, and ML-KEM-512, which the library does not have."""
    assert not exchange.is_supported(group)
    with pytest.raises(UnsupportedError, match=f"method {group};"):
        exchange.offer(group)


def test_large_modp_leading_zeros_count() -> None:
    """RFC 7296 section 2.14: the secret is as long as the prime, whatever its value."""
    mine = exchange.offer(14, (1).to_bytes(1, "big"))
    assert mine.public == (2).to_bytes(256, "big")
    assert mine.finish((7).to_bytes(256, "big")) == (7).to_bytes(256, "big")
