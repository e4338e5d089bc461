"""IKE_SA_INIT (RFC 7296 section 1.2): algorithms, Diffie-Hellman, nonces; and what both sides can do.

    HDR, [N(COOKIE)], SAi1, KEi, Ni, notifications  -->
                                                    <--  HDR, SAr1, KEr, Nr, notifications
    or                                              <--  HDR, N(COOKIE) or N(INVALID_KE_PAYLOAD), or both in turn

A responder's half of it makes no IKE SA known before it succeeds: v2/strangers.py runs it and answers what it
refuses without keeping anything. Errors that come in clear could be anyone's (section 2.21.1), but only of someone
who has seen our random SPI; they end the attempt, so that a user is told at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from control.crypto import keys as derive
from control.crypto.auth import HASHES
from control.crypto.errors import PublicValueError
from control.crypto.exchange import Offer, answer, is_supported, offer
from control.crypto.prf import prf
from control.crypto.sk import Protection
from control.ike.errors import PeerError, syntax_error
from control.ike.events import Closed, Failure
from control.ike.numbers import (
    Exchange,
    Group,
    HashAlgorithm,
    NotifyType,
    TransformType,
    name_of,
)
from control.ike.proposal import NoProposalChosen, Proposal, Suite, select, suite_of
from control.ike.settings import Choice, Connection
from control.ike.v2 import choice, nat
from control.ike.v2.handshake import Handshake
from control.ike.v2.keys import SaKeys
from control.ike.v2.parts import Feature
from control.ike.v2.proof import certificate_request, take_certificate_requests
from control.ike.v2.sa import IkeSa
from control.ike.v2.states import Step, advance
from control.ike.v2.task import DONE, MORE, Ignored, Incoming, Outgoing, Result, Task
from control.ike.wire.payloads import KePayload, NoncePayload, SaPayload
from control.ike.wire.proposal import OfferedProposal

NONCE_LENGTH = 32  # bytes; RFC 7296 section 2.10 wants half the key size of the PRF, at least 16
_KNOWN_HASHES = frozenset(map(int, HashAlgorithm))
_RESTARTS = 6  # cookies and other groups that an initiator follows


class IkeInit(Task):
    """The first exchange of an IKE SA."""

    __slots__ = (
        "candidates",
        "cookie",
        "group",
        "nonce",
        "number",
        "offer",
        "public",
        "restarts",
        "secret",
        "tried",
    )
    exchange = Exchange.IKE_SA_INIT
    name = "key exchange"

    def __init__(self, *, initiator: bool, candidates: Sequence[Connection] = ()) -> None:
        """`candidates`, of a responder, are the connections whose addresses fit, at least one."""
        super().__init__(initiator=initiator)
        self.candidates = candidates
        self.cookie = b""
        self.nonce = b""
        self.group = 0  # of the initiator's KE payload
        self.number = 0  # of the proposal that the responder chose
        self.offer: Offer | None = None  # the initiator's half of the key exchange
        self.public = b""  # the responder's
        self.secret = b""
        self.tried: set[int] = set()
        self.restarts = 0

    # The request

    def build(self, sa: IkeSa, message: Outgoing, now: float) -> Result:
        """The request, again with what a response asked for; or the response."""
        if self.initiator:
            self._build_request(sa, message)
            return MORE
        self._build_response(sa, message)
        return DONE

    def _build_request(self, sa: IkeSa, message: Outgoing) -> None:
        connection = sa.connection
        if sa.handshake is None:
            sa.handshake = Handshake()
        if not self.nonce:
            self.nonce = sa.host.random(NONCE_LENGTH)
            self.group = _first_group(connection.proposals)
        if self.offer is None:
            self.offer = offer(self.group)
        if self.cookie:
            # RFC 7296 section 2.6: the cookie is the first payload, all else as it was.
            message.notify(NotifyType.COOKIE, self.cookie)
        message.add(
            SaPayload(
                proposals=tuple(
                    each.to_wire(number) for number, each in enumerate(connection.proposals, start=1)
                )
            ),
            KePayload(group=self.group, public=self.offer.public),
            NoncePayload(data=self.nonce),
        )
        _add_notifications(sa, message, connection, initiator=True)

    def built(self, sa: IkeSa, message: Outgoing, datagrams: list[bytes], now: float) -> None:
        """Our message as sent enters AUTH (RFC 7296 section 2.15)."""
        if sa.handshake is None:
            return
        if self.initiator:
            sa.handshake.request = datagrams[0]
        else:
            sa.handshake.response = datagrams[0]

    def process(self, sa: IkeSa, message: Incoming, now: float) -> Result:
        """The request, as responder; or the response, which may ask for another request."""
        if self.initiator:
            return self._process_response(sa, message, now)
        self._process_request(sa, message)
        return MORE

    # The responder

    def _process_request(self, sa: IkeSa, message: Incoming) -> None:
        handshake = sa.handshake = Handshake()
        offered = message.need(SaPayload).proposals
        key = message.need(KePayload)
        handshake.nonce_i = message.need(NoncePayload).data
        suite, number, connection = _choose(self.candidates, offered, key.group)
        if suite.group != key.group:
            # RFC 7296 section 1.2: the initiator guessed another group than the one we choose.
            raise PeerError(
                NotifyType.INVALID_KE_PAYLOAD,
                f"the peer's KE payload is for {name_of(Group, key.group)}; we choose {suite}",
                data=suite.group.to_bytes(2, "big"),
            )
        sa.peer_spi = message.header.initiator_spi
        sa.connection = connection
        sa.suite = suite
        handshake.connections = tuple(each for each in self.candidates if choice.accepts(each, suite))
        handshake.nonce_r = sa.host.random(NONCE_LENGTH)
        handshake.request = message.data
        try:
            self.public, self.secret = answer(key.group, key.public)
        except PublicValueError as error:
            raise PeerError(NotifyType.INVALID_SYNTAX, f"KE payload: {error}") from None
        self.number = number
        _take_notifications(sa, message)
        self._derive(sa, self.secret)

    def _build_response(self, sa: IkeSa, message: Outgoing) -> None:
        assert sa.suite is not None and sa.handshake is not None
        message.add(
            SaPayload(proposals=(sa.suite.to_wire(self.number),)),
            KePayload(group=sa.suite.group, public=self.public),
            NoncePayload(data=sa.handshake.nonce_r),
        )
        _add_notifications(sa, message, sa.connection, initiator=False)
        self.secret = self.public = b""

    # The initiator

    def _process_response(self, sa: IkeSa, message: Incoming, now: float) -> Result:
        cookie = message.notify(NotifyType.COOKIE)
        if cookie is not None:
            if not 1 <= len(cookie.data) <= 64:
                raise syntax_error(f"cookie of {len(cookie.data)} bytes; want 1 to 64")
            self.cookie = cookie.data
            return self._restart(sa, "a cookie")
        wanted = message.notify(NotifyType.INVALID_KE_PAYLOAD)
        if wanted is not None:
            return self._other_group(sa, wanted.data)
        error = message.error()
        if error is not None:
            raise _refused(error.type, error.name, sa.connection)
        self._accept(sa, message)
        self._float(sa)
        from control.ike.v2.tasks.auth import IkeAuth
        from control.ike.v2.tasks.intermediate import Intermediate

        assert sa.handshake is not None
        if sa.handshake.additional_groups:
            sa.queue(Intermediate(initiator=True), now)
        sa.queue(IkeAuth(), now)
        return DONE

    def _restart(self, sa: IkeSa, why: str) -> Result:
        self.restarts += 1
        if self.restarts > _RESTARTS:
            raise PeerError(
                NotifyType.INVALID_SYNTAX,
                f"the peer asks for {why} again and again",
                advice="see the peer's log",
            )
        sa.window.restart()
        return MORE

    def _other_group(self, sa: IkeSa, data: bytes) -> Result:
        """INVALID_KE_PAYLOAD: the group that the peer chose of our proposals (RFC 7296 section 1.2)."""
        if len(data) != 2:
            raise syntax_error(f"INVALID_KE_PAYLOAD with {len(data)} bytes; want 2, the group")
        group = int.from_bytes(data, "big")
        if self.tried and group == self.group:
            # The answer to our first request again, which was repeated on its way there or back.
            raise Ignored(f"{name_of(Group, group)} is asked for once more")
        self.tried.add(self.group)
        proposed = {each for proposal in sa.connection.proposals for each in proposal.groups}
        if group not in proposed or group in self.tried:
            names = ", ".join(name_of(Group, each) for each in sorted(proposed))
            raise PeerError(
                NotifyType.NO_PROPOSAL_CHOSEN,
                f"the peer wants a key exchange by {name_of(Group, group)}; we proposed {names}"
                + (" and tried it" if group in self.tried else ""),
                advice="give both sides a common key exchange",
            )
        self.group, self.offer = group, None
        return self._restart(sa, "another group")

    def _accept(self, sa: IkeSa, message: Incoming) -> None:
        assert sa.handshake is not None and self.offer is not None
        answers = message.need(SaPayload).proposals
        key = message.need(KePayload)
        if len(answers) != 1:
            raise syntax_error(f"SA payload with {len(answers)} proposals in a response; want 1")
        if message.header.responder_spi == bytes(8):
            raise syntax_error("responder's SPI of zero in the answer to IKE_SA_INIT")
        suite = suite_of(answers[0], sa.connection.proposals)
        if key.group != self.group or suite.group != self.group:
            raise syntax_error(
                f"KE payload for {name_of(Group, key.group)} and a proposal with {name_of(Group, suite.group)}; "
                f"want {name_of(Group, self.group)}, which was sent"
            )
        try:
            secret = self.offer.finish(key.public)
        except PublicValueError as error:
            raise PeerError(NotifyType.INVALID_SYNTAX, f"KE payload: {error}") from None
        sa.peer_spi = message.header.responder_spi
        sa.suite = suite
        sa.handshake.nonce_i = self.nonce
        sa.handshake.nonce_r = message.need(NoncePayload).data
        sa.handshake.response = message.data
        _take_notifications(sa, message)
        self._derive(sa, secret)

    def _float(self, sa: IkeSa) -> None:
        # RFC 7296 section 2.23, RFC 4555 section 3.3: with a NAT, or for MOBIKE, IKE_AUTH goes to port 4500.
        if sa.encapsulated or (sa.connection.mobike and sa.features & Feature.NAT_DETECTION):
            sa.path = nat.floated(sa.path, sa.host.settings.nat_ports)

    def _derive(self, sa: IkeSa, secret: bytes) -> None:
        handshake, suite = sa.handshake, sa.suite
        assert handshake is not None and suite is not None
        handshake.additional_groups = suite.additional_groups
        function = prf(suite.prf)
        seed = derive.skeyseed(function, handshake.nonce_i, handshake.nonce_r, secret)
        set_keys(sa, seed)
        sa.state = advance(sa.state, Step.KEYED)

    def failed(self, sa: IkeSa, failure: Failure, now: float) -> None:
        """No key exchange, no IKE SA."""
        sa.close(Closed.FAILED, now, failure=failure)


def set_keys(sa: IkeSa, seed: bytes) -> None:
    """New keys of an IKE SA in its handshake, from SKEYSEED (RFC 7296 section 2.14, RFC 9370 section 2.2.2)."""
    handshake, suite = sa.handshake, sa.suite
    assert handshake is not None and suite is not None
    function = prf(suite.prf)
    protection = _protection(suite.encr, suite.key_bits, suite.integ)
    secrets = derive.ike_keys(
        function,
        protection,
        seed,
        handshake.nonce_i,
        handshake.nonce_r,
        sa.spi_initiator,
        sa.spi_responder,
    )
    sa.keys = SaKeys(function, protection, secrets, initiator=sa.initiator, random=sa.host.random)
    sa.export_keys(secrets)


# Of all IKE SAs with the same algorithms: the lengths that follow from them are worked out once.
_protection = lru_cache(maxsize=64)(Protection)


def _first_group(proposals: tuple[Proposal, ...]) -> int:
    for proposal in proposals:
        for group in proposal.groups:
            if is_supported(group):
                return group
    raise PeerError(NotifyType.NO_PROPOSAL_CHOSEN, "no proposal of the connection has a key exchange")


def _choose(
    candidates: Sequence[Connection], offered: Sequence[OfferedProposal], group: int
) -> tuple[Suite, int, Connection]:
    """The first connection, the best first, that has a proposal in common with the peer."""
    refusal: NoProposalChosen | None = None
    for connection in candidates:
        try:
            suite, number = select(
                offered,
                connection.proposals,
                prefer_group=group,
                whose=f"connection '{connection.name}'",
            )
            return suite, number, connection
        except NoProposalChosen as error:
            refusal = refusal or error
    assert refusal is not None
    raise refusal


def _refused(kind: int, name: str, connection: Connection) -> PeerError:
    """The peer's error in words: its view is only in its log."""
    if kind == NotifyType.NO_PROPOSAL_CHOSEN:
        ours = ", ".join(map(str, connection.proposals))
        return PeerError(
            NotifyType.NO_PROPOSAL_CHOSEN,
            f"the peer accepts none of our IKE proposals: we offer {ours}",
            advice="compare with the peer's proposals, or its addresses: its log has what it accepts",
        )
    notify = NotifyType(kind) if kind in NotifyType._value2member_map_ else NotifyType.INVALID_SYNTAX
    return PeerError(notify, f"the peer refuses IKE_SA_INIT: {name}", advice="see the peer's log")


