"""The bench's device under test, on real interfaces: what the generator sends comes out sealed, and in order."""

import numpy as np
import pytest

from bench import chain
from bench.dut import DRIVERS, Dut, bench
from bench.rate import on_cpu, through, two_cpus
from ext.traffic import exchange

pytestmark = pytest.mark.root
RATE, SECONDS = 5_000.0, 0.3


@pytest.mark.parametrize("driver", DRIVERS)
def test_packets_come_out_sealed(driver: str) -> None:
    """Each has a number, none is doubled, and the SA's numbers are used up by as many."""
    cpus = two_cpus()
    with bench() as ends, Dut(ends, driver) as dut:
        first = dut.next_sequence()
        done = through(ends, dut, (64, 1400), RATE, cpus, SECONDS)
        assert done.received > done.wanted // 4  # the machine may be busy
        assert (done.strange, done.repeated, done.reordered) == (0, 0, 0)
        assert dut.next_sequence() - first >= done.received
        latencies = np.frombuffer(done.latencies, np.uint32)
        assert np.median(latencies[latencies > 0]) > 1_000  # ns


def test_plain_forwarding_is_measured_by_the_same_ends() -> None:
    """Without a device under test the kernel of gateway A forwards, and every packet is known by its stamp."""
    with bench() as ends, on_cpu(two_cpus()[0]):
        done = exchange(ends.source, ends.frames((64,), clear=True), RATE, SECONDS, ends.receive())
    assert done.received > done.wanted // 4
    assert (done.strange, done.repeated) == (0, 0)


def test_a_peer_carries_traffic_through_its_tunnel() -> None:
    """strongSwan's kernel-libipsec on both gateways; `tunnel` refuses when pings go another way."""
    with chain.system("strongswan") as traffic:
        assert traffic("tcp", 1).gbps > 0.001


def test_the_highest_lossless_rate_of_a_chain() -> None:
    """Found by packets that reach the server's side through both kernels; a busy machine may have none."""
    with chain.system("plain") as traffic:
        found = traffic(chain.LOSSLESS, 1)
    assert 0 <= found.gbps < 1.5e6 * chain.SIZE * 8 / 1e9
