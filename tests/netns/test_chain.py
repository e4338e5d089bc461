"""Client - gateway A - gateway B - server, per driver: nothing lost, nothing in clear, TCP and UDP get through."""

from pathlib import Path

import pytest

from control.demo.course import Course, ping_all
from control.demo.proof import prove
from control.demo.report import Rekeys, suites
from control.lab.gateway import DRIVERS, Gateways, Tunnel, make_lab
from control.lab.topology import Lab, address
from control.lab.traffic import iperf3, ping
from control.lab.wiretap import WireTap

pytestmark = pytest.mark.root


@pytest.mark.parametrize(
    ("driver", "protocol"), [*((driver, "esp") for driver in DRIVERS), ("xdp", "ah"), ("tun", "ah")]
)
def test_chain(driver: str, protocol: str) -> None:
    """Pings both ways in both families, TCP both ways and UDP; the cable shows ESP, or AH, only; both end well."""
    keys = Tunnel.of_ah() if protocol == "ah" else Tunnel()
    with (
        make_lab(driver, tapped=True) as lab,
        WireTap(lab) as tap,
        Gateways(lab, driver, keys) as gateways,
    ):
        sent, lost = ping_all(lab, 50)
        assert (sent, lost) == (200, 0), gateways.a.log(30) + gateways.b.log(30)
        for version in (4, 6):
            server, client = address("server", "eth0", version), address("client", "eth0", version)
            assert iperf3(lab.client, lab.server, server, proto="tcp", seconds=1).gbps > 0.01
            assert iperf3(lab.server, lab.client, client, proto="tcp", seconds=1).gbps > 0.01
        udp = iperf3(lab.client, lab.server, address("server", "eth0"), proto="udp", seconds=1, rate="20M")
        assert udp.gbps > 0.01
        counts = tap.counts()
        assert counts["clear"] == 0, tap.clear_samples()
        assert counts[protocol] > 2 * sent
        assert counts["ah" if protocol == "esp" else "esp"] == 0
        for gateway in (gateways.a, gateways.b):
            assert gateway.stop() == 0, gateway.log(30)


def test_demo_with_ah() -> None:
    """The demo's proof of AH with keys by hand: the cable shows AH and nothing else, and nobody changes keys."""
    proof = prove("tun", pings=100, course=Course(protocol="ah"))
    assert (proof.pings_sent, proof.pings_lost) == (400, 0)
    assert (proof.cleartext_packets, proof.esp_packets, proof.rekeys) == (0, 0, Rekeys())
    assert proof.ah_packets > 800
    assert suites(proof).startswith("AH ") and suites(proof).endswith(", keys by hand")


JUMBO_MTU = 9000
JUMBO_PACKET = 8900  # bytes of IP packet: with ESP around it about 8960


@pytest.mark.parametrize("mode", ["native", "generic"])
def test_jumbo_packets_through_xdp_ports(mode: str) -> None:
    """Packets of 8,900 bytes, and of what one more buffer begins at, both ways in both families, and TCP in such."""
    with (
        Lab(queues=1, tapped=True, mtu=JUMBO_MTU) as lab,
        WireTap(lab) as tap,
        Gateways(lab, "xdp", workers=1, port={"mode": mode}) as gateways,
    ):
        (worker,) = gateways.a.status()["workers"]
        off = "[never]" in Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
        assert worker["frame_pages"] in (("small", "reserved") if off else ("transparent", "reserved"))
        lab.set_offloads(False)  # to a program that takes frames of several buffers, veth sends super-frames
        assert gateways.a.active_modes() == gateways.b.active_modes() == [f"{mode}/copy"]
        for version, headers in ((4, 28), (6, 48)):
            server, client = address("server", "eth0", version), address("client", "eth0", version)
            for size in (JUMBO_PACKET, 3840 - 14, 3840 - 14 + 1, 1500):
                for space, target in ((lab.client, server), (lab.server, client)):
                    pings = ping(space, target, count=10, size=size - headers)
                    assert pings.lost == 0, (size, gateways.a.log(30) + gateways.b.log(30))
            assert iperf3(lab.client, lab.server, server, proto="tcp", seconds=1).gbps > 0.01
        counts = tap.counts()
        assert counts["clear"] == 0, tap.clear_samples()
        assert counts["esp"] > 2 * 2 * 4 * 2 * 10
        for gateway in (gateways.a, gateways.b):
            assert gateway.stop() == 0, gateway.log(30)
