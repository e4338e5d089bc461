"""The netlink mirror against a real kernel: namespaces, veth cables, real ARP and ND."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from pyroute2 import AsyncIPRoute

from control.lab.space import PREFIX, Space, free_tag, make_spaces
from control.net.mirror import Link, MirrorPort, PeerRoute, Way
from control.net.netlink import NetlinkMirror
from dataplane.model import (
    Address,
    AdjacencySpec,
    Cipher,
    Direction,
    Encap,
    EspProposal,
    Role,
    RouteSpec,
    SaSpec,
)

pytestmark = pytest.mark.root

LAN_MAC, WAN_MAC, NEW_MAC = "02:00:00:00:00:12", "02:00:00:00:00:22", "02:00:00:00:00:99"
PORTS = (
    MirrorPort(name="lan", role=Role.PROTECTED, driver="packet", interface="lan0"),
    MirrorPort(name="wan", role=Role.UNPROTECTED, driver="xdp", interface="wan0"),
)


class Recorder:
    """A sink that remembers what it was told."""

    def __init__(self) -> None:
        self.routes: dict[str, AdjacencySpec | None] = {}
        self.adjacencies: dict[str, tuple[AdjacencySpec | None, int | None]] = {}
        self.locals: list[Address] = []
        self.ports: dict[str, tuple[Link | None, list[Address]]] = {}
        self.tables = 0  # times that routes were told

    async def set_routes(self, routes: Sequence[RouteSpec]) -> None:
        self.tables += 1
        self.routes = {str(route.prefix): route.adjacency for route in routes}

    async def set_sa_adjacency(self, name: str, adjacency: AdjacencySpec | None, mtu: int | None) -> None:
        self.adjacencies[name] = (adjacency, mtu)

    async def set_locals(self, addresses: Sequence[Address]) -> None:
        self.locals = list(addresses)

    async def port_changed(self, name: str, link: Link | None, addresses: Sequence[Address]) -> None:
        self.ports[name] = (link, list(addresses))

    def lookup(self, address: str) -> AdjacencySpec | None:
        """The adjacency of the longest matching prefix."""
        wanted = ip_address(address)
        networks = [ip_network(prefix) for prefix in self.routes]
        best = max((net for net in networks if wanted in net), key=lambda net: net.prefixlen)
        return self.routes[str(best)]


def sa(name: str, remote: str, *, local: str | None = None, encap: bool = False) -> SaSpec:
    local = local or ("192.0.2.1" if ":" not in remote else "2001:db8:f::1")
    return SaSpec(
        name=name,
        direction=Direction.OUT,
        spi=0x1001,
        local=ip_address(local),
        remote=ip_address(remote),
        proposal=EspProposal(cipher=Cipher.AES_GCM, key_bits=128),
        encryption_key=bytes(range(20)),
        encap=Encap() if encap else None,
    )


@pytest.fixture
def spaces() -> Iterator[tuple[Space, Space]]:
    """A gateway with lan0 and wan0, and a neighbourhood with the other ends of both cables."""
    with tempfile.TemporaryDirectory() as directory:
        tag = free_tag()
        gateway, others = made = make_spaces([f"{PREFIX}-{tag}-mgw", f"{PREFIX}-{tag}-mot"], Path(directory))
        try:
            for space in made:
                space.sysctl(ipv6__conf__default__accept_dad=0, ipv6__conf__all__accept_dad=0)
            gateway.ip(
                f"link add lan0 type veth peer name lan1 netns {others.name}",
                f"link add wan0 mtu 1450 type veth peer name wan1 netns {others.name}",
                "link set lo up",
                "link set lan0 up",
                "link set wan0 up",
                "address add 10.1.0.1/24 dev lan0",
                "address add 2001:db8:a::1/64 dev lan0",
                "address add 192.0.2.1/24 dev wan0",
                "address add 2001:db8:f::1/64 dev wan0",
            )
            others.ip(
                f"link set lan1 address {LAN_MAC}",
                f"link set wan1 address {WAN_MAC}",
                "link set lan1 up",
                "link set wan1 up",
                "address add 10.1.0.2/24 dev lan1",
                "address add 2001:db8:a::2/64 dev lan1",
                "address add 192.0.2.2/24 dev wan1",
                "address add 2001:db8:f::2/64 dev wan1",
            )
            gateway.ip(
                "route add default via 192.0.2.2",
                "route add 10.9.0.0/16 via 10.1.0.2 mtu lock 1300",
                "route add blackhole 10.9.9.0/24",
            )
            yield gateway, others
        finally:
            for space in made:
                space.close()


def mirrored(
    space: Space,
    scenario: Callable[[NetlinkMirror, Recorder], Awaitable[None]],
    ports: Sequence[MirrorPort] = PORTS,
    sas: Sequence[SaSpec] = (),
) -> None:
    """Run a scenario with a started mirror inside a namespace."""

    async def main() -> None:
        recorder = Recorder()
        mirror = NetlinkMirror(ports, recorder)
        try:
            await mirror.open(sas)
            await mirror.follow()
            await scenario(mirror, recorder)
        finally:
            await mirror.close()

    space.call(lambda: asyncio.run(main()))


async def until(condition: Callable[[], bool], what: str) -> float:
    """Wait for a condition, 5 s at most; returns the seconds it took."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < 5, f"no {what} within 5 s"
        await asyncio.sleep(0.005)
    return time.monotonic() - start


