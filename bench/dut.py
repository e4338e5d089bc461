"""The device under test: one worker of gateway A in this process, between a generator and a sink.

    client eth0 ---- lan0  gateway A  wan0 ---- wan0 (sink)  gateway B
    first CPU: generator and sink (ext.traffic)      last CPU: the worker, or what is measured in its place

The worker is the product's own (ext.loop) on the product's own ports and tables; only control is left out. So the same
sockets can be measured with nothing in between (ext.portbench.forward), or not at all: plain kernel forwarding.
What is sent reaches gateway B's outer address in clear, or as ESP, and the sink takes both.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from bench.packets import udp_packet
from control.config.proposal import parse_proposal
from control.lab import Lab
from control.lab.topology import FAR_LAN, SEGMENTS, address
from dataplane.api import DataPlane
from dataplane.model import (
    Action,
    AdjacencySpec,
    Direction,
    Encap,
    Network,
    PolicySpec,
    PortSpec,
    Role,
    SaSpec,
    SelectorSpec,
)
from dataplane.ports import drivers
from dataplane.tables import Limits
from ext import portbench
from ext.loop import Loop
from ext.packet import Pool, PortHandle
from ext.sa import TablesView

DRIVERS = ("xdp", "packet", "tun")
ALGORITHM = "aes128gcm16-esn"
SPI = 0x5000
ENDS_FRAMES = 8192
WORKER_FRAMES = 16384
LAN_A, LAN_B = SEGMENTS["lan-a"][0], SEGMENTS["lan-b"][0]
SENDER, TARGET = LAN_A[2], LAN_B[2]
OUTER = {host: IPv4Address(str(address(host, "wan0"))) for host in ("gwa", "gwb")}
ENCAP_PORT = 4500
FILL = 0xA5  # not zero: what comes in clear to the encapsulation port must not look like IKE


@dataclass(kw_only=True)
class Bench:
    """A laboratory whose sender is open; the sink is once somebody wants to `receive`."""

    lab: Lab
    source: PortHandle
    macs: tuple[bytes, bytes]  # lan0's, the client's
    stack: ExitStack = field(repr=False)
    opened: list[PortHandle] = field(default_factory=list, repr=False)

    def receive(self) -> PortHandle:
        """The sink. Until it is asked for, what reaches gateway B is none of its business and dropped at once.

        An XDP program on this end costs whoever sends to it about as much as sending does.
        """
        if not self.opened:
            spec = PortSpec(
                name="gwb", role=Role.UNPROTECTED, driver="xdp", interface="wan0", addresses=(OUTER["gwb"],)
            )
            self.opened.append(open_end(self.lab, self.stack, "gwb", spec))
        return self.opened[0]

    def frames(self, sizes: Sequence[int], *, clear: bool) -> list[bytes]:
        """From the client: to the far network (which gateway A protects), or `clear` to gateway B itself."""
        target = OUTER["gwb"] if clear else TARGET
        link = self.macs[0] + self.macs[1] + b"\x08\x00"
        return [link + udp_packet(SENDER, target, size, port=ENCAP_PORT, fill=FILL) for size in sizes]


@contextlib.contextmanager
def bench() -> Iterator[Bench]:
    """The laboratory: neighbours known, sender open, forwarding by the kernel."""
    with ExitStack() as stack:
        lab = stack.enter_context(Lab(queues=1, static_neighbours=True))
        sender = PortSpec(name="client", role=Role.PROTECTED, driver="xdp", interface="eth0")
        source = open_end(lab, stack, "client", sender)
        macs = tuple(
            bytes.fromhex(lab.mac(*at).replace(":", "")) for at in (("gwa", "lan0"), ("client", "eth0"))
        )
        yield Bench(lab=lab, source=source, macs=(macs[0], macs[1]), stack=stack)


def open_end(
    lab: Lab, stack: ExitStack, host: str, spec: PortSpec, remotes: Sequence[Network] = ()
) -> PortHandle:
    """A port of a host that sends or receives: what is for its addresses, or for `remotes` on the protected side."""

    def make() -> PortHandle:
        prepared = drivers.prepare(spec, workers=1, remotes=remotes)
        stack.callback(prepared.close)
        pool = Pool(ENDS_FRAMES, drivers.frame_size([spec]))
        handle: Any = drivers.open_ports([(spec, prepared.mode, prepared.fds)], 0, 1, pool)[0]
        stack.callback(handle.close)
        opened: PortHandle = handle
        return opened

    return lab.spaces[host].call(make)


class Dut:
    """Gateway A's ports, tables and worker, of one driver, while its `with` block lasts."""

    def __init__(self, bench: Bench, driver: str) -> None:
        """Nothing is opened before `with`."""
        self._bench, self.driver = bench, driver
        self._stack = ExitStack()

    def __enter__(self) -> Dut:
        """Open ports, fill tables."""
        lab = self._bench.lab
        with ExitStack() as stack:
            specs = self._specs(lab)
            pool = Pool(WORKER_FRAMES, drivers.frame_size(specs))
            self.dataplane = DataPlane.create(ports=specs, limits=Limits(max_sas=64, max_policies=8))
            stack.callback(self.dataplane.close)
            self.ports = lab.spaces["gwa"].call(lambda: self._open(specs, pool, stack))
            asyncio.run(self._fill())
            self.view = TablesView(self.dataplane.tables.fd, 0)
            self._stop = os.eventfd(0, os.EFD_NONBLOCK)
            stack.callback(os.close, self._stop)
            self.loop = Loop(self.view, self.dataplane.tables.engine, self.ports, None, self._stop)
            if self.driver == "tun":
                self._route_into(lab, stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """Close them; the kernel forwards again."""
        self._stack.close()

    @property
    def mode(self) -> str:
        """What the ports really run as."""
        return str(self.ports[0].mode)

    @property
    def has_bare(self) -> bool:
        """Whether the ports can be measured with nothing in between: both have the same kind of link."""
        return self.driver != "tun"

    def _specs(self, lab: Lab) -> list[PortSpec]:
        own = (OUTER["gwa"],)
        if self.driver == "tun":
            return [
                PortSpec(name="lan", role=Role.PROTECTED, driver="tun", interface="esp0"),
                PortSpec(name="wan", role=Role.UNPROTECTED, driver="udp", interface="", addresses=own),
            ]
        mac = {name: bytes.fromhex(lab.mac("gwa", name).replace(":", "")) for name in ("lan0", "wan0")}
        common: dict[str, Any] = {"driver": self.driver}
        return [
            PortSpec(name="lan", role=Role.PROTECTED, interface="lan0", mac=mac["lan0"], **common),
            PortSpec(
                name="wan", role=Role.UNPROTECTED, interface="wan0", mac=mac["wan0"], addresses=own, **common
            ),
        ]

    def _open(self, specs: Sequence[PortSpec], pool: Pool, stack: ExitStack) -> list[Any]:
        assigned = []
        for spec in specs:
            prepared = drivers.prepare(
                spec, workers=1, remotes=[*SEGMENTS[FAR_LAN["gwa"]], IPv4Network(OUTER["gwb"])]
            )
            stack.callback(prepared.close)
            assigned.append((spec, prepared.mode, prepared.fds))
        handles: list[Any] = [*drivers.open_ports(assigned, 0, 1, pool)]
        for handle in handles:
            stack.callback(handle.close)
        return handles

    async def _fill(self) -> None:
        proposal = parse_proposal(ALGORITHM)
        sa = SaSpec(
            name="out",
            direction=Direction.OUT,
            spi=SPI,
            local=OUTER["gwa"],
            remote=OUTER["gwb"],
            proposal=proposal,
            encryption_key=os.urandom(proposal.encryption_key_length),
            integrity_key=b"",
            encap=Encap(source_port=ENCAP_PORT, destination_port=ENCAP_PORT)
            if self.driver == "tun"
            else None,
            negotiated=True,
        )
        selector = SelectorSpec.from_networks(LAN_A, LAN_B)
        self.dataplane.add_sas([sa])
        # The client's address, where a bare forward sends, too: to nobody but a sink, which does not look at it.
        mac = b"" if self.driver == "tun" else self._bench.macs[1]
        self.dataplane.set_sa_adjacency("out", AdjacencySpec(port="wan", destination_mac=mac))
        await self.dataplane.set_policies(
            [PolicySpec(name="out", action=Action.PROTECT, selector=selector, sa="out")]
        )

    def _route_into(self, lab: Lab, stack: ExitStack) -> None:
        """The kernel leads the client's packets into the device."""
        space = lab.spaces["gwa"]
        space.ip("link set esp0 up", f"route replace {LAN_B} dev esp0")
        via = f"route replace {LAN_B} via {OUTER['gwb']}"
        stack.callback(lambda: space.ip(via))

    def next_sequence(self) -> int:
        """The ESP number of the next packet, low half; the tables hold one SA, which is the first."""
        return self.view.sequence(0)[0] & 0xFFFFFFFF

    def transmitted(self) -> int:
        """Packets that the unprotected port has taken so far."""
        return self.dataplane.stats(sas=False).ports[1].tx_packets

    def rate_for(self, seconds: float) -> float:
        """Let the worker run on this thread; million packets per second."""
        before, begun = self.transmitted(), time.perf_counter_ns()
        self._run_for(seconds)
        return (self.transmitted() - before) * 1e3 / (time.perf_counter_ns() - begun)

    def idle_cpu_percent(self, seconds: float) -> float:
        """Of one CPU, what the worker uses while nothing comes."""
        before, begun = time.thread_time(), time.perf_counter()
        self._run_for(seconds)
        return (time.thread_time() - before) * 100 / (time.perf_counter() - begun)

    def _run_for(self, seconds: float) -> None:
        timer = threading.Timer(seconds, os.eventfd_write, (self._stop, 1))
        timer.start()
        self.loop.run()
        timer.join()
        os.eventfd_read(self._stop)

    @contextlib.contextmanager
    def working(self, cpu: int) -> Iterator[None]:
        """Within: the worker runs, on a thread of its own, on `cpu`."""
        with _beside(cpu, self.loop.run, partial(os.eventfd_write, self._stop, 1)):
            yield
        os.eventfd_read(self._stop)

    @contextlib.contextmanager
    def forwarding(self, cpu: int, seconds: float) -> Iterator[None]:
        """Within, and until `seconds` are over: the ports forward with nothing in between, as `working` does."""
        with _beside(cpu, partial(portbench.forward, self.ports[0], self.ports[1], seconds), lambda: None):
            yield


@contextlib.contextmanager
def _beside(cpu: int, work: Callable[[], object], end: Callable[[], object]) -> Iterator[None]:
    """Within: `work` runs on a thread of its own, on `cpu`, until `end` ends it or it does so itself."""

    def pinned() -> None:
        os.sched_setaffinity(0, {cpu})
        work()

    thread = threading.Thread(target=pinned, name="beside")
    thread.start()
    try:
        yield
    finally:
        end()
        thread.join()