def _add_notifications(sa: IkeSa, message: Outgoing, connection: Connection, *, initiator: bool) -> None:
    """What we can do. A responder tells what the initiator told, too."""
    force = connection.encap
    source, destination = nat.detections(
        sa.spi_initiator, sa.spi_responder, sa.path, force=force, random=sa.host.random
    )
    if initiator or sa.features & Feature.NAT_DETECTION:
        message.notify(NotifyType.NAT_DETECTION_SOURCE_IP, source)
        message.notify(NotifyType.NAT_DETECTION_DESTINATION_IP, destination)
    if connection.fragmentation is not Choice.NO and (initiator or sa.features & Feature.FRAGMENTATION):
        message.notify(NotifyType.IKEV2_FRAGMENTATION_SUPPORTED)
    if initiator or sa.features & Feature.SIGNATURE_HASHES:
        hashes = b"".join(number.to_bytes(2, "big") for number in HASHES)
        message.notify(NotifyType.SIGNATURE_HASH_ALGORITHMS, hashes)
    if not initiator and connection.childless is not Choice.NO:
        message.notify(NotifyType.CHILDLESS_IKEV2_SUPPORTED)
    wanted = _wants_intermediate(connection) if initiator else bool(sa.suite and sa.suite.additional_groups)
    if wanted:
        message.notify(NotifyType.INTERMEDIATE_EXCHANGE_SUPPORTED)
    if not initiator:
        requests = certificate_request(sa)
        if requests is not None:
            message.add(requests)
    if connection.ppk_id is not None and (initiator or (sa.handshake and sa.handshake.ppk)):
        message.notify(NotifyType.USE_PPK)


