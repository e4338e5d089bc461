"""Real worker processes: they start confined, come back when they die, and leave nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dataplane.api import DataPlane, DataPlaneError
from dataplane.channel import Message
from dataplane.supervisor import FIRST_DELAY, LONGEST_DELAY, QUICK_DEATHS, Supervisor, _delay
from tests import signals
from tests.capabilities import without
from tests.dataplane.make import make_inbound, make_sa, memory_ports

BACK_WITHIN = 0.1  # seconds; the goal with a real machine to itself
PATIENCE = 10.0
CAP_KILL = 5  # linux/capability.h


def run(scenario: Callable[[DataPlane], Awaitable[None]], workers: int = 2) -> None:
    """Start a dataplane of memory ports, run the scenario, stop, and see that every process is gone."""

    async def whole() -> None:
        plane = DataPlane.create(ports=memory_ports(), workers=workers, kernel=False)
        pids: set[int] = set()
        await plane.start()
        try:
            pids |= {worker.pid for worker in plane.stats().workers}
            await scenario(plane)
            pids |= {worker.pid for worker in plane.stats().workers}
        finally:
            started = time.monotonic()
            await plane.stop()
            assert time.monotonic() - started < 2.0
        assert not [pid for pid in pids - {0} if alive(pid)]

    asyncio.run(whole())


def alive(pid: int) -> bool:
    """True for a process that runs; a zombie that nobody reaps does not."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


async def until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, what
        await asyncio.sleep(0.002)


def status(pid: int, field: str) -> str:
    return Path(f"/proc/{pid}/status").read_text().split(f"{field}:")[1].split("\n")[0].strip()


def core_limits(pid: int) -> list[str]:
    """Soft and hard limit of a core file's size."""
    return Path(f"/proc/{pid}/limits").read_text().split("Max core file size")[1].split()[:2]


def supervisor(plane: DataPlane) -> Supervisor:
    assert plane._supervisor is not None
    return plane._supervisor


def test_workers_are_confined_pinned_and_small() -> None:
    async def scenario(plane: DataPlane) -> None:
        specs = [make_sa(f"o{i}", spi=0x1000 + i) for i in range(500)]
        specs += [make_inbound(f"i{i}", spi=0x1000 + i) for i in range(500)]
        plane.add_sas(specs)
        cpus = sorted(os.sched_getaffinity(0))
        for worker in plane.stats().workers:
            for field in ("CapEff", "CapPrm", "CapInh", "CapBnd", "CapAmb"):
                assert int(status(worker.pid, field), 16) == 0, field
            assert status(worker.pid, "NoNewPrivs") == "1"
            assert "0" not in status(worker.pid, "Uid").split() + status(worker.pid, "Gid").split()
            assert status(worker.pid, "Groups") == ""
            assert status(worker.pid, "Name") == f"esplanade-w{worker.index}"
            assert os.sched_getaffinity(worker.pid) == {cpus[worker.index % len(cpus)]}
            assert int(status(worker.pid, "VmRSS").split()[0]) <= 120 * 1024
            assert core_limits(worker.pid) == ["0", "0"]
            assert worker.state == "ready"
            assert worker.lock_error == ""
        assert {port.active_mode for port in plane.stats().ports} == {"memory"}

    run(scenario)


def test_workers_take_the_cpus_in_the_order_given() -> None:
    """Worker k runs on the k-th CPU of the list, not of the machine."""
    cpus = sorted(os.sched_getaffinity(0), reverse=True)

    async def scenario() -> list[int | None]:
        plane = DataPlane.create(ports=memory_ports(), workers=len(cpus), kernel=False, cpus=cpus)
        await plane.start()
        try:
            workers = plane.stats().workers
            assert [os.sched_getaffinity(worker.pid) for worker in workers] == [{cpu} for cpu in cpus]
            return [worker.cpu for worker in workers]
        finally:
            await plane.stop()

    assert asyncio.run(scenario()) == cpus


def test_idle_workers_use_no_cpu() -> None:
    def ticks(pid: int) -> int:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    async def scenario(plane: DataPlane) -> None:
        pids = [worker.pid for worker in plane.stats().workers]
        before = [ticks(pid) for pid in pids]
        await asyncio.sleep(1.0)
        assert all(ticks(pid) - old <= 1 for pid, old in zip(pids, before, strict=True))

    run(scenario)


