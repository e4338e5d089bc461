"""The child SA that comes with IKE_AUTH (RFC 7296 section 1.2): no key exchange of its own, keys of the IKE SA's.

That it fails does not end the IKE SA (section 1.2): both sides say why and go on without it.
"""

from __future__ import annotations

from control.ike import selectors as narrowing
from control.ike.errors import PeerError, syntax_error
from control.ike.numbers import NotifyType
from control.ike.proposal import NoProposalChosen, Suite
from control.ike.settings import ChildSettings, Mode
from control.ike.v2 import child as negotiation
from control.ike.v2.sa import Child, IkeSa
from control.ike.v2.task import Incoming, Outgoing
from control.ike.wire.payloads import SaPayload, TsPayload
from control.ike.wire.selector import WireSelector
from dataplane.model import Address


def dynamic_local(sa: IkeSa) -> tuple[Address, ...]:
    """What `dynamic` means on our side: addresses lent to us, else our own."""
    return sa.virtual_local or (sa.path.local,)


def dynamic_remote(sa: IkeSa) -> tuple[Address, ...]:
    """What `dynamic` means on the peer's side."""
    return sa.virtual_remote or (sa.path.remote,)


def _keying(sa: IkeSa, *, initiator: bool) -> negotiation.Keying:
    assert sa.keys is not None and sa.handshake is not None
    return negotiation.Keying(
        prf=sa.keys.prf,
        sk_d=sa.keys.d,
        nonce_i=sa.handshake.nonce_i,
        nonce_r=sa.handshake.nonce_r,
        initiator=initiator,
    )


def _establish(
    sa: IkeSa,
    settings: ChildSettings,
    suite: Suite,
    narrowed: narrowing.Narrowed,
    *,
    spis: tuple[int, int],
    mode: Mode,
    initiator: bool,
    now: float,
) -> Child:
    spec = negotiation.make_child(
        child_id=sa.host.new_id(),
        ike=sa.id,
        connection=sa.connection.name,
        settings=settings,
        mode=mode,
        suite=suite,
        spi_in=spis[0],
        spi_out=spis[1],
        keying=_keying(sa, initiator=initiator),
        selectors=negotiation.Selectors(
            local=narrowing.to_settings(narrowed.local), remote=narrowing.to_settings(narrowed.remote)
        ),
        path=sa.path,
        encapsulated=sa.encapsulated,
        now=now,
        random=sa.host.random,
    )
    return sa.add_child(spec, outbound=True)


class ChildRequest:
    """The initiator's side."""

    __slots__ = ("local", "remote", "settings", "spi")

    def __init__(self, settings: ChildSettings) -> None:
        self.settings = settings
        self.spi = 0
        self.local: tuple[WireSelector, ...] = ()
        self.remote: tuple[WireSelector, ...] = ()

    def add(
        self,
        sa: IkeSa,
        message: Outgoing,
        *,
        wanted: tuple[Address, ...],
        packet: tuple[WireSelector, WireSelector] | None,
    ) -> None:
        """SA, TSi and TSr; `wanted` are virtual addresses that are asked for in the same message."""
        settings = self.settings
        self.spi = sa.host.new_child_spi()
        proposals = negotiation.child_proposals(settings, key_exchange=False)
        self.local = narrowing.resolve(settings.local, wanted or dynamic_local(sa))
        self.remote = narrowing.resolve(settings.remote, dynamic_remote(sa))
        message.add(
            SaPayload(proposals=negotiation.offer(proposals, self.spi)),
            TsPayload(
                initiator=True,
                selectors=narrowing.with_packet(self.local, packet[0] if packet is not None else None),
            ),
            TsPayload(
                initiator=False,
                selectors=narrowing.with_packet(self.remote, packet[1] if packet is not None else None),
            ),
        )
        if settings.mode is Mode.TRANSPORT:
            message.notify(NotifyType.USE_TRANSPORT_MODE)

    def accept(self, sa: IkeSa, message: Incoming, now: float) -> Child:
        """The child that the response makes; PeerError where there is none."""
        error = message.error()
        answer = message.get(SaPayload)
        if answer is None:
            self._explain(error.type if error is not None else None, error.name if error is not None else "")
        assert answer is not None
        proposals = negotiation.child_proposals(self.settings, key_exchange=False)
        suite, spi_out = negotiation.accept_suite(answer.proposals, proposals)
        local = self.local
        if sa.virtual_local:
            local = narrowing.resolve(self.settings.local, sa.virtual_local)
        narrowed = narrowing.accept_narrowed(
            answered_local=message.need(TsPayload, initiator=True).selectors,
            answered_remote=message.need(TsPayload, initiator=False).selectors,
            asked_local=local,
            asked_remote=self.remote,
        )
        transport = message.notify(NotifyType.USE_TRANSPORT_MODE) is not None
        wanted = self.settings.mode is Mode.TRANSPORT
        if transport and not wanted:
            raise syntax_error("USE_TRANSPORT_MODE in the answer, which was not asked for")
        return _establish(
            sa,
            self.settings,
            suite,
            narrowed,
            spis=(self.spi, spi_out),
            # RFC 7296 section 1.3.1: without the responder's notification the child is in tunnel mode.
            mode=Mode.TRANSPORT if transport else Mode.TUNNEL,
            initiator=True,
            now=now,
        )

    def _explain(self, kind: int | None, name: str) -> None:
        """The peer made no child: its notification, and what we asked for."""
        settings = self.settings
        if kind == NotifyType.NO_PROPOSAL_CHOSEN:
            offered = ", ".join(
                str(each) for each in negotiation.child_proposals(settings, key_exchange=False)
            )
            raise NoProposalChosen(
                f"the peer accepts none of the ESP proposals of child '{settings.name}': we offer {offered}",
                "compare with the peer's proposals: its log has what it accepts",
            )
        asked = narrowing.show_both(self.local, self.remote)
        if kind == NotifyType.TS_UNACCEPTABLE:
            raise PeerError(
                NotifyType.TS_UNACCEPTABLE,
                f"the peer does not allow the traffic selectors of child '{settings.name}': we ask for {asked}",
                advice="make them the mirror of the peer's: its log has what it allows",
            )
        if kind is None:
            raise syntax_error(f"the answer has neither a child SA nor an error for child '{settings.name}'")
        notify = NotifyType(kind) if kind in NotifyType._value2member_map_ else NotifyType.INVALID_SYNTAX
        raise PeerError(
            notify, f"the peer refuses child '{settings.name}': {name}", advice="see the peer's log"
        )

    def drop(self, sa: IkeSa) -> None:
        """Nothing came of it: the SPI is free again."""
        if self.spi:
            sa.host.free_child_spi(self.spi)


