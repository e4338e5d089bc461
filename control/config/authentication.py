"""`local` and `remote` of a connection: how each side proves who it is, and whether both can.

    auth = "psk" | "pubkey" | "pubkey-sha256-sha384" | "eap-mschapv2" | "eap-tls" | "eap"

Left out, it is psk where the connection has a `psk`, pubkey where there are certificates or the other side uses EAP,
and psk otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

from control.config.credentials import Credentials, is_path, read_secret, warn_short
from control.config.problems import kind, nearest, show
from control.config.table import Table
from control.config.unsupported import AUTHENTICATION, SIDE
from control.ike.identity import Identity
from control.ike.settings import Auth, AuthSettings, Network
from control.pki.settings import PresharedKey
from dataplane.model import Address

HASHES = ("sha256", "sha384", "sha512", "identity")
EAP_METHODS = ("mschapv2", "tls")
_AUTH = 'one of "psk", "pubkey", "eap-mschapv2", "eap-tls", "eap", "none"'


def read_side(connection: Table, key: str, credentials: Credentials) -> AuthSettings:
    """One side's table; problems go to the report."""
    value = connection.raw(key)
    if value is not None and not isinstance(value, dict):
        connection.error(key, f'got {kind(value)} ({show(value)}), want a table such as {{ id = "@gw" }}')
        value = None
    table = Table(connection.report, connection.key(key), value if isinstance(value, dict) else {})
    certificates = _names(table, "certs", credentials)
    if key == "local":
        _own_key(table, certificates, credentials)
        settings = AuthSettings(certificates=certificates, eap_identity=table.text("eap_id"))
    else:
        settings = AuthSettings(
            certificates=certificates,
            authorities=_names(table, "cacerts", credentials),
            revocation=table.choice("revocation", ("relaxed", "ifuri", "strict"), "relaxed") or "relaxed",
            eap_identity=table.text("eap_id"),
        )
    settings = replace(settings, identity=table.parsed("id", _identity))
    settings = _method(connection, table, settings)
    table.finish(SIDE)
    return settings


def _identity(text: str) -> Identity | None:
    """An identity; None where it says anyone."""
    identity = Identity.parse(text)
    return None if identity.kind == 0 else identity


def _method(connection: Table, table: Table, settings: AuthSettings) -> AuthSettings:
    """`auth`, with what follows its first word."""
    text = table.text("auth")
    if text is None:
        certified = bool(settings.certificates or settings.authorities)
        # Where one side is said to have certificates, the other has them most likely, too; it must beside EAP.
        for side in ("local", "remote"):
            value = connection.values.get(side)
            if isinstance(value, dict):
                certified |= (
                    "certs" in value or "cacerts" in value or str(value.get("auth", "")).startswith("eap")
                )
        psk = connection.has("psk") and not settings.certificates
        return replace(settings, auth=Auth.PUBKEY if certified and not psk else Auth.PSK)
    word, _, rest = text.lower().partition("-")
    parts = rest.split("-") if rest else []
    if word == "pubkey":
        for part in parts:
            if part not in HASHES:
                table.error(
                    "auth",
                    f"got {show(text)}, of which {show(part)} is no hash; want some of {', '.join(HASHES)}"
                    f"{nearest(part, HASHES)}",
                )
        return replace(settings, auth=Auth.PUBKEY, signature_hashes=tuple(parts))
    if word == "eap" and rest in ("", "dynamic", *EAP_METHODS):
        methods = (rest,) if rest in EAP_METHODS else EAP_METHODS
        return replace(settings, auth=Auth.EAP, eap_methods=methods)
    if word in ("psk", "none") and not rest:
        return replace(settings, auth=Auth(word))
    why = AUTHENTICATION.get(text.lower(), AUTHENTICATION.get(word))
    if why is not None:
        table.error("auth", f"got {show(text)}, {why}; want {_AUTH}")
        return settings
    table.error("auth", f"got {show(text)}, want {_AUTH}{nearest(text, ('psk', 'pubkey', 'eap-mschapv2'))}")
    return settings


def _names(table: Table, key: str, credentials: Credentials) -> tuple[str, ...]:
    """Certificates or CAs by name or path."""
    find = credentials.certificate if key == "certs" else credentials.authority
    what = "a certificate" if key == "certs" else "a CA"
    texts = table.parsed_list(key, str, want=f"the name or path of {what}, or a list of them")
    found = [name for text in texts or () if (name := find(table, key, text)) is not None]
    return tuple(dict.fromkeys(found))


