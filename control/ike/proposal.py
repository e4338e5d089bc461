"""Algorithms: what a connection is configured with, what a peer offers, and the choice between the two.

    Proposal   alternatives per transform type, as one string of strongSwan's keywords
    Suite      one transform per type: the outcome
    select     offers x configuration -> Suite, by our order of preference, or a refusal with every difference

How a refusal is worded is in control.ike.refusal, the sets behind the word "default" in control.ike.defaults.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache

from control.ike.errors import LocalError, PeerError
from control.ike.keywords import implied_prfs, show_transforms, transform_of, word_of
from control.ike.matching import common_transforms, is_known, kinds_of, skippable
from control.ike.numbers import (
    ADDITIONAL_KEY_EXCHANGES,
    AEAD,
    KEY_EXCHANGES,
    WEAK_GROUPS,
    Encr,
    Esn,
    Group,
    Integ,
    NotifyType,
    Protocol,
    TransformType,
)
from control.ike.refusal import explain_refusal
from control.ike.wire.proposal import OfferedProposal, Transform
from dataplane.model import Cipher, EspProposal, Integrity

# What the dataplane knows as cipher, bytes of ICV where the cipher makes one, and whether the IV is implicit.
_ESP_ENCR: dict[int, tuple[Cipher, int, bool]] = {
    Encr.NULL: (Cipher.NULL, 16, False),
    Encr.AES_CBC: (Cipher.AES_CBC, 16, False),
    Encr.AES_CTR: (Cipher.AES_CTR, 16, False),
    Encr.AES_GCM_16: (Cipher.AES_GCM, 16, False),
    Encr.AES_GCM_12: (Cipher.AES_GCM, 12, False),
    Encr.AES_GCM_8: (Cipher.AES_GCM, 8, False),
    Encr.AES_CCM_16: (Cipher.AES_CCM, 16, False),
    Encr.AES_CCM_12: (Cipher.AES_CCM, 12, False),
    Encr.AES_CCM_8: (Cipher.AES_CCM, 8, False),
    Encr.CHACHA20_POLY1305: (Cipher.CHACHA20_POLY1305, 16, False),
    Encr.NULL_AUTH_AES_GMAC: (Cipher.AES_GMAC, 16, False),
    Encr.AES_GCM_16_IIV: (Cipher.AES_GCM, 16, True),
    Encr.AES_CCM_8_IIV: (Cipher.AES_CCM, 8, True),
    Encr.CHACHA20_POLY1305_IIV: (Cipher.CHACHA20_POLY1305, 16, True),
}
_ESP_INTEG = {
    Integ.NONE: Integrity.NONE,
    Integ.HMAC_SHA2_256_128: Integrity.HMAC_SHA2_256,
    Integ.HMAC_SHA2_384_192: Integrity.HMAC_SHA2_384,
    Integ.HMAC_SHA2_512_256: Integrity.HMAC_SHA2_512,
    Integ.HMAC_SHA1_96: Integrity.HMAC_SHA1,
    Integ.AES_XCBC_96: Integrity.AES_XCBC,
    Integ.AES_CMAC_96: Integrity.AES_CMAC,
}
# Of AH alone: bits of key, which the number says (RFC 4543 section 9).
_AH_GMAC = {Integ.AES_128_GMAC: 128, Integ.AES_192_GMAC: 192, Integ.AES_256_GMAC: 256}


class NoProposalChosen(PeerError):
    """Nothing that the peer offers is among what we accept; the text has both and the differences.

    `explain` gives text and advice when they are asked for: offers that nobody reads about cost little then.
    """

    def __init__(
        self, text: str = "", advice: str = "", *, explain: Callable[[], tuple[str, str]] | None = None
    ) -> None:
        self._explain = explain
        super().__init__(NotifyType.NO_PROPOSAL_CHOSEN, text, advice=advice)

    @property
    def text(self) -> str:
        """What was offered, what is accepted, and what differs."""
        self._settle()
        return self._text

    @text.setter
    def text(self, text: str) -> None:
        self._text = text

    @property
    def advice(self) -> str:
        """What to change."""
        self._settle()
        return self._advice

    @advice.setter
    def advice(self, advice: str) -> None:
        self._advice = advice

    def _settle(self) -> None:
        explain, self._explain = self._explain, None
        if explain is not None:
            self._text, self._advice = explain()


def is_aead(transform: Transform) -> bool:
    """True for a cipher that brings its own integrity."""
    return transform.type == TransformType.ENCR and transform.id in AEAD


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """One configured proposal: its transforms by type, those of a type in order of preference."""

    protocol: Protocol
    transforms: tuple[Transform, ...]

    def of(self, kind: int) -> tuple[Transform, ...]:
        """The alternatives of a type."""
        return self._by_type.get(kind, ())

    @cached_property
    def types(self) -> frozenset[int]:
        """The types that it names."""
        return frozenset(self._by_type)

    @cached_property
    def _by_type(self) -> dict[int, tuple[Transform, ...]]:
        kinds = dict.fromkeys(transform.type for transform in self.transforms)
        return {kind: tuple(each for each in self.transforms if each.type == kind) for kind in kinds}

    @cached_property
    def groups(self) -> tuple[int, ...]:
        """Key exchange methods of the first (or only) exchange, preferred first; without NONE."""
        return tuple(transform.id for transform in self.of(TransformType.KE) if transform.id != Group.NONE)

    @cached_property
    def without_key_exchanges(self) -> Proposal:
        """The proposal of a child that IKE_AUTH makes: keys come from the IKE SA (RFC 7296 section 1.2)."""
        kept = tuple(transform for transform in self.transforms if transform.type not in KEY_EXCHANGES)
        return replace(self, transforms=kept)

    def keeping_prf(self, prf: int) -> Proposal | None:
        """The proposal with this PRF alone; None where it is not one of its alternatives."""
        kept = tuple(each for each in self.transforms if each.type != TransformType.PRF or each.id == prf)
        return (
            replace(self, transforms=kept) if any(each.type == TransformType.PRF for each in kept) else None
        )

    def to_wire(self, number: int, spi: bytes = b"") -> OfferedProposal:
        """What is sent as proposal `number`."""
        return OfferedProposal(number=number, protocol=self.protocol, spi=spi, transforms=self.transforms)

    def __str__(self) -> str:
        """Keywords that `parse_proposal` reads back to the same proposal; what they imply is left out."""
        return show_transforms(self.transforms)


@lru_cache(maxsize=4096)  # many connections say the same, and what is found out about one holds for all
def parse_proposal(protocol: Protocol, text: str) -> Proposal:
    """The proposal that strongSwan's keywords name; raises ValueError that completes "got 'text', "."""
    transforms: list[Transform] = []
    for word in text.strip().lower().rstrip("!").split("-"):
        transform = transform_of(protocol, word)
        if transform in transforms:
            raise ValueError(f"which says {word_of(transform)} twice")
        transforms.append(transform)
    proposal = Proposal(protocol=protocol, transforms=tuple(sorted(transforms, key=lambda each: each.type)))
    if protocol == Protocol.AH:
        return _complete_ah(proposal)
    ciphers, integrity = proposal.of(TransformType.ENCR), proposal.of(TransformType.INTEG)
    if not ciphers:
        raise ValueError("which names no cipher; want something like aes256gcm16 or aes256-sha256")
    aead = [is_aead(cipher) for cipher in ciphers]
    if any(aead) and not all(aead):
        # RFC 7296 section 3.3: the one has an integrity algorithm and the other must not.
        raise ValueError("which mixes ciphers with and without integrity of their own; want two proposals")
    if not any(aead) and not integrity:
        raise ValueError("which has no integrity; want it followed by -sha256, -sha384 or -sha512")
    if protocol == Protocol.IKE:
        proposal = _complete_ike(proposal, all(aead))
    else:
        if all(aead) and integrity:
            raise ValueError("whose cipher brings its own integrity; want it without the -sha... part")
        if not proposal.of(TransformType.ESN):
            proposal = _with(proposal, (Transform(type=TransformType.ESN, id=Esn.NO_ESN),))
        if any(proposal.of(kind) for kind in ADDITIONAL_KEY_EXCHANGES) and not proposal.groups:
            raise ValueError(
                "which has a key exchange ke1_... to ke7_... but no first one; want e.g. -x25519 added"
            )
    return proposal


