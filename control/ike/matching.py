"""What one configured and one offered proposal have in common, type by type (RFC 7296 section 3.3.6)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from control.ike.numbers import ADDITIONAL_KEY_EXCHANGES, Protocol, TransformType
from control.ike.wire.proposal import OfferedProposal, Transform

if TYPE_CHECKING:  # control.ike.proposal chooses with what is here
    from control.ike.proposal import Proposal

# Types that a proposal may leave out, which means the same as offering the one transform NONE, number 0.
_OPTIONAL = frozenset((TransformType.INTEG, *ADDITIONAL_KEY_EXCHANGES))
_MAY_BE_NONE = _OPTIONAL | {TransformType.KE}
_KNOWN = frozenset(map(int, TransformType))
_NOTHING: frozenset[Transform] = frozenset()


def is_known(theirs: OfferedProposal) -> bool:
    """Whether an offer has only types that can be chosen at all; none of ours has any other."""
    return theirs.by_type.keys() <= _KNOWN


def kinds_of(ours: Proposal, theirs: OfferedProposal) -> list[int]:
    """The transform types that either side names, in order; a type we do not know is among them and spoils it."""
    return sorted(ours.types | theirs.by_type.keys())


def common_transforms(kind: int, ours: Proposal, theirs: OfferedProposal) -> tuple[Transform, ...]:
    """Our transforms of a type that the peer offers too, or the NONE that it offers where we have nothing."""
    # A transform with an attribute we do not know differs from each of ours (RFC 7296 section 3.3.6).
    offered = theirs.by_type.get(kind, _NOTHING)
    wanted = ours.of(kind)
    if not wanted and kind in _MAY_BE_NONE:
        wanted = (Transform(type=kind, id=0),)
    return tuple(transform for transform in wanted if transform in offered)


def skippable(kind: int, ours: Proposal, theirs: OfferedProposal) -> bool:
    """Whether nothing in common in a type is no obstacle, as one side has the type not at all."""
    wanted, offered = ours.of(kind), theirs.by_type.get(kind)
    none = Transform(type=kind, id=0)
    if kind == TransformType.INTEG and not wanted:
        return True  # our ciphers need none; what is offered is for others (RFC 7296 section 3.3)
    if kind in _OPTIONAL or (kind == TransformType.KE and ours.protocol != Protocol.IKE):
        return not offered and (not wanted or none in wanted)
    # RFC 7296 section 3.3.3 makes ESN mandatory for ESP; silence can only mean 32 bits.
    return kind == TransformType.ESN and not offered and none in wanted
