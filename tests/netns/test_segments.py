"""Super-frames that we cut, beside the same ones cut by the kernel: byte for byte the same segments.

Each is written, with its virtio_net_hdr, to a TUN device whose namespace forwards it to another one that takes no
super-frames, so the kernel has to cut it (net/core/gso.c) and to complete every checksum. What the hop changes is done
to ours as well: the TTL or hop limit is one less, and IPv4's header checksum is that of the new header. IPv4's ID
counts up in both.

Every header says NEEDS_CSUM, as virtio has it for whatever is to be cut (virtio 1.2, 5.1.6.4.1).
"""

from __future__ import annotations

import os
import random
import select
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product

import pytest

from control.lab.space import Space
from dataplane.ports import tun
from ext import porttool
from ext.memory import MemoryPort
from ext.packet import Pool
from tests.netns.wires import MakeSpaces
from tests.packets import TCP, UDP, checksum, ip, tcp, udp

pytestmark = pytest.mark.root

SEEDS = 30
VNET_HEADER = 10
NEEDS_CSUM = 1
GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, GSO_ECN = 1, 4, 5, 0x80
FIN, PSH, ACK, ECE, CWR = 0x01, 0x08, 0x10, 0x40, 0x80
DESTINATION_OPTIONS = 60
LONGEST = 1600  # gso_size; with headers it fits the MTU of the device behind, and a frame of ours
SEGMENTS = {TCP: 200, UDP: 64}  # of one super-frame at most: the kernel's limit for UDP is 64 or 128
ENDS = {4: ("10.9.0.7", "10.8.0.7"), 6: ("fd09::7", "fd08::7")}
TCP_OPTIONS = (
    b"",
    b"\x01\x01\x08\x0a" + bytes(range(8)),  # a timestamp
    b"\x01\x01\x05\x0a" + bytes(8),  # a selective acknowledgement
    b"\x01" * 40,
)


@dataclass(frozen=True, kw_only=True)
class SuperFrame:
    """What TUN devices carry: `header` is a virtio_net_hdr, `data` an IP packet."""

    header: bytes
    data: bytes


def super_frame(family: int, protocol: int, chance: random.Random) -> SuperFrame:
    """At random: size, gso_size, flags, options, numbers; sometimes so short that there is nothing to cut."""
    size = chance.choice((chance.randrange(64, LONGEST + 1), 1448, 1452, chance.randrange(500, 1500)))
    room = 65535 - 60 - 60  # of an IP packet that has the longest headers
    if chance.random() < 0.9:
        length = chance.randrange(size + 1, min(room, size * SEGMENTS[protocol]) + 1)
    else:
        # Nothing to cut. The kernel drops what is that only for its TCP options' length (its estimate of the headers
        # leaves them out, and its cutter refuses what then is no more than gso_size); we pass such a packet on.
        length = chance.randrange(1, size - 40 + 1)
    data = chance.randbytes(length)
    source, destination = ENDS[family]
    ends = {"source": source, "destination": destination}
    if protocol == TCP:
        # CWR in the first segment only, FIN and PSH in the last: whichever there are.
        flags = ACK | sum(flag for flag in (FIN, PSH, ECE, CWR) if chance.random() < 0.5)
        kind = (GSO_TCPV4 if family == 4 else GSO_TCPV6) | (GSO_ECN if flags & CWR else 0)
        sequence = chance.choice((chance.randrange(2**32), 2**32 - chance.randrange(1, 60000)))
        options = chance.choice(TCP_OPTIONS)
        body = tcp(data, sequence=sequence, flags=flags, options=options, half=True, **ends)
    else:
        kind = GSO_UDP_L4
        body = udp(data, half=True, **ends)
    transport = len(body) - len(data)
    common = {"tos": chance.randrange(256), "ttl": chance.randrange(2, 256), **ends}
    if family == 4:
        network = {"identification": chance.choice((0, 65500, chance.randrange(65536)))}
        network |= {
            "df": chance.random() < 0.5,
            "options": chance.choice((b"", b"", b"\x01" * 4, b"\x01" * 40)),
        }
        packet = ip(4, body, protocol=protocol, **common, **network)
    else:
        if chance.random() < 0.3:
            body, protocol = bytes([protocol, 0, 1, 4, 0, 0, 0, 0]) + body, DESTINATION_OPTIONS
        packet = ip(6, body, protocol=protocol, label=chance.randrange(1 << 20), **common)
    start = len(packet) - len(data) - transport
    # The length of the headers is a hint that the cutter may not trust: it is right, or as good as any.
    hint = chance.choice((start + transport, min(len(packet), 2000), 0))
    offset = 16 if kind != GSO_UDP_L4 else 6
    return SuperFrame(header=struct.pack("=BBHHHH", NEEDS_CSUM, kind, hint, size, start, offset), data=packet)


