"""Address pools and the configuration payload: who gets which address, and what clients are told."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.ike import configuration
from control.ike.errors import PeerError
from control.ike.numbers import CfgAttribute, NotifyType
from control.ike.pools import Pools
from control.ike.settings import PoolSettings
from control.ike.wire.configuration import Attribute, build_attributes, parse_attributes


def pool(name: str = "rw", *ranges: str, **rest: object) -> PoolSettings:
    """A pool of "first-last" ranges."""
    pairs = tuple(
        (ip_address(first), ip_address(last))
        for first, last in (text.split("-") for text in ranges or ("10.9.0.1-10.9.0.3",))
    )
    return PoolSettings(name=name, ranges=pairs, **rest)  # type: ignore[arg-type]


def test_leases_are_sticky() -> None:
    """Who comes back gets the old address, even when it is not the lowest free one."""
    pools = Pools([pool()])
    first, second = (pools.lease(("rw",), 4, who) for who in ("alice", "bob"))
    assert (str(first), str(second)) == ("10.9.0.1", "10.9.0.2")
    pools.release(first)
    pools.release(second)
    assert pools.lease(("rw",), 4, "bob") == second
    assert pools.lease(("rw",), 4, "carol") == ip_address("10.9.0.3")
    assert pools.lease(("rw",), 4, "alice") == first


def test_longest_given_back_is_taken_when_all_were_lent() -> None:
    """Stickiness yields to need, the oldest memory first."""
    pools = Pools([pool()])
    addresses = [pools.lease(("rw",), 4, who) for who in ("a", "b", "c")]
    for index in (1, 0, 2):
        pools.release(addresses[index])
    assert pools.lease(("rw",), 4, "new") == addresses[1]
    assert pools.lease(("rw",), 4, "c") == addresses[2]
    assert pools.lease(("rw",), 4, "b") == addresses[0]


def test_exhausted_pool_says_what_it_has() -> None:
    """The refusal names who asked, the pool, its size and ranges."""
    pools = Pools([pool()])
    for who in "abc":
        pools.lease(("rw",), 4, who)
    with pytest.raises(PeerError) as raised:
        pools.lease(("rw",), 4, "dave")
    assert raised.value.notify == NotifyType.INTERNAL_ADDRESS_FAILURE
    assert raised.value.text == (
        "'dave' asks for an IPv4 address: all 3 IPv4 addresses of pool 'rw' (10.9.0.1-10.9.0.3) are lent"
    )
    with pytest.raises(PeerError, match="pool 'rw' has no IPv6 addresses"):
        pools.lease(("rw",), 6, "dave")
    with pytest.raises(PeerError, match="no pool is configured"):
        pools.lease((), 4, "dave")


def test_next_pool_helps_out() -> None:
    """Pools are asked in the connection's order."""
    pools = Pools([pool("small", "10.1.0.1-10.1.0.1"), pool("large", "10.2.0.1-10.2.255.254")])
    assert str(pools.lease(("small", "large"), 4, "a")) == "10.1.0.1"
    assert str(pools.lease(("small", "large"), 4, "b")) == "10.2.0.1"


def test_the_address_asked_for() -> None:
    """It is given when it is free, and is another one when somebody has it, or it is not ours."""
    pools = Pools([pool()])
    assert str(pools.lease(("rw",), 4, "a", ip_address("10.9.0.3"))) == "10.9.0.3"
    assert str(pools.lease(("rw",), 4, "b", ip_address("10.9.0.3"))) == "10.9.0.1"
    assert str(pools.lease(("rw",), 4, "c", ip_address("192.0.2.1"))) == "10.9.0.2"


def test_reauthentication_keeps_the_address() -> None:
    """The same client asks for what it still has: it is free when both IKE SAs are gone."""
    pools = Pools([pool()])
    address = pools.lease(("rw",), 4, "a")
    assert pools.lease(("rw",), 4, "a", address) == address
    pools.release(address)
    assert pools.status[0].online == 1
    assert pools.lease(("rw",), 4, "b", address) != address
    pools.release(address)
    assert pools.status[0].online == 1  # b's own


def test_one_identity_on_two_devices() -> None:
    """Each gets its own, where it does not ask for the other's."""
    pools = Pools([pool()])
    assert pools.lease(("rw",), 4, "a") != pools.lease(("rw",), 4, "a")


def test_ipv6_and_large_pools() -> None:
    """A /64 costs nothing."""
    pools = Pools([pool("six", "2001:db8::1-2001:db8::ffff:ffff:ffff:ffff")])
    assert str(pools.lease(("six",), 6, "a")) == "2001:db8::1"
    assert pools.status[0].size == 2**64 - 1


