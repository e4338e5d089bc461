"""`esplanade demo`: two gateways between a client and a server, in four network namespaces of this machine.

The tunnel comes up by IKEv2: certificates of a CA made on the spot, X25519 with ML-KEM-768 on top, AES-GCM.
With `--mode transport` there is no tunnel: the gateways themselves are the two hosts (in IPv4, as IKE's SA is).
For each driver: 1 proof: on a tapped cable, ping both ways in IPv4 and IPv6 while iperf3 runs and both kinds of
SAs get new keys, then short TCP and UDP bursts, while the tap counts ESP and clear text 2 speed: iperf3 TCP and UDP on
the direct cable, with new keys half-way. Before them plain kernel forwarding, for comparison. Exit status 0 only if no
ping was lost, all SAs were rekeyed, nothing passed in clear and ESP did. With --protocol ah the tunnel is of AH with
keys written by hand, which nobody changes, and what the tap must see is AH and nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path

from control.lab.gateway import AH_PROPOSAL, DRIVERS, Gateways, IkeTunnel, Tunnel, make_lab
from control.lab.space import LabError, Program, Space, wait_until
from control.lab.topology import Address, Lab, address, check_tools
from control.lab.traffic import Throughput, finish_ping, iperf3, start_ping
from control.lab.wiretap import WireTap

SECONDS = 5
PINGS = 300  # of each family and direction
BURST_SECONDS = 1
BURST_UDP_RATE = "200M"
REKEY_SECONDS = 3  # of iperf3 while SAs get new keys
REKEY_UDP_RATE = "20M"
UP_SECONDS = 30.0  # a bound for the tunnel to come up, not an expectation
CHILD_REKEYS, IKE_REKEYS = 2, 1  # at least
TOOLS = {"ping": "iputils-ping", "iperf3": "iperf3"}


@dataclass(frozen=True, kw_only=True)
class Plain:
    """Kernel forwarding without a tunnel; end hosts keep their offloads."""

    tcp_gbps: float
    udp_gbps: float


@dataclass(frozen=True, kw_only=True)
class DriverResult:
    """What one driver showed; packets are those between the gateways during the proof."""

    tcp_gbps: float
    udp_gbps: float
    pings_sent: int
    pings_lost: int
    cleartext_packets: int
    esp_packets: int
    active_mode: str
    ike_suite: str
    esp_suite: str
    child_rekeys: int
    ike_rekeys: int
    protocol: str = "esp"
    ah_packets: int = 0

    @property
    def passed(self) -> bool:
        """True when the tunnel lost nothing, hid everything and changed its keys."""
        return not verdict(self)


@dataclass(frozen=True, kw_only=True)
class Proof:
    """The part of a DriverResult that comes from the tapped cable."""

    pings_sent: int
    pings_lost: int
    cleartext_packets: int
    esp_packets: int
    active_mode: str
    ike_suite: str
    esp_suite: str
    rekeys: Rekeys
    ah_packets: int


@dataclass(frozen=True, kw_only=True)
class Rekeys:
    """How often SAs got new keys, one side or the other asking for them."""

    child: int = 0
    ike: int = 0

    def __add__(self, other: Rekeys) -> Rekeys:
        return Rekeys(child=self.child + other.child, ike=self.ike + other.ike)


@dataclass(frozen=True, kw_only=True)
class Course:
    """What is tried: "tunnel", from the client to the server, or "transport", from gateway A to gateway B.

    ESP by IKE, or AH with keys by hand.
    """

    mode: str = "tunnel"
    protocol: str = "esp"

    @property
    def versions(self) -> tuple[int, ...]:
        """Of IP."""
        return (4, 6) if self.mode == "tunnel" else (4,)

    def spaces(self, lab: Lab) -> tuple[Space, Space]:
        """The two ends."""
        return (lab.client, lab.server) if self.mode == "tunnel" else (lab.spaces["gwa"], lab.spaces["gwb"])

    def targets(self, version: int = 4) -> tuple[Address, Address]:
        """Their addresses."""
        if self.mode == "tunnel":
            return address("client", "eth0", version), address("server", "eth0", version)
        return address("gwa", "wan0", version), address("gwb", "wan0", version)


TUNNEL = Course()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument(
        "--driver", choices=[*DRIVERS, "all"], default="all", help="which driver (default: all)"
    )
    parser.add_argument(
        "--mode",
        choices=["tunnel", "transport"],
        default="tunnel",
        help="a tunnel between two networks, or transport mode between the two gateways as hosts (default: tunnel)",
    )
    parser.add_argument(
        "--protocol",
        choices=("esp", "ah"),
        default="esp",
        help="esp: ESP by IKEv2; ah: AH with keys by hand (default: esp)",
    )
    parser.add_argument(
        "--seconds",
        type=_positive,
        default=SECONDS,
        metavar="N",
        help=f"of each speed run (default: {SECONDS})",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    parser.add_argument(
        "--keep",
        action="store_true",
        help="keep the last driver's lab running until Ctrl-C, to try things in",
    )


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"got {value}, want at least 1")
    return value


def run(arguments: argparse.Namespace) -> int:
    """Run the demo; returns the exit status."""
    if os.geteuid() != 0:
        say("esplanade demo makes network namespaces and must run as root: sudo esplanade demo")
        return 1
    drivers = DRIVERS if arguments.driver == "all" else (arguments.driver,)
    results: dict[str, DriverResult] = {}
    failures: list[str] = []
    try:
        check_tools(TOOLS)
        if arguments.protocol == "ah" and arguments.mode == "transport":
            raise LabError("--protocol ah is shown in tunnel mode; leave --mode transport out")
        course = Course(mode=arguments.mode, protocol=arguments.protocol)
        if course.mode == "tunnel":
            say("plain   client - gateway A - gateway B - server, forwarded by the kernel")
        else:
            say("plain   gateway A - gateway B, by the kernel")
        plain = measure_plain(arguments.seconds, course)
        for driver in drivers:
            try:
                results[driver] = try_driver(driver, arguments.seconds, course)
            except LabError as error:
                failures.append(f"{driver}: {error}")
                say(f"{driver:7} FAILED: {error}")
    except LabError as error:
        say(f"esplanade demo: {error}")
        return 1
    print(format_table(plain, results), flush=True)
    if arguments.json:
        write_json(arguments.json, plain, results)
    failures += [f"{driver}: {verdict(result)}" for driver, result in results.items() if not result.passed]
    for failure in failures:
        say(f"FAILED {failure.splitlines()[0]}")
    if arguments.keep and not failures:
        keep(drivers[-1], course)
    return 1 if failures else 0


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
    return DriverResult(
        tcp_gbps=tcp.gbps,
        udp_gbps=udp.gbps,
        pings_sent=proof.pings_sent,
        pings_lost=proof.pings_lost,
        cleartext_packets=proof.cleartext_packets,
        esp_packets=proof.esp_packets,
        active_mode=proof.active_mode,
        ike_suite=proof.ike_suite,
        esp_suite=proof.esp_suite,
        child_rekeys=total.child,
        ike_rekeys=total.ike,
        protocol=course.protocol,
        ah_packets=proof.ah_packets,
    )


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


@contextmanager
def tunnel(lab: Lab, driver: str, course: Course = TUNNEL) -> Iterator[Gateways]:
    """Both gateways, with a new CA or, for AH, new keys, and the child SAs between them up."""
    if course.protocol == "ah":
        with Gateways(lab, driver, Tunnel.of_ah()) as gateways:
            yield gateways
        return
    with Gateways(lab, driver, IkeTunnel.make(lab.directory, mode=course.mode)) as gateways:
        for gateway in (gateways.a, gateways.b):
            try:
                wait_until(gateway.children_up, timeout=UP_SECONDS, what="the tunnel comes up")
            except LabError as error:
                raise LabError(f"{error}; the log of {gateway.host} ends with:\n{gateway.log()}") from None
        yield gateways


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


def ping_all(lab: Lab, count: int, course: Course = TUNNEL) -> tuple[int, int]:
    """Ping from both ends in both families at once; returns (sent, lost)."""
    return finish_pings(start_pings(lab, count, course), count)


def start_pings(lab: Lab, count: int, course: Course = TUNNEL) -> list[Program]:
    """From both ends in each family."""
    near, far = course.spaces(lab)
    found = []
    for version in course.versions:
        near_address, far_address = course.targets(version)
        found.append(start_ping(near, far_address, count=count))
        found.append(start_ping(far, near_address, count=count))
    return found


def finish_pings(running: Sequence[Program], count: int) -> tuple[int, int]:
    """Wait for them; returns (sent, lost)."""
    done = [finish_ping(program, count=count) for program in running]
    return sum(pings.sent for pings in done), sum(pings.lost for pings in done)


def warm_up(lab: Lab, course: Course = TUNNEL) -> None:
    """Let neighbours and path MTU be learned before anything is measured."""
    ping_all(lab, 3, course)


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


def keep(driver: str, course: Course = TUNNEL) -> None:
    """Set the driver's lab up once more and hold it until Ctrl-C."""
    with (
        make_lab(driver, tapped=True, mode=course.mode) as lab,
        tunnel(lab, driver, course) as gateways,
    ):
        say(f"\nThe {driver} lab is running. Try, from another terminal:")
        say(f"  ip netns exec {course.spaces(lab)[0].name} ping {course.targets()[1]}")
        say(f"  ip netns exec {lab.spaces['wire'].name} tcpdump -ni port-a")
        say(f"  {' '.join(gateways.a.status_command())}")
        if course.protocol == "esp":
            say(f"  {' '.join(gateways.a.command('rekey', 'sites', '-c', str(gateways.a.config_path)))}")
        say("Ctrl-C takes it down.")
        try:
            while True:
                time.sleep(1)
                gateways.a.check_alive()
                gateways.b.check_alive()
        except KeyboardInterrupt:
            say("")


