"""The rules that lead transport mode's traffic into the device: never fewer packets than a policy protects."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from control.net.host import LEAD_IN, Rule, leading_rules
from dataplane.model import Action, Mode, PolicySpec, SelectorSpec

OURS = {4: ip_address("192.0.2.1"), 6: ip_address("2001:db8::1")}
PEER = {4: ip_address("192.0.2.2"), 6: ip_address("2001:db8::2")}


def policy(family: int = 4, **rest: Any) -> PolicySpec:
    """Between two hosts."""
    selector = SelectorSpec.from_networks(ip_network(OURS[family]), ip_network(PEER[family]), **rest)
    return PolicySpec(name="p", action=Action.PROTECT, selector=selector, sa="out", mode=Mode.TRANSPORT)


def test_everything_between_two_hosts() -> None:
    """IPv4 asks once more for packets without a source address yet; IPv6 has one rule for both."""
    fields: dict[str, Any] = {"family": 4, "priority": LEAD_IN, "destination": PEER[4]}
    assert list(leading_rules(policy())) == [Rule(source=OURS[4], **fields), Rule(no_source=True, **fields)]
    fields = {"family": 6, "priority": LEAD_IN, "destination": PEER[6]}
    assert list(leading_rules(policy(6))) == [Rule(source=OURS[6], **fields)]


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
