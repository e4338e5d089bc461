"""ICMP errors from routers that no selector knows: they go with the traffic they are about (RFC 4301 section 6.2)."""

from __future__ import annotations

import random
import struct
from ipaddress import ip_address, ip_network

import pytest

from dataplane.engine import open_engine
from dataplane.model import Action, PolicySpec, SelectorSpec
from tests.esp import Peer, open_packet
from tests.exchange.suites import SUITES, inbound_sa, outbound_sa
from tests.fuzz.corpus import ROUTER as FUZZED
from tests.fuzz.corpus import inner_packet
from tests.fuzz.world import World
from tests.gateway import ETHERNET, IP, MakeGateway
from tests.packets import ICMP, ICMPV6, UDP, ip, tcp_packet, udp_packet

GCM = SUITES[0]
CLIENT = {4: "10.1.0.5", 6: "2001:db8:1::5"}
SERVER = {4: "10.2.0.9", 6: "2001:db8:2::9"}
ROUTER = {4: "172.16.3.1", 6: "2001:db8:dead::1"}
ERRORS = {4: [(3, 1), (3, 4), (4, 0), (5, 1), (11, 0), (12, 0)], 6: [(1, 0), (2, 0), (3, 0), (4, 1)]}


def sites(family: int, **rest: object) -> SelectorSpec:
    """What the tunnel is for."""
    nets = ("10.1.0.0/24", "10.2.0.0/24") if family == 4 else ("2001:db8:1::/64", "2001:db8:2::/64")
    return SelectorSpec.from_networks(ip_network(nets[0]), ip_network(nets[1]), **rest)


def sent(family: int, **fields: object) -> bytes:
    """A packet of the client to the server."""
    return udp_packet(family, b"cause", source=CLIENT[family], destination=SERVER[family], **fields)


def returned(family: int, **fields: object) -> bytes:
    """One of the server to the client."""
    return udp_packet(family, b"cause", source=SERVER[family], destination=CLIENT[family], **fields)


def icmp(cause: bytes, kind: tuple[int, int], *, to: str | None = None, **fields: object) -> bytes:
    """A router's error about `cause`; `to` somebody else than its source."""
    family = cause[0] >> 4
    source = CLIENT[family] if cause[12:16] == ip(4, source=CLIENT[4])[12:16] else SERVER[family]
    if family == 6:
        source = CLIENT[6] if cause[8:24] == ip(6, source=CLIENT[6])[8:24] else SERVER[6]
    body = struct.pack(">BBHI", *kind, 0, 0) + cause
    return ip(
        family,
        body,
        protocol=ICMP if family == 4 else ICMPV6,
        source=ROUTER[family],
        destination=to or source,
        **fields,
    )


@pytest.mark.parametrize("family", [4, 6])
def test_inward(make_gateway: MakeGateway, family: int) -> None:
    """From behind the peer about what we sent: the kernel passes it on; about anything else it is dropped."""
    gateway = make_gateway()
    spec = inbound_sa(
        GCM, selectors=(sites(family, protocol=UDP, local_ports=(4000, 4000), remote_ports=(5000, 5000)),)
    )
    gateway.add(spec)
    peer = Peer(spec)
    good = [icmp(sent(family), kind) for kind in ERRORS[family]]
    result = gateway.receive([peer.packet(packet) for packet in good])
    assert result.kernel == good
    assert (result.verdicts, result.drops) == ({"to_kernel": len(good)}, {})
    assert result.passed["in"] == (len(good), sum(map(len, good)))
    kind = ERRORS[family][0]
    bad = [
        icmp(returned(family), kind),  # about what came the other way
        icmp(sent(family), kind, to=SERVER[family]),
        icmp(sent(family, ports=(4000, 5001)), kind),
        icmp(tcp_packet(family, source=CLIENT[family], destination=SERVER[family], ports=(4000, 5000)), kind),
        icmp(sent(family), (0, 0) if family == 4 else (129, 0)),  # no error
        icmp(sent(family)[: 23 if family == 4 else 43], kind),
        icmp(sent(family)[: 20 if family == 4 else 40], kind),  # no ports to be seen
        icmp(b"\x45" + bytes(40), kind, to=CLIENT[family])
        if family == 4
        else icmp(b"\x60" + bytes(60), kind, to=CLIENT[6]),
        sent(family),
    ]
    for packet in bad:
        result = gateway.receive([peer.packet(packet)])
        assert (result.verdicts, result.drops) == ({"inner_selectors": 1}, {"in": {"inner_selectors": 1}}), (
            packet.hex()
        )
    # One run: each by what it quotes itself.
    result = gateway.receive([peer.packet(packet) for packet in (good[0], bad[1], bad[2], good[0])])
    assert result.kernel == [good[0], good[0]] and result.verdicts["inner_selectors"] == 2


