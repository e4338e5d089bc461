"""What becomes of older IKE SAs of the same two identities when a new one is there (swanctl's `unique`).

A peer that says INITIAL_CONTACT has lost whatever it had (RFC 7296 section 2.4). An older one that is to be replaced
goes a little later, so that a peer that authenticates anew has time to move its children.
"""

from __future__ import annotations

from control.ike.events import Closed, Failure
from control.ike.settings import Unique
from control.ike.v2.proof import AuthenticationFailed
from control.ike.v2.sa import IkeSa
from control.ike.v2.tasks import renew

GRACE = 10.0  # seconds that a replaced IKE SA stays
_AT_ONCE = 30.0  # seconds within which two sides that initiated at once are told from a new attempt


def check(sa: IkeSa, *, initial_contact: bool) -> None:
    """As responder: refuse a second IKE SA of a peer whose first one is to be kept."""
    assert sa.local_id is not None and sa.peer is not None
    if sa.connection.unique is not Unique.KEEP or initial_contact:
        return
    others = sa.host.others(sa.local_id, sa.peer, sa)
    if others:
        raise AuthenticationFailed(
            f"'{sa.peer}' has IKE SA {others[0].id} already, and connection '{sa.connection.name}' keeps "
            f"that (unique = keep)",
            "close it first, or set unique to replace",
            code="not_unique",
        )


def settle(sa: IkeSa, *, initial_contact: bool, now: float) -> None:
    """The new IKE SA is there: let go of older ones, as the policy has it."""
    assert sa.local_id is not None and sa.peer is not None
    unique = sa.connection.unique
    if unique is Unique.NEVER or not (initial_contact or unique is Unique.REPLACE):
        return
    for other in sa.host.others(sa.local_id, sa.peer, sa):
        if _made_at_once(sa, other, now):
            continue
        if initial_contact:
            failure = Failure(
                code="initial_contact",
                text=f"'{sa.peer}' says that IKE SA {sa.id} is its first: it has restarted",
            )
            other.close(Closed.PEER, now, failure=failure)
        elif unique is Unique.REPLACE:
            renew.close_ike(other, now, delay=GRACE)
            sa.host.schedule(other)


def _made_at_once(sa: IkeSa, other: IkeSa, now: float) -> bool:
    """Both sides initiated: each would close the other's, and nothing would be left.

    INITIAL_CONTACT means nothing then: when the peer said it, it had not yet heard that ours was established. Closing
    ours without a word would leave the peer sending into it. Should the peer have restarted in that moment after all,
    traffic goes through the newer one, and the older one is found to be dead.
    """
    return other.initiator != sa.initiator and now - other.established_at < _AT_ONCE
