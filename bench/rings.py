"""A worker's whole loop between memory ports: rings, frames and dispatch included, the kernel's share left out.

    out   plain packets are replayed into the protected port -> loop -> the unprotected port counts them
    in    what the loop sealed before (not timed) lies in the unprotected port's ring -> loop -> counted

A memory port copies each packet once, from its ring into a frame, as a socket in copy mode would; `port_ns` is what
ports alone cost: the same packets passed on with nothing done to them. DPDK's ipsec-secgw with ports that cost
nothing is the figure to set beside it.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from ipaddress import IPv4Address

from bench.options import Options, slowdown
from bench.packets import IMIX, udp_packet
from bench.quiet import undisturbed
from bench.report import Row
from bench.tunnels import BASE, MACS, SOURCES, Tunnels, inner_packet, text_size, tunnels
from control.config.proposal import parse_proposal
from ext import porttool
from ext.crypto import EngineHandle
from ext.loop import Loop
from ext.memory import MemoryPort
from ext.packet import Pool
from ext.sa import TablesView

ALGORITHMS = ("aes128gcm16", "aes256gcm16", "aes128-sha256", "chacha20poly1305")
SIZES: dict[str, tuple[int, ...]] = {"64": (64,), "512": (512,), "1408": (1408,), "imix": IMIX}
WAYS = ("out", "in")
PACKETS = 1536  # in a slice: a multiple of a batch and of IMIX's twelve
BATCH = 64
RING = 256
# Packets that wait for inbound at a time: few, to lie in the cache as what a network card wrote does.
CHUNK = 192
SLICES = 200
FRAMES = FRAME_SIZE = 2048
STEPS_MOST = 100
ETHERNET_IPV4 = MACS[1] + MACS[0] + b"\x08\x00"


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Nanoseconds per packet of one turn."""

    out: float
    into: float
    port: float
    bare_out: float
    bare_in: float


