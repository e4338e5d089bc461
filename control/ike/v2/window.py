"""Message IDs (RFC 7296 sections 2.1 to 2.3): one request under way in either direction, repeated bit for bit.

Ours: `Window.pending` is the request that awaits its response, with the very datagrams to send again. Theirs: the
response to the last request is kept whole, because a repeated request must get the identical response. A repetition
is recognised by its bytes or, cut into other fragments, by being sealed as the request was (v2/receive.py), so a
stranger who has seen an SPI cannot have old responses sent about.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from control.ike.errors import LocalError
from control.ike.events import PeerPath
from control.ike.settings import Retransmission

if TYPE_CHECKING:
    from control.crypto.sk import Opener


class Arrival(enum.Enum):
    """What a request's message ID says about it."""

    NEW = "new"
    REPEATED = "repeated"  # the last one again, perhaps
    OLD = "old"
    AHEAD = "ahead"  # outside the window


class Pending:
    """Our request that awaits its response."""

    __slots__ = ("datagrams", "due", "first_sent", "message_id", "path", "repeats")

    def __init__(self, message_id: int, datagrams: list[bytes], path: PeerPath, now: float) -> None:
        self.message_id = message_id
        self.datagrams = datagrams
        self.path = path
        self.first_sent = now
        self.repeats = 0  # how often it has been sent again
        self.due = now

    def schedule(self, how: Retransmission, now: float) -> None:
        """Set `due`: when it is sent again or, after the last time, given up."""
        pause = how.timeout * how.base**self.repeats
        if how.limit:
            pause = min(pause, how.limit)
        self.due = now + pause


class Window:
    """Message IDs of one IKE SA, both directions."""

    __slots__ = ("answered", "expected", "next_request", "opener", "pending", "response")

    def __init__(self) -> None:
        self.next_request = 0
        self.pending: Pending | None = None
        self.expected = 0  # the ID of the peer's next request
        self.answered: int = 0  # hash of the request (its first fragment) that `response` belongs to
        self.opener: Opener | None = None  # what opened that request, if it was sealed
        self.response: list[bytes] = []

    def send(self, datagrams: list[bytes], path: PeerPath, how: Retransmission, now: float) -> Pending:
        """Our next request goes out."""
        if self.pending is not None:
            raise LocalError(f"request {self.next_request} while {self.pending.message_id} is under way")
        self.pending = Pending(self.next_request, datagrams, path, now)
        self.pending.schedule(how, now)
        return self.pending

    def responded(self) -> None:
        """The response to our request has come."""
        self.pending = None
        self.next_request += 1

    def restart(self) -> None:
        """The first request is made again, with the same number: a cookie or another group was asked for."""
        self.pending = None
        self.next_request = 0

    def arrival(self, message_id: int) -> Arrival:
        """What a request with this ID is."""
        if message_id == self.expected:
            return Arrival.NEW
        if message_id == self.expected - 1:
            return Arrival.REPEATED
        return Arrival.OLD if message_id < self.expected else Arrival.AHEAD

    def answer(self, request: int, response: list[bytes], opener: Opener | None = None) -> None:
        """The expected request, with this hash, was answered; keep the response until the next one comes."""
        self.expected += 1
        self.answered, self.opener = request, opener
        self.response = response
