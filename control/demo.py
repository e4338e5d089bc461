"""`esplanade demo`: two gateways between a client and a server, in four network namespaces of this machine.

For each driver: 1 proof: on a tapped cable, ping both ways in IPv4 and IPv6, then short TCP and UDP bursts,
while the tap counts ESP and clear text 2 speed: iperf3 TCP and UDP on the direct cable. Before them plain
kernel forwarding, for comparison. Exit status 0 only if no ping was lost, nothing passed in clear and ESP
did.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from control.lab.gateway import DRIVERS, Gateways, make_lab
from control.lab.space import LabError, Space
from control.lab.topology import Lab, address, check_tools
from control.lab.traffic import Throughput, finish_ping, iperf3, start_ping
from control.lab.wiretap import WireTap

SECONDS = 5
PINGS = 200  # of each family and direction
BURST_SECONDS = 1
BURST_UDP_RATE = "200M"
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

    @property
    def passed(self) -> bool:
        """True when the tunnel lost nothing and hid everything."""
        return self.pings_lost == 0 and self.cleartext_packets == 0 and self.esp_packets > 0


@dataclass(frozen=True, kw_only=True)
class Proof:
    """The part of a DriverResult that comes from the tapped cable."""

    pings_sent: int
    pings_lost: int
    cleartext_packets: int
    esp_packets: int
    active_mode: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument(
        "--driver", choices=[*DRIVERS, "all"], default="all", help="which driver (default: all)"
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
        say("plain   client - gateway A - gateway B - server, forwarded by the kernel")
        plain = measure_plain(arguments.seconds)
        for driver in drivers:
            try:
                results[driver] = try_driver(driver, arguments.seconds)
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
        keep(drivers[-1])
    return 1 if failures else 0


def measure_plain(seconds: int) -> Plain:
    """Kernel forwarding on the direct cable."""
    with Lab() as lab:
        tcp, udp = measure_speed(lab, seconds)
    return Plain(tcp_gbps=tcp.gbps, udp_gbps=udp.gbps)


def try_driver(driver: str, seconds: int) -> DriverResult:
    """Proof, then speed. LabError when a gateway or a program fails."""
    say(f"{driver:7} proof: gateways start, the cable between them is tapped")
    proof = prove(driver)
    say(
        f"{driver:7} proof: {proof.active_mode}; {proof.pings_lost} of {proof.pings_sent} pings lost; "
        f"between the gateways {proof.esp_packets} ESP packets, {proof.cleartext_packets} in clear"
    )
    with make_lab(driver) as lab, Gateways(lab, driver) as gateways:
        warm_up(lab)
        tcp, udp = measure_speed(lab, seconds, label=driver)
        gateways.a.check_alive()
        gateways.b.check_alive()
    return DriverResult(tcp_gbps=tcp.gbps, udp_gbps=udp.gbps, **asdict(proof))


def prove(driver: str, *, pings: int = PINGS, burst_seconds: int = BURST_SECONDS) -> Proof:
    """Ping and short bursts on a tapped cable; counting begins before the gateways start."""
    with make_lab(driver, tapped=True) as lab, WireTap(lab) as tap, Gateways(lab, driver) as gateways:
        sent, lost = ping_all(lab, pings)
        for proto, rate in (("tcp", "0"), ("udp", BURST_UDP_RATE)):
            iperf3(
                lab.client,
                lab.server,
                address("server", "eth0"),
                proto=proto,
                seconds=burst_seconds,
                rate=rate,
            )
        counts = tap.counts()
        for sample in tap.clear_samples():
            say(f"{driver:7} in clear: {sample}")
        modes = list(dict.fromkeys([*gateways.a.active_modes(), *gateways.b.active_modes()]))
        if lost:
            for gateway in (gateways.a, gateways.b):
                say(f"{driver:7} log of {gateway.host}:\n{gateway.log()}")
    return Proof(
        pings_sent=sent,
        pings_lost=lost,
        cleartext_packets=counts["clear"],
        esp_packets=counts["esp"],
        active_mode=", ".join(modes),
    )


def ping_all(lab: Lab, count: int) -> tuple[int, int]:
    """Ping from both ends in both families at once; returns (sent, lost)."""
    ways: list[tuple[Space, str]] = [(lab.client, "server"), (lab.server, "client")]
    running = [
        start_ping(space, address(target, "eth0", version), count=count)
        for space, target in ways
        for version in (4, 6)
    ]
    done = [finish_ping(program, count=count) for program in running]
    return sum(pings.sent for pings in done), sum(pings.lost for pings in done)


def warm_up(lab: Lab) -> None:
    """Let neighbours and path MTU be learned before anything is measured."""
    ping_all(lab, 3)


def measure_speed(lab: Lab, seconds: int, *, label: str = "plain") -> tuple[Throughput, Throughput]:
    """iperf3 TCP and UDP from client to server."""
    target = address("server", "eth0")
    results = []
    for proto in ("tcp", "udp"):
        results.append(iperf3(lab.client, lab.server, target, proto=proto, seconds=seconds))
        lost = f" ({results[-1].lost_percent:.1f} % lost)" if proto == "udp" else ""
        say(f"{label:7} speed: {proto} {results[-1].gbps:.2f} Gb/s{lost}")
    return results[0], results[1]


def keep(driver: str) -> None:
    """Set the driver's lab up once more and hold it until Ctrl-C."""
    with make_lab(driver, tapped=True) as lab, Gateways(lab, driver) as gateways:
        say(f"\nThe {driver} lab is running. Try, from another terminal:")
        say(f"  ip netns exec {lab.client.name} ping {address('server', 'eth0')}")
        say(f"  ip netns exec {lab.spaces['wire'].name} tcpdump -ni port-a")
        say(f"  {' '.join(gateways.a.status_command())}")
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
    if not result.esp_packets:
        reasons.append("no ESP packet between the gateways")
    return ", ".join(reasons)


HEADINGS = ("", "mode", "TCP Gb/s", "UDP Gb/s", "pings lost", "ESP packets", "in clear")


def format_table(plain: Plain, results: dict[str, DriverResult]) -> str:
    """The table that ends the demo."""
    rows: list[Sequence[str]] = [
        HEADINGS,
        ("plain", "kernel forwarding", f"{plain.tcp_gbps:.2f}", f"{plain.udp_gbps:.2f}", "", "", ""),
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
                str(result.cleartext_packets),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), row[1].ljust(widths[1])]
        cells += [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(["", *lines, ""])


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
