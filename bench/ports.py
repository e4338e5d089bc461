"""Packets per second that a port takes in (`receive`), and that a pair of ports passes on (`forward`), per driver.

One process on one CPU holds the ports, in gateway A of a laboratory; a generator on another CPU (if there is
one) offers more than it can take. Sizes are bytes of IP packet. Nothing is encrypted: this is the floor that
every tunnel stands on. `tun` is fed by the kernel's forwarding, and passes packets from one TUN device to another.
"""

from __future__ import annotations

import os
import socket
import statistics
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from bench.options import Options
from bench.report import Row
from control.lab import Lab, LabError
from control.lab.gateway import SOURCE_ROOT
from control.lab.topology import FAR_LAN, SEGMENTS, address
from dataplane.model import PortSpec, Role
from dataplane.ports import tun, xdp
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
START_SECONDS = 1.5  # until the generator runs, at most

Ports = tuple[PortHandle, PortHandle]


def run(options: Options) -> list[Row]:
    """Rows {driver, mode, test, size, mpps, runs}."""
    rows: list[Row] = []
    cpus = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cpus[-1]})
    try:
        for driver, open_ports in DRIVERS.items():
            if options.wants(driver):
                rows += measure_driver(driver, open_ports, cpus[0], options)
    finally:
        os.sched_setaffinity(0, set(cpus))
    return rows


def measure_driver(
    driver: str, open_ports: Callable[[Lab, ExitStack], Ports], cpu: int, options: Options
) -> list[Row]:
    """All tests and sizes of one driver, in a lab of its own; the generator runs on `cpu`."""
    rows: list[Row] = []
    seconds = options.seconds or SECONDS
    with Lab(queues=1, static_neighbours=True) as lab, ExitStack() as stack:
        ports = open_ports(lab, stack)
        for test, measure in TESTS.items():
            for size in SIZES:
                rounds = []
                for _ in range(options.rounds or ROUNDS):
                    with offered(lab, size, seconds, cpu):
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
def offered(lab: Lab, size: int, seconds: float, cpu: int) -> Iterator[None]:
    """Packets of `size` bytes from the client towards the server, for the time of the block."""
    command = [sys.executable, "-m", "bench.generator", "eth0", f"{seconds + START_SECONDS:g}", str(cpu)]
    generator = lab.client.start([*command, frame(lab, size).hex()], cwd=SOURCE_ROOT)
    try:
        yield
        if not generator.running and generator.wait(0) != 0:
            raise LabError(f"the packet generator failed: {generator.log(3)}")
    finally:
        generator.kill()


def wait_for_packets(port: PortHandle) -> None:
    """Return once the generator's packets come in; LabError if they do not."""
    deadline = time.monotonic() + START_SECONDS
    while portbench.receive_only(port, 0.02)[0] == 0:
        if time.monotonic() > deadline:
            raise LabError(f"{port.name}: no packet of the generator came in within {START_SECONDS} s")


def frame(lab: Lab, size: int) -> bytes:
    """An Ethernet frame with a UDP packet of `size` bytes from client to server, all checksums right."""
    source, destination = address("client", "eth0"), address("server", "eth0")
    addresses = source.packed + destination.packed
    header = struct.pack("!BBHHHBBH", 0x45, 0, size, 0, 0, 64, socket.IPPROTO_UDP, 0)
    header = header[:10] + struct.pack("!H", checksum(header + addresses)) + addresses
    # A UDP checksum of zero is none (RFC 768).
    datagram = struct.pack("!HHHH", 9, 9, size - len(header), 0) + bytes(size - len(header) - 8)
    macs = [
        bytes.fromhex(lab.mac(*where).replace(":", "")) for where in (("gwa", "lan0"), ("client", "eth0"))
    ]
    return macs[0] + macs[1] + b"\x08\x00" + header + datagram


def checksum(data: bytes) -> int:
    """The Internet checksum of an even number of bytes (RFC 1071)."""
    # One's complement addition is addition modulo 0xFFFF.
    return 0xFFFF - int.from_bytes(data, "big") % 0xFFFF


def specs(driver: str) -> tuple[PortSpec, PortSpec]:
    """The two Ethernet ports of gateway A."""
    return (
        PortSpec(name="lan", role=Role.PROTECTED, driver=driver, interface="lan0"),
        PortSpec(name="wan", role=Role.UNPROTECTED, driver=driver, interface="wan0"),
    )


def open_xdp(lab: Lab, stack: ExitStack) -> Ports:
    """AF_XDP on both interfaces, one queue, one UMEM."""
    remotes = SEGMENTS[FAR_LAN["gwa"]]
    pool = Pool(FRAMES)

    def make() -> Ports:
        steering = [stack.enter_context(xdp.attach(spec, remotes=remotes)) for spec in specs("xdp")]
        attachments = [xdp.Attachment(xsks_fd=each.xsks_fd, mode=each.mode) for each in steering]
        first, second = xdp.open_ports(list(zip(specs("xdp"), attachments, strict=True)), 0, pool)
        for port in (first, second):
            stack.callback(port.close)
        return first, second

    return lab.spaces["gwa"].call(make)


def open_tun(lab: Lab, stack: ExitStack) -> Ports:
    """Two TUN devices with a queue each; the kernel routes what comes from the client into the first."""
    space, pool = lab.spaces["gwa"], Pool(FRAMES)
    names = ("esp0", "esp1")

    def make() -> Ports:
        for name in names:
            stack.callback(os.close, tun.create_device(name))
        first, second = (
            tun.open_port(
                PortSpec(name=name, role=Role.PROTECTED, driver="tun", interface=name), 0, 1, pool, {}
            )
            for name in names
        )
        for port in (first, second):
            stack.callback(port.close)
        return first, second

    ports = space.call(make)
    space.ip(*(f"link set {name} up" for name in names))
    lab.route_into("gwa", names[0])
    space.sysctl(
        ipv4__conf__esp1__forwarding=0
    )  # what comes out there must not be routed into the first again
    feed_softly(lab)
    return ports


def feed_softly(lab: Lab) -> None:
    """Give the gateway's LAN interface NAPI, which the generator needs where no XDP program brings it."""
    lab.spaces["gwa"].run(["ethtool", "-K", "lan0", "gro", "on"])


DRIVERS: dict[str, Callable[[Lab, ExitStack], Ports]] = {"xdp": open_xdp, "tun": open_tun}