async def ip(space: Space, *commands: str) -> None:
    await asyncio.to_thread(space.ip, *commands)


def test_start_state_and_pre_resolution(spaces: tuple[Space, Space]) -> None:
    gateway, _ = spaces

    async def scenario(_mirror: NetlinkMirror, told: Recorder) -> None:
        assert {"127.0.0.1", "10.1.0.1", "192.0.2.1", "2001:db8:a::1", "::1"} <= {
            str(addr) for addr in told.locals
        }
        link, addresses = told.ports["lan"]
        assert link is not None and link.up and link.mtu == 1500 and str(addresses[0]) == "10.1.0.1"
        # Own addresses, connected prefixes and blackholes are the kernel's.
        for address in ("10.1.0.1", "10.1.0.77", "10.9.9.9", "8.8.8.8", "192.0.2.2"):
            assert told.lookup(address) is None, address
        # Nobody sent a packet: the mirror itself has the next hops resolved.
        await until(
            lambda: told.adjacencies["near"][0] is not None and told.adjacencies["six"][0] is not None, "peer"
        )
        wan = AdjacencySpec(port="wan", destination_mac=bytes.fromhex(WAN_MAC.replace(":", "")), mtu=1450)
        assert told.adjacencies["near"] == (wan, 1450)
        assert told.adjacencies["far"] == (wan, 1450)  # through the default gateway
        assert told.adjacencies["six"] == (wan, 1450)
        assert told.adjacencies["nowhere"] == (None, None)
        await until(lambda: told.lookup("10.9.1.1") is not None, "gateway of 10.9/16")
        lan = AdjacencySpec(port="lan", destination_mac=bytes.fromhex(LAN_MAC.replace(":", "")), mtu=1300)
        assert told.lookup("10.9.1.1") == lan

    mirrored(
        gateway,
        scenario,
        sas=[
            sa("near", "192.0.2.2"),
            sa("far", "203.0.113.5"),
            sa("six", "2001:db8:f::2"),
            sa("nowhere", "2001:db8:ffff::1"),
        ],
    )


def test_neighbours_become_host_routes_and_follow_the_mac(spaces: tuple[Space, Space]) -> None:
    gateway, others = spaces

    async def scenario(_mirror: NetlinkMirror, told: Recorder) -> None:
        await asyncio.to_thread(gateway.run, ["ping", "-c1", "-W2", "10.1.0.2"])
        await asyncio.to_thread(gateway.run, ["ping", "-c1", "-W2", "2001:db8:a::2"])
        for address in ("10.1.0.2", "2001:db8:a::2"):
            await until(lambda address=address: told.lookup(address) is not None, f"neighbour {address}")  # type: ignore[misc]
            found = told.lookup(address)
            assert found is not None and found.destination_mac.hex(":") == LAN_MAC and found.port == "lan"
        assert told.lookup("10.1.0.3") is None
        await ip(others, "link set lan1 down", f"link set lan1 address {NEW_MAC}", "link set lan1 up")
        # The kernel learns the new address from a gratuitous request; we must follow within 100 ms.
        await ip(gateway, f"neigh replace 10.1.0.2 lladdr {NEW_MAC} dev lan0 nud reachable")

        def follows() -> bool:
            now = told.lookup("10.1.0.2")
            return now is not None and now.destination_mac.hex(":") == NEW_MAC

        assert await until(follows, "new MAC") < 0.25
        await ip(gateway, "neigh del 10.1.0.2 dev lan0")
        await until(lambda: told.lookup("10.1.0.2") is None, "withdrawal")

    mirrored(gateway, scenario)


def test_stale_neighbours_are_probed(spaces: tuple[Space, Space]) -> None:
    gateway, _ = spaces
    gateway.sysctl(ipv4__neigh__lan0__delay_first_probe_time=1)

    async def scenario(mirror: NetlinkMirror, told: Recorder) -> None:
        await ip(gateway, f"neigh replace 10.1.0.2 lladdr {LAN_MAC} dev lan0 nud stale")
        await until(lambda: told.lookup("10.1.0.2") is not None, "stale neighbour in use")

        def reachable() -> bool:
            states = [
                entry.state
                for (_, addr), entry in mirror.mirror.neighbours.items()
                if str(addr) == "10.1.0.2"
            ]
            return states == [0x02]

        await until(reachable, "probe that makes it reachable")

    mirrored(gateway, scenario)


