"""PacketPort against the kernel: a wire made of two ports, super-frames in and out, fan-out, the steering filter."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import time

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether

from control.lab.space import Space
from dataplane.model import PortSpec, Role
from dataplane.ports import packet
from dataplane.ports.errors import PortError
from dataplane.ports.xdp import STEER_OBJECT
from ext import porttool
from ext.packet import Pool
from ext.packetsock import PacketPort
from ext.steering import Steering
from tests.netns.wires import MakeSpaces, carry_tcp, relayed

pytestmark = pytest.mark.root


def wire_up(left: Space, middle: Space, right: Space, mtu: int = 1500) -> None:
    """left:eth0 - middle:veth-a, middle:veth-b - right:eth0; addresses at the ends only."""
    for space, name, host in ((left, "veth-a", 1), (right, "veth-b", 2)):
        middle.ip(
            f"link add {name} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {space.name}",
            f"link set {name} addrgenmode none up",
        )
        space.ip(
            f"addr add 10.9.0.{host}/24 dev eth0",
            f"addr add fd09::{host}/64 dev eth0 nodad",
            "link set eth0 up",
        )


def open_unfiltered(space: Space, pool: Pool, interface: str, group: int | None = None) -> PacketPort:
    """A port that sees everything on the interface."""
    fd = space.call(lambda: packet.open_socket(interface, filter_fd=None, group=group))
    return PacketPort(pool, interface, fd)


@pytest.mark.parametrize("target", ["10.9.0.2", "fd09::2"])
def test_tcp_over_a_wire_of_two_ports(spaces: MakeSpaces, target: str) -> None:
    """Two kernels, ARP and ND and TSO included, see each other as on a cable; super-frames leave again as such."""
    left, middle, right = spaces("left", "middle", "right")
    wire_up(left, middle, right)
    pool = Pool(2048)
    ports = [open_unfiltered(middle, pool, name) for name in ("veth-a", "veth-b")]
    content = os.urandom(1 << 20) * 16
    with relayed(*ports):
        assert carry_tcp(left, right, target, content) == content
    assert ports[0].counters["rx_packets"] > 10000
    assert ports[0].counters["rx_syscalls"] < ports[0].counters["rx_packets"]
    assert ports[1].counters["tx_packets"] > 10000
    assert ports[1].counters["tx_errors"] == 0
    for port in ports:
        port.close()
    assert pool.free_count == 2048


def test_kernel_segments_what_we_join(spaces: MakeSpaces) -> None:
    """A burst that the port joined is cut by the kernel that forwards it to where no TSO is: the same packets."""
    left, middle, right = spaces("left", "middle", "right")
    wire_up(left, middle, right)
    pool = Pool(2048)
    a, b = (open_unfiltered(middle, pool, name) for name in ("veth-a", "veth-b"))
    left.ip(
        "link add name vx type veth peer name vy",
        "link set vx up",
        "link set vy up",
        "addr add 10.7.0.1/24 dev vx",
    )
    left.run(["ethtool", "-K", "vx", "tso", "off", "gso", "off", "tx-udp-segmentation", "off"])
    left.sysctl(ipv4__ip_forward=1)
    left.ip("neigh add 10.7.0.9 lladdr 02:00:00:00:00:09 dev vx")
    y = open_unfiltered(left, pool, "vy")
    mac = _mac(left, "eth0")
    packets = [
        Ether(src="02:00:00:00:00:01", dst=mac)
        / IP(src="10.9.0.2", dst="10.7.0.9", id=7 + index, flags="DF", ttl=9)
        / TCP(sport=1, dport=2, seq=1000 + 1300 * index, ack=9, flags="PA" if index == 30 else "A")
        / bytes([index] * 1300)
        for index in range(31)
    ]
    before = a.counters["tx_syscalls"]
    assert porttool.transmit(a, [bytes(each) for each in packets]) == 31
    assert a.counters["tx_syscalls"] == before + 1
    received = [content for content, _ in porttool.receive_all(y, 5.0, 31)]
    received = [content[14:] for content in received if content[12:14] == b"\x08\x00"]
    for each in packets:
        each.ttl = 8
    assert received == [bytes(each[IP]) for each in packets]
    for port in (a, b, y):
        port.close()
    assert pool.free_count == 2048


def _mac(space: Space, interface: str) -> str:
    """The interface's MAC address."""

    def ask() -> bytes:
        with socket.socket() as sock:
            return fcntl.ioctl(sock, 0x8927, struct.pack("256s", interface.encode()))[18:24]

    return ":".join(f"{byte:02x}" for byte in space.call(ask))


