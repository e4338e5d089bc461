"""The bare loops of the port benches, on ports in memory: they move what they say, and lose no frame."""

from __future__ import annotations

import pytest

from ext import portbench
from ext.memory import MemoryPort
from ext.packet import Pool

ETHERNET, IP = 0, 1
FRAME = bytes(range(6)) + bytes(range(10, 16)) + b"\x08\x00" + b"payload"
MIRRORED = bytes(range(10, 16)) + bytes(range(6)) + b"\x08\x00" + b"payload"


def memory_port(pool: Pool, link: int, name: str = "a") -> MemoryPort:
    """A port in memory."""
    return MemoryPort(pool, name, 0, link, 1500, (), capacity=64)


@pytest.mark.parametrize("link", [ETHERNET, IP])
def test_forward_goes_both_ways(link: int) -> None:
    """What is injected on one port leaves by the other, with its MAC addresses swapped where it has them."""
    pool = Pool(64)
    a, b = memory_port(pool, link), memory_port(pool, link, "b")
    a.inject([FRAME] * 5)
    b.inject([FRAME] * 3)
    packets, nanoseconds = portbench.forward(a, b, 0.005)
    assert packets == 8
    assert 5e6 <= nanoseconds < 1e9
    expected = MIRRORED if link == ETHERNET else FRAME
    assert b.collect() == [expected] * 5
    assert a.collect() == [expected] * 3
    assert pool.free_count == 64


def test_full_ports_drop() -> None:
    """What the other port has no room for is dropped, and its frame is free again."""
    pool = Pool(256)
    a, b = memory_port(pool, IP), memory_port(pool, IP, "b")
    for _ in range(2):
        a.inject([FRAME] * 60)
        sent, _ = portbench.forward(a, b, 0.002)
    assert sent == 4
    assert len(b.collect()) == 64
    assert pool.free_count == 256


def test_receive_only_returns_every_frame() -> None:
    """Packets are counted and forgotten."""
    pool = Pool(64)
    port = memory_port(pool, IP)
    port.inject([FRAME] * 20)
    assert portbench.receive_only(port, 0.05)[0] == 20
    assert pool.free_count == 64


def test_generated_packets_differ() -> None:
    """Template first, zeros, a running number last; no number is left out when the port is full."""
    pool = Pool(64)
    port = memory_port(pool, IP)
    packets, _ = portbench.generate(port, FRAME, 60, 0.05, 7)
    assert packets == 64
    sent = port.collect()
    assert [int.from_bytes(packet[-8:], "little") for packet in sent] == list(range(64))
    assert {packet[:-8] for packet in sent} == {FRAME + bytes(60 - 8 - len(FRAME))}
    assert pool.free_count == 64


def test_wrong_arguments() -> None:
    """Ports that do not fit each other and sizes that do not fit a frame."""
    pool = Pool(64)
    port = memory_port(pool, IP)
    with pytest.raises(ValueError, match="different pools"):
        portbench.forward(port, memory_port(Pool(64), IP), 0.1)
    with pytest.raises(ValueError, match="differ in link type"):
        portbench.forward(port, memory_port(pool, ETHERNET), 0.1)
    with pytest.raises(ValueError, match="size is 10; between the template's 21 and a frame's 1792"):
        portbench.generate(port, FRAME, 10, 0.1)
    with pytest.raises(ValueError, match="burst is 65"):
        portbench.generate(port, FRAME, 60, 0.1, 65)
