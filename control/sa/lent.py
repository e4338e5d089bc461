"""Addresses that servers lend us, by the IKE SA that has them: 1 assigned 2 moved to its successor 3 gone with it.

Who hears the events says so here, and has `settle` run; then this host has exactly what is lent at that moment.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from dataplane.model import Address


class VirtualAddresses(Protocol):
    """Who gives this host the addresses that a server lends us: control.net.addresses.HostAddresses."""

    addresses: set[Address]  # that are there now

    async def add(self, addresses: Sequence[Address]) -> None:
        """They are ours."""

    async def remove(self, addresses: Sequence[Address]) -> None:
        """They are not ours any more."""


class LentAddresses:
    """What servers have lent us, and the host's addresses after it."""

    def __init__(self, host: VirtualAddresses) -> None:
        self._host = host
        self._by_ike: dict[int, tuple[Address, ...]] = {}
        self._settling = asyncio.Lock()

    def all(self) -> set[Address]:
        """Every address that is lent to us."""
        return {address for lent in self._by_ike.values() for address in lent}

    def assigned(self, ike: int, addresses: tuple[Address, ...]) -> None:
        """An IKE SA's peer lends us these."""
        self._by_ike[ike] = addresses

    def moved(self, ike: int, successor: int) -> None:
        """An IKE SA was rekeyed: what it had is its successor's."""
        if ike in self._by_ike:
            self._by_ike[successor] = self._by_ike.pop(ike)

    def ended(self, ike: int) -> bool:
        """An IKE SA is gone, and what it had with it; True where it had something."""
        return bool(self._by_ike.pop(ike, ()))

    async def settle(self) -> None:
        """Have exactly the addresses that are lent to us now."""
        async with self._settling:
            while (wanted := self.all()) != (have := set(self._host.addresses)):
                await self._host.add(sorted(wanted - have, key=str))
                await self._host.remove(sorted(have - wanted, key=str))

    async def give_back(self) -> None:
        """Nothing is lent to us any more."""
        lent = self.all()
        self._by_ike.clear()
        await self._host.remove(sorted(lent, key=str))
