"""Child SAs in the dataplane: 1 add RX 2 add TX and swap 3 retire RX after the overlap 4 move to another path.

    established     inbound SA in; outbound SA in; with `outbound` the policies swap to it by one store each
    ready           (the peer rekeyed) the policies swap now
    closed          outbound SA out; inbound SA out, or, where another took its place, after the overlap: packets
                    that the peer sent through it are still on their way
    path changed    both SAs move, numbers and windows go on

What is wrong with one child is logged and ends that child (`refused` tells the owner); others are not touched. The
events of one IKE SA come in order, and everything here but a move is done when a call returns.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from control.ike.events import ChildEstablished, ChildSa, PeerPath
from control.net.mirror import Way
from control.sa.apart import Ports, keep_apart
from control.sa.selectors import pairs
from control.sa.spd import Spd
from dataplane.api import DataPlaneError, SaTraffic
from dataplane.model import (
    REPLAY_WINDOW,
    Address,
    AdjacencySpec,
    Direction,
    Encap,
    Mode,
    SaSpec,
    SelectorSpec,
)
from dataplane.model import Protocol as SaProtocol

log = logging.getLogger("esplanade.sa")

OVERLAP = 5.0  # seconds that a replaced inbound SA goes on receiving


class SaTable(Protocol):
    """Where SAs go: the dataplane."""

    def add_sas(self, specs: Sequence[SaSpec], *, mtu: int = 1500) -> None:
        """Add SAs, all or none."""

    def remove_sa(self, name: str) -> None:
        """Remove one SA."""

    def set_sa_adjacency(self, name: str, adjacency: AdjacencySpec | None, mtu: int = 1500) -> None:
        """Where an outbound SA's packets leave."""

    async def move_sa(
        self,
        name: str,
        *,
        local: Address,
        remote: Address,
        encap: Encap | None,
        adjacency: AdjacencySpec | None = None,
        mtu: int = 1500,
    ) -> None:
        """Another path for an SA."""

    def traffic(self, names: Sequence[str]) -> list[SaTraffic]:
        """Counters of SAs."""

    def set_workers(self, name: str, workers: Mapping[int, str]) -> None:
        """Outbound SAs of single workers in the place of another."""


class Ways(Protocol):
    """Who knows the ways of outer packets and follows their changes: the netlink mirror; control.paths to IKE."""

    def follow_sa(self, spec: SaSpec) -> Way:
        """Follow the way of an outbound SA from now on; what is known of it already."""

    def forget_sa(self, name: str) -> None:
        """The SA is gone."""


@dataclass(kw_only=True)
class Installed:
    """One child in the dataplane."""

    sa: ChildSa  # without its keys: the dataplane has them
    ike: int  # id of the IKE SA that it belongs to now
    outbound: bool  # packets are sent through it
    path: PeerPath
    encapsulated: bool
    moving: asyncio.Task[None] | None = field(default=None, repr=False)

    name_in: str  # of the inbound SA
    name_out: str
    selectors: tuple[SelectorSpec, ...]  # as this host has them
    nat_ports: Ports | None = None  # see control/sa/apart.py


def sa_name(child: ChildSa, direction: Direction) -> str:
    """The dataplane's name of one of a child's two SAs: connection/child#id/in."""
    return f"{child.connection}/{child.settings.name}#{child.id}/{direction.value}"


def _child_of(name: str) -> int:
    """The child's id in the name of one of its SAs; 0, which none has, for other names."""
    child = name.rpartition("/")[0].rpartition("#")[2]
    return int(child) if child.isdecimal() else 0


def sa_specs(
    child: ChildSa,
    path: PeerPath,
    encapsulated: bool,
    selectors: tuple[SelectorSpec, ...],
    nat_ports: Ports | None = None,
) -> tuple[SaSpec, SaSpec]:
    """The inbound and the outbound SA of a child."""
    settings = child.settings
    found = []
    for direction in (Direction.IN, Direction.OUT):
        inbound = direction is Direction.IN
        found.append(
            SaSpec(
                name=sa_name(child, direction),
                direction=direction,
                spi=child.spi_in if inbound else child.spi_out,
                local=path.local,
                remote=path.remote,
                proposal=child.suite,
                mode=child.mode,
                protocol=SaProtocol[child.protocol.name],
                encryption_key=child.encryption_key_in if inbound else child.encryption_key_out,
                integrity_key=child.integrity_key_in if inbound else child.integrity_key_out,
                encap=encap(path) if encapsulated else None,
                # RFC 4303 section 3.4.3: with ESN the window also tells the upper half, so there must be one.
                replay_window=settings.replay_window or (REPLAY_WINDOW if child.suite.esn else 0),
                selectors=selectors if inbound else (),
                df=settings.df,
                dscp=settings.dscp,
                mss_clamp=settings.mss_clamp,
                fragment=settings.fragment,
                tfc_padding=settings.tfc_padding if child.tfc else 0,
                tfc_dummies=settings.tfc_dummies,
                negotiated=True,
                nat_original=child.nat_original if inbound and encapsulated else None,
                nat_ports=nat_ports if encapsulated else None,
            )
        )
    return found[0], found[1]