def test_another_configuration_keeps_leases() -> None:
    """Those whose addresses are still there; nobody gets an address that somebody has."""
    pools = Pools([pool()])
    kept, lost = pools.lease(("rw",), 4, "a"), pools.lease(("rw",), 4, "b", ip_address("10.9.0.3"))
    pools.set([pool("rw", "10.9.0.1-10.9.0.2")])
    assert pools.lease(("rw",), 4, "c") == ip_address("10.9.0.2")
    pools.release(lost)
    pools.release(kept)
    assert pools.lease(("rw",), 4, "a") == kept


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.booleans()), max_size=60))
def test_nobody_shares(steps: list[tuple[str, bool]]) -> None:
    """Whatever comes and goes, no address is lent to two identities, and none is lost."""
    pools = Pools([pool("rw", "10.9.0.1-10.9.0.4")])
    held: list[tuple[str, object]] = []
    for who, come in steps:
        if come:
            try:
                held.append((who, pools.lease(("rw",), 4, who)))
            except PeerError:
                assert len(held) == 4
        elif held:
            pools.release(held.pop(0)[1])  # type: ignore[arg-type]
        assert len({address for _, address in held}) == len(held) == pools.status[0].online


def test_request_and_answer() -> None:
    """A client asks for both families; it is lent addresses and told DNS, domains and networks; and reads that."""
    settings = pool(
        "rw",
        "10.9.0.1-10.9.0.9",
        "fd00::1-fd00::9",
        dns=(ip_address("10.0.0.53"), ip_address("fd00::53")),
        domains=("corp.example",),
        split=(ip_network("10.0.0.0/8"), ip_network("fd00::/48")),
    )
    wanted = (ip_address("0.0.0.0"), ip_address("::"))
    asked = configuration.request(wanted)
    assert asked[0] == Attribute(type=CfgAttribute.INTERNAL_IP4_ADDRESS)
    granted = configuration.answer(Pools([settings]), ("rw",), asked, "carol")
    assert granted.addresses == (ip_address("10.9.0.1"), ip_address("fd00::1"))
    _, attributes = parse_attributes(build_attributes(2, granted.attributes))
    got = configuration.read_reply(attributes, wanted)
    assert got.addresses == granted.addresses
    assert got.dns == settings.dns
    assert got.domains == ("corp.example",)
    assert got.subnets == settings.split


def test_one_family_is_enough() -> None:
    """A pool without IPv6 lends IPv4 to a client that asks for both, and tells nothing of IPv6."""
    wanted = (ip_address("0.0.0.0"), ip_address("::"))
    settings = pool(dns=(ip_address("10.0.0.53"), ip_address("fd00::53")))
    granted = configuration.answer(Pools([settings]), ("rw",), configuration.request(wanted), "carol")
    assert granted.addresses == (ip_address("10.9.0.1"),)
    assert configuration.read_reply(granted.attributes, wanted).dns == (ip_address("10.0.0.53"),)


def test_reply_without_address() -> None:
    """The client says what it asked for."""
    with pytest.raises(PeerError, match="we asked for an IPv4 address; the server's CFG_REPLY has none"):
        configuration.read_reply((), (ip_address("0.0.0.0"),))


@pytest.mark.parametrize("address", ["127.0.0.1", "224.0.0.1", "255.255.255.255", "::1", "ff02::1"])
def test_addresses_that_no_host_has(address: str) -> None:
    """A server lends none of these: an interface of this host would get it."""
    lent = ip_address(address)
    kind = CfgAttribute.INTERNAL_IP4_ADDRESS if lent.version == 4 else CfgAttribute.INTERNAL_IP6_ADDRESS
    reply = (Attribute(type=kind, value=lent.packed + (b"\x40" if lent.version == 6 else b"")),)
    with pytest.raises(PeerError, match="the server's CFG_REPLY has none"):
        configuration.read_reply(reply, (ip_address("0.0.0.0" if lent.version == 4 else "::"),))


@pytest.mark.parametrize("value", [b"a b", b"\xff", b"a" * 256, b"x\n"])
def test_domains_that_are_none(value: bytes) -> None:
    """What goes into a resolver's file is checked."""
    address = Attribute(type=CfgAttribute.INTERNAL_IP4_ADDRESS, value=bytes([10, 0, 0, 1]))
    domain = Attribute(type=CfgAttribute.INTERNAL_DNS_DOMAIN, value=value)
    with pytest.raises(PeerError, match="no domain name"):
        configuration.read_reply((address, domain), (ip_address("0.0.0.0"),))
