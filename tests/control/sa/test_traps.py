"""Which children have a trap when they have gone, though they had none before they came."""

from __future__ import annotations

import pytest

from control.ike.events import ChildClosed, Closed
from control.ike.settings import DpdAction, StartAction
from control.sa.traps import left_behind, traps_of
from tests.control.ike.pair import ADDRESS_A, child, connection_a

TRAP, NONE = StartAction.TRAP, StartAction.NONE


@pytest.mark.parametrize(
    ("why", "close", "dpd", "left"),
    [
        (Closed.PEER, TRAP, DpdAction.CLEAR, True),
        (Closed.EXPIRED, TRAP, DpdAction.CLEAR, True),
        (Closed.PEER, NONE, DpdAction.TRAP, False),
        (Closed.PEER_DEAD, NONE, DpdAction.TRAP, True),
        (Closed.PEER_DEAD, TRAP, DpdAction.CLEAR, False),
        (Closed.LOCAL, TRAP, DpdAction.TRAP, False),  # that was our own wish
        (Closed.REPLACED, TRAP, DpdAction.TRAP, False),
    ],
)
def test_left_behind(why: Closed, close: StartAction, dpd: DpdAction, left: bool) -> None:
    """`close_action` counts when the peer closes it or it expires, `dpd_action` when the peer is dead."""
    event = ChildClosed(ike=1, connection="a-b", child=2, name="net", why=why)
    settings = child(start_action=NONE, close_action=close, dpd_action=dpd)
    assert left_behind(event, settings) is left
    # Has one anyway.
    assert not left_behind(event, child(start_action=TRAP, close_action=close, dpd_action=dpd))
    replaced = ChildClosed(ike=1, connection="a-b", child=2, name="net", why=why, replaced_by=3)
    assert not left_behind(replaced, settings)


def test_traps_of_children_that_left_one() -> None:
    """They are set again with all others when the configuration is read anew."""
    connection = connection_a(children=(child(start_action=NONE), child("other", start_action=NONE)))
    assert traps_of([connection], lambda remote: ADDRESS_A) == []
    found = traps_of([connection], lambda remote: ADDRESS_A, {("a-b", "net")})
    assert [(each.connection, each.child, len(each.selectors)) for each in found] == [("a-b", "net", 1)]
