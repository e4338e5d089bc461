"""Pseudorandom functions: transform type 2 (RFC 7296 section 2.13, RFC 4868, RFC 4434, RFC 4615).

    prf(id)(key, data)           one block
    prf(id).plus(key, seed, n)   prf+: n bytes out of as many blocks as that takes, at most 255

HMAC takes keys of any length by its own rule. AES-XCBC and AES-CMAC shorten or pad keys as RFC 4434 and RFC 4615 say,
and take only the first 64 bits of each nonce where the two nonces together are the key (RFC 7296 section 2.14).
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from dataclasses import dataclass

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.cmac import CMAC
from cryptography.hazmat.primitives.hmac import HMAC

from control.crypto.errors import UnsupportedError

MAX_BLOCKS = 255  # the counter of prf+ is one byte
BLOCK = 16  # of AES


@dataclass(frozen=True, kw_only=True)
class Prf:
    """A pseudorandom function. `function` is (key, data) -> `output_length` bytes, for keys of any length."""

    transform_id: int
    name: str
    key_length: int  # preferred key length, bytes: that of SK_d, SK_pi and SK_pr
    output_length: int  # bytes
    fixed_key: bool  # XCBC and CMAC: nonces are cut to 64 bits each where they are the key
    function: Callable[[bytes, bytes], bytes]
    begin: Callable[[bytes], HMAC] | None = None  # for many blocks under one key: copied for each

    def __call__(self, key: bytes, data: bytes) -> bytes:
        """prf(key, data)."""
        return self.function(key, data)

    def plus(self, key: bytes, seed: bytes, length: int) -> bytes:
        """The first `length` bytes of prf+(key, seed) = T1 | T2 | ..., Tn = prf(key, T(n-1) | seed | n)."""
        if length > MAX_BLOCKS * self.output_length:
            raise ValueError(
                f"prf+ of {length} bytes; {self.name} gives at most {MAX_BLOCKS * self.output_length}"
            )
        under_key = self._under(key)
        block, result, number = b"", bytearray(), 0
        while len(result) < length:
            number += 1
            block = under_key(block + seed + bytes([number]))
            result += block
        return bytes(result[:length])

    def _under(self, key: bytes) -> Callable[[bytes], bytes]:
        """The function under a key."""
        if self.begin is None:
            return lambda data: self.function(key, data)
        begun = self.begin(key)

        def one(data: bytes) -> bytes:
            mac = begun.copy()
            mac.update(data)
            return mac.finalize()

        return one


def prf(transform_id: int) -> Prf:
    """The PRF of a transform id (IANA, type 2); UnsupportedError for those not offered, such as HMAC-MD5."""
    try:
        return _PRFS[transform_id]
    except KeyError:
        raise UnsupportedError(f"PRF transform {transform_id}; want one of {sorted(_PRFS)}") from None


def aes_cmac(key: bytes, data: bytes) -> bytes:
    """AES-CMAC of 16 bytes under a key of exactly 16 (RFC 4493)."""
    mac = CMAC(algorithms.AES(key))
    mac.update(data)
    return mac.finalize()


def aes_xcbc(key: bytes, data: bytes) -> bytes:
    """AES-XCBC-MAC of 16 bytes under a key of exactly 16 (RFC 3566 section 4)."""
    encryptor = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    key1, key2, key3 = (encryptor.update(bytes([number]) * BLOCK) for number in (1, 2, 3))
    whole = data and len(data) % BLOCK == 0
    padded = data if whole else data + b"\x80" + bytes(-(len(data) + 1) % BLOCK)
    last = _xor(padded[-BLOCK:], key2 if whole else key3)
    # CBC with a zero IV over all blocks; its last block is the MAC.
    chain = Cipher(algorithms.AES(key1), modes.CBC(bytes(BLOCK))).encryptor()
    return chain.update(padded[:-BLOCK] + last)[-BLOCK:]


def _prf_cmac(key: bytes, data: bytes) -> bytes:
    """RFC 4615 section 3: a key of another length than 16 is first reduced by CMAC under the zero key."""
    return aes_cmac(key if len(key) == BLOCK else aes_cmac(bytes(BLOCK), key), data)


def _prf_xcbc(key: bytes, data: bytes) -> bytes:
    """RFC 4434 section 2: a shorter key is padded with zeros, a longer one reduced by XCBC under the zero key."""
    key = key.ljust(BLOCK, b"\0") if len(key) <= BLOCK else aes_xcbc(bytes(BLOCK), key)
    return aes_xcbc(key, data)


def _xor(left: bytes, right: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(left, right, strict=True))


def _hmac(transform_id: int, name: str, algorithm: hashes.HashAlgorithm) -> Prf:
    digest = algorithm.name

    def function(key: bytes, data: bytes) -> bytes:
        return hmac.digest(key, data, digest)  # OpenSSL's too, in one call

    return Prf(
        transform_id=transform_id,
        name=name,
        key_length=algorithm.digest_size,
        output_length=algorithm.digest_size,
        fixed_key=False,
        function=function,
        begin=lambda key: HMAC(key, algorithm),
    )


def _aes(transform_id: int, name: str, function: Callable[[bytes, bytes], bytes]) -> Prf:
    return Prf(
        transform_id=transform_id,
        name=name,
        key_length=BLOCK,
        output_length=BLOCK,
        fixed_key=True,
        function=function,
    )


_PRFS = {
    one.transform_id: one
    for one in (
        _hmac(2, "PRF_HMAC_SHA1", hashes.SHA1()),
        _aes(4, "PRF_AES128_XCBC", _prf_xcbc),
        _hmac(5, "PRF_HMAC_SHA2_256", hashes.SHA256()),
        _hmac(6, "PRF_HMAC_SHA2_384", hashes.SHA384()),
        _hmac(7, "PRF_HMAC_SHA2_512", hashes.SHA512()),
        _aes(8, "PRF_AES128_CMAC", _prf_cmac),
    )
}
