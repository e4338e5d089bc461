"""Peers whose packets come from elsewhere now, as control hears of it: the worker's side is ext/follow.pyx."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address

from dataplane.model import Source
from ext.follow import count_moved, take_sources
from ext.sa import TablesView


class Sources:
    """What workers have noted, each change once."""

    def __init__(self, view: TablesView) -> None:
        """For control's view only: what one such object takes, another does not see."""
        self._view = view
        self._count = 0

    @property
    def news(self) -> bool:
        """Whether `take` would find something; costs nothing that grows with the number of SAs."""
        return count_moved(self._view) != self._count

    def take(self, sas: Mapping[int, str]) -> list[Source]:
        """What was noted since the last call; `sas` names the inbound SAs that are there, by index."""
        self._count = count_moved(self._view)
        found = []
        for index, family, number, port in take_sources(self._view):
            if index in sas:
                address = IPv4Address(number) if family == 4 else IPv6Address(number)
                found.append(Source(sa=sas[index], address=address, port=port))
        return found
