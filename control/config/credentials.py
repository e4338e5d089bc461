"""[secrets], [certificates] and [authorities]: what the ends prove themselves with, by name.

A connection may also carry its own: `psk = "..."`, and paths where a name of a certificate or CA is wanted.
Files are named here and read by the credential store; relative paths begin at the configuration's directory.
"""

from __future__ import annotations

import codecs
import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

from control.config.problems import nearest, show
from control.config.table import Report, Table
from control.config.unsupported import AUTHORITY, CERTIFICATE, SECRETS
from control.config.values import parse_secret
from control.ike.identity import Identity
from control.pki.settings import (
    AuthorityFiles,
    CertificateFiles,
    CredentialSettings,
    EapSecret,
    PostquantumKey,
    PresharedKey,
)

_FILE_MOST = 4096  # bytes of a file with a secret
SHORT = 16  # bytes of a preshared key below which guessing it offline is no great work


class Credentials:
    """What has been gathered so far; connections look names up here and add what they carry themselves."""

    def __init__(self, report: Report, directory: Path) -> None:
        self.report = report
        self.directory = directory
        self.preshared_keys: list[PresharedKey] = []
        self.eap_secrets: list[EapSecret] = []
        self.postquantum_keys: list[PostquantumKey] = []
        self.certificates: dict[str, CertificateFiles] = {}
        self.authorities: dict[str, AuthorityFiles] = {}

    def settings(self) -> CredentialSettings:
        """All of it, frozen."""
        return CredentialSettings(
            preshared_keys=tuple(self.preshared_keys),
            eap_secrets=tuple(self.eap_secrets),
            postquantum_keys=tuple(self.postquantum_keys),
            certificates=tuple(self.certificates.values()),
            authorities=tuple(self.authorities.values()),
        )

    def path(self, text: str) -> Path:
        """A path of the configuration: absolute, or from the configuration's directory."""
        return self.directory / text

    def certificate(self, table: Table, key: str, text: str) -> str | None:
        """The name of a certificate: as configured, or one made of a path."""
        if is_path(text):
            self.certificates.setdefault(text, CertificateFiles(name=text, certificate=self.path(text)))
            return text
        return _known(table, key, text, self.certificates, "certificates")

    def authority(self, table: Table, key: str, text: str) -> str | None:
        """The name of a CA: as configured, or one made of a path."""
        if is_path(text):
            self.authorities.setdefault(text, AuthorityFiles(name=text, certificate=self.path(text)))
            return text
        return _known(table, key, text, self.authorities, "authorities")


def is_path(text: str) -> bool:
    """Whether a text is a file's path where a name of the configuration could stand, too."""
    return "/" in text or text.lower().endswith((".pem", ".crt", ".cer", ".der", ".p12", ".pfx"))


def _known(table: Table, key: str, text: str, known: Iterable[str], section: str) -> str | None:
    names = list(known)
    if text in names:
        return text
    table.error(
        key,
        f"got {show(text)}, and there is no [{section}.{text[:64]}]{nearest(text, names)}; "
        "want its name, or a file's path",
    )
    return None


def read_credentials(
    report: Report,
    directory: Path,
    secrets: Table,
    users: Table,
    certificates: Sequence[tuple[str, Table]],
    authorities: Sequence[tuple[str, Table]],
) -> Credentials:
    """Every usable entry of the sections; problems go to the report."""
    found = Credentials(report, directory)
    for name, table in certificates:
        _read_certificate(found, name, table)
    for name, table in authorities:
        _read_authority(found, name, table)
    for name in secrets.values:
        _read_secret(found, secrets, name)
    for name in users.values:
        password = read_secret(users, name)
        if password is not None:
            found.eap_secrets.append(EapSecret(identity=name, secret=password))
    return found


def _read_certificate(found: Credentials, name: str, table: Table) -> None:
    certificate = table.text("certificate", required="the path of a certificate (PEM, DER or PKCS#12)")
    key = table.text("key")
    chain = table.parsed_list("chain", found.path, want="the path of a CA certificate, or a list of them")
    password = table.text("password", secret=True)
    table.finish(CERTIFICATE)
    found.certificates[name] = CertificateFiles(
        name=name,
        certificate=found.path(certificate or ""),
        key=found.path(key) if key is not None else None,
        chain=tuple(chain or ()),
        password=password,
    )


