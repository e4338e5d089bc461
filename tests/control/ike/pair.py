"""Two endpoints in one process, with a fake clock and a fake wire between them that may lose, repeat and reorder.

    pair = Pair(a=connection, b=connection)
    pair.initiate("net"); pair.run()
    pair.a.established, pair.a.children ...

The wire carries bytes only, by addresses and ports, so a test may put a NAT in it (`translate`). The clock moves to
the next datagram or timer; nothing waits. Randomness is seeded, so a failure comes again.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_network
from random import Random
from typing import Any, TypeVar

from control.ike.endpoint import Endpoint
from control.ike.events import (
    ChildClosed,
    ChildEstablished,
    ChildFailed,
    ChildOutboundReady,
    ChildSa,
    Datagram,
    Event,
    IkeClosed,
    IkeEstablished,
    IkeFailed,
    IkeRekeyed,
    Noted,
    PeerPath,
)
from control.ike.identity import Identity
from control.ike.numbers import Protocol
from control.ike.proposal import Proposal, parse_proposal
from control.ike.settings import (
    Auth,
    AuthSettings,
    ChildSettings,
    Connection,
    EndpointSettings,
    TrafficSelector,
)
from control.pki.settings import PresharedKey
from control.pki.store import Credentials
from dataplane.model import Address

E = TypeVar("E", bound=Event)

ADDRESS_A, ADDRESS_B = ip_address("192.0.2.1"), ip_address("192.0.2.2")
IKE_PROPOSAL = "aes128gcm16-prfsha256-x25519"
ESP_PROPOSAL = "aes128gcm16"


def ike(*texts: str) -> tuple[Proposal, ...]:
    """IKE proposals by keywords."""
    return tuple(parse_proposal(Protocol.IKE, text) for text in texts)


def esp(*texts: str) -> tuple[Proposal, ...]:
    """ESP proposals by keywords."""
    return tuple(parse_proposal(Protocol.ESP, text) for text in texts)


def network(text: str) -> TrafficSelector:
    """A traffic selector of a whole network."""
    return TrafficSelector(network=ip_network(text))


def child(
    name: str = "net", local: str = "10.1.0.0/16", remote: str = "10.2.0.0/16", **rest: Any
) -> ChildSettings:
    """A child as A sees it."""
    rest.setdefault("proposals", esp(ESP_PROPOSAL))
    return ChildSettings(name=name, local=(network(local),), remote=(network(remote),), **rest)


def mirrored(settings: ChildSettings) -> ChildSettings:
    """The same child as the other side sees it."""
    return replace(settings, local=settings.remote, remote=settings.local)


def connection_a(**rest: Any) -> Connection:
    """A's connection to B, by preshared key."""
    defaults: dict[str, Any] = {
        "name": "a-b",
        "local_addresses": (ADDRESS_A,),
        "remote_addresses": (ADDRESS_B,),
        "proposals": ike(IKE_PROPOSAL),
        "local": AuthSettings(auth=Auth.PSK, identity=Identity.parse("a.example")),
        "remote": AuthSettings(auth=Auth.PSK, identity=Identity.parse("b.example")),
        "children": (child(),),
    }
    return Connection(**{**defaults, **rest})


def connection_b(**rest: Any) -> Connection:
    """B's connection to A: the mirror of `connection_a(**rest)`, but for addresses, which are as B sees them."""
    ends = {key: rest.pop(key) for key in ("local_addresses", "remote_addresses") if key in rest}
    return mirror(connection_a(**rest), name="b-a", **ends)


def mirror(connection: Connection, **rest: Any) -> Connection:
    """The same connection as the other side sees it."""
    mirrored_fields: dict[str, Any] = {
        "local_addresses": connection.remote_addresses,
        "remote_addresses": connection.local_addresses,
        "local": connection.remote,
        "remote": connection.local,
        "children": tuple(map(mirrored, connection.children)),
    }
    return replace(connection, **{**mirrored_fields, **rest})


