"""The life of an IKE SA as a table: which step leads from where to where, and what a peer may ask for meanwhile.

What is not in the table is a bug and raises LocalError. Half-open, in every limit, means INITIATING or
AUTHENTICATING. REKEYED is an SA whose children have moved to its successor and that waits for its delete.
"""

from __future__ import annotations

import enum

from control.ike.errors import LocalError
from control.ike.numbers import Exchange


class State(enum.Enum):
    """Where an IKE SA stands. The words are shown to users."""

    INITIATING = "connecting"  # IKE_SA_INIT is under way
    AUTHENTICATING = "authenticating"  # keys are there; IKE_INTERMEDIATE and IKE_AUTH
    ESTABLISHED = "established"
    REKEYED = "rekeyed"  # replaced; only its delete is still to come
    DELETING = "deleting"  # our delete awaits its answer
    CLOSED = "closed"

    @property
    def half_open(self) -> bool:
        """True while the peer has proven nothing."""
        return self in (State.INITIATING, State.AUTHENTICATING)


class Step(enum.Enum):
    """What moves an IKE SA on."""

    KEYED = "the key exchange is done"
    AUTHENTICATED = "both sides are authenticated"
    REPLACED = "a successor has the children"
    DELETE_SENT = "we delete it"
    GONE = "it is over"


TRANSITIONS: dict[tuple[State, Step], State] = {
    (State.INITIATING, Step.KEYED): State.AUTHENTICATING,
    (State.AUTHENTICATING, Step.AUTHENTICATED): State.ESTABLISHED,
    # A successor made by CREATE_CHILD_SA has keys and identities from its first moment (RFC 7296 section 2.18).
    (State.INITIATING, Step.AUTHENTICATED): State.ESTABLISHED,
    (State.ESTABLISHED, Step.REPLACED): State.REKEYED,
    (State.ESTABLISHED, Step.DELETE_SENT): State.DELETING,
    (State.REKEYED, Step.DELETE_SENT): State.DELETING,
    # Both may delete at once; what replaced an SA may be known only after its delete went out.
    (State.DELETING, Step.REPLACED): State.DELETING,
    (State.DELETING, Step.DELETE_SENT): State.DELETING,
    (State.REKEYED, Step.REPLACED): State.REKEYED,
    **{(state, Step.GONE): State.CLOSED for state in State},
}

_CHANGES = frozenset(
    {
        Exchange.CREATE_CHILD_SA,
        Exchange.INFORMATIONAL,
        Exchange.IKE_FOLLOWUP_KE,
    }
)

# Requests that a peer may make of us. CREATE_CHILD_SA in REKEYED and DELETING is answered by its task with
# TEMPORARY_FAILURE (RFC 7296 section 2.25), so it is let in.
ALLOWED: dict[State, frozenset[Exchange]] = {
    State.INITIATING: frozenset({Exchange.IKE_SA_INIT}),
    State.AUTHENTICATING: frozenset({Exchange.IKE_INTERMEDIATE, Exchange.IKE_AUTH, Exchange.INFORMATIONAL}),
    State.ESTABLISHED: _CHANGES,
    State.REKEYED: _CHANGES,
    State.DELETING: _CHANGES,
    State.CLOSED: frozenset(),
}


def advance(state: State, step: Step) -> State:
    """The state that `step` leads to; LocalError where the table has none."""
    try:
        return TRANSITIONS[state, step]
    except KeyError:
        raise LocalError(f"no way on from {state.name} by {step.name}") from None