class Rig:
    """One worker between two memory ports, with tables of its own or as one of several workers."""

    def __init__(self, view: TablesView, engine: EngineHandle, pool: Pool | None = None) -> None:
        """Ports and loop; nothing runs yet. Each worker has a view and an engine of its own."""
        self.pool = pool or Pool(FRAMES, FRAME_SIZE)
        self.inside = MemoryPort(self.pool, "inside", 0, 0, capacity=RING)
        self.outside = MemoryPort(self.pool, "outside", 1, 0, capacity=RING)
        self.loop = Loop(view, engine, [self.inside, self.outside])

    def out(self, frames: list[bytes], packets: int) -> float:
        """Seal `packets` and let them go; nanoseconds each."""
        self.outside.discard = True
        self.inside.replay(frames, packets)
        return self._timed(packets, self.outside)

    def into(self, frames: list[bytes], packets: int) -> float:
        """Seal, which is not timed, then open; nanoseconds each."""
        self.inside.discard = True
        nanoseconds = 0.0
        for _ in range(packets // CHUNK):
            self.outside.inject(self.seal(frames, CHUNK))
            nanoseconds += self._timed(CHUNK, self.inside) * CHUNK
        return nanoseconds / packets

    def seal(self, frames: list[bytes], packets: int) -> list[bytes]:
        """What comes of at most a ring of packets, as frames."""
        self.outside.discard = False
        self.inside.replay(frames, packets)
        self.loop.step(-(-packets // BATCH))
        return self.outside.collect()

    def open_again(self, loop: Loop, sealed: list[bytes], packets: int) -> float:
        """Open `packets` by `loop`, of this worker's ports, receiving `sealed` in turn; nanoseconds each."""
        self.inside.discard = True
        self.outside.replay(sealed, packets)
        nanoseconds = self._timed(packets, self.inside, loop)
        self.outside.replay([])
        self.inside.discard = False
        return nanoseconds

    def port(self, frames: list[bytes], packets: int) -> float:
        """Pass packets on as they are."""
        self.outside.discard = True
        self.inside.replay(frames, packets)
        begun = time.perf_counter_ns()
        moved, _, _ = porttool.forward(self.inside, self.outside, 10.0, packets)
        taken = time.perf_counter_ns() - begun
        _check(moved, packets, "ports alone")
        return taken / packets

    def _timed(self, packets: int, sink: MemoryPort, loop: Loop | None = None) -> float:
        before = sink.transmitted[0]
        begun = time.perf_counter_ns()
        for _ in range(STEPS_MOST):  # one, but for a worker that deals: it may have to wait for a helper
            (loop or self.loop).step(packets // BATCH)
            if sink.transmitted[0] - before >= packets:
                break
        taken = time.perf_counter_ns() - begun
        end = begun + taken * slowdown()
        while time.perf_counter_ns() < end:
            pass
        _check(sink.transmitted[0] - before, packets, sink.name)
        return max(taken, end - begun) / packets


def _check(passed: int, wanted: int, where: str) -> None:
    if passed != wanted:
        raise RuntimeError(f"{where}: {passed} of {wanted} packets came through")


@contextmanager
def rig(algorithm: str) -> Iterator[tuple[Tunnels, Rig]]:
    """A tunnel of `algorithm` with its worker."""
    with tunnels(parse_proposal(algorithm)) as tunnel:
        yield tunnel, Rig(TablesView(tunnel.view_fd, 0), tunnel.engine)


def plain_frames(sizes: tuple[int, ...]) -> list[bytes]:
    """Ethernet frames with packets of these sizes."""
    return [ETHERNET_IPV4 + inner_packet(size) for size in sizes]


@cache
def flow_frames(count: int, size: int) -> list[bytes]:
    """One frame for each of `count` tunnels."""
    return [
        ETHERNET_IPV4 + udp_packet(SOURCES[1], IPv4Address(BASE + number), size) for number in range(count)
    ]


def turn(algorithm: str, tunnel: Tunnels, worker: Rig, sizes: tuple[int, ...]) -> Slice:
    """One slice of everything."""
    frames = plain_frames(sizes)
    return Slice(
        out=worker.out(frames, PACKETS),
        into=worker.into(frames, PACKETS),
        port=worker.port(frames, PACKETS),
        bare_out=bare(algorithm, tunnel, sizes, "seal"),
        bare_in=bare(algorithm, tunnel, sizes, "open"),
    )


def bare(
    algorithm: str, tunnel: Tunnels, sizes: tuple[int, ...], call: str, packets: int = PACKETS // 3
) -> float:
    """The bare cipher's nanoseconds per packet, from `packets` of each size; a mix of sizes by their shares."""
    proposal = parse_proposal(algorithm)
    suite = (int(proposal.cipher), int(proposal.integrity), proposal.key_bits)
    each = {
        size: tunnel.engine.bare(*suite, text_size(proposal, size), packets - 1, call, 1)
        for size in dict.fromkeys(sizes)
    }
    return statistics.fmean(each[size] for size in sizes)


def run(options: Options) -> list[Row]:
    """Rows {algorithm, direction, size, ns, bare_ns, ratio, port_ns, gbps}; `rounds` is the number of slices.

    ns: nanoseconds per packet, shortest slice; ratio: median of ns / bare_ns by slice; gbps: inner packets, from ns.
    """
    rows: list[Row] = []
    with undisturbed(), ExitStack() as stack:
        for algorithm in filter(options.wants, ALGORITHMS):
            tunnel, worker = stack.enter_context(rig(algorithm))
            for name, sizes in SIZES.items():
                slices = [turn(algorithm, tunnel, worker, sizes) for _ in range(options.rounds or SLICES)]
                rows += [row(algorithm, way, name, slices) for way in WAYS]
            print(f"{algorithm}: done", file=sys.stderr, flush=True)
    return rows


def row(algorithm: str, way: str, size: str, slices: list[Slice]) -> Row:
    """One figure."""
    ours = [each.out if way == "out" else each.into for each in slices]
    bare_ns = [each.bare_out if way == "out" else each.bare_in for each in slices]
    return {
        "algorithm": algorithm,
        "direction": way,
        "size": size,
        "ns": min(ours),
        "bare_ns": min(bare_ns),
        "ratio": statistics.median(a / b for a, b in zip(ours, bare_ns, strict=True)),
        "port_ns": min(each.port for each in slices),
        "gbps": 8 * statistics.fmean(SIZES[size]) / min(ours),
    }
