"""IKE_AUTH (RFC 7296 section 1.2): who is who, and the first child SA.

    HDR, SK {IDi, [CERT..], [CERTREQ], [IDr], AUTH, [CP], SAi2, TSi, TSr}  -->
                                       <--  HDR, SK {IDr, [CERT..], AUTH, [CP], SAr2, TSi, TSr}

With EAP (section 2.16) the first request has no AUTH; EAP payloads go to and fro, then AUTH by the key they agree on:

    IDi, [CERTREQ], [IDr], [CP], SAi2, TSi, TSr  -->  <--  IDr, [CERT..], AUTH, EAP
                                            EAP  -->  <--  EAP ... EAP (success)
                                           AUTH  -->  <--  AUTH, [CP], SAr2, TSi, TSr

The responder looks for the connection by the identities now, among those that fit the addresses, and tries them
in their order until the peer's proof fits one. A child SA that does not come about leaves the IKE SA standing.
"""

from __future__ import annotations

from control.ike.errors import PeerError, syntax_error
from control.ike.events import Closed, Failure, IkeEstablished
from control.ike.identity import Identity
from control.ike.numbers import EapCode, Exchange, NotifyType
from control.ike.settings import Auth, Connection, Unique
from control.ike.v2 import choice, codec, configure, negotiate, proof
from control.ike.v2.eap_rounds import EapInitiator, EapResponder
from control.ike.v2.proof import AuthenticationFailed
from control.ike.v2.sa import Feature, IkeSa
from control.ike.v2.states import State
from control.ike.v2.task import DONE, MORE, Incoming, Outgoing, Result, Task
from control.ike.wire.payloads import AuthPayload, EapPayload, IdPayload, SaPayload


