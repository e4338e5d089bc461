"""Certificate revocation lists (RFC 5280 section 5): kept by issuer, asked by serial number.

Walk: `CrlStore.add` takes a list's bytes from wherever they came; `check` finds the newest one that the issuer
signed and says what it knows about a certificate; `wanted_urls` says what control/pki/fetch.py should get.
Limits: no delta and no indirect lists, and none that covers only some reasons: such a list is refused by name.
What the three policies of a connection make of an answer is strongSwan's: `relaxed` refuses only what is revoked,
`ifuri` also a certificate that names a list we could not get, `strict` everything without a fresh list.
"""

from __future__ import annotations

import datetime
import enum
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtensionOID

from control.ike.identity import Identity
from control.pki import names

MAX_BYTES = 32 << 20  # of one list; the largest public ones are a few MB
_KEPT_PER_ISSUER = 8
_MAX_URLS = 256  # remembered from certificates; what the configuration names is not counted


class CrlError(Exception):
    """Bytes that are no revocation list, or one of a kind that is not supported."""


class Standing(enum.Enum):
    """What is known about a certificate."""

    GOOD = "good"
    REVOKED = "revoked"
    STALE = "stale"  # not on the newest list we have, whose nextUpdate is past
    UNKNOWN = "unknown"  # no list of its issuer


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The standing of a certificate, and the reason in words, put together when it is asked for."""

    standing: Standing
    explain: Callable[[], str]

    @property
    def text(self) -> str:
        """The reason in words."""
        return self.explain()


@dataclass(kw_only=True)
class _Entry:
    """One list, where it came from, and whose signature has been found good."""

    crl: x509.CertificateRevocationList
    source: str
    signed_by: dict[bytes, bool] = field(default_factory=dict)  # by the issuer's DER


class CrlStore:
    """All revocation lists of a gateway. What arrives is kept by its issuer's name and believed once signed."""

    def __init__(self, urls: Iterable[str] = (), files: Iterable[Path] = ()) -> None:
        self.files = tuple(files)  # what the configuration names, to be read again when it changes
        self._lists: dict[Identity, list[_Entry]] = {}
        self._urls: dict[str, None] = dict.fromkeys(urls)
        self._configured = len(self._urls)
        self._failures: dict[str, str] = {}
        self.on_wanted: Callable[[], None] = lambda: None  # called when there is something new to fetch

    # ---- coming in ------------------------------------------------------------------------------------------

    def add(self, data: bytes, source: str) -> x509.CertificateRevocationList:
        """Keep the list that `data` holds (PEM or DER); CrlError says what is wrong with it."""
        crl = parse_crl(data)
        issuer = Identity.from_name(crl.issuer.public_bytes())
        kept = self._lists.setdefault(issuer, [])
        if any(entry.crl == crl for entry in kept):
            return crl
        kept.append(_Entry(crl=crl, source=source))
        # Lists known to be signed stay when there are too many, whatever date a forged one bears.
        kept.sort(key=lambda entry: (any(entry.signed_by.values()), entry.crl.last_update_utc), reverse=True)
        del kept[_KEPT_PER_ISSUER:]
        kept.sort(key=lambda entry: entry.crl.last_update_utc, reverse=True)
        self._failures.pop(source, None)
        return crl

    def add_signed(self, data: bytes, source: str, issuers: Iterable[x509.Certificate]) -> bool:
        """Keep a list that a peer sent, if it can be read and one of `issuers` signed it; else False."""
        try:
            crl = parse_crl(data)
        except CrlError:
            return False
        if not any(crl.issuer == issuer.subject and _signed(crl, issuer) for issuer in issuers):
            return False
        self.add(data, source)
        return True

    def take_over(self, other: CrlStore) -> None:
        """Keep what another store has: lists stay when the configuration is read again."""
        for issuer, kept in other._lists.items():
            self._lists.setdefault(issuer, []).extend(kept)
        self._failures.update(other._failures)
        self.on_wanted = other.on_wanted

    def failed(self, source: str, reason: str) -> None:
        """Remember why `source` gave no list, for the texts of refusals."""
        self._failures[source] = reason

    def want(self, certificate: x509.Certificate) -> None:
        """Remember the URLs that a certificate names; only for one whose chain has been verified."""
        new = [url for url in distribution_points(certificate) if url not in self._urls]
        if not new or len(self._urls) + len(new) > self._configured + _MAX_URLS:
            return
        self._urls.update(dict.fromkeys(new))
        self.on_wanted()

    def wanted_urls(self) -> list[str]:
        """Where lists are to be had, the configured ones first."""
        return list(self._urls)

    def next_update(self, source: str) -> datetime.datetime | None:
        """When the list from `source` is to be replaced; None where there is none or it does not say."""
        for kept in self._lists.values():
            for entry in kept:
                if entry.source == source:
                    return entry.crl.next_update_utc
        return None

    # ---- asking ---------------------------------------------------------------------------------------------

    def check(
        self, certificate: x509.Certificate, issuer: x509.Certificate, now: datetime.datetime
    ) -> Answer:
        """What the newest list that `issuer` signed, and that is about such certificates, says about `certificate`."""
        entry = self._find(certificate, issuer)
        if entry is None:
            return Answer(standing=Standing.UNKNOWN, explain=lambda: self._why_none(certificate, issuer))
        found = entry.crl.get_revoked_certificate_by_serial_number(certificate.serial_number)
        if found is not None and not _removed(found):
            return Answer(standing=Standing.REVOKED, explain=lambda: _revoked(found, entry.source))
        until = entry.crl.next_update_utc
        if until is not None and until < now:
            late = f"the list from {entry.source} should have been replaced by {until:%Y-%m-%d %H:%M} UTC"
            return Answer(standing=Standing.STALE, explain=lambda: late)
        return Answer(standing=Standing.GOOD, explain=lambda: f"not on the list from {entry.source}")

    def _find(self, certificate: x509.Certificate, issuer: x509.Certificate) -> _Entry | None:
        for entry in self._lists.get(names.subject(issuer), ()):
            if not _covers(entry.crl, certificate):
                continue
            key = issuer.public_bytes(Encoding.DER)
            if key not in entry.signed_by:
                entry.signed_by[key] = _signed(entry.crl, issuer)
            if entry.signed_by[key]:
                return entry
        return None

    def _why_none(self, certificate: x509.Certificate, issuer: x509.Certificate) -> str:
        urls = distribution_points(certificate)
        tried = [f"{url} ({self._failures.get(url, 'not fetched yet')})" for url in urls[:3]]
        where = f"; it names {', '.join(tried)}" if tried else ", and it names none"
        unsigned = " (a list with this issuer's name has a signature that is not its own)"
        wrong = unsigned if self._lists.get(names.subject(issuer)) else ""
        return f"no revocation list of {names.subject(issuer)}{wrong}{where}"


