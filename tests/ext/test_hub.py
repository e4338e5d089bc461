"""A hub between two spokes: what comes out of one tunnel for the other goes into it, never to the kernel in clear."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address, ip_network

import pytest

from dataplane.engine import open_engine
from dataplane.model import (
    Action,
    AdjacencySpec,
    Cipher,
    Direction,
    EspProposal,
    PolicySpec,
    RouteSpec,
    SaSpec,
    SelectorSpec,
)
from tests.gateway import ETHERNET, HOST_MAC, Gateway
from tests.packets import tcp_packet, udp_packet

GCM = EspProposal(cipher=Cipher.AES_GCM, key_bits=128)
HUB, WEST, EAST = (ip_address(f"192.0.2.{host}") for host in (1, 2, 3))
LAN, WEST_NET, EAST_NET = (ip_network(f"10.{site}.0.0/16") for site in (1, 2, 3))


def key(number: int) -> bytes:
    """Any 20 bytes."""
    return bytes([number]) * 20


def selector(local: str, remote: str) -> SelectorSpec:
    """A pair of networks."""
    return SelectorSpec.from_networks(ip_network(local), ip_network(remote))


def sa(
    name: str,
    direction: Direction,
    spi: int,
    local: object,
    remote: object,
    number: int,
    *selectors: SelectorSpec,
) -> SaSpec:
    """A GCM SA."""
    return SaSpec(
        name=name, direction=direction, spi=spi, local=local, remote=remote, proposal=GCM,
        encryption_key=key(number), selectors=selectors,
    )  # fmt: skip


def routes(gateway: Gateway) -> None:
    """Only the hub's own network lies behind its protected port."""
    hop = AdjacencySpec(port="lan", destination_mac=HOST_MAC)
    gateway.set_routes([RouteSpec(prefix=LAN, adjacency=hop)])


@pytest.fixture
def hub() -> Iterator[Gateway]:
    """West's and East's SAs; 10.3.9.0/24 is discarded, 10.4/16 bypassed, the rest of East protected."""
    gateway = Gateway(open_engine("auto"), link=ETHERNET)
    gateway.add(
        sa("from-west", Direction.IN, 0x2001, HUB, WEST, 1, selector("0.0.0.0/0", "10.2.0.0/16")),
        sa("to-east", Direction.OUT, 0x3001, HUB, EAST, 2),
    )
    gateway.set_policies(
        [
            PolicySpec(name="bad", action=Action.DISCARD, selector=selector("0.0.0.0/0", "10.3.9.0/24")),
            PolicySpec(name="pass", action=Action.BYPASS, selector=selector("0.0.0.0/0", "10.4.0.0/16")),
            PolicySpec(
                name="east",
                action=Action.PROTECT,
                selector=selector("0.0.0.0/0", "10.3.0.0/16"),
                sa="to-east",
            ),
        ]
    )
    routes(gateway)
    yield gateway
    gateway.close()


@pytest.fixture
def west() -> Iterator[Gateway]:
    """The spoke that sends."""
    gateway = Gateway(open_engine("auto"), link=ETHERNET)
    gateway.add(sa("to-hub", Direction.OUT, 0x2001, WEST, HUB, 1))
    gateway.protect("to-hub")
    yield gateway
    gateway.close()


@pytest.fixture
def east() -> Iterator[Gateway]:
    """The spoke that receives."""
    gateway = Gateway(open_engine("auto"), link=ETHERNET)
    gateway.add(sa("from-hub", Direction.IN, 0x3001, EAST, HUB, 2, selector("10.3.0.0/16", "10.2.0.0/16")))
    yield gateway
    gateway.close()


def test_spoke_to_spoke(west: Gateway, hub: Gateway, east: Gateway) -> None:
    """Two flows, followers among them; the hub is a hop more."""
    inner = [
        udp_packet(4, b"one", source="10.2.0.1", destination="10.3.0.1"),
        udp_packet(4, b"two", source="10.2.0.1", destination="10.3.0.1"),
        tcp_packet(4, b"three", source="10.2.0.1", destination="10.3.0.2"),
    ]
    sent = west.send(inner).packets
    # What turns back leaves by the port it came in by.
    at_hub = hub.receive(sent)
    assert not at_hub.kernel and not at_hub.packets
    assert at_hub.passed.keys() == {"from-west", "to-east"}
    arrived = east.receive(at_hub.back)
    assert [packet[20:] for packet in arrived.packets] == [packet[20:] for packet in inner]
    assert {packet[8] for packet in arrived.packets} == {64 - 3}


def test_unresolved_neighbour_is_the_kernels(west: Gateway, hub: Gateway) -> None:
    """A policy for everything does not send back what is only waiting for ARP on the protected side."""
    hub.protect("to-east")
    hub.set_routes([RouteSpec(prefix=LAN, adjacency=None)])
    result = hub.receive(west.send([udp_packet(4, b"x", source="10.2.0.1", destination="10.1.0.7")]).packets)
    assert result.verdicts == {"to_kernel": 1}
    hub.set_routes([RouteSpec(prefix=LAN, adjacency=None, inside=False)])
    result = hub.receive(west.send([udp_packet(4, b"x", source="10.2.0.1", destination="10.1.0.7")]).packets)
    assert result.verdicts == {"pass": 1} and len(result.back) == 1


def test_discard_and_bypass_hold_for_them_too(west: Gateway, hub: Gateway) -> None:
    """The SPD's other answers."""
    sent = west.send(
        [
            udp_packet(4, b"bad", source="10.2.0.1", destination="10.3.9.1"),
            udp_packet(4, b"pass", source="10.2.0.1", destination="10.4.0.1"),
            udp_packet(4, b"nobody", source="10.2.0.1", destination="10.5.0.1"),
            udp_packet(4, b"old", source="10.2.0.1", destination="10.3.0.1", ttl=2),
        ]
    ).packets
    result = hub.receive(sent)
    assert result.verdicts["policy_discard"] == 1
    assert result.verdicts["to_kernel"] == 2
    assert result.verdicts["ttl"] == 1
    assert len(result.kernel) == 2
