"""The running gateway: everything is wired here, and the order of start and stop lives only here.

    start   run directory, netlink mirror, ports, tables (SAs, then policies), workers, TUN devices, mirror's
            news, IKE, status socket, READY
    stop    the same backwards: peers are told first; workers have let go of everything before the tables do

A reload changes SAs and policies while traffic flows; a bad file changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace

from control.admin import logs
from control.admin.commands import IkeCommands
from control.admin.notify import notify, notify_reloading, watchdog_interval
from control.admin.report import build_status
from control.admin.server import RunDirectory, StatusError, StatusServer
from control.config import Config, ConfigError, load
from control.ike_daemon import IkeDaemon, IkeSetupError
from control.links import PortLinks
from control.net.addresses import remove_lent_before
from control.net.host import HostError, HostTraffic
from control.net.mirror import Link
from control.net.netlink import NetlinkMirror
from control.net.tun import TunDevice, TunError, remove_left_behind
from control.paths import OutboundPaths
from control.ports import PortSetupError, helper_specs, mirror_ports, port_specs
from control.reload import Changes, compare
from control.sa.spd import Spd
from dataplane.api import DataPlane, DataPlaneError
from dataplane.model import Address, AdjacencySpec, Direction, PolicySpec, PortSpec, RouteSpec, SaSpec

log = logging.getLogger("esplanade")

START_ERRORS = (StatusError, PortSetupError, DataPlaneError, TunError, HostError, IkeSetupError, OSError)


class Requests:
    """What signals and events ask of the gateway."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.reload = asyncio.Event()
        self.restart = asyncio.Event()  # an interface that was gone is back: its ports are opened anew

    async def stop_or_restart(self) -> None:
        """Wait for either."""
        waits = [asyncio.create_task(event.wait()) for event in (self.stop, self.restart)]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for each in waits:
            each.cancel()


