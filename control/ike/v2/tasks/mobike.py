"""MOBIKE (RFC 4555): the initiator's address changes, or a NAT's mapping before it; the children follow.

    initiator   UPDATE_SA_ADDRESSES NAT_DETECTION_* ->  <- NAT_DETECTION_*     from the new address; then all moves
    responder   answers, proves the new way by COOKIE2 (section 3.7), and then moves: nobody can have traffic sent to
                a third party by a message that was caught and repeated elsewhere

The initiator (of the first IKE SA of a chain of rekeyed ones) decides. Its other addresses are not offered: the one
the routing gives towards the peer is the one in use, and control tells when that changes. A responder that moves has
no message to say so; its peer finds out by silence. A peer without MOBIKE gets a new IKE SA instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from hmac import compare_digest
from ipaddress import ip_address

from control.ike.errors import PeerError, syntax_error
from control.ike.events import Closed, Failure, PeerPath
from control.ike.numbers import Exchange, NotifyType
from control.ike.v2 import nat
from control.ike.v2.actions import set_up
from control.ike.v2.parts import Feature
from control.ike.v2.sa import IkeSa
from control.ike.v2.states import State
from control.ike.v2.task import DONE, MORE, Incoming, Outgoing, Result, Task
from control.ike.wire.payloads import NotifyPayload, Payload
from dataplane.model import Address

COOKIE_LENGTH = 16  # bytes; RFC 4555 section 4.2.5 wants 8 to 64
_ADDRESSES = {NotifyType.ADDITIONAL_IP4_ADDRESS: 4, NotifyType.ADDITIONAL_IP6_ADDRESS: 16}
MAX_ADDRESSES = 16  # of a peer that are kept


class UpdateAddresses(Task):
    """Tell the peer where we are now (RFC 4555 section 3.5)."""

    exchange = Exchange.INFORMATIONAL
    name = "update addresses"

    def __init__(self, path: PeerPath) -> None:
        super().__init__(initiator=True)
        self.path = path

    def build(self, sa: IkeSa, message: Outgoing, now: float) -> Result:
        """From the new path on the IKE SA's messages go; ESP follows with the answer."""
        if sa.state not in (State.ESTABLISHED, State.REKEYED):
            # One that the peer rekeys: it may know the successor only by an answer that is still to find it.
            return DONE
        sa.path = self.path
        message.notify(NotifyType.UPDATE_SA_ADDRESSES)
        add_detections(sa, message, self.path)
        return MORE

    def process(self, sa: IkeSa, message: Incoming, now: float) -> Result:
        """The peer follows: all children use the new path."""
        error = message.error()
        if error is not None:
            sa.note("warning", f"the peer does not follow to {self.path.local}: {error.name}")
            sa.last_error = Failure(
                code=error.name.lower(),
                text=f"the peer refused our new address {self.path.local} with {error.name}",
                advice="see the peer's log",
            )
            return DONE
        if sa.path != self.path:
            return DONE  # we have moved again meanwhile; that has its own exchange
        if sa.successor is not None:
            # The children are the successor's: the peer has followed with an IKE SA that has none (RFC 7296 2.18).
            _pass_on(sa, UpdateAddresses(self.path), now)
            return DONE
        mapping_changed(sa, message)
        _take_detections(sa, message.payloads, message.path)
        sa.start_keepalives(now)
        sa.move(self.path, now)
        return DONE

    def failed(self, sa: IkeSa, failure: Failure, now: float) -> None:
        """The IKE SA was replaced first: its successor tells."""
        if sa.state is State.CLOSED:
            _pass_on(sa, UpdateAddresses(self.path), now)


