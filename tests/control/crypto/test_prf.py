"""PRFs against the RFCs' known answers, and the rules of prf+."""

from __future__ import annotations

import pytest

from control.crypto.errors import UnsupportedError
from control.crypto.prf import prf
from tests.control.crypto.known import rows


def test_known_answers() -> None:
    """RFC 4434, RFC 4615, RFC 2202: keys shorter and longer than the block among them."""
    for row in rows("rfc_prf.json"):
        got = prf(row["prf"])(bytes.fromhex(row["key"]), bytes.fromhex(row["data"]))
        assert got.hex() == row["output"], row


def test_hmac_sha_known_answers() -> None:
    """RFC 2202, RFC 4231 and RFC 4868."""
    for row in rows("rfc_hmac.json"):
        number = {1: 2, 256: 5, 384: 6, 512: 7}[row["hash"]]
        got = prf(number)(bytes.fromhex(row["key"]), bytes.fromhex(row["text"]))
        assert got.hex() == row["digest"]


def test_xcbc_of_whole_blocks_and_of_nothing() -> None:
    """RFC 3566 section 4.6, cases 1, 3, 4 and 6: the last block is masked in two ways."""
    key = bytes(range(16))
    for length, want in (
        (0, "75f0251d528ac01c4573dfd584d79f29"),
        (16, "d2a246fa349b68a79998a4394ff7a263"),
        (20, "47f51b4564966215b8985c63055ed308"),
        (34, "becbb3bccdb518a30677d5481fb6b4d8"),
    ):
        assert prf(4)(key, bytes(range(length))).hex() == want


@pytest.mark.parametrize("number", [2, 4, 5, 6, 7, 8])
def test_plus_chains_blocks(number: int) -> None:
    """T2 is the PRF of T1, the seed and the byte 2 (RFC 7296 section 2.13); a shorter request is a prefix."""
    function = prf(number)
    first = function(b"k" * 20, b"seed\x01")
    second = function(b"k" * 20, first + b"seed\x02")
    assert function.plus(b"k" * 20, b"seed", 2 * function.output_length) == first + second
    assert function.plus(b"k" * 20, b"seed", 5) == first[:5]
    assert function.plus(b"k" * 20, b"seed", 0) == b""


def test_plus_ends_where_its_counter_does() -> None:
    """Block 256 has no number."""
    function = prf(5)
    assert len(function.plus(b"k", b"s", 255 * 32)) == 255 * 32
    with pytest.raises(ValueError, match="at most 8160"):
        function.plus(b"k", b"s", 255 * 32 + 1)


def test_md5_is_not_offered() -> None:
    """RFC 8247 section 2.2."""
    with pytest.raises(UnsupportedError, match="PRF transform 1"):
        prf(1)
