"""What a connection wants done when a child is gone that it did not give up: `close_action`, `dpd_action`.

Traps are policies of the dataplane: whoever installs them knows from the closing events, and `acquire` comes
when one is hit. What is here is the setting up anew. Where there is no way to the peer at the moment, `ChildWanted`
says so, and whoever sees the routes asks again.
"""

from __future__ import annotations

from control.ike.ends import NoOwnAddress
from control.ike.events import ChildWanted, Closed, Failure
from control.ike.settings import ChildSettings, DpdAction, StartAction
from control.ike.v2.parts import Child, ChildState
from control.ike.v2.sa import IkeSa
from control.ike.v2.states import State


def child_gone(sa: IkeSa, child: Child, now: float) -> None:
    """The peer closed a child, or it expired (swanctl's `close_action`)."""
    settings = child.spec.settings
    if settings.close_action is not StartAction.START or child.spec.resource is not None:
        return  # RFC 9611 section 3: peers close what they have no use for, and the common child stays
    if sa.state is State.ESTABLISHED:
        from control.ike.v2.tasks.create_child import CreateChild

        sa.queue(CreateChild(settings, initiator=True), now)
    else:
        set_up(sa, settings, now)


def ike_gone(
    sa: IkeSa, why: Closed, now: float, *, failure: Failure | None = None, linger: bool = False
) -> None:
    """Close an IKE SA; where it was the peer, or its time, each child is one that is gone."""
    if sa.state is State.CLOSED:
        return
    children = list(sa.children.values())
    sa.close(why, now, failure=failure, linger=linger)
    if why in (Closed.PEER, Closed.EXPIRED):
        for child in children:
            child_gone(sa, child, now)


def peer_dead(sa: IkeSa, children: list[Child], now: float) -> None:
    """The peer does not answer any more and the IKE SA is closed (swanctl's `dpd_action`)."""
    for child in children:
        replaced = child.state is ChildState.REKEYED or child.replaced_by is not None
        replaced = replaced or child.spec.resource is not None  # it comes with the common child
        if child.spec.settings.dpd_action is DpdAction.RESTART and not replaced:
            set_up(sa, child.spec.settings, now)


def set_up(sa: IkeSa, settings: ChildSettings, now: float) -> None:
    """Begin anew with a child of an IKE SA that is gone, as the connection is configured now."""
    try:
        sa.host.initiate(sa.connection.name, settings.name, now)
    except NoOwnAddress as error:
        # A cable that is out or a lease that has run out is what made the peer silent, perhaps.
        name = sa.connection.name
        sa.emit(ChildWanted(ike=sa.id, connection=name, name=settings.name, reason=str(error)))
    except ValueError as error:
        # The connection, or the child, is configured no more; or the peer is one that comes from anywhere.
        sa.note("warning", f"child '{settings.name}' is not set up anew: {error}")
