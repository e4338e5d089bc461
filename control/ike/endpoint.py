"""All IKE SAs of a gateway: bytes, addresses and the time go in; datagrams, timers and events come out (RFC 7296).

    receive_datagram   1 whose is it, by SPI  2 its IKE SA's (v2/receive.py)  3 nobody's (v2/strangers.py)
    handle_timers      what `next_timer` announced (v2/timers.py)
    initiate ...       what a user or a packet wants (v2/initiation.py for IKE SAs that we begin, v2/tasks/renew.py)
    events, datagrams_to_send   what came of it; take them after every call of the above

No socket, no clock, no file. A bug in one IKE SA ends that one, with an event; the others go on. A datagram that is no
one's costs microseconds and no memory, however many come (section 2.6): cookies are stateless, refusals are counted.
"""

from __future__ import annotations

import heapq
import os
from collections import Counter
from collections.abc import Callable, Container, Iterable

from control.ike.ends import SourceAddress
from control.ike.errors import PeerError
from control.ike.events import (
    ChildClosed,
    ChildEstablished,
    Datagram,
    Event,
    Failure,
    PeerPath,
)
from control.ike.identity import Identity
from control.ike.numbers import Exchange
from control.ike.pools import Pools
from control.ike.selectors import PacketSelectors
from control.ike.settings import ChildSettings, Connection, EndpointSettings
from control.ike.snapshot import IkeSnapshot
from control.ike.v2 import receive, send, timers
from control.ike.v2.choice import Connections, still_meant
from control.ike.v2.contacts import INITIATOR, RESPONSE, Contacts
from control.ike.v2.cookies import Sender
from control.ike.v2.initiation import Initiation
from control.ike.v2.registry import Registry
from control.ike.v2.sa import IkeSa
from control.ike.v2.states import State
from control.ike.v2.status import snapshot_of
from control.ike.v2.strangers import Strangers
from control.ike.v2.tasks import follow, renew
from control.ike.wire.header import HEADER_LENGTH, NO_SPI, parse_header
from control.ike.wire.selector import WireSelector
from control.pki.store import Credentials
from dataplane.model import Address, SelectorSpec

TIMERS_AT_ONCE = 32  # IKE SAs whose timers one call looks at


