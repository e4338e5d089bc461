"""IKE in the running gateway: 1 datagrams in 2 what happened into the dataplane 3 datagrams out 4 the next timer.

The protocol (control.ike) has no socket and no clock; here it gets both. Whatever comes in, a datagram, a timer, a
command or a packet that wants a tunnel, ends in `_pump`, in this order, which is what makes a rekey lossless: an SA
that we say we have is in the dataplane before the message that says so leaves.

    sockets -> Door -> Endpoint -> events -> children, policies, log -> datagrams -> sockets

A bug in the protocol is logged with its traceback and costs the datagram or command at hand, never the daemon.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

from control.admin.feed import EventFeed
from control.admin.steering import ChildTraffic
from control.config.ike import IkeConfig
from control.ike.endpoint import Endpoint
from control.ike.ends import peer_address
from control.ike.events import (
    ChildClosed,
    ChildEstablished,
    ChildOutboundReady,
    ChildSa,
    Event,
    IkeClosed,
    IkeFailed,
    IkeRekeyed,
    PathChanged,
    PeerPath,
    VirtualAddressesAssigned,
)
from control.ike.pools import Pools
from control.ike.settings import Connection, EndpointSettings
from control.ike.snapshot import IkeSnapshot
from control.ike_door import Door
from control.ike_watch import Watch
from control.net.addresses import HostAddresses
from control.net.udp import UdpError, UdpSockets, source_address
from control.pki.fetch import CrlFetcher
from control.pki.load import CredentialFileError, load_credentials
from control.pki.store import Credentials
from control.reload import IkeChanges, as_running
from control.sa.children import Children, Ways
from control.sa.flusher import Flusher
from control.sa.lent import LentAddresses, VirtualAddresses
from control.sa.spd import Spd
from control.sa.traps import Traps
from dataplane.api import DataPlane
from dataplane.model import Address

log = logging.getLogger("esplanade.ike")

T = TypeVar("T")

FAREWELL = 1.0  # seconds that a stop waits for the answers to its deletes


class IkeSetupError(Exception):
    """IKE cannot be set up as configured; the text says why."""


class IkeDaemon:
    """One endpoint with its sockets, timers and children. `control.admin.steering.IkeControl` is its face."""

    def __init__(
        self,
        config: IkeConfig,
        credentials: Credentials,
        dataplane: DataPlane,
        spd: Spd,
        ways: Ways,
        addresses: VirtualAddresses,
    ) -> None:
        """Nothing is sent or opened yet; `create` reads the credentials, too."""
        self.feed = EventFeed()
        self.spd = spd
        self.children = Children(dataplane, spd, ways, refused=self._child_refused)
        self.pools = config.pools
        self._pools = Pools(config.pools)
        self.endpoint = Endpoint(
            config.settings,
            config.connections,
            credentials,
            self._pools,
            source_address=source_address,
            spi_in_use=dataplane.has_spi,
        )
        self.door = Door(self.endpoint)
        self.sockets = UdpSockets(
            self._received,
            self._path_error,
            ports=config.settings.nat_ports,
            shed=self._shed,
            received=self._pump,
        )
        self._dataplane = dataplane
        self._config = config
        self._connections = {connection.name: connection for connection in config.connections}
        self._credentials = credentials
        self._fetcher = CrlFetcher(credentials.crls, log=log.info)
        self._lent = LentAddresses(addresses)
        self._traps = Traps(spd, source_address)
        self._loop = asyncio.get_running_loop()
        self._pumping = False  # a pump is due
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        self._watching: list[asyncio.Task[None]] = []  # those of them that may begin something
        self._flusher = Flusher(spd, self._lent.settle)  # routes that follow from policies want the addresses
        self._gone = asyncio.Event()  # an IKE SA has gone
        self._watch = Watch(
            self.endpoint,
            self.children,
            spd,
            acquires=dataplane.take_acquires,
            sources=dataplane.take_sources,
            now=self.now,
            pump=self._pump_soon,
            guarded=self._guarded,
        )
        self._watch.connections = self._connections

    @classmethod
    def create(
        cls, config: IkeConfig, dataplane: DataPlane, spd: Spd, ways: Ways, interface: str = "lo"
    ) -> IkeDaemon:
        """The daemon of a configuration; addresses that a server lends us go to `interface`. IkeSetupError."""
        return cls(config, _load(config, None), dataplane, spd, ways, HostAddresses(interface))

    # ---- start and stop

    def open_sockets(self) -> None:
        """Open UDP 500 and 4500, the latter together with the dataplane's own; before its workers start."""
        shared = self._dataplane.open_control_sockets(self._config.settings.nat_ports[1])
        try:
            self.sockets.open(list(shared), shared=shared)
        except UdpError as error:
            raise IkeSetupError(str(error)) from None

    async def start(self) -> None:
        """Set traps and begin what is configured to start."""
        self._traps.configure(self._config.connections)
        await self.spd.flush()
        self._run(self._flusher.run(), "policies")
        self._watching = [
            self._run(self._watch.watch_traffic(), "child counters"),
            self._run(self._watch.watch_workers(), "workers' reports"),
        ]
        self._run(self._fetcher.run(), "revocation lists")
        for connection in self._config.connections:
            self._watch.start(connection)
        self._pump_soon()

    async def stop(self) -> None:
        """Say goodbye to every peer and wait a moment for their answers."""
        for task in self._watching:
            task.cancel()  # nothing begins any more
        for each in self.snapshot():
            with self._guarded("close"):
                self.endpoint.terminate_ike(each.id, self.now())
        self._pump()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FAREWELL):
                while self.snapshot():
                    self._gone.clear()
                    await self._gone.wait()
        await self._lent.give_back()

    async def close(self) -> None:
        """Let everything go."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.sockets.close()
        self.children.close()

    def _run(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Have `work` done beside everything else; `close` ends it, and the log tells if it fails."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)
        return task

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("%s ended: %r", task.get_name(), task.exception(), exc_info=task.exception())

    # ---- 1 what comes in

    def _shed(self, data: bytes, sender: tuple[str, int]) -> bytes | None:
        """What is too much, of one sender or of all, goes no further: before anything else is done about it."""
        return self.door.answer(data, sender, self.now())

    def _received(self, data: bytes, path: PeerPath) -> None:
        with self._guarded(f"datagram of {path.remote}"):
            self.endpoint.receive_datagram(data, path, self.now())

    def _path_error(self, path: PeerPath, text: str) -> None:
        with self._guarded("path error"):
            self.endpoint.path_error(path, text, self.now())
        self._pump_soon()

    @contextlib.contextmanager
    def _guarded(self, what: str) -> Iterator[None]:
        """A bug in there is logged; the daemon goes on."""
        try:
            yield
        except Exception:
            log.exception("%s: this is a bug; everything else goes on", what)

    def _pump_soon(self) -> None:
        """Once for all that one turn of the loop brings."""
        if not self._pumping:
            self._pumping = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._pumping = False
        events: Sequence[Event] = ()
        with self._guarded("events"):
            events = self.endpoint.events()
        for event in events:
            with self._guarded(type(event).__name__):
                self._handle(event)
        with self._guarded("sending"):
            for datagram in self.endpoint.datagrams_to_send():
                self.sockets.send(datagram)
        self._flusher.want()
        self._arm()

    # ---- 2 what happened

    def _handle(self, event: Event) -> None:
        """Into the dataplane, then into the log: keys are not in the latter."""
        if isinstance(event, ChildEstablished):
            self.children.established(event)
            event = ChildEstablished(
                ike=event.ike,
                connection=event.connection,
                child=event.child.without_keys(),
                outbound=event.outbound,
                replaces=event.replaces,
            )
        elif isinstance(event, ChildOutboundReady):
            self.children.outbound_ready(event.child)
        elif isinstance(event, ChildClosed):
            # First: its policies stay where they are then, and nothing passes in clear.
            self._traps.closed(event)
            self.children.closed(event.child, replaced=event.replaced_by is not None)
        elif isinstance(event, PathChanged):
            self.children.path_changed(event.ike, event.path, event.encapsulated)
        elif isinstance(event, IkeRekeyed):
            self.children.ike_rekeyed(event.ike, event.new)
            self._lent.moved(event.ike, event.new)
        elif isinstance(event, IkeClosed | IkeFailed):
            if self._lent.ended(event.ike):
                self._run(self._lent.settle(), "virtual addresses")
            self._gone.set()
        elif isinstance(event, VirtualAddressesAssigned):
            self._lent.assigned(event.ike, event.addresses)
            self._run(self._lent.settle(), "virtual addresses")
        self._watch.happened(event)
        self.feed.publish([event])

    def lent_addresses(self) -> set[Address]:
        """What servers have lent us."""
        return self._lent.all()

    def _child_refused(self, child: ChildSa, text: str) -> None:
        """The dataplane cannot be given a child: its peer is told, too."""
        self._loop.call_soon(self._close_child, child.id)

    def _close_child(self, child: int) -> None:
        with self._guarded("close child"), contextlib.suppress(KeyError):
            self.endpoint.terminate_child(child, self.now())
        self._pump_soon()

    # ---- 4 the next timer

    def _arm(self) -> None:
        at = self.endpoint.next_timer()
        if self._timer is not None and at != self._timer_at:
            self._timer.cancel()
            self._timer = None
        if at is not None and self._timer is None:
            self._timer_at = at
            self._timer = self._loop.call_at(at, self._due)

    def _due(self) -> None:
        self._timer = None
        with self._guarded("timers"):
            self.endpoint.handle_timers(self.now())
        self._pump()

    # ---- reload, and the host's addresses

    async def reload(self, config: IkeConfig, changes: IkeChanges) -> None:
        """Bring another configuration into effect: tunnels of connections that stay as they are go on untouched.

        The sockets and workers are those of the start, whatever it says of them. IkeSetupError, for credentials that
        cannot be read, leaves everything as it was.
        """
        config = as_running(self._config, config)
        credentials = _load(config, self._credentials)
        now = self.now()
        touched = {*changes.removed, *(connection.name for connection in changes.changed)}
        ended = {(each.connection.name, child) for each in changes.adjusted for child in each.ended}
        for each in self.snapshot():
            with self._guarded("close"):
                if each.connection in touched:
                    self.endpoint.terminate_ike(each.id, now)
                    continue
                for child in each.children:
                    if (each.connection, child.sa.settings.name) in ended:
                        self.endpoint.terminate_child(child.sa.id, now)
        self.endpoint.set_credentials(credentials)
        self._fetcher.replace(credentials.crls)
        self.endpoint.set_settings(config.settings)
        self.endpoint.set_connections(config.connections)
        self.endpoint.adopt(each.connection for each in changes.adjusted)
        if changes.pools:
            self._pools.set(config.pools)
        self._config, self._credentials, self.pools = config, credentials, config.pools
        self._connections = {connection.name: connection for connection in config.connections}
        self._traps.configure(config.connections, forget=touched, ended=ended)
        await self.spd.flush()
        self._watch.connections = self._connections
        for connection in (*changes.added, *changes.changed):
            self._watch.start(connection)
        for adjusted in changes.adjusted:
            self._watch.start(adjusted.connection, adjusted.begun)
        self._pump_soon()

    def peers(self) -> list[Address]:
        """Configured addresses of peers."""
        found = (peer_address(connection.remote_addresses) for connection in self._connections.values())
        return [address for address in found if address is not None]

    def addresses_changed(self, addresses: Sequence[Address]) -> None:
        """The host's addresses: IKE SAs whose own is gone go on from the one that leads to their peer (RFC 4555)."""
        have = set(addresses)
        now = self.now()
        paths = [each.path for each in self.snapshot()]
        lost = {(path.local, path.remote) for path in paths if path.local not in have}
        moves: dict[tuple[Address, Address], set[Address]] = {}  # from, to: towards whom
        for old, remote in lost:
            new = source_address(remote)
            if new is not None and new != old:
                moves.setdefault((old, new), set()).add(remote)
        for (old, new), remotes in moves.items():
            with self._guarded("address change"):
                self.endpoint.address_changed(old, new, now, remotes)
        if lost:
            self._pump_soon()

    # ---- what commands ask

    @property
    def config(self) -> IkeConfig:
        """What is in effect."""
        return self._config

    @property
    def settings(self) -> EndpointSettings:
        """As configured now."""
        return self._config.settings

    @property
    def connections(self) -> Mapping[str, Connection]:
        """By name, as configured now."""
        return self._connections

    def now(self) -> float:
        """The clock that the endpoint is driven by."""
        return self._loop.time()

    def snapshot(self, connection: str | None = None) -> Sequence[IkeSnapshot]:
        """Every IKE SA that there is, or those of one connection."""
        return self.endpoint.snapshot(connection)

    def traffic(self) -> Mapping[int, ChildTraffic]:
        """Counters by child id."""
        return {
            child: ChildTraffic(
                packets_in=inbound.packets,
                bytes_in=inbound.bytes,
                packets_out=outbound.packets,
                bytes_out=outbound.bytes,
            )
            for child, (inbound, outbound) in self.children.traffic().items()
        }

    def leases(self) -> Mapping[str, int]:
        """Addresses lent at the moment, by pool."""
        return {status.name: status.online for status in self._pools.status}

    def datagrams(self) -> Mapping[str, int]:
        """What the sockets have received and sent, and what became of datagrams that led nowhere, by reason."""
        return {
            **asdict(self.sockets.counters),
            "rate_limited": self.door.refused,
            **self.endpoint.counters,
        }

    async def policies_settled(self) -> None:
        """Wait until what is established now has its policies, too."""
        await self._flusher.settled()

    def initiate(self, connection: str, child: str | None) -> int:
        """Begin the child (None: the IKE SA alone); the id of the IKE SA that it comes about on."""
        return self._command(lambda now: self.endpoint.initiate(connection, child, now))

    def terminate_ike(self, ike: int) -> None:
        """Delete an IKE SA and its children."""
        self._command(lambda now: self.endpoint.terminate_ike(ike, now))

    def terminate_child(self, child: int) -> None:
        """Delete a child SA."""
        self._command(lambda now: self.endpoint.terminate_child(child, now))

    def rekey_ike(self, ike: int) -> None:
        """Replace an IKE SA by one with new keys."""
        self._command(lambda now: self.endpoint.rekey_ike(ike, now))

    def rekey_child(self, child: int) -> None:
        """Replace a child SA by one with new keys."""
        self._command(lambda now: self.endpoint.rekey_child(child, now))

    def _command(self, verb: Callable[[float], T]) -> T:
        """What the endpoint raises (KeyError for what is gone) is the caller's to tell."""
        try:
            return verb(self.now())
        finally:
            self._pump_soon()


def _load(config: IkeConfig, before: Credentials | None) -> Credentials:
    """Read keys, certificates and revocation lists; lists that `before` has fetched stay."""
    try:
        return load_credentials(
            config.credentials,
            crls=before.crls if before is not None else None,
            warn=lambda problem: log.warning("%s", problem),
        )
    except CredentialFileError as error:
        raise IkeSetupError(str(error)) from None
