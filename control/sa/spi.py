"""SPIs of inbound SAs: random, and nobody else's.

An SPI is the only thing by which the dataplane finds an SA (RFC 4301 section 4.1), so manual SAs, IKE's and those that
are just being retired share one space. Random ones tell nothing of how many there are, and scatter over workers.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable

LEAST = 0x1000  # RFC 4303 section 2.1 reserves 1 to 255; the low ones are what people type
_TRIES = 1000


class SpiError(Exception):
    """No SPI is free; of four billion that can only be a bug."""


class SpiAllocator:
    """Gives SPIs out; `in_use` says what the dataplane has."""

    def __init__(
        self, in_use: Callable[[int], bool], random: Callable[[int], bytes] = secrets.token_bytes
    ) -> None:
        self._in_use = in_use
        self._random = random
        self._given: set[int] = set()

    def take(self) -> int:
        """An SPI that nobody has, ours until it is given back."""
        for _ in range(_TRIES):
            spi = int.from_bytes(self._random(4), "big")
            if spi >= LEAST and spi not in self._given and not self._in_use(spi):
                self._given.add(spi)
                return spi
        raise SpiError(f"no free SPI in {_TRIES} tries, {len(self._given)} are given out")

    def give_back(self, spi: int) -> None:
        """The SPI's SA is gone, or never came about."""
        self._given.discard(spi)