def test_killed_workers_come_back_at_once() -> None:
    async def scenario(plane: DataPlane) -> None:
        recoveries = []
        for index in (0, 1, 0):
            old = plane.stats().workers[index]
            signals.send(old.pid, signal.SIGKILL)
            await until(
                lambda i=index, o=old: (
                    plane.stats().workers[i].restarts == o.restarts + 1
                    and plane.stats().workers[i].state == "ready"
                ),
                "the worker did not come back",
            )
            new = plane.stats().workers[index]
            assert new.pid != old.pid
            recoveries.append(new.recovery_ms / 1000)
            await until(lambda i=index: plane.stats().workers[i].last_end == "killed by SIGKILL", "no cause")
        # On a machine that is busy with other things one of three may be late.
        assert sorted(recoveries)[1] < BACK_WITHIN, recoveries

    run(scenario)


def test_a_dead_workers_locks_and_generation_hold_up_nobody() -> None:
    async def scenario(plane: DataPlane) -> None:
        plane.add_sa(make_inbound())
        worker = plane.stats().workers[1]
        signals.send(worker.pid, signal.SIGSTOP)  # in mid-batch, as far as anybody can tell
        plane.tables.workers[1]["seen_generation"] = 1
        plane.tables.sas["replay"]["lock"][0] = 2
        plane.remove_sa("b")
        await asyncio.sleep(0.05)
        assert plane.tables.later.run() == 2
        signals.send(worker.pid, signal.SIGKILL)
        await plane.settle()
        assert not any(plane.tables.sas[0].tobytes())

    run(scenario)


def test_both_workers_and_the_nursery_may_die() -> None:
    async def scenario(plane: DataPlane) -> None:
        nursery = supervisor(plane)._nursery
        assert nursery is not None
        old = [worker.pid for worker in plane.stats().workers]
        nursery.kill()
        for pid in old:
            signals.send(pid, signal.SIGKILL)
        await until(
            lambda: all(
                worker.state == "ready" and worker.pid not in old for worker in plane.stats().workers
            ),
            "workers did not come back",
        )

    run(scenario)


def test_a_worker_is_ready_once_its_process_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may say so before the nursery has said which process it is."""
    told = Supervisor._on_spawned

    def late(self: Supervisor, message: Message, pidfd: int) -> None:
        asyncio.get_running_loop().call_later(0.1, told, self, message, pidfd)

    async def scenario(plane: DataPlane) -> None:
        signals.send(plane.stats().workers[0].pid, signal.SIGKILL)
        await until(lambda: plane.stats().workers[0].restarts == 1, "death not seen")
        await until(lambda: plane.stats().workers[0].state == "ready", "it did not come back")
        worker = plane.stats().workers[0]
        assert worker.pid > 0
        assert worker.recovery_ms >= 100

    monkeypatch.setattr(Supervisor, "_on_spawned", late)
    run(scenario)


def test_a_nursery_that_dies_before_it_tells_holds_up_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which process the worker is will never be known; it works, and ends with its channel."""
    told = Supervisor._on_spawned
    untold: list[int] = []

    def lost(self: Supervisor, message: Message, pidfd: int) -> None:
        untold.append(int(message["pid"]))
        os.close(pidfd)

    async def scenario(plane: DataPlane) -> None:
        monkeypatch.setattr(Supervisor, "_on_spawned", lost)
        signals.send(plane.stats().workers[0].pid, signal.SIGKILL)
        await until(
            lambda: supervisor(plane).workers[0].report is not None, "it did not say that it is ready"
        )
        assert plane.stats().workers[0].state == "starting"
        monkeypatch.setattr(Supervisor, "_on_spawned", told)
        nursery = supervisor(plane)._nursery
        assert nursery is not None
        nursery.kill()
        await until(lambda: plane.stats().workers[0].state == "ready", "it was held up")
        assert alive(untold[0])

    run(scenario)
    end = time.monotonic() + PATIENCE
    while alive(untold[0]):
        assert time.monotonic() < end, "it did not end with its channel"
        time.sleep(0.01)


def test_a_nursery_that_cannot_start_is_not_tried_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        plane = DataPlane.create(ports=memory_ports(), workers=1, kernel=False)
        with pytest.raises(DataPlaneError, match="exited with status 1 before it was ready"):
            await plane.start()
        await plane.stop()

    monkeypatch.setattr(sys, "path", ["/nowhere"])
    asyncio.run(scenario())