def encap(path: PeerPath) -> Encap:
    """UDP encapsulation between the ports of IKE (RFC 3948 section 2.1)."""
    return Encap(source_port=path.local_port, destination_port=path.remote_port)


class Children:
    """All child SAs of IKE that the dataplane has."""

    def __init__(
        self,
        table: SaTable,
        spd: Spd,
        ways: Ways,
        *,
        refused: Callable[[ChildSa, str], None],
        overlap: float = OVERLAP,
    ) -> None:
        """`refused` hears of children that the dataplane cannot be given."""
        self.overlap = overlap
        self._table = table
        self._spd = spd
        self._ways = ways
        self._refused = refused
        self._installed: dict[int, Installed] = {}
        self._peers: Counter[Address] = Counter()  # children by where their outer packets go to
        self._retiring: dict[int, tuple[str, asyncio.TimerHandle]] = {}  # SPI -> SA's name and its end

    @property
    def installed(self) -> Mapping[int, Installed]:
        """By child id."""
        return self._installed

    # ---- 1, 2 -- a child comes

    def established(self, event: ChildEstablished) -> None:
        """Install the inbound SA and, as said, the outbound one."""
        child = event.child
        try:
            self._install(child)
        except DataPlaneError as error:
            self._refuse(child, str(error))
            return
        if event.outbound:
            self.outbound_ready(child.id)

    def _install(self, child: ChildSa) -> None:
        """Both SAs; nothing is sent through them yet. All or nothing."""
        # One set of objects for both directions and the policies: what is worked out of a selector stays with it.
        selectors = pairs(child.local_selectors, child.remote_selectors)
        apart = keep_apart(child, selectors, self._installed.values())
        if apart.ports is not None:
            log.info(
                "%s: child %s of %s: its port %d is %d here, for another peer behind the same NAT has that",
                child.connection,
                child.settings.name,
                child.path.remote,
                *apart.ports,
            )
        selectors = apart.selectors
        inbound, outbound = sa_specs(child, child.path, child.encapsulated, selectors, apart.ports)
        way = self._ways.follow_sa(outbound)
        try:
            self._table.add_sas((inbound, outbound), **_mtu(way))
            if way.adjacency is not None:
                self._set_adjacency(inbound, outbound, way)
        except DataPlaneError:
            self._ways.forget_sa(outbound.name)
            raise
        self._installed[child.id] = Installed(
            sa=child.without_keys(),
            ike=child.ike,
            outbound=False,
            path=child.path,
            encapsulated=child.encapsulated,
            name_in=inbound.name,
            name_out=outbound.name,
            selectors=selectors,
            nat_ports=apart.ports,
        )
        self._peers[child.path.remote] += 1

    def _set_adjacency(self, inbound: SaSpec, outbound: SaSpec, way: Way) -> None:
        """The way out of a pair that has just come; without it the pair goes again."""
        try:
            self._table.set_sa_adjacency(outbound.name, way.adjacency, **_mtu(way))
        except DataPlaneError:
            for spec in (outbound, inbound):
                self._table.remove_sa(spec.name)
            raise

    def _refuse(self, child: ChildSa, text: str) -> None:
        log.error("%s: child %s cannot be installed: %s", child.connection, child.settings.name, text)
        self._refused(child, text)

    def outbound_ready(self, child: int) -> None:
        """Packets leave through this child from now on."""
        installed = self._installed.get(child)
        if installed is None:
            return  # it was refused
        installed.outbound = True
        sa = installed.sa
        try:
            self._spd.add(
                child,
                f"{sa.connection}/{sa.settings.name}",
                installed.name_out,
                installed.selectors,
                spare=sa.resource is not None,
            )
            self._bind(installed)
        except DataPlaneError as error:
            self._refuse(sa, str(error))

    def _bind(self, installed: Installed) -> None:
        """Give each worker the SA that is its own, of all that share this child's traffic (RFC 9611)."""
        if not installed.sa.shared:
            return
        mates = [
            each
            for each in self._installed.values()  # the newest last
            if each.sa.shared
            and each.outbound
            and each.ike == installed.ike
            and each.sa.settings.name == installed.sa.settings.name
            and each.selectors == installed.selectors
        ]
        common = [each for each in mates if each.sa.resource is None]
        own = {each.sa.resource: each.name_out for each in mates if each.sa.resource is not None}
        workers = {worker: own[number] for worker, number in enumerate(sorted(own))}
        for each in common[:-1]:  # replaced, and soon to go
            self._table.set_workers(each.name_out, {})
        for each in common[-1:]:
            self._table.set_workers(each.name_out, workers)

    # ---- 3 -- a child goes

    def closed(self, child: int, *, replaced: bool) -> None:
        """Take a child out; `replaced` by another, its inbound SA stays for the overlap."""
        installed = self._installed.pop(child, None)
        if installed is None:
            return
        if installed.moving is not None:
            installed.moving.cancel()
        self._leave(installed.path.remote)
        self._bind(installed)  # to what takes its place, before it goes
        self._spd.remove(child)
        self._ways.forget_sa(installed.name_out)
        self._remove(installed.name_out)
        spi = installed.sa.spi_in
        if replaced and self.overlap > 0:
            timer = asyncio.get_running_loop().call_later(self.overlap, self._retire, spi)
            self._retiring[spi] = (installed.name_in, timer)
        else:
            self._remove(installed.name_in)

    def _retire(self, spi: int) -> None:
        name, timer = self._retiring.pop(spi)
        timer.cancel()
        self._remove(name)

    def _remove(self, name: str) -> None:
        try:
            self._table.remove_sa(name)
        except DataPlaneError as error:
            log.error("sa %s: %s", name, error)

    # ---- 4 -- a child's path changes

    def ike_rekeyed(self, old: int, new: int) -> None:
        """The children of one IKE SA are another's now."""
        for installed in self._installed.values():
            if installed.ike == old:
                installed.ike = new

    def path_changed(self, ike: int, path: PeerPath, encapsulated: bool) -> None:
        """All children of an IKE SA use another path."""
        for installed in self._installed.values():
            if installed.ike != ike:
                continue
            before = installed.path
            if installed.sa.mode is Mode.TRANSPORT and (before.local, before.remote) != (
                path.local,
                path.remote,
            ):
                # Its selectors are the two addresses: RFC 4555 is for tunnels.
                self._refuse(
                    installed.sa,
                    f"transport mode is between {before.local} and {before.remote}, and the peers are at "
                    f"{path.local} and {path.remote} now",
                )
            else:
                self._move(installed, path, encapsulated)

    def _move(self, installed: Installed, path: PeerPath, encapsulated: bool) -> None:
        self._leave(installed.path.remote)
        self._peers[path.remote] += 1
        installed.path, installed.encapsulated = path, encapsulated
        if installed.moving is None:
            installed.moving = asyncio.create_task(
                self._follow(installed), name=f"move child {installed.sa.id}"
            )

    async def _follow(self, installed: Installed) -> None:
        """Move both SAs until they are where the child is: it may move on meanwhile."""
        done: tuple[PeerPath, bool] | None = None
        try:
            while done != (installed.path, installed.encapsulated):
                done = installed.path, installed.encapsulated
                await self._move_once(installed, *done)
        except DataPlaneError as error:
            self._refuse(installed.sa, f"to {installed.path.remote}: {error}")
        finally:
            installed.moving = None

    async def _move_once(self, installed: Installed, path: PeerPath, encapsulated: bool) -> None:
        _, outbound = sa_specs(installed.sa, path, encapsulated, installed.selectors, installed.nat_ports)
        way = self._ways.follow_sa(outbound)
        for name in (installed.name_in, installed.name_out):
            await self._table.move_sa(
                name,
                local=path.local,
                remote=path.remote,
                encap=outbound.encap,
                adjacency=way.adjacency if name == installed.name_out else None,
                **_mtu(way),
            )

    async def settled(self) -> None:
        """Wait until every child is where its IKE SA is."""
        while moves := [each.moving for each in self._installed.values() if each.moving is not None]:
            await asyncio.wait(moves)

    # ---- what passed, and the end

    def traffic(self) -> dict[int, tuple[SaTraffic, SaTraffic]]:
        """Inbound and outbound counters by child id."""
        children = list(self._installed.values())
        names = [name for each in children for name in (each.name_in, each.name_out)]
        counters = self._table.traffic(names)
        return {
            each.sa.id: (counters[2 * place], counters[2 * place + 1]) for place, each in enumerate(children)
        }

    def spec(self, name: str) -> SaSpec | None:
        """One of the SAs by its name, without keys; None where it is not one of these."""
        installed = self._installed.get(_child_of(name))
        if installed is None or name not in (installed.name_in, installed.name_out):
            return None
        return _specs(installed)[name == installed.name_out]

    def of_inbound(self, name: str) -> Installed | None:
        """The child whose inbound SA has this name; None where it has gone."""
        installed = self._installed.get(_child_of(name))
        return installed if installed is not None and installed.name_in == name else None

    def outbound_specs(self) -> list[SaSpec]:
        """The outbound SA of each child."""
        return [_specs(each)[1] for each in self._installed.values()]

    def peers(self) -> set[Address]:
        """Where the outer packets of all children go to."""
        return set(self._peers)

    def _leave(self, peer: Address) -> None:
        """One child less sends to this address."""
        self._peers[peer] -= 1
        if self._peers[peer] <= 0:
            del self._peers[peer]

    def close(self) -> None:
        """Take everything out at once."""
        for child in list(self._installed):
            self.closed(child, replaced=False)
        for spi in list(self._retiring):
            self._retire(spi)


def _specs(installed: Installed) -> tuple[SaSpec, SaSpec]:
    return sa_specs(
        installed.sa, installed.path, installed.encapsulated, installed.selectors, installed.nat_ports
    )


def _mtu(way: Way) -> dict[str, int]:
    """Keyword arguments: what is not known is left to the default."""
    return {} if way.mtu is None else {"mtu": way.mtu}
