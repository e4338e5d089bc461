"""AUTH data: proofs by preshared key and by signature (RFC 7296 section 2.15; RFC 4754, RFC 7427, RFC 8420).

    psk_auth(prf, key, octets)                          method 2; also with the MSK of an EAP method
    sign(private_key, octets, hashes)                   14 where the peer named hashes, else 1 or 9, 10, 11
    verify(public_key, method, data, octets, hashes)    None, or SignatureError

`octets` are `keys.signed_octets`. Hashes are numbers of SIGNATURE_HASH_ALGORITHMS: 2 SHA2-256, 3 SHA2-384, 4 SHA2-512,
5 Identity (EdDSA). Method 14 data is: one byte of length, the DER AlgorithmIdentifier, the signature. RSA signs with
PSS, as RFC 8247 section 3 demands; PKCS#1 v1.5 is accepted with SHA-2, and made on request.

SHA-1 is refused in method 14. Method 1 is SHA-1 by definition with old peers (RFC 7296 section 3.8), and accepted.
"""

from __future__ import annotations

import hmac
from collections.abc import Collection
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from control.crypto import der
from control.crypto.errors import SignatureError, UnsupportedError
from control.crypto.prf import Prf

PrivateKey = (
    rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey
)
PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | ed448.Ed448PublicKey

RSA_SIGNATURE = 1
SHARED_KEY = 2
DIGITAL_SIGNATURE = 14
IDENTITY = 5
HASHES = (2, 3, 4, IDENTITY)  # what we can, for SIGNATURE_HASH_ALGORITHMS

_KEY_PAD = b"Key Pad for IKEv2"  # RFC 7296 section 2.15
_SHA2: dict[int, hashes.HashAlgorithm] = {2: hashes.SHA256(), 3: hashes.SHA384(), 4: hashes.SHA512()}
_HASH_NAMES = {1: "SHA1", 2: "SHA2-256", 3: "SHA2-384", 4: "SHA2-512", 5: "Identity"}
# RFC 4754 section 3: the method fixes curve and hash.
_ECDSA_METHODS = {9: ("secp256r1", 2), 10: ("secp384r1", 3), 11: ("secp521r1", 4)}

_RSA_OIDS = {
    der.oid(f"1.2.840.113549.1.1.{last}"): number for last, number in ((5, 1), (11, 2), (12, 3), (13, 4))
}
_ECDSA_OIDS = {
    der.oid("1.2.840.10045.4.1"): 1,
    **{der.oid(f"1.2.840.10045.4.3.{number}"): number for number in (2, 3, 4)},
}
_PSS_OID = der.oid("1.2.840.113549.1.1.10")
_MGF1_OID = der.oid("1.2.840.113549.1.1.8")
_ED25519_OID = der.oid("1.3.101.112")
_ED448_OID = der.oid("1.3.101.113")
_HASH_OIDS = {
    der.oid("1.3.14.3.2.26"): 1,
    **{der.oid(f"2.16.840.1.101.3.4.2.{last}"): number for last, number in ((1, 2), (2, 3), (3, 4))},
}
_NULL = der.element(der.NULL, b"")


def psk_auth(prf: Prf, key: bytes, octets: bytes) -> bytes:
    """AUTH data of method 2: prf(prf(key, "Key Pad for IKEv2"), octets)."""
    return prf(prf(key, _KEY_PAD), octets)


def verify_psk(prf: Prf, key: bytes, data: bytes, octets: bytes) -> bool:
    """True where `data` is the AUTH data that this key makes; in constant time."""
    return hmac.compare_digest(psk_auth(prf, key, octets), data)


# ---- signing -------------------------------------------------------------------------------------------------------


