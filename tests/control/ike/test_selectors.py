"""Traffic selectors: resolved, narrowed, refused with both sides' view, and handed to the dataplane."""

from __future__ import annotations

import random
import re
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.ike.numbers import NotifyType
from control.ike.selectors import (
    MAX_PAIRS,
    MAX_SELECTORS,
    Narrowed,
    TsUnacceptable,
    accept_narrowed,
    contains,
    everything,
    from_settings,
    intersect,
    narrow,
    resolve,
    show,
    show_both,
    to_settings,
    with_packet,
)
from control.ike.settings import TrafficSelector
from control.ike.wire import WireSelector
from control.sa.selectors import pairs
from tests.ike_messages import selector as any_selector

PROTOCOLS = {"tcp": 6, "udp": 17, "icmp": 1}


def ts(text: str) -> WireSelector:
    """ "10.1.0.0/16[tcp/80-90]", a range "10.0.0.1..10.0.0.9", and so on."""
    found = re.fullmatch(r"([^\[]+)(?:\[(\w+)(?:/(\w+)(?:-(\d+))?)?\])?", text)
    assert found is not None
    if ".." in found[1]:
        first, last = map(ip_address, found[1].split(".."))
    else:
        network = ip_network(found[1])
        first, last = network.network_address, network.broadcast_address
    ports = (0, 65535)
    if found[3] == "opaque":
        ports = (65535, 0)
    elif found[3]:
        ports = (int(found[3]), int(found[4] or found[3]))
    return WireSelector(first=first, last=last, protocol=PROTOCOLS.get(found[2], 0), ports=ports)


def all_ts(text: str) -> list[WireSelector]:
    return [ts(each) for each in text.split()]


def narrowed(asked: str, allowed: str) -> Narrowed:
    """Both as "local === remote"."""
    asked_local, asked_remote = asked.split("===")
    allowed_local, allowed_remote = allowed.split("===")
    return narrow(
        asked_local=all_ts(asked_local),
        asked_remote=all_ts(asked_remote),
        allowed_local=all_ts(allowed_local),
        allowed_remote=all_ts(allowed_remote),
    )


BOTH = "10.1.0.0/16, 2001:db8:1::/48 === 10.2.0.0/16, 2001:db8:2::/48"


@pytest.mark.parametrize(
    ("asked", "allowed", "chosen", "cut"),
    [
        ("10.1.0.0/16 === 10.2.0.0/16", "10.1.0.0/16 === 10.2.0.0/16", "10.1.0.0/16 === 10.2.0.0/16", False),
        ("0.0.0.0/0 === 0.0.0.0/0", "10.1.0.0/16 === 10.2.0.0/16", "10.1.0.0/16 === 10.2.0.0/16", True),
        ("10.1.5.0/24 === 10.2.0.0/16", "10.1.0.0/16 === 0.0.0.0/0", "10.1.5.0/24 === 10.2.0.0/16", False),
        (
            "10.1.0.7 10.1.0.0/16 === 10.2.0.9 10.2.0.0/16",
            "10.1.0.0/16 === 10.2.0.0/16",
            "10.1.0.0/16 === 10.2.0.0/16",
            False,
        ),
        # Of the two networks one is ours: the packet's addresses come with it.
        (
            "10.1.0.7 10.0.0.0/8 === 10.2.0.0/16",
            "10.1.0.0/16 === 10.2.0.0/16",
            "10.1.0.0/16 === 10.2.0.0/16",
            True,
        ),
        (
            "10.1.0.0/16[tcp] === 10.2.0.0/16[tcp/80]",
            "10.1.0.0/16 === 10.2.0.0/16",
            "10.1.0.0/16[tcp] === 10.2.0.0/16[tcp/80]",
            False,
        ),
        (
            "10.1.0.0/16 === 10.2.0.0/16",
            "10.1.0.0/16[udp/53] === 10.2.0.0/16[udp]",
            "10.1.0.0/16[udp/53] === 10.2.0.0/16[udp]",
            True,
        ),
        (
            "10.1.0.0/16[udp/50-60] === 10.2.0.0/16",
            "10.1.0.0/16[udp/55-70] === 10.2.0.0/16",
            "10.1.0.0/16[udp/55-60] === 10.2.0.0/16",
            True,
        ),
        (
            "0.0.0.0/0 ::/0 === 0.0.0.0/0 ::/0",
            "10.1.0.0/16 === 10.2.0.0/16 2001:db8::/32",
            "10.1.0.0/16 === 10.2.0.0/16",
            True,
        ),
        (
            "10.1.0.0/16 2001:db8:1::/48 === 10.2.0.0/16 2001:db8:2::/48",
            "0.0.0.0/0 ::/0 === 0.0.0.0/0 ::/0",
            BOTH,
            False,
        ),
        (
            "10.1.0.5..10.1.0.20 === 10.2.0.0/16",
            "10.1.0.0/28 === 10.2.0.0/16",
            "10.1.0.5..10.1.0.15 === 10.2.0.0/16",
            True,
        ),
    ],
)
def test_narrowing(asked: str, allowed: str, chosen: str, cut: bool) -> None:
    found = narrowed(asked, allowed)
    assert show_both(found.local, found.remote) == chosen
    assert found.cut == cut


