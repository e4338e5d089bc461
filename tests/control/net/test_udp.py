"""IKE's sockets over loopback: marker, our side's address, what is not IKE, ICMP errors, a port in use."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

import pytest

from control.ike.events import Datagram, PeerPath
from control.net.limiter import RateLimiter
from control.net.udp import UdpError, UdpSockets, source_address
from dataplane.api import DataPlane
from dataplane.model import Address, PortSpec, Role
from dataplane.ports import udp as udp_port
from ext.packet import Pool
from tests.capabilities import without

MARKER = bytes(4)
CAP_NET_BIND_SERVICE = 10  # linux/capability.h


@dataclass
class Ike:
    """Sockets, and what they told."""

    messages: list[tuple[bytes, PeerPath]] = field(default_factory=list)
    errors: list[tuple[PeerPath, str]] = field(default_factory=list)

    def sockets(self, ports: tuple[int, int], **rest: Any) -> UdpSockets:
        return UdpSockets(
            lambda data, path: self.messages.append((data, path)),
            lambda path, text: self.errors.append((path, text)),
            ports=ports,
            **rest,
        )


@pytest.fixture
def ports() -> Iterator[tuple[int, int]]:
    """Two ports that nobody has at the moment."""
    with socket.socket(type=socket.SOCK_DGRAM) as one, socket.socket(type=socket.SOCK_DGRAM) as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        found = one.getsockname()[1], other.getsockname()[1]
    yield found


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop run until something holds."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 (sockets tell nobody)
            await asyncio.sleep(0.002)


def peer(address: str) -> socket.socket:
    """Another host's socket."""
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((address, 0))
    sock.settimeout(5)
    return sock


@pytest.mark.parametrize("ours", ["127.0.0.9", "::1"])
def test_messages_come_and_go_with_their_addresses(ports: tuple[int, int], ours: str) -> None:
    """Wildcard sockets say which of our addresses a message came to, and answer from it."""

    async def body() -> None:
        ike = Ike()
        sockets = ike.sockets(ports)
        sockets.open()
        with peer("::1" if ":" in ours else "127.0.0.1") as other:
            other.sendto(b"plain", (ours, ports[0]))
            other.sendto(MARKER + b"through NAT", (ours, ports[1]))
            await until(lambda: len(ike.messages) == 2)
            remote = ip_address(other.getsockname()[0])
            for (data, path), want, port in zip(ike.messages, (b"plain", b"through NAT"), ports, strict=True):
                assert data == want
                assert path == PeerPath(
                    local=ip_address(ours), local_port=port, remote=remote, remote_port=other.getsockname()[1]
                )
                sockets.send(Datagram(path=path, data=b"answer"))
                answer, name = other.recvfrom(100)
                assert answer == (b"answer" if port == ports[0] else MARKER + b"answer")
                assert name[:2] == (ours, port)
            sockets.send(Datagram(path=ike.messages[1][1], data=b"\xff", keepalive=True))
            assert other.recv(100) == b"\xff"
        assert not ike.errors and sockets.counters.sent == 3 and sockets.counters.received == 2
        sockets.close()

    asyncio.run(body())


def test_what_is_not_ike_goes_no_further(ports: tuple[int, int]) -> None:
    """Keepalives, ESP and short datagrams on the NAT port are counted and dropped."""

    async def body() -> None:
        ike = Ike()
        sockets = ike.sockets(ports)
        sockets.open([IPv4Address("127.0.0.1")])
        with peer("127.0.0.1") as other:
            for data in (b"\xff", b"\x00\x00\x10\x01esp", b"ab", b""):
                other.sendto(data, ("127.0.0.1", ports[1]))
            await until(lambda: sockets.counters.keepalives + sockets.counters.strays == 4)
        assert (sockets.counters.keepalives, sockets.counters.strays, ike.messages) == (1, 3, [])
        sockets.close()

    asyncio.run(body())


