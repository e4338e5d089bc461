"""CREATE_CHILD_SA in place of a child SA (RFC 7296 section 2.8): no packet is lost, whoever begins, or if both do.

    initiator   REKEY_SA SA Ni [KEi] TSi TSr ->   the peer installs its inbound SA
                <- SA Nr [KEr] TSi TSr            we install both and send through the new one
                DELETE(old) ->                    the peer sends through the new one; then the old one goes
    both at once (section 2.8.1)                  two children are made. Of the four nonces the lowest decides: who
                                                  made that child deletes it, unused; who made the other deletes
                                                  the old one. Children that lose are never sent through.

A peer that answers before it knows of our request has its answer refused with TEMPORARY_FAILURE or CHILD_SA_NOT_FOUND,
for then its child is the one. `state` of the old child: REKEYING while our request is under way, REKEYED when the
peer has replaced it, DELETING when we have.
"""

from __future__ import annotations

from control.ike.errors import PeerError
from control.ike.events import Closed, Failure
from control.ike.numbers import NotifyType, Protocol
from control.ike.v2 import negotiate
from control.ike.v2.child import SPI_LENGTH, spi_bytes
from control.ike.v2.lifetimes import NEVER, retry_at
from control.ike.v2.parts import Child, ChildState
from control.ike.v2.sa import IkeSa
from control.ike.v2.states import State
from control.ike.v2.task import DONE, Incoming, Outgoing, Result
from control.ike.v2.tasks.create_child import (
    LONGEST_WAIT,
    CreateChild,
    drop,
    refuse_while_busy,
    temporary_failure,
)
from control.ike.v2.tasks.delete import DeleteChild, DeleteSpi
from control.ike.wire.payloads import NotifyPayload

REDUNDANT = 60.0  # seconds after which we close what the peer should have closed


def alive(sa: IkeSa, child: Child | None) -> bool:
    """Whether a child is still there."""
    return child is not None and sa.children.get(child.spec.spi_in) is child