def test_routes_come_and_go(spaces: tuple[Space, Space]) -> None:
    gateway, _ = spaces

    async def scenario(mirror: NetlinkMirror, told: Recorder) -> None:
        await asyncio.to_thread(gateway.run, ["ping", "-c1", "-W2", "10.1.0.2"])
        await until(lambda: told.lookup("10.9.1.1") is not None, "gateway")
        await ip(gateway, "route add 172.16.0.0/12 nexthop via 192.0.2.2 nexthop via 10.1.0.2")
        await until(lambda: told.lookup("172.16.0.1") is not None, "multipath hop on a protected port")
        await ip(gateway, "route replace 172.16.0.0/12 via 192.0.2.2")
        await until(lambda: told.lookup("172.16.0.1") is None, "replacement out of the unprotected port")
        await ip(gateway, "route add 2001:db8:9::/48 via 2001:db8:a::2")
        await until(lambda: told.lookup("2001:db8:9::1") is not None, "IPv6 route")
        await ip(gateway, "route del 2001:db8:9::/48 via 2001:db8:a::2", "route del 10.9.0.0/16")
        await until(
            lambda: told.lookup("2001:db8:9::1") is None and told.lookup("10.9.1.1") is None, "removal"
        )
        # A metric that beats the route in use, and its end.
        await ip(
            gateway,
            "route add 10.8.0.0/16 via 192.0.2.2 metric 100",
            "route add 10.8.0.0/16 via 10.1.0.2 metric 50",
        )
        await until(lambda: told.lookup("10.8.0.1") is not None, "better metric")
        await ip(gateway, "route del 10.8.0.0/16 metric 50")
        await until(lambda: told.lookup("10.8.0.1") is None, "worse metric")
        # The kernel drops IPv4 routes of a link that goes down without telling.
        await ip(gateway, "route add 10.7.0.0/16 via 10.1.0.2")
        await until(lambda: told.lookup("10.7.0.1") is not None, "route")
        await ip(gateway, "link set lan0 down")
        await until(lambda: "10.7.0.0/16" not in told.routes, "silent removal")
        link, _addresses = told.ports["lan"]
        assert link is not None and not link.up
        assert mirror.resyncs == 1

    mirrored(gateway, scenario)


def test_interface_renamed_and_gone(spaces: tuple[Space, Space]) -> None:
    gateway, _ = spaces

    async def scenario(_mirror: NetlinkMirror, told: Recorder) -> None:
        await ip(gateway, "link set lan0 down", "link set lan0 name lan9", "link set lan9 up")
        await until(
            lambda: bool((link := told.ports["lan"][0]) and link.name == "lan9" and link.up), "new name"
        )
        await ip(gateway, f"neigh replace 10.1.0.2 lladdr {LAN_MAC} dev lan9 nud reachable")
        await until(lambda: told.lookup("10.1.0.2") is not None, "neighbour behind the new name")
        await ip(gateway, "link set lan9 address 02:00:00:00:00:77", "link set lan9 mtu 1400")
        await until(
            lambda: bool(
                (link := told.ports["lan"][0]) and link.mac.hex() == "020000000077" and link.mtu == 1400
            ),
            "new MAC and MTU",
        )
        await ip(gateway, "link del lan9")
        await until(lambda: told.ports["lan"][0] is None, "loss of the interface")
        assert told.lookup("10.1.0.2") is None

    mirrored(gateway, scenario)


def test_overrun_is_answered_by_a_dump(spaces: tuple[Space, Space]) -> None:
    gateway, _ = spaces

    async def scenario(mirror: NetlinkMirror, told: Recorder) -> None:
        assert mirror._events is not None
        mirror._events.setsockopt(1, 8, 4096)  # SO_RCVBUF: room for a few events only
        # Fill it while nobody reads.
        gateway.ip(
            *(
                f"neigh replace 10.1.0.{host} lladdr {LAN_MAC} dev lan0 nud permanent"
                for host in range(2, 250)
            )
        )
        await until(lambda: told.lookup("10.1.0.249") is not None, "all neighbours")
        assert mirror.resyncs == 2 and all(
            told.lookup(f"10.1.0.{host}") is not None for host in range(2, 250)
        )
        assert told.tables < 10

    mirrored(gateway, scenario)


