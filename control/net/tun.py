"""The TUN device of a `tun` port: 1 give it addresses and MTU 2 bring it up 3 route to it.

The dataplane makes the device and keeps it while the gateway runs, so addresses and routes outlive a worker,
and go with the gateway. Behind each route lies a blackhole with the worst metric: when the gateway is killed and
the device with it, packets for the tunnel end there and do not follow the default route in clear. A clean stop
removes it; the next start takes it over, or removes it where nothing of its own leads there (`remove_left_behind`).

A remote range may hold the peers themselves (a client that sends everything through its server): their addresses are
left out of it, so outer packets go the way they went before. What policies say of traffic with the peer itself is led
in by the rules of host.py. Limit: routes go into the main table.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import lru_cache
from ipaddress import summarize_address_range
from pathlib import Path

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from control.config import PortConfig
from control.net.routes import RouteChange, RouteSocket
from dataplane.model import Action, Address, Network, PolicySpec

log = logging.getLogger("esplanade.tun")


class TunError(Exception):
    """The device cannot be made or set up; the text says why and what to do."""


class TunDevice:
    """One TUN device of ours."""

    def __init__(self, config: PortConfig, mtu: int) -> None:
        self.name = config.interface
        self.mtu = mtu
        self._config = config
        self._index = 0
        # What is routed to it, and the source address of each route, where one is wanted.
        self._routes: dict[Network, Address | None] = {}
        self._changing = asyncio.Lock()
        self._socket: RouteSocket | None = None

    @property
    def index(self) -> int:
        """The interface's number; 0 before `open`."""
        return self._index

    @property
    def routes(self) -> Collection[Network]:
        """The networks that lead into it."""
        return self._routes.keys()

    async def open(self) -> None:
        """Give the device its addresses and MTU and bring it up. TunError says why that cannot be."""
        try:
            async with AsyncIPRoute() as netlink:
                found = await netlink.link_lookup(ifname=self.name)
                self._index = int(found[0])
                self._quieten()
                await netlink.link("set", index=self._index, mtu=self.mtu, state="up")
                for interface in self._config.addresses:
                    await netlink.addr(
                        "replace",
                        index=self._index,
                        address=str(interface.ip),
                        prefixlen=interface.network.prefixlen,
                    )
        except (NetlinkError, IndexError) as error:
            raise TunError(f"{self.name}: the device cannot be set up: {error}") from None

    def _quieten(self) -> None:
        """No link-local address: the host's own multicast would come out. Sources are the SPD's to check."""
        settings = {
            f"ipv6/conf/{self.name}/addr_gen_mode": "1",  # IN6_ADDR_GEN_MODE_NONE
            # Our ICMP errors come from an address of this host, and the path back may be another rule's.
            f"ipv4/conf/{self.name}/accept_local": "1",
            f"ipv4/conf/{self.name}/rp_filter": "2",
        }
        for name, value in settings.items():
            # No IPv6, or /proc/sys is read-only: what is lost then is not worth a stop.
            with contextlib.suppress(OSError):
                Path("/proc/sys/net", name).write_text(f"{value}\n")

    async def set_routes(
        self, policies: Iterable[PolicySpec], peers: Iterable[Address], own: Iterable[Address] = ()
    ) -> None:
        """Route what policies protect or discard into the device; routes of earlier calls that are not wanted go.

        `peers` are where outer packets go to, `own` this host's addresses.
        """
        if not self._config.routes:
            return
        async with self._changing:
            wanted = routes_for(policies, peers, own)
            changes: list[RouteChange] = []
            there = self._routes
            new = [
                (network, source)
                for network, source in wanted.items()
                if network not in there or there[network] != source
            ]
            for network, source in sorted(new, key=lambda each: _order(each[0])):
                if network not in there:
                    changes.append(RouteChange(verb="replace", network=network))
                changes.append(self._route("replace" if network in there else "add", network, source))
            for network in sorted(there.keys() - wanted.keys(), key=_order):
                changes.append(self._route("del", network))
                changes.append(RouteChange(verb="del", network=network))
            self._change(changes)
            self._routes = wanted

    async def close(self) -> None:
        """Remove the blackholes; the routes go with the device."""
        self._change(
            [RouteChange(verb="del", network=network) for network in sorted(self._routes, key=_order)]
        )
        self._routes = {}
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _route(self, verb: str, network: Network, source: Address | None = None) -> RouteChange:
        return RouteChange(verb=verb, network=network, interface=self._index, source=source)

    def _change(self, changes: Sequence[RouteChange]) -> None:
        """Have them done; what the kernel refuses is logged."""
        if not changes:
            return
        if self._socket is None:
            self._socket = RouteSocket()
        for change, error in zip(changes, self._socket.change(changes), strict=True):
            if error is None or (change.verb == "del" and error.errno == errno.ESRCH):
                continue  # ESRCH: someone else removed it
            network, what = change.network, "blackhole for" if change.interface is None else "route to"
            if error.errno == errno.EEXIST:
                log.error(
                    "%s: no route to %s, because there is one already, and it was not made by us; remove it "
                    "(ip route del %s), or set routes = false on the port",
                    self.name,
                    network,
                    network,
                )
            else:
                log.error(
                    "%s: cannot %s the %s %s: %s", self.name, change.verb, what, network, error.strerror
                )


