"""What the configuration says about credentials: files and secrets. No secret is in a repr."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from control.ike.identity import Identity


@dataclass(frozen=True, kw_only=True)
class PresharedKey:
    """A secret that two ends share. It serves an IKE SA when either end's identity fits one of these; () fits all.

    One that names someone else than us is for peers that it names.
    """

    identities: tuple[Identity, ...] = ()
    secret: bytes = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class EapSecret:
    """The password of one EAP identity, in UTF-8."""

    identity: str
    secret: bytes = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class PostquantumKey:
    """A post-quantum preshared key (RFC 8784) and the PPK_ID it goes by."""

    id: str
    secret: bytes = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class CertificateFiles:
    """A certificate: ours, with its private key, or a peer's that is trusted for itself."""

    name: str
    certificate: Path  # PEM (further certificates in it are its chain), DER, or PKCS#12 with the key in it
    key: Path | None = None  # PEM or DER; None: in the PEM file of the certificate, or a peer's certificate
    chain: tuple[Path, ...] = ()  # intermediate CAs, in any order
    password: str | None = field(default=None, repr=False)  # of the key file


@dataclass(frozen=True, kw_only=True)
class AuthorityFiles:
    """A certificate authority that peers' chains may lead to."""

    name: str
    certificate: Path  # PEM (one or more) or DER
    crls: tuple[Path, ...] = ()  # PEM or DER; read again when they change
    crl_urls: tuple[str, ...] = ()  # http://, https:// or file:///, beside those in the certificates


@dataclass(frozen=True, kw_only=True)
class CredentialSettings:
    """All credentials of a gateway."""

    preshared_keys: tuple[PresharedKey, ...] = ()
    eap_secrets: tuple[EapSecret, ...] = ()
    postquantum_keys: tuple[PostquantumKey, ...] = ()
    certificates: tuple[CertificateFiles, ...] = ()
    authorities: tuple[AuthorityFiles, ...] = ()
    stamps: tuple[tuple[int, int], ...] = ()  # of the files when the configuration was read, see `stamped`


def stamped(settings: CredentialSettings) -> CredentialSettings:
    """`settings` with time and size of its files: a certificate that was renewed in place makes other settings.

    Revocation lists are left out, which are read again by themselves.
    """
    paths = [
        path
        for files in settings.certificates
        for path in (files.certificate, *((files.key,) if files.key else ()), *files.chain)
    ]
    paths += [files.certificate for files in settings.authorities]
    return replace(settings, stamps=tuple(map(_stamp, paths)))


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:  # whoever reads the file says so
        return 0, 0
    return found.st_mtime_ns, found.st_size


@dataclass(frozen=True, kw_only=True)
class CredentialProblem:
    """What is wrong with one file: `table`.`name`.`key` of the configuration, and the reason."""

    table: str  # certificates or authorities
    name: str
    key: str  # certificate, key, chain, crls, ...
    message: str

    def __str__(self) -> str:
        if "/" in self.name:  # no table of its own: a path where a name could stand
            return self.message
        return f"{self.table}.{self.name}.{self.key}: {self.message}"
