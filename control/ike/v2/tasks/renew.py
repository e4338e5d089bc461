"""What is done when a time of an IKE SA or a child comes, when a peer falls silent, and when a user wants something."""

from __future__ import annotations

from control.ike.events import PEER_SILENT, Closed, Failure
from control.ike.numbers import Exchange, NotifyType, Protocol
from control.ike.selectors import PacketSelectors
from control.ike.settings import Auth, ChildSettings
from control.ike.v2 import resources, send
from control.ike.v2.actions import ike_gone, peer_dead
from control.ike.v2.lifetimes import NEVER, ike_over_time, ike_times, retry_at
from control.ike.v2.parts import Child, ChildState, Timer
from control.ike.v2.sa import IkeSa
from control.ike.v2.states import State
from control.ike.v2.task import DONE, Incoming, Outgoing, Result, Task
from control.ike.v2.tasks import mobike
from control.ike.v2.tasks.create_child import CreateChild
from control.ike.v2.tasks.delete import DeleteChild, DeleteIke, reason
from control.ike.v2.tasks.dpd import LearnMapping, Liveness
from control.ike.v2.tasks.rekey_child import RekeyChild
from control.ike.v2.tasks.rekey_ike import RekeyIke
from control.ike.v2.window import Pending
from control.ike.wire.payloads import DeletePayload
from dataplane.model import Address

RETIRE_DELAY = 1.0  # seconds between an IKE SA that authenticated anew and the end of the old one
EXPIRY_GRACE = 10.0  # seconds that the delete of something expired may take before it is simply dropped


# Times of the IKE SA


def rekey_due(sa: IkeSa, now: float) -> None:
    """The IKE SA's soft lifetime is over."""
    sa.timers.pop(Timer.REKEY, None)
    if sa.state is State.ESTABLISHED and sa.successor is None and not sa.has_task(RekeyIke):
        sa.queue(RekeyIke(initiator=True), now)


def reauthentication_due(sa: IkeSa, now: float) -> None:
    """The peers must prove themselves anew, by a new IKE SA that is made before this one is broken."""
    sa.timers.pop(Timer.REAUTH, None)
    if sa.state is not State.ESTABLISHED or sa.successor is not None or sa.has_task(DeleteIke):
        return
    connection = sa.connection
    if not sa.initiator and (connection.remote.auth is Auth.EAP or connection.pools):
        # A client alone can begin with EAP, or ask for addresses; it was told the time (RFC 4478).
        sa.note("info", f"'{sa.remote_id}' has to authenticate anew now, before the IKE SA expires")
        sa.reauth_passed = True
        return
    sa.host.reauthenticate(sa, now)


def announced_lifetime(message: Incoming) -> float:
    """Seconds within which the responder wants us to authenticate anew (RFC 4478); 0 where it says nothing."""
    notify = message.notify(NotifyType.AUTH_LIFETIME)
    return float(int.from_bytes(notify.data, "big")) if notify is not None and len(notify.data) == 4 else 0.0


def lifetime_announced(sa: IkeSa, limit: float, now: float) -> None:
    """The responder has changed its mind (RFC 4478 section 3). Only less time matters; with more we are early."""
    if not limit or not sa.first_initiator or sa.state is not State.ESTABLISHED or sa.has_task(DeleteIke):
        return
    due = ike_times(sa.connection, now, sa.host.random, limit).reauth_at
    before = sa.timers.get(Timer.REAUTH, NEVER)
    if before and before <= due:
        return
    sa.timers[Timer.REAUTH] = due
    last = due + ike_over_time(sa.connection, limit)
    sa.timers[Timer.EXPIRE] = min(sa.timers.get(Timer.EXPIRE, last), last)
    sa.note("info", f"the peer wants us to authenticate anew within {limit:.0f} s")


def reauthentication_failed(sa: IkeSa, now: float) -> None:
    """What was to take the place of `sa` did not come about: another attempt, while there is time for one."""
    if sa.state is State.ESTABLISHED:
        again = retry_at(now, sa.host.random, sa.timers.get(Timer.EXPIRE, NEVER))
        sa.timers.setdefault(Timer.REAUTH, again)
        sa.host.schedule(sa)


