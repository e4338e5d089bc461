"""What an IKE SA and its tasks may ask of the endpoint that holds them. `control.ike.endpoint.Endpoint` is it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol

from control.ike.events import Datagram, Event, Failure, PeerPath
from control.ike.identity import Identity
from control.ike.pools import Pools
from control.ike.settings import ChildSettings, Connection, EndpointSettings

if TYPE_CHECKING:
    from control.ike.pools import Pools
    from control.ike.v2.sa import IkeSa
    from control.pki.store import Credentials


class Host(Protocol):
    """All IKE SAs of a gateway, as one of them sees it."""

    settings: EndpointSettings
    credentials: Credentials
    pools: Pools  # of addresses that clients are lent
    random: Callable[[int], bytes]  # cryptographically strong, outside of tests

    @property
    def connections(self) -> Iterable[Connection]:
        """Every configured connection, in the order of configuration."""

    def candidates(self, path: PeerPath) -> list[Connection]:
        """Connections whose addresses fit, the most specific first."""

    def emit(self, event: Event) -> None:
        """Tell the rest of control what happened."""

    def send(self, datagram: Datagram) -> None:
        """Put a datagram into the outbound queue."""

    def new_id(self) -> int:
        """An id for an IKE or child SA, never given before."""

    def new_ike_spi(self) -> bytes:
        """Eight bytes that no IKE SA here has."""

    def new_child_spi(self) -> int:
        """An inbound SPI for a child SA, reserved until `free_child_spi`."""

    def free_child_spi(self, spi: int) -> None:
        """The SPI may be used again (some time later)."""

    def register(self, sa: IkeSa) -> None:
        """`sa` gets the datagrams for its `my_spi` from now on."""

    def authenticated(self, sa: IkeSa) -> None:
        """`sa` has its two identities now."""

    def unregister(self, sa: IkeSa, *, linger: bool, now: float) -> None:
        """`sa` gets no more; with `linger`, repetitions of its last request still get its last response."""

    def schedule(self, sa: IkeSa) -> None:
        """A timer of `sa` may have become earlier."""

    def act(self, sa: IkeSa, now: float, verb: Callable[[], object]) -> None:
        """Do something with `sa`, and what follows from it. A bug in there ends this IKE SA alone."""

    def others(self, local: Identity, remote: Identity | str, sa: IkeSa | None) -> list[IkeSa]:
        """Other established IKE SAs of the same two identities; `remote` is `IkeSa.peer`."""

    def try_again(self, sa: IkeSa, failure: Failure, now: float) -> bool:
        """The peer was silent from the beginning: begin anew in place of `sa`, if more attempts are allowed."""

    def reauthenticate(self, sa: IkeSa, now: float) -> None:
        """Begin an IKE SA that takes the place of `sa` when it is there."""

    def initiate(self, connection: Connection | str, child: ChildSettings | str | None, now: float) -> int:
        """Set up an IKE SA (if there is none) with a child; the IKE SA's id."""
