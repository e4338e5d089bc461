"""Transport mode: 1 asked for by both sides 2 addresses as this side has them 3 between the IKE SA's own two hosts.

A host behind a NAT asks for the address that it has itself, which means nothing to its peer. So whoever gets selectors
for transport mode puts the addresses of the IKE packets in their place before it looks at them, and keeps what came:
these are the addresses that the peer's TCP and UDP checksums were made with (RFC 7296 section 2.23.1, RFC 3948 section
3.1.2). What is not between the two hosts is a tunnel: the notification is not echoed then (RFC 7296 section 1.3.1).

Limit: a NAT that maps to another address later leaves selectors behind that fit no more; the child ends then.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from control.ike.v2.sa import IkeSa
from control.ike.wire.selector import WireSelector
from dataplane.model import Address

Sides = tuple[tuple[WireSelector, ...], tuple[WireSelector, ...]]  # ours, the peer's


def seen_from_here(sa: IkeSa, local: Sequence[WireSelector], remote: Sequence[WireSelector]) -> Sides:
    """A peer's selectors with this side's addresses in place of those behind a NAT; ranges of addresses stay."""
    path = sa.way or sa.path
    return (
        _with_address(local, path.local) if sa.nat_local else tuple(local),
        _with_address(remote, path.remote) if sa.nat_remote else tuple(remote),
    )


def _with_address(selectors: Iterable[WireSelector], address: Address) -> tuple[WireSelector, ...]:
    return tuple(
        replace(each, first=address, last=address)
        if each.first == each.last and each.first.version == address.version
        else each
        for each in selectors
    )


def original(
    sa: IkeSa, local: Sequence[WireSelector], remote: Sequence[WireSelector]
) -> tuple[Address, Address] | None:
    """Our address and the peer's as the peer has them, from its selectors as they came; None without a NAT."""
    if not sa.nat_local and not sa.nat_remote:
        return None
    ours, theirs = {each.first for each in local}, {each.first for each in remote}
    if len(ours) != 1 or len(theirs) != 1:
        return None  # section 2.23.1: one address each; checksums are made anew then
    return ours.pop(), theirs.pop()


def between_hosts(sa: IkeSa, local: Sequence[WireSelector], remote: Sequence[WireSelector]) -> bool:
    """Whether the selectors are of the two ends of the IKE SA and nothing else (RFC 4301 section 4.1)."""
    path = sa.way or sa.path
    return all(each.first == each.last == path.local for each in local) and all(
        each.first == each.last == path.remote for each in remote
    )
