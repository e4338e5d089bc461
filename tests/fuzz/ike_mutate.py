"""Mutations of one IKE message, payload or the like: bits, bytes at which something changes, lengths that lie, cuts,
insertions, repetitions and pieces of another sample. Each takes a bytearray and changes it in place.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

LONGEST = 4096  # bytes: more says nothing new, and costs time
_BYTES = (0, 1, 2, 3, 4, 5, 7, 8, 16, 17, 20, 33, 41, 46, 53, 0x7F, 0x80, 0xFE, 0xFF)
_WORDS = (0, 1, 2, 3, 4, 5, 7, 8, 9, 12, 16, 28, 255, 256, 0x7FFF, 0x8000, 0x800E, 0xFFFE, 0xFFFF)

Mutation = Callable[[bytearray, random.Random, Sequence[bytes]], None]


def _at(data: bytearray, chance: random.Random, room: int = 1) -> int:
    """A place with `room` bytes behind it; headers lie at the front, so that is where most changes go."""
    end = max(len(data) - room, 0)
    return chance.randrange(min(end, 64) + 1) if chance.random() < 0.5 else chance.randrange(end + 1)


def flip_bit(data: bytearray, chance: random.Random, others: Sequence[bytes]) -> None:
    """One bit anywhere."""
    if data:
        data[_at(data, chance)] ^= 1 << chance.randrange(8)


def put_byte(data: bytearray, chance: random.Random, others: Sequence[bytes]) -> None:
    """A byte at which something changes."""
    if data:
        data[_at(data, chance)] = chance.choice(_BYTES)


def put_word(data: bytearray, chance: random.Random, others: Sequence[bytes]) -> None:
    """Two bytes that are a type or a length somewhere."""
    if len(data) > 1:
        at = _at(data, chance, 2)
        data[at : at + 2] = chance.choice(_WORDS).to_bytes(2, "big")


def shift_word(data: bytearray, chance: random.Random, others: Sequence[bytes]) -> None:
    """A length a little off."""
    if len(data) > 1:
        at = _at(data, chance, 2)
        value = int.from_bytes(data[at : at + 2], "big") + chance.randrange(-9, 10)
        data[at : at + 2] = (value & 0xFFFF).to_bytes(2, "big")


def cut(data: bytearray, chance: random.Random, others: Sequence[bytes]) -> None:
    """The end is gone."""
    del data[chance.randrange(len(data) + 1) :]


def remove(data: bytearray, chance: random.Random, others: Sequence[bytes]) -> None:
    """A piece is gone."""
    at = _at(data, chance)
    del data[at : at + chance.choice((1, 2, 4, 8, 20))]


def insert(data: bytearray, chance: random.Random, others: Sequence[bytes]) -> None:
    """A piece of noise."""
    at = _at(data, chance)
    data[at:at] = chance.randbytes(chance.choice((1, 2, 4, 8, 20, 100)))


def repeat(data: bytearray, chance: random.Random, others: Sequence[bytes]) -> None:
    """A piece of itself, once or often."""
    at = _at(data, chance)
    piece = data[at : at + chance.choice((4, 8, 12, 16, 40))]
    data[at:at] = piece * chance.choice((1, 1, 2, 50))


def splice(data: bytearray, chance: random.Random, others: Sequence[bytes]) -> None:
    """The end of another."""
    other = chance.choice(others)
    data[_at(data, chance) :] = other[chance.randrange(len(other) + 1) :]


MUTATIONS: tuple[Mutation, ...] = (
    flip_bit,
    put_byte,
    put_word,
    shift_word,
    cut,
    remove,
    insert,
    repeat,
    splice,
)


def mutate(sample: bytes, chance: random.Random, others: Sequence[bytes]) -> bytes:
    """`sample` after one to four mutations."""
    data = bytearray(sample)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 4))):
        chance.choice(MUTATIONS)(data, chance, others)
    return bytes(data[:LONGEST])