def replaced(sa: IkeSa, new: IkeSa, now: float) -> None:
    """The peers have authenticated anew: `new` takes the place of `sa`, whose other children follow."""
    for child in sa.children.values():
        add_child(new, child.spec.settings, now, None)
    new.queue(Retire(sa), now)


class Retire(Task):
    """The old IKE SA goes when all its children have others in their places. Nothing is sent by the new one."""

    exchange = Exchange.INFORMATIONAL
    name = "retire the old IKE SA"

    def __init__(self, old: IkeSa) -> None:
        super().__init__(initiator=True)
        self.old = old

    def build(self, sa: IkeSa, message: Outgoing, now: float) -> Result:
        """Delete the old one on its own, or what a rekeying has put in its place meanwhile."""
        self.old = self.old.heir
        if self.old.state is State.ESTABLISHED:
            new = {child.spec.settings.name: child.spec.id for child in sa.children.values()}
            for child in self.old.children.values():
                child.replaced_by = new.get(child.spec.settings.name)
            # Not at once: the peer drops the old children with it, and packets through them may be on their way.
            self.old.queue(DeleteIke(Closed.REPLACED), now, delay=RETIRE_DELAY, first=True)
            self.old.timers[Timer.EXPIRE] = now + RETIRE_DELAY + EXPIRY_GRACE
            sa.host.schedule(self.old)
        return DONE

    def process(self, sa: IkeSa, message: Incoming, now: float) -> Result:
        """Nothing was asked."""
        return DONE


def expired(sa: IkeSa, now: float) -> None:
    """The IKE SA's hard lifetime is over; one that was replaced just goes."""
    if sa.successor is not None or sa.state is State.REKEYED:
        sa.close(Closed.REPLACED, now)
        return
    failure = Failure(
        code="expired",
        text="the IKE SA's lifetime is over and it was not replaced in time",
        advice="see the log for why its rekeying failed",
    )
    why = reason(sa)
    if sa.state is State.ESTABLISHED and why is None:
        sa.queue(DeleteIke(Closed.EXPIRED, failure), now, first=True)
        sa.timers[Timer.EXPIRE] = now + EXPIRY_GRACE
    elif why in (None, Closed.EXPIRED):
        ike_gone(sa, Closed.EXPIRED, now, failure=failure)
    else:
        sa.close(why, now)  # it was to go anyway: nothing is set up anew


def learn_mapping(sa: IkeSa, now: float) -> None:
    """The IKE SA is new: learn where its peer sees us, if a NAT is before us, so that a change is noticed later."""
    if sa.first_initiator and sa.nat_local:
        sa.queue(LearnMapping(), now)


def liveness_due(sa: IkeSa, now: float) -> None:
    """Nothing was heard for `dpd_delay`. A request that is under way asks the same question."""
    delay = sa.connection.dpd_delay
    if not delay or sa.state is not State.ESTABLISHED:
        return
    due = sa.last_heard + delay  # not the silence so far: rounded, it could be less than `delay` for ever
    if due > now:
        sa.timers[Timer.DPD] = due
        return
    sa.timers[Timer.DPD] = now + delay
    if sa.window.pending is None and not sa.has_task(Liveness):
        sa.queue(Liveness(), now)