class RekeyChild(CreateChild):
    """A child SA in place of `old`."""

    name = "rekey child"

    def __init__(self, old: Child | None = None, *, initiator: bool) -> None:
        super().__init__(old.spec.settings if old is not None else None, initiator=initiator)
        self.old = old
        self.rival: RekeyChild | None = None  # the peer's act for the same child, while ours is under way

    def replaced(self) -> Child | None:
        """The child to rekey."""
        return self.old

    # Initiator

    def wanted(self, sa: IkeSa, now: float) -> bool:
        """Not if somebody else has replaced or closed it."""
        old = self.old
        if old is None or not alive(sa, old) or sa.state is not State.ESTABLISHED:
            self._free(sa)
            return False
        if self.asked is not None:
            return True
        if sa.followups:
            self._later(sa, old, now)  # the peer is at it, or at the IKE SA
            return False
        return old.state is ChildState.INSTALLED

    def ask(self, sa: IkeSa, message: Outgoing, now: float) -> None:
        """REKEY_SA with the SPI of our inbound SA, and what a new child has."""
        if self.old is None:
            return
        self.old.state = ChildState.REKEYING
        # RFC 7296 section 3.10.1.
        message.notify(
            NotifyType.REKEY_SA, protocol=self.old.spec.protocol, spi=spi_bytes(self.old.spec.spi_in)
        )
        super().ask(sa, message, now)

    def rival_lives(self, sa: IkeSa) -> bool:
        """Whether the peer's act for the same child stands: its child is there, or is being made."""
        rival = self.rival
        return rival is not None and (alive(sa, rival.child) or rival in sa.followups.values())

    def loses(self, sa: IkeSa) -> bool:
        """RFC 7296 section 2.8.1: of two children made at once the one with the lowest of the four nonces is closed."""
        return self.rival is not None and self.rival_lives(sa) and self.has_lower_nonce(self.rival)

    def goes_on(self, sa: IkeSa, now: float) -> bool:
        """Exchanges for a child that is to be closed at once are spared; the peer forgets its half."""
        if self.rounds.open and self.loses(sa):
            self._give_way(sa, "the peer's is kept")
            self._free(sa)
            return False
        return True

    def refused(self, sa: IkeSa, error: NotifyPayload, now: float) -> Result:
        """The peer was first, or cannot now, or will not."""
        if error.type == NotifyType.INVALID_KE_PAYLOAD:
            return super().refused(sa, error, now)
        self._free(sa)
        old = self.old
        if old is None or not alive(sa, old):
            drop(sa, self.rival)
            return DONE  # closed meanwhile
        if self.rival_lives(sa) or alive_by_id(sa, old.replaced_by):
            # RFC 7296 section 2.8.1: the peer knew nothing of our request when it finished its own.
            self._give_way(sa, f"the peer was first ({error.name})")
            return DONE
        old.state = ChildState.INSTALLED
        if error.type == NotifyType.CHILD_SA_NOT_FOUND:
            # RFC 7296 section 2.25: it is gone there, so it goes here, and another is made from scratch.
            sa.close_child(
                old,
                Closed.FAILED,
                failure=Failure(
                    code="child_sa_not_found",
                    text=f"the peer does not know child '{self.name_of_child}' any more",
                    advice="it is set up anew",
                ),
            )
            # Its answer to the request that made it may still be on its way: should it know the child then, no more.
            sa.queue(DeleteSpi(old.spec.protocol, old.spec.spi_in), now)
            again = CreateChild(old.spec.settings, initiator=True, resource=old.spec.resource)
            sa.queue(again, now)
        elif error.type == NotifyType.TEMPORARY_FAILURE and now - self.began < LONGEST_WAIT:
            self._later(sa, old, now)
        else:
            self._put_off(sa, old, negotiate.rekey_refusal(old.spec.settings, error), now)
        return DONE

    def _give_way(self, sa: IkeSa, why: str) -> None:
        """The peer's child takes the place of the old one, which the peer will delete."""
        sa.note("debug", f"our rekeying of child '{self.name_of_child}' is dropped: {why}")
        if self.old is not None and alive(sa, self.old):
            self.old.state = ChildState.REKEYED
            self.old.rekey_at = NEVER

    def _later(self, sa: IkeSa, old: Child, now: float) -> None:
        """Try again soon."""
        old.rekey_at = retry_at(now, sa.host.random, old.expires_at)

    def _put_off(self, sa: IkeSa, old: Child, failure: Failure, now: float) -> None:
        """It failed: tell, and try again; the hard lifetime ends this."""
        sa.child_failed(old.spec.settings.name, failure)
        self._later(sa, old, now)

    def failed(self, sa: IkeSa, failure: Failure, now: float) -> None:
        """The answer was no good, or the IKE SA is over (which is told by itself)."""
        self.take_back(sa, now)
        old = self.old
        if sa.state is State.CLOSED and sa.successor is not None:
            sa = sa.heir  # the child lives on there, and is to be rekeyed there
            self.rival = None
        if sa.state is State.CLOSED or old is None or not alive(sa, old):
            return
        if self.rival_lives(sa):
            self._give_way(sa, str(failure))
        elif old.state is ChildState.REKEYING:
            old.state = ChildState.INSTALLED
            self._put_off(sa, old, failure, now)

    # Responder

    def check(self, sa: IkeSa, message: Incoming, now: float) -> None:
        """Find the child that is meant, and whether it may be replaced now (RFC 7296 section 2.25.1)."""
        refuse_while_busy(sa, "a child's rekeying was asked for")
        notify = message.notify(NotifyType.REKEY_SA)
        if notify is None or len(notify.spi) != SPI_LENGTH:
            raise PeerError(
                NotifyType.INVALID_SYNTAX,
                f"REKEY_SA with an SPI of {len(notify.spi) if notify else 0} bytes; want {SPI_LENGTH}",
            )
        self.old = sa.child_by_outbound(notify.protocol, int.from_bytes(notify.spi, "big"))
        if self.old is None:
            raise ChildNotFound(notify.spi, notify.protocol)
        if self.old.state is ChildState.DELETING:
            raise temporary_failure(f"rekeying of child '{self.old.spec.settings.name}', which we delete")
        self.settings = self.old.spec.settings

    def _ours(self, sa: IkeSa) -> RekeyChild | None:
        """Our own act for the same child, if it is under way."""
        active = sa.active
        return active if isinstance(active, RekeyChild) and active.old is self.old else None

    # Both

    def finish(self, sa: IkeSa, now: float) -> None:
        """The new child is there; who lets go of what depends on who made it, and on a second one."""
        if self.initiator:
            self._finish_ours(sa, now)
        else:
            self._finish_theirs(sa, now)

    def _request(self, sa: IkeSa, message: Incoming, now: float) -> None:
        try:
            super()._request(sa, message, now)
        except ChildNotFound as error:
            # The notification names the SPI, which an error alone does not.
            self.reply = [NotifyPayload(type=error.notify, protocol=error.protocol, spi=error.spi)]
            sa.note("info", f"CREATE_CHILD_SA refused: {error}")

    def agree(self, sa: IkeSa, message: Incoming, ke_group: int, now: float) -> tuple[int, tuple[int, ...]]:
        """As for any child; from now on our own act for it has a rival."""
        chosen = super().agree(sa, message, ke_group, now)
        ours = self._ours(sa)
        if ours is not None:
            ours.rival = self
        return chosen

    def given_up(self, sa: IkeSa, now: float) -> None:
        """The child stays, and is ours to rekey."""
        old, sa = self.old, sa.heir
        if old is not None and alive(sa, old) and old.state is ChildState.REKEYED and old.replaced_by is None:
            old.state = ChildState.INSTALLED
            self._later(sa, old, now)

    def _finish_theirs(self, sa: IkeSa, now: float) -> None:
        """The peer's child: receive on it; send through it when the peer deletes the old one."""
        old = self.old
        if old is None or not alive(sa, old):
            self.dropped(sa)
            if old is None:
                raise ChildNotFound(b"", Protocol.ESP)
            raise ChildNotFound(spi_bytes(old.spec.spi_out), old.spec.protocol)
        if old.state is ChildState.DELETING:  # since the act began
            self.dropped(sa)
            raise temporary_failure(f"rekeying of child '{self.name_of_child}', which we delete")
        self.child = self.install(sa, now, outbound=False, replaces=old)
        if self._ours(sa) is None:
            old.state = ChildState.REKEYED
            old.rekey_at = NEVER

    def _finish_ours(self, sa: IkeSa, now: float) -> None:
        if self.agreed is None or self.old is None:
            return
        old, rival = self.old, self.rival.child if self.rival is not None else None
        if not self.loses(sa):
            drop(sa, self.rival)
        if self.agreed.spi_out in self.deleted:
            # The peer installed it, and closed it before its answer reached us; with it goes what it stood for.
            self._free(sa)
            if alive(sa, old):
                self._close_old(sa, old, Closed.PEER, now)
            return
        if self.loses(sa):
            self._give_way(sa, "the peer's is kept")
            sa.queue(DeleteSpi(self.agreed.suite.protocol, self.agreed.spi_in), now, first=True)
            self.asked = None
            return
        self.child = self.install(sa, now, outbound=True, replaces=old if alive(sa, old) else None)
        if alive(sa, old):
            self._close_old(sa, old, Closed.REPLACED, now)
        if rival is not None and alive(sa, rival) and self.child is not None:
            # The peer closes it. Should it not, we do so after a while.
            rival.state = ChildState.REKEYED
            rival.replaced_by, rival.heir = self.child.spec.id, self.child
            rival.rekey_at = NEVER
            rival.expires_at = now + REDUNDANT

    def _close_old(self, sa: IkeSa, old: Child, why: Closed, now: float) -> None:
        old.state = ChildState.DELETING
        old.rekey_at = NEVER
        sa.queue(DeleteChild(old, why), now, first=True)


class ChildNotFound(PeerError):
    """CHILD_SA_NOT_FOUND, which repeats the SPI of REKEY_SA (RFC 7296 section 2.25)."""

    def __init__(self, spi: bytes, protocol: int) -> None:
        super().__init__(
            NotifyType.CHILD_SA_NOT_FOUND,
            f"rekeying of a child with SPI {spi.hex()}, which is none of ours",
            advice="the peer sets it up anew",
        )
        self.spi = spi
        self.protocol = protocol


def alive_by_id(sa: IkeSa, id: int | None) -> bool:
    """Whether a child with this id is still there."""
    return id is not None and sa.child_by_id(id) is not None
