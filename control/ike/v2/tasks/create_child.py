"""CREATE_CHILD_SA for a child SA (RFC 7296 sections 1.3.1, 2.17), with IKE_FOLLOWUP_KE where agreed on (RFC 9370).

    initiator   SA Ni [KEi] TSi TSr ->  <- SA Nr [KEr] TSi TSr       installed both ways
    responder   the same, answered                                   installed both ways

A KE payload for a method that the responder does not choose costs one round trip more (INVALID_KE_PAYLOAD). While
either side replaces the IKE SA nothing is created in it: that is answered, and met, with TEMPORARY_FAILURE (section
2.25.2). Rekeying a child is this act with one payload more and another end: rekey_child.py.
"""

from __future__ import annotations

from control.ike.errors import PeerError
from control.ike.events import Failure
from control.ike.numbers import Exchange, Group, NotifyType, Protocol
from control.ike.selectors import PacketSelectors
from control.ike.settings import ChildSettings
from control.ike.v2 import negotiate, resources
from control.ike.v2.child import first_group
from control.ike.v2.codec import failure_of
from control.ike.v2.lifetimes import retry_at
from control.ike.v2.parts import Child, Timer
from control.ike.v2.rounds import Rounds, link_of
from control.ike.v2.sa import IkeSa
from control.ike.v2.states import State
from control.ike.v2.task import DONE, MORE, Incoming, Outgoing, Result, Task
from control.ike.wire.payloads import KePayload, NoncePayload, NotifyPayload, Payload, SaPayload

NONCE_LENGTH = 32  # bytes: half the key of every PRF, and more than 128 bits (RFC 7296 section 2.10)
LINK_LENGTH = 8
MAX_CHILDREN = 256  # of one IKE SA; rekeyed ones that the peer has not deleted yet may be as many again
MAX_FOLLOWUPS = 2  # acts of one peer that may be half done: of a child and of the IKE SA
# Seconds. RFC 9370 section 2.2.4 finds 5 to 20 enough in most cases; a peer that hears us badly repeats until then.
FOLLOWUP_WAIT = 60.0
LONGEST_WAIT = 300.0  # seconds of TEMPORARY_FAILURE after which the two sides are out of step (section 2.25)


def responder(sa: IkeSa, message: Incoming) -> Task:
    """The act that a CREATE_CHILD_SA request begins."""
    from control.ike.v2.tasks.rekey_child import RekeyChild
    from control.ike.v2.tasks.rekey_ike import RekeyIke

    proposals = message.need(SaPayload).proposals
    if proposals and proposals[0].protocol == Protocol.IKE:
        return RekeyIke(initiator=False)
    if message.notify(NotifyType.REKEY_SA) is not None:
        return RekeyChild(initiator=False)
    return CreateChild(initiator=False)


def followup(sa: IkeSa, message: Incoming) -> Task:
    """The act that an IKE_FOLLOWUP_KE request goes on with; PeerError (STATE_NOT_FOUND) where there is none."""
    task = sa.followups.pop(link_of(message), None)
    if task is None:
        raise PeerError(
            NotifyType.STATE_NOT_FOUND,
            "IKE_FOLLOWUP_KE for a key exchange that was never begun, or is over; want the link of the response before",
        )
    return task


def drop(sa: IkeSa, act: KeyedTask | None) -> None:
    """The peer will not go on with an act of its own that is half done."""
    if act is not None and sa.followups.get(act.rounds.link) is act:
        del sa.followups[act.rounds.link]
        act.dropped(sa)


def give_up_followups(sa: IkeSa, now: float) -> None:
    """What the peer has left half done is let go (RFC 9370 section 2.2.4): it must not be in our own way for ever."""
    for act in list(sa.followups.values()):
        if act.since + FOLLOWUP_WAIT <= now:
            drop(sa, act)
            sa.note("info", f"the peer has not gone on with its '{act.name}'")
            act.given_up(sa, now)
    if sa.followups:
        sa.timers[Timer.FOLLOWUP] = min(act.since for act in sa.followups.values()) + FOLLOWUP_WAIT


