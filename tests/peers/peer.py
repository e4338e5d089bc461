"""What every peer of the tests can do, whoever it is: strongSwan, our endpoint alone, the whole daemon."""

from __future__ import annotations

import abc
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from control.lab.space import LabError, Space

T = TypeVar("T")


class PeerRefused(Exception):
    """An operation failed; the text is what the peer said about it."""


@dataclass(frozen=True, kw_only=True)
class ChildState:
    """One child SA as the peer sees it. SPIs are numbers, packets are of inner ones."""

    name: str
    state: str  # INSTALLED while it carries traffic
    spi_in: int
    spi_out: int
    packets_in: int = 0
    packets_out: int = 0
    local: tuple[str, ...] = ()
    remote: tuple[str, ...] = ()
    encapsulated: bool = True


@dataclass(frozen=True, kw_only=True)
class IkeState:
    """One IKE SA as the peer sees it."""

    name: str
    state: str  # ESTABLISHED once both are authenticated
    initiator: bool
    spi_initiator: int
    spi_responder: int
    local: str  # address:port
    remote: str
    local_id: str
    remote_id: str
    virtual: tuple[str, ...] = ()
    children: tuple[ChildState, ...] = ()

    @property
    def installed(self) -> list[ChildState]:
        """The children that carry traffic."""
        return [child for child in self.children if child.state == "INSTALLED"]


class Peer(abc.ABC):
    """One IKE daemon in a namespace. Connections and children go by the names they are configured with."""

    space: Space

    @abc.abstractmethod
    def start(self) -> None:
        """Start it and wait until it answers."""

    @abc.abstractmethod
    def stop(self) -> None:
        """End it properly: its IKE SAs are deleted on the wire."""

    @abc.abstractmethod
    def initiate(self, *, child: str | None = None, ike: str | None = None, timeout: float = 30.0) -> str:
        """Bring a child (and its IKE SA), or an IKE SA alone, up. Returns what it said; PeerRefused if it failed."""

    @abc.abstractmethod
    def terminate(self, *, child: str | None = None, ike: str | None = None, timeout: float = 30.0) -> str:
        """Delete children or IKE SAs by name, and wait for the peer's answer."""

    @abc.abstractmethod
    def rekey(self, *, child: str | None = None, ike: str | None = None, reauth: bool = False) -> None:
        """Begin to rekey a child or an IKE SA by name; it is under way on return, not done."""

    @abc.abstractmethod
    def sas(self) -> list[IkeState]:
        """Its IKE SAs with their children."""

    @abc.abstractmethod
    def log(self, lines: int | None = None) -> str:
        """Its log, or the last lines."""

    def sa(self, timeout: float = 10.0) -> IkeState:
        """Its only established IKE SA, waiting while there are more or none (a rekey under way)."""
        return self._only(
            lambda: [sa for sa in self.sas() if sa.state == "ESTABLISHED"], "IKE SAs established", timeout
        )

    def child(self, timeout: float = 10.0) -> ChildState:
        """The only installed child SA of all its IKE SAs, waiting likewise."""
        return self._only(
            lambda: [child for sa in self.sas() for child in sa.installed], "child SAs installed", timeout
        )

    def _only(self, find: Callable[[], list[T]], what: str, timeout: float) -> T:
        deadline = time.monotonic() + timeout
        while True:
            found = find()
            if len(found) == 1:
                return found[0]
            if time.monotonic() > deadline:
                raise LabError(f"{self.space.name}: {len(found)} {what}, want 1: {found}\n{self.log(30)}")
            time.sleep(0.05)
