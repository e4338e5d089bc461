"""The real kernels over a capture file: encrypt or decrypt without root, workers or interfaces.

    Offline(sas, policies) -> transform(packet, ...) one by one -> Outcome: what came out, or the drop's name
    transform_capture      the same over capture files, with a summary

One worker's loop runs in this process over memory ports, a packet at a time, so that every verdict can be told
apart. Paths are as wide as IP allows: no packet is too big here. What comes out is bare IP.

Limits: an inbound SA with extended sequence numbers begins at SaSpec.sequence: a capture from more than 2**31 packets
into the SA needs that set. Numbers given out here are nobody's: what is encrypted offline must never be
sent under a key that is in use.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import BinaryIO

from dataplane.api import DataPlane
from dataplane.model import (
    Address,
    AdjacencySpec,
    Direction,
    PolicySpec,
    PortSpec,
    Protocol,
    Role,
    RouteSpec,
    SaSpec,
)
from dataplane.ports.pcap import ETHERNET, RAW, CaptureError, CaptureWriter, read_capture
from dataplane.tables import Limits
from ext.counters import VERDICT_NAMES
from ext.loop import Loop
from ext.memory import MemoryPort
from ext.packet import Pool
from ext.sa import TablesView

__all__ = ["CaptureError", "CaptureSummary", "Offline", "Outcome", "transform_capture"]

PATH_MTU = 65535
FRAME_SIZE = 131072  # bytes: the largest IP packet, and what ESP adds on both sides
FRAMES = 64
# The only reason that is not a counter's name: the capture holds a part of the packet.
CUT_SHORT = "cut_short"
_SMALL = Limits(max_sas=4096, max_policies=8192, max_selectors=16384, max_adjacencies=16, max_routes=16)
_LINK_HEADER = 14
_IPPROTO_UDP = 17
_ANY = (IPv4Network("0.0.0.0/0"), IPv6Network("::/0"))


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one packet."""

    verdict: str  # the counter's name: "pass", "bypassed", or a drop
    packets: tuple[bytes, ...]  # what came out, IP header first; empty for a drop


@dataclass(frozen=True, kw_only=True)
class CaptureSummary:
    """What became of a capture's packets."""

    read: int
    written: int
    # By direction and counter's name.
    verdicts: dict[tuple[Direction, str], int] = field(default_factory=dict)


