"""Which numbers each SA may use: reserves ahead for manual keys, keeps inbound tops, gives back what is unused.

    admit    spec -> (start, limit); manual keys: the mark is on disk before anybody learns of the limit
    attach   the SA has a slot; `renew` watches it from now on (every 100 ms)
    renew    less than half a chunk left -> mark on disk, then SaSequence.limit by one store
    release  the SA is gone and no worker can hold it: the mark returns to the first number that was not used

The disk is asked for once per 2**22 packets and SA. When it fails, SAs go on to their present limit and then
stop with the verdict "sequence_unreserved"; they never run past it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

from dataplane.model import Direction, SaSpec
from dataplane.records import hard_limit, without_keys
from dataplane.reserve import CHUNK, Mark, Reserve, ReserveError, fingerprint
from dataplane.tables import Tables

log = logging.getLogger(__name__)

#: Seconds between two writes of one inbound SA's top, and how many SAs may be written at a time.
INBOUND_INTERVAL = 10.0
INBOUND_WRITES = 4


@dataclass(kw_only=True)
class _Kept:
    """One manual SA that is alive."""

    spec: SaSpec
    name: str  # fingerprint of its key
    written: int  # what the file says
    due: float = 0.0  # inbound: when it may be written again (CLOCK_MONOTONIC)


@dataclass(frozen=True, kw_only=True)
class Grant:
    """The numbers an SA begins with; `limit` is exclusive and means nothing inbound."""

    start: int
    limit: int


class SequenceKeeper:
    """Grants sequence numbers. Without `reserve` manual SAs with nonces are refused; `problem` says why it is not."""

    def __init__(self, tables: Tables, reserve: Reserve | None, problem: str = "none is set") -> None:
        self._problem = problem
        self._tables = tables
        self._reserve = reserve
        self._kept: dict[int, _Kept] = {}
        self._owners: dict[tuple[Direction, str], int] = {}
        self._failing = False

    def admit(self, specs: Sequence[SaSpec], replaces: frozenset[int] = frozenset()) -> list[Grant]:
        """The numbers that these SAs begin with; durable before this returns.

        `replaces` are slots whose SAs leave as these come: only they may hold one of the same keys. Raises
        ReserveError for a key that is in use, used up, or whose state cannot be read or written.
        """
        grants: list[Grant] = []
        marks: list[Mark] = []
        seen: set[str] = set()
        for spec in specs:
            if spec.negotiated:
                limit = spec.sequence_limit or hard_limit(spec.proposal)
                grants.append(Grant(start=spec.sequence, limit=limit))
                continue
            if self._reserve is None:
                grants.append(self._without_state(spec))
                continue
            name = fingerprint(spec)
            mark = self._reserve.read(spec)
            if spec.direction is Direction.IN:
                start = max(spec.sequence, mark.number + 1 if mark else 1)
                grants.append(Grant(start=min(start, hard_limit(spec.proposal)), limit=0))
                continue
            owner = self._owners.get((spec.direction, name))
            if name in seen or (owner is not None and owner not in replaces):
                other = self._kept[owner].spec.name if owner in self._kept else "another one of the same list"
                raise ReserveError(
                    f"SA {spec.name!r} has the key of SA {other!r}: two senders with one key would repeat"
                    " nonces; give each SA a key of its own"
                )
            seen.add(name)
            grant = _outbound_grant(spec, mark)
            grants.append(grant)
            marks.append(Mark(fingerprint=name, direction=spec.direction, number=grant.limit, spi=spec.spi))
        if self._reserve is not None:
            self._reserve.write(marks)
        return grants

    def _without_state(self, spec: SaSpec) -> Grant:
        """No state directory: fine for what has no nonce, refused for what has."""
        if spec.direction is Direction.OUT and spec.proposal.has_nonce:
            raise ReserveError(
                f"SA {spec.name!r}: a manually keyed {_algorithm(spec)} SA needs a state directory that"
                f" can be written: without one a restart would repeat nonces (RFC 4106 section 2); {self._problem}"
            )
        return Grant(start=spec.sequence, limit=spec.sequence_limit or hard_limit(spec.proposal))

    def attach(self, index: int, spec: SaSpec, grant: Grant) -> None:
        """The SA lives in slot `index` with this grant; an SA of the same key that it replaces is let go."""
        if spec.negotiated or self._reserve is None:
            return
        name = fingerprint(spec)
        old = self._owners.get((spec.direction, name))
        if old is not None:
            # It keeps what it has until no worker can hold it, but gets no more.
            self._kept.pop(old, None)
        written = grant.limit if spec.direction is Direction.OUT else grant.start - 1
        self._kept[index] = _Kept(spec=without_keys(spec), name=name, written=written)
        self._owners[spec.direction, name] = index

    def renew(self, now: float | None = None) -> None:
        """Raise limits that run short; now and then keep the inbound tops. Disk errors are logged, once."""
        if self._reserve is None or not self._kept:
            return
        now = time.monotonic() if now is None else now
        try:
            self._renew_outbound()
            self._keep_inbound(now)
        except ReserveError as error:
            if not self._failing:
                log.error("sequence numbers cannot be reserved: %s", error)
            self._failing = True
        else:
            self._failing = False

    def _renew_outbound(self) -> None:
        assert self._reserve is not None
        raised: list[tuple[int, _Kept, int]] = []
        for index, kept in self._kept.items():
            if kept.spec.direction is Direction.IN:
                continue
            following, limit = self._tables.view.sequence(index)
            end = kept.spec.sequence_limit or hard_limit(kept.spec.proposal)
            if limit - following < CHUNK // 2 and limit < end:
                raised.append((index, kept, min(max(limit, following) + CHUNK, end)))
        if not raised:
            return
        self._reserve.write([_mark(kept, number) for _, kept, number in raised])
        for index, kept, number in raised:
            kept.written = number
            self._tables.view.set_limit(index, number)

    def _keep_inbound(self, now: float) -> None:
        """A few at a time: each costs an fsync, and an old top is safe."""
        assert self._reserve is not None
        writes = 0
        for index, kept in self._kept.items():
            if kept.spec.direction is Direction.OUT or now < kept.due:
                continue
            top = self._tables.replay_top(index)
            if top > kept.written:
                self._reserve.write([_mark(kept, top)])
                kept.written = top
                kept.due = now + INBOUND_INTERVAL
                writes += 1
                if writes == INBOUND_WRITES:
                    return

    def release(self, index: int) -> None:
        """The SA in this slot is about to be wiped and no worker can hold it: nothing it did not use is lost."""
        kept = self._kept.pop(index, None)
        if kept is None or self._reserve is None:
            return
        self._owners.pop((kept.spec.direction, kept.name), None)
        if kept.spec.direction is Direction.OUT:
            number = min(self._tables.view.sequence(index))
        else:
            number = self._tables.replay_top(index)
        try:
            self._reserve.write([_mark(kept, number)])
        except ReserveError as error:
            # What is on disk is the old, higher mark: numbers are lost, none is repeated.
            log.error("SA %s: %s", kept.spec.name, error)

    def close(self, workers_gone: bool = True) -> None:
        """Keep where each SA stands; while a worker may still send, the marks stay ahead of it."""
        if workers_gone:
            for index in list(self._kept):
                self.release(index)
        if self._reserve is not None:
            self._reserve.close()


def _mark(kept: _Kept, number: int) -> Mark:
    return Mark(fingerprint=kept.name, direction=kept.spec.direction, number=number, spi=kept.spec.spi)


def _algorithm(spec: SaSpec) -> str:
    """What the SA's numbers are nonces of."""
    proposal = spec.proposal
    return (
        proposal.cipher.name
        if proposal.is_aead or proposal.encryption_key_length
        else proposal.integrity.name
    )


def _outbound_grant(spec: SaSpec, mark: Mark | None) -> Grant:
    """One chunk from where the key stands."""
    end = hard_limit(spec.proposal)
    start = max(spec.sequence, mark.number if mark else 1)
    if start >= end:
        raise ReserveError(
            f"SA {spec.name!r} has used up its sequence numbers (next {start}, end {end}): give it a new key on"
            " both sides (RFC 4303 section 3.3.3)"
        )
    limit = min(start + CHUNK, end)
    if spec.sequence_limit is not None:
        limit = max(start, min(limit, spec.sequence_limit))
    return Grant(start=start, limit=limit)
