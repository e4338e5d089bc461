"""One worker's loop in the test's own process, over the tables of a real DataPlane."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address

from dataplane.api import DataPlane
from ext.loop import Loop
from ext.memory import MemoryPort
from ext.packet import Pool
from ext.sa import TablesView


class Gateway:
    """One worker's loop in this process, over a DataPlane's tables."""

    def __init__(self, plane: DataPlane, worker: int = 0) -> None:
        self.plane = plane
        pool = Pool(256)
        self.lan = MemoryPort(pool, "lan", role=0)
        self.wan = MemoryPort(pool, "wan", role=1)
        self.view = TablesView(plane.tables.fd, worker)
        self.loop = Loop(self.view, plane.tables.engine, [self.lan, self.wan])

    def out(self, packet: bytes) -> list[bytes]:
        """What leaves towards the peer for a packet from the protected side."""
        self.lan.inject([packet])
        self.loop.step(2)
        return self.wan.collect()

    def back(self, packet: bytes) -> list[bytes]:
        """What reaches the protected side for a packet from the peer."""
        self.wan.inject([packet])
        self.loop.step(2)
        return self.lan.collect()

    def drops(self) -> dict[str, int]:
        return {name: count for name, count in self.plane.stats().drops.items() if count}


def udp(source: str, destination: str, body: bytes = b"hello") -> bytes:
    """An IPv4 UDP packet without UDP checksum."""
    datagram = struct.pack("!HHHH", 1000, 2000, 8 + len(body), 0) + body
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(datagram), 0, 0, 64, 17, 0)
    header += IPv4Address(source).packed + IPv4Address(destination).packed
    total = sum(struct.unpack("!10H", header))
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    return header[:10] + struct.pack("!H", ~total & 0xFFFF) + header[12:] + datagram
