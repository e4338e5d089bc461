"""A message of an IKE SA's peer: 1 its number 2 opened 3 the task that it is for 4 the response.

    request    new: a task processes it, and its response goes out; repeated: the same response again; else nothing
    response   to the request that is under way: its task goes on, or is over

Whose a datagram is, the endpoint has found out by its SPI. Until a message has been opened it is nobody's, and changes
nothing. What exchanges mean is in v2/tasks, bytes of messages in v2/codec.py.
"""

from __future__ import annotations

from control.crypto.errors import CryptoError
from control.ike.errors import PeerError
from control.ike.events import Closed, Failure, PeerPath
from control.ike.numbers import Exchange, NotifyType, name_of
from control.ike.v2 import codec, send
from control.ike.v2.parts import Feature
from control.ike.v2.sa import IkeSa
from control.ike.v2.states import ALLOWED, State
from control.ike.v2.task import FAIL, MORE, Ignored, Incoming, Outgoing
from control.ike.v2.tasks.respond import responder_task
from control.ike.v2.window import Arrival
from control.ike.wire.header import Header
from control.ike.wire.message import parse_message, parse_payload_chain


def take_in(sa: IkeSa, header: Header, data: bytes, path: PeerPath, now: float) -> None:
    """Take in a datagram with our SPI. What is not the peer's changes nothing."""
    if header.response:
        _response(sa, header, data, path, now)
    else:
        _request(sa, header, data, path, now)


def _request(sa: IkeSa, header: Header, data: bytes, path: PeerPath, now: float) -> None:
    """A request: answered once, and the answer repeated as often as the request is."""
    if sa.keys is None:
        return  # we have begun, and are still to be answered: nothing that comes in clear is asked of us
    arrival = sa.window.arrival(header.message_id)
    if arrival is Arrival.REPEATED:
        # RFC 7296 section 2.1: a repeated request gets the identical response.
        if sa.window.response and (hash(data) == sa.window.answered or _cut_anew(sa, data)):
            send.transmit(sa, sa.window.response, path, now)
        return
    if arrival is not Arrival.NEW:
        sa.note("debug", f"request {header.message_id} ignored, expected is {sa.window.expected}")
        return
    message = _open(sa, header, data, path, now)
    if message is None:
        return
    _heard(sa, path, now)
    _answer(sa, message, now)


def _cut_anew(sa: IkeSa, data: bytes) -> bool:
    """Whether this is the request that was answered last, in other fragments than before, or whole.

    A peer that gets no response may try smaller ones (RFC 7383 section 2.5.2). The first of them asks for the response
    (section 2.6.1), and it must be the peer's; the keys may have changed with the response (RFC 9242).
    """
    if sa.window.opener is None:
        return False
    try:
        parsed = parse_message(data)
        sealed = parsed.encrypted
        if sealed is None or sealed.number > 1:
            return False
        sa.window.opener.open(parsed.aad, sealed.body)
    except (CryptoError, PeerError):
        return False
    return True


def _answer(sa: IkeSa, message: Incoming, now: float) -> None:
    """Let a task process the request, and send its response."""
    exchange = message.header.exchange
    response = Outgoing(exchange)
    failure: Failure | None = None
    task = sa.responding
    try:
        if exchange not in ALLOWED[sa.state]:
            raise PeerError(
                NotifyType.INVALID_SYNTAX,
                f"{name_of(Exchange, exchange)} while the IKE SA is {sa.state.value}",
            )
        if task is None or exchange != task.exchange:
            task = responder_task(sa, message)
        result = task.process(sa, message, now)
        built = task.build(sa, response, now)
        result = FAIL if FAIL in (result, built) else built
    except Ignored as reason:
        sa.note("debug", f"{name_of(Exchange, exchange)} ignored: {reason}")
        return
    except PeerError as error:
        failure = codec.failure_of(error)
        sa.last_error = failure
        response = Outgoing(exchange)
        response.notify(error.notify, error.data)
        result = FAIL
    if sa.state is State.CLOSED:
        return
    if result is MORE:
        sa.responding = task
    elif task is sa.responding:
        sa.responding = None
    datagrams = _respond(
        sa, response, message.header.message_id, message.opened.request_hash, message.path, now
    )
    if failure is not None and not (result is FAIL and sa.state.half_open):  # IkeFailed says it below
        sa.note("warning", f"{name_of(Exchange, exchange)} refused: {failure}")
    if task is not None:
        task.built(sa, response, datagrams, now)
    if result is FAIL and sa.state.half_open:
        failure = failure or sa.last_error or Failure(code="failed", text="the handshake failed")
        sa.close(Closed.FAILED, now, failure=failure, linger=True)


