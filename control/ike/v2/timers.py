"""The moments of an IKE SA: its own, its children's, and that of a request that has no answer yet.

next_timer   when there is something to do
handle       what is due then: send again, rekey, authenticate anew, ask whether the peer lives, keep a NAT awake
"""

from __future__ import annotations

from control.ike.events import Closed, Datagram, Failure
from control.ike.v2 import send
from control.ike.v2.parts import Timer
from control.ike.v2.sa import IkeSa
from control.ike.v2.states import State
from control.ike.v2.tasks import create_child, renew


def next_timer(sa: IkeSa) -> float | None:
    """The earliest moment at which `handle` has something to do."""
    times = [at for at in sa.timers.values() if at]
    if sa.window.pending is not None:
        times.append(sa.window.pending.due)
    else:
        times.extend(due for due, task in sa.queued if sa.may(task))
    for child in sa.children.values():
        times.extend(at for at in (child.rekey_at, child.expires_at) if at)
    return min(times, default=None)


def handle(sa: IkeSa, now: float) -> None:
    """Do what is due."""
    pending = sa.window.pending
    if pending is not None and pending.due <= now:
        _retransmit(sa, now)
    for timer in [timer for timer, at in sa.timers.items() if at and at <= now]:
        if sa.state is State.CLOSED:
            return
        _timer(sa, timer, now)
    for child in list(sa.children.values()):
        for at, hard in ((child.rekey_at, False), (child.expires_at, True)):
            if at and at <= now and sa.state is not State.CLOSED:
                renew.child_expired(sa, child, hard=hard, now=now)


def _retransmit(sa: IkeSa, now: float) -> None:
    pending, how = sa.window.pending, sa.connection.retransmission
    if pending is None:
        return
    if pending.repeats >= how.tries:
        renew.peer_silent(sa, pending, now)
        return
    pending.repeats += 1
    if sa.active is not None:
        pending.path = sa.active.way(sa, pending.repeats)
    pending.schedule(how, now)
    sa.note(
        "info",
        f"{sa.active.exchange.name if sa.active else 'request'} {pending.message_id} sent again to "
        f"{pending.path.remote}:{pending.path.remote_port}, {pending.repeats} of {how.tries}",
    )
    send.transmit(sa, pending.datagrams, pending.path, now)


def _timer(sa: IkeSa, timer: Timer, now: float) -> None:
    sa.timers.pop(timer, None)
    if timer is Timer.KEEPALIVE:
        sa.host.send(Datagram(path=sa.path, data=b"\xff", keepalive=True))
        sa.timers[timer] = now + sa.connection.keepalive
    elif timer is Timer.HALF_OPEN:
        failure = Failure(
            code="half_open_timeout",
            text=f"{sa.path.remote} began, but did not finish within "
            f"{sa.host.settings.half_open_timeout:g} s",
            advice="see the peer's log",
        )
        sa.close(Closed.FAILED, now, failure=failure)
    elif timer is Timer.REKEY:
        renew.rekey_due(sa, now)
    elif timer is Timer.REAUTH:
        renew.reauthentication_due(sa, now)
    elif timer is Timer.EXPIRE:
        renew.expired(sa, now)
    elif timer is Timer.DPD:
        renew.liveness_due(sa, now)
    elif timer is Timer.FOLLOWUP:
        create_child.give_up_followups(sa, now)
