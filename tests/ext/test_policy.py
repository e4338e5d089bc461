"""The SPD by longest prefix and candidate lists answers as a plain scan of all its entries, in order, would.

Policies and packets are drawn from a small universe, so that ranges overlap, nest, touch and miss by one. Every
packet carries its number, and every SA its SPI: where each packet went is known, not only how many.
"""

from __future__ import annotations

import random
import struct
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.model import (
    OPAQUE_PORTS,
    Action,
    Address,
    AdjacencySpec,
    PolicySpec,
    RouteSpec,
    SelectorSpec,
)
from tests.esp import Peer
from tests.exchange.suites import NULL_SHA256, SUITES, inbound_sa, outbound_sa
from tests.ext.crypto_jobs import ENGINES
from tests.gateway import Gateway
from tests.packets import ICMP, ICMPV6, TCP, UDP, ip4, ip6

NULL = NULL_SHA256
SAS = 6
SCTP = 132
BASE = {4: int(IPv4Address("10.0.0.0")), 6: int(IPv6Address("2001:db8::")) + (5 << 64) - 8}
ADDRESS = {4: IPv4Address, 6: IPv6Address}


@pytest.fixture(scope="module")
def gateway() -> Gateway:
    """Six SAs that encipher nothing, so that a packet's number can be read off the wire."""
    made = Gateway(next(iter(ENGINES.values())))
    made.add(*(replace(outbound_sa(NULL), name=f"{at}", spi=0x1000 + at) for at in range(SAS)))
    return made


# --- what a selector says, read from RFC 4301 section 4.4.1.1 ------------------------------------------


class Seen:
    """A packet as selectors see it; `ports` is None where it has none (OPAQUE)."""

    def __init__(
        self, family: int, source: int, destination: int, protocol: int, ports: tuple[int, int] | None
    ):
        self.family, self.source, self.destination = family, source, destination
        self.protocol, self.ports = protocol, ports


def matches(selector: SelectorSpec, seen: Seen) -> bool:
    """One policy's selector against one packet on its way out."""
    if selector.local_first.version != seen.family:
        return False
    if not int(selector.local_first) <= seen.source <= int(selector.local_last):
        return False
    if not int(selector.remote_first) <= seen.destination <= int(selector.remote_last):
        return False
    if selector.protocol not in (0, seen.protocol):
        return False
    for (low, high), place in ((selector.local_ports, 0), (selector.remote_ports, 1)):
        if (low, high) == (0, 65535):
            continue
        if (low, high) == (65535, 0):  # OPAQUE
            if seen.ports is not None:
                return False
            continue
        if seen.ports is None or not low <= seen.ports[place] <= high:
            return False
    return True


def scan(policies: list[PolicySpec], seen: Seen) -> str:
    """The first entry that matches; discard when none does (RFC 4301 section 5.1)."""
    for policy in policies:
        if matches(policy.selector, seen):
            if policy.action is Action.PROTECT:
                return "policy_no_sa" if policy.sa is None else f"sa {policy.sa}"
            return "bypassed" if policy.action is Action.BYPASS else "policy_discard"
    return "no_policy"


# --- drawing ------------------------------------------------------------------------------------------


def make_range(chance: random.Random, family: int) -> tuple[Address, Address]:
    """A single address, an aligned network, a ragged range, or everything."""
    kind = chance.randrange(5)
    first = BASE[family] + chance.randrange(64)
    last = first
    if kind == 1:
        size = 1 << chance.randrange(7)
        first = first // size * size
        last = first + size - 1
    elif kind == 2:
        last = first + chance.randrange(64)
    elif kind == 3:
        first, last = 0, 2 ** (32 if family == 4 else 128) - 1
    elif kind == 4:
        first, last = BASE[family] + 16, 2 ** (32 if family == 4 else 128) - 1
    return ADDRESS[family](first), ADDRESS[family](last)


def make_ports(chance: random.Random) -> tuple[int, int]:
    """ANY, OPAQUE, one port, or a range; 0 and 65535 among the ends."""
    if not chance.randrange(8):
        return OPAQUE_PORTS
    ends = sorted(
        (chance.choice((0, 1, 53, 0x0800, 4000, 65535)), chance.choice((0, 53, 80, 0x0801, 65534, 65535)))
    )
    return (0, 65535) if chance.randrange(2) else (ends[0], ends[1])


def make_policies(chance: random.Random, count: int) -> list[PolicySpec]:
    """An SPD."""
    policies = []
    for at in range(count):
        family = chance.choice((4, 4, 6))
        local, remote = make_range(chance, family), make_range(chance, family)
        action = chance.choice(
            (Action.PROTECT, Action.PROTECT, Action.PROTECT, Action.DISCARD, Action.BYPASS)
        )
        sa = f"{chance.randrange(SAS)}" if action is Action.PROTECT and chance.randrange(6) else None
        selector = SelectorSpec(
            local_first=local[0],
            local_last=local[1],
            remote_first=remote[0],
            remote_last=remote[1],
            protocol=chance.choice((0, 0, TCP, UDP, ICMP if family == 4 else ICMPV6, SCTP)),
            local_ports=make_ports(chance),
            remote_ports=make_ports(chance),
        )
        policies.append(PolicySpec(name=f"p{at}", action=action, selector=selector, sa=sa))
    return policies