def choose_settings(sa: IkeSa, message: Incoming) -> tuple[ChildSettings, narrowing.Narrowed]:
    """Of the connection's children the one that the peer's selectors fit best; TsUnacceptable where none does."""
    asked_remote = message.need(TsPayload, initiator=True).selectors
    asked_local = message.need(TsPayload, initiator=False).selectors
    found: tuple[ChildSettings, narrowing.Narrowed] | None = None
    refusal: narrowing.TsUnacceptable | None = None
    for settings in sa.connection.children:
        try:
            narrowed = narrowing.narrow(
                asked_local=asked_local,
                asked_remote=asked_remote,
                allowed_local=narrowing.resolve(settings.local, dynamic_local(sa)),
                allowed_remote=narrowing.resolve(settings.remote, dynamic_remote(sa)),
                whose=f"child '{settings.name}' of connection '{sa.connection.name}'",
            )
        except narrowing.TsUnacceptable as error:
            refusal = refusal or error
            continue
        if not narrowed.cut:
            return settings, narrowed
        found = found or (settings, narrowed)
    if found is not None:
        return found
    if refusal is None:
        raise narrowing.TsUnacceptable(
            f"the peer asks for {narrowing.show_both(asked_local, asked_remote)}; connection "
            f"'{sa.connection.name}' has no child",
            "add a child to the connection",
        )
    raise refusal


def answer_child(sa: IkeSa, request: Incoming, response: Outgoing, now: float) -> Child:
    """The responder's side: SA, TSi and TSr go into `response`; PeerError where no child comes about."""
    settings, narrowed = choose_settings(sa, request)
    offered = request.need(SaPayload).proposals
    accepted = negotiation.child_proposals(settings, key_exchange=False)
    suite, number, spi_out = negotiation.choose_suite(offered, accepted)
    transport = request.notify(NotifyType.USE_TRANSPORT_MODE) is not None and settings.mode is Mode.TRANSPORT
    spi_in = sa.host.new_child_spi()
    response.add(
        SaPayload(proposals=(suite.to_wire(number, negotiation.spi_bytes(spi_in)),)),
        TsPayload(initiator=True, selectors=narrowed.remote),
        TsPayload(initiator=False, selectors=narrowed.local),
    )
    if transport:
        response.notify(NotifyType.USE_TRANSPORT_MODE)
    return _establish(
        sa,
        settings,
        suite,
        narrowed,
        spis=(spi_in, spi_out),
        mode=Mode.TRANSPORT if transport else Mode.TUNNEL,
        initiator=False,
        now=now,
    )
