"""The steering program: which frames go to the socket, which to the kernel, and which nowhere.

far0 --------------------> near0 -[XDP]-> AF_XDP socket     steered
                                      '-> kernel (tap)      all else
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6ND_NS,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Packet, Raw

from bench.generator import load_redirect
from ext import porttool
from ext.packet import Pool
from ext.steering import REASONS, Steering
from ext.xsk import Umem, XskPort
from tests.ext.veth_wire import FAR_MAC, NEAR_MAC, OBJECT, Wire, frames_of, process, wait_for, wire

pytestmark = pytest.mark.root

PROTECTED, UNPROTECTED = 0, 1
SO_ATTACH_BPF = 50
LOCALS = ["10.1.0.1", "10.2.0.99", "192.0.2.1", "fd01::1", "2001:db8::1"]
REMOTES = ["10.2.0.0/16", "172.16.5.5/32", "fd02::/64", "::/0"]

DATA = Raw(b"\x11\x22\x33\x44 esplanade steering test \x55\x66")
ESP = Raw(b"\x00\x00\x10\x01\x00\x00\x00\x01" + bytes(40))
MARKER = Raw(bytes(4) + b"IKE message")


def ether(*layers: Packet, destination: str = NEAR_MAC, **fields: int) -> bytes:
    """A frame from far to near."""
    frame: Packet = Ether(dst=destination, src=FAR_MAC, **fields)
    for layer in layers:
        frame = frame / layer
    return bytes(frame)


def to4(**fields: object) -> IP:
    """An IPv4 header to a protected destination."""
    return IP(src="10.1.0.2", **{"dst": "10.2.0.2", **fields})


def to6(**fields: object) -> IPv6:
    """An IPv6 header to a protected destination."""
    return IPv6(src="fd01::2", **{"dst": "fd02::2", **fields})


def in4(**fields: object) -> IP:
    """An outer IPv4 header to this host."""
    return IP(**{"src": "192.0.2.2", "dst": "192.0.2.1", **fields})


def in6(**fields: object) -> IPv6:
    """An outer IPv6 header to this host."""
    return IPv6(**{"src": "2001:db8::2", "dst": "2001:db8::1", **fields})


def udp(port: int, payload: Raw | bytes) -> Packet:
    """A datagram."""
    return UDP(sport=4500, dport=port) / (payload if isinstance(payload, Raw) else Raw(payload))


PROTECTED_CASES = {
    "udp": ("steered", ether(to4(), UDP(sport=1, dport=2), DATA)),
    "tcp": ("steered", ether(to4(), TCP(), DATA)),
    "icmp": ("steered", ether(to4(), ICMP(), DATA)),
    "any-protocol": ("steered", ether(to4(proto=132), DATA)),
    "esp-in-transit": ("steered", ether(to4(proto=50), ESP)),
    "host-prefix": ("steered", ether(to4(dst="172.16.5.5"), DATA)),
    "first-fragment": ("steered", ether(to4(flags="MF"), UDP(), DATA)),
    "later-fragment": ("steered", ether(to4(frag=100), DATA)),
    "ip-options": ("steered", ether(to4(ihl=7), Raw(bytes(8)), DATA)),
    "bad-ihl": ("steered", ether(to4(ihl=2), DATA)),
    "bad-version": ("steered", ether(to4(version=9), DATA)),
    "bad-length": ("steered", ether(to4(len=4000), DATA)),
    "ike-to-the-far-side": ("steered", ether(to4(), udp(500, b"IKE through"))),
    "six-tcp": ("steered", ether(to6(), TCP(), DATA)),
    "six-default-route": ("steered", ether(to6(dst="2001:db8:9::1"), TCP(), DATA)),
    "six-options": ("steered", ether(to6(), IPv6ExtHdrHopByHop(), TCP(), DATA)),
    "six-fragment": ("steered", ether(to6(), IPv6ExtHdrFragment(offset=50), DATA)),
    "six-nonsense": ("steered", ether(to6(nh=59, plen=9000), DATA)),
    "arp": ("not_ip", ether(ARP(pdst="10.1.0.1"), DATA)),
    "arp-broadcast": ("multicast", ether(ARP(), DATA, destination="ff:ff:ff:ff:ff:ff")),
    "other-ethertype": ("not_ip", ether(DATA, type=0x88B5)),
    "neighbour-solicitation": (
        "multicast",
        ether(IPv6(dst="ff02::1:ff00:1"), ICMPv6ND_NS(tgt="fd01::1"), DATA, destination="33:33:ff:00:00:01"),
    ),
    "neighbour-unicast": ("local", ether(to6(dst="fd01::1"), ICMPv6ND_NS(tgt="fd01::1"), DATA)),
    "neighbour-link-local": ("link_local", ether(to6(dst="fe80::1"), ICMPv6ND_NS(tgt="fe80::1"), DATA)),
    "ping-to-host": ("unmatched", ether(to4(dst="10.1.0.1"), ICMP(), DATA)),
    "not-protected": ("unmatched", ether(to4(dst="10.3.0.1"), DATA)),
    "beside-host-prefix": ("unmatched", ether(to4(dst="172.16.5.4"), DATA)),
    "host-inside-prefix": ("local", ether(to4(dst="10.2.0.99"), UDP(), DATA)),
    "six-host": ("local", ether(to6(dst="fd01::1"), TCP(), DATA)),
    "multicast": ("multicast", ether(to4(dst="224.0.0.5"), DATA, destination="01:00:5e:00:00:05")),
    "multicast-by-unicast-mac": ("multicast", ether(to4(dst="224.0.0.5"), DATA)),
    "broadcast": ("multicast", ether(to4(dst="255.255.255.255"), DATA)),
    "protected-by-broadcast-mac": ("multicast", ether(to4(), DATA, destination="ff:ff:ff:ff:ff:ff")),
    "six-multicast": ("multicast", ether(to6(dst="ff02::5"), DATA)),
    "vlan": ("vlan", ether(Dot1Q(vlan=5), to4(), UDP(), DATA)),
    "vlan-stacked": ("vlan", ether(Dot1Q(vlan=5), to4(), UDP(), DATA, type=0x88A8)),
    "short": ("short", ether(Raw(bytes(to4())[:19]), type=0x0800)),
    "six-short": ("short", ether(Raw(bytes(to6())[:39]), type=0x86DD)),
}

UNPROTECTED_CASES = {
    "esp": ("steered", ether(in4(proto=50), ESP)),
    "esp-truncated": ("steered", ether(in4(proto=50), Raw(b"\x00"))),
    "esp-ip-options": ("steered", ether(in4(proto=50, ihl=7), Raw(bytes(8)), ESP)),
    "esp-first-fragment": ("fragment", ether(in4(proto=50, flags="MF"), ESP)),
    "esp-later-fragment": ("fragment", ether(in4(proto=50, frag=3), ESP)),
    "ah": ("steered", ether(in4(proto=51), DATA)),
    "ah-ip-options": ("steered", ether(in4(proto=51, ihl=7), Raw(bytes(8)), DATA)),
    "ah-later-fragment": ("fragment", ether(in4(proto=51, frag=3), DATA)),
    "encap": ("steered", ether(in4(), udp(4500, ESP))),
    "encap-ip-options": ("steered", ether(in4(proto=17, ihl=6), Raw(bytes(4)), udp(4500, ESP))),
    "encap-second-port": ("steered", ether(in4(), udp(14500, ESP))),
    "keepalive": ("steered", ether(in4(), udp(4500, b"\xff"))),
    "six-esp": ("steered", ether(in6(nh=50), ESP)),
    "six-ah": ("steered", ether(in6(nh=51), DATA)),
    "six-ah-options": ("steered", ether(in6(), IPv6ExtHdrHopByHop(), IPv6ExtHdrDestOpt(nh=51), DATA)),
    "six-ah-fragment": ("fragment", ether(in6(), IPv6ExtHdrFragment(nh=51, offset=2), DATA)),
    "six-encap": ("steered", ether(in6(), udp(4500, ESP))),
    "six-keepalive": ("steered", ether(in6(), udp(4500, b"\xff"))),
    "six-esp-options": ("steered", ether(in6(), IPv6ExtHdrHopByHop(), IPv6ExtHdrDestOpt(nh=50), ESP)),
    "six-esp-routing": ("steered", ether(in6(), IPv6ExtHdrRouting(nh=50), ESP)),
    "six-esp-six-headers": (
        "steered",
        ether(in6(), *[IPv6ExtHdrDestOpt() for _ in range(5)], IPv6ExtHdrDestOpt(nh=50), ESP),
    ),
    "six-encap-options": ("steered", ether(in6(), IPv6ExtHdrDestOpt(), udp(4500, ESP))),
    "six-esp-fragment": ("fragment", ether(in6(), IPv6ExtHdrFragment(nh=50, offset=2), ESP)),
    "ike": ("ike", ether(in4(), udp(500, MARKER))),
    "ike-encap": ("ike", ether(in4(), udp(4500, MARKER))),
    "six-ike": ("ike", ether(in6(), udp(500, MARKER))),
    "six-ike-encap": ("ike", ether(in6(), udp(4500, MARKER))),
    "encap-empty": ("local", ether(in4(), UDP(sport=1, dport=4500))),
    "encap-one-byte": ("local", ether(in4(), udp(4500, b"\x01"))),
    "encap-three-bytes": ("local", ether(in4(), udp(4500, b"\xff\xff\xff"))),
    "encap-bad-length": ("short", ether(in4(), UDP(sport=1, dport=4500, len=7), ESP)),
    "encap-cut-short": ("short", ether(in4(), UDP(sport=1, dport=4500, len=100), Raw(b"\x01\x02"))),
    "encap-fragment": ("fragment", ether(in4(flags="MF"), udp(4500, ESP))),
    "udp-later-fragment": ("fragment", ether(in4(proto=17, frag=8), DATA)),
    "six-encap-fragment": ("fragment", ether(in6(), IPv6ExtHdrFragment(nh=17, m=1), udp(4500, ESP))),
    "esp-to-another": ("not_local", ether(in4(dst="192.0.2.77", proto=50), ESP)),
    "encap-to-another": ("not_local", ether(in4(dst="192.0.2.77"), udp(4500, ESP))),
    "clear-from-behind-a-tunnel": ("steered", ether(in4(src="10.2.0.2", dst="10.1.0.2"), TCP(), DATA)),
    "esp-from-behind-a-tunnel": ("steered", ether(in4(src="10.2.0.2", dst="10.1.0.2", proto=50), ESP)),
    "clear-from-behind-to-host": ("local", ether(in4(src="10.2.0.2"), TCP(), DATA)),
    # ::/0 is remote here, so every IPv6 source is behind the tunnel.
    "six-esp-to-another": ("steered", ether(in6(dst="2001:db8::77", nh=50), ESP)),
    "six-clear-from-behind": ("steered", ether(in6(src="fd02::2", dst="fd01::2"), TCP(), DATA)),
    "forwarded": ("not_local", ether(in4(dst="10.2.0.2"), TCP(), DATA)),
    "esp-by-multicast": ("multicast", ether(in4(dst="224.0.0.5", proto=50), ESP)),
    "ping": ("local", ether(in4(), ICMP(type=0), DATA)),
    "tcp": ("local", ether(in4(), TCP(dport=22), DATA)),
    "other-udp": ("local", ether(in4(), udp(53, DATA))),
    "gre": ("local", ether(in4(proto=47), DATA)),
    "six-neighbour": ("local", ether(in6(), ICMPv6ND_NS(tgt="2001:db8::1"), DATA)),
    "six-too-many-headers": (
        "local",
        ether(in6(), *[IPv6ExtHdrDestOpt() for _ in range(6)], IPv6ExtHdrDestOpt(nh=50), ESP),
    ),
    "six-options-cut-short": ("short", ether(in6(nh=60), Raw(b"\x32"))),
    "bad-ihl": ("short", ether(in4(ihl=4, proto=17), DATA)),
    "arp": ("not_ip", ether(ARP(pdst="192.0.2.1"), DATA)),
    "vlan": ("vlan", ether(Dot1Q(vlan=5), in4(proto=50), ESP)),
}
CASES = {PROTECTED: PROTECTED_CASES, UNPROTECTED: UNPROTECTED_CASES}


@dataclass
class Site:
    """near0 with its program, a socket that takes what is steered and a tap that sees what the kernel gets."""

    wire: Wire
    steering: Steering
    pool: Pool
    tap: socket.socket

    def open_ports(self, mode: str) -> list[XskPort]:
        """AF_XDP sockets on both queues, ready to receive: far0 spreads its frames over them."""
        umem = Umem(self.pool)
        fd = self.steering.xsks_fd

        def open_all() -> list[XskPort]:
            fixed = {"role": 0, "mtu": 1500, "xdp_mode": mode, "ring": 64}
            return [XskPort(umem, f"near.{queue}", "near0", queue, fd, **fixed) for queue in (0, 1)]

        ports = self.wire.near.call(open_all)
        received(ports)  # the first flush brings the frames
        return ports

    def counted(self, send: bytes) -> dict[str, int]:
        """Send a frame and wait until the program has seen it; gives the counters that moved."""
        before = self.steering.counts()
        self.wire.send(send)

        def moved() -> dict[str, int]:
            now = self.steering.counts()
            return {name: now[name] - before[name] for name in REASONS if now[name] != before[name]}

        return wait_for(moved)


def received(ports: list[XskPort]) -> list[bytes]:
    """What waits at the sockets."""
    return [data for port in ports for data, _ in porttool.receive(port)]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wire]:
    """One wire for all tests here."""
    with wire(tmp_path_factory.mktemp("wire")) as made:
        yield made


@contextlib.contextmanager
def make_steering(wire: Wire, role: int) -> Iterator[Steering]:
    """The program for near0 with the addresses and networks of the cases; closed in its namespace."""
    steering = wire.near.call(lambda: Steering(OBJECT, "near0", role))
    try:
        steering.set_locals(LOCALS)
        steering.set_remotes(REMOTES)
        steering.set_encap_ports([4500, 14500])
        yield steering
    finally:
        wire.near.call(steering.close)


@pytest.fixture
def site(pair: Wire) -> Iterator[Site]:
    """near0 steered in the role PROTECTED, not attached yet."""
    with make_steering(pair, PROTECTED) as steering, pair.packet_socket(pair.near, "near0") as tap:
        yield Site(pair, steering, Pool(1024), tap)


@pytest.mark.parametrize("role", CASES, ids=["protected", "unprotected"])
@pytest.mark.parametrize("mode", ["native", "generic"])
def test_socket_or_kernel(pair: Wire, mode: str, role: int) -> None:
    """Every case arrives once and unchanged where it belongs, nowhere else, and is counted by its reason."""
    wrong = {}
    with make_steering(pair, role) as steering, pair.packet_socket(pair.near, "near0") as tap:
        site = Site(pair, steering, Pool(1024), tap)
        pair.near.call(lambda: steering.attach_xdp(mode))
        assert steering.mode == mode
        ports = site.open_ports(mode)
        for name, (reason, frame) in CASES[role].items():
            counted = site.counted(frame)
            to_socket = received(ports)
            to_kernel = frames_of(tap)
            # The kernel takes a VLAN tag out before packet sockets see the frame.
            expected = frame if reason != "vlan" else frame[:12] + frame[16:]
            places = ([frame], []) if reason == "steered" else ([], [expected])
            if (to_socket, to_kernel) != places or counted != {reason: 1}:
                wrong[name] = (counted, len(to_socket), len(to_kernel))
        for port in ports:
            port.close()
    assert not wrong


@pytest.mark.parametrize("role", CASES, ids=["protected", "unprotected"])
def test_packet_socket_sees_what_tc_shoots(pair: Wire, role: int) -> None:
    """The same cases at the other two hooks: the filtered socket takes exactly what the tc program shoots."""
    wrong = {}
    with make_steering(pair, role) as steering, pair.packet_socket(pair.near, "near0") as filtered:
        assert pair.near.call(steering.attach_tc) == "clsact"
        program = steering.socket_filter_fd()
        filtered.setsockopt(socket.SOL_SOCKET, SO_ATTACH_BPF, program)
        os.close(program)
        frames_of(filtered)
        site = Site(pair, steering, Pool(64), filtered)
        for name, (reason, frame) in CASES[role].items():
            counted = site.counted(frame)
            if counted != {reason: 1} or frames_of(filtered) != ([frame] if reason == "steered" else []):
                wrong[name] = counted
    assert not wrong


def test_tc_keeps_steered_frames_from_the_kernel(pair: Wire) -> None:
    """A UDP socket of the host gets IKE by port 4500, but no ESP; without the program it gets both."""
    pair.near.ip("addr add 192.0.2.1/24 dev near0")
    with make_steering(pair, UNPROTECTED) as steering:
        ike = pair.near.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        with ike:
            ike.bind(("192.0.2.1", 4500))
            ike.settimeout(2)
            frames = [UNPROTECTED_CASES[name][1] for name in ("encap", "ike-encap")]
            pair.send(*frames)
            assert ike.recv(2048) == bytes(ESP)
            assert ike.recv(2048) == bytes(MARKER)
            pair.near.call(steering.attach_tc)
            pair.send(*frames)
            assert ike.recv(2048) == bytes(MARKER)
            assert steering.counts()["steered"] == 1
    pair.near.ip("addr del 192.0.2.1/24 dev near0")


@pytest.mark.parametrize("mode", ["native", "generic"])
def test_without_socket_steered_frames_are_dropped(site: Site, mode: str) -> None:
    """Before a socket is there, and after it has gone, steered frames reach nobody."""
    site.wire.near.call(lambda: site.steering.attach_xdp(mode))
    frame = PROTECTED_CASES["udp"][1]
    assert site.counted(frame) == {"no_socket": 1}
    ports = site.open_ports(mode)
    assert site.counted(frame) == {"steered": 1}
    assert received(ports) == [frame]
    for port in ports:
        port.close()
    assert site.counted(frame) == {"no_socket": 1}
    assert site.counted(PROTECTED_CASES["arp"][1]) == {"not_ip": 1}
    assert frames_of(site.tap) == [PROTECTED_CASES["arp"][1]]


def test_sets_change_while_attached(site: Site) -> None:
    """Networks, addresses and ports come and go; what stays is never missing in between."""
    site.wire.near.call(lambda: site.steering.attach_xdp("native"))
    stays, comes = PROTECTED_CASES["udp"][1], PROTECTED_CASES["not-protected"][1]
    assert site.counted(comes) == {"unmatched": 1}
    site.steering.set_remotes(["10.2.0.0/16", "10.3.0.0/24"])
    assert site.counted(comes) == site.counted(stays) == {"no_socket": 1}
    site.steering.set_locals(["10.3.0.1"])
    assert site.counted(comes) == {"local": 1}
    site.steering.set_remotes(["10.2.0.0/16"])
    assert site.counted(comes) == {"unmatched": 1}
    site.steering.set_remotes([])
    assert site.counted(stays) == {"unmatched": 1}
    with pytest.raises(ValueError, match="has host bits set"):
        site.steering.set_remotes(["10.2.0.1/16"])


def test_many_networks(site: Site) -> None:
    """Ten thousand prefixes fit, and the longest that matches decides nothing but steering."""
    site.steering.set_remotes(f"10.{index >> 8}.{index & 255}.0/24" for index in range(10000))
    site.wire.near.call(lambda: site.steering.attach_xdp("native"))
    assert site.counted(PROTECTED_CASES["udp"][1]) == {"no_socket": 1}
    site.steering.set_remotes(["10.2.0.0/24"])
    assert site.counted(PROTECTED_CASES["udp"][1]) == {"no_socket": 1}


def shown(wire: Wire, *command: str) -> str:
    """What a command says in the near namespace."""
    return wire.near.run(command).output()


def attach(pair: Wire, method: str, mode: str) -> Steering:
    """A steering program of near0, attached; call it inside the namespace."""
    steering = Steering(OBJECT, "near0", PROTECTED)
    steering.set_remotes(REMOTES)
    assert (steering.attach_xdp(mode) if method == "xdp" else steering.attach_tc()) == mode
    return steering


ATTACHMENTS = [("xdp", "native"), ("xdp", "generic"), ("tc", "clsact")]


def ip_received(pair: Wire) -> int:
    """IPv4 packets that the near kernel has got to see."""
    lines = [
        line.split() for line in shown(pair, "cat", "/proc/net/snmp").splitlines() if line.startswith("Ip:")
    ]
    return int(lines[1][lines[0].index("InReceives")])


@pytest.mark.parametrize(("method", "mode"), ATTACHMENTS)
def test_killed_process_leaves_the_door_shut(pair: Wire, method: str, mode: str) -> None:
    """What a killed process has attached keeps steered frames from the kernel until the next takes its place."""
    frame = PROTECTED_CASES["udp"][1]
    before = ip_received(pair)
    for next_mode in ("native", "generic") if method == "xdp" else (mode,):
        with process(pair.near, lambda: attach(pair, method, mode)) as pid:
            with make_steering(pair, PROTECTED) as second:
                with pytest.raises(OSError, match="attach to near0: another gateway that runs has it"):
                    pair.near.call(second.attach_tc)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        with pair.packet_socket(pair.near, "near0") as tap:
            pair.send(frame, PROTECTED_CASES["arp"][1])
            assert wait_for(lambda tap=tap: PROTECTED_CASES["arp"][1] in frames_of(tap))
        assert ip_received(pair) == before
        steering = pair.near.call(lambda next_mode=next_mode: attach(pair, method, next_mode))
        pair.send(frame)
        assert (
            wait_for(
                lambda steering=steering: steering.counts()["steered" if method == "tc" else "no_socket"]
            )
            == 1
        )
        pair.near.call(steering.close)
        assert "xdp" not in shown(pair, "ip", "link", "show", "near0")
        assert "handle" not in shown(pair, "tc", "filter", "show", "dev", "near0", "ingress")
    assert ip_received(pair) == before
    pair.near.run(["tc", "qdisc", "del", "dev", "near0", "clsact"], check=False)


def test_foreign_program_stays(pair: Wire) -> None:
    """An XDP program that is not ours is neither replaced nor detached."""
    library = ctypes.CDLL("libbpf.so.1")

    def attach_foreign(program: int) -> int:
        return library.bpf_xdp_attach(socket.if_nametoindex("near0"), program, 0, None)

    foreign = load_redirect(1)
    try:
        assert pair.near.call(lambda: attach_foreign(foreign)) == 0
        with make_steering(pair, PROTECTED) as steering:
            for mode in ("auto", "native", "generic"):
                with pytest.raises(OSError, match="another XDP program is attached"):
                    pair.near.call(lambda mode=mode: steering.attach_xdp(mode))
        assert "xdp" in shown(pair, "ip", "link", "show", "near0")
        assert pair.near.call(lambda: attach_foreign(-1)) == 0
    finally:
        os.close(foreign)


def test_errors_say_what_was_tried(pair: Wire, tmp_path: Path) -> None:
    """Wrong files, interfaces, modes and roles, and an interface that no native program fits."""
    with pytest.raises(OSError, match="open BPF object /nowhere"):
        pair.near.call(lambda: Steering("/nowhere/steer.bpf.o", "near0", 0))
    broken = tmp_path / "steer.bpf.o"
    broken.write_bytes(b"\x7fELF")
    with pytest.raises(OSError, match=f"open BPF object {broken}"):
        pair.near.call(lambda: Steering(str(broken), "near0", 0))
    with pytest.raises(OSError):
        pair.near.call(lambda: Steering(OBJECT, "none0", 0))
    with pytest.raises(ValueError, match="role is 2"):
        Steering(OBJECT, "near0", 2)
    with make_steering(pair, PROTECTED) as steering:
        with pytest.raises(ValueError, match="XDP mode is 'fast'"):
            steering.attach_xdp("fast")
        pair.far.ip("link set far0 mtu 9000")
        with pytest.raises(OSError, match=r"attach to near0: native XDP: .*3506"):
            pair.near.call(lambda: steering.attach_xdp("native"))
        assert pair.near.call(lambda: steering.attach_xdp("auto")) == "generic"
        assert "3506" in steering.refused
        pair.far.ip("link set far0 mtu 1500")
        with pytest.raises(ValueError, match="attached already"):
            steering.attach_tc()
    with pytest.raises(ValueError, match="is closed"):
        steering.counts()
