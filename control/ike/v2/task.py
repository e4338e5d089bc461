"""What a protocol act is: two verbs, `build` and `process`, and three results, DONE, MORE and FAIL.

    initiator                                        responder
    sa.queue(task)                                   respond.responder_task(sa, request) -> task
    build    MORE: send, and wait for the response   process  (result is not looked at, except FAIL)
             DONE: nothing to send, it is over       build    DONE: send the response, it is over
             FAIL: given up and reported                      MORE: send; the next request is this task's, too
    process  DONE: over                                       FAIL: send; it is over
             MORE: `build` makes the next request
             FAIL: given up and reported

One request of ours is under way at a time (window of 1, RFC 7296 section 2.3); others wait in `sa.queue`. A task
holds what one exchange needs and nothing of it outlives the task; what is agreed on goes into the IkeSa.

PeerError out of `process` or `build`: a responder answers with its notify alone, and the task is over; an
initiator's task is over after its `failed` was called. Either is noted with its text. A message that must not be
answered at all raises Ignored. Anything else that is raised is a bug: it is noted, and the IKE SA is closed.
"""

from __future__ import annotations

import abc
import enum
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from control.ike.events import PeerPath
from control.ike.numbers import Exchange, NotifyType
from control.ike.wire.header import Header
from control.ike.wire.message import AnyPayload, find_error, first_of, need
from control.ike.wire.payloads import NotifyPayload, Payload

if TYPE_CHECKING:
    from control.ike.events import Failure
    from control.ike.v2.codec import Opened
    from control.ike.v2.sa import IkeSa


class Result(enum.Enum):
    """How a verb went."""

    DONE = "done"
    MORE = "more"
    FAIL = "fail"


DONE, MORE, FAIL = Result.DONE, Result.MORE, Result.FAIL


class Ignored(Exception):
    """This message gets no answer and changes nothing; the text says why."""


class Incoming:
    """A message of the peer, opened and parsed. `data` is the datagram as it came (of a fragmented one, the last)."""

    __slots__ = ("_by_class", "_notifies", "data", "header", "opened", "path", "payloads")

    def __init__(
        self, header: Header, payloads: Sequence[Payload], *, path: PeerPath, data: bytes, opened: Opened
    ) -> None:
        self.header = header
        self.payloads = payloads  # in clear
        self.path = path
        self.data = data
        self.opened = opened  # the payloads' bytes: what RFC 9242 authenticates
        self._notifies: dict[int, list[NotifyPayload]] = {}
        self._by_class: dict[type, list[Any]] = {}
        for payload in payloads:
            self._by_class.setdefault(type(payload), []).append(payload)
            if isinstance(payload, NotifyPayload):
                self._notifies.setdefault(payload.type, []).append(payload)

    def all(self, kind: type[AnyPayload]) -> tuple[AnyPayload, ...]:
        """Payloads of one class, in their order."""
        return tuple(self._by_class.get(kind, ()))

    def get(self, kind: type[AnyPayload], *, initiator: bool | None = None) -> AnyPayload | None:
        """The payload of a class, if there is one; `initiator` tells IDi and TSi from IDr and TSr."""
        return first_of(self._by_class.get(kind, ()), kind, initiator=initiator)

    def need(self, kind: type[AnyPayload], *, initiator: bool | None = None) -> AnyPayload:
        """The payload of a class that must be there exactly once; PeerError (INVALID_SYNTAX) else."""
        return need(self._by_class.get(kind, ()), kind, initiator=initiator)

    def notify(self, kind: NotifyType) -> NotifyPayload | None:
        """The first notification of a type."""
        found = self._notifies.get(kind)
        return found[0] if found else None

    def notifies(self, kind: NotifyType) -> list[NotifyPayload]:
        """All notifications of a type."""
        return self._notifies.get(kind, [])

    def error(self) -> NotifyPayload | None:
        """The first notification that reports an error (RFC 7296 section 3.10.1)."""
        return find_error(self.payloads)


class Outgoing:
    """A message in the making. v2/send.py numbers, protects, cuts and sends it."""

    __slots__ = ("exchange", "first", "payloads", "plain")

    def __init__(self, exchange: int) -> None:
        self.exchange = exchange
        self.payloads: list[Payload] = []
        self.first = 0  # set by sealing: the first payload's type, and all of them in clear
        self.plain = b""

    def add(self, *payloads: Payload) -> None:
        """Append payloads."""
        self.payloads.extend(payloads)

    def notify(self, kind: NotifyType, data: bytes = b"", *, protocol: int = 0, spi: bytes = b"") -> None:
        """Append a notification."""
        self.payloads.append(NotifyPayload(type=kind, data=data, protocol=protocol, spi=spi))


class Task(abc.ABC):
    """One protocol act, by the initiator or the responder of its exchange (not of the IKE SA)."""

    __slots__ = ("initiator",)
    exchange: Exchange  # of the next request; a class attribute, or set by a task with several
    name = "act"  # for the log
    ends = False  # it ends the IKE SA

    def __init__(self, *, initiator: bool) -> None:
        self.initiator = initiator

    @abc.abstractmethod
    def build(self, sa: IkeSa, message: Outgoing, now: float) -> Result:
        """Fill in the next request or the response."""

    @abc.abstractmethod
    def process(self, sa: IkeSa, message: Incoming, now: float) -> Result:
        """Take the peer's request or response in."""

    def way(self, sa: IkeSa, repeats: int) -> PeerPath:
        """By which way a request goes that has been repeated `repeats` times."""
        pending = sa.window.pending
        return sa.path if pending is None else pending.path

    def failed(self, sa: IkeSa, failure: Failure, now: float) -> None:  # noqa: B027 - few have something to undo
        """As initiator: the peer's answer was no good, or the IKE SA ended first. Report it, undo what was begun."""

    def abandoned(self, sa: IkeSa) -> None:  # noqa: B027 - few have reserved something
        """As initiator: the peer never answered, and another attempt is made on another IKE SA."""

    def built(  # noqa: B027 - few look
        self, sa: IkeSa, message: Outgoing, datagrams: list[bytes], now: float
    ) -> None:
        """What `build` filled in, as it goes out (IKE_SA_INIT's octets enter AUTH)."""
