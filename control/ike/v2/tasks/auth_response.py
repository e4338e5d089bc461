"""IKE_AUTH as its responder; the exchanges are drawn in auth.py.

1 which connection, by the identities and the kind of proof, among those that fit the addresses  2 the peer's proof;
candidates are tried in their order until it meets one's demands  3 ours, and EAP where the peer wants that  4 is
another IKE SA of this peer in the way  5 addresses, the child SA
"""

from __future__ import annotations

from control.ike.errors import PeerError
from control.ike.identity import Identity
from control.ike.numbers import Exchange, NotifyType
from control.ike.settings import Choice, Connection
from control.ike.v2 import choice, codec, configure, negotiate, ppk, proof, unique
from control.ike.v2.eap_rounds import EapResponder
from control.ike.v2.lifetimes import ike_over_time
from control.ike.v2.parts import Feature, Timer
from control.ike.v2.proof import AuthenticationFailed
from control.ike.v2.sa import IkeSa
from control.ike.v2.task import DONE, MORE, Incoming, Outgoing, Result, Task
from control.ike.v2.tasks import mobike
from control.ike.v2.tasks.auth import established
from control.ike.wire.payloads import AuthPayload, IdPayload, SaPayload


class IkeAuthResponse(Task):
    """Authentication of both sides, by the responder."""

    __slots__ = ("first", "identified", "ours", "rounds")
    exchange = Exchange.IKE_AUTH
    name = "authentication"

    def __init__(self) -> None:
        super().__init__(initiator=False)
        self.first: Incoming | None = None  # the first request: what it asks for is done at the end
        self.ours: proof.Ours | None = None
        self.rounds: EapResponder | None = None  # where the peer proves itself by EAP
        self.identified = False  # we have said who we are

    def process(self, sa: IkeSa, message: Incoming, now: float) -> Result:
        """The next request."""
        if self.rounds is None:
            self._process_first(sa, message)
        else:
            self.rounds.take(sa, message)
            if self.rounds.done:
                self._check_unique(sa)
        return MORE

    def _process_first(self, sa: IkeSa, message: Incoming) -> None:
        handshake = sa.handshake
        assert handshake is not None
        if handshake.additional_groups:
            raise PeerError(
                NotifyType.INVALID_SYNTAX,
                "IKE_AUTH before all key exchanges that were agreed on are done (RFC 9370 section 2.2.2)",
            )
        self.first = message
        proof.take_certificate_requests(handshake, message)
        claimed = message.need(IdPayload, initiator=True)
        wanted = message.get(IdPayload, initiator=False)
        peer = Identity.from_wire(claimed.id_type, claimed.data)
        asked = Identity.from_wire(wanted.id_type, wanted.data) if wanted is not None else None
        sa.connection = self._choose(sa, message, asked, peer)
        sa.remote_id = peer
        self.ours = proof.ours(sa, peer, asked=asked)
        sa.local_id = self.ours.identity
        if message.get(AuthPayload) is None:
            self.rounds = EapResponder(sa, message, peer)
        else:
            self._check_unique(sa)

    def _choose(self, sa: IkeSa, message: Incoming, asked: Identity | None, peer: Identity) -> Connection:
        """The first candidate whose demands the peer's proof meets; without AUTH the first at all that does EAP."""
        handshake = sa.handshake
        assert handshake is not None
        auth = message.get(AuthPayload)
        kinds = proof.kinds_of(auth)
        candidates = choice.by_identities(handshake.connections, asked=asked, peer=peer, kinds=kinds)
        if not candidates:
            text, advice = choice.explain(handshake.connections, asked=asked, peer=peer, kinds=kinds)
            raise AuthenticationFailed(text, advice, code="id_mismatch")
        if auth is None:
            return candidates[0]
        refusal: AuthenticationFailed | None = None
        for connection in candidates:
            sa.connection = connection
            try:
                self._check_proof(sa, message, auth, ours=asked or connection.local.identity, peer=peer)
                return connection
            except AuthenticationFailed as error:
                refusal = refusal or error
        assert refusal is not None
        raise refusal

    def _check_proof(
        self, sa: IkeSa, message: Incoming, auth: AuthPayload, *, ours: Identity | None, peer: Identity
    ) -> None:
        """AUTH of the first request, with or without the PPK that it names."""
        claimed = message.need(IdPayload, initiator=True)
        mixed = ppk.asked(sa, message)
        auth = ppk.without(message, auth) if mixed is None else auth
        try:
            proof.check(
                sa,
                sa.connection,
                ours=ours,
                peer=peer,
                auth=auth,
                covered=proof.octets(sa, claimed, sk_p=mixed.pi if mixed is not None else None),
                payloads=message.payloads,
            )
        except AuthenticationFailed as error:
            if mixed is None or error.code != "authentication_failed":
                raise
            raise AuthenticationFailed(
                f"{error.text}, or its PPK is not ours", f"{error.advice}, and their PPKs"
            ) from None
        if mixed is not None:
            ppk.use(sa, mixed)

    def _check_unique(self, sa: IkeSa) -> None:
        assert self.first is not None
        unique.check(sa, initial_contact=self.first.notify(NotifyType.INITIAL_CONTACT) is not None)

    # The answers

    def build(self, sa: IkeSa, message: Outgoing, now: float) -> Result:
        """The response to the last request."""
        assert self.ours is not None
        if not self.identified:
            self.identified = True
            message.add(self.ours.payload, *self.ours.certificates)
            if self.rounds is None or not self.rounds.alone:
                message.add(self.ours.auth(sa, proof.octets(sa, self.ours.payload)))
        if self.rounds is not None:
            if not self.rounds.done:
                return self.rounds.build(sa, message)
            self.rounds.finish(sa, message, self.ours.payload)
        self._finish(sa, message, now)
        return DONE

    def _finish(self, sa: IkeSa, message: Outgoing, now: float) -> None:
        request, self.first = self.first, None
        assert request is not None
        connection = sa.connection
        if sa.features & Feature.PPK:
            message.notify(NotifyType.PPK_IDENTITY)
        if connection.mobike and request.notify(NotifyType.MOBIKE_SUPPORTED) is not None:
            mobike.check_no_nat(request)
            sa.features |= Feature.MOBIKE
            message.notify(NotifyType.MOBIKE_SUPPORTED)
        if connection.reauth_time:
            # RFC 4478 section 3: the initiator is to authenticate anew within this time.
            message.notify(NotifyType.AUTH_LIFETIME, int(connection.reauth_time).to_bytes(4, "big"))
        wants_child = request.get(SaPayload) is not None
        if not wants_child and connection.childless is Choice.NO:
            raise PeerError(
                NotifyType.NO_ADDITIONAL_SAS,
                f"the peer asks for no child SA; connection '{connection.name}' demands one (childless = never)",
            )
        established(sa, now)
        if Timer.REAUTH in sa.timers:
            # It is the initiator's turn first; ours comes only if that does not care.
            sa.timers[Timer.REAUTH] += ike_over_time(connection) / 2
        initial = request.notify(NotifyType.INITIAL_CONTACT) is not None
        unique.settle(sa, initial_contact=initial, now=now)
        if wants_child:
            _answer_child(sa, request, message, now)
        sa.finish_handshake()


def _answer_child(sa: IkeSa, request: Incoming, message: Outgoing, now: float) -> None:
    """RFC 7296 section 1.2: without the child the IKE SA stands, and an error is in the place of SA, TSi and TSr."""
    handshake = sa.handshake
    assert handshake is not None
    try:
        configure.grant(sa, request, message)
        agreed = negotiate.answer(sa, request, sa.connection.children, key_exchange=False)
    except PeerError as error:
        message.notify(error.notify, error.data)
        sa.child_failed("", codec.failure_of(error))
        return
    negotiate.add_answer(message, agreed)
    negotiate.install(
        sa,
        agreed,
        now,
        nonce_i=handshake.nonce_i,
        nonce_r=handshake.nonce_r,
        initiator=False,
        outbound=True,
    )
