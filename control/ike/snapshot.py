"""What the IKE and child SAs are like at one moment: for the status, never for decisions of the protocol.

Times are of the clock that the endpoint is driven by, in seconds; 0 is never or not yet.
"""

from __future__ import annotations

from dataclasses import dataclass

from control.ike.events import ChildSa, PeerPath
from dataplane.model import Address


@dataclass(frozen=True, kw_only=True)
class ChildSnapshot:
    """One child SA."""

    sa: ChildSa
    state: str  # installed, rekeying, rekeyed (replaced, about to be deleted), deleting


@dataclass(frozen=True, kw_only=True)
class IkeSnapshot:
    """One IKE SA, half-open ones included."""

    id: int
    connection: str  # "" while none is chosen
    state: str  # a word of control.ike.v2.states.State, or rekeying
    initiator: bool
    path: PeerPath
    spi_initiator: bytes
    spi_responder: bytes
    local_id: str = ""
    remote_id: str = ""
    eap_identity: str | None = None
    suite_name: str = ""
    created: float  # when the first message was sent or received
    established: float = 0.0
    rekey_at: float = 0.0
    reauth_at: float = 0.0
    nat_local: bool = False  # a NAT is before us
    nat_remote: bool = False
    mobike: bool = False
    virtual_local: tuple[Address, ...] = ()  # lent to us
    virtual_remote: tuple[Address, ...] = ()  # lent by us
    children: tuple[ChildSnapshot, ...] = ()
