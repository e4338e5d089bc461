"""Traffic selectors as TSi and TSr payloads carry them (RFC 7296 section 3.13).

TS body   = count, 0 0 0, Selector...
Selector  = type, protocol, length (2), first port (2), last port (2), first address, last address
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address

from control.ike.errors import LocalError, syntax_error
from control.ike.numbers import TsType
from control.ike.record import record
from dataplane.model import Address

ANY_PORTS = (0, 65535)
OPAQUE_PORTS = (65535, 0)  # ports that a packet does not show (RFC 7296 section 3.13.1)
_HEADER = struct.Struct(">BBHHH")


@record(frozen=True, kw_only=True, slots=True)
class WireSelector:
    """One range of addresses and ports, both ends included, both addresses of one family."""

    first: Address
    last: Address
    protocol: int = 0  # 0 is any
    ports: tuple[int, int] = ANY_PORTS  # OPAQUE_PORTS; of ICMP and MH: type << 8 | code

    def __str__(self) -> str:
        return show_range(self.first, self.last) + show_protocol(self.protocol, self.ports)


def show_range(first: Address, last: Address) -> str:
    """A range as a network where it is one: "10.1.0.0/16", "10.1.0.1", "10.1.0.1..10.1.0.9"."""
    size = int(last) - int(first) + 1
    if size == 1:
        return str(first)
    if size > 0 and size & size - 1 == 0 and int(first) % size == 0:
        return f"{first}/{first.max_prefixlen - size.bit_length() + 1}"
    return f"{first}..{last}"


def show_protocol(protocol: int, ports: tuple[int, int]) -> str:
    """Protocol and ports as swanctl writes them: "[udp/500]", "[tcp/1000-2000]", "[icmp]"; nothing for any."""
    name = {0: "", 1: "icmp", 6: "tcp", 17: "udp", 58: "ipv6-icmp", 132: "sctp"}.get(protocol, str(protocol))
    if ports == ANY_PORTS:
        return f"[{name}]" if name else ""
    if ports == OPAQUE_PORTS:
        shown = "opaque"
    elif protocol in (1, 58):
        low, high = ports
        one = f"{low >> 8}({low & 255})"
        shown = one if low == high else f"{one}-{high >> 8}({high & 255})"
    else:
        shown = str(ports[0]) if ports[0] == ports[1] else f"{ports[0]}-{ports[1]}"
    return f"[{name}/{shown}]"


def parse_selectors(body: bytes) -> tuple[tuple[WireSelector, ...], tuple[int, ...]]:
    """(selectors, types of those that we do not know) of a TS payload's body; raises PeerError."""
    if len(body) < 4:
        raise syntax_error(f"TS payload with a body of {len(body)} bytes; want 4 or more")
    count, offset = body[0], 4
    if count == 0:
        raise syntax_error("TS payload without selector; want one or more")
    selectors: list[WireSelector] = []
    unknown: list[int] = []
    for number in range(1, count + 1):
        left = len(body) - offset
        if left < _HEADER.size:
            raise syntax_error(
                f"TS payload ends in selector {number} of {count}: {left} bytes are left, want 8 or more"
            )
        kind, protocol, length, first_port, last_port = _HEADER.unpack_from(body, offset)
        if not _HEADER.size <= length <= left:
            raise syntax_error(
                f"selector {number} of the TS payload says it has {length} bytes; want 8 to {left}"
            )
        addresses = body[offset + _HEADER.size : offset + length]
        offset += length
        if kind in (TsType.IPV4_ADDR_RANGE, TsType.IPV6_ADDR_RANGE):
            selectors.append(_parse_range(kind, protocol, (first_port, last_port), addresses, number))
        else:
            unknown.append(kind)
    if offset != len(body):
        raise syntax_error(
            f"{len(body) - offset} bytes follow the last selector of the TS payload; want none"
        )
    return tuple(selectors), tuple(unknown)


def _parse_range(
    kind: int, protocol: int, ports: tuple[int, int], addresses: bytes, number: int
) -> WireSelector:
    family = 4 if kind == TsType.IPV4_ADDR_RANGE else 6
    size = 4 if family == 4 else 16
    if len(addresses) != 2 * size:
        raise syntax_error(
            f"selector {number} of the TS payload has {len(addresses)} bytes of addresses; "
            f"want {2 * size} for IPv{family}"
        )
    first: Address
    last: Address
    if family == 4:
        first, last = IPv4Address(addresses[:4]), IPv4Address(addresses[4:])
    else:
        first, last = IPv6Address(addresses[:16]), IPv6Address(addresses[16:])
    if int(first) > int(last):
        raise syntax_error(
            f"selector {number} of the TS payload goes from {first} down to {last}; want it upward"
        )
    if ports[0] > ports[1] and ports != OPAQUE_PORTS:
        raise syntax_error(
            f"selector {number} of the TS payload has ports {ports[0]} to {ports[1]}; want them upward, or OPAQUE"
        )
    return WireSelector(first=first, last=last, protocol=protocol, ports=ports)


def build_selectors(selectors: Sequence[WireSelector]) -> bytes:
    """The body of a TS payload."""
    if not 1 <= len(selectors) <= 255:
        raise LocalError(f"TS payload of {len(selectors)} selectors; want 1 to 255")
    parts = [struct.pack(">Bxxx", len(selectors))]
    for selector in selectors:
        four = selector.first.version == 4
        kind = TsType.IPV4_ADDR_RANGE if four else TsType.IPV6_ADDR_RANGE
        length = _HEADER.size + (8 if four else 32)
        parts.append(_HEADER.pack(kind, selector.protocol, length, *selector.ports))
        parts.append(selector.first.packed + selector.last.packed)
    return b"".join(parts)
