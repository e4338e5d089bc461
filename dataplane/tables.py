"""The shared segment in control: made here, filled here, seen as numpy arrays over the same bytes.

One sealed memfd holds everything (layout: ext/sa.pxd). It is sparse: room for a hundred thousand SAs costs
address space, not memory, until it is used. Keys in it are kept out of core dumps, locked in memory as far as
the kernel allows, and zeroed when their SA goes.

    fill a free slot -> publish by one store -> ... -> unlink by one store -> wait for the workers -> wipe

Here entries are known by index; names, duplicates and what belongs together are dataplane/book.py's business.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dataplane import layout
from dataplane.layout import CACHE_LINE, NO_INDEX, ROUTE_KERNEL, Records
from dataplane.model import AdjacencySpec, Direction, EspProposal, Integrity, PolicySpec, RouteSpec, SaSpec
from dataplane.records import (
    adjacency_row,
    encap_ports,
    header_length,
    hot_row,
    inbound_row,
    inner_mtu,
    key_row,
    outer_header,
    policy_row,
    sa_flags,
    selector_row,
    sequence_row,
    split_address,
)
from dataplane.slots import Later, Runs, Slots
from dataplane.spd import Entry, policy_entries, route_entries
from ext.crypto import EngineHandle
from ext.policy import lpm_publish
from ext.sa import TablesView

_PAGE = 4096
_LPM_SLOTS_PER_PREFIX = 2  # ext.policy keeps a table at most half full

_NextHop = tuple[AdjacencySpec, int, bytes]  # with address family and source MAC: the link header has them


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much the tables can hold. Unused room costs no memory."""

    max_sas: int = 131072
    max_policies: int = 131072  # of one SPD; there is room for two, so that one can replace the other
    max_selectors: int = 262144  # of inbound SAs
    max_adjacencies: int = 65536
    max_routes: int = 131072
    max_prefixes: int = 262144  # that the SPD's remote ranges come to
    max_candidates: int = 4194304  # policies listed under prefixes, repetitions counted


