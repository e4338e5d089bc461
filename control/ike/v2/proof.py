"""Who we are and who the peer is: AUTH made and checked, by preshared key or signature (RFC 7296 section 2.15).

The octets of each side are its own IKE_SA_INIT message, the other's nonce, its MACed ID and, if IKE_INTERMEDIATE ran,
IntAuth (RFC 9242). An IKE SA needs its handshake, its suite and its keys for this; what is learned goes to the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import islice

from control.crypto import auth as crypto
from control.crypto.errors import SignatureError, UnsupportedError
from control.crypto.keys import signed_octets
from control.ike.ends import plain
from control.ike.errors import PeerError
from control.ike.identity import Identity
from control.ike.numbers import AuthMethod, CertEncoding, HashAlgorithm, NotifyType, name_of
from control.ike.settings import Auth, AuthSettings, Connection
from control.ike.v2.handshake import Handshake
from control.ike.v2.sa import IkeSa
from control.ike.v2.task import Incoming
from control.ike.wire.payloads import AuthPayload, CertPayload, CertRequestPayload, IdPayload, Payload
from control.pki.errors import CredentialError

MAX_AUTHORITIES = 512  # of a peer's CERTREQ that are looked at
_HASHES = {
    "sha256": HashAlgorithm.SHA2_256,
    "sha384": HashAlgorithm.SHA2_384,
    "sha512": HashAlgorithm.SHA2_512,
    "identity": HashAlgorithm.IDENTITY,
}
_SHA2 = (HashAlgorithm.SHA2_256, HashAlgorithm.SHA2_384, HashAlgorithm.SHA2_512)


class AuthenticationFailed(PeerError):
    """One side does not prove what it should; `code` is for programs."""

    def __init__(self, text: str, advice: str = "", *, code: str = "authentication_failed") -> None:
        super().__init__(NotifyType.AUTHENTICATION_FAILED, text, advice=advice)
        self.code = code


def failed(error: CredentialError) -> AuthenticationFailed:
    """A credential's error as the protocol's."""
    return AuthenticationFailed(error.text, error.advice, code=error.code)


def octets(sa: IkeSa, identity: IdPayload, *, sk_p: bytes | None = None) -> bytes:
    """What the AUTH of the side that sent `identity` covers. `sk_p`: instead of the SA's (RFC 8784's two forms)."""
    handshake, keys = sa.handshake, sa.keys
    assert handshake is not None and keys is not None
    intermediate = b""
    if handshake.intermediates:
        # RFC 9242 section 3.3.2: the message ID of the first IKE_AUTH follows both sides' values.
        message_id = (handshake.intermediates + 1).to_bytes(4, "big")
        intermediate = handshake.intermediate_i + handshake.intermediate_r + message_id
    if identity.initiator:
        message, nonce, key = handshake.request, handshake.nonce_r, keys.pi
    else:
        message, nonce, key = handshake.response, handshake.nonce_i, keys.pr
    return signed_octets(keys.prf, message, nonce, key if sk_p is None else sk_p, identity.body, intermediate)


def id_payload(identity: Identity, *, initiator: bool) -> IdPayload:
    """The ID payload of an identity."""
    kind, data = identity.to_wire()
    return IdPayload(initiator=initiator, id_type=kind, data=data)


# Ours


class Ours:
    """How we prove ourselves: the identity, the certificates to send, and what makes AUTH."""

    __slots__ = ("certificates", "identity", "payload", "private_key", "secret")

    def __init__(
        self,
        identity: Identity,
        *,
        initiator: bool,
        secret: bytes | None = None,
        private_key: crypto.PrivateKey | None = None,
        certificates: tuple[CertPayload, ...] = (),
    ) -> None:
        self.identity = identity
        self.payload = id_payload(identity, initiator=initiator)
        self.secret = secret
        self.private_key = private_key
        self.certificates = certificates

    def auth(self, sa: IkeSa, covered: bytes) -> AuthPayload:
        """AUTH over `octets` of ours."""
        assert sa.keys is not None
        if self.secret is not None:
            data = crypto.psk_auth(sa.keys.prf, self.secret, covered)
            return AuthPayload(method=AuthMethod.SHARED_KEY, data=data)
        if self.private_key is None:
            # EAP proves an initiator only; a connection without any proof of ours needs a peer that does without.
            local, name = sa.connection.local.auth.value, sa.connection.name
            raise AuthenticationFailed(
                f"connection '{name}' has local.auth = {local!r}, by which we cannot prove ourselves to a peer that "
                + ("wants a proof" if sa.connection.local.auth is Auth.NONE else "initiates"),
                "set local.auth to psk or pubkey, or let this side initiate",
            )
        try:
            method, data = crypto.sign(self.private_key, covered, hashes_for(sa))
        except UnsupportedError as error:
            raise AuthenticationFailed(
                f"we cannot sign for this peer: {error}", "use another certificate for this connection"
            ) from None
        return AuthPayload(method=method, data=data)


def ours(sa: IkeSa, remote: Identity | None, *, asked: Identity | None = None) -> Ours:
    """How we prove ourselves to `remote` by the SA's connection; `asked` is the IDr of its request."""
    connection = sa.connection
    local = connection.local
    identity = local.identity if local.identity is not None and not local.identity.is_pattern else None
    if local.auth is Auth.PUBKEY:
        return _our_certificate(sa, local, identity, asked)
    identity = identity or asked or Identity.from_address(sa.path.local)
    if local.auth is not Auth.PSK:
        return Ours(identity, initiator=sa.initiator)  # EAP proves it, or nothing does
    secret = _psk(sa, identity, remote)
    return Ours(identity, initiator=sa.initiator, secret=secret)


