"""The part of IKE_AUTH and of CREATE_CHILD_SA that is about a child SA: SA, TSi, TSr and USE_TRANSPORT_MODE.

    initiator   ask -> ChildRequest, add_request        -> the response -> accept -> Agreed -> install
    responder   the request -> answer -> Agreed, add_answer                        -> install

Nonces, KE payloads and REKEY_SA belong to the exchange and are the tasks'. Everything a peer does wrong is a PeerError;
of the children of a connection the one that fits best is taken.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace

from control.ike.errors import LocalError, PeerError
from control.ike.events import ChildSa, Failure
from control.ike.numbers import Group, NotifyType, Protocol, name_of
from control.ike.proposal import Proposal, Suite
from control.ike.record import record
from control.ike.selectors import (
    Narrowed,
    PacketSelectors,
    TsUnacceptable,
    accept_narrowed,
    contains,
    from_settings,
    narrow,
    resolve,
    show_both,
    to_settings,
    with_packet,
)
from control.ike.settings import ChildSettings
from control.ike.v2 import resources, transport
from control.ike.v2.child import (
    Keying,
    Selectors,
    accept_suite,
    child_proposals,
    choose_suite,
    make_child,
    offer,
    spi_bytes,
)
from control.ike.v2.parts import Child
from control.ike.v2.sa import IkeSa
from control.ike.v2.task import Incoming, Outgoing
from control.ike.wire.payloads import NotifyPayload, SaPayload, TsPayload
from control.ike.wire.selector import WireSelector
from dataplane.model import Address, Mode


@record(frozen=True, kw_only=True)
class ChildRequest:
    """What we ask for as initiator."""

    settings: ChildSettings
    proposals: tuple[Proposal, ...]
    spi: int  # of our inbound SA
    local: tuple[WireSelector, ...]
    remote: tuple[WireSelector, ...]
    shared: bool = False  # see `ChildSa`
    resource: int | None = None


@record(frozen=True, kw_only=True)
class Agreed:
    """What both sides agree on for a child."""

    settings: ChildSettings
    suite: Suite
    number: int  # of the proposal
    spi_in: int
    spi_out: int
    mode: Mode
    tfc: bool  # the peer takes packets with TFC padding (RFC 7296 section 1.3.1)
    selectors: Narrowed
    nat_original: tuple[Address, Address] | None = None  # transport mode: see `ChildSa`
    shared: bool = False
    resource: int | None = None


def dynamic_addresses(sa: IkeSa) -> tuple[Sequence[Address], Sequence[Address]]:
    """What "dynamic" means on our side and on the peer's: an address that is lent, or the IKE SA's own."""
    # Until a server has lent an address, "any" is asked for in its place.
    path = sa.way or sa.path  # an address that is not proven is nobody's
    local = sa.virtual_local or sa.connection.virtual_addresses or (path.local,)
    return local, sa.virtual_remote or (path.remote,)


# Initiator


def ask(
    sa: IkeSa,
    settings: ChildSettings,
    spi: int,
    *,
    key_exchange: bool,
    packet: PacketSelectors | None = None,
    old: ChildSa | None = None,
    like: ChildSa | None = None,
    resource: int | None = None,
) -> ChildRequest:
    """What to ask for; `old` is the child to rekey, whose selectors are kept (RFC 7296 section 2.9.2).

    `like` is the common child that a further one, for worker `resource`, is to be equal to (RFC 9611 section 3).
    """
    _refuse_ah_through_nat(sa, settings)
    model = old or like
    if model is not None:
        local, remote = from_settings(model.local_selectors), from_settings(model.remote_selectors)
    else:
        ours, theirs = dynamic_addresses(sa)
        local, remote = resolve(settings.local, ours), resolve(settings.remote, theirs)
        if packet is not None:
            local, remote = with_packet(local, packet[0]), with_packet(remote, packet[1])
    return ChildRequest(
        settings=settings,
        proposals=child_proposals(settings, key_exchange=key_exchange),
        spi=spi,
        local=local,
        remote=remote,
        shared=model.shared if model is not None else settings.per_cpu_sas,
        resource=old.resource if old is not None else resource,
    )


def _refuse_ah_through_nat(sa: IkeSa, settings: ChildSettings) -> None:
    """AH protects the addresses that a NAT changes, and goes in no UDP (RFC 3948 section 1)."""
    if settings.protocol != Protocol.AH or not sa.encapsulated:
        return
    why = "there is a NAT between us" if sa.nat_local or sa.nat_remote else "encap is true"
    raise PeerError(
        NotifyType.NO_PROPOSAL_CHOSEN,
        f"child '{settings.name}' of connection '{sa.connection.name}' is AH, and {why}: AH cannot pass it",
        advice="use ESP for this peer: esp_proposals in place of ah_proposals",
    )


def add_request(message: Outgoing, request: ChildRequest) -> None:
    """SA, TSi and TSr of a request."""
    if request.settings.mode is Mode.TRANSPORT:
        message.notify(NotifyType.USE_TRANSPORT_MODE)
    if request.shared:
        message.add(resources.info(request.resource))
    message.add(
        SaPayload(proposals=offer(request.proposals, request.spi)),
        TsPayload(initiator=True, selectors=request.local),
        TsPayload(initiator=False, selectors=request.remote),
    )


def accept(sa: IkeSa, request: ChildRequest, response: Incoming) -> Agreed:
    """What the response agrees to; raises PeerError for anything that was not asked for."""
    answer = response.need(SaPayload).proposals
    suite, spi_out = accept_suite(answer, request.proposals)
    # RFC 7296 section 1.3.1: a responder that does not echo the notification makes a tunnel mode SA.
    is_transport = response.notify(NotifyType.USE_TRANSPORT_MODE) is not None
    if is_transport and request.settings.mode is not Mode.TRANSPORT:
        raise PeerError(
            NotifyType.INVALID_SYNTAX, "the response is for transport mode; tunnel mode was asked for"
        )
    local = response.need(TsPayload, initiator=True).selectors
    remote = response.need(TsPayload, initiator=False).selectors
    original = transport.original(sa, local, remote) if is_transport else None
    if is_transport:
        local, remote = transport.seen_from_here(sa, local, remote)
    selectors = accept_narrowed(
        answered_local=local, answered_remote=remote, asked_local=request.local, asked_remote=request.remote
    )
    if is_transport and not transport.between_hosts(sa, selectors.local, selectors.remote):
        path = sa.way or sa.path
        raise PeerError(
            NotifyType.TS_UNACCEPTABLE,
            f"the response is for transport mode and {show_both(selectors.local, selectors.remote)}; transport mode is "
            f"between {path.local} and {path.remote} alone (RFC 4301 section 4.1)",
            advice="leave local_ts and remote_ts dynamic on both sides, or use tunnel mode",
        )
    return Agreed(
        settings=request.settings,
        suite=suite,
        number=answer[0].number,
        spi_in=request.spi,
        spi_out=spi_out,
        mode=Mode.TRANSPORT if is_transport else Mode.TUNNEL,
        tfc=response.notify(NotifyType.ESP_TFC_PADDING_NOT_SUPPORTED) is None,
        selectors=selectors,
        nat_original=original,
        # RFC 9611 section 3: who does not echo it has no more than one; a rekeyed child stays what it was.
        shared=request.shared
        and (request.resource is not None or response.notify(NotifyType.SA_RESOURCE_INFO) is not None),
        resource=request.resource,
    )


def refusal(request: ChildRequest, notify: NotifyPayload) -> Failure:
    """Why the peer did not agree, with what we had asked for."""
    name = request.settings.name
    if notify.type == NotifyType.NO_PROPOSAL_CHOSEN:
        return Failure(
            code="no_proposal_chosen",
            text=f"no proposal chosen for child '{name}': we offered "
            f"{', '.join(map(str, request.proposals))} and the peer accepts none of these",
            advice=f"see the peer's log for what it accepts, and make the {_key(request.settings)} of both sides "
            "overlap",
        )
    if notify.type == NotifyType.TS_UNACCEPTABLE:
        return Failure(
            code="ts_unacceptable",
            text=f"traffic selectors unacceptable for child '{name}': we asked for "
            f"{show_both(request.local, request.remote)} and the peer allows none of it",
            advice="see the peer's log for what it allows; local_ts and remote_ts of both sides must mirror each other",
        )
    if notify.type == NotifyType.INTERNAL_ADDRESS_FAILURE:
        return Failure(
            code="no_address",
            text=f"the peer lends no address, so there is no child '{name}': we asked for one",
            advice="see the peer's log: its pool may be exhausted, or its connection has none",
        )
    return Failure(
        code=notify.name.lower(),
        text=f"the peer refused child '{name}' with {notify.name}",
        advice="see the peer's log",
    )


def _key(settings: ChildSettings) -> str:
    """The configuration's word for a child's proposals."""
    return f"{settings.protocol.name.lower()}_proposals"


def rekey_refusal(settings: ChildSettings, notify: NotifyPayload) -> Failure:
    """Why a child that is there could not be replaced."""
    offered = ", ".join(map(str, settings.proposals))
    return Failure(
        code=notify.name.lower(),
        text=f"child '{settings.name}' could not be rekeyed: we offered {offered} and the peer answered "
        f"{notify.name}; the old one goes on until it expires",
        advice=f"make {_key(settings)} of both sides overlap, key exchange methods included; they count from a "
        "rekeying on",
    )


# Responder


def answer(
    sa: IkeSa,
    request: Incoming,
    candidates: Iterable[ChildSettings],
    *,
    key_exchange: bool,
    ke_group: int = Group.NONE,
    old: ChildSa | None = None,
) -> Agreed:
    """What we agree to of a request, with an SPI of ours; raises PeerError with the refusal.

    `candidates` are the children of the connection, or the one that is being rekeyed as `old`.
    """
    remote = request.need(TsPayload, initiator=True).selectors
    local = request.need(TsPayload, initiator=False).selectors
    settings, selectors, mode = _best(
        sa, tuple(candidates), local, remote, old, request.notify(NotifyType.USE_TRANSPORT_MODE) is not None
    )
    _refuse_ah_through_nat(sa, settings)
    suite, number, spi_out = choose_suite(
        request.need(SaPayload).proposals,
        child_proposals(settings, key_exchange=key_exchange),
        ke_group,
        whose=f"child '{settings.name}' of connection '{sa.connection.name}'",
    )
    shared = settings.per_cpu_sas and request.notify(NotifyType.SA_RESOURCE_INFO) is not None
    resource = resources.bind(sa, settings, selectors) if shared and old is None else None
    if old is not None:
        shared, resource = old.shared, old.resource
    return Agreed(
        settings=settings,
        suite=suite,
        number=number,
        spi_in=sa.host.new_child_spi(),
        spi_out=spi_out,
        mode=mode,
        tfc=request.notify(NotifyType.ESP_TFC_PADDING_NOT_SUPPORTED) is None,
        selectors=selectors,
        nat_original=transport.original(sa, local, remote) if mode is Mode.TRANSPORT else None,
        shared=shared,
        resource=resource,
    )


def _best(
    sa: IkeSa,
    candidates: Sequence[ChildSettings],
    asked_local: Sequence[WireSelector],
    asked_remote: Sequence[WireSelector],
    old: ChildSa | None,
    wants_transport: bool,
) -> tuple[ChildSettings, Narrowed, Mode]:
    """The child whose policy leaves most of what is asked; the first in the configuration among equals."""
    best: tuple[tuple[bool, bool, bool], tuple[ChildSettings, Narrowed, Mode]] | None = None
    first_error: TsUnacceptable | None = None
    for settings in candidates:
        try:
            found, mode = _narrowed(sa, settings, asked_local, asked_remote, old, wants_transport)
        except TsUnacceptable as error:
            first_error = first_error or error
            continue
        local, remote = _allowed(sa, settings, None)
        whole = all(any(contains(each, one) for each in asked_local) for one in local) and all(
            any(contains(each, one) for each in asked_remote) for one in remote
        )
        rank = ((mode is Mode.TRANSPORT) == wants_transport, not found.cut, whole)
        if best is None or rank > best[0]:
            best = rank, (settings, found, mode)
    if best is not None:
        return best[1]
    raise first_error or PeerError(
        NotifyType.TS_UNACCEPTABLE,
        f"connection '{sa.connection.name}' has no child; the peer asks for one",
        advice="give the connection a child, or make the peer's childless",
    )


def _allowed(
    sa: IkeSa, settings: ChildSettings, old: ChildSa | None
) -> tuple[tuple[WireSelector, ...], tuple[WireSelector, ...]]:
    """What a child's settings allow on either side, and what it had before."""
    ours, theirs = dynamic_addresses(sa)
    local, remote = resolve(settings.local, ours), resolve(settings.remote, theirs)
    if old is not None:
        # RFC 7296 section 2.9.2: a rekeyed child is not narrower than it was, whatever has changed here since.
        local += from_settings(old.local_selectors)
        remote += from_settings(old.remote_selectors)
    return local, remote


