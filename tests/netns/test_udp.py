"""UdpPort and RawPort against the kernel: headers kept, runs sent and received as one, errors counted."""

from __future__ import annotations

import socket
import struct
import time

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.packet import Packet

from control.lab.space import Space
from dataplane.model import PortSpec, Role
from dataplane.ports import drivers, raw, udp
from dataplane.ports.errors import PortError
from ext import porttool
from ext.packet import Pool, PortHandle
from ext.udpio import RawPort, UdpPort
from tests.netns.wires import MakeSpaces

pytestmark = pytest.mark.root

PEERS = {4: ("10.8.0.1", "10.8.0.2"), 6: ("fd08::1", "fd08::2")}


def connect(left: Space, right: Space, mtu: int = 1500) -> None:
    """left:eth0 (host 1) - right:eth0 (host 2)."""
    left.ip(f"link add name eth0 mtu {mtu} type veth peer name eth0 mtu {mtu} netns {right.name}")
    for host, space in ((1, left), (2, right)):
        space.ip(
            f"addr add 10.8.0.{host}/24 dev eth0",
            f"addr add fd08::{host}/64 dev eth0 nodad",
            "link set eth0 up",
            "link set lo up",
        )


def open_udp(space: Space, pool: Pool, queue: int = 0, workers: int = 1, **options: str) -> UdpPort:
    """A port on 4500, both families, any address."""
    spec = PortSpec(name="outside", role=Role.UNPROTECTED, driver="udp", interface="", options=options)
    return space.call(lambda: udp.open_port(spec, queue, workers, pool, {}))


def open_raw(space: Space, pool: Pool, queue: int = 0, workers: int = 1) -> RawPort:
    """A port for protocol 50, both families, any address."""
    spec = PortSpec(name="outside", role=Role.UNPROTECTED, driver="raw", interface="")
    return space.call(lambda: raw.open_port(spec, queue, workers, pool, {}))


def outer(version: int, tos: int = 0, source: int = 0) -> Packet:
    """An outer header from the peer with index `source` to the other."""
    addresses = PEERS[version]
    if version == 4:
        return IP(src=addresses[source], dst=addresses[1 - source], tos=tos, ttl=64, id=0, flags="DF")
    return IPv6(src=addresses[source], dst=addresses[1 - source], tc=tos, hlim=64)


def esp(spi: int, number: int, size: int) -> bytes:
    """`size` bytes that begin like ESP."""
    return struct.pack("!II", spi, number).ljust(size, b"\xe5")


def settle_neighbours(space: Space, version: int) -> None:
    """Let the kernel learn the neighbour, so that a burst is not cut short by the resolution queue."""
    space.run(["ping", "-c", "1", "-i", "0.2", "-w", "10", PEERS[version][1]])


def close(pool: Pool, frames: int, *ports: PortHandle) -> None:
    """Close ports; every frame is back."""
    for port in ports:
        port.close()
    assert pool.free_count == frames


@pytest.mark.parametrize("version", [4, 6])
def test_udp_burst_between_two_ports(spaces: MakeSpaces, version: int) -> None:
    """60 datagrams of one size and a shorter one leave in one call, arrive in one, and are what they were."""
    left, right = spaces("left", "right")
    connect(left, right)
    settle_neighbours(left, version)
    pool = Pool(512)
    a, b = open_udp(left, pool), open_udp(right, pool)
    payloads = [esp(7, number, 1400) for number in range(40)] + [esp(7, 40, 600)]
    packets = [outer(version, tos=1) / UDP(sport=4500, dport=4500, chksum=0) / each for each in payloads]
    assert porttool.transmit(a, [bytes(each) for each in packets]) == 41
    assert a.counters["tx_syscalls"] == 1
    assert a.mode.endswith("/gso")
    assert porttool.wait(b, 2.0)
    received = [content for content, _ in porttool.receive_all(b, 2.0, 41)]
    assert b.counters["rx_syscalls"] == (1 if version == 4 else 2)
    for each in packets:
        if version == 4:
            each.flags = 0  # a socket does not tell
    assert received == [bytes(each) for each in packets]
    assert not porttool.wait(b, 0.01)
    close(pool, 512, a, b)


