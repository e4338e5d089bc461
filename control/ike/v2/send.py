"""Messages of an IKE SA to its peer: 1 the next task that is due builds one 2 sealed 3 sent, and kept to be repeated.

One request of ours is under way at a time (a window of 1, RFC 7296 section 2.3); responses take `seal` and `transmit`
alone (v2/receive.py). When a request is repeated, and when given up, is v2/timers.py's.
"""

from __future__ import annotations

from control.ike.errors import PeerError
from control.ike.events import Datagram, PeerPath
from control.ike.numbers import Exchange
from control.ike.v2 import codec
from control.ike.v2.parts import Feature, Timer
from control.ike.v2.sa import IkeSa
from control.ike.v2.states import State
from control.ike.v2.task import MORE, Outgoing, Task
from control.ike.wire.header import Header
from control.ike.wire.payloads import Payload


def next_request(sa: IkeSa, now: float) -> None:
    """Send our next request if none is under way. The endpoint calls this after everything else."""
    while sa.window.pending is None and sa.state is not State.CLOSED:
        if sa.active is None:
            sa.active = _due_task(sa, now)
        task = sa.active
        if task is None:
            return
        message = Outgoing(task.exchange)
        try:
            result = task.build(sa, message, now)
        except PeerError as error:
            sa.active = None
            task.failed(sa, codec.failure_of(error), now)
            continue
        if result is not MORE:
            if sa.active is task:
                sa.active = None
            continue
        message.exchange = task.exchange
        datagrams = seal(sa, message, sa.window.next_request, response=False)
        task.built(sa, message, datagrams, now)
        path = task.way(sa, 0)
        sa.window.send(datagrams, path, sa.connection.retransmission, now)
        transmit(sa, datagrams, path, now)


def _due_task(sa: IkeSa, now: float) -> Task | None:
    """Of our tasks that wait, the first whose time has come; it waits no more."""
    for index, (due, task) in enumerate(sa.queued):
        if due <= now and sa.may(task):
            del sa.queued[index]
            return task
    return None


def header_of(sa: IkeSa, exchange: int, message_id: int, *, response: bool) -> Header:
    """The header of a message of ours."""
    return Header(
        initiator_spi=sa.spi_initiator,
        responder_spi=sa.spi_responder,
        exchange=exchange,
        initiator=sa.initiator,
        response=response,
        message_id=message_id,
    )


def seal(sa: IkeSa, message: Outgoing, message_id: int, *, response: bool) -> list[bytes]:
    """The datagrams of a message of ours, cut where the peer can put them together."""
    header = header_of(sa, message.exchange, message_id, response=response)
    keys = None if message.exchange == Exchange.IKE_SA_INIT else sa.keys
    limit = None
    if sa.features & Feature.FRAGMENTATION:
        marker = sa.path.local_port != sa.host.settings.nat_ports[0]
        limit = codec.datagram_limit(sa.path, sa.connection.fragment_size, marker=marker)
    return codec.seal(message, header, keys, limit=limit)


def last_message(sa: IkeSa, payload: Payload, now: float) -> None:
    """Tell the peer that we give the IKE SA up, once: nobody will be here for an answer (RFC 7296 2.21.2).

    What is under way is given up with it. A peer that has answered that reads this; to one that has not it is ahead.
    """
    message = Outgoing(Exchange.INFORMATIONAL)
    message.add(payload)
    message_id = sa.window.next_request + (sa.window.pending is not None)
    transmit(sa, seal(sa, message, message_id, response=False), sa.path, now)


def transmit(sa: IkeSa, datagrams: list[bytes], path: PeerPath, now: float) -> None:
    """Send datagrams of ours; a keepalive is due so much later."""
    for data in datagrams:
        sa.host.send(Datagram(path=path, data=data))
    if Timer.KEEPALIVE in sa.timers:
        sa.timers[Timer.KEEPALIVE] = now + sa.connection.keepalive
