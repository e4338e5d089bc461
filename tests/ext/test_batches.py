"""A batch at once is the same packets one by one: leaders, followers and runs are shortcuts, never differences.

Bursts of one flow, flows by turns, several SAs of every kind, all families, and bad packets anywhere among them. Two
gateways with the same SAs (and the same IVs) take the same packets, one in full batches, the other singly.
"""

from __future__ import annotations

import random
import struct
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.model import Action, PolicySpec, SelectorSpec
from tests.esp import Peer
from tests.exchange.suites import NULL_SHA256, SUITES, inbound_sa, outbound_sa
from tests.ext.crypto_jobs import ENGINES
from tests.gateway import ANY4, ANY6, ETHERNET, IP, Gateway, Result
from tests.packets import (
    CLIENT4,
    CLIENT6,
    ESP,
    SERVER4,
    SERVER6,
    UDP,
    ip4,
    ip6,
    ip_address,
    tcp_packet,
    udp,
    udp_packet,
)

GCM, CHACHA, CBC, NULL = SUITES[0], SUITES[3], SUITES[4], NULL_SHA256
PORTS = replace(ANY4, protocol=UDP, local_ports=(5000, 5001))
OUT = [
    replace(spec, name=f"out{at}", spi=0xC000 + at, iv_mask=bytes(range(16)))
    for at, spec in enumerate(
        [
            outbound_sa(GCM, mss_clamp=True),
            outbound_sa(CBC, family=6, encap=True),
            outbound_sa(replace(CHACHA, esn=True), dscp=7),
            outbound_sa(NULL, encap=True),
            outbound_sa(replace(CBC, esn=True), family=6),
            outbound_sa(GCM, sequence_limit=5),
            outbound_sa(CHACHA, family=6),
        ]
    )
]
IN = [
    replace(spec, name=f"in{at}", spi=0xD000 + at)
    for at, spec in enumerate(
        [
            inbound_sa(GCM),
            inbound_sa(GCM, family=6),
            inbound_sa(CBC, encap=True),
            inbound_sa(replace(GCM, esn=True), family=6, encap=True),
            inbound_sa(CHACHA, selectors=(PORTS, replace(ANY6, protocol=UDP, local_ports=(5000, 5001)))),
            inbound_sa(replace(NULL, esn=True), family=6),
        ]
    )
]


def make_gateway(engine: str, link: int, hub: bool) -> Gateway:
    """All of these SAs; the last byte of the destination picks the outbound one. A hub routes nothing by itself."""
    gateway = Gateway(ENGINES[engine], link=link)
    if hub:
        gateway.set_routes([])
    gateway.add(*OUT, *IN)
    policies = []
    for at, spec in enumerate(OUT):
        for base, everything in (("10.2.0.0", ANY4), ("2001:db8:2::", ANY6)):
            host = ip_address(base) + at
            selector = replace(everything, remote_first=host, remote_last=host)
            policies.append(
                PolicySpec(name=spec.name, action=Action.PROTECT, selector=selector, sa=spec.name)
            )
    bypass = SelectorSpec(
        local_first=ip_address("10.1.0.0"),
        local_last=ip_address("10.1.255.255"),
        remote_first=ip_address("10.2.0.100"),
        remote_last=ip_address("10.2.0.101"),
    )
    policies.append(PolicySpec(name="bypass", action=Action.BYPASS, selector=replace(bypass, protocol=UDP)))
    policies.append(PolicySpec(name="discard", action=Action.DISCARD, selector=bypass))
    gateway.set_policies(policies)
    return gateway


# --- packets ------------------------------------------------------------------------------------------


