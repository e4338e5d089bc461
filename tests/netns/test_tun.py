"""TunPort against the kernel: super-frames cut, runs joined, frames conserved, both families."""

from __future__ import annotations

import os
import socket

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6

from control.lab.space import Space
from dataplane.model import PortSpec, Role
from dataplane.ports import tun
from ext import porttool
from ext.packet import Pool
from ext.tunio import TunPort
from tests.netns.wires import MakeSpaces, carry_tcp, relayed

pytestmark = pytest.mark.root


def open_end(space: Space, pool: Pool, host: int, queues: int = 1) -> tuple[int, list[TunPort]]:
    """A TUN device t0 with addresses 10.9.0.`host` and fd09::`host`, and its queues as ports."""
    device = space.call(lambda: tun.create_device("t0"))
    spec = PortSpec(name="t0", role=Role.PROTECTED, driver="tun", interface="t0")
    ports = space.call(lambda: [tun.open_port(spec, queue, queues, pool, {}) for queue in range(queues)])
    space.ip(
        "link set lo up",
        f"addr add 10.9.0.{host}/24 dev t0",
        f"addr add fd09::{host}/64 dev t0 nodad",
        "link set t0 txqueuelen 1000 up",
    )
    return device, ports


@pytest.mark.parametrize("target", ["10.9.0.2", "fd09::2"])
def test_tcp_through_two_devices(spaces: MakeSpaces, target: str) -> None:
    """TCP between two kernels over two TUN ports joined back to back: all arrives, in few system calls."""
    pool = Pool(1024)
    content = os.urandom(1 << 20) * 16
    left, right = spaces("left", "right")
    left_fd, [left_port] = open_end(left, pool, 1)
    right_fd, [right_port] = open_end(right, pool, 2)
    assert left_port.mode in ("queue/tso", "queue/tso+uso")
    with relayed(left_port, right_port):
        assert carry_tcp(left, right, target, content) == content
    assert left_port.counters["rx_packets"] > 10000
    assert left_port.counters["rx_bytes"] > len(content)
    assert right_port.counters["tx_errors"] == 0
    assert right_port.counters["tx_syscalls"] < right_port.counters["tx_packets"] / 4
    for port in (left_port, right_port):
        port.close()
    os.close(left_fd)
    os.close(right_fd)
    assert pool.free_count == 1024


def test_kernel_segments_what_we_join(spaces: MakeSpaces) -> None:
    """A burst that the port joined is cut by the receiving kernel into the same packets (no TSO on a second TUN)."""
    pool = Pool(256)
    [left] = spaces("left")
    fd, [port] = open_end(left, pool, 1)
    plain = left.call(lambda: tun.open_queue("t1"))
    left.ip(
        "addr add 10.8.0.1/24 dev t1",
        "addr add fd08::1/64 dev t1 nodad",
        "link set t1 txqueuelen 1000 up",
    )
    left.sysctl(ipv4__ip_forward=1, ipv6__conf__all__forwarding=1, ipv4__conf__all__rp_filter=0)
    sink = TunPort(pool, "t1", plain)
    for version in (4, 6):
        packets = []
        for index in range(40):
            if version == 4:
                ip = IP(src="10.9.0.7", dst="10.8.0.7", id=100 + index, flags="DF", ttl=9)
            else:
                ip = IPv6(src="fd09::7", dst="fd08::7", hlim=9)
            flags = "PA" if index == 39 else "A"
            tcp = TCP(sport=1, dport=2, seq=1000 + 1200 * index, ack=5, flags=flags, window=77)
            packets.append(ip / tcp / bytes([index] * 1200))
        before = port.counters["tx_syscalls"]
        assert porttool.transmit(port, [bytes(packet) for packet in packets]) == 40
        assert port.counters["tx_syscalls"] == before + 1
        received = [content for content, _ in porttool.receive_all(sink, 5.0, 40)]
        received = [content for content in received if b"\x00\x01\x00\x02" in content]
        for packet in packets:
            if version == 4:
                packet.ttl = 8
            else:
                packet.hlim = 8
        assert received == [bytes(packet) for packet in packets]
    port.close()
    sink.close()
    os.close(fd)
    assert pool.free_count == 256


def test_queues_share_the_flows(spaces: MakeSpaces) -> None:
    """Two queues: the kernel spreads flows, and the descriptor that keeps the device gets none."""
    pool = Pool(1024)
    [left] = spaces("left")
    fd, ports = open_end(left, pool, 1, queues=2)
    sender = left.call(lambda: [socket.socket(type=socket.SOCK_DGRAM) for _ in range(64)])
    for each in sender:
        each.sendto(b"x" * 32, ("10.9.0.9", 9))
        each.close()
    counts = []
    for port in ports:
        mine = [content for content, _ in porttool.receive_all(port, 1.0, 65)]
        counts.append(sum(content.endswith(b"x" * 32) for content in mine))
    assert sum(counts) == 64
    assert min(counts) > 5
    for port in ports:
        port.close()
    os.close(fd)
    assert pool.free_count == 1024


def test_errors_name_the_device() -> None:
    """A name too long, and a device that is down: counted, frames back."""
    with pytest.raises(ValueError, match="may have 1 to 15"):
        tun.open_queue("a" * 16)


def test_a_deleted_device_is_not_polled(spaces: MakeSpaces) -> None:
    """Without the device nothing can come: the port takes itself out of poll(), so its worker can sleep."""
    pool = Pool(64)
    [left] = spaces("left")
    fd, [port] = open_end(left, pool, 1)
    left.ip("link del t0")
    porttool.receive(port)
    assert port.fd == -1
    assert porttool.transmit(port, [bytes(IP(dst="10.9.0.1") / b"x")]) == 1
    assert port.counters["tx_errors"] == 1
    port.close()
    os.close(fd)
    assert pool.free_count == 64


def test_writing_to_a_device_that_is_down(spaces: MakeSpaces) -> None:
    """The kernel refuses (EIO): the packets are counted and their frames come back."""
    pool = Pool(64)
    [left] = spaces("left")
    fd, [port] = open_end(left, pool, 1)
    left.ip("link set t0 down")
    assert porttool.transmit(port, [bytes(IP(dst="10.9.0.1") / b"x")] * 3) == 3
    assert port.counters["tx_errors"] == 3
    port.close()
    os.close(fd)
    assert pool.free_count == 64
