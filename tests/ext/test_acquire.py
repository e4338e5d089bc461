"""Traffic that meets a policy without SA is dropped, and control hears of it: once a second and policy."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_network

import pytest

from dataplane.acquire import take
from dataplane.engine import open_engine
from dataplane.model import Acquire, Action, PolicySpec, SelectorSpec
from tests.gateway import Gateway
from tests.packets import CLIENT4, CLIENT6, SERVER4, SERVER6, UDP, ip4, udp_packet

RING = 64


def policy(name: str, action: Action, local: str, remote: str) -> PolicySpec:
    """An SPD entry of two networks, without SA."""
    return PolicySpec(
        name=name, action=action, selector=SelectorSpec.from_networks(ip_network(local), ip_network(remote))
    )


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    """10.1/16 to 10.2/16 and its IPv6 twin wait for SAs; 10.3/16 is discarded."""
    made = Gateway(open_engine("auto"))
    made.set_policies(
        [
            policy("site", Action.PROTECT, "10.1.0.0/16", "10.2.0.0/16"),
            policy("bad", Action.DISCARD, "10.1.0.0/16", "10.3.0.0/16"),
            policy("site6", Action.PROTECT, "2001:db8:1::/48", "2001:db8:2::/48"),
        ]
    )
    yield made
    made.close()


def heard(gateway: Gateway, names: list[str]) -> list[Acquire]:
    """What control would take now; the SPD's policies have these names, in order."""
    return take(gateway.tables.view, dict(zip(gateway.policies, names, strict=True)))


NAMES = ["site", "bad", "site6"]


def test_the_flow_is_told_and_the_packet_dropped(gateway: Gateway) -> None:
    result = gateway.send([udp_packet(4, b"x", ports=(1234, 53)), udp_packet(6, b"x", ports=(7, 8))])
    assert (result.packets, result.verdicts) == ([], {"policy_no_sa": 2})
    first, second = heard(gateway, NAMES)
    assert first.policy == "site"
    assert (str(first.packet.local_first), str(first.packet.remote_last)) == (CLIENT4, SERVER4)
    assert (first.packet.protocol, first.packet.local_ports, first.packet.remote_ports) == (
        UDP,
        (1234, 1234),
        (53, 53),
    )
    assert second.policy == "site6"
    assert (str(second.packet.local_first), str(second.packet.remote_last)) == (CLIENT6, SERVER6)
    assert heard(gateway, NAMES) == []


def test_without_ports_any_port_is_told(gateway: Gateway) -> None:
    gateway.send([ip4(b"\0" * 20, protocol=99)])
    (only,) = heard(gateway, NAMES)
    assert (only.packet.protocol, only.packet.local_ports, only.packet.remote_ports) == (
        99,
        (0, 65535),
        (0, 65535),
    )


def test_a_policy_is_told_once_a_second(gateway: Gateway) -> None:
    for port in range(1, 20):
        gateway.send([udp_packet(4, b"x", ports=(port, 53))] * 5)
    assert [each.policy for each in heard(gateway, NAMES)] == ["site"]


def test_discarded_traffic_asks_for_nothing(gateway: Gateway) -> None:
    gateway.send([udp_packet(4, b"x", destination="10.3.0.1")])
    assert heard(gateway, NAMES) == []


def test_a_full_ring_drops_reports_and_goes_on(gateway: Gateway) -> None:
    many = [policy(f"p{n}", Action.PROTECT, "10.1.0.0/16", f"10.2.{n}.0/24") for n in range(100)]
    gateway.set_policies(many)
    for n in range(100):
        gateway.send([udp_packet(4, b"x", destination=f"10.2.{n}.1")])
    names = [each.name for each in many]
    assert [each.policy for each in heard(gateway, names)] == names[:RING]
    gateway.send([udp_packet(4, b"x", destination="10.2.99.1")])
    assert [each.policy for each in heard(gateway, names)] == ["p99"]


def test_reports_about_an_old_spd_are_dropped(gateway: Gateway) -> None:
    gateway.send([udp_packet(4, b"x")])
    assert take(gateway.tables.view, {}) == []
