"""Addresses lent to remote clients (RFC 7296 section 3.15): 1 the one asked for 2 the one had before 3 a new one.

    address = pools.lease(("office",), 4, "carol", wanted=None)      pools.release(address) when the IKE SA goes

Leases are sticky: who comes back gets the address of last time, as long as nobody else needed it. Addresses never lent
come first; then those longest given back. The same client may ask for an address that it still holds (it authenticates
anew, and the old IKE SA is not yet gone): it is lent twice, and free when both have given it back.

Leases live in memory and end with the daemon, as the IKE SAs do.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from control.ike.errors import PeerError
from control.ike.numbers import NotifyType
from control.ike.settings import PoolSettings
from dataplane.model import Address

MAX_REMEMBERED = 65536  # addresses given back whose last holder is known


@dataclass(frozen=True, kw_only=True)
class PoolStatus:
    """What a pool has, for `esplanade status`."""

    name: str
    size: int
    online: int  # addresses lent now
    remembered: int  # addresses given back that are kept for their last holder


class _Lease:
    """An address that somebody has."""

    __slots__ = ("holders", "identity")

    def __init__(self, identity: str) -> None:
        self.identity = identity
        self.holders = 1


class Pool:
    """One pool: addresses of both families by their own rules."""

    def __init__(self, settings: PoolSettings) -> None:
        self.settings = settings
        self._online: dict[Address, _Lease] = {}
        # Identity by address, longest given back first.
        self._offline: OrderedDict[Address, str] = OrderedDict()
        self._kept: dict[str, list[Address]] = {}  # the same, by identity
        self._next = {4: 0, 6: 0}  # how many of each family's addresses have ever been lent

    @property
    def name(self) -> str:
        """The name in the configuration."""
        return self.settings.name

    @property
    def status(self) -> PoolStatus:
        """Numbers of addresses."""
        return PoolStatus(
            name=self.name,
            size=self.size(4) + self.size(6),
            online=len(self._online),
            remembered=len(self._offline),
        )

    def size(self, version: int) -> int:
        """How many addresses of a family there are."""
        return sum(int(last) - int(first) + 1 for first, last in self._ranges(version))

    def holds(self, address: Address) -> bool:
        """True where the address is one of this pool's."""
        value = int(address)
        return any(int(first) <= value <= int(last) for first, last in self._ranges(address.version))

    def lease(self, version: int, identity: str, wanted: Address | None) -> Address | None:
        """An address for a client; None when all are lent."""
        for address in ([wanted] if wanted is not None else []) + self._kept.get(identity, []):
            if address.version == version and self.holds(address) and self._take(address, identity, wanted):
                return address
        found = self._unused(version) or self._longest_free(version)
        if found is not None:
            self._take(found, identity, found)
        return found

    def release(self, address: Address) -> None:
        """Give an address back; it is kept for its holder until it is needed."""
        lease = self._online.get(address)
        if lease is None:
            return
        lease.holders -= 1
        if lease.holders:
            return
        del self._online[address]
        self._offline[address] = lease.identity
        self._kept.setdefault(lease.identity, []).append(address)
        if len(self._offline) > MAX_REMEMBERED:
            self._forget(next(iter(self._offline)))
            # What is forgotten may be found again by walking the ranges anew.
            self._next = {4: 0, 6: 0}

    def adopt(self, other: Pool) -> None:
        """Take over the leases of a pool that this one replaces, as far as its addresses are still here."""
        self._online = {address: lease for address, lease in other._online.items() if self.holds(address)}
        for address, identity in other._offline.items():
            if self.holds(address):
                self._offline[address] = identity
                self._kept.setdefault(identity, []).append(address)

    def full(self, version: int) -> str:
        """Why `lease` gave none."""
        size = self.size(version)
        if size == 0:
            return f"pool '{self.name}' has no IPv{version} addresses"
        ranges = ", ".join(f"{first}-{last}" for first, last in self._ranges(version)[:4])
        return f"all {size} IPv{version} addresses of pool '{self.name}' ({ranges}) are lent"

    def _ranges(self, version: int) -> list[tuple[Address, Address]]:
        return [pair for pair in self.settings.ranges if pair[0].version == version]

    def _take(self, address: Address, identity: str, wanted: Address | None) -> bool:
        """Lend `address` if it is free for this client."""
        lease = self._online.get(address)
        if lease is not None:
            if lease.identity != identity or address != wanted:
                return False
            lease.holders += 1
            return True
        keeper = self._offline.get(address)
        if (
            keeper is not None
            and keeper != identity
            and address == wanted
            and self._unused_left(address.version)
        ):
            return False  # it is kept for another, and there are others for this one
        if keeper is not None:
            self._forget(address)
        self._online[address] = _Lease(identity)
        return True

    def _forget(self, address: Address) -> None:
        identity = self._offline.pop(address)
        kept = self._kept[identity]
        kept.remove(address)
        if not kept:
            del self._kept[identity]

    def _unused_left(self, version: int) -> bool:
        return self._next[version] < self.size(version)

    def _unused(self, version: int) -> Address | None:
        """The first address that was never lent; each is passed once."""
        while self._unused_left(version):
            index = self._next[version]
            self._next[version] += 1
            for first, last in self._ranges(version):
                count = int(last) - int(first) + 1
                if index < count:
                    address = first + index
                    if address not in self._online and address not in self._offline:
                        return address
                    break
                index -= count
        return None

    def _longest_free(self, version: int) -> Address | None:
        return next((address for address in self._offline if address.version == version), None)


class Pools:
    """All pools of a gateway."""

    def __init__(self, settings: Iterable[PoolSettings] = ()) -> None:
        self._pools = {each.name: Pool(each) for each in settings}

    def set(self, settings: Iterable[PoolSettings]) -> None:
        """Another configuration: leases of addresses that are still there go on."""
        old, self._pools = self._pools, {each.name: Pool(each) for each in settings}
        for name, pool in self._pools.items():
            if name in old:
                pool.adopt(old[name])

    @property
    def status(self) -> list[PoolStatus]:
        """Every pool's numbers."""
        return [pool.status for pool in self._pools.values()]

    def settings(self, names: Sequence[str]) -> list[PoolSettings]:
        """The settings of pools by name, those that there are."""
        return [self._pools[name].settings for name in names if name in self._pools]

    def lease(
        self, names: Sequence[str], version: int, identity: str, wanted: Address | None = None
    ) -> Address:
        """An address of the first of these pools that has one; PeerError (INTERNAL_ADDRESS_FAILURE) if none has.

        `wanted` is what the client asks for: it gets that if it can. `identity` is who it has proven to be.
        """
        reasons = []
        for name in names:
            pool = self._pools.get(name)
            if pool is None:
                reasons.append(f"there is no pool '{name}'")
                continue
            address = pool.lease(version, identity, wanted)
            if address is not None:
                return address
            reasons.append(pool.full(version))
        raise PeerError(
            NotifyType.INTERNAL_ADDRESS_FAILURE,
            f"'{identity}' asks for an IPv{version} address: {'; '.join(reasons) or 'no pool is configured'}",
            advice="give the connection a pool with more addresses, or take idle clients down",
        )

    def release(self, address: Address) -> None:
        """Give a lent address back; one that was not lent is no matter."""
        for pool in self._pools.values():
            if pool.holds(address):
                pool.release(address)
                return
