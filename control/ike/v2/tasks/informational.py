"""INFORMATIONAL as responder (RFC 7296 section 1.4): deletes, MOBIKE, a peer's error, or nothing at all.

Every request gets an answer, an empty one too: that is how a peer knows that we live (section 2.4).
"""

from __future__ import annotations

from control.ike.errors import LocalError
from control.ike.events import Closed, Failure
from control.ike.numbers import Exchange, NotifyType, Protocol
from control.ike.v2.child import spi_bytes
from control.ike.v2.parts import Feature
from control.ike.v2.sa import IkeSa
from control.ike.v2.states import State
from control.ike.v2.task import DONE, Incoming, Outgoing, Result, Task
from control.ike.v2.tasks import mobike, renew
from control.ike.v2.tasks.delete import closed_by_peer, ike_closed_by_peer
from control.ike.v2.tasks.rekey_ike import settle
from control.ike.wire.payloads import DeletePayload, NotifyPayload, Payload

MAX_STRANGERS = 16  # SPIs in a Delete payload that we do not know, and look at all the same
# Errors by which a peer ends the IKE SA: RFC 7296 section 2.21.2, where IKE_AUTH's answer did not please it.
_FATAL = frozenset(
    (NotifyType.AUTHENTICATION_FAILED, NotifyType.INVALID_SYNTAX, NotifyType.UNSUPPORTED_CRITICAL_PAYLOAD)
)


class Informational(Task):
    """The peer's INFORMATIONAL request."""

    exchange = Exchange.INFORMATIONAL
    name = "informational"

    def __init__(self, *, initiator: bool = False) -> None:
        super().__init__(initiator=initiator)
        if initiator:
            raise LocalError("INFORMATIONAL requests of ours have tasks of their own")
        self.reply: list[Payload] = []
        self.over = False  # the peer deletes the IKE SA
        self.failure: Failure | None = None  # the peer gives the IKE SA up

    def process(self, sa: IkeSa, message: Incoming, now: float) -> Result:
        """Take in all payloads, in their order."""
        deletes = message.all(DeletePayload)
        self.over = any(payload.protocol == Protocol.IKE for payload in deletes)
        if sa.state.half_open:
            self._half_open(sa, message)
            return DONE
        if not self.over:
            settle(sa, now)
            if sa.features & Feature.MOBIKE:
                mobike.check_no_nat(message)
            for payload in deletes:
                if payload.protocol in (Protocol.ESP, Protocol.AH):
                    self._delete(sa, payload, now)
            self._errors(sa, message)
            self.reply += mobike.answer(sa, message, now)
            renew.lifetime_announced(sa, renew.announced_lifetime(message), now)
        return DONE

    def _half_open(self, sa: IkeSa, message: Incoming) -> None:
        """The initiator did not accept our answer to IKE_AUTH, or thought better of it."""
        error = message.error()
        if self.over or error is not None:
            name = error.name if error is not None else "a delete"
            self.over = False
            # What EAP has told the peer, which needs no answer but this one, says more.
            self.failure = sa.last_error or Failure(
                code="refused_by_peer",
                text=f"the peer ended the handshake with {name}",
                advice="see the peer's log",
            )

    def _delete(self, sa: IkeSa, payload: DeletePayload, now: float) -> None:
        protocol = payload.protocol
        ours = {child.spec.spi_out for child in sa.children.values() if child.spec.protocol == protocol}
        named = dict.fromkeys(int.from_bytes(spi, "big") for spi in payload.spis)
        # A payload has room for 16,000 SPIs; few of those that we do not know can be of a response on its way.
        strangers = [spi for spi in named if spi not in ours][:MAX_STRANGERS]
        closed = [
            closed_by_peer(sa, protocol, spi, now)
            for spi in (*strangers, *(spi for spi in named if spi in ours))
        ]
        pairs = tuple(spi_bytes(spi) for spi in closed if spi is not None)
        if pairs:
            self.reply.append(DeletePayload(protocol=protocol, spis=pairs))

    def _errors(self, sa: IkeSa, message: Incoming) -> None:
        for notify in message.all(NotifyPayload):
            if notify.is_error:
                self.failure = self.failure or _failure(notify)
                sa.note("warning", f"the peer reports {notify.name}")

    def build(self, sa: IkeSa, message: Outgoing, now: float) -> Result:
        """Our halves of what was deleted, and what MOBIKE answers."""
        message.add(*self.reply)
        return DONE

    def built(self, sa: IkeSa, message: Outgoing, datagrams: list[bytes], now: float) -> None:
        """The answer is out: now it may be over."""
        if self.over:
            ike_closed_by_peer(sa, now)
        elif self.failure is not None:
            sa.close(Closed.FAILED, now, failure=self.failure, linger=True)
        elif sa.state is not State.CLOSED:
            mobike.answered(sa, now)


def _failure(notify: NotifyPayload) -> Failure | None:
    if notify.type not in _FATAL:
        return None
    return Failure(
        code=notify.name.lower(),
        text=f"the peer closed the IKE SA with {notify.name}: it did not accept how we proved ourselves, or a message",
        advice="see the peer's log for the reason",
    )
