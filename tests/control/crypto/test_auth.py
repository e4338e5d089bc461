"""AUTH data: every key with every choice of hashes, the forms of each RFC, and what must not pass."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, padding, rsa
from hypothesis import given
from hypothesis import strategies as st

from control.crypto import auth
from control.crypto.errors import SignatureError, UnsupportedError
from control.crypto.prf import prf

OCTETS = b"signed octets" * 20
KEYS: dict[str, auth.PrivateKey] = {
    "rsa": rsa.generate_private_key(65537, 2048),
    "p256": ec.generate_private_key(ec.SECP256R1()),
    "p384": ec.generate_private_key(ec.SECP384R1()),
    "p521": ec.generate_private_key(ec.SECP521R1()),
    "ed25519": ed25519.Ed25519PrivateKey.generate(),
    "ed448": ed448.Ed448PrivateKey.generate(),
}


@pytest.mark.parametrize(
    ("name", "peer_hashes", "method", "scheme"),
    [
        ("rsa", (), 1, "RSA with SHA1"),
        ("rsa", (2, 3, 4, 5), 14, "RSA-PSS with SHA2-256"),
        ("rsa", (1, 4), 14, "RSA-PSS with SHA2-512"),
        ("p256", (), 9, "ECDSA with SHA2-256"),
        ("p384", (), 10, "ECDSA with SHA2-384"),
        ("p521", (), 11, "ECDSA with SHA2-512"),
        ("p256", (2, 3), 14, "ECDSA with SHA2-256"),
        ("p384", (2, 3, 4), 14, "ECDSA with SHA2-384"),
        ("p521", (2, 3), 14, "ECDSA with SHA2-384"),
        ("ed25519", (5,), 14, "Ed25519"),
        ("ed448", (2, 5), 14, "Ed448"),
    ],
)
def test_sign_and_verify(name: str, peer_hashes: tuple[int, ...], method: int, scheme: str) -> None:
    """The best that both can; other octets and other keys do not pass."""
    key = KEYS[name]
    got, data = auth.sign(key, OCTETS, peer_hashes)
    assert got == method
    assert auth.verify(key.public_key(), method, data, OCTETS) == scheme
    with pytest.raises(SignatureError, match="did not make"):
        auth.verify(key.public_key(), method, data, OCTETS + b"x")
    for other in KEYS:
        if other != name:
            with pytest.raises(SignatureError, match="certificate's key"):
                auth.verify(KEYS[other].public_key(), method, data, OCTETS)


def test_pkcs1_on_request() -> None:
    """Made where a peer wants it, and accepted with SHA-2."""
    key = KEYS["rsa"]
    method, data = auth.sign(key, OCTETS, (3,), pkcs1=True)
    assert auth.verify(key.public_key(), method, data, OCTETS) == "RSA with SHA2-384"


def test_algorithm_identifiers_are_the_rfcs() -> None:
    """RFC 7427 appendix A: ECDSA without parameters, RSA with NULL, RSASSA-PSS complete; RFC 8420: EdDSA."""
    for name, hashes_, want in (
        ("p256", (2,), "300a06082a8648ce3d040302"),
        ("p521", (4,), "300a06082a8648ce3d040304"),
        ("ed25519", (5,), "300506032b6570"),
        ("ed448", (5,), "300506032b6571"),
        (
            "rsa",
            (2,),
            "304106092a864886f70d01010a3034a00f300d06096086480165030402010500"
            "a11c301a06092a864886f70d010108300d06096086480165030402010500a203020120",
        ),
    ):
        _, data = auth.sign(KEYS[name], OCTETS, hashes_)
        assert data[1 : 1 + data[0]].hex() == want
    _, data = auth.sign(KEYS["rsa"], OCTETS, (2,), pkcs1=True)
    assert data[1 : 1 + data[0]].hex() == "300d06092a864886f70d01010b0500"


def identified(identifier: str, signature: bytes) -> bytes:
    """AUTH data of method 14."""
    raw = bytes.fromhex(identifier)
    return bytes([len(raw)]) + raw + signature


def test_sha1_is_refused_in_method_14() -> None:
    """RFC 8247 section 3: SHA-1 must not be used, whoever offers it."""
    key = KEYS["rsa"]
    assert isinstance(key, rsa.RSAPrivateKey)
    data = identified("300d06092a864886f70d0101050500", key.sign(OCTETS, padding.PKCS1v15(), hashes.SHA1()))
    with pytest.raises(SignatureError, match="RSA with SHA1; the hashes allowed"):
        auth.verify(key.public_key(), 14, data, OCTETS, (1, 2))


def test_hash_must_have_been_announced() -> None:
    """A good signature by a hash that our SIGNATURE_HASH_ALGORITHMS left out."""
    method, data = auth.sign(KEYS["p384"], OCTETS, (3,))
    with pytest.raises(SignatureError, match="ECDSA with SHA2-384; the hashes allowed here are SHA2-256"):
        auth.verify(KEYS["p384"].public_key(), method, data, OCTETS, (2,))


def test_pss_without_null_and_with_another_salt() -> None:
    """Peers may leave NULL out and choose the salt: RFC 4055 section 2.1 and 3.1."""
    key = KEYS["rsa"]
    assert isinstance(key, rsa.RSAPrivateKey)
    signature = key.sign(OCTETS, padding.PSS(padding.MGF1(hashes.SHA256()), 20), hashes.SHA256())
    identifier = (
        "303806092a864886f70d01010a302b"
        "a00d300b0609608648016503040201"
        "a11a301806092a864886f70d010108300b0609608648016503040201"
    )
    assert (
        auth.verify(key.public_key(), 14, identified(identifier, signature), OCTETS)
        == "RSA-PSS with SHA2-256"
    )


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "0 bytes, too short"),
        (b"\x05ab", "3 bytes, too short"),
        (b"\x00sig", "want just 0x30"),
        (identified("300506032b6572", b""), "unknown algorithm"),
        (identified("3003020101", b""), "want an OID"),
        (identified("30820005", b""), "length byte"),
        (identified("300b06092a864886f70d01010a", b""), "wants its parameters"),
        (identified("300e06082a8648ce3d04030202021000", b""), "parameters where none"),
    ],
)
def test_malformed_auth_data(data: bytes, text: str) -> None:
    """Each says what it is that is wrong."""
    with pytest.raises(SignatureError, match=text):
        auth.verify(KEYS["p256"].public_key(), 14, data, OCTETS)


def test_mask_by_another_hash_is_refused() -> None:
    """Valid by RFC 4055, but no one's, and RFC 8247 asks for one hash."""
    identifier = (
        "304106092a864886f70d01010a3034a00f300d06096086480165030402010500"
        "a11c301a06092a864886f70d010108300d06096086480165030402030500a203020120"
    )
    with pytest.raises(SignatureError, match="SHA2-256 with a mask by SHA2-512"):
        auth.verify(KEYS["rsa"].public_key(), 14, identified(identifier, b"s" * 256), OCTETS)