def remove_left_behind(devices: Iterable[TunDevice]) -> None:
    """Remove blackholes of a run that was killed, which none of these devices has taken over.

    To be called when everything that is to be held closed has its routes. Limit: of another gateway in the same
    namespace that was killed, too, and has not been started again.
    """
    routing = RouteSocket()
    try:
        kept = {network for device in devices for network in device.routes}
        left = [network for network in routing.left_behind() if network not in kept]
        results = routing.change([RouteChange(verb="del", network=network) for network in left])
    finally:
        routing.close()
    for network, error in zip(left, results, strict=True):
        if error is not None and error.errno != errno.ESRCH:
            log.error("cannot remove the blackhole for %s of an earlier run: %s", network, error.strerror)
    if left:
        log.info("blackholes of an earlier run are removed: %s", ", ".join(map(str, left[:8])))


def _order(network: Network) -> tuple[int, int, int]:
    return network.version, int(network.network_address), network.prefixlen


def routes_for(
    policies: Iterable[PolicySpec], peers: Iterable[Address], own: Iterable[Address] = ()
) -> dict[Network, Address | None]:
    """The networks that lead into the device, and the source address of each that has one.

    They are the remote ranges of protect and discard policies, less the peers themselves: outer packets must not go
    into the tunnel again. A policy for one address of this host alone has packets leave with that address.
    """
    ours, outside = frozenset(own), sorted(set(peers), key=lambda peer: (peer.version, int(peer)))
    # What follows from a selector is kept with it for as long as the addresses stay: an SPD comes again and again.
    addresses = _addresses(ours, tuple(outside))
    found: dict[Network, Address | None] = {}
    for policy in policies:
        if policy.action is Action.BYPASS:
            continue
        selector = policy.selector
        known = selector.memo.get("tun routes")
        if known is None or known[0] is not addresses:
            alone = selector.local_first == selector.local_last and selector.local_first in ours
            networks = _without(selector.remote_first, selector.remote_last, outside)
            known = selector.memo["tun routes"] = (
                addresses,
                tuple((network, selector.local_first if alone else None) for network in networks),
            )
        for network, source in known[1]:
            found.setdefault(network, source)
    return found


@lru_cache(maxsize=8)
def _addresses(
    ours: frozenset[Address], outside: tuple[Address, ...]
) -> tuple[frozenset[Address], tuple[Address, ...]]:
    """One object for equal addresses, which can be known again without looking into it."""
    return ours, outside


def _without(first: Address, last: Address, outside: Iterable[Address]) -> Iterable[Network]:
    """The fewest prefixes that make up an inclusive range but for some addresses, which are in order."""
    inside = tuple(
        each for each in outside if each.version == first.version and int(first) <= int(each) <= int(last)
    )
    return _prefixes(first, last, inside)


@lru_cache(maxsize=4096)
def _prefixes(first: Address, last: Address, outside: tuple[Address, ...]) -> tuple[Network, ...]:
    return tuple(_between(first, last, outside))


def _between(first: Address, last: Address, outside: tuple[Address, ...]) -> Iterator[Network]:
    kind = type(first)
    at, end = int(first), int(last)
    for each in outside:
        if at < int(each):
            yield from networks(kind(at), kind(int(each) - 1))
        at = int(each) + 1
    if at <= end:
        yield from networks(kind(at), kind(end))


def networks(first: Address, last: Address) -> Sequence[Network]:
    """The fewest prefixes that make up an inclusive range."""
    return list(summarize_address_range(first, last))