def psk(secret: bytes = b"a shared secret", *identities: str) -> Credentials:
    """Credentials of one preshared key."""
    owners = tuple(Identity.parse(each) for each in identities)
    return Credentials(preshared_keys=(PresharedKey(identities=owners, secret=secret),))


@dataclass
class Side:
    """One endpoint, with what it has said so far."""

    name: str
    endpoint: Endpoint
    addresses: tuple[Address, ...]
    log: list[Event] = field(default_factory=list)
    sent: int = 0

    def of(self, kind: type[E]) -> list[E]:
        """Events of a class, in order."""
        return [event for event in self.log if isinstance(event, kind)]

    @property
    def established(self) -> list[IkeEstablished]:
        """IKE SAs that were established."""
        return self.of(IkeEstablished)

    @property
    def failures(self) -> list[str]:
        """Texts of what did not come about."""
        return [str(event.failure) for event in self.log if isinstance(event, IkeFailed | ChildFailed)]

    @property
    def notes(self) -> list[str]:
        """Lines for the log."""
        return [event.text for event in self.of(Noted)]

    @property
    def ikes(self) -> list[int]:
        """IKE SAs that stand now, half-open ones too."""
        return [each.id for each in self.endpoint.snapshot()]

    @property
    def children(self) -> dict[int, ChildSa]:
        """Children with their keys that are not closed, by id."""
        found = {event.child.id: event.child for event in self.of(ChildEstablished)}
        for event in self.of(ChildClosed):
            found.pop(event.child, None)
        return found

    @property
    def sending(self) -> dict[int, ChildSa]:
        """Those of `children` that may be sent through."""
        ready = {event.child.id for event in self.of(ChildEstablished) if event.outbound}
        ready |= {event.child for event in self.of(ChildOutboundReady)}
        return {id: each for id, each in self.children.items() if id in ready}

    @property
    def closed(self) -> list[IkeClosed]:
        """IKE SAs that are gone."""
        return self.of(IkeClosed)

    @property
    def rekeyed(self) -> list[IkeRekeyed]:
        """IKE SAs that were replaced."""
        return self.of(IkeRekeyed)


@dataclass
class Wire:
    """What happens to datagrams. Probabilities of each, delays in seconds."""

    loss: float = 0.0
    repeat: float = 0.0
    delay: tuple[float, float] = (0.01, 0.01)  # different delays reorder
    drop: Callable[[int, Datagram], bool] = lambda number, datagram: False  # number: of all datagrams, from 0
    translate: Callable[[Datagram], Datagram | None] = lambda datagram: datagram  # a NAT


