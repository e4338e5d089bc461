"""The live side of the mirror: 1 subscribe 2 dump 3 apply events 4 tell the dataplane what follows.

Events are subscribed to before the dump, and held back while a dump runs, so none is lost and none is
overtaken by older news. An overrun of the event socket is answered by a new dump. A burst of events is
applied once, at the latest 100 ms after its first.

The dataplane learns from here: routes of decrypted packets, the way of each SA's outer packets (the
kernel's own answer, so policy routing counts), the host's addresses, and what became of the ports' interfaces.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from pyroute2 import AsyncIPRoute
from pyroute2.netlink import NLM_F_REQUEST
from pyroute2.netlink.exceptions import NetlinkDumpInterrupted, NetlinkError
from pyroute2.netlink.rtnl import RTM_GETROUTE
from pyroute2.netlink.rtnl.marshal import MarshalRtnl
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from control.net.kernel import SO_RCVBUFFORCE
from control.net.mirror import Link, Mirror, MirrorPort, NeighbourKey, PeerRoute, Way, peer_route
from control.net.routes import is_our_blackhole, is_ours, read_own
from dataplane.model import OUTER_MARK, Address, AdjacencySpec, Direction, RouteSpec, SaSpec

log = logging.getLogger("esplanade.netlink")

# RTMGRP_LINK, _NEIGH, _IPV4_IFADDR, _IPV4_ROUTE, _IPV6_IFADDR, _IPV6_ROUTE
GROUPS = 0x1 | 0x4 | 0x10 | 0x40 | 0x100 | 0x400
RECEIVE_BUFFER = 4 << 20  # bytes: events of a few thousand neighbours
QUIET = 0.020  # seconds without an event that end a burst
LATEST = 0.080  # seconds after a burst's first event at which it is applied anyway
OWN_ROUTES = 1.0  # seconds until events of our own routes are applied, if nothing else happens
REASK = 30.0  # seconds between questions for the peers' routes: the kernel learns path MTUs silently
DUMP_TRIES = 5
NTF_USE = 0x01


class Sink(Protocol):
    """Who is told, one call at a time; calls must not raise."""

    async def set_routes(self, routes: Sequence[RouteSpec]) -> None:
        """The whole table of routes of decrypted packets."""

    async def set_sa_adjacency(self, name: str, adjacency: AdjacencySpec | None, mtu: int | None) -> None:
        """How one SA's outer packets leave; `mtu` is that of the path, None while there is no route."""

    async def set_locals(self, addresses: Sequence[Address]) -> None:
        """The host's own addresses."""

    async def port_changed(self, name: str, link: Link | None, addresses: Sequence[Address]) -> None:
        """A port's interface changed (state, MAC, MTU, name, addresses) or is gone."""


