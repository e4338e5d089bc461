"""Traffic from the client to the server and what came of it: ping and iperf3, each bounded in time."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

from control.lab.space import LabError, Program, Space, wait_until
from control.lab.topology import Address, check_tools

IPERF_PORT = 5201
# Fits every tunnel of ours on a 1500-byte path, IPv6 inside and outside and UDP encapsulation included.
UDP_PAYLOAD = 1300
GRACE_SECONDS = 10.0
PATIENCE_SECONDS = 5.0  # for the answers that are still out when the last ping has been sent


@dataclass(frozen=True, kw_only=True)
class Pings:
    """Echo requests sent and lost."""

    sent: int
    lost: int


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """What one iperf3 run brought to the receiver: Gb/s of payload, and (UDP) the share lost, in per cent."""

    gbps: float
    lost_percent: float


def start_ping(
    space: Space, target: Address, *, count: int, interval: float = 0.01, size: int | None = None
) -> Program:
    """Start `count` echo requests, `interval` seconds apart; give the program to `finish_ping`.

    With `size` (bytes of payload, eight less than ICMP's) nobody may cut them into fragments.

    With only a count, ping waits for the last answers no longer than `interval` or two round trips, and on a busy
    machine calls them lost. With a deadline it goes on sending until it has `count` answers, and which of the
    first `count` requests were answered is in its output.
    """
    deadline = math.ceil(count * interval + PATIENCE_SECONDS)
    argv = ["ping", "-n", "-i", f"{interval:g}", "-c", str(count), "-w", str(deadline), str(target)]
    if size is not None:
        argv[1:1] = ["-M", "do", "-s", str(size)]
    return space.start(argv)


def finish_ping(program: Program, *, count: int, timeout: float = 60.0) -> Pings:
    """Wait for a ping of `count` requests to end, and count the answers to them."""
    program.wait(timeout)
    if "packets transmitted" not in program.output():
        raise LabError(f"{program.name}: no summary: {(program.log() or program.output()).strip()}")
    answered = {int(number) for number in re.findall(r"icmp_seq=(\d+) .*time=", program.output())}
    return Pings(sent=count, lost=count - sum(number <= count for number in answered))


def ping(
    space: Space, target: Address, *, count: int, interval: float = 0.01, size: int | None = None
) -> Pings:
    """Send `count` echo requests, `interval` seconds apart, and count the answers. `size` as for `start_ping`."""
    program = start_ping(space, target, count=count, interval=interval, size=size)
    return finish_ping(program, count=count, timeout=count * interval + 15)


def iperf3(
    client: Space,
    server: Space,
    target: Address,
    *,
    proto: str,
    seconds: int,
    rate: str = "0",
    streams: int = 1,
) -> Throughput:
    """Run iperf3 from `client` to `target`, an address of `server`, for `seconds` (iperf3 takes whole ones).

    `proto` is "tcp" or "udp"; `rate` is iperf3's -b ("0" is as fast as it goes). A server is started for this
    one run, so that a run that breaks off cannot spoil the next. LabError holds iperf3's own error text.
    """
    check_tools({"iperf3": "iperf3"})
    listener = server.start(["iperf3", "-s", "-1", "-p", str(IPERF_PORT)])
    try:
        wait_until(lambda: _listening(listener, IPERF_PORT), timeout=5, what="iperf3 server listens")
        argv = ["iperf3", "-c", str(target), "-p", str(IPERF_PORT), "-t", str(seconds), "-b", rate, "--json"]
        argv += ["-P", str(streams), "--connect-timeout", "5000"]
        argv += ["-u", "-l", str(UDP_PAYLOAD)] if proto == "udp" else []
        run = client.run(argv, timeout=seconds + GRACE_SECONDS, check=False)
    finally:
        listener.stop(1)
    return _read_report(run.output(), proto)


def _listening(program: Program, port: int) -> bool:
    """True when some TCP socket in the program's namespace listens at `port` (state 0A)."""
    if not program.running:
        raise LabError(f"{program.name} ended: {program.log(5) or program.output()}")
    table = "".join(Path(f"/proc/{program.pid}/net/{name}").read_text() for name in ("tcp", "tcp6"))
    return re.search(rf":{port:04X} [0-9A-F]+:0000 0A ", table) is not None


def _read_report(text: str, proto: str) -> Throughput:
    try:
        report = json.loads(text)
    except json.JSONDecodeError:
        raise LabError(f"iperf3 {proto}: no report: {text[-300:]!r}") from None
    if "error" in report:
        raise LabError(f"iperf3 {proto}: {report['error']}")
    end = report["end"]
    total = end.get("sum_received") or end["sum"]
    return Throughput(
        gbps=total["bits_per_second"] / 1e9,
        lost_percent=float(end.get("sum", {}).get("lost_percent") or 0.0) if proto == "udp" else 0.0,
    )
