"""Two IKE daemons in one process, over loopback, each with a real dataplane on memory ports: packets all the while."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Mapping
from dataclasses import replace
from ipaddress import IPv4Address, ip_network
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from control.config.ike import IkeConfig
from control.ike.events import ChildClosed, ChildEstablished, ChildWanted, IkeEstablished, IkeFailed
from control.ike.identity import Identity
from control.ike.numbers import Protocol
from control.ike.proposal import parse_proposal
from control.ike.settings import (
    AuthSettings,
    ChildSettings,
    Connection,
    DpdAction,
    EndpointSettings,
    Lifetime,
    Retransmission,
    StartAction,
    TrafficSelector,
)
from control.ike_daemon import IkeDaemon
from control.net.mirror import Way
from control.pki.settings import CredentialSettings, PresharedKey
from control.reload import as_running, compare_ike
from control.sa.spd import Spd
from dataplane.api import DataPlane
from dataplane.model import AdjacencySpec, Mode, RouteSpec, SaSpec
from tests.control.ike.pair import esp, ike
from tests.dataplane.conftest import SMALL
from tests.dataplane.make import memory_ports
from tests.dataplane.plane import Gateway, udp

ADDRESSES = {"left": IPv4Address("127.0.0.1"), "right": IPv4Address("127.0.0.2")}
OTHER = {"left": "right", "right": "left"}
LANS = {"left": ip_network("10.1.0.0/24"), "right": ip_network("10.2.0.0/24")}
PING = {"left": ("10.1.0.5", "10.2.0.9"), "right": ("10.2.0.9", "10.1.0.5")}


def free_ports() -> tuple[int, int]:
    """Two UDP ports that nobody has at the moment."""
    with socket.socket(type=socket.SOCK_DGRAM) as one, socket.socket(type=socket.SOCK_DGRAM) as other:
        for sock in (one, other):
            sock.bind(("0.0.0.0", 0))
        return one.getsockname()[1], other.getsockname()[1]


def configuration(
    name: str,
    ports: tuple[int, int],
    secret: bytes = b"a shared secret",
    connection: Mapping[str, Any] = MappingProxyType({}),
    **rest: Any,
) -> IkeConfig:
    """One side's connection to the other, with what is said of the connection; `rest` goes to the child."""
    networks = {
        "local": (TrafficSelector(network=LANS[name]),),
        "remote": (TrafficSelector(network=LANS[OTHER[name]]),),
        "proposals": esp("aes128gcm16-esn"),
    }
    child = ChildSettings(**{"name": "net", **networks, **rest})
    made = Connection(
        name=f"to-{OTHER[name]}",
        local_addresses=(ADDRESSES[name],),
        remote_addresses=(ADDRESSES[OTHER[name]],),
        local_port=ports[0],
        remote_port=ports[0],
        proposals=ike("aes128gcm16-prfsha256-x25519"),
        local=AuthSettings(identity=Identity.parse(f"{name}.example")),
        remote=AuthSettings(identity=Identity.parse(f"{OTHER[name]}.example")),
        children=(child,),
        dpd_delay=30.0,
        retransmission=Retransmission(timeout=0.2, tries=2),
    )
    return IkeConfig(
        settings=EndpointSettings(nat_ports=ports),
        connections=(replace(made, **connection),),
        credentials=CredentialSettings(preshared_keys=(PresharedKey(secret=secret),)),
    )


class Side:
    """A daemon with its dataplane."""

    def __init__(self, name: str, directory: Path, ports: tuple[int, int], **rest: Any) -> None:
        self.name = name
        self.plane = DataPlane.create(
            ports=memory_ports(), limits=SMALL, state_dir=directory / name, kernel=False
        )
        self.packets = Gateway(self.plane)
        self.spd = Spd(self.plane)
        self.hosts = rest.get("mode") is Mode.TRANSPORT
        self.config = configuration(name, ports, **rest)
        self.daemon = IkeDaemon.create(self.config, self.plane, self.spd, self)

    def follow_sa(self, spec: SaSpec) -> Way:
        return Way(adjacency=AdjacencySpec(port="wan"), mtu=1500)

    def forget_sa(self, name: str) -> None:
        pass

    async def start(self) -> None:
        self.daemon.sockets.open([ADDRESSES[self.name]])
        inside = (LANS[self.name], ip_network(ADDRESSES[self.name]))
        await self.plane.set_routes(
            [RouteSpec(prefix=prefix, adjacency=AdjacencySpec(port="lan")) for prefix in inside]
        )
        await self.daemon.start()

    async def close(self) -> None:
        await self.daemon.stop()
        await self.daemon.close()
        self.plane.close()

    def events(self, kind: type) -> list[Any]:
        """What the daemon published of a class."""
        return [record.event for record in self.daemon.feed.last(1000) if isinstance(record.event, kind)]

    @property
    def children(self) -> list[int]:
        """Child ids in the dataplane that packets leave by."""
        return [child for child, each in self.daemon.children.installed.items() if each.outbound]


