"""KernelPort: whole packets leave by the kernel's routing, which resolves the neighbour meanwhile."""

from __future__ import annotations

import socket

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6

from dataplane.ports import kernel
from ext import porttool
from ext.packet import Pool
from tests.netns.test_udp import PEERS, connect
from tests.netns.wires import MakeSpaces

pytestmark = pytest.mark.root


@pytest.mark.parametrize("version", [4, 6])
def test_forwarded_and_local(spaces: MakeSpaces, version: int) -> None:
    """To a host that must be resolved first, and to this host itself; foreign sources are kept."""
    left, right = spaces("left", "right")
    connect(left, right)
    right.ip(f"route add default via {PEERS[version][0]}")
    pool = Pool(128)
    port = left.call(lambda: kernel.open_port(pool))
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    for space, target in ((right, PEERS[version][1]), (left, PEERS[version][0])):
        sock = space.call(lambda: socket.socket(family, socket.SOCK_DGRAM))
        sock.settimeout(3)
        sock.bind((target, 7000))
        if version == 4:
            header = IP(src="10.77.0.9", dst=target, ttl=7)
        else:
            header = IPv6(src="fd77::9", dst=target, hlim=7)
        packets = [bytes(header / UDP(sport=1, dport=7000) / bytes([number])) for number in range(3)]
        assert porttool.transmit(port, packets) == 3
        assert [sock.recv(10) for _ in packets] == [bytes([number]) for number in range(3)]
        sock.close()
    assert port.counters["tx_syscalls"] == 2
    assert port.counters["tx_packets"] == 6
    assert port.fd == -1
    assert porttool.receive(port) == []
    port.close()
    assert pool.free_count == 128


def test_what_the_kernel_refuses_is_counted(spaces: MakeSpaces) -> None:
    """No route, longer than the MTU, no IP version: errors, and the packets around them go out."""
    left, right = spaces("left", "right")
    connect(left, right)
    pool = Pool(128)
    port = left.call(lambda: kernel.open_port(pool))
    sock = right.call(lambda: socket.socket(type=socket.SOCK_DGRAM))
    sock.settimeout(3)
    sock.bind(("10.8.0.2", 7000))
    good = bytes(IP(src="10.8.0.1", dst="10.8.0.2") / UDP(dport=7000) / b"x")
    packets = [
        good,
        bytes(IP(src="10.8.0.1", dst="192.0.2.1") / UDP()),
        good,
        bytes(IP(src="10.8.0.1", dst="10.8.0.2") / UDP() / bytes(1600)),
        b"\x15" * 40,
        good,
    ]
    assert porttool.transmit(port, packets) == 6
    assert [sock.recv(10) for _ in range(3)] == [b"x"] * 3
    assert (port.counters["tx_packets"], port.counters["tx_errors"]) == (3, 3)
    sock.close()
    port.close()
    assert port.mode == ""
    assert porttool.transmit(port, [good]) == 1
    assert port.counters["tx_errors"] == 4
    assert pool.free_count == 128
