"""The key exchanges of one CREATE_CHILD_SA: the first in it, the others by IKE_FOLLOWUP_KE (RFC 9370 section 2.2.4).

    initiator   begin -> KE payload; first(response); then next_request/next_response until `open` is false
    responder   answer_first -> KE payload; then answer_next until `open` is false

`secrets` are SK(0), SK(1)... in the order in which the keys are made of them. The link of ADDITIONAL_KEY_EXCHANGE is
the responder's; the initiator gives it back as it came. One that does not go on is let go after a minute
(`create_child.give_up_followups`).
"""

from __future__ import annotations

from control.crypto import exchange
from control.crypto.errors import CryptoError
from control.ike.errors import PeerError
from control.ike.numbers import Group, NotifyType, name_of
from control.ike.v2.task import Incoming, Outgoing
from control.ike.wire.payloads import KePayload, NotifyPayload


class Rounds:
    """Both roles; an object of each exchange."""

    __slots__ = ("_begun", "_left", "link", "secrets")

    def __init__(self) -> None:
        self._begun: exchange.Offer | None = None
        self._left: list[int] = []  # methods whose exchange is still to come
        self.secrets: list[bytes] = []
        self.link = b""

    @property
    def open(self) -> bool:
        """True while exchanges are still to come."""
        return bool(self._left)

    # Initiator

    def begin(self, group: int, message: Outgoing) -> None:
        """Our first KE payload; without a group there is none."""
        self._begun = None
        if group != Group.NONE:
            self._begun = exchange.offer(group)
            message.add(KePayload(group=group, public=self._begun.public))

    def first(self, message: Incoming, group: int, additional: tuple[int, ...]) -> None:
        """Take in the response of CREATE_CHILD_SA, which chose these methods; raises PeerError."""
        if group != Group.NONE:
            self._finish(message, group)
        elif message.all(KePayload):
            raise PeerError(
                NotifyType.INVALID_SYNTAX, "the response has a KE payload, and no key exchange was chosen"
            )
        self._left = list(additional)
        if self._left:
            self.link = _link(message)

    def next_request(self, message: Outgoing) -> None:
        """Fill in an IKE_FOLLOWUP_KE request."""
        self._begun = exchange.offer(self._left[0])
        message.add(KePayload(group=self._left[0], public=self._begun.public))
        message.notify(NotifyType.ADDITIONAL_KEY_EXCHANGE, self.link)

    def next_response(self, message: Incoming) -> None:
        """Take in an IKE_FOLLOWUP_KE response; raises PeerError."""
        self._finish(message, self._left[0])
        del self._left[0]
        if self._left:
            self.link = _link(message)

    def _finish(self, message: Incoming, group: int) -> None:
        payload = message.need(KePayload)
        if self._begun is None or payload.group != group or self._begun.group != group:
            sent = name_of(Group, self._begun.group) if self._begun is not None else "no key exchange"
            raise PeerError(
                NotifyType.INVALID_SYNTAX,
                f"the response's KE payload is for {name_of(Group, payload.group)}; {name_of(Group, group)} was chosen "
                f"and {sent} sent",
            )
        try:
            self.secrets.append(self._begun.finish(payload.public))
        except CryptoError as error:
            raise PeerError(NotifyType.INVALID_SYNTAX, str(error)) from error
        self._begun = None

    # Responder

    def answer_first(self, request: Incoming, group: int, additional: tuple[int, ...]) -> KePayload | None:
        """Our KE payload for the request of CREATE_CHILD_SA; raises PeerError."""
        self._left = list(additional)
        return self._answer(request, group) if group != Group.NONE else None

    def answer_next(self, request: Incoming) -> KePayload:
        """Our KE payload for an IKE_FOLLOWUP_KE request; raises PeerError."""
        payload = self._answer(request, self._left[0])
        del self._left[0]
        return payload

    def _answer(self, request: Incoming, group: int) -> KePayload:
        payload = request.need(KePayload)
        if payload.group != group:
            raise PeerError(
                NotifyType.INVALID_KE_PAYLOAD,
                f"the request's KE payload is for {name_of(Group, payload.group)}; want {name_of(Group, group)}",
                data=group.to_bytes(2, "big"),
            )
        try:
            public, secret = exchange.answer(group, payload.public)
        except CryptoError as error:
            raise PeerError(NotifyType.INVALID_SYNTAX, str(error)) from error
        self.secrets.append(secret)
        return KePayload(group=group, public=public)


def link_of(request: Incoming) -> bytes:
    """The link in an IKE_FOLLOWUP_KE request; raises PeerError without one."""
    notify: NotifyPayload | None = request.notify(NotifyType.ADDITIONAL_KEY_EXCHANGE)
    if notify is None:
        raise PeerError(
            NotifyType.INVALID_SYNTAX,
            "IKE_FOLLOWUP_KE without ADDITIONAL_KEY_EXCHANGE; want it (RFC 9370 section 2.2.4)",
        )
    return notify.data


def _link(response: Incoming) -> bytes:
    notify: NotifyPayload | None = response.notify(NotifyType.ADDITIONAL_KEY_EXCHANGE)
    if notify is None:
        raise PeerError(
            NotifyType.INVALID_SYNTAX,
            "the response ends the key exchange, and additional ones were agreed on; want ADDITIONAL_KEY_EXCHANGE",
        )
    return notify.data