def _complete_ah(proposal: Proposal) -> Proposal:
    """AH has integrity and numbers, and nothing that encrypts (RFC 7296 section 3.3.3)."""
    if not proposal.of(TransformType.INTEG):
        raise ValueError("which names no integrity algorithm; want something like sha256 or sha512-esn")
    if any(proposal.of(kind) for kind in ADDITIONAL_KEY_EXCHANGES) and not proposal.groups:
        raise ValueError(
            "which has a key exchange ke1_... to ke7_... but no first one; want e.g. -x25519 added"
        )
    if not proposal.of(TransformType.ESN):
        proposal = _with(proposal, (Transform(type=TransformType.ESN, id=Esn.NO_ESN),))
    return proposal


def _complete_ike(proposal: Proposal, aead: bool) -> Proposal:
    """An IKE proposal with the PRFs it implies, and without what is only there to imply them."""
    integrity = proposal.of(TransformType.INTEG)
    if not proposal.of(TransformType.PRF):
        if not integrity:
            raise ValueError("which names no pseudorandom function; want e.g. -prfsha256 added")
        proposal = _with(proposal, implied_prfs(integrity))
    elif aead and integrity:
        raise ValueError(
            "whose cipher brings its own integrity and which names a prf...; want it without -sha..."
        )
    if aead:
        kept = tuple(transform for transform in proposal.transforms if transform.type != TransformType.INTEG)
        proposal = replace(proposal, transforms=kept)
    if not proposal.groups:
        raise ValueError("which names no key exchange; want e.g. -x25519, -ecp256 or -modp2048 added")
    return proposal


