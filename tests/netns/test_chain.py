"""Client - gateway A - gateway B - server, per driver: nothing lost, nothing in clear, TCP and UDP get through."""

import pytest

from control.demo import ping_all
from control.lab.gateway import DRIVERS, Gateways, Tunnel, make_lab
from control.lab.topology import address
from control.lab.traffic import iperf3
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
