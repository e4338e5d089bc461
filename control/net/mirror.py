"""The mirror of the kernel's links, addresses, routes and neighbours, and what follows from it.

Walk: 1 netlink messages change the tables 2 `routes()` says where each destination of decrypted packets
leaves 3 `sa_adjacency()` says where an SA's outer packets leave 4 `stale()` names the neighbours to refresh.
No sockets and no clock in here: `netlink.py` feeds it.

Limits: the main routing table only (policy rules enter through the kernel's own answers for SA peers, not
for decrypted packets); of a multipath route the first usable hop is taken; anything this mirror does not
understand goes to the kernel, which does. Routes are told as a whole: tables of a few ten thousand are fine, the
whole Internet's are not.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any

from dataplane.model import Address, AdjacencySpec, Network, Role, RouteSpec

Message = Mapping[str, Any]  # a netlink message as pyroute2 decodes it
NeighbourKey = tuple[int, Address]  # interface index, address

RT_TABLE_MAIN = 254
RTN_UNICAST = 1
RTM_F_CLONED = 0x200
NLM_F_APPEND = 0x800
IFF_UP = 0x1
IFF_RUNNING = 0x40
# include/uapi/linux/neighbour.h
NUD_REACHABLE, NUD_STALE, NUD_DELAY, NUD_PROBE, NUD_NOARP, NUD_PERMANENT = 0x02, 0x04, 0x08, 0x10, 0x40, 0x80
NUD_VALID = NUD_REACHABLE | NUD_STALE | NUD_DELAY | NUD_PROBE | NUD_NOARP | NUD_PERMANENT

DEFAULTS: dict[int, Network] = {
    socket.AF_INET: IPv4Network("0.0.0.0/0"),
    socket.AF_INET6: IPv6Network("::/0"),
}


@dataclass(frozen=True, kw_only=True)
class MirrorPort:
    """A port as the mirror needs it."""

    name: str
    role: Role
    driver: str
    interface: str  # "" for udp and raw

    @property
    def has_link_header(self) -> bool:
        """True where packets leave behind an Ethernet header."""
        return self.driver in ("xdp", "packet")


@dataclass(frozen=True, kw_only=True)
class Link:
    """A network interface of this namespace."""

    index: int
    name: str
    mac: bytes
    mtu: int
    up: bool  # administratively up, with carrier


@dataclass(frozen=True, kw_only=True)
class Neighbour:
    """A neighbour entry; `mac` is empty while it is unresolved."""

    mac: bytes
    state: int

    @property
    def valid(self) -> bool:
        """True when packets may be sent to `mac`."""
        return bool(self.state & NUD_VALID) and len(self.mac) == 6


@dataclass(frozen=True, kw_only=True)
class Hop:
    """One next hop of a route; `gateway` None means that the destination is on the link."""

    interface: int
    gateway: Address | None


@dataclass(frozen=True, kw_only=True)
class Route:
    """A route of the main table."""

    prefix: Network
    unicast: bool  # False: blackhole, unreachable, prohibit, throw
    hops: tuple[Hop, ...]
    mtu: int = 0  # 0: that of the link


@dataclass(frozen=True, kw_only=True)
class PeerRoute:
    """The kernel's answer for one destination: how a packet to `destination` leaves."""

    destination: Address
    hop: Hop
    mtu: int = 0  # path MTU the kernel knows, 0: that of the link

    @property
    def neighbour(self) -> NeighbourKey:
        """The neighbour that takes such a packet."""
        return self.hop.interface, self.hop.gateway or self.destination


@dataclass(frozen=True, kw_only=True)
class Way:
    """How an SA's outer packets leave; without adjacency the kernel is asked, without MTU there is no route."""

    adjacency: AdjacencySpec | None = None
    mtu: int | None = None


