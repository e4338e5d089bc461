"""Two workers on one set of tables, whose frames both can reach: what the tests of dealing run."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Sequence
from ipaddress import ip_network

from dataplane.engine import open_engine
from dataplane.model import Action, AdjacencySpec, EspProposal, PolicySpec, Protocol, RouteSpec
from dataplane.records import hard_limit
from dataplane.tables import Limits, Tables
from ext.counters import VERDICT_NAMES
from ext.deal import Team, team_size
from ext.loop import Loop
from ext.memory import MemoryPort
from ext.sa import TablesView
from tests.exchange.suites import inbound_sa, outbound_sa
from tests.gateway import ANY4

FRAMES = 1700  # they fill no huge page: what lies behind them in an owner's memory is not theirs
FRAME_SIZE = 2048
LIMITS = Limits(
    max_sas=8,
    max_policies=8,
    max_selectors=16,
    max_adjacencies=8,
    max_routes=8,
    max_prefixes=8,
    max_candidates=64,
)


class Dealers:
    """`workers` with a protected and an unprotected port each, and one SA in each direction."""

    def __init__(
        self,
        engine: str,
        suite: EspProposal,
        *,
        protocol: Protocol = Protocol.ESP,
        workers: int = 2,
        always: bool = True,
        window: int = 4096,
    ) -> None:
        self.workers = workers
        self.always = always
        self.engines = [open_engine(engine) for _ in range(workers)]
        self.tables = tables = Tables(engine=self.engines[0], workers=workers, limits=LIMITS)
        self.ours = outbound_sa(suite, protocol=protocol)
        self.theirs = inbound_sa(suite, replay_window=window, protocol=protocol)
        out = tables.add_sa(self.ours, start=1, limit=hard_limit(suite))
        self.inward = tables.add_sa(self.theirs, start=1, limit=0)
        tables.publish_inbound(self.theirs.spi, self.inward)
        hop = AdjacencySpec(port="wan")
        tables.set_sa_adjacency(out, self.ours, hop, source_mac=b"", port=1, mtu=1500)
        tables.set_policies([PolicySpec(name="all", action=Action.PROTECT, selector=ANY4, sa="out")], [out])
        route = RouteSpec(prefix=ip_network("0.0.0.0/0"), adjacency=AdjacencySpec(port="lan"))
        tables.set_routes([route], {"lan": (0, b"")})
        self.fd = os.memfd_create("frames", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, team_size(workers, FRAMES, FRAME_SIZE))
        self.wake_fds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(workers)]
        self.stop_read, self.stop_write = os.pipe()

    def worker(self, index: int, capacity: int = 16384) -> tuple[Loop, MemoryPort, MemoryPort, Team]:
        """Worker `index` as its process would make it: the loop, its protected and its unprotected port."""
        team = Team(
            self.fd,
            index,
            self.workers,
            self.wake_fds,
            frame_count=FRAMES,
            frame_size=FRAME_SIZE,
            always=self.always,
        )
        lan = MemoryPort(team.pool, "lan", 0, capacity=capacity)
        wan = MemoryPort(team.pool, "wan", 1, capacity=capacity)
        view = TablesView(self.tables.fd, index)
        view.worker_enter(os.getpid())
        loop = Loop(view, self.engines[index], [lan, wan], None, self.stop_read, team=team)
        return loop, lan, wan, team

    def stop(self) -> None:
        """Every loop ends."""
        os.write(self.stop_write, b"x")

    def close(self) -> None:
        """Let everything go; the loops have ended."""
        self.tables.close()
        for fd in (self.fd, self.stop_read, self.stop_write, *self.wake_fds):
            os.close(fd)

    def verdicts(self) -> Counter[str]:
        """Of all workers together."""
        return verdicts_of(self.tables)

    def count(self, index: int, name: str) -> int:
        """One counter of one worker."""
        return int(self.tables.workers[index][name])


def verdicts_of(tables: Tables) -> Counter[str]:
    """What became of packets, by verdict, of all workers together."""
    total = tables.workers["verdicts"].sum(axis=0)
    return Counter({VERDICT_NAMES[at]: int(count) for at, count in enumerate(total) if count})


def in_threads(loops: Sequence[Loop]) -> list[threading.Thread]:
    """Each loop in a thread of its own, without the GIL, until `Dealers.stop`."""
    threads = [threading.Thread(target=loop.run) for loop in loops]
    for thread in threads:
        thread.start()
    return threads