def peer_silent(sa: IkeSa, pending: Pending, now: float) -> None:
    """A request had no answer after all its repetitions."""
    times, path = pending.repeats + 1, pending.path
    heard = f"; last heard of it: {sa.path_error}" if sa.path_error else ""
    failure = Failure(
        code=PEER_SILENT,
        text=f"no answer from {path.remote}:{path.remote_port}, sent {times} times "
        f"in {now - pending.first_sent:.0f} s from {path.local}:{path.local_port}{heard}",
        advice="check that UDP 500 and 4500 are open between the two, and that the peer runs",
    )
    if sa.state.half_open and sa.host.try_again(sa, failure, now):
        return
    active = sa.active
    if isinstance(active, RekeyIke) and active.rival_lives(sa):
        active.forget(sa, now)  # the peer is silent here, but it has made a successor
    if sa.successor is not None:
        sa.close(Closed.REPLACED, now)  # the successor finds out for itself whether the peer lives
        return
    if sa.state is State.DELETING:
        sa.close(Closed.LOCAL, now)
        return
    established, children = not sa.state.half_open, list(sa.children.values())
    sa.close(Closed.PEER_DEAD, now, failure=failure)
    if established:
        peer_dead(sa, children, now)


# Times and counts of a child


def child_expired(sa: IkeSa, child: Child, *, hard: bool, now: float) -> None:
    """A child's soft or hard lifetime is over, by time or by what the dataplane counted."""
    if not hard:
        child.rekey_at = NEVER
        if child.state is ChildState.INSTALLED and not _is_being_rekeyed(sa, child):
            sa.queue(RekeyChild(child, initiator=True), now)
        return
    child.rekey_at = child.expires_at = NEVER
    if child.state is ChildState.DELETING:
        return
    why = Closed.EXPIRED
    if child.replaced_by is not None and (following := sa.child_by_id(child.replaced_by)) is not None:
        sa.outbound_ready(following)
        why = Closed.REPLACED
    child.state = ChildState.DELETING
    sa.queue(DeleteChild(child, why), now, first=True)


def _is_being_rekeyed(sa: IkeSa, child: Child) -> bool:
    tasks = [sa.active, *(task for _, task in sa.queued)]
    return any(isinstance(task, RekeyChild) and task.old is child for task in tasks)


# What users and packets want


def add_child(sa: IkeSa, settings: ChildSettings, now: float, packet: PacketSelectors | None) -> None:
    """A child is wanted on an IKE SA that is there or under way; nothing to do where it has it, or is about to."""
    if sa.predecessor is not None:  # it may not stay
        sa = sa.predecessor.heir
    if any(_same(child.spec.settings, settings) for child in sa.children.values()):
        return
    tasks = [sa.active, *(task for _, task in sa.queued)]
    for task in tasks:
        if isinstance(task, CreateChild) and task.settings is not None and _same(task.settings, settings):
            return
    if sa.handshake is not None and sa.handshake.child is not None and _same(sa.handshake.child, settings):
        return
    sa.queue(CreateChild(settings, initiator=True, packet=packet), now)
    sa.host.schedule(sa)


def _same(one: ChildSettings, other: ChildSettings) -> bool:
    return one.name == other.name


def close_ike(sa: IkeSa, now: float, *, delay: float = 0.0) -> None:
    """We want the IKE SA gone, `delay` seconds from now."""
    if sa.state.half_open:
        if sa.initiator and sa.state is State.AUTHENTICATING:
            # The peer may have answered IKE_AUTH already: it has an IKE SA then, and a child that it sends into.
            send.last_message(sa, DeletePayload(protocol=Protocol.IKE), now)
        sa.close(Closed.LOCAL, now)
    else:
        # Or its successor, should it be replaced before; one that may not stay is ended by way of what it came from.
        main = sa if sa.predecessor is None else sa.predecessor.heir
        main.queue(DeleteIke(Closed.LOCAL), now, delay=delay)
        sa.host.schedule(main)


def close_child(sa: IkeSa, child: Child, now: float) -> None:
    """We want a child gone, and what takes its place, too; a common one with those of single workers (RFC 9611)."""
    if child.spec.shared and child.spec.resource is None:
        for other in resources.group(sa, child.spec.settings):
            if other is not child:
                sa.queue(DeleteChild(other, Closed.LOCAL), now)
    sa.queue(DeleteChild(child, Closed.LOCAL), now)


def address_changed(sa: IkeSa, new: Address, now: float) -> None:
    """Our address of the IKE SA's path is gone, `new` takes its place."""
    mobike.move_to(sa, new, now)