def make_packet(chance: random.Random) -> tuple[bytes, Seen]:
    """A packet that ends with four bytes for its number, and what selectors should see in it."""
    family = chance.choice((4, 4, 6))
    source, destination = (BASE[family] + chance.randrange(-1, 80) for _ in range(2))
    protocol = chance.choice((TCP, UDP, UDP, ICMP if family == 4 else ICMPV6, SCTP, 253, 50))
    ports = (chance.choice((0, 53, 4000, 65535)), chance.choice((0, 53, 80, 65535)))
    kind = chance.choice((0x0800, 0x0801, 0, 0xFFFF))
    seen = Seen(family, source, destination, protocol, None)
    if protocol in (TCP, UDP, SCTP):
        seen.ports = ports
    elif protocol in (ICMP, ICMPV6):
        # RFC 4301 section 4.4.1.1: type and code stand in the ports' place.
        seen.ports = (kind, kind)
    body = struct.pack(">HH", *ports if protocol in (TCP, UDP, SCTP) else (kind, 9)) + bytes(24)
    ends = {"source": ADDRESS[family](source), "destination": ADDRESS[family](destination)}
    shape = chance.choice(("whole", "whole", "whole", "later", "first", "options"))
    if shape == "later":
        seen.ports = None
    if family == 4:
        extra = {"later": {"offset": 64}, "first": {"more": True}, "options": {"options": b"\1" * 4}}.get(
            shape, {}
        )
        return ip4(body, protocol=protocol, **ends, **extra), seen
    if shape in ("later", "first"):
        fragment = struct.pack(">BBHI", protocol, 0, 64 if shape == "later" else 1, 7)
        return ip6(fragment + body, protocol=44, **ends), seen
    if shape == "options":
        return ip6(bytes([protocol, 0]) + bytes(6) + body, protocol=60, **ends), seen
    return ip6(body, protocol=protocol, **ends), seen


def number_of(packet: bytes) -> int:
    """The number at the end of an inner packet."""
    return int.from_bytes(packet[-4:], "big")


def fates(gateway: Gateway, packets: list[bytes]) -> tuple[dict[int, str], dict[str, int]]:
    """Where each packet went that went somewhere, and how many were dropped for which reason."""
    result = gateway.send(packets)
    where = {number_of(packet): "bypassed" for packet in result.kernel}
    for wire in result.packets:
        spi, padding = int.from_bytes(wire[20:24], "big"), wire[-16 - 2]
        inner = wire[28 : len(wire) - 16 - 2 - padding]
        assert number_of(inner) not in where
        where[number_of(inner)] = f"sa {spi - 0x1000}"
    drops = {name: n for name, n in result.verdicts.items() if name not in ("pass", "bypassed")}
    return where, drops


@settings(max_examples=120, deadline=None)
@given(st.integers(0, 2**64), st.integers(0, 40))
def test_scan(gateway: Gateway, seed: int, count: int) -> None:
    """128 packets against up to 40 policies."""
    chance = random.Random(seed)
    policies = make_policies(chance, count)
    gateway.set_policies(policies)
    made = [make_packet(chance) for _ in range(128)]
    # Bursts of one flow, too: a leader's answer must be every follower's.
    order = [each for each in made for _ in range(chance.choice((1, 1, 1, 3)))][:128]
    packets = [packet[:-4] + struct.pack(">I", number) for number, (packet, _) in enumerate(order)]
    expected, dropped = {}, {}
    for number, (_, seen) in enumerate(order):
        fate = scan(policies, seen)
        if fate == "bypassed" or fate.startswith("sa "):
            expected[number] = fate
        else:
            dropped[fate] = dropped.get(fate, 0) + 1
    assert fates(gateway, packets) == (expected, dropped)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**64), st.integers(1, 12))
def test_scan_inward(seed: int, count: int) -> None:
    """RFC 4301 section 5.2: what an SA brings is held against its selectors, ends swapped."""
    chance = random.Random(seed)
    selectors = tuple(policy.selector for policy in make_policies(chance, count))
    gateway = Gateway(ENGINES[chance.choice(sorted(ENGINES))])
    try:
        spec = inbound_sa(NULL, selectors=selectors)
        gateway.add(spec)
        peer = Peer(spec)
        made = [make_packet(chance) for _ in range(64)]
        order = [each for each in made for _ in range(chance.choice((1, 1, 1, 3)))][:64]
        packets = [packet[:-4] + struct.pack(">I", number) for number, (packet, _) in enumerate(order)]
        expected = [
            packet
            for packet, (_, seen) in zip(packets, order, strict=True)
            if any(matches(swapped(selector), seen) for selector in selectors)
        ]
        result = gateway.receive([peer.packet(packet) for packet in packets])
        assert [strip_hop(packet) for packet in result.packets] == [strip_hop(packet) for packet in expected]
        assert result.verdicts["inner_selectors"] == len(packets) - len(expected)
    finally:
        gateway.close()


