"""One IKE SA: what is agreed on, what waits to be done, its children, its life and its end.

What one exchange needs is in its task, and what only the handshake needs in `handshake`, which is dropped when both
sides are authenticated. An IKE SA has no clock and no socket: its endpoint (`host`) has its messages taken in
(v2/receive.py), does what is due (v2/timers.py), sends its next request (v2/send.py), and takes datagrams and events.

Not here: which connection a peer belongs to (v2/choice.py), bytes of messages (v2/codec.py), and what exchanges mean
(v2/tasks).
"""

from __future__ import annotations

import traceback
from collections import deque
from typing import TYPE_CHECKING

from control.ike.events import (
    ChildClosed,
    ChildEstablished,
    ChildFailed,
    ChildOutboundReady,
    ChildSa,
    Closed,
    Event,
    Failure,
    IkeClosed,
    IkeFailed,
    KeysExported,
    Noted,
    PathChanged,
    PeerPath,
)
from control.ike.identity import Identity
from control.ike.numbers import Exchange, Protocol
from control.ike.proposal import Suite
from control.ike.settings import Auth, Connection
from control.ike.v2 import codec, export, lifetimes
from control.ike.v2.parts import Child, Feature, Timer
from control.ike.v2.states import State, Step, advance
from control.ike.v2.task import Task
from control.ike.v2.window import Window
from dataplane.model import Address

if TYPE_CHECKING:
    from control.crypto.keys import IkeKeys
    from control.ike.v2.handshake import Handshake
    from control.ike.v2.host import Host
    from control.ike.v2.keys import SaKeys
    from control.ike.v2.tasks.create_child import KeyedTask