class Pair:
    """A and B, and the wire."""

    def __init__(
        self,
        *,
        a: Connection | tuple[Connection, ...] | None = None,
        b: Connection | tuple[Connection, ...] | None = None,
        credentials_a: Credentials | None = None,
        credentials_b: Credentials | None = None,
        settings_a: EndpointSettings | None = None,
        settings_b: EndpointSettings | None = None,
        pools_a: Any = None,
        pools_b: Any = None,
        wire: Wire | None = None,
        seed: int = 1,
    ) -> None:
        self.now = 1000.0
        self.random = Random(seed)
        self.wire = wire or Wire()
        self.flying: list[tuple[float, int, Datagram]] = []
        self.carried: list[Datagram] = []  # everything that was sent, lost or not
        self._number = 0
        self.a = self._side("a", a or connection_a(), credentials_a, settings_a, pools_a, ADDRESS_A)
        self.b = self._side("b", b or connection_b(), credentials_b, settings_b, pools_b, ADDRESS_B)

    def _side(
        self,
        name: str,
        connections: Connection | tuple[Connection, ...],
        credentials: Credentials | None,
        settings: EndpointSettings | None,
        pools: Any,
        address: Address,
    ) -> Side:
        if isinstance(connections, Connection):
            connections = (connections,)
        endpoint = Endpoint(
            settings or EndpointSettings(),
            connections,
            credentials or psk(),
            pools,
            random=self.random.randbytes,
            # Which a test may have moved, or taken away.
            source_address=lambda remote: next(iter(getattr(self, name).addresses), None),
        )
        return Side(name=name, endpoint=endpoint, addresses=(address,))

    @property
    def sides(self) -> tuple[Side, Side]:
        """Both."""
        return self.a, self.b

    def other(self, side: Side) -> Side:
        """The one that is not `side`."""
        return self.b if side is self.a else self.a

    def initiate(self, child: str | None = "net", *, side: Side | None = None, connection: str = "") -> int:
        """Have a side (A) bring a child up; its IKE SA's id."""
        side = side or self.a
        name = connection or side.endpoint.connections[0].name
        id = side.endpoint.initiate(name, child, self.now)
        self.collect()
        return id

    def up(self, child: str | None = "net") -> Pair:
        """A brings a child up, and all is well."""
        self.initiate(child)
        self.run()
        assert self.a.established and self.b.established, (self.a.log, self.b.log)
        return self

    def collect(self) -> None:
        """Take events and datagrams of both sides."""
        for side in self.sides:
            side.log.extend(side.endpoint.events())
            for datagram in side.endpoint.datagrams_to_send():
                side.sent += 1
                self._fly(datagram)

    def _fly(self, datagram: Datagram) -> None:
        number, wire = len(self.carried), self.wire
        self.carried.append(datagram)
        if wire.drop(number, datagram) or self.random.random() < wire.loss:
            return
        for _ in range(2 if self.random.random() < wire.repeat else 1):
            self._number += 1
            at = self.now + self.random.uniform(*wire.delay)
            heapq.heappush(self.flying, (at, self._number, datagram))

    def _arrive(self, datagram: Datagram) -> None:
        translated = self.wire.translate(datagram)
        if translated is None or translated.keepalive:
            return
        path = translated.path
        for side in self.sides:
            if path.remote in side.addresses:
                back = PeerPath(
                    local=path.remote,
                    local_port=path.remote_port,
                    remote=path.local,
                    remote_port=path.local_port,
                )
                side.endpoint.receive_datagram(translated.data, back, self.now)

    def step(self, until: float) -> bool:
        """The next thing that happens up to a time; False when nothing does."""
        times = [self.flying[0][0]] if self.flying else []
        times += [at for side in self.sides if (at := side.endpoint.next_timer()) is not None]
        if not times or min(times) > until:
            return False
        self.now = max(self.now, min(times))
        if self.flying and self.flying[0][0] <= self.now:
            self._arrive(heapq.heappop(self.flying)[2])
        else:
            for side in self.sides:
                at = side.endpoint.next_timer()
                if at is not None and at <= self.now:
                    side.endpoint.handle_timers(self.now)
        self.collect()
        return True

    def run(self, seconds: float = 5.0, *, steps: int = 100_000) -> None:
        """Let time pass."""
        self.collect()
        until = self.now + seconds
        for _ in range(steps):
            if not self.step(until):
                self.now = until
                return
        raise AssertionError(f"still busy after {steps} steps")

    def check_children(self, count: int = 1, *, same_addresses: bool = True) -> None:
        """Both sides have the same working children: what one encrypts the other decrypts.

        In transport mode through a NAT each side's selectors have addresses of its own.
        """
        assert len(self.a.sending) == len(self.b.sending) == count, (self.a.sending, self.b.sending)
        for ours in self.a.sending.values():
            theirs = next(each for each in self.b.sending.values() if each.spi_in == ours.spi_out)
            assert theirs.spi_out == ours.spi_in
            assert theirs.encryption_key_in == ours.encryption_key_out
            assert theirs.encryption_key_out == ours.encryption_key_in
            assert theirs.integrity_key_in == ours.integrity_key_out
            assert theirs.integrity_key_out == ours.integrity_key_in
            assert ours.encryption_key_in or ours.integrity_key_in
            assert theirs.suite == ours.suite and theirs.mode == ours.mode
            if same_addresses:
                assert theirs.local_selectors == ours.remote_selectors
                assert theirs.remote_selectors == ours.local_selectors
