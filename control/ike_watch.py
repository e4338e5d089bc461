"""What IKE does of itself, without a message or a timer: 1 begin what is to start 2 hear workers 3 read counters.

    starts      children of `start_action = start`, and those that are to come back, a few at a time per peer
    traps       packets that met a policy without SA, as workers report them
    sources     peers behind a NAT whose packets come from another address or port, as workers report them
    counters    of each child, once a second: who receives has a peer that lives, who has carried enough gets new keys

A child that traffic wants and that does not come up is asked for less and less often. One that starts by itself and
whose peer is silent is begun again some time later: nothing else would bring it back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from control.ike.endpoint import Endpoint
from control.ike.ends import peer_address
from control.ike.events import (
    PEER_SILENT,
    ChildClosed,
    ChildEstablished,
    ChildWanted,
    Event,
    IkeClosed,
    IkeEstablished,
    IkeFailed,
    IkeRekeyed,
)
from control.ike.settings import Connection, StartAction
from control.sa.children import Children, Installed
from control.sa.lifetimes import Spent, spent
from control.sa.spd import Spd
from control.sa.starts import Starts
from dataplane.api import SaTraffic
from dataplane.model import Acquire, Source

log = logging.getLogger("esplanade.ike")

TRAFFIC_INTERVAL = 1.0  # seconds between two looks at the children's counters
WORKER_INTERVAL = 0.05  # seconds between two looks at what workers report
# Seconds between two moves of one peer that its packets ask for: each costs an outbound SA some thousand numbers.
FOLLOW_INTERVAL = 1.0
# Seconds that a child has to come up before traffic asks for it again: doubled each time, up to the most.
TRAP_PATIENCE = 5.0
TRAP_PATIENCE_MOST = 300.0
START_AGAIN = (
    60.0  # seconds after the last attempt at a silent peer before what starts by itself is begun again
)

Guard = Callable[[str], contextlib.AbstractContextManager[None]]


@dataclass(frozen=True, kw_only=True)
class _Patience:
    """How long traffic's wish for a child waits for an answer."""

    until: float
    pause: float  # seconds it was given


_NEVER = _Patience(until=0.0, pause=0.0)