class IkeSa:
    """One IKE SA of version 2, for its whole life (a rekeyed one is another object with another id)."""

    __slots__ = (
        "active",
        "children",
        "connection",
        "created",
        "eap_identity",
        "established_at",
        "features",
        "first_initiator",
        "followups",
        "handshake",
        "host",
        "id",
        "init_key",
        "initiator",
        "keys",
        "last_error",
        "last_heard",
        "local_id",
        "mapping",
        "my_spi",
        "nat_local",
        "nat_remote",
        "path",
        "path_error",
        "peer_addresses",
        "peer_hashes",
        "peer_spi",
        "predecessor",
        "queued",
        "reassembly",
        "reauth_passed",
        "remote_id",
        "responding",
        "scheduled",
        "state",
        "successor",
        "suite",
        "timers",
        "virtual_local",
        "virtual_remote",
        "way",
        "window",
    )

    def __init__(
        self, host: Host, connection: Connection, path: PeerPath, *, initiator: bool, id: int | None = None
    ) -> None:
        self.host = host
        self.id = host.new_id() if id is None else id
        self.connection = connection  # of a responder: a first guess until IKE_AUTH
        self.initiator = initiator  # the original initiator of this IKE SA
        # Of the first of a chain of rekeyed ones: who moves by RFC 4555 section 3.
        self.first_initiator = initiator
        self.state = State.INITIATING
        self.path = path
        # Of the children, as long as `path` is not proven (RFC 4555 section 3.7).
        self.way: PeerPath | None = None
        self.my_spi = host.new_ike_spi()
        self.peer_spi = bytes(8)
        self.suite: Suite | None = None
        self.keys: SaKeys | None = None
        self.window = Window()
        self.features = Feature(0)
        self.nat_local = False  # we are behind a NAT
        self.nat_remote = False
        self.mapping: bytes | None = None  # behind a NAT: where the peer saw us last, as its hash tells
        self.local_id: Identity | None = None
        self.remote_id: Identity | None = None
        self.eap_identity: str | None = None
        self.peer_hashes: frozenset[int] = frozenset()  # of SIGNATURE_HASH_ALGORITHMS (RFC 7427 section 4)
        self.peer_addresses: tuple[Address, ...] = ()  # the peer's other addresses (RFC 4555 section 3.4)
        self.virtual_local: tuple[Address, ...] = ()  # lent to us by the peer
        self.virtual_remote: tuple[Address, ...] = ()  # lent to the peer by us
        self.children: dict[int, Child] = {}  # by inbound SPI
        self.active: Task | None = None  # ours, whose request is under way
        self.queued: deque[tuple[float, Task]] = deque()  # ours that wait: not before this time
        self.responding: Task | None = None  # of the peer, when it takes several exchanges
        # The peer's acts that IKE_FOLLOWUP_KE goes on with, by link.
        self.followups: dict[bytes, KeyedTask] = {}
        # Whose rekeying made this one, while it is not known to be the one.
        self.predecessor: IkeSa | None = None
        self.successor: IkeSa | None = None  # the one that has our children now
        self.handshake: Handshake | None = None
        self.reassembly: dict[bool, codec.Reassembly] = {}  # by: is it a response
        self.timers: dict[Timer, float] = {}
        self.scheduled: float | None = None  # the endpoint's: what its queue holds for us
        self.reauth_passed = False  # the peer had to authenticate anew: no rekeying makes it live longer
        self.established_at = 0.0
        self.last_heard = 0.0  # an authenticated message, or traffic of a child
        self.last_error: Failure | None = None
        self.created = 0.0
        # The endpoint's, while a peer's is half open.
        self.init_key: tuple[bytes, str, int, int] | None = None
        self.path_error = ""  # what ICMP said last about datagrams that did not arrive

    # What others ask about it

    @property
    def spi_initiator(self) -> bytes:
        """The IKE SA initiator's SPI, as in every header."""
        return self.my_spi if self.initiator else self.peer_spi

    @property
    def spi_responder(self) -> bytes:
        """The IKE SA responder's SPI; zero until it is known."""
        return self.peer_spi if self.initiator else self.my_spi

    @property
    def encapsulated(self) -> bool:
        """True when ESP goes in UDP: a NAT was found, or encapsulation is forced (which looks like one)."""
        return self.nat_local or self.nat_remote or bool(self.features & Feature.ENCAPSULATION)

    @property
    def heir(self) -> IkeSa:
        """The IKE SA that has our children after all replacements; itself where there was none."""
        found = self
        while found.successor is not None:
            found = found.successor
        return found

    @property
    def peer(self) -> Identity | str | None:
        """Who the peer has proven to be: its name in EAP, whose clients may all be alike in IKE, else its identity."""
        # Of a client `eap_identity` is its own name, also where the server proves itself by EAP alone (RFC 5998).
        if (
            not self.first_initiator
            and self.eap_identity is not None
            and self.connection.remote.auth is Auth.EAP
        ):
            return self.eap_identity
        return self.remote_id

    def child_by_outbound(self, protocol: int, spi: int) -> Child | None:
        """The child of ESP or AH that sends with `spi`: what a peer's Delete payload and REKEY_SA name."""
        for child in self.children.values():
            if child.spec.spi_out == spi and child.spec.protocol == protocol:
                return child
        return None

    def child_by_id(self, id: int) -> Child | None:
        """The child with an event's id."""
        return next((child for child in self.children.values() if child.spec.id == id), None)

    def has_task(self, kind: type[Task]) -> bool:
        """True while a task of ours of this class is under way or waits."""
        return isinstance(self.active, kind) or any(isinstance(task, kind) for _, task in self.queued)

    def alive(self, now: float) -> None:
        """The peer has shown that it lives."""
        self.last_heard = now
        self.path_error = ""
        if self.connection.dpd_delay and not self.state.half_open:
            self.timers[Timer.DPD] = now + self.connection.dpd_delay

    def move(self, path: PeerPath, now: float) -> None:
        """From now on this is the way, for our requests, too."""
        self.path, self.way = path, None
        if self.window.pending is not None:
            self.window.pending.path = path
        if not self.state.half_open:
            self.emit(
                PathChanged(
                    ike=self.id, connection=self.connection.name, path=path, encapsulated=self.encapsulated
                )
            )

    # Our requests

    def queue(self, task: Task, now: float, *, delay: float = 0.0, first: bool = False) -> None:
        """Have `task` done when the window is free, `delay` seconds from now at the earliest."""
        if first:
            self.queued.appendleft((now + delay, task))
        else:
            self.queued.append((now + delay, task))

    def may(self, task: Task) -> bool:
        """Of two successors made at once the one that is used is the one that stays: until it is known, neither is."""
        return self.predecessor is None or task.ends

    # Its life

    def established(self, now: float, *, reauth_limit: float = 0.0) -> None:
        """Both sides are authenticated (or a rekeyed SA has its keys): start its timers."""
        self.state = advance(self.state, Step.AUTHENTICATED)
        self.established_at = self.last_heard = now
        self.host.authenticated(self)
        times = lifetimes.ike_times(self.connection, now, self.host.random, reauth_limit)
        self.timers = {
            Timer.REKEY: times.rekey_at,
            Timer.REAUTH: times.reauth_at,
            Timer.EXPIRE: times.expires_at,
            Timer.DPD: now + self.connection.dpd_delay if self.connection.dpd_delay else 0.0,
        }
        self.timers = {timer: at for timer, at in self.timers.items() if at}
        self.start_keepalives(now)
        from control.ike.v2.tasks import renew

        renew.learn_mapping(self, now)

    def finish_handshake(self) -> None:
        """Nothing of the handshake is needed any more."""
        self.handshake = None
        if self.keys is not None:
            self.keys.forget_authentication()

    def start_keepalives(self, now: float) -> None:
        """Keep the mapping of a NAT before us alive (RFC 3948 section 4), or stop to, as `nat_local` says."""
        self.timers.pop(Timer.KEEPALIVE, None)
        if self.nat_local and self.connection.keepalive:
            self.timers[Timer.KEEPALIVE] = now + self.connection.keepalive

    # Children

    def add_child(self, spec: ChildSa, *, outbound: bool, replaces: Child | None = None) -> Child:
        """A child SA is negotiated: keep it and tell; the keys go with the event and are not kept."""
        child = Child(spec.without_keys(), outbound=outbound)
        if self.host.settings.export_keys and spec.protocol == Protocol.ESP:  # AH hides nothing
            for line in export.esp_lines(spec):
                self.emit(
                    KeysExported(ike=self.id, connection=self.connection.name, table="esp_sa", line=line)
                )
        self.children[spec.spi_in] = child
        if replaces is not None:
            replaces.replaced_by, replaces.heir = spec.id, child
        self.emit(
            ChildEstablished(
                ike=self.id,
                connection=self.connection.name,
                child=spec,
                outbound=outbound,
                replaces=replaces.spec.id if replaces is not None else None,
            )
        )
        return child

    def outbound_ready(self, child: Child) -> None:
        """The peer can receive through `child` now; told once."""
        if not child.outbound:
            child.outbound = True
            self.emit(ChildOutboundReady(ike=self.id, connection=self.connection.name, child=child.spec.id))

    def close_child(self, child: Child, why: Closed, *, failure: Failure | None = None) -> None:
        """`child` is gone on both sides, or as good as that. Told once."""
        if self.children.pop(child.spec.spi_in, None) is None:
            return
        self.host.free_child_spi(child.spec.spi_in)
        self.emit(
            ChildClosed(
                ike=self.id,
                connection=self.connection.name,
                child=child.spec.id,
                name=child.spec.settings.name,
                why=why,
                replaced_by=child.replaced_by,
                failure=failure,
            )
        )

    def child_failed(self, name: str, failure: Failure) -> None:
        """A child (of this name, if it is known which) did not come about; the IKE SA lives on."""
        self.last_error = failure
        self.emit(ChildFailed(ike=self.id, connection=self.connection.name, name=name, failure=failure))

    # Its end

    def close(self, why: Closed, now: float, *, failure: Failure | None = None, linger: bool = False) -> None:
        """It is over, with its children and tasks; nothing is sent. `linger`: see `Host.unregister`."""
        from control.ike.v2.tasks import renew

        if self.state is State.CLOSED:
            return
        half_open, replaced = self.state.half_open, self.state is State.REKEYED
        self.state = advance(self.state, Step.GONE)
        tasks = [task for _, task in self.queued]
        if self.active is not None:
            tasks.insert(0, self.active)
        self.active = self.responding = None
        self.queued.clear()
        reason = failure or Failure(code="ike_sa_closed", text=f"the IKE SA is gone: {why.value}")
        for task in tasks:
            task.failed(self, reason, now)
        for act in self.followups.values():
            act.dropped(self)
        self.followups.clear()
        for child in list(self.children.values()):
            self.close_child(child, why, failure=failure)
        if half_open:
            self.emit(IkeFailed(ike=self.id, connection=self.connection.name, path=self.path, failure=reason))
            if self.handshake is not None and self.handshake.replaces is not None:
                renew.reauthentication_failed(self.handshake.replaces.heir, now)
        elif self.successor is None and not replaced:
            self.emit(IkeClosed(ike=self.id, connection=self.connection.name, why=why, failure=failure))
        self._release_addresses(replaced)
        self.host.unregister(self, linger=linger, now=now)
        self.timers.clear()
        self.handshake = self.keys = None
        self.reassembly.clear()
        self.window.pending = None

    def _release_addresses(self, replaced: bool) -> None:
        """What was lent goes to the successor, else back to its pool."""
        from control.ike.v2 import configure

        if self.successor is not None:
            configure.move(self, self.successor)
        elif not replaced:
            configure.give_back(self)

    def abandon(self, now: float) -> list[Task]:
        """It is over without a word, for another attempt is made; the tasks that wait for it to be established."""
        waiting = [task for _, task in self.queued if task.exchange == Exchange.CREATE_CHILD_SA]
        self.state = advance(self.state, Step.GONE)
        if self.active is not None:
            self.active.abandoned(self)
        self.active = None
        self.queued.clear()
        self.timers.clear()
        self.window.pending = None
        self.host.unregister(self, linger=False, now=now)
        return waiting

    def bug(self, error: BaseException, now: float) -> None:
        """Something raised that should not have: it is told, and this IKE SA ends; the daemon goes on."""
        where = "".join(traceback.format_exception(error)).strip()
        self.note("warning", f"internal error, the IKE SA is closed: {where}")
        failure = Failure(
            code="internal_error",
            text=f"internal error: {type(error).__name__}",
            advice="please report it with the log",
        )
        try:
            self.close(Closed.FAILED, now, failure=failure)
        except Exception:  # a task that cannot even be told
            self.state = State.CLOSED
            self.host.unregister(self, linger=False, now=now)

    def export_keys(self, secrets: IkeKeys) -> None:
        """Let new keys of ours leave for Wireshark, where the settings allow that."""
        if self.host.settings.export_keys and self.suite is not None:
            line = export.ike_line(self.spi_initiator, self.spi_responder, self.suite, secrets)
            self.emit(
                KeysExported(
                    ike=self.id, connection=self.connection.name, table="ikev2_decryption_table", line=line
                )
            )

    def emit(self, event: Event) -> None:
        """Tell the rest of control."""
        self.host.emit(event)

    def note(self, level: str, text: str) -> None:
        """A line for the log."""
        self.emit(Noted(ike=self.id, connection=self.connection.name, level=level, text=text))
