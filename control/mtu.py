"""What a tunnel leaves of a path's MTU for the packets inside it."""

from __future__ import annotations

from collections.abc import Iterable

from dataplane.model import Direction, SaSpec

ETHERNET_MTU = 1500
IPV6_LEAST = 1280  # RFC 8200 section 5: no link that carries IPv6 may have less


def tunnel_mtu(sas: Iterable[SaSpec], path: int = ETHERNET_MTU) -> int:
    """The MTU for a TUN device: the smallest room of all outbound SAs over paths of `path` bytes."""
    rooms = [sa.inner_mtu(path) for sa in sas if sa.direction is Direction.OUT]
    return max(min(rooms, default=path), IPV6_LEAST)
