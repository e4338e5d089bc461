"""Longest prefix plus candidates equals a scan of the ordered SPD (RFC 4301 section 4.4.1)."""

from ipaddress import IPv4Address, IPv4Network, ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.layout import NO_INDEX
from dataplane.model import Action, PolicySpec, RouteSpec, SelectorSpec
from dataplane.spd import cover, policy_entries, route_entries, selector_family

BITS = 8


@given(st.integers(0, 255), st.integers(0, 255))
def test_cover_is_exact_and_disjoint(one: int, other: int) -> None:
    first, last = min(one, other), max(one, other)
    seen = [
        a for base, length in cover(first, last, BITS) for a in range(base, base + (1 << (BITS - length)))
    ]
    assert seen == list(range(first, last + 1))
    assert len(list(cover(first, last, BITS))) <= 2 * BITS - 2 or (first, last) == (0, 255)


def test_cover_of_everything_is_one_prefix() -> None:
    assert list(cover(0, 2**32 - 1, 32)) == [(0, 0)]
    assert list(cover(0, 2**128 - 1, 128)) == [(0, 0)]


def address(value: int) -> IPv4Address:
    return IPv4Address((10 << 24) + value)


@st.composite
def policies(draw: st.DrawFn) -> PolicySpec:
    remote = sorted(draw(st.tuples(st.integers(0, 63), st.integers(0, 63))))
    local = draw(st.sampled_from([(IPv4Address(0), IPv4Address(2**32 - 1)), (address(0), address(7))]))
    return PolicySpec(
        name="p",
        action=Action.DISCARD,
        selector=SelectorSpec(
            local_first=local[0],
            local_last=local[1],
            remote_first=address(remote[0]),
            remote_last=address(remote[1]),
            protocol=draw(st.sampled_from([0, 6])),
        ),
    )


def matches(policy: PolicySpec, source: int, destination: int, protocol: int) -> bool:
    s = policy.selector
    return (
        int(s.local_first) <= source <= int(s.local_last)
        and int(s.remote_first) <= destination <= int(s.remote_last)
        and s.protocol in (0, protocol)
    )


@settings(max_examples=150, deadline=None)
@given(st.lists(policies(), max_size=12))
def test_lookup_equals_ordered_scan(spd: list[PolicySpec]) -> None:
    entries, flat = policy_entries(spd, 1000, 10**6)
    for destination in range((10 << 24) - 1, (10 << 24) + 65):
        hits = [e for e in entries if (destination ^ e[2]) >> (32 - e[3]) == 0]
        best = max(hits, key=lambda e: e[3], default=None)
        for source, protocol in (((10 << 24) + 3, 6), ((10 << 24) + 3, 17), (1, 6), (1, 17)):
            wanted = next((i for i, p in enumerate(spd) if matches(p, source, destination, protocol)), None)
            found = None
            at = best[4] if best else None
            while at is not None and flat[at] != NO_INDEX:
                if matches(spd[flat[at] - 1000], source, destination, protocol):
                    found = flat[at] - 1000
                    break
                at += 1
            assert found == wanted


def test_lists_that_multiply_are_an_error() -> None:
    everywhere = SelectorSpec.from_networks(ip_network("10.0.0.0/8"), ip_network("0.0.0.0/0"))  # type: ignore[arg-type]
    wide = [PolicySpec(name=f"w{i}", action=Action.BYPASS, selector=everywhere) for i in range(100)]
    narrow = [
        PolicySpec(
            name=f"n{i}",
            action=Action.BYPASS,
            selector=SelectorSpec.from_networks(IPv4Network("10.0.0.0/8"), IPv4Network((i << 8, 32))),
        )
        for i in range(100)
    ]
    with pytest.raises(OverflowError, match="more than 5000 candidates"):
        policy_entries(wide + narrow, 0, 5000)


def test_selector_faults_are_named() -> None:
    a, b = ip_address("10.0.0.1"), ip_address("2001:db8::1")
    with pytest.raises(ValueError, match="mixes IPv4 and IPv6"):
        selector_family(SelectorSpec(local_first=a, local_last=a, remote_first=b, remote_last=b))
    with pytest.raises(ValueError, match="remote ports range is upside down"):
        selector_family(
            SelectorSpec(local_first=a, local_last=a, remote_first=a, remote_last=a, remote_ports=(2, 1))
        )


def test_routes_keep_their_values_and_refuse_twins() -> None:
    route = RouteSpec(prefix=ip_network("10.1.0.0/16"), adjacency=None)
    six = RouteSpec(prefix=ip_network("2001:db8::/32"), adjacency=None)
    assert route_entries([route, six], [7, NO_INDEX]) == [
        (4, 0, 0x0A010000, 16, 7),
        (6, 0x20010DB800000000, 0, 32, NO_INDEX),
    ]
    with pytest.raises(ValueError, match=r"10\.1\.0\.0/16 is given twice"):
        route_entries([route, route], [1, 2])
