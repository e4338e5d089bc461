"""What pages a part of our memory lies on, as the kernel tells in /proc/self/smaps.

    "reserved"      huge pages that the operator has set aside (vm.nr_hugepages)
    "transparent"   ordinary memory that the kernel has put on huge pages, at least for the most part
    "small"         pages of 4 KiB

Transparent ones come with the first touch; a UMEM is touched entirely, because the kernel pins it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

SMAPS = Path("/proc/self/smaps")
SMALL_KB = 4
PIECE = 1024  # bytes
_RANGE = re.compile(r"([0-9a-f]+)-([0-9a-f]+) ")
_TRANSPARENT = ("AnonHugePages", "ShmemPmdMapped", "FilePmdMapped")


def kind_of_pages(address: int, size: int, lines: Iterable[str] | None = None) -> str:
    """Of `size` bytes at `address`; "" where the kernel does not say. `lines` are those of smaps."""
    if lines is not None:
        return _kind(address, size, lines)
    try:
        # In small pieces: the kernel looks at every page of a mapping before it says a word about it.
        with SMAPS.open("rb", buffering=PIECE) as file:
            return _kind(address, size, (line.decode() for line in file))
    except OSError:
        return ""


def _kind(address: int, size: int, lines: Iterable[str]) -> str:
    inside = False
    touched = transparent = 0
    for line in lines:
        found = _RANGE.match(line)
        if found is not None:
            low, high = (int(end, 16) for end in found.groups())
            if low >= address + size:
                break
            inside = address < high
        elif inside:
            key, _, rest = line.partition(":")
            if key == "Rss":
                touched += int(rest.split()[0])
            elif key in _TRANSPARENT:
                transparent += int(rest.split()[0])
            elif key == "KernelPageSize" and int(rest.split()[0]) > SMALL_KB:
                return "reserved"
    return "transparent" if transparent * 2 > touched else "small"
