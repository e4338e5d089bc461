"""The rules that lead transport mode's traffic into the device: never fewer packets than a policy protects."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from control.net.host import LEAD_IN, Rule, is_with_peer, leading_rules
from dataplane.model import Action, PolicySpec, SelectorSpec

OURS = {4: ip_address("192.0.2.1"), 6: ip_address("2001:db8::1")}
PEER = {4: ip_address("192.0.2.2"), 6: ip_address("2001:db8::2")}


def policy(family: int = 4, **rest: Any) -> PolicySpec:
    """Between two hosts."""
    selector = SelectorSpec.from_networks(ip_network(OURS[family]), ip_network(PEER[family]), **rest)
    return PolicySpec(name="p", action=Action.PROTECT, selector=selector, sa="out")


def test_everything_between_two_hosts() -> None:
    """IPv4 asks once more for packets without a source address yet; IPv6 has one rule for both."""
    fields: dict[str, Any] = {"family": 4, "priority": LEAD_IN, "destination": PEER[4]}
    assert list(leading_rules(policy())) == [Rule(source=OURS[4], **fields), Rule(no_source=True, **fields)]
    fields = {"family": 6, "priority": LEAD_IN, "destination": PEER[6]}
    assert list(leading_rules(policy(6))) == [Rule(source=OURS[6], **fields)]


def test_which_policies() -> None:
    """Protect and discard, between one address of ours and a peer itself: networks behind peers have routes."""
    peers, own = set(PEER.values()), set(OURS.values())
    assert is_with_peer(policy(), peers, own)
    assert is_with_peer(replace(policy(6), action=Action.DISCARD, sa=None), peers, own)
    assert not is_with_peer(replace(policy(), action=Action.BYPASS, sa=None), peers, own)
    assert not is_with_peer(policy(), {PEER[6]}, own)
    assert not is_with_peer(policy(), peers, {OURS[6]})
    wide = SelectorSpec.from_networks(ip_network(OURS[4]), ip_network("192.0.2.2/31"))
    assert not is_with_peer(replace(policy(), selector=wide), peers, own)


@pytest.mark.parametrize(
    ("protocol", "local", "remote", "source_ports", "destination_ports"),
    [
        (17, (1701, 1701), (1701, 1701), (1701, 1701), (1701, 1701)),
        (6, (0, 65535), (80, 443), (0, 65535), (80, 443)),
        # The kernel's rules have neither port 0 nor 65535: the whole protocol goes in, and the SPD sorts it.
        (6, (0, 1023), (1024, 65535), (0, 65535), (0, 65535)),
        # Type and code of ICMP are no ports.
        (1, (0x0800, 0x08FF), (0x0800, 0x08FF), (0, 65535), (0, 65535)),
    ],
)
def test_services(
    protocol: int,
    local: tuple[int, int],
    remote: tuple[int, int],
    source_ports: tuple[int, int],
    destination_ports: tuple[int, int],
) -> None:
    """Protocol and ports, as far as the kernel can have them."""
    for rule in leading_rules(policy(protocol=protocol, local_ports=local, remote_ports=remote)):
        assert rule.protocol == protocol
        assert (rule.source_ports, rule.destination_ports) == (source_ports, destination_ports)
