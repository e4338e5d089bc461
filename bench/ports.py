"""Packets per second that a port takes in (`receive`), and that a pair of ports passes on (`forward`), per driver.

One process on one CPU holds the ports, in gateway A of a laboratory; a generator on another CPU (if there is
one) offers more than it can take. Sizes are bytes of IP packet. Nothing is encrypted: this is the floor that
every tunnel stands on. `tun` is fed by the kernel's forwarding, and passes packets from one TUN device to another.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Address
from typing import Any

from bench.options import Options
from bench.packets import udp_packet
from bench.quiet import undisturbed
from bench.report import Row
from control.lab import Lab, LabError
from control.lab.gateway import SOURCE_ROOT
from control.lab.topology import FAR_LAN, SEGMENTS, address
from dataplane.model import PortSpec, Role
from dataplane.ports import drivers
from ext import portbench
from ext.packet import Pool, PortHandle

SIZES = (64, 512, 1408)
TESTS: dict[str, Callable[[PortHandle, PortHandle, float], tuple[int, int]]] = {
    "receive": lambda first, _, seconds: portbench.receive_only(first, seconds),
    "forward": portbench.forward,
}
SECONDS = 1.0
ROUNDS = 3
FRAMES = 16384
START_SECONDS = 6.0  # until the generator runs, at most


def run(options: Options) -> list[Row]:
    """Rows {driver, mode, test, size, mpps, runs}."""
    rows: list[Row] = []
    generator_cpu = min(os.sched_getaffinity(0))
    with undisturbed():  # on the last CPU
        for driver in filter(options.wants, PORTS):
            rows += measure_driver(driver, generator_cpu, options)
    return rows


def measure_driver(driver: str, cpu: int, options: Options) -> list[Row]:
    """All tests and sizes of one driver, in a lab of its own; the generator runs on `cpu`."""
    rows: list[Row] = []
    seconds = options.seconds or SECONDS
    with Lab(queues=1, static_neighbours=True) as lab, ExitStack() as stack:
        ports = open_ports(driver, lab, stack)
        for test, measure in TESTS.items():
            for size in SIZES:
                rounds = []
                for _ in range(options.rounds or ROUNDS):
                    drain(ports[0])
                    with flood(lab, frame(lab, size), seconds, cpu):
                        wait_for_packets(ports[0])
                        packets, nanoseconds = measure(*ports, seconds)
                    rounds.append(packets * 1e3 / nanoseconds)
                row = {
                    "driver": driver,
                    "mode": ports[0].mode,
                    "test": test,
                    "size": size,
                    "mpps": statistics.median(rounds),
                    "runs": rounds,
                }
                rows.append(row)
                print(f"{driver} {test} {size} B: {row['mpps']:.3f} Mpps", file=sys.stderr, flush=True)
    return rows


@contextmanager
def flood(lab: Lab, content: bytes, seconds: float, cpu: int) -> Iterator[None]:
    """Copies of a frame leave the client, more than anything can take, for the time of the block."""
    command = [sys.executable, "-m", "bench.generator", "eth0", f"{seconds + START_SECONDS:g}", str(cpu)]
    generator = lab.client.start([*command, content.hex()], cwd=SOURCE_ROOT)
    try:
        yield
        if not generator.running and generator.wait(0) != 0:
            raise LabError(f"the packet generator failed: {generator.log(3)}")
    finally:
        generator.kill()


def drain(port: PortHandle) -> None:
    """Take what the flood before this one left in the ring, or it would look like the next one's beginning."""
    while portbench.receive_only(port, 0.01)[0]:
        pass


def wait_for_packets(port: PortHandle) -> None:
    """Return once the generator's packets come in; LabError if they do not."""
    deadline = time.monotonic() + START_SECONDS
    while portbench.receive_only(port, 0.02)[0] == 0:
        if time.monotonic() > deadline:
            raise LabError(f"{port.name}: no packet of the generator came in within {START_SECONDS} s")


def frame(lab: Lab, size: int) -> bytes:
    """An Ethernet frame with a UDP packet of `size` bytes from client to server."""
    macs = [
        bytes.fromhex(lab.mac(*where).replace(":", "")) for where in (("gwa", "lan0"), ("client", "eth0"))
    ]
    source, destination = (IPv4Address(str(address(host, "eth0"))) for host in ("client", "server"))
    return macs[0] + macs[1] + b"\x08\x00" + udp_packet(source, destination, size)


# The two ports of each driver, in gateway A.
PORTS = {
    "xdp": ("lan0", "wan0"),
    "packet": ("lan0", "wan0"),
    "tun": ("esp0", "esp1"),
}


def open_ports(driver: str, lab: Lab, stack: ExitStack) -> tuple[PortHandle, PortHandle]:
    """Open both ports of a driver as a gateway's only worker would, and lead the client's packets to the first."""
    space = lab.spaces["gwa"]
    specs = [
        PortSpec(name=interface, role=role, driver=driver, interface=interface)
        for interface, role in zip(PORTS[driver], Role, strict=True)
    ]

    def make() -> tuple[PortHandle, PortHandle]:
        assigned = []
        for spec in specs:
            prepared = drivers.prepare(spec, workers=1, remotes=SEGMENTS[FAR_LAN["gwa"]])
            stack.callback(prepared.close)
            assigned.append((spec, prepared.mode, prepared.fds))
        # Any: every driver's port can be closed, and only PortHandle itself cannot.
        handles: list[Any] = [*drivers.open_ports(assigned, 0, 1, Pool(FRAMES, drivers.frame_size(specs)))]
        for handle in handles:
            stack.callback(handle.close)
        return handles[0], handles[1]

    ports = space.call(make)
    if driver == "tun":
        space.ip(*(f"link set {name} up" for name in PORTS[driver]))
        lab.route_into("gwa", PORTS[driver][0])
        # What comes out of the second must not be routed into the first again.
        space.sysctl(ipv4__conf__esp1__forwarding=0)
    if driver != "xdp":
        # The generator needs NAPI on the interface, which XDP brings, and otherwise GRO.
        space.run(["ethtool", "-K", "lan0", "gro", "on"])
    return ports
