"""CREATE_CHILD_SA in place of the IKE SA itself (RFC 7296 sections 1.3.2, 2.8, 2.18).

    initiator   SA Ni KEi ->  <- SA Nr KEr       the new IKE SA takes the children; DELETE(old) -> on the old one
    responder   the same, answered               the new IKE SA takes the children; the old one awaits its delete
    both at once (section 2.8.2)                 two successors. Until it is known which of them stays, the children
                                                 stay where they are. The one made with the lowest of the four nonces
                                                 is deleted by who made it; the other takes the children, and the old
                                                 one is deleted by who made that.

It is known when our answer comes; or when the peer deletes the old IKE SA or uses its own successor, which it does
only if that is the one. A successor that the peer should delete and does not is dropped after a while. Neither the
identities nor the time of reauthentication change with the keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from control.crypto.keys import ike_keys, skeyseed_rekey
from control.crypto.prf import prf
from control.crypto.sk import Protection
from control.ike.errors import LocalError, PeerError
from control.ike.events import Closed, Failure, IkeRekeyed
from control.ike.numbers import Group, NotifyType, Protocol, name_of
from control.ike.proposal import NoProposalChosen, Proposal, Suite, select, suite_of
from control.ike.v2.child import first_group
from control.ike.v2.keys import SaKeys
from control.ike.v2.lifetimes import ike_over_time, retry_at
from control.ike.v2.parts import Timer
from control.ike.v2.sa import IkeSa
from control.ike.v2.states import State, Step, advance
from control.ike.v2.task import DONE, MORE, Incoming, Outgoing, Result
from control.ike.v2.tasks.create_child import CreateChild, KeyedTask, drop, temporary_failure
from control.ike.v2.tasks.delete import DeleteChild, DeleteIke, DeleteSpi
from control.ike.v2.tasks.mobike import UpdateAddresses
from control.ike.wire.payloads import NotifyPayload, SaPayload
from control.ike.wire.proposal import OfferedProposal

SPI_LENGTH = 8
REDUNDANT = 60.0  # seconds after which we drop what the peer should have deleted
SETTLING = 0.5  # seconds for our answer to reach the peer before we use the successor that it makes of it
_HANDLED = (Timer.REKEY, Timer.REAUTH, Timer.DPD, Timer.KEEPALIVE)  # timers that pass to the successor


class RekeyIke(KeyedTask):
    """A successor for the IKE SA."""

    name = "rekey IKE SA"

    def __init__(self, *, initiator: bool) -> None:
        super().__init__(initiator=initiator)
        self.new: IkeSa | None = None
        self.suite: Suite | None = None
        self.rival: RekeyIke | None = None  # the peer's act, while ours is under way
        self.forgotten = False  # the peer's successor has taken the children: ours is not wanted any more

    # Initiator

    def wanted(self, sa: IkeSa, now: float) -> bool:
        """Once only, and not while the peer is at it."""
        if sa.state is not State.ESTABLISHED or sa.successor is not None:
            return False
        if self.new is None and any(isinstance(act, RekeyIke) for act in sa.followups.values()):
            self._later(sa, now)
            return False
        return True

    def ask(self, sa: IkeSa, message: Outgoing, now: float) -> None:
        """The IKE proposals of the connection, the group in use first."""
        if self.new is None:
            self.new = IkeSa(sa.host, sa.connection, sa.path, initiator=True)
            self.group = first_group(_proposals(sa), sa.suite.group if sa.suite is not None else 0)
        spi = self.new.my_spi
        offers = (each.to_wire(number, spi) for number, each in enumerate(_proposals(sa), start=1))
        message.add(SaPayload(proposals=tuple(offers)))

    def accept(self, sa: IkeSa, message: Incoming, now: float) -> tuple[int, tuple[int, ...]]:
        """What the peer chose, and its SPI."""
        answer = message.need(SaPayload).proposals
        if len(answer) != 1 or self.new is None:
            raise PeerError(
                NotifyType.INVALID_SYNTAX, f"the response's SA payload has {len(answer)} proposals; want 1"
            )
        self.suite = suite_of(answer[0], _proposals(sa))
        self.new.peer_spi = _spi(answer[0])
        return self.suite.group, self.suite.additional_groups

    def rival_lives(self, sa: IkeSa) -> bool:
        """Whether the peer's successor stands, or is being made."""
        rival = self.rival
        if rival is None:
            return False
        made = rival.new is not None and rival.new.state is State.ESTABLISHED
        return made or rival in sa.followups.values()

    def loses(self, sa: IkeSa) -> bool:
        """RFC 7296 section 2.8.2: the IKE SA made with the lowest of the four nonces is deleted."""
        return self.rival is not None and self.rival_lives(sa) and self.has_lower_nonce(self.rival)

    def goes_on(self, sa: IkeSa, now: float) -> bool:
        """Exchanges for a successor that is to be deleted at once are spared; the peer forgets its half."""
        if self.rounds.open and (self.forgotten or self.loses(sa)):
            self.forget(sa, now)
            return False
        return True

    def refused(self, sa: IkeSa, error: NotifyPayload, now: float) -> Result:
        """Another group at once; another time later."""
        if error.type == NotifyType.INVALID_KE_PAYLOAD:
            group = int.from_bytes(error.data, "big") if len(error.data) == 2 else Group.NONE
            offered = {each for proposal in _proposals(sa) for each in proposal.groups}
            self.refused_groups.add(self.group)
            if group in offered and group not in self.refused_groups and not self.forgotten:
                self.group = group
                return MORE
        if self.forgotten or sa.state is not State.ESTABLISHED:
            return DONE
        if self.rival_lives(sa):
            # The peer knew nothing of our request when it finished its own.
            self.forget(sa, now)
        elif error.type == NotifyType.TEMPORARY_FAILURE:
            sa.note("info", "the IKE SA's rekeying is put off: the peer is busy")
            self._later(sa, now)
        else:
            offers = ", ".join(map(str, _proposals(sa)))
            self.failed(
                sa,
                Failure(
                    code=error.name.lower(),
                    text=f"the IKE SA could not be rekeyed: we offered {offers} and the peer answered {error.name}",
                    advice="see the peer's log; the IKE SA goes on until it expires",
                ),
                now,
            )
        return DONE

    def failed(self, sa: IkeSa, failure: Failure, now: float) -> None:
        """The answer was no good: try again until the hard lifetime. Or it is all over."""
        if sa.state is State.CLOSED:
            rival = self.rival.new if self.rival is not None else None
            if rival is not None and rival.predecessor is sa and rival.state is State.ESTABLISHED:
                retire(rival, None, now)
                rival.close(Closed.REPLACED, now)
        elif not self.forgotten and sa.state is State.ESTABLISHED:
            if self.rival_lives(sa):
                self.forget(sa, now)
                return
            sa.last_error = failure
            sa.note("warning", f"rekeying the IKE SA failed: {failure}")
            self._later(sa, now)

    def _later(self, sa: IkeSa, now: float) -> None:
        sa.timers[Timer.REKEY] = retry_at(now, sa.host.random, sa.timers.get(Timer.EXPIRE, 0.0))

    def forget(self, sa: IkeSa, now: float) -> None:
        """RFC 7296 section 2.25.2: the peer's successor is the one, whatever becomes of our request."""
        self.forgotten = True
        rival = self.rival.new if self.rival is not None else None
        if rival is not None and rival.state is State.ESTABLISHED and sa.successor is None:
            succeed(sa, rival, now, delay=SETTLING)

    # Responder

    def check(self, sa: IkeSa, message: Incoming, now: float) -> None:
        """RFC 7296 section 2.25: not while it goes, and not while children change by our doing."""
        self.recheck(sa)

    def recheck(self, sa: IkeSa) -> None:
        """The same."""
        if sa.state is not State.ESTABLISHED:
            raise temporary_failure(f"the IKE SA's rekeying was asked for while it is {sa.state.value}")
        if isinstance(sa.active, CreateChild | DeleteChild | DeleteSpi):
            raise temporary_failure(f"the IKE SA's rekeying was asked for during our '{sa.active.name}'")

    def agree(self, sa: IkeSa, message: Incoming, ke_group: int, now: float) -> tuple[int, tuple[int, ...]]:
        """The suite, by our preference, and our SPI."""
        offered = message.need(SaPayload).proposals
        suite, number = _select(sa, offered, ke_group)
        if suite.group != ke_group:
            raise PeerError(
                NotifyType.INVALID_KE_PAYLOAD,
                f"the request has a KE payload for {name_of(Group, ke_group)}; we choose {suite}",
                data=suite.group.to_bytes(2, "big"),
            )
        self.suite = suite
        peer_spi = _spi(next(each for each in offered if each.number == number))
        self.new = IkeSa(sa.host, sa.connection, sa.path, initiator=False)
        self.new.peer_spi = peer_spi
        self.reply = [SaPayload(proposals=(suite.to_wire(number, self.new.my_spi),))]
        if isinstance(sa.active, RekeyIke):
            sa.active.rival = self
        return suite.group, suite.additional_groups

    def given_up(self, sa: IkeSa, now: float) -> None:
        """The IKE SA stays, and is ours to rekey."""
        due = Timer.REKEY in sa.timers or sa.has_task(RekeyIke) or not sa.connection.rekey_time
        if sa.state is State.ESTABLISHED and sa.successor is None and not due:
            self._later(sa, now)

    # Both

    def finish(self, sa: IkeSa, now: float) -> None:
        """The successor has its keys; whether it is the one depends on who made it, and on a second one."""
        if self.new is None or self.suite is None:
            raise LocalError("an IKE SA's rekeying without successor")
        new = self.new
        _inherit(sa, new)
        new.suite = self.suite
        new.keys = _keys(sa, new, self.suite, self.rounds.secrets, self.nonce_i, self.nonce_r)
        sa.host.register(new)
        new.established(now)
        _keep_deadline(sa, new)
        new.predecessor = sa
        ours = sa.active if isinstance(sa.active, RekeyIke) and not self.initiator else None
        if ours is not None and not ours.forgotten:
            sa.host.schedule(new)
            return  # not known yet which of the two it will be
        if not self.initiator:
            succeed(sa, new, now, delay=SETTLING)
        elif self.forgotten or sa.successor is not None or self.loses(sa):
            self.forget(sa, now)
            retire(new, sa.successor, now)
            new.queue(DeleteIke(Closed.REPLACED), now, first=True)
            sa.host.schedule(new)
        else:
            drop(sa, self.rival)
            rival = self.rival.new if self.rival is not None else None
            succeed(sa, new, now)
            sa.queue(DeleteIke(Closed.REPLACED), now, first=True)
            if rival is not None and rival.state is State.ESTABLISHED:
                retire(rival, new, now)