def _wants_intermediate(connection: Connection) -> bool:
    return any(
        transform.type >= TransformType.ADDKE1
        for proposal in connection.proposals
        for transform in proposal.transforms
    )


def _take_notifications(sa: IkeSa, message: Incoming) -> None:
    """What the peer can do, and whether a NAT is between us."""
    connection, handshake = sa.connection, sa.handshake
    assert handshake is not None
    sources = [each.data for each in message.notifies(NotifyType.NAT_DETECTION_SOURCE_IP)]
    destinations = [each.data for each in message.notifies(NotifyType.NAT_DETECTION_DESTINATION_IP)]
    if sources and destinations:
        header = message.header
        sa.features |= Feature.NAT_DETECTION
        sa.nat_local, sa.nat_remote = nat.found(
            header.initiator_spi, header.responder_spi, message.path, sources, destinations
        )
        if connection.encap:
            sa.features |= Feature.ENCAPSULATION
    both = (
        message.notify(NotifyType.IKEV2_FRAGMENTATION_SUPPORTED) and connection.fragmentation is not Choice.NO
    )
    if both or connection.fragmentation is Choice.FORCE:
        sa.features |= Feature.FRAGMENTATION
    hashes = message.notify(NotifyType.SIGNATURE_HASH_ALGORITHMS)
    if hashes is not None:
        numbers = (hashes.data[at : at + 2] for at in range(0, len(hashes.data) - 1, 2))
        # Only those that somebody knows: a peer may send 32,000 others, to be kept for nothing.
        sa.peer_hashes = _KNOWN_HASHES.intersection(int.from_bytes(number, "big") for number in numbers)
        sa.features |= Feature.SIGNATURE_HASHES
    if message.notify(NotifyType.INTERMEDIATE_EXCHANGE_SUPPORTED):
        sa.features |= Feature.INTERMEDIATE
    if sa.suite is not None and sa.suite.additional_groups and not sa.features & Feature.INTERMEDIATE:
        raise syntax_error(
            "additional key exchanges without INTERMEDIATE_EXCHANGE_SUPPORTED (RFC 9370 section 2.2.1)"
        )
    take_certificate_requests(handshake, message)
    handshake.childless = message.notify(NotifyType.CHILDLESS_IKEV2_SUPPORTED) is not None
    handshake.ppk = connection.ppk_id is not None and message.notify(NotifyType.USE_PPK) is not None
