"""New policies: at once while they are few, in rare turns while they are many, and told when they are in effect."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import ip_address

import pytest

from control.sa import flusher
from control.sa.flusher import Flusher
from control.sa.spd import Spd
from dataplane.api import DataPlaneError
from dataplane.model import Action, PolicySpec, SelectorSpec

EVERY = (ip_address("0.0.0.0"), ip_address("255.255.255.255"))
ANYTHING = SelectorSpec(
    local_first=EVERY[0], local_last=EVERY[1], remote_first=EVERY[0], remote_last=EVERY[1]
)


class Table:
    """A dataplane that takes `cost` seconds of the processor for each SPD, and may refuse it."""

    def __init__(self, cost: float = 0.0) -> None:
        self.cost = cost
        self.refuses = False
        self.turns: list[list[PolicySpec]] = []
        self.taken = asyncio.Event()

    async def set_policies(self, policies: Sequence[PolicySpec]) -> None:
        end = time.process_time() + self.cost
        while time.process_time() < end:
            pass
        await asyncio.sleep(0)
        if self.refuses:
            raise DataPlaneError("no room")
        self.turns.append(list(policies))
        self.taken.set()

    def set_policy_sa(self, name: str, sa: str | None) -> None:
        raise AssertionError(f"{name} was to use {sa}")


def policy(number: int) -> PolicySpec:
    return PolicySpec(name=f"p{number}", action=Action.DISCARD, selector=ANYTHING)


def scenario(table: Table, run: Callable[[Spd, Flusher], Awaitable[None]]) -> None:
    async def main() -> None:
        spd = Spd(table)

        async def before() -> None:
            await asyncio.sleep(0)

        one = Flusher(spd, before)
        task = asyncio.create_task(one.run())
        try:
            await asyncio.wait_for(run(spd, one), 20)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(main())


def test_settled_means_in_effect() -> None:
    table = Table(cost=0.002)

    async def run(spd: Spd, one: Flusher) -> None:
        await one.settled()  # nothing to wait for
        for number in range(10):
            spd.set_configured([policy(number)])
            one.want()
            await one.settled()
            assert table.turns[-1] == [policy(number)]

    scenario(table, run)
    assert len(table.turns) == 10


def test_a_few_in_a_row_do_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """One after another, as while peers bring tunnels up: none pays for the one before."""
    monkeypatch.setattr(flusher, "LONGEST_PAUSE", 60.0)
    monkeypatch.setattr(flusher, "SHARE", 1e-6)
    table = Table(cost=flusher.SAVED / 10)

    async def run(spd: Spd, one: Flusher) -> None:
        for number in range(5):
            spd.set_configured([policy(number)])
            one.want()
            await table.taken.wait()
            table.taken.clear()

    scenario(table, run)


def test_who_waits_ends_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything saved is used up, and the next tunnel is in effect at once all the same."""
    monkeypatch.setattr(flusher, "LONGEST_PAUSE", 60.0)
    monkeypatch.setattr(flusher, "SHARE", 1e-6)
    table = Table(cost=flusher.SAVED)

    async def run(spd: Spd, one: Flusher) -> None:
        for number in range(4):
            spd.set_configured([policy(number)])
            one.want()
            await one.settled()

    scenario(table, run)
    assert len(table.turns) == 4


def test_very_many_share_turns() -> None:
    """A change every millisecond: turns take no more than their share once what was saved is used up."""
    table = Table(cost=flusher.SAVED / 4)

    async def run(spd: Spd, one: Flusher) -> None:
        end = time.monotonic() + 2.0
        number = 0
        while time.monotonic() < end:
            number += 1
            spd.set_configured([policy(number)])
            one.want()
            await asyncio.sleep(0.001)
        await one.settled()
        assert table.turns[-1] == [policy(number)]

    scenario(table, run)
    assert len(table.turns) <= 4 + 2.0 * flusher.SHARE / table.cost + 3


def test_a_refusal_is_no_reason_to_wait_for_ever() -> None:
    table = Table()

    async def run(spd: Spd, one: Flusher) -> None:
        table.refuses = True
        spd.set_configured([policy(1)])
        one.want()
        await one.settled()
        table.refuses = False
        spd.set_configured([policy(2)])
        one.want()
        await one.settled()

    scenario(table, run)
    assert table.turns == [[policy(2)]]