class ReturnRoutability(Task):
    """Is the peer really where its message came from (RFC 4555 section 3.7)? Only then our packets go there."""

    exchange = Exchange.INFORMATIONAL
    name = "return routability check"

    def __init__(self, path: PeerPath) -> None:
        super().__init__(initiator=True)
        self.path = path
        self.cookie = b""

    def build(self, sa: IkeSa, message: Outgoing, now: float) -> Result:
        """COOKIE2, to the new address."""
        if sa.state is not State.ESTABLISHED or sa.path != self.path:
            return DONE
        return self.ask(sa, message)

    def ask(self, sa: IkeSa, message: Outgoing) -> Result:
        """Put a cookie into the message that nobody else can know."""
        self.cookie = sa.host.random(COOKIE_LENGTH)
        message.notify(NotifyType.COOKIE2, self.cookie)
        return MORE

    def proven(self, sa: IkeSa, message: Incoming, now: float) -> bool:
        """Whether the same cookie has come back; without it the IKE SA is closed, as RFC 4555 section 3.7 demands."""
        notify = message.notify(NotifyType.COOKIE2)
        if notify is not None and compare_digest(notify.data, self.cookie):
            return True
        what = "none" if notify is None else "another"
        failure = Failure(
            code="cookie2",
            text=f"the answer from {message.path.remote} has not the COOKIE2 that was sent there, but {what}",
            advice="a peer with MOBIKE gives it back (RFC 4555 section 3.7); set mobike = false if this one cannot",
        )
        sa.close(Closed.FAILED, now, failure=failure)
        return False

    def process(self, sa: IkeSa, message: Incoming, now: float) -> Result:
        """The same COOKIE2 comes back: the children move."""
        if self.proven(sa, message, now) and sa.path == self.path:
            if sa.successor is not None:
                # It has the children, and has not seen the answer.
                _pass_on(sa, ReturnRoutability(self.path), now)
                return DONE
            sa.start_keepalives(now)
            sa.move(self.path, now)
        return DONE

    def failed(self, sa: IkeSa, failure: Failure, now: float) -> None:
        """The IKE SA was replaced first: its successor asks."""
        if sa.state is State.CLOSED:
            _pass_on(sa, ReturnRoutability(self.path), now)


def _pass_on(sa: IkeSa, task: UpdateAddresses | ReturnRoutability, now: float) -> None:
    """Have the successor do it, unless it has gone elsewhere since: that has an exchange of its own."""
    if sa.successor is not None and sa.heir.path == task.path:
        sa.heir.queue(task, now, first=True)
        sa.host.schedule(sa.heir)


# As initiator


def move_to(sa: IkeSa, new: Address, now: float) -> None:
    """Our address is `new` from now on: tell the peer, or begin anew where it could not follow."""
    if sa.path.local == new:
        return
    same = (each for each in (sa.path.remote, *sa.peer_addresses) if each.version == new.version)
    remote = next(same, None)
    if remote is None:
        return  # the peer has told no address of that family; should it stay like that, there will be silence
    path = replace(sa.path, local=new, remote=remote)
    if sa.state.half_open:
        sa.path = path
        if sa.window.pending is not None:
            sa.window.pending.path = path
    elif sa.features & Feature.MOBIKE and sa.first_initiator:
        update(sa, path, now)
    elif sa.nat_local or not sa.first_initiator:
        # RFC 7296 section 2.23: a peer that sees us behind a NAT follows what is authenticated. One that began the
        # IKE SA itself finds out by our silence, and begins anew.
        from control.ike.v2.tasks.dpd import Liveness

        sa.move(path, now)
        if sa.state is State.ESTABLISHED:
            sa.queue(Liveness(), now, first=True)
    elif sa.state is State.ESTABLISHED:
        _begin_anew(sa, path, now)


def _begin_anew(sa: IkeSa, path: PeerPath, now: float) -> None:
    """RFC 7296 section 2.11: without MOBIKE an IKE SA stays where it is, and there we are no more."""
    children = [child.spec.settings for child in sa.children.values() if child.replaced_by is None]
    failure = Failure(
        code="address_lost",
        text=f"our address {sa.path.local} is gone; a peer without MOBIKE does not follow to {path.local}",
        advice="it is set up anew; to keep it over a change of address, set mobike = true on both sides",
    )
    sa.close(Closed.FAILED, now, failure=failure)
    for settings in dict.fromkeys(children):
        set_up(sa, settings, now)


def update(sa: IkeSa, path: PeerPath, now: float) -> None:
    """Have the peer follow to `path`; what is under way is sent again from there."""
    sa.path = path
    pending = sa.window.pending
    if pending is not None:
        # RFC 4555 section 3.5: the same request, by the new path; it must be through before the update can go.
        pending.path = path
        pending.due = now
    sa.queued = type(sa.queued)(each for each in sa.queued if not isinstance(each[1], UpdateAddresses))
    sa.queue(UpdateAddresses(path), now, first=True)


def add_detections(sa: IkeSa, message: Outgoing, path: PeerPath) -> None:
    """Both NAT_DETECTION notifications for a path (RFC 7296 section 2.23)."""
    force = bool(sa.features & Feature.ENCAPSULATION)
    source, destination = nat.detections(
        sa.spi_initiator, sa.spi_responder, path, force=force, random=sa.host.random
    )
    message.notify(NotifyType.NAT_DETECTION_SOURCE_IP, source)
    message.notify(NotifyType.NAT_DETECTION_DESTINATION_IP, destination)