def _narrowed(
    sa: IkeSa,
    settings: ChildSettings,
    asked_local: Sequence[WireSelector],
    asked_remote: Sequence[WireSelector],
    old: ChildSa | None,
    wants_transport: bool,
) -> tuple[Narrowed, Mode]:
    """What one child leaves of what is asked, and its mode: transport is what both must want (section 1.3.1)."""
    local, remote = _allowed(sa, settings, old)
    whose = f"child '{settings.name}' of connection '{sa.connection.name}'"
    if wants_transport and settings.mode is Mode.TRANSPORT:
        asked = transport.seen_from_here(sa, asked_local, asked_remote)
        with suppress(TsUnacceptable):  # then a tunnel, for what was asked for as it came (section 2.23.1)
            found = narrow(
                asked_local=asked[0],
                asked_remote=asked[1],
                allowed_local=local,
                allowed_remote=remote,
                whose=whose,
            )
            if transport.between_hosts(sa, found.local, found.remote):
                return found, Mode.TRANSPORT
    found = narrow(
        asked_local=asked_local,
        asked_remote=asked_remote,
        allowed_local=local,
        allowed_remote=remote,
        whose=whose,
    )
    return found, Mode.TUNNEL


def add_answer(message: Outgoing, agreed: Agreed) -> None:
    """SA, TSi and TSr of a response."""
    if agreed.mode is Mode.TRANSPORT:
        message.notify(NotifyType.USE_TRANSPORT_MODE)
    if agreed.shared:
        message.add(resources.info(agreed.resource))
    if agreed.selectors.cut:
        message.notify(NotifyType.ADDITIONAL_TS_POSSIBLE)  # RFC 7296 section 2.9
    message.add(
        SaPayload(proposals=(agreed.suite.to_wire(agreed.number, spi_bytes(agreed.spi_in)),)),
        TsPayload(initiator=True, selectors=agreed.selectors.remote),
        TsPayload(initiator=False, selectors=agreed.selectors.local),
    )