def swapped(selector: SelectorSpec) -> SelectorSpec:
    """The selector of the opposite direction: what is remote sends."""
    return replace(
        selector,
        local_first=selector.remote_first,
        local_last=selector.remote_last,
        remote_first=selector.local_first,
        remote_last=selector.local_last,
        local_ports=selector.remote_ports,
        remote_ports=selector.local_ports,
    )


def strip_hop(packet: bytes) -> bytes:
    """Without the hop that forwarding takes, and the checksum over it."""
    return packet[:8] + packet[9:10] + packet[12:] if packet[0] >> 4 == 4 else packet[:7] + packet[8:]


def test_many_policies(gateway: Gateway) -> None:
    """A thousand entries: a host each, a network behind them, the last one for the rest."""

    def network(text: str, **rest: object) -> SelectorSpec:
        return SelectorSpec.from_networks(ip_network("0.0.0.0/0"), ip_network(text), **rest)

    policies = [
        PolicySpec(name=f"{at}", action=Action.PROTECT, selector=network(f"10.7.{at // 256}.{at % 256}/32"),
                   sa=f"{at % SAS}")
        for at in range(900)
    ]  # fmt: skip
    policies.insert(450, PolicySpec(name="net", action=Action.DISCARD, selector=network("10.7.2.0/24")))
    policies.append(PolicySpec(name="rest", action=Action.BYPASS, selector=network("10.0.0.0/8")))
    gateway.set_policies(policies)
    chance = random.Random(5)
    hosts = [chance.randrange(1100) for _ in range(512)]
    packets = [
        ip4(bytes(20) + struct.pack(">I", number), protocol=253, destination=ip_address(0x0A070000 + host))
        for number, host in enumerate(hosts)
    ]
    seen = [Seen(4, int(IPv4Address("10.1.0.1")), 0x0A070000 + host, 253, None) for host in hosts]
    where, drops = fates(gateway, packets)
    expected = [scan(policies, each) for each in seen]
    assert where == {n: fate for n, fate in enumerate(expected) if fate != "policy_discard"}
    assert drops == {"policy_discard": expected.count("policy_discard")}


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**64), st.integers(0, 30))
def test_routes(gateway: Gateway, seed: int, count: int) -> None:
    """Decrypted packets take the route of the longest prefix, IPv4 and IPv6; no route asks the kernel."""
    chance = random.Random(seed)
    macs = [bytes([2, 0, 0, 0, 1, at]) for at in range(4)]
    prefixes: dict[object, int | None] = {}
    for _ in range(count):
        family = chance.choice((4, 6))
        bits = 32 if family == 4 else 128
        length = chance.choice((0, bits, bits - chance.randrange(9), chance.randrange(bits + 1)))
        address = BASE[family] + chance.randrange(256)
        prefix = ip_network((address >> (bits - length) << (bits - length), length))
        if prefix.version == family:
            prefixes[prefix] = chance.choice((0, 1, 2, 3, None))
    link = Gateway(gateway.tables.engine, link=0)
    try:
        spec = inbound_sa(SUITES[0])
        link.add(spec)
        link.set_routes(
            [
                RouteSpec(prefix=prefix, adjacency=None if at is None else  # type: ignore[arg-type]
                          AdjacencySpec(port="lan", destination_mac=macs[at]))
                for prefix, at in prefixes.items()
            ]
        )  # fmt: skip
        peer = Peer(spec)
        packets, expected = [], []
        for number in range(64):
            family = chance.choice((4, 6))
            destination = ADDRESS[family](BASE[family] + chance.randrange(-4, 260))
            make = ip4 if family == 4 else ip6
            packets.append(make(struct.pack(">I", number), protocol=253, destination=destination))
            holding = [prefix for prefix in prefixes if prefix.version == family and destination in prefix]
            best = max(holding, key=lambda prefix: prefix.prefixlen, default=None)
            expected.append(None if best is None else prefixes[best])
        result = link.receive([peer.packet(packet) for packet in packets])
        where = {number_of(packet): at[:6] for at, packet in zip(result.links, result.packets, strict=True)}
        where |= {number_of(packet): b"kernel" for packet in result.kernel}
        assert where == {n: b"kernel" if at is None else macs[at] for n, at in enumerate(expected)}
    finally:
        link.close()
