"""From ordered policies and routes to what the longest-prefix tables want.

An SPD is ordered (RFC 4301 section 4.4.1), a longest-prefix table is not. Both agree when every prefix
carries its own candidate list: all policies that cover it, in SPD order. Policies that lie *inside* it need
not be listed: an address that belongs to one of them finds the longer prefix first.

    policies -> cover(remote range) -> {prefix: own policies} -> walk in trie order, lists inherited downwards

A list is cut behind a policy that takes every packet of its prefix (any local address, protocol and port),
because nothing behind it can match. What stays possible is an SPD of many wide policies times many narrow
ones; its lists multiply, and `candidate_limit` turns that into an error before memory goes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dataplane.layout import NO_INDEX
from dataplane.model import PolicySpec, RouteSpec, SelectorSpec

Prefix = tuple[int, int, int]  # family, first address, prefix length: sorts in trie order (parents first)
Entry = tuple[int, int, int, int, int]  # family, high, low, prefix length, value

_LOW = 2**64 - 1
_ANY_PORTS = (0, 65535)


def cover(first: int, last: int, bits: int) -> Iterable[tuple[int, int]]:
    """The fewest prefixes (first address, length) that cover an inclusive range of `bits`-bit addresses."""
    while first <= last:
        # The largest block that begins here: limited by alignment, then by what is left.
        size = min((first & -first).bit_length() - 1 if first else bits, (last - first + 1).bit_length() - 1)
        yield first, bits - size
        first += 1 << size


def selector_family(selector: SelectorSpec) -> int:
    """4 or 6; ValueError when the four ends are not of one family or a range is upside down."""
    known = selector.memo.get("family")
    if known is None:
        known = selector.memo["family"] = _check_family(selector)
    return int(known)


def _check_family(selector: SelectorSpec) -> int:
    return selector.family


def takes_all(selector: SelectorSpec, bits: int) -> bool:
    """True when every packet to the selector's remote range matches it."""
    return (
        selector.protocol == 0
        and int(selector.local_first) == 0
        and int(selector.local_last) == (1 << bits) - 1
        and selector.local_ports == _ANY_PORTS
        and selector.remote_ports == _ANY_PORTS
    )


def policy_entries(
    policies: Sequence[PolicySpec], first_index: int, candidate_limit: int
) -> tuple[list[Entry], list[int]]:
    """Entries and the flat candidate list for `ext.policy.lpm_publish`; policy i has index first_index + i.

    Raises ValueError for a selector that is none and OverflowError past `candidate_limit`.
    """
    own: dict[Prefix, list[int]] = {}
    final: set[int] = set()
    for index, policy in enumerate(policies):
        selector = policy.selector
        known = selector.memo.get("prefixes")
        if known is None:
            family = selector_family(selector)
            bits = 32 if family == 4 else 128
            remote = cover(int(selector.remote_first), int(selector.remote_last), bits)
            prefixes = [(family, first, length) for first, length in remote]
            known = selector.memo["prefixes"] = takes_all(selector, bits), prefixes
        if known[0]:
            final.add(index)
        for prefix in known[1]:
            own.setdefault(prefix, []).append(index)

    entries: list[Entry] = []
    flat: list[int] = []
    above: list[tuple[Prefix, list[int]]] = []  # the prefixes that hold the present one, widest first
    for prefix in sorted(own):
        while above and not _holds(above[-1][0], prefix):
            above.pop()
        candidates = own[prefix]
        if above:
            # Both are ascending; sort() merges such runs in linear time.
            candidates = sorted({*above[-1][1], *candidates})
        candidates = _cut(candidates, final)
        above.append((prefix, candidates))
        if len(flat) + len(candidates) >= candidate_limit:
            raise OverflowError(
                f"the SPD of {len(policies)} policies needs more than {candidate_limit} candidates: too many "
                "wide remote ranges overlap too many narrow ones; merge some or raise max_candidates"
            )
        family, first, length = prefix
        entries.append((family, first >> 64, first & _LOW, length, len(flat)))
        flat.extend(first_index + candidate for candidate in candidates)
        flat.append(NO_INDEX)
    return entries, flat


def route_entries(routes: Sequence[RouteSpec], values: Sequence[int]) -> list[Entry]:
    """Entries for the route table; `values` are adjacency indices. ValueError for a prefix twice."""
    entries: dict[Prefix, Entry] = {}
    for route, value in zip(routes, values, strict=True):
        first, length = int(route.prefix.network_address), route.prefix.prefixlen
        key = (route.prefix.version, first, length)
        if key in entries:
            raise ValueError(f"route {route.prefix} is given twice")
        entries[key] = (route.prefix.version, first >> 64, first & _LOW, length, value)
    return list(entries.values())


def _holds(outer: Prefix, inner: Prefix) -> bool:
    """True when `inner` lies in `outer` (it is not shorter: it comes later in trie order)."""
    bits = 32 if outer[0] == 4 else 128
    return outer[0] == inner[0] and outer[2] <= inner[2] and (outer[1] ^ inner[1]) >> (bits - outer[2]) == 0


def _cut(candidates: list[int], final: set[int]) -> list[int]:
    """The list up to and with its first policy that takes every packet."""
    if final:
        for place, candidate in enumerate(candidates):
            if candidate in final:
                return candidates[: place + 1]
    return candidates
