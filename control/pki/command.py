"""`esplanade pki`: a CA and its certificates in one line each, as files of one directory.

    ca       ca.pem, ca.key                 a root CA; with --ca, one below it under a name of its own
    server   NAME.pem, NAME.key             a gateway: host names and addresses become subjectAltNames
    client   NAME.pem, NAME.key, NAME.p12   a person or a device: usually a mail address
    revoke   ca.crl                         put certificates on the CA's list, or renew the list
    show     FILE                           what a certificate or a list says

A .pem has the certificate first, then the CAs above it but the root, as a peer needs them. Keys are readable by
their owner only, and no file is overwritten without --force.
"""

from __future__ import annotations

import argparse
import datetime
import os
import re
import secrets
import sys
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
    pkcs12,
)

from control.crypto.auth import PrivateKey
from control.ike.identity import Identity
from control.pki import names
from control.pki.crl import CrlError, distribution_points, parse_crl
from control.pki.make import CLIENT, KEYS, SERVER, Issued, issue, make_authority, make_crl
from control.pki.store import describe_key

DONE, FAILED = 0, 1


class PkiError(Exception):
    """The command cannot be done; the text says why and what would."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verbs below `esplanade pki`."""
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")
    ca = verbs.add_parser("ca", help="make a certificate authority")
    ca.add_argument(
        "names", nargs=1, metavar="NAME", help='its name: "Example CA" or "C=DE, O=Example, CN=CA"'
    )
    ca.set_defaults(run=_make_ca, days=3650.0)
    server = verbs.add_parser("server", help="make the certificate and key of a gateway")
    client = verbs.add_parser("client", help="make the certificate and key of a person or device")
    for each, days, what in ((server, 730.0, "gw.example 192.0.2.1"), (client, 730.0, "jo@example.org")):
        each.add_argument(
            "names",
            nargs="+",
            metavar="NAME",
            help=f"its identities (such as {what}): host names, mail or IP addresses, or a subject C=..., CN=...",
        )
        each.set_defaults(run=_make_end, days=days, purposes=SERVER if each is server else CLIENT)
        each.add_argument(
            "--crl-url", default="", metavar="URL", help="where the CA's revocation list will be"
        )
        each.add_argument(
            "--p12", action="store_true", help="write NAME.p12 for phones, too, and print its password"
        )
    for each in (ca, server, client):
        _common(each, "itself" if each is ca else "ca")
        each.add_argument(
            "--key", choices=KEYS, default="ecdsa", help="kind of key (default: ecdsa, on P-256)"
        )
        each.add_argument("--days", type=_days, metavar="N", help="validity (default: CA 3650, others 730)")
        each.add_argument("--force", action="store_true", help="overwrite files that are there")
    revoke = verbs.add_parser(
        "revoke", help="put certificates on the CA's revocation list, or renew the list"
    )
    revoke.add_argument("files", nargs="*", type=Path, metavar="FILE", help="certificates to revoke")
    revoke.add_argument(
        "--days", type=_days, default=30.0, metavar="N", help="validity of the list (default: 30)"
    )
    _common(revoke)
    revoke.set_defaults(run=_revoke)
    show = verbs.add_parser("show", help="show what certificates and revocation lists say")
    show.add_argument("files", nargs="+", type=Path, metavar="FILE")
    show.set_defaults(run=_show)


def _common(parser: argparse.ArgumentParser, authority: str = "ca") -> None:
    parser.add_argument(
        "-d",
        "--directory",
        type=Path,
        default=Path("."),
        metavar="DIR",
        help="where the files are (default: here)",
    )
    parser.add_argument(
        "--ca", metavar="NAME", help=f"the CA that signs, NAME.pem and NAME.key (default: {authority})"
    )


def _days(text: str) -> float:
    try:
        days = float(text)
    except ValueError:
        days = 0.0
    if not 0 < days <= 36500:
        raise argparse.ArgumentTypeError(f"got {text!r}, want a number of days up to 36500")
    return days


