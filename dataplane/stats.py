"""What the dataplane has counted: frozen snapshots, made from the shared counters on request.

Workers write their own counters without locks; a snapshot reads each number whole, but not all of them in one
instant. A worker's counters belong to its index: they go on over the processes that bear it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dataplane import layout
from dataplane.model import Address, Direction, PortSpec, SaSpec
from dataplane.supervisor import WorkerState
from dataplane.tables import Tables
from ext.counters import DROP_NAMES, VERDICT_NAMES

_SA_DROPS = [(number, name) for number, name in sorted(DROP_NAMES.items()) if number < layout.SA_VERDICTS]
_DROPS = sorted(DROP_NAMES.items())
_TX_ERROR, _KERNEL = (
    next(number for number, name in _DROPS if name == each) for each in ("tx_error", "kernel")
)
_OTHERS = [(number, name) for number, name in sorted(VERDICT_NAMES.items()) if number not in DROP_NAMES]


@dataclass(frozen=True, kw_only=True)
class WorkerStats:
    """One worker index and the process that bears it now."""

    index: int
    cpu: int | None  # None: not pinned
    pid: int  # 0: none at present
    state: str  # starting, ready, waiting, stopped
    restarts: int
    last_end: str  # how the process before ended
    recovery_ms: float  # from the last death to ready again; 0 when it never died
    lock_error: str  # why its memory is not locked; "" when it is
    frame_pages: str  # what its packets lie on: reserved or transparent huge pages, or small ones
    loops: int  # rounds of the present process
    sleeps: int  # waits for packets
    dealt: int  # batches offered to other workers, because this one was full
    helped: int  # batches of other workers that this one opened
    passed: int  # packets that left by an adjacency
    dropped: int


@dataclass(frozen=True, kw_only=True)
class PortStats:
    """One port, summed over the workers."""

    name: str
    role: str
    driver: str
    interface: str
    active_mode: str  # what the driver really uses; differing workers are joined by ", "
    rx_packets: int
    rx_bytes: int  # of IP packets
    tx_packets: int
    tx_bytes: int
    rx_syscalls: int
    tx_syscalls: int
    tx_full: int  # times the ring or socket took fewer than it was offered
    tx_errors: int  # packets that the kernel refused after the port took them


@dataclass(frozen=True, kw_only=True)
class SaStats:
    """One SA, summed over the workers."""

    name: str
    direction: Direction
    spi: int
    local: Address
    remote: Address
    packets: int  # passed
    bytes: int  # of inner packets passed
    last_used: int  # CLOCK_MONOTONIC nanoseconds of the last batch; 0: never
    sequence: int  # outbound: the next number; inbound: the highest accepted
    sequence_limit: int  # outbound: first number not reserved yet; inbound: 0
    replay_window: int  # numbers; 0: off, or outbound
    inner_mtu: int  # outbound: largest inner packet, bytes
    drops: dict[str, int]  # every reason that belongs to one SA


@dataclass(frozen=True, kw_only=True)
class SaTraffic:
    """What one SA has passed, summed over the workers."""

    packets: int
    bytes: int  # of inner packets
    last_used: int  # CLOCK_MONOTONIC nanoseconds of the last batch; 0: never
    number: int = 0  # outbound: the next sequence number; inbound: the highest accepted


@dataclass(frozen=True, kw_only=True)
class DataPlaneStats:
    """A snapshot of everything."""

    engine: str
    workers: tuple[WorkerStats, ...]
    ports: tuple[PortStats, ...]
    sas: tuple[SaStats, ...]
    drops: dict[str, int]  # every drop by name, summed over the workers
    verdicts: dict[str, int]  # what became of the others: pass, to_kernel, bypassed, icmp_sent
    policies: int
    tables_locked: bool  # the shared segment is kept out of swap


def worker_stats(tables: Tables, states: Iterable[WorkerState]) -> tuple[WorkerStats, ...]:
    """Of every index."""
    found = []
    by_ports, to_kernel = _refused(tables.workers)
    for state in states:
        counters = tables.workers[state.index]
        verdicts = counters["verdicts"]
        found.append(
            WorkerStats(
                index=state.index,
                cpu=state.cpu,
                pid=state.pid,
                state=state.state,
                restarts=state.restarts,
                last_end=state.last_end,
                recovery_ms=round(state.recovery * 1000, 1),
                lock_error=state.lock_error,
                frame_pages=state.frame_pages,
                loops=int(counters["loops"]),
                sleeps=int(counters["sleeps"]),
                dealt=int(counters["dealt"]),
                helped=int(counters["helped"]),
                passed=int(verdicts[0]),
                dropped=sum(int(verdicts[number]) for number, _ in _DROPS)
                + int(by_ports[state.index] + to_kernel[state.index]),
            )
        )
    return tuple(found)


def port_stats(
    tables: Tables, specs: Sequence[PortSpec], states: Sequence[WorkerState]
) -> tuple[PortStats, ...]:
    """Of every port that was configured, in the workers' order."""
    found = []
    for index, spec in enumerate(specs):
        if spec.helper:
            continue
        counters = tables.workers["ports"][:, index]
        modes = dict.fromkeys(state.modes[spec.name] for state in states if spec.name in state.modes)
        sums = {name: int(counters[name].sum()) for name in layout.PORT_COUNTERS.names or ()}
        found.append(
            PortStats(
                name=spec.name,
                role=spec.role.value,
                driver=spec.driver,
                interface=spec.interface,
                active_mode=", ".join(modes),
                **sums,
            )
        )
    return tuple(found)


