"""The command `esplanade demo`, whose work is in the modules beside it.

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
import os
import re
import time
from pathlib import Path

from control.demo.course import Course, tunnel
from control.demo.proof import measure_plain, try_driver
from control.demo.report import DriverResult, format_table, say, verdict, write_json
from control.lab.gateway import DRIVERS, make_lab
from control.lab.space import LabError
from control.lab.topology import check_tools

SECONDS = 5
SECONDS_MOST = 86400  # of iperf3
TOOLS = {"ping": "iputils-ping", "iperf3": "iperf3"}


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
        type=whole_seconds,
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


def whole_seconds(text: str) -> int:
    """The length of a run; argparse.ArgumentTypeError says what was got, and what is wanted."""
    if re.fullmatch("[0-9]{1,5}", text) is None or not 1 <= int(text) <= SECONDS_MOST:
        raise argparse.ArgumentTypeError(
            f"got {text[:40]!r}, want a whole number of seconds from 1 to {SECONDS_MOST}"
        )
    return int(text)


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


def keep(driver: str, course: Course) -> None:
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
