"""Two of our gateways with IKE between them: start on traffic, a dead peer, a moved address, a reload, an end."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator

import pytest

from control.lab.gateway import Gateway, Gateways, IkeTunnel, make_lab
from control.lab.space import wait_until
from control.lab.topology import Lab, address
from control.lab.traffic import ping
from control.lab.wiretap import WireTap
from tests import signals

pytestmark = pytest.mark.root

SERVER = address("server", "eth0")


def up(*gateways: Gateway) -> None:
    """Wait for every child of these gateways."""
    for gateway in gateways:
        wait_until(
            gateway.children_up, timeout=30, what=f"the tunnel; {gateway.host} says:\n{gateway.log(20)}"
        )


def says(gateway: Gateway, pattern: str, timeout: float = 20) -> None:
    """Wait for a line of the log."""
    wait_until(
        lambda: re.search(pattern, gateway.log(1000)) is not None,
        timeout=timeout,
        what=f"log line {pattern!r}; {gateway.host} says:\n{gateway.log(30)}",
    )


def sas(gateway: Gateway) -> list[int]:
    """Ids of the IKE SAs."""
    return [sa["id"] for sa in gateway.ike()["ike_sas"]]


@pytest.fixture
def lab() -> Iterator[Lab]:
    with make_lab("xdp", tapped=True) as made:
        yield made


def test_traffic_starts_the_tunnel_and_nothing_leaves_in_clear_before(lab: Lab) -> None:
    """The first packets are dropped, not sent; the same when the tunnel is taken down and traffic goes on."""
    tunnel = IkeTunnel.make(lab.directory, start={"gwa": "trap", "gwb": "trap"})
    with WireTap(lab) as tap, Gateways(lab, "xdp", tunnel) as gateways:
        assert sas(gateways.a) == sas(gateways.b) == []
        wait_until(lambda: ping(lab.client, SERVER, count=5).lost == 0, timeout=20, what="pings through")
        up(gateways.a, gateways.b)
        gateways.a.follow("down", {"name": "sites"})
        wait_until(lambda: sas(gateways.b) == [], timeout=10, what="b's SAs are gone, too")
        wait_until(
            lambda: ping(lab.server, address("client", "eth0"), count=5).lost == 0, timeout=20, what="again"
        )
        up(gateways.a, gateways.b)
        assert len(sas(gateways.a)) == len(sas(gateways.b)) == 1
        assert tap.counts()["clear"] == 0, tap.clear_samples()


def test_a_peer_that_was_killed_is_noticed_and_found_again(lab: Lab) -> None:
    """No goodbye: silence is noticed by asking (DPD), and the tunnel comes up as soon as the peer is back."""
    more = 'dpd_delay = "1s"'
    tunnel = IkeTunnel.make(lab.directory, more=more)
    with Gateways(lab, "xdp", tunnel) as gateways:
        up(gateways.a, gateways.b)
        assert gateways.b.program is not None
        gateways.b.program.kill()
        gateways.b.start()
        gateways.b.wait_ready()
        # Its new incarnation is asked by the old IKE SA, knows nothing of it, and says so; or the child's trap fires.
        wait_until(
            lambda: ping(lab.server, address("client", "eth0"), count=3).lost == 0,
            timeout=60,
            what="it is back",
        )
        up(gateways.b)


@pytest.mark.parametrize("driver", ["xdp", "packet", "tun"])
def test_ipv6_between_the_gateways(driver: str) -> None:
    """Both families inside IPv6, by every driver; and a rekey by either side."""
    with make_lab(driver) as lab, Gateways(lab, driver, IkeTunnel.make(lab.directory, version=6)) as gateways:
        up(gateways.a, gateways.b)
        assert gateways.a.ike()["ike_sas"][0]["remote"] == "[2001:db8:f::2]:4500"
        for gateway in (gateways.a, gateways.b):
            for version in (4, 6):
                assert ping(lab.client, address("server", "eth0", version), count=5).lost == 0
            gateway.follow("rekey", {"name": "sites"})
        assert ping(lab.client, SERVER, count=5).lost == 0


def test_ike_outlives_the_workers_that_share_its_port() -> None:
    """They die and return, one after the other and all at once; IKE still finds control's socket, and ESP theirs."""
    with make_lab("tun") as lab, Gateways(lab, "tun", IkeTunnel.make(lab.directory)) as gateways:
        up(gateways.a, gateways.b)
        for indices in ((0,), (1,), (0, 1)):
            pids = [worker["pid"] for worker in gateways.a.status()["workers"]]
            for index in indices:
                signals.send(pids[index], signal.SIGKILL)
            wait_until(
                lambda pids=pids, indices=indices: all(
                    worker["state"] == "ready" and (worker["pid"] != pids[index] or index not in indices)
                    for index, worker in enumerate(gateways.a.status()["workers"])
                ),
                timeout=20,
                what="the workers are back",
            )
            gateways.b.follow("rekey", {"name": "sites"})
            assert ping(lab.client, SERVER, count=5).lost == 0


