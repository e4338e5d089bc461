"""Who owns which slot of a table: plain bookkeeping in control, no shared memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class TableFullError(Exception):
    """A table has no free slot; says which and how many it has."""


class Slots:
    """Single slots 0 .. capacity-1. Slots that were used before are taken again first: they are in memory."""

    def __init__(self, name: str, capacity: int) -> None:
        self.name = name
        self.capacity = capacity
        self.used = 0  # one past the highest slot ever taken
        self._free: list[int] = []

    @property
    def taken(self) -> int:
        """How many slots are in use."""
        return self.used - len(self._free)

    def take(self) -> int:
        """A slot nobody uses; TableFullError when there is none."""
        if self._free:
            return self._free.pop()
        if self.used == self.capacity:
            raise TableFullError(f"the table of {self.name} is full: all {self.capacity} are in use")
        self.used += 1
        return self.used - 1

    def give(self, slot: int) -> None:
        """The slot is free again."""
        self._free.append(slot)


class Runs:
    """Runs of neighbouring slots; neighbours that become free grow together again."""

    def __init__(self, name: str, capacity: int) -> None:
        self.name = name
        self.capacity = capacity
        self._used = 0
        self._ends: dict[int, int] = {}  # first slot of a free run -> one past its last
        self._starts: dict[int, int] = {}  # and the reverse

    def take(self, count: int) -> int:
        """The first of `count` free slots; TableFullError when no run is long enough."""
        if count == 0:
            return 0
        if self._used + count <= self.capacity:
            first = self._used
            self._used += count
            return first
        for first, end in self._ends.items():
            if end - first >= count:
                self._drop(first, end)
                if end - first > count:
                    self._keep(first + count, end)
                return first
        raise TableFullError(
            f"the table of {self.name} has no {count} free neighbours ({self.capacity} in all)"
        )

    def give(self, first: int, count: int) -> None:
        """The run is free again."""
        if count == 0:
            return
        end = first + count
        if first in self._starts:  # a free run ends where this one begins
            before = self._starts[first]
            self._drop(before, first)
            first = before
        if end in self._ends:
            after = self._ends[end]
            self._drop(end, after)
            end = after
        if end == self._used:
            self._used = first
        else:
            self._keep(first, end)

    def _keep(self, first: int, end: int) -> None:
        self._ends[first] = end
        self._starts[end] = first

    def _drop(self, first: int, end: int) -> None:
        del self._ends[first]
        del self._starts[end]


class Later:
    """Work that must wait until no worker can hold what was unlinked: slots freed, keys zeroed.

    `bump` begins a generation and `quiescent(generation)` says that every worker is past it
    (ext.sa.TablesView). Things unlinked together within `batch()` share one generation.
    """

    def __init__(self, bump: Callable[[], int], quiescent: Callable[[int], bool]) -> None:
        self._bump = bump
        self._quiescent = quiescent
        self._waiting: deque[tuple[int, Callable[[], None]]] = deque()
        self._batch: list[Callable[[], None]] | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, work: Callable[[], None]) -> None:
        """Run `work` once every worker is past the unlinking that has just been done."""
        if self._batch is not None:
            self._batch.append(work)
        else:
            self._waiting.append((self._bump(), work))

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Collect what is unlinked within into one generation."""
        if self._batch is not None:
            yield
            return
        self._batch = []
        try:
            yield
        finally:
            works, self._batch = self._batch, None
            if works:
                generation = self._bump()
                self._waiting.extend((generation, work) for work in works)

    def run(self) -> int:
        """Do what is due; returns how much still waits."""
        while self._waiting and self._quiescent(self._waiting[0][0]):
            self._waiting.popleft()[1]()
        return len(self._waiting)