def test_fanout_keeps_flows_together(spaces: MakeSpaces) -> None:
    """Two workers on one interface: every packet at exactly one of them, one flow always at the same."""
    left, middle, right = spaces("left", "middle", "right")
    wire_up(left, middle, right)
    left.ip("neigh add 10.9.0.2 lladdr 02:00:00:00:00:02 dev eth0")
    pool = Pool(1024)
    ports = [open_unfiltered(middle, pool, "veth-a", group=7) for _ in range(2)]
    with left.call(lambda: socket.socket(type=socket.SOCK_DGRAM)) as sock:
        for port in range(5000, 5050):
            for number in range(2):
                sock.sendto(bytes([number]) * 20, ("10.9.0.2", port))
    time.sleep(0.05)
    flows = []
    for port in ports:
        received = [content for content, _ in porttool.receive_all(port, 0.5, 100)]
        flows.append([content[36:38] for content in received if content[12:14] == b"\x08\x00"])
    assert len(flows[0]) + len(flows[1]) == 100
    assert not set(flows[0]) & set(flows[1])
    assert min(map(len, flows)) > 10
    for port in ports:
        port.close()
    assert pool.free_count == 1024


def test_filter_and_tc_divide_the_traffic(spaces: MakeSpaces) -> None:
    """With the steering program only protected traffic comes, and the kernel sees the rest alone."""
    left, middle, right = spaces("left", "middle", "right")
    wire_up(left, middle, right)
    middle.ip("addr add 10.9.0.5/24 dev veth-a")
    left.ip("route add 10.20.0.0/16 via 10.9.0.5")
    middle.sysctl(ipv4__ip_forward=1)
    pool = Pool(256)
    spec = PortSpec(name="inside", role=Role.PROTECTED, driver="packet", interface="veth-a")
    with middle.call(lambda: Steering(str(STEER_OBJECT), "veth-a", 0)) as steering:
        steering.set_locals(["10.9.0.5"])
        steering.set_remotes(["10.20.0.0/16"])
        middle.call(steering.attach_tc)
        port = middle.call(
            lambda: packet.open_port(spec, 0, 1, pool, {"filter": steering.socket_filter_fd()})
        )
        left.run(["ping", "-c", "3", "-i", "0.05", "-W", "2", "10.9.0.5"])
        left.run(["ping", "-c", "3", "-i", "0.05", "-W", "0.2", "10.20.0.1"], check=False)
        received = porttool.receive_all(port, 2.0, 3)
        assert [content[30:34] for content, _ in received] == [bytes([10, 20, 0, 1])] * 3
        assert port.mode == "socket"
        port.close()
    assert pool.free_count == 256


def test_refused_frames_are_counted(spaces: MakeSpaces) -> None:
    """Too long for the interface; then the interface is down."""
    left, middle, right = spaces("left", "middle", "right")
    wire_up(left, middle, right)
    pool = Pool(64)
    port = open_unfiltered(middle, pool, "veth-a")
    long = bytes(Ether(dst="ff:ff:ff:ff:ff:ff") / IP() / UDP() / bytes(1600))
    short = bytes(Ether(dst="ff:ff:ff:ff:ff:ff") / IP() / UDP() / bytes(10))
    assert porttool.transmit(port, [short, long, short]) == 3
    assert (port.counters["tx_packets"], port.counters["tx_errors"]) == (2, 1)
    middle.ip("link set veth-a down")
    assert porttool.transmit(port, [short]) == 1
    assert port.counters["tx_errors"] == 2
    assert porttool.receive(port) == []
    port.close()
    assert pool.free_count == 64


def test_errors_say_what_is_wrong() -> None:
    """Options, a missing filter, a missing interface."""
    pool = Pool(8)
    for options, fds, message in (
        ({"fanout": "random"}, {"filter": 1}, "fanout is 'random'; it may be hash or lb"),
        ({}, {}, "no steering filter for nowhere0"),
        ({"fanout_group": "x"}, {"filter": 1}, "fanout_group is 'x'; it may be 1 to 65535"),
    ):
        spec = PortSpec(name="p", role=Role.PROTECTED, driver="packet", interface="nowhere0", options=options)
        with pytest.raises(PortError, match=message):
            packet.open_port(spec, 0, 2, pool, fds)
    with pytest.raises(OSError, match="nowhere0: bind: No such device"):
        packet.open_socket("nowhere0", filter_fd=None, group=None)
