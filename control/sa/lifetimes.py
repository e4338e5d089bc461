"""When a child SA has carried enough: soft limits ask for a rekey, hard ones end it (RFC 7296 section 2.8).

Time is the protocol's own business; packets and bytes are counted by the workers, and looked at here about once a
second. Both SAs of a child count by themselves; whichever is first decides.

A 32-bit sequence number is a limit nobody configures: past it an SA sends nothing more (RFC 4303 section 3.3.3), so a
rekey is asked for while an eighth of the numbers is left.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable

from control.ike.settings import Lifetime
from dataplane.api import SaTraffic

SOFT_NUMBERS = 0xE0000000


class Spent(enum.Enum):
    """How far a child SA's limits are used up."""

    SOFT = "soft"
    HARD = "hard"


def spent(lifetime: Lifetime, *, esn: bool, traffic: Iterable[SaTraffic]) -> Spent | None:
    """Whether a limit of packets or bytes has been reached by any of a child's SAs; 0 is no limit."""
    found: Spent | None = None
    for each in traffic:
        if _reached(each.packets, lifetime.life_packets) or _reached(each.bytes, lifetime.life_bytes):
            return Spent.HARD
        if (
            _reached(each.packets, lifetime.rekey_packets)
            or _reached(each.bytes, lifetime.rekey_bytes)
            or (not esn and each.number >= SOFT_NUMBERS)
        ):
            found = Spent.SOFT
    return found


def _reached(count: int, limit: int) -> bool:
    return 0 < limit <= count
