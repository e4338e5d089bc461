"""What one configured and one offered proposal have in common, type by type (RFC 7296 section 3.3.6)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from control.ike.numbers import ADDITIONAL_KEY_EXCHANGES, Protocol, TransformType
from control.ike.wire.proposal import OfferedProposal, Transform

if TYPE_CHECKING:  # control.ike.proposal chooses with what is here
    from control.ike.proposal import Proposal

# Types that a proposal may leave out, which means the same as offering the one transform NONE, number 0.
_OPTIONAL = frozenset((TransformType.INTEG, *ADDITIONAL_KEY_EXCHANGES))


def kinds_of(ours: Proposal, theirs: OfferedProposal) -> list[int]:
    """The transform types that either side names, in order; a type we do not know is among them and spoils it."""
    return sorted({transform.type for transform in (*ours.transforms, *theirs.transforms)})


def common_transforms(kind: int, ours: Proposal, theirs: OfferedProposal) -> tuple[Transform, ...]:
    """Our transforms of a type that the peer offers too, or the NONE that it offers where we have nothing."""
    # A transform with an attribute we do not know differs from each of ours (RFC 7296 section 3.3.6).
    offered = {transform for transform in theirs.transforms if transform.type == kind}
    wanted = ours.of(kind)
    if not wanted and kind in _OPTIONAL | {TransformType.KE}:
        wanted = (Transform(type=kind, id=0),)
    return tuple(transform for transform in wanted if transform in offered)


def skippable(kind: int, ours: Proposal, theirs: OfferedProposal) -> bool:
    """Whether nothing in common in a type is no obstacle, as one side has the type not at all."""
    wanted, offered = ours.of(kind), [each for each in theirs.transforms if each.type == kind]
    none = Transform(type=kind, id=0)
    if kind == TransformType.INTEG and not wanted:
        return True  # our ciphers need none; what is offered is for others (RFC 7296 section 3.3)
    if kind in _OPTIONAL or (kind == TransformType.KE and ours.protocol != Protocol.IKE):
        return not offered and (not wanted or none in wanted)
    # RFC 7296 section 3.3.3 makes ESN mandatory for ESP; silence can only mean 32 bits.
    return kind == TransformType.ESN and not offered and none in wanted
