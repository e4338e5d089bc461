"""EAP as an IKE SA needs it: our methods with our credentials, and AUTH by what they agree on (RFC 7296 section 2.16).

    initiator: IDi without AUTH  ->  <- IDr, AUTH by certificate, EAP request
               EAP response      ->  <- EAP request ... EAP success
               AUTH by the MSK   ->  <- AUTH by the MSK, child SA

Who the client is, EAP says: `EapServer.identity` is what addresses and logs go by. A server that proves itself by EAP
alone (RFC 5998) is taken by a client whose connection demands no proof of it, and with methods that are safe for that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from control.crypto.auth import psk_auth, verify_psk
from control.crypto.prf import Prf
from control.eap import mschapv2
from control.eap.client import EapClient
from control.eap.method import Method
from control.eap.server import EapServer
from control.eap.tls import Tls, TlsCredentials
from control.ike.identity import Identity
from control.ike.numbers import AuthMethod, EapType
from control.ike.settings import Auth, AuthSettings, Connection
from control.ike.v2.proof import AuthenticationFailed, failed
from control.ike.v2.sa import IkeSa
from control.ike.wire.payloads import AuthPayload
from control.pki.errors import CredentialError

METHODS = {"mschapv2": EapType.MSCHAPV2, "tls": EapType.TLS}
# EAP methods for a server that proves itself by EAP alone (RFC 5998 section 4):
# mutual, and not to be guessed offline by who plays the server.
SAFE_ALONE = (EapType.TLS,)
MAX_IDENTITY = 256


def server(sa: IkeSa, connection: Connection) -> EapServer:
    """What asks the peer of `sa` for its proof, as responder."""
    makers: dict[EapType, Callable[[str], Method]] = {
        EapType.MSCHAPV2: lambda identity: mschapv2.Server(
            sa.host.credentials.eap_secret, str(sa.local_id), sa.host.random
        ),
        EapType.TLS: partial(_tls_server, sa, connection),
    }
    wanted = _methods(connection.remote, alone=connection.local.auth in (Auth.NONE, Auth.EAP))
    return EapServer([(kind, makers[kind]) for kind in wanted])


def client(sa: IkeSa, connection: Connection) -> EapClient:
    """What answers the server of `sa`, as initiator."""
    identity = connection.local.eap_identity or str(sa.local_id)
    makers: dict[EapType, Callable[[], Method]] = {
        EapType.MSCHAPV2: lambda: mschapv2.Client(identity, _password(sa, identity), sa.host.random),
        EapType.TLS: lambda: Tls(
            _tls_credentials(sa, connection, _server_check(sa, connection)), server=False
        ),
    }
    wanted = _methods(connection.local, alone=connection.remote.auth in (Auth.NONE, Auth.EAP))
    return EapClient(identity, [(kind, makers[kind]) for kind in wanted])


def check_identity(name: str, peer: Identity, connection: Connection) -> None:
    """Whether who EAP has proven is one whom the connection lets in; AuthenticationFailed else."""
    wanted = connection.remote.eap_identity
    if wanted is None or wanted in ("%any", name):
        return
    try:
        fits = Identity.parse(name).matches(Identity.parse(wanted))
    except ValueError:
        fits = False
    if not fits:
        raise AuthenticationFailed(
            f"EAP has proven '{name}' (with the IKE identity '{peer}'); connection '{connection.name}' wants "
            f"'{wanted}'",
            "set remote.eap_id to who may come in",
            code="id_mismatch",
        )


def auth(sa: IkeSa, msk: bytes, covered: bytes, *, initiator: bool) -> AuthPayload:
    """AUTH of one side with what EAP agreed on, or with SK_p where the method derives no key."""
    return AuthPayload(
        method=AuthMethod.SHARED_KEY, data=psk_auth(_prf(sa), _key(sa, msk, initiator), covered)
    )


def verify(sa: IkeSa, msk: bytes, payload: AuthPayload, covered: bytes, *, initiator: bool) -> None:
    """The other side's; AuthenticationFailed where it is not the one that EAP was spoken with."""
    key = _key(sa, msk, initiator)
    good = payload.method == AuthMethod.SHARED_KEY and verify_psk(_prf(sa), key, payload.data, covered)
    if not good:
        raise AuthenticationFailed(
            "the peer's AUTH after EAP does not hold: it is not made with the key that EAP agreed on",
            "someone may be in between, or the two sides derive keys differently",
        )


def _prf(sa: IkeSa) -> Prf:
    assert sa.keys is not None
    return sa.keys.prf


def _key(sa: IkeSa, msk: bytes, initiator: bool) -> bytes:
    assert sa.keys is not None
    return msk or (sa.keys.pi if initiator else sa.keys.pr)


def _methods(settings: AuthSettings, *, alone: bool) -> list[EapType]:
    kinds = [METHODS[name] for name in settings.eap_methods or tuple(METHODS)]
    safe = [kind for kind in kinds if kind in SAFE_ALONE or not alone]
    if not safe:
        raise AuthenticationFailed(
            "EAP would be the only proof of the server, and none of the methods "
            f"({', '.join(settings.eap_methods)}) is safe for that",
            "let the server prove itself by a certificate (RFC 5998 section 4), or use EAP-TLS",
        )
    return safe


def _password(sa: IkeSa, identity: str) -> bytes:
    password = sa.host.credentials.eap_secret(identity)
    if password is None:
        raise AuthenticationFailed(
            f"the server wants the password of '{identity}', and we have none",
            f"add an EAP secret for '{identity}', or set local.eap_id to one that there is",
            code="no_eap_secret",
        )
    return password


# EAP-TLS


def _tls_server(sa: IkeSa, connection: Connection, identity: str) -> Tls:
    def check(chain: Sequence[x509.Certificate]) -> str:
        return _check_chain(sa, connection.remote, identity, chain)

    return Tls(_tls_credentials(sa, connection, check), server=True)


def _server_check(sa: IkeSa, connection: Connection) -> Callable[[Sequence[x509.Certificate]], str]:
    """A TLS server must be who it is in IKE."""

    def check(chain: Sequence[x509.Certificate]) -> str:
        return _check_chain(sa, connection.remote, str(sa.remote_id), chain)

    return check


def _check_chain(sa: IkeSa, settings: AuthSettings, identity: str, chain: Sequence[x509.Certificate]) -> str:
    """Why a TLS certificate is not that of `identity`, as our connection demands; empty where it is."""
    try:
        peer = Identity.parse(identity)
    except ValueError as error:
        return f"the EAP identity '{identity[:MAX_IDENTITY]}' is none that a certificate can have: {error}"
    try:
        verified = sa.host.credentials.verify_peer(
            settings, peer, [certificate.public_bytes(Encoding.DER) for certificate in chain]
        )
    except CredentialError as error:
        return f"{error.text}; {error.advice}" if error.advice else error.text
    for note in verified.notes:
        sa.note("warning", note)
    return ""


def _tls_credentials(
    sa: IkeSa, connection: Connection, check: Callable[[Sequence[x509.Certificate]], str]
) -> TlsCredentials:
    credentials = sa.host.credentials
    try:
        found = credentials.key_for(connection.local, sa.local_id)
    except CredentialError as error:
        raise failed(error) from None
    return TlsCredentials(
        private_key=found.private_key,
        chain=tuple(x509.load_der_x509_certificate(data) for data in found.chain),
        trusted=credentials.trusted(connection.remote.authorities),
        check=check,
    )
