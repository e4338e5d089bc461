"""Files of certificates, keys and revocation lists into a `Credentials`; every problem is found in one pass.

A certificate file is PEM (what follows the first certificate is its chain), DER, or PKCS#12. That a key belongs to
its certificate, and that a CA is one, is checked here, when the configuration is read, and not when a peer calls.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_private_key,
    load_pem_private_key,
    pkcs12,
)

from control.crypto.auth import PrivateKey
from control.pki import names
from control.pki.crl import CrlError, CrlStore
from control.pki.settings import AuthorityFiles, CertificateFiles, CredentialProblem, CredentialSettings
from control.pki.store import Authority, Credentials, LoadedCertificate, describe_key

MAX_FILE = 32 << 20  # bytes
SOON = 14 * 86400  # seconds before its end from which on a certificate is warned about


class CredentialFileError(Exception):
    """Credentials that cannot be loaded: every problem, not the first only."""

    def __init__(self, problems: Iterable[CredentialProblem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


def load_credentials(
    settings: CredentialSettings,
    *,
    crls: CrlStore | None = None,
    clock: Callable[[], float] = time.time,
    warn: Callable[[CredentialProblem], None] = lambda problem: None,
) -> Credentials:
    """Read all files of `settings`; raises CredentialFileError, and tells `warn` what is merely unwise.

    `crls` is the store of the previous configuration, whose fetched lists stay.
    """
    reader = _Reader(warn, clock)
    certificates = [reader.certificate(files) for files in settings.certificates]
    authorities = [reader.authority(files) for files in settings.authorities]
    paths = [path for files in settings.authorities for path in files.crls]
    urls = [url for files in settings.authorities for url in files.crl_urls]
    store = CrlStore([*urls, *(crls.wanted_urls() if crls else ())], paths)
    if crls:
        store.take_over(crls)
    for files in settings.authorities:
        reader.crls(files, store)
    if reader.problems:
        raise CredentialFileError(reader.problems)
    loaded = [one for one in certificates if one is not None]
    for one in loaded:
        store.want(one.certificate)  # peers' certificates are likely to name the same lists as ours
    return Credentials(
        preshared_keys=settings.preshared_keys,
        eap_secrets=settings.eap_secrets,
        postquantum_keys=settings.postquantum_keys,
        certificates=loaded,
        authorities=[one for one in authorities if one is not None],
        crls=store,
        clock=clock,
    )


class _Reader:
    """Reads one file after another and gathers what is wrong."""

    def __init__(self, warn: Callable[[CredentialProblem], None], clock: Callable[[], float]) -> None:
        self.problems: list[CredentialProblem] = []
        self._warn = warn
        self._clock = clock
        self._at = ("", "")

    def certificate(self, files: CertificateFiles) -> LoadedCertificate | None:
        """A certificate with its chain and its key, if it has one."""
        self._at = ("certificates", files.name)
        data = self._read("certificate", files.certificate)
        if data is None:
            return None
        found, key = self._parse_certificate(files, data)
        if not found:
            return None
        certificate, chain = found[0], found[1:]
        for path in files.chain:
            more = self._read("chain", path)
            chain += self._certificates("chain", path, more) if more is not None else []
        if files.key is not None or b"PRIVATE KEY-----" in data:
            key = self._key(files, files.key or files.certificate)
        if key is not None:
            self._check_mode(files.key or files.certificate)
        if key is not None and _public(key) != _spki(certificate):
            self._problem(
                "key",
                f"{files.key or files.certificate} holds a key that is not that of certificate "
                f"{names.subject(certificate)} ({describe_key(certificate)}); want the key it was made with",
            )
            return None
        self._check_dates("certificate", certificate)
        return LoadedCertificate(name=files.name, certificate=certificate, key=key, chain=tuple(chain))

    def authority(self, files: AuthorityFiles) -> Authority | None:
        """A CA, or several in one file."""
        self._at = ("authorities", files.name)
        data = self._read("certificate", files.certificate)
        found = self._certificates("certificate", files.certificate, data) if data is not None else []
        for certificate in found:
            try:
                basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
                is_ca = basic.ca
            except (x509.ExtensionNotFound, ValueError):
                is_ca = False
            if not is_ca:
                self._problem(
                    "certificate",
                    f"{files.certificate}: {names.subject(certificate)} is no CA (basicConstraints without CA); "
                    "want a CA's certificate here, or this one under [certificates]",
                )
            self._check_dates("certificate", certificate)
        return (
            Authority(name=files.name, certificates=tuple(found), crl_urls=files.crl_urls) if found else None
        )

    def crls(self, files: AuthorityFiles, store: CrlStore) -> None:
        """The revocation lists that the configuration names as files."""
        self._at = ("authorities", files.name)
        for path in files.crls:
            data = self._read("crls", path)
            if data is None:
                continue
            try:
                store.add(data, str(path))
            except CrlError as error:
                self._problem("crls", f"{path}: {error}")

    def _parse_certificate(
        self, files: CertificateFiles, data: bytes
    ) -> tuple[list[x509.Certificate], PrivateKey | None]:
        if files.certificate.suffix.lower() not in (".p12", ".pfx"):
            return self._certificates("certificate", files.certificate, data), None
        try:
            key, certificate, more = pkcs12.load_key_and_certificates(data, _encode(files.password))
        except Exception as error:  # a wrong password, or no PKCS#12
            self._problem(
                "certificate", f"{files.certificate} cannot be opened: {error}; is the password right?"
            )
            return [], None
        if certificate is None:
            self._problem("certificate", f"{files.certificate} holds no certificate")
            return [], None
        return [certificate, *more], _supported(key)

    def _certificates(self, key: str, path: Path, data: bytes) -> list[x509.Certificate]:
        try:
            if b"-----BEGIN" in data:
                return x509.load_pem_x509_certificates(data)
            return [x509.load_der_x509_certificate(data)]
        except Exception as error:  # the library raises several kinds for bytes that are none
            what = "holds a private key" if b"PRIVATE KEY-----" in data else f"holds no certificate ({error})"
            self._problem(key, f"{path} {what}; want a certificate in PEM or DER")
            return []

    def _key(self, files: CertificateFiles, path: Path) -> PrivateKey | None:
        data = self._read("key", path)
        if data is None:
            return None
        password = _encode(files.password)
        encrypted = b"BEGIN ENCRYPTED PRIVATE KEY" in data or b"Proc-Type: 4,ENCRYPTED" in data
        if encrypted and password is None:
            self._problem("key", f"{path} is encrypted; want its password as `password`")
            return None
        load = load_pem_private_key if b"-----BEGIN" in data else load_der_private_key
        try:
            key = _supported(load(data, password if encrypted or b"-----BEGIN" not in data else None))
        except Exception as error:  # the library raises several kinds; none of their texts holds key material
            self._problem("key", f"{path} holds no private key that can be read: {error}")
            return None
        if key is None:
            self._problem("key", f"{path} holds a key that is neither RSA, ECDSA nor EdDSA")
        return key

    def _read(self, key: str, path: Path) -> bytes | None:
        try:
            with open(path, "rb") as file:
                data = file.read(MAX_FILE + 1)
        except OSError as error:
            self._problem(key, f"{path}: {error.strerror}")
            return None
        if len(data) > MAX_FILE:
            self._problem(key, f"{path} has more than {MAX_FILE} bytes")
            return None
        return data

    def _check_mode(self, path: Path) -> None:
        try:
            mode = os.stat(path).st_mode & 0o777
        except OSError:
            return
        if mode & 0o077:
            self._note("key", f"{path} has mode {mode:o}, so that others can read it; chmod 600 {path}")

    def _check_dates(self, key: str, certificate: x509.Certificate) -> None:
        now, what = self._clock(), names.subject(certificate)
        first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        if now > last.timestamp():
            self._note(key, f"{what} expired on {last:%Y-%m-%d %H:%M} UTC; renew it")
        elif now < first.timestamp():
            self._note(
                key, f"{what} is not valid before {first:%Y-%m-%d %H:%M} UTC; is this machine's clock right?"
            )
        elif now > last.timestamp() - SOON:
            self._note(key, f"{what} expires on {last:%Y-%m-%d %H:%M} UTC; renew it")

    def _problem(self, key: str, message: str) -> None:
        self.problems.append(self._at_key(key, message))

    def _note(self, key: str, message: str) -> None:
        self._warn(self._at_key(key, message))

    def _at_key(self, key: str, message: str) -> CredentialProblem:
        return CredentialProblem(table=self._at[0], name=self._at[1], key=key, message=message)


def _supported(key: object) -> PrivateKey | None:
    kinds = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey
    return key if isinstance(key, kinds) else None


def _encode(password: str | None) -> bytes | None:
    return None if password is None else password.encode()


def _public(key: PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _spki(certificate: x509.Certificate) -> bytes:
    return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
