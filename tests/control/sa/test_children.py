"""Children of IKE in a real dataplane: two of them joined by memory ports, packets at every step of a rekey."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, ip_address
from pathlib import Path

import pytest

from control.ike.events import ChildEstablished, ChildSa, PeerPath
from control.ike.settings import ChildSettings, TrafficSelector
from control.net.mirror import Way
from control.sa.children import Children
from control.sa.spd import Spd, Trap
from dataplane.api import DataPlane
from dataplane.model import (
    Action,
    AdjacencySpec,
    Cipher,
    EspProposal,
    Mode,
    PolicySpec,
    RouteSpec,
    SaSpec,
    SelectorSpec,
)
from tests.dataplane.conftest import SMALL
from tests.dataplane.make import memory_ports
from tests.dataplane.plane import Gateway, udp

HERE, THERE = IPv4Network("10.1.0.0/24"), IPv4Network("10.2.0.0/24")
PAIR = SelectorSpec.from_networks(HERE, THERE)
PATH = PeerPath(
    local=IPv4Address("192.0.2.1"), local_port=500, remote=IPv4Address("192.0.2.2"), remote_port=500
)
SETTINGS = ChildSettings(name="net", proposals=())
SUITE = EspProposal(cipher=Cipher.AES_GCM, key_bits=128)


class Side:
    """One gateway: dataplane, children, and what they told."""

    def __init__(self, directory: Path) -> None:
        self.plane = DataPlane.create(ports=memory_ports(), limits=SMALL, state_dir=directory)
        self.packets = Gateway(self.plane)
        self.refused: list[str] = []
        self.followed: dict[str, SaSpec] = {}
        self.spd = Spd(self.plane)
        self.children = Children(
            self.plane,
            self.spd,
            self,
            refused=lambda child, text: self.refused.append(text),
            overlap=0.02,
        )

    def follow_sa(self, spec: SaSpec) -> Way:
        self.followed[spec.name] = spec
        return Way(adjacency=AdjacencySpec(port="wan"), mtu=1400)

    def forget_sa(self, name: str) -> None:
        del self.followed[name]

    async def come(self, child: ChildSa, *, outbound: bool = True, replaces: int | None = None) -> None:
        self.children.established(
            ChildEstablished(
                ike=child.ike, connection=child.connection, child=child, outbound=outbound, replaces=replaces
            )
        )
        await self.spd.flush()


class World:
    """Two sides that are each other's peer."""

    def __init__(self, directory: Path) -> None:
        self.left, self.right = Side(directory / "left"), Side(directory / "right")
        self.sent = 0

    def pair(self, number: int, suite: EspProposal = SUITE, **rest: object) -> tuple[ChildSa, ChildSa]:
        """Both ends of a child."""
        key_a, key_b = (os.urandom(suite.encryption_key_length) for _ in range(2))
        mac_a, mac_b = (os.urandom(suite.integrity_key_length) for _ in range(2))
        left = ChildSa(
            id=number,
            ike=1,
            connection="branch",
            settings=SETTINGS,
            mode=Mode.TUNNEL,
            suite=suite,
            suite_name="",
            spi_in=0xA0000000 + number,
            spi_out=0xB0000000 + number,
            encryption_key_in=key_a,
            encryption_key_out=key_b,
            integrity_key_in=mac_a,
            integrity_key_out=mac_b,
            local_selectors=(TrafficSelector(network=HERE),),
            remote_selectors=(TrafficSelector(network=THERE),),
            path=PATH,
            encapsulated=False,
            established=0.0,
            rekey_at=0.0,
            expires_at=0.0,
        )
        left = replace(left, **rest)  # type: ignore[arg-type]
        path = left.path
        right = replace(
            left,
            spi_in=left.spi_out,
            spi_out=left.spi_in,
            encryption_key_in=key_b,
            encryption_key_out=key_a,
            integrity_key_in=mac_b,
            integrity_key_out=mac_a,
            local_selectors=left.remote_selectors,
            remote_selectors=left.local_selectors,
            path=PeerPath(
                local=path.remote,
                local_port=path.remote_port,
                remote=path.local,
                remote_port=path.local_port,
            ),
        )
        return left, right

    def ping(self) -> None:
        """A packet each way arrives."""
        for near, far, source, target in (
            (self.left, self.right, "10.1.0.5", "10.2.0.9"),
            (self.right, self.left, "10.2.0.9", "10.1.0.5"),
        ):
            self.sent += 1
            packet = udp(source, target, b"%d" % self.sent)
            (esp,) = near.packets.out(packet)
            assert far.packets.back(esp) == [packet], far.packets.drops()

    def close(self) -> None:
        for side in (self.left, self.right):
            side.plane.close()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


async def routed(world: World) -> None:
    """Decrypted packets leave by the protected port."""
    for side in (world.left, world.right):
        await side.plane.set_routes(
            [RouteSpec(prefix=network, adjacency=AdjacencySpec(port="lan")) for network in (HERE, THERE)]
        )