# Both


def install(
    sa: IkeSa,
    agreed: Agreed,
    now: float,
    *,
    nonce_i: bytes,
    nonce_r: bytes,
    initiator: bool,
    outbound: bool,
    secrets: Sequence[bytes] = (),
    replaces: Child | None = None,
) -> Child:
    """The child SA exists: cut its keys, keep it, tell. `initiator` is who began the exchange that made it."""
    if sa.keys is None:
        raise LocalError("a child of an IKE SA without keys")
    spec = make_child(
        child_id=sa.host.new_id(),
        ike=sa.id,
        connection=sa.connection.name,
        settings=agreed.settings,
        mode=agreed.mode,
        suite=agreed.suite,
        spi_in=agreed.spi_in,
        spi_out=agreed.spi_out,
        keying=Keying(
            prf=sa.keys.prf,
            sk_d=sa.keys.d,
            nonce_i=nonce_i,
            nonce_r=nonce_r,
            secrets=tuple(secrets),
            initiator=initiator,
        ),
        selectors=Selectors(
            local=to_settings(agreed.selectors.local), remote=to_settings(agreed.selectors.remote)
        ),
        path=sa.way or sa.path,
        encapsulated=sa.encapsulated,
        nat_original=agreed.nat_original if sa.encapsulated else None,
        shared=agreed.shared,
        resource=agreed.resource,
        now=now,
        random=sa.host.random,
    )
    if not agreed.tfc:
        spec = replace(spec, tfc=False)
    return sa.add_child(spec, outbound=outbound, replaces=replaces)


def wanted_group(request: ChildRequest, notify: NotifyPayload, refused: Collection[int]) -> int:
    """The group that INVALID_KE_PAYLOAD asks for (RFC 7296 section 1.3).

    Raises PeerError for one that we did not offer, and for one that the peer has `refused`: it could have us send one
    after the other without end.
    """
    group = int.from_bytes(notify.data, "big") if len(notify.data) == 2 else Group.NONE
    offered = {each for proposal in request.proposals for each in proposal.groups}
    if group not in offered or group in refused:
        raise PeerError(
            NotifyType.INVALID_SYNTAX,
            f"the peer wants {name_of(Group, group)} for child '{request.settings.name}'; we offered "
            f"{', '.join(sorted(name_of(Group, each) for each in offered)) or 'no key exchange'} and sent "
            f"{', '.join(name_of(Group, each) for each in sorted(refused))}",
        )
    return group