def mapping_changed(sa: IkeSa, response: Incoming) -> bool:
    """Whether the peer sees us elsewhere than before: by another mapping, or a NAT has come or gone."""
    seen = response.notify(NotifyType.NAT_DETECTION_DESTINATION_IP)
    if seen is None:
        return False
    # The hash is of this IKE SA's SPIs and of our address and port as the peer saw them: comparable, not readable.
    before, sa.mapping = sa.mapping, seen.data
    local, _ = _found(sa, response.payloads, response.path)
    return local != sa.nat_local or before not in (None, seen.data)


def _found(sa: IkeSa, payloads: Sequence[Payload], path: PeerPath) -> tuple[bool, bool]:
    notifies = [each for each in payloads if isinstance(each, NotifyPayload)]
    sources = [each.data for each in notifies if each.type == NotifyType.NAT_DETECTION_SOURCE_IP]
    destinations = [each.data for each in notifies if each.type == NotifyType.NAT_DETECTION_DESTINATION_IP]
    return nat.found(sa.spi_initiator, sa.spi_responder, path, sources, destinations)


def _take_detections(sa: IkeSa, payloads: Sequence[Payload], path: PeerPath) -> None:
    if any(
        isinstance(each, NotifyPayload) and each.type == NotifyType.NAT_DETECTION_SOURCE_IP
        for each in payloads
    ):
        sa.nat_local, sa.nat_remote = _found(sa, payloads, path)


# As responder


def check_no_nat(request: Incoming) -> None:
    """A peer that tolerates no NAT says where it is and sees us; PeerError where the datagram's header differs."""
    notify = request.notify(NotifyType.NO_NATS_ALLOWED)
    if notify is None:
        return
    path = request.path
    ports = path.remote_port.to_bytes(2, "big") + path.local_port.to_bytes(2, "big")
    if notify.data != path.remote.packed + path.local.packed + ports:
        # RFC 4555 section 3.9: nothing else is done with what it says.
        raise PeerError(
            NotifyType.UNEXPECTED_NAT_DETECTED,
            f"the peer allows no NAT, and its datagram from {path.remote}:{path.remote_port} to "
            f"{path.local}:{path.local_port} was sent from or to somewhere else",
            advice="let the peer use NAT traversal, or take the NAT away",
        )


def answer(sa: IkeSa, request: Incoming, now: float) -> list[Payload]:
    """What the answer to an INFORMATIONAL request says about addresses."""
    reply: list[Payload] = []
    _take_addresses(sa, request)
    cookie = request.notify(NotifyType.COOKIE2)
    if cookie is not None:
        if not 8 <= len(cookie.data) <= 64:
            raise syntax_error(f"COOKIE2 of {len(cookie.data)} bytes; want 8 to 64 (RFC 4555 section 4.2.5)")
        reply.append(NotifyPayload(type=NotifyType.COOKIE2, data=cookie.data))
    if request.notify(NotifyType.NAT_DETECTION_SOURCE_IP) is not None:
        message = Outgoing(Exchange.INFORMATIONAL)
        # The path as the request showed it: the peer learns whether a NAT has changed it.
        add_detections(sa, message, request.path)
        reply += message.payloads
    if request.notify(NotifyType.UPDATE_SA_ADDRESSES) is None or not sa.features & Feature.MOBIKE:
        return reply
    if sa.first_initiator:
        sa.note("warning", "UPDATE_SA_ADDRESSES of the responder ignored: the initiator decides (RFC 4555)")
        return reply
    _take_detections(sa, request.payloads, request.path)
    pending = sa.window.pending
    if request.path != sa.path:
        sa.way, sa.path = sa.way or sa.path, request.path
        if pending is not None:
            pending.path = request.path
        sa.queued = type(sa.queued)(each for each in sa.queued if not isinstance(each[1], ReturnRoutability))
        sa.queue(ReturnRoutability(request.path), now, first=True)
    return reply


def answered(sa: IkeSa, now: float) -> None:
    """The answer is out; keepalives follow what was found of NATs."""
    sa.start_keepalives(now)


def _take_addresses(sa: IkeSa, request: Incoming) -> None:
    """RFC 4555 section 3.6: each such message is the whole list of the peer's other addresses."""
    if request.notify(NotifyType.NO_ADDITIONAL_ADDRESSES) is not None:
        sa.peer_addresses = ()
        return
    found = [
        ip_address(each.data)
        for each in request.all(NotifyPayload)
        if each.type in _ADDRESSES and len(each.data) == _ADDRESSES[NotifyType(each.type)]
    ]
    if found:
        sa.peer_addresses = tuple(found[:MAX_ADDRESSES])
