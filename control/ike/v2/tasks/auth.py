"""IKE_AUTH as its initiator (RFC 7296 section 1.2): who is who, and the first child SA.

    HDR, SK {IDi, [CERT..], [CERTREQ], [IDr], AUTH, [CP], SAi2, TSi, TSr}  -->
                                       <--  HDR, SK {IDr, [CERT..], AUTH, [CP], SAr2, TSi, TSr}

With EAP (section 2.16) the first AUTH is left out, EAP packets go to and fro, and AUTH is made with what EAP gave:

    HDR, SK {IDi, .., SAi2, TSi, TSr}  -->            <--  HDR, SK {IDr, [CERT..], AUTH, EAP}
    HDR, SK {EAP}  -->                                <--  HDR, SK {EAP}          as often as it takes
    HDR, SK {AUTH}  -->                               <--  HDR, SK {AUTH, [CP], SAr2, TSi, TSr}

A child SA that does not come about leaves the IKE SA standing. The responder's side is in auth_response.py.
"""

from __future__ import annotations

from control.crypto import auth as crypto
from control.ike.errors import PeerError, syntax_error
from control.ike.events import Closed, Failure, IkeEstablished
from control.ike.identity import Identity
from control.ike.numbers import AuthMethod, EapCode, Exchange, NotifyType, PayloadType
from control.ike.settings import Auth, Choice, Connection, Unique
from control.ike.v2 import codec, configure, negotiate, ppk, proof, resources, send, unique
from control.ike.v2.eap_rounds import EapInitiator
from control.ike.v2.keys import Mixed
from control.ike.v2.parts import Child, Feature
from control.ike.v2.proof import AuthenticationFailed
from control.ike.v2.sa import IkeSa
from control.ike.v2.states import State
from control.ike.v2.task import DONE, MORE, Incoming, Outgoing, Result, Task
from control.ike.v2.tasks import renew
from control.ike.v2.tasks.delete import DeleteSpi
from control.ike.wire.payloads import (
    AuthPayload,
    EapPayload,
    IdPayload,
    NotifyPayload,
    SaPayload,
    payload_type,
)


