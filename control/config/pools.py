"""[pools.NAME]: addresses lent to remote clients, and the DNS servers, domains and routes that they are told."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_network

from control.config.problems import show
from control.config.table import Table, is_name
from control.config.unsupported import POOL
from control.config.values import AddressRange, parse_address, parse_ranges
from control.ike.settings import Network, PoolSettings

_RANGES = "a prefix such as 10.9.0.0/24, a first-last range, or a list of them"


def read_pools(tables: Sequence[tuple[str, Table]]) -> tuple[PoolSettings, ...]:
    """Every pool, usable or not: a broken one is not an unknown one; problems go to the tables' report."""
    pools = []
    for name, table in tables:
        if not is_name(name):
            table.report.error(table.path, f"got the name {show(name)}, want letters, digits and _ . : @ / -")
        ranges = table.parsed_list("addrs", _range, want=_RANGES) or []
        if not table.has("addrs"):
            table.error("addrs", f"is missing; it wants {_RANGES}")
        dns = table.parsed_list("dns", parse_address, want="an address, or a list of them") or []
        domains = table.parsed_list("domains", _domain, want="a domain, or a list of them") or []
        split = table.parsed_list("split_include", _network, want="a network, or a list of them") or []
        table.finish(POOL)
        pools.append(
            PoolSettings(
                name=name,
                ranges=tuple(ranges),
                dns=tuple(dns),
                domains=tuple(domains),
                split=tuple(split),
            )
        )
    _check_overlap(tables, pools)
    return tuple(pools)


def _range(text: str) -> AddressRange:
    """A pool's addresses; of an IPv4 prefix, network and broadcast address are not lent."""
    ranges = parse_ranges(text)
    if len(ranges) > 1:
        raise ValueError(f"want {_RANGES}")
    first, last = ranges[0]
    if "/" in text and first.version == 4 and int(last) - int(first) >= 3:
        return first + 1, last - 1
    if "/" in text and first.version == 6 and first != last:
        return first + 1, last  # the first is the subnet-router anycast address (RFC 4291 section 2.6.1)
    return first, last


def _network(text: str) -> Network:
    try:
        return ip_network(text)
    except ValueError as error:
        raise ValueError(f"want a network such as 10.0.0.0/8 ({error})") from None


def _domain(text: str) -> str:
    labels = text.rstrip(".").split(".")
    if len(text) > 253 or not all(
        0 < len(label) <= 63
        and label.isascii()
        and not label.startswith("-")
        and label.replace("-", "").isalnum()
        for label in labels
    ):
        raise ValueError("want a domain such as corp.example")
    return text.rstrip(".").lower()


def _check_overlap(tables: Sequence[tuple[str, Table]], pools: Sequence[PoolSettings]) -> None:
    """No address is lent by two pools, or twice by one."""
    seen: list[tuple[AddressRange, str]] = []
    for (_, table), pool in zip(tables, pools, strict=True):
        for first, last in pool.ranges:
            for (other_first, other_last), other in seen:
                same = first.version == other_first.version
                if same and int(first) <= int(other_last) and int(other_first) <= int(last):
                    table.error(
                        "addrs",
                        f"got {first}-{last}, and [pools.{other}] has {other_first}-{other_last}; "
                        "want addresses of its own",
                    )
            seen.append(((first, last), pool.name))
