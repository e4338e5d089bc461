"""Every drop has a packet that causes it, and causes nothing else.

Each case puts one bad packet between two good ones: the bad one is counted once, under its own name and (where it
belongs to one) at its SA, the good ones pass untouched, and no frame is lost (tests/gateway.py sees to that).
Bad headers are in test_bad_headers.py. `test_every_drop_has_its_test` holds the cases against the enumerators.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_network

import pytest

from dataplane.model import Action, EspProposal, PolicySpec, RouteSpec, SelectorSpec
from ext.counters import DROP_NAMES
from tests.esp import Peer
from tests.exchange.suites import SUITES, inbound_sa, mirror, outbound_sa, suite_id
from tests.ext import test_bad_headers
from tests.ext.bad import (
    BASE4,
    BASE6,
    CBC,
    FOUR,
    GCM,
    GOOD,
    GOOD_OUT,
    HEADERS,
    Pair,
    check,
    extension,
)
from tests.gateway import (
    ANY4,
    ETHERNET,
    IP,
    MakeGateway,
    engine_and_way,  # noqa: F401  (fixture)
)
from tests.packets import (
    CLIENT6,
    ESP,
    ICMP,
    SERVER6,
    TCP,
    UDP,
    ip,
    ip4,
    ip6,
    ip_address,
    tcp,
    tcp_packet,
    udp,
    udp_packet,
)

#: Drops that no packet can cause here, and who tests them.
ELSEWHERE = {
    "crypto": "an engine refuses text that the kernels never send it: tests/ext/test_crypto.py",
    "tx_error": "counted by drivers: tests/dataplane/test_stats.py, tests/netns/test_udp.py",
    "ah_truncated": "tests/ext/test_ah.py",
    "ah_length": "tests/ext/test_ah.py",
    "ip_option": "tests/ext/test_ah.py",
    "bundle": "tests/exchange/test_bundles.py",
    "no_frame": "counted by drivers: tests/netns/test_lost.py, tests/ext/test_xsk.py",
}


# --- unprotected side: outer packets ------------------------------------------------------------------

Build = Callable[[Peer], bytes]


def later_fragment(peer: Peer) -> bytes:
    """The second half of an outer packet."""
    return (
        peer.wrap(peer.esp(GOOD)[:64], offset=64) if peer.spec.local.version == 4 else in_fragment(peer, 64)
    )


def in_fragment(peer: Peer, offset: int, more: int = 0) -> bytes:
    """An IPv6 fragment of an ESP packet."""
    header = struct.pack(">BBHI", ESP, 0, offset | more, 7)
    return ip6(header + peer.esp(GOOD), source=peer.spec.remote, destination=peer.spec.local, protocol=44)


def in_udp(peer: Peer, payload: bytes, **fields: int) -> bytes:
    """`payload` in a UDP packet to port 4500, with a UDP length of its own where given."""
    length = fields.get("length", 8 + len(payload))
    head = struct.pack(">HHHH", 4500, 4500, length, 0)
    ends = {"source": peer.spec.remote, "destination": peer.spec.local}
    return ip(peer.spec.local.version, head + payload, protocol=UDP, **ends)


OUTER: list[tuple[str, str, Build, bool]] = [
    ("not_esp", "tcp", lambda _: tcp_packet(4, destination="192.0.2.1"), False),
    ("not_esp", "icmp", lambda _: ip4(bytes(64), protocol=ICMP), False),
    ("not_esp", "ike-marker", lambda peer: in_udp(peer, bytes(4) + bytes(28)), False),
    ("not_esp", "udp-cut", lambda peer: ip4(bytes(7), protocol=UDP), False),
    ("not_esp", "udp-length-7", lambda peer: in_udp(peer, peer.esp(GOOD), length=7), False),
    ("not_esp", "udp-length-past", lambda peer: in_udp(peer, bytes(64), length=73), False),
    ("nat_keepalive", "one-byte", lambda peer: in_udp(peer, b"\xff"), False),
    ("esp_truncated", "nothing", lambda peer: ip4(b"", protocol=ESP), False),
    ("esp_truncated", "7-bytes", lambda peer: ip4(peer.esp(GOOD)[:7], protocol=ESP), False),
    ("esp_truncated", "udp-nothing", lambda peer: in_udp(peer, b""), False),
    ("esp_truncated", "udp-other-byte", lambda peer: in_udp(peer, b"\xfe"), False),
    ("esp_truncated", "udp-7-bytes", lambda peer: in_udp(peer, peer.esp(GOOD)[:7]), False),
    ("fragment", "first", lambda peer: peer.wrap(peer.esp(GOOD), more=True), False),
    ("fragment", "later", later_fragment, False),
    ("fragment", "udp-first", lambda peer: peer.wrap(peer.esp(GOOD), encap=True, more=True), False),
    ("no_sa", "unknown", lambda peer: peer.wrap(struct.pack(">I", 0xDEADBEEF) + peer.esp(GOOD)[4:]), False),
    ("no_sa", "zero", lambda peer: peer.wrap(bytes(4) + peer.esp(GOOD)[4:]), False),
    ("no_sa", "one-more", lambda peer: peer.wrap(struct.pack(">I", peer.spec.spi + 1) + peer.esp(GOOD)[4:]), False),
    ("no_sa", "outbound-one", lambda peer: peer.wrap(struct.pack(">I", 0xC0000001) + peer.esp(GOOD)[4:]), False),
    ("wrong_address", "destination", lambda peer: peer.wrap(peer.esp(GOOD), destination="192.0.2.77"), True),
    ("wrong_address", "family", lambda peer: ip6(
        peer.esp(GOOD), protocol=ESP, source="::192.0.2.2", destination="::192.0.2.1"), True),
    ("encap_mismatch", "udp-not-wanted", lambda peer: peer.wrap(peer.esp(GOOD), encap=True), True),
    ("esp_truncated", "header-alone", lambda peer: peer.wrap(peer.esp(GOOD)[:8]), True),
    ("esp_misaligned", "one-more", lambda peer: peer.wrap(peer.esp(GOOD) + b"\0"), True),
    ("esp_misaligned", "two-less", lambda peer: peer.wrap(peer.esp(GOOD)[:-2]), True),
    ("replay_old", "number-0", lambda peer: peer.packet(GOOD, number=0), True),
    ("integrity", "cut-by-a-block", lambda peer: peer.wrap(peer.esp(GOOD)[:-16]), True),
    ("integrity", "longer-by-a-block", lambda peer: peer.wrap(peer.esp(GOOD) + bytes(16)), True),
    ("integrity", "zeros", lambda peer: peer.wrap(peer.esp(GOOD, number=4000)[:8] + bytes(96)), True),
    ("padding", "longer-than-text", lambda peer: peer.packet(b"", text=bytes(14) + b"\x0f\x04"), True),
    ("padding", "255", lambda peer: peer.packet(b"", text=bytes(14) + b"\xff\x04"), True),
    ("padding", "zeros", lambda peer: peer.packet(b"", text=bytes(14) + b"\x04\x04"), True),
    ("padding", "first-byte", lambda peer: peer.packet(b"", text=bytes(6) + b"\2\2\3\4\5\6\7\x08" + b"\x08\x04"), True),
    ("padding", "last-byte", lambda peer: peer.packet(b"", text=bytes(6) + b"\1\2\3\4\5\6\7\x09" + b"\x08\x04"), True),
    ("dummy", "next-header-59", lambda peer: peer.packet(bytes(46), next_header=59), True),
    ("dummy", "random", lambda peer: peer.packet(bytes(range(200)) * 6, next_header=59), True),
    ("dummy", "empty", lambda peer: peer.packet(b"", next_header=59), True),
    ("next_header", "udp", lambda peer: peer.packet(udp(), next_header=UDP), True),
    ("next_header", "tcp", lambda peer: peer.packet(tcp(), next_header=TCP), True),
    ("next_header", "zero", lambda peer: peer.packet(GOOD, next_header=0), True),
    ("next_header", "esp", lambda peer: peer.packet(peer.esp(GOOD, number=999), next_header=ESP), True),
    *(("inner_malformed", f"{name}-{what}", lambda peer, packet=packet: peer.packet(packet), True)
      for name, what, packet in HEADERS),
    ("inner_malformed", "v6-as-4", lambda peer: peer.packet(BASE6, next_header=4), True),
    ("inner_malformed", "v4-as-41", lambda peer: peer.packet(BASE4, next_header=41), True),
]  # fmt: skip
OUTER_IDS = [f"{name}-{what}" for name, what, *_ in OUTER]


@pytest.mark.parametrize(("name", "what", "build", "of_sa"), OUTER, ids=OUTER_IDS)
def test_outer(make_gateway: MakeGateway, name: str, what: str, build: Build, of_sa: bool) -> None:
    """Between good packets of every kind of cipher."""
    for suite in (GCM, CBC):
        pair = Pair(make_gateway(), suite)
        pair.receive(name, build(pair.peer), sa="in" if of_sa else None)


@pytest.mark.parametrize("suite", FOUR, ids=suite_id)
@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("encap", [False, True], ids=["esp", "udp"])
def test_every_length(make_gateway: MakeGateway, suite: EspProposal, family: int, encap: bool) -> None:
    """A good packet cut at every length is truncated, misaligned or fails its ICV; never anything else."""
    pair = Pair(make_gateway(), suite, family=family, encap=encap)
    proposal = suite
    esp = pair.peer.esp(GOOD, number=77)
    least = 8 + proposal.iv_length + 2 + proposal.icv_length
    for length in range(8, len(esp)):
        if length < least:
            name = "esp_truncated"
        elif (length - 8 - proposal.iv_length - proposal.icv_length) % proposal.alignment:
            name = "esp_misaligned"
        else:
            name = "integrity"
        result = pair.gateway.receive([pair.peer.wrap(esp[:length])])
        assert (result.verdicts, result.drops) == ({name: 1}, {"in": {name: 1}}), length
    assert pair.gateway.receive([pair.peer.wrap(esp)]).packets == [GOOD]


@pytest.mark.parametrize("encap", [False, True], ids=["esp", "udp"])
def test_encapsulation_is_as_agreed(make_gateway: MakeGateway, encap: bool) -> None:
    """An SA with UDP encapsulation takes nothing else, and the reverse; so do the few bytes of keepalives."""
    for family in (4, 6):
        pair = Pair(make_gateway(), family=family, encap=encap)
        bad = pair.peer.wrap(pair.peer.esp(GOOD), encap=not encap)
        pair.receive("encap_mismatch", bad, sa="in")
        pair.receive("nat_keepalive", in_udp(pair.peer, b"\xff"))
        pair.receive("not_esp", in_udp(pair.peer, bytes(40)))


def test_outer_ipv6(make_gateway: MakeGateway) -> None:
    """Fragments, addresses and extension headers before ESP over IPv6."""
    pair = Pair(make_gateway(), family=6)
    peer = pair.peer
    pair.receive("fragment", in_fragment(peer, 0, 1))
    pair.receive("fragment", in_fragment(peer, 64))
    pair.receive("wrong_address", peer.wrap(peer.esp(GOOD), destination="2001:db8:f::7"), sa="in")
    pair.receive("wrong_address", ip4(peer.esp(GOOD), protocol=ESP), sa="in")
    # Destination options before ESP are legal (RFC 8200 section 4.1).
    behind = ip6(
        extension(ESP) + peer.esp(GOOD), source=peer.spec.remote, destination=peer.spec.local, protocol=60
    )
    assert pair.gateway.receive([behind]).packets == [GOOD]


@pytest.mark.parametrize("suite", SUITES, ids=suite_id)
def test_every_bit_of_the_icv(make_gateway: MakeGateway, suite: EspProposal) -> None:
    """Wrong by one bit in each byte of header, IV, ciphertext and ICV; then the packet itself still passes."""
    pair = Pair(make_gateway(), suite)
    esp = pair.peer.esp(GOOD)
    bad = []
    for at in range(4, len(esp)):
        changed = bytearray(esp)
        changed[at] ^= 0x80 if at % 2 else 0x01
        bad.append(pair.peer.wrap(bytes(changed)))
    good = pair.peer.wrap(esp)
    refused = pair.gateway.receive(bad[63:])
    assert set(refused.verdicts) <= {"integrity"}
    # The good one stands among them: engines that work on several packets at a time must not mix them up.
    bad = bad[:63]
    result = pair.gateway.receive([*bad[:30], good, *bad[30:]])
    assert result.packets == [GOOD]
    assert result.drops == {"in": {"integrity": len(bad)}}
    assert result.verdicts == {"pass": 1, "integrity": len(bad)}
    assert pair.gateway.replay_top("in") == 1


def test_padding_to_the_last_byte(make_gateway: MakeGateway) -> None:
    """Up to 255 bytes of padding, right; and wrong in each single byte."""
    pair = Pair(make_gateway())
    for length in range(255 - 28 % 4 + 1):
        if (28 + length + 2) % 4:
            continue
        right = bytes(range(1, length + 1))
        inner = ip4(bytes(8), protocol=253)
        assert pair.gateway.receive([pair.peer.packet(inner, padding=right)]).packets == [inner]
        for at in {0, length // 2, length - 1} if length else set():
            wrong = bytearray(right)
            wrong[at] ^= 0x40
            result = pair.gateway.receive([pair.peer.packet(inner, padding=bytes(wrong))])
            assert result.drops == {"in": {"padding": 1}}, (length, at)


def test_traffic_flow_padding(make_gateway: MakeGateway) -> None:
    """RFC 4303 section 2.7: what follows the inner packet within the payload is thrown away."""
    pair = Pair(make_gateway())
    for inner in (GOOD, udp_packet(6, b"six", source=SERVER6, destination=CLIENT6)):
        assert pair.gateway.receive([pair.peer.packet(inner + bytes(200))]).packets == [inner]


# --- selectors of the SA (RFC 4301 section 5.2) -------------------------------------------------------

SELECTORS = (
    SelectorSpec(
        local_first=ip_address("10.1.0.1"),
        local_last=ip_address("10.1.0.9"),
        remote_first=ip_address("10.2.0.0"),
        remote_last=ip_address("10.2.0.255"),
        protocol=UDP,
        local_ports=(5000, 5001),
        remote_ports=(4000, 4000),
    ),
    SelectorSpec(
        local_first=ip_address("2001:db8:1::1"),
        local_last=ip_address("2001:db8:1::9"),
        remote_first=ip_address("2001:db8:2::"),
        remote_last=ip_address("2001:db8:2:0:ffff:ffff:ffff:ffff"),
        protocol=TCP,
    ),
)


def test_selectors(make_gateway: MakeGateway) -> None:
    """Every field just inside and just outside, between packets that are inside."""
    pair = Pair(make_gateway(), selectors=(*SELECTORS, replace(ANY4, protocol=UDP, local_ports=(5000, 5000))))
    inside = {"source": "10.2.0.255", "destination": "10.1.0.9", "ports": (4000, 5001)}
    six = {"source": "2001:db8:2:0:ffff:ffff:ffff:ffff", "destination": "2001:db8:1::1"}

    def four(**changes: object) -> bytes:
        return udp_packet(4, b"x", **{**inside, **changes})

    good = [four(), four(source="10.2.0.0"), four(destination="10.1.0.1"), tcp_packet(6, **six)]
    good += [tcp_packet(6, **{**six, "source": "2001:db8:2::", "destination": "2001:db8:1::9"})]
    good += [ip6(b"", protocol=TCP, **six)]
    bad = [
        four(source="10.1.255.255"),
        four(source="10.3.0.0"),
        four(destination="10.1.0.0"),
        four(destination="10.1.0.10"),
        four(ports=(3999, 5001)),
        four(ports=(4001, 5001)),
        four(ports=(4000, 4999)),
        four(ports=(4000, 5002)),
        tcp_packet(4, source="10.2.0.1", destination="10.1.0.1", ports=(4000, 5001)),
        # A later fragment has no ports: only ANY takes it (RFC 4301 section 4.4.1.2).
        ip4(bytes(64), source="10.2.0.1", destination="10.1.0.1", offset=64),
        tcp_packet(6, **{**six, "source": "2001:db8:2:1::"}),
        tcp_packet(6, **{**six, "source": "2001:db8:1:ffff:ffff:ffff:ffff:ffff"}),
        tcp_packet(6, **{**six, "destination": "2001:db8:1::"}),
        tcp_packet(6, **{**six, "destination": "2001:db8:1::a"}),
        udp_packet(6, **six),
    ]
    for packet in good:
        assert pair.gateway.receive([pair.peer.packet(packet)]).packets == [packet]
    for packet in bad:
        batch = [pair.peer.packet(each) for each in (good[0], packet, good[0])]
        result = pair.gateway.receive(batch)
        check(result, "inner_selectors", "in")
        assert result.packets == [good[0]] * 2
    # Two in a row of one flow: the second must not slip through behind the first.
    result = pair.gateway.receive([pair.peer.packet(packet) for packet in (bad[0], bad[0], good[0], bad[1])])
    assert (result.verdicts, result.packets) == ({"pass": 1, "inner_selectors": 3}, [good[0]])


def test_same_flow_on_two_sas(make_gateway: MakeGateway) -> None:
    """One flow in a row, by turns on an SA that may carry it and on one that may not."""
    gateway = make_gateway()
    pair = Pair(gateway)
    other = replace(inbound_sa(CBC, seed=9), name="narrow", spi=0xD0000002, selectors=(SELECTORS[1],))
    gateway.add(other)
    peer = Peer(other)
    for pattern in ("ab", "ba", "aab", "bba", "abab", "baba", "abba", "bbaabb"):
        batch = [(pair.peer if turn == "a" else peer).packet(GOOD) for turn in pattern]
        result = gateway.receive(batch)
        assert result.packets == [GOOD] * pattern.count("a"), pattern
        assert result.drops == {"narrow": {"inner_selectors": pattern.count("b")}}, pattern
        assert result.passed["in"] == (pattern.count("a"), len(GOOD) * pattern.count("a"))


# --- replay -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suite", FOUR, ids=suite_id)
@pytest.mark.parametrize("esn", [False, True], ids=["sn", "esn"])
def test_replay(make_gateway: MakeGateway, suite: EspProposal, esn: bool) -> None:
    """Twice in one batch, again later, left of the window, far right of it with a right and a wrong ICV."""
    pair = Pair(make_gateway(), replace(suite, esn=esn), replay_window=64, sequence=1000)
    gateway, peer = pair.gateway, pair.peer

    def receive(*numbers: int) -> dict[str, int]:
        result = gateway.receive([peer.packet(GOOD, number=number) for number in numbers])
        assert result.packets == [GOOD] * result.verdicts["pass"]
        assert sum(result.drops.get("in", {}).values()) == len(numbers) - result.verdicts["pass"]
        return dict(result.verdicts)

    assert receive(1000, 1000) == {"pass": 1, "replay": 1}
    assert receive(1000) == {"replay": 1}
    assert receive(999) == {"replay": 1}  # below the start: counts as seen
    assert receive(1063, 1000, 1001) == {"pass": 2, "replay": 1}
    assert receive(1064) == {"pass": 1}
    # What has left the window counts as 2**32 later with ESN (RFC 4303 appendix A2.1), and its ICV is wrong.
    old = "integrity" if esn else "replay_old"
    assert receive(1000) == {old: 1}
    # A forged packet far ahead must not move the window ...
    wire = bytearray(peer.packet(GOOD, number=2**31 - 5))
    wire[-1] ^= 1
    assert gateway.receive([bytes(wire)]).drops == {"in": {"integrity": 1}}
    assert gateway.replay_top("in") == 1064
    assert receive(1065, 1002) == {"pass": 2}
    # ... and a true one does.
    assert receive(2**31 - 5) == {"pass": 1}
    assert receive(1066) == {old: 1}
    assert gateway.replay_top("in") == 2**31 - 5
    assert receive(2**31 - 6, 2**31 - 68, 2**31 - 69) == {
        "pass": 2,
        "replay_old" if not esn else "integrity": 1,
    }


def test_replay_off(make_gateway: MakeGateway) -> None:
    """Without a window everything with a good ICV passes, twice too."""
    pair = Pair(make_gateway(), replay_window=0)
    packet = pair.peer.packet(GOOD, number=5)
    assert pair.gateway.receive([packet, packet, pair.peer.packet(GOOD, number=1)]).verdicts == {"pass": 3}


def test_esn_across_the_half(make_gateway: MakeGateway) -> None:
    """The high half is never on the wire: around 2**32 either order of arrival is put right."""
    for suite in FOUR:
        pair = Pair(make_gateway(), replace(suite, esn=True), sequence=2**32 - 3)
        numbers = [2**32 - 3, 2**32 + 1, 2**32 - 1, 2**32, 2**32 + 5, 2**32 - 2]
        result = pair.gateway.receive([pair.peer.packet(GOOD, number=number) for number in numbers])
        assert result.verdicts == {"pass": 6}
        again = pair.gateway.receive([pair.peer.packet(GOOD, number=number) for number in numbers])
        assert again.verdicts == {"replay": 6}
        assert pair.gateway.replay_top("in") == 2**32 + 5
        # The same low half with another high one: the ICV tells.
        assert pair.gateway.receive([pair.peer.packet(GOOD, number=2 * 2**32 + 6)]).verdicts == {
            "integrity": 1
        }
        assert pair.gateway.receive([pair.peer.packet(GOOD, number=6)]).verdicts == {"integrity": 1}


# --- protected side -----------------------------------------------------------------------------------


def test_policies(make_gateway: MakeGateway) -> None:
    """No policy, discard, protect without SA; and bypass, which is no drop."""
    gateway = make_gateway()
    pair = Pair(gateway)

    def to(network: str) -> SelectorSpec:
        last = network.replace(".0.0", ".255.255")
        return replace(ANY4, remote_first=ip_address(network), remote_last=ip_address(last))

    gateway.set_policies(
        [
            PolicySpec(name="discard", action=Action.DISCARD, selector=to("10.3.0.0")),
            PolicySpec(name="later", action=Action.PROTECT, selector=to("10.4.0.0"), sa=None),
            PolicySpec(name="bypass", action=Action.BYPASS, selector=to("10.5.0.0")),
            PolicySpec(name="protect", action=Action.PROTECT, selector=to("10.2.0.0"), sa="out"),
        ]
    )
    pair.send("no_policy", udp_packet(4, destination="10.6.0.1"))
    pair.send("no_policy", udp_packet(6))
    pair.send("policy_discard", udp_packet(4, destination="10.3.255.255"))
    pair.send("policy_no_sa", udp_packet(4, destination="10.4.0.0"))
    clear = udp_packet(4, b"clear", destination="10.5.1.1")
    half = ip4(udp(b"half made", destination="10.5.1.1", half=True), destination="10.5.1.1")
    result = gateway.send([clear, GOOD_OUT, half])
    assert result.verdicts == {"bypassed": 2, "pass": 1}
    assert result.kernel == [clear, udp_packet(4, b"half made", destination="10.5.1.1")]


def test_no_route(make_gateway: MakeGateway) -> None:
    """What should go to the kernel, where there is no way to it: bypassed, without adjacency, without route."""
    gateway = make_gateway(kernel=False)
    pair = Pair(gateway)
    elsewhere = replace(ANY4, remote_first=ip_address("10.9.0.0"), remote_last=ip_address("10.9.255.255"))
    homeless = replace(outbound_sa(GCM), name="homeless", spi=0xC0000009)
    gateway.add(homeless, adjacency=False)
    gateway.set_policies(
        [
            PolicySpec(name="bypass", action=Action.BYPASS, selector=replace(elsewhere, protocol=UDP)),
            PolicySpec(name="protect", action=Action.PROTECT, selector=elsewhere, sa="homeless"),
            PolicySpec(name="rest", action=Action.PROTECT, selector=ANY4, sa="out"),
        ]
    )
    pair.send("no_route", udp_packet(4, destination="10.9.0.1"))
    result = gateway.send([tcp_packet(4, destination="10.9.0.1")])
    assert result.verdicts == {"no_route": 1}
    gateway.set_routes([RouteSpec(prefix=ip_network("0.0.0.0/0"), adjacency=None)])
    assert gateway.receive([pair.peer.packet(GOOD)]).verdicts == {"no_route": 1}


def test_to_kernel(make_gateway: MakeGateway) -> None:
    """The same with a kernel: the outer packet whole, and the decrypted one with its TTL as it came."""
    for link in (IP, ETHERNET):
        gateway = make_gateway(link=link)
        pair = Pair(gateway)
        homeless = replace(outbound_sa(CBC, family=6, encap=True), name="homeless", spi=0xC0000009)
        gateway.add(homeless, adjacency=False)
        gateway.set_policies([PolicySpec(name="all", action=Action.PROTECT, selector=ANY4, sa="homeless")])
        gateway.set_routes([RouteSpec(prefix=ip_network("0.0.0.0/0"), adjacency=None)])
        sent = gateway.send([GOOD_OUT])
        assert (sent.verdicts, sent.passed) == ({"to_kernel": 1}, {"homeless": (1, len(GOOD_OUT))})
        gateway.add(mirror(homeless, name="back"))
        received = gateway.receive(sent.kernel)
        ttl = 63 if link == ETHERNET else 64
        assert received.kernel == [udp_packet(4, b"good", ttl=ttl)]
        assert gateway.receive([pair.peer.packet(GOOD)]).kernel == [GOOD]


def test_no_room(make_gateway: MakeGateway) -> None:
    """Frames too full or too far at their beginning: dropped before a number is spent."""
    pair = Pair(make_gateway(mtu=9000))
    pair.send("headroom", udp_packet(4, bytes(1720)), sa="out")
    assert pair.gateway.sequence("out")[0] == 3
    gateway = make_gateway(headroom=64)
    gateway.add(outbound_sa(GCM))
    gateway.protect("out")
    result = gateway.send([GOOD_OUT])
    assert result.drops == {"out": {"headroom": 1}}


def test_full_ports(make_gateway: MakeGateway) -> None:
    """A port that takes no more: the rest is dropped by name and every frame comes back."""
    pair = Pair(make_gateway(capacity=64))
    gateway = pair.gateway
    gateway.lan.inject([GOOD_OUT] * 64)
    gateway.loop.step()
    gateway.lan.inject([GOOD_OUT] * 3)
    gateway.loop.step()
    assert len(gateway.wan.collect()) == 64
    assert gateway.pool.free_count == gateway.pool.frame_count
    drops = dict(
        zip(DROP_NAMES.values(), gateway.tables.workers[0]["verdicts"][list(DROP_NAMES)], strict=True)
    )
    assert {name for name, count in drops.items() if count} == {"tx_full"} and drops["tx_full"] == 3
    gateway.set_routes([])
    for _ in range(2):
        gateway.wan.inject([pair.peer.packet(GOOD) for _ in range(40)])
        gateway.loop.step()
    assert gateway.kernel is not None and len(gateway.kernel.collect()) == 64
    assert gateway.pool.free_count == gateway.pool.frame_count
    assert (
        gateway.tables.workers[0]["verdicts"][next(n for n, name in DROP_NAMES.items() if name == "kernel")]
        == 16
    )


#: Drops that have tests of their own.
OWN: dict[str, Callable[..., None]] = {
    "replay": test_replay,
    "inner_selectors": test_selectors,
    "no_policy": test_policies,
    "policy_discard": test_policies,
    "policy_no_sa": test_policies,
    "no_route": test_no_route,
    "headroom": test_no_room,
    "tx_full": test_full_ports,
    "kernel": test_full_ports,
    "not_ip": test_bad_headers.test_link_header,
    "vlan": test_bad_headers.test_link_header,
}
#: And those of rules with a file of their own: test_forwarding.py, test_sequence.py, test_cleartext.py, test_deal.py.
RULES = {
    "ttl",
    "too_big",
    "icmp_limit",
    "ecn",
    "sequence_exhausted",
    "sequence_unreserved",
    "cleartext",
    "worker_lost",
}


def test_every_drop_has_its_test() -> None:
    """No enumerator without a case above."""
    cases = {name for name, *_ in HEADERS} | {name for name, *_ in OUTER}
    assert cases | set(OWN) | set(ELSEWHERE) | RULES == set(DROP_NAMES.values())
    assert not RULES & cases and not set(ELSEWHERE) & (cases | set(OWN))
