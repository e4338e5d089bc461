"""Certificates for tests: a CA, and whatever leaves are wanted under it."""

from __future__ import annotations

import datetime
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

NOW = datetime.datetime.now(datetime.UTC)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


@dataclass
class Authority:
    """A CA that issues leaves."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def make(cls, name: str = "Test CA") -> Authority:
        """A self-signed CA."""
        key = ec.generate_private_key(ec.SECP256R1())
        return cls(_build(name, key, name, key, ca=True), key)

    def issue(
        self, name: str, *, expired: bool = False, padding: int = 0
    ) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
        """A leaf for a host name; `padding` makes it that many bytes larger."""
        key = ec.generate_private_key(ec.SECP256R1())
        issuer = self.certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
        return _build(name, key, str(issuer), self.key, expired=expired, padding=padding), key


def _build(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: str,
    issuer_key: ec.EllipticCurvePrivateKey,
    *,
    ca: bool = False,
    expired: bool = False,
    padding: int = 0,
) -> x509.Certificate:
    day = datetime.timedelta(days=1)
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .issuer_name(_name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - 10 * day)
        .not_valid_after(NOW - day if expired else NOW + 10 * day)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name.replace(" ", ""))]), critical=False)
    )
    if padding:
        oid = x509.ObjectIdentifier("1.2.3.4.5")
        builder = builder.add_extension(x509.UnrecognizedExtension(oid, bytes(padding)), critical=False)
    return builder.sign(issuer_key, hashes.SHA256())
