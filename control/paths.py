"""How outer packets leave, SA by SA: 1 the kernel's way 2 less where the path has shown to take less 3 the dataplane.

The netlink mirror tells the way of each outbound SA: an adjacency, or none where the kernel is to be asked, and the
MTU of the first link, or none without a route. The keeper of path MTUs (control.path_mtu) hears that packets of that
size do not arrive. The dataplane has the outcome of both.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace
from typing import Protocol

from control.net.mirror import Way
from control.path_mtu import PathMtuKeeper
from control.sa.children import Ways
from dataplane.api import DataPlane, DataPlaneError
from dataplane.model import AdjacencySpec, SaSpec

log = logging.getLogger("esplanade")

NO_ROUTE = Way()


class Sas(Protocol):
    """Who knows the SAs: the gateway."""

    def sa(self, name: str) -> SaSpec | None:
        """One that is in use."""

    def outbound_sas(self) -> list[SaSpec]:
        """Every one that sends."""


class OutboundPaths:
    """The ways of one gateway's outbound SAs. It stands between the mirror and IKE, and is both `Ways` to IKE."""

    def __init__(self, sas: Sas, mirror: Ways, dataplane: DataPlane, age: float) -> None:
        """`age`: seconds after which a learned path MTU is forgotten."""
        self._sas = sas
        self._mirror = mirror
        self._dataplane = dataplane
        self._by_kernel: dict[str, Way] = {}
        self._in_use: dict[str, Way] = {}  # the same, less what the paths do not take
        self._mtus = PathMtuKeeper(self, age)

    def open(self) -> None:
        """Learn path MTUs from now on. OSError where raw sockets are not allowed."""
        self._mtus.open()

    async def close(self) -> None:
        """Learn no more."""
        await self._mtus.close()

    def of(self, name: str) -> Way:
        """How an SA's packets leave now."""
        return self._in_use.get(name, NO_ROUTE)

    # What IKE tells, and a reload

    def follow_sa(self, spec: SaSpec) -> Way:
        """An outbound SA of IKE has come, or has moved: its way out, as far as it is known."""
        return self._keep(spec, self._mirror.follow_sa(spec))

    def forget_sa(self, name: str) -> None:
        """It is gone."""
        self._mirror.forget_sa(name)
        self._by_kernel.pop(name, None)
        self._in_use.pop(name, None)

    def forget_gone(self) -> None:
        """SAs have gone: keep the ways of those that are in use."""
        for ways in (self._by_kernel, self._in_use):
            for name in [name for name in ways if self._sas.sa(name) is None]:
                del ways[name]

    # What the mirror tells

    def changed(self, name: str, adjacency: AdjacencySpec | None, mtu: int | None) -> None:
        """The kernel has a new way for an SA's packets."""
        self._set(name, Way(adjacency=adjacency, mtu=mtu))

    def _set(self, name: str, by_kernel: Way) -> None:
        spec = self._sas.sa(name)
        if spec is None:
            return  # it went meanwhile
        way = self._keep(spec, by_kernel)
        try:
            if way.mtu is None:
                self._dataplane.set_sa_adjacency(name, way.adjacency)
            else:
                self._dataplane.set_sa_adjacency(name, way.adjacency, way.mtu)
        except DataPlaneError as error:
            log.error("sa %s: %s", name, error)

    def _keep(self, spec: SaSpec, by_kernel: Way) -> Way:
        """Keep an SA's way as the kernel has it, and as it is used, which is returned."""
        way = replace(by_kernel, mtu=self._mtus.limit(spec, by_kernel.mtu))
        self._by_kernel[spec.name], self._in_use[spec.name] = by_kernel, way
        return way

    # What the keeper of path MTUs asks and tells

    def outbound_sas(self) -> list[SaSpec]:
        """Every SA that sends."""
        return self._sas.outbound_sas()

    def next_number(self, name: str) -> int:
        """The next sequence number of an outbound SA."""
        return self._dataplane.next_number(name)

    def link_mtu(self, name: str) -> int | None:
        """The MTU of an outbound SA's path as far as the kernel knows; None without a route."""
        return self._by_kernel.get(name, NO_ROUTE).mtu

    def path_mtu_changed(self, names: Iterable[str]) -> None:
        """Tell the dataplane what is left of the MTU."""
        for name in names:
            if name in self._by_kernel:
                self._set(name, self._by_kernel[name])
