"""`up`, `down`, `rekey`, `log` and `keys` inside the gateway: 1 find what is meant 2 ask for it 3 tell what happens.

A NAME is a connection's, `connection/child`, or a child's where only one connection has a child of that name. A
command ends when what it asked for has come about or has failed; the events on the way are its items.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from control.admin.feed import Follower, Record
from control.admin.server import CommandError, Stream
from control.admin.steering import IkeControl
from control.config.problems import nearest
from control.ike.events import (
    ChildClosed,
    ChildEstablished,
    ChildFailed,
    Event,
    IkeClosed,
    IkeEstablished,
    IkeFailed,
    IkeRekeyed,
    KeysExported,
)
from control.ike.settings import Connection
from control.ike.snapshot import ChildSnapshot, IkeSnapshot

Items = AsyncGenerator[Mapping[str, Any], None]
LINGERING = ("rekeyed", "deleting")  # states of SAs that another has taken the place of


@dataclass(frozen=True, kw_only=True)
class Target:
    """What a NAME means."""

    connection: Connection
    child: str | None  # None: all of the connection

    @property
    def children(self) -> tuple[str, ...]:
        """Names of the children that are meant."""
        if self.child is not None:
            return (self.child,)
        return tuple(child.name for child in self.connection.children)


class IkeCommands:
    """The streams of the status socket that steer and show IKE."""

    def __init__(self, control: IkeControl) -> None:
        self.control = control

    def streams(self) -> dict[str, Stream]:
        """By the names of the commands."""
        return {"up": self.up, "down": self.down, "rekey": self.rekey, "log": self.log, "keys": self.keys}

    # ---- up, down, rekey

    async def up(self, arguments: Mapping[str, Any]) -> Items:
        """Bring up a connection with all its children, or one child."""
        target = self._target(arguments)
        if not target.children:
            if any(sa.established for sa in self._ike_sas(target)):
                yield {"text": f"{target.connection.name} is up already, and has no children"}
                return
            with self.control.feed.follow() as follower:
                ike = self._initiate(target, None)
                async for item in self._until(follower, _ike_is_up(ike)):
                    yield item
            return
        for name in target.children:
            if self._installed(target.connection.name, name):
                yield {"text": f"{target.connection.name}: child {name} is up already"}
                continue
            with self.control.feed.follow() as follower:
                ike = self._initiate(target, name)
                async for item in self._until(follower, _child_is_up(ike, name)):
                    yield item
        await self.control.policies_settled()  # who reads that it is up may send the next moment

    def _initiate(self, target: Target, child: str | None) -> int:
        try:
            return self.control.initiate(target.connection.name, child)
        except ValueError as error:
            raise CommandError(f"{_label(target)} cannot be begun: {error}") from None

    async def down(self, arguments: Mapping[str, Any]) -> Items:
        """Delete a connection's IKE SAs with their children, or the SAs of one child."""
        target = self._target(arguments)
        with self.control.feed.follow() as follower:
            if target.child is None:
                going = {sa.id for sa in self._ike_sas(target)}
                for ike in going:
                    self.control.terminate_ike(ike)
                done = _all_gone(going, ike=True)
            else:
                going = {child.sa.id for child in self._child_sas(target)}
                for child in going:
                    self.control.terminate_child(child)
                done = _all_gone(going, ike=False)
            if not going:
                raise CommandError(f"{_label(target)} is not up; esplanade status shows what is")
            async for item in self._until(follower, done):
                yield item

    async def rekey(self, arguments: Mapping[str, Any]) -> Items:
        """Replace the SAs of a child, or (what = ike) those of the connection's IKE SA; a connection: both."""
        target = self._target(arguments)
        what = arguments.get("what", "all")
        if what not in ("all", "ike", "child"):
            raise CommandError(f'got what = {what!r:.40}, want "all", "ike" or "child"')
        children = [child.sa.id for child in self._child_sas(target)] if what != "ike" else []
        sas = [sa.id for sa in self._ike_sas(target)] if what != "child" and target.child is None else []
        if not children and not sas:
            raise CommandError(
                f"{_label(target)} is not up; bring it up first: esplanade up {_label(target)}"
            )
        # One after the other: a peer answers TEMPORARY_FAILURE to crossing ones (RFC 7296 section 2.25).
        for child in children:
            with self.control.feed.follow() as follower:
                self._asked(self.control.rekey_child, child)
                async for item in self._until(follower, _child_is_replaced(child)):
                    yield item
        for ike in sas:
            with self.control.feed.follow() as follower:
                self._asked(self.control.rekey_ike, ike)
                async for item in self._until(follower, _ike_is_replaced(ike)):
                    yield item

    @staticmethod
    def _asked(verb: Callable[[int], None], number: int) -> None:
        """Ask for something about an SA that may have gone meanwhile."""
        try:
            verb(number)
        except KeyError:
            raise CommandError(f"SA {number} has gone meanwhile; see esplanade log") from None

    async def _until(self, follower: Follower, done: Callable[[Event], bool]) -> Items:
        """Events that have to do with it, until `done` says so (CommandError: it has failed)."""
        while True:
            record = await follower.next()
            finished, failure = False, None
            try:
                finished = done(record.event)
            except _Unrelated:
                continue
            except CommandError as error:
                failure = error
            yield record.as_dict()
            if failure is not None:
                raise failure
            if finished:
                return

    # ---- log, keys

    async def log(self, arguments: Mapping[str, Any]) -> Items:
        """The last events, then each as it happens (follow = false: only the last ones)."""
        count = arguments.get("last", 20)
        if not isinstance(count, int) or isinstance(count, bool) or count < 0:
            raise CommandError(f"got last = {count!r:.40}, want a number from 0")
        only = self._target(arguments).connection.name if arguments.get("name") else None

        def wanted(record: Record) -> bool:
            return only in (None, record.event.connection)

        with self.control.feed.follow() as follower:
            for record in self.control.feed.last(count):
                if wanted(record):
                    yield record.as_dict()
            while arguments.get("follow", True):
                record = await follower.next()
                if follower.lost:
                    yield {"event": "lost", "text": f"{follower.lost} events lost: this reader is too slow"}
                    follower.lost = 0
                if wanted(record):
                    yield record.as_dict()

    async def keys(self, arguments: Mapping[str, Any]) -> Items:
        """Lines for Wireshark's tables, those of the past first; refused unless the configuration allows it."""
        if not self.control.settings.export_keys:
            raise CommandError(
                "keys are not exported, because the configuration does not allow it; set [ike] export_keys = true, "
                "reload the gateway (SIGHUP), and set up the SAs anew"
            )
        with self.control.feed.follow() as follower:
            for event in self.control.feed.exported_keys():
                yield {"table": event.table, "line": event.line}
            while arguments.get("follow", True):
                later = (await follower.next()).event
                if isinstance(later, KeysExported):
                    yield {"table": later.table, "line": later.line}

    # ---- what a NAME means

    def _target(self, arguments: Mapping[str, Any]) -> Target:
        name = arguments.get("name")
        connections = self.control.connections
        if not isinstance(name, str) or not name:
            raise CommandError("the name of a connection is missing")
        if name in connections:
            return Target(connection=connections[name], child=None)
        first, slash, second = name.partition("/")
        if slash and first in connections:
            names = [child.name for child in connections[first].children]
            if second in names:
                return Target(connection=connections[first], child=second)
            raise CommandError(
                f"connection {first} has no child {second[:64]!r}; it has {', '.join(names) or 'none'}"
            )
        owners = [
            connection
            for connection in connections.values()
            if any(child.name == name for child in connection.children)
        ]
        if len(owners) == 1:
            return Target(connection=owners[0], child=name)
        if owners:
            choices = " or ".join(f"{connection.name}/{name}" for connection in owners[:8])
            raise CommandError(f"several connections have a child {name}; want {choices}")
        raise CommandError(
            f"there is no connection or child {name[:64]!r}{nearest(name, connections)}; "
            f"there are {', '.join(list(connections)[:16]) or 'none'}"
        )

    def _ike_sas(self, target: Target) -> list[IkeSnapshot]:
        """The connection's IKE SAs that are not being replaced or deleted."""
        return [sa for sa in self.control.snapshot(target.connection.name) if sa.state not in LINGERING]

    def _child_sas(self, target: Target) -> list[ChildSnapshot]:
        return [
            child
            for sa in self._ike_sas(target)
            for child in sa.children
            if child.state not in LINGERING and child.sa.settings.name in target.children
        ]

    def _installed(self, connection: str, child: str) -> bool:
        target = Target(connection=self.control.connections[connection], child=child)
        return bool(self._child_sas(target))


