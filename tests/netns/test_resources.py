"""Child SAs for single workers (RFC 9611) between two of our gateways, and with strongSwan, which has none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from typing import Any

import pytest

from control.lab.space import wait_until
from control.lab.traffic import iperf3
from tests.peers import wires
from tests.peers.daemon import Daemon
from tests.peers.site import Site, pair
from tests.peers.traffic import assert_connected, lost, start_echo
from tests.peers.wires import INSIDE, Wire

pytestmark = pytest.mark.root

SITE = Site(child_tables={"per_cpu_sas": True})


@contextmanager
def gateways(wire: Wire, workers: dict[str, int]) -> Iterator[tuple[Daemon, Daemon]]:
    """Two of ours, left and right."""
    both = []
    try:
        for side in ("left", "right"):
            daemon = SITE.daemon(wire, side)
            path = daemon.directory / "esplanade.toml"
            path.write_text(path.read_text().replace("workers = 1", f"workers = {workers[side]}"))
            both.append(daemon)
            daemon.begin()
        for daemon in both:
            daemon.wait_ready()
        yield both[0], both[1]
    except BaseException as error:
        for daemon in both:
            error.add_note(daemon.log(40))
        raise
    finally:
        for daemon in both:
            daemon.kill()


def children(daemon: Daemon) -> list[dict[str, Any]]:
    """Installed ones, the common one first."""
    found = [
        child
        for sa in daemon.status()["ike"]["ike_sas"]
        for child in sa["children"]
        if child["state"] == "installed"
    ]
    return sorted(found, key=lambda child: -1 if child["resource"] is None else child["resource"])


def bound(daemon: Daemon) -> list[int | None]:
    """Their numbers."""
    return [child["resource"] for child in children(daemon)]


def test_between_two_gateways() -> None:
    """Two workers here, two there: three child SAs; workers send by their own, a rekeying of all loses no ping."""
    with wires.direct() as wire, gateways(wire, {"left": 2, "right": 2}) as (left, right):
        left.initiate(child="net")
        for daemon in (left, right):
            wait_until(lambda daemon=daemon: bound(daemon) == [None, 0, 1], timeout=10, what="three children")
        assert_connected(wire)
        pings = start_echo(wire, "left", count=150, interval=0.02)
        right.rekey(child="net")
        assert lost(pings, 150) == 0
        for daemon in (left, right):
            wait_until(lambda daemon=daemon: bound(daemon) == [None, 0, 1], timeout=10, what="three children")
        before = [[child["packets_out"] for child in children(daemon)] for daemon in (left, right)]
        target = ip_address(INSIDE["right"][4][0])
        iperf3(wire.left, wire.right, target, proto="tcp", seconds=1, streams=8)
        for daemon, then in zip((left, right), before, strict=True):
            sent = [child["packets_out"] - count for child, count in zip(children(daemon), then, strict=True)]
            assert sent[0] == 0 and max(sent[1:]) > 100, f"by the common SA and the workers' own: {sent}"
        assert left.status()["drops"].get("inner_selectors", 0) == 0
        left.terminate(child="net")
        wait_until(lambda: not children(right), timeout=10, what="all are gone")


def test_with_strongswan() -> None:
    """Debian's 5.9.8 knows no SA_RESOURCE_INFO: one child each time, whoever begins, and nobody is asked again."""
    with wires.direct() as wire, pair(SITE, wire, whole=True) as (ours, theirs):
        for who in (ours, theirs):
            who.initiate(child="net")
            assert_connected(wire)
            assert [(child["resource"], child["shared"]) for child in children(ours)] == [(None, False)]
            assert len(theirs.sa().installed) == 1
            ours.rekey(child="net")
            assert_connected(wire)
            ours.terminate(ike="site")
            wait_until(lambda: not theirs.sas(), timeout=10, what="the IKE SA is gone")


@pytest.mark.full
def test_more_workers_than_the_peer_has() -> None:
    """Three here and one there: the one worker sends by its own SA, and receives on all."""
    with wires.direct() as wire, gateways(wire, {"left": 3, "right": 1}) as (left, right):
        left.initiate(child="net")
        wait_until(lambda: bound(right) == bound(left) == [None, 0, 1, 2], timeout=10, what="four children")
        assert_connected(wire)
        sent = [child["packets_out"] for child in children(right)]
        assert sent[0] == sent[2] == sent[3] == 0 and sent[1] > 0, sent
