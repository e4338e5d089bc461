"""Tables for the kernel benches: n tunnels, each an outbound SA, the inbound SA that opens it, a policy and a route.

Tunnel n takes packets from 10.1.0.0/16 to its own address 10.128.0.0 + n. Both SAs of a tunnel lie in one table, so
that what was sent can be turned round and received. Ports are Ethernet: TTLs are counted down, link headers stripped.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from bench.packets import udp_packet
from control.config.proposal import parse_ah_proposal, parse_proposal
from dataplane.api import DataPlane
from dataplane.layout import CACHE_LINE
from dataplane.model import (
    REPLAY_WINDOW,
    Action,
    AdjacencySpec,
    Direction,
    EspProposal,
    PolicySpec,
    PortSpec,
    Protocol,
    Role,
    RouteSpec,
    SaSpec,
    SelectorSpec,
)
from dataplane.tables import Limits
from ext.crypto import EngineHandle
from ext.sa import TablesView

FIRST_SPI = 0x10000
BASE = int(IPv4Address("10.128.0.0"))  # the address of tunnel 0
LOCAL, PEER = IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2")
SOURCES, DESTINATIONS = IPv4Network("10.1.0.0/16"), IPv4Network("10.128.0.0/9")
MACS = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")


@dataclass(frozen=True, kw_only=True)
class Tunnels:
    """What the kernels need: a worker's view of the filled tables, and the engine that expanded the keys."""

    view: TablesView
    view_fd: int  # for views of further workers
    engine: EngineHandle
    count: int


@contextlib.contextmanager
def tunnels(
    proposal: EspProposal,
    count: int = 1,
    engine: str = "auto",
    workers: int = 1,
    protocol: Protocol = Protocol.ESP,
    window: int = REPLAY_WINDOW,
) -> Iterator[Tunnels]:
    """Tables with `count` tunnels, for `workers` workers; every SA has keys of its own.

    With a `window` of 0 there is no replay protection: the same packets can be received again and again.
    """
    ports = [
        PortSpec(name=role.value, role=role, driver="packet", interface=role.value, mac=MACS[0])
        for role in Role
    ]
    limits = Limits(
        max_sas=max(2 * count, CACHE_LINE), max_selectors=max(count, CACHE_LINE), max_policies=count + 1
    )
    dataplane = DataPlane.create(ports=ports, workers=workers, engine=engine, limits=limits)
    try:
        asyncio.run(_fill(dataplane, proposal, count, protocol, window))
        fd = dataplane.tables.fd
        yield Tunnels(view=TablesView(fd, 0), view_fd=fd, engine=dataplane.tables.engine, count=count)
    finally:
        dataplane.close()


async def _fill(
    dataplane: DataPlane, proposal: EspProposal, count: int, protocol: Protocol, window: int
) -> None:
    inside, outside = (AdjacencySpec(port=role.value, destination_mac=MACS[1]) for role in Role)
    dataplane.add_sas([sa for number in range(count) for sa in _pair(proposal, number, protocol, window)])
    for number in range(count):
        dataplane.set_sa_adjacency(f"out{number}", outside)
    await dataplane.set_policies(
        [
            PolicySpec(
                name=f"out{number}", action=Action.PROTECT, selector=_selector(number), sa=f"out{number}"
            )
            for number in range(count)
        ]
    )
    await dataplane.set_routes([RouteSpec(prefix=DESTINATIONS, adjacency=inside)])


def _selector(number: int) -> SelectorSpec:
    """Tunnel `number`'s traffic, seen from its sender."""
    return SelectorSpec.from_networks(SOURCES, IPv4Network((BASE + number, 32)))


def _pair(proposal: EspProposal, number: int, protocol: Protocol, window: int) -> tuple[SaSpec, SaSpec]:
    """Outbound SA, and the inbound SA of its peer."""
    out = SaSpec(
        name=f"out{number}",
        direction=Direction.OUT,
        spi=FIRST_SPI + number,
        local=LOCAL,
        remote=PEER,
        protocol=protocol,
        proposal=proposal,
        encryption_key=os.urandom(proposal.encryption_key_length),
        integrity_key=os.urandom(proposal.integrity_key_length),
        negotiated=True,
    )
    sent = _selector(number)
    into = SaSpec(
        name=f"in{number}",
        direction=Direction.IN,
        spi=out.spi,
        local=PEER,
        remote=LOCAL,
        protocol=protocol,
        proposal=proposal,
        encryption_key=out.encryption_key,
        integrity_key=out.integrity_key,
        selectors=(
            SelectorSpec(
                local_first=sent.remote_first,
                local_last=sent.remote_last,
                remote_first=sent.local_first,
                remote_last=sent.local_last,
            ),
        ),
        negotiated=True,
        replay_window=window,
    )
    return out, into


def inner_packet(size: int) -> bytes:
    """A UDP packet of `size` bytes for tunnel 0."""
    return udp_packet(SOURCES[1], IPv4Address(BASE), size)


def parse_suite(algorithm: str) -> tuple[EspProposal, Protocol]:
    """An algorithm by name: ESP's keywords, or `ah-` and those of AH."""
    if algorithm.startswith("ah-"):
        return parse_ah_proposal(algorithm.removeprefix("ah-")), Protocol.AH
    return parse_proposal(algorithm), Protocol.ESP


def text_size(proposal: EspProposal, size: int, protocol: Protocol = Protocol.ESP) -> int:
    """Bytes that the engine works on for an inner packet of `size` bytes, as `EngineHandle.bare` counts them."""
    if protocol is Protocol.AH:
        # The whole outer packet, but for the 8 bytes of ESP header that `bare` hashes before the text.
        ah = 12 + proposal.iv_length + proposal.icv_length
        return 20 + ah + -ah % 4 + size - 8
    padded = -(-(size + 2) // proposal.alignment) * proposal.alignment
    return padded + (16 if proposal.alignment == 16 else 0)  # CBC: the IV's block too, see ext.crypto.Job
