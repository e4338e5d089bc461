"""A NAT gave the peer another mapping, and ESP alone shows it: its packets come from elsewhere (RFC 7296 section 2.23).

    without MOBIKE   the packet was authenticated, and that is what section 2.23 asks for: IKE SA and children move
    with MOBIKE      COOKIE2 ->  <- COOKIE2      by the new way, by both in turn when it has to be repeated; only when
                                                it comes back by the new way, all moves (RFC 4555 section 3.7)

With MOBIKE it is the initiator who should tell, but it knows of its NAT's new mapping only when it asks, and many
never do. Followed is a peer behind a NAT, and never by one that is behind a NAT itself: whoever can hold back the
peer's packets and send them on from elsewhere may lead us astray, and without a NAT there is nothing to win by that.
"""

from __future__ import annotations

from dataclasses import replace

from control.ike.events import Failure, PeerPath
from control.ike.v2.parts import Feature
from control.ike.v2.sa import IkeSa
from control.ike.v2.states import State
from control.ike.v2.task import DONE, Incoming, Outgoing, Result
from control.ike.v2.tasks.mobike import ReturnRoutability
from dataplane.model import Address


class ProbeMapping(ReturnRoutability):
    """Is the peer to be found where its ESP comes from? Nothing changes unless it is."""

    name = "probe the peer's new mapping"

    def build(self, sa: IkeSa, message: Outgoing, now: float) -> Result:
        """COOKIE2, which must come back by the new way."""
        if sa.path == self.path or sa.state is not State.ESTABLISHED:
            return DONE
        return self.ask(sa, message)

    def way(self, sa: IkeSa, repeats: int) -> PeerPath:
        """First the new way; then both in turn: the peer must not seem dead because its NAT changed its mind."""
        return sa.path if repeats % 2 else self.path

    def process(self, sa: IkeSa, message: Incoming, now: float) -> Result:
        """The cookie is back: by the new way all moves."""
        if self.proven(sa, message, now) and message.path == self.path:
            sa.move(self.path, now)
        return DONE

    def failed(self, sa: IkeSa, failure: Failure, now: float) -> None:
        """The IKE SA is gone; whatever has its children sees the packets for itself."""


def source_seen(sa: IkeSa, address: Address, port: int, now: float) -> None:
    """Authenticated ESP of a child came from this address and UDP port."""
    path = replace(sa.path, remote=address, remote_port=port)
    if path == sa.path or sa.state is not State.ESTABLISHED or not sa.nat_remote or sa.nat_local:
        return
    if not sa.features & Feature.MOBIKE:
        sa.note("info", f"the peer's packets come from {address}:{port} now: followed there")
        sa.move(path, now)
    elif not sa.has_task(ReturnRoutability):
        sa.note("info", f"the peer's packets come from {address}:{port} now: it is asked there")
        sa.queue(ProbeMapping(path), now, first=True)
