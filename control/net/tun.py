"""The TUN device of a `tun` port: 1 give it addresses and MTU 2 bring it up 3 route to it.

The dataplane makes the device and keeps it while the gateway runs, so addresses and routes outlive a worker,
and go with the gateway. Behind each route lies a blackhole with the worst metric: when the gateway is killed and
the device with it, packets for the tunnel end there and do not follow the default route in clear. A clean stop
removes it; the next start takes it over.

Limit: routes go into the main table. A remote range that holds an SA's own peer would send the tunnel into
itself, so such a range gets no route and a warning says what to do.
"""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Iterable, Sequence
from ipaddress import summarize_address_range
from pathlib import Path

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from control.config import PortConfig
from dataplane.model import Action, Address, Direction, Network, PolicySpec, SaSpec

log = logging.getLogger("esplanade.tun")

RTPROT_STATIC = 4
WORST_METRIC = 0xFFFFFFFF


class TunError(Exception):
    """The device cannot be made or set up; the text says why and what to do."""


class TunDevice:
    """One TUN device of ours."""

    def __init__(self, config: PortConfig, mtu: int) -> None:
        self.name = config.interface
        self.mtu = mtu
        self._config = config
        self._index = 0
        self._routes: set[Network] = set()

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
        """No link-local address: the host's own multicast would come out of the device and match no policy."""
        path = Path(f"/proc/sys/net/ipv6/conf/{self.name}/addr_gen_mode")
        try:
            path.write_text("1\n")  # IN6_ADDR_GEN_MODE_NONE
        except OSError:
            pass  # no IPv6, or /proc/sys is read-only: the drops are harmless

    async def set_routes(self, policies: Iterable[PolicySpec], sas: Iterable[SaSpec]) -> None:
        """Route what policies protect or discard into the device; routes of earlier calls that are not wanted go."""
        if not self._config.routes:
            return
        wanted = set(routes_for(self.name, policies, sas))
        async with AsyncIPRoute() as netlink:
            for network in sorted(wanted - self._routes, key=str):
                await self._blackhole(netlink, "replace", network)
                await self._route(netlink, "add", network)
            for network in sorted(self._routes - wanted, key=str):
                await self._route(netlink, "del", network)
                await self._blackhole(netlink, "del", network)
        self._routes = wanted

    async def close(self) -> None:
        """Remove the blackholes; the routes go with the device."""
        async with AsyncIPRoute() as netlink:
            for network in sorted(self._routes, key=str):
                await self._blackhole(netlink, "del", network)
        self._routes = set()

    async def _blackhole(self, netlink: AsyncIPRoute, verb: str, network: Network) -> None:
        family = socket.AF_INET if network.version == 4 else socket.AF_INET6
        try:
            await netlink.route(
                verb,
                dst=str(network),
                type="blackhole",
                priority=WORST_METRIC,
                family=family,
                proto=RTPROT_STATIC,
            )
        except NetlinkError as error:
            if not (verb == "del" and error.code == errno.ESRCH):
                log.error("%s: cannot %s the blackhole for %s: %s", self.name, verb, network, error)

    async def _route(self, netlink: AsyncIPRoute, verb: str, network: Network) -> None:
        family = socket.AF_INET if network.version == 4 else socket.AF_INET6
        try:
            await netlink.route(verb, dst=str(network), oif=self._index, family=family, proto=RTPROT_STATIC)
        except NetlinkError as error:
            if verb == "del" and error.code == errno.ESRCH:
                return  # someone else removed it
            if error.code == errno.EEXIST:
                log.error(
                    "%s: no route to %s, because there is one already, and it was not made by us; remove it "
                    "(ip route del %s), or set routes = false on the port",
                    self.name,
                    network,
                    network,
                )
                return
            log.error("%s: cannot %s the route to %s: %s", self.name, verb, network, error)


def routes_for(device: str, policies: Iterable[PolicySpec], sas: Iterable[SaSpec]) -> list[Network]:
    """The networks that lead into the device: remote ranges of protect and discard policies, each once."""
    peers = {sa.remote for sa in sas if sa.direction is Direction.OUT}
    found: dict[Network, None] = {}
    for policy in policies:
        if policy.action is Action.BYPASS:
            continue
        first, last = policy.selector.remote_first, policy.selector.remote_last
        inside = [
            peer
            for peer in sorted(peers, key=str)
            if peer.version == first.version and _within(peer, first, last)
        ]
        if inside:
            log.warning(
                "%s: no route for policy %s (%s-%s), because the peer %s is inside and the tunnel would swallow "
                "itself; route that peer first (ip route add %s via ...), then the range to dev %s",
                device,
                policy.name,
                first,
                last,
                inside[0],
                inside[0],
                device,
            )
            continue
        found.update(dict.fromkeys(networks(first, last)))
    return list(found)


def networks(first: Address, last: Address) -> Sequence[Network]:
    """The fewest prefixes that make up an inclusive range."""
    return list(summarize_address_range(first, last))


def _within(address: Address, first: Address, last: Address) -> bool:
    return int(first) <= int(address) <= int(last)
