"""How many datagrams are taken from one sender: a bucket of tokens each, in bounded memory.

What a sender is, an address or something that is harder to forge, is for the caller to say (control/ike_door.py).
"""

from __future__ import annotations

from collections.abc import Hashable

RATE = 1000.0  # datagrams per second
BURST = 4000.0  # datagrams
MOST = 4096  # senders remembered, in each of two generations


class RateLimiter:
    """Buckets by sender. Those unused for longest are forgotten first, which fills them again."""

    def __init__(self, rate: float = RATE, burst: float = BURST, most: int = MOST) -> None:
        self.refused = 0  # datagrams
        self._rate = rate
        self._burst = burst
        self._most = most
        self._young: dict[Hashable, tuple[float, float]] = {}  # tokens left, and when that was
        self._old: dict[Hashable, tuple[float, float]] = {}

    def allow(self, sender: Hashable, now: float) -> bool:
        """Take one token of `sender` (of an address its text, whose hash costs nothing); False where it has none."""
        entry = self._young.get(sender) or self._old.get(sender)
        tokens = self._burst if entry is None else min(entry[0] + (now - entry[1]) * self._rate, self._burst)
        allowed = tokens >= 1.0
        if not allowed:
            self.refused += 1
        if sender not in self._young and len(self._young) >= self._most:
            self._old, self._young = self._young, {}
        self._young[sender] = (tokens - 1.0 if allowed else tokens, now)
        return allowed