def run(arguments: argparse.Namespace) -> int:
    """Do what the arguments say; errors are one line."""
    try:
        arguments.run(arguments)
    except (PkiError, OSError) as error:
        text = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)
        print(f"esplanade pki: {text}", file=sys.stderr)
        return FAILED
    return DONE


def _make_ca(arguments: argparse.Namespace) -> None:
    subject = arguments.names[0]
    parent = _load_authority(arguments.directory / f"{arguments.ca}.pem") if arguments.ca else None
    stem = _file_name(subject) if parent else "ca"
    try:
        made = make_authority(subject, parent=parent, key=arguments.key, days=arguments.days)
    except ValueError as error:
        raise PkiError(f"got name {subject!r}, {error}") from None
    _write(arguments, stem, made)
    print(f"authority {names.subject(made.certificate)}: {_summary(made.certificate)}")
    print(f"  {arguments.directory / f'{stem}.pem'}  give this to every peer")
    print(f"  {arguments.directory / f'{stem}.key'}  keep this, and off the gateways")


def _make_end(arguments: argparse.Namespace) -> None:
    authority = _load_authority(arguments.directory / f"{arguments.ca or 'ca'}.pem")
    first, identities = arguments.names[0], []
    for name in arguments.names:
        try:
            identity = Identity.parse(name)
            if identity.is_pattern:
                raise ValueError("which stands for several; want one identity")
            identities.append(identity)
        except ValueError as error:
            raise PkiError(f"got name {name!r}, {error}") from None
    try:
        made = issue(
            authority,
            first,
            identities,
            purposes=arguments.purposes,
            key=arguments.key,
            days=arguments.days,
            crl_url=arguments.crl_url,
        )
    except ValueError as error:
        raise PkiError(f"got names {', '.join(arguments.names)}: {error}") from None
    stem = _file_name(first)
    _write(arguments, stem, made)
    print(f"certificate {names.describe_names(made.certificate)}: {_summary(made.certificate)}")
    print(f"  {arguments.directory / f'{stem}.pem'}\n  {arguments.directory / f'{stem}.key'}")
    if arguments.p12:
        password = secrets.token_urlsafe(12)
        data = pkcs12.serialize_key_and_certificates(
            first.encode(), made.key, made.certificate, made.chain, BestAvailableEncryption(password.encode())
        )
        path = arguments.directory / f"{stem}.p12"
        _write_file(path, data, 0o600, arguments.force)
        print(f"  {path}  its password: {password}")


def _revoke(arguments: argparse.Namespace) -> None:
    stem = arguments.ca or "ca"
    authority = _load_authority(arguments.directory / f"{stem}.pem")
    path, now = arguments.directory / f"{stem}.crl", datetime.datetime.now(datetime.UTC)
    revoked: dict[int, datetime.datetime] = {}
    number = 0
    if path.exists():
        try:
            old = parse_crl(path.read_bytes())
        except CrlError as error:
            raise PkiError(f"{path}: {error}") from None
        revoked = {entry.serial_number: entry.revocation_date_utc for entry in old}
        number = old.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    for file in arguments.files:
        certificate = _load_certificates(file)[0]
        if certificate.issuer != authority.certificate.subject:
            raise PkiError(
                f"{file}: was signed by {names.issuer(certificate)}, not by {names.subject(authority.certificate)}; "
                "name its CA by --ca"
            )
        revoked.setdefault(certificate.serial_number, now)
    crl = make_crl(authority, revoked.items(), days=arguments.days, number=number + 1, now=now)
    _write_file(path, crl.public_bytes(Encoding.PEM), 0o644, force=True)
    print(f"{path}: {len(revoked)} revoked, to be renewed before {crl.next_update_utc:%Y-%m-%d %H:%M} UTC")


