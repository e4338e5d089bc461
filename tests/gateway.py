"""One gateway in this process: the real tables, engine, frames and loop, on ports that live in memory.

    gateway = Gateway(engine)
    gateway.add(outbound SA, inbound SA); gateway.protect("sa")
    result = gateway.send([inner packet])       # protected side in, what left on the unprotected side out
    result = gateway.receive(result.packets)    # and the reverse

Every call checks what must always hold: no frame is lost, and every packet that came in has exactly one verdict.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network

import numpy as np
import pytest

from dataplane.layout import BUNDLE_OUTER, NO_INDEX
from dataplane.model import (
    Action,
    Address,
    AdjacencySpec,
    Direction,
    PolicySpec,
    RouteSpec,
    SaSpec,
    SelectorSpec,
)
from dataplane.records import hard_limit
from dataplane.tables import Limits, Tables
from ext.counters import SA_VERDICT_COUNT, VERDICT_NAMES
from ext.crypto import EngineHandle
from ext.deal import Team, team_size
from ext.loop import Loop
from ext.memory import MemoryPort
from ext.packet import Pool
from ext.sa import TablesView
from tests.ext.crypto_jobs import ENGINES

ETHERNET, IP = 0, 1
FRAMES = 256
LAN_MAC, WAN_MAC = bytes.fromhex("02000000000a"), bytes.fromhex("02000000000b")
HOST_MAC, PEER_MAC = bytes.fromhex("0200000000aa"), bytes.fromhex("0200000000bb")
LAN_ADDRESSES = (ip_address("10.1.0.254"), ip_address("2001:db8:1::fe"))
ANY4 = SelectorSpec.from_networks(ip_network("0.0.0.0/0"), ip_network("0.0.0.0/0"))
ANY6 = SelectorSpec.from_networks(ip_network("::/0"), ip_network("::/0"))
LIMITS = Limits(
    max_sas=64,
    max_policies=1024,
    max_selectors=256,
    max_adjacencies=64,
    max_routes=64,
    max_prefixes=16384,
    max_candidates=131072,
)
# A packet that is answered by an ICMP error keeps its own verdict; these count the answer. Each piece of one that is
# fragmented has a verdict, and "fragmented" counts how many more that makes.
_ANSWERS = ("icmp_sent", "icmp_limit", "fragmented")


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one batch of packets came to."""

    packets: list[bytes]  # out of the other side, IP header first
    back: list[bytes]  # out of the side they came in by, IP header first: ICMP errors
    kernel: list[bytes]  # handed to the kernel
    verdicts: Counter[str]  # by the counters' names
    drops: dict[str, Counter[str]] = field(default_factory=dict)  # per SA name, the drops counted there
    passed: dict[str, tuple[int, int]] = field(default_factory=dict)  # per SA name: packets, bytes
    links: list[bytes] = field(default_factory=list)  # link headers of `packets`
    back_links: list[bytes] = field(default_factory=list)


