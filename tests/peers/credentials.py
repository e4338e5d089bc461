"""Keys and certificates for both peers, made with `cryptography` alone: what `esplanade pki` writes has its own tests.

authority = Authority("Lab CA")
card = authority.issue("left.example", key="ecdsa256")        # SAN DNS, CN the same
middle = authority.intermediate("Lab Intermediate"); middle.issue(...)
"""

from __future__ import annotations

import datetime
import functools
import ipaddress
from dataclasses import dataclass, field
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

KINDS = ("rsa2048", "rsa3072", "rsa4096", "ecdsa256", "ecdsa384", "ecdsa521", "ed25519", "ed448")
DAY = datetime.timedelta(days=1)


def make_key(kind: str) -> Any:
    """A new private key: one of KINDS."""
    if kind.startswith("rsa"):
        return rsa.generate_private_key(65537, int(kind[3:]))
    if kind.startswith("ecdsa"):
        curve = {"256": ec.SECP256R1, "384": ec.SECP384R1, "521": ec.SECP521R1}[kind[5:]]
        return ec.generate_private_key(curve())
    return {"ed25519": ed25519.Ed25519PrivateKey, "ed448": ed448.Ed448PrivateKey}[kind].generate()


def sign_hash(key: Any) -> Any:
    """The hash for a certificate's signature by `key`; EdDSA has its own."""
    if isinstance(key, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey):
        return None
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.key_size >= 384:
        return hashes.SHA384()
    return hashes.SHA256()


@dataclass(frozen=True, kw_only=True)
class Card:
    """A certificate and its private key, with the intermediates above it (the root left out)."""

    identity: str
    certificate: x509.Certificate
    key: Any = field(repr=False)
    chain: tuple[x509.Certificate, ...] = ()

    @property
    def der(self) -> bytes:
        """The certificate."""
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def chain_der(self) -> list[bytes]:
        """The intermediates, nearest first."""
        return [each.public_bytes(Encoding.DER) for each in self.chain]

    @property
    def pem(self) -> bytes:
        """The certificate and its intermediates."""
        return b"".join(each.public_bytes(Encoding.PEM) for each in (self.certificate, *self.chain))

    @property
    def pkcs8(self) -> bytes:
        """The private key, DER. (charon takes it so from OpenSSL's plugin, whatever its kind.)"""
        return bytes(self.key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()))

    @property
    def key_pem(self) -> bytes:
        """The private key, PKCS #8 in PEM."""
        return bytes(self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


class Authority:
    """A CA: a root, or (`above`) an intermediate."""

    def __init__(self, name: str, *, key: str = "ecdsa256", above: Authority | None = None) -> None:
        """Make its key and certificate."""
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.key = make_key(key)
        self.above = above
        signer = above or self
        builder = _certificate(self.name, self.key.public_key(), signer)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        builder = builder.add_extension(_usage(authority=True), critical=True)
        self.certificate = builder.sign(signer.key, sign_hash(signer.key))

    @property
    def der(self) -> bytes:
        """The CA's certificate."""
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def pem(self) -> bytes:
        """The CA's certificate."""
        return self.certificate.public_bytes(Encoding.PEM)

    def intermediate(self, name: str, *, key: str = "ecdsa256") -> Authority:
        """A CA below this one."""
        return Authority(name, key=key, above=self)

    def issue(
        self,
        identity: str,
        *,
        key: str = "ecdsa256",
        days: tuple[int, int] = (-1, 30),
        server: bool = True,
        names: tuple[str, ...] = (),
        filler: int = 0,
    ) -> Card:
        """A certificate for a DNS name, an address or a mail address, valid from and to `days` from now.

        `filler` bytes of a comment extension make it long: chains that must be fragmented.
        """
        private = make_key(key)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, identity)])
        builder = _certificate(subject, private.public_key(), self, days)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_usage(authority=False), critical=True)
        alternatives = x509.SubjectAlternativeName([_general_name(each) for each in (identity, *names)])
        builder = builder.add_extension(alternatives, critical=False)
        if server:
            usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
            builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        if filler:
            comment = x509.UnrecognizedExtension(
                x509.ObjectIdentifier("2.16.840.1.113730.1.13"), _ia5(b"x" * filler)
            )
            builder = builder.add_extension(comment, critical=False)
        chain, above = [], self
        while above.above is not None:
            chain.append(above.certificate)
            above = above.above
        return Card(
            identity=identity,
            certificate=builder.sign(self.key, sign_hash(self.key)),
            key=private,
            chain=tuple(chain),
        )

    def revoke(self, *cards: Card) -> bytes:
        """A CRL with these certificates, DER."""
        now = datetime.datetime.now(datetime.UTC)
        builder = x509.CertificateRevocationListBuilder(self.name, now - DAY, now + DAY)
        for card in cards:
            entry = x509.RevokedCertificateBuilder(card.certificate.serial_number, now - DAY).build()
            builder = builder.add_revoked_certificate(entry)
        return builder.sign(self.key, sign_hash(self.key)).public_bytes(Encoding.DER)


@functools.cache
def lab_authority() -> Authority:
    """One root for all tests of a run."""
    return Authority("Esplanade Lab Root")


@functools.cache
def lab_card(identity: str, key: str) -> Card:
    """One certificate per identity and kind of key for all tests of a run: RSA keys are slow to make."""
    return lab_authority().issue(identity, key=key)


def _certificate(
    subject: x509.Name, public: Any, signer: Authority, days: tuple[int, int] = (-1, 30)
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(signer.name)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + days[0] * DAY)
        .not_valid_after(now + days[1] * DAY)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.key.public_key()), critical=False
        )
    )


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(text: str) -> x509.GeneralName:
    if "@" in text:
        return x509.RFC822Name(text)
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _ia5(text: bytes) -> bytes:
    """DER of an IA5String."""
    return b"\x16\x82" + len(text).to_bytes(2, "big") + text