def _show(arguments: argparse.Namespace) -> None:
    for path in arguments.files:
        data = path.read_bytes()
        if b"-----BEGIN X509 CRL" in data[:4096] or path.suffix == ".crl":
            try:
                crl = parse_crl(data)
            except CrlError as error:
                raise PkiError(f"{path}: {error}") from None
            until = f"{crl.next_update_utc:%Y-%m-%d %H:%M} UTC" if crl.next_update_utc else "an unknown time"
            print(f"{path}: revocation list of {Identity.from_name(crl.issuer.public_bytes())}")
            print(f"  {len(crl)} revoked, to be renewed before {until}")
            continue
        for certificate in _load_certificates(path):
            print(f"{path}: {names.subject(certificate)}")
            for identity in names.identities(certificate)[1:]:
                print(f"  identity {identity} ({identity.kind_name})")
            print(f"  issuer {names.issuer(certificate)}\n  {_summary(certificate)}")
            for url in distribution_points(certificate):
                print(f"  revocation list {url}")


def _summary(certificate: x509.Certificate) -> str:
    first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    now = datetime.datetime.now(datetime.UTC)
    state = " (expired)" if now > last else " (not yet valid)" if now < first else ""
    return (
        f"{describe_key(certificate)}, valid {first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC{state}, "
        f"serial {certificate.serial_number:x}"
    )


# ---- files --------------------------------------------------------------------------------------------------


def _load_certificates(path: Path) -> list[x509.Certificate]:
    data = path.read_bytes()
    try:
        if b"-----BEGIN" in data:
            return x509.load_pem_x509_certificates(data)
        return [x509.load_der_x509_certificate(data)]
    except Exception as error:  # the library raises several kinds for bytes that are none
        raise PkiError(f"{path} holds no certificate: {error}") from None


def _load_authority(path: Path) -> Issued:
    if not path.exists():
        raise PkiError(f"{path} is not there; make a CA first: esplanade pki ca NAME -d {path.parent}")
    found = _load_certificates(path)
    key_path = path.with_name(f"{path.stem}.key")
    try:
        key = load_pem_private_key(key_path.read_bytes(), None)
    except (ValueError, TypeError) as error:
        raise PkiError(f"{key_path} holds no private key that can be read: {error}") from None
    if not isinstance(key, PrivateKey) or key.public_key() != found[0].public_key():
        raise PkiError(f"{key_path} is not the key of {path}")
    return Issued(certificate=found[0], key=key, chain=tuple(found[1:]))


def _write(arguments: argparse.Namespace, stem: str, made: Issued) -> None:
    """NAME.key, then NAME.pem with the CAs above it, which a peer that knows the root only needs; not the root."""
    above = [certificate for certificate in made.chain if certificate.subject != certificate.issuer]
    pem = b"".join(certificate.public_bytes(Encoding.PEM) for certificate in (made.certificate, *above))
    key = made.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    paths = [arguments.directory / f"{stem}{suffix}" for suffix in (".key", ".pem")]
    there = [str(path) for path in paths if path.exists()]
    if there and not arguments.force:
        raise PkiError(f"{' and '.join(there)} exist already; --force overwrites")
    arguments.directory.mkdir(parents=True, exist_ok=True)
    _write_file(paths[0], key, 0o600, arguments.force)
    _write_file(paths[1], pem, 0o644, arguments.force)


def _write_file(path: Path, data: bytes, mode: int, force: bool) -> None:
    """A whole file or none, never readable by more than `mode` says, not even for a moment."""
    if path.exists() and not force:
        raise PkiError(f"{path} exists already; --force overwrites")
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        os.replace(unfinished, path)
    except BaseException:
        os.unlink(unfinished)
        raise


def _file_name(name: str) -> str:
    """A file's name for an identity: the common name of a subject, what is no plain letter replaced."""
    common = re.search(r"CN=([^,/]+)", name)
    stem = re.sub(r"[^A-Za-z0-9._@-]+", "-", (common[1] if common else name).strip())
    return stem.strip(".-") or "certificate"
