"""Which task answers a request: by its exchange and by what is in it."""

from __future__ import annotations

from control.ike.errors import PeerError
from control.ike.numbers import Exchange, NotifyType, name_of
from control.ike.v2.sa import IkeSa
from control.ike.v2.task import Incoming, Task
from control.ike.v2.tasks.auth_response import IkeAuthResponse
from control.ike.v2.tasks.intermediate import Intermediate

_INITIATORS = (
    Exchange.IKE_AUTH,
    Exchange.IKE_INTERMEDIATE,
)  # exchanges of the handshake: the initiator's to begin


def responder_task(sa: IkeSa, message: Incoming) -> Task:
    """The task for a request that is the first of its act; PeerError for what has none."""
    exchange = message.header.exchange
    if sa.initiator and exchange in _INITIATORS:
        raise PeerError(
            NotifyType.INVALID_SYNTAX,
            f"{name_of(Exchange, exchange)} requested by the responder; want it of who began the IKE SA alone "
            "(RFC 7296 section 1.2, RFC 9242 section 3)",
        )
    if exchange == Exchange.IKE_AUTH:
        return IkeAuthResponse()
    if exchange == Exchange.IKE_INTERMEDIATE:
        return Intermediate(initiator=False)
    if exchange == Exchange.CREATE_CHILD_SA:
        from control.ike.v2.tasks.create_child import responder

        return responder(sa, message)  # a new child, a child's rekeying or this IKE SA's
    if exchange == Exchange.IKE_FOLLOWUP_KE:
        from control.ike.v2.tasks.create_child import followup

        return followup(sa, message)
    if exchange == Exchange.INFORMATIONAL:
        from control.ike.v2.tasks.informational import Informational

        return Informational(initiator=False)  # deletes, MOBIKE, a peer's error, or nothing: liveness
    raise PeerError(
        NotifyType.INVALID_SYNTAX, f"unexpected {name_of(Exchange, exchange)} while {sa.state.value}"
    )