class World:
    """Both sides; an async context."""

    def __init__(
        self, directory: Path, left: dict[str, Any] | None = None, right: dict[str, Any] | None = None
    ) -> None:
        self.make = (directory, free_ports(), left or {}, right or {})

    async def __aenter__(self) -> World:
        directory, ports, left, right = self.make
        self.left = Side("left", directory, ports, **left)
        self.right = Side("right", directory, ports, **right)
        await self.right.start()
        await self.left.start()
        return self

    async def __aexit__(self, *args: object) -> None:
        await self.left.close()
        await self.right.close()

    def packet(self, near: Side, far: Side) -> bytes:
        """One from one side to the other: of the networks or, in transport mode, of the hosts."""
        ends = (str(ADDRESSES[near.name]), str(ADDRESSES[far.name])) if near.hosts else PING[near.name]
        return udp(*ends)

    def carried(self) -> bool:
        """Whether a packet each way arrives."""
        for near, far in ((self.left, self.right), (self.right, self.left)):
            packet = self.packet(near, far)
            out = near.packets.out(packet)
            if len(out) != 1 or far.packets.back(out[0]) != [packet]:
                return False
        return True

    async def up(self) -> None:
        """The child is there on both sides."""
        await until(lambda: bool(self.left.children and self.right.children) and not self.left.spd.stale)
        await until(self.carried)


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop run until something holds."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 (nobody tells)
            await asyncio.sleep(0.005)


START = {"start_action": StartAction.START}


def test_a_tunnel_comes_up_and_goes(tmp_path: Path) -> None:
    """Packets pass; the log has no key; an end is told to the peer, whose SAs go."""

    async def scenario() -> None:
        async with World(tmp_path, left=START) as world:
            await world.up()
            [established] = world.left.events(ChildEstablished)
            assert established.child.encryption_key_in == established.child.encryption_key_out == b""
            assert [event.remote_id for event in world.right.events(IkeEstablished)] == ["left.example"]
            traffic = world.left.daemon.traffic()[world.left.children[0]]
            assert traffic.packets_in == traffic.packets_out > 0 < traffic.bytes_in
            spec = world.left.daemon.children.spec(f"to-right/net#{world.left.children[0]}/out")
            assert spec is not None and spec.remote == ADDRESSES["right"]
            world.left.daemon.terminate_ike(world.left.daemon.snapshot()[0].id)
            await until(lambda: not world.right.children and not world.right.daemon.snapshot())
            assert not world.carried()

    asyncio.run(scenario())


def test_traffic_brings_a_trapped_child_about(tmp_path: Path) -> None:
    """From either side, and again after it was taken down."""

    async def scenario() -> None:
        trap = {"start_action": StartAction.TRAP}
        async with World(tmp_path, left=trap, right=trap) as world:
            for _ in range(2):
                assert not world.carried()
                await until(world.carried)
                assert len(world.left.children) == len(world.right.children) == 1
                world.right.daemon.terminate_ike(world.right.daemon.snapshot()[0].id)
                await until(lambda: not world.left.children and not world.right.children)

    asyncio.run(scenario())


def test_a_child_that_was_closed_leaves_a_trap(tmp_path: Path) -> None:
    """It was brought up by command and closed by the peer: traffic brings it back, until we close it ourselves."""

    async def scenario() -> None:
        trapped = {"close_action": StartAction.TRAP}
        async with World(tmp_path, left=trapped) as world:
            left, right = world.left, world.right
            assert left.spd.policies() == []
            left.daemon.initiate("to-right", "net")
            await world.up()
            right.daemon.terminate_child(right.children[0])
            await until(lambda: not left.children and not right.children)
            (policy,) = left.spd.policies()
            assert policy.sa is None and not world.carried()  # the packet is dropped, and asks for the child
            await until(world.carried)
            left.daemon.terminate_child(left.children[0])
            await until(lambda: not left.children and not right.children)
            assert left.spd.policies() == []

    asyncio.run(scenario())


HOSTS = {"local": (TrafficSelector(),), "remote": (TrafficSelector(),), "mode": Mode.TRANSPORT}


