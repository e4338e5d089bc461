"""A hub between two spokes: what comes out of one tunnel for the other goes into it, never to the kernel in clear."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
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
from tests.esp import open_packet
from tests.gateway import ETHERNET, HOST_MAC, LAN_ADDRESSES, Gateway
from tests.packets import ip4, tcp_packet, transport_sums_right, udp_packet

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


def test_too_big_for_the_other_tunnel(west: Gateway, hub: Gateway) -> None:
    """The sender behind West learns of it by its own tunnel, from the hub's protected address."""
    hub.add(sa("to-west", Direction.OUT, 0x1001, HUB, WEST, 3))
    to_west = PolicySpec(
        name="west", action=Action.PROTECT, selector=selector("0.0.0.0/0", "10.2.0.0/16"), sa="to-west"
    )
    to_east = PolicySpec(
        name="east", action=Action.PROTECT, selector=selector("0.0.0.0/0", "10.3.0.0/16"), sa="to-east"
    )
    hub.set_policies([to_west, to_east])
    hub.tables.view.set_mtu(hub.indices["to-east"], 1000, 1054)
    cause = udp_packet(4, bytes(1100), source="10.2.0.1", destination="10.3.0.1", df=True)
    small = udp_packet(4, b"small", source="10.2.0.1", destination="10.3.0.1")
    result = hub.receive(west.send([small, cause, small]).packets)
    assert result.verdicts == {"too_big": 1, "icmp_sent": 1, "pass": 3}
    assert result.drops == {"to-east": {"too_big": 1}}
    assert result.passed["from-west"][0] == 3 and result.passed["to-west"][0] == 1
    _, answer = open_packet(hub.specs["to-west"], result.back[-1], 1)
    assert transport_sums_right(answer)
    assert (answer[9], answer[20], answer[21], int.from_bytes(answer[26:28], "big")) == (1, 3, 4, 1000)
    assert (ip_address(answer[12:16]), ip_address(answer[16:20])) == (
        LAN_ADDRESSES[0],
        ip_address("10.2.0.1"),
    )


def test_esp_within_has_no_ports(west: Gateway, hub: Gateway) -> None:
    """A follower of an inner ESP flow must not show its SPI's halves as ports."""
    by_port = replace(
        selector("0.0.0.0/0", "10.3.0.0/16"), local_ports=(0x1111, 0x1111), remote_ports=(0x2222, 0x2222)
    )
    hub.set_policies([PolicySpec(name="ports", action=Action.PROTECT, selector=by_port, sa="to-east")])
    inner = ip4(b"\x11\x11\x22\x22" + bytes(60), protocol=50, source="10.2.0.1", destination="10.3.0.1")
    assert hub.receive(west.send([inner] * 4).packets).verdicts == {"to_kernel": 4}


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
