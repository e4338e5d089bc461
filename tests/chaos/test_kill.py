"""Processes of gateway A are killed under traffic: it comes back, and never uses a sequence number twice.

One worker, then both, then the control process, then every process of the gateway at once, all in one run with
one key, and one recording of the cable over all of it.
"""

import contextlib
import os
import signal

import pytest

from control.demo.course import ping_all
from control.lab.gateway import DRIVERS, Gateway, Gateways, make_lab
from control.lab.space import Program, wait_until
from control.lab.topology import Lab, address
from control.lab.wiretap import EspRecorder, WireTap
from tests import signals

pytestmark = pytest.mark.root

BACK_SECONDS = 5.0  # generous, for a loaded machine: asking and pinging alone take a second; the aim is 0.1


def worker_pids(gateway: Gateway) -> list[int]:
    """Process ids of the workers, by index."""
    return [worker["pid"] for worker in gateway.status()["workers"]]


def start_traffic(lab: Lab) -> list[Program]:
    """Pings without end, 200 per second, both ways in both families: eight flows over both queues."""
    ways = [(lab.client, "server"), (lab.server, "client")]
    return [
        space.start(["ping", "-q", "-i", "0.01", "-s", str(size), str(address(target, "eth0", version))])
        for space, target in ways
        for version in (4, 6)
        for size in (56, 1200)
    ]


def wait_flowing(gateway: Gateway, lab: Lab, what: str) -> None:
    """Wait until both workers are there and pings of all ways are answered; then none of many may be lost."""

    def flowing() -> bool:
        ready = all(worker["state"] == "ready" for worker in gateway.status()["workers"])
        return ready and ping_all(lab, 3)[1] == 0

    wait_until(flowing, timeout=BACK_SECONDS, what=f"traffic flows again after {what}")
    assert ping_all(lab, 20)[1] == 0, f"{what}: {drops(gateway)}\n{gateway.log(20)}"


def drops(gateway: Gateway) -> dict[str, int]:
    """What the gateway has dropped, by reason."""
    return {name: count for name, count in gateway.status()["drops"].items() if count}


def gone(pids: list[int]) -> bool:
    """True when none of these processes is there any more."""
    return not any(os.path.exists(f"/proc/{pid}") for pid in pids)


def kill(pids: list[int]) -> None:
    """SIGKILL all of them and wait until their parent has noticed."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):  # it may have gone with the one before it
            signals.send(pid, signal.SIGKILL)
    wait_until(lambda: gone(pids), timeout=2, what="killed workers are reaped")


@pytest.mark.parametrize("driver", DRIVERS)
def test_kill(driver: str) -> None:
    """Workers come back by themselves; a restarted gateway goes on; no (SPI, IV) pair is seen twice."""
    with (
        make_lab(driver, tapped=True) as lab,
        WireTap(lab) as tap,
        EspRecorder(lab) as recorder,
        Gateways(lab, driver) as gateways,
    ):
        gateway = gateways.a
        wait_flowing(gateway, lab, "the start")
        start_traffic(lab)
        first = worker_pids(gateway)
        assert len(first) == 2
        kill(first[:1])
        wait_flowing(gateway, lab, "one worker was killed")
        second = worker_pids(gateway)
        assert second[0] != first[0]
        assert second[1] == first[1]
        kill(second)
        wait_flowing(gateway, lab, "both workers were killed")
        third = worker_pids(gateway)
        assert not set(third) & set(second)
        # The control process alone: its workers must not live on without it, and a new gateway goes on.
        assert gateway.program is not None
        os.kill(gateway.program.pid, signal.SIGKILL)
        gateway.program.wait(2)
        wait_until(lambda: gone(third), timeout=5, what="workers end without control")
        restart(gateway, lab, "control was killed")
        # Everything at once.
        gateway.program.kill()
        restart(gateway, lab, "everything was killed")
        packets_before_stop = len(recorder.packets)
        # While no socket was open the kernel has answered ESP with ICMP errors from gateway to gateway; but nothing
        # that client and server said has gone out in clear.
        leaked = [packet for packet in tap.clear_samples(1000) if not packet.startswith("198.51.100.")]
        assert leaked == []
    assert packets_before_stop > 1000
    assert recorder.missed == 0
    assert recorder.repeated() == []
    assert {spi for spi, _, _ in recorder.packets} == {0x1001, 0x1002}


def restart(gateway: Gateway, lab: Lab, what: str) -> None:
    """Start the gateway again on the same state, and wait for traffic."""
    gateway.start()
    gateway.wait_ready()
    wait_flowing(gateway, lab, what)
