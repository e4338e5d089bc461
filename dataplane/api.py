"""The dataplane as control sees it: SAs, policies, routes, workers and what they counted.

Beside this, control imports the specifications in model.py, and for commands without workers offline.py and probe.py.

    dataplane = DataPlane.create(ports=..., workers=2, state_dir=...)
    dataplane.add_sa(...); await dataplane.set_policies([...]); await dataplane.start()
    ... traffic flows, tables change ...
    await dataplane.stop()

Everything may change while traffic flows. Changes are visible to the workers when a call returns; what was
replaced is freed, and its keys zeroed, when no worker can hold it any more. Calls that must wait for that are
`async`. One thread only. Whatever is refused is a DataPlaneError that names what was got and what was wanted,
and leaves everything as it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

from dataplane.book import ETHERNET_DRIVERS, Book, DataPlaneError, named
from dataplane.confine import no_core_dumps
from dataplane.engine import open_engine
from dataplane.layout import PORTS_MAX
from dataplane.model import Address, Network, PortSpec
from dataplane.ports.drivers import DRIVERS, PreparedPort, prepare
from dataplane.reserve import Reserve, ReserveError
from dataplane.sequence import SequenceKeeper
from dataplane.stats import (
    DataPlaneStats,
    PortStats,
    SaStats,
    SaTraffic,
    WorkerStats,
    port_stats,
    sa_stats,
    verdict_sums,
    worker_stats,
)
from dataplane.supervisor import Supervisor, WorkerFailedError
from dataplane.tables import Limits, Tables

__all__ = [
    "DataPlane",
    "DataPlaneError",
    "DataPlaneStats",
    "Limits",
    "PortStats",
    "SaStats",
    "SaTraffic",
    "WorkerStats",
    "no_core_dumps",
]

log = logging.getLogger(__name__)

TICK_SECONDS = 0.1  # between two looks at what wants to be renewed or freed


class DataPlane(Book):
    """Workers, tables and ports of one gateway; make it with `create`."""

    def __init__(
        self,
        *,
        tables: Tables,
        keeper: SequenceKeeper,
        ports: Sequence[PortSpec],
        workers: int,
        kernel: bool,
        pin: bool,
        cpus: Sequence[int],
        deal: bool,
        spin: bool,
    ) -> None:
        super().__init__(tables=tables, keeper=keeper, ports=ports)
        self._workers = workers
        self._kernel = kernel
        self._pin = pin
        self._cpus = tuple(cpus)
        self._deal = deal
        self._spin = spin
        self._locals: list[Address] = []
        self._prepared: list[PreparedPort] = []
        self._supervisor: Supervisor | None = None
        self._tick: asyncio.Task[None] | None = None

    @classmethod
    def create(
        cls,
        *,
        ports: Sequence[PortSpec] = (),
        workers: int = 1,
        engine: str = "auto",
        state_dir: Path | None = None,
        limits: Limits | None = None,
        kernel: bool = True,
        pin: bool = True,
        cpus: Sequence[int] = (),
        deal: bool = True,
        spin: bool = True,
    ) -> Self:
        """Tables without workers yet. `engine` is auto, ipsec-mb or openssl.

        `state_dir` is where numbers of manual SAs are reserved; without it manual AEAD SAs are refused.
        `kernel` gives workers a raw socket for what has no adjacency; `pin` ties worker k to the k-th of
        `cpus`, or of those that this process may use; with `deal` a worker whose core is full lets others open its
        inbound packets; with `spin` workers look on for a while before they sleep, where that pays (ext/idle.pyx).
        """
        _check_ports(ports)
        if workers < 1:
            raise DataPlaneError(f"{workers} workers; a gateway has at least 1")
        with named("tables"):
            try:
                handle = open_engine(engine)
            except RuntimeError as error:
                raise DataPlaneError(str(error)) from error
            tables = Tables(engine=handle, workers=workers, limits=limits)
        reserve, problem = None, "none is set"
        if state_dir is not None:
            try:
                reserve = Reserve(state_dir)
            except ReserveError as error:
                # Only whoever adds a manual SA needs to hear of it.
                problem = str(error)
        keeper = SequenceKeeper(tables, reserve, problem)
        return cls(
            tables=tables,
            keeper=keeper,
            ports=ports,
            workers=workers,
            kernel=kernel,
            pin=pin,
            cpus=cpus,
            deal=deal,
            spin=spin,
        )

    # --- life ----------------------------------------------------------------------------------------

    def open_control_sockets(self, port: int = 4500) -> dict[Address, int]:
        """Control's own socket in each SO_REUSEPORT group of the `udp` port, by bound address: IKE arrives there.

        Before `start` only. Empty without such a port: then nobody shares the kernel's sockets. The caller owns them.
        ESP in UDP goes between the ports of IKE, so the `udp` port must be at `port`.
        """
        if self._supervisor is not None or self._prepared:
            raise DataPlaneError("control's sockets must be opened before the workers'")
        from dataplane.ports import udp

        opened: dict[Address, int] = {}
        for index, spec in enumerate(self._specs):
            if spec.driver != "udp" or (spec.helper and spec.encap_port != port):
                continue
            if spec.encap_port != port:
                raise DataPlaneError(
                    f"port {spec.name!r}: encap_port is {spec.encap_port}; with IKE it is IKE's NAT port, {port}"
                )
            with named(f"port {spec.name!r}"):
                opened.update(udp.open_control(spec, self._workers))
            shared = replace(spec, options={**spec.options, "control": "on"})
            self._specs = (*self._specs[:index], shared, *self._specs[index + 1 :])
        return opened

    async def start(self) -> None:
        """Prepare the ports and start the workers; returns when every one is ready."""
        if self._supervisor is not None:
            raise DataPlaneError("the dataplane has been started already")
        if not self._specs:
            raise DataPlaneError("the dataplane has no ports")
        try:
            for spec in self._specs:
                with named(f"port {spec.name!r}"):
                    self._prepared.append(
                        prepare(spec, workers=self._workers, addresses=self._locals, remotes=self._remotes)
                    )
            supervisor = Supervisor(
                tables=self.tables,
                engine=self.tables.engine.name,
                ports=self._prepared,
                workers=self._workers,
                kernel=self._kernel,
                pin=self._pin,
                cpus=self._cpus,
                deal=self._deal,
                spin=self._spin,
            )
            try:
                await supervisor.start()
            except WorkerFailedError as error:
                raise DataPlaneError(str(error)) from error
        except BaseException:
            self._close_ports()
            raise
        self._supervisor = supervisor
        self._tick = asyncio.create_task(self._run_tick(), name="dataplane tick")

    async def stop(self, *, leave: bool = False) -> None:
        """End the workers within a second, keep where manual SAs stand, zero every key, let all go.

        With `leave` the interfaces go on dropping what was steered, until the next start takes them over.
        """
        if self._tick is not None:
            self._tick.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._tick
            self._tick = None
        workers_gone = True
        if self._supervisor is not None:
            workers_gone = await self._supervisor.stop()
            self._supervisor = None
        self._close(workers_gone, leave)

    def close(self) -> None:
        """As `stop`, where no worker was ever started."""
        self._close(workers_gone=True)

    def _close(self, workers_gone: bool, leave: bool = False) -> None:
        self._close_ports(leave)
        if self.tables.fd < 0:
            return
        if workers_gone:
            self.tables.later.run()
        else:
            log.error("a worker cannot be ended: its numbers stay reserved and its keys stay in memory")
        self._keeper.close(workers_gone)
        self.tables.close(wipe=workers_gone)

    def _close_ports(self, leave: bool = False) -> None:
        for port in self._prepared:
            with contextlib.suppress(OSError):
                (port.leave if leave and port.leave is not None else port.close)()
        self._prepared = []

    async def _run_tick(self) -> None:
        """Ten times a second: raise sequence limits, free what nobody holds any more."""
        while True:
            await asyncio.sleep(TICK_SECONDS)
            try:
                self._keeper.renew()
                self.tables.later.run()
            except Exception:
                log.exception("dataplane tick")

    # --- steering ----------------------------------------------------------------------------------------

    def set_local_addresses(self, addresses: Iterable[Address]) -> None:
        """The host's own addresses: traffic to them is the kernel's, ESP to them is ours."""
        self._locals = list(addresses)
        for port in self._prepared:
            with named(f"port {port.spec.name!r}"):
                port.set_locals(self._locals)

    def _steer(self, remotes: Iterable[Network]) -> None:
        networks = list(dict.fromkeys(remotes))
        for port in self._prepared:
            with named(f"port {port.spec.name!r}"):
                port.set_remotes(networks)

    # --- what it did -----------------------------------------------------------------------------------

    def stats(self, *, sas: bool = True) -> DataPlaneStats:
        """A snapshot; without `sas` it costs nothing that grows with their number."""
        states = self._supervisor.workers if self._supervisor is not None else []
        drops, verdicts = verdict_sums(self.tables)
        return DataPlaneStats(
            engine=self.tables.engine.name,
            workers=worker_stats(self.tables, states),
            ports=port_stats(self.tables, self._specs, states),
            sas=sa_stats(self.tables, [(sa.spec, sa.index) for sa in self._sas.values()]) if sas else (),
            drops=drops,
            verdicts=verdicts,
            policies=len(self._policies),
            tables_locked=not self.tables.view.lock_error,
        )


def _check_ports(ports: Sequence[PortSpec]) -> None:
    """Names, number and drivers that workers can have."""
    if len(ports) >= PORTS_MAX:
        raise DataPlaneError(f"{len(ports)} ports; a worker takes up to {PORTS_MAX - 1}")
    seen: set[str] = set()
    for spec in ports:
        if spec.name in seen:
            raise DataPlaneError(f"port {spec.name!r} is given twice")
        seen.add(spec.name)
        if spec.driver not in DRIVERS:
            raise DataPlaneError(
                f"port {spec.name!r}: driver {spec.driver!r}; there are {', '.join(DRIVERS)}"
            )
        if spec.driver in ETHERNET_DRIVERS and len(spec.mac) != 6:
            raise DataPlaneError(
                f"port {spec.name!r}: MAC of {len(spec.mac)} bytes; a {spec.driver} port has 6"
            )
