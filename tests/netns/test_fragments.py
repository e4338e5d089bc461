"""Packets that are too big for their tunnel and may be fragmented arrive: cut before encapsulation and after it.

client - gateway A - gateway B - server, every link of 1500 bytes. What A cuts after encapsulation is put together by
B's kernel, and comes to a worker by the helpers' sockets: ESP, AH, and ESP in UDP beside IKE.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from control.lab.gateway import Gateways, IkeTunnel, Tunnel, make_lab
from control.lab.space import wait_until
from control.lab.topology import Lab, address
from control.lab.wiretap import WireTap

pytestmark = pytest.mark.root

SIZES = (1500, 1480, 4000)  # bytes of the IP packet; the client cuts the last one by itself
COUNT = 10


@contextmanager
def gateways(
    driver: str, tunnel: Tunnel | IkeTunnel | None, change: Callable[[str], str]
) -> Iterator[tuple[Lab, WireTap, Gateways]]:
    """Both, with their configurations changed."""
    with make_lab(driver, tapped=True) as lab, WireTap(lab) as tap:
        both = Gateways(lab, driver, tunnel)
        for each in (both.a, both.b):
            each.config_path.write_text(change(each.config_path.read_text()))
        with both:
            yield lab, tap, both


def cut_after(text: str) -> str:
    """Configuration where outer packets are cut."""
    return text.replace("[[sa]]\n", '[[sa]]\nfragment = "after"\n').replace(
        ".children.net]\n", '.children.net]\nfragment = "after"\n'
    )


def exchange(lab: Lab, both: Gateways) -> None:
    """Pings of every size come back; nothing is dropped but, perhaps, what met an unknown neighbour."""
    target = str(address("server", "eth0"))
    lab.client.run(["ping", "-n", "-c", "2", "-W", "5", target], check=False)
    before = [dict(each.status()["drops"]) for each in (both.a, both.b)]
    for size in SIZES:
        command = [
            "ping",
            "-n",
            "-M",
            "dont",
            "-s",
            str(size - 28),
            "-c",
            str(COUNT),
            "-i",
            "0.05",
            "-W",
            "10",
        ]
        said = lab.client.run([*command, target], check=False, timeout=60).output()
        assert f" {COUNT} received" in said, (size, said, both.a.log(20), both.b.log(20))
    assert [dict(each.status()["drops"]) for each in (both.a, both.b)] == before


def reassembled(lab: Lab) -> int:
    """Packets that the kernels of both gateways have put together; the lesser of the two."""
    counts = []
    for host in ("gwa", "gwb"):
        names, values = (
            line.split()
            for line in lab.spaces[host].run(["cat", "/proc/net/snmp"]).output().splitlines()
            if line.startswith("Ip:")
        )
        counts.append(int(values[names.index("ReasmOKs")]))
    return min(counts)


def fragmented(both: Gateways) -> list[int]:
    """Pieces that each gateway has made beyond the packets."""
    return [int(each.status()["events"].get("fragmented", 0)) for each in (both.a, both.b)]


@pytest.mark.parametrize("driver", ["xdp", "packet"])
def test_before(driver: str) -> None:
    """The pieces are packets of their own in the tunnel; the server has the work."""
    with gateways(driver, None, lambda text: text) as (lab, tap, both):
        exchange(lab, both)
        assert min(fragmented(both)) >= 2 * COUNT
        assert reassembled(lab) == 0
        assert tap.counts()["clear"] == 0, tap.clear_samples()


@pytest.mark.parametrize("kind", ["esp", "ah", "udp"])
@pytest.mark.parametrize("driver", ["xdp", "packet"])
def test_after(driver: str, kind: str) -> None:
    """The outer packets are fragments on the cable; the other gateway has the work."""

    def change(text: str) -> str:
        return cut_after(text).replace("encap = false", f"encap = {'true' if kind == 'udp' else 'false'}")

    tunnel = Tunnel.of_ah() if kind == "ah" else Tunnel()
    with gateways(driver, tunnel, change) as (lab, tap, both):
        exchange(lab, both)
        assert min(fragmented(both)) >= 2 * COUNT
        assert reassembled(lab) >= 2 * COUNT
        if kind != "udp":  # later fragments of UDP show no ports: the tap cannot vouch for them
            assert tap.counts()["clear"] == 0, tap.clear_samples()


def test_after_beside_ike(tmp_path: Path) -> None:
    """IKE's messages and what was fragmented come to one UDP port, and each goes where it belongs."""
    tunnel = IkeTunnel.make(tmp_path, more="encap = true")
    with gateways("packet", tunnel, cut_after) as (lab, _, both):
        wait_until(lambda: both.a.children_up() and both.b.children_up(), timeout=60, what="the tunnel")
        exchange(lab, both)
        assert min(fragmented(both)) >= 2 * COUNT
        assert reassembled(lab) >= 2 * COUNT
