"""One driver of the demo: 1 proof: pings, new keys and bursts on a tapped cable 2 speed on the direct one.

Counting begins before the gateways start, so what passes in clear while they do is seen, too.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

from control.demo.course import TUNNEL, UP_SECONDS, Course, finish_pings, start_pings, tunnel, warm_up
from control.demo.report import DriverResult, Plain, Proof, Rekeys, say, suites
from control.lab.gateway import AH_PROPOSAL, Gateways, make_lab
from control.lab.space import LabError
from control.lab.topology import Lab
from control.lab.traffic import Throughput, iperf3
from control.lab.wiretap import WireTap

PINGS = 300  # of each family and direction
BURST_SECONDS = 1
BURST_UDP_RATE = "200M"
REKEY_SECONDS = 3  # of iperf3 while SAs get new keys
REKEY_UDP_RATE = "20M"


def measure_plain(seconds: int, course: Course = TUNNEL) -> Plain:
    """Kernel forwarding on the direct cable, or between two hosts on it."""
    with Lab() as lab:
        tcp, udp = measure_speed(lab, seconds, course=course)
    return Plain(tcp_gbps=tcp.gbps, udp_gbps=udp.gbps)


def try_driver(driver: str, seconds: int, course: Course = TUNNEL) -> DriverResult:
    """Proof, then speed. LabError when a gateway or a program fails."""
    say(f"{driver:7} proof: gateways start, the cable between them is tapped")
    proof = prove(driver, course=course)
    say(
        f"{driver:7} proof: {proof.active_mode}; {proof.pings_lost} of {proof.pings_sent} pings lost; "
        f"between the gateways {proof.esp_packets} ESP packets, {proof.ah_packets} AH packets, "
        f"{proof.cleartext_packets} others"
    )
    say(f"{driver:7} proof: {suites(proof)}")
    with make_lab(driver, mode=course.mode) as lab, tunnel(lab, driver, course) as gateways:
        warm_up(lab, course)
        with changing_keys(gateways, course, after=seconds / 2) as rekeys:
            tcp, udp = measure_speed(lab, seconds, label=driver, course=course)
        gateways.a.check_alive()
        gateways.b.check_alive()
    total = proof.rekeys + rekeys.done
    if course.protocol == "esp":
        say(f"{driver:7} rekeyed meanwhile: {total.child} times child SAs, {total.ike} times IKE SAs")
    speeds = {"tcp_gbps": tcp.gbps, "udp_gbps": udp.gbps}
    return DriverResult(**(vars(proof) | speeds | {"rekeys": total}), protocol=course.protocol)


def prove(
    driver: str, *, pings: int = PINGS, burst_seconds: int = BURST_SECONDS, course: Course = TUNNEL
) -> Proof:
    """Pings, rekeys and short bursts on a tapped cable; counting begins before the gateways start."""
    with (
        make_lab(driver, tapped=True, mode=course.mode) as lab,
        WireTap(lab) as tap,
        tunnel(lab, driver, course) as gateways,
    ):
        warm_up(lab, course)
        near, far = course.spaces(lab)
        target = course.targets()[1]
        running = start_pings(lab, pings, course)
        with changing_keys(gateways, course, after=0.5) as rekeys:
            iperf3(near, far, target, proto="udp", seconds=REKEY_SECONDS, rate=REKEY_UDP_RATE)
        sent, lost = finish_pings(running, pings)
        for proto, rate in (("tcp", "0"), ("udp", BURST_UDP_RATE)):
            iperf3(near, far, target, proto=proto, seconds=burst_seconds, rate=rate)
        counts = tap.counts()
        for sample in tap.clear_samples():
            say(f"{driver:7} in clear: {sample}")
        modes = list(dict.fromkeys([*gateways.a.active_modes(), *gateways.b.active_modes()]))
        ike_suite, suite = "", AH_PROPOSAL
        if course.protocol == "esp":
            [ike] = gateways.a.ike()["ike_sas"]
            ike_suite, suite = ike["suite"], ike["children"][0]["suite"]
        if lost:
            for gateway in (gateways.a, gateways.b):
                say(f"{driver:7} log of {gateway.host}:\n{gateway.log()}")
    return Proof(
        pings_sent=sent,
        pings_lost=lost,
        cleartext_packets=counts["clear"],
        esp_packets=counts["esp"],
        active_mode=", ".join(modes),
        ike_suite=ike_suite,
        esp_suite=suite,
        rekeys=rekeys.done,
        ah_packets=counts["ah"],
    )


class Rekeying(threading.Thread):
    """Gives the SAs new keys: each side a child SA, then one side the IKE SA and another child SA."""

    def __init__(self, gateways: Gateways, after: float) -> None:
        super().__init__(name="rekeying", daemon=True)
        self.done = Rekeys()
        self.error: LabError | None = None
        self._gateways = gateways
        self._after = after

    def run(self) -> None:
        """Begin after a while, one after the other."""
        time.sleep(self._after)
        a, b = self._gateways.a, self._gateways.b
        try:
            for gateway, what in ((a, "child"), (b, "child"), (a, "ike"), (b, "child")):
                gateway.follow("rekey", {"name": "sites", "what": what})
                self.done += Rekeys(child=what == "child", ike=what == "ike")
        except LabError as error:
            self.error = error


@contextmanager
def rekeying(gateways: Gateways, *, after: float) -> Iterator[Rekeying]:
    """SAs get new keys while the block runs, and are done with it when it ends. LabError if that fails."""
    thread = Rekeying(gateways, after)
    thread.start()
    yield thread
    thread.join(UP_SECONDS)
    if thread.error is not None:
        raise thread.error


@dataclass(frozen=True, kw_only=True)
class Unchanged:
    """What `rekeying` gives, where keys are written by hand."""

    done: Rekeys = field(default_factory=Rekeys)


def changing_keys(
    gateways: Gateways, course: Course, *, after: float
) -> AbstractContextManager[Rekeying | Unchanged]:
    """`rekeying` where IKE made the tunnel."""
    return rekeying(gateways, after=after) if course.protocol == "esp" else nullcontext(Unchanged())


def measure_speed(
    lab: Lab, seconds: int, *, label: str = "plain", course: Course = TUNNEL
) -> tuple[Throughput, Throughput]:
    """iperf3 TCP and UDP from the near end to the far one."""
    near, far = course.spaces(lab)
    results = []
    for proto in ("tcp", "udp"):
        results.append(iperf3(near, far, course.targets()[1], proto=proto, seconds=seconds))
        lost = f" ({results[-1].lost_percent:.1f} % lost)" if proto == "udp" else ""
        say(f"{label:7} speed: {proto} {results[-1].gbps:.2f} Gb/s{lost}")
    return results[0], results[1]