@pytest.mark.parametrize("address", [IPv4Address("127.0.0.1"), IPv6Address("::1")])
def test_icmp_errors_are_heard(ports: tuple[int, int], address: Address) -> None:
    """Nobody listens at the peer's port: the error says so, and the next message leaves all the same."""

    async def body() -> None:
        ike = Ike()
        sockets = ike.sockets(ports)
        sockets.open()
        with peer(str(address)) as other:
            closed = other.getsockname()[1]
        path = PeerPath(local=address, local_port=ports[0], remote=address, remote_port=closed)
        sockets.send(Datagram(path=path, data=b"anyone?"))
        await until(lambda: bool(ike.errors))
        told, text = ike.errors[0]
        assert (told.remote, told.remote_port, told.local_port) == (address, closed, ports[0])
        assert text == f"ICMP port unreachable from {address}"
        with peer(str(address)) as other:
            path = PeerPath(
                local=address, local_port=ports[0], remote=address, remote_port=other.getsockname()[1]
            )
            sockets.send(Datagram(path=path, data=b"hello"))
            assert other.recv(100) == b"hello"
        sockets.close()

    asyncio.run(body())


def test_icmp_errors_are_told_so_often(ports: tuple[int, int]) -> None:
    """Anyone can forge them, and each is held against every IKE SA: a few are told, all are read."""
    address = IPv4Address("127.0.0.1")

    async def body() -> None:
        ike = Ike()
        sockets = ike.sockets(ports, errors=RateLimiter(rate=0.0, burst=5))
        sockets.open()
        with peer(str(address)) as other:
            closed = other.getsockname()[1]
        path = PeerPath(local=address, local_port=ports[0], remote=address, remote_port=closed)
        for _ in range(20):
            sockets.send(Datagram(path=path, data=b"anyone?"))
            await asyncio.sleep(0.01)
        await until(lambda: len(ike.errors) >= 5)
        with peer(str(address)) as other:
            back = PeerPath(
                local=address, local_port=ports[0], remote=address, remote_port=other.getsockname()[1]
            )
            sockets.send(Datagram(path=back, data=b"hello"))
            assert other.recv(100) == b"hello"
            other.sendto(b"and back", (str(address), ports[0]))
            await until(lambda: bool(ike.messages))
        assert len(ike.errors) == 5
        sockets.close()

    asyncio.run(body())


def test_what_cannot_be_sent_is_a_path_error(ports: tuple[int, int]) -> None:
    """A source that is not ours, and an end that no socket is bound to."""

    async def body() -> None:
        ike = Ike()
        sockets = ike.sockets(ports)
        sockets.open([IPv4Address("127.0.0.1")])
        remote = IPv4Address("127.0.0.1")
        for local in (IPv4Address("127.0.0.1"), IPv4Address("127.0.0.2"), IPv6Address("::1")):
            path = PeerPath(local=local, local_port=ports[0], remote=remote, remote_port=9)
            sockets.send(Datagram(path=path, data=bytes(70000) if local == remote else b"x"))
        texts = [text for _, text in ike.errors]
        assert texts == [
            "sending from 127.0.0.1 failed: message too long",
            f"no socket is bound to 127.0.0.2 port {ports[0]}",
            f"no socket is bound to ::1 port {ports[0]}",
        ]
        sockets.close()

    asyncio.run(body())


def test_an_address_of_nobody_is_named(ports: tuple[int, int]) -> None:
    """By the key to mend."""

    async def body() -> None:
        with pytest.raises(UdpError, match=r"no such address; add it to an interface or mend local_addrs$"):
            Ike().sockets(ports).open([IPv4Address("192.0.2.77")])

    asyncio.run(body())


def test_a_port_in_use_is_named(ports: tuple[int, int]) -> None:
    """Another IKE daemon is there; what was opened before is closed again."""

    async def body() -> None:
        with socket.socket(type=socket.SOCK_DGRAM) as other:
            other.bind(("127.0.0.1", ports[1]))
            sockets = Ike().sockets(ports)
            with pytest.raises(
                UdpError, match=rf"UDP 127.0.0.1 port {ports[1]} is in use: another IKE daemon"
            ):
                sockets.open([IPv4Address("127.0.0.1")])
        sockets.open([IPv4Address("127.0.0.1")])
        sockets.close()

    asyncio.run(body())


