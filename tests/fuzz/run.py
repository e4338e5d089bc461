"""Invariant: no packet crashes, hangs or leaks; each gets exactly one named verdict; no frame is lost; only well-formed
ESP leaves on the unprotected side, no number twice; only what an SA is for leaves on the protected side.

    ./run fuzz --packets 10000000            on the build with AddressSanitizer and UBSan
    python tests/fuzz/run.py --packets N     on whatever build there is

Round by round, packets pass through a real worker's loop on memory ports, frames cut tight around them: mutated inner
packets outbound; what came out of that, untouched (it must open), then mutated, inbound, with packets that were sealed
with the right key around garbage, and packets of earlier rounds. Rounds go round four gateways: both engines, with
and without link headers. A seed and a round's number make the same packets again: --seed S --first R --packets 1.
libipsec-mb and libcrypto are not instrumented.
"""

from __future__ import annotations

import argparse
import ctypes
import faulthandler
import gc
import random
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np

if __name__ == "__main__":  # started as a file: the tree's root is not on the path
    sys.path.append(str(Path(__file__).resolve().parents[2]))

from dataplane.engine import open_engine
from ext.counters import VERDICT_NAMES
from tests.exchange.suites import OUTER
from tests.fuzz.corpus import inner_packet, plaintexts
from tests.fuzz.mutate import WIDTH, Bytes, Numbers, mutate, to_matrix
from tests.fuzz.world import World
from tests.gateway import ETHERNET, HOST_MAC, IP, LAN_MAC, PEER_MAC, WAN_MAC, Result

ROUND = 4096  # packets, about
CORPUS = 3000
STALE = 100  # ESP packets kept from earlier rounds
HANG_SECONDS = 60
GROWTH = 4 << 20  # bytes that may be allocated at the end beyond what was after WARM_UP rounds
WARM_UP = 40
# Verdicts that packets alone do not bring about: they take a full ring, a pool run dry, a device, a clock, a bug.
OUT_OF_REACH = {
    "crypto",
    "tx_full",
    "tx_error",
    "no_frame",
    "kernel",
    "no_route",
    "worker_lost",
    "dummy_sent",
}
# What may become of an ICMP error that goes back through tunnel 0.
ANSWERED = {"sequence_exhausted", "sequence_unreserved", "headroom", "no_policy", "discard", "bypassed"}


class Findings(Exception):
    """An invariant does not hold."""


