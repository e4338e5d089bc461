"""A peer's certificate, from the bytes of its CERT payloads to a public key that may speak for its identity.

    parse -> a path to a CA that we trust (signatures, basic constraints, key usage, dates, name constraints)
          -> the library's own verifier -> end-entity key usage -> the identity is in it (RFC 4945) -> revocation

The path is walked here, so that a refusal can name the certificate, the check and the field; cryptography's
verifier then has the last word on every path that it can judge (it has no EdDSA, no Brainpool curves, and of
name constraints those on host names and addresses).
Every search is bounded: MAX_CERTIFICATES of a peer are looked at, MAX_DEPTH of a path, MAX_SIGNATURES in all.
Not processed: certificate policies and their mappings (a critical policyConstraints is refused).
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NoReturn, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.x509.oid import ExtensionOID
from cryptography.x509.verification import (
    Criticality,
    ExtensionPolicy,
    PolicyBuilder,
    Store,
    VerificationError,
)

from control.crypto.auth import PublicKey
from control.ike.identity import Identity, IdKind
from control.pki import names
from control.pki.constraints import violation
from control.pki.errors import CredentialError

MAX_CERTIFICATES = 20
MAX_DEPTH = 8
MAX_SIGNATURES = 32
MIN_RSA_BITS = 2048  # RFC 8247 section 3.2.1
MAX_RSA_BITS, MAX_EXPONENT_BITS = 8192, 64  # what a stranger may have us calculate with

_HASHES = (hashes.SHA256, hashes.SHA384, hashes.SHA512)
_CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)
# RFC 4945 section 5.1.3.12 wants ipsecIKE or any; peers in the field have TLS's purposes, or IPsec's old ones.
_PURPOSES = {
    "2.5.29.37.0": "anyExtendedKeyUsage",
    "1.3.6.1.5.5.7.3.17": "ipsecIKE",
    "1.3.6.1.5.5.7.3.1": "serverAuth",
    "1.3.6.1.5.5.7.3.2": "clientAuth",
    "1.3.6.1.5.5.8.2.2": "iKEIntermediate",
    "1.3.6.1.5.5.7.3.5": "ipsecEndSystem",
    "1.3.6.1.5.5.7.3.6": "ipsecTunnel",
    "1.3.6.1.5.5.7.3.7": "ipsecUser",
}
_OTHER_PURPOSES = {
    "1.3.6.1.5.5.7.3.3": "codeSigning",
    "1.3.6.1.5.5.7.3.4": "emailProtection",
    "1.3.6.1.5.5.7.3.8": "timeStamping",
    "1.3.6.1.5.5.7.3.9": "OCSPSigning",
}
# Critical extensions that are understood, or that constrain nothing which is done here.
_UNDERSTOOD = {
    ExtensionOID.BASIC_CONSTRAINTS,
    ExtensionOID.KEY_USAGE,
    ExtensionOID.EXTENDED_KEY_USAGE,
    ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
    ExtensionOID.ISSUER_ALTERNATIVE_NAME,
    ExtensionOID.NAME_CONSTRAINTS,
    ExtensionOID.CERTIFICATE_POLICIES,
    ExtensionOID.CRL_DISTRIBUTION_POINTS,
    ExtensionOID.SUBJECT_KEY_IDENTIFIER,
    ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
}
_CA_POLICY = ExtensionPolicy.permit_all().require_present(x509.BasicConstraints, Criticality.AGNOSTIC, None)
_LEAF_POLICY = ExtensionPolicy.permit_all()


@dataclass(frozen=True, kw_only=True)
class VerifiedPeer:
    """A certificate that holds: the key that AUTH must fit, and the path that was found, our CA last."""

    identity: Identity
    public_key: PublicKey
    path: tuple[x509.Certificate, ...]
    notes: tuple[str, ...] = ()  # worth a line in the log: revocation that could not be looked up

    @property
    def certificate(self) -> x509.Certificate:
        """The peer's own."""
        return self.path[0]


def parse_certificates(data: Iterable[bytes]) -> list[x509.Certificate]:
    """The certificates of CERT payloads (DER), the peer's own first; raises CredentialError where that is none."""
    found: list[x509.Certificate] = []
    for index, der in enumerate(data):
        if index >= MAX_CERTIFICATES:
            break
        try:
            certificate = x509.load_der_x509_certificate(der)
            # The library parses these late: whoever asks for them below shall not meet an error.
            names.subject(certificate), names.issuer(certificate), list(certificate.extensions)
            _ = certificate.not_valid_before_utc, certificate.not_valid_after_utc
            if certificate.serial_number <= 0:
                raise ValueError("its serial number is not positive (RFC 5280 section 4.1.2.2)")
        except Exception as error:  # the library raises several kinds for bytes that are none
            if index:
                continue  # an intermediate that nobody can read is as good as one that is not there
            raise CredentialError(
                "bad_certificate",
                f"the peer's certificate of {len(der)} bytes cannot be read: {_one_line(error)}",
                "make a new certificate for the peer",
            ) from None
        found.append(certificate)
    return found