def _own_key(table: Table, certificates: Sequence[str], credentials: Credentials) -> None:
    """`key` and `password` beside a certificate that is named by its path."""
    key, password = table.text("key"), table.text("password", secret=True)
    if key is None and password is None:
        return
    if len(certificates) != 1 or not is_path(certificates[0]):
        table.error(
            "key" if key is not None else "password",
            "stands without the one path in certs that it belongs to; want certs = a path, "
            "or the key in a [certificates.NAME]",
        )
        return
    known = credentials.certificates[certificates[0]]
    credentials.certificates[certificates[0]] = replace(
        known,
        key=credentials.path(key) if key is not None else known.key,
        password=password or known.password,
    )


def check_sides(
    table: Table,
    credentials: Credentials,
    local: AuthSettings,
    remote: AuthSettings,
    local_addresses: Sequence[Address | Network],
    remote_addresses: Sequence[Address | Network],
) -> None:
    """Both methods can be carried out, and go together; a `psk` of the connection enters the credentials."""
    psk = read_secret(table, "psk")
    if psk is not None:
        warn_short(table, "psk", psk)
        owners = [settings.identity for settings in (local, remote) if settings.identity is not None]
        if local.identity is None:
            owners += _identities(local_addresses)
        if remote.identity is None:
            owners += _identities(remote_addresses)
        credentials.preshared_keys.append(PresharedKey(identities=tuple(owners), secret=psk))
        if Auth.PSK not in (local.auth, remote.auth):
            table.error("psk", 'has no use: neither side has auth = "psk"; leave it out')
    if Auth.PSK in (local.auth, remote.auth) and not (credentials.preshared_keys or table.has("psk")):
        table.error(
            "psk", "is missing; it wants the preshared key (or certificates: local.certs, remote.cacerts)"
        )
    written = table.values.get("local")
    broken = isinstance(written, dict) and "certs" in written
    if local.auth is Auth.PUBKEY and not local.certificates and not broken:
        table.error("local.certs", "is missing; it wants the certificate that we prove ourselves with")
    if Auth.PUBKEY is remote.auth and not (
        remote.certificates or remote.authorities or credentials.authorities
    ):
        table.error(
            "remote.cacerts", "is missing, and there are no [authorities]; it wants the CA of the peer"
        )
    _check_eap(table, credentials, local, remote)


def _identities(addresses: Sequence[Address | Network]) -> list[Identity]:
    """What an end without a name goes by: its address."""
    return [
        Identity.from_address(address)
        for address in addresses
        if isinstance(address, IPv4Address | IPv6Address)
    ]


def _check_eap(table: Table, credentials: Credentials, local: AuthSettings, remote: AuthSettings) -> None:
    if local.auth is Auth.EAP and remote.auth is Auth.EAP:
        table.error("remote.auth", 'is EAP as local.auth is; want "pubkey" on the server\'s side')
    if local.auth is Auth.EAP and remote.auth is Auth.PSK:
        # RFC 7296 section 2.16: the responder must prove itself by its public key.
        table.error("remote.auth", 'is "psk" where we use EAP; want "pubkey", which proves the server')
    if remote.auth is Auth.EAP and local.auth is Auth.PSK:
        table.error(
            "local.auth", 'is "psk" where the peer uses EAP; want "pubkey", which proves us (RFC 7296 2.16)'
        )
    for key, settings in (("local", local), ("remote", remote)):
        if settings.auth is not Auth.EAP:
            continue
        if settings.eap_methods == ("mschapv2",) and not credentials.eap_secrets:
            table.error(
                f"{key}.auth", 'is "eap-mschapv2", and there is no password; want [users] NAME = "..."'
            )
        if key == "local" and settings.eap_methods == ("tls",) and not settings.certificates:
            table.error("local.certs", 'is missing; auth = "eap-tls" wants our certificate')
    if Auth.NONE is local.auth and remote.auth is not Auth.EAP:
        table.error("local.auth", 'is "none", which only goes with EAP on the other side (RFC 5998)')
    if Auth.NONE is remote.auth and local.auth is not Auth.EAP:
        table.error("remote.auth", 'is "none", which only goes with EAP on our side (RFC 5998)')
