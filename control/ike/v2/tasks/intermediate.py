"""IKE_INTERMEDIATE (RFC 9242) with additional key exchanges (RFC 9370), such as ML-KEM.

    HDR, SK {KEi(n)}  -->
                      <--  HDR, SK {KEr(n)}          keys change; the next exchange is under the new ones

One exchange for each method that was agreed on, in the order of their transform types. What the messages said
enters AUTH as IntAuth: a prf under the keys that protected them, over the message as if it had not been cut.
"""

from __future__ import annotations

from control.crypto import keys as derive
from control.crypto.errors import PublicValueError
from control.crypto.exchange import Offer, answer, offer
from control.ike.errors import PeerError
from control.ike.events import Closed, Failure
from control.ike.numbers import Exchange, Group, NotifyType, PayloadType, name_of
from control.ike.v2 import send
from control.ike.v2.keys import SaKeys
from control.ike.v2.sa import IkeSa
from control.ike.v2.task import DONE, MORE, Incoming, Outgoing, Result, Task
from control.ike.v2.tasks.init import set_keys
from control.ike.wire.header import HEADER_LENGTH, PAYLOAD_HEADER_LENGTH, Header
from control.ike.wire.message import build_sealed_prefix
from control.ike.wire.payloads import KePayload


class Intermediate(Task):
    """One or more IKE_INTERMEDIATE exchanges of an initiator, one of a responder."""

    __slots__ = ("offer", "public", "secret")
    exchange = Exchange.IKE_INTERMEDIATE
    name = "additional key exchange"

    def __init__(self, *, initiator: bool) -> None:
        super().__init__(initiator=initiator)
        self.offer: Offer | None = None
        self.public = b""
        self.secret = b""

    def build(self, sa: IkeSa, message: Outgoing, now: float) -> Result:
        """Our public value."""
        group = _group(sa)
        if self.initiator:
            self.offer = offer(group)
            message.add(KePayload(group=group, public=self.offer.public))
            return MORE
        message.add(KePayload(group=group, public=self.public))
        return DONE

    def built(self, sa: IkeSa, message: Outgoing, datagrams: list[bytes], now: float) -> None:
        """Our message enters IntAuth; with the response out, the responder's keys change."""
        handshake = sa.handshake
        if handshake is None or sa.keys is None:
            return
        number = handshake.intermediates + 1
        header = send.header_of(sa, message.exchange, number, response=not self.initiator)
        _authenticate(sa, header, message.first, message.plain, ours=True)
        if not self.initiator:
            self._next_keys(sa)

    def process(self, sa: IkeSa, message: Incoming, now: float) -> Result:
        """The peer's public value."""
        handshake = sa.handshake
        assert handshake is not None
        if not handshake.additional_groups:
            raise PeerError(
                NotifyType.INVALID_SYNTAX,
                "IKE_INTERMEDIATE, and no additional key exchange is left to be done",
            )
        if self.initiator:
            error = message.error()
            if error is not None:
                raise PeerError(
                    NotifyType.NO_PROPOSAL_CHOSEN,
                    f"the peer refuses the key exchange by {name_of(Group, _group(sa))}: {error.name}",
                    advice="see the peer's log",
                )
        key, group = message.need(KePayload), _group(sa)
        if key.group != group:
            raise PeerError(
                NotifyType.INVALID_SYNTAX,
                f"KE payload for {name_of(Group, key.group)} in IKE_INTERMEDIATE; "
                f"want {name_of(Group, group)}, which was agreed on",
            )
        try:
            if self.offer is not None:
                self.secret = self.offer.finish(key.public)
            else:
                self.public, self.secret = answer(group, key.public)
        except PublicValueError as refused:
            raise PeerError(NotifyType.INVALID_SYNTAX, f"KE payload: {refused}") from None
        _authenticate(sa, message.header, message.opened.first, message.opened.plain, ours=False)
        if not self.initiator:
            return MORE
        self._next_keys(sa)
        return MORE if handshake.additional_groups else DONE

    def _next_keys(self, sa: IkeSa) -> None:
        handshake, keys = sa.handshake, sa.keys
        assert handshake is not None and keys is not None
        seed = derive.skeyseed_update(keys.prf, keys.d, self.secret, handshake.nonce_i, handshake.nonce_r)
        self.secret, self.offer = b"", None
        handshake.additional_groups = handshake.additional_groups[1:]
        handshake.intermediates += 1
        set_keys(sa, seed)

    def failed(self, sa: IkeSa, failure: Failure, now: float) -> None:
        """No key, no IKE SA."""
        sa.close(Closed.FAILED, now, failure=failure)


def _group(sa: IkeSa) -> int:
    assert sa.handshake is not None
    return sa.handshake.additional_groups[0]


def _authenticate(sa: IkeSa, header: Header, first: int, plain: bytes, *, ours: bool) -> None:
    """One message more in IntAuth of its side (RFC 9242 section 3.3.2)."""
    handshake, keys = sa.handshake, sa.keys
    assert handshake is not None and isinstance(keys, SaKeys)
    # As if it was neither cut nor padded: lengths count headers and plaintext only.
    prefix = build_sealed_prefix(header, first, len(plain))
    assert len(prefix) == HEADER_LENGTH + PAYLOAD_HEADER_LENGTH and prefix[16] == PayloadType.SK
    if ours == sa.initiator:
        handshake.intermediate_i = derive.intermediate_auth(
            keys.prf, keys.pi, handshake.intermediate_i, prefix, plain
        )
    else:
        handshake.intermediate_r = derive.intermediate_auth(
            keys.prf, keys.pr, handshake.intermediate_r, prefix, plain
        )