class Mirror:
    """The kernel's tables as last told, and the dataplane's tables that follow from them."""

    def __init__(self, ports: Iterable[MirrorPort]) -> None:
        self.ports = tuple(ports)
        self.links: dict[int, Link] = {}
        self.addresses: set[NeighbourKey] = set()
        self.neighbours: dict[NeighbourKey, Neighbour] = {}
        # The kernel drops routes without a word when a link goes down or an address goes; it is asked anew then.
        self.routes_in_doubt = False
        self._bound: dict[int, MirrorPort] = {}  # by interface index: a renamed interface stays the port's
        self._routes: dict[tuple[Network, int, int], Route] = {}  # by prefix, metric, TOS
        self._appended: set[tuple[Network, int, int]] = set()  # IPv4 keys that hide further routes

    # 1 -- netlink messages change the tables

    def clear(self) -> None:
        """Forget everything: a dump follows."""
        self.links.clear()
        self._bound.clear()
        self.addresses.clear()
        self.neighbours.clear()
        self.clear_routes()

    def clear_routes(self) -> None:
        """Forget the routes: a dump of them follows."""
        self._routes.clear()
        self._appended.clear()
        self.routes_in_doubt = False

    def apply(self, message: Message) -> str:
        """Enter one message; returns what it changed: link, address, route, neighbour, or "" for nothing that counts.

        A neighbour whose entry only ages is entered and does not count: packets go on as before.
        """
        event = str(message.get("event", ""))
        deleted = event.startswith("RTM_DEL")
        if event.endswith("LINK"):
            return self._apply_link(message, deleted)
        if event.endswith("ADDR"):
            return self._apply_address(message, deleted)
        if event.endswith("ROUTE"):
            return self._apply_route(message, deleted)
        if event.endswith("NEIGH"):
            return self._apply_neighbour(message, deleted)
        return ""

    def _apply_link(self, message: Message, deleted: bool) -> str:
        index = int(message["index"])
        if message.get("family", 0) == socket.AF_BRIDGE:
            return ""  # a bridge tells of its ports with RTM_DELLINK of this family; the link itself stays
        held = self.links.get(index)
        if deleted:
            self.routes_in_doubt = True
            self._bound.pop(index, None)
            return "link" if self.links.pop(index, None) is not None else ""
        flags = int(message["flags"])
        link = Link(
            index=index,
            name=str(message.get("ifname") or ""),
            mac=_mac(message.get("address")),
            mtu=int(message.get("mtu") or 0),
            up=bool(flags & IFF_UP) and bool(flags & IFF_RUNNING),
        )
        if held == link:
            return ""
        if held is not None and held.up and not link.up:
            self.routes_in_doubt = True
        self.links[index] = link
        port = next((port for port in self.ports if port.interface == link.name), None)
        if port is not None and index not in self._bound and port not in self._bound.values():
            self._bound[index] = port
        return "link"

    def _apply_address(self, message: Message, deleted: bool) -> str:
        text = message.get("local") or message.get("address")
        if not text:
            return ""
        entry = (int(message["index"]), ip_address(text))
        if deleted == (entry not in self.addresses):
            return ""
        if deleted:
            self.addresses.discard(entry)
            self.routes_in_doubt = True
        else:
            self.addresses.add(entry)
        return "address"

    def _apply_route(self, message: Message, deleted: bool) -> str:
        """A change of an IPv4 route; IPv6 tells of one hop at a time, so its table is asked for anew."""
        if not _is_main_route(message):
            return ""
        if int(message["family"]) == socket.AF_INET6:
            self.routes_in_doubt = True
            return "route"
        key, route = _route(message)
        held = self._routes.get(key)
        if deleted:
            if held is None or held.hops != route.hops or key in self._appended:
                self.routes_in_doubt = True
            else:
                del self._routes[key]
            return "route"
        if held is not None and int(message["header"].get("flags", 0)) & NLM_F_APPEND:
            self._appended.add(key)  # the first of several routes with one key is used
            return ""
        if held == route:
            return ""
        self._routes[key] = route
        return "route"

    def load_route(self, message: Message) -> None:
        """Enter one route of a dump; IPv6 dumps the hops of one prefix as separate routes."""
        if not _is_main_route(message):
            return
        key, route = _route(message)
        held = self._routes.get(key)
        if held is not None and int(message["family"]) == socket.AF_INET6:
            route = Route(prefix=held.prefix, unicast=held.unicast, hops=held.hops + route.hops, mtu=held.mtu)
        elif held is not None:
            self._appended.add(key)
            return
        self._routes[key] = route

    def _apply_neighbour(self, message: Message, deleted: bool) -> str:
        text = message.get("dst")
        if not text or message.get("family") not in (socket.AF_INET, socket.AF_INET6):
            return ""
        key = (int(message["ifindex"]), ip_address(text))
        neighbour = Neighbour(mac=_mac(message.get("lladdr")), state=int(message.get("state") or 0))
        held = self.neighbours.get(key)
        if deleted:
            self.neighbours.pop(key, None)
            return "neighbour" if held is not None and held.valid else ""
        self.neighbours[key] = neighbour
        was_valid = held is not None and held.valid
        same = held is not None and held.mac == neighbour.mac
        return "" if was_valid == neighbour.valid and (same or not neighbour.valid) else "neighbour"

    # 2 -- where decrypted packets leave

    def local_addresses(self) -> list[Address]:
        """The host's own addresses, each once, in order."""
        return sorted(
            {address for _, address in self.addresses}, key=lambda address: (address.version, int(address))
        )

    def routes(self) -> list[RouteSpec]:
        """Every route of decrypted packets, in a fixed order.

        Own addresses and whatever does not leave by a protected port go to the kernel, or into the TUN device
        where there is one. Destinations on a connected subnet are host routes of their neighbours.
        """
        fallback = self._fallback()
        table: dict[Network, AdjacencySpec | None] = dict.fromkeys(DEFAULTS.values(), fallback)
        inside: set[Network] = set()
        best = self._best_routes()
        for prefix, route in best.items():
            table[prefix] = self._route_adjacency(route, fallback)
            if self._leads_inside(route):
                inside.add(prefix)
        for (interface, address), neighbour in self.neighbours.items():
            port = self._port_of(interface)
            if (
                port is None
                or port.role is not Role.PROTECTED
                or address.is_link_local
                or address.is_multicast
            ):
                continue
            if neighbour.valid and _on_link(best, address, interface):
                table[ip_network(address)] = self._adjacency(port, interface, neighbour)
        for address in self.local_addresses():
            table[ip_network(address)] = fallback
            inside.add(ip_network(address))
        order = sorted(
            table, key=lambda prefix: (prefix.version, int(prefix.network_address), prefix.prefixlen)
        )
        return [
            RouteSpec(
                prefix=prefix, adjacency=table[prefix], inside=table[prefix] is not None or prefix in inside
            )
            for prefix in order
        ]

    def _leads_inside(self, route: Route) -> bool:
        """Some hop of the route is on a protected port."""
        ports = (self._port_of(hop.interface) for hop in route.hops)
        return any(port is not None and port.role is Role.PROTECTED for port in ports)

    def _fallback(self) -> AdjacencySpec | None:
        """Where packets go that no protected Ethernet port takes: the first TUN device, else the kernel."""
        for port in self.ports:
            if port.driver == "tun":
                link = self.link_of(port)
                return AdjacencySpec(port=port.name, mtu=link.mtu if link is not None and link.mtu else 1500)
        return None

    def _best_routes(self) -> dict[Network, Route]:
        """For each prefix the route of the lowest metric; routes for one TOS value only are left out."""
        best: dict[Network, tuple[int, Route]] = {}
        for (prefix, metric, tos), route in self._routes.items():
            if tos == 0 and not prefix.is_link_local and (prefix not in best or metric < best[prefix][0]):
                best[prefix] = (metric, route)
        return {prefix: route for prefix, (_, route) in best.items()}

    def _route_adjacency(self, route: Route, fallback: AdjacencySpec | None) -> AdjacencySpec | None:
        """The adjacency of a route through a gateway on a protected port; else `fallback`."""
        for hop in route.hops if route.unicast else ():
            port = self._port_of(hop.interface)
            if port is None or port.role is not Role.PROTECTED or hop.gateway is None:
                continue
            neighbour = self.neighbours.get((hop.interface, hop.gateway))
            if neighbour is not None and neighbour.valid:
                return self._adjacency(port, hop.interface, neighbour, route.mtu)
        return fallback

    # 3 -- where outer packets leave

    def sa_adjacency(self, answer: PeerRoute | None, *, encapsulated: bool) -> AdjacencySpec | None:
        """How the outer packets of an SA leave, from the kernel's answer for its peer; None asks the kernel.

        A port with link header needs a valid neighbour. Socket ports need none: `encapsulated` picks udp or raw.
        """
        if answer is None:
            return None
        port = self._port_of(answer.hop.interface)
        if port is not None and port.role is Role.UNPROTECTED:
            neighbour = self.neighbours.get(answer.neighbour)
            if neighbour is None or not neighbour.valid:
                return None
            return self._adjacency(port, answer.hop.interface, neighbour, answer.mtu)
        wanted = "udp" if encapsulated else "raw"
        for port in self.ports:
            if port.driver == wanted:
                return AdjacencySpec(port=port.name, mtu=self._mtu(answer.hop.interface, answer.mtu))
        return None

    def path_mtu(self, answer: PeerRoute) -> int:
        """The largest outer packet towards a peer, bytes."""
        return self._mtu(answer.hop.interface, answer.mtu)

    def _adjacency(
        self, port: MirrorPort, interface: int, neighbour: Neighbour, mtu: int = 0
    ) -> AdjacencySpec:
        return AdjacencySpec(port=port.name, destination_mac=neighbour.mac, mtu=self._mtu(interface, mtu))

    def _mtu(self, interface: int, route_mtu: int) -> int:
        """The MTU of a route or of its link, whichever is smaller; AdjacencySpec holds 16 bits."""
        link = self.links.get(interface)
        limit = link.mtu if link is not None and link.mtu else 1500
        return min(route_mtu or limit, limit, 65535)

    # 4 -- neighbours to keep fresh

    def next_hops(self, answers: Iterable[PeerRoute]) -> set[NeighbourKey]:
        """The neighbours that SAs and routes through gateways need, resolved or not."""
        wanted = {answer.neighbour for answer in answers if self._port_of(answer.hop.interface) is not None}
        for route in self._routes.values():
            for hop in route.hops:
                if route.unicast and hop.gateway is not None and self._port_of(hop.interface) is not None:
                    wanted.add((hop.interface, hop.gateway))
        return wanted

    def stale(self, next_hops: set[NeighbourKey]) -> list[NeighbourKey]:
        """Neighbours in use whose entry the kernel no longer trusts."""
        found = []
        for (interface, address), neighbour in self.neighbours.items():
            port = self._port_of(interface)
            if port is None or neighbour.state != NUD_STALE or not neighbour.valid:
                continue
            if (interface, address) in next_hops or (
                port.role is Role.PROTECTED and not address.is_link_local
            ):
                found.append((interface, address))
        return found

    # helpers

    def link_of(self, port: MirrorPort) -> Link | None:
        """The interface under a port, whatever it is called now; None while it is gone."""
        return next((self.links.get(index) for index, bound in self._bound.items() if bound == port), None)

    def addresses_of(self, port: MirrorPort) -> list[Address]:
        """The addresses of a port's interface, IPv4 first, link-local ones last."""
        link = self.link_of(port)
        found = [address for index, address in self.addresses if link is not None and index == link.index]
        return sorted(found, key=lambda address: (address.version, address.is_link_local, int(address)))

    def _port_of(self, interface: int) -> MirrorPort | None:
        """The Ethernet port on an interface."""
        port = self._bound.get(interface)
        return port if port is not None and port.has_link_header else None