class IkeAuth(Task):
    """Authentication of both sides."""

    __slots__ = ("asked_by_eap", "believed", "child", "eap", "identified", "ours", "peer_id", "request")
    exchange = Exchange.IKE_AUTH
    name = "authentication"

    def __init__(self, *, initiator: bool) -> None:
        super().__init__(initiator=initiator)
        self.ours: proof.Ours | None = None
        self.child: negotiate.ChildRequest | None = None
        self.peer_id: Identity | None = None
        self.believed = False
        self.request: Incoming | None = None  # the responder's, until it is answered
        self.asked_by_eap: EapInitiator | None = None  # we prove ourselves by EAP
        self.eap: EapResponder | None = None  # the peer does
        self.identified = False  # the responder has said who it is

    def build(self, sa: IkeSa, message: Outgoing, now: float) -> Result:
        """The request, or the response to it."""
        if self.initiator:
            return self._build_request(sa, message)
        return self._build_response(sa, message, now)

    def process(self, sa: IkeSa, message: Incoming, now: float) -> Result:
        """The request, or the response to ours."""
        if self.initiator:
            return self._process_response(sa, message, now)
        return self._process_request(sa, message)

    # The initiator asks

    def _build_request(self, sa: IkeSa, message: Outgoing) -> Result:
        if self.asked_by_eap is not None:
            return self.asked_by_eap.build(sa, message)
        connection, handshake = sa.connection, sa.handshake
        assert handshake is not None
        expected = _expected(connection)
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
            self.asked_by_eap = EapInitiator(self.ours.payload)
            self.asked_by_eap.announce(sa, message)
        else:
            message.add(self.ours.auth(sa, proof.octets(sa, self.ours.payload)))
        configure.ask(sa, message)
        if handshake.child is not None:
            spi = sa.host.new_child_spi()
            self.child = negotiate.ask(sa, handshake.child, spi, key_exchange=False, packet=handshake.packet)
            negotiate.add_request(message, self.child)
        if connection.mobike:
            message.notify(NotifyType.MOBIKE_SUPPORTED)
        return MORE

    # The responder

    def _process_request(self, sa: IkeSa, message: Incoming) -> Result:
        if self.eap is not None:
            self.eap.take(sa, message)
            return MORE
        handshake = sa.handshake
        assert handshake is not None
        proof.take_certificate_requests(handshake, message)
        claimed = message.need(IdPayload, initiator=True)
        asked_payload = message.get(IdPayload, initiator=False)
        peer = Identity.from_wire(claimed.id_type, claimed.data)
        asked = (
            Identity.from_wire(asked_payload.id_type, asked_payload.data)
            if asked_payload is not None
            else None
        )
        auth = message.get(AuthPayload)
        kinds = proof.kinds_of(auth)
        candidates = choice.by_identities(handshake.connections, asked=asked, peer=peer, kinds=kinds)
        if not candidates:
            text, advice = choice.explain(handshake.connections, asked=asked, peer=peer, kinds=kinds)
            raise AuthenticationFailed(text, advice, code="id_mismatch")
        if auth is None:
            sa.connection = candidates[0]
        else:
            sa.connection = self._verify(sa, message, candidates, asked, peer, claimed, auth)
        sa.remote_id = self.peer_id = peer
        self.ours = proof.ours(sa, peer, asked=asked)
        sa.local_id = self.ours.identity
        if auth is None:
            self.eap = EapResponder(sa, message, peer)
        self.request = message
        return MORE

    def _verify(
        self,
        sa: IkeSa,
        message: Incoming,
        candidates: list[Connection],
        asked: Identity | None,
        peer: Identity,
        claimed: IdPayload,
        auth: AuthPayload,
    ) -> Connection:
        """The first candidate whose demands the peer's proof meets."""
        covered = proof.octets(sa, claimed)
        refusal: AuthenticationFailed | None = None
        for connection in candidates:
            try:
                proof.check(
                    sa,
                    connection,
                    ours=asked or connection.local.identity,
                    peer=peer,
                    auth=auth,
                    covered=covered,
                    payloads=message.payloads,
                )
                return connection
            except AuthenticationFailed as error:
                refusal = refusal or error
        assert refusal is not None
        raise refusal

    def _build_response(self, sa: IkeSa, message: Outgoing, now: float) -> Result:
        assert self.ours is not None
        if not self.identified:
            message.add(self.ours.payload, *self.ours.certificates)
            if self.eap is None or not self.eap.alone:
                message.add(self.ours.auth(sa, proof.octets(sa, self.ours.payload)))
            self.identified = True
        if self.eap is not None:
            if not self.eap.done:
                return self.eap.build(sa, message)
            self.eap.finish(sa, message, self.ours.payload)
        request, self.request = self.request, None
        assert request is not None
        if sa.connection.mobike and request.notify(NotifyType.MOBIKE_SUPPORTED) is not None:
            sa.features |= Feature.MOBIKE
            message.notify(NotifyType.MOBIKE_SUPPORTED)
        _established(sa, now)
        if request.get(SaPayload) is not None:
            _answer_child(sa, request, message, now)
        sa.finish_handshake()
        return DONE

    # The initiator is answered

    def _process_response(self, sa: IkeSa, message: Incoming, now: float) -> Result:
        rounds, connection = self.asked_by_eap, sa.connection
        if rounds is None or not rounds.begun:
            claimed = self._identify_peer(sa, message)
            if rounds is not None:
                rounds.begin(sa, claimed)
        if rounds is not None:
            if not rounds.done:
                packet = message.get(EapPayload)
                if packet is None:
                    raise self._refused(sa, message)
                self.believed = packet.packet[:1] != bytes([EapCode.FAILURE])
                rounds.take(message)
                return MORE
            if message.get(AuthPayload) is None:
                raise self._refused(sa, message)
            self.believed = True
            rounds.finish(sa, message)
        if connection.mobike and message.notify(NotifyType.MOBIKE_SUPPORTED) is not None:
            sa.features |= Feature.MOBIKE
        _established(sa, now)
        if self.child is not None:
            _accept_child(sa, self.child, message, now)
            self.child = None
        sa.finish_handshake()
        return DONE

    def _identify_peer(self, sa: IkeSa, message: Incoming) -> IdPayload:
        """The responder is who it should be, and proves it, unless EAP is to prove both."""
        assert self.ours is not None
        claimed = message.get(IdPayload, initiator=False)
        auth = message.get(AuthPayload)
        alone = self.asked_by_eap is not None and sa.connection.remote.auth in (Auth.NONE, Auth.EAP)
        if claimed is None or (auth is None and not alone):
            raise self._refused(sa, message)
        self.believed = True  # by the peer: it thinks that the IKE SA stands
        peer = Identity.from_wire(claimed.id_type, claimed.data)
        connection = sa.connection
        if not peer.matches(connection.remote.identity):
            raise AuthenticationFailed(
                f"the peer says it is '{peer}'; connection '{connection.name}' wants '{connection.remote.identity}'",
                "set remote.id to the identity of the peer, or let the peer use the one that is wanted",
                code="id_mismatch",
            )
        if auth is not None and not alone:
            proof.check(
                sa,
                connection,
                ours=self.ours.identity,
                peer=peer,
                auth=auth,
                covered=proof.octets(sa, claimed),
                payloads=message.payloads,
            )
        sa.remote_id = peer
        return claimed

    def _refused(self, sa: IkeSa, message: Incoming) -> PeerError:
        """The peer did not prove anything: it says why in one word, we add what we said."""
        error = message.error()
        assert self.ours is not None
        if error is None:
            return syntax_error("the answer to IKE_AUTH has neither IDr and AUTH nor an error")
        if error.type == NotifyType.AUTHENTICATION_FAILED:
            wanted = sa.connection.remote.identity or "anyone"
            return AuthenticationFailed(
                f"the peer refuses our authentication: we are '{self.ours.identity}' by "
                f"{sa.connection.local.auth.value} and want it to be '{wanted}'",
                "compare identities and secrets or certificates: the peer's log has its view",
            )
        notify = (
            NotifyType(error.type)
            if error.type in NotifyType._value2member_map_
            else NotifyType.INVALID_SYNTAX
        )
        return PeerError(notify, f"the peer refuses IKE_AUTH: {error.name}", advice="see the peer's log")

    def failed(self, sa: IkeSa, failure: Failure, now: float) -> None:
        """No proof, no IKE SA. A peer that believed us learns that we do not believe it."""
        if self.believed and sa.state is not State.CLOSED:
            sa.send_last(NotifyType.AUTHENTICATION_FAILED, now)
        if self.child is not None:
            sa.host.free_child_spi(self.child.spi)
        sa.close(Closed.FAILED, now, failure=failure)