class IkeAuth(Task):
    """Authentication of both sides, by its initiator."""

    __slots__ = ("believed", "child", "mixed", "ours", "rounds")
    exchange = Exchange.IKE_AUTH
    name = "authentication"

    def __init__(self) -> None:
        super().__init__(initiator=True)
        self.ours: proof.Ours | None = None
        self.child: negotiate.ChildRequest | None = None
        self.mixed: Mixed | None = None  # keys with a PPK, as long as the peer has not said that it has it
        self.rounds: EapInitiator | None = None  # where we prove ourselves by EAP
        self.believed = False  # by the peer: it thinks that the IKE SA stands, or goes on with it

    def build(self, sa: IkeSa, message: Outgoing, now: float) -> Result:
        """The next request."""
        if self.rounds is None:
            self._build_first(sa, message)
        elif self.rounds.done:
            self._add_auth(sa, message)
        else:
            self.rounds.build(message)
        return MORE

    def _build_first(self, sa: IkeSa, message: Outgoing) -> None:
        connection, handshake = sa.connection, sa.handshake
        assert handshake is not None
        expected = expected_identity(connection)
        self.ours = proof.ours(sa, expected)
        sa.local_id = self.ours.identity
        message.add(self.ours.payload, *self.ours.certificates)
        if _is_first(sa, self.ours.identity, expected):
            message.notify(NotifyType.INITIAL_CONTACT)
        request = proof.certificate_request(sa)
        if request is not None:
            message.add(request)
        if expected is not None:
            message.add(proof.id_payload(expected, initiator=False))
        if connection.local.auth is Auth.EAP:
            self.rounds = EapInitiator()
            self.rounds.announce(sa, message)
        else:
            self._add_auth(sa, message)
        configure.ask(sa, message)
        self._ask_child(sa, message)
        if connection.mobike:
            message.notify(NotifyType.MOBIKE_SUPPORTED)

    def _ask_child(self, sa: IkeSa, message: Outgoing) -> None:
        connection, handshake = sa.connection, sa.handshake
        assert handshake is not None
        if handshake.child is not None and connection.childless is not Choice.FORCE:
            spi = sa.host.new_child_spi()
            self.child = negotiate.ask(sa, handshake.child, spi, key_exchange=False, packet=handshake.packet)
            negotiate.add_request(message, self.child)
        elif not handshake.childless:
            # RFC 6023 section 3: only to a responder that has said it supports that.
            raise PeerError(
                NotifyType.NO_PROPOSAL_CHOSEN,
                f"connection '{connection.name}' is to come up without a child; the peer does not support that "
                "(RFC 6023)",
                advice="bring a child up with it",
            )

    def _add_auth(self, sa: IkeSa, message: Outgoing) -> None:
        """AUTH, and with a PPK (RFC 8784 section 3) what it would be without."""
        assert self.ours is not None
        self.mixed = ppk.offered(sa)
        sk_p = self.mixed.pi if self.mixed is not None else None
        message.add(self._auth(sa, sk_p))
        if self.mixed is not None:
            ppk.add_identity(sa, message)
            if not sa.connection.ppk_required:
                message.notify(NotifyType.NO_PPK_AUTH, self._auth(sa, None).data)

    def _auth(self, sa: IkeSa, sk_p: bytes | None) -> AuthPayload:
        assert self.ours is not None and sa.keys is not None
        covered = proof.octets(sa, self.ours.payload, sk_p=sk_p)
        if self.rounds is None:
            return self.ours.auth(sa, covered)
        key = self.rounds.msk or sk_p or sa.keys.pi
        return AuthPayload(method=AuthMethod.SHARED_KEY, data=crypto.psk_auth(sa.keys.prf, key, covered))

    # The answers

    def process(self, sa: IkeSa, message: Incoming, now: float) -> Result:
        """The response to the last request."""
        rounds = self.rounds
        if rounds is None or not rounds.begun:
            claimed = self._identify_peer(sa, message)
            if rounds is not None:
                rounds.begin(sa, claimed)
        if rounds is not None and not rounds.done:
            packet = message.get(EapPayload)
            if packet is None:
                raise self._refused(sa, message)
            self.believed = packet.packet[:1] != bytes([EapCode.FAILURE])
            rounds.take(message)
            return MORE
        if rounds is not None:
            if message.get(AuthPayload) is None:
                raise self._refused(sa, message)
            self.believed = True
            self._settle_ppk(sa, message)
            rounds.finish(sa, message)
        self._finish(sa, message, now)
        return DONE

    def _identify_peer(self, sa: IkeSa, message: Incoming) -> IdPayload:
        """The responder is who it should be, and proves it, unless EAP is to prove both."""
        connection = sa.connection
        claimed = message.get(IdPayload, initiator=False)
        auth = message.get(AuthPayload)
        alone = self.rounds is not None and connection.remote.auth in (Auth.NONE, Auth.EAP)
        if claimed is None or (auth is None and not alone):
            raise self._refused(sa, message)
        self.believed = True
        sa.remote_id = Identity.from_wire(claimed.id_type, claimed.data)
        self._check_identity(sa, sa.remote_id)
        if self.rounds is None:
            self._settle_ppk(sa, message)
        if auth is not None and not alone:
            assert self.ours is not None
            proof.check(
                sa,
                connection,
                ours=self.ours.identity,
                peer=sa.remote_id,
                auth=auth,
                covered=proof.octets(sa, claimed),
                payloads=message.payloads,
            )
        return claimed

    def _check_identity(self, sa: IkeSa, peer: Identity) -> None:
        connection = sa.connection
        if not peer.matches(connection.remote.identity):
            raise AuthenticationFailed(
                f"the peer says it is '{peer}'; connection '{connection.name}' wants "
                f"'{connection.remote.identity}'",
                "set remote.id to the identity of the peer, or let the peer use the one that is wanted",
                code="id_mismatch",
            )

    def _settle_ppk(self, sa: IkeSa, message: Incoming) -> None:
        """PPK_IDENTITY in the response: the responder has it."""
        if self.mixed is None:
            return
        if message.notify(NotifyType.PPK_IDENTITY) is not None:
            ppk.use(sa, self.mixed)
        elif sa.connection.ppk_required:
            raise AuthenticationFailed(
                f"connection '{sa.connection.name}' requires the PPK '{sa.connection.ppk_id}'; the peer goes without",
                "configure the same PPK on the peer",
                code="no_ppk",
            )
        self.mixed = None

    def _refused(self, sa: IkeSa, message: Incoming) -> PeerError:
        """The peer did not prove anything: it says why in one word, we add what we said."""
        error = message.error()
        if error is None:
            had = ", ".join(sorted({PayloadType(kind).name for kind in _kinds(message)})) or "nothing"
            return syntax_error(f"the answer to IKE_AUTH has {had}; want IDr and AUTH, or an error")
        if error.type == NotifyType.AUTHENTICATION_FAILED:
            return AuthenticationFailed(
                f"the peer refuses our authentication: we are '{sa.local_id}' by "
                f"{sa.connection.local.auth.value} and want it to be '{sa.connection.remote.identity or 'anyone'}'",
                "compare identities and secrets or certificates: the peer's log has its view",
            )
        notify = NotifyType(error.type) if error.type in _KNOWN else NotifyType.INVALID_SYNTAX
        return PeerError(notify, f"the peer refuses IKE_AUTH: {error.name}", advice="see the peer's log")

    def _finish(self, sa: IkeSa, message: Incoming, now: float) -> None:
        handshake = sa.handshake
        assert handshake is not None
        if sa.connection.mobike and message.notify(NotifyType.MOBIKE_SUPPORTED) is not None:
            sa.features |= Feature.MOBIKE
        established(sa, now, reauth_limit=renew.announced_lifetime(message))
        unique.settle(sa, initial_contact=False, now=now)
        replaces = handshake.replaces
        asked, self.child = self.child, None
        if asked is not None:
            self._accept_child(sa, asked, message, now)
        sa.finish_handshake()
        if asked is None and handshake.child is not None:
            renew.add_child(sa, handshake.child, now, handshake.packet)
        if replaces is not None:
            renew.replaced(replaces.heir, sa, now)

    def _accept_child(
        self, sa: IkeSa, request: negotiate.ChildRequest, message: Incoming, now: float
    ) -> None:
        handshake = sa.handshake
        assert handshake is not None
        try:
            error = message.error()
            if error is not None and message.get(SaPayload) is None:
                failure = negotiate.refusal(request, error)
            else:
                configure.take(sa, message)
                child = negotiate.install(
                    sa,
                    negotiate.accept(sa, request, message),
                    now,
                    nonce_i=handshake.nonce_i,
                    nonce_r=handshake.nonce_r,
                    initiator=True,
                    outbound=True,
                    replaces=_same_child(handshake.replaces, request),
                )
                resources.complete(sa, child, now)
                return
        except PeerError as refused:
            failure = codec.failure_of(refused)
        if message.get(SaPayload) is not None:
            # The peer has installed what we do not want (RFC 7296 section 1.4.1); the SPI is free with its answer.
            sa.queue(DeleteSpi(request.settings.protocol, request.spi), now, first=True)
        else:
            sa.host.free_child_spi(request.spi)
        sa.child_failed(request.settings.name, failure)

    def failed(self, sa: IkeSa, failure: Failure, now: float) -> None:
        """No proof, no IKE SA. A peer that takes us for established is told (RFC 7296 section 2.21.2)."""
        self.abandoned(sa)
        if self.believed and sa.state is not State.CLOSED:
            send.last_message(sa, NotifyPayload(type=NotifyType.AUTHENTICATION_FAILED), now)
        sa.close(Closed.FAILED, now, failure=failure)

    def abandoned(self, sa: IkeSa) -> None:
        """The child's SPI was never used."""
        if self.child is not None:
            sa.host.free_child_spi(self.child.spi)
            self.child = None