def inner_packet(chance: random.Random, outward: bool, flow: int) -> bytes:
    """A packet of this flow, or now and then one that only resembles it."""
    family = 4 if flow % 3 else 6
    here, there = (CLIENT4, f"10.2.0.{flow % 9}") if family == 4 else (CLIENT6, f"2001:db8:2::{flow % 9}")
    if flow % 13 == 5 and family == 4:
        there = "10.2.0.100"
    ends = {"source": here, "destination": there}
    if not outward:
        near = (SERVER4, CLIENT4) if family == 4 else (SERVER6, CLIENT6)
        # Some are for another tunnel, where nothing routes them to the protected side (2 to 4: answers use 1).
        on = f"10.2.0.{2 + flow % 3}" if family == 4 else f"2001:db8:2::{2 + flow % 3}"
        ends = {"source": near[0], "destination": on if flow % 5 == 0 else near[1]}
    size = chance.choice((0, 1, 7, 18, 100, 500, 1337, 1450))
    fields = {
        **ends,
        "ttl": chance.choice((64, 64, 64, 64, 2, 1, 0)),
        "tos": chance.choice((0, 0, 0, 0xB9, 2, 3)),
    }
    if family == 4 and outward and size > 1000:
        fields["df"] = chance.randrange(16) > 0  # else it may be cut, which changes the order: see `compare`
    data = bytes([flow & 255]) * size
    ports = (4000 + flow // 9 % 2, 5000 + flow // 18 % 3)
    shape = chance.randrange(14)
    if shape == 0:
        return (
            ip4(data, protocol=UDP, offset=64, **fields) if family == 4 else ip6(data, protocol=253, **fields)
        )
    if shape == 1 and family == 4:
        return ip4(udp(data, ports=ports, **ends), protocol=UDP, options=b"\1" * 4, **fields)
    if shape == 1:
        return ip6(struct.pack(">BBIH", UDP, 0, 0, 0) + udp(data, ports=ports, **ends), protocol=60, **fields)
    if shape == 2:
        flags = chance.choice((2, 0x10))
        return tcp_packet(family, data, ports=ports, flags=flags, tcp_options=b"\2\4\x23\x28", **fields)
    if shape == 3:
        # An echo, or an error that nobody may answer.
        kind = chance.choice((8, 3)) if family == 4 else chance.choice((128, 1))
        body = struct.pack(">BBHI", kind, 0, 0, flow) + data
        return (ip4 if family == 4 else ip6)(body, protocol=1 if family == 4 else 58, **fields)
    if shape == 4:
        body = udp(data, ports=ports, half=True, **ends)
        return (ip4 if family == 4 else ip6)(body, protocol=UDP, **fields)
    if shape == 5:
        body = struct.pack(">II", 0xD000 + chance.randrange(3), 1) + data
        return (ip4 if family == 4 else ip6)(body[: chance.choice((3, 5, 8, 99))], protocol=ESP, **fields)
    packet = udp_packet(family, data, ports=ports, **fields)
    return damage(chance, packet) if shape == 6 else packet


def damage(chance: random.Random, packet: bytes) -> bytes:
    """One byte of the header changed, or the packet cut."""
    if chance.randrange(2):
        return packet[: chance.randrange(len(packet) + 1)]
    at = chance.randrange(min(44, len(packet)))
    return packet[:at] + bytes([packet[at] ^ 1 << chance.randrange(8)]) + packet[at + 1 :]


def flows(chance: random.Random, count: int) -> list[int]:
    """Flow numbers in bursts and by turns."""
    order: list[int] = []
    while len(order) < count:
        one, other = chance.randrange(40), chance.randrange(40)
        order += chance.choice(([one], [one] * 5, [one, other] * 3, [one] * chance.randrange(1, 12)))
    return order[:count]


def outer_packet(chance: random.Random, peers: list[Peer], flow: int) -> bytes:
    """A packet of one of the inbound SAs, mostly good."""
    peer = peers[flow % len(peers)]
    inner = inner_packet(chance, False, flow // 2)[:1400]
    tos = chance.choice((0, 0, 0, 1, 2, 3))
    shape = chance.randrange(16)
    esp = peer.esp(inner)
    if shape == 0:
        # Cut anywhere, the ESP header included.
        return peer.wrap(esp[: chance.choice((0, 3, 4, 6, 7, 8, 9, 20, chance.randrange(len(esp)))) or None])
    if shape == 1:
        at = chance.randrange(len(esp))
        esp = esp[:at] + bytes([esp[at] ^ 1 << chance.randrange(8)]) + esp[at + 1 :]
    elif shape == 2:
        esp = peer.esp(inner, number=chance.randrange(peer.number))
    elif shape == 3:
        return damage(chance, peer.wrap(esp, tos=tos))
    elif shape == 4:
        return peer.wrap(esp, encap=chance.choice((True, False)), tos=tos)
    elif shape == 5:
        return peer.wrap(esp, destination=ip_address(int(peer.spec.local) + chance.randrange(2)), tos=tos)
    elif shape == 6 and peer.spec.local.version == 4:
        return peer.wrap(
            esp, tos=tos, **chance.choice(({"more": True}, {"offset": 8}, {"options": b"\1" * 8}))
        )
    elif shape == 7:
        esp = peer.esp(
            b"",
            text=bytes(30)
            + bytes([chance.choice((0, 0, chance.randrange(20))), chance.choice((4, 41, 59, 6))]),
        )
    elif shape == 8:
        return udp_packet(4, b"\xff" * chance.choice((1, 4)), ports=(4500, 4500), destination="192.0.2.1")
    return peer.wrap(esp, tos=tos)


# --- comparison ---------------------------------------------------------------------------------------


class Sum:
    """What several calls came to."""

    def __init__(self) -> None:
        self.packets: list[bytes] = []
        self.back: Counter[bytes] = Counter()
        self.kernel: list[bytes] = []
        self.verdicts: Counter[str] = Counter()
        self.drops: dict[str, Counter[str]] = {}
        self.passed: dict[str, tuple[int, int]] = {}

    def add(self, result: Result) -> None:
        """One more."""
        self.packets += [link + packet for link, packet in zip(result.links, result.packets, strict=True)]
        self.back.update(link + packet for link, packet in zip(result.back_links, result.back, strict=True))
        self.kernel += result.kernel
        self.verdicts += result.verdicts
        for name, counts in result.drops.items():
            self.drops[name] = self.drops.get(name, Counter()) + counts
        for name, (packets, size) in result.passed.items():
            before = self.passed.get(name, (0, 0))
            self.passed[name] = (before[0] + packets, before[1] + size)


def settled(verdicts: Counter[str]) -> Counter[str]:
    """Forged numbers under one name: that a packet of the same batch has used one shows in the window too late.

    Then the ICV gives the forgery away; alone, with the window moved, it is a replay before the cipher runs.
    """
    forged = ("replay", "replay_old", "integrity")
    rest = Counter({name: count for name, count in verdicts.items() if name not in forged})
    rest["forged"] = sum(verdicts[name] for name in forged)
    return rest


def compare(
    engine: str, link: int, outward: bool, packets: list[bytes], sizes: list[int], hub: bool = False
) -> Counter[str]:
    """In batches of these sizes, and singly."""
    together, singly = (make_gateway(engine, link, hub) for _ in range(2))
    try:
        whole, parts = Sum(), Sum()
        at = 0
        while at < len(packets):
            size = sizes.pop() if sizes else 64
            batch = packets[at : at + size]
            whole.add(together.send(batch) if outward else together.receive(batch))
            at += size
        for packet in packets:
            parts.add(singly.send([packet]) if outward else singly.receive([packet]))
        assert settled(whole.verdicts) == settled(parts.verdicts)
        assert {name: settled(counts) for name, counts in whole.drops.items()} == {
            name: settled(counts) for name, counts in parts.drops.items()
        }
        # The pieces of what is fragmented leave behind the rest of their batch: with other numbers, or without where
        # an SA runs out of them.
        assert len(whole.packets) == len(parts.packets)
        assert {name: passed[0] for name, passed in whole.passed.items()} == {
            name: passed[0] for name, passed in parts.passed.items()
        }
        assert whole.verdicts["fragmented"] or (whole.packets, whole.passed) == (parts.packets, parts.passed)
        assert whole.kernel == parts.kernel
        assert whole.back == parts.back
        return whole.verdicts
    finally:
        together.close()
        singly.close()


@pytest.mark.parametrize("link", [IP, ETHERNET], ids=["ip", "ethernet"])
@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**64), st.lists(st.integers(1, 64), max_size=6), st.sampled_from(sorted(ENGINES)))
def test_outward(link: int, seed: int, sizes: list[int], engine: str) -> None:
    """From the protected side."""
    chance = random.Random(seed)
    packets = [inner_packet(chance, True, flow) for flow in flows(chance, 130)]
    compare(engine, link, True, packets, sizes)