@pytest.mark.parametrize(
    ("asked", "allowed", "why"),
    [
        ("10.9.0.0/16 === 10.2.0.0/16", "10.1.0.0/16 === 10.2.0.0/16", "our side differs"),
        ("10.1.0.0/16 === 10.9.0.0/16", "10.1.0.0/16 === 10.2.0.0/16", "the peer's side differs"),
        (
            "10.9.0.0/16 === 10.9.0.0/16",
            "10.1.0.0/16 === 10.2.0.0/16",
            "neither side's addresses are allowed",
        ),
        ("10.1.0.0/16 === 10.2.0.0/16[tcp]", "10.1.0.0/16 === 10.2.0.0/16[udp]", "the peer's side differs"),
        ("10.1.0.0/16[tcp/1-9] === 10.2.0.0/16", "10.1.0.0/16[tcp/10] === 10.2.0.0/16", "our side differs"),
        (
            "10.1.0.0/16 === 2001:db8::/32",
            "0.0.0.0/0 ::/0 === 0.0.0.0/0 ::/0",
            "what is common has different address",
        ),
        (
            "10.1.0.0/16[udp] === 10.2.0.0/16[tcp]",
            "0.0.0.0/0 === 0.0.0.0/0",
            "what is common has different address",
        ),
        (
            "10.1.0.0/16[tcp/opaque] === 10.2.0.0/16",
            "10.1.0.0/16[tcp/1-9] === 10.2.0.0/16",
            "our side differs",
        ),
    ],
)
def test_refusals(asked: str, allowed: str, why: str) -> None:
    with pytest.raises(TsUnacceptable) as caught:
        narrowed(asked, allowed)
    assert caught.value.notify == NotifyType.TS_UNACCEPTABLE
    assert caught.value.text.endswith(
        why if "family" in why else caught.value.text[caught.value.text.index(why) :]
    )


def test_refusal_word_for_word() -> None:
    with pytest.raises(TsUnacceptable) as caught:
        narrow(
            asked_local=all_ts("10.9.0.0/16"),
            asked_remote=all_ts("10.2.0.0/16"),
            allowed_local=all_ts("10.1.0.0/16 10.3.0.0/16[tcp/80]"),
            allowed_remote=all_ts("10.2.0.0/16"),
            whose="child 'net' of connection 'branch'",
        )
    assert str(caught.value) == (
        "traffic selectors unacceptable: the peer asks for 10.9.0.0/16 === 10.2.0.0/16; "
        "child 'net' of connection 'branch' allows 10.1.0.0/16, 10.3.0.0/16[tcp/80] === 10.2.0.0/16 "
        "(ours === the peer's); our side differs; "
        "set the peer's local_ts to 10.2.0.0/16 and its remote_ts to 10.1.0.0/16, 10.3.0.0/16[tcp/80]"
    )


def test_dynamic() -> None:
    four, six = ip_address("192.0.2.1"), ip_address("2001:db8::1")
    configured = (
        TrafficSelector(protocol=17, ports=(53, 53)),
        TrafficSelector(network=ip_network("10.1.0.0/16")),
        TrafficSelector(first=four, last=four),
    )
    shown = [str(each) for each in resolve(configured, (four, six))]
    assert shown == ["192.0.2.1[udp/53]", "2001:db8::1[udp/53]", "10.1.0.0/16", "192.0.2.1"]
    assert resolve((TrafficSelector(),), (ip_address("0.0.0.0"), ip_address("::"))) == (
        everything(4),
        everything(6),
    )
    assert resolve((TrafficSelector(),), ()) == ()