def succeed(sa: IkeSa, new: IkeSa, now: float, *, delay: float = 0.0) -> None:
    """`new` is what goes on: it takes the children and all that is still to be done, after `delay` seconds."""
    new.children, sa.children = sa.children, {}
    for child in new.children.values():
        child.spec = replace(child.spec, ike=new.id)
    # But not that it was too old: the successor is new.
    wishes = [
        (due, task)
        for due, task in sa.queued
        if not (isinstance(task, DeleteIke) and task.why is Closed.EXPIRED)
    ]
    new.queued.extend((max(due, now + delay), task) for due, task in wishes)
    # Where we are now is told on both: the peer may not know the successor before it knows that.
    moves = [each for each in sa.queued if isinstance(each[1], UpdateAddresses)]
    sa.queued.clear()
    new.last_error = sa.last_error
    new.predecessor = None
    sa.virtual_local = sa.virtual_remote = ()
    sa.emit(IkeRekeyed(ike=sa.id, connection=sa.connection.name, new=new.id, suite_name=str(new.suite)))
    retire(sa, new, now)
    sa.queued.extend(moves)
    sa.host.schedule(new)


def retire(sa: IkeSa, successor: IkeSa | None, now: float) -> None:
    """`sa` has nothing left but to be deleted, by the peer or by us; in case nobody does, it is dropped in a while."""
    sa.state = advance(sa.state, Step.REPLACED)
    sa.successor = successor
    if successor is not None:
        successor.queued.extend(sa.queued)
        sa.queued.clear()
    for timer in _HANDLED:
        sa.timers.pop(timer, None)
    sa.timers[Timer.EXPIRE] = now + REDUNDANT
    sa.host.schedule(sa)