class Endpoint:
    """The IKE of a gateway. Every `now` is of one clock, in seconds, and never goes back."""

    def __init__(
        self,
        settings: EndpointSettings,
        connections: Iterable[Connection],
        credentials: Credentials,
        pools: Pools | None = None,
        *,
        random: Callable[[int], bytes] = os.urandom,
        source_address: SourceAddress = lambda remote: None,
        spi_in_use: Callable[[int], bool] = lambda spi: False,
    ) -> None:
        """`source_address` gives our address towards a peer, for connections that name none; `spi_in_use` knows inbound
        SPIs that are not IKE's.
        """
        self.settings = settings
        self.credentials = credentials
        self.pools = pools if pools is not None else Pools()
        self.random = random
        self.registry = Registry(random, spi_in_use)
        self._contacts = Contacts(random)
        self._strangers = Strangers(self, self.registry, self._contacts)
        self._initiation = Initiation(self, self.registry, connections, source_address)
        self._timers: list[tuple[float, int, IkeSa]] = []
        self._timer_number = 0
        self._events: list[Event] = []
        self._datagrams: list[Datagram] = []

    @property
    def counters(self) -> Counter[str]:
        """Datagrams that led nowhere, by reason: every one of control.ike.v2.contacts.COUNTERS."""
        return self._contacts.counters

    # What comes out

    def datagrams_to_send(self) -> list[Datagram]:
        """Datagrams to send now, in order; each is handed out once."""
        datagrams, self._datagrams = self._datagrams, []
        return datagrams

    def events(self) -> list[Event]:
        """What happened since the last call, in order."""
        events, self._events = self._events, []
        return events

    def next_timer(self) -> float | None:
        """When `handle_timers` has something to do."""
        while self._timers:
            at, _, sa = self._timers[0]
            if sa.scheduled == at and sa.state is not State.CLOSED:
                return at
            heapq.heappop(self._timers)
        return None

    # A datagram comes

    def receive_datagram(self, data: bytes, path: PeerPath, now: float) -> None:
        """Take in a whole IKE message (without non-ESP marker) that came over `path`."""
        if len(data) < HEADER_LENGTH:
            self.counters["short"] += 1
            return
        if data[17] >> 4 != 2:
            self._strangers.version(data, path, now)
            return
        from_initiator = bool(data[19] & INITIATOR)
        sa = self.registry.by_spi(data[8:16] if from_initiator else data[:8])
        if sa is not None:
            self._receive(sa, data, path, now)
        elif from_initiator and data[18] == Exchange.IKE_SA_INIT and data[8:16] == NO_SPI:
            if not data[19] & RESPONSE:
                self._strangers.begin(data, path, now)
        else:
            self._strangers.unknown(data, path, now)

    def _receive(self, sa: IkeSa, data: bytes, path: PeerPath, now: float) -> None:
        from_initiator = bool(data[19] & INITIATOR)
        peer_spi = data[:8] if from_initiator else data[8:16]
        # RFC 7296 section 3.1: the flag says whose SPI is whose, and both must be those of this IKE SA.
        if from_initiator == sa.initiator or (sa.peer_spi != NO_SPI and peer_spi != sa.peer_spi):
            self.counters["foreign_spi"] += 1
            return
        try:
            header, _ = parse_header(data)
        except PeerError:
            self.counters["malformed"] += 1
            return
        self.act(sa, now, lambda: receive.take_in(sa, header, data, path, now))

    def shed(self, data: bytes, sender: Sender, now: float) -> bytes | None:
        """The whole answer to an IKE_SA_INIT that has no good cookie while one is demanded; None for all else.

        A socket may ask this first, by address and port as it has them, and answer at once: so a flood costs neither
        objects nor events.
        """
        return self._contacts.shed(data, sender, self.settings, now)

    def spi_of(self, data: bytes) -> bytes | None:
        """Our SPI of the IKE SA that a datagram names, which nobody can guess; None where it names none of ours."""
        if len(data) < HEADER_LENGTH:
            return None
        spi = data[8:16] if data[19] & INITIATOR else data[:8]
        return spi if self.registry.by_spi(spi) is not None else None

    def challenge(self, data: bytes, sender: Sender, now: float) -> bytes | None:
        """The whole answer to a datagram that is one too many: to an IKE_SA_INIT a cookie, b"" (none) to all else.

        None is for an IKE_SA_INIT that brings a good cookie: its sender is who it says it is.
        """
        return self._contacts.challenge(data, sender, now)

    # Timers

    def schedule(self, sa: IkeSa) -> None:
        """After anything was done with `sa`: its timers, and whether it is half open still."""
        if sa.init_key is not None and not sa.state.half_open:
            self._contacts.remove(sa)
        at = timers.next_timer(sa) if sa.state is not State.CLOSED else None
        if at != sa.scheduled:
            sa.scheduled = at
            if at is not None:
                self._timer_number += 1
                heapq.heappush(self._timers, (at, self._timer_number, sa))

    def handle_timers(self, now: float) -> None:
        """Do what is due at `now`, or a part of it: `next_timer` tells when to call again, at once perhaps.

        So datagrams have their turn among the timers of thousands.
        """
        for _ in range(TIMERS_AT_ONCE):
            if not self._timers or self._timers[0][0] > now:
                return
            at, _, sa = heapq.heappop(self._timers)
            if sa.scheduled != at or sa.state is State.CLOSED:
                continue
            sa.scheduled = None
            self.act(sa, now, lambda sa=sa: timers.handle(sa, now))  # type: ignore[misc]
            if sa.scheduled is not None and sa.scheduled <= now:
                return  # what it set to now again waits for the next call

    # What users and packets want

    def initiate(
        self,
        connection: Connection | str,
        child: ChildSettings | str | None,
        now: float,
        *,
        packet: PacketSelectors | None = None,
    ) -> int:
        """Set up a child (None: an IKE SA alone) of a connection; the id of the IKE SA that it is on.

        An IKE SA that is there, or under way, is used. ValueError for what is not configured or has no address.
        """
        return self._initiation.wanted(connection, child, packet, now).id

    def acquire(
        self,
        connection: Connection | str,
        child: ChildSettings | str,
        now: float,
        packet: SelectorSpec | None,
    ) -> int:
        """Traffic wants a child that is not there: set it up, its first selectors those of the packet."""
        pair = None
        if packet is not None:
            pair = (
                WireSelector(
                    first=packet.local_first,
                    last=packet.local_last,
                    protocol=packet.protocol,
                    ports=packet.local_ports,
                ),
                WireSelector(
                    first=packet.remote_first,
                    last=packet.remote_last,
                    protocol=packet.protocol,
                    ports=packet.remote_ports,
                ),
            )
        return self.initiate(connection, child, now, packet=pair)

    def terminate_ike(self, id: int, now: float) -> None:
        """Delete an IKE SA with its children; KeyError where there is none of this id."""
        sa = self.registry[id]
        self.act(sa, now, lambda: renew.close_ike(sa, now))

    def terminate_child(self, id: int, now: float) -> None:
        """Delete a child SA on both sides; KeyError where there is none of this id."""
        sa, child = self.registry.child(id)
        self.act(sa, now, lambda: renew.close_child(sa, child, now))

    def rekey_ike(self, id: int, now: float) -> None:
        """Replace an IKE SA now; KeyError where there is none of this id."""
        sa = self.registry[id]
        self.act(sa, now, lambda: renew.rekey_due(sa, now))

    def reauthenticate_ike(self, id: int, now: float) -> None:
        """Have both sides prove themselves anew; KeyError where there is none of this id."""
        sa = self.registry[id]
        self.act(sa, now, lambda: renew.reauthentication_due(sa, now))

    def rekey_child(self, id: int, now: float) -> None:
        """Replace a child SA now; KeyError where there is none of this id."""
        self.child_expired(id, False, now)

    def child_expired(self, id: int, hard: bool, now: float) -> None:
        """The dataplane has counted a child's soft or hard limit; KeyError where there is none of this id."""
        sa, child = self.registry.child(id)
        self.act(sa, now, lambda: renew.child_expired(sa, child, hard=hard, now=now))

    def traffic_seen(self, ike: int, now: float) -> None:
        """A child of this IKE SA has received: the peer lives. Nothing to do where the IKE SA has gone."""
        sa = self.registry.get(ike)
        if sa is not None and not sa.state.half_open:
            sa.alive(now)
            self.schedule(sa)

    def source_seen(self, ike: int, address: Address, port: int, now: float) -> None:
        """A child of this IKE SA has received authenticated ESP in UDP from there, not from where the peer was."""
        sa = self.registry.get(ike)
        if sa is not None:
            sa = sa.heir
            self.act(sa, now, lambda: follow.source_seen(sa, address, port, now))

    def address_changed(
        self, old: Address, new: Address, now: float, remotes: Container[Address] | None = None
    ) -> None:
        """An address of ours is gone and another one takes its place (RFC 4555): towards `remotes`, or towards all."""
        for sa in self.registry:
            if sa.path.local == old and (remotes is None or sa.path.remote in remotes):
                self.act(sa, now, lambda sa=sa: renew.address_changed(sa, new, now))  # type: ignore[misc]

    def path_error(self, path: PeerPath, text: str, now: float) -> None:
        """ICMP, or our own kernel, reports that datagrams do not arrive: a hint for the message, nothing more."""
        for sa in self.registry:
            if sa.path.remote == path.remote and sa.window.pending is not None:
                sa.path_error = text

    def set_connections(self, connections: Iterable[Connection]) -> None:
        """New configuration; IKE SAs keep what they were made by, those of peers once they are proven."""
        self._initiation.connections = Connections(connections)
        for sa in self.registry:
            if sa.handshake is not None and sa.suite is not None and not sa.initiator:
                sa.handshake.connections = still_meant(
                    sa.handshake.connections,
                    self._initiation.connections,
                    local=sa.path.local,
                    remote=sa.path.remote,
                    suite=sa.suite,
                )

    def adopt(self, connections: Iterable[Connection]) -> None:
        """IKE SAs of connections of these names go on by the new ones: times, and which children there may be."""
        new = {connection.name: connection for connection in connections}
        for sa in self.registry:
            sa.connection = new.get(sa.connection.name, sa.connection)

    def set_credentials(self, credentials: Credentials) -> None:
        """New keys and certificates, for authentications from now on."""
        self.credentials = credentials

    def set_settings(self, settings: EndpointSettings) -> None:
        """New limits."""
        self.settings = settings

    def snapshot(self, connection: str | None = None) -> list[IkeSnapshot]:
        """All IKE SAs as they are, or those of one connection."""
        return [snapshot_of(sa) for sa in self.registry if connection in (None, sa.connection.name)]

    # What an IKE SA may ask (control.ike.v2.host)

    @property
    def connections(self) -> tuple[Connection, ...]:
        """Every configured connection, in the order of configuration."""
        return self._initiation.connections.all

    def candidates(self, path: PeerPath) -> list[Connection]:
        """Connections whose addresses fit, the most specific first."""
        return self._initiation.connections.by_addresses(path.local, path.remote)

    def emit(self, event: Event) -> None:
        """Tell the rest of control."""
        self._events.append(event)
        if isinstance(event, ChildEstablished):
            self.registry.child_made(event.child.id, event.ike)
        elif isinstance(event, ChildClosed):
            self.registry.child_gone(event.child)

    def send(self, datagram: Datagram) -> None:
        """Put a datagram into the outbound queue."""
        self._datagrams.append(datagram)

    def new_id(self) -> int:
        """An id for an IKE or child SA, never given before."""
        return self.registry.new_id()

    def new_ike_spi(self) -> bytes:
        """Eight bytes that no IKE SA here has or had lately."""
        return self.registry.new_ike_spi()

    def new_child_spi(self) -> int:
        """An inbound SPI for a child SA, reserved until `free_child_spi`."""
        return self.registry.new_child_spi()

    def free_child_spi(self, spi: int) -> None:
        """The SPI may be given again when many others have been."""
        self.registry.free_child_spi(spi)

    def register(self, sa: IkeSa) -> None:
        """`sa` gets the datagrams for its `my_spi` from now on."""
        self.registry.add(sa)

    def authenticated(self, sa: IkeSa) -> None:
        """`sa` has its two identities now."""
        self.registry.authenticated(sa)

    def unregister(self, sa: IkeSa, *, linger: bool, now: float) -> None:
        """`sa` gets no more; with `linger`, repetitions of its last request still get its last response."""
        self._contacts.remove_failed(sa, self.settings, now)
        self.registry.remove(sa, linger=linger, now=now)

    def act(self, sa: IkeSa, now: float, verb: Callable[[], object]) -> None:
        """Do something with `sa`, and what follows from it. A bug in there ends this IKE SA alone."""
        try:
            verb()
            send.next_request(sa, now)
        except Exception as error:
            sa.bug(error, now)
        self.schedule(sa)

    def reauthenticate(self, sa: IkeSa, now: float) -> None:
        """Begin an IKE SA that takes the place of `sa` when it is there."""
        self._initiation.again(sa, now)

    def try_again(self, sa: IkeSa, failure: Failure, now: float) -> bool:
        """The peer was silent from the beginning: begin anew in place of `sa`, if more attempts are allowed."""
        return self._initiation.retry(sa, failure, now)

    def others(self, local: Identity, remote: Identity | str, sa: IkeSa | None) -> list[IkeSa]:
        """Other established IKE SAs of the same two identities; `remote` is `IkeSa.peer`."""
        return self.registry.others(local, remote, sa)
