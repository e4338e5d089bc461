"""Workers from control's side: start, watch, restart at once, stop. Runs on asyncio; no packet passes here.

    start    nursery -> one worker per index: assigned, ready (or a reason why not)
    watch    each worker's pidfd: the moment it ends its replay locks are released and the next one is forked
    stop     "stop" to all; who has not ended within the second is killed; the nursery goes last

Sequence numbers, windows and counters are in the shared tables, so the next worker of an index goes on where the
last one stood. A worker that dies again and again is restarted ever more slowly, never given up.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from dataplane.channel import Channel, ChannelClosedError, Message
from dataplane.confine import unprivileged_user
from dataplane.ports.drivers import Assigned, PreparedPort, frame_count, frame_size
from dataplane.tables import Tables
from dataplane.worker import Assignment
from ext.deal import team_size

log = logging.getLogger(__name__)

START_TIMEOUT = 20.0
STOP_TIMEOUT = 1.0
#: A worker that lives shorter than this died quickly; after QUICK_DEATHS in a row restarts wait.
QUICK_SECONDS = 5.0
QUICK_DEATHS = 3
FIRST_DELAY = 0.1
LONGEST_DELAY = 5.0


class WorkerFailedError(Exception):
    """A worker could not start; says which and why."""


@dataclass(kw_only=True)
class WorkerState:
    """What control knows of one index, over all the processes that have borne it."""

    index: int
    cpu: int | None
    state: str = "stopped"  # starting, ready, waiting (for its restart), stopped
    pid: int = 0
    restarts: int = 0
    quick_deaths: int = 0
    died_at: float = 0.0  # CLOCK_MONOTONIC; of the process before
    ready_at: float = 0.0
    recovery: float = 0.0  # seconds from the last death to ready again
    lock_error: str = ""
    frame_pages: str = ""  # see dataplane/pages.py
    last_end: str = ""  # how the process before ended
    ended_pid: int = 0  # whose ending the nursery has not told yet
    modes: dict[str, str] = field(default_factory=dict)
    channel: Channel | None = None
    pidfd: int = -1
    request: int = 0
    report: Message | None = None  # what it said when it was ready, until its process is known
    restart: asyncio.TimerHandle | None = None


def frames_memory(size: int) -> int:
    """A memfd of `size` bytes, a multiple of 2 MiB: reserved huge pages where there are enough, else any memory."""
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    for huge in (os.MFD_HUGETLB | os.MFD_HUGE_2MB, 0):
        fd = -1
        try:
            fd = os.memfd_create("esplanade-frames", flags | huge)
            os.ftruncate(fd, size)
            if huge:
                os.posix_fallocate(fd, 0, size)  # now or never: at the first touch it would be a SIGBUS
        except OSError:
            if fd >= 0:
                os.close(fd)
            if not huge:
                raise
            continue
        break
    return fd


class Supervisor:
    """The workers of one dataplane. `ports` are prepared; `kernel` gives each worker a way to the kernel.

    With `pin` worker k is tied to the k-th of `cpus`, in their order and in turn; () takes what we may use. With `deal`
    several workers open each other's batches (ext/deal.pyx), with `spin` they look on before they sleep (ext/idle.pyx).
    """

    def __init__(
        self,
        *,
        tables: Tables,
        engine: str,
        ports: Sequence[PreparedPort],
        workers: int,
        kernel: bool = True,
        pin: bool = True,
        cpus: Sequence[int] = (),
        deal: bool = True,
        spin: bool = True,
    ) -> None:
        self._tables = tables
        self._ports = ports
        self._stopping = False
        self._nursery: subprocess.Popen[bytes] | None = None
        self._nursery_channel: Channel | None = None
        self._nursery_up = False
        self._requests = 0
        self._untold = 0  # the last request whose nursery has died: nothing more will be told of it
        self._ready: asyncio.Event = asyncio.Event()
        self._failure: str | None = None
        specs = [port.spec for port in ports]
        uid, gid = unprivileged_user()
        self._assignment = Assignment(
            index=0,
            workers=workers,
            cpu=None,
            engine=engine,
            frame_size=frame_size(specs),
            frame_count=frame_count(specs),
            uid=uid,
            gid=gid,
            kernel=kernel,
            spin=spin,
            ports=tuple((port.spec, port.mode, port.fds) for port in ports),
            tables_fd=tables.fd,
        )
        if deal and workers > 1:
            self._make_team()
        cpus = cpus or sorted(os.sched_getaffinity(0))
        self.workers = [
            WorkerState(index=index, cpu=cpus[index % len(cpus)] if pin else None) for index in range(workers)
        ]

    def _make_team(self) -> None:
        """Memory for the frames of all workers, and what each is woken by. It outlives every one of them."""
        task = self._assignment
        fd = frames_memory(team_size(task.workers, task.frame_count, task.frame_size))
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        wake_fds = tuple(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(task.workers))
        self._assignment = replace(task, team_fd=fd, wake_fds=wake_fds)

    def _close_team(self) -> None:
        task = self._assignment
        if task.team_fd >= 0:
            for fd in (task.team_fd, *task.wake_fds):
                os.close(fd)
        self._assignment = replace(task, team_fd=-1, wake_fds=())

    # --- start ---------------------------------------------------------------------------------------

    async def start(self, seconds: float = START_TIMEOUT) -> None:
        """Fork every worker and wait until all are ready; WorkerFailedError when one cannot be."""
        self._start_nursery()
        for worker in self.workers:
            self._spawn(worker)
        try:
            async with asyncio.timeout(seconds):
                await self._ready.wait()
        except TimeoutError:
            self._failure = f"workers are not ready after {seconds} s: {self._states()}"
        if self._failure is not None:
            await self.stop()
            raise WorkerFailedError(self._failure)

    def _states(self) -> str:
        return ", ".join(f"{worker.index} {worker.state}" for worker in self.workers)

    def _start_nursery(self) -> None:
        """A fresh interpreter, so that no key or socket of control's is in any worker."""
        if self._stopping:
            return
        self._nursery_up = False
        mine, theirs = Channel.pair()
        code = (
            f"import sys; sys.path[:] = {json.dumps(sys.path)}; "
            f"from dataplane.nursery import main; main({theirs.fileno()})"
        )
        self._nursery = subprocess.Popen(
            [sys.executable, "-c", code], pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL
        )
        theirs.close()
        mine.set_blocking(False)
        self._nursery_channel = mine
        asyncio.get_running_loop().add_reader(mine.fileno(), self._on_nursery)

    def _spawn(self, worker: WorkerState) -> None:
        """Ask for a process and send it its assignment at once: it waits in the socket."""
        assert self._nursery_channel is not None
        worker.restart = None
        self._requests += 1
        mine, theirs = Channel.pair()
        assignment = replace(
            self._assignment, index=worker.index, cpu=worker.cpu, ports=self._known_modes(worker)
        )
        message, descriptors = assignment.to_message()
        mine.send(message, descriptors)
        # Then the worker's channel ends, too, and we come again.
        with contextlib.suppress(ChannelClosedError):
            self._nursery_channel.send({"type": "spawn", "request": self._requests}, [theirs.fileno()])
        theirs.close()
        mine.set_blocking(False)
        worker.channel = mine
        worker.request = self._requests
        worker.report = None
        worker.state = "starting"
        asyncio.get_running_loop().add_reader(mine.fileno(), self._on_worker, worker)

    def _known_modes(self, worker: WorkerState) -> tuple[Assigned, ...]:
        """The ports, without trying zero-copy again where this index's last process could not have it."""
        return tuple(
            (
                replace(spec, zero_copy="off")
                if spec.zero_copy == "auto" and worker.modes.get(spec.name, "").endswith("/copy")
                else spec,
                mode,
                fds,
            )
            for spec, mode, fds in self._assignment.ports
        )

    # --- watch ---------------------------------------------------------------------------------------

    def _on_nursery(self) -> None:
        """A worker was forked, or has ended; or the nursery itself has."""
        assert self._nursery_channel is not None
        try:
            while (received := self._nursery_channel.receive()) is not None:
                message, descriptors = received
                if message["type"] == "nursery":
                    self._nursery_up = True
                elif message["type"] == "spawned":
                    self._on_spawned(message, descriptors[0])
                elif message["type"] == "exited":
                    self._on_exited(int(message["pid"]), int(message["status"]))
        except ChannelClosedError:
            self._on_nursery_death()

    def _on_nursery_death(self) -> None:
        """Workers live on. Those that were being forked see their channels end and are asked for again."""
        assert self._nursery_channel is not None
        asyncio.get_running_loop().remove_reader(self._nursery_channel.fileno())
        self._nursery_channel.close()
        assert self._nursery is not None
        self._nursery.kill()
        how = _ending(self._nursery.wait())
        if self._stopping:
            return
        self._untold = self._requests
        for worker in self.workers:
            self._when_known(worker)
        if not self._nursery_up and not self._ready.is_set():
            self._failure = f"the process that forks workers {how} before it was ready; its output says why"
            self._ready.set()
            return
        log.error("the process that forks workers %s; starting another", how)
        delay = 0.0 if self._nursery_up else LONGEST_DELAY
        asyncio.get_running_loop().call_later(delay, self._start_nursery)

    def _on_spawned(self, message: Message, pidfd: int) -> None:
        for worker in self.workers:
            if worker.request == message["request"] and worker.channel is not None:
                worker.pid = int(message["pid"])
                worker.pidfd = pidfd
                asyncio.get_running_loop().add_reader(pidfd, self._on_death, worker)
                self._when_known(worker)
                return
        os.close(pidfd)

    def _on_exited(self, pid: int, status: int) -> None:
        """The nursery tells how a process ended: for the log and for `status`."""
        how = _ending(os.waitstatus_to_exitcode(status))
        for worker in self.workers:
            if worker.ended_pid == pid:
                worker.last_end = how
        if not self._stopping or status != 0:
            log.log(logging.INFO if self._stopping else logging.ERROR, "worker process %d: %s", pid, how)

    def _on_worker(self, worker: WorkerState) -> None:
        """What a worker says: ready, failed, or nothing any more."""
        assert worker.channel is not None
        try:
            while worker.channel is not None and (received := worker.channel.receive()) is not None:
                self._on_message(worker, received[0])
        except (ChannelClosedError, ValueError):
            if worker.pidfd < 0:
                self._on_death(worker)  # it was never forked, or the nursery died before telling
            elif worker.channel is not None:
                # Its process is about to end; the pidfd will say so.
                asyncio.get_running_loop().remove_reader(worker.channel.fileno())

    def _on_message(self, worker: WorkerState, message: Message) -> None:
        if message["type"] == "ready":
            worker.report = message
            self._when_known(worker)
        elif message["type"] == "failed":
            log.error("worker %d: %s", worker.index, message["error"])
            if not self._ready.is_set():
                self._failure = f"worker {worker.index}: {message['error']}"
                self._ready.set()

    def _when_known(self, worker: WorkerState) -> None:
        """It is ready once it has said so and the nursery has told which process it is, in whatever order they come."""
        if worker.report is None or (worker.pidfd < 0 and worker.request > self._untold):
            return
        report, worker.report = worker.report, None
        now = time.monotonic()
        worker.state = "ready"
        worker.ready_at = now
        worker.modes = dict(report["modes"])
        worker.lock_error = str(report["lock_error"])
        worker.frame_pages = str(report["frame_pages"])
        if worker.died_at:
            worker.recovery = now - worker.died_at
            log.warning("worker %d is back after %.0f ms", worker.index, worker.recovery * 1000)
        if all(each.state == "ready" for each in self.workers):
            self._ready.set()

    def _on_death(self, worker: WorkerState) -> None:
        """The process is gone: nothing of it may hold up the others, and another one takes its place."""
        loop = asyncio.get_running_loop()
        now = time.monotonic()
        if worker.channel is not None:
            loop.remove_reader(worker.channel.fileno())
            worker.channel.close()
            worker.channel = None
        if worker.pidfd >= 0:
            loop.remove_reader(worker.pidfd)
            os.close(worker.pidfd)
            worker.pidfd = -1
        released = self._tables.view.worker_gone(worker.index)
        was_ready = worker.state == "ready"
        worker.state = "stopped"
        worker.last_end = "ended, cause unknown"
        pid = worker.ended_pid = worker.pid
        worker.pid = 0
        worker.report = None
        if self._stopping or (self._failure is not None):
            return
        quick = not was_ready or now - worker.ready_at < QUICK_SECONDS
        worker.quick_deaths = worker.quick_deaths + 1 if quick else 0
        worker.died_at = now
        worker.restarts += 1
        delay = _delay(worker.quick_deaths)
        log.error(
            "worker %d (process %d) died; %d replay windows released; restart %s",
            worker.index,
            pid,
            released,
            f"in {delay:.1f} s: it died {worker.quick_deaths} times in a row" if delay else "now",
        )
        if delay:
            worker.state = "waiting"
            worker.restart = loop.call_later(delay, self._spawn, worker)
        else:
            self._spawn(worker)

    # --- stop ----------------------------------------------------------------------------------------

    async def stop(self, seconds: float = STOP_TIMEOUT) -> bool:
        """End every worker within `seconds`, killing who does not go; nothing of ours is left.

        False when the kernel could not end one even then: it may still run, and may still use its numbers.
        """
        self._stopping = True
        for worker in self.workers:
            if worker.restart is not None:
                worker.restart.cancel()
            if worker.channel is not None:
                with contextlib.suppress(ChannelClosedError):
                    worker.channel.send({"type": "stop"})
        if not await self._gone(seconds * 0.8):
            for worker in self.workers:
                if worker.pidfd >= 0:
                    log.error("worker %d (process %d) does not stop; killing it", worker.index, worker.pid)
                    _kill(worker)
            await self._gone(seconds)
        all_gone = all(worker.pidfd < 0 for worker in self.workers)
        for worker in self.workers:
            if worker.channel is not None:
                self._on_death(worker)
        await self._stop_nursery(seconds)
        self._close_team()
        return all_gone

    async def _gone(self, seconds: float) -> bool:
        """Whether every worker ends within `seconds`."""
        end = time.monotonic() + seconds
        while any(worker.pidfd >= 0 or worker.state == "starting" for worker in self.workers):
            if time.monotonic() > end:
                return False
            await asyncio.sleep(0.002)
        return True

    async def _stop_nursery(self, seconds: float) -> None:
        if self._nursery is None or self._nursery_channel is None:
            return
        await asyncio.sleep(0)  # what it still has to tell of ended workers
        with contextlib.suppress(ValueError, OSError):
            asyncio.get_running_loop().remove_reader(self._nursery_channel.fileno())
        self._nursery_channel.close()
        end = time.monotonic() + seconds
        while self._nursery.poll() is None:
            if time.monotonic() > end:
                self._nursery.kill()
                self._nursery.wait()
                break
            await asyncio.sleep(0.002)
        self._nursery = None


def _kill(worker: WorkerState) -> None:
    """SIGKILL; a kernel that refuses it is no reason to leave the rest of a stop undone."""
    try:
        signal.pidfd_send_signal(worker.pidfd, signal.SIGKILL)
    except ProcessLookupError:
        pass
    except PermissionError:
        log.error(
            "worker %d (process %d) has a user of its own and may not be ended from here without CAP_KILL: "
            "run `kill -KILL %d` as root, and give the gateway that capability",
            worker.index,
            worker.pid,
            worker.pid,
        )


def _delay(quick_deaths: int) -> float:
    """Seconds to wait before a restart: none at first, then doubling up to a bound."""
    if quick_deaths <= QUICK_DEATHS:
        return 0.0
    return float(min(FIRST_DELAY * 2 ** (quick_deaths - QUICK_DEATHS - 1), LONGEST_DELAY))


def _ending(code: int) -> str:
    """An exit status in words."""
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        return f"killed by {name}"
    return f"exited with status {code}"