def _read_authority(found: Credentials, name: str, table: Table) -> None:
    certificate = table.text("certificate", required="the path of a CA certificate (PEM or DER)")
    crls = table.parsed_list("crls", found.path, want="the path of a CRL, or a list of them")
    urls = table.parsed_list("crl_urls", _url, want="a URL, or a list of them")
    table.finish(AUTHORITY)
    found.authorities[name] = AuthorityFiles(
        name=name,
        certificate=found.path(certificate or ""),
        crls=tuple(crls or ()),
        crl_urls=tuple(urls or ()),
    )


def _url(text: str) -> str:
    if (
        not text.startswith(("http://", "https://", "file:///"))
        or len(text) > 2000
        or any(c.isspace() for c in text)
    ):
        raise ValueError("want a URL that begins with http://, https:// or file:///")
    return text


def _read_secret(found: Credentials, secrets: Table, name: str) -> None:
    """One entry: `identity = "secret"`, or a table with type, id, and secret or file."""
    value = secrets.raw(name)
    if not isinstance(value, dict):
        identity = _identity(name)
        if identity is None:
            secrets.error(name, 'is no identity; want one, or a table with id = "..." and secret = "..."')
        secret = read_secret(secrets, name)
        if secret is not None and identity is not None:
            found.preshared_keys.append(PresharedKey(identities=(identity,), secret=secret))
            warn_short(secrets, name, secret)
        return
    table = Table(found.report, secrets.key(name), value)
    sort = table.choice("type", ("ike", "eap", "ppk"), "ike", SECRETS)
    secret = _secret(found, table)
    if sort == "ike":
        identities = table.parsed_list("id", Identity.parse, want="an identity, or a list of them")
        if secret is not None:
            found.preshared_keys.append(PresharedKey(identities=tuple(identities or ()), secret=secret))
            warn_short(table, "secret", secret)
    else:
        owners = table.parsed_list("id", str, want="an identity, or a list of them")
        if not table.has("id"):
            table.error("id", f'is missing; type "{sort}" wants the identity that the secret belongs to')
        for owner in owners or () if secret is not None else ():
            if sort == "eap":
                found.eap_secrets.append(EapSecret(identity=owner, secret=secret or b""))
            else:
                found.postquantum_keys.append(PostquantumKey(id=owner, secret=secret or b""))
    table.finish()


def warn_short(table: Table, key: str, secret: bytes) -> None:
    """Whoever pretends to be the responder gets an AUTH to guess against (RFC 7296 section 2.15)."""
    if len(secret) < SHORT:
        table.warn(
            key,
            f"is {len(secret)} bytes long, so whoever pretends to be the peer may guess it offline; "
            "use `openssl rand -base64 32`",
        )


def _secret(found: Credentials, table: Table) -> bytes | None:
    """The secret in `secret`, or the first line of `file`."""
    file = table.text("file")
    if file is None:
        if not table.has("secret") and not table.has("file"):
            table.error("secret", "is missing; it wants the secret, or file = its path")
            table.raw("secret")
            return None
        return read_secret(table, "secret")
    if table.raw("secret") is not None:
        table.error("file", "stands beside secret; want one of them")
        return None
    path = found.path(file)
    try:
        with path.open("rb") as stream:
            mode = stat.S_IMODE(os.fstat(stream.fileno()).st_mode)
            data = stream.read(_FILE_MOST + 1)
        text = data.removeprefix(codecs.BOM_UTF8).decode().strip("\r\n")
    except OSError as error:
        table.error("file", f"{path} cannot be read: {error.strerror}")
        return None
    except UnicodeDecodeError:
        table.error("file", f"{path} is not UTF-8; want text, or 0x and hex digits")
        return None
    if len(data) > _FILE_MOST or "\n" in text:
        table.error(
            "file", f"{path} has more than one line of at most {_FILE_MOST} bytes; want the secret alone"
        )
        return None
    if mode & 0o077:
        table.warn(
            "file", f"{path} has mode {mode:04o}, so others can read or change it; run: chmod 600 {path}"
        )
    return _parsed(table, "file", text)


def read_secret(table: Table, key: str) -> bytes | None:
    """The secret at `key`, spaces included; None when absent or wrong. Its characters never enter a message."""
    if table.text(key, secret=True) is None:
        return None
    return _parsed(table, key, str(table.values[key]))


def _parsed(table: Table, key: str, text: str) -> bytes | None:
    try:
        return parse_secret(text)
    except ValueError as error:
        table.error(key, f"got {len(text)} characters, {error}")
        return None


def _identity(text: str) -> Identity | None:
    """The identity that a text names, if it names one."""
    try:
        return Identity.parse(text)
    except ValueError:
        return None
