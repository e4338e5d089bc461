"""From a child's traffic selectors (RFC 7296 section 3.13) to the dataplane's pairs.

A child has a list for each side; what it carries is every pair of the two lists that has one family and protocol.
The order of pairs in the SPD is from narrow to wide, so that a tunnel for one host inside the network of another
tunnel works without anybody ordering anything.
"""

from __future__ import annotations

from collections.abc import Iterable

from control.ike.settings import TrafficSelector
from dataplane.model import Address, SelectorSpec


def ends(selector: TrafficSelector) -> tuple[Address, Address] | None:
    """First and last address; None for a dynamic selector."""
    if selector.network is not None:
        return selector.network.network_address, selector.network.broadcast_address
    if selector.first is not None and selector.last is not None:
        return selector.first, selector.last
    return None


def resolve(selector: TrafficSelector, address: Address | None) -> TrafficSelector | None:
    """The selector with `dynamic` replaced by `address`; None where that is not known."""
    if ends(selector) is not None:
        return selector
    if address is None or address.is_unspecified:
        return None
    return TrafficSelector(first=address, last=address, protocol=selector.protocol, ports=selector.ports)


def pairs(local: Iterable[TrafficSelector], remote: Iterable[TrafficSelector]) -> tuple[SelectorSpec, ...]:
    """Every pair of a local and a remote selector that a packet can match, each once; dynamic ones match nothing."""
    found: dict[SelectorSpec, None] = {}
    remotes = list(remote)
    for ours in local:
        for theirs in remotes:
            pair = _pair(ours, theirs)
            if pair is not None:
                found[pair] = None
    return tuple(found)


def _pair(ours: TrafficSelector, theirs: TrafficSelector) -> SelectorSpec | None:
    local, remote = ends(ours), ends(theirs)
    if local is None or remote is None or local[0].version != remote[0].version:
        return None
    if ours.protocol and theirs.protocol and ours.protocol != theirs.protocol:
        return None
    return SelectorSpec(
        local_first=local[0],
        local_last=local[1],
        remote_first=remote[0],
        remote_last=remote[1],
        protocol=ours.protocol or theirs.protocol,
        local_ports=ours.ports,
        remote_ports=theirs.ports,
    )


def width(selector: SelectorSpec) -> tuple[int, int, bool, int, int]:
    """Sorts narrow selectors before wide ones."""
    known: tuple[int, int, bool, int, int] | None = selector.memo.get("width")
    if known is None:
        known = selector.memo["width"] = _width(selector)
    return known


def _width(selector: SelectorSpec) -> tuple[int, int, bool, int, int]:
    return (
        int(selector.remote_last) - int(selector.remote_first),
        int(selector.local_last) - int(selector.local_first),
        selector.protocol == 0,
        selector.remote_ports[1] - selector.remote_ports[0],
        selector.local_ports[1] - selector.local_ports[0],
    )


def takes_everything(selector: SelectorSpec) -> bool:
    """True for a selector that every packet of its family matches."""
    bits = 32 if selector.remote_first.version == 4 else 128
    most = (1 << bits) - 1
    return width(selector) == (most, most, True, 65535, 65535)
