"""Traffic selectors as swanctl writes them: `10.1.0.0/24`, `dynamic[tcp/443]`, `10.0.0.1-10.0.0.9[udp/5000-5010]`.

where                       [protocol/port]
dynamic  the SA's own,      a protocol by name or number; a port, a range, `any` or `opaque`;
         or virtual address for ICMP the type, or type(code) (RFC 7296 section 3.13.1)
"""

from __future__ import annotations

import re
from ipaddress import ip_network

from control.config.values import (
    ICMP_PROTOCOLS,
    PORT_PROTOCOLS,
    no_ports,
    parse_icmp,
    parse_ports,
    parse_protocol,
    parse_ranges,
)
from control.ike.settings import TrafficSelector
from dataplane.model import OPAQUE_PORTS

_SPLIT = re.compile(r"([^\[\]]*)(?:\[([^\[\]]*)\])?")
SERVICES = {"http": 80, "https": 443, "ssh": 22, "domain": 53, "smtp": 25, "l2f": 1701, "l2tp": 1701}


def parse_selector(text: str) -> TrafficSelector:
    """The selector that `text` names; ValueError that completes "got 'text', ..."."""
    match = _SPLIT.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"want brackets only at the end; {_WANT}")
    where, what = match[1].strip(), match[2]
    protocol, ports = (0, (0, 65535)) if what is None else _protocol_and_ports(what.strip())
    if where.lower() in ("", "dynamic", "%dynamic"):
        return TrafficSelector(protocol=protocol, ports=ports)
    if "-" not in where and "/" in where:
        try:
            return TrafficSelector(network=ip_network(where), protocol=protocol, ports=ports)
        except ValueError:
            pass  # parse_ranges says what is wrong with it
    ranges = parse_ranges(where)
    if len(ranges) > 1:
        raise ValueError("want 0.0.0.0/0 or ::/0, or both: a selector is of one address family")
    first, last = ranges[0]
    if first == last:
        return TrafficSelector(
            network=ip_network(f"{first}/{first.max_prefixlen}"), protocol=protocol, ports=ports
        )
    return TrafficSelector(first=first, last=last, protocol=protocol, ports=ports)


_WANT = 'want a network, an address, a range or "dynamic", perhaps with [protocol/port]'


def _protocol_and_ports(text: str) -> tuple[int, tuple[int, int]]:
    """`tcp/443`, `udp`, `icmp/8`, `any/53`."""
    word, slash, rest = text.partition("/")
    protocol = parse_protocol(word.strip()) if word.strip() else 0
    port = rest.strip().lower()
    if slash and not port:
        raise ValueError(f"which has no port after the /; {_WANT}")
    if not slash or port in ("any", "%any", "*"):
        return protocol, (0, 65535)
    if port == "opaque":
        return protocol, OPAQUE_PORTS
    if protocol in ICMP_PROTOCOLS:
        return protocol, parse_icmp(port)
    if protocol not in PORT_PROTOCOLS:
        raise ValueError(
            f"whose protocol is {word.strip() or 'any'}, {no_ports(protocol)}; "
            f"want one of {', '.join(PORT_PROTOCOLS.values())}"
        )
    return protocol, parse_ports(str(SERVICES.get(port, port)))