@pytest.mark.parametrize("version", [4, 6])
def test_udp_with_an_ordinary_socket(spaces: MakeSpaces, version: int) -> None:
    """A plain UDP program on the other side: ports, addresses and TOS in both directions, odd sizes, a keepalive."""
    left, right = spaces("left", "right")
    connect(left, right)
    pool = Pool(256)
    port = open_udp(left, pool)
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    peer = right.call(lambda: socket.socket(family, socket.SOCK_DGRAM))
    peer.settimeout(3)
    peer.bind((PEERS[version][1], 6000))
    if version == 4:
        peer.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 0xBA)
        peer.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
    else:
        peer.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, 0xBA)
        peer.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS, 1)
    for content in (b"\xff", esp(9, 1, 77), esp(9, 2, 1399)):
        peer.sendto(content, (PEERS[version][0], 4500))
    received = [content for content, _ in porttool.receive_all(port, 2.0, 3)]
    want = [
        outer(version, tos=0xBA, source=1) / UDP(sport=6000, dport=4500, chksum=0) / content
        for content in (b"\xff", esp(9, 1, 77), esp(9, 2, 1399))
    ]
    for each in want:
        if version == 4:
            each.flags = 0
    assert received == [bytes(each) for each in want]

    sizes = [100, 100, 100, 60, 100, 200, 200, 1]
    packets = [
        outer(version, tos=0x03) / UDP(sport=4500, dport=6000) / esp(3, number, size)[:size]
        for number, size in enumerate(sizes)
    ]
    packets.insert(4, outer(version, tos=0) / UDP(sport=4500, dport=6000) / esp(4, 0, 100))
    assert porttool.transmit(port, [bytes(each) for each in packets]) == 9
    for each in packets:
        content, control, _, sender = peer.recvmsg(2000, 100)
        assert content == bytes(each[UDP].payload)
        assert sender[:2] == (PEERS[version][0], 4500)
        assert control[0][2][0] == (each.tos if version == 4 else each.tc)
    assert port.counters["tx_syscalls"] == 1
    peer.close()
    close(pool, 256, port)


def test_udp_refusals_are_counted(spaces: MakeSpaces) -> None:
    """Too long for the route, no route, not UDP, headers only: each costs itself alone."""
    left, right = spaces("left", "right")
    connect(left, right)
    pool = Pool(64)
    port = open_udp(left, pool)
    good = bytes(outer(4) / UDP(sport=4500, dport=4500) / esp(1, 1, 100))
    assert (
        porttool.transmit(
            port,
            [
                good,
                bytes(outer(4) / UDP(sport=4500, dport=4500) / esp(1, 2, 1473)),
                bytes(IP(src="10.8.0.1", dst="192.0.2.1") / UDP() / esp(1, 3, 100)),
                bytes(IP(src="10.8.0.1", dst="10.8.0.2", proto=50) / esp(1, 3, 100)),
                bytes(outer(4) / UDP()),
                b"\x60" + bytes(60),
                b"\x00" * 60,
                good,
            ],
        )
        == 8
    )
    assert port.counters["tx_packets"] == 2
    assert port.counters["tx_errors"] == 6
    assert port.too_big == 1
    close(pool, 64, port)


def test_a_run_that_is_refused_is_sent_singly(spaces: MakeSpaces) -> None:
    """A source that is not ours refuses the run and each packet: UDP_SEGMENT is not blamed for it."""
    left, right = spaces("left", "right")
    connect(left, right)
    pool = Pool(64)
    port = open_udp(left, pool)
    wrong = [
        bytes(IP(src="10.8.0.9", dst="10.8.0.2") / UDP(dport=4500) / esp(1, number, 100))
        for number in range(3)
    ]
    right_ones = [bytes(outer(4) / UDP(dport=4500) / esp(1, number, 100)) for number in range(3)]
    assert porttool.transmit(port, [*wrong, *right_ones]) == 6
    assert (port.counters["tx_packets"], port.counters["tx_errors"]) == (3, 3)
    assert port.mode == "ipv4+ipv6/gso"
    calls = port.counters["tx_syscalls"]
    assert porttool.transmit(port, right_ones) == 3
    assert port.counters["tx_syscalls"] == calls + 1
    close(pool, 64, port)


