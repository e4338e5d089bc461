"""The Encrypted payload's cryptography: transform types 1 and 3 in IKE (RFC 7296 section 3.14, RFC 5282, RFC 7634).

    suite = Protection(encr_id, key_bits, integ_id)            what was negotiated; lengths of everything
    out = suite.sealer(encryption_key, integrity_key)          one per direction and IKE SA
    body = out.seal(header, payloads)                          IV | ciphertext | ICV
    payloads = suite.opener(...).open(header, body)            or IntegrityError

`header` is the message from its first byte up to and including the generic header of the SK payload (for SKF: its
fragment fields too). Its length fields count what seal will make, so ask `sealed_length` first. With an AEAD the
header is associated data (RFC 5282 section 5.1); else the integrity algorithm covers header, IV and ciphertext.
Encryption keys carry the AEAD's salt at their end, as prf+ gives them. AEAD IVs are a counter, CBC's are random.

Not here: NULL, 3DES, CTR (RFC 8247 wants none of them), and integrity by MD5.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESCCM, AESGCM, ChaCha20Poly1305

from control.crypto.errors import IntegrityError, UnsupportedError
from control.crypto.prf import aes_cmac, aes_xcbc

AES_CBC = 12
CHACHA20_POLY1305 = 28
_CCM = {14: 8, 15: 12, 16: 16}  # transform id: bytes of ICV
_GCM = {18: 8, 19: 12, 20: 16}
_AES_BITS = (128, 192, 256)
AEAD_IV = 8


@dataclass(frozen=True, kw_only=True)
class _Integrity:
    """An integrity algorithm: `mac` gives more than `icv_length` bytes, of which the first are sent."""

    name: str
    key_length: int
    icv_length: int
    mac: Callable[[bytes, bytes], bytes]


def _hmac(name: str, digest: str, key_length: int, icv_length: int) -> _Integrity:
    return _Integrity(
        name=name,
        key_length=key_length,
        icv_length=icv_length,
        mac=lambda key, data: hmac.digest(key, data, digest),
    )


_INTEGRITY = {
    2: _hmac("AUTH_HMAC_SHA1_96", "sha1", 20, 12),
    5: _Integrity(name="AUTH_AES_XCBC_96", key_length=16, icv_length=12, mac=aes_xcbc),
    8: _Integrity(name="AUTH_AES_CMAC_96", key_length=16, icv_length=12, mac=aes_cmac),
    12: _hmac("AUTH_HMAC_SHA2_256_128", "sha256", 32, 16),
    13: _hmac("AUTH_HMAC_SHA2_384_192", "sha384", 48, 24),
    14: _hmac("AUTH_HMAC_SHA2_512_256", "sha512", 64, 32),
}


@dataclass(frozen=True)
class Protection:
    """The algorithms that protect an IKE SA; `key_bits` is the key length attribute, 0 where a cipher has none."""

    encr_id: int
    key_bits: int = 0
    integ_id: int = 0  # 0 is NONE, as AEADs want it

    def __post_init__(self) -> None:
        """UnsupportedError for what is not offered, and for pairs that do not go together."""
        if self.encr_id == CHACHA20_POLY1305:
            if self.key_bits not in (0, 256):
                raise UnsupportedError(f"ChaCha20-Poly1305 with a key of {self.key_bits} bits; want 256")
        elif self.encr_id == AES_CBC or self.encr_id in _CCM or self.encr_id in _GCM:
            if self.key_bits not in _AES_BITS:
                raise UnsupportedError(f"AES with a key of {self.key_bits} bits; want 128, 192 or 256")
        else:
            known = sorted([AES_CBC, CHACHA20_POLY1305, *_CCM, *_GCM])
            raise UnsupportedError(f"encryption transform {self.encr_id}; want one of {known}")
        if self.is_aead and self.integ_id != 0:
            raise UnsupportedError(f"an AEAD with integrity transform {self.integ_id}; want none")
        if not self.is_aead and self.integ_id not in _INTEGRITY:
            raise UnsupportedError(f"integrity transform {self.integ_id}; want one of {sorted(_INTEGRITY)}")

    @property
    def is_aead(self) -> bool:
        """True where the cipher brings its own integrity."""
        return self.encr_id != AES_CBC

    @cached_property
    def salt_length(self) -> int:
        """Bytes of salt at the end of the encryption key (RFC 5282 section 7.1, RFC 7634 section 2)."""
        return 0 if self.encr_id == AES_CBC else 3 if self.encr_id in _CCM else 4

    @cached_property
    def encryption_key_length(self) -> int:
        """Bytes of SK_ei and SK_er each, salt included."""
        return (self.key_bits or 256) // 8 + self.salt_length

    @cached_property
    def integrity_key_length(self) -> int:
        """Bytes of SK_ai and SK_ar each; 0 with an AEAD."""
        return 0 if self.is_aead else _INTEGRITY[self.integ_id].key_length

    @cached_property
    def iv_length(self) -> int:
        """Bytes of IV before the ciphertext."""
        return AEAD_IV if self.is_aead else 16

    @cached_property
    def icv_length(self) -> int:
        """Bytes of ICV after the ciphertext."""
        if not self.is_aead:
            return _INTEGRITY[self.integ_id].icv_length
        return {**_CCM, **_GCM, CHACHA20_POLY1305: 16}[self.encr_id]

    def sealed_length(self, length: int) -> int:
        """Bytes that `length` bytes of payloads become: IV, payloads, padding, pad length byte and ICV."""
        return self.iv_length + length + self._padding(length) + 1 + self.icv_length

    def payload_room(self, sealed: int) -> int:
        """The most bytes of payloads that fit `sealed` bytes of body; the inverse of `sealed_length` (RFC 7383)."""
        inside = sealed - self.iv_length - self.icv_length
        if not self.is_aead:
            inside -= inside % 16
        return max(inside - 1, 0)

    def sealer(
        self, encryption_key: bytes, integrity_key: bytes, random: Callable[[int], bytes] = os.urandom
    ) -> Sealer:
        """What encrypts in one direction. Make one per key only: it holds the AEAD's IV counter."""
        self._check_keys(encryption_key, integrity_key)
        return Sealer(self, encryption_key, integrity_key, random)

    def opener(self, encryption_key: bytes, integrity_key: bytes) -> Opener:
        """What decrypts in one direction."""
        self._check_keys(encryption_key, integrity_key)
        return Opener(self, encryption_key, integrity_key)

    def _padding(self, length: int) -> int:
        # RFC 5282 section 3: an AEAD needs none, and ours sends none.
        return 0 if self.is_aead else -(length + 1) % 16

    def _check_keys(self, encryption_key: bytes, integrity_key: bytes) -> None:
        got = len(encryption_key), len(integrity_key)
        want = self.encryption_key_length, self.integrity_key_length
        if got != want:
            raise ValueError(f"keys of {got} bytes (encryption, integrity); {self} wants {want}")

    # ---- one message ---------------------------------------------------------------------------------------------

    def _encrypt(self, keys: _Keys, iv: bytes, header: bytes, plain: bytes) -> bytes:
        """Ciphertext and ICV."""
        if not self.is_aead:
            encryptor = Cipher(algorithms.AES(keys.encryption), modes.CBC(iv)).encryptor()
            sealed = encryptor.update(plain) + encryptor.finalize()
            integrity = _INTEGRITY[self.integ_id]
            return sealed + integrity.mac(keys.integrity, header + iv + sealed)[: integrity.icv_length]
        key, nonce = self._nonce(keys, iv)
        if self.encr_id == CHACHA20_POLY1305:
            return ChaCha20Poly1305(key).encrypt(nonce, plain, header)
        if self.encr_id in _CCM:
            return AESCCM(key, self.icv_length).encrypt(nonce, plain, header)
        if self.icv_length == 16:
            return AESGCM(key).encrypt(nonce, plain, header)
        gcm = Cipher(algorithms.AES(key), modes.GCM(nonce)).encryptor()
        gcm.authenticate_additional_data(header)
        sealed = gcm.update(plain) + gcm.finalize()
        return sealed + gcm.tag[: self.icv_length]

    def _decrypt(self, keys: _Keys, iv: bytes, header: bytes, sealed: bytes, icv: bytes) -> bytes:
        """Plaintext with its padding; InvalidTag where the ICV is wrong. The ICV is always checked first."""
        if not self.is_aead:
            integrity = _INTEGRITY[self.integ_id]
            expected = integrity.mac(keys.integrity, header + iv + sealed)[: integrity.icv_length]
            if not hmac.compare_digest(expected, icv):
                raise InvalidTag
            decryptor = Cipher(algorithms.AES(keys.encryption), modes.CBC(iv)).decryptor()
            return decryptor.update(sealed) + decryptor.finalize()
        key, nonce = self._nonce(keys, iv)
        if self.encr_id == CHACHA20_POLY1305:
            return ChaCha20Poly1305(key).decrypt(nonce, sealed + icv, header)
        if self.encr_id in _CCM:
            return AESCCM(key, self.icv_length).decrypt(nonce, sealed + icv, header)
        if self.icv_length == 16:
            return AESGCM(key).decrypt(nonce, sealed + icv, header)
        gcm = Cipher(algorithms.AES(key), modes.GCM(nonce, icv, min_tag_length=self.icv_length)).decryptor()
        gcm.authenticate_additional_data(header)
        return gcm.update(sealed) + gcm.finalize()

    def _nonce(self, keys: _Keys, iv: bytes) -> tuple[bytes, bytes]:
        """The AEAD's bare key, and its nonce: salt | IV (RFC 5282 section 4)."""
        return keys.encryption[: -self.salt_length], keys.encryption[-self.salt_length :] + iv


