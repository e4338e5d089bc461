"""A router with a smaller link between the gateways: its ICMP errors shrink the tunnel, for a while.

client - gateway A - router - gateway B - server: the cable of the laboratory's tap, its bridge made a router that
answers ARP for both ends. Towards B it carries less than the gateways' links.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby

import pytest

from control.lab.gateway import Gateways, make_lab
from control.lab.space import Space, wait_until
from control.lab.topology import Lab, address
from tests.bundles import bundled

pytestmark = pytest.mark.root

LINK = 1500  # bytes
NARROW = 1300
AGE = 8  # seconds


def make_router(lab: Lab, mtu: int) -> None:
    """Packets to B of more than `mtu` bytes are answered by fragmentation needed, if DF says so."""
    wire = lab.spaces["wire"]
    wire.sysctl(ipv4__ip_forward=1, ipv4__conf__all__proxy_arp=1, ipv4__conf__all__rp_filter=0)
    wire.ip(
        "link del br0",
        "addr add 198.51.100.9/32 dev port-a",
        f"route add {address('gwa', 'wan0')} dev port-a",
        f"route add {address('gwb', 'wan0')} dev port-b mtu lock {mtu}",
    )


@contextmanager
def narrow_path(driver: str, bundle: bool) -> Iterator[tuple[Lab, Gateways]]:
    """Gateways that have yet to learn of the router's link, and forget soon; with a `bundle`, AH goes around ESP.

    "tun" is that on the protected side and UDP on the other, "raw" the same with ESP as such.
    """
    lab_driver = "tun" if driver == "raw" else driver
    with make_lab(lab_driver, tapped=True) as lab:
        make_router(lab, NARROW)
        gateways = Gateways(lab, lab_driver)
        for each in (gateways.a, gateways.b):
            text = (bundled if bundle else str)(each.config_path.read_text())
            if driver == "raw":
                text = text.replace('driver = "udp"', 'driver = "raw"')
                text = text.replace("encap = true", "encap = false")
            each.config_path.write_text(text.replace("[gateway]\n", f"[gateway]\npath_mtu_age = {AGE}\n"))
        with gateways:
            yield lab, gateways


def outbound(gateways: Gateways) -> tuple[int, int]:
    """(path MTU, inner MTU) of A's tunnel."""
    sas = gateways.a.status()["sas"]
    (found,) = [sa for sa in sas if sa["direction"] == "out" and sa["protocol"] == "esp"]
    return found["path_mtu"], found["inner_mtu"]


def ping(space: Space, size: int, *, df: bool, count: int = 3) -> int:
    """Answers to so many echo requests of `size` bytes of IP packet to the server."""
    target = str(address("server", "eth0"))
    shown = space.run(
        [
            "ping",
            "-n",
            "-c",
            str(count),
            "-i",
            "0.2",
            "-W",
            "1",
            "-s",
            str(size - 28),
            "-M",
            "do" if df else "dont",
            target,
        ],
        check=False,
    ).output()
    return int(re.findall(r"(\d+) received", shown)[0])


@pytest.mark.parametrize(
    ("driver", "bundle"), [("xdp", False), ("packet", False), ("tun", False), ("raw", False), ("xdp", True)]
)
def test_learned_and_forgotten(driver: str, bundle: bool) -> None:
    """Large packets are lost until the first error comes; then the tunnel says its size, until that is too old."""
    with narrow_path(driver, bundle) as (lab, gateways):
        client = lab.client
        assert ping(client, 100, df=True, count=5) > 0
        path, wide = outbound(gateways)
        assert path == LINK
        # tracepath's probes have DF: the first that leaves is lost at the router, and A learns.
        traced = client.run(
            ["tracepath", "-n", "-m", "5", str(address("server", "eth0"))], timeout=60
        ).output()
        path, narrow = outbound(gateways)
        assert path == NARROW and narrow < wide, gateways.a.log(20)
        # No size between: the link's, then the tunnel's, and the tunnel's once A has learned.
        sizes = [size for size, _ in groupby(map(int, re.findall(r"pmtu (\d+)", traced)))]
        assert sizes == [LINK, wide, narrow], traced
        wait_until(lambda: outbound(gateways)[0] == LINK, timeout=AGE + 10, what="the MTU to be forgotten")
