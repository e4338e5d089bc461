"""Which IKE SAs there are: by SPI, by id, by their two ends, by their children; and the numbers that they are given.

What is gone lingers in two ways: an IKE SA's last response, for its repeated request (RFC 7296 section 2.1), and SPIs,
so that a late packet meets no other SA.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator

from control.ike.identity import Identity
from control.ike.v2.parts import Child
from control.ike.v2.sa import IkeSa
from control.ike.v2.states import State
from control.ike.wire.header import NO_SPI

SPI_QUARANTINE = 4096  # inbound SPIs of children that are gone and not given again
LINGERING = 4096  # last responses of IKE SAs that are gone
LINGER_SECONDS = 60.0
RESERVED_SPIS = 256  # RFC 4303 section 2.1: 1 to 255 are reserved, 0 is never sent


class _Lingering:
    """What an IKE SA that is gone still answers: its last request, repeated."""

    __slots__ = ("request", "response", "until")

    def __init__(self, request: int, response: list[bytes], until: float) -> None:
        self.request = request
        self.response = response
        self.until = until


class Registry:
    """All IKE SAs of a gateway. `spi_in_use` knows inbound SPIs that are not IKE's."""

    def __init__(self, random: Callable[[int], bytes], spi_in_use: Callable[[int], bool]) -> None:
        self._random = random
        self._spi_in_use = spi_in_use
        self._by_spi: dict[bytes, IkeSa] = {}  # ours
        self._by_id: dict[int, IkeSa] = {}
        self._owners: dict[int, int] = {}  # ids of children: their IKE SA's, or a predecessor's
        self._by_ends: dict[tuple[Identity, Identity | str], list[IkeSa]] = {}
        self._ends: dict[int, tuple[Identity, Identity | str]] = {}  # where each is in that, by id
        self._lingering: OrderedDict[bytes, _Lingering] = OrderedDict()  # by our SPI
        self.child_spis: set[int] = set()  # reserved
        self._freed_spis: OrderedDict[int, None] = OrderedDict()
        self._last_id = 0

    def __iter__(self) -> Iterator[IkeSa]:
        """All that there are at this moment, the oldest first."""
        return iter(list(self._by_id.values()))

    def __getitem__(self, id: int) -> IkeSa:
        """The one with an id; KeyError where there is none."""
        return self._by_id[id]

    def get(self, id: int) -> IkeSa | None:
        """The one with an id, if there is one."""
        return self._by_id.get(id)

    def by_spi(self, spi: bytes) -> IkeSa | None:
        """The one that has given itself this SPI."""
        return self._by_spi.get(spi)

    def latest(self, wanted: Callable[[IkeSa], bool]) -> IkeSa | None:
        """The youngest that is wanted."""
        return next((sa for sa in reversed(self._by_id.values()) if wanted(sa)), None)

    # Coming and going

    def add(self, sa: IkeSa) -> None:
        """Keep a new one."""
        self._by_spi[sa.my_spi] = sa
        self._by_id[sa.id] = sa
        if sa.local_id is not None and sa.remote_id is not None:
            self.authenticated(sa)

    def authenticated(self, sa: IkeSa) -> None:
        """Its two ends are known."""
        assert sa.local_id is not None and sa.peer is not None
        if sa.id not in self._ends:
            self._ends[sa.id] = sa.local_id, sa.peer
            self._by_ends.setdefault(self._ends[sa.id], []).append(sa)

    def remove(self, sa: IkeSa, *, linger: bool, now: float) -> None:
        """It is gone; with `linger`, repetitions of its last request still get its last response."""
        self._by_spi.pop(sa.my_spi, None)
        self._by_id.pop(sa.id, None)
        ends = self._ends.pop(sa.id, None)
        if ends is not None:
            same = self._by_ends[ends]
            same.remove(sa)
            if not same:
                del self._by_ends[ends]
        if linger and sa.window.response:
            until = now + LINGER_SECONDS
            self._lingering[sa.my_spi] = _Lingering(sa.window.answered, sa.window.response, until)
        while self._lingering:
            oldest = next(iter(self._lingering.values()))
            if oldest.until > now and len(self._lingering) <= LINGERING:
                break
            self._lingering.popitem(last=False)

    def last_answer(self, spi: bytes, data: bytes, now: float) -> list[bytes] | None:
        """What an IKE SA that is gone answers to `data`: nothing but to its last request; None where there was none."""
        gone = self._lingering.get(spi)
        if gone is None:
            return None
        return gone.response if now < gone.until and hash(data) == gone.request else []

    def others(self, local: Identity, remote: Identity | str, sa: IkeSa | None) -> list[IkeSa]:
        """Other established ones of the same two ends; `remote` is `IkeSa.peer`."""
        same = self._by_ends.get((local, remote), [])
        return [each for each in same if each is not sa and each.state is State.ESTABLISHED]

    # Children

    def child_made(self, child: int, ike: int) -> None:
        """An IKE SA has a new child."""
        self._owners[child] = ike

    def child_gone(self, child: int) -> None:
        """A child is no more."""
        self._owners.pop(child, None)

    def child(self, id: int) -> tuple[IkeSa, Child]:
        """A child and its IKE SA; KeyError where there is none of this id."""
        owner = self._by_id.get(self._owners.get(id, 0))
        found = owner.child_by_id(id) if owner is not None else None
        if owner is not None and found is not None:
            return owner, found
        for sa in self._by_id.values():  # it has moved to its IKE SA's successor
            found = sa.child_by_id(id)
            if found is not None:
                self._owners[id] = sa.id
                return sa, found
        raise KeyError(id)

    # Numbers

    def new_id(self) -> int:
        """An id for an IKE or child SA, never given before."""
        self._last_id += 1
        return self._last_id

    def new_ike_spi(self) -> bytes:
        """Eight bytes that no IKE SA here has or had lately."""
        while True:
            spi = self._random(8)
            if spi not in self._by_spi and spi not in self._lingering and spi != NO_SPI:
                return spi

    def new_child_spi(self) -> int:
        """An inbound SPI for a child SA, reserved until `free_child_spi`."""
        while True:
            spi = int.from_bytes(self._random(4), "big")
            taken = spi in self.child_spis or spi in self._freed_spis or self._spi_in_use(spi)
            if spi >= RESERVED_SPIS and not taken:
                self.child_spis.add(spi)
                return spi

    def free_child_spi(self, spi: int) -> None:
        """The SPI may be given again when many others have been."""
        self.child_spis.discard(spi)
        self._freed_spis[spi] = None
        if len(self._freed_spis) > SPI_QUARANTINE:
            self._freed_spis.popitem(last=False)
