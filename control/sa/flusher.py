"""New policies into the dataplane, soon and together: 1 somebody wants it 2 one turn for all that came 3 pause if due.

A turn costs as much as there are policies. A few at a time go at once; while very many come, turns may take no more
than a twentieth of the processor's time, else a thousand tunnels that come up together would cost a million policies.
Nobody who waits for a policy waits for a pause.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable

from control.sa.spd import Spd
from dataplane.api import DataPlaneError

log = logging.getLogger("esplanade.ike")

SHARE = 1 / 20  # of the processor's time that turns may take in the long run
SAVED = 0.1  # seconds of the processor's time that a quiet spell saves up at most
LONGEST_PAUSE = 1.0  # seconds


class Flusher:
    """Brings what changes in an SPD into effect. `run` is its task; one of these for an SPD."""

    def __init__(self, spd: Spd, before: Callable[[], Awaitable[None]]) -> None:
        """`before` is awaited ahead of each turn: what policies need to be there."""
        self._spd = spd
        self._before = before
        self._wanted = asyncio.Event()
        self._settled = asyncio.Event()
        self._settled.set()
        self._awaited = asyncio.Event()  # somebody waits: no pause

    def want(self) -> None:
        """Have the SPD brought into effect, if it changed."""
        if self._spd.stale:
            self._settled.clear()
            self._wanted.set()

    async def settled(self) -> None:
        """Wait until every policy that was there at the call is in effect, or has been refused (the log says why)."""
        if not self._settled.is_set():
            self._awaited.set()
            await self._settled.wait()

    async def run(self) -> None:
        """Until cancelled.

        Time of the CPU counts: a turn that waits for a busy machine's workers must not keep the next tunnel waiting.
        """
        saved, then = SAVED, time.monotonic()
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            begun = time.process_time()
            try:
                await self._before()
                await self._spd.flush()
            except DataPlaneError as error:
                log.error("policies: %s", error)
            now = time.monotonic()
            saved = min(SAVED, saved + SHARE * (now - then)) - (time.process_time() - begun)
            then = now
            if self._spd.stale:
                self._wanted.set()
            elif not self._wanted.is_set():
                self._settled.set()
                self._awaited.clear()
            if saved < 0:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._awaited.wait(), min(-saved / SHARE, LONGEST_PAUSE))