def _our_certificate(
    sa: IkeSa, local: AuthSettings, identity: Identity | None, asked: Identity | None
) -> Ours:
    handshake = sa.handshake
    assert handshake is not None
    hashes = hashes_for(sa)
    credentials = sa.host.credentials

    def usable(key: crypto.PrivateKey) -> bool:
        return can_sign(key, hashes)

    try:
        try:
            found = credentials.key_for(local, identity or asked, handshake.authorities, usable)
        except CredentialError:
            if identity is not None or asked is None:
                raise
            found = credentials.key_for(local, None, handshake.authorities, usable)
    except CredentialError as error:
        raise failed(error) from None
    send = sa.connection.send_certificate
    certificates: tuple[CertPayload, ...] = ()
    # The clients built into telephones and laptops need our certificate for EAP, and not all of them ask for it.
    asked_for = handshake.certificate_asked or sa.connection.remote.auth is Auth.EAP
    if send == "always" or (send == "ifasked" and asked_for):
        certificates = tuple(
            CertPayload(encoding=CertEncoding.X509_SIGNATURE, data=each) for each in found.chain
        )
    return Ours(
        found.identity,
        initiator=sa.initiator,
        private_key=found.private_key,
        certificates=certificates,
    )


def can_sign(key: crypto.PrivateKey, hashes: frozenset[int]) -> bool:
    """Whether a key can make a signature that a peer with these hashes (RFC 7427) can check."""
    name = crypto.key_name(key)
    if name.startswith("Ed"):
        return HashAlgorithm.IDENTITY in hashes
    if hashes:
        return not hashes.isdisjoint(_SHA2)
    return not name.startswith("ECDSA") or name.split()[1] in ("secp256r1", "secp384r1", "secp521r1")


def hashes_for(sa: IkeSa) -> frozenset[int]:
    """Hashes that the peer can check and our side of the connection allows; AuthenticationFailed where it has none.

    None at all, which is the older methods (RSA's with SHA-1), only where the settings leave that open.
    """
    local = sa.connection.local
    hashes = sa.peer_hashes & allowed_hashes(local)
    if local.signature_hashes and not hashes:
        theirs = crypto.hash_names(sa.peer_hashes)
        raise AuthenticationFailed(
            f"the peer can check signatures with the hashes {theirs}; connection '{sa.connection.name}' has "
            f"local.auth = 'pubkey-{'-'.join(local.signature_hashes)}'",
            "allow one of the peer's hashes, or set local.auth to pubkey",
        )
    return hashes


def allowed_hashes(auth: AuthSettings) -> frozenset[int]:
    """Hash algorithms of signatures that one side's settings allow."""
    names = auth.signature_hashes or tuple(_HASHES)
    return frozenset(int(_HASHES[name]) for name in names)


def _psk(sa: IkeSa, local: Identity, remote: Identity | None) -> bytes:
    """The key for these two ends, or for the peer's address; of a peer that is known none that is another's."""
    credentials = sa.host.credentials
    known = remote is not None and not remote.is_pattern
    is_ours = _our_names(sa, local) if known else None
    found = credentials.find_psk(local, remote, is_ours)
    if found is None:
        found = credentials.find_psk(local, Identity.from_address(sa.path.remote), is_ours)
    if found is None:
        raise failed(credentials.missing_psk(local, remote))
    return found.secret


def _our_names(sa: IkeSa, local: Identity) -> Callable[[Identity], bool]:
    """Whether an identity of a key is one of this gateway's own: of this IKE SA, or of any connection."""
    here = frozenset((local, Identity.from_address(sa.path.local)))

    @cache
    def everywhere() -> frozenset[Identity]:
        found = set()
        for connection in (sa.connection, *sa.host.connections):
            if connection.local.identity is not None:
                found.add(connection.local.identity)
            found.update(map(Identity.from_address, plain(connection.local_addresses)))
        return frozenset(found)

    def among(names: frozenset[Identity], identity: Identity) -> bool:
        return identity in names or (identity.is_pattern and any(name.matches(identity) for name in names))

    return lambda identity: among(here, identity) or among(everywhere(), identity)


