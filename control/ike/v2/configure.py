"""The configuration payload in IKE_AUTH: a client asks with its first request, and is lent with the last response.

Without an address there is no child SA (RFC 7296 section 3.15.4), but the IKE SA stands. Addresses that a server lends
go back to the pool when the IKE SA, or the last of its successors, is gone (`IkeSa.close`).
"""

from __future__ import annotations

from control.ike import configuration
from control.ike.events import VirtualAddressesAssigned
from control.ike.numbers import CfgType
from control.ike.v2.sa import IkeSa
from control.ike.v2.task import Incoming, Outgoing
from control.ike.wire.payloads import CpPayload
from dataplane.model import Address


def ask(sa: IkeSa, message: Outgoing) -> None:
    """As initiator: ask for the addresses that the connection wants, if it wants any."""
    wanted = _wanted(sa)
    if wanted:
        message.add(CpPayload(type=CfgType.REQUEST, attributes=configuration.request(wanted)))


def _wanted(sa: IkeSa) -> tuple[Address, ...]:
    """What to ask for: who authenticates anew wants to keep what it has."""
    old = sa.handshake.replaces if sa.handshake is not None else None
    if old is not None and old.virtual_local:
        return old.virtual_local
    return sa.connection.virtual_addresses


def grant(sa: IkeSa, request: Incoming, message: Outgoing) -> None:
    """As responder: lend what the peer asks for; PeerError where that cannot be, and then no child either."""
    asked = request.get(CpPayload)
    if asked is None or asked.type != CfgType.REQUEST:
        return
    identity = sa.eap_identity or str(sa.remote_id)
    granted = configuration.answer(sa.host.pools, sa.connection.pools, asked.attributes, identity)
    sa.virtual_remote = granted.addresses
    if granted.attributes:
        message.add(CpPayload(type=CfgType.REPLY, attributes=granted.attributes))


def take(sa: IkeSa, response: Incoming) -> None:
    """As initiator: read what we were lent, and tell; PeerError where we asked and have got no address."""
    wanted = _wanted(sa)
    if not wanted:
        return
    reply = response.get(CpPayload)
    attributes = reply.attributes if reply is not None and reply.type == CfgType.REPLY else ()
    received = configuration.read_reply(attributes, wanted)
    sa.virtual_local = received.addresses
    sa.emit(
        VirtualAddressesAssigned(
            ike=sa.id,
            connection=sa.connection.name,
            addresses=received.addresses,
            dns=received.dns,
            domains=received.domains,
            networks=received.subnets,
        )
    )


def give_back(sa: IkeSa) -> None:
    """As responder: the IKE SA is gone for good; its addresses are free."""
    for address in sa.virtual_remote:
        sa.host.pools.release(address)
    sa.virtual_remote = ()


def move(sa: IkeSa, successor: IkeSa) -> None:
    """A rekeyed IKE SA's addresses are its successor's (RFC 7296 section 2.18). Once moved, nothing is left to move."""
    successor.virtual_local = sa.virtual_local or successor.virtual_local
    successor.virtual_remote = sa.virtual_remote or successor.virtual_remote
    sa.virtual_local = sa.virtual_remote = ()