def one_hop_on(packet: bytes) -> bytes:
    """As a router passes it on; its IPv4 header checksum must have been right."""
    changed = bytearray(packet)
    if packet[0] >> 4 == 6:
        changed[7] -= 1
        return bytes(changed)
    words = (packet[0] & 15) * 4
    assert checksum(packet[:words]) == 0
    changed[8] -= 1
    changed[10:12] = bytes(2)
    changed[10:12] = checksum(bytes(changed[:words])).to_bytes(2, "big")
    return bytes(changed)


@dataclass(frozen=True, kw_only=True)
class Hop:
    """A namespace between two TUN devices, the second of which takes no super-frames."""

    into: int
    out: int
    uso: bool  # the kernel cuts UDP, too

    def segments(self, whole: SuperFrame, count: int) -> list[bytes]:
        """What comes out of `whole`: until there are `count` segments, and all that is there then."""
        assert os.write(self.into, whole.header + whole.data) == VNET_HEADER + len(whole.data)
        found: list[bytes] = []
        until = time.monotonic() + 20
        while select.select(
            [self.out], [], [], max(0, until - time.monotonic()) if len(found) < count else 0
        )[0]:
            said = os.read(self.out, 65536)
            packet = said[VNET_HEADER:]
            if destination(packet) != destination(whole.data):
                continue  # the kernel's own: it looks for routers and neighbours
            assert said[:VNET_HEADER] == bytes(VNET_HEADER), "not whole, or without its checksum"
            found.append(packet)
        return found


def destination(packet: bytes) -> bytes:
    """Of the IP header."""
    return packet[16:20] if packet[0] >> 4 == 4 else packet[24:40]


@contextmanager
def hop(space: Space) -> Iterator[Hop]:
    """Both devices, up and with routes to ENDS."""
    device = space.call(lambda: tun.create_device("t0"))
    into, out = (space.call(lambda name=name: tun.open_queue(name)) for name in ("t0", "t1"))
    try:
        space.ip(
            "addr add 10.9.0.1/24 dev t0",
            "addr add fd09::1/64 dev t0 nodad",
            "link set t0 up",
            "addr add 10.8.0.1/24 dev t1",
            "addr add fd08::1/64 dev t1 nodad",
            "link set t1 mtu 1800 txqueuelen 1000 up",
        )
        space.sysctl(ipv4__ip_forward=1, ipv6__conf__all__forwarding=1, ipv4__conf__all__rp_filter=0)
        # What a device may be asked to take uncut, this kernel can cut itself.
        yield Hop(into=into, out=out, uso=tun.set_offloads(into) == "tso+uso")
    finally:
        for fd in (into, out, device):
            os.close(fd)


@pytest.mark.parametrize("family", [4, 6])
def test_cut_as_the_kernel_does(spaces: MakeSpaces, family: int) -> None:
    """Thirty super-frames of TCP and, where the kernel has them (Linux 6.2), of UDP."""
    [space] = spaces("router")
    pool = Pool(128)
    port = MemoryPort(pool, link=1)
    counts = []
    with hop(space) as kernel:
        for protocol, seed in product((TCP, UDP) if kernel.uso else (TCP,), range(SEEDS)):
            whole = super_frame(family, protocol, random.Random(seed))
            ours = [packet for batch in porttool.cut(port, whole.header, whole.data) for packet, _ in batch]
            theirs = kernel.segments(whole, len(ours))
            assert [one_hop_on(packet) for packet in ours] == theirs, f"protocol {protocol}, seed {seed}"
            counts.append(len(ours))
    assert min(counts) == 1 and max(counts) > 64  # more than a batch
    assert pool.free_count == 128