def _response(sa: IkeSa, header: Header, data: bytes, path: PeerPath, now: float) -> None:
    """A response: to the request that is under way, or to none that matters."""
    pending, task = sa.window.pending, sa.active
    if pending is None or task is None or pending.message_id != header.message_id:
        return
    message = _open(sa, header, data, path, now)
    if message is None:
        return
    if header.exchange != Exchange.IKE_SA_INIT:
        _heard(sa, path, now)
    try:
        if header.exchange != task.exchange:
            raise PeerError(
                NotifyType.INVALID_SYNTAX,
                f"the response is {name_of(Exchange, header.exchange)}, the request was {task.exchange.name}",
            )
        result = task.process(sa, message, now)
    except Ignored as reason:
        sa.note("debug", f"response ignored: {reason}")
        return
    except PeerError as error:
        _request_over(sa)
        sa.last_error = codec.failure_of(error)
        task.failed(sa, sa.last_error, now)
        return
    if sa.state is not State.CLOSED:
        _request_over(sa, goes_on=result is MORE)


def _request_over(sa: IkeSa, *, goes_on: bool = False) -> None:
    """Our request has its response; with `goes_on` its task has another to send."""
    if sa.window.pending is not None:
        sa.window.responded()
    if not goes_on:
        sa.active = None


def _open(sa: IkeSa, header: Header, data: bytes, path: PeerPath, now: float) -> Incoming | None:
    """The message in clear; None while fragments are missing, or when it is not the peer's at all."""
    name = name_of(Exchange, header.exchange)
    if sa.keys is None and header.exchange != Exchange.IKE_SA_INIT:
        return None
    try:
        parsed = parse_message(data)
        if sa.keys is None:
            opened = codec.Opened(0, b"", hash(data))
            return Incoming(header, parsed.payloads, path=path, data=data, opened=opened)
        found = codec.unseal(sa.keys, parsed, sa.reassembly)
        if found is None:
            return None
        opened = found
    except (CryptoError, PeerError) as error:
        # RFC 7296 section 2.21: what is not protected by our keys changes nothing and gets no answer.
        sa.note("debug", f"{name} of {path.remote} dropped: {error}")
        return None
    try:
        payloads = parse_payload_chain(opened.first, opened.plain)
    except PeerError as error:
        _malformed(sa, header, opened, error, path, now)
        return None
    return Incoming(header, payloads, path=path, data=data, opened=opened)


def _malformed(
    sa: IkeSa,
    header: Header,
    opened: codec.Opened,
    error: PeerError,
    path: PeerPath,
    now: float,
) -> None:
    """What the peer sealed and cannot be parsed: the request gets an error, ours has failed."""
    failure = codec.failure_of(error)
    sa.note("warning", f"{name_of(Exchange, header.exchange)} of {path.remote} refused: {failure}")
    sa.last_error = failure
    if header.response:
        task = sa.active
        _request_over(sa)
        if task is not None:
            task.failed(sa, failure, now)
        return
    response = Outgoing(header.exchange)
    response.notify(error.notify, error.data)
    _respond(sa, response, header.message_id, opened.request_hash, path, now)
    if sa.state.half_open:
        sa.close(Closed.FAILED, now, failure=failure, linger=True)


def _respond(
    sa: IkeSa, response: Outgoing, message_id: int, request_hash: int, path: PeerPath, now: float
) -> list[bytes]:
    datagrams = send.seal(sa, response, message_id, response=True)
    sa.window.answer(request_hash, datagrams, sa.keys.opener if sa.keys is not None else None)
    send.transmit(sa, datagrams, path, now)
    return datagrams


def _heard(sa: IkeSa, path: PeerPath, now: float) -> None:
    """An authenticated message has come: the peer lives, and where it is."""
    sa.alive(now)
    # RFC 7296 section 2.23: the peer's new port or address is followed when it, and not we, is behind a NAT.
    # With MOBIKE its initiator tells (RFC 4555 section 3.8). The initiator's float to 4500 is always followed.
    if path == sa.path:
        return
    if sa.state.half_open and not sa.initiator:
        sa.path = path
    elif sa.nat_remote and not sa.nat_local and not sa.features & Feature.MOBIKE:
        sa.move(path, now)