class KeyedTask(Task):
    """What new children and successors of the IKE SA have in common: nonces, KE payloads, follow-ups and refusals."""

    exchange = Exchange.CREATE_CHILD_SA

    def __init__(self, *, initiator: bool) -> None:
        super().__init__(initiator=initiator)
        self.rounds = Rounds()
        self.nonce_i = b""
        self.nonce_r = b""
        self.group: int = Group.NONE  # of the KE payload that we sent as initiator
        self.refused_groups: set[int] = set()  # by the peer, which asked for another each time
        self.reply: list[Payload] = []
        self.since = 0.0  # as responder: when we answered last, and wait for IKE_FOLLOWUP_KE

    def has_lower_nonce(self, rival: KeyedTask) -> bool:
        """Whether the lowest of the four nonces is one of this act: of two that are begun at once, it gives way."""
        return min(self.nonce_i, self.nonce_r) < min(rival.nonce_i, rival.nonce_r)

    # Initiator

    def build(self, sa: IkeSa, message: Outgoing, now: float) -> Result:
        """The next request, or the response."""
        if not self.initiator:
            message.add(*self.reply)
            if self.rounds.open:
                message.notify(NotifyType.ADDITIONAL_KEY_EXCHANGE, self.rounds.link)
            return DONE
        if self.rounds.open:
            self.exchange = Exchange.IKE_FOLLOWUP_KE
            self.rounds.next_request(message)
            return MORE
        if not self.wanted(sa, now):
            return DONE
        self.exchange = Exchange.CREATE_CHILD_SA
        self.nonce_i = sa.host.random(NONCE_LENGTH)
        self.ask(sa, message, now)
        message.add(NoncePayload(data=self.nonce_i))
        self.rounds.begin(self.group, message)
        return MORE

    def process(self, sa: IkeSa, message: Incoming, now: float) -> Result:
        """The peer's response, or its request."""
        if not self.initiator:
            self._request(sa, message, now)
            return DONE
        error = message.error()
        if error is not None:
            return self.refused(sa, error, now)
        if message.header.exchange == Exchange.IKE_FOLLOWUP_KE:
            self.rounds.next_response(message)
        else:
            self.nonce_r = message.need(NoncePayload).data
            group, additional = self.accept(sa, message, now)
            self.rounds.first(message, group, additional)
        if not self.goes_on(sa, now):
            return DONE
        if self.rounds.open:
            return MORE
        self.finish(sa, now)
        return DONE

    def wanted(self, sa: IkeSa, now: float) -> bool:
        """Whether there is still something to ask for."""
        raise NotImplementedError

    def ask(self, sa: IkeSa, message: Outgoing, now: float) -> None:
        """Fill in all but nonce and KE, and choose `group`."""
        raise NotImplementedError

    def accept(self, sa: IkeSa, message: Incoming, now: float) -> tuple[int, tuple[int, ...]]:
        """Take in what the peer chose: the methods of its key exchanges."""
        raise NotImplementedError

    def refused(self, sa: IkeSa, error: NotifyPayload, now: float) -> Result:
        """The peer said no."""
        raise NotImplementedError

    def goes_on(self, sa: IkeSa, now: float) -> bool:
        """With both nonces known: whether the act is to be finished."""
        return True

    # Responder

    def _request(self, sa: IkeSa, message: Incoming, now: float) -> None:
        from control.ike.v2.tasks.rekey_ike import settle

        settle(sa, now)
        if message.header.exchange == Exchange.IKE_FOLLOWUP_KE:
            try:
                self.recheck(sa)
                self.reply = [self.rounds.answer_next(message)]
            except PeerError:
                self.dropped(sa)
                raise
        else:
            self.check(sa, message, now)
            self.nonce_i = message.need(NoncePayload).data
            self.nonce_r = sa.host.random(NONCE_LENGTH)
            ke = message.get(KePayload)
            group, additional = self.agree(sa, message, ke.group if ke is not None else Group.NONE, now)
            try:
                answer = self.rounds.answer_first(message, group, additional)
            except PeerError:
                self.dropped(sa)
                raise
            self.reply += [NoncePayload(data=self.nonce_r), *([answer] if answer is not None else [])]
        if self.rounds.open:
            self.rounds.link = sa.host.random(LINK_LENGTH)
            while len(sa.followups) >= MAX_FOLLOWUPS:
                sa.followups.pop(next(iter(sa.followups))).dropped(sa)
            sa.followups[self.rounds.link] = self
            self.since = now
            sa.timers.setdefault(Timer.FOLLOWUP, now + FOLLOWUP_WAIT)
        else:
            self.finish(sa, now)

    def check(self, sa: IkeSa, message: Incoming, now: float) -> None:
        """Whether it can be done now; raises PeerError."""
        raise NotImplementedError

    def recheck(self, sa: IkeSa) -> None:
        """The same before each further exchange: much may have happened since. Raises PeerError."""

    def agree(self, sa: IkeSa, message: Incoming, ke_group: int, now: float) -> tuple[int, tuple[int, ...]]:
        """Choose, add to `reply` all but nonce and KE; the methods of the key exchanges. Raises PeerError."""
        raise NotImplementedError

    def dropped(self, sa: IkeSa) -> None:
        """The peer does not go on: free what was reserved."""

    def given_up(self, sa: IkeSa, now: float) -> None:
        """The peer has not gone on in time: where our own act gave way to this one, it is to be done after all."""

    # Both

    def finish(self, sa: IkeSa, now: float) -> None:
        """All keys are there: make the SA."""
        raise NotImplementedError


