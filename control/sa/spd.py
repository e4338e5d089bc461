"""The SPD as a whole: configured policies, traps, and those of child SAs.

Order of match: 1 configured policies as written 2 IKE's, narrow before wide 3 configured policies that take everything
(a closing "discard the rest" must not hide the tunnels).

One policy per distinct selector pair. The newest child that has it sends through its outbound SA; when it goes, the
one before takes over; when none is left the policy goes, or, being a trap, waits for traffic again. A rekey is one
store into the policy that is there. A new or vanished policy makes a new SPD: many that come together make one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from control.sa.selectors import takes_everything, width
from dataplane.api import DataPlaneError
from dataplane.model import Action, PolicySpec, SelectorSpec

log = logging.getLogger("esplanade.sa")


class PolicyTable(Protocol):
    """Where policies go: the dataplane."""

    async def set_policies(self, policies: Sequence[PolicySpec]) -> None:
        """Replace the whole ordered SPD."""

    def set_policy_sa(self, policy: str, sa: str | None) -> None:
        """Another outbound SA for one policy."""


@dataclass(frozen=True, kw_only=True)
class Trap:
    """A child that comes about when traffic wants it."""

    connection: str
    child: str
    selectors: tuple[SelectorSpec, ...]


@dataclass(kw_only=True)
class _Entry:
    """One selector pair's policy."""

    name: str
    selector: SelectorSpec
    users: dict[int, str] = field(default_factory=dict)  # child id -> outbound SA, the newest last
    spare: dict[int, str] = field(default_factory=dict)  # the same of children for single workers (RFC 9611)
    trap: tuple[str, str] | None = None  # connection and child
    _policy: PolicySpec | None = None

    @property
    def policy(self) -> PolicySpec:
        """As it should be now."""
        if self._policy is None or self._policy.sa != self.sa:
            self._policy = PolicySpec(
                name=self.name, action=Action.PROTECT, selector=self.selector, sa=self.sa
            )
        return self._policy

    @property
    def sa(self) -> str | None:
        """The outbound SA that packets use."""
        return next(reversed((self.users or self.spare).values()), None)

    @property
    def wanted(self) -> bool:
        return bool(self.users or self.spare) or self.trap is not None


class Spd:
    """All policies. Changes of selectors are brought into effect by `flush`, all others at once."""

    def __init__(
        self, table: PolicyTable, changed: Callable[[Sequence[PolicySpec]], Awaitable[None]] | None = None
    ) -> None:
        """`changed` is told each new SPD, once it is in effect."""
        self._table = table
        self._changed = changed
        self._configured: tuple[PolicySpec, ...] = ()
        self._entries: dict[SelectorSpec, _Entry] = {}
        self._by_name: dict[str, _Entry] = {}
        self._children: dict[int, tuple[SelectorSpec, ...]] = {}
        self._live: dict[str, str | None] = {}  # IKE's policies in the dataplane, and the SA of each
        self._number = 0
        self._stale = False
        self._flushing = asyncio.Lock()

    # ---- changes

    def set_configured(self, policies: Sequence[PolicySpec]) -> None:
        """The policies of the configuration."""
        self._configured = tuple(policies)
        self._stale = True

    def set_traps(self, traps: Iterable[Trap]) -> None:
        """Replace the traps; what children have is theirs still."""
        wanted = {
            selector: (trap.connection, trap.child)
            for trap in reversed(list(traps))
            for selector in trap.selectors
        }
        for selector in wanted:
            self._entry(selector, "{}/{}".format(*wanted[selector]))
        for selector, entry in list(self._entries.items()):
            entry.trap = wanted.get(selector)
            self._drop_unwanted(entry)

    def add_trap(self, trap: Trap) -> None:
        """One more trap; selectors that another one has are its still."""
        for selector in trap.selectors:
            entry = self._entry(selector, f"{trap.connection}/{trap.child}")
            entry.trap = entry.trap or (trap.connection, trap.child)

    def remove_trap(self, connection: str, child: str) -> None:
        """A child waits for traffic no more; what it has itself stays."""
        for entry in list(self._entries.values()):
            if entry.trap == (connection, child):
                entry.trap = None
                self._drop_unwanted(entry)

    def add(
        self, child: int, name: str, sa: str, selectors: Sequence[SelectorSpec], *, spare: bool = False
    ) -> None:
        """From now on packets of these selectors leave by the outbound SA `sa`; `name` begins new policies' names.

        A `spare` one is used only where there is no other.
        """
        self._children[child] = tuple(selectors)
        for selector in selectors:
            entry = self._entry(selector, name)
            users = entry.spare if spare else entry.users
            users.pop(child, None)
            users[child] = sa
            self._point(entry)

    def remove(self, child: int) -> None:
        """The child's outbound SA is about to go."""
        for selector in self._children.pop(child, ()):
            entry = self._entries[selector]
            (entry.users if child in entry.users else entry.spare).pop(child)
            self._point(entry)
            self._drop_unwanted(entry)

    def _entry(self, selector: SelectorSpec, name: str) -> _Entry:
        """The policy of a selector pair, made where there is none."""
        entry = self._entries.get(selector)
        if entry is None:
            self._number += 1
            entry = _Entry(name=f"{name}#{self._number}", selector=selector)
            self._entries[selector] = entry
            self._by_name[entry.name] = entry
            self._stale = True
        return entry

    def _drop_unwanted(self, entry: _Entry) -> None:
        if not entry.wanted:
            del self._entries[entry.selector]
            del self._by_name[entry.name]
            self._stale = True

    def _point(self, entry: _Entry) -> None:
        """Have a policy of the dataplane use its SA of now."""
        if entry.name in self._live and self._live[entry.name] != entry.sa:
            self._table.set_policy_sa(entry.name, entry.sa)
            self._live[entry.name] = entry.sa

    # ---- bringing them into effect

    @property
    def stale(self) -> bool:
        """True while `flush` has something to do."""
        return self._stale

    def policies(self) -> list[PolicySpec]:
        """The SPD as it should be."""
        first = [policy for policy in self._configured if not takes_everything(policy.selector)]
        last = [policy for policy in self._configured if takes_everything(policy.selector)]
        ours = [
            entry.policy for entry in sorted(self._entries.values(), key=lambda entry: width(entry.selector))
        ]
        return [*first, *ours, *last]

    async def flush(self) -> None:
        """Bring new and vanished policies into effect; DataPlaneError leaves the SPD as it was.

        What changes meanwhile may make it stale again.
        """
        async with self._flushing:
            wanted = await self._replace()
            if self._changed is not None and wanted is not None:
                await self._changed(wanted)

    async def _replace(self) -> list[PolicySpec] | None:
        """A new SPD, if the present one is stale."""
        while self._stale:
            self._stale = False
            wanted = self.policies()
            try:
                await self._table.set_policies(wanted)
            except DataPlaneError:
                if self._stale:
                    continue  # what it stumbled over has gone meanwhile
                raise
            self._live = {policy.name: policy.sa for policy in wanted if policy.name in self._by_name}
            for entry in self._entries.values():  # SAs may have changed meanwhile
                self._point(entry)
            return wanted
        return None

    def trap_of(self, policy: str) -> tuple[str, str] | None:
        """Connection and child that a policy is the trap of."""
        entry = self._by_name.get(policy)
        return entry.trap if entry is not None else None