def peer_route(destination: Address, message: Message) -> PeerRoute | None:
    """The kernel's answer to RTM_GETROUTE; None when it is no unicast route out of an interface."""
    hops = _hops(message)
    if int(message["type"]) != RTN_UNICAST or not hops:
        return None
    return PeerRoute(destination=destination, hop=hops[0], mtu=_metric_mtu(message))


def _on_link(best: Mapping[Network, Route], address: Address, interface: int) -> bool:
    """True when the longest matching route says that `address` is on the link of `interface`."""
    bits = 32 if address.version == 4 else 128
    for length in range(bits, -1, -1):
        route = best.get(ip_network((address.packed, length), strict=False))
        if route is not None:
            return route.unicast and any(
                hop.interface == interface and hop.gateway is None for hop in route.hops
            )
    return False


def _is_main_route(message: Message) -> bool:
    """True for an IP route of the main table, and none of the cache's clones."""
    family, flags = int(message["family"]), int(message.get("flags", 0))
    table = int(message.get("table") or 0)
    return family in DEFAULTS and table == RT_TABLE_MAIN and not flags & RTM_F_CLONED


def _route(message: Message) -> tuple[tuple[Network, int, int], Route]:
    """A route message as key and route."""
    destination = message.get("dst")
    prefix: Network = DEFAULTS[int(message["family"])]
    if destination:
        prefix = ip_network(f"{destination}/{int(message['dst_len'])}", strict=False)
    key = (prefix, int(message.get("priority") or 0), int(message.get("tos") or 0))
    unicast = int(message["type"]) == RTN_UNICAST
    return key, Route(prefix=prefix, unicast=unicast, hops=_hops(message), mtu=_metric_mtu(message))


def _metric_mtu(message: Message) -> int:
    """RTAX_MTU of a route, 0 when it has none."""
    metrics = message.get("metrics")
    return int(metrics.get("mtu") or 0) if metrics is not None else 0


def _hops(message: Message) -> tuple[Hop, ...]:
    """The next hops of a route message, single or multipath."""
    found = []
    for entry in message.get("multipath") or [message]:
        interface = entry.get("oif")
        gateway, via = entry.get("gateway"), entry.get("via")
        if gateway is None and via:
            gateway = via.get("addr")  # RTA_VIA: an IPv4 route through an IPv6 gateway
        if interface:
            found.append(Hop(interface=int(interface), gateway=ip_address(gateway) if gateway else None))
    return tuple(found)


def _mac(text: object) -> bytes:
    """An Ethernet address in bytes; empty when there is none or it is no Ethernet address (loopback's is zero)."""
    if not isinstance(text, str) or text.count(":") != 5:
        return b""
    mac = bytes.fromhex(text.replace(":", ""))
    return mac if any(mac) else b""