class Fuzzer:
    """The gateways and what has been seen so far."""

    def __init__(self, seed: int, engines: tuple[str, ...] = ("ipsec-mb", "openssl")) -> None:
        self.seed = seed
        self.worlds = [World(open_engine(name), link, seed) for name in engines for link in (ETHERNET, IP)]
        chance = random.Random(seed)
        tunnels = self.worlds[0].tunnels
        inner = [
            inner_packet(chance.choice((chance.randrange(tunnels), chance.randrange(256))), chance)[
                : WIDTH - 14
            ]
            for _ in range(CORPUS)
        ]
        self.corpus = {
            link: to_matrix([_link(link, LAN_MAC, HOST_MAC, each) for each in inner]) for link in (0, 1)
        }
        self.stale: list[list[bytes]] = [[] for _ in self.worlds]
        self.oddities = [world.oddities() for world in self.worlds]
        self.last = [np.zeros(tunnels, np.uint64) for _ in self.worlds]
        self.verdicts: Counter[str] = Counter()
        self.packets = 0

    def close(self) -> None:
        """Let the gateways go."""
        for world in self.worlds:
            world.close()

    def round(self, number: int) -> None:
        """One round through one gateway; Findings, or an AssertionError of tests.gateway, when something is wrong."""
        which = number % len(self.worlds)
        world = self.worlds[which]
        chance = np.random.default_rng([self.seed, number])
        plain = random.Random(self.seed << 32 | number)
        for port in (world.gateway.lan, world.gateway.wan):
            port.tight = int(chance.integers(1, 1 << 63))
        sent = self.count(
            world.gateway.send(mutate(self.corpus[world.link], ROUND // 2, _bytes(world), chance), raw=True)
        )
        esp = sent.packets + [packet for packet in sent.kernel if _is_esp(packet)]
        self.check_sent(which, sent)
        self.check_untouched(world, esp[::4])
        linked = [
            _link(world.link, WAN_MAC, PEER_MAC, packet)
            for packet in esp + self.stale[which] + self.oddities[which]
        ]
        forged = [
            _link(world.link, WAN_MAC, PEER_MAC, forge.seal(plaintexts(forge.tunnel, plain), plain))
            for forge in plain.choices(world.forges, k=ROUND // 16)
        ]
        hostile = mutate(
            to_matrix([packet[:WIDTH] for packet in linked + forged]),
            ROUND // 2 - len(forged),
            _bytes(world),
            chance,
        )
        hostile += forged
        plain.shuffle(hostile)
        received = self.count(world.gateway.receive([packet[:WIDTH] for packet in hostile], raw=True))
        self.check_received(received)
        self.stale[which] = plain.sample(
            esp + self.stale[which], min(STALE, len(esp) + len(self.stale[which]))
        )

    def count(self, result: Result) -> Result:
        """Add a result's verdicts; tests.gateway has held them against the packets and the frames."""
        self.verdicts.update(result.verdicts)
        counted = sum(
            count for name, count in result.verdicts.items() if name not in ("icmp_sent", "icmp_limit")
        )
        self.packets += counted
        unnamed = set(result.verdicts) - set(VERDICT_NAMES.values())
        if unnamed:
            raise Findings(f"verdicts without a name: {unnamed}")
        return result

    def check_sent(self, which: int, result: Result) -> None:
        """On the unprotected side, nothing but ESP and AH packets, whole or in fragments, and no number twice."""
        if not result.packets:
            return
        data, lengths = to_matrix(result.packets)
        four = data[:, 0] >> 4 == 4
        rows = np.arange(len(lengths))
        total = np.where(four, _read16(data, rows, 2), 40 + _read16(data, rows, 4))
        protocol = np.where(four, data[:, 9], data[:, 6])
        # IPv6 has a header for fragments; all but the first of them show no SPI.
        cut = ~four & (protocol == 44)
        protocol = np.where(cut, data[:, 40], protocol)
        later = (
            np.where(
                four, _read16(data, rows, 6) & 0x1FFF, np.where(cut, _read16(data, rows, 42) & 0xFFF8, 0)
            )
            > 0
        )
        # UDP goes before ESP, four bytes of AH before its SPI.
        esp = np.where(four, 20, 40) + np.where(cut, 8, 0)
        esp += np.where(protocol == 17, 8, 0) + np.where(protocol == 51, 4, 0)
        if not (
            np.all(total == lengths)
            and np.all((protocol == 50) | (protocol == 51) | (protocol == 17))
            and np.all(data[four, 0] == 0x45)
        ):
            raise Findings(
                f"neither ESP nor AH on the unprotected side: {[p[:48].hex() for p in result.packets[:3]]}"
            )
        data, esp = data[~later], esp[~later]
        rows = np.arange(len(data))
        spi = _read16(data, rows, esp) << 16 | _read16(data, rows, esp + 2)
        tunnels = spi - 0xC0000000
        low = (_read16(data, rows, esp + 4) << 16 | _read16(data, rows, esp + 6)).astype(np.uint64)
        if not np.all((tunnels >= 0) & (tunnels < len(self.last[which]))):
            raise Findings(f"an SPI that is nobody's left: {spi.max():#x}")
        for tunnel in np.unique(tunnels):
            numbers = low[tunnels == tunnel]
            # Only the low half is on the wire: distances are modulo 2**32, and a round is much less. What had to be
            # fragmented leaves after the rest of its batch, so it is their set that counts, not their order.
            ahead = np.sort((numbers - self.last[which][tunnel]) & np.uint64(0xFFFFFFFF))
            steps = np.diff(ahead, prepend=np.uint64(0))
            if self.last[which][tunnel] == 0:
                steps = steps[1:]
            if np.any((steps == 0) | (steps > 1 << 20)):
                raise Findings(f"SPI {0xC0000000 + int(tunnel):#x}: a number twice, or far ahead: {numbers}")
            self.last[which][tunnel] += ahead[-1]

    def check_untouched(self, world: World, packets: list[bytes]) -> None:
        """What a gateway sent whole, its peer opens; TTLs alone may have run out."""
        result = self.count(world.gateway.receive([packet for packet in packets if not _is_fragment(packet)]))
        others = set(result.verdicts) - {"pass", "to_kernel", "ttl", "icmp_sent", "icmp_limit", *ANSWERED}
        if others:
            raise Findings(f"packets that were not touched ended as {result.verdicts}")
        self.check_received(result)

    def check_received(self, result: Result) -> None:
        """On the protected side, nothing but whole IP packets within the selectors."""
        for packet in result.packets:
            four = packet[0] >> 4 == 4
            total = int.from_bytes(packet[2:4], "big") if four else 40 + int.from_bytes(packet[4:6], "big")
            source, target = (packet[12:16], packet[16:20]) if four else (packet[8:24], packet[24:40])
            if total != len(packet) or not _selected(source, target):
                raise Findings(f"left on the protected side: {packet[:60].hex()}, {len(packet)} bytes")


def _is_fragment(packet: bytes) -> bool:
    if packet[0] >> 4 == 6:
        return packet[6] == 44
    return int.from_bytes(packet[6:8], "big") & 0x3FFF > 0


def _selected(source: bytes, destination: bytes) -> bool:
    """Some tunnel's selectors take these addresses (tests/fuzz/world.py)."""
    clients, servers = NETWORKS[len(source)]
    if destination.startswith(clients):
        # answers(): 10/8, 2001:db8::/32.
        return source.startswith(clients[: len(clients) - (1 if len(source) == 4 else 2)])
    return source.startswith(clients) and destination.startswith(servers)


NETWORKS = {
    4: (bytes([10, 1]), bytes([10, 2])),
    16: (bytes.fromhex("20010db80001"), bytes.fromhex("20010db80002")),
}
OURS = {address[0].packed for address in OUTER.values()}


def _bytes(world: World) -> int:
    return 14 if world.link == ETHERNET else 0


def _link(link: int, destination: bytes, source: bytes, packet: bytes) -> bytes:
    if link == IP:
        return packet
    return destination + source + (b"\x86\xdd" if packet[0] >> 4 == 6 else b"\x08\x00") + packet


def _is_esp(packet: bytes) -> bool:
    """A packet handed to the kernel is ours: ESP, AH, or in UDP from 4500."""
    four = packet[0] >> 4 == 4
    protocol, after = (packet[9], packet[20:22]) if four else (packet[6], packet[40:42])
    source = packet[12:16] if four else packet[8:24]
    return source in OURS and (protocol in (50, 51) or (protocol == 17 and after == b"\x11\x94"))


def _read16(data: Bytes, rows: Numbers, at: Numbers | int) -> Numbers:
    return data[rows, at].astype(np.int64) << 8 | data[rows, np.asarray(at) + 1]


def allocated() -> int | None:
    """Bytes that malloc has given out, where AddressSanitizer counts them."""
    gc.collect()
    try:
        function = ctypes.CDLL(None).__sanitizer_get_current_allocated_bytes
    except AttributeError:
        return None
    function.restype = ctypes.c_size_t
    return int(function())


def main(argv: list[str] | None = None) -> int:
    """Fuzz until the packets or the seconds are used up; 0 when nothing was found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--packets", type=int, default=1_000_000)
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="stop after this time at the latest"
    )
    parser.add_argument("--seed", type=int, default=None, help="(default: at random; it is printed)")
    parser.add_argument("--first", type=int, default=0, metavar="ROUND", help="the first round")
    arguments = parser.parse_args(argv)
    seed = random.SystemRandom().getrandbits(31) if arguments.seed is None else arguments.seed
    instrumented = allocated() is not None
    print(f"seed {seed}; {'with' if instrumented else 'WITHOUT'} AddressSanitizer", flush=True)
    faulthandler.enable()
    fuzzer = Fuzzer(seed)
    begun = shown = time.monotonic()
    number, before = arguments.first, None
    try:
        while fuzzer.packets < arguments.packets and time.monotonic() < begun + arguments.seconds:
            faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
            fuzzer.round(number)
            number += 1
            if number == arguments.first + WARM_UP:
                before = allocated()
            if time.monotonic() > shown + 10:
                shown = time.monotonic()
                print(
                    f"{fuzzer.packets:,} packets, {fuzzer.packets / (shown - begun):,.0f} a second",
                    flush=True,
                )
    except (Findings, AssertionError) as finding:
        print(f"FINDING in round {number} of seed {seed}: {finding!r}", file=sys.stderr)
        print(f"again: --seed {seed} --first {number} --packets 1", file=sys.stderr)
        raise
    finally:
        faulthandler.cancel_dump_traceback_later()
    after = allocated()
    seconds = time.monotonic() - begun
    print(
        f"{fuzzer.packets:,} packets in {seconds:.0f} s ({fuzzer.packets / seconds:,.0f} a second); verdicts:"
    )
    for name in VERDICT_NAMES.values():
        print(f"  {name:22} {fuzzer.verdicts[name]:>12,}")
    fuzzer.close()
    return _judge(fuzzer, before, after)


def _judge(fuzzer: Fuzzer, before: int | None, after: int | None) -> int:
    """The last invariants: nothing leaked, and no verdict was out of the fuzzer's sight."""
    if before is not None and after is not None and after > before + GROWTH:
        print(
            f"FINDING: {after - before:,} bytes more are allocated than after {WARM_UP} rounds",
            file=sys.stderr,
        )
        return 1
    unseen = set(VERDICT_NAMES.values()) - set(fuzzer.verdicts) - OUT_OF_REACH
    if unseen and fuzzer.packets >= 10_000_000:
        print(
            f"FINDING: no packet ended as {', '.join(sorted(unseen))}: the fuzzer is blind there",
            file=sys.stderr,
        )
        return 1
    print("no finding")
    return 0


if __name__ == "__main__":
    sys.exit(main())