def certificate_request(sa: IkeSa) -> CertRequestPayload | None:
    """Our CERTREQ: the CAs that we trust; None where the peer needs no certificate.

    A responder does not know in IKE_SA_INIT which of its connections it will be, so it asks for all of them.
    """
    candidates = [sa.connection]
    if not sa.initiator and sa.handshake is not None:
        candidates = list(sa.handshake.connections) or candidates
    wanted = False
    hashes: dict[bytes, None] = {}
    for connection in candidates:
        if connection.request_certificates and connection.remote.auth is Auth.PUBKEY:
            found = sa.host.credentials.certificate_requests(connection.remote)
            hashes.update(dict.fromkeys(found))
            wanted |= bool(found or connection.remote.certificates)
    if not wanted:
        return None
    return CertRequestPayload(encoding=CertEncoding.X509_SIGNATURE, authorities=b"".join(hashes))


def take_certificate_requests(handshake: Handshake, message: Incoming) -> None:
    """Remember what the peer's CERTREQ payloads ask for."""
    requests = [
        each for each in message.all(CertRequestPayload) if each.encoding == CertEncoding.X509_SIGNATURE
    ]
    if requests:
        handshake.certificate_asked = True
        hashes = (each for request in requests for each in request.hashes)
        handshake.authorities = tuple(islice(hashes, MAX_AUTHORITIES))


# The peer's


def kinds_of(auth: AuthPayload | None) -> tuple[Auth, ...]:
    """How a peer proves itself, by its AUTH payload: without one it wants EAP (RFC 7296 section 2.16)."""
    if auth is None:
        return (Auth.EAP,)
    if auth.method == AuthMethod.SHARED_KEY:
        return (Auth.PSK,)
    if auth.method in (AuthMethod.NULL, AuthMethod.SECURE_PASSWORD, AuthMethod.DSS_SIGNATURE):
        raise AuthenticationFailed(
            f"the peer authenticates by {name_of(AuthMethod, auth.method)}, which is not supported",
            "use a preshared key, a certificate or EAP",
        )
    return (Auth.PUBKEY,)


def check(
    sa: IkeSa,
    connection: Connection,
    *,
    ours: Identity | None,
    peer: Identity,
    auth: AuthPayload,
    covered: bytes,
    payloads: Sequence[Payload],
) -> None:
    """The peer proves that it is `peer`, as `connection` demands; AuthenticationFailed else.

    `covered` is `octets` of the peer; `payloads` is its message, for the certificates in it.
    """
    demanded = connection.remote.auth
    got = kinds_of(auth)
    if demanded not in got:
        raise AuthenticationFailed(
            f"the peer '{peer}' authenticates by {got[0].value}; connection '{connection.name}' demands "
            f"{demanded.value} of it",
            "make the authentication methods of both sides the same",
            code="method_mismatch",
        )
    assert sa.keys is not None
    if demanded is Auth.PSK:
        secret = _psk(sa, ours or Identity.from_address(sa.path.local), peer)
        if not crypto.verify_psk(sa.keys.prf, secret, auth.data, covered):
            raise AuthenticationFailed(
                f"the preshared key of '{peer}' is not the one that we have for it"
                + (f" and '{ours}'" if ours is not None else ""),
                "compare the secrets of both sides",
            )
        return
    certificates = [each for each in payloads if isinstance(each, CertPayload)]
    _check_encodings(peer, certificates)
    try:
        verified = sa.host.credentials.verify_peer(
            connection.remote,
            peer,
            [each.data for each in certificates if each.encoding == CertEncoding.X509_SIGNATURE],
            [each.data for each in certificates if each.encoding == CertEncoding.CRL],
        )
    except CredentialError as error:
        raise failed(error) from None
    for note in verified.notes:
        sa.note("warning", note)
    try:
        scheme = crypto.verify(
            verified.public_key,
            auth.method,
            auth.data,
            covered,
            allowed_hashes(connection.remote),
            # Where the hashes are said, the older methods, with SHA-1 in RSA's, are no way around them.
            strict=bool(connection.remote.signature_hashes),
        )
    except SignatureError as error:
        raise AuthenticationFailed(
            f"the signature of '{peer}' does not hold: got {error}",
            "check that the peer signs with the key of its certificate",
            code="bad_signature",
        ) from None
    sa.note("debug", f"'{peer}' is authenticated by {scheme}")


def _check_encodings(peer: Identity, certificates: Sequence[CertPayload]) -> None:
    """The peer's certificate, if it sent any, came as the bytes of X.509.

    A certificate behind a URL (RFC 7296 section 3.6) would have us fetch what an unknown peer names; we do not say
    HTTP_CERT_LOOKUP_SUPPORTED, so no peer may send one.
    """
    kinds = {each.encoding for each in certificates}
    if not kinds or CertEncoding.X509_SIGNATURE in kinds:
        return
    got = ", ".join(name_of(CertEncoding, kind) for kind in sorted(kinds))
    raise AuthenticationFailed(
        f"the peer '{peer}' sent its certificate as {got}, want {name_of(CertEncoding, CertEncoding.X509_SIGNATURE)}",
        "let it send the X.509 certificate itself (strongSwan: hash_and_url = no)",
        code="no_certificate",
    )
