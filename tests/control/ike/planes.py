"""A model of both sides' dataplanes, driven by events alone: it tells whether a packet sent now would arrive.

Each side sends through one outbound SA at a time: the newest it was told to use. A packet meets an inbound SA of
the other side with the same SPI and the same keys, or it is lost. An inbound SA that another replaces is kept for
GRACE seconds, as the installer does; one that was merely closed goes at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from control.ike.events import (
    ChildClosed,
    ChildEstablished,
    ChildOutboundReady,
    ChildSa,
    Closed,
    Event,
    IkeRekeyed,
    PathChanged,
    PeerPath,
)

GRACE = 5.0  # seconds


@dataclass(frozen=True, kw_only=True)
class Packet:
    """One ESP packet on its way: only what decides about its reception."""

    spi: int
    key: bytes
    integrity: bytes


@dataclass
class Plane:
    """One side's SAs."""

    inbound: dict[int, ChildSa] = field(default_factory=dict)  # by SPI
    leaving: dict[int, float] = field(default_factory=dict)  # SPI: until when it is kept
    known: dict[int, ChildSa] = field(default_factory=dict)  # by id
    outbound: list[int] = field(default_factory=list)  # ids that may be sent through, the newest last
    closed: list[ChildClosed] = field(default_factory=list)
    owners: dict[int, int] = field(default_factory=dict)  # by child's id: its IKE SA
    paths: dict[int, PeerPath] = field(default_factory=dict)  # by child's id: where its ESP goes

    def apply(self, event: Event, now: float) -> None:
        """Do what an event asks for; refuses what no dataplane could do."""
        if isinstance(event, ChildEstablished):
            child = event.child
            assert child.id not in self.known, f"child {child.id} established twice"
            assert child.spi_in not in self.inbound, f"SPI {child.spi_in:08x} is in use"
            self.known[child.id] = self.inbound[child.spi_in] = child
            self.owners[child.id], self.paths[child.id] = child.ike, child.path
            if event.outbound:
                self.outbound.append(child.id)
        elif isinstance(event, ChildOutboundReady):
            assert event.child in self.known, f"child {event.child} ready, but never established or gone"
            assert event.child not in self.outbound, f"child {event.child} made ready twice"
            self.outbound.append(event.child)
        elif isinstance(event, ChildClosed):
            child = self.known.pop(event.child)
            del self.owners[event.child], self.paths[event.child]
            self.closed.append(event)
            if event.child in self.outbound:
                self.outbound.remove(event.child)
            if event.why is Closed.REPLACED:
                self.leaving[child.spi_in] = now + GRACE
            else:
                del self.inbound[child.spi_in]
        elif isinstance(event, IkeRekeyed):
            self.owners = {id: event.new if ike == event.ike else ike for id, ike in self.owners.items()}
        elif isinstance(event, PathChanged):
            self.paths.update((id, event.path) for id, ike in self.owners.items() if ike == event.ike)

    def packet(self) -> Packet | None:
        """What is sent at this moment; None without an outbound SA."""
        if not self.outbound:
            return None
        child = self.known[self.outbound[-1]]
        return Packet(spi=child.spi_out, key=child.encryption_key_out, integrity=child.integrity_key_out)

    def accepts(self, packet: Packet, now: float) -> bool:
        """Whether a packet that arrives now finds its SA."""
        for spi in [spi for spi, until in self.leaving.items() if until < now]:
            del self.leaving[spi], self.inbound[spi]
        child = self.inbound.get(packet.spi)
        return child is not None and (child.encryption_key_in, child.integrity_key_in) == (
            packet.key,
            packet.integrity,
        )

    def pairs(self) -> set[tuple[int, int]]:
        """The pairs of SPIs that are up, inbound first."""
        return {(child.spi_in, child.spi_out) for child in self.known.values()}
