"""Is the peer alive? An empty INFORMATIONAL exchange (RFC 7296 sections 1.4, 2.4).

Retransmission does the rest: a request that stays unanswered ends the IKE SA. Behind a NAT, with MOBIKE, the question
also tells whether the NAT has given us another mapping (RFC 4555 section 3.8).
"""

from __future__ import annotations

from control.ike.numbers import Exchange
from control.ike.v2.parts import Feature
from control.ike.v2.sa import IkeSa
from control.ike.v2.states import State
from control.ike.v2.task import DONE, MORE, Incoming, Outgoing, Result, Task


class Liveness(Task):
    """Ask whether the peer is there."""

    exchange = Exchange.INFORMATIONAL
    name = "liveness"

    def __init__(self) -> None:
        super().__init__(initiator=True)

    def build(self, sa: IkeSa, message: Outgoing, now: float) -> Result:
        """Nothing, or what tells a changed mapping."""
        from control.ike.v2.tasks.mobike import add_detections

        if sa.state is not State.ESTABLISHED:
            return DONE
        if sa.first_initiator and sa.nat_local and sa.features & Feature.MOBIKE:
            add_detections(sa, message, sa.path)
        return MORE

    def process(self, sa: IkeSa, message: Incoming, now: float) -> Result:
        """That an answer came is all; if the NAT's mapping is another, the peer is told."""
        from control.ike.v2.tasks.mobike import mapping_changed, update

        if sa.first_initiator and mapping_changed(sa, message):
            update(sa, sa.path, now)
        return DONE


class LearnMapping(Liveness):
    """Ask for the sake of the mapping alone: what it is at first is what a later answer is compared with."""

    name = "learn the NAT's mapping"

    def build(self, sa: IkeSa, message: Outgoing, now: float) -> Result:
        """Nothing to ask where the peer follows by itself (RFC 7296 section 2.23), or another asked meanwhile."""
        if not sa.features & Feature.MOBIKE or sa.mapping is not None:
            return DONE
        return super().build(sa, message, now)