def _answer_child(sa: IkeSa, request: Incoming, message: Outgoing, now: float) -> None:
    """The first child, as responder. RFC 7296 section 1.2: without it the IKE SA stands, and an error in its place."""
    assert sa.handshake is not None
    try:
        configure.grant(sa, request, message)
        agreed = negotiate.answer(sa, request, sa.connection.children, key_exchange=False)
    except PeerError as error:
        message.notify(error.notify, error.data)
        sa.child_failed("", codec.failure_of(error))
        return
    negotiate.add_answer(message, agreed)
    nonces = sa.handshake.nonce_i, sa.handshake.nonce_r
    negotiate.install(sa, agreed, now, nonce_i=nonces[0], nonce_r=nonces[1], initiator=False, outbound=True)


def _accept_child(sa: IkeSa, request: negotiate.ChildRequest, message: Incoming, now: float) -> None:
    """The first child, as initiator."""
    assert sa.handshake is not None
    try:
        error = message.error()
        if message.get(SaPayload) is None and error is not None:
            failure = negotiate.refusal(request, error)
        else:
            configure.take(sa, message)
            agreed = negotiate.accept(request, message)
            nonces = sa.handshake.nonce_i, sa.handshake.nonce_r
            negotiate.install(
                sa, agreed, now, nonce_i=nonces[0], nonce_r=nonces[1], initiator=True, outbound=True
            )
            return
    except PeerError as refused:
        failure = codec.failure_of(refused)
    sa.host.free_child_spi(request.spi)
    sa.child_failed(request.settings.name, failure)


def _is_first(sa: IkeSa, local: Identity, expected: Identity | None) -> bool:
    """Whether we have nothing else with this peer, so that it may forget what it has (RFC 7296 section 2.4)."""
    if not sa.host.settings.initial_contact or sa.connection.unique is Unique.NEVER or expected is None:
        return False
    return not sa.host.others(local, expected, sa)


def _established(sa: IkeSa, now: float) -> None:
    sa.established(now)
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


def _expected(connection: Connection) -> Identity | None:
    identity = connection.remote.identity
    return identity if identity is not None and not identity.is_pattern else None
