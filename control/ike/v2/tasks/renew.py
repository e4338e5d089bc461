"""What is done when a time of an IKE SA or a child comes, and when a peer falls silent."""

from __future__ import annotations

from control.ike.events import Closed, Failure
from control.ike.settings import ChildSettings
from control.ike.v2.sa import Child, IkeSa
from control.ike.v2.window import Pending
from control.ike.wire.selector import WireSelector
from dataplane.model import Address


def rekey_due(sa: IkeSa, now: float) -> None:
    """The IKE SA's soft lifetime is over."""


def reauthentication_due(sa: IkeSa, now: float) -> None:
    """The peers must prove themselves anew: make before break."""


def expired(sa: IkeSa, now: float) -> None:
    """The IKE SA's hard lifetime is over."""
    sa.close(Closed.EXPIRED, now)


def liveness_due(sa: IkeSa, now: float) -> None:
    """Nothing was heard for `dpd_delay`."""


def child_expired(sa: IkeSa, child: Child, *, hard: bool, now: float) -> None:
    """A child's soft or hard lifetime is over, by time or by what the dataplane counted."""


def peer_silent(sa: IkeSa, pending: Pending, now: float) -> None:
    """A request had no answer after all its repetitions."""
    times = pending.repeats + 1
    path = pending.path
    failure = Failure(
        code="peer_silent",
        text=f"no answer from {path.remote}:{path.remote_port}, sent {times} times "
        f"in {now - pending.first_sent:.0f} s from {path.local}:{path.local_port}",
        advice="check that UDP 500 and 4500 are open between the two, and that the peer runs",
    )
    sa.close(Closed.PEER_DEAD, now, failure=failure)


def add_child(
    sa: IkeSa, settings: ChildSettings, now: float, packet: tuple[WireSelector, WireSelector] | None
) -> None:
    """A child is wanted on an IKE SA that is there or under way; nothing to do where it has it, or is about to."""


def close_ike(sa: IkeSa, now: float) -> None:
    """We want the IKE SA gone."""
    if sa.state.half_open:
        sa.close(Closed.LOCAL, now)


def close_child(sa: IkeSa, child: Child, now: float) -> None:
    """We want a child gone."""


def address_changed(sa: IkeSa, new: Address, now: float) -> None:
    """Our address of the IKE SA's path is gone, `new` takes its place."""
