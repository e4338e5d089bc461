"""Certificates of one's own: a CA, intermediate CAs, servers, clients and the list of those revoked.

Profiles follow RFC 4945 section 5: keyUsage digitalSignature, extendedKeyUsage ipsecIKE beside what the built-in
clients of Windows, macOS and Android look for (serverAuth and iKEIntermediate; clientAuth), every ID a subjectAltName.
Made here in memory; control/pki/command.py writes the files.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from control.crypto.auth import PrivateKey
from control.ike.identity import Identity, IdKind

KEYS = ("ecdsa", "ecdsa384", "ecdsa521", "ed25519", "ed448", "rsa", "rsa2048", "rsa3072", "rsa4096")
# A peer whose clock is a little slow shall accept a fresh certificate.
BACKDATED = datetime.timedelta(hours=1)
_IKE_INTERMEDIATE = x509.ObjectIdentifier("1.3.6.1.5.5.8.2.2")
SERVER = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.IPSEC_IKE, _IKE_INTERMEDIATE)
CLIENT = (ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.IPSEC_IKE)
SigningHash = hashes.SHA256 | hashes.SHA384 | hashes.SHA512


@dataclass(frozen=True, kw_only=True)
class Issued:
    """A certificate and its key; `chain` are the CAs above it, the root included."""

    certificate: x509.Certificate
    key: PrivateKey = field(repr=False)
    chain: tuple[x509.Certificate, ...] = ()


def make_key(kind: str) -> PrivateKey:
    """A new key of one of KEYS; `rsa` is 3072 bits, `ecdsa` is P-256."""
    curves: dict[str, ec.EllipticCurve] = {
        "ecdsa": ec.SECP256R1(),
        "ecdsa384": ec.SECP384R1(),
        "ecdsa521": ec.SECP521R1(),
    }
    if kind in curves:
        return ec.generate_private_key(curves[kind])
    if kind == "ed25519":
        return ed25519.Ed25519PrivateKey.generate()
    if kind == "ed448":
        return ed448.Ed448PrivateKey.generate()
    if kind.startswith("rsa") and kind in KEYS:
        return rsa.generate_private_key(65537, int(kind[3:] or 3072))
    raise ValueError(f"got key kind {kind!r}, want one of {', '.join(KEYS)}")


def parse_subject(text: str) -> x509.Name:
    """A subject: a distinguished name as it is written, or a common name."""
    if "=" not in text:
        return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])
    return x509.Name.from_bytes(Identity.parse(f"asn1dn:{text}").value)


def alternative_name(identity: Identity) -> x509.GeneralName | None:
    """The subjectAltName that proves `identity`; None for a distinguished name, which is the subject's."""
    if identity.address is not None:
        return x509.IPAddress(identity.address)
    text = identity.value.decode("utf-8", "replace")
    if identity.kind == IdKind.FQDN:
        return x509.DNSName(text)
    if identity.kind == IdKind.RFC822_ADDR:
        return x509.RFC822Name(text)
    if identity.kind == IdKind.DER_ASN1_DN:
        return None
    raise ValueError(
        f"{identity} ({identity.kind_name}) cannot be in a certificate; want a host name, mail or IP address"
    )


def make_authority(
    subject: str,
    *,
    parent: Issued | None = None,
    key: str = "ecdsa",
    days: float = 3650,
    now: datetime.datetime | None = None,
    path_length: int | None = None,
    constraints: x509.NameConstraints | None = None,
) -> Issued:
    """A root CA, or with `parent` one below it."""
    private = make_key(key)
    usage = _key_usage(key_cert_sign=True, crl_sign=True)
    extensions: list[tuple[x509.ExtensionType, bool]] = [
        (x509.BasicConstraints(ca=True, path_length=path_length), True),
        (usage, True),
    ]
    if constraints is not None:
        extensions.append((constraints, True))
    return _sign(parse_subject(subject), private, parent, days, now, extensions)


def issue(
    authority: Issued,
    subject: str,
    identities: Iterable[Identity] = (),
    *,
    purposes: Sequence[x509.ObjectIdentifier] = SERVER,
    key: str = "ecdsa",
    days: float = 730,
    now: datetime.datetime | None = None,
    crl_url: str = "",
    extensions: Sequence[tuple[x509.ExtensionType, bool]] = (),
    usage: x509.KeyUsage | None = None,
) -> Issued:
    """A certificate for an end, signed by `authority`; `identities` become its subjectAltName."""
    names = [name for name in map(alternative_name, identities) if name is not None]
    own: list[tuple[x509.ExtensionType, bool]] = [
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (usage or _key_usage(digital_signature=True), True),
    ]
    if purposes:
        own.append((x509.ExtendedKeyUsage(purposes), False))
    if names:
        own.append((x509.SubjectAlternativeName(names), False))
    if crl_url:
        point = x509.DistributionPoint([x509.UniformResourceIdentifier(crl_url)], None, None, None)
        own.append((x509.CRLDistributionPoints([point]), False))
    return _sign(parse_subject(subject), make_key(key), authority, days, now, [*own, *extensions])


def make_crl(
    authority: Issued,
    revoked: Iterable[tuple[int, datetime.datetime]] = (),
    *,
    days: float = 30,
    number: int = 1,
    now: datetime.datetime | None = None,
) -> x509.CertificateRevocationList:
    """The revocation list of `authority`: serial numbers and when they were revoked."""
    now = now or datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(authority.certificate.subject)
        .last_update(now - BACKDATED)
        .next_update(now + datetime.timedelta(days=days))
        .add_extension(_authority_key(authority.certificate), False)
        .add_extension(x509.CRLNumber(number), False)
    )
    for serial, when in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(when).build()
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(authority.key, signing_hash(authority.key))


def signing_hash(key: PrivateKey) -> SigningHash | None:
    """The hash that goes with a key's strength; None for EdDSA, which brings its own."""
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return (
            hashes.SHA512()
            if key.key_size > 384
            else hashes.SHA384()
            if key.key_size > 256
            else hashes.SHA256()
        )
    return hashes.SHA256() if isinstance(key, rsa.RSAPrivateKey) else None


def _sign(
    subject: x509.Name,
    key: PrivateKey,
    issuer: Issued | None,
    days: float,
    now: datetime.datetime | None,
    extensions: Sequence[tuple[x509.ExtensionType, bool]],
) -> Issued:
    now = now or datetime.datetime.now(datetime.UTC)
    signer = issuer.key if issuer else key
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
    )
    if issuer:
        builder = builder.add_extension(_authority_key(issuer.certificate), False)
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    chain = (issuer.certificate, *issuer.chain) if issuer else ()
    return Issued(certificate=builder.sign(signer, signing_hash(signer)), key=key, chain=chain)


def _authority_key(certificate: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    try:
        own = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)
    except x509.ExtensionNotFound:
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(certificate.public_key())  # type: ignore[arg-type]


def _key_usage(**on: bool) -> x509.KeyUsage:
    off = dict.fromkeys(
        (
            "digital_signature",
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "key_cert_sign",
            "crl_sign",
            "encipher_only",
            "decipher_only",
        ),
        False,
    )
    return x509.KeyUsage(**{**off, **on})