def test_quick_deaths_slow_down_and_never_end() -> None:
    assert [_delay(deaths) for deaths in range(QUICK_DEATHS + 1)] == [0.0] * (QUICK_DEATHS + 1)
    delays = [_delay(QUICK_DEATHS + more) for more in range(1, 12)]
    assert delays[0] == FIRST_DELAY
    assert delays == sorted(delays)
    assert delays[-1] == LONGEST_DELAY

    async def scenario(plane: DataPlane) -> None:
        for deaths in range(1, QUICK_DEATHS + 2):
            await until(lambda: plane.stats().workers[0].state == "ready", "not ready")
            signals.send(plane.stats().workers[0].pid, signal.SIGKILL)
            await until(lambda d=deaths: plane.stats().workers[0].restarts == d, "death not seen")
        assert plane.stats().workers[0].state == "waiting"
        await until(lambda: plane.stats().workers[0].state == "ready", "it was given up")

    run(scenario)


def test_a_worker_that_does_not_stop_is_killed() -> None:
    async def scenario(plane: DataPlane) -> None:
        signals.send(plane.stats().workers[0].pid, signal.SIGSTOP)

    run(scenario)


@pytest.mark.root
def test_a_worker_that_may_not_be_killed_is_named(caplog: pytest.LogCaptureFixture) -> None:
    """Root without CAP_KILL may not end what has another user; the rest of the stop is done all the same."""

    async def scenario() -> None:
        plane = DataPlane.create(ports=memory_ports(), workers=1, kernel=False)
        await plane.start()
        pid = plane.stats().workers[0].pid
        try:
            signals.send(pid, signal.SIGSTOP)
            with without(CAP_KILL):
                await plane.stop()
            assert alive(pid)
            assert f"run `kill -KILL {pid}` as root" in caplog.text and "without CAP_KILL" in caplog.text
            assert plane.tables.fd < 0
        finally:
            signals.send(pid, signal.SIGKILL)

    asyncio.run(scenario())


def test_signals_of_the_terminal_are_controls_affair() -> None:
    async def scenario(plane: DataPlane) -> None:
        worker = plane.stats().workers[0]
        signals.send(worker.pid, signal.SIGINT)
        signals.send(worker.pid, signal.SIGTERM)
        await asyncio.sleep(0.1)
        assert plane.stats().workers[0].pid == worker.pid
        assert plane.stats().workers[0].state == "ready"

    run(scenario)


def test_a_port_that_cannot_be_opened_fails_the_start() -> None:
    async def scenario() -> None:
        ports = [replace(memory_ports()[0], driver="tun", interface="x" * 20), memory_ports()[1]]
        plane = DataPlane.create(ports=ports, workers=1, kernel=False)
        with pytest.raises(DataPlaneError, match=r"port 'lan'.*has 20 bytes"):
            await plane.start()
        await plane.stop()

    asyncio.run(scenario())


def test_a_worker_that_cannot_start_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        plane = DataPlane.create(ports=memory_ports(), workers=2, kernel=False)
        with pytest.raises(DataPlaneError, match=r"worker [01]: ValueError: frame_count is 0"):
            await plane.start()
        await plane.stop()

    monkeypatch.setattr("dataplane.supervisor.frame_count", lambda specs: 0)
    asyncio.run(scenario())


CONTROL = """
import asyncio, sys
from dataplane.api import DataPlane
from tests.dataplane.make import memory_ports

async def main():
    plane = DataPlane.create(ports=memory_ports(), workers=2, kernel=False)
    await plane.start()
    nursery = plane._supervisor._nursery.pid
    print(nursery, *(worker.pid for worker in plane.stats().workers), flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


def test_workers_end_with_control() -> None:
    control = subprocess.Popen(
        [sys.executable, "-c", CONTROL],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert control.stdout is not None
    try:
        pids = [int(pid) for pid in control.stdout.readline().split()]
        assert len(pids) == 3
        assert all(alive(pid) for pid in pids)
    finally:
        control.kill()
        control.wait()
    end = time.monotonic() + PATIENCE
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < end, "orphans"
        time.sleep(0.005)