def test_udp_workers_divide_by_spi(spaces: MakeSpaces) -> None:
    """Two workers: each SPI has one home, whatever the source port; with control's socket first, IKE goes there."""
    left, right = spaces("left", "right")
    connect(left, right)
    settle_neighbours(left, 4)
    pool = Pool(512)
    ports = [open_udp(right, pool, queue, 2) for queue in range(2)]
    sender = left.call(lambda: socket.socket(type=socket.SOCK_DGRAM))
    for number in range(40):
        sender.sendto(esp(100 + number % 4, number, 64), ("10.8.0.2", 4500))
    time.sleep(0.05)
    homes = []
    for port in ports:
        received = [content for content, _ in porttool.receive_all(port, 1.0, 20)]
        homes.append({struct.unpack("!I", content[28:32])[0] for content in received})
        assert len(received) == 20
    assert homes == [{100, 102}, {101, 103}]
    close(pool, 512, *ports)

    program = udp.reuseport_filter(2, control=True)
    fds = [right.call(lambda: udp.open_socket(4, "0.0.0.0", 4500, program)) for _ in range(3)]
    socks = [socket.socket(fileno=fd) for fd in fds]
    for content in (bytes(4) + b"ike", esp(100, 0, 20), esp(101, 0, 20), b"\xff"):
        sender.sendto(content, ("10.8.0.2", 4500))
    time.sleep(0.05)
    assert [socks[0].recv(100) for _ in range(2)] == [bytes(4) + b"ike", b"\xff"]
    assert socks[1].recv(100) == esp(100, 0, 20)
    assert socks[2].recv(100) == esp(101, 0, 20)
    for sock in (*socks, sender):
        sock.close()


@pytest.mark.parametrize("protocol", [50, 51])
@pytest.mark.parametrize("version", [4, 6])
def test_raw_between_two_ports(spaces: MakeSpaces, version: int, protocol: int) -> None:
    """ESP and AH, protocols 50 and 51: the outer packet arrives as it left, whatever its TOS and size."""
    left, right = spaces("left", "right")
    connect(left, right)
    settle_neighbours(left, version)
    pool = Pool(512)
    a, b = open_raw(left, pool), open_raw(right, pool)
    packets = []
    for number, size in enumerate([1400] * 40 + [40, 1480 if version == 4 else 1460]):
        header = outer(version, tos=number % 4)
        if version == 4:
            header.proto, header.id = protocol, 1 + number
        else:
            header.nh = protocol
        packets.append(bytes(header / esp(5, number, size)))
    assert porttool.transmit(a, packets) == 42
    assert a.counters["tx_syscalls"] == 1
    assert porttool.wait(b, 2.0)
    assert [content for content, _ in porttool.receive_all(b, 2.0, 42)] == packets
    close(pool, 512, a, b)


def test_raw_gets_whole_packets_of_fragments(spaces: MakeSpaces) -> None:
    """The kernel reassembles outer fragments; a packet longer than a frame arrives truncated, for the parser."""
    left, right = spaces("left", "right")
    connect(left, right)
    pool = Pool(128)
    port = open_raw(right, pool)
    with left.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 50)) as sender:
        sender.setsockopt(socket.IPPROTO_IP, 10, 0)  # IP_MTU_DISCOVER: fragments allowed
        sender.sendto(esp(1, 1, 1700), ("10.8.0.2", 0))
        sender.sendto(esp(1, 2, 4000), ("10.8.0.2", 0))
    received = [content for content, _ in porttool.receive_all(port, 2.0, 2)]
    assert received[0][20:] == esp(1, 1, 1700)
    assert len(received[1]) == 2048 - 256
    assert struct.unpack("!H", received[1][2:4])[0] == 4020
    close(pool, 128, port)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(("driver", "inside"), [("udp", "tun"), ("udp", "packet"), ("raw", "packet")])
