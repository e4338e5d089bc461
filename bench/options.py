"""What every benchmark is told; None leaves a choice to the benchmark."""

from __future__ import annotations

import os
from dataclasses import dataclass

SLOWDOWN = "ESPLANADE_BENCH_SLOWDOWN"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Length of one measurement in seconds, how often, and what to leave out."""

    seconds: float | None = None
    rounds: int | None = None
    only: tuple[str, ...] = ()  # names of algorithms, drivers or systems; () is all
    peers: bool = False  # other people's tunnels, too
    profile: bool = False  # stages instead of whole walks

    def wants(self, name: str) -> bool:
        """True when `name` is to be measured."""
        return not self.only or name in self.only


def slowdown() -> float:
    """How many times its time our own code is to take, 1 unless $ESPLANADE_BENCH_SLOWDOWN says more.

    For tests of what watches over speed: `1.15` is a regression of 15 %. ValueError for what is no number from 1 up.
    """
    text = os.environ.get(SLOWDOWN, "1")
    try:
        factor = float(text)
    except ValueError:
        factor = 0.0
    if not 1.0 <= factor <= 100.0:
        raise ValueError(f"{SLOWDOWN} is {text!r}; wanted a number from 1 to 100")
    return factor
