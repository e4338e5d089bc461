"""The benches' generator and sink: what is lost, doubled, out of order or not of this run is counted as such."""

import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address

import numpy as np
import pytest

from bench.packets import udp_packet
from ext.memory import MemoryPort
from ext.packet import Pool
from ext.traffic import exchange

LINK = bytes(12) + b"\x08\x00"
SOURCE, TARGET = IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2")
FRAMES = [LINK + udp_packet(SOURCE, TARGET, size) for size in (64, 200)]
PACKETS = 1001
SECONDS = 30.0  # at most

Frames = list[bytes]


class Wire:
    """A source and a sink, and in between whatever `change` makes of all frames sent so far, once all are."""

    def __init__(self, change: Callable[[Frames], Frames]) -> None:
        self.source = MemoryPort(Pool(2048, 2048), "source", 0, 0)
        self.sink = MemoryPort(Pool(2048, 2048), "sink", 1, 0)
        self._change = change
        self._over = threading.Event()

    @contextmanager
    def carrying(self, count: int) -> Iterator[None]:
        """Within: a thread is the wire."""

        def carry() -> None:
            seen: Frames = []
            while len(seen) < count and not self._over.wait(0.0005):
                seen += self.source.collect()
            self.sink.inject(self._change(seen))

        thread = threading.Thread(target=carry)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()


def run(change: Callable[[Frames], Frames], first_sequence: int = 1):
    """One exchange over a wire that changes things."""
    wire = Wire(change)
    with wire.carrying(PACKETS):
        return exchange(wire.source, FRAMES, 0, SECONDS, wire.sink, first_sequence, 1.0, packets=PACKETS)


def test_everything_arrives_in_order_and_takes_time() -> None:
    """Sizes alternate; every latency is known."""
    sizes: list[int] = []

    def note(frames: Frames) -> Frames:
        sizes.extend(map(len, frames))
        return frames

    done = run(note)
    assert (done.wanted, done.sent, done.received) == (1001, 1001, 1001)
    assert (done.reordered, done.repeated, done.strange) == (0, 0, 0)
    assert sizes[:4] == [78, 214, 78, 214]
    latencies = np.frombuffer(done.latencies, np.uint32)
    assert len(latencies) == 1001
    assert latencies.min() > 0


def test_a_rate_is_not_exceeded() -> None:
    """The first packet is due at once, and so many in a tenth of a second; a busy machine may send fewer."""
    source = MemoryPort(Pool(2048, 2048), "source", 0, 0)
    done = exchange(source, FRAMES, 5_000.0, 0.1, settle=0.0)
    assert done.wanted == 501
    assert 1 <= done.sent <= 501
    assert done.nanoseconds >= (done.sent - 1) * 200_000 * 0.99


def test_losses_are_zeros() -> None:
    """Every tenth packet goes."""
    done = run(lambda frames: [frame for number, frame in enumerate(frames) if number % 10])
    assert (done.sent, done.received) == (1001, 900)
    lost = np.flatnonzero(np.frombuffer(done.latencies, np.uint32) == 0)
    assert lost.tolist() == list(range(0, 1001, 10))


def test_two_exchanged_packets_are_one_reordered() -> None:
    """The one that came after a higher number."""
    done = run(lambda frames: [*frames[:10], frames[11], frames[10], *frames[12:]])
    assert (done.received, done.reordered) == (1001, 1)


def test_copies_count_apart() -> None:
    """They are no reason to believe that nothing was lost."""
    done = run(lambda frames: [*frames[1:], frames[5]])
    assert (done.received, done.repeated) == (1000, 1)


def test_what_has_no_number_of_this_run_is_strange() -> None:
    """A runt, no IPv4, and a number that was never sent."""
    beyond = FRAMES[0][:-16] + struct.pack("=IIQ", 0x45535041, 0x45535041, 1001)
    done = run(lambda frames: [b"runt", LINK + b"\x60" + bytes(60), beyond, *frames])
    assert (done.received, done.strange) == (1001, 3)


@pytest.mark.parametrize("encapsulated", [False, True])
def test_sealed_packets_are_known_by_their_sequence_number(encapsulated: bool) -> None:
    """As ESP in IP and in UDP; the run begins at a number just below a wrap of its low half."""
    first = 0xFFFFFF00

    def seal(frames: Frames) -> Frames:
        sealed = []
        for number in range(len(frames)):
            esp = struct.pack(">II", 0x1234, (first + number) & 0xFFFFFFFF) + bytes(40)
            body = struct.pack(">HHHH", 4500, 4500, 8 + len(esp), 0) + esp if encapsulated else esp
            header = struct.pack(
                ">BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0, 64, 17 if encapsulated else 50, 0
            )
            sealed.append(LINK + header + SOURCE.packed + TARGET.packed + body)
        return [sealed[0], *sealed[2:]]

    done = run(seal, first)
    assert (done.received, done.strange) == (1000, 0)
    assert np.flatnonzero(np.frombuffer(done.latencies, np.uint32) == 0).tolist() == [1]


@pytest.mark.parametrize("frames", [[], [bytes(57)], [bytes(2000)]])
def test_frames_that_do_not_fit_are_refused(frames: list[bytes]) -> None:
    """No room for the stamp, or none in the pool's frames."""
    with pytest.raises(ValueError, match="wanted 58 to 1792"):
        exchange(MemoryPort(Pool(64, 2048), "source", 0, 0), frames, 0, SECONDS)