def parse_crl(data: bytes) -> x509.CertificateRevocationList:
    """The list that PEM or DER `data` holds; CrlError says why it is none that we can use."""
    if len(data) > MAX_BYTES:
        raise CrlError(f"a revocation list of {len(data)} bytes, want at most {MAX_BYTES}")
    load = x509.load_pem_x509_crl if b"-----BEGIN" in data[:4096] else x509.load_der_x509_crl
    try:
        crl = load(data)
        extensions = list(crl.extensions)
        # The library parses these late: whoever asks for them below shall not meet an error.
        _ = crl.issuer, crl.last_update_utc, crl.next_update_utc
    except Exception as error:  # the library raises several kinds for bytes that are none
        raise CrlError(f"{len(data)} bytes that are no revocation list: {error}") from None
    for extension in extensions:
        if extension.oid == ExtensionOID.DELTA_CRL_INDICATOR:
            raise CrlError("a delta revocation list, which is not supported; want a complete one")
        point = extension.value
        if isinstance(point, x509.IssuingDistributionPoint):
            partial = point.indirect_crl or point.only_some_reasons or point.only_contains_attribute_certs
            if partial:
                raise CrlError("an indirect or partial revocation list, which is not supported")
        elif extension.critical:
            raise CrlError(
                f"a revocation list with the unknown critical extension {extension.oid.dotted_string}"
            )
    return crl


def _covers(crl: x509.CertificateRevocationList, certificate: x509.Certificate) -> bool:
    """Whether a list is about certificates such as this one (RFC 5280 section 6.3.3 (b)).

    A CA may have one list for CAs and one for all others, or many for parts of what it has issued: that a certificate
    is not on another part's list says nothing about it.
    """
    try:
        scope = crl.extensions.get_extension_for_class(x509.IssuingDistributionPoint).value
    except x509.ExtensionNotFound:
        return True
    try:
        is_ca = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, ValueError):
        is_ca = False
    if (scope.only_contains_ca_certs and not is_ca) or (scope.only_contains_user_certs and is_ca):
        return False
    wanted = _points(certificate)
    return not (scope.full_name and wanted) or not set(scope.full_name).isdisjoint(wanted)


def _points(certificate: x509.Certificate) -> list[x509.GeneralName]:
    """The names of a certificate's cRLDistributionPoints."""
    try:
        points = certificate.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
    except (x509.ExtensionNotFound, ValueError):
        return []
    return [name for point in points for name in point.full_name or ()]


def distribution_points(certificate: x509.Certificate) -> list[str]:
    """The http and https URLs of a certificate's cRLDistributionPoints."""
    urls = [name.value for name in _points(certificate) if isinstance(name, x509.UniformResourceIdentifier)]
    return [url for url in urls if url.lower().startswith(("http://", "https://")) and len(url) <= 1000][:8]


def _signed(crl: x509.CertificateRevocationList, issuer: x509.Certificate) -> bool:
    """True when `issuer` signed the list, and may sign lists (RFC 5280 section 6.3.3 (f))."""
    try:
        usage = issuer.extensions.get_extension_for_class(x509.KeyUsage).value
        if not usage.crl_sign:
            return False
    except x509.ExtensionNotFound:
        pass
    except ValueError:
        return False
    try:
        return crl.is_signature_valid(issuer.public_key())  # type: ignore[arg-type]
    except Exception:  # an algorithm or a key that the library does not know: no proof
        return False


def _revoked(entry: x509.RevokedCertificate, source: str) -> str:
    return f"revoked on {entry.revocation_date_utc:%Y-%m-%d %H:%M} UTC ({_reason(entry)}) by the list from {source}"


def _removed(entry: x509.RevokedCertificate) -> bool:
    return _reason(entry) == x509.ReasonFlags.remove_from_crl.value


def _reason(entry: x509.RevokedCertificate) -> str:
    try:
        return str(entry.extensions.get_extension_for_class(x509.CRLReason).value.reason.value)
    except (x509.ExtensionNotFound, ValueError):
        return "no reason given"
