"""How many datagrams IKE takes from one address: a bucket of tokens each, in bounded memory.

One loud peer, or one host with a broken daemon, must not keep the others waiting. Spoofed floods come from a new
address each time and pass here; cookies are for them (RFC 7296 section 2.6).
"""

from __future__ import annotations

RATE = 1000.0  # datagrams per second
BURST = 4000.0  # datagrams
MOST = 4096  # addresses remembered, in each of two generations


class RateLimiter:
    """Buckets by address. Those unused for longest are forgotten first, which fills them again."""

    def __init__(self, rate: float = RATE, burst: float = BURST, most: int = MOST) -> None:
        self.refused = 0  # datagrams
        self._rate = rate
        self._burst = burst
        self._most = most
        self._young: dict[str, tuple[float, float]] = {}  # tokens left, and when that was
        self._old: dict[str, tuple[float, float]] = {}

    def allow(self, address: str, now: float) -> bool:
        """Take one token of `address` (as text, whose hash costs nothing); False where it has none."""
        entry = self._young.get(address) or self._old.get(address)
        tokens = self._burst if entry is None else min(entry[0] + (now - entry[1]) * self._rate, self._burst)
        allowed = tokens >= 1.0
        if not allowed:
            self.refused += 1
        if address not in self._young and len(self._young) >= self._most:
            self._old, self._young = self._young, {}
        self._young[address] = (tokens - 1.0 if allowed else tokens, now)
        return allowed