def settle(sa: IkeSa, now: float) -> None:
    """The peer uses one of two simultaneous successors: that is the one."""
    old = sa.predecessor
    if old is None:
        return
    if isinstance(old.active, RekeyIke) and old.successor is None and old.state is State.ESTABLISHED:
        old.active.forget(old, now)


def _inherit(sa: IkeSa, new: IkeSa) -> None:
    """What was agreed on and proven stays (RFC 7296 section 2.18)."""
    new.path, new.way = sa.path, sa.way
    new.features = sa.features
    new.nat_local, new.nat_remote = sa.nat_local, sa.nat_remote
    new.local_id, new.remote_id, new.eap_identity = sa.local_id, sa.remote_id, sa.eap_identity
    new.peer_hashes = sa.peer_hashes
    new.peer_addresses = sa.peer_addresses
    new.virtual_local, new.virtual_remote = sa.virtual_local, sa.virtual_remote
    new.first_initiator = sa.first_initiator


def _keep_deadline(sa: IkeSa, new: IkeSa) -> None:
    """New keys are no new proof: the time of reauthentication stays."""
    due = sa.timers.get(Timer.REAUTH)
    if sa.reauth_passed:
        new.reauth_passed = True
        new.timers.pop(Timer.REAUTH, None)
        if last := sa.timers.get(Timer.EXPIRE):
            new.timers[Timer.EXPIRE] = min(new.timers.get(Timer.EXPIRE, last), last)
    elif due:
        new.timers[Timer.REAUTH] = due
        new.timers[Timer.EXPIRE] = min(
            new.timers.get(Timer.EXPIRE, due + REDUNDANT), due + ike_over_time(sa.connection)
        )


