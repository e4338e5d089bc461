"""Children that are to come up, and how many at once: a peer refuses too many half-open IKE SAs of one address.

A hub that starts has hundreds of tunnels to begin, some of them to the same peer. RFC 7296 section 2.6 has responders
defend themselves: strongSwan drops more than five half-open SAs of one address, and so do we. So few are begun at a
time per peer, the next when one has come up or failed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from dataplane.model import Address

AT_ONCE = 4  # IKE SAs that are coming up to one address
ALL_AT_ONCE = 64  # to all

Wanted = tuple[str, str]  # connection and child


class Starts:
    """What waits, and what is on its way. Nothing is begun in here."""

    def __init__(self) -> None:
        self._waiting: dict[Wanted, str] = {}  # and what was in the way at the last try
        self._coming: dict[int, Address] = {}  # IKE SAs on their way, and to whom
        self._count: Counter[Address] = Counter()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def want(self, wanted: Wanted) -> None:
        """Have a child begun as soon as that can be."""
        self._waiting.setdefault(wanted, "")

    def forget(self, connection: str) -> None:
        """Nothing of this connection is wanted any more."""
        for wanted in [each for each in self._waiting if each[0] == connection]:
            del self._waiting[wanted]

    def waiting(self) -> list[Wanted]:
        """What is to be tried, in the order in which it was wanted."""
        return list(self._waiting) if len(self._coming) < ALL_AT_ONCE else []

    def may_begin(self, peer: Address) -> bool:
        """Whether another IKE SA to this address is not one too many."""
        return self._count[peer] < AT_ONCE and len(self._coming) < ALL_AT_ONCE

    def begun(self, wanted: Wanted, ike: int, peer: Address) -> None:
        """The child is on its way by this IKE SA."""
        self._waiting.pop(wanted, None)
        if ike not in self._coming:
            self._coming[ike] = peer
            self._count[peer] += 1

    def cannot(self, wanted: Wanted, reason: str) -> bool:
        """It cannot be begun as things are; True when that is news."""
        news = self._waiting.get(wanted) != reason
        self._waiting[wanted] = reason
        return news

    def done(self, ike: int) -> bool:
        """An IKE SA has come up, or has failed; True when that makes room."""
        peer = self._coming.pop(ike, None)
        if peer is None:
            return False
        self._count[peer] -= 1
        if not self._count[peer]:
            del self._count[peer]
        return True

    def keep(self, coming: Iterable[int]) -> None:
        """These IKE SAs are still on their way; what is not among them has gone without a word."""
        alive = set(coming)
        for ike in [each for each in self._coming if each not in alive]:
            self.done(ike)