def sign(
    key: PrivateKey, octets: bytes, peer_hashes: Collection[int] = (), *, pkcs1: bool = False
) -> tuple[int, bytes]:
    """Authentication method and AUTH data of a signature by `key`.

    `peer_hashes` is what the peer's SIGNATURE_HASH_ALGORITHMS named; empty is a peer without RFC 7427. `pkcs1` makes
    RSA sign with PKCS#1 v1.5 instead of PSS. UnsupportedError where the key can make nothing that this peer can check.
    """
    if not peer_hashes:
        return _sign_old(key, octets)
    if isinstance(key, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey):
        if IDENTITY not in peer_hashes:
            raise UnsupportedError(
                f"{key_name(key)} key: the peer offers the hashes {hash_names(peer_hashes)}; want Identity (RFC 8420)"
            )
        identifier = _ED25519_OID if isinstance(key, ed25519.Ed25519PrivateKey) else _ED448_OID
        return DIGITAL_SIGNATURE, _with_identifier(identifier, key.sign(octets))
    number = _choose_hash(key, peer_hashes)
    algorithm = _SHA2[number]
    if isinstance(key, ec.EllipticCurvePrivateKey):
        oid = next(oid for oid, value in _ECDSA_OIDS.items() if value == number)
        return DIGITAL_SIGNATURE, _with_identifier(oid, key.sign(octets, ec.ECDSA(algorithm)))
    if pkcs1:
        oid = next(oid for oid, value in _RSA_OIDS.items() if value == number)
        return DIGITAL_SIGNATURE, _with_identifier(
            oid + _NULL, key.sign(octets, padding.PKCS1v15(), algorithm)
        )
    salt = algorithm.digest_size  # as strongSwan and RFC 7427 appendix A.4 have it
    pss = padding.PSS(padding.MGF1(algorithm), salt)
    return DIGITAL_SIGNATURE, _with_identifier(
        _pss_identifier(number, salt), key.sign(octets, pss, algorithm)
    )


def _sign_old(key: PrivateKey, octets: bytes) -> tuple[int, bytes]:
    """By the methods that are older than RFC 7427."""
    if isinstance(key, rsa.RSAPrivateKey):
        return RSA_SIGNATURE, key.sign(octets, padding.PKCS1v15(), hashes.SHA1())
    if isinstance(key, ec.EllipticCurvePrivateKey):
        for method, (curve, number) in _ECDSA_METHODS.items():
            if key.curve.name == curve:
                r, s = decode_dss_signature(key.sign(octets, ec.ECDSA(_SHA2[number])))
                size = _size(key)
                return method, r.to_bytes(size, "big") + s.to_bytes(size, "big")
    raise UnsupportedError(
        f"{key_name(key)} key: the peer does not offer signatures by RFC 7427, which this key needs"
    )


def _choose_hash(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, offered: Collection[int]) -> int:
    """The weakest offered SHA-2 that is as strong as the key, else the strongest offered."""
    size = key.key_size
    if isinstance(key, rsa.RSAPrivateKey):
        fitting = 2 if size <= 3072 else 3 if size <= 7680 else 4
    else:
        fitting = 2 if size <= 256 else 3 if size <= 384 else 4
    usable = sorted(number for number in offered if number in _SHA2)
    if not usable:
        raise UnsupportedError(
            f"{key_name(key)} key: the peer offers the hashes {hash_names(offered)}; want a SHA-2"
        )
    return next((number for number in usable if number >= fitting), usable[-1])


def _with_identifier(content: bytes, signature: bytes) -> bytes:
    identifier = der.element(der.SEQUENCE, content)
    return bytes([len(identifier)]) + identifier + signature


def _pss_identifier(number: int, salt: int) -> bytes:
    """RSASSA-PSS-params of RFC 4055 section 3.1 with hash, MGF1 with the same hash, and salt length."""
    oid = next(oid for oid, value in _HASH_OIDS.items() if value == number)
    digest = der.element(der.SEQUENCE, oid + _NULL)
    mask = der.element(der.SEQUENCE, _MGF1_OID + digest)
    parts = (digest, mask, der.element(der.INTEGER, bytes([salt])))
    content = b"".join(der.element(0xA0 + index, part) for index, part in enumerate(parts))
    return _PSS_OID + der.element(der.SEQUENCE, content)


# ---- verifying -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Scheme:
    """What an AlgorithmIdentifier says."""

    kind: str  # RSA, RSA-PSS, ECDSA, Ed25519, Ed448
    hash: int
    salt: int = 0
    mask_hash: int = 0

    def __str__(self) -> str:
        return self.kind if self.hash == IDENTITY else f"{self.kind} with {_HASH_NAMES[self.hash]}"


