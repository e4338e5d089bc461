"""The real kernels over packets in memory: encrypt or decrypt a capture without root, workers or interfaces.

    Offline(sas, policies) -> transform(packet, direction) per packet -> Outcome: what came out, or the drop's name

One worker's loop runs in this process over memory ports, a packet at a time, so that every verdict can be told
apart. Paths are as wide as IP allows: no packet is too big here.

Limits: bare IP packets in and out (dataplane.ports.pcap takes link headers off). Inbound SAs with extended sequence
numbers begin at SaSpec.sequence: a capture from later than 2**31 packets into the SA needs that set.
Numbers given out here are nobody's: what is encrypted offline must never be sent under a key that is in use.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Network, IPv6Network, ip_address

from dataplane.api import DataPlane
from dataplane.model import Address, AdjacencySpec, Direction, PolicySpec, PortSpec, Role, RouteSpec, SaSpec
from dataplane.tables import Limits
from ext.counters import VERDICT_NAMES
from ext.loop import Loop
from ext.memory import MemoryPort
from ext.packet import Pool
from ext.sa import TablesView

PATH_MTU = 65535
FRAME_SIZE = 131072  # bytes: the largest IP packet, and what ESP adds on both sides
FRAMES = 64
_SMALL = Limits(max_sas=4096, max_policies=8192, max_selectors=16384, max_adjacencies=16, max_routes=16)
_IPPROTO_ESP, _IPPROTO_UDP = 50, 17


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one packet."""

    verdict: str  # the counter's name: "pass", "bypassed", or a drop
    packets: tuple[bytes, ...]  # what came out, IP header first; empty for a drop


class Offline:
    """SAs and policies, ready to take packets. DataPlaneError when they cannot be had."""

    def __init__(
        self, sas: Sequence[SaSpec], policies: Sequence[PolicySpec], *, engine: str = "auto"
    ) -> None:
        ports = [
            PortSpec(name=role.value, role=role, driver="memory", interface="", mtu=PATH_MTU) for role in Role
        ]
        self._ours = {sa.local for sa in sas}
        self._encap_ports = {sa.encap.source_port for sa in sas if sa.encap is not None}
        self._dataplane = DataPlane.create(ports=ports, workers=1, engine=engine, limits=_SMALL)
        try:
            asyncio.run(self._fill(sas, policies))
            tables = self._dataplane.tables
            pool = Pool(FRAMES, FRAME_SIZE)
            self._clear = MemoryPort(pool, Role.PROTECTED.value, 0, mtu=PATH_MTU)
            self._esp = MemoryPort(pool, Role.UNPROTECTED.value, 1, mtu=PATH_MTU)
            self._kernel = MemoryPort(pool, "kernel", 0, mtu=PATH_MTU)
            self._loop = Loop(TablesView(tables.fd, 0), tables.engine, [self._clear, self._esp], self._kernel)
            self._verdicts = tables.workers[0]["verdicts"]
        except BaseException:
            self._dataplane.close()
            raise

    async def _fill(self, sas: Sequence[SaSpec], policies: Sequence[PolicySpec]) -> None:
        # Nothing is reserved on disk: these numbers never go on a wire.
        self._dataplane.add_sas([replace(sa, negotiated=True) for sa in sas], mtu=PATH_MTU)
        for sa in sas:
            if sa.direction is Direction.OUT:
                adjacency = AdjacencySpec(port=Role.UNPROTECTED.value, mtu=PATH_MTU)
                self._dataplane.set_sa_adjacency(sa.name, adjacency, PATH_MTU)
        inside = AdjacencySpec(port=Role.PROTECTED.value, mtu=PATH_MTU)
        await self._dataplane.set_routes(
            [
                RouteSpec(prefix=prefix, adjacency=inside)
                for prefix in (IPv4Network("0.0.0.0/0"), IPv6Network("::/0"))
            ]
        )
        await self._dataplane.set_policies(policies)

    def direction_of(self, packet: bytes) -> Direction:
        """IN for ESP, bare or in UDP, that one of our SAs' local addresses is to receive; else OUT."""
        destination, protocol, offset = _outline(packet)
        if destination not in self._ours:
            return Direction.OUT
        if protocol == _IPPROTO_ESP:
            return Direction.IN
        port = int.from_bytes(packet[offset + 2 : offset + 4], "big")
        marked = packet[offset + 8 : offset + 12] != bytes(4)  # RFC 3948 2.2: zeros would be IKE
        return (
            Direction.IN
            if protocol == _IPPROTO_UDP and port in self._encap_ports and marked
            else Direction.OUT
        )

    def transform(self, packet: bytes, direction: Direction) -> Outcome:
        """Pass one IP packet through the outbound or inbound walk."""
        before = self._verdicts.copy()
        entry, exit_ = (self._clear, self._esp) if direction is Direction.OUT else (self._esp, self._clear)
        entry.inject([packet])
        self._loop.step()
        out = tuple(exit_.collect()) + tuple(self._kernel.collect())
        entry.collect()  # ICMP errors: answers to a sender who is not there
        changed = (self._verdicts - before).nonzero()[0]
        verdict = VERDICT_NAMES.get(int(changed[0]), "") if len(changed) else ""
        return Outcome(verdict=verdict, packets=out)

    def close(self) -> None:
        """Zero the keys and let everything go."""
        del self._loop
        self._dataplane.close()


def _outline(packet: bytes) -> tuple[Address | None, int, int]:
    """(destination, protocol, offset behind the IP header); extension headers are not looked behind."""
    if len(packet) >= 20 and packet[0] >> 4 == 4:
        return ip_address(packet[16:20]), packet[9], (packet[0] & 15) * 4
    if len(packet) >= 40 and packet[0] >> 4 == 6:
        return ip_address(packet[24:40]), packet[6], 40
    return None, 0, 0
