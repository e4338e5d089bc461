"""Outbound SAs of single workers in the place of a policy's (RFC 9611): each worker sends through its own."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from dataplane.api import DataPlane, DataPlaneError
from tests.dataplane.conftest import SMALL
from tests.dataplane.make import make_sa, memory_ports
from tests.dataplane.plane import Gateway, udp
from tests.dataplane.test_api import POLICY, WAN, tunnel

PACKET = udp("10.1.0.5", "10.2.0.9")
WORKERS = 3


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[DataPlane]:
    made = DataPlane.create(ports=memory_ports(), limits=SMALL, state_dir=tmp_path / "state", workers=WORKERS)
    yield made
    made.close()


class Lab:
    """Three workers; SA "out" and those beside it, "out0" and so on."""

    def __init__(self, plane: DataPlane) -> None:
        self.plane = plane
        self.workers = [Gateway(plane, worker) for worker in range(WORKERS)]
        tunnel(plane)
        for number in range(WORKERS):
            tunnel(plane, str(number), 0xD0000000 + number)

    async def protect(self) -> None:
        """All goes through "out"."""
        await self.plane.set_policies([replace(POLICY, sa="out")])

    def used(self) -> list[str]:
        """The SA by which each worker's packet leaves."""
        names = {0xC0000001: "out", **{0xD0000000 + n: f"out{n}" for n in range(WORKERS)}}
        found = []
        for worker in self.workers:
            sent = worker.out(PACKET)
            found.append(names[int.from_bytes(sent[0][20:24], "big")] if sent else "")
        return found


def test_each_worker_has_its_own(plane: DataPlane) -> None:
    async def scenario() -> None:
        lab = Lab(plane)
        await lab.protect()
        assert lab.used() == ["out"] * 3
        plane.set_workers("out", {0: "out0", 2: "out2"})
        assert lab.used() == ["out0", "out", "out2"]
        plane.set_workers("out", {0: "out1", 1: "out0", 2: "out2"})
        assert lab.used() == ["out1", "out0", "out2"]
        plane.set_workers("out", {})
        assert lab.used() == ["out"] * 3

    asyncio.run(scenario())


def test_policies_that_come_later_have_them_too(plane: DataPlane) -> None:
    async def scenario() -> None:
        lab = Lab(plane)
        plane.set_workers("out", {1: "out1"})
        await lab.protect()
        assert lab.used() == ["out", "out1", "out"]
        plane.set_policy_sa(POLICY.name, "out2")
        assert lab.used() == ["out2"] * 3
        plane.set_policy_sa(POLICY.name, "out")
        assert lab.used() == ["out", "out1", "out"]

    asyncio.run(scenario())


def test_one_that_goes_leaves_the_common_one(plane: DataPlane) -> None:
    async def scenario() -> None:
        lab = Lab(plane)
        await lab.protect()
        plane.set_workers("out", {0: "out0", 1: "out1"})
        plane.remove_sa("out0")
        await plane.settle()
        assert lab.used() == ["out", "out1", "out"]
        plane.remove_sa("out1")
        assert lab.used() == ["out"] * 3
        plane.set_workers("out", {0: "out2"})
        plane.remove_sa("out")
        assert lab.used() == [""] * 3, "without the common one nothing leaves"
        await lab.plane.set_policies([replace(POLICY, sa="out2")])
        assert lab.used() == ["out2"] * 3

    asyncio.run(scenario())


@pytest.mark.parametrize("which", ["out", "out1"])
def test_what_is_replaced_or_moved_stays_where_it_is(plane: DataPlane, which: str) -> None:
    """Both put an SA into another slot; whoever leads to it follows."""

    async def scenario() -> None:
        lab = Lab(plane)
        await lab.protect()
        for number in (0, 1):
            plane.set_workers("out", {0: "out0", 1: "out1"})
            spi = 0xC0000001 if which == "out" else 0xD0000001
            await plane.replace_sa(make_sa(which, spi=spi, encryption_key=bytes([number + 9] * 20)))
            await plane.settle()
            tunnel(plane, f"-filler{number}", 0xE0000000 + number)  # takes the slot that was left
            plane.set_sa_adjacency(which, WAN, 1500)
            assert lab.used() == ["out0", "out1", "out"]

    asyncio.run(scenario())


def test_what_cannot_be_beside_another_is_named(plane: DataPlane) -> None:
    Lab(plane)
    plane.set_workers("out", {0: "out0"})
    for workers, text in (
        ({0: "nobody"}, "there is no SA 'nobody'"),
        ({0: "out"}, "cannot be beside 'out'"),
        ({16: "out1"}, "SA 'out1' for worker 16; there are 0 to 15"),
        ({0: "in0"}, "SA 'in0' is inbound"),
    ):
        with pytest.raises(DataPlaneError, match=text):
            plane.set_workers("out", workers)
    for other in ("out0", "out"):
        with pytest.raises(DataPlaneError, match="it cannot be beside 'out1'"):
            plane.set_workers("out1", {0: other})