def verify(
    key: PublicKey,
    method: int,
    data: bytes,
    octets: bytes,
    allowed_hashes: Collection[int] = HASHES,
    *,
    strict: bool = False,
) -> str:
    """The name of the scheme by which `data` proves `octets`; SignatureError if it does not, or is not allowed.

    `allowed_hashes` is what our SIGNATURE_HASH_ALGORITHMS named; it binds method 14 only, unless it is `strict`.
    """
    if method == DIGITAL_SIGNATURE:
        return _verify_identified(key, data, octets, allowed_hashes)
    if method == RSA_SIGNATURE:
        if not isinstance(key, rsa.RSAPublicKey):
            raise SignatureError(f"an RSA signature (method 1); the certificate's key is {key_name(key)}")
        # RFC 7296 section 3.8: SHA-1, but others may be used; the hash is named inside the signature.
        for number, algorithm in {1: hashes.SHA1(), **_SHA2}.items():
            if strict and number not in allowed_hashes:
                continue
            try:
                key.verify(data, octets, padding.PKCS1v15(), algorithm)
            except InvalidSignature:
                continue
            return f"RSA with {_HASH_NAMES[number]}"
        only = f" with {hash_names(allowed_hashes)}, which alone are allowed here" if strict else ""
        raise SignatureError(f"an RSA signature (method 1) that this certificate's key did not make{only}")
    if method in _ECDSA_METHODS:
        if strict and _ECDSA_METHODS[method][1] not in allowed_hashes:
            name = _HASH_NAMES[_ECDSA_METHODS[method][1]]
            raise SignatureError(
                f"a signature by ECDSA with {name}; the hashes allowed here are {hash_names(allowed_hashes)}"
            )
        return _verify_raw_ecdsa(key, method, data, octets)
    raise SignatureError(f"authentication method {method}; want a signature: 1, 9, 10, 11 or 14")


def _verify_raw_ecdsa(key: PublicKey, method: int, data: bytes, octets: bytes) -> str:
    """Methods 9, 10 and 11: r | s, each of the curve's size (RFC 4754 section 7)."""
    curve, number = _ECDSA_METHODS[method]
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != curve:
        raise SignatureError(
            f"an ECDSA signature on {curve} (method {method}); the certificate's key is {key_name(key)}"
        )
    size = _size(key)
    if len(data) != 2 * size:
        raise SignatureError(f"an ECDSA signature of {len(data)} bytes; {curve} makes {2 * size}")
    r, s = int.from_bytes(data[:size], "big"), int.from_bytes(data[size:], "big")
    scheme = _Scheme("ECDSA", number)
    try:
        key.verify(encode_dss_signature(r, s), octets, ec.ECDSA(_SHA2[number]))
    except InvalidSignature:
        raise _mismatch(scheme) from None
    return str(scheme)


def _verify_identified(key: PublicKey, data: bytes, octets: bytes, allowed: Collection[int]) -> str:
    """Method 14 (RFC 7427 section 3)."""
    if not data or len(data) < 1 + data[0]:
        raise SignatureError(f"AUTH data of {len(data)} bytes, too short for its AlgorithmIdentifier")
    identifier, signature = data[1 : 1 + data[0]], data[1 + data[0] :]
    try:
        scheme = _parse_identifier(identifier)
    except ValueError as error:
        raise SignatureError(f"AlgorithmIdentifier {identifier.hex()}: {error}") from None
    if scheme.hash not in allowed or scheme.hash not in HASHES:
        raise SignatureError(f"a signature by {scheme}; the hashes allowed here are {hash_names(allowed)}")
    if scheme.kind.removesuffix("-PSS") != key_name(key).split()[0]:
        raise SignatureError(f"a signature by {scheme}; the certificate's key is {key_name(key)}")
    try:
        if isinstance(key, rsa.RSAPublicKey):
            key.verify(signature, octets, _rsa_padding(scheme), _SHA2[scheme.hash])
        elif isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, octets, ec.ECDSA(_SHA2[scheme.hash]))
        else:
            key.verify(signature, octets)
    except (InvalidSignature, ValueError):
        raise _mismatch(scheme) from None
    return str(scheme)


def _rsa_padding(scheme: _Scheme) -> padding.AsymmetricPadding:
    if scheme.kind == "RSA":
        return padding.PKCS1v15()
    return padding.PSS(padding.MGF1(_SHA2[scheme.mask_hash]), scheme.salt)


def _mismatch(scheme: _Scheme) -> SignatureError:
    return SignatureError(
        f"a signature by {scheme} that this certificate's key did not make over this exchange"
    )


