"""Several peers behind one NAT in transport mode: all their packets have its address (RFC 7296 section 2.23.1).

Two L2TP clients (RFC 3193) want the same: UDP between their port 1701 and ours. Inbound their SPIs tell them apart, but
this host's own sockets see packets of one address and port, and what they answer could be for either. So each but the
first is given another port here: the one that its NAT has given to its IKE and ESP, which no other peer behind it has.
Packets of its SA come in with that port in the place of the peer's own, and go out the other way round, as a NAT
without IPsec would have it. That takes selectors that name one UDP or TCP port of the peer's; others are refused, for
with them packets of one peer could go to the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from control.ike.events import ChildSa, PeerPath
from dataplane.api import DataPlaneError
from dataplane.model import Mode, SelectorSpec

PORT_PROTOCOLS = (6, 17)  # whose ports and checksums can be changed

Ports = tuple[int, int]  # the peer's own, and the one by which it is known here


class Neighbour(Protocol):
    """A child that is installed."""

    sa: ChildSa
    ike: int
    path: PeerPath
    encapsulated: bool
    selectors: tuple[SelectorSpec, ...]
    nat_ports: Ports | None


@dataclass(frozen=True, kw_only=True)
class Apart:
    """How a child's packets are known here."""

    selectors: tuple[SelectorSpec, ...]
    ports: Ports | None = None


def keep_apart(child: ChildSa, selectors: tuple[SelectorSpec, ...], installed: Iterable[Neighbour]) -> Apart:
    """Selectors and ports for a new child; DataPlaneError where it and another peer's cannot be told apart."""
    if child.mode is not Mode.TRANSPORT or not child.encapsulated:
        return Apart(selectors=selectors)
    others = [
        each
        for each in installed
        if each.sa.mode is Mode.TRANSPORT and each.encapsulated and each.path.remote == child.path.remote
    ]
    for each in others:
        # A child that takes the place of another of the same peer is known by the same port: a session goes on.
        ports = each.nat_ports
        if _same_peer(each, child) and ports is not None and each.selectors == _shown(selectors, ports[1]):
            return Apart(selectors=each.selectors, ports=ports)
    rivals = [each for each in others if not _same_peer(each, child) and _meet(each.selectors, selectors)]
    if not rivals:
        return Apart(selectors=selectors)
    for some in (selectors, *(each.selectors for each in rivals)):
        _check(child, some, rivals[0])
    own = selectors[0].remote_ports[0]
    taken = {selector.remote_ports[0] for each in others for selector in each.selectors} | {own}
    shown = child.path.remote_port
    while shown in taken:
        shown = shown + 1 if shown < 65535 else 1024
    return Apart(selectors=_shown(selectors, shown), ports=(own, shown))


def _same_peer(each: Neighbour, child: ChildSa) -> bool:
    return each.ike == child.ike or each.path.remote_port == child.path.remote_port


def _shown(selectors: Sequence[SelectorSpec], port: int) -> tuple[SelectorSpec, ...]:
    return tuple(replace(each, remote_ports=(port, port)) for each in selectors)


def _check(child: ChildSa, selectors: Sequence[SelectorSpec], rival: Neighbour) -> None:
    """One port of the peer's, in all selectors."""
    ports = {each.remote_ports for each in selectors}
    first, last = next(iter(ports))
    known = len(ports) == 1 and first == last and all(each.protocol in PORT_PROTOCOLS for each in selectors)
    if known and child.path.remote.version == 4:
        return
    raise DataPlaneError(
        f"another peer behind the NAT at {rival.path.remote}, by its port {rival.path.remote_port}, has transport mode "
        "for some of the same packets; peers behind one NAT are told apart by one UDP or TCP port of their own: want "
        'local_ts = "dynamic[udp/1701]" or the like on each of them, or tunnel mode'
    )


def _meet(some: Iterable[SelectorSpec], others: Sequence[SelectorSpec]) -> bool:
    """Whether a packet can match a selector of both lists."""
    return any(
        (one.protocol == other.protocol or not (one.protocol and other.protocol))
        and one.local_first <= other.local_last  # type: ignore[operator]
        and other.local_first <= one.local_last  # type: ignore[operator]
        and _ranges_meet(one.local_ports, other.local_ports)
        and _ranges_meet(one.remote_ports, other.remote_ports)
        for one in some
        for other in others
        if one.family == other.family
    )


def _ranges_meet(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return one[0] <= other[1] and other[0] <= one[1]
