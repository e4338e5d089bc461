"""Transport mode negotiated: both must want it, between the two hosts alone, each with its own addresses by a NAT.

A 192.0.2.1 ---- NAT, seen as 198.51.100.7 ---- B 192.0.2.2          RFC 7296 sections 1.3.1 and 2.23.1
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from control.ike.events import ChildSa, Datagram
from control.ike.settings import ChildSettings, Connection, TrafficSelector
from dataplane.model import Mode
from tests.control.ike.pair import (
    ADDRESS_A,
    ADDRESS_B,
    ESP_PROPOSAL,
    Pair,
    Side,
    Wire,
    connection_a,
    esp,
    mirror,
)

PUBLIC = ip_address("198.51.100.7")


def host_child(**rest: object) -> ChildSettings:
    """Between the two hosts, in transport mode unless said otherwise."""
    return ChildSettings(
        **{"name": "net", "proposals": esp(ESP_PROPOSAL), "mode": Mode.TRANSPORT, **rest}  # type: ignore[arg-type]
    )


def only(side: Side) -> ChildSa:
    """The one child of a side."""
    (found,) = side.sending.values()
    return found


def ends(child: ChildSa) -> tuple[object, object]:
    """The two addresses that a child's selectors are of."""
    (local,), (remote,) = child.local_selectors, child.remote_selectors
    assert local.first == local.last and remote.first == remote.last
    return local.first, remote.first


def nat(datagram: Datagram) -> Datagram:
    """A NAT before A, with ports of its own."""
    path = datagram.path
    if path.local == ADDRESS_A:
        path = replace(path, local=PUBLIC, local_port=path.local_port + 30000)
    elif path.remote == PUBLIC:
        path = replace(path, remote=ADDRESS_A, remote_port=path.remote_port - 30000)
    return replace(datagram, path=path)


def behind_nat(a: Connection) -> Pair:
    return Pair(a=a, b=mirror(a, remote_addresses=()), wire=Wire(translate=nat))


def test_between_hosts() -> None:
    """Both want it; the selectors are the two hosts."""
    pair = Pair(a=(a := connection_a(children=(host_child(),))), b=mirror(a)).up()
    pair.check_children()
    assert only(pair.a).mode is only(pair.b).mode is Mode.TRANSPORT
    assert ends(only(pair.a)) == (ADDRESS_A, ADDRESS_B) and ends(only(pair.b)) == (ADDRESS_B, ADDRESS_A)
    assert only(pair.a).nat_original is only(pair.b).nat_original is None


def test_down_to_protocol_and_port() -> None:
    """The addresses are the hosts', protocol and ports whatever both allow."""
    udp = TrafficSelector(protocol=17, ports=(1701, 1701))
    a = connection_a(children=(host_child(local=(udp,), remote=(udp,)),))
    pair = Pair(a=a, b=mirror(a, children=(host_child(),))).up()
    pair.check_children()
    (selector,) = only(pair.b).remote_selectors
    assert only(pair.b).mode is Mode.TRANSPORT
    assert (selector.protocol, selector.ports, selector.first) == (17, (1701, 1701), ADDRESS_A)


@pytest.mark.parametrize("who", ["initiator", "responder"])
def test_one_that_does_not_want_it_gets_a_tunnel(who: str) -> None:
    """RFC 7296 section 1.3.1: without the notification from both it is a tunnel, between the same hosts."""
    tunnel = host_child(mode=Mode.TUNNEL)
    children = (tunnel, host_child()) if who == "initiator" else (host_child(), tunnel)
    a = connection_a(children=children[:1])
    pair = Pair(a=a, b=mirror(a, children=children[1:])).up()
    pair.check_children()
    assert only(pair.a).mode is only(pair.b).mode is Mode.TUNNEL


def test_networks_are_a_tunnel() -> None:
    """What is not between the two hosts cannot be in transport mode: the responder does not echo."""
    wide = TrafficSelector(network=ip_network("192.0.2.0/24"))
    a = connection_a(children=(host_child(local=(wide,), remote=(wide,)),))
    pair = Pair(a=a, b=mirror(a)).up()
    assert only(pair.a).mode is only(pair.b).mode is Mode.TUNNEL


def test_the_child_of_the_mode_that_is_asked_for_is_taken() -> None:
    """A tunnel and a transport mode child with the same selectors: the request says which."""
    tunnel = host_child(name="tunnel", mode=Mode.TUNNEL)
    a = connection_a(children=(host_child(),))
    pair = Pair(a=a, b=mirror(a, children=(tunnel, host_child(name="hosts")))).up()
    assert only(pair.b).settings.name == "hosts" and only(pair.b).mode is Mode.TRANSPORT


def test_behind_a_nat_each_side_has_its_own_addresses() -> None:
    """Each side's selectors are what its own packets have, and it knows what the peer's checksums are made of."""
    pair = behind_nat(connection_a(children=(host_child(),))).up()
    pair.check_children(same_addresses=False)
    ours, theirs = only(pair.a), only(pair.b)
    assert ours.mode is theirs.mode is Mode.TRANSPORT and ours.encapsulated and theirs.encapsulated
    assert ends(ours) == (ADDRESS_A, ADDRESS_B) and ends(theirs) == (ADDRESS_B, PUBLIC)
    assert ours.nat_original == (PUBLIC, ADDRESS_B)  # B sends from its own address to the public one
    assert theirs.nat_original == (ADDRESS_B, ADDRESS_A)


@pytest.mark.parametrize("who", ["a", "b"])
def test_rekeyed_by_either_side_of_a_nat(who: str) -> None:
    """The one who rekeys names the addresses that it knows; the other puts in its own again."""
    pair = behind_nat(connection_a(children=(host_child(),))).up()
    side = getattr(pair, who)
    (old,) = side.sending
    side.endpoint.rekey_child(old, pair.now)
    pair.run()
    pair.check_children(same_addresses=False)
    assert old not in side.sending
    ours, theirs = only(pair.a), only(pair.b)
    assert ours.mode is theirs.mode is Mode.TRANSPORT
    assert ends(ours) == (ADDRESS_A, ADDRESS_B) and ends(theirs) == (ADDRESS_B, PUBLIC)
    assert theirs.nat_original == (ADDRESS_B, ADDRESS_A) and ours.nat_original == (PUBLIC, ADDRESS_B)
