"""Which connection a peer means: 1 by addresses 2 by its proposals 3 by identities and the way it authenticates.

As strongSwan does: the most specific connection that fits is taken, those of equal rank in the order of the
configuration. The first guess, after IKE_SA_INIT, may be replaced by another one of the same addresses when IKE_AUTH
tells the identities.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Network, IPv6Network

from control.ike.identity import Identity
from control.ike.numbers import ADDITIONAL_KEY_EXCHANGES
from control.ike.proposal import Proposal, Suite
from control.ike.settings import Auth, Connection
from dataplane.model import Address

EXACT = 1000  # an address is more specific than any network


def address_rank(address: Address, wanted: Sequence[object]) -> int:
    """How well an address fits a connection's: 0 not at all, 1 by "any", more by network, EXACT for itself."""
    if not wanted:
        return 1
    best = 0
    for each in wanted:
        if isinstance(each, IPv4Network | IPv6Network):
            if each.version == address.version and address in each:
                best = max(best, 2 + each.prefixlen)
        elif each == address:
            best = EXACT
    return best


class Connections:
    """All connections of a gateway, found by name and by addresses."""

    def __init__(self, connections: Iterable[Connection]) -> None:
        self.all = tuple(connections)
        self.by_name = {connection.name: connection for connection in self.all}
        self._order = {connection.name: index for index, connection in enumerate(self.all)}
        self._exact: dict[Address, list[Connection]] = {}
        self._others: list[Connection] = []
        for connection in self.all:
            remote = connection.remote_addresses
            if remote and not any(isinstance(each, IPv4Network | IPv6Network) for each in remote):
                for address in set(remote):
                    self._exact.setdefault(address, []).append(connection)  # type: ignore[arg-type]
            else:
                self._others.append(connection)

    def by_addresses(self, local: Address, remote: Address) -> list[Connection]:
        """Connections that fit a datagram's two addresses, the most specific first."""
        ranked = []
        for connection in (*self._exact.get(remote, ()), *self._others):
            theirs = address_rank(remote, connection.remote_addresses)
            ours = address_rank(local, connection.local_addresses) if theirs else 0
            if ours:
                ranked.append((-theirs, -ours, self._order[connection.name], connection))
        ranked.sort(key=lambda each: each[:3])
        return [each[3] for each in ranked]


def accepts(connection: Connection, suite: Suite) -> bool:
    """Whether the peer may still mean this connection, now that the suite is chosen.

    A key exchange that the connection demands must be in it, too: not to offer it, and to be let in by another
    connection's proposal, would be a way around it.
    """
    return any(
        all(transform.id == 0 or transform in proposal.transforms for transform in suite.transforms)
        and all(_has_additional(proposal, suite, kind) for kind in ADDITIONAL_KEY_EXCHANGES)
        for proposal in connection.proposals
    )


def _has_additional(proposal: Proposal, suite: Suite, kind: int) -> bool:
    wanted = proposal.of(kind)
    chosen = next((each.id for each in suite.transforms if each.type == kind), 0)
    return any(each.id == chosen for each in wanted) if wanted else chosen == 0


def still_meant(
    before: Iterable[Connection],
    now: Connections,
    *,
    local: Address,
    remote: Address,
    suite: Suite,
) -> tuple[Connection, ...]:
    """Of the connections that a peer may have meant `before`, those that it may mean by another configuration.

    Who has begun already gets in by nothing that is configured no more, and by what there is now.
    """
    names = {each.name for each in before}
    fitting = now.by_addresses(local, remote)
    return tuple(each for each in fitting if each.name in names and accepts(each, suite))


def by_identities(
    candidates: Iterable[Connection],
    *,
    asked: Identity | None,
    peer: Identity,
    kinds: Iterable[Auth],
) -> list[Connection]:
    """Of the candidates, those that fit the identities and whose peer proves itself in one of `kinds`; best first.

    `asked` is IDr, the identity that the peer wants to see of us; `peer` is IDi.
    """
    kinds = tuple(kinds)
    ranked = []
    for index, connection in enumerate(candidates):
        if connection.remote.auth not in kinds:
            continue
        theirs = peer.match_quality(connection.remote.identity)
        ours = identity_rank(asked, connection)
        if theirs and ours:
            ranked.append((-theirs, -ours, index, connection))
    ranked.sort(key=lambda each: each[:3])
    return [each[3] for each in ranked]


def identity_rank(asked: Identity | None, connection: Connection) -> int:
    """How well the identity that a peer asks for fits what we are in a connection; 0 not at all."""
    if asked is None or connection.local.identity is None:
        return 1  # ours is in a certificate, or is our address: it is seen when we prove it
    return asked.match_quality(connection.local.identity)


def explain(
    candidates: Sequence[Connection], *, asked: Identity | None, peer: Identity, kinds: Iterable[Auth]
) -> tuple[str, str]:
    """Why none of the candidates fits the identities: (both sides' view, what to do)."""
    kinds = tuple(kinds)
    method = " or ".join(kind.value for kind in kinds)
    wanted = f", asks for '{asked}'" if asked is not None else ""
    views = []
    for connection in candidates[:8]:
        ours = connection.local.identity or "our certificate or address"
        theirs = connection.remote.identity or "anyone"
        views.append(
            f"connection '{connection.name}' wants '{theirs}' by {connection.remote.auth.value} and is '{ours}'"
        )
    text = f"the peer is '{peer}' by {method}{wanted}; " + "; ".join(views)
    return text, "make the identities and authentication methods of both sides the same"
