"""The two outer addresses of an IKE SA that we begin: where the peer is, and where we are.

Configured addresses may be networks or "any", which say whom we answer; only plain ones can be initiated to or from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address

from control.ike.settings import Connection, Network
from dataplane.model import Address

# Which address of ours the kernel would send from, to a peer.
SourceAddress = Callable[[Address], Address | None]


class NoOwnAddress(ValueError):
    """No address of ours leads to a peer as things are: no route, or the interface is down. It may come back."""


def peer_address(addresses: Iterable[Address | Network]) -> Address | None:
    """Where an initiation goes: the first plain address of a connection's `remote_addresses`."""
    return next(plain(addresses), None)


def own_address(connection: Connection, source: SourceAddress) -> Address | None:
    """Where an initiation comes from: as configured for the peer's address family, or as the kernel would send."""
    peer = peer_address(connection.remote_addresses)
    for address in plain(connection.local_addresses):
        if peer is None or address.version == peer.version:
            return address
    return source(peer) if peer is not None else None


def plain(addresses: Iterable[Address | Network]) -> Iterator[Address]:
    """Those that are one address."""
    for each in addresses:
        if isinstance(each, IPv4Address | IPv6Address) and not each.is_unspecified:
            yield each
