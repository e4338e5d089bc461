"""What only the handshake of an IKE SA needs, from IKE_SA_INIT until both sides are authenticated."""

from __future__ import annotations

from typing import TYPE_CHECKING

from control.ike.selectors import PacketSelectors
from control.ike.settings import ChildSettings, Connection

if TYPE_CHECKING:
    from control.ike.v2.sa import IkeSa


class Handshake:
    """Dropped with `IkeSa.established`."""

    __slots__ = (
        "additional_groups",
        "authorities",
        "certificate_asked",
        "child",
        "childless",
        "connections",
        "intermediate_i",
        "intermediate_r",
        "intermediates",
        "nonce_i",
        "nonce_r",
        "packet",
        "ppk",
        "replaces",
        "request",
        "response",
        "tries",
    )

    def __init__(self) -> None:
        self.nonce_i = b""
        self.nonce_r = b""
        self.request = b""  # the IKE_SA_INIT messages as they were sent: they enter AUTH
        self.response = b""
        self.additional_groups: tuple[int, ...] = ()  # key exchanges still to be done (RFC 9370)
        self.intermediate_i = b""  # IntAuth of RFC 9242 section 3.3.2
        self.intermediate_r = b""
        self.intermediates = 0  # IKE_INTERMEDIATE exchanges so far
        self.authorities: tuple[bytes, ...] = ()  # SHA-1 of SPKIs, of the peer's CERTREQ
        self.certificate_asked = False  # the peer sent a CERTREQ
        self.connections: tuple[Connection, ...] = ()  # of a responder: those that may still be meant
        self.child: ChildSettings | None = None  # of an initiator: what IKE_AUTH asks for
        self.packet: PacketSelectors | None = None  # the traffic that asks for it
        self.childless = False  # the peer can do without a first child (RFC 6023)
        self.ppk = False  # both said that they can mix a PPK in (RFC 8784)
        self.tries = 1  # of an initiator: this one is the how manieth attempt
        self.replaces: IkeSa | None = None  # make-before-break: the IKE SA that goes when this one is there
