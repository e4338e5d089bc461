"""All IKE SAs of a gateway: bytes, addresses and the time go in; datagrams, timers and events come out (RFC 7296).

    receive_datagram   1 whose is it, by SPI  2 a new peer's: limits, cookie, IKE_SA_INIT  3 its IKE SA's  4 nobody's
    handle_timers      what `next_timer` announced
    initiate ...       what a user, a packet or a timer wants
    events, datagrams_to_send   what came of it; take them after every call of the above

No socket, no clock, no file. A bug in one IKE SA ends that one, with an event; the others go on. A datagram that is no
one's costs microseconds and no memory, however many come (section 2.6): cookies are stateless, refusals are counted.
"""

from __future__ import annotations

import heapq
import os
from collections import Counter
from collections.abc import Callable, Iterable

from control.ike.errors import PeerError
from control.ike.events import (
    ChildClosed,
    ChildEstablished,
    Datagram,
    Event,
    Failure,
    IkeFailed,
    Noted,
    PeerPath,
)
from control.ike.identity import Identity
from control.ike.numbers import Exchange, NotifyType
from control.ike.pools import Pools
from control.ike.settings import ChildSettings, Connection, EndpointSettings, PoolSettings
from control.ike.snapshot import IkeSnapshot
from control.ike.v2 import codec, receive, send, timers
from control.ike.v2.choice import Connections
from control.ike.v2.contacts import INITIATOR, MAX_INIT, RESPONSE, Contacts, InitKey, in_clear
from control.ike.v2.cookies import Sender
from control.ike.v2.handshake import Handshake
from control.ike.v2.parts import Timer
from control.ike.v2.registry import Registry
from control.ike.v2.sa import IkeSa
from control.ike.v2.states import State
from control.ike.v2.status import snapshot_of
from control.ike.v2.task import Incoming, Outgoing
from control.ike.v2.tasks import follow, renew
from control.ike.v2.tasks.delete import DeleteIke
from control.ike.v2.tasks.init import IkeInit
from control.ike.wire.header import HEADER_LENGTH, NO_SPI, parse_header
from control.ike.wire.message import parse_message
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
        source_address: Callable[[Address], Address | None] = lambda remote: None,
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
        self._connections = Connections(connections)
        self._source_address = source_address
        self._timers: list[tuple[float, int, IkeSa]] = []
        self._timer_number = 0
        self._events: list[Event] = []
        self._datagrams: list[Datagram] = []

    @property
    def counters(self) -> Counter[str]:
        """Datagrams that led nowhere, by reason."""
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
            self._other_version(data, path, now)
            return
        from_initiator = bool(data[19] & INITIATOR)
        sa = self.registry.by_spi(data[8:16] if from_initiator else data[:8])
        if sa is not None:
            self._receive(sa, data, path, now)
        elif from_initiator and data[18] == Exchange.IKE_SA_INIT and data[8:16] == NO_SPI:
            if not data[19] & RESPONSE:
                self._receive_init(data, path, now)
        else:
            self._receive_unknown(data, path, now)

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
        try:
            receive.take_in(sa, header, data, path, now)
            send.next_request(sa, now)
        except Exception as error:
            sa.bug(error, now)
        self.schedule(sa)

    def _other_version(self, data: bytes, path: PeerPath, now: float) -> None:
        """RFC 7296 section 2.5: a higher major version is told ours, in clear; a lower one (IKEv1) is dropped."""
        self.counters["version"] += 1
        if data[17] >> 4 > 2 and not data[19] & RESPONSE and self._contacts.quota.take(now):
            self._answer_in_clear(data, NotifyType.INVALID_MAJOR_VERSION, b"\x02", path)

    def _receive_unknown(self, data: bytes, path: PeerPath, now: float) -> None:
        """No IKE SA of ours: one that is gone may have to repeat its last answer."""
        spi = data[8:16] if data[19] & INITIATOR else data[:8]
        answer = self.registry.last_answer(spi, data, now)
        if answer is not None:
            self._datagrams.extend(Datagram(path=path, data=each) for each in answer)
            return
        self.counters["unknown_spi"] += 1
        # RFC 7296 section 2.21.4: told in clear, seldom; who gets it must take it for a hint only.
        if not data[19] & RESPONSE and data[18] != Exchange.IKE_SA_INIT and self._contacts.quota.take(now):
            self._answer_in_clear(data, NotifyType.INVALID_IKE_SPI, b"", path)

    def _answer_in_clear(self, data: bytes, kind: NotifyType, content: bytes, path: PeerPath) -> None:
        self._datagrams.append(Datagram(path=path, data=in_clear(data, kind, content)))

    # A new peer

    def shed(self, data: bytes, sender: Sender, now: float) -> bytes | None:
        """The whole answer to an IKE_SA_INIT that has no good cookie while one is demanded; None for all else.

        A socket may ask this first, by address and port as it has them, and answer at once: so a flood costs neither
        objects nor events.
        """
        return self._contacts.shed(data, sender, self.settings, now)

    def _receive_init(self, data: bytes, path: PeerPath, now: float) -> None:
        contacts = self._contacts
        key = (data[:8], path.remote_text, path.remote_port, hash(data))
        known = contacts.get(key)
        if known is not None:
            # RFC 7296 section 2.1: the identical response, as long as it is the last one.
            if known.window.expected == 1:
                self._datagrams.extend(Datagram(path=path, data=each) for each in known.window.response)
            return
        if len(data) > MAX_INIT:
            self.counters["long"] += 1
            return
        if contacts.under_load(self.settings, now) or contacts.crowded(key[1], self.settings):
            answer = contacts.cookie(data, key[1:3], now)
            if answer is not None:
                self._datagrams.append(Datagram(path=path, data=answer))
                return
        if not contacts.full(key[1], self.settings):
            self._respond_to_init(data, key, path, now)

    def _respond_to_init(self, data: bytes, key: InitKey, path: PeerPath, now: float) -> None:
        """Run the responder's half of IKE_SA_INIT; only if it succeeds there is an IKE SA."""
        connection = ""
        try:
            parsed = parse_message(data)
            if parsed.header.message_id != 0:
                self.counters["malformed"] += 1
                return
            candidates = self.candidates(path)
            if not candidates:
                raise PeerError(
                    NotifyType.NO_PROPOSAL_CHOSEN,
                    f"no connection is configured for {path.local} (us) and {path.remote} (the peer)",
                    advice="check local_addrs and remote_addrs of the connections",
                )
            connection = candidates[0].name
            sa = IkeSa(self, candidates[0], path, initiator=False)
            sa.created = now
            task = IkeInit(initiator=False, candidates=candidates)
            request = Incoming(
                parsed.header, parsed.payloads, path=path, data=data, opened=codec.Opened(0, b"", hash(data))
            )
            response = Outgoing(Exchange.IKE_SA_INIT)
            task.process(sa, request, now)
            task.build(sa, response, now)
            datagrams = send.seal(sa, response, 0, response=True)
        except PeerError as error:
            self._refuse_init(data, error, connection, path, now)
            return
        except Exception as error:
            self._events.append(_bug(error, connection))
            return
        task.built(sa, response, datagrams, now)
        sa.window.answer(hash(data), datagrams)
        sa.timers[Timer.HALF_OPEN] = now + self.settings.half_open_timeout
        self._contacts.add(key, sa)
        self.register(sa)
        self._datagrams.extend(Datagram(path=path, data=each) for each in datagrams)
        self.schedule(sa)

    def _refuse_init(
        self, data: bytes, error: PeerError, connection: str, path: PeerPath, now: float
    ) -> None:
        """Answer in clear, and keep nothing. Another group is no failure."""
        self.counters["refused_init"] += 1
        told = error.notify is NotifyType.INVALID_KE_PAYLOAD
        if not told and not self._contacts.quota.take(now):
            return
        self._answer_in_clear(data, error.notify, error.data, path)
        if not told:
            failure = codec.failure_of(error)
            self.emit(IkeFailed(ike=self.new_id(), connection=connection, path=path, failure=failure))

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
            self._do(sa, now, lambda sa=sa: timers.handle(sa, now))  # type: ignore[misc]
            if sa.scheduled is not None and sa.scheduled <= now:
                return  # what it set to now again waits for the next call

    def _do(self, sa: IkeSa, now: float, act: Callable[[], object]) -> None:
        try:
            act()
            send.next_request(sa, now)
        except Exception as error:
            sa.bug(error, now)
        self.schedule(sa)

    # What users and packets want

    def initiate(
        self,
        connection: Connection | str,
        child: ChildSettings | str | None,
        now: float,
        *,
        packet: tuple[WireSelector, WireSelector] | None = None,
    ) -> int:
        """Set up a child (None: an IKE SA alone) of a connection; the id of the IKE SA that it is on.

        An IKE SA that is there, or under way, is used. ValueError for what is not configured or has no address.
        """
        settings = self._connection(connection)
        wanted = _child(settings, child)
        sa = self._usable(settings)
        if sa is None:
            sa = self._start(settings, wanted, now, packet)
        elif wanted is not None:
            self._do(sa, now, lambda: renew.add_child(sa, wanted, now, packet))
        return sa.id

    def _connection(self, connection: Connection | str) -> Connection:
        if isinstance(connection, Connection):
            return connection
        try:
            return self._connections.by_name[connection]
        except KeyError:
            names = ", ".join(sorted(self._connections.by_name)) or "none"
            raise ValueError(f"no connection '{connection}'; there are {names}") from None

    def _usable(self, connection: Connection) -> IkeSa | None:
        """An IKE SA of a connection that can have another child; the latest."""

        def usable(sa: IkeSa) -> bool:
            # One of this name may be from before it was configured anew.
            if sa.connection.name != connection.name or sa.connection != connection:
                return False
            begun = sa.state is State.ESTABLISHED or (sa.state.half_open and sa.initiator)
            return begun and not sa.has_task(DeleteIke)

        return self.registry.latest(usable)

    def _start(
        self,
        connection: Connection,
        child: ChildSettings | None,
        now: float,
        packet: tuple[WireSelector, WireSelector] | None,
    ) -> IkeSa:
        handshake = Handshake()
        handshake.child, handshake.packet = child, packet
        return self._begin(connection, self._path_of(connection), handshake, now)

    def reauthenticate(self, sa: IkeSa, now: float) -> None:
        """Begin an IKE SA that takes the place of `sa` when it is there: over the same path, a NAT knows that."""
        handshake = Handshake()
        handshake.replaces = sa
        handshake.child = next((child.spec.settings for child in sa.children.values()), None)
        self._begin(sa.connection, sa.path, handshake, now)

    def try_again(self, sa: IkeSa, failure: Failure, now: float) -> bool:
        """The peer was silent from the beginning: begin anew in place of `sa`, if more attempts are allowed."""
        connection, old = sa.connection, sa.handshake
        if old is None or not sa.initiator or 0 < connection.keying_tries <= old.tries:
            return False
        limit = f" of {connection.keying_tries}" if connection.keying_tries else ""
        sa.note("warning", f"attempt {old.tries}{limit}: {failure}")
        handshake = Handshake()
        handshake.child, handshake.packet, handshake.replaces = old.child, old.packet, old.replaces
        handshake.tries = old.tries + 1
        waiting = sa.abandon(now)
        path = old.replaces.path if old.replaces is not None else self._path_of(connection)
        new = self._begin(connection, path, handshake, now, id=sa.id)
        for task in waiting:
            new.queue(task, now)
        return True

    def _begin(
        self,
        connection: Connection,
        path: PeerPath,
        handshake: Handshake,
        now: float,
        *,
        id: int | None = None,
    ) -> IkeSa:
        sa = IkeSa(self, connection, path, initiator=True, id=id)
        sa.created = now
        sa.handshake = handshake
        self.register(sa)
        sa.queue(IkeInit(initiator=True), now)
        self._do(sa, now, lambda: None)
        return sa

    def _path_of(self, connection: Connection) -> PeerPath:
        """Where to initiate to, and from where."""
        name = connection.name
        remote = next((each for each in connection.remote_addresses if _is_address(each)), None)
        if remote is None:
            raise ValueError(
                f"connection '{name}' has no address of the peer to initiate to; set remote_addrs"
            )
        local = next(
            (
                each
                for each in connection.local_addresses
                if _is_address(each) and each.version == remote.version
            ),
            None,
        ) or self._source_address(remote)  # type: ignore[arg-type]
        if local is None:
            raise ValueError(f"connection '{name}': no address of ours towards {remote}; set local_addrs")
        return PeerPath(
            local=local,  # type: ignore[arg-type]
            local_port=connection.local_port,
            remote=remote,  # type: ignore[arg-type]
            remote_port=connection.remote_port,
        )

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
        self._do(sa, now, lambda: renew.close_ike(sa, now))

    def terminate_child(self, id: int, now: float) -> None:
        """Delete a child SA on both sides; KeyError where there is none of this id."""
        sa, child = self.registry.child(id)
        self._do(sa, now, lambda: renew.close_child(sa, child, now))

    def rekey_ike(self, id: int, now: float) -> None:
        """Replace an IKE SA now; KeyError where there is none of this id."""
        sa = self.registry[id]
        self._do(sa, now, lambda: renew.rekey_due(sa, now))

    def reauthenticate_ike(self, id: int, now: float) -> None:
        """Have both sides prove themselves anew; KeyError where there is none of this id."""
        sa = self.registry[id]
        self._do(sa, now, lambda: renew.reauthentication_due(sa, now))

    def rekey_child(self, id: int, now: float) -> None:
        """Replace a child SA now; KeyError where there is none of this id."""
        self.child_expired(id, False, now)

    def child_expired(self, id: int, hard: bool, now: float) -> None:
        """The dataplane has counted a child's soft or hard limit; KeyError where there is none of this id."""
        sa, child = self.registry.child(id)
        self._do(sa, now, lambda: renew.child_expired(sa, child, hard=hard, now=now))

    def traffic_seen(self, ike: int, now: float) -> None:
        """A child of this IKE SA has received: the peer lives."""
        sa = self.registry.get(ike)
        if sa is not None and not sa.state.half_open:
            sa.alive(now)
            self.schedule(sa)

    def source_seen(self, ike: int, address: Address, port: int, now: float) -> None:
        """A child of this IKE SA has received authenticated ESP in UDP from there, not from where the peer was."""
        sa = self.registry.get(ike)
        if sa is not None:
            sa = sa.heir
            self._do(sa, now, lambda: follow.source_seen(sa, address, port, now))

    def address_changed(self, old: Address, new: Address, now: float) -> None:
        """An address of ours is gone and another one takes its place (RFC 4555)."""
        for sa in self.registry:
            if sa.path.local == old:
                self._do(sa, now, lambda sa=sa: renew.address_changed(sa, new, now))  # type: ignore[misc]

    def path_error(self, path: PeerPath, text: str, now: float) -> None:
        """ICMP, or our own kernel, reports that datagrams do not arrive: a hint for the message, nothing more."""
        for sa in self.registry:
            if sa.path.remote == path.remote and sa.window.pending is not None:
                sa.path_error = text

    def set_connections(self, connections: Iterable[Connection]) -> None:
        """New configuration; IKE SAs that are there keep what they were made by."""
        self._connections = Connections(connections)

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

    def set_pools(self, pools: Iterable[PoolSettings]) -> None:
        """New pools of addresses; what is lent stays lent as far as the addresses are still there."""
        self.pools.set(pools)

    def leases(self) -> dict[str, int]:
        """How many addresses are lent, by pool."""
        return {each.name: each.online for each in self.pools.status}

    def snapshot(self, connection: str | None = None) -> list[IkeSnapshot]:
        """All IKE SAs as they are, or those of one connection."""
        return [snapshot_of(sa) for sa in self.registry if connection in (None, sa.connection.name)]

    # What an IKE SA may ask (control.ike.v2.host)

    @property
    def connections(self) -> tuple[Connection, ...]:
        """Every configured connection, in the order of configuration."""
        return self._connections.all

    def candidates(self, path: PeerPath) -> list[Connection]:
        """Connections whose addresses fit, the most specific first."""
        return self._connections.by_addresses(path.local, path.remote)

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
        self._contacts.remove(sa)
        self.registry.remove(sa, linger=linger, now=now)

    def others(self, local: Identity, remote: Identity | str, sa: IkeSa | None) -> list[IkeSa]:
        """Other established IKE SAs of the same two identities; `remote` is `IkeSa.peer`."""
        return self.registry.others(local, remote, sa)


def _is_address(each: object) -> bool:
    return hasattr(each, "packed")


def _child(connection: Connection, child: ChildSettings | str | None) -> ChildSettings | None:
    if not isinstance(child, str):
        return child
    for each in connection.children:
        if each.name == child:
            return each
    names = ", ".join(each.name for each in connection.children) or "none"
    raise ValueError(f"connection '{connection.name}' has no child '{child}'; there are {names}")


def _bug(error: Exception, connection: str) -> Event:
    return Noted(ike=0, connection=connection, level="warning", text=f"internal error: {error!r}")