def _keys(
    sa: IkeSa, new: IkeSa, suite: Suite, secrets: Sequence[bytes], nonce_i: bytes, nonce_r: bytes
) -> SaKeys:
    """RFC 7296 section 2.18: SKEYSEED by the old PRF and SK_d, the keys by the new PRF."""
    if sa.keys is None:
        raise LocalError("rekeying an IKE SA without keys")
    seed = skeyseed_rekey(sa.keys.prf, sa.keys.d, secrets, nonce_i, nonce_r)
    function = prf(suite.prf)
    protection = Protection(suite.encr, suite.key_bits, suite.integ)
    derived = ike_keys(function, protection, seed, nonce_i, nonce_r, new.spi_initiator, new.spi_responder)
    new.export_keys(derived)
    keys = SaKeys(function, protection, derived, initiator=new.initiator, random=sa.host.random)
    keys.forget_authentication()
    return keys


def _proposals(sa: IkeSa) -> tuple[Proposal, ...]:
    """What to offer: the connection's proposals with the PRF in use, as far as they have it.

    RFC 7296 section 2.18 has SKEYSEED made by the old PRF and the keys by the new one; strongSwan 5.9.8 makes both by
    the old. As long as the PRF stays, all agree.
    """
    prf = sa.suite.prf if sa.suite is not None else 0
    kept = tuple(each for one in sa.connection.proposals if (each := one.keeping_prf(prf)) is not None)
    return kept or sa.connection.proposals


def _select(sa: IkeSa, offered: Sequence[OfferedProposal], ke_group: int) -> tuple[Suite, int]:
    """Suite and number of the proposal: with the PRF in use, else with any that the connection has."""
    whose, group = f"connection '{sa.connection.name}'", ke_group or None
    try:
        return select(offered, _proposals(sa), prefer_group=group, whose=whose)
    except NoProposalChosen:
        return select(offered, sa.connection.proposals, prefer_group=group, whose=whose)


def _spi(proposal: OfferedProposal) -> bytes:
    """The SPI that a proposal for IKE brings in a rekeying."""
    if proposal.protocol != Protocol.IKE or len(proposal.spi) != SPI_LENGTH or not any(proposal.spi):
        raise PeerError(
            NotifyType.INVALID_SYNTAX,
            f"proposal {proposal.number} for a new IKE SA has the SPI {proposal.spi.hex() or '(none)'}; want "
            f"{SPI_LENGTH} bytes that are not zero (RFC 7296 section 3.3.1)",
        )
    return proposal.spi