def test_transport_mode_between_hosts(tmp_path: Path) -> None:
    """Packets of the two hosts keep their header, through a rekeying as well; a move ends the child."""

    async def scenario() -> None:
        async with World(tmp_path, left=START | HOSTS, right=HOSTS) as world:
            await world.up()
            [established] = world.left.events(ChildEstablished)
            assert established.child.mode is Mode.TRANSPORT
            [sealed] = world.left.packets.out(udp(str(ADDRESSES["left"]), str(ADDRESSES["right"])))
            assert sealed[12:20] == ADDRESSES["left"].packed + ADDRESSES["right"].packed and sealed[9] == 50
            world.left.daemon.rekey_child(world.left.children[0])
            await until(lambda: len(world.right.events(ChildClosed)) == 1)
            assert world.carried()
            [ike], moved = world.left.daemon.snapshot(), IPv4Address("127.0.0.3")
            world.left.daemon.children.path_changed(ike.id, replace(ike.path, local=moved), False)
            await until(lambda: not world.left.children and not world.right.children)

    asyncio.run(scenario())


def test_ah_in_both_modes(tmp_path: Path) -> None:
    """Packets of the networks in a tunnel of AH, and of the hosts behind AH; rekeyed as ESP is."""

    async def scenario(mode: dict[str, Any], directory: Path) -> None:
        proposals = {"proposals": (parse_proposal(Protocol.AH, "sha256-esn"),)}
        async with World(directory, left=START | mode | proposals, right=mode | proposals) as world:
            await world.up()
            [sealed] = world.left.packets.out(world.packet(world.left, world.right))
            assert sealed[9] == 51
            world.left.daemon.rekey_child(world.left.children[0])
            await until(lambda: len(world.right.events(ChildClosed)) == 1)
            assert world.carried()

    for number, mode in enumerate(({}, HOSTS)):
        asyncio.run(scenario(mode, tmp_path / str(number)))


def test_what_a_child_carries_ends_its_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After so many packets it is rekeyed, and packets pass all the while."""
    monkeypatch.setattr("control.ike_watch.TRAFFIC_INTERVAL", 0.02)

    async def scenario() -> None:
        limits = {"lifetime": Lifetime(rekey=0, rekey_packets=10)}
        async with World(tmp_path, left=START | limits) as world:
            await world.up()
            for _ in range(40):
                assert world.carried()
                await asyncio.sleep(0.01)
            await until(lambda: len(world.left.events(ChildClosed)) >= 2)
            assert {event.replaced_by is not None for event in world.left.events(ChildClosed)} == {True}
            assert world.carried()

    asyncio.run(scenario())


def test_a_bug_costs_what_met_it_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An exception out of the protocol is logged with its traceback; the tunnel stays, the daemon goes on."""
    logging.getLogger("esplanade").propagate = True

    async def scenario() -> None:
        async with World(tmp_path, left=START) as world:
            await world.up()
            endpoint = world.right.daemon.endpoint
            receive = endpoint.receive_datagram

            def broken(*arguments: Any) -> None:
                endpoint.receive_datagram = receive  # type: ignore[method-assign]
                raise RuntimeError("this was not foreseen")

            endpoint.receive_datagram = broken  # type: ignore[method-assign]
            world.left.daemon.rekey_child(world.left.children[0])
            # The request is sent again, and answered.
            await until(lambda: len(world.left.events(ChildEstablished)) == 2)
            await until(world.carried)

    asyncio.run(scenario())
    assert "this was not foreseen" in caplog.text and "everything else goes on" in caplog.text


def test_a_silent_peer_is_named(tmp_path: Path) -> None:
    """Nobody listens there: what was sent, how often, and what ICMP said."""

    async def scenario() -> None:
        world = World(tmp_path)
        directory, ports, *_ = world.make
        left = Side("left", directory, ports, **START)
        await left.start()
        await until(lambda: bool(left.events(IkeFailed)))
        [failed] = left.events(IkeFailed)
        assert failed.failure.code == "peer_silent"
        assert "127.0.0.2" in failed.failure.text and "ICMP port unreachable" in failed.failure.text
        await left.close()

    asyncio.run(scenario())


def test_a_reload_leaves_alone_what_stays(tmp_path: Path) -> None:
    """A connection that is new, and another PSK for others, touch no tunnel; a changed one comes up anew."""

    async def scenario() -> None:
        async with World(tmp_path, left=START) as world:
            await world.up()
            daemon, before = world.left.daemon, world.left.daemon.snapshot()[0].id
            config = world.left.config
            more = replace(
                config.connections[0], name="more", remote_addresses=(IPv4Address("127.0.0.3"),), children=()
            )
            grown = replace(
                config,
                connections=(*config.connections, more),
                credentials=CredentialSettings(
                    preshared_keys=(
                        *config.credentials.preshared_keys,
                        PresharedKey(
                            identities=(Identity.parse("nobody.example"),), secret=b"of no use here"
                        ),
                    )
                ),
            )
            await daemon.reload(grown, compare_ike(config, grown))
            assert [each.id for each in daemon.snapshot()] == [before] and "more" in daemon.connections
            assert world.carried()
            changed = replace(grown, connections=(replace(config.connections[0], mobike=False),))
            await daemon.reload(changed, compare_ike(grown, changed))
            await until(
                lambda: [each.id for each in daemon.snapshot() if each.established] not in ([before], [])
            )
            await world.up()
            assert "more" not in daemon.connections

    asyncio.run(scenario())


