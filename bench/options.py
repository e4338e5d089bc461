"""What every benchmark is told; None leaves a choice to the benchmark."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Options:
    """Length of one measurement in seconds, how often, and what to leave out."""

    seconds: float | None = None
    rounds: int | None = None
    only: tuple[str, ...] = ()  # names of algorithms, drivers or systems; () is all

    def wants(self, name: str) -> bool:
        """True when `name` is to be measured."""
        return not self.only or name in self.only
