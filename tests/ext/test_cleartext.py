"""RFC 4301 5.2: what arrives in clear by an unprotected port and should have come by a tunnel goes no further."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_network

import pytest

from dataplane.engine import open_engine
from dataplane.model import Action, PolicySpec, SelectorSpec
from tests.gateway import Gateway
from tests.packets import CLIENT4, CLIENT6, SERVER4, SERVER6, ip4, tcp_packet, udp, udp_packet


def policy(name: str, action: Action, local: str, remote: str, **rest: object) -> PolicySpec:
    """An SPD entry of two networks."""
    selector = SelectorSpec.from_networks(ip_network(local), ip_network(remote), **rest)
    return PolicySpec(name=name, action=action, selector=selector)


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    """Protects 10.1/16 - 10.2/16 and its IPv6 twin; DNS of the server is bypassed, one host is discarded."""
    made = Gateway(open_engine("auto"))
    made.set_policies(
        [
            policy("dns", Action.BYPASS, "10.1.0.0/16", "10.2.0.1/32", protocol=17, remote_ports=(53, 53)),
            policy("bad", Action.DISCARD, "10.1.0.0/16", "10.2.9.9/32"),
            policy("site", Action.PROTECT, "10.1.0.0/16", "10.2.0.0/16"),
            policy("site6", Action.PROTECT, "2001:db8:1::/48", "2001:db8:2::/48"),
        ]
    )
    yield made
    made.close()


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("make", [udp_packet, tcp_packet])
def test_forged_inner_addresses(gateway: Gateway, family: int, make) -> None:  # type: ignore[no-untyped-def]
    """Three of a flow, so that followers are judged by their leader's ports, and one of another."""
    ends = {4: (SERVER4, CLIENT4), 6: (SERVER6, CLIENT6)}[family]
    forged = make(family, b"clear text", source=ends[0], destination=ends[1], ports=(4000, 5000))
    other = make(family, b"clear text", source=ends[0], destination=ends[1], ports=(4001, 5000))
    result = gateway.receive([forged, forged, forged, other])
    assert result.verdicts == {"cleartext": 4}
    assert not result.packets and not result.kernel


def test_discarded_both_ways(gateway: Gateway) -> None:
    """A discard policy holds for what comes in, too."""
    result = gateway.receive([tcp_packet(4, b"x", source="10.2.9.9", destination=CLIENT4)])
    assert result.verdicts == {"cleartext": 1}


def test_bypassed_answer_goes_to_the_kernel(gateway: Gateway) -> None:
    """The answer to what may leave in clear may come in clear; what differs in port may not."""
    answer = udp_packet(4, b"an answer", source=SERVER4, destination=CLIENT4, ports=(53, 4000))
    other = udp_packet(4, b"no answer", source=SERVER4, destination=CLIENT4, ports=(54, 4000))
    result = gateway.receive([answer, answer, other])
    assert result.verdicts == {"bypassed": 2, "cleartext": 1}
    assert result.kernel == [answer, answer]


@pytest.mark.parametrize("size", [0, 1, 4, 7, 8])
def test_bypassed_and_small(gateway: Gateway, size: int) -> None:
    """A datagram that is too small for ESP in UDP is none, and may still be an answer."""
    answer = udp_packet(4, bytes(size), source=SERVER4, destination=CLIENT4, ports=(53, 4000))
    result = gateway.receive([answer])
    assert (result.verdicts, result.kernel) == ({"bypassed": 1}, [answer])


def test_bypassed_fragments(gateway: Gateway) -> None:
    """An answer that was cut up: later pieces have no ports, so that only a policy without ports lets them by."""
    whole = udp(bytes(64), source=SERVER4, destination=CLIENT4, ports=(53, 4000))
    ends = {"source": SERVER4, "destination": CLIENT4}
    pieces = [ip4(whole[:40], more=True, **ends), ip4(whole[40:], offset=40, **ends)]
    assert gateway.receive(pieces).verdicts == {"bypassed": 1, "fragment": 1}
    gateway.set_policies([policy("all", Action.BYPASS, "10.1.0.0/16", "10.2.0.0/16")])
    result = gateway.receive(pieces)
    assert (result.verdicts, result.kernel) == ({"bypassed": 2}, pieces)


def test_nobody_speaks_of_it(gateway: Gateway) -> None:
    """No policy: as before, it is simply no ESP."""
    result = gateway.receive([tcp_packet(4, b"x", source="10.2.0.1", destination="172.16.0.1")])
    assert result.verdicts == {"not_esp": 1}
