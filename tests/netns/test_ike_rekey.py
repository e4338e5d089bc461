"""Rekeys lose nothing: a thousand pings a second between two gateways while each side, and both, give SAs new keys.

TCP goes on beside them from before the first rekey until after the last.
"""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from control.lab.gateway import Gateway, Gateways, IkeTunnel, make_lab
from control.lab.space import Program, wait_until
from control.lab.topology import Lab, address
from control.lab.wiretap import EspRecorder, WireTap

pytestmark = pytest.mark.root

CHILD_REKEYS = 10
PAUSE = 0.5  # seconds of traffic through each SA
STREAM_MBPS = 20
REPORT = 0.2  # seconds between iperf3's reports


class Pings:
    """A thousand echo requests a second, until it is stopped."""

    def __init__(self, lab: Lab, version: int) -> None:
        near, far = (lab.client, "server") if version == 4 else (lab.server, "client")
        target = str(address(far, "eth0", version))
        self.program: Program = near.start(["ping", "-n", "-i", "0.001", target])

    def answered(self) -> list[int]:
        """Sequence numbers of the answers so far, which are 16 bits long: a minute's worth."""
        return [int(number) for number in re.findall(r"icmp_seq=(\d+) ", self.program.output())]

    def stop(self) -> None:
        """Ask it to end with a summary."""
        if self.program.running:
            os.kill(self.program.pid, signal.SIGINT)
            self.program.wait(10)

    def check(self) -> None:
        """Every request must have its answer, but for those that were on their way when it was stopped."""
        answered = set(self.answered())
        [sent] = re.findall(r"(\d+) packets transmitted", self.program.output())
        missing = [number for number in range(1, int(sent) + 1) if number not in answered]
        on_their_way = [number for number in missing if number > max(answered)]
        assert len(answered) >= 1000
        assert missing == on_their_way and len(missing) < 100, (
            f"{len(missing)} of {sent} lost: {missing[:20]}"
        )


@contextmanager
def pinging(lab: Lab) -> Iterator[None]:
    """Both families, one each way."""
    running = [Pings(lab, version) for version in (4, 6)]
    try:
        wait_until(
            lambda: all(len(each.answered()) > 100 for each in running), timeout=20, what="pings answered"
        )
        yield
    finally:
        for each in running:
            each.stop()
    for each in running:
        each.check()


class Stream:
    """TCP beside the pings, slow enough to leave them their time, until it is stopped."""

    def __init__(self, lab: Lab) -> None:
        report = ["-i", f"{REPORT:g}", "--forceflush"]
        self.server = lab.server.start(["iperf3", "-s", "-1", *report])
        wait_until(lambda: "listening" in self.server.output(), timeout=20, what="iperf3 server listens")
        target = str(address("server", "eth0"))
        self.client = lab.client.start(["iperf3", "-c", target, "-b", f"{STREAM_MBPS}M", "-t", "3600"])

    def received(self) -> list[float]:
        """What arrived between one report and the next so far: megabits per second."""
        reports = re.findall(r"sec .*Bytes +([\d.]+) (.?)bits/sec", self.server.output())
        return [float(rate) * {"": 1e-6, "K": 1e-3, "M": 1, "G": 1e3}[unit] for rate, unit in reports]

    def wait_for_more(self) -> None:
        """Neither end has given up, and something arrives from here on."""
        so_far = len(self.received()) + 1  # the next report may be of the time before
        wait_until(lambda: self.ended() or any(self.received()[so_far:]), timeout=30, what="more by TCP")
        assert not self.ended(), f"iperf3: {self.ended()}"

    def ended(self) -> str:
        """What the two said, if one of them is over."""
        programs = (self.client, self.server)
        if all(program.running for program in programs):
            return ""
        return "\n".join(f"{program.name}: {program.log(5) or program.output()}" for program in programs)

    def stop(self) -> None:
        """End both."""
        self.client.stop()
        self.server.stop()


@contextmanager
def streaming(lab: Lab) -> Iterator[Stream]:
    """TCP from the first packet to the last; it must be under way when the rest is done."""
    stream = Stream(lab)
    try:
        stream.wait_for_more()
        yield stream
        stream.wait_for_more()
        rates = stream.received()
        assert sum(rates) / len(rates) > STREAM_MBPS / 10, rates
    finally:
        stream.stop()


def rekey(gateway: Gateway, what: str) -> None:
    """One side gives the SA new keys, and is done with it."""
    gateway.follow("rekey", {"name": "sites", "what": what})


def rekey_at_once(gateways: Gateways, what: str) -> None:
    """Both sides begin at the same time."""
    before = [ids(gateway) for gateway in (gateways.a, gateways.b)]
    threads = [threading.Thread(target=rekey, args=(gateway, what)) for gateway in (gateways.a, gateways.b)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    index = 0 if what == "ike" else 1
    for gateway, old in zip((gateways.a, gateways.b), before, strict=True):
        wait_until(
            lambda gateway=gateway, old=old: settled(gateway) and ids(gateway)[index] != old[index],
            timeout=30,
            what=f"{what} rekeyed; {gateway.host} says:\n{gateway.log(20)}",
        )


def ids(gateway: Gateway) -> tuple[list[int], list[int]]:
    """Ids of the IKE SAs and of the child SAs."""
    sas = gateway.ike()["ike_sas"]
    return [sa["id"] for sa in sas], [child["id"] for sa in sas for child in sa["children"]]


def settled(gateway: Gateway) -> bool:
    """One IKE SA with one child is left, and nothing is under way."""
    sas = gateway.ike()["ike_sas"]
    states = [(sa["state"], *(child["state"] for child in sa["children"])) for sa in sas]
    return states == [("established", "installed")]


@pytest.mark.parametrize("driver", ["xdp", "tun"])
def test_rekeys_lose_no_packet(driver: str) -> None:
    """Ten child rekeys and three IKE rekeys, by each side in turn and by both at once; nothing in clear."""
    with make_lab(driver, tapped=True) as lab, WireTap(lab) as tap:
        tunnel = IkeTunnel.make(lab.directory)
        with Gateways(lab, driver, tunnel) as gateways, EspRecorder(lab) as recorder:
            wait_until(gateways.a.children_up, timeout=20, what=f"the tunnel; a says:\n{gateways.a.log(20)}")
            with pinging(lab), streaming(lab) as stream:
                for turn in range(CHILD_REKEYS):
                    time.sleep(PAUSE)
                    if turn % 3 == 2:
                        rekey_at_once(gateways, "child")
                    else:
                        rekey((gateways.a, gateways.b)[turn % 2], "child")
                stream.wait_for_more()
                rekey(gateways.a, "ike")
                rekey(gateways.b, "ike")
                rekey_at_once(gateways, "ike")
                time.sleep(PAUSE)
                rekey(gateways.a, "child")
                time.sleep(PAUSE)
            for gateway in (gateways.a, gateways.b):
                wait_until(lambda gateway=gateway: settled(gateway), timeout=20, what="one pair is left")
                wait_until(
                    lambda gateway=gateway: len(gateway.status()["sas"]) == 2,
                    timeout=20,
                    what="others retired",
                )
            assert not recorder.repeated()
        assert len({spi for spi, _, _ in recorder.packets}) >= 2 * CHILD_REKEYS
        assert tap.counts()["clear"] == 0, tap.clear_samples()