@pytest.mark.parametrize("family", [4, 6])
def test_outward(make_gateway: MakeGateway, family: int) -> None:
    """From one of our routers about what came by the tunnel: it goes back by the tunnel of the answers."""
    gateway = make_gateway(link=ETHERNET)
    ours = outbound_sa(GCM)
    gateway.add(ours)
    selector = sites(family, protocol=UDP, local_ports=(5000, 5000), remote_ports=(4000, 4000))
    gateway.protect("out", [selector])
    # The server is the far one here, too: it sent to the client's port 5000.
    cause = returned(family)
    good = [icmp(cause, kind, ttl=9) for kind in ERRORS[family]]
    before = gateway.sequence("out")[0]
    result = gateway.send(good)
    assert result.verdicts == {"pass": len(good)}
    at = 8 if family == 4 else 7
    for number, (packet, wire) in enumerate(zip(good, result.packets, strict=True), before):
        _, opened = open_packet(ours, wire, number)
        assert opened[at] == 8 and opened[20 if family == 4 else 8 :] == packet[20 if family == 4 else 8 :]
    kind = ERRORS[family][0]
    bad = [
        icmp(sent(family), kind, to=SERVER[family]),
        icmp(cause, kind, to="10.2.0.8" if family == 4 else "2001:db8:2::8"),
        icmp(returned(family, ports=(4001, 5000)), kind),
        icmp(cause, (8, 0) if family == 4 else (128, 0)),
        icmp(cause, kind, ttl=1),
        icmp(cause[: 23 if family == 4 else 43], kind),
    ]
    result = gateway.send(bad)
    assert (result.verdicts, gateway.sequence("out")[0]) == ({"no_policy": len(bad)}, before + len(good))
    # A policy that says otherwise counts before what is quoted.
    routers = SelectorSpec.from_networks(
        ip_network(f"{ROUTER[family]}"), ip_network("0.0.0.0/0" if family == 4 else "::/0")
    )
    gateway.set_policies(
        [
            PolicySpec(name="routers", action=Action.DISCARD, selector=routers),
            PolicySpec(name="sites", action=Action.PROTECT, selector=selector, sa="out"),
        ]
    )
    assert gateway.send(good[:1]).verdicts == {"policy_discard": 1}


def test_our_own_errors(make_gateway: MakeGateway) -> None:
    """The gateway's protected address lies outside the tunnel's selectors: its time exceeded finds the way back."""
    gateway = make_gateway(link=ETHERNET)
    ours, theirs = outbound_sa(GCM), inbound_sa(GCM, selectors=(sites(4), sites(6)))
    gateway.add(ours, theirs)
    gateway.protect("out", [sites(4), sites(6)])
    peer = Peer(theirs)
    for number, family in enumerate((4, 6), 1):
        result = gateway.receive([peer.packet(returned(family, ttl=1))])
        assert result.verdicts == {"ttl": 1, "icmp_sent": 1, "pass": 1}, family
        _, opened = open_packet(ours, result.back[0], number)
        assert opened[20 if family == 4 else 40] == (11 if family == 4 else 3)


def test_nonsense(make_gateway: MakeGateway) -> None:
    """Whatever is in an ICMP message, it is dropped or passed, and every frame comes back."""
    gateway = make_gateway()
    spec = inbound_sa(GCM, selectors=(sites(4), sites(6)))
    gateway.add(spec, outbound_sa(GCM))
    gateway.protect("out", [sites(4), sites(6)])
    peer = Peer(spec)
    chance = random.Random(7)
    for _ in range(300):
        family = chance.choice((4, 6))
        body = bytearray(struct.pack(">BBHI", *chance.choice(ERRORS[family]), 0, 0) + sent(family))
        for _ in range(chance.randrange(6)):
            body[chance.randrange(len(body))] = chance.randrange(256)
        packet = ip(
            family,
            bytes(body[: chance.randrange(len(body) + 1)]),
            protocol=ICMP if family == 4 else ICMPV6,
            source=ROUTER[family],
            destination=CLIENT[family],
        )
        result = gateway.receive([peer.packet(packet)])
        assert sum(result.verdicts.values()) == 1 and {*result.verdicts} <= {"to_kernel", "inner_selectors"}
        gateway.send([packet])


def test_the_fuzzer_comes_here() -> None:
    """Enough of what it begins with goes by what is quoted, out and in; enough quotes what nobody asks for."""
    world = World(open_engine("openssl"), IP, seed=7)
    chance = random.Random(7)
    routers = {ip_address(address).packed for address in FUZZED.values()}
    packets = [inner_packet(chance.randrange(world.tunnels), chance)[:1400] for _ in range(3000)]
    errors = [packet for packet in packets if packet[12:16] in routers or packet[8:24] in routers]
    sent = world.gateway.send(errors)
    assert sent.verdicts["pass"] > 30 and sent.verdicts["no_policy"] > 30, sent.verdicts
    received = world.gateway.receive(sent.packets)
    assert received.verdicts == {"to_kernel": len(sent.packets)}
    world.close()
