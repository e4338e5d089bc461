"""IKE SAs that we begin: 1 one that is there is used 2 its two addresses 3 IKE_SA_INIT is queued.

A user, traffic or the start of the gateway wants a child; an IKE SA is to be authenticated anew; or a peer that has not
answered at all is tried once more. All three differ only in what the new IKE SA's handshake is told. Without a way to
the peer nothing begins, but what has begun goes on to try: the way may come back.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from control.ike.ends import NoOwnAddress, SourceAddress, own_address, peer_address
from control.ike.events import Failure, PeerPath
from control.ike.selectors import PacketSelectors
from control.ike.settings import ChildSettings, Connection
from control.ike.v2.choice import Connections
from control.ike.v2.handshake import Handshake
from control.ike.v2.host import Host
from control.ike.v2.registry import Registry
from control.ike.v2.sa import IkeSa
from control.ike.v2.states import State
from control.ike.v2.tasks import renew
from control.ike.v2.tasks.delete import DeleteIke
from control.ike.v2.tasks.init import IkeInit


class Initiation:
    """Begins the IKE SAs of one endpoint. ValueError says what is not configured, NoOwnAddress what is not there."""

    def __init__(
        self, host: Host, registry: Registry, connections: Iterable[Connection], source: SourceAddress
    ) -> None:
        """`source` gives our address towards a peer, for connections that name none."""
        self.connections = Connections(connections)
        self._host = host
        self._registry = registry
        self._source = source

    def wanted(
        self,
        connection: Connection | str,
        child: ChildSettings | str | None,
        packet: PacketSelectors | None,
        now: float,
    ) -> IkeSa:
        """Have a child set up, on an IKE SA that is there or under way, else on a new one; see `Endpoint.initiate`."""
        settings = self._connection(connection)
        child = _child(settings, child)
        sa = self._usable(settings)
        if sa is None:
            handshake = Handshake()
            handshake.child, handshake.packet = child, packet
            return self._begin(settings, self._path(settings), handshake, now)
        if child is not None:
            self._host.act(sa, now, lambda: renew.add_child(sa, child, now, packet))
        return sa

    def _connection(self, connection: Connection | str) -> Connection:
        if isinstance(connection, Connection):
            return connection
        try:
            return self.connections.by_name[connection]
        except KeyError:
            names = ", ".join(sorted(self.connections.by_name)) or "none"
            raise ValueError(f"no connection '{connection}'; there are {names}") from None

    def _usable(self, connection: Connection) -> IkeSa | None:
        """An IKE SA of a connection that can have another child; the latest."""

        def usable(sa: IkeSa) -> bool:
            # One of this name may be from before it was configured anew.
            if sa.connection.name != connection.name or sa.connection != connection:
                return False
            begun = sa.state is State.ESTABLISHED or (sa.state.half_open and sa.initiator)
            return begun and not sa.has_task(DeleteIke)

        return self._registry.latest(usable)

    def again(self, sa: IkeSa, now: float) -> None:
        """Begin one that takes the place of `sa` when it is there: over the same path, a NAT knows that."""
        handshake = Handshake()
        handshake.replaces = sa
        handshake.child = next((child.spec.settings for child in sa.children.values()), None)
        self._begin(sa.connection, sa.path, handshake, now)

    def retry(self, sa: IkeSa, failure: Failure, now: float) -> bool:
        """Begin one in place of `sa`, whose peer was silent; False when no more attempts are allowed."""
        connection, old = sa.connection, sa.handshake
        if old is None or not sa.initiator or 0 < connection.keying_tries <= old.tries:
            return False
        limit = f" of {connection.keying_tries}" if connection.keying_tries else ""
        sa.note("warning", f"attempt {old.tries}{limit}: {failure}")
        handshake = Handshake()
        handshake.child, handshake.packet, handshake.replaces = old.child, old.packet, old.replaces
        handshake.tries = old.tries + 1
        path = old.replaces.heir.path if old.replaces is not None else self._path_again(sa)
        waiting = sa.abandon(now)
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
        sa = IkeSa(self._host, connection, path, initiator=True, id=id)
        sa.created = now
        sa.handshake = handshake
        self._host.register(sa)
        self._host.act(sa, now, lambda: sa.queue(IkeInit(initiator=True), now))
        return sa

    def _path(self, connection: Connection) -> PeerPath:
        """Where to initiate to, and from where."""
        name = connection.name
        remote = peer_address(connection.remote_addresses)
        if remote is None:
            raise ValueError(
                f"connection '{name}' has no address of the peer to initiate to; set remote_addrs"
            )
        local = own_address(connection, self._source)
        if local is None:
            raise NoOwnAddress(f"connection '{name}': no address of ours towards {remote}; set local_addrs")
        return PeerPath(
            local=local, local_port=connection.local_port, remote=remote, remote_port=connection.remote_port
        )

    def _path_again(self, sa: IkeSa) -> PeerPath:
        """Where another attempt goes, and from where: as the last one, while nothing leads to the peer."""
        connection = sa.connection
        try:
            return self._path(connection)
        except NoOwnAddress:
            # Not from where it floated to: the peer is to be met on the port that it begins on.
            return replace(sa.path, local_port=connection.local_port, remote_port=connection.remote_port)


def _child(connection: Connection, child: ChildSettings | str | None) -> ChildSettings | None:
    if not isinstance(child, str):
        return child
    for each in connection.children:
        if each.name == child:
            return each
    names = ", ".join(each.name for each in connection.children) or "none"
    raise ValueError(f"connection '{connection.name}' has no child '{child}'; there are {names}")
