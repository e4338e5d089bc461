"""MD4 (RFC 1320), which NT password hashes are made with. Broken for everything else, so no library has it any more."""

from __future__ import annotations

import struct
from collections.abc import Callable

_MASK = 0xFFFFFFFF
_Round = tuple[Callable[[int, int, int], int], int, tuple[int, ...], tuple[int, ...]]
_ROUNDS: tuple[_Round, ...] = (
    (lambda x, y, z: x & y | ~x & z, 0, (3, 7, 11, 19), tuple(range(16))),
    (
        lambda x, y, z: x & y | x & z | y & z,
        0x5A827999,
        (3, 5, 9, 13),
        (0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15),
    ),
    (
        lambda x, y, z: x ^ y ^ z,
        0x6ED9EBA1,
        (3, 9, 11, 15),
        (0, 8, 4, 12, 2, 10, 6, 14, 1, 9, 5, 13, 3, 11, 7, 15),
    ),
)


def md4(data: bytes) -> bytes:
    """The 16-byte digest."""
    padded = data + b"\x80" + bytes(-(len(data) + 9) % 64) + struct.pack("<Q", 8 * len(data))
    state = [0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476]
    for offset in range(0, len(padded), 64):
        words = struct.unpack_from("<16I", padded, offset)
        a, b, c, d = state
        for function, constant, shifts, order in _ROUNDS:
            for step, index in enumerate(order):
                total = a + function(b, c, d) + words[index] + constant & _MASK
                shift = shifts[step % 4]
                a, b, c, d = d, (total << shift | total >> 32 - shift) & _MASK, b, c
        state = [one + two & _MASK for one, two in zip(state, (a, b, c, d), strict=True)]
    return struct.pack("<4I", *state)
