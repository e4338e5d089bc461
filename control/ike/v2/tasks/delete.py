"""Closing child SAs and the IKE SA (RFC 7296 sections 1.4.1, 2.25): what we ask, and what is done when a peer asks.

A Delete payload names the sender's inbound SPIs. The answer names the other half of each pair, but for one that is
being closed from both sides: that is left out. An IKE SA's delete is answered with an empty message, and takes
whatever is under way with it.
"""

from __future__ import annotations

from control.ike.events import Closed, Failure
from control.ike.numbers import Exchange, Protocol
from control.ike.v2.actions import child_gone, ike_gone
from control.ike.v2.child import spi_bytes
from control.ike.v2.lifetimes import retry_at
from control.ike.v2.parts import Child, ChildState
from control.ike.v2.sa import IkeSa
from control.ike.v2.states import State, Step, advance
from control.ike.v2.task import DONE, MORE, Incoming, Outgoing, Result, Task
from control.ike.wire.payloads import DeletePayload

MAX_DELETED = 64  # SPIs we do not know that are remembered while a child is being made


class DeleteChild(Task):
    """Close a child on both sides: the one that has taken its place, where it was replaced meanwhile."""

    exchange = Exchange.INFORMATIONAL
    name = "delete child"

    def __init__(self, child: Child, why: Closed) -> None:
        super().__init__(initiator=True)
        self.child = child
        self.why = why

    def build(self, sa: IkeSa, message: Outgoing, now: float) -> Result:
        """DELETE with the SPI of our inbound SA."""
        if self.why is Closed.LOCAL:
            self.child = newest(sa, self.child)
        if sa.children.get(self.child.spec.spi_in) is not self.child or sa.state is not State.ESTABLISHED:
            return DONE
        self.child.state = ChildState.DELETING
        self.child.rekey_at = self.child.expires_at = 0.0
        spec = self.child.spec
        message.add(DeletePayload(protocol=spec.protocol, spis=(spi_bytes(spec.spi_in),)))
        return MORE

    def process(self, sa: IkeSa, message: Incoming, now: float) -> Result:
        """The peer has closed it, or had already; either way it is gone."""
        closed = sa.children.get(self.child.spec.spi_in) is self.child
        sa.close_child(self.child, self.why)
        if closed and self.why is Closed.EXPIRED:
            child_gone(sa, self.child, now)
        return DONE

    def failed(self, sa: IkeSa, failure: Failure, now: float) -> None:
        """An answer that makes no sense closes it all the same; on an IKE SA that was replaced it is asked again."""
        if sa.state is not State.CLOSED:
            sa.close_child(self.child, self.why)
        elif sa.successor is not None:
            sa.heir.queue(DeleteChild(self.child, self.why), now, first=True)
            sa.host.schedule(sa.heir)


def newest(sa: IkeSa, child: Child) -> Child:
    """The child that stands in the place of `child` now; itself where it was not replaced."""
    found = child
    while child.heir is not None:
        child = child.heir
        if sa.children.get(child.spec.spi_in) is child:
            found = child
    return found


class DeleteSpi(Task):
    """Close a child that the peer has and we never installed."""

    exchange = Exchange.INFORMATIONAL
    name = "delete child"

    def __init__(self, protocol: Protocol, spi: int) -> None:
        super().__init__(initiator=True)
        self.protocol = protocol
        self.spi = spi

    def build(self, sa: IkeSa, message: Outgoing, now: float) -> Result:
        """DELETE with an SPI that was ours for a moment."""
        message.add(DeletePayload(protocol=self.protocol, spis=(spi_bytes(self.spi),)))
        return MORE

    def process(self, sa: IkeSa, message: Incoming, now: float) -> Result:
        """The SPI is free."""
        sa.host.free_child_spi(self.spi)
        return DONE

    def failed(self, sa: IkeSa, failure: Failure, now: float) -> None:
        """Likewise."""
        sa.host.free_child_spi(self.spi)