@dataclass(kw_only=True)
class _Search:
    """One search for a path; `failures` are why the paths tried so far do not lead to a CA."""

    peer: str  # who it is about, for texts
    now: datetime.datetime
    anchors: dict[x509.Certificate, str]
    pool: Sequence[x509.Certificate]
    signatures: int = 0
    failures: list[CredentialError] = field(default_factory=list)


def find_path(
    peer: str,
    leaf: x509.Certificate,
    untrusted: Sequence[x509.Certificate],
    anchors: dict[x509.Certificate, str],
    now: datetime.datetime,
) -> tuple[x509.Certificate, ...]:
    """The certificates from `leaf` to one of `anchors` (CA -> its name), every check passed; or CredentialError."""
    search = _Search(peer=peer, now=now, anchors=anchors, pool=untrusted)
    check_dates(peer, leaf, now)
    check_strength(peer, leaf)
    _check_critical(peer, leaf)
    path = _extend(search, (leaf,))
    if path is None:
        # What is wrong with a path that is there says more than that another leads nowhere.
        raise next(
            (each for each in search.failures if each.code != "unknown_authority"), search.failures[-1]
        )
    return path


def _extend(search: _Search, path: tuple[x509.Certificate, ...]) -> tuple[x509.Certificate, ...] | None:
    certificate = path[-1]
    if certificate in search.anchors:
        try:
            _check_names(search, path)
        except CredentialError as error:
            search.failures.append(error)
            return None
        return path
    wanted = names.issuer(certificate)
    candidates = [
        one for one in (*search.anchors, *search.pool) if names.subject(one) == wanted and one not in path
    ]
    candidates = list(dict.fromkeys(candidates))
    if not candidates or len(path) >= MAX_DEPTH:
        search.failures.append(_unknown_authority(search, path))
        return None
    for issuer in candidates:
        try:
            _check_link(search, path, issuer)
        except CredentialError as error:
            search.failures.append(error)
            continue
        found = _extend(search, (*path, issuer))
        if found is not None:
            return found
    return None


def _unknown_authority(search: _Search, path: tuple[x509.Certificate, ...]) -> CredentialError:
    certificate = path[-1]
    trusted = ", ".join(f"{name} ({names.subject(one)})" for one, name in list(search.anchors.items())[:4])
    if len(path) >= MAX_DEPTH:
        text = f"is the {len(path)}th of its chain, want at most {MAX_DEPTH}"
    elif names.subject(certificate) == names.issuer(certificate):
        text = "is self-signed and not one of the CAs we trust"
    else:
        text = f"has issuer {names.issuer(certificate)}, which is neither a CA we trust nor sent by the peer"
    return CredentialError(
        "unknown_authority",
        f"{_what(certificate, search.peer)} {text}; we trust {trusted or 'no CA'}",
        "add the CA to [authorities], or let the peer send the intermediate certificate",
    )


def _check_link(search: _Search, path: tuple[x509.Certificate, ...], issuer: x509.Certificate) -> None:
    """`issuer` may have signed the last certificate of `path`, and did."""
    certificate = path[-1]
    search.signatures += 1
    if search.signatures > MAX_SIGNATURES:
        _refuse(
            "bad_certificate", path[0], search.peer, f"has more than {MAX_SIGNATURES} signatures to check"
        )
    _check_ca(search, issuer, below=path)
    _check_hash(search.peer, certificate)
    try:
        certificate.verify_directly_issued_by(issuer)
    except Exception as error:  # InvalidSignature, or a key or algorithm that the library does not know
        reason = _one_line(error) or "it was made with another key"
        _refuse(
            "bad_certificate",
            certificate,
            search.peer,
            f"has a signature that is not that of {names.subject(issuer)}: {reason}",
            "issue it again; two CAs of one name, or a renewed CA, look like this",
        )