def test_frames_hold_what_peers_may_fragment(
    spaces: MakeSpaces, driver: str, inside: str, version: int
) -> None:
    """Enciphered whole and sent in fragments, a packet of twice the MTU and more arrives whole, by every such port."""
    left, right = spaces("left", "right")
    connect(left, right)
    specs = [
        PortSpec(name="inside", role=Role.PROTECTED, driver=inside, interface="lan0"),
        PortSpec(name="outside", role=Role.UNPROTECTED, driver=driver, interface=""),
    ]
    pool = Pool(128, drivers.frame_size(specs))
    port = open_udp(right, pool) if driver == "udp" else open_raw(right, pool)
    domain = socket.AF_INET if version == 4 else socket.AF_INET6
    kind, protocol = (socket.SOCK_DGRAM, 0) if driver == "udp" else (socket.SOCK_RAW, 50)
    payloads = [esp(1, number, size) for number, size in enumerate((1765, 3200, 7700))]
    with left.call(lambda: socket.socket(domain, kind, protocol)) as sender:
        # IP_MTU_DISCOVER and IPV6_MTU_DISCOVER: fragments allowed.
        sender.setsockopt(*((socket.IPPROTO_IP, 10) if version == 4 else (socket.IPPROTO_IPV6, 23)), 0)
        for payload in payloads:
            sender.sendto(payload, (PEERS[version][1], 4500 if driver == "udp" else 0))
    received = [content for content, _ in porttool.receive_all(port, 5.0, len(payloads))]
    header = (20 if version == 4 else 40) + (8 if driver == "udp" else 0)
    assert [content[header:] for content in received] == payloads
    for content in received:
        assert struct.unpack_from("!H", content, 2 if version == 4 else 4)[0] + (version == 6) * 40 == len(
            content
        )
    close(pool, 128, port)


@pytest.mark.parametrize("protocol", [50, 51])
@pytest.mark.parametrize("version", [4, 6])
def test_raw_workers_divide_by_spi(spaces: MakeSpaces, version: int, protocol: int) -> None:
    """Raw sockets all get every packet: the filters leave each packet to one worker."""
    left, right = spaces("left", "right")
    connect(left, right)
    settle_neighbours(left, version)
    pool = Pool(512)
    ports = [open_raw(right, pool, queue, 2) for queue in range(2)]
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    before = b"\4\4\0\0" if protocol == 51 else b""  # AH has its SPI behind these
    with left.call(lambda: socket.socket(family, socket.SOCK_RAW, protocol)) as sender:
        for number in range(40):
            sender.sendto(before + esp(200 + number % 4, number, 64), (PEERS[version][1], 0))
    time.sleep(0.05)
    for queue, port in enumerate(ports):
        received = [content for content, _ in porttool.receive_all(port, 1.0, 20)]
        start = (20 if version == 4 else 40) + len(before)
        assert len(received) == 20
        assert {struct.unpack("!I", content[start : start + 4])[0] % 2 for content in received} == {queue}
    close(pool, 512, *ports)


def test_errors_say_what_is_wrong(spaces: MakeSpaces) -> None:
    """A port in use by someone else, an address that is not ours, an option that does not exist."""
    [left] = spaces("left")
    left.ip("link set lo up")
    with left.call(lambda: socket.socket(type=socket.SOCK_DGRAM)) as other:
        other.bind(("127.0.0.1", 4500))
        with pytest.raises(OSError, match=r"UDP 127.0.0.1 port 4500: Address already in use"):
            left.call(lambda: udp.open_socket(4, "127.0.0.1", 4500))
    with pytest.raises(OSError, match=r"raw ESP socket on 192.0.2.1: Cannot assign requested address"):
        left.call(lambda: raw.open_socket(4, "192.0.2.1"))
    with pytest.raises(PortError, match="spread is 'x'; it may be spi or hash"):
        open_udp(left, Pool(8), spread="x")
