"""An identity and the names in a certificate (RFC 4945 section 3.1): the ID must be one of them, exactly.

    ID_FQDN         a dNSName            ID_IPV4_ADDR, ID_IPV6_ADDR   an iPAddress
    ID_RFC822_ADDR  an rfc822Name        ID_DER_ASN1_DN               the subject, or a directoryName
    ID_KEY_ID       the subjectKeyIdentifier (as strongSwan has it)

A wildcard in a certificate's name stands for nothing but itself, and the common name is no host name.
"""

from __future__ import annotations

import functools
from ipaddress import IPv4Address, IPv6Address

from cryptography import x509

from control.ike.identity import Identity, IdKind

_remembered = functools.lru_cache(maxsize=128)  # certificates: the same few are asked about again and again

FIELDS = {
    IdKind.FQDN: "subjectAltName dNSName",
    IdKind.RFC822_ADDR: "subjectAltName rfc822Name",
    IdKind.IPV4_ADDR: "subjectAltName iPAddress",
    IdKind.IPV6_ADDR: "subjectAltName iPAddress",
    IdKind.DER_ASN1_DN: "subject",
    IdKind.KEY_ID: "subjectKeyIdentifier",
}


@_remembered
def subject(certificate: x509.Certificate) -> Identity:
    """The certificate's subject, byte for byte."""
    return Identity.from_name(certificate.subject.public_bytes())


@_remembered
def issuer(certificate: x509.Certificate) -> Identity:
    """The name of who signed the certificate, byte for byte."""
    return Identity.from_name(certificate.issuer.public_bytes())


@_remembered
def identities(certificate: x509.Certificate) -> tuple[Identity, ...]:
    """Every identity that the certificate proves, the subject first (unless it is empty)."""
    found = [subject(certificate)] if len(certificate.subject.rdns) else []
    for name in alternative_names(certificate):
        if isinstance(name, x509.DNSName):
            found.append(Identity(IdKind.FQDN, name.value.encode()))
        elif isinstance(name, x509.RFC822Name):
            found.append(Identity(IdKind.RFC822_ADDR, name.value.encode()))
        elif isinstance(name, x509.IPAddress) and isinstance(name.value, IPv4Address | IPv6Address):
            found.append(Identity.from_address(name.value))
        elif isinstance(name, x509.DirectoryName):
            found.append(Identity.from_name(name.value.public_bytes()))
    try:
        key_id = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
        found.append(Identity(IdKind.KEY_ID, key_id.value.digest))
    except (x509.ExtensionNotFound, ValueError):
        pass
    return tuple(found)


def alternative_names(certificate: x509.Certificate) -> list[x509.GeneralName]:
    """The names of subjectAltName; none where there is none, or it cannot be read."""
    try:
        return list(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except (x509.ExtensionNotFound, ValueError):
        return []


def has_identity(certificate: x509.Certificate, identity: Identity) -> bool:
    """True when `identity` is, exactly, one of the certificate's names."""
    return identity in identities(certificate)


def describe_names(certificate: x509.Certificate) -> str:
    """The names as an error shows them: "subject CN=gw; subjectAltName dNSName gw.example"."""
    shown = []
    for name in identities(certificate):
        if name.kind != IdKind.KEY_ID:
            shown.append(f"{FIELDS[IdKind(name.kind)]} {name}")
    return (
        "; ".join(shown[:6]) + (f"; and {len(shown) - 6} more" if len(shown) > 6 else "") or "no name at all"
    )
