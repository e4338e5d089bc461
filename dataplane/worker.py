"""One worker's life: assigned, pinned, ports open, confined, then the nogil loop until control says stop or is gone.

    1 read the assignment   channel: index, CPU, ports, engine; descriptors of the tables and the ports
    2 open                  tables, engine, frame pool, queue `index` of every port
    3 confine               no core dumps, memory locked, no longer root, every capability dropped
    4 report "ready"        with what each port's mode really is
    5 loop                  ext.loop, no Python; the channel is its stop descriptor
    6 close                 nothing of a worker outlives it

Keys are read from the tables only; nothing is ever received but the assignment and "stop". Imported by the
nursery, so no asyncio and no numpy here: they would be in every worker's memory.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from dataplane import confine
from dataplane.channel import Channel, ChannelClosedError, Message
from dataplane.engine import open_engine
from dataplane.pages import kind_of_pages
from dataplane.ports import drivers
from ext.deal import Team
from ext.loop import Loop
from ext.packet import Pool, PortHandle
from ext.sa import TablesView


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """What a worker is told to be."""

    index: int
    workers: int
    cpu: int | None  # None: wherever the scheduler likes
    engine: str
    frame_size: int
    frame_count: int
    uid: int  # what the worker becomes once everything is open
    gid: int
    kernel: bool  # open a raw socket for what has no adjacency
    spin: bool  # look on for a while before sleep
    ports: tuple[drivers.Assigned, ...]
    tables_fd: int
    team_fd: int = -1  # memory that the workers share to open each other's batches; -1: they do not
    wake_fds: tuple[int, ...] = ()  # one eventfd per worker, with a team

    def to_message(self) -> tuple[Message, list[int]]:
        """The message and the descriptors that go with it."""
        descriptors = [self.tables_fd]
        ports: list[dict[str, Any]] = []
        for spec, mode, fds in self.ports:
            places = {}
            for name, fd in fds.items():
                places[name] = len(descriptors)
                descriptors.append(fd)
            ports.append({"spec": drivers.port_to_json(spec), "mode": mode, "fds": places})
        team = len(descriptors) if self.team_fd >= 0 else None
        if team is not None:
            descriptors += [self.team_fd, *self.wake_fds]
        message: Message = {
            "type": "assign",
            "index": self.index,
            "workers": self.workers,
            "cpu": self.cpu,
            "engine": self.engine,
            "frame_size": self.frame_size,
            "frame_count": self.frame_count,
            "uid": self.uid,
            "gid": self.gid,
            "kernel": self.kernel,
            "spin": self.spin,
            "ports": ports,
            "team": team,
        }
        return message, descriptors

    @classmethod
    def from_message(cls, message: Message, descriptors: list[int]) -> Assignment:
        """The reverse of `to_message`, in the worker."""
        fields = {name: value for name, value in message.items() if name not in ("type", "ports", "team")}
        team = message["team"]
        ports = tuple(
            (
                drivers.port_from_json(port["spec"]),
                port["mode"],
                {name: descriptors[place] for name, place in port["fds"].items()},
            )
            for port in message["ports"]
        )
        if team is not None:
            fields.update(team_fd=descriptors[team], wake_fds=tuple(descriptors[team + 1 :]))
        return cls(**fields, ports=ports, tables_fd=descriptors[0])


def preload() -> None:
    """What the nursery imports once for all workers."""
    drivers.preload()
    for engine in ("ext.crypto_mb", "ext.crypto_evp"):
        with contextlib.suppress(ImportError):  # open_engine says so, if one is asked for
            import_module(engine)


def main(channel: Channel) -> int:
    """A worker from its assignment to its end; the exit status. Errors before "ready" are told to control."""
    started = time.monotonic()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        received = channel.receive()
        if received is None:
            return 1
        assignment = Assignment.from_message(*received)
        try:
            return _live(channel, assignment, received[1], started)
        except (OSError, RuntimeError, ValueError, MemoryError) as error:
            channel.send({"type": "failed", "error": f"{type(error).__name__}: {error}"})
            return 1
    except ChannelClosedError:
        return 0  # control is gone, and so are we


def _live(channel: Channel, assignment: Assignment, descriptors: list[int], started: float) -> int:
    """Steps 2 to 6."""
    confine.set_name(f"esplanade-w{assignment.index}")
    if assignment.cpu is not None:
        os.sched_setaffinity(0, {assignment.cpu})
    confine.no_core_dumps()
    view = TablesView(assignment.tables_fd, assignment.index)
    engine = open_engine(assignment.engine)
    team = _join_team(assignment)
    pool = team.pool if team is not None else Pool(assignment.frame_count, assignment.frame_size)
    ports = drivers.open_ports(assignment.ports, assignment.index, assignment.workers, pool)
    kernel = drivers.open_kernel(pool) if assignment.kernel else None
    for fd in descriptors:
        os.close(fd)
    pages = kind_of_pages(pool.address, pool.frame_count * pool.frame_size)
    lock_error = confine.lock_memory()
    confine.drop_privileges(assignment.uid, assignment.gid)
    view.worker_enter(os.getpid())
    loop = Loop(view, engine, ports, kernel, channel.fileno(), team, spin=assignment.spin)
    channel.send(
        {
            "type": "ready",
            "modes": {port.name: port.mode for port in ports},
            "lock_error": lock_error or view.lock_error,
            "frame_pages": pages,
            "seconds": time.monotonic() - started,
        }
    )
    try:
        loop.run()
    finally:
        del loop
        _close(ports, kernel)
    return 0


def _join_team(assignment: Assignment) -> Team | None:
    """This worker's part of the memory that all share, where they do."""
    if assignment.team_fd < 0:
        return None
    return Team(
        assignment.team_fd,
        assignment.index,
        assignment.workers,
        assignment.wake_fds,
        frame_count=assignment.frame_count,
        frame_size=assignment.frame_size,
    )


def _close(ports: list[PortHandle], kernel: PortHandle | None) -> None:
    """Let sockets and queues go in order; the kernel would do it too, a little later."""
    for port in [*ports, *([kernel] if kernel is not None else [])]:
        close = getattr(port, "close", None)
        if close is not None:
            with contextlib.suppress(OSError):
                close()
