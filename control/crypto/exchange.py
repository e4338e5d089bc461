"""Key exchange methods: transform type 4 (RFC 7296 section 3.4; RFC 3526, 5903, 6954, 8031, ML-KEM).

    initiator   mine = offer(group); send mine.public; secret = mine.finish(what came back)
    responder   public, secret = answer(group, what came)

Public values are as in the KE payload, without its group number: MODP values padded to the prime's length, x | y for
curves, the bare u coordinate for X25519 and X448. For ML-KEM the initiator's value is an encapsulation key and the
responder's a ciphertext, of another length. Secrets are SK(n) of RFC 9370, ready for the PRF.

Refused with PublicValueError: a wrong length, a MODP value of a small subgroup (all groups are safe primes, so
only 0, 1 and p-1 are; RFC 6989 section 2.1), a point off its curve (2.3), an all-zero X25519 or X448 secret (RFC
8031 section 5), an encapsulation key that fails FIPS 203's checks. ML-KEM-512 is not in the library, so not here.
MODP-1024 and MODP-1536 are broken or weak (RFC 8247): they are here for old peers that offer nothing else.

The library has announced that it will drop MODP groups one day, and warns wherever they are used: noise
to an operator, whose peers decide.
"""

from __future__ import annotations

import hmac
import secrets
import warnings
from dataclasses import dataclass, field
from functools import cache
from typing import Protocol

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dh, ec, mlkem, x448, x25519

from control.crypto.errors import CryptoError, PublicValueError, UnsupportedError

warnings.filterwarnings("ignore", message="Diffie-Hellman over finite fields")


class _Private(Protocol):
    """The initiator's half of one exchange."""

    public: bytes

    def finish(self, peer_public: bytes) -> bytes:
        """The secret; ValueError or CryptoError if the peer's value is no good."""


class _Method(Protocol):
    """One group. Lengths are in bytes."""

    initiator_length: int
    responder_length: int

    def private(self, secret: bytes | None) -> _Private:
        """A new private key, or the one given."""

    def answer(self, peer_public: bytes) -> tuple[bytes, bytes]:
        """The responder's public value and the secret."""


@dataclass(frozen=True)
class Offer:
    """An exchange that the initiator has begun: send `public`, then `finish` with what came back."""

    group: int
    public: bytes
    _private: _Private = field(repr=False)

    def finish(self, peer_public: bytes) -> bytes:
        """The shared secret; PublicValueError if the responder's value is invalid."""
        _check_length(self.group, peer_public, initiator=False)
        try:
            return self._private.finish(peer_public)
        except (ValueError, CryptoError) as error:
            raise _refused(self.group, error) from error


def offer(group: int, private: bytes | None = None) -> Offer:
    """Begin an exchange as initiator; `private` fixes the private key (big endian; raw; a seed), for known answers."""
    key = _method(group).private(private)
    return Offer(group, key.public, key)


def answer(group: int, peer_public: bytes) -> tuple[bytes, bytes]:
    """Our public value and the shared secret for an initiator's value; PublicValueError if that is invalid."""
    _check_length(group, peer_public, initiator=True)
    try:
        return _method(group).answer(peer_public)
    except (ValueError, CryptoError) as error:
        raise _refused(group, error) from error


def public_length(group: int, *, initiator: bool) -> int:
    """Bytes of the public value that this side of an exchange sends."""
    method = _method(group)
    return method.initiator_length if initiator else method.responder_length


def is_supported(group: int) -> bool:
    """True where `offer` and `answer` can do this group."""
    return group in _NAMES


def group_name(group: int) -> str:
    """The group's name for texts; the number for one that is unknown."""
    return _NAMES.get(group, f"group {group}")


def _check_length(group: int, public: bytes, *, initiator: bool) -> None:
    want = public_length(group, initiator=initiator)
    if len(public) != want:
        raise PublicValueError(
            f"KE payload with {len(public)} bytes of public value; {group_name(group)} wants {want}"
        )


def _refused(group: int, error: Exception) -> PublicValueError:
    reason = str(error) or "the library refused it"
    return PublicValueError(f"public value for {group_name(group)} is invalid: {reason}")


# ---- MODP (RFC 2409 section 6.2, RFC 3526) -----------------------------------------------------------------------

# Size: the constant c of p = 2^n - 2^(n-64) - 1 + 2^64 * (floor(2^(n-130) * pi) + c), as the RFCs define the primes.
_MODP_CONSTANTS = {
    1024: 129093,
    1536: 741804,
    2048: 124476,
    3072: 1690314,
    4096: 240904,
    6144: 929484,
    8192: 4743158,
}


def modp_prime(bits: int) -> int:
    """The prime of a MODP group, from the formula that the RFCs give for it."""
    pi = _pi(bits - 130)
    return (1 << bits) - (1 << (bits - 64)) - 1 + ((pi + _MODP_CONSTANTS[bits]) << 64)


