"""The configuration payload between two endpoints: addresses lent, told, kept over a rekeying, and given back."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from control.ike.events import ChildEstablished, IkeEstablished, VirtualAddressesAssigned
from control.ike.identity import Identity
from control.ike.pools import Pools
from control.ike.settings import AuthSettings, ChildSettings, PoolSettings, TrafficSelector
from control.ike.v2 import configure
from tests.control.ike.pair import Pair, connection_a, esp, ike, mirror

ANY = (ip_address("0.0.0.0"),)
POOL = PoolSettings(
    name="office",
    ranges=((ip_address("10.9.0.1"), ip_address("10.9.0.2")),),
    dns=(ip_address("10.0.0.53"),),
    domains=("corp.example",),
    split=(ip_network("10.0.0.0/8"),),
)


def roadwarrior(pools: Pools | None = None, **rest: Any) -> Pair:
    """A asks B for an address, and for 10.0.0.0/8 behind B."""
    settings = ChildSettings(
        name="net",
        proposals=esp("aes128gcm16"),
        local=(TrafficSelector(),),
        remote=(TrafficSelector(network=ip_network("10.0.0.0/8")),),
    )
    a = connection_a(children=(settings,), virtual_addresses=ANY, **rest)
    b = mirror(a, name="b-a", pools=("office",), virtual_addresses=())
    return Pair(a=a, b=b, pools_b=pools if pools is not None else Pools([POOL]))


def test_address_is_lent() -> None:
    """Told before the child that uses it; the child is between the address and the network behind B."""
    pair = roadwarrior().up()
    [lent] = pair.a.of(VirtualAddressesAssigned)
    assert lent.addresses == (ip_address("10.9.0.1"),)
    assert lent.dns == POOL.dns
    assert lent.domains == POOL.domains
    assert lent.networks == POOL.split
    order = [
        type(event)
        for event in pair.a.log
        if isinstance(event, IkeEstablished | VirtualAddressesAssigned | ChildEstablished)
    ]
    assert order == [IkeEstablished, VirtualAddressesAssigned, ChildEstablished]
    pair.check_children()
    [child] = pair.a.sending.values()
    [selector] = child.local_selectors
    assert selector.first == selector.last == ip_address("10.9.0.1")
    [selector] = child.remote_selectors
    assert (str(selector.first), str(selector.last)) == ("10.0.0.0", "10.255.255.255")
    assert pair.b.endpoint.snapshot()[0].virtual_remote == lent.addresses


def test_address_is_given_back() -> None:
    """When the IKE SA is deleted; the same client gets it again."""
    pools = Pools([POOL])
    pair = roadwarrior(pools).up()
    assert pools.status[0].online == 1
    pair.a.endpoint.terminate_ike(pair.a.ikes[0], pair.now)
    pair.run()
    assert pair.b.ikes == []
    assert (pools.status[0].online, pools.status[0].remembered) == (0, 1)
    pair.initiate()
    pair.run()
    assert [event.addresses for event in pair.a.of(VirtualAddressesAssigned)] == [
        (ip_address("10.9.0.1"),)
    ] * 2


def test_rekeying_keeps_the_address() -> None:
    """The successor has it, on both sides, and gives it back in the end."""
    pools = Pools([POOL])
    pair = roadwarrior(pools).up()
    pair.a.endpoint.rekey_ike(pair.a.ikes[0], pair.now)
    pair.run()
    assert len(pair.a.rekeyed) == len(pair.b.rekeyed) == 1
    assert pools.status[0].online == 1
    assert pair.b.endpoint.snapshot()[0].virtual_remote == (ip_address("10.9.0.1"),)
    assert pair.a.endpoint.snapshot()[0].virtual_local == (ip_address("10.9.0.1"),)
    pair.a.endpoint.terminate_ike(pair.a.ikes[0], pair.now)
    pair.run()
    assert pools.status[0].online == 0


def test_exhausted_pool() -> None:
    """The IKE SA stands without a child; both sides say why."""
    pools = Pools([POOL])
    pools.lease(("office",), 4, "x")
    pools.lease(("office",), 4, "y")
    pair = roadwarrior(pools).up()
    assert pair.a.children == pair.b.children == {}
    assert pair.a.of(VirtualAddressesAssigned) == []
    [text] = pair.b.failures
    assert "'a.example' asks for an IPv4 address: all 2 IPv4 addresses of pool 'office'" in text
    [text] = pair.a.failures
    assert text == (
        "the peer lends no address, so there is no child 'net': we asked for one; "
        "see the peer's log: its pool may be exhausted, or its connection has none"
    )


def test_server_without_pool() -> None:
    """A client that asks is told that there is nothing."""
    a = roadwarrior().a.endpoint.connections[0]
    pair = Pair(a=a, b=mirror(a, name="b-a", virtual_addresses=())).up()
    assert pair.a.children == {}
    assert "no pool is configured" in pair.b.failures[0]


def test_a_child_without_the_address_that_was_wanted_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server has installed it, and would send into it (RFC 7296 section 1.4.1)."""
    monkeypatch.setattr(configure, "grant", lambda *rest: None)
    client = connection_a(virtual_addresses=(ip_address("0.0.0.0"),))
    pair = Pair(a=client, b=mirror(replace(client, virtual_addresses=()), name="b-a"))
    pair.initiate()
    pair.run(2.0)
    assert pair.b.of(ChildEstablished) and pair.a.failures
    assert not pair.a.children and not pair.b.children
    assert len(pair.a.ikes) == len(pair.b.ikes) == 1
    assert not pair.a.endpoint.registry.child_spis


def test_two_clients_have_two_addresses() -> None:
    """Whoever they are; identities keep their own."""
    pools = Pools([POOL])
    first = roadwarrior(pools).up()
    second = roadwarrior(
        pools,
        local=AuthSettings(identity=Identity.parse("other.example")),
        proposals=ike("aes128gcm16-prfsha256-x25519"),
    )
    second.up()
    lent = [pair.a.of(VirtualAddressesAssigned)[0].addresses[0] for pair in (first, second)]
    assert [str(address) for address in lent] == ["10.9.0.1", "10.9.0.2"]