def test_the_nat_port_is_shared_with_workers(ports: tuple[int, int]) -> None:
    """Control's socket leads the group of the dataplane's: it gets IKE, workers get ESP by their SPI."""

    async def body() -> None:
        spec = PortSpec(
            name="wan",
            role=Role.UNPROTECTED,
            driver="udp",
            interface="",
            addresses=(IPv4Address("127.0.0.1"),),
            encap_port=ports[1],
        )
        dataplane = DataPlane.create(ports=[spec], workers=2, pin=False)
        shared = dataplane.open_control_sockets(ports[1])
        ike = Ike()
        sockets = ike.sockets(ports)
        sockets.open([IPv4Address("127.0.0.1")], shared=shared)
        worker_spec = dataplane._specs[0]
        pool = Pool(256, 2048, 256)
        workers = [udp_port.open_port(worker_spec, queue, 2, pool, {}) for queue in range(2)]
        with peer("127.0.0.1") as other:
            for data in (MARKER + b"ike", b"\xff", *(bytes([0, 0, 16, spi]) + bytes(40) for spi in range(6))):
                other.sendto(data, ("127.0.0.1", ports[1]))
            await until(lambda: bool(ike.messages) and sockets.counters.keepalives == 1)
            assert [data for data, _ in ike.messages] == [b"ike"] and sockets.counters.strays == 0
            sockets.send(Datagram(path=ike.messages[0][1], data=b"answer"))
            assert other.recvfrom(100) == (MARKER + b"answer", ("127.0.0.1", ports[1]))
        for each in workers:
            each.close()
        sockets.close()
        dataplane.close()

    asyncio.run(body())


def test_source_address() -> None:
    """The kernel's choice; none without a route."""
    assert source_address(IPv4Address("127.0.0.1")) == IPv4Address("127.0.0.1")
    assert source_address(IPv6Address("::1")) == IPv6Address("::1")
    assert source_address(IPv4Address("255.255.255.255")) is None


def test_a_flood_is_taken_in_bursts(ports: tuple[int, int]) -> None:
    """More than one burst waits: all is taken, and timers get their turn between."""

    async def body() -> None:
        ike = Ike()
        sockets = ike.sockets(ports)
        sockets.open([IPv4Address("127.0.0.1")])
        with peer("127.0.0.1") as other:
            for number in range(200):
                other.sendto(b"%d" % number, ("127.0.0.1", ports[0]))
        await until(lambda: len(ike.messages) == 200)
        assert [data for data, _ in ike.messages] == [b"%d" % number for number in range(200)]
        sockets.close()

    asyncio.run(body())


def test_a_burst_is_told_once_and_its_datagrams_share_their_path(ports: tuple[int, int]) -> None:
    """Answers wait for the whole burst; a path is made for the first datagram of a peer only."""

    async def body() -> None:
        ike, turns = Ike(), []
        sockets = UdpSockets(
            lambda data, path: ike.messages.append((data, path)),
            lambda path, text: None,
            ports=ports,
            received=lambda: turns.append(len(ike.messages)),
        )
        with peer("127.0.0.1") as other:
            sockets.open([IPv4Address("127.0.0.1")])
            for number in range(5):
                other.sendto(b"%d" % number, ("127.0.0.1", ports[0]))
            await until(lambda: len(ike.messages) == 5)
        assert turns == [5]
        assert len({id(path) for _, path in ike.messages}) == 1
        sockets.close()

    asyncio.run(body())


@pytest.mark.root
def test_a_low_port_names_the_capability_that_opens_it() -> None:
    """Not "run as root": whom a service manager keeps that capability from is root."""
    sockets = UdpSockets(lambda data, path: None, lambda path, text: None, ports=(500, 4500))
    with without(CAP_NET_BIND_SERVICE), pytest.raises(UdpError, match=r"500: .* CAP_NET_BIND_SERVICE$"):
        sockets.open([ip_address("127.0.0.1")])
    sockets.close()


@pytest.mark.parametrize("which", [0, 1])
def test_shed(ports: tuple[int, int], which: int) -> None:
    """What is answered at once goes back the way it came, with the marker where one belongs, and nowhere else."""

    async def run() -> None:
        ike, asked = Ike(), []

        def shed(data: bytes, sender: tuple[str, int]) -> bytes | None:
            asked.append((data, sender))
            return b"cookie" if data == b"first" else None

        sockets = UdpSockets(
            lambda data, path: ike.messages.append((data, path)),
            lambda path, text: None,
            ports=ports,
            shed=shed,
        )
        sockets.open([ip_address("127.0.0.1")])
        marker = bytes(4) if which else b""
        with peer("127.0.0.1") as other:
            other.sendto(marker + b"first", ("127.0.0.1", ports[which]))
            other.sendto(marker + b"second", ("127.0.0.1", ports[which]))
            await until(lambda: bool(ike.messages))
            assert other.recv(100) == marker + b"cookie"
            assert [data for data, _ in ike.messages] == [b"second"]
            assert asked[0] == (b"first", other.getsockname())
        sockets.close()

    asyncio.run(run())
