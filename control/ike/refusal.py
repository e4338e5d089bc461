"""Why no proposal fits, in one line: what was offered, what is accepted, and per offer which transform differs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING

from control.ike.keywords import show_transforms, word_of
from control.ike.matching import common_transforms, kinds_of, skippable
from control.ike.numbers import ADDITIONAL_KEY_EXCHANGES, Protocol, TransformType, name_of
from control.ike.wire.proposal import OfferedProposal

if TYPE_CHECKING:
    from control.ike.proposal import Proposal

_OFFERS = 8  # that are told apart; a peer may send 255
_WORDS = 40  # shown of one offer
_TITLES: dict[int, str] = {
    TransformType.ENCR: "encryption",
    TransformType.PRF: "pseudorandom function",
    TransformType.INTEG: "integrity",
    TransformType.KE: "key exchange",
    TransformType.ESN: "length of sequence numbers",
    **{kind: f"additional key exchange {index + 1}" for index, kind in enumerate(ADDITIONAL_KEY_EXCHANGES)},
}


def explain_refusal(
    offered: Sequence[OfferedProposal], configured: Sequence[Proposal], whose: str
) -> tuple[str, str]:
    """(both sides' view with the differences, what to do); `whose` is who accepts, e.g. "connection 'branch'"."""
    if not configured:
        return f"no proposal chosen: {whose} {_verb(whose)} nothing", "add a proposal to the connection"
    differences = []
    nearest: tuple[int, OfferedProposal, Proposal] | None = None
    for theirs in offered[:_OFFERS]:
        ours = min(configured, key=lambda each: len(_differing(each, theirs)))
        kinds = _differing(ours, theirs)
        if nearest is None or len(kinds) < nearest[0]:
            nearest = (len(kinds), theirs, ours)
        differences.append(f"in {theirs.number} {_difference(ours, theirs, kinds)}")
    if len(offered) > _OFFERS:
        differences.append(f"and {len(offered) - _OFFERS} proposals more")
    text = (
        f"no proposal chosen: the peer offers {'; '.join(show_offer(each) for each in offered[:_OFFERS])}; "
        f"{whose} {_verb(whose)} {', '.join(map(str, configured))}; {'; '.join(differences)}"
    )
    return text, _advice(nearest)


def _verb(whose: str) -> str:
    return "accept" if whose == "we" else "accepts"


def show_offer(proposal: OfferedProposal) -> str:
    """A peer's proposal as number and keywords, cut where it is very long: "1: aes128-sha256-modp2048"."""
    shown = show_transforms(proposal.transforms[:_WORDS]) or "nothing"
    more = f"-... ({len(proposal.transforms)} transforms)" if len(proposal.transforms) > _WORDS else ""
    protocol = (
        ""
        if proposal.protocol in (Protocol.IKE, Protocol.ESP)
        else name_of(Protocol, proposal.protocol) + " "
    )
    return f"{proposal.number}: {protocol}{shown}{more}"


def _differing(ours: Proposal, theirs: OfferedProposal) -> list[int]:
    """The types that keep two proposals from fitting; a protocol that differs counts more than all types."""
    if ours.protocol != theirs.protocol:
        return [0] * 256
    return [
        kind
        for kind in kinds_of(ours, theirs)
        if not common_transforms(kind, ours, theirs) and not skippable(kind, ours, theirs)
    ]


def _difference(ours: Proposal, theirs: OfferedProposal, kinds: list[int]) -> str:
    if kinds and kinds[0] == 0:
        return f"the protocol differs ({name_of(Protocol, theirs.protocol)}, we want {ours.protocol.name})"
    if not kinds:
        return "no choice leaves every key exchange method used once only (RFC 9370 section 2.2.2)"
    return "; ".join(_type_difference(kind, ours, theirs) for kind in kinds)


def _type_difference(kind: int, ours: Proposal, theirs: OfferedProposal) -> str:
    offered = (word_of(each) for each in theirs.transforms if each.type == kind)
    got = ", ".join(islice(offered, _WORDS)) or "none"
    want = ", ".join(word_of(each) for each in ours.of(kind)) or "none"
    return f"{_TITLES.get(kind, f'transform type {kind}')} differs (offered {got[:200]}; accepted {want})"


def _advice(nearest: tuple[int, OfferedProposal, Proposal] | None) -> str:
    """What to change, from the offer that is nearest."""
    if nearest is None:
        return "the peer must offer at least one proposal"
    _, theirs, ours = nearest
    kinds = _differing(ours, theirs)
    if not kinds or kinds[0] == 0:
        return "make the proposals of both sides the same"
    titles = " and ".join(_TITLES.get(kind, f"transform type {kind}") for kind in kinds)
    return f"give both sides a common {titles}, e.g. {ours} on the peer"