def refuse_while_busy(sa: IkeSa, what: str) -> None:
    """TEMPORARY_FAILURE for a child in an IKE SA that is on its way out (RFC 7296 section 2.25.2)."""
    from control.ike.v2.tasks.rekey_ike import RekeyIke

    if sa.state is not State.ESTABLISHED:
        raise temporary_failure(f"{what} while the IKE SA is {sa.state.value}")
    if isinstance(sa.active, RekeyIke):
        raise temporary_failure(f"{what} while we rekey the IKE SA")


def temporary_failure(text: str) -> PeerError:
    """What makes a peer try again later (RFC 7296 section 2.25)."""
    return PeerError(NotifyType.TEMPORARY_FAILURE, text, advice="the peer tries again by itself")


class CreateChild(KeyedTask):
    """A new child SA."""

    name = "create child"

    def __init__(
        self,
        settings: ChildSettings | None = None,
        *,
        initiator: bool,
        packet: PacketSelectors | None = None,
        resource: int | None = None,
    ) -> None:
        """`resource` is the worker that a further child is for, beside the common one (RFC 9611)."""
        super().__init__(initiator=initiator)
        self.settings = settings
        self.resource = resource
        self.packet = packet
        self.asked: negotiate.ChildRequest | None = None
        self.agreed: negotiate.Agreed | None = None
        self.child: Child | None = None
        self.deleted: set[int] = set()  # SPIs that the peer deleted while it had answered, and we not heard
        self.began = 0.0

    # Initiator

    def wanted(self, sa: IkeSa, now: float) -> bool:
        """False where the IKE SA is on its way out: the child belongs to its successor, or to nobody."""
        if self.settings is not None and sa.state is State.ESTABLISHED and not self._alone(sa):
            if self.asked is not None or not sa.followups:
                return True
            # The peer is at the IKE SA, perhaps: what is asked for now may be lost with it.
            self.again(sa, now)
            return False
        self._free(sa)
        return False

    def replaced(self) -> Child | None:
        """The child to rekey, if it is one."""
        return None

    def _common(self, sa: IkeSa) -> Child | None:
        """The child beside which this one is to be."""
        mates = resources.group(sa, self.settings) if self.settings is not None else []
        return next((each for each in mates if each.spec.resource is None), None)

    def _alone(self, sa: IkeSa) -> bool:
        """A child for one worker without the common one, which went meanwhile: nobody wants it any more."""
        return self.resource is not None and self.replaced() is None and self._common(sa) is None

    def ask(self, sa: IkeSa, message: Outgoing, now: float) -> None:
        """SA, TSi and TSr."""
        if self.settings is None:
            return
        self.began = self.began or now
        if self.asked is None:
            old = self.replaced()
            common = self._common(sa) if self.resource is not None else None
            self.asked = negotiate.ask(
                sa,
                self.settings,
                sa.host.new_child_spi(),
                key_exchange=True,
                packet=self.packet,
                old=old.spec if old is not None else None,
                like=common.spec if common is not None else None,
                resource=self.resource,
            )
            self.group = first_group(self.asked.proposals)
        negotiate.add_request(message, self.asked)

    def accept(self, sa: IkeSa, message: Incoming, now: float) -> tuple[int, tuple[int, ...]]:
        """What the peer chose; from here on it may have installed the child."""
        if self.asked is None:
            raise PeerError(NotifyType.INVALID_SYNTAX, "an answer to nothing that was asked")
        self.agreed = negotiate.accept(sa, self.asked, message)
        return self.agreed.suite.group, self.agreed.suite.additional_groups

    def refused(self, sa: IkeSa, error: NotifyPayload, now: float) -> Result:
        """Another group at once, another time later, or a failure."""
        if self.asked is None or self.settings is None:
            return DONE
        if error.type == NotifyType.INVALID_KE_PAYLOAD and self.exchange == Exchange.CREATE_CHILD_SA:
            self.refused_groups.add(self.group)
            self.group = negotiate.wanted_group(self.asked, error, self.refused_groups)
            return MORE
        if error.type == NotifyType.TEMPORARY_FAILURE and now - self.began < LONGEST_WAIT:
            self.again(sa, now)
            return DONE
        if self.resource is not None:
            # RFC 9611 section 5.2: TS_MAX_QUEUE; whatever else it is, the common child does without.
            self._free(sa)
            resources.enough(sa, self.settings, error.name)
            return DONE
        self.failed(sa, negotiate.refusal(self.asked, error), now)
        return DONE

    def again(self, sa: IkeSa, now: float) -> None:
        """Ask anew after a while; what was reserved is given back."""
        self._free(sa)
        sa.note("info", f"child '{self.name_of_child}' is put off: the peer is busy")
        task = CreateChild(self.settings, initiator=True, packet=self.packet, resource=self.resource)
        task.began = self.began
        sa.queue(task, now, delay=retry_at(now, sa.host.random) - now)

    def failed(self, sa: IkeSa, failure: Failure, now: float) -> None:
        """Tell it; where the peer thinks that it has a child, take it back."""
        if self.settings is not None and self.initiator:
            self.take_back(sa, now)
            if sa.state is State.CLOSED and sa.successor is not None:
                again = CreateChild(self.settings, initiator=True, packet=self.packet, resource=self.resource)
                sa.heir.queue(again, now)
                sa.host.schedule(sa.heir)
                return
            sa.child_failed(self.settings.name, failure)

    def take_back(self, sa: IkeSa, now: float) -> None:
        """Delete what the peer may have installed and we do not want (RFC 7296 section 1.4.1)."""
        from control.ike.v2.tasks.delete import DeleteSpi

        if self.nonce_r and self.asked is not None and not self.rounds.open and sa.state is State.ESTABLISHED:
            sa.queue(DeleteSpi(self.asked.settings.protocol, self.asked.spi), now, first=True)
            self.asked = None
        self._free(sa)

    def _free(self, sa: IkeSa) -> None:
        if self.asked is not None:
            sa.host.free_child_spi(self.asked.spi)
            self.asked = None

    @property
    def name_of_child(self) -> str:
        """For the log."""
        return self.settings.name if self.settings is not None else ""

    # Responder

    def check(self, sa: IkeSa, message: Incoming, now: float) -> None:
        """Not while the IKE SA goes."""
        refuse_while_busy(sa, "a new child was asked for")

    def agree(self, sa: IkeSa, message: Incoming, ke_group: int, now: float) -> tuple[int, tuple[int, ...]]:
        """The child of the connection that fits best."""
        old = self.replaced()
        limit = MAX_CHILDREN if old is None else 2 * MAX_CHILDREN
        if len(sa.children) >= limit:
            raise PeerError(
                NotifyType.NO_ADDITIONAL_SAS,  # RFC 7296 section 1.3
                f"child {len(sa.children) + 1} of one IKE SA was asked for; want {limit} or fewer",
                advice="let the peer close what it does not use",
            )
        candidates = (old.spec.settings,) if old is not None else sa.connection.children
        try:
            self.agreed = negotiate.answer(
                sa,
                message,
                candidates,
                key_exchange=True,
                ke_group=ke_group,
                old=old.spec if old is not None else None,
            )
        except PeerError as error:
            if error.notify != NotifyType.INVALID_KE_PAYLOAD and old is None:
                sa.child_failed("", failure_of(error))
            raise
        answer = Outgoing(self.exchange)
        negotiate.add_answer(answer, self.agreed)
        self.reply = answer.payloads
        return self.agreed.suite.group, self.agreed.suite.additional_groups

    def dropped(self, sa: IkeSa) -> None:
        """The SPI was never used."""
        if self.agreed is not None:
            sa.host.free_child_spi(self.agreed.spi_in)

    # Both

    def finish(self, sa: IkeSa, now: float) -> None:
        """Installed in both directions."""
        if self.agreed is None:
            return
        if self.initiator and self.agreed.spi_out in self.deleted:
            self._free(sa)
            sa.note("info", f"child '{self.name_of_child}' was closed by the peer at once")
            return
        self.child = self.install(sa, now, outbound=True)
        if self.initiator and self.child is not None:
            resources.complete(sa, self.child, now)

    def install(
        self, sa: IkeSa, now: float, *, outbound: bool, replaces: Child | None = None
    ) -> Child | None:
        """Make the child of what was agreed on."""
        if self.agreed is None:
            return None
        self.asked = None  # its SPI belongs to the child now
        return negotiate.install(
            sa,
            self.agreed,
            now,
            nonce_i=self.nonce_i,
            nonce_r=self.nonce_r,
            initiator=self.initiator,
            outbound=outbound,
            secrets=self.rounds.secrets,
            replaces=replaces,
        )
