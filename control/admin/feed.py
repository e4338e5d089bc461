"""What happened, handed on: 1 log it 2 remember it 3 give it to whoever follows.

A follower that does not read loses events and is told how many; it never holds the gateway up. Lines with
keys are kept apart from all else, and only where the configuration allows their export at all.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from control.admin.events import as_dict, describe, level
from control.ike.events import ChildFailed, Event, Failure, IkeClosed, IkeEstablished, IkeFailed, KeysExported

log = logging.getLogger("esplanade.ike")

REMEMBERED = 1000  # events
KEYS_REMEMBERED = 4096  # lines
BACKLOG = 1024  # events that a follower may be behind


@dataclass(frozen=True, kw_only=True)
class Record:
    """An event, and when it was published (seconds since 1970)."""

    time: float
    event: Event

    def as_dict(self) -> dict[str, object]:
        """The event of JSON's types, with time and level."""
        return {"time": self.time, "level": logging.getLevelName(level(self.event)).lower()} | as_dict(
            self.event
        )


class Follower:
    """Events from the moment of subscribing on."""

    def __init__(self) -> None:
        self.lost = 0
        self._queue: asyncio.Queue[Record] = asyncio.Queue(BACKLOG)

    def offer(self, record: Record) -> None:
        """Queue it; count it as lost where the follower is too far behind."""
        try:
            self._queue.put_nowait(record)
        except asyncio.QueueFull:
            self.lost += 1

    async def next(self) -> Record:
        """The next event, however long it takes."""
        return await self._queue.get()


class EventFeed:
    """The one place that events of the IKE endpoint go to."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._records: deque[Record] = deque(maxlen=REMEMBERED)
        self._keys: deque[KeysExported] = deque(maxlen=KEYS_REMEMBERED)
        self._followers: set[Follower] = set()
        self._errors: dict[str, tuple[float, Failure]] = {}

    def publish(self, events: Iterable[Event]) -> None:
        """Log, remember and hand on, in order."""
        for event in events:
            record = Record(time=self._clock(), event=event)
            if log.isEnabledFor(importance := level(event)):
                log.log(importance, "%s", describe(event))
            self._remember(record)
            for follower in self._followers:
                follower.offer(record)

    def _remember(self, record: Record) -> None:
        event = record.event
        self._records.append(record)
        if isinstance(event, KeysExported):
            self._keys.append(event)
        if isinstance(event, IkeEstablished):
            self._errors.pop(event.connection, None)
        elif isinstance(event, IkeFailed | ChildFailed | IkeClosed) and event.failure is not None:
            self._errors[event.connection] = (record.time, event.failure)

    def last(self, count: int) -> list[Record]:
        """The newest `count` events, oldest first."""
        return list(self._records)[-count:] if count > 0 else []

    def exported_keys(self) -> list[KeysExported]:
        """The lines with keys that have left so far; empty where the configuration forbids it."""
        return list(self._keys)

    def last_errors(self) -> dict[str, tuple[float, Failure]]:
        """Per connection, the last failure since it was established last: when (since 1970) and what."""
        return dict(self._errors)

    @contextmanager
    def follow(self) -> Iterator[Follower]:
        """A follower for as long as the block runs."""
        follower = Follower()
        self._followers.add(follower)
        try:
            yield follower
        finally:
            self._followers.discard(follower)
