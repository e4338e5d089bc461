"""The negotiation of a child SA as pure functions (RFC 7296 sections 1.3, 2.9, 2.17, 3.3).

    initiator   proposals, first_group    -> what a request says
                accept_suite              -> what the answer chose, held against what was said
    responder   choose_suite              -> the suite, or INVALID_KE_PAYLOAD, or a refusal that names the differences
    both        make_child                -> KEYMAT cut into keys, and all that the dataplane needs

Traffic selectors are narrowed in control.ike.selectors; the exchanges that carry all this are in the tasks. A child is
of ESP or of AH; both at once (RFC 4301's bundles) and IPComp are never agreed on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field

from control.crypto.keys import child_keys
from control.crypto.prf import Prf
from control.ike.errors import PeerError
from control.ike.events import ChildSa, PeerPath
from control.ike.numbers import Group, NotifyType, Protocol, name_of
from control.ike.proposal import Proposal, Suite, select, suite_of
from control.ike.record import record
from control.ike.settings import ChildSettings, TrafficSelector
from control.ike.v2.lifetimes import Random, child_times
from control.ike.wire.proposal import OfferedProposal
from dataplane.model import Address, Mode

SPI_LENGTH = 4  # bytes of an SPI of ESP or AH
RESERVED_SPIS = 256  # 0 to 255 are IANA's (RFC 4303 section 2.1)


@record(frozen=True, kw_only=True)
class Selectors:
    """The traffic of a child SA as seen from here; first and last are set in each."""

    local: tuple[TrafficSelector, ...]
    remote: tuple[TrafficSelector, ...]


@record(frozen=True, kw_only=True)
class Keying:
    """What KEYMAT is made of (RFC 7296 section 2.17)."""

    prf: Prf
    sk_d: bytes = field(repr=False)  # of the IKE SA by which the child was negotiated
    nonce_i: bytes
    nonce_r: bytes
    secrets: tuple[bytes, ...] = field(default=(), repr=False)  # SK(0), SK(1)...; none without a key exchange
    initiator: bool  # whether we began the exchange that made the child


def child_proposals(settings: ChildSettings, *, key_exchange: bool) -> tuple[Proposal, ...]:
    """The proposals of a child, each once; IKE_AUTH has no place for a key exchange (RFC 7296 section 1.2)."""
    proposals = list(settings.proposals)
    if not key_exchange:
        proposals = [each.without_key_exchanges for each in proposals]
    return tuple(proposals) if len(proposals) == 1 else tuple(dict.fromkeys(proposals))


def first_group(proposals: Sequence[Proposal], preferred: int = Group.NONE) -> int:
    """The method of the KE payload to send: the preferred one if it is among them, else the first; 0 is no payload."""
    groups = [group for each in proposals for group in each.groups]
    if preferred in groups:
        return preferred
    return groups[0] if groups else Group.NONE


def offer(proposals: Sequence[Proposal], spi: int) -> tuple[OfferedProposal, ...]:
    """The SA payload of a request: every proposal with the SPI of our inbound SA."""
    data = spi_bytes(spi)
    return tuple(each.to_wire(number, data) for number, each in enumerate(proposals, start=1))


def accept_suite(answer: Sequence[OfferedProposal], sent: Sequence[Proposal]) -> tuple[Suite, int]:
    """The suite and the peer's SPI that the answer to `offer` holds; raises PeerError for what was not offered."""
    if len(answer) != 1:
        raise PeerError(
            NotifyType.INVALID_SYNTAX,
            f"the answer's SA payload has {len(answer)} proposals; want 1 (RFC 7296 section 3.3)",
        )
    return suite_of(answer[0], sent), spi_of(answer[0])


def choose_suite(
    offered: Sequence[OfferedProposal],
    accepted: Sequence[Proposal],
    ke_group: int = Group.NONE,
    *,
    whose: str = "the child",
) -> tuple[Suite, int, int]:
    """The suite, the number of the proposal it answers and the peer's SPI.

    `ke_group` is the method of the request's KE payload, 0 without one. Raises PeerError: NoProposalChosen, or
    INVALID_KE_PAYLOAD with the group that is wanted (RFC 7296 section 1.3).
    """
    suite, number = select(offered, accepted, prefer_group=ke_group or None, whose=whose)
    if suite.group not in (Group.NONE, ke_group):
        got = name_of(Group, ke_group) if ke_group else "no key exchange"
        raise PeerError(
            NotifyType.INVALID_KE_PAYLOAD,
            f"the request has {got}; of what it proposes we choose {suite}, which needs {name_of(Group, suite.group)}",
            data=suite.group.to_bytes(2, "big"),
        )
    return suite, number, spi_of(next(each for each in offered if each.number == number))


def spi_bytes(spi: int) -> bytes:
    """An SPI of ESP or AH as it is sent."""
    return spi.to_bytes(SPI_LENGTH, "big")


def spi_of(proposal: OfferedProposal) -> int:
    """The SPI that a proposal for ESP or AH brings; raises PeerError for none, or one that cannot be."""
    spi = int.from_bytes(proposal.spi, "big")
    if len(proposal.spi) != SPI_LENGTH or spi < RESERVED_SPIS:
        raise PeerError(
            NotifyType.INVALID_SYNTAX,
            f"proposal {proposal.number} for {name_of(Protocol, proposal.protocol)} has the SPI "
            f"{proposal.spi.hex() or '(none)'}; "
            f"want {SPI_LENGTH} bytes and {RESERVED_SPIS} or more (RFC 4303 section 2.1, RFC 4302 section 2.4)",
        )
    return spi


def make_child(
    *,
    child_id: int,
    ike: int,
    connection: str,
    settings: ChildSettings,
    mode: Mode,
    suite: Suite,
    spi_in: int,
    spi_out: int,
    keying: Keying,
    selectors: Selectors,
    path: PeerPath,
    encapsulated: bool,
    nat_original: tuple[Address, Address] | None = None,
    shared: bool = False,
    resource: int | None = None,
    now: float,
    random: Random,
) -> ChildSa:
    """The finished child SA: keys cut from KEYMAT, lifetimes set."""
    esp = suite.to_esp()
    keys = child_keys(
        keying.prf,
        keying.sk_d,
        keying.nonce_i,
        keying.nonce_r,
        esp.encryption_key_length,
        esp.integrity_key_length,
        keying.secrets,
    )
    to_responder = (keys.encryption_i, keys.integrity_i)
    to_initiator = (keys.encryption_r, keys.integrity_r)
    out, into = (to_responder, to_initiator) if keying.initiator else (to_initiator, to_responder)
    times = child_times(settings.lifetime, now, random)
    return ChildSa(
        id=child_id,
        ike=ike,
        connection=connection,
        settings=settings,
        mode=mode,
        protocol=suite.protocol,
        suite=esp,
        suite_name=str(suite),
        spi_in=spi_in,
        spi_out=spi_out,
        encryption_key_in=into[0],
        encryption_key_out=out[0],
        integrity_key_in=into[1],
        integrity_key_out=out[1],
        local_selectors=selectors.local,
        remote_selectors=selectors.remote,
        path=path,
        encapsulated=encapsulated,
        nat_original=nat_original,
        shared=shared,
        resource=resource,
        established=now,
        rekey_at=times.replace_at,
        expires_at=times.expires_at,
    )