@pytest.mark.parametrize("link", [IP, ETHERNET], ids=["ip", "ethernet"])
@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 2**64),
    st.lists(st.integers(1, 64), max_size=6),
    st.sampled_from(sorted(ENGINES)),
    st.booleans(),
)
def test_inward(link: int, seed: int, sizes: list[int], engine: str, hub: bool) -> None:
    """From the unprotected side."""
    chance = random.Random(seed)
    peers = [Peer(spec) for spec in IN]
    packets = [outer_packet(chance, peers, flow) for flow in flows(chance, 130)]
    compare(engine, link, False, packets, sizes, hub)


def test_the_draws_are_varied() -> None:
    """The packets above meet nearly every verdict, and most of them pass."""
    seen: Counter[str] = Counter()
    for seed in range(8):
        chance = random.Random(seed)
        peers = [Peer(spec) for spec in IN]
        seen += compare(
            "openssl", ETHERNET, True, [inner_packet(chance, True, n) for n in flows(chance, 130)], []
        )
        seen += compare(
            "openssl", ETHERNET, False, [outer_packet(chance, peers, n) for n in flows(chance, 130)], []
        )
    assert seen["pass"] > 400
    wanted = (
        "too_big ttl icmp_sent bypassed policy_discard no_policy sequence_unreserved replay integrity padding"
    )
    wanted += (
        " dummy next_header inner_malformed inner_selectors ecn esp_truncated encap_mismatch wrong_address"
    )
    wanted += " fragment no_sa checksum runt"
    assert set(wanted.split()) <= set(seen), set(wanted.split()) - set(seen)


def test_a_cut_packet_leads_nobody() -> None:
    """Over IPv6 too, where four to seven bytes of ESP show their SPI and nothing else."""
    for family in (4, 6):
        for length in (0, 3, 4, 7, 8, 12):
            gateway = Gateway(next(iter(ENGINES.values())))
            spec = inbound_sa(GCM, family=family)
            gateway.add(spec)
            peer = Peer(spec)
            good = udp_packet(4, source=SERVER4, destination=CLIENT4)
            cut = peer.wrap(peer.esp(good)[:length])
            result = gateway.receive([cut, peer.packet(good), peer.packet(good)])
            assert result.verdicts == {"esp_truncated": 1, "pass": 2}, (family, length)
            gateway.close()