class Watch:
    """Looks, and tells the endpoint; whoever owns both takes events and datagrams when `pump` is called."""

    def __init__(
        self,
        endpoint: Endpoint,
        children: Children,
        spd: Spd,
        *,
        acquires: Callable[[], Sequence[Acquire]],
        sources: Callable[[], Sequence[Source]],
        now: Callable[[], float],
        pump: Callable[[], None],
        guarded: Guard,
    ) -> None:
        """`acquires` takes what workers reported of policies without SA, `sources` what of packets from elsewhere;
        `guarded` keeps a bug from ending all.
        """
        self.connections: Mapping[str, Connection] = {}
        self._endpoint = endpoint
        self._children = children
        self._spd = spd
        self._acquires = acquires
        self._sources = sources
        self._now = now
        self._pump = pump
        self._guarded = guarded
        self._starts = Starts()
        self._again: dict[str, float] = {}  # by connection whose peer is silent: when it is begun again
        self._acquired: dict[tuple[str, str], _Patience] = {}  # by trap: when traffic may ask for it again
        self._moved: dict[int, Source] = {}  # by IKE SA: where its peer's packets come from, to be told
        self._followed: dict[int, float] = {}  # by IKE SA: when it may be told again
        self._seen: dict[int, int] = {}  # inbound packets of each child at the last look
        self._asked: set[int] = set()  # children that a rekey was asked for, for what they have carried

    # ---- 1 what is to start

    def start(self, connection: Connection, only: Sequence[str] | None = None) -> None:
        """Begin the children of a connection that start by themselves, or those of them in `only`."""
        for child in connection.children:
            if child.start_action is StartAction.START and (only is None or child.name in only):
                self._starts.want((connection.name, child.name))
        self._start_what_can()

    def _start_what_can(self) -> None:
        """Begin what is wanted and can be: a few at a time, and not without an address to begin from."""
        for wanted in self._starts.waiting():
            name, child = wanted
            connection = self.connections.get(name)
            peer = peer_address(connection.remote_addresses) if connection is not None else None
            if connection is None or peer is None:
                self._starts.forget(name)  # it has gone, or nobody knows where to
            elif self._starts.may_begin(peer):
                with self._guarded("start"):
                    try:
                        self._starts.begun(wanted, self._endpoint.initiate(name, child, self._now()), peer)
                    except ValueError as error:
                        if self._starts.cannot(wanted, str(error)):
                            log.warning("%s: child %s cannot start yet: %s", name, child, error)
        self._pump()

    def _start_ended(self, ike: int) -> None:
        """An IKE SA has come up or failed: that may make room for another."""
        if self._starts.done(ike) and self._starts:
            self._start_what_can()

    def happened(self, event: Event) -> None:
        """What the endpoint tells may make room for another start, or end what is known of a child."""
        if isinstance(event, IkeEstablished | IkeClosed | IkeFailed):
            self._start_ended(event.ike)
        if isinstance(event, IkeFailed) and event.failure.code == PEER_SILENT:
            self._again[event.connection] = self._now() + START_AGAIN
        if isinstance(event, IkeClosed | IkeRekeyed):
            self._moved.pop(event.ike, None)
            self._followed.pop(event.ike, None)
        elif isinstance(event, ChildWanted):
            self._starts.want((event.connection, event.name))
        elif isinstance(event, ChildEstablished):
            self._acquired.pop((event.connection, event.child.settings.name), None)
        elif isinstance(event, ChildClosed):
            self._seen.pop(event.child, None)
            self._asked.discard(event.child)

    # ---- 2 what workers report

    async def watch_workers(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(WORKER_INTERVAL)
            with self._guarded("traps"):
                for report in self._acquires():
                    self._acquire(report)
            with self._guarded("sources"):
                self.look_at_sources()

    def look_at_sources(self) -> None:
        """Tell the endpoint of peers whose packets come from elsewhere: the latest place, and not too often."""
        for source in self._sources():
            installed = self._children.of_inbound(source.sa)
            if installed is not None:
                self._moved[installed.ike] = source
        now = self._now()
        for ike in [each for each in self._moved if self._followed.get(each, 0.0) <= now]:
            source = self._moved.pop(ike)
            self._followed[ike] = now + FOLLOW_INTERVAL
            self._endpoint.source_seen(ike, source.address, source.port, now)
            self._pump()

    def _acquire(self, report: Acquire) -> None:
        """Bring about the child whose trap a packet met, if that is not under way."""
        trap = self._spd.trap_of(report.policy)
        if trap is None:
            return
        now = self._now()
        before = self._acquired.get(trap, _NEVER)
        if before.until > now:
            return
        pause = min(2 * before.pause, TRAP_PATIENCE_MOST) or TRAP_PATIENCE
        self._acquired[trap] = _Patience(until=now + pause, pause=pause)
        try:
            self._endpoint.acquire(*trap, now, report.packet)
        except ValueError as error:
            log.warning("%s: traffic wants child %s: %s", *trap, error)
        self._pump()

    # ---- 3 counters

    async def watch_traffic(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(TRAFFIC_INTERVAL)
            with self._guarded("counters"):
                self._look_at_traffic()
            with self._guarded("start"):
                self._look_at_starts()

    def _look_at_traffic(self) -> None:
        """Peers whose children receive are alive; children that have carried enough are replaced."""
        now = self._now()
        alive: set[int] = set()
        for child, traffic in self._children.traffic().items():
            installed = self._children.installed[child]
            if traffic[0].packets != self._seen.get(child, 0):
                self._seen[child] = traffic[0].packets
                alive.add(installed.ike)
            with contextlib.suppress(KeyError):  # it has gone, and its event is on the way
                self._check_volume(child, installed, traffic, now)
        for ike in alive:
            self._endpoint.traffic_seen(ike, now)
        self._pump()

    def _check_volume(
        self, child: int, installed: Installed, traffic: tuple[SaTraffic, SaTraffic], now: float
    ) -> None:
        sa = installed.sa
        found = spent(sa.settings.lifetime, esn=sa.suite.esn, traffic=traffic)
        if found is Spent.HARD:
            self._endpoint.child_expired(child, True, now)
        elif found is Spent.SOFT and child not in self._asked:
            self._asked.add(child)
            self._endpoint.child_expired(child, False, now)

    def _look_at_starts(self) -> None:
        """What could not start may now: a route or an address has come, or the peer is there again."""
        now = self._now()
        for name in [name for name, at in self._again.items() if at <= now]:
            del self._again[name]
            if name in self.connections:
                self.start(self.connections[name])
        if self._starts:
            self._starts.keep(each.id for each in self._endpoint.snapshot() if not each.established)
            self._start_what_can()