class NetlinkMirror:
    """Keeps the dataplane's tables in step with the kernel's."""

    def __init__(self, ports: Iterable[MirrorPort], sink: Sink) -> None:
        self.mirror = Mirror(ports)
        self._sink = sink
        self._sas: dict[str, SaSpec] = {}
        self._answers: dict[str, PeerRoute | None] = {}
        self._pairs: dict[tuple[Address, Address], PeerRoute | None] = {}  # by the SAs' two outer addresses
        self._told: dict[str, object] = {}  # what the sink was told last, by subject
        self._events: socket.socket | None = None
        self._requests: AsyncIPRoute | None = None
        self._parser = MarshalRtnl()
        self._held: list[Any] = []  # events not yet applied
        self._wake = asyncio.Event()
        self._overrun = False
        self._later: asyncio.TimerHandle | None = None  # when our own routes are looked at
        self._ask = False  # the peers' routes may have changed
        self._unknown: set[str] = set()  # SAs whose peer has not been asked for yet
        self._changed = True  # there may be news for the sink
        self._task: asyncio.Task[None] | None = None
        self._unreachable: set[str] = set()
        self.resyncs = 0  # full dumps so far
        self.route_count = 0  # told last

    async def open(self, sas: Iterable[SaSpec] = ()) -> None:
        """Subscribe and dump; from here on `mirror` and `path_mtu` answer. OSError when the kernel refuses."""
        self._sas = {sa.name: sa for sa in sas if sa.direction is Direction.OUT}
        events = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
        )
        self._events = events
        try:
            events.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)
        except OSError:
            events.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        events.bind((0, GROUPS))
        asyncio.get_running_loop().add_reader(events.fileno(), self._readable)
        # A socket without groups: an event bears the number of another's request, which may be that of one of ours.
        self._requests = AsyncIPRoute()
        await self._requests.bind(groups=0)
        await self._resync()
        await self._ask_peers()

    def path_mtu(self, sa: str) -> int | None:
        """The MTU of the path to an SA's peer, bytes of outer packet; None while there is no route."""
        answer = self._answers.get(sa)
        return None if answer is None else self.mirror.path_mtu(answer)

    async def follow(self) -> None:
        """Tell the sink everything once, and what changes from then on."""
        self._readable()  # what happened since `open`: devices that we made, say
        self._wake.clear()
        await self._apply()
        self._task = asyncio.create_task(self._follow(), name="netlink mirror")

    async def close(self) -> None:
        """Stop following; the tables stay as they are."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        if self._later is not None:
            self._later.cancel()
            self._later = None
        if self._events is not None:
            asyncio.get_running_loop().remove_reader(self._events.fileno())
            self._events.close()
            self._events = None
        if self._requests is not None:
            self._requests.close()
            self._requests = None

    @property
    def alive(self) -> bool:
        """True while changes of the kernel's tables are followed."""
        return self._task is not None and not self._task.done()

    async def set_sas(self, sas: Iterable[SaSpec]) -> None:
        """Replace the SAs whose way out is followed, and tell the sink about each of them anew."""
        self._sas = {sa.name: sa for sa in sas if sa.direction is Direction.OUT}
        self.tell_again()
        await self._ask_peers()
        await self._tell()

    def follow_sa(self, spec: SaSpec) -> Way:
        """Follow the way of one more outbound SA, or of one that has moved; what is known of it already.

        What is not known is asked for at once, and the sink is told.
        """
        name = spec.name
        self._sas[name] = spec
        self._told.pop(f"sa {name}", None)
        pair = (spec.local, spec.remote)
        if pair not in self._pairs:
            self._answers.pop(name, None)
            self._unknown.add(name)
            self._wake.set()
            return Way()
        answer = self._answers[name] = self._pairs[pair]
        way = self._way(spec, answer)
        self._told[f"sa {name}"] = way
        return way

    def forget_sa(self, name: str) -> None:
        """The SA is gone."""
        self._sas.pop(name, None)
        self._answers.pop(name, None)
        self._unknown.discard(name)
        self._told.pop(f"sa {name}", None)
        self._unreachable.discard(name)

    def _way(self, spec: SaSpec, answer: PeerRoute | None) -> Way:
        """How the outer packets of an SA leave, by the kernel's answer for its peer."""
        return Way(
            adjacency=self.mirror.sa_adjacency(answer, encapsulated=spec.encap is not None),
            mtu=self.mirror.path_mtu(answer) if answer is not None else None,
        )

    def tell_again(self) -> None:
        """Count the ways of SAs and the routes as not told yet: the next news has all of them."""
        for subject in [key for key in self._told if key.startswith("sa ") or key == "routes"]:
            del self._told[subject]

    # 1, 3 -- events

    def _readable(self) -> None:
        """Take every waiting datagram; they are applied after the burst."""
        assert self._events is not None
        news = False
        while True:
            try:
                data = self._events.recv(1 << 16)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    log.error("netlink events: %s; asking the kernel for everything again", error.strerror)
                self._overrun = True
                break
            if is_our_blackhole(data):
                continue  # it takes effect when the device has gone, and we with it
            self._held.append(data)
            news = news or not is_ours(data)
        if news or self._overrun:
            self._wake.set()
        elif self._held and self._later is None:
            # Our own routes into TUN devices: no peer is reached by them, so they can wait for each other.
            self._later = asyncio.get_running_loop().call_later(OWN_ROUTES, self._wake_later)

    def _wake_later(self) -> None:
        self._later = None
        self._wake.set()

    async def _follow(self) -> None:
        """Apply bursts as they end, and ask for the peers' routes now and then."""
        while True:
            try:
                async with asyncio.timeout(REASK):
                    await self._wake.wait()
                await self._burst()
            except TimeoutError:
                self._ask = True
            try:
                await self._apply()
            except Exception as error:
                # A question failed half-way, or there is a bug: start over, but not in a tight loop.
                known = isinstance(error, NetlinkError | OSError)
                log.error("netlink: %s; asking the kernel for everything again", error, exc_info=not known)
                self._overrun = True
                self._told.clear()  # it may not have reached the dataplane
                await asyncio.sleep(1.0)
                self._wake.set()

    async def _burst(self) -> None:
        """Wait until no event came for a while, or the first has waited long enough."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + LATEST
        while self._wake.is_set() and loop.time() < deadline:
            self._wake.clear()
            await asyncio.sleep(QUIET)
        self._wake.clear()

    async def _apply(self) -> None:
        """Enter what was held back, ask again where needed, and tell."""
        if self._overrun:
            self._overrun = False
            log.warning("netlink: events were lost; asking the kernel for everything again")
            await self._resync()
            self._ask = True
        else:
            self._enter_held()
        if self.mirror.routes_in_doubt:
            await self._reload_routes()
            self._ask = True
        if self._ask:
            self._ask = False
            self._changed = True
            await self._ask_peers()
        elif self._unknown:
            self._changed = True
            await self._ask_unknown()
        if self._changed:
            self._changed = False
            await self._tell()
        await self._refresh_neighbours()

    def _enter_held(self) -> None:
        held, self._held = self._held, []
        for data in held:
            ours = is_ours(data)
            for message in [read_own(data)] if ours else self._parser.parse(data):
                changed = self.mirror.apply(message)
                self._changed = self._changed or bool(changed)
                if changed in ("route", "address", "link") and not ours:
                    self._ask = True

    # 2 -- dumps

    async def _resync(self) -> None:
        """Dump everything anew; events that arrive meanwhile are applied after it."""
        requests = self._requests
        assert requests is not None
        self.resyncs += 1
        for attempt in range(DUMP_TRIES):
            self._held.clear()
            self.mirror.clear()
            try:
                for dump in (requests.link, requests.addr, requests.neigh):
                    async for message in await dump("dump"):
                        self.mirror.apply(message)
                await self._reload_routes()
                break
            except NetlinkDumpInterrupted:
                if attempt == DUMP_TRIES - 1:
                    raise
        self._enter_held()

    async def _reload_routes(self) -> None:
        """Dump the main table of both families."""
        assert self._requests is not None
        for attempt in range(DUMP_TRIES):
            self.mirror.clear_routes()
            try:
                for family in (socket.AF_INET, socket.AF_INET6):
                    async for message in await self._requests.route("dump", family=family, table=254):
                        self.mirror.load_route(message)
                return
            except NetlinkDumpInterrupted:
                if attempt == DUMP_TRIES - 1:
                    raise

    async def _ask_peers(self) -> None:
        """The kernel's route for each SA's peer, from the SA's own address."""
        self._unknown.clear()
        asked: dict[tuple[Address, Address], PeerRoute | None] = {}
        answers: dict[str, PeerRoute | None] = {}
        for name, sa in list(self._sas.items()):
            pair = (sa.local, sa.remote)
            if pair not in asked:
                asked[pair] = await self._ask_route(*pair)
            if self._sas.get(name) is sa:
                answers[name] = asked[pair]
                self._report_reachability(sa, answers[name])
        # SAs came, went and moved meanwhile: the new ones are asked for next.
        known = self._answers
        self._answers = {
            name: answers[name] if name in answers else known[name]
            for name in self._sas
            if name in answers or name in known
        }
        self._pairs = asked

    async def _ask_unknown(self) -> None:
        """The same for SAs that have just come: a thousand that come one by one are not asked for a thousand times."""
        names, self._unknown = self._unknown, set()
        for name in names:
            sa = self._sas.get(name)
            if sa is None:
                continue
            pair = (sa.local, sa.remote)
            if pair not in self._pairs:
                self._pairs[pair] = await self._ask_route(*pair)
            if self._sas.get(name) is sa:
                self._answers[name] = self._pairs[pair]
                self._report_reachability(sa, self._answers[name])

    async def _ask_route(self, local: Address, remote: Address) -> PeerRoute | None:
        assert self._requests is not None
        question = rtmsg()
        question["family"] = socket.AF_INET if remote.version == 4 else socket.AF_INET6
        question["dst_len"] = question["src_len"] = remote.max_prefixlen
        question["attrs"] = [
            ("RTA_DST", str(remote)),
            ("RTA_SRC", str(local)),
            ("RTA_MARK", OUTER_MARK),
        ]
        try:
            # Without NLM_F_ACK: the library hands out the answer, and would keep what follows it for ever.
            answer = await self._requests.nlm_request(question, RTM_GETROUTE, NLM_F_REQUEST)
            replies = [reply async for reply in answer]
        except NetlinkError:
            return None  # no route, or `local` is no address of ours
        return peer_route(remote, replies[0]) if replies else None

    def _report_reachability(self, sa: SaSpec, answer: PeerRoute | None) -> None:
        """Say once when an SA loses its route, and once when it has one again."""
        if answer is not None:
            if sa.name in self._unreachable:
                log.info("sa %s: there is a route to %s again", sa.name, sa.remote)
            self._unreachable.discard(sa.name)
        elif sa.name not in self._unreachable:
            self._unreachable.add(sa.name)
            if sa.local in self.mirror.local_addresses():
                log.warning(
                    "sa %s: the kernel has no route to %s; add one (ip route add)", sa.name, sa.remote
                )
            else:
                log.warning(
                    "sa %s: %s is no address of this host; add it to an interface (ip address add)",
                    sa.name,
                    sa.local,
                )

    # 4 -- tell the dataplane

    async def _tell(self) -> None:
        """Tell the sink what differs from what it was told last."""
        mirror = self.mirror
        for port in mirror.ports:
            if port.interface:
                link, addresses = mirror.link_of(port), mirror.addresses_of(port)
                if self._news(f"port {port.name}", (link, addresses)):
                    await self._sink.port_changed(port.name, link, addresses)
        addresses = mirror.local_addresses()
        if self._news("locals", addresses):
            await self._sink.set_locals(addresses)
        routes = mirror.routes()
        self.route_count = len(routes)
        if self._news("routes", routes):
            await self._sink.set_routes(routes)
        for name, sa in list(self._sas.items()):
            if name in self._answers and self._sas.get(name) is sa:
                way = self._way(sa, self._answers[name])
                if self._news(f"sa {name}", way):
                    await self._sink.set_sa_adjacency(name, way.adjacency, way.mtu)

    def _news(self, subject: str, value: object) -> bool:
        """True when `value` differs from what was told about `subject` last."""
        if subject in self._told and self._told[subject] == value:
            return False
        self._told[subject] = value
        return True

    async def _refresh_neighbours(self) -> None:
        """Have the kernel probe stale neighbours in use and resolve next hops that are missing (NTF_USE)."""
        hops = self.mirror.next_hops(answer for answer in self._answers.values() if answer is not None)
        for key in self.mirror.stale(hops):
            await self._use(key)
        missing = sorted(
            (key for key in hops if key not in self.mirror.neighbours), key=lambda key: (key[0], str(key[1]))
        )
        if self._news("missing next hops", missing):
            for key in missing:
                await self._use(key)

    async def _use(self, key: NeighbourKey) -> None:
        """Tell the kernel that a neighbour is wanted, as a packet of its own would."""
        interface, address = key
        assert self._requests is not None
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        try:
            await self._requests.neigh(
                "replace", family=family, dst=str(address), ifindex=interface, flags=NTF_USE, state=0
            )
        except NetlinkError as error:
            log.debug("neighbour %s on interface %d: %s", address, interface, error)