def test_an_interface_that_returns_brings_the_tunnel_back(lab: Lab) -> None:
    """The gateway starts again when its port's interface is back, and so does IKE."""
    with Gateways(lab, "xdp", IkeTunnel.make(lab.directory, more='dpd_delay = "2s"')) as gateways:
        up(gateways.a, gateways.b)
        wire = lab.spaces["wire"]
        lab.spaces["gwa"].ip("link del wan0")
        says(gateways.a, "interface wan0 is gone")
        queues = "numrxqueues 2 numtxqueues 2"
        lab.spaces["gwa"].ip(f"link add wan0 {queues} type veth peer name port-a {queues} netns {wire.name}")
        wire.ip("link set port-a master br0 up")
        lab.spaces["gwa"].ip(
            "link set wan0 up",
            "address add 198.51.100.1/24 dev wan0",
            "route replace 10.2.0.0/24 via 198.51.100.2",
            "route replace 2001:db8:b::/64 dev lo",
        )
        says(gateways.a, "interface wan0 is back; starting again", timeout=30)
        wait_until(lambda: ping(lab.client, SERVER, count=3).lost == 0, timeout=60, what="pings through")
        up(gateways.a)
        assert len(sas(gateways.a)) == 1


def test_an_address_that_moves_takes_the_tunnel_along(lab: Lab) -> None:
    """MOBIKE: our address goes, another one is there, and the SAs go on with their keys."""
    with Gateways(lab, "xdp", IkeTunnel.make(lab.directory)) as gateways:
        up(gateways.a, gateways.b)
        assert ping(lab.client, SERVER, count=5).lost == 0
        child = gateways.a.ike()["ike_sas"][0]["children"][0]["id"]
        lab.spaces["gwa"].ip(
            "address add 198.51.100.77/24 dev wan0",
            "address del 198.51.100.1/24 dev wan0",
            "address add 198.51.100.77/24 dev wan0",
            "route replace 10.2.0.0/24 via 198.51.100.2",
        )
        says(gateways.b, r"path is 198\.51\.100\.2:4500 - 198\.51\.100\.77:4500 now")
        wait_until(
            lambda: ping(lab.client, SERVER, count=5).lost == 0, timeout=20, what="pings by the new path"
        )
        status = gateways.a.ike()["ike_sas"][0]
        assert status["local"] == "198.51.100.77:4500" and status["children"][0]["id"] == child
        assert {sa["local"] for sa in gateways.a.status()["sas"]} == {"198.51.100.77"}


def test_a_reload_touches_what_changed_only(lab: Lab) -> None:
    """Another connection comes and goes, the tunnel's IKE SA stays; changed itself, it is made anew."""
    with Gateways(lab, "xdp", IkeTunnel.make(lab.directory)) as gateways:
        up(gateways.a, gateways.b)
        text = gateways.a.config_path.read_text()
        before = sas(gateways.a)
        other = (
            '\n[connections.other]\nremote_addrs = "203.0.113.9"\npsk = "a preshared key of enough bytes"\n'
        )
        other += 'local_ts = "10.9.0.0/24"\nremote_ts = "10.8.0.0/24"\nstart_action = "none"\n'

        def reload(text: str, expected: str) -> None:
            assert gateways.a.program is not None
            gateways.a.config_path.write_text(text)
            os.kill(gateways.a.program.pid, signal.SIGHUP)
            says(gateways.a, expected)

        reload(text + other, "1 connection added")
        assert sas(gateways.a) == before and len(gateways.a.ike()["connections"]) == 2
        reload(text, "1 connection removed")
        assert sas(gateways.a) == before
        reload(text.replace("local_addrs =", 'dpd_delay = "77s"\nlocal_addrs =', 1), "1 connection adjusted")
        assert sas(gateways.a) == before
        reload(text.replace("local_addrs =", "mobike = false\nlocal_addrs =", 1), "1 connection changed")
        up(gateways.a, gateways.b)
        wait_until(
            lambda: len(sas(gateways.a)) == 1 and sas(gateways.a) != before, timeout=20, what="a new IKE SA"
        )
        assert ping(lab.client, SERVER, count=5).lost == 0


def test_an_end_is_told(lab: Lab) -> None:
    """A gateway that stops says so: its peer has no SA left, and it does not wait."""
    with Gateways(lab, "xdp", IkeTunnel.make(lab.directory)) as gateways:
        up(gateways.a, gateways.b)
        assert gateways.a.stop() == 0
        wait_until(lambda: sas(gateways.b) == [], timeout=5, what="no SA is left")
        assert "stopped in 0." in gateways.a.log()
        assert gateways.b.status()["sas"] == []