class _Unrelated(Exception):
    """An event that has nothing to do with the command."""


def _label(target: Target) -> str:
    return target.connection.name + (f"/{target.child}" if target.child is not None else "")


def _of(event: Event, ike: int) -> None:
    """Go on only with events of this IKE SA."""
    if event.ike != ike:
        raise _Unrelated


def _ike_is_up(ike: int) -> Callable[[Event], bool]:
    def done(event: Event) -> bool:
        _of(event, ike)
        if isinstance(event, IkeFailed | IkeClosed):
            raise CommandError(str(event.failure or "the IKE SA is gone"))
        return isinstance(event, IkeEstablished)

    return done


def _child_is_up(ike: int, name: str) -> Callable[[Event], bool]:
    current = ike  # the IKE SA may be replaced on the way

    def done(event: Event) -> bool:
        nonlocal current
        _of(event, current)
        if isinstance(event, IkeRekeyed):
            current = event.new
        elif isinstance(event, IkeFailed | IkeClosed):
            raise CommandError(str(event.failure or "the IKE SA is gone"))
        elif isinstance(event, ChildFailed) and event.name == name:
            raise CommandError(str(event.failure))
        return isinstance(event, ChildEstablished) and event.child.settings.name == name

    return done


def _all_gone(going: Iterable[int], *, ike: bool) -> Callable[[Event], bool]:
    left = set(going)

    def done(event: Event) -> bool:
        if isinstance(event, IkeClosed | IkeFailed) and ike and event.ike in left:
            left.discard(event.ike)
        elif isinstance(event, ChildClosed) and not ike and event.child in left:
            left.discard(event.child)
        elif not ike or event.ike not in left:
            raise _Unrelated
        return not left

    return done


def _child_is_replaced(child: int) -> Callable[[Event], bool]:
    def done(event: Event) -> bool:
        if isinstance(event, ChildEstablished) and event.replaces == child:
            return True
        if isinstance(event, ChildClosed) and event.child == child:
            raise CommandError(str(event.failure or f"the child is gone: {event.why.value}"))
        raise _Unrelated

    return done


def _ike_is_replaced(ike: int) -> Callable[[Event], bool]:
    def done(event: Event) -> bool:
        _of(event, ike)
        if isinstance(event, IkeClosed):
            raise CommandError(str(event.failure or f"the IKE SA is gone: {event.why.value}"))
        return isinstance(event, IkeRekeyed)

    return done
