"""The transition table of an IKE SA."""

from __future__ import annotations

import pytest

from control.ike.errors import LocalError
from control.ike.numbers import Exchange
from control.ike.v2.states import ALLOWED, TRANSITIONS, State, Step, advance


def test_every_state_is_reached_and_left() -> None:
    """No dead end but CLOSED, nothing that nobody reaches but the first."""
    assert {state for state, _ in TRANSITIONS} == set(State)
    assert set(TRANSITIONS.values()) == set(State) - {State.INITIATING}
    assert all(advance(state, Step.GONE) is State.CLOSED for state in State)


def test_every_state_says_what_it_lets_in() -> None:
    """Nothing but the handshake before both are authenticated, nothing at all when it is over."""
    assert set(ALLOWED) == set(State)
    assert Exchange.CREATE_CHILD_SA not in ALLOWED[State.INITIATING] | ALLOWED[State.AUTHENTICATING]
    assert Exchange.IKE_AUTH not in ALLOWED[State.ESTABLISHED]
    assert not ALLOWED[State.CLOSED]


@pytest.mark.parametrize(
    ("state", "step"),
    [
        (State.ESTABLISHED, Step.KEYED),
        (State.ESTABLISHED, Step.AUTHENTICATED),
        (State.AUTHENTICATING, Step.REPLACED),
        (State.CLOSED, Step.AUTHENTICATED),
    ],
)
def test_what_is_not_in_the_table_is_a_bug(state: State, step: Step) -> None:
    """LocalError names both."""
    with pytest.raises(LocalError, match=f"{state.name} by {step.name}"):
        advance(state, step)
