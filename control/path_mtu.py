"""The running gateway's path MTUs: ICMP errors come in, SAs are told, and what is old is forgotten.

open -> errors (control.net.pmtu) -> believed? -> every SA of the path is told -> after a while, the link's MTU again
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Protocol

from control.net.pmtu import IcmpSockets, OutboundSa, PathMtus, TooBig
from dataplane.model import Address, SaSpec

log = logging.getLogger(__name__)


class Paths(Protocol):
    """What the keeper asks of the SAs' paths and tells them: control.paths.OutboundPaths."""

    def outbound_sas(self) -> Iterable[SaSpec]:
        """Every SA that sends."""

    def next_number(self, name: str) -> int:
        """The next sequence number of one of them."""

    def link_mtu(self, name: str) -> int | None:
        """The MTU of its path as far as the kernel knows; None without a route."""

    def path_mtu_changed(self, names: Iterable[str]) -> None:
        """The paths of these SAs are smaller or larger now; `limit` tells."""


class PathMtuKeeper:
    """Learned MTUs of one gateway, from `open` to `close`."""

    def __init__(self, paths: Paths, age: float) -> None:
        """`age`: seconds after which what was learned is forgotten."""
        self._paths = paths
        self._mtus = PathMtus(age)
        self._sockets = IcmpSockets(self._heard)
        self._timer: asyncio.TimerHandle | None = None

    def open(self) -> None:
        """Listen from now on. OSError where raw sockets are not allowed."""
        self._sockets.open()

    async def close(self) -> None:
        """Stop listening; what was learned is forgotten with this object."""
        self._sockets.close()
        if self._timer is not None:
            self._timer.cancel()

    def limit(self, spec: SaSpec, link_mtu: int | None) -> int | None:
        """The MTU of an SA's path, from that of its first link."""
        return None if link_mtu is None else self._mtus.limit(spec.local, spec.remote, link_mtu)

    def _heard(self, error: TooBig) -> None:
        path = (error.local, error.remote)
        specs = self._of(path)
        candidates = [
            OutboundSa(
                name=spec.name,
                local=spec.local,
                remote=spec.remote,
                spi=spec.spi,
                encapsulated=spec.encap is not None,
                sequence=self._paths.next_number(spec.name),
            )
            for spec in specs
            if spec.spi == error.spi
        ]
        links = [mtu for spec in specs if (mtu := self._paths.link_mtu(spec.name)) is not None]
        if not links:
            return
        now = asyncio.get_running_loop().time()
        mtu = self._mtus.heard(error, candidates, min(links), now)
        if mtu is not None:
            log.info("path %s - %s: MTU is %d", *path, mtu)
            self._paths.path_mtu_changed([spec.name for spec in specs])
        self._set_timer()

    def _of(self, path: tuple[Address, Address]) -> list[SaSpec]:
        return [spec for spec in self._paths.outbound_sas() if (spec.local, spec.remote) == path]

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        due = self._mtus.next_expiry()
        self._timer = None if due is None else asyncio.get_running_loop().call_at(due, self._expire)

    def _expire(self) -> None:
        for path in self._mtus.expire(asyncio.get_running_loop().time()):
            log.info("path %s - %s: its MTU is the link's again, until an error says otherwise", *path)
            self._paths.path_mtu_changed([spec.name for spec in self._of(path)])
        self._set_timer()