def _with(proposal: Proposal, more: tuple[Transform, ...]) -> Proposal:
    transforms = sorted((*proposal.transforms, *more), key=lambda each: each.type)
    return replace(proposal, transforms=tuple(transforms))


@dataclass(frozen=True, kw_only=True)
class Suite:
    """What was agreed on: one transform of each type, in order of type; NONE is left out unless it was offered."""

    protocol: Protocol
    transforms: tuple[Transform, ...]
    encr: int = field(init=False, repr=False, compare=False, default=0)  # the encryption algorithm's number
    # Bits of the cipher's key; 0 where it has one length only, or no key.
    key_bits: int = field(init=False, repr=False, compare=False, default=0)
    prf: int = field(init=False, repr=False, compare=False, default=0)  # 0 for ESP
    integ: int = field(init=False, repr=False, compare=False, default=0)  # 0 with an AEAD cipher
    # The method of the first key exchange; 0 without one.
    group: int = field(init=False, repr=False, compare=False, default=0)
    esn: bool = field(init=False, repr=False, compare=False, default=False)  # extended sequence numbers
    # Methods of the additional exchanges in the order they are done, NONE skipped (RFC 9370 section 2.2.2).
    additional_groups: tuple[int, ...] = field(init=False, repr=False, compare=False, default=())

    def __post_init__(self) -> None:
        """Read what is asked for often out of the transforms, once."""
        found = {transform.type: transform for transform in self.transforms}
        ids: dict[int, int] = {kind: transform.id for kind, transform in found.items()}
        cipher = found.get(TransformType.ENCR)
        additional = (ids.get(kind, 0) for kind in ADDITIONAL_KEY_EXCHANGES)
        for name, value in (
            ("encr", ids.get(TransformType.ENCR, 0)),
            ("key_bits", (cipher.key_bits or 0) if cipher is not None else 0),
            ("prf", ids.get(TransformType.PRF, 0)),
            ("integ", ids.get(TransformType.INTEG, 0)),
            ("group", ids.get(TransformType.KE, 0)),
            ("esn", ids.get(TransformType.ESN) == Esn.ESN),
            ("additional_groups", tuple(number for number in additional if number != Group.NONE)),
        ):
            object.__setattr__(self, name, value)

    def to_wire(self, number: int, spi: bytes = b"") -> OfferedProposal:
        """The answer to proposal `number`."""
        return OfferedProposal(number=number, protocol=self.protocol, spi=spi, transforms=self.transforms)

    def to_esp(self) -> EspProposal:
        """The same for the dataplane, AH as integrity beside no cipher; raises LocalError for what it does not have."""
        return self._esp

    @cached_property
    def _esp(self) -> EspProposal:
        """Peers agree on the same again and again; what follows from a proposal is worked out once, too."""
        if self.protocol == Protocol.AH and self.encr == 0 and self.integ in _AH_GMAC:
            bits = _AH_GMAC[Integ(self.integ)]
            return EspProposal(cipher=Cipher.NULL, key_bits=bits, integrity=Integrity.AES_GMAC, esn=self.esn)
        if self.protocol == Protocol.AH and self.encr == 0 and self.integ in _ESP_INTEG:
            return EspProposal(
                cipher=Cipher.NULL, key_bits=0, integrity=_ESP_INTEG[Integ(self.integ)], esn=self.esn
            )
        if self.protocol != Protocol.ESP or self.encr not in _ESP_ENCR or self.integ not in _ESP_INTEG:
            raise LocalError(f"the dataplane has no {self}")
        cipher, tag_length, implicit_iv = _ESP_ENCR[self.encr]
        return EspProposal(
            cipher=cipher,
            key_bits=256 if cipher == Cipher.CHACHA20_POLY1305 else self.key_bits,
            integrity=_ESP_INTEG[Integ(self.integ)],
            esn=self.esn,
            tag_length=tag_length,
            implicit_iv=implicit_iv,
        )

    def __str__(self) -> str:
        """Keywords, without NONE and what goes without saying."""
        return self._text

    @cached_property
    def _text(self) -> str:
        return show_transforms(
            [each for each in self.transforms if each.id != 0 or each.type not in KEY_EXCHANGES]
        )


