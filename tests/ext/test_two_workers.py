"""Two workers at once on the same SAs, each in a thread without the GIL: no number twice, no packet twice."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_network

import pytest

from dataplane.engine import open_engine
from dataplane.model import Action, AdjacencySpec, EspProposal, PolicySpec, RouteSpec
from dataplane.records import hard_limit
from dataplane.tables import Limits, Tables
from ext.loop import Loop
from ext.memory import MemoryPort
from ext.packet import Pool
from ext.sa import TablesView
from tests.esp import Peer, open_packet
from tests.exchange.suites import SUITES, inbound_sa, outbound_sa, suite_id
from tests.ext.dealers import verdicts_of
from tests.gateway import ANY4
from tests.packets import CLIENT4, SERVER4, udp_packet

LIMITS = Limits(
    max_sas=8,
    max_policies=8,
    max_selectors=16,
    max_adjacencies=8,
    max_routes=8,
    max_prefixes=8,
    max_candidates=64,
)
COUNT = 1500


class Two:
    """Two workers' loops on one set of tables."""

    def __init__(self, engine: str, suite: EspProposal) -> None:
        engines = [open_engine(engine) for _ in range(2)]
        self.tables = tables = Tables(engine=engines[0], workers=2, limits=LIMITS)
        self.ours, self.theirs = outbound_sa(suite), inbound_sa(suite, replay_window=4096)
        out = tables.add_sa(self.ours, start=1, limit=hard_limit(suite))
        self.inward = tables.add_sa(self.theirs, start=1, limit=0)
        tables.publish_inbound(self.theirs.spi, self.inward)
        hop = AdjacencySpec(port="wan")
        tables.set_sa_adjacency(out, self.ours, hop, source_mac=b"", port=1, mtu=1500)
        tables.set_policies([PolicySpec(name="all", action=Action.PROTECT, selector=ANY4, sa="out")], [out])
        route = RouteSpec(prefix=ip_network("0.0.0.0/0"), adjacency=AdjacencySpec(port="lan"))
        tables.set_routes([route], {"lan": (0, b"")})
        self.lan, self.wan, self.loops = [], [], []
        for worker in range(2):
            pool = Pool(256)
            self.lan.append(MemoryPort(pool, "lan", 0))
            self.wan.append(MemoryPort(pool, "wan", 1))
            ports = [self.lan[worker], self.wan[worker]]
            self.loops.append(Loop(TablesView(tables.fd, worker), engines[worker], ports))

    def run(self) -> None:
        """Both until nothing waits any more."""
        barrier = threading.Barrier(2)

        def work(worker: int) -> None:
            barrier.wait()
            while self.lan[worker].waiting or self.wan[worker].waiting:
                self.loops[worker].step(100)

        threads = [threading.Thread(target=work, args=(worker,)) for worker in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def verdicts(self) -> Counter[str]:
        """Of both workers together."""
        return verdicts_of(self.tables)


@pytest.fixture(params=[(suite, engine) for suite in (SUITES[0], SUITES[4]) for engine in ("ipsec-mb", "openssl")],
                ids=lambda pair: f"{pair[1]}-{suite_id(pair[0])}")  # fmt: skip
def two(request: pytest.FixtureRequest) -> Iterator[Two]:
    """Two workers with AES-GCM or with AES-CBC and HMAC."""
    made = Two(request.param[1], replace(request.param[0], esn=True))
    yield made
    made.loops.clear()
    made.tables.close()


def test_numbers(two: Two) -> None:
    """Every number from 1 on is given out exactly once."""
    packets = [udp_packet(4, b"%d" % at) for at in range(COUNT)]
    for port in two.lan:
        port.inject(packets)
    two.run()
    assert two.verdicts() == {"pass": 2 * COUNT}
    wires = [port.collect() for port in two.wan]
    numbers = [[int.from_bytes(wire[24:28], "big") for wire in each] for each in wires]
    assert all(each == sorted(each) for each in numbers)
    assert sorted(numbers[0] + numbers[1]) == list(range(1, 2 * COUNT + 1))
    for each, seen in zip(wires, numbers, strict=True):
        for at in range(0, COUNT, 97):
            assert open_packet(two.ours, each[at], seen[at])[1] == packets[at]


def test_duplicates(two: Two) -> None:
    """The same packets to both: each is let in once, by the one or the other."""
    peer = Peer(two.theirs)
    inner = [udp_packet(4, b"%d" % at, source=SERVER4, destination=CLIENT4) for at in range(COUNT)]
    wires = [peer.packet(packet) for packet in inner]
    for port in two.wan:
        port.inject(wires)
    two.run()
    passed = Counter(packet for port in two.lan for packet in port.collect())
    verdicts = two.verdicts()
    assert set(passed.values()) == {1}
    assert verdicts["pass"] + verdicts["replay"] + verdicts["replay_old"] + verdicts["integrity"] == 2 * COUNT
    assert verdicts["pass"] == len(passed) == COUNT
    assert two.tables.replay_top(two.inward) == COUNT
    assert all(pool.free_count == 256 for pool in (two.lan[0].pool, two.lan[1].pool))


def test_a_slot_that_is_used_again(two: Two) -> None:
    """An SA goes and another takes its slot: engines that keep contexts per slot must not go on with the old key."""
    tables = two.tables
    for seed in range(3):
        spec = replace(inbound_sa(two.theirs.proposal, seed=100 + seed), spi=0xE000 + seed)
        tables.view.spi_remove(two.theirs.spi)
        tables.drop_sa(two.inward)
        assert tables.later.run() == 0
        index = tables.add_sa(spec, start=1, limit=0)
        assert index == two.inward
        tables.publish_inbound(spec.spi, index)
        peer = Peer(spec)
        inner = udp_packet(4, b"%d" % seed, source=SERVER4, destination=CLIENT4)
        for worker in range(2):
            two.wan[worker].inject([peer.packet(inner) for _ in range(3)])
        two.run()
        assert [port.collect() for port in two.lan] == [[inner] * 3] * 2
        two.theirs = spec