@pytest.mark.parametrize("rekeyer", ["left", "right"])
def test_a_rekey_always_has_a_working_pair(world: World, rekeyer: str) -> None:
    """Packets pass between every two steps, whoever begins, and what is on its way meanwhile arrives."""

    async def scenario() -> None:
        await routed(world)
        near, far = (world.left, world.right) if rekeyer == "left" else (world.right, world.left)
        left, right = world.pair(1)
        await world.right.come(right)
        await world.left.come(left)
        for number in range(2, 6):
            world.ping()
            ends = dict(zip(("left", "right"), world.pair(number), strict=True))
            new_near, new_far = ends[rekeyer], ends["right" if rekeyer == "left" else "left"]
            # The peer answers our CREATE_CHILD_SA; we hear the answer; our delete; its answer.
            await far.come(new_far, outbound=False, replaces=number - 1)
            world.ping()
            await near.come(new_near, replaces=number - 1)
            world.ping()
            late = udp("10.1.0.5", "10.2.0.9", b"late")
            source, target = world.left, world.right
            (on_its_way,) = source.packets.out(late)
            far.children.outbound_ready(number)
            far.children.closed(number - 1, replaced=True)
            world.ping()
            near.children.closed(number - 1, replaced=True)
            world.ping()
            assert target.packets.back(on_its_way) == [late]
            assert len(near.children.installed) == len(far.children.installed) == 1
            await asyncio.sleep(0.04)
        await world.left.plane.settle()
        assert world.left.plane.tables._sa_slots.taken == 2
        assert set(world.left.followed) == {"branch/net#5/out"}
        assert not world.left.refused and not world.right.refused

    asyncio.run(scenario())


def test_packets_in_flight_of_the_old_child_arrive(world: World) -> None:
    """What was sent through the old outbound SA is received during the overlap, and not after it."""

    async def scenario() -> None:
        await routed(world)
        for side, end in zip((world.left, world.right), world.pair(1), strict=True):
            await side.come(end)
        packets = [udp("10.1.0.5", "10.2.0.9", body) for body in (b"one", b"two")]
        first, second = (world.left.packets.out(packet)[0] for packet in packets)
        for side, end in zip((world.left, world.right), world.pair(2), strict=True):
            await side.come(end, replaces=1)
            side.children.closed(1, replaced=True)
        assert world.right.packets.back(first) == [packets[0]]
        await asyncio.sleep(0.05)
        assert world.right.packets.back(second) == []
        assert world.right.packets.drops()["no_sa"] == 1

    asyncio.run(scenario())


def test_a_closed_child_lets_nothing_pass(world: World) -> None:
    """Not replaced, both its SAs go at once; packets that it protected are dropped, then have no policy."""

    async def scenario() -> None:
        await routed(world)
        for side, end in zip((world.left, world.right), world.pair(1), strict=True):
            await side.come(end)
        world.ping()
        packet = udp("10.1.0.5", "10.2.0.9")
        (esp,) = world.left.packets.out(packet)
        world.right.children.closed(1, replaced=False)
        world.left.children.closed(1, replaced=False)
        assert world.right.packets.back(esp) == [] and world.left.packets.out(packet) == []
        assert world.left.packets.drops() == {"policy_no_sa": 1}
        await world.left.spd.flush()
        assert world.left.packets.out(packet) == []
        assert world.left.packets.drops() == {"policy_no_sa": 1, "no_policy": 1}

    asyncio.run(scenario())


def test_of_two_children_with_the_same_selectors_the_newer_sends(world: World) -> None:
    """As after reauthentication before the old IKE SA goes; when the newer goes, the older takes over again."""

    async def scenario() -> None:
        await routed(world)
        for number in (1, 2):
            for side, end in zip((world.left, world.right), world.pair(number), strict=True):
                await side.come(end)
        world.ping()
        traffic = world.left.children.traffic()
        assert [traffic[number][1].packets for number in (1, 2)] == [0, 1]
        for side in (world.left, world.right):
            side.children.closed(2, replaced=False)
        world.ping()
        traffic = world.left.children.traffic()
        assert [each.packets for each in traffic[1]] == [1, 1] and traffic[1][1].bytes > 0

    asyncio.run(scenario())


def test_a_trap_drops_until_a_child_comes_and_again_after_it(world: World) -> None:
    """The policy of a trap stays; a narrower child goes before it."""

    async def scenario() -> None:
        await routed(world)
        side = world.left
        side.spd.set_traps([Trap(connection="branch", child="net", selectors=(PAIR,))])
        await side.spd.flush()
        packet = udp("10.1.0.5", "10.2.0.9")
        assert side.packets.out(packet) == [] and side.packets.drops() == {"policy_no_sa": 1}
        (policy,) = side.spd.policies()
        assert side.spd.trap_of(policy.name) == ("branch", "net")

        narrow = (TrafficSelector(network=IPv4Network("10.2.0.9/32"), protocol=17),)
        for each, end in zip((world.left, world.right), world.pair(1), strict=True):
            await each.come(replace(end, remote_selectors=narrow) if each is side else end)
        world.ping()
        assert [policy.sa for policy in side.spd.policies()] == ["branch/net#1/out", None]
        side.children.closed(1, replaced=False)
        assert side.packets.out(packet) == []
        await side.spd.flush()
        assert side.packets.out(packet) == [] and side.packets.drops()["policy_no_sa"] == 3
        side.spd.set_traps([])
        await side.spd.flush()
        assert side.spd.policies() == []

    asyncio.run(scenario())


