"""What control has put into the tables, by name: SAs, policies, routes, and what belongs together.

    names -> checks -> sequence.admit -> tables: fill, publish | unlink, wait, free

Every change is all or nothing; whatever is refused is a DataPlaneError that names what was got and wanted. The
tables below know indices only; ports and workers are dataplane/api.py's business.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Network, IPv6Network
from types import TracebackType

from dataplane.acquire import take
from dataplane.follow import Sources
from dataplane.layout import BUNDLE_BROKEN, BUNDLE_OUTER, NO_INDEX, RESOURCES, SA_SHARED
from dataplane.model import (
    Acquire,
    Action,
    Address,
    AdjacencySpec,
    Direction,
    Encap,
    Network,
    PolicySpec,
    PortSpec,
    RouteSpec,
    SaSpec,
    Source,
)
from dataplane.ports.errors import PortError
from dataplane.records import check_bundle, check_sa, hard_limit, without_keys
from dataplane.reserve import ReserveError
from dataplane.sequence import Grant, SequenceKeeper
from dataplane.slots import TableFullError
from dataplane.spd import cover
from dataplane.stats import SaTraffic, sa_traffic
from dataplane.tables import Tables

#: The longest that any change waits for the workers: each passes within a round, or sleeps.
SETTLE_SECONDS = 5.0
ETHERNET_DRIVERS = ("xdp", "packet")
#: Numbers left to an outbound SA that moves, for what is sent until no worker uses its old slot any more.
MOVE_NUMBERS = 65536


class DataPlaneError(Exception):
    """The dataplane cannot do what was asked; says what was got, what was wanted and where."""


@dataclass(kw_only=True)
class _Sa:
    """An SA that is alive; its specification without keys."""

    spec: SaSpec
    index: int
    mtu: int = 1500
    adjacency: AdjacencySpec | None = None
    policies: set[str] = field(default_factory=set)
    workers: dict[int, str] = field(default_factory=dict)  # whose own SAs take this one's place (RFC 9611)
    beside: str | None = None  # the SA in whose `workers` this one is

    @property
    def handle(self) -> int:
        """What policies have in the tables."""
        return self.index | SA_SHARED if self.workers else self.index


class _Named:
    """The context manager of `named`; a class, since a bulk load enters one per SA."""

    __slots__ = ("_what",)

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, (ValueError, OverflowError, TableFullError, ReserveError, PortError, OSError)):
            raise DataPlaneError(f"{self._what}: {error}") from error


def named(what: str) -> _Named:
    """Errors of the parts below, as DataPlaneErrors that say what they are about."""
    return _Named(what)


class Book:
    """The names of everything in the tables; `ports` are those that adjacencies may lead to."""

    def __init__(self, *, tables: Tables, keeper: SequenceKeeper, ports: Sequence[PortSpec]) -> None:
        self.tables = tables
        self._keeper = keeper
        self._specs = tuple(ports)
        self._macs = {spec.name: spec.mac for spec in ports}
        self._port_indices = {spec.name: index for index, spec in enumerate(ports)}
        self._sas: dict[str, _Sa] = {}
        self._spis: dict[int, str] = {}
        self._inners: dict[str, set[str]] = {}  # SA bundles: by the outer SA, those in it
        self._policies: dict[str, tuple[int, PolicySpec]] = {}
        self._policy_names: dict[int, str] = {}  # by index
        self._remotes: list[Network] = []
        self._steers = any(spec.driver in ETHERNET_DRIVERS for spec in ports)
        self._changing = asyncio.Lock()
        self._sources = Sources(tables.view)

    def _steer(self, remotes: Iterable[Network]) -> None:
        """Tell the steering programs which destinations are ours; whoever has ports does."""

    async def settle(self) -> None:
        """Wait until everything that was replaced or removed so far is freed and its keys are zeroed."""
        end = asyncio.get_running_loop().time() + SETTLE_SECONDS
        while self.tables.later.run():
            if asyncio.get_running_loop().time() > end:
                raise DataPlaneError(f"workers have not gone past a change within {SETTLE_SECONDS} s")
            await asyncio.sleep(0.001)

    # --- SAs -----------------------------------------------------------------------------------------

    def add_sa(self, spec: SaSpec, *, mtu: int = 1500) -> None:
        """Add one SA; inbound packets find it when this returns. `mtu` is that of the outer path."""
        self.add_sas([spec], mtu=mtu)

    def add_sas(self, specs: Sequence[SaSpec], *, mtu: int = 1500) -> None:
        """Add many SAs, all or none."""
        self._check_new(specs)
        self.tables.later.run()  # slots of SAs that went lately
        with named("adding SAs" if len(specs) != 1 else f"SA {specs[0].name!r}"):
            grants = self._keeper.admit(specs)
        added: list[str] = []
        try:
            # What goes around others comes before them.
            for spec, grant in sorted(
                zip(specs, grants, strict=True), key=lambda each: each[0].outer is not None
            ):
                with named(f"SA {spec.name!r}"):
                    self._add(spec, grant, mtu)
                added.append(spec.name)
        except BaseException:
            for name in added:
                self.remove_sa(name)
            raise

    def _check_new(self, specs: Sequence[SaSpec]) -> None:
        """Names and inbound SPIs that nobody has; values that an SA can have."""
        names: set[str] = set()
        spis: set[int] = set()
        outers = {spec.name: spec for spec in specs}
        for spec in specs:
            with named(f"SA {spec.name!r}"):
                check_sa(spec)
                self._check_outer(spec, outers)
            if spec.name in names or spec.name in self._sas:
                raise DataPlaneError(f"SA {spec.name!r}: there is one of that name already")
            names.add(spec.name)
            if spec.direction is Direction.IN:
                if spec.spi in spis or spec.spi in self._spis:
                    other = self._spis.get(spec.spi, "another of the same list")
                    raise DataPlaneError(f"SA {spec.name!r}: SPI 0x{spec.spi:08x} belongs to SA {other!r}")
                spis.add(spec.spi)

    def _check_outer(self, spec: SaSpec, others: Mapping[str, SaSpec] | None = None) -> None:
        """ValueError where the SA is to be in a bundle that cannot be; `others` are about to be added."""
        if spec.outer is None:
            return
        known = self._sas.get(spec.outer)
        outer = known.spec if known is not None else (others or {}).get(spec.outer)
        if outer is None:
            raise ValueError(f"outer {spec.outer!r} is no SA that there is")
        check_bundle(spec, outer)

    def _bind(self, sa: _Sa) -> None:
        """Put an SA into its bundle, and those that it goes around into theirs."""
        if sa.spec.outer is not None:
            self._inners.setdefault(sa.spec.outer, set()).add(sa.spec.name)
            self._set_outer(sa, self._sas.get(sa.spec.outer))
        for inner in self._inside(sa):
            self._set_outer(inner, sa)

    def _inside(self, outer: _Sa) -> list[_Sa]:
        """The SAs that an SA goes around."""
        found = [self._sas.get(name) for name in self._inners.get(outer.spec.name, ())]
        return [sa for sa in found if sa is not None and sa.spec.outer == outer.spec.name]

    def _set_outer(self, inner: _Sa, outer: _Sa | None) -> None:
        """`outer` goes around the packets of `inner`; where it cannot (a change is half done), nothing passes."""
        try:
            if outer is None:
                raise ValueError("it is gone")
            check_bundle(inner.spec, outer.spec)
        except ValueError:
            self.tables.view.set_bundle(inner.index, BUNDLE_BROKEN)
            return
        if outer.spec.direction is Direction.IN:
            self.tables.view.set_bundle(outer.index, BUNDLE_OUTER)
        self.tables.view.set_bundle(inner.index, outer.index + 1)

    def _add(self, spec: SaSpec, grant: Grant, mtu: int) -> _Sa:
        """Fill a slot and make it known; outbound SAs are found through policies only."""
        index = self.tables.add_sa(spec, start=grant.start, limit=grant.limit, mtu=mtu)
        sa = _Sa(spec=without_keys(spec), index=index, mtu=mtu)
        self._keeper.attach(index, spec, grant)
        self._bind(sa)
        if spec.direction is Direction.IN and self._spis.get(spec.spi) is None:
            self.tables.publish_inbound(spec.spi, index)
            self._spis[spec.spi] = spec.name
        self._sas[spec.name] = sa
        return sa

    def _sa(self, name: str, direction: Direction | None = None) -> _Sa:
        sa = self._sas.get(name)
        if sa is None:
            raise DataPlaneError(f"there is no SA {name!r}")
        if direction is not None and sa.spec.direction is not direction:
            raise DataPlaneError(
                f"SA {name!r} is {sa.spec.direction.value}bound; wanted an {direction.value}bound one"
            )
        return sa

    async def replace_sa(self, spec: SaSpec) -> None:
        """Another SA under the same name: no packet falls between, policies and adjacency follow.

        An inbound SA that keeps its key is the exception: the old one goes first, so that its window's last
        state enters the new one and nothing is accepted twice; for that moment its packets are dropped.
        """
        old = self._sa(spec.name, spec.direction)
        with named(f"SA {spec.name!r}"):
            check_sa(spec)
            self._check_outer(spec)
        owner = self._spis.get(spec.spi)
        if spec.direction is Direction.IN and owner not in (None, spec.name):
            raise DataPlaneError(f"SA {spec.name!r}: SPI 0x{spec.spi:08x} belongs to SA {owner!r}")
        if spec.direction is Direction.IN and self.tables.has_key(old.index, spec):
            self._unlink(old)
            await self.settle_sa(old)
            top = self.tables.replay_top(old.index)
            self._drop(old)
            self.add_sa(replace(spec, sequence=max(spec.sequence, top + 1)), mtu=old.mtu)
            return
        with named(f"SA {spec.name!r}"):
            grant = self._keeper.admit([spec], frozenset({old.index}))[0]
            del self._sas[spec.name]
            try:
                new = self._add(spec, grant, old.mtu)
            except BaseException:
                self._sas[spec.name] = old
                self._bind(old)
                raise
        if spec.direction is Direction.IN:
            if spec.spi == old.spec.spi:
                self.tables.view.spi_replace(spec.spi, new.index)
            else:
                self.tables.view.spi_remove(old.spec.spi)
                del self._spis[old.spec.spi]
        else:
            if old.adjacency is not None:
                self.set_sa_adjacency(spec.name, old.adjacency, old.mtu)
            self._take_over(old, new)
        self._drop(old)

    def _take_over(self, old: _Sa, new: _Sa) -> None:
        """An outbound SA is in another slot: all that led to the old one leads to the new one."""
        new.workers, new.beside, new.policies = old.workers, old.beside, old.policies
        self._lead(new)
        if new.beside is not None:
            self._lead(self._sas[new.beside])

    def _lead(self, sa: _Sa) -> None:
        """Have workers and policies find an outbound SA, and those beside it."""
        if sa.workers:
            own = [NO_INDEX] * RESOURCES
            for worker, name in sa.workers.items():
                own[worker] = self._sas[name].index
            self.tables.view.set_resources(sa.index, own)
        for policy in sa.policies:
            self.tables.view.set_policy_sa(self._policies[policy][0], sa.handle)

    def set_workers(self, name: str, workers: Mapping[int, str]) -> None:
        """Outbound SAs that single workers, by number, use where policies say `name` (RFC 9611)."""
        sa = self._sa(name, Direction.OUT)
        for worker, other in workers.items():
            if not 0 <= worker < RESOURCES:
                raise DataPlaneError(f"SA {other!r} for worker {worker}; there are 0 to {RESOURCES - 1}")
            found = self._sa(other, Direction.OUT)
            if found is sa or found.workers or found.beside not in (None, name):
                raise DataPlaneError(
                    f"SA {other!r} stands alone or beside another; it cannot be beside {name!r}"
                )
        for other in sa.workers.values():
            self._sas[other].beside = None
        sa.workers = dict(workers)
        for other in sa.workers.values():
            self._sas[other].beside = name
        self._lead(sa)

    async def move_sa(
        self,
        name: str,
        *,
        local: Address,
        remote: Address,
        encap: Encap | None,
        adjacency: AdjacencySpec | None = None,
        mtu: int = 1500,
    ) -> None:
        """The SA goes on between other outer addresses or ports, with its SPI, keys, numbers and replay window.

        Inbound it is changed in place: a packet that a worker is looking at meanwhile may be dropped. Outbound it
        gets another slot, whose numbers begin past those that the old one may still use: none is sent twice. Only
        SAs of IKE move; `adjacency` and `mtu` are as `set_sa_adjacency` has them.
        """
        old = self._sa(name)
        if not old.spec.negotiated:
            raise DataPlaneError(f"SA {name!r} has manual keys; only an SA of IKE can move")
        encryption, integrity = self.tables.keys(old.index, old.spec.proposal)
        spec = replace(
            old.spec,
            local=local,
            remote=remote,
            encap=encap,
            encryption_key=encryption,
            integrity_key=integrity,
        )
        with named(f"SA {name!r}"):
            check_sa(spec)
        if spec.direction is Direction.IN:
            self.tables.readdress_inbound(old.index, spec)
            old.spec = without_keys(spec)
            return
        start = await self._stop_numbers(old)
        if self._sas.get(spec.name) is not old:
            raise DataPlaneError(f"SA {spec.name!r} went away while it was moved")
        with named(f"SA {spec.name!r}"):
            moved = replace(spec, sequence=start)
            check_sa(moved)
            grant = self._keeper.admit([moved])[0]
            del self._sas[spec.name]
            try:
                new = self._add(moved, grant, mtu)
            except BaseException:
                self._sas[spec.name] = old
                self.tables.set_end(old.index, hard_limit(spec.proposal))  # it goes on where it is
                raise
        self.tables.copy_counters(old.index, new.index)
        if adjacency is not None:
            self.set_sa_adjacency(spec.name, adjacency, mtu)
        self._take_over(old, new)
        self._drop(old)

    async def _stop_numbers(self, sa: _Sa) -> int:
        """Let an outbound SA run out soon, and return the first number that it will certainly never send."""
        following, limit = self.tables.view.sequence(sa.index)
        end = min(following + MOVE_NUMBERS, limit)
        self.tables.set_end(sa.index, end)
        # Past this, every worker goes by the new limit, and `next` tells what those took that still had the old.
        await self.settle_sa(sa)
        return max(end, self.tables.view.sequence(sa.index)[0])

    def remove_sa(self, name: str) -> None:
        """Remove an SA: nothing finds it when this returns; its keys are zeroed as soon as no worker holds it."""
        sa = self._sa(name)
        self._unlink(sa)
        self._drop(sa)

    def _unlink(self, sa: _Sa) -> None:
        """No packet finds the SA from now on."""
        if sa.spec.direction is Direction.IN:
            self.tables.view.spi_remove(sa.spec.spi)
            del self._spis[sa.spec.spi]
        for policy in sa.policies:
            self.tables.view.set_policy_sa(self._policies[policy][0], NO_INDEX)
        sa.policies = set()
        for other in sa.workers.values():
            self._sas[other].beside = None
        if sa.beside is not None:
            common = self._sas[sa.beside]
            common.workers = {worker: name for worker, name in common.workers.items() if name != sa.spec.name}
            self._lead(common)
        del self._sas[sa.spec.name]
        for inner in self._inside(sa):
            self._set_outer(inner, None)
        if sa.spec.outer is not None:
            self._inners[sa.spec.outer].discard(sa.spec.name)

    def _drop(self, sa: _Sa) -> None:
        """Free an unlinked SA once nobody holds it; what it did not use of its numbers is given back first."""
        with self.tables.later.batch():
            self.tables.later.add(lambda: self._keeper.release(sa.index))
            self.tables.drop_sa(sa.index)

    async def settle_sa(self, sa: _Sa) -> None:
        """Wait until no worker can hold an SA that was just unlinked."""
        self.tables.later.add(lambda: None)
        await self.settle()

    def set_sa_adjacency(self, name: str, adjacency: AdjacencySpec | None, mtu: int = 1500) -> None:
        """Where an outbound SA's packets leave, and the MTU of the path to its peer; None asks the kernel."""
        sa = self._sa(name, Direction.OUT)
        if not 68 <= mtu <= 65535:
            raise DataPlaneError(f"SA {name!r}: path MTU {mtu}; it is 68 to 65535")
        port, mac = 0, b""
        with named(f"SA {name!r}"):
            if adjacency is not None:
                port, mac = self._next_hop_port(adjacency)
            self.tables.set_sa_adjacency(sa.index, sa.spec, adjacency, source_mac=mac, port=port, mtu=mtu)
        sa.adjacency, sa.mtu = adjacency, mtu

    def _next_hop_port(self, adjacency: AdjacencySpec) -> tuple[int, bytes]:
        """The adjacency's port: its index and MAC."""
        index = self._port_indices.get(adjacency.port)
        if index is None:
            raise DataPlaneError(
                f"adjacency on port {adjacency.port!r}; there are {', '.join(self._port_indices) or 'none'}"
            )
        spec = self._specs[index]
        if (spec.driver in ETHERNET_DRIVERS) != bool(adjacency.destination_mac):
            wanted = "wants a destination MAC" if spec.driver in ETHERNET_DRIVERS else "has no link header"
            raise DataPlaneError(
                f"adjacency on port {adjacency.port!r} with MAC {adjacency.destination_mac.hex(':') or 'none'};"
                f" a {spec.driver} port {wanted}"
            )
        return index, self._macs[spec.name]

    def set_port_mac(self, name: str, mac: bytes) -> None:
        """The interface's MAC changed: adjacencies and routes that are set from now on are sent from it."""
        if name not in self._macs or len(mac) != len(self._macs[name]):
            raise DataPlaneError(
                f"port {name!r}: MAC {mac.hex(':') or 'none'}; wanted an Ethernet port and 6 bytes"
            )
        self._macs[name] = mac

    def next_number(self, name: str) -> int:
        """The next sequence number that an outbound SA will send."""
        return self.tables.view.sequence(self._sa(name, Direction.OUT).index)[0]

    def traffic(self, names: Sequence[str]) -> list[SaTraffic]:
        """What each of these SAs has passed so far, in their order; one pass over the counters for all."""
        return sa_traffic(self.tables, [self._sa(name).index for name in names])

    def has_spi(self, spi: int) -> bool:
        """Whether an inbound SA has this SPI."""
        return spi in self._spis

    # --- policies and routes ---------------------------------------------------------------------------

    async def set_policies(self, policies: Sequence[PolicySpec]) -> None:
        """Replace the whole ordered SPD; every packet sees either the old one or the new one."""
        names = [policy.name for policy in policies]
        if len(set(names)) != len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise DataPlaneError(f"policy {twice!r} is given twice")
        async with self._changing:
            await self.settle()
            sas = [self._policy_sa(policy) for policy in policies]
            remotes = list(_protected(policies)) if self._steers else []
            # Steering covers both while they change places: nothing goes round us in clear.
            self._steer([*self._remotes, *remotes])
            try:
                with named(f"SPD of {len(policies)} policies"):
                    indices = self.tables.set_policies(
                        policies, [sa.handle if sa else NO_INDEX for sa in sas]
                    )
            except BaseException:
                self._steer(self._remotes)
                raise
            for _, policy in self._policies.values():
                if policy.sa is not None and policy.sa in self._sas:
                    self._sas[policy.sa].policies.clear()
            for policy, used in zip(policies, sas, strict=True):
                if used is not None:
                    used.policies.add(policy.name)
            self._policies = {
                policy.name: (index, policy) for policy, index in zip(policies, indices, strict=True)
            }
            self._policy_names = {index: name for name, (index, _) in self._policies.items()}
            self._steer(remotes)
            self._remotes = remotes

    def _policy_sa(self, policy: PolicySpec) -> _Sa | None:
        if policy.sa is None:
            return None
        if policy.action is not Action.PROTECT:
            raise DataPlaneError(
                f"policy {policy.name!r}: {policy.action.name} takes no SA, got {policy.sa!r}"
            )
        try:
            return self._sa(policy.sa, Direction.OUT)
        except DataPlaneError as error:
            raise DataPlaneError(f"policy {policy.name!r}: {error}") from error

    def set_policy_sa(self, policy: str, sa: str | None) -> None:
        """The policy's packets use another outbound SA from now on, by one store; None: none."""
        if policy not in self._policies:
            raise DataPlaneError(f"there is no policy {policy!r}")
        index, spec = self._policies[policy]
        if spec.action is not Action.PROTECT:
            raise DataPlaneError(f"policy {policy!r} is {spec.action.name}: it takes no SA")
        new = self._sa(sa, Direction.OUT) if sa is not None else None
        if spec.sa is not None and spec.sa in self._sas:
            self._sas[spec.sa].policies.discard(policy)
        self.tables.view.set_policy_sa(index, new.handle if new else NO_INDEX)
        if new is not None:
            new.policies.add(policy)
        self._policies[policy] = index, replace(spec, sa=sa)

    def take_acquires(self) -> list[Acquire]:
        """Flows that met a policy without SA since the last call: each policy once a second and worker at most."""
        return take(self.tables.view, self._policy_names)

    def take_sources(self) -> list[Source]:
        """Inbound SAs in UDP whose peer sends from another address or port since the last call (RFC 7296 2.23)."""
        if not self._sources.news:
            return []
        return self._sources.take(
            {sa.index: sa.spec.name for sa in self._sas.values() if sa.spec.direction is Direction.IN}
        )

    async def set_routes(self, routes: Sequence[RouteSpec]) -> None:
        """Replace the whole table by which decrypted packets leave."""
        async with self._changing:
            await self.settle()
            with named(f"{len(routes)} routes"):
                ports = {
                    route.adjacency.port: self._next_hop_port(route.adjacency)
                    for route in routes
                    if route.adjacency is not None
                }
                self.tables.set_routes(routes, ports)


def _protected(policies: Iterable[PolicySpec]) -> Iterator[Network]:
    """The remote networks that packets may not go to round the dataplane: protected or discarded ones."""
    for policy in policies:
        if policy.action is not Action.BYPASS:
            selector = policy.selector
            kind, bits = (IPv4Network, 32) if selector.remote_first.version == 4 else (IPv6Network, 128)
            for first, length in cover(int(selector.remote_first), int(selector.remote_last), bits):
                yield kind((first, length))