def test_the_packet_goes_first() -> None:
    wide = all_ts("10.1.0.0/16")
    assert with_packet(wide, ts("10.1.0.7[tcp/80]")) == (ts("10.1.0.7[tcp/80]"), *wide)
    assert with_packet(wide, ts("10.9.0.7")) == tuple(wide)  # not what this child is for
    assert with_packet(wide, None) == tuple(wide)


def test_answers() -> None:
    asked = {"asked_local": all_ts("10.1.0.0/16"), "asked_remote": all_ts("10.2.0.0/16 10.3.0.0/16")}
    answer = accept_narrowed(
        answered_local=all_ts("10.1.0.0/24"), answered_remote=all_ts("10.3.0.0/16"), **asked
    )
    assert show_both(answer.local, answer.remote) == "10.1.0.0/24 === 10.3.0.0/16"
    wider = accept_narrowed(
        answered_local=all_ts("0.0.0.0/0"), answered_remote=all_ts("10.2.0.0/16"), **asked
    )
    assert show_both(wider.local, wider.remote) == "10.1.0.0/16 === 10.2.0.0/16"
    with pytest.raises(
        TsUnacceptable, match=r"answered 10\.1\.0\.0/16 === 10\.9\.0\.0/16, which is not in it"
    ):
        accept_narrowed(answered_local=all_ts("10.1.0.0/16"), answered_remote=all_ts("10.9.0.0/16"), **asked)


@given(st.integers(0, 2**32))
def test_intersections(seed: int) -> None:
    chance = random.Random(seed)
    one, other = any_selector(chance), any_selector(chance)
    both = intersect(one, other)
    assert both == intersect(other, one)
    if both is not None:
        assert contains(one, both) and contains(other, both)
        assert contains(both, one) == (both == one)
    assert intersect(one, one) == one
    assert resolve(to_settings([one]), ()) == from_settings(to_settings([one])) == (one,)


@given(st.integers(0, 2**32))
def test_what_is_chosen_was_asked_for_and_is_allowed(seed: int) -> None:
    chance = random.Random(seed)
    sides = [[any_selector(chance) for _ in range(chance.randrange(1, 6))] for _ in range(4)]
    try:
        found = narrow(
            asked_local=sides[0], asked_remote=sides[1], allowed_local=sides[2], allowed_remote=sides[3]
        )
    except TsUnacceptable:
        return
    for chosen, asked, allowed in ((found.local, sides[0], sides[2]), (found.remote, sides[1], sides[3])):
        assert chosen
        for each in chosen:
            assert any(contains(one, each) for one in asked) and any(contains(one, each) for one in allowed)
    assert pairs(to_settings(found.local), to_settings(found.remote))


def test_a_greedy_peer_gets_little() -> None:
    hosts = [ts(f"10.1.{number}.1") for number in range(255)]
    found = narrow(
        asked_local=hosts, asked_remote=hosts, allowed_local=[everything(4)], allowed_remote=[everything(4)]
    )
    assert found.cut
    assert len(found.local) <= MAX_SELECTORS and len(found.local) * len(found.remote) <= MAX_PAIRS
    assert found.local[0] == found.remote[0] == hosts[0]
    assert show(hosts).endswith("10.1.7.1 and 247 more")


def test_for_the_dataplane() -> None:
    specs = pairs(
        to_settings(all_ts("10.1.0.0/16 2001:db8:1::/48 10.3.0.0/16[tcp]")),
        to_settings(all_ts("10.2.0.0/16[tcp/80] 2001:db8:2::/48 10.4.0.0/16[udp]")),
    )
    shown = [
        (str(each.local_first), str(each.remote_last), each.protocol, each.remote_ports) for each in specs
    ]
    assert shown == [
        ("10.1.0.0", "10.2.255.255", 6, (80, 80)),
        ("10.1.0.0", "10.4.255.255", 17, (0, 65535)),
        ("2001:db8:1::", "2001:db8:2:ffff:ffff:ffff:ffff:ffff", 0, (0, 65535)),
        ("10.3.0.0", "10.2.255.255", 6, (80, 80)),
    ]