def test_raw_ecdsa_has_the_curves_size() -> None:
    """RFC 4754 section 7: r | s, 64 bytes on P-256; the DER form of method 14 is no substitute."""
    method, data = auth.sign(KEYS["p256"], OCTETS)
    assert len(data) == 64
    with pytest.raises(SignatureError, match="63 bytes; secp256r1 makes 64"):
        auth.verify(KEYS["p256"].public_key(), method, data[1:], OCTETS)


def test_unusable_keys_say_why() -> None:
    """EdDSA with a peer that has no RFC 7427, or does not offer Identity; RSA with no SHA-2."""
    with pytest.raises(UnsupportedError, match=r"Ed25519 key: .*RFC 7427"):
        auth.sign(KEYS["ed25519"], OCTETS)
    with pytest.raises(UnsupportedError, match="offers the hashes SHA2-256; want Identity"):
        auth.sign(KEYS["ed448"], OCTETS, (2,))
    with pytest.raises(UnsupportedError, match="RSA 2048 key: the peer offers the hashes SHA1"):
        auth.sign(KEYS["rsa"], OCTETS, (1,))


def test_unknown_method() -> None:
    """DSS, say."""
    with pytest.raises(SignatureError, match="authentication method 3"):
        auth.verify(KEYS["rsa"].public_key(), 3, b"", OCTETS)


def test_psk() -> None:
    """prf(prf(key, pad), octets), and the check of it."""
    function = prf(5)
    data = auth.psk_auth(function, b"secret", OCTETS)
    assert data == function(function(b"secret", b"Key Pad for IKEv2"), OCTETS)
    assert auth.verify_psk(function, b"secret", data, OCTETS)
    assert not auth.verify_psk(function, b"secreT", data, OCTETS)
    assert not auth.verify_psk(function, b"secret", data[:-1], OCTETS)


@given(st.binary(max_size=120), st.sampled_from([1, 9, 10, 11, 14]), st.sampled_from(sorted(KEYS)))
def test_any_bytes_end_in_signature_error(data: bytes, method: int, name: str) -> None:
    """Nothing else comes of random bytes."""
    with pytest.raises(SignatureError):
        auth.verify(KEYS[name].public_key(), method, data, OCTETS)