class DeleteIke(Task):
    """Close the IKE SA and, where it has not been replaced, all children."""

    exchange = Exchange.INFORMATIONAL
    name = "delete IKE SA"
    ends = True

    def __init__(self, why: Closed, failure: Failure | None = None) -> None:
        super().__init__(initiator=True)
        self.why = why
        self.failure = failure

    @property
    def follows(self) -> bool:
        """Whether a successor is meant as well: one that took the place, or the time, of the old one is not."""
        return self.why not in (Closed.REPLACED, Closed.EXPIRED)

    def build(self, sa: IkeSa, message: Outgoing, now: float) -> Result:
        """DELETE for protocol IKE, which has no SPI."""
        if sa.successor is not None and self.follows:
            sa.heir.queue(DeleteIke(self.why, self.failure), now)
            sa.host.schedule(sa.heir)
            return DONE
        if sa.state in (State.DELETING, State.CLOSED):
            return DONE
        sa.state = advance(sa.state, Step.DELETE_SENT)
        message.add(DeletePayload(protocol=Protocol.IKE))
        return MORE

    def process(self, sa: IkeSa, message: Incoming, now: float) -> Result:
        """Whatever the answer is: it is over."""
        ike_gone(sa, self.why, now, failure=self.failure)
        return DONE

    def failed(self, sa: IkeSa, failure: Failure, now: float) -> None:
        """Likewise; but what was to be closed lives on where it was replaced first."""
        ike_gone(sa, self.why, now, failure=self.failure)
        if sa.successor is not None and self.follows:
            sa.heir.queue(DeleteIke(self.why, self.failure), now)
            sa.host.schedule(sa.heir)


# What a peer asks for


def closed_by_peer(sa: IkeSa, protocol: int, spi: int, now: float) -> int | None:
    """The peer has closed the SA that we send to with `spi`: our half of the pair, where the answer is to name it."""
    from control.ike.v2.tasks.create_child import CreateChild, drop
    from control.ike.v2.tasks.rekey_child import RekeyChild

    child = sa.child_by_outbound(protocol, spi)
    if child is None:
        if isinstance(sa.active, CreateChild) and len(sa.active.deleted) < MAX_DELETED:
            sa.active.deleted.add(spi)  # of a response that is still on its way, perhaps
        return None
    if child.state is ChildState.DELETING:
        return None  # RFC 7296 section 2.25.1: our own request names it; its answer ends it
    for act in list(sa.followups.values()):
        if isinstance(act, RekeyChild) and act.old is child:
            drop(sa, act)
    following = sa.child_by_id(child.replaced_by) if child.replaced_by is not None else None
    rekeying = isinstance(sa.active, RekeyChild) and sa.active.old is child
    if following is not None:
        # RFC 7296 section 2.8: the peer sends through the new one only, and so do we from now on.
        sa.outbound_ready(following)
        sa.close_child(child, Closed.REPLACED)
    elif not child.outbound:
        sa.close_child(child, Closed.REPLACED)  # the one of two simultaneous ones that is not kept
        _take_up_again(sa, child, now)
    else:
        sa.close_child(child, Closed.PEER)
        if not rekeying:
            child_gone(sa, child, now)
    return child.spec.spi_in


def _take_up_again(sa: IkeSa, closed: Child, now: float) -> None:
    """A replacement is gone before it was used: what it was to replace goes on, and may be replaced again."""
    for child in sa.children.values():
        if child.replaced_by == closed.spec.id:
            child.replaced_by = None
            if child.state is ChildState.REKEYED:
                child.state = ChildState.INSTALLED
                child.rekey_at = retry_at(now, sa.host.random, child.expires_at)


def ike_closed_by_peer(sa: IkeSa, now: float) -> None:
    """The answer to the peer's delete of the IKE SA is out: close it, or let go of it where it was replaced."""
    from control.ike.v2.tasks.rekey_ike import RekeyIke

    if isinstance(sa.active, RekeyIke):
        # RFC 7296 section 2.25.2: our own attempt is forgotten; the peer's successor, if any, stands.
        sa.active.forget(sa, now)
    if sa.predecessor is not None and sa.state is State.ESTABLISHED:
        # RFC 7296 section 2.8.2: of two successors made at once the peer closes its own; ours is the one.
        sa.state = advance(sa.state, Step.REPLACED)
    if sa.successor is not None or sa.state is State.REKEYED:
        sa.close(Closed.REPLACED, now, linger=True)
        return
    ours = reason(sa) if sa.state is State.DELETING else None
    ike_gone(sa, ours or Closed.PEER, now, linger=True)


def reason(sa: IkeSa) -> Closed | None:
    """Why we delete the IKE SA, or are about to; None where we do not."""
    tasks = (sa.active, *(task for _, task in sa.queued))
    return next((task.why for task in tasks if isinstance(task, DeleteIke)), None)