class Offline:
    """SAs and policies, ready to take packets. DataPlaneError when they cannot be had."""

    def __init__(
        self, sas: Sequence[SaSpec], policies: Sequence[PolicySpec], *, engine: str = "auto"
    ) -> None:
        self._ours = {sa.local for sa in sas}
        self._encap_ports = {sa.encap.source_port for sa in sas if sa.encap is not None}
        # One port per side and link type; what comes out always leaves by the bare IP ones.
        sides = [(role, link) for link in (RAW, ETHERNET) for role in Role]
        specs = [
            PortSpec(name=f"{role.value}-{link}", role=role, driver="memory", interface="", mtu=PATH_MTU)
            for role, link in sides
        ]
        self._dataplane = DataPlane.create(ports=specs, workers=1, engine=engine, limits=_SMALL)
        try:
            asyncio.run(self._fill(sas, policies))
            pool = Pool(FRAMES, FRAME_SIZE)
            self._ports = {
                (role, link): MemoryPort(
                    pool, spec.name, int(role is Role.UNPROTECTED), int(link != ETHERNET), PATH_MTU
                )
                for (role, link), spec in zip(sides, specs, strict=True)
            }
            self._kernel = MemoryPort(pool, "kernel", 0, 1, PATH_MTU)
            tables = self._dataplane.tables
            view = TablesView(tables.fd, 0)
            self._loop: Loop | None = Loop(view, tables.engine, list(self._ports.values()), self._kernel)
            self._verdicts = tables.workers[0]["verdicts"]
        except BaseException:
            self._dataplane.close()
            raise

    async def _fill(self, sas: Sequence[SaSpec], policies: Sequence[PolicySpec]) -> None:
        # Nothing is reserved on disk: these numbers never go on a wire.
        self._dataplane.add_sas([replace(sa, negotiated=True) for sa in sas], mtu=PATH_MTU)
        outside = AdjacencySpec(port=f"{Role.UNPROTECTED.value}-{RAW}", mtu=PATH_MTU)
        inside = AdjacencySpec(port=f"{Role.PROTECTED.value}-{RAW}", mtu=PATH_MTU)
        for sa in sas:
            if sa.direction is Direction.OUT:
                self._dataplane.set_sa_adjacency(sa.name, outside, PATH_MTU)
        await self._dataplane.set_routes([RouteSpec(prefix=prefix, adjacency=inside) for prefix in _ANY])
        await self._dataplane.set_policies(policies)

    def direction_of(self, packet: bytes, link: int = RAW) -> Direction:
        """IN for AH and ESP, bare or in UDP, that one of our SAs' local addresses is to receive; else OUT."""
        packet = packet[_LINK_HEADER:] if link == ETHERNET else packet
        destination, protocol, offset = _outline(packet)
        if destination not in self._ours:
            return Direction.OUT
        if protocol in (Protocol.ESP, Protocol.AH):
            return Direction.IN
        port = int.from_bytes(packet[offset + 2 : offset + 4], "big")
        marked = packet[offset + 8 : offset + 12] != bytes(4)  # RFC 3948 2.2: zeros would be IKE
        if protocol == _IPPROTO_UDP and port in self._encap_ports and marked:
            return Direction.IN
        return Direction.OUT

    def transform(self, packet: bytes, direction: Direction, link: int = RAW) -> Outcome:
        """Pass one packet, with or without Ethernet header, through the outbound or inbound walk.

        ValueError for a packet that no frame holds.
        """
        assert self._loop is not None, "closed"
        before = self._verdicts.copy()
        sides = [Role.PROTECTED, Role.UNPROTECTED]
        entry, exit_ = sides if direction is Direction.OUT else reversed(sides)
        self._ports[entry, link].inject([packet])
        self._loop.step()
        out = (*self._ports[exit_, RAW].collect(), *self._kernel.collect())
        for port in self._ports.values():
            port.collect()  # ICMP errors: answers to a sender who is not there
        changed = (self._verdicts - before).nonzero()[0]
        verdict = VERDICT_NAMES.get(int(changed[0]), "") if len(changed) else ""
        return Outcome(verdict=verdict, packets=out)

    def close(self) -> None:
        """Zero the keys and let everything go."""
        self._loop = None
        self._dataplane.close()


def transform_capture(
    offline: Offline, source: BinaryIO, sink: BinaryIO, direction: Direction | None = None
) -> CaptureSummary:
    """Pass a capture through, in order, keeping times; `direction` None tells each packet's by its looks.

    CaptureError for a file that cannot be read, ValueError for a packet that no frame holds.
    """
    verdicts: Counter[tuple[Direction, str]] = Counter()
    read = written = 0
    writer = CaptureWriter(sink, RAW)
    for record in read_capture(source):
        read += 1
        way = direction or offline.direction_of(record.data, record.link)
        if record.length > len(record.data):
            verdicts[way, CUT_SHORT] += 1
            continue
        outcome = offline.transform(record.data, way, record.link)
        verdicts[way, outcome.verdict] += 1
        for packet in outcome.packets:
            writer.write(packet, record.time)
            written += 1
    return CaptureSummary(read=read, written=written, verdicts=dict(verdicts))


def _outline(packet: bytes) -> tuple[Address | None, int, int]:
    """(destination, protocol, offset behind the IP header); extension headers are not looked behind."""
    if len(packet) >= 20 and packet[0] >> 4 == 4:
        return ip_address(packet[16:20]), packet[9], (packet[0] & 15) * 4
    if len(packet) >= 40 and packet[0] >> 4 == 6:
        return ip_address(packet[24:40]), packet[6], 40
    return None, 0, 0
