"""What an IKE SA is made of beside its exchanges: what both sides can do, its moments, and its children."""

from __future__ import annotations

import enum

from control.ike.events import ChildSa


class Feature(enum.IntFlag):
    """What both sides can do."""

    FRAGMENTATION = 1
    MOBIKE = 2
    INTERMEDIATE = 4
    PPK = 8  # a PPK is in the keys
    NAT_DETECTION = 16
    SIGNATURE_HASHES = 32
    ENCAPSULATION = 64  # ESP goes in UDP though there is no NAT: forced


class Timer(enum.Enum):
    """Moments of an IKE SA; its children and the window have theirs."""

    HALF_OPEN = "half open"
    REKEY = "rekey"
    REAUTH = "reauthenticate"
    EXPIRE = "expire"
    DPD = "dead peer detection"
    KEEPALIVE = "keepalive"
    FOLLOWUP = "follow-up of the peer"


class ChildState(enum.Enum):
    """Where a child SA stands. The words are shown to users."""

    INSTALLED = "installed"
    REKEYING = "rekeying"  # our request to replace it is under way
    REKEYED = "rekeyed"  # replaced; only its delete is still to come
    DELETING = "deleting"  # our delete awaits its answer


class Child:
    """A child SA as its IKE SA keeps it. The keys have left with the event and are not kept."""

    __slots__ = ("expires_at", "heir", "outbound", "rekey_at", "replaced_by", "spec", "state")

    def __init__(self, spec: ChildSa, *, outbound: bool) -> None:
        self.spec = spec
        self.state = ChildState.INSTALLED
        self.outbound = outbound  # we may send through it
        self.rekey_at = spec.rekey_at
        self.expires_at = spec.expires_at
        self.replaced_by: int | None = None  # id of the child in its place
        self.heir: Child | None = None  # the same, also when both are gone