def sa_stats(tables: Tables, sas: Sequence[tuple[SaSpec, int]]) -> tuple[SaStats, ...]:
    """Of SAs given as (specification, index); one pass over the arrays for all of them."""
    if not sas:
        return ()
    indices = np.array([index for _, index in sas])
    counters = tables.sa_counters[:, indices]
    packets = counters["packets"].sum(axis=0).tolist()
    octets = counters["bytes"].sum(axis=0).tolist()
    last_used = counters["last_used"].max(axis=0).tolist()
    drops = counters["drops"].sum(axis=0)[:, [number for number, _ in _SA_DROPS]].tolist()
    names = [name for _, name in _SA_DROPS]
    sequences = tables.sas["sequence"]
    following, limits = sequences["next"][indices].tolist(), sequences["limit"][indices].tolist()
    tops = tables.sas["replay"]["top"][indices].tolist()
    mtus = tables.sas["hot"]["inner_mtu"][indices].tolist()
    found = []
    for at, (spec, _) in enumerate(sas):
        outbound = spec.direction is Direction.OUT
        found.append(
            SaStats(
                name=spec.name,
                direction=spec.direction,
                spi=spec.spi,
                local=spec.local,
                remote=spec.remote,
                packets=packets[at],
                bytes=octets[at],
                last_used=last_used[at],
                # The counter runs past the limit by what was refused; those numbers were never sent.
                sequence=min(following[at], limits[at]) if outbound else tops[at],
                sequence_limit=limits[at] if outbound else 0,
                replay_window=0 if outbound else spec.replay_window,
                inner_mtu=mtus[at] if outbound else 0,
                drops=dict(zip(names, drops[at], strict=True)),
            )
        )
    return tuple(found)


def sa_traffic(tables: Tables, indices: Sequence[int]) -> list[SaTraffic]:
    """Of SAs given by their indices."""
    if not indices:
        return []
    at = np.array(indices)
    counters = tables.sa_counters
    packets = counters["packets"][:, at].sum(axis=0).tolist()
    octets = counters["bytes"][:, at].sum(axis=0).tolist()
    last_used = counters["last_used"][:, at].max(axis=0).tolist()
    # Of the two, the one that is not of an SA's direction is zero.
    numbers = np.maximum(tables.sas["sequence"]["next"][at], tables.sas["replay"]["top"][at]).tolist()
    return [
        SaTraffic(
            packets=packets[place], bytes=octets[place], last_used=last_used[place], number=numbers[place]
        )
        for place in range(len(indices))
    ]


def verdict_sums(tables: Tables) -> tuple[dict[str, int], dict[str, int]]:
    """(drops, other verdicts) by name, summed over the workers."""
    sums = tables.workers["verdicts"].sum(axis=0)
    refused, refused_to_kernel = _refused(tables.workers)
    sums[_TX_ERROR] += refused.sum()
    sums[_KERNEL] += refused_to_kernel.sum()
    counts = sums.tolist()
    return {name: counts[number] for number, name in _DROPS}, {
        name: counts[number] for number, name in _OTHERS
    }


def _refused(workers: layout.Records) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """Per worker the packets that the kernel refused on the ports that took them, and on the way to the kernel.

    Those count as passed, too: when the kernel says no they have left the worker's hands.
    """
    errors = workers["ports"]["tx_errors"]
    return errors[:, :-1].sum(axis=1), errors[:, -1]