def test_ports_and_workers_wait_for_a_restart(tmp_path: Path) -> None:
    """A reload that has others leaves tunnels alone, and what begins then begins from the sockets that there are."""

    async def scenario() -> None:
        async with World(tmp_path, left=START) as world:
            await world.up()
            daemon, before, config = world.left.daemon, world.left.daemon.snapshot()[0], world.left.config
            running, others = config.settings, (2, 3)  # of nobody
            moved = replace(
                config,
                settings=replace(running, nat_ports=others, workers=7, cookie_threshold=1),
                connections=(replace(config.connections[0], local_port=others[0]),),
            )
            await daemon.reload(moved, compare_ike(config, as_running(config, moved)))
            assert [each.id for each in daemon.snapshot()] == [before.id] and world.carried()
            assert daemon.endpoint.settings == daemon.settings == replace(running, cookie_threshold=1)
            daemon.terminate_ike(before.id)
            await until(lambda: not world.left.children and not world.right.children)
            daemon.initiate("to-right", "net")
            await world.up()
            [after] = daemon.snapshot()
            assert after.id != before.id and after.path.local_port == running.nat_ports[1]

    asyncio.run(scenario())


def test_a_way_that_comes_back_brings_its_child_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The peer died with the route to it: the child that keeps itself up comes with the next route."""
    monkeypatch.setattr("control.ike_watch.TRAFFIC_INTERVAL", 0.02)
    route = [True]
    monkeypatch.setattr(
        "control.ike_daemon.source_address", lambda remote: ADDRESSES["left"] if route[0] else None
    )

    async def scenario() -> None:
        kept = START | {"dpd_action": DpdAction.RESTART, "connection": {"local_addresses": ()}}
        async with World(tmp_path, left=kept) as world:
            await world.up()
            left, right = world.left, world.right
            route[0] = False
            right.daemon.sockets.close()
            left.daemon.rekey_child(left.children[0])
            await until(lambda: bool(left.events(ChildWanted)))
            assert not left.children and not left.daemon.snapshot()
            right.daemon.sockets.open([ADDRESSES["right"]])
            route[0] = True
            await world.up()

    asyncio.run(scenario())


def test_each_lost_address_is_replaced_by_the_one_towards_its_peer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two uplinks: what goes to one peer does not leave by the address that leads to the other."""
    first, second = IPv4Address("127.0.0.2"), IPv4Address("127.0.0.3")
    towards = {first: IPv4Address("127.0.0.4"), second: IPv4Address("127.0.0.5")}
    monkeypatch.setattr("control.ike_daemon.source_address", towards.get)

    async def scenario() -> None:
        left = Side("left", tmp_path, free_ports())
        daemon, [connection] = left.daemon, left.config.connections
        for number, peer in enumerate((first, second, first)):
            named = replace(connection, name=str(number), remote_addresses=(peer,))
            daemon.endpoint.initiate(named, None, daemon.now())
        daemon.addresses_changed([ADDRESSES["left"]])
        assert {each.path.local for each in daemon.snapshot()} == {ADDRESSES["left"]}
        daemon.addresses_changed(list(towards.values()))
        moved = [(each.path.remote, each.path.local) for each in daemon.snapshot()]
        assert moved == [(peer, towards[peer]) for peer in (first, second, first)]
        await left.close()

    asyncio.run(scenario())


def test_what_starts_by_itself_is_begun_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its peer was silent for longer than an attempt takes, and comes back."""
    monkeypatch.setattr("control.ike_watch.TRAFFIC_INTERVAL", 0.02)
    monkeypatch.setattr("control.ike_watch.START_AGAIN", 0.1)

    async def scenario() -> None:
        directory, ports, *_ = World(tmp_path).make
        left, right = Side("left", directory, ports, **START), Side("right", directory, ports)
        await left.start()
        await until(lambda: len(left.events(IkeFailed)) == 2)  # once, and again
        await right.start()
        await until(lambda: bool(left.children))
        await left.close()
        await right.close()

    asyncio.run(scenario())