def test_socket_ports_need_no_neighbour(spaces: tuple[Space, Space]) -> None:
    gateway, _ = spaces
    ports = (
        MirrorPort(name="lan", role=Role.PROTECTED, driver="tun", interface="esp0"),
        MirrorPort(name="udp", role=Role.UNPROTECTED, driver="udp", interface=""),
        MirrorPort(name="raw", role=Role.UNPROTECTED, driver="raw", interface=""),
    )

    async def scenario(mirror: NetlinkMirror, told: Recorder) -> None:
        assert told.adjacencies["e"] == (AdjacencySpec(port="udp", mtu=1450), 1450)
        assert told.adjacencies["p"] == (AdjacencySpec(port="raw", mtu=1450), 1450)
        assert told.adjacencies["l"] == (None, None)  # 192.0.2.99 is not ours
        assert set(told.routes.values()) == {AdjacencySpec(port="lan", mtu=1500)}
        await ip(
            gateway,
            "address add 192.0.2.99/24 dev wan0",
            "tuntap add esp0 mode tun",
            "link set esp0 mtu 1380",
        )
        await until(lambda: told.adjacencies["l"][0] is not None, "own address")
        await until(
            lambda: told.lookup("10.1.0.2") == AdjacencySpec(port="lan", mtu=1380), "MTU of the device"
        )
        await mirror.set_sas([sa("p", "192.0.2.2")])
        await ip(gateway, "route del default")

    mirrored(
        gateway,
        scenario,
        ports,
        [sa("e", "203.0.113.1", encap=True), sa("p", "192.0.2.2"), sa("l", "192.0.2.2", local="192.0.2.99")],
    )


def test_sas_that_come_move_and_go_are_followed(spaces: tuple[Space, Space]) -> None:
    """Each pair of outer addresses is asked for once, however many SAs come; what is known is answered at once."""
    gateway, _ = spaces

    async def scenario(mirror: NetlinkMirror, recorder: Recorder) -> None:
        asked: list[Address] = []
        ask = mirror._ask_route

        async def counted(local: Address, remote: Address) -> PeerRoute | None:
            asked.append(remote)
            return await ask(local, remote)

        mirror._ask_route = counted  # type: ignore[method-assign]
        for number in range(50):
            assert mirror.follow_sa(sa(f"new{number}", f"203.0.113.{number % 2}")) == Way()
        await until(lambda: len(recorder.adjacencies) == 50, "way of each SA")
        assert sorted(map(str, asked)) == ["203.0.113.0", "203.0.113.1"]
        await until(lambda: recorder.adjacencies["new0"][0] is not None, "neighbour of the next hop")
        adjacency, mtu = recorder.adjacencies["new0"]
        assert adjacency is not None and adjacency.port == "wan" and mtu == 1450

        # One more to the same peer, and one that moves to where another is: the answer is there.
        way = Way(adjacency=adjacency, mtu=mtu)
        assert mirror.follow_sa(sa("rekeyed", "203.0.113.0")) == way
        assert mirror.follow_sa(sa("new1", "203.0.113.0")) == way
        assert len(asked) == 2 and mirror.path_mtu("rekeyed") == 1450
        assert mirror.follow_sa(sa("new2", "192.0.2.2")) == Way()
        await until(lambda: str(asked[-1]) == "192.0.2.2", "question for the peer that moved")
        for number in range(50):
            mirror.forget_sa(f"new{number}")
        assert mirror.path_mtu("new0") is None
        recorder.adjacencies.clear()
        gateway.ip("link set wan0 mtu 1400")
        await until(lambda: bool(recorder.adjacencies), "news")
        assert {name: told[1] for name, told in recorder.adjacencies.items()} == {"rekeyed": 1400}

    mirrored(gateway, scenario)


def test_events_are_not_taken_for_answers(spaces: tuple[Space, Space]) -> None:
    """While the kernel's tables change, each peer of many gets its own route; nothing is left unread.

    An event of the kernel's bears the number of the request that caused it, and every program counts from the same.
    """
    gateway, _ = spaces
    peers = [f"203.0.{112 + number // 250}.{number % 250 + 1}" for number in range(400)]

    async def change(rounds: int) -> None:
        async with AsyncIPRoute() as other:
            for number in range(rounds):
                rule = {"table": 99, "priority": 4000, "src": f"10.77.{number // 250}.{number % 250}/32"}
                await other.rule("add", **rule)
                await other.rule("del", **rule)

    async def scenario(mirror: NetlinkMirror, recorder: Recorder) -> None:
        changes = asyncio.create_task(change(400))
        await mirror.set_sas([sa(peer, peer) for peer in peers])
        await until(lambda: len(recorder.adjacencies) == len(peers), "way of each SA")
        await changes
        assert mirror.alive and {way[1] for way in recorder.adjacencies.values()} == {1450}
        assert mirror._requests is not None and mirror._requests.msg_queue.root.empty()

    mirrored(gateway, scenario)