class Gateway:
    """One worker with a protected and an unprotected port. `link` is that of both ports, `headroom` in bytes before
    each packet, `capacity` the packets that a port takes in one direction. `dealt`: inbound batches go the way on which
    other workers open them (ext/deal.pyx); here is none, so the worker opens them itself.
    """

    def __init__(
        self,
        engine: EngineHandle,
        *,
        link: int = IP,
        mtu: int = 1500,
        kernel: bool = True,
        lan_addresses: Sequence[Address] = LAN_ADDRESSES,
        headroom: int = 256,
        capacity: int = 4096,
        limits: Limits = LIMITS,
        dealt: bool = False,
    ) -> None:
        self.link = link
        self.mtu = mtu
        self.tables = Tables(engine=engine, limits=limits)
        self.team = one_worker_team(headroom) if dealt else None
        self.pool = self.team.pool if self.team is not None else Pool(FRAMES, 2048, headroom)
        self.lan = MemoryPort(self.pool, "lan", 0, link, mtu, lan_addresses, capacity)
        self.wan = MemoryPort(self.pool, "wan", 1, link, mtu, (), capacity)
        self.kernel = MemoryPort(self.pool, "kernel", 0, IP, mtu, (), capacity) if kernel else None
        self.loop = Loop(
            TablesView(self.tables.fd, 0), engine, [self.lan, self.wan], self.kernel, team=self.team
        )
        self.indices: dict[str, int] = {}
        self.specs: dict[str, SaSpec] = {}
        inside = AdjacencySpec(port="lan", destination_mac=HOST_MAC if link == ETHERNET else b"", mtu=mtu)
        self.set_routes(
            [RouteSpec(prefix=ip_network(prefix), adjacency=inside) for prefix in ("0.0.0.0/0", "::/0")]
        )

    def close(self) -> None:
        """Let everything go."""
        del self.loop
        self.tables.close()

    # --- configuration -------------------------------------------------------------------------------

    def settle(self) -> None:
        """Do what waited for the worker: it is between two rounds."""
        assert self.tables.later.run() == 0

    def set_routes(self, routes: Sequence[RouteSpec]) -> None:
        """Replace the routes of decrypted packets."""
        self.tables.set_routes(routes, {"lan": (0, LAN_MAC), "wan": (1, WAN_MAC)})
        self.settle()

    def add(self, *specs: SaSpec, adjacency: bool = True) -> None:
        """Publish SAs, each after its `outer`; outbound ones leave by the unprotected port, or (adjacency=False) by
        the kernel.
        """
        for spec in specs:
            end = spec.sequence_limit or hard_limit(spec.proposal)
            index = self.tables.add_sa(spec, start=spec.sequence, limit=end, mtu=self.mtu)
            self.indices[spec.name] = index
            self.specs[spec.name] = spec
            if spec.outer is not None:
                outer = self.indices[spec.outer]
                self.tables.view.set_bundle(index, outer + 1)
                if spec.direction is Direction.IN:
                    self.tables.view.set_bundle(outer, BUNDLE_OUTER)
            if spec.direction is Direction.IN:
                self.tables.publish_inbound(spec.spi, index)
            elif adjacency:
                mac = PEER_MAC if self.link == ETHERNET else b""
                hop = AdjacencySpec(port="wan", destination_mac=mac, mtu=self.mtu)
                self.tables.set_sa_adjacency(index, spec, hop, source_mac=WAN_MAC, port=1, mtu=self.mtu)
        self.settle()

    def set_policies(self, policies: Sequence[PolicySpec]) -> None:
        """Replace the SPD."""
        self.policies = self.tables.set_policies(
            policies, [NO_INDEX if policy.sa is None else self.indices[policy.sa] for policy in policies]
        )
        self.settle()

    def protect(self, sa: str, selectors: Sequence[SelectorSpec] = (ANY4, ANY6)) -> None:
        """An SPD that protects everything, or what is said, by one SA."""
        self.set_policies(
            [PolicySpec(name=sa, action=Action.PROTECT, selector=selector, sa=sa) for selector in selectors]
        )

    def sequence(self, sa: str) -> tuple[int, int]:
        """(next, limit) of an outbound SA."""
        return self.tables.view.sequence(self.indices[sa])

    def replay_top(self, sa: str) -> int:
        """Highest number accepted."""
        return self.tables.replay_top(self.indices[sa])

    # --- packets -------------------------------------------------------------------------------------

    def send(self, packets: Sequence[bytes], *, partial: bool = False, raw: bool = False) -> Result:
        """Packets arrive on the protected side. `raw` ones bring their link header along."""
        return self._pass(self.lan, self.wan, HOST_MAC, LAN_MAC, packets, partial, raw)

    def receive(self, packets: Sequence[bytes], *, raw: bool = False) -> Result:
        """Packets arrive on the unprotected side."""
        return self._pass(self.wan, self.lan, PEER_MAC, WAN_MAC, packets, False, raw)

    def _pass(
        self,
        entry: MemoryPort,
        far: MemoryPort,
        source: bytes,
        destination: bytes,
        packets: Sequence[bytes],
        partial: bool,
        raw: bool,
    ) -> Result:
        before = self._counters()
        if self.link == ETHERNET and not raw:
            packets = [destination + source + _ethertype(packet) + packet for packet in packets]
        entry.inject(packets, partial)
        taken = 0
        while entry.waiting:
            taken += self.loop.step()
        # A step that deals counts what is under way, too.
        assert taken == len(packets) or self.team is not None
        result = self._result(entry, far, before)
        assert self.pool.free_count == FRAMES, f"{FRAMES - self.pool.free_count} frames lost: {result}"
        # Answers to decrypted packets go back through the tunnel and get a verdict of their own there.
        answered = result.verdicts["icmp_sent"] if entry is self.wan else 0
        counted = sum(count for name, count in result.verdicts.items() if name not in _ANSWERS)
        assert counted == len(packets) + answered + result.verdicts["fragmented"], result.verdicts
        return result

    def _counters(self) -> tuple[np.ndarray, np.ndarray]:
        return self.tables.workers[0]["verdicts"].copy(), self.tables.sa_counters[0].copy()

    def _result(self, entry: MemoryPort, far: MemoryPort, before: tuple[np.ndarray, np.ndarray]) -> Result:
        verdicts, sa_counters = self._counters()
        changed = {int(at): int(verdicts[at] - before[0][at]) for at in np.flatnonzero(verdicts != before[0])}
        drops, passed = {}, {}
        touched = np.flatnonzero(sa_counters != before[1])
        names = {index: name for name, index in self.indices.items()}
        for index in map(int, touched):
            now, then = sa_counters[index], before[1][index]
            counts = {
                VERDICT_NAMES[at]: int(now["drops"][at] - then["drops"][at]) for at in range(SA_VERDICT_COUNT)
                if now["drops"][at] != then["drops"][at]
            }  # fmt: skip
            if counts:
                drops[names[index]] = Counter(counts)
            if now["packets"] != then["packets"]:
                passed[names[index]] = (
                    int(now["packets"] - then["packets"]),
                    int(now["bytes"] - then["bytes"]),
                )
            else:
                assert now["bytes"] == then["bytes"], "bytes counted for no packet"
        links, out = self._unlink(far.collect())
        back_links, back = self._unlink(entry.collect())
        return Result(
            packets=out,
            back=back,
            kernel=self.kernel.collect() if self.kernel is not None else [],
            verdicts=Counter({VERDICT_NAMES[at]: count for at, count in changed.items()}),
            drops=drops,
            passed=passed,
            links=links,
            back_links=back_links,
        )

    def _unlink(self, frames: list[bytes]) -> tuple[list[bytes], list[bytes]]:
        cut = 14 if self.link == ETHERNET else 0
        return [frame[:cut] for frame in frames], [frame[cut:] for frame in frames]