@dataclass(frozen=True)
class _Keys:
    encryption: bytes = field(repr=False)
    integrity: bytes = field(repr=False)


class Sealer:
    """Encrypts one direction of an IKE SA."""

    __slots__ = ("_keys", "_messages", "_random", "protection")

    def __init__(
        self, protection: Protection, encryption: bytes, integrity: bytes, random: Callable[[int], bytes]
    ) -> None:
        self.protection = protection
        self._keys = _Keys(encryption, integrity)
        self._random = random
        self._messages = 0

    def seal(self, header: bytes, payloads: bytes) -> bytes:
        """The body of an SK payload: IV | ciphertext | ICV, `sealed_length(len(payloads))` bytes."""
        protection = self.protection
        if protection.is_aead:
            # Unique under a key that no one else encrypts with; never reused, since every SA has keys of its own.
            iv = self._messages.to_bytes(AEAD_IV, "big")
            self._messages += 1
        else:
            iv = self._random(16)
        padding = protection._padding(len(payloads))
        plain = payloads + bytes(padding) + bytes([padding])
        return iv + protection._encrypt(self._keys, iv, header, plain)


class Opener:
    """Decrypts one direction of an IKE SA."""

    __slots__ = ("_keys", "protection")

    def __init__(self, protection: Protection, encryption: bytes, integrity: bytes) -> None:
        self.protection = protection
        self._keys = _Keys(encryption, integrity)

    def open(self, header: bytes, body: bytes) -> bytes:
        """The payloads of an SK payload's body, padding gone; IntegrityError where it is not the peer's."""
        protection = self.protection
        shortest = protection.sealed_length(0)
        if len(body) < shortest:
            raise IntegrityError(
                f"encrypted payload of {len(body)} bytes; {protection} needs at least {shortest}"
            )
        iv = body[: protection.iv_length]
        sealed, icv = body[protection.iv_length : -protection.icv_length], body[-protection.icv_length :]
        if not protection.is_aead and len(sealed) % 16:
            raise IntegrityError(f"ciphertext of {len(sealed)} bytes; AES-CBC makes multiples of 16")
        try:
            plain = protection._decrypt(self._keys, iv, header, sealed, icv)
        except InvalidTag:
            raise IntegrityError(
                "the integrity check failed: the message was changed, or made with other keys"
            ) from None
        if plain[-1] >= len(plain):
            raise IntegrityError(f"padding of {plain[-1]} bytes in {len(plain)} bytes of plaintext")
        return plain[: len(plain) - 1 - plain[-1]]