class Tables:
    """The segment, its arrays and who owns which slot. Not thread-safe: control's one thread writes.

    `engine` expands keys; it must be of the kind that the workers use. Raises OSError when the kernel has no
    memory for the segment.
    """

    def __init__(self, *, engine: EngineHandle, workers: int = 1, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.engine = engine
        self.worker_count = workers
        header, size = _plan(self.limits, workers, engine.number)
        self.fd = os.memfd_create("esplanade-tables", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, size)
        # Nobody can cut the segment short under a worker's feet (that would be a SIGBUS).
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        os.pwrite(self.fd, header.tobytes(), 0)
        self.view = TablesView(self.fd)
        self._map()
        self.later = Later(self.view.bump, self.view.quiescent)
        self._sa_slots = Slots("SAs", self.limits.max_sas)
        self._selector_runs = Runs("selectors", self.limits.max_selectors)
        self._adjacency_slots = Slots("adjacencies", self.limits.max_adjacencies)
        self._adjacencies: dict[_NextHop, int] = {}
        self._adjacency_users: dict[int, int] = {}
        self._next_hops: dict[int, _NextHop] = {}
        self._key_id = secrets.randbits(62)
        self._policy_half = 0
        self._route_adjacencies: list[int] = []

    def _map(self) -> None:
        """Arrays over the mapped bytes; they keep the mapping alive."""
        memory = memoryview(self.view)
        self.header: Records = np.frombuffer(memory, layout.HEADER, 1)
        header = self.header[0]
        limits = self.limits

        def area(name: str, dtype: np.dtype[np.void], count: int) -> Records:
            return np.frombuffer(memory, dtype, count, int(header[f"{name}_offset"]))

        self.sas = area("sas", layout.SA, limits.max_sas)
        self.policies = area("policies", layout.POLICY, 2 * limits.max_policies)
        self.selectors = area("selectors", layout.SELECTOR, limits.max_selectors)
        self.adjacencies = area("adjacencies", layout.ADJACENCY, limits.max_adjacencies)
        self.workers = area("workers", layout.WORKER_COUNTERS, self.worker_count)
        counters = area("sa_counters", layout.SA_COUNTERS, self.worker_count * limits.max_sas)
        self.sa_counters = counters.reshape(self.worker_count, limits.max_sas)
        # Resolved once: taking a field of an array per SA would double the cost of a bulk load.
        self._sequences = self.sas["sequence"]
        self._hots = self.sas["hot"]
        self._inbounds = self.sas["inbound"]
        self._keys = self.sas["key"]
        self._replays = self.sas["replay"]
        self._keys_address = int(self._keys.ctypes.data)

    def close(self, *, wipe: bool = True) -> None:
        """Zero every key and let the segment go. Only without workers: one that runs on would use the zeros."""
        for index in range(self._sa_slots.used if wipe else 0):
            self.view.wipe(index)
        os.close(self.fd)
        self.fd = -1

    # --- SAs -----------------------------------------------------------------------------------------

    def add_sa(self, spec: SaSpec, *, start: int, limit: int, mtu: int = 1500) -> int:
        """Fill a slot for a checked spec (records.check_sa) and return its index; nobody finds it yet.

        Outbound it sends numbers from `start` and below `limit`; inbound, numbers below `start` count as
        seen. `mtu` is that of the outer path. Raises TableFullError, or ValueError from the engine.
        """
        index = self._sa_slots.take()
        first_selector = count = 0
        try:
            if spec.direction is Direction.IN:
                count = len(spec.selectors)
                first_selector = self._selector_runs.take(count)
                for place, selector in enumerate(spec.selectors, first_selector):
                    self.selectors[place] = selector_row(selector, inbound=True)
            self._key_id += 1
            self._keys[index] = key_row(spec, index, self._key_id)
            self.engine.expand_at(self._keys_address + index * layout.SA.itemsize)
        except BaseException:
            self._selector_runs.give(first_selector, count)
            self.view.wipe(index)
            self._sa_slots.give(index)
            raise
        if spec.direction is Direction.IN:
            self._inbounds[index] = inbound_row(spec, first_selector)
            self._set_replay(index, spec.replay_window, start - 1)
        else:
            self._sequences[index] = sequence_row(spec, start, limit, mtu)
            self.header[0]["dummy_sas"] += spec.tfc_dummies > 0
        self._hots[index] = hot_row(spec, mtu)
        self.header[0]["sas_used"] = self._sa_slots.used
        return index

    def _set_replay(self, index: int, window: int, top: int) -> None:
        """A window whose numbers up to `top` count as seen."""
        replay = self._replays[index]
        replay["window"] = window
        replay["top"] = top
        if top:
            replay["blocks"] = 2**64 - 1
            replay["blocks"][(top >> 6) % len(replay["blocks"])] = (2 << (top & 63)) - 1

    def has_key(self, index: int, spec: SaSpec) -> bool:
        """Whether the SA in this slot uses the spec's keys, salt apart."""
        key = self._keys[index]
        raw, integrity = spec.raw_keys
        return (
            bytes(key["encryption"])[: key["encryption_length"]] == raw
            and bytes(key["integrity_key"])[: key["integrity_length"]] == integrity
        )

    def keys(self, index: int, proposal: EspProposal) -> tuple[bytes, bytes]:
        """Encryption and integrity key of the SA in this slot, the salt at its place as in KEYMAT."""
        key = self._keys[index]
        salt = bytes(self._hots[index]["salt"]).ljust(4, b"\0")[4 - proposal.salt_length :]
        raw = bytes(key["encryption"]).ljust(32, b"\0")[: key["encryption_length"]]
        integrity = bytes(key["integrity_key"]).ljust(64, b"\0")[: key["integrity_length"]]
        if proposal.integrity is Integrity.AES_GMAC:
            return raw, integrity + salt
        return raw + salt, integrity

    def replay_top(self, index: int) -> int:
        """The highest sequence number that inbound SA `index` has accepted."""
        return int(self._replays[index]["top"])

    def readdress_inbound(self, index: int, spec: SaSpec) -> None:
        """The outer addresses and encapsulation of `spec` for a live inbound SA; each store is whole by itself."""
        inbound, hot = self._inbounds[index], self._hots[index]
        inbound["local_high"], inbound["local_low"] = split_address(spec.local)
        hot["header"] = outer_header(spec)
        hot["encap_ports"] = encap_ports(spec)
        hot["header_length"] = header_length(spec)
        hot["flags"] = sa_flags(spec)

    def set_end(self, index: int, limit: int) -> None:
        """The outbound SA of IKE stops before number `limit`: its successor in another slot goes on from there."""
        self._sequences[index]["limit"] = limit

    def copy_counters(self, old: int, new: int) -> None:
        """What `old` has counted so far counts for `new`, which no worker uses yet."""
        self.sa_counters[:, new] = self.sa_counters[:, old]

    def publish_inbound(self, spi: int, index: int) -> None:
        """Packets with `spi` find the SA from now on. ValueError when the SPI is taken."""
        self.view.spi_insert(spi, index)

    def drop_sa(self, index: int) -> None:
        """Wipe and free the slot once no worker can hold it; the caller has unlinked it already."""
        if self._sequences[index]["dummies"]:
            self._sequences[index]["dummies"] = 0
            self.header[0]["dummy_sas"] -= 1
        self.later.add(lambda: self._free_sa(index))

    def _free_sa(self, index: int) -> None:
        hot = self._hots[index]
        if hot["flags"] & layout.SA_INBOUND:
            inbound = self._inbounds[index]
            self._selector_runs.give(int(inbound["first_selector"]), int(inbound["selector_count"]))
        if hot["adjacency"] != NO_INDEX:
            self._release_adjacency(int(hot["adjacency"]))
        self.view.wipe(index)
        self.view.wipe_counters(index)
        self._sa_slots.give(index)

    def set_sa_adjacency(
        self,
        index: int,
        spec: SaSpec,
        adjacency: AdjacencySpec | None,
        *,
        source_mac: bytes,
        port: int,
        mtu: int,
    ) -> None:
        """Where the outbound SA's packets leave, and the MTU of their path; None asks the kernel."""
        self.view.set_mtu(index, inner_mtu(spec, mtu), min(mtu, 65535))
        old = int(self._hots[index]["adjacency"])
        new = NO_INDEX
        if adjacency is not None:
            new = self._take_adjacency(adjacency, spec.local.version, source_mac, port)
        self.view.set_adjacency(index, new)
        if old != NO_INDEX:
            self.later.add(lambda: self._release_adjacency(old))

    # --- adjacencies: one entry per distinct (next hop, family, MAC), counted ----------------------------

    def _take_adjacency(self, spec: AdjacencySpec, family: int, source_mac: bytes, port: int) -> int:
        """Index of an entry for this next hop, made when there is none."""
        key = (spec, family, source_mac)
        index = self._adjacencies.get(key)
        if index is None:
            row = adjacency_row(spec, family, source_mac, port)
            index = self._adjacency_slots.take()
            self.adjacencies[index] = row
            self._adjacencies[key] = index
            self._adjacency_users[index] = 0
            self._next_hops[index] = key
        self._adjacency_users[index] += 1
        return index

    def _release_adjacency(self, index: int) -> None:
        """One user less; the last one frees it. Only called when no worker can hold the user's reference."""
        self._adjacency_users[index] -= 1
        if self._adjacency_users[index] == 0:
            del self._adjacency_users[index]
            del self._adjacencies[self._next_hops.pop(index)]
            self.adjacencies[index]["valid"] = 0
            self._adjacency_slots.give(index)

    # --- SPD and routes ------------------------------------------------------------------------------

    def set_policies(self, policies: Sequence[PolicySpec], sas: Sequence[int]) -> list[int]:
        """Replace the whole SPD; `sas` are the outbound SAs' indices or NO_INDEX. Returns the policies' indices.

        The idle half of everything is filled and one store flips it, so `self.later` must be empty of the
        last replacement (the caller waits). Raises ValueError or OverflowError, and the old SPD stays.
        """
        limits = self.limits
        if len(policies) > limits.max_policies:
            raise OverflowError(f"{len(policies)} policies; the table holds {limits.max_policies}")
        first = (1 - self._policy_half) * limits.max_policies
        entries, candidates = policy_entries(policies, first, limits.max_candidates)
        if policies:
            rows = [policy_row(policy, sa) for policy, sa in zip(policies, sas, strict=True)]
            self.policies[first : first + len(rows)] = np.array(rows, layout.POLICY)
        lpm_publish(self.view, "spd", entries, candidates)
        self._policy_half = 1 - self._policy_half
        self.later.add(lambda: None)
        return list(range(first, first + len(policies)))

    def set_routes(self, routes: Sequence[RouteSpec], ports: dict[str, tuple[int, bytes]]) -> None:
        """Replace the whole route table; `ports` gives each port's index and MAC. As `set_policies` otherwise."""
        if len(routes) > self.limits.max_routes:
            raise OverflowError(f"{len(routes)} routes; the table holds {self.limits.max_routes}")
        taken: list[int] = []
        values: list[int] = []
        try:
            for route in routes:
                value = ROUTE_KERNEL if route.inside else NO_INDEX
                if route.adjacency is not None:
                    port, mac = ports[route.adjacency.port]
                    value = self._take_adjacency(route.adjacency, route.prefix.version, mac, port)
                    taken.append(value)
                values.append(value)
            entries: list[Entry] = route_entries(routes, values)
            lpm_publish(self.view, "routes", entries, [])
        except BaseException:
            for index in taken:
                self._release_adjacency(index)
            raise
        old, self._route_adjacencies = self._route_adjacencies, taken
        self.later.add(lambda: self._release_adjacencies(old))

    def _release_adjacencies(self, indices: Sequence[int]) -> None:
        for index in indices:
            self._release_adjacency(index)


def _plan(limits: Limits, workers: int, engine: int) -> tuple[Records, int]:
    """A header with every offset set, and the segment's size. Areas begin on pages of their own."""
    header = np.zeros(1, layout.HEADER)
    row = header[0]
    end = layout.HEADER.itemsize

    def place(size: int) -> int:
        nonlocal end
        at = -(-end // _PAGE) * _PAGE
        end = at + size
        return at

    spis = _power_of_two(2 * limits.max_sas)
    row["sas_offset"] = place(limits.max_sas * layout.SA.itemsize)
    row["spis_offset"] = place(spis * 8)
    row["policies_offset"] = place(2 * limits.max_policies * layout.POLICY.itemsize)
    row["selectors_offset"] = place(limits.max_selectors * layout.SELECTOR.itemsize)
    row["adjacencies_offset"] = place(limits.max_adjacencies * layout.ADJACENCY.itemsize)
    row["workers_offset"] = place(workers * layout.WORKER_COUNTERS.itemsize)
    row["sa_counters_offset"] = place(workers * limits.max_sas * layout.SA_COUNTERS.itemsize)
    row["acquires_offset"] = place(workers * layout.ACQUIRE_RING)
    for name, prefixes, candidates in (
        ("spd", limits.max_prefixes, limits.max_candidates),
        ("routes", limits.max_routes, 0),
    ):
        slots = _power_of_two(max(_LPM_SLOTS_PER_PREFIX * prefixes, CACHE_LINE))
        for half in row[name]["halves"]:
            half["slots_offset"] = place(slots * layout.LPM_SLOT.itemsize)
            half["candidates_offset"] = place(candidates * 4)
            half["capacity"] = slots
            half["candidates_capacity"] = candidates
    row["magic"] = layout.TABLES_MAGIC
    row["version"] = layout.TABLES_VERSION
    row["engine"] = engine
    row["generation"] = 1
    row["max_sas"] = limits.max_sas
    row["max_policies"] = 2 * limits.max_policies
    row["max_selectors"] = limits.max_selectors
    row["max_adjacencies"] = limits.max_adjacencies
    row["max_routes"] = limits.max_routes
    row["workers"] = workers
    row["spi_mask"] = spis - 1
    row["boot_id"] = secrets.randbits(64)
    size = -(-end // _PAGE) * _PAGE
    row["size"] = size
    return header, size


def _power_of_two(value: int) -> int:
    """The smallest power of two that is not below `value`."""
    return 1 << (value - 1).bit_length()
