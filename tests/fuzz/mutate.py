"""Mutations of many packets at a time, as numpy operations on a matrix of bytes: one packet a row.

Each of OPERATIONS is done to a few rows picked at random; they change link, IP and transport headers where these lie
in a well-formed packet, lie about lengths, cut, lengthen and splice. Most IPv4 header checksums are mended afterwards,
for otherwise the parser would see nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Numbers = npt.NDArray[np.int64]

WIDTH = 1600  # bytes: the longest packet
ETHERTYPES = (0x0800, 0x86DD, 0x8100, 0x88A8, 0x0806, 0x8847, 0)
PROTOCOLS = (0, 1, 4, 6, 17, 41, 43, 44, 47, 50, 51, 58, 59, 60, 132, 135, 136, 139, 140, 253, 255)
INTERESTING = (
    0,
    1,
    2,
    4,
    5,
    6,
    8,
    0x0F,
    0x10,
    0x1F,
    0x20,
    0x3F,
    0x40,
    0x45,
    0x4F,
    0x60,
    0x7F,
    0x80,
    0xFE,
    0xFF,
)


class Rows:
    """Packets in the making: `data` (count x WIDTH), `lengths`, and the bytes of link header before the IP header."""

    def __init__(self, data: Bytes, lengths: Numbers, link: int, chance: np.random.Generator) -> None:
        self.data = data
        self.lengths = lengths
        self.link = link
        self.chance = chance

    def some(self, part: float) -> Numbers:
        """Row numbers, each with probability `part`."""
        return np.flatnonzero(self.chance.random(len(self.lengths)) < part)

    def any_of(self, values: Sequence[int], count: int) -> Numbers:
        """`count` draws."""
        return self.chance.choice(np.array(values, np.int64), count)

    def four(self, rows: Numbers) -> npt.NDArray[np.bool_]:
        """Which rows say that they are IPv4."""
        return np.asarray(self.data[rows, self.link] >> 4 == 4)

    def transport(self, rows: Numbers) -> Numbers:
        """Where the transport header begins, IPv6 extension headers not walked."""
        ihl = (self.data[rows, self.link] & 15).astype(np.int64) * 4
        return self.link + np.where(self.four(rows), ihl, 40)

    def put16(self, rows: Numbers, at: Numbers | int, value: Numbers) -> None:
        """Big-endian."""
        self.data[rows, at] = value >> 8 & 0xFF
        self.data[rows, np.asarray(at) + 1] = value & 0xFF


def flip_headers(it: Rows, rows: Numbers) -> None:
    """A few bits among the first 90 bytes."""
    for _ in range(3):
        it.data[rows, it.chance.integers(0, 90, len(rows))] ^= 1 << it.chance.integers(
            0, 8, len(rows), np.uint8
        )


def flip_anywhere(it: Rows, rows: Numbers) -> None:
    """One bit anywhere."""
    at = it.chance.integers(0, np.maximum(it.lengths[rows], 1))
    it.data[rows, at] ^= 1 << it.chance.integers(0, 8, len(rows), np.uint8)


def put_interesting(it: Rows, rows: Numbers) -> None:
    """A byte of the headers becomes one at which something changes."""
    it.data[rows, it.chance.integers(0, 70, len(rows))] = it.any_of(INTERESTING, len(rows))


def cut(it: Rows, rows: Numbers) -> None:
    """Cut anywhere, or within the headers."""
    limit = np.where(it.chance.random(len(rows)) < 0.5, it.lengths[rows], np.minimum(it.lengths[rows], 80))
    it.lengths[rows] = it.chance.integers(0, limit + 1)


def lengthen(it: Rows, rows: Numbers) -> None:
    """Bytes behind the packet, as Ethernet pads."""
    it.lengths[rows] = np.minimum(it.lengths[rows] + it.chance.integers(1, 64, len(rows)), WIDTH)


def lie_length(it: Rows, rows: Numbers) -> None:
    """IP total length or payload length: a little off, or anything."""
    at = it.link + np.where(it.four(rows), 2, 4)
    true = it.lengths[rows] - it.link - np.where(it.four(rows), 0, 40)
    near = true + it.chance.integers(-24, 25, len(rows))
    wild = it.chance.integers(0, 65536, len(rows))
    it.put16(rows, at, np.where(it.chance.random(len(rows)) < 0.7, near, wild) & 0xFFFF)


def true_length(it: Rows, rows: Numbers) -> None:
    """IP lengths that fit, so that a packet changed in size gets further."""
    at = it.link + np.where(it.four(rows), 2, 4)
    it.put16(rows, at, np.maximum(it.lengths[rows] - it.link - np.where(it.four(rows), 0, 40), 0))


def lie_first_byte(it: Rows, rows: Numbers) -> None:
    """Version or IHL."""
    old = it.data[rows, it.link]
    new = it.chance.integers(0, 16, len(rows), np.uint8)
    version = it.chance.random(len(rows)) < 0.3
    it.data[rows, it.link] = np.where(version, new << 4 | old & 15, old & 0xF0 | new)


def fragment(it: Rows, rows: Numbers) -> None:
    """IPv4 flags and fragment offset."""
    rows = rows[it.four(rows)]
    it.put16(rows, it.link + 6, it.any_of((0, 0x2000, 0x4000, 0x8000, 1, 0x1FFF, 0x2001, 0x3FFF), len(rows)))


def age(it: Rows, rows: Numbers) -> None:
    """TTL or hop limit."""
    it.data[rows, it.link + np.where(it.four(rows), 8, 7)] = it.any_of((0, 1, 2, 255), len(rows))


def change_protocol(it: Rows, rows: Numbers) -> None:
    """Protocol or next header."""
    it.data[rows, it.link + np.where(it.four(rows), 9, 6)] = it.any_of(PROTOCOLS, len(rows))


def chain(it: Rows, rows: Numbers) -> None:
    """What follows an IPv6 header becomes an extension header of another kind and size."""
    rows = rows[~it.four(rows)]
    it.data[rows, it.link + 6] = it.any_of((0, 43, 44, 60), len(rows))
    it.data[rows, it.link + 40] = it.any_of((0, 6, 17, 43, 44, 50, 51, 58, 59, 60), len(rows))
    it.data[rows, it.link + 41] = it.any_of((0, 0, 1, 2, 4, 40, 255), len(rows))


def retarget(it: Rows, rows: Numbers) -> None:
    """Another tunnel's network, or nobody's."""
    it.data[rows, it.link + np.where(it.four(rows), 18, 31)] = it.chance.integers(0, 256, len(rows))


def change_tos(it: Rows, rows: Numbers) -> None:
    """DSCP and ECN."""
    it.data[rows, it.link + 1] = it.chance.integers(0, 256, len(rows))


def lie_transport(it: Rows, rows: Numbers) -> None:
    """A byte of the transport header: UDP length, TCP data offset and flags, options, SPI, sequence number."""
    at = it.transport(rows) + it.any_of((0, 1, 2, 3, 4, 5, 6, 7, 12, 13, 16, 17, 20, 21, 22, 23), len(rows))
    it.data[rows, at] = it.any_of(INTERESTING, len(rows))


def lie_udp_length(it: Rows, rows: Numbers) -> None:
    """UDP length near the truth."""
    near = it.lengths[rows] - it.transport(rows) + it.chance.integers(-20, 21, len(rows))
    it.put16(rows, it.transport(rows) + 4, near & 0xFFFF)


def splice(it: Rows, rows: Numbers) -> None:
    """The head of one packet, the tail of another."""
    other = it.chance.integers(0, len(it.lengths), len(rows))
    at = it.chance.integers(1, 100, len(rows))
    tail = np.arange(WIDTH) >= at[:, None]
    it.data[rows] = np.where(tail, it.data[other], it.data[rows])
    it.lengths[rows] = it.lengths[other]


def swap_ends(it: Rows, rows: Numbers) -> None:
    """Outer addresses of another packet: an SPI with an address that is not its own."""
    other = it.chance.integers(0, len(it.lengths), len(rows))
    for at in range(it.link + 12, it.link + 20):
        it.data[rows, at] = it.data[other, at]


def noise(it: Rows, rows: Numbers) -> None:
    """Nothing but random bytes."""
    it.data[rows, :256] = it.chance.integers(0, 256, (len(rows), 256), np.uint8)
    it.lengths[rows] = it.chance.integers(0, 257, len(rows))


def noise_behind_headers(it: Rows, rows: Numbers) -> None:
    """A sound IP header before random bytes."""
    for at, column in enumerate(it.chance.integers(0, 256, (64, len(rows)), np.uint8)):
        it.data[rows, it.transport(rows) + at] = column


def change_ethertype(it: Rows, rows: Numbers) -> None:
    """VLAN tags, ARP, the wrong family."""
    if it.link == 14:
        it.put16(rows, 12, it.any_of(ETHERTYPES, len(rows)))


OPERATIONS: dict[Callable[[Rows, Numbers], None], float] = {  # and what part of the packets each is done to
    splice: 0.03,
    noise: 0.02,
    noise_behind_headers: 0.04,
    flip_headers: 0.06,
    flip_anywhere: 0.06,
    put_interesting: 0.06,
    lie_first_byte: 0.04,
    fragment: 0.03,
    age: 0.04,
    change_protocol: 0.05,
    chain: 0.06,
    retarget: 0.10,
    change_tos: 0.10,
    lie_transport: 0.10,
    swap_ends: 0.03,
    cut: 0.08,
    lengthen: 0.05,
    true_length: 0.06,
    lie_udp_length: 0.03,
    lie_length: 0.06,
    change_ethertype: 0.03,
}
MENDED = 0.85  # part of the IPv4 packets whose header checksum is mended


def to_matrix(packets: Sequence[bytes]) -> tuple[Bytes, Numbers]:
    """Packets as rows of WIDTH bytes, filled up with zeros, and their lengths."""
    lengths = np.fromiter(map(len, packets), np.int64, len(packets))
    joined = b"".join([packet.ljust(WIDTH, b"\0") for packet in packets])
    return np.frombuffer(joined, np.uint8).reshape(len(packets), WIDTH), lengths


def mutate(bases: tuple[Bytes, Numbers], count: int, link: int, chance: np.random.Generator) -> list[bytes]:
    """`count` packets made from `bases`, whose link headers have `link` bytes."""
    data, lengths = bases
    picked = chance.integers(0, len(lengths), count)
    it = Rows(data[picked], lengths[picked], link, chance)
    for operation, part in OPERATIONS.items():
        operation(it, it.some(part))
    mend(it, it.some(MENDED))
    flat = it.data.tobytes()
    return [
        flat[start : start + length]
        for start, length in zip(range(0, count * WIDTH, WIDTH), it.lengths.tolist(), strict=True)
    ]


def mend(it: Rows, rows: Numbers) -> None:
    """Right IPv4 header checksums, whatever the IHL."""
    rows = rows[it.four(rows)]
    words = (it.data[rows, it.link] & 15).astype(np.int64) * 2
    header = it.data[rows, it.link : it.link + 60].astype(np.int64)
    values = header[:, 0::2] << 8 | header[:, 1::2]
    values[:, 5] = 0
    values *= np.arange(30) < words[:, None]
    total = values.sum(axis=1)
    for _ in range(2):
        total = (total & 0xFFFF) + (total >> 16)
    it.put16(rows, it.link + 10, ~total & 0xFFFF)
