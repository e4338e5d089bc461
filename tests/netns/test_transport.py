"""Host to host in transport mode, the hosts' own traffic: all gets through, only ESP on the cable, nothing stays."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from control.demo.course import Course
from control.demo.proof import prove
from control.lab.gateway import Gateways, Hosts
from control.lab.space import Space, wait_until
from control.lab.topology import Lab, address
from control.lab.traffic import finish_ping, iperf3, ping, start_ping
from control.lab.wiretap import WireTap

pytestmark = pytest.mark.root

DOCS = Path(__file__).resolve().parents[2] / "docs"
DRIVERS = ("xdp", "packet", "raw", "udp")


@contextmanager
def hosts(driver: str, **options: object) -> Iterator[tuple[Lab, WireTap, Gateways]]:
    """Both gateways of a tapped lab as hosts."""
    with (
        Lab(queues=1, routed=False, tapped=True) as lab,
        WireTap(lab) as tap,
        Gateways(lab, driver, Hosts(**options), workers=1) as gateways,  # type: ignore[arg-type]
    ):
        yield lab, tap, gateways


def rules(space: Space) -> list[str]:
    """The rules that are not the kernel's own, and what our table holds."""
    found = []
    for family in ("-4", "-6"):
        for line in space.run(["ip", family, "rule", "show"]).output().splitlines():
            if line.split(":")[0] not in ("0", "32766", "32767"):
                found.append(line)
        table = space.run(["ip", family, "route", "show", "table", "229"], check=False).output()
        found += table.splitlines()
    return found


@pytest.mark.parametrize("driver", DRIVERS)
def test_hosts(driver: str) -> None:
    """Pings both ways in both families, TCP both ways and UDP; the cable shows ESP only; nothing stays behind."""
    with hosts(driver) as (lab, tap, gateways):
        a, b = lab.spaces["gwa"], lab.spaces["gwb"]
        ends = [(a, address("gwb", "wan0", v)) for v in (4, 6)] + [
            (b, address("gwa", "wan0", v)) for v in (4, 6)
        ]
        for space, target in ends:
            ping(space, target, count=2)  # neighbours are learned
        running = [start_ping(space, target, count=30) for space, target in ends]
        assert [finish_ping(each, count=30).lost for each in running] == [0] * 4, gateways.a.log(30)
        for version in (4, 6):
            assert iperf3(a, b, address("gwb", "wan0", version), proto="tcp", seconds=1).gbps > 0.01
            assert iperf3(b, a, address("gwa", "wan0", version), proto="tcp", seconds=1).gbps > 0.01
        udp = iperf3(a, b, address("gwb", "wan0"), proto="udp", seconds=1, rate="20M")
        assert udp.gbps > 0.01
        counts = tap.counts()
        assert counts["clear"] == 0, tap.clear_samples()
        assert counts["esp"] > 240
        for gateway in (gateways.a, gateways.b):
            assert gateway.stop() == 0, gateway.log(30)
        assert rules(a) == rules(b) == []


def test_one_service() -> None:
    """Only TCP to one port is protected, and what answers it; all else goes between the hosts as it went before."""
    with hosts("packet", protocol="tcp", port=5201) as (lab, tap, _):
        a, b = lab.spaces["gwa"], lab.spaces["gwb"]
        for version in (4, 6):
            target = address("gwb", "wan0", version)
            assert ping(a, target, count=5).lost == 0
            clear = tap.counts()["clear"]
            assert clear >= 10
            assert iperf3(a, b, target, proto="tcp", seconds=1).gbps > 0.01
            assert tap.counts()["clear"] == clear, tap.clear_samples()
        assert tap.counts()["esp"] > 100


def test_killed_and_started_again() -> None:
    """Whoever kills it opens no way in clear; the next start takes over, and its end leaves nothing."""
    with hosts("packet") as (lab, tap, gateways):
        a = lab.spaces["gwa"]
        targets = [address("gwb", "wan0", version) for version in (4, 6)]
        for target in targets:
            ping(a, target, count=2)
        program = gateways.a.program
        assert program is not None
        os.kill(program.pid, signal.SIGKILL)
        program.wait(10)
        assert any("lookup 229" in line for line in rules(a))
        wait_until(lambda: "esp0" not in a.run(["ip", "link"]).output(), timeout=10, what="the device goes")
        for target in targets:
            refused = a.run(["ping", "-n", "-c", "1", "-W", "1", str(target)], check=False)
            assert "Invalid argument" in refused.log(), refused.output()  # a blackhole's answer
        assert tap.counts()["clear"] == 0, tap.clear_samples()
        gateways.a.start()
        gateways.a.wait_ready()
        for target in targets:
            ping(a, target, count=2)
            assert ping(a, target, count=10).lost == 0, gateways.a.log(30)
        assert "rules of an earlier run are removed" in gateways.a.log(200)
        assert tap.counts()["clear"] == 0, tap.clear_samples()
        assert gateways.a.stop() == 0
        assert rules(a) == []


@pytest.mark.parametrize("driver", ["packet", "xdp"])
def test_opened_by_hand(driver: str) -> None:
    """After a kill the document's commands open the way again, where nobody starts the gateway any more."""
    with hosts(driver) as (lab, _, gateways):
        a, target = lab.spaces["gwa"], address("gwb", "wan0")
        program = gateways.a.program
        assert program is not None
        os.kill(program.pid, signal.SIGKILL)
        program.wait(10)
        assert gateways.b.stop() == 0
        wait_until(lambda: "esp0" not in a.run(["ip", "link"]).output(), timeout=10, what="the device goes")
        closed = a.run(["ping", "-n", "-c", "1", "-W", "1", str(target)], check=False)
        assert "bytes from" not in closed.output()
        document = " ".join((DOCS / "operations.md").read_text().split())
        match = re.search(r"To open the way by hand:(.*?) - Addresses", document)
        assert match
        commands = re.findall(r"`((?:ip|tc) [^`]+)`", match[1].replace("`ip -6`", ""))
        assert len(commands) == 4, commands
        for command in commands:
            line = command.replace("NAME", "wan0")
            a.run(line.split(), check=not line.startswith("tc"))  # which is there for some ports alone
            if "flush" in line:
                a.run(line.replace("ip ", "ip -6 ", 1).split())
        assert rules(a) == []
        for version in (4, 6):
            ping(a, address("gwb", "wan0", version), count=2)
            assert ping(a, address("gwb", "wan0", version), count=3).lost == 0


@pytest.mark.parametrize("driver", ["xdp", "tun"])
def test_by_ike(driver: str) -> None:
    """The demo's proof: the same by IKEv2, through rekeys of both kinds."""
    proof = prove(driver, pings=100, course=Course(mode="transport"))
    assert (proof.pings_sent, proof.pings_lost) == (200, 0)
    assert proof.cleartext_packets == 0
    assert proof.esp_packets > 400
    assert (proof.rekeys.child, proof.rekeys.ike) == (3, 1)
