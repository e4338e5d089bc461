"""What `up`, `down`, `rekey`, `log`, `keys` and `status` ask of the running IKE daemon, and no more than that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from control.admin.feed import EventFeed
from control.ike.settings import Connection, EndpointSettings, PoolSettings
from control.ike.snapshot import IkeSnapshot


@dataclass(frozen=True, kw_only=True)
class ChildTraffic:
    """Counters of one child SA: inner packets and their bytes, each way."""

    packets_in: int = 0
    bytes_in: int = 0
    packets_out: int = 0
    bytes_out: int = 0


class IkeControl(Protocol):
    """The running IKE daemon. Every verb returns at once; what comes of it is told by the feed.

    Names are those of the configuration, ids those of snapshots and events; one that is gone raises KeyError.
    """

    feed: EventFeed  # each event of the endpoint is published there, once

    @property
    def settings(self) -> EndpointSettings:
        """As configured now."""

    @property
    def connections(self) -> Mapping[str, Connection]:
        """By name, as configured now."""

    @property
    def pools(self) -> Sequence[PoolSettings]:
        """As configured now."""

    def now(self) -> float:
        """The clock that snapshots' times are of."""

    def snapshot(self, connection: str | None = None) -> Sequence[IkeSnapshot]:
        """Every IKE SA that there is, or those of one connection: of thousands, all take a tenth of a second."""

    def traffic(self) -> Mapping[int, ChildTraffic]:
        """Counters by child id."""

    def leases(self) -> Mapping[str, int]:
        """Addresses lent at the moment, by pool."""

    def datagrams(self) -> Mapping[str, int]:
        """What IKE's sockets have received and sent, and what became of datagrams that led nowhere, by reason."""

    async def policies_settled(self) -> None:
        """Wait until packets take the tunnels that are established now."""

    def initiate(self, connection: str, child: str | None) -> int:
        """Begin the child (None: the IKE SA alone); the id of the IKE SA that it comes about on, old or new."""

    def terminate_ike(self, ike: int) -> None:
        """Delete an IKE SA and its children."""

    def terminate_child(self, child: int) -> None:
        """Delete a child SA."""

    def rekey_ike(self, ike: int) -> None:
        """Replace an IKE SA by one with new keys."""

    def rekey_child(self, child: int) -> None:
        """Replace a child SA by one with new keys."""
