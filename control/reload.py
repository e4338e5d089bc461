"""What a changed configuration means for the running gateway: 1 compare 2 say what must be done.

Pure: nothing is touched here. Ports, workers and directories are fixed while the gateway runs; a change of
theirs is named, and the rest is applied.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace

from control.config import Config
from control.config.ike import IkeConfig
from control.ike.settings import Connection
from control.ports import reassembles_udp, unserved
from dataplane.model import Direction, SaSpec

RELOADABLE = ("log_level", "log_json")  # keys of [gateway] that take effect at once


# Fields of a connection that count from now on, without making anything anew.
_SOFT = (
    *("rekey_time", "reauth_time", "over_time", "random_time", "dpd_delay", "keepalive", "retransmission"),
    *("keying_tries", "fragment_size", "unique", "send_certificate", "request_certificates"),
)


@dataclass(frozen=True, kw_only=True)
class Adjusted:
    """A connection whose IKE SAs stay: `ended` children are closed, those `begun` are new, or new in this form."""

    connection: Connection  # the new one
    ended: tuple[str, ...] = ()
    begun: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class IkeChanges:
    """What differs for IKE. Tunnels of connections that are in none of these lists are not touched."""

    added: tuple[Connection, ...] = ()
    changed: tuple[Connection, ...] = ()  # the new ones; their SAs end, and they begin anew
    adjusted: tuple[Adjusted, ...] = ()
    removed: tuple[str, ...] = ()
    credentials: bool = False  # what new authentications use; SAs that are there stay
    pools: bool = False

    def __bool__(self) -> bool:
        connections = self.added or self.changed or self.adjusted or self.removed
        return bool(connections or self.credentials or self.pools)

    def __str__(self) -> str:
        counts = (
            *((self.added, "added"), (self.changed, "changed")),
            *((self.adjusted, "adjusted"), (self.removed, "removed")),
        )
        parts = [
            f"{len(names)} connection{'s' if len(names) > 1 else ''} {word}"
            for names, word in counts
            if names
        ]
        parts += [
            f"{word} replaced"
            for word, differ in (("credentials", self.credentials), ("pools", self.pools))
            if differ
        ]
        return ", ".join(parts) or "nothing changed"


@dataclass(frozen=True, kw_only=True)
class Changes:
    """The steps from one configuration to the next, in the order in which they are done."""

    remove_first: tuple[str, ...]  # names of SAs that hold what an added one needs: an SPI or a key
    added: tuple[SaSpec, ...]
    replaced: tuple[SaSpec, ...]
    policies: bool  # the SPD differs
    removed: tuple[str, ...]  # the other SAs that go
    restart: tuple[str, ...]  # what only a restart brings into effect
    ike: IkeChanges = field(default_factory=IkeChanges)

    @property
    def manual(self) -> bool:
        """True where SAs or policies of the file itself differ."""
        return bool(self.remove_first or self.added or self.replaced or self.policies or self.removed)

    def __bool__(self) -> bool:
        return self.manual or bool(self.ike)

    def __str__(self) -> str:
        removed = len(self.remove_first) + len(self.removed)
        counts = ((len(self.added), "added"), (len(self.replaced), "replaced"), (removed, "removed"))
        parts = [f"{count} SA{'s' if count > 1 else ''} {word}" for count, word in counts if count]
        if self.policies:
            parts.append("policies replaced")
        if self.ike:
            parts.append(str(self.ike))
        return ", ".join(parts) or "nothing changed"


def compare(old: Config, alive: Mapping[str, SaSpec], new: Config) -> Changes:
    """What leads from `old`, of whose SAs those in `alive` are in use, to `new`.

    An SA is known by its name; one that changed in any way is replaced, unless it changed direction.
    """
    after = {sa.name: sa for sa in new.sas}
    turned = {
        name for name, sa in after.items() if name in alive and sa.direction is not alive[name].direction
    }
    gone = [name for name in alive if name not in after or name in turned]
    added = [sa for name, sa in after.items() if name not in alive or name in turned]
    replaced = [
        sa for name, sa in after.items() if name in alive and name not in turned and sa != alive[name]
    ]
    coming = [*added, *replaced]
    first = [name for name in gone if name in turned or any(_collide(alive[name], sa) for sa in coming)]
    restart = [
        f"gateway.{each.name}"
        for each in fields(old.gateway)
        if each.name not in RELOADABLE and getattr(old.gateway, each.name) != getattr(new.gateway, each.name)
    ]
    if old.ike.settings.nat_ports != new.ike.settings.nat_ports:
        restart.append("ike.port, ike.nat_port")
    if old.ports != new.ports:
        restart.append("port")
    if bool(old.ike.connections) != bool(new.ike.connections):
        restart.append("connections (the first or the last)")
    elif reassembles_udp(new) and not reassembles_udp(old) and old.ports == new.ports:
        restart.append("sa.encap (the first; until then only packets that come in one piece are received)")
    elif old.ports == new.ports and (missing := unserved(old, new)):
        restart.append(
            f"local addresses (sockets are bound since the start, to others than {', '.join(missing)})"
        )
    return Changes(
        remove_first=tuple(first),
        added=tuple(added),
        replaced=tuple(replaced),
        policies=old.policies != new.policies,
        removed=tuple(name for name in gone if name not in first),
        restart=tuple(restart),
        ike=compare_ike(old.ike, as_running(old.ike, new.ike)),
    )


def as_running(running: IkeConfig, new: IkeConfig) -> IkeConfig:
    """`new` with the workers and UDP ports of `running`, which are fixed from the start on.

    A connection initiates from one of the two ports of [ike]: here from the one that has a socket.
    """
    fixed = running.settings.nat_ports
    ports = dict(zip(new.settings.nat_ports, fixed, strict=True))
    return replace(
        new,
        settings=replace(new.settings, nat_ports=fixed, workers=running.settings.workers),
        connections=tuple(
            replace(each, local_port=ports.get(each.local_port, each.local_port)) for each in new.connections
        ),
    )


def compare_ike(old: IkeConfig, new: IkeConfig) -> IkeChanges:
    """What leads from one set of connections to another; a connection is known by its name."""
    before = {connection.name: connection for connection in old.connections}
    after = {connection.name: connection for connection in new.connections}
    differ = [
        (before[name], connection)
        for name, connection in after.items()
        if name in before and before[name] != connection
    ]
    return IkeChanges(
        added=tuple(connection for name, connection in after.items() if name not in before),
        changed=tuple(now for then, now in differ if not _alike(then, now)),
        adjusted=tuple(_adjusted(then, now) for then, now in differ if _alike(then, now)),
        removed=tuple(name for name in before if name not in after),
        credentials=old.credentials != new.credentials,
        pools=old.pools != new.pools,
    )


def _collide(old: SaSpec, new: SaSpec) -> bool:
    """True when `new` cannot be there together with `old`."""
    if old.direction is not new.direction:
        return False
    same_key = bool(new.encryption_key) and old.encryption_key == new.encryption_key
    return same_key or (new.direction is Direction.IN and old.spi == new.spi)


def _alike(old: Connection, new: Connection) -> bool:
    """Whether an IKE SA of the old one may go on as one of the new one."""
    hard = (each.name for each in fields(old) if each.name not in _SOFT and each.name != "children")
    return all(getattr(old, name) == getattr(new, name) for name in hard)


def _adjusted(old: Connection, new: Connection) -> Adjusted:
    """Which children of a connection end and begin."""
    before = {child.name: child for child in old.children}
    after = {child.name: child for child in new.children}
    return Adjusted(
        connection=new,
        ended=tuple(name for name, child in before.items() if after.get(name) != child),
        begun=tuple(name for name, child in after.items() if before.get(name) != child),
    )