def _pi(bits: int) -> int:
    """floor(2^bits * pi) by Machin's formula, pi = 16 atan(1/5) - 4 atan(1/239)."""
    guard = 64
    one = 1 << (bits + guard)

    def atan_inverse(x: int) -> int:
        term = total = one // x
        divisor, sign = 1, 1
        while term:
            term //= x * x
            divisor, sign = divisor + 2, -sign
            total += sign * (term // divisor)
        return total

    return (16 * atan_inverse(5) - 4 * atan_inverse(239)) >> guard


class _SmallModp:
    """MODP-1024, which OpenSSL has no name for: it would test the prime anew, for 0.1 s, with every peer.

    Python's pow is not constant-time; a private key that serves once gives an observer one measurement.
    """

    def __init__(self, bits: int) -> None:
        self.prime = modp_prime(bits)
        self.initiator_length = self.responder_length = bits // 8

    def private(self, secret: bytes | None) -> _SmallModpPrivate:
        # RFC 3526 section 8 asks for 160 bits of exponent and more.
        return _SmallModpPrivate(
            self, secrets.randbits(320) | 1 << 320 if secret is None else int.from_bytes(secret, "big")
        )

    def answer(self, peer_public: bytes) -> tuple[bytes, bytes]:
        mine = self.private(None)
        return mine.public, mine.finish(peer_public)


class _SmallModpPrivate:
    def __init__(self, method: _SmallModp, x: int) -> None:
        self.method = method
        self.x = x
        self.public = pow(2, x, method.prime).to_bytes(method.initiator_length, "big")

    def finish(self, peer_public: bytes) -> bytes:
        y = _modp_value(peer_public, self.method.prime)
        return pow(y, self.x, self.method.prime).to_bytes(self.method.initiator_length, "big")


def _modp_value(public: bytes, prime: int) -> int:
    """The peer's value; RFC 6989 section 2.1: of a safe prime's values these alone are in a small subgroup."""
    y = int.from_bytes(public, "big")
    if not 1 < y < prime - 1:
        raise PublicValueError("it is not between 2 and p-2")
    return y


class _Modp:
    def __init__(self, bits: int) -> None:
        self.prime = modp_prime(bits)
        self.initiator_length = self.responder_length = bits // 8
        self.numbers = dh.DHParameterNumbers(self.prime, 2, (self.prime - 1) // 2)
        self.parameters = self.numbers.parameters()

    def private(self, secret: bytes | None) -> _ModpPrivate:
        if secret is None:
            return _ModpPrivate(self, self.parameters.generate_private_key())
        x = int.from_bytes(secret, "big")
        public = dh.DHPublicNumbers(pow(2, x, self.prime), self.numbers)
        return _ModpPrivate(self, dh.DHPrivateNumbers(x, public).private_key())

    def answer(self, peer_public: bytes) -> tuple[bytes, bytes]:
        _modp_value(peer_public, self.prime)  # before the work that a key of our own is
        mine = self.private(None)
        return mine.public, mine.finish(peer_public)


class _ModpPrivate:
    def __init__(self, method: _Modp, key: dh.DHPrivateKey) -> None:
        self.method = method
        self.key = key
        self.public = key.public_key().public_numbers().y.to_bytes(method.initiator_length, "big")

    def finish(self, peer_public: bytes) -> bytes:
        y = _modp_value(peer_public, self.method.prime)
        secret = self.key.exchange(dh.DHPublicNumbers(y, self.method.numbers).public_key())
        # RFC 7296 section 2.14: leading zeros of the secret count.
        return secret.rjust(self.method.initiator_length, b"\0")


# ---- curves over prime fields (RFC 5903, RFC 6954) -----------------------------------------------------------------


class _Curve:
    def __init__(self, curve: ec.EllipticCurve) -> None:
        self.curve = curve
        self.initiator_length = self.responder_length = 2 * ((curve.key_size + 7) // 8)

    def private(self, secret: bytes | None) -> _CurvePrivate:
        if secret is None:
            return _CurvePrivate(self.curve, ec.generate_private_key(self.curve))
        return _CurvePrivate(self.curve, ec.derive_private_key(int.from_bytes(secret, "big"), self.curve))

    def answer(self, peer_public: bytes) -> tuple[bytes, bytes]:
        mine = self.private(None)
        return mine.public, mine.finish(peer_public)


class _CurvePrivate:
    def __init__(self, curve: ec.EllipticCurve, key: ec.EllipticCurvePrivateKey) -> None:
        self.curve = curve
        self.key = key
        point = key.public_key().public_bytes(
            serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
        )
        self.public = point[1:]

    def finish(self, peer_public: bytes) -> bytes:
        # The library checks that the point is on the curve; RFC 5903 section 7: the secret is the x coordinate.
        peer = ec.EllipticCurvePublicKey.from_encoded_point(self.curve, b"\x04" + peer_public)
        return self.key.exchange(ec.ECDH(), peer)


# ---- X25519 and X448 (RFC 7748, RFC 8031) --------------------------------------------------------------------------


class _Montgomery:
    def __init__(self, length: int) -> None:
        self.initiator_length = self.responder_length = length

    def private(self, secret: bytes | None) -> _MontgomeryPrivate:
        key: x25519.X25519PrivateKey | x448.X448PrivateKey
        if self.initiator_length == 32:
            generate, load = x25519.X25519PrivateKey.generate, x25519.X25519PrivateKey.from_private_bytes
            key = generate() if secret is None else load(secret)
        else:
            key = (
                x448.X448PrivateKey.generate()
                if secret is None
                else x448.X448PrivateKey.from_private_bytes(secret)
            )
        return _MontgomeryPrivate(key)

    def answer(self, peer_public: bytes) -> tuple[bytes, bytes]:
        mine = self.private(None)
        return mine.public, mine.finish(peer_public)


class _MontgomeryPrivate:
    def __init__(self, key: x25519.X25519PrivateKey | x448.X448PrivateKey) -> None:
        self.key = key
        self.public = key.public_key().public_bytes_raw()

    def finish(self, peer_public: bytes) -> bytes:
        try:
            if isinstance(self.key, x25519.X25519PrivateKey):
                secret = self.key.exchange(x25519.X25519PublicKey.from_public_bytes(peer_public))
            else:
                secret = self.key.exchange(x448.X448PublicKey.from_public_bytes(peer_public))
        except ValueError as error:  # what the library says of a point of small order
            raise PublicValueError("it leads to no secret, or to an all-zero one") from error
        if hmac.compare_digest(secret, bytes(len(secret))):
            raise PublicValueError("it leads to an all-zero secret")
        return secret


# ---- ML-KEM (FIPS 203; draft-ietf-ipsecme-ikev2-mlkem) -------------------------------------------------------------


class _MlKem:
    def __init__(self, size: int) -> None:
        self.size = size
        self.initiator_length, self.responder_length = {768: (1184, 1088), 1024: (1568, 1568)}[size]

    def private(self, secret: bytes | None) -> _MlKemPrivate:
        kind = mlkem.MLKEM768PrivateKey if self.size == 768 else mlkem.MLKEM1024PrivateKey
        return _MlKemPrivate(kind.generate() if secret is None else kind.from_seed_bytes(secret))

    def answer(self, peer_public: bytes) -> tuple[bytes, bytes]:
        kind = mlkem.MLKEM768PublicKey if self.size == 768 else mlkem.MLKEM1024PublicKey
        secret, ciphertext = kind.from_public_bytes(peer_public).encapsulate()
        return ciphertext, secret


class _MlKemPrivate:
    def __init__(self, key: mlkem.MLKEM768PrivateKey | mlkem.MLKEM1024PrivateKey) -> None:
        self.key = key
        self.public = key.public_key().public_bytes_raw()

    def finish(self, peer_public: bytes) -> bytes:
        # A ciphertext that was made for another key gives a secret that fits nobody: FIPS 203's implicit rejection.
        return self.key.decapsulate(peer_public)


# ---- all of them ---------------------------------------------------------------------------------------------------

_NAMES = {
    2: "MODP_1024",
    5: "MODP_1536",
    14: "MODP_2048",
    15: "MODP_3072",
    16: "MODP_4096",
    17: "MODP_6144",
    18: "MODP_8192",
    19: "ECP_256",
    20: "ECP_384",
    21: "ECP_521",
    28: "ECP_256_BP",
    29: "ECP_384_BP",
    30: "ECP_512_BP",
    31: "CURVE_25519",
    32: "CURVE_448",
    36: "ML_KEM_768",
    37: "ML_KEM_1024",
}
_CURVES: dict[str, type[ec.EllipticCurve]] = {
    "ECP_256": ec.SECP256R1,
    "ECP_384": ec.SECP384R1,
    "ECP_521": ec.SECP521R1,
    "ECP_256_BP": ec.BrainpoolP256R1,
    "ECP_384_BP": ec.BrainpoolP384R1,
    "ECP_512_BP": ec.BrainpoolP512R1,
}


@cache
def _method(group: int) -> _Method:
    """The method of a group, made when it is first wanted; UnsupportedError where there is none."""
    name = _NAMES.get(group)
    if name is None:
        raise UnsupportedError(f"key exchange method {group}; want one of {sorted(_NAMES)}")
    kind, _, size = name.rpartition("_")
    if name in _CURVES:
        return _Curve(_CURVES[name]())
    if kind == "MODP":
        return _SmallModp(1024) if size == "1024" else _Modp(int(size))
    if kind == "ML_KEM":
        return _MlKem(int(size))
    return _Montgomery(32 if size == "25519" else 56)
