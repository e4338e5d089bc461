"""MemoryPort: what goes in comes out, frames are conserved, a full ring pushes back."""

import threading

import pytest

from ext import porttool
from ext.memory import MemoryPort
from ext.packet import Pool

PACKETS = [bytes([index]) * (index + 20) for index in range(150)]


def test_inject_receive_in_batches_of_64() -> None:
    pool = Pool(256)
    port = MemoryPort(pool)
    port.inject(PACKETS)
    sizes = []
    received = []
    while batch := porttool.receive(port):
        sizes.append(len(batch))
        received += [content for content, _ in batch]
    assert sizes == [64, 64, 22]
    assert received == PACKETS
    assert pool.free_count == 256
    assert port.counters["rx_packets"] == 150
    assert port.counters["rx_bytes"] == sum(map(len, PACKETS))


def test_collect_is_what_was_transmitted() -> None:
    pool = Pool(64)
    port = MemoryPort(pool)
    assert porttool.transmit(port, PACKETS[:50]) == 50
    assert port.collect(20) == PACKETS[:20]
    assert port.collect() == PACKETS[20:50]
    assert port.collect() == []
    assert pool.free_count == 64


def test_an_empty_pool_leaves_packets_queued() -> None:
    pool = Pool(8)
    port = MemoryPort(pool)
    port.inject(PACKETS[:20])
    assert len(porttool.receive(port)) == 8
    assert port.waiting == 12


def test_a_full_ring_takes_what_fits() -> None:
    pool = Pool(64)
    port = MemoryPort(pool, capacity=16)
    assert porttool.transmit(port, PACKETS[:20]) == 16
    assert port.counters["tx_full"] == 1
    assert pool.free_count == 64
    with pytest.raises(BufferError, match="20 packets injected, room for 16"):
        port.inject(PACKETS[:20])


def test_discard_only_counts() -> None:
    pool = Pool(64)
    port = MemoryPort(pool, link=0, discard=True)
    assert porttool.transmit(port, PACKETS[:10]) == 10
    assert port.collect() == []
    assert port.transmitted == (10, sum(len(packet) - 14 for packet in PACKETS[:10]))
    assert pool.free_count == 64


def test_replay_ends_at_its_limit() -> None:
    pool = Pool(64)
    source = MemoryPort(pool, "source")
    sink = MemoryPort(pool, "sink")
    source.replay(PACKETS[:3], limit=100)
    moved, refused, _ = porttool.forward(source, sink, 5.0, idle=0.01)
    assert (moved, refused) == (100, 0)
    assert sink.collect() == [PACKETS[index % 3] for index in range(100)]
    assert pool.free_count == 64
    source.replay([])
    source.inject(PACKETS[:1])
    assert [content for content, _ in porttool.receive(source)] == PACKETS[:1]


def test_partial_checksum_is_flagged() -> None:
    pool = Pool(8)
    port = MemoryPort(pool)
    port.inject(PACKETS[:1], partial_checksum=True)
    port.inject(PACKETS[1:2])
    assert porttool.receive(port) == [(PACKETS[0], 1), (PACKETS[1], 0)]


def test_injecting_wakes_a_sleeper() -> None:
    port = MemoryPort(Pool(8))
    assert not porttool.wait(port, 0.01)
    timer = threading.Timer(0.05, port.inject, (PACKETS[:1],))
    timer.start()
    assert porttool.wait(port, 5.0)
    assert len(porttool.receive(port)) == 1
    assert not porttool.wait(port, 0.01)
    timer.join()


def test_what_no_frame_holds_is_refused() -> None:
    port = MemoryPort(Pool(8))
    with pytest.raises(ValueError, match="packet of 1793 bytes, a frame holds 1792"):
        port.inject([bytes(1793)])
    with pytest.raises(ValueError, match="power of two"):
        MemoryPort(Pool(8), capacity=3)