def _check_ca(search: _Search, issuer: x509.Certificate, below: tuple[x509.Certificate, ...]) -> None:
    """`issuer` is fit to be a CA above `below` (RFC 5280 section 6.1.4)."""
    peer, extensions = search.peer, issuer.extensions
    check_dates(peer, issuer, search.now)
    check_strength(peer, issuer)
    _check_critical(peer, issuer)
    basic = _find(extensions, x509.BasicConstraints)
    if basic is None or not basic.ca:
        _refuse(
            "not_allowed", issuer, peer, "has basicConstraints without CA, yet it signed another", _REISSUE_CA
        )
    intermediates = sum(one.subject != one.issuer for one in below[1:])
    if basic.path_length is not None and intermediates > basic.path_length:
        text = f"has pathLenConstraint {basic.path_length}, and {intermediates} CAs are below it"
        _refuse("not_allowed", issuer, peer, text, _REISSUE_CA)
    usage = _find(extensions, x509.KeyUsage)
    if usage is not None and not usage.key_cert_sign:
        _refuse(
            "not_allowed",
            issuer,
            peer,
            "has keyUsage without keyCertSign, yet it signed another",
            _REISSUE_CA,
        )


def _check_names(search: _Search, path: tuple[x509.Certificate, ...]) -> None:
    """No name breaks the constraints of a CA above it.

    Asked of a path that leads to a CA of ours, and not on the way there: it takes long with many names, and anyone
    can make certificates with thousands of them for a CA of his own.
    """
    for above, issuer in enumerate(path[1:], 1):
        constraints = _find(issuer.extensions, x509.NameConstraints)
        if constraints is None:
            continue
        for certificate in path[:above]:
            # RFC 5280 section 6.1.3: a CA's certificate for itself is not constrained, unless it is the last.
            if certificate is not path[0] and certificate.subject == certificate.issuer:
                continue
            broken = violation(certificate, constraints)
            if broken:
                text = f"breaks the nameConstraints of {names.subject(issuer)}: {broken}"
                _refuse(
                    "not_allowed",
                    certificate,
                    search.peer,
                    text,
                    "have it issued by a CA that may give this name",
                )


_REISSUE_CA = "have it signed by a proper CA certificate"


def check_dates(peer: str, certificate: x509.Certificate, now: datetime.datetime) -> None:
    """Our clock is within the certificate's validity."""
    first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if first <= now <= last:
        return
    clock = f"our clock says {_date(now)}"
    if now < first:
        text = f"is not valid yet: notBefore is {_date(first)}, {clock}, {_span(first - now)} earlier"
        _refuse(
            "not_yet_valid",
            certificate,
            peer,
            text,
            "set the clock of this machine, or of the one that signed it",
        )
    text = f"has expired: notAfter is {_date(last)}, {clock}, {_span(now - last)} later"
    _refuse("expired", certificate, peer, text, "renew it, or set the clock of this machine")


def check_strength(peer: str, certificate: x509.Certificate) -> None:
    """The key is of a kind and size that holds (RFC 8247 section 3.2.1)."""
    try:
        key = certificate.public_key()
    except Exception as error:  # a kind of key, or parameters, that the library does not know
        _refuse("weak", certificate, peer, f"has a key that cannot be used: {_one_line(error)}", _NEW_KEY)
    if isinstance(key, rsa.RSAPublicKey):
        if key.key_size < MIN_RSA_BITS:
            text = f"has an RSA key of {key.key_size} bits, want at least {MIN_RSA_BITS}"
            _refuse("weak", certificate, peer, text, _NEW_KEY)
        exponent = key.public_numbers().e.bit_length()
        if key.key_size > MAX_RSA_BITS or exponent > MAX_EXPONENT_BITS:
            text = (
                f"has an RSA key of {key.key_size} bits and an exponent of {exponent}, want at most {MAX_RSA_BITS} "
                f"and {MAX_EXPONENT_BITS}"
            )
            _refuse("weak", certificate, peer, text, _NEW_KEY)
    elif not isinstance(key, ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | ed448.Ed448PublicKey):
        _refuse("weak", certificate, peer, "has a key that is neither RSA, ECDSA nor EdDSA", _NEW_KEY)


_NEW_KEY = "make it with an ECDSA P-256, Ed25519 or RSA 3072 key"


def _check_hash(peer: str, certificate: x509.Certificate) -> None:
    """The signature's hash is one that still holds; EdDSA brings its own."""
    try:
        algorithm = certificate.signature_hash_algorithm
    except Exception:  # a signature algorithm that the library does not know
        name = certificate.signature_algorithm_oid.dotted_string
        _refuse(
            "weak", certificate, peer, f"is signed with the unknown algorithm {name}", "sign it with SHA-256"
        )
    if algorithm is not None and not isinstance(algorithm, _HASHES):
        text = f"is signed with {algorithm.name.upper()}, want SHA-256, SHA-384 or SHA-512"
        _refuse("weak", certificate, peer, text, "sign it with SHA-256")