def select(
    offered: Sequence[OfferedProposal],
    configured: Sequence[Proposal],
    *,
    prefer_configured: bool = True,
    prefer_group: int | None = None,
    whose: str = "we",
) -> tuple[Suite, int]:
    """The best suite that both sides accept, and the number of the proposal it answers.

    Our order decides unless `prefer_configured` is false. `prefer_group` is the method of a KE payload that has
    come already: within the proposal that is chosen it goes before the others, unless it is a weak one, which saves a
    round trip. `whose` is who accepts, e.g. "connection 'branch'". Raises NoProposalChosen.
    """
    if prefer_group in WEAK_GROUPS:
        prefer_group = None
    pairs: Iterator[tuple[Proposal, OfferedProposal]]
    if prefer_configured:
        pairs = ((ours, theirs) for ours in configured for theirs in offered)
    else:
        pairs = ((ours, theirs) for theirs in offered for ours in configured)
    for ours, theirs in pairs:
        suite = _match(ours, theirs, prefer_configured, prefer_group)
        if suite is not None:
            return suite, theirs.number
    raise NoProposalChosen(explain=lambda: explain_refusal(offered, configured, whose))


def _match(ours: Proposal, theirs: OfferedProposal, prefer_ours: bool, group: int | None) -> Suite | None:
    """The suite of one pair of proposals, if there is one. Peers offer the same again and again."""
    if ours.protocol != theirs.protocol:
        return None
    key = id(ours), id(theirs.transforms), prefer_ours, group
    known = _matches.get(key)
    if known is None or known[0] is not ours or known[1] is not theirs.transforms:
        # What is remembered holds both, so that no other object can have their ids.
        known = _matches[key] = ours, theirs.transforms, _find_match(ours, theirs, prefer_ours, group)
        if len(_matches) > _REMEMBERED:
            del _matches[next(iter(_matches))]
    return known[2]


_REMEMBERED = 256
_matches: dict[tuple[int, int, bool, int | None], tuple[Proposal, tuple[Transform, ...], Suite | None]] = {}


def _find_match(
    ours: Proposal, theirs: OfferedProposal, prefer_ours: bool, group: int | None
) -> Suite | None:
    choices: list[tuple[Transform, ...]] = []
    if not is_known(theirs):
        return None
    for kind in kinds_of(ours, theirs):
        common = common_transforms(kind, ours, theirs)
        if not prefer_ours:
            common = tuple(each for each in theirs.transforms if each in common)
        if not common and not skippable(kind, ours, theirs):
            return None
        if kind == TransformType.KE and group is not None:
            common = tuple(sorted(common, key=lambda each: each.id != group))
        if common:
            choices.append(common)
    chosen = _distinct(choices, ())
    if chosen is None:
        return None
    return Suite(protocol=ours.protocol, transforms=chosen)


def _distinct(
    choices: Sequence[tuple[Transform, ...]], chosen: tuple[Transform, ...]
) -> tuple[Transform, ...] | None:
    """One of each, preferred ones first, so that no key exchange method occurs twice (RFC 9370 section 2.2.2)."""
    if len(chosen) == len(choices):
        return chosen
    used = {each.id for each in chosen if each.type in KEY_EXCHANGES and each.id != Group.NONE}
    for transform in choices[len(chosen)]:
        if transform.type in KEY_EXCHANGES and transform.id in used:
            continue
        whole = _distinct(choices, (*chosen, transform))
        if whole is not None:
            return whole
    return None


def suite_of(answer: OfferedProposal, sent: Sequence[Proposal]) -> Suite:
    """The suite that a responder chose of the proposals we sent, numbered from 1; raises PeerError if it is none."""
    if not 1 <= answer.number <= len(sent):
        raise NoProposalChosen(
            f"the peer chose proposal {answer.number} and we sent {len(sent)}",
            "the peer breaks RFC 7296 section 2.7",
        )
    ours = sent[answer.number - 1]
    kinds = [transform.type for transform in answer.transforms]
    suite = _match(ours, answer, True, None)
    # RFC 7296 section 3.3.6: exactly one transform of each type, or it is none of ours.
    if suite is None or len(set(kinds)) != len(kinds) or len(suite.transforms) != len(kinds):
        raise NoProposalChosen(
            f"the peer chose {show_transforms(answer.transforms[:16])} of proposal {answer.number}, which was {ours}",
            "it may only choose one algorithm of each kind that was offered; the fault is the peer's",
        )
    return suite