def one_worker_team(headroom: int) -> Team:
    """A team without others that deals whatever the load."""
    fd = os.memfd_create("frames")
    wake = os.eventfd(0, os.EFD_NONBLOCK)
    os.ftruncate(fd, team_size(1, FRAMES, 2048))
    try:
        return Team(fd, 0, 1, [wake], frame_count=FRAMES, frame_size=2048, headroom=headroom, always=True)
    finally:
        os.close(fd)
        os.close(wake)


MakeGateway = Callable[..., Gateway]


@pytest.fixture(params=list(ENGINES))
def engine_name(request: pytest.FixtureRequest) -> str:
    """Each engine of this machine."""
    name: str = request.param
    return name


@pytest.fixture(name="engine_name", params=[*ENGINES, f"{next(iter(ENGINES))}/dealt"])
def engine_and_way(request: pytest.FixtureRequest) -> str:
    """Each engine, and one of them on the way that dealt batches go. A module that imports this has it."""
    name: str = request.param
    return name


@pytest.fixture
def make_gateway(engine_name: str) -> Iterator[MakeGateway]:
    """Makes gateways on that engine; they go when the test ends."""
    made: list[Gateway] = []
    engine, _, way = engine_name.partition("/")

    def make(**options: object) -> Gateway:
        made.append(Gateway(ENGINES[engine], dealt=way == "dealt", **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for gateway in made:
        gateway.close()


def _ethertype(packet: bytes) -> bytes:
    return b"\x86\xdd" if packet[:1] and packet[0] >> 4 == 6 else b"\x08\x00"
