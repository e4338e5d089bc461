"""What pages the frames lie on, told by the kernel, and pools on each kind."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import pytest

from dataplane.pages import kind_of_pages
from dataplane.supervisor import frames_memory
from ext.packet import Pool

HUGE = 2 << 20
THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")

SMAPS = """\
7f0000000000-7f0000400000 rw-p 00000000 00:00 0
Size:               4096 kB
Rss:                4096 kB
AnonHugePages:      {anonymous} kB
ShmemPmdMapped:     {shared} kB
KernelPageSize:     {page} kB
7f0000400000-7f0000800000 rw-p 00000000 00:00 0
Rss:                4096 kB
AnonHugePages:      4096 kB
"""


@pytest.mark.parametrize(
    ("anonymous", "shared", "page", "kind"),
    [
        (0, 0, 4, "small"),
        (2048, 0, 4, "small"),  # half is not most
        (4096, 0, 4, "transparent"),
        (0, 4096, 4, "transparent"),
        (0, 0, 2048, "reserved"),
    ],
)
def test_smaps_are_read(anonymous: int, shared: int, page: int, kind: str) -> None:
    """Of the mapping asked for, not of its neighbour."""
    lines = SMAPS.format(anonymous=anonymous, shared=shared, page=page).splitlines()
    assert kind_of_pages(0x7F0000000000, 0x400000, lines) == kind


def test_a_pool_is_on_huge_pages_where_the_kernel_has_them() -> None:
    """Frames begin where a huge page does, all can be written, and what the kernel says fits its setting."""
    pool = Pool(2048 + 1, 2048)
    assert pool.address % HUGE == 0
    touch(pool)
    kind = kind_of_pages(pool.address, pool.frame_count * pool.frame_size)
    if "[never]" in THP.read_text():
        assert kind in ("small", "reserved")
    else:
        assert kind in ("transparent", "reserved")


def test_pools_come_and_go_without_a_trace() -> None:
    """Whatever was mapped for alignment is given back: address space does not grow."""

    def mapped() -> int:
        return int(Path("/proc/self/statm").read_text().split()[0]) * 4096

    Pool(3000, 2048)
    before = mapped()
    for _ in range(50):
        Pool(3000, 2048)
        Pool(100, 2048)
    assert mapped() - before < 3000 * 2048


def test_shared_frames_are_written_and_read_by_two_mappings() -> None:
    """The memory of a team, wherever it comes from: its size is kept, and both pools see the same bytes."""
    fd = frames_memory(2 * HUGE)
    try:
        assert os.fstat(fd).st_size == 2 * HUGE
        pools = [Pool(1024, 2048, fd=fd, offset=HUGE) for _ in range(2)]
        write(pools[0], 5 * 2048, b"seen by both")
        assert read(pools[1], 5 * 2048, 12) == b"seen by both"
    finally:
        os.close(fd)


def touch(pool: Pool) -> None:
    """Write to every frame."""
    for index in range(pool.frame_count):
        write(pool, index * pool.frame_size, b"x")


def write(pool: Pool, offset: int, data: bytes) -> None:
    """Bytes into the frames."""
    ctypes.memmove(pool.address + offset, data, len(data))


def read(pool: Pool, offset: int, length: int) -> bytes:
    """Bytes of the frames."""
    return ctypes.string_at(pool.address + offset, length)