def _same_child(old: IkeSa | None, request: negotiate.ChildRequest) -> Child | None:
    """The child of an IKE SA that is authenticated anew whose place the new one takes."""
    children = old.heir.children.values() if old is not None else ()  # it may have been rekeyed meanwhile
    return next((each for each in children if each.spec.settings == request.settings), None)


_KNOWN = frozenset(int(kind) for kind in NotifyType)


def _kinds(message: Incoming) -> set[int]:
    return {kind for kind in map(payload_type, message.payloads) if kind in set(PayloadType)}


def established(sa: IkeSa, now: float, *, reauth_limit: float = 0.0) -> None:
    """Both sides are authenticated: the state, the timers, the event."""
    sa.established(now, reauth_limit=reauth_limit)
    sa.emit(
        IkeEstablished(
            ike=sa.id,
            connection=sa.connection.name,
            path=sa.path,
            local_id=str(sa.local_id),
            remote_id=str(sa.remote_id),
            suite_name=str(sa.suite),
            initiator=sa.initiator,
            eap_identity=sa.eap_identity,
        )
    )


def expected_identity(connection: Connection) -> Identity | None:
    """The identity that we ask for as IDr; None where any of several will do."""
    identity = connection.remote.identity
    return identity if identity is not None and not identity.is_pattern else None


def _is_first(sa: IkeSa, local: Identity, expected: Identity | None) -> bool:
    """Whether we have nothing else with this peer, so that it may forget what it has (RFC 7296 section 2.4)."""
    if not sa.host.settings.initial_contact or sa.connection.unique is Unique.NEVER or expected is None:
        return False
    return not sa.host.others(local, expected, sa)
