"""Which children keep a policy while they have no SA: those that start with the gateway or with traffic.

What such a policy matches is dropped until an SA is there, and the first packet asks for one. So nothing that a
`start` or `trap` child should protect leaves in clear while its tunnel is down (RFC 4301 section 5.1). Children that
wait for the peer or for a command (`start_action = none`) have no policy before they are up, and one afterwards only
where `close_action` or `dpd_action` says "trap" and it was not us who took them down. A selector that is known only
when a child is up has none either: a virtual address, or "dynamic" of a peer that may be anyone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from control.ike.ends import SourceAddress, own_address, peer_address
from control.ike.events import ChildClosed, Closed
from control.ike.settings import ChildSettings, Connection, DpdAction, StartAction, TrafficSelector
from control.sa.selectors import pairs, resolve
from control.sa.spd import Spd, Trap
from dataplane.model import Address


def traps_of(
    connections: Iterable[Connection], source: SourceAddress, left: Collection[tuple[str, str]] = ()
) -> list[Trap]:
    """The traps of all connections; `source` tells from which address the kernel would reach a peer.

    `left` are children, by connection and name, that left one behind when they went.
    """
    found = []
    for connection in connections:
        for child in connection.children:
            if child.start_action is StartAction.NONE and (connection.name, child.name) not in left:
                continue
            trap = trap_of(connection, child, source)
            if trap.selectors:
                found.append(trap)
    return found


class Traps:
    """The traps of one SPD: those of the configuration, and those that children leave behind when they go."""

    def __init__(self, spd: Spd, source: SourceAddress) -> None:
        self._spd = spd
        self._source = source
        self._connections: dict[str, Connection] = {}
        self._left: set[tuple[str, str]] = set()  # children that left one behind, by connection and name

    def configure(
        self,
        connections: Iterable[Connection],
        *,
        forget: Collection[str] = (),
        ended: Collection[tuple[str, str]] = (),
    ) -> None:
        """Set the traps of these connections, now or anew.

        What children left behind stays, but for those of the connections in `forget` and for the children `ended`.
        """
        self._connections = {connection.name: connection for connection in connections}
        self._left = {each for each in self._left if each[0] not in forget and each not in ended}
        self._spd.set_traps(traps_of(self._connections.values(), self._source, self._left))

    def closed(self, event: ChildClosed) -> None:
        """A child that traffic is to bring back has a policy from now on, if it had none by itself."""
        connection = self._connections.get(event.connection)
        children = connection.children if connection is not None else ()
        child = next((each for each in children if each.name == event.name), None)
        if connection is None or child is None:
            return
        name = (event.connection, event.name)
        if left_behind(event, child):
            self._left.add(name)
            self._spd.add_trap(trap_of(connection, child, self._source))
        elif event.why is Closed.LOCAL and name in self._left:
            self._left.discard(name)
            self._spd.remove_trap(*name)


def left_behind(event: ChildClosed, child: ChildSettings) -> bool:
    """Whether a child that has gone leaves a trap that it did not have before it came."""
    if child.start_action is not StartAction.NONE or event.replaced_by is not None:
        return False
    if event.why is Closed.PEER_DEAD:
        return child.dpd_action is DpdAction.TRAP
    return event.why in (Closed.PEER, Closed.EXPIRED) and child.close_action is StartAction.TRAP


def trap_of(connection: Connection, child: ChildSettings, source: SourceAddress) -> Trap:
    """The trap of one child, whatever its settings say; without selectors where none is known before it is up."""
    remote = peer_address(connection.remote_addresses)
    local = None if connection.virtual_addresses else own_address(connection, source)
    return Trap(
        connection=connection.name,
        child=child.name,
        selectors=pairs(_resolved(child.local, local), _resolved(child.remote, remote)),
    )


def _resolved(selectors: Iterable[TrafficSelector], address: Address | None) -> Iterator[TrafficSelector]:
    for selector in selectors:
        resolved = resolve(selector, address)
        if resolved is not None:
            yield resolved