def verdict(result: DriverResult) -> str:
    """Why a result does not pass."""
    reasons = []
    if result.pings_lost:
        reasons.append(f"{result.pings_lost} of {result.pings_sent} pings lost")
    if result.cleartext_packets:
        reasons.append(f"{result.cleartext_packets} packets in clear between the gateways")
    if result.protocol == "ah":
        if not result.ah_packets:
            reasons.append("no AH packet between the gateways")
        if result.esp_packets:
            reasons.append(f"{result.esp_packets} ESP packets between the gateways")
        return ", ".join(reasons)
    if not result.esp_packets:
        reasons.append("no ESP packet between the gateways")
    if result.child_rekeys < CHILD_REKEYS or result.ike_rekeys < IKE_REKEYS:
        reasons.append(f"{result.child_rekeys} rekeys of child SAs and {result.ike_rekeys} of IKE SAs only")
    return ", ".join(reasons)


HEADINGS = (
    "",
    "mode",
    "TCP Gb/s",
    "UDP Gb/s",
    "pings lost",
    "ESP packets",
    "AH packets",
    "in clear",
    "rekeys",
)


def format_table(plain: Plain, results: dict[str, DriverResult]) -> str:
    """The table that ends the demo."""
    rows: list[Sequence[str]] = [
        HEADINGS,
        ("plain", "kernel forwarding", f"{plain.tcp_gbps:.2f}", f"{plain.udp_gbps:.2f}", *[""] * 5),
    ]
    for driver, result in results.items():
        rows.append(
            (
                driver,
                result.active_mode,
                f"{result.tcp_gbps:.2f}",
                f"{result.udp_gbps:.2f}",
                f"{result.pings_lost} of {result.pings_sent}",
                str(result.esp_packets),
                str(result.ah_packets),
                str(result.cleartext_packets),
                f"{result.child_rekeys} + {result.ike_rekeys}",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), row[1].ljust(widths[1])]
        cells += [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    used = dict.fromkeys(suites(each) for each in results.values())
    return "\n".join(["", *lines, "", *used, ""])


def suites(result: DriverResult | Proof) -> str:
    """The algorithms, in one line."""
    if result.ike_suite:
        return f"IKE {result.ike_suite}, ESP {result.esp_suite}"
    return f"AH {result.esp_suite}, keys by hand"


def write_json(path: Path, plain: Plain, results: dict[str, DriverResult]) -> None:
    """{"drivers": {driver: result}, "plain": ...}; figures rounded to what they are worth."""

    def rounded(values: dict[str, object]) -> dict[str, object]:
        return {key: round(value, 3) if isinstance(value, float) else value for key, value in values.items()}

    document = {
        "drivers": {driver: rounded(asdict(result)) for driver, result in results.items()},
        "plain": rounded(asdict(plain)),
    }
    path.write_text(json.dumps(document, indent=2) + "\n")


def say(line: str) -> None:
    """A progress line, to standard error, so that standard output holds the table alone."""
    print(line, file=sys.stderr, flush=True)