def _parse_identifier(data: bytes) -> _Scheme:
    """The scheme of an AlgorithmIdentifier; ValueError for what is malformed or unknown."""
    parts = der.elements(der.only(data, der.SEQUENCE))
    if not parts or parts[0][0] != der.OID or len(parts) > 2:
        raise ValueError("want an OID and at most one parameter")
    oid = der.element(der.OID, parts[0][1])
    if oid == _PSS_OID:
        return _parse_pss(parts[1:])
    if parts[1:] not in ([], [(der.NULL, b"")]):
        raise ValueError("parameters where none, or NULL, are wanted")
    for kind, known in (
        ("RSA", _RSA_OIDS),
        ("ECDSA", _ECDSA_OIDS),
        ("Ed25519", {_ED25519_OID: IDENTITY}),
        ("Ed448", {_ED448_OID: IDENTITY}),
    ):
        if oid in known:
            return _Scheme(kind, known[oid])
    raise ValueError("unknown algorithm; want RSA, RSASSA-PSS, ECDSA, Ed25519 or Ed448")


def _parse_pss(parameters: list[tuple[int, bytes]]) -> _Scheme:
    """RSASSA-PSS-params: [0] hash, [1] mask generation, [2] salt length, [3] trailer, each with a default."""
    number, mask, salt = 1, 1, 20  # the defaults of RFC 4055 section 3.1: SHA-1, MGF1 with SHA-1, 20
    if len(parameters) != 1 or parameters[0][0] != der.SEQUENCE:
        raise ValueError("RSASSA-PSS wants its parameters")
    for tag, content in der.elements(parameters[0][1]):
        if tag == 0xA0:
            number = _parse_hash(der.only(content, der.SEQUENCE))
        elif tag == 0xA1:
            generator = der.elements(der.only(content, der.SEQUENCE))
            if [one[0] for one in generator] != [der.OID, der.SEQUENCE]:
                raise ValueError("mask generation wants an OID and a hash")
            if der.element(*generator[0]) != _MGF1_OID:
                raise ValueError("mask generation is not MGF1")
            mask = _parse_hash(generator[1][1])
        elif tag == 0xA2:
            salt = int.from_bytes(der.only(content, der.INTEGER), "big")
        elif tag != 0xA3 or content != der.element(der.INTEGER, b"\x01"):
            raise ValueError("a trailer other than 1, or an unknown field, in RSASSA-PSS parameters")
    if salt > 255:
        raise ValueError(f"a salt of {salt} bytes")
    if mask != number:
        raise ValueError(
            f"{_HASH_NAMES[number]} with a mask by {_HASH_NAMES[mask]}; want the same hash (RFC 8247)"
        )
    return _Scheme("RSA-PSS", number, salt, mask)


def _parse_hash(content: bytes) -> int:
    """The hash of an AlgorithmIdentifier's content: an OID, and NULL or nothing."""
    parts = der.elements(content)
    if not parts or parts[0][0] != der.OID or parts[1:] not in ([], [(der.NULL, b"")]):
        raise ValueError("a hash wants an OID")
    number = _HASH_OIDS.get(der.element(*parts[0]))
    if number is None:
        raise ValueError("an unknown hash")
    return number


# ---- names for texts -----------------------------------------------------------------------------------------------


def key_name(key: PrivateKey | PublicKey) -> str:
    """Kind and size of a key for a message: "RSA 2048", "ECDSA secp256r1", "Ed25519"."""
    if isinstance(key, rsa.RSAPrivateKey | rsa.RSAPublicKey):
        return f"RSA {key.key_size}"
    if isinstance(key, ec.EllipticCurvePrivateKey | ec.EllipticCurvePublicKey):
        return f"ECDSA {key.curve.name}"
    return "Ed25519" if isinstance(key, ed25519.Ed25519PrivateKey | ed25519.Ed25519PublicKey) else "Ed448"


def hash_names(numbers: Collection[int]) -> str:
    """Hash algorithms for a message."""
    return ", ".join(_HASH_NAMES.get(number, str(number)) for number in sorted(numbers)) or "none"


def _size(key: ec.EllipticCurvePrivateKey | ec.EllipticCurvePublicKey) -> int:
    return (key.curve.key_size + 7) // 8