def _check_critical(peer: str, certificate: x509.Certificate) -> None:
    for extension in certificate.extensions:
        if extension.critical and extension.oid not in _UNDERSTOOD:
            text = f"has the critical extension {extension.oid.dotted_string}, which is not understood"
            _refuse("not_allowed", certificate, peer, text, "have it issued without this extension")


def ask_library(peer: str, path: tuple[x509.Certificate, ...], now: datetime.datetime) -> None:
    """Let cryptography's verifier look at the path, too, where it knows all its algorithms."""
    if len(path) < 2 or not all(_library_knows(certificate) for certificate in path):
        return
    builder = PolicyBuilder().store(Store([path[-1]])).time(now).max_chain_depth(MAX_DEPTH)
    builder = builder.extension_policies(ca_policy=_CA_POLICY, ee_policy=_LEAF_POLICY)
    try:
        builder.build_client_verifier().verify(path[0], list(path[1:-1]))
    except VerificationError as error:
        text = f"does not pass the library's verifier: {_one_line(error)}"
        _refuse("bad_certificate", path[0], peer, text, "issue it again")


def _library_knows(certificate: x509.Certificate) -> bool:
    key = certificate.public_key()
    known = isinstance(key, rsa.RSAPublicKey) or (
        isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, _CURVES)
    )
    constraints = _find(certificate.extensions, x509.NameConstraints)
    subtrees = [
        *((constraints and constraints.permitted_subtrees) or ()),
        *((constraints and constraints.excluded_subtrees) or ()),
    ]
    known &= all(isinstance(subtree, x509.DNSName | x509.IPAddress) for subtree in subtrees)
    # A self-signed root with an old hash is trusted for being there, and the library would still refuse it.
    return known and isinstance(certificate.signature_hash_algorithm, _HASHES)


def check_leaf(peer: str, certificate: x509.Certificate) -> None:
    """The peer's own certificate may be used to authenticate an IKE SA (RFC 4945 sections 5.1.3.2 and 5.1.3.12)."""
    usage = _find(certificate.extensions, x509.KeyUsage)
    if usage is not None and not (usage.digital_signature or usage.content_commitment):
        text = "has keyUsage with neither digitalSignature nor nonRepudiation, so it cannot sign AUTH"
        _refuse("not_allowed", certificate, peer, text, "issue it with keyUsage digitalSignature")
    purposes = _find(certificate.extensions, x509.ExtendedKeyUsage)
    oids = [purpose.dotted_string for purpose in purposes or ()]
    if oids and not any(oid in _PURPOSES for oid in oids):
        has = ", ".join(_OTHER_PURPOSES.get(oid, oid) for oid in oids[:4])
        text = f"has extendedKeyUsage {has}, want ipsecIKE, serverAuth, clientAuth or any"
        _refuse(
            "not_allowed",
            certificate,
            peer,
            text,
            "issue it with extendedKeyUsage ipsecIKE, or without the field",
        )


def check_identity(peer: str, certificate: x509.Certificate, identity: Identity) -> None:
    """The certificate has the identity that the peer claims."""
    if names.has_identity(certificate, identity):
        return
    field_name = names.FIELDS.get(IdKind(identity.kind)) if identity.kind in names.FIELDS else None
    want = f"want {field_name} {identity}" if field_name else "and no certificate can have one of this kind"
    _refuse(
        "id_mismatch",
        certificate,
        peer,
        f"does not have this identity ({identity.kind_name}): it has {names.describe_names(certificate)}; {want}",
        "set the peer's own ID to one of its certificate's names, or issue a certificate that has the ID",
    )


_Extension = TypeVar("_Extension", bound=x509.ExtensionType)


def _find(extensions: x509.Extensions, kind: type[_Extension]) -> _Extension | None:
    try:
        return extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _refuse(code: str, certificate: x509.Certificate, peer: str, text: str, advice: str = "") -> NoReturn:
    raise CredentialError(code, f"{_what(certificate, peer)} {text}", advice)


def _what(certificate: x509.Certificate, peer: str) -> str:
    return f"certificate {names.subject(certificate)} of {peer}"


def _date(moment: datetime.datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def _span(gap: datetime.timedelta) -> str:
    seconds = int(gap.total_seconds())
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} seconds"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