def test_a_trap_that_a_child_leaves_behind(world: World) -> None:
    """Set before the child goes, its policy stays in its place: what it matches never leaves in clear."""

    async def scenario() -> None:
        await routed(world)
        for side, child in zip((world.left, world.right), world.pair(1), strict=True):
            await side.come(child)
        world.ping()
        side, packet = world.left, udp("10.1.0.5", "10.2.0.9")
        (before,) = side.spd.policies()
        side.spd.add_trap(Trap(connection="branch", child="net", selectors=(PAIR,)))
        side.children.closed(1, replaced=False)
        (policy,) = side.spd.policies()
        assert policy.name == before.name and policy.sa is None and not side.spd.stale
        assert side.packets.out(packet) == [] and side.packets.drops() == {"policy_no_sa": 1}
        assert side.spd.trap_of(policy.name) == ("branch", "net")
        side.spd.remove_trap("branch", "net")
        assert side.spd.policies() == [] and side.spd.stale

    asyncio.run(scenario())


def test_a_child_moves_with_its_ike_sa(world: World) -> None:
    """A new path, encapsulated or not: both SAs follow, and two moves at once end at the last."""

    async def scenario() -> None:
        await routed(world)
        for side, end in zip((world.left, world.right), world.pair(1), strict=True):
            await side.come(end)
        world.ping()
        world.left.children.ike_rekeyed(1, 7)
        for port in (40001, 40002):
            left = replace(PATH, local_port=4500, remote=IPv4Address("198.51.100.9"), remote_port=port)
            right = PeerPath(
                local=left.remote, local_port=port, remote=left.local, remote_port=left.local_port
            )
            world.left.children.path_changed(7, left, True)
            world.left.children.path_changed(1, PATH, False)  # nobody's any more
            world.right.children.path_changed(1, right, True)
        for side in (world.left, world.right):
            await side.children.settled()
        world.ping()
        (esp,) = world.left.packets.out(udp("10.1.0.5", "10.2.0.9"))
        assert esp[16:24] == IPv4Address("198.51.100.9").packed + bytes.fromhex("1194") + (40002).to_bytes(
            2, "big"
        )
        spec = world.left.children.spec("branch/net#1/out")
        assert spec is not None and spec.remote == IPv4Address("198.51.100.9")
        assert world.left.children.outbound_specs() == [spec]
        assert world.left.children.spec("branch/net#2/out") is None is world.left.children.spec("manual")

    asyncio.run(scenario())


def test_what_the_dataplane_cannot_be_given_is_refused(world: World) -> None:
    """An SPI that cannot be, and one that is taken; nothing stays behind."""

    async def scenario() -> None:
        left, _ = world.pair(1)
        side = world.left
        await side.come(replace(left, spi_in=5))
        await side.come(left)
        await side.come(replace(left, id=2))
        side.children.outbound_ready(2)
        side.children.closed(2, replaced=True)
        assert side.refused == [
            "SA 'branch/net#1/in': SPI is 0x5; RFC 4303 section 2.1 leaves 0x100 to 0xffffffff",
            "SA 'branch/net#2/in': SPI 0xa0000001 belongs to SA 'branch/net#1/in'",
        ]
        assert set(side.followed) == {"branch/net#1/out"} and set(side.children.installed) == {1}
        assert side.children.installed[1].sa.encryption_key_in == b""
        side.children.close()
        await side.plane.settle()
        assert side.plane.tables._sa_slots.taken == 0

    asyncio.run(scenario())


def test_policies_are_matched_from_narrow_to_wide(world: World) -> None:
    """Configured ones come first as written, but for those that take everything, which come last."""
    everything = SelectorSpec.from_networks(IPv4Network("0.0.0.0/0"), IPv4Network("0.0.0.0/0"))

    def policy(name: str, selector: SelectorSpec, action: Action = Action.DISCARD) -> PolicySpec:
        return PolicySpec(name=name, action=action, selector=selector)

    spd = world.left.spd
    spd.set_configured(
        [policy("rest", everything), policy("wide", replace(PAIR, local_last=ip_address("10.1.255.255")))]
    )
    narrow = [
        replace(PAIR, protocol=6, remote_ports=(80, 80)),
        replace(PAIR, protocol=6),
        PAIR,
        replace(PAIR, remote_last=ip_address("10.2.1.255")),
        everything,
    ]
    spd.set_traps(
        [Trap(connection="c", child=str(number), selectors=(each,)) for number, each in enumerate(narrow)][
            ::-1
        ]
    )
    assert [each.name.partition("#")[0] for each in spd.policies()] == [
        "wide", "c/0", "c/1", "c/2", "c/3", "c/4", "rest"
    ]  # fmt: skip