class Gateway:
    """One gateway from its configuration to its end."""

    def __init__(self, config: Config, requests: Requests, *, log_json: bool = False) -> None:
        self.config = config
        self.requests = requests
        self.started = time.time()
        self.reloads = 0
        self.ike: IkeDaemon | None = None  # where there are connections
        self._log_json = log_json
        self._stack = AsyncExitStack()
        self._alive: dict[str, SaSpec] = {}  # SAs that the dataplane has
        self._tuns: list[TunDevice] = []
        self._host = HostTraffic()

    # ---- start and stop

    async def start(self) -> None:
        """Bring everything up; one of START_ERRORS says why that cannot be. `stop` must follow either way."""
        config, stack = self.config, self._stack
        for warning in config.warnings:
            log.warning("%s: %s", config.source, warning)
        if config.gateway.cpus:
            self._pin(config.gateway.cpus)
        directory = RunDirectory(config.gateway.run_dir)
        stack.callback(directory.close)
        self.mirror = NetlinkMirror(mirror_ports(config.ports), self)
        stack.push_async_callback(self.mirror.close)
        await self.mirror.open(config.sas)
        specs = port_specs(config, self.mirror.mirror, self.mirror.path_mtu)
        self.dataplane = DataPlane.create(
            ports=[*specs, *helper_specs(config, specs)],
            workers=config.gateway.workers,
            engine=config.gateway.engine,
            state_dir=config.gateway.state_dir,
            cpus=config.gateway.cpus,
            deal=config.gateway.deal,
            spin=config.gateway.spin,
        )
        stack.push_async_callback(self._stop_dataplane)
        self.paths = OutboundPaths(self, self.mirror, self.dataplane, config.gateway.path_mtu_age)
        self.links = PortLinks(
            specs, self.dataplane, restart=self.requests.restart.set, tell_again=self.mirror.tell_again
        )
        self.dataplane.set_local_addresses(self.mirror.mirror.local_addresses())
        self.dataplane.add_sas(config.sas)
        self._alive = {sa.name: sa for sa in config.sas}
        self.spd = Spd(self.dataplane, self._policies_changed)
        self.spd.set_configured(config.policies)
        if config.ike.connections:
            tun = next((port.interface for port in config.ports if port.driver == "tun"), "lo")
            self.ike = IkeDaemon.create(config.ike, self.dataplane, self.spd, self.paths, tun)
            stack.push_async_callback(self.ike.close)
            self.ike.open_sockets()
            await remove_lent_before()
        await self.spd.flush()
        await self.dataplane.start()
        await self._open_tuns(specs)
        stack.push_async_callback(self.paths.close)
        self.paths.open()
        await self.mirror.follow()
        stack.push_async_callback(self.mirror.close)  # before the dataplane goes: its devices' end is no news
        if self.ike is not None:
            stack.push_async_callback(self.ike.stop)
            await self.ike.start()
            await self.ike.policies_settled()
        remove_left_behind(self._tuns)
        streams = IkeCommands(self.ike).streams() if self.ike is not None else {}
        status = StatusServer(config.gateway.run_dir, {"status": lambda: build_status(self)}, streams)
        await status.start()
        stack.push_async_callback(status.close)
        log.info("%s", self.summary())

    async def stop(self) -> None:
        """Take everything down that `start` has brought up."""
        began = time.monotonic()
        await self._stack.aclose()
        log.info("stopped in %.2f s", time.monotonic() - began)

    async def _stop_dataplane(self) -> None:
        """Before a restart nothing may pass in clear meanwhile; before the end, the kernel gets its interfaces back."""
        await self.dataplane.stop(leave=self.requests.restart.is_set())

    async def _close_tun(self, device: TunDevice) -> None:
        """The blackholes behind a device's routes stay over a restart."""
        if not self.requests.restart.is_set():
            await device.close()

    def summary(self) -> str:
        """What runs, in a line."""
        ports = ", ".join(
            f"{port.name} {port.active_mode or port.driver}" for port in self.dataplane.stats(sas=False).ports
        )
        connections = f"{len(self.config.ike.connections)} connections, " if self.ike is not None else ""
        return (
            f"{connections}{len(self._alive)} SAs, {len(self.config.policies)} policies, "
            f"{self.config.gateway.workers} workers, ports: {ports}"
        )

    def sa(self, name: str) -> SaSpec | None:
        """An SA that is in use, without keys where it is one of IKE."""
        found = self._alive.get(name)
        return self.ike.children.spec(name) if found is None and self.ike is not None else found

    @staticmethod
    def _pin(cpus: Sequence[int]) -> None:
        """Use these CPUs only; the dataplane pins its workers to those that we may use."""
        try:
            os.sched_setaffinity(0, cpus)
        except OSError as error:
            raise PortSetupError(
                f"gateway.cpus = {list(cpus)}: {error.strerror}; CPUs 0 to {(os.cpu_count() or 1) - 1} are there"
            ) from None

    async def _open_tuns(self, specs: Sequence[PortSpec]) -> None:
        """Set up the TUN devices, which exist since the dataplane started."""
        for port, spec in zip(self.config.ports, specs, strict=True):
            if port.driver == "tun":
                device = TunDevice(port, spec.mtu)
                await device.open()
                self._stack.push_async_callback(self._close_tun, device)
                self._tuns.append(device)
        self._host.open()
        self._stack.callback(lambda: self._host.close(leave=self.requests.restart.is_set()))
        for device in self._tuns[:1]:
            self._host.set_policies(self.spd.policies(), self._peers(), self._own_addresses(), device)
        await self._route_into_tuns(self.spd.policies())

    async def serve(self) -> None:
        """Until a stop or a restart is requested: reload when asked to, and show the service manager that we live."""
        async with asyncio.TaskGroup() as tasks:
            helpers = [
                tasks.create_task(self._reload_when_asked(), name="reload"),
                tasks.create_task(self._feed_watchdog(), name="watchdog"),
            ]
            await self.requests.stop_or_restart()
            for helper in helpers:
                helper.cancel()

    async def _feed_watchdog(self) -> None:
        interval = watchdog_interval()
        while interval is not None:
            # The loop is alive if this runs; the mirror must be, too, or the tables grow old.
            if self.mirror.alive:
                notify("WATCHDOG=1")
            await asyncio.sleep(interval)

    # ---- reload

    async def _reload_when_asked(self) -> None:
        while True:
            await self.requests.reload.wait()
            self.requests.reload.clear()
            notify_reloading()
            await self.reload()
            notify("READY=1", f"STATUS={self.summary()}")

    async def reload(self) -> bool:
        """Read the configuration again and bring what changed into effect; False, all untouched, if it is bad."""
        try:
            config = load(self.config.source)
        except ConfigError as error:
            for line in error.lines():
                log.error("%s", line)
            log.error("%s: not loaded; the gateway goes on as it was", self.config.source)
            return False
        for warning in config.warnings:
            log.warning("%s: %s", config.source, warning)
        changes = compare(self.config, self._alive, config)
        if changes.restart:
            log.warning(
                "%s: a restart is needed for changes of %s", config.source, ", ".join(changes.restart)
            )
        # Without a change in the file, those that it names may have changed: a certificate was renewed.
        failures = await self._change(config, changes) if changes or self.ike is not None else 0
        logs.set_up(level=config.gateway.log_level, as_json=self._log_json or config.gateway.log_json)
        # What IKE did not take is still to be done when the file is read again.
        self.config = config if self.ike is None else replace(config, ike=self.ike.config)
        self.reloads += 1
        log.info(
            "%s reloaded: %s%s",
            config.source,
            changes,
            f"; failed: {failures}, see above" if failures else "",
        )
        return failures == 0

    async def _change(self, config: Config, changes: Changes) -> int:
        """Make the changes; each that the dataplane refuses is logged and counted, and the others go on."""
        failures = 0

        async def step(what: str, done: Callable[[], object]) -> bool:
            nonlocal failures
            try:
                result = done()
                if asyncio.iscoroutine(result):
                    await result
            except (DataPlaneError, IkeSetupError) as error:
                failures += 1
                log.error("reload: %s: %s", what, error)
                return False
            return True

        dataplane = self.dataplane
        for name in changes.remove_first:
            if await step(f"remove sa {name}", lambda name=name: dataplane.remove_sa(name)):  # type: ignore[misc]
                del self._alive[name]
        if changes.remove_first:
            await step("settle", dataplane.settle)
        # Of SA bundles first the outer SAs, which those in them are held against.
        coming: list[tuple[SaSpec, str, Callable[[SaSpec], object]]]
        coming = [(sa, "add", dataplane.add_sa) for sa in changes.added]
        coming += [(sa, "replace", dataplane.replace_sa) for sa in changes.replaced]
        for sa, verb, do in sorted(coming, key=lambda each: each[0].outer is not None):
            if await step(f"{verb} sa {sa.name}", lambda sa=sa, do=do: do(sa)):  # type: ignore[misc]
                self._alive[sa.name] = sa
        if changes.policies:
            self.spd.set_configured(config.policies)
            await step("policies", self.spd.flush)
        for name in changes.removed:
            if await step(f"remove sa {name}", lambda name=name: dataplane.remove_sa(name)):  # type: ignore[misc]
                del self._alive[name]
        self.paths.forget_gone()
        if self.ike is not None:
            await step("connections", lambda: self._change_ike(config, changes))
        await self.mirror.set_sas([*self._alive.values(), *self._ike_sas()])
        await self._route_into_tuns(self.spd.policies())
        return failures

    async def _change_ike(self, config: Config, changes: Changes) -> None:
        assert self.ike is not None
        await self.ike.reload(config.ike, changes.ike)

    # ---- what follows from SAs and policies

    def outbound_sas(self) -> list[SaSpec]:
        """Every SA that sends."""
        return [*(sa for sa in self._alive.values() if sa.direction is Direction.OUT), *self._ike_sas()]

    def _ike_sas(self) -> list[SaSpec]:
        """The outbound SAs of IKE."""
        return self.ike.children.outbound_specs() if self.ike is not None else []

    def _peers(self) -> set[Address]:
        """Where outer packets go to: no route may lead these into a tunnel."""
        peers = {sa.remote for sa in self._alive.values() if sa.direction is Direction.OUT}
        if self.ike is not None:
            peers |= self.ike.children.peers()
            peers.update(self.ike.peers())
        return peers

    def _own_addresses(self) -> set[Address]:
        """Of this host, those that were lent to us just now among them."""
        lent = self.ike.lent_addresses() if self.ike is not None else set()
        return lent.union(self.mirror.mirror.local_addresses())

    async def _policies_changed(self, policies: Sequence[PolicySpec]) -> None:
        await self._route_into_tuns(policies)

    async def _route_into_tuns(self, policies: Sequence[PolicySpec]) -> None:
        for device in self._tuns:
            await device.set_routes(policies, self._peers(), self._own_addresses())
        for device in self._tuns[:1]:
            try:
                self._host.set_policies(policies, self._peers(), self._own_addresses(), device)
            except HostError as error:
                log.error("%s", error)

    # ---- what the netlink mirror tells

    async def set_routes(self, routes: Sequence[RouteSpec]) -> None:
        """New routes of decrypted packets."""
        try:
            await self.dataplane.set_routes(routes)
        except DataPlaneError as error:
            log.error("routes: %s", error)

    async def set_sa_adjacency(self, name: str, adjacency: AdjacencySpec | None, mtu: int | None) -> None:
        """A new way out for an SA's packets."""
        self.paths.changed(name, adjacency, mtu)

    async def set_locals(self, addresses: Sequence[Address]) -> None:
        """The host's addresses changed."""
        try:
            self.dataplane.set_local_addresses(addresses)
        except DataPlaneError as error:
            log.error("local addresses: %s", error)
        await self._route_into_tuns(self.spd.policies() if self._tuns else ())
        if self.ike is not None:
            self.ike.addresses_changed(addresses)

    async def port_changed(self, name: str, link: Link | None, addresses: Sequence[Address]) -> None:
        """A port's interface changed."""
        self.links.changed(name, link)
