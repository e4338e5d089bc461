"""Our own routes: many changes at once, what the kernel refuses, and the mark by which events of them are known."""

from __future__ import annotations

import errno
import json
import socket
from collections.abc import Callable, Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from pyroute2.netlink.rtnl.marshal import MarshalRtnl

from control.lab.space import Space, free_tag, make_spaces
from control.net.mirror import Mirror, _route
from control.net.routes import PROTOCOL, RouteChange, RouteSocket, is_our_blackhole, is_ours, read_own

pytestmark = pytest.mark.root


@pytest.fixture
def space(tmp_path: Path) -> Iterator[Space]:
    """A namespace with a device of index 7."""
    (made,) = make_spaces([f"esp-{free_tag()}-routes"], tmp_path)
    made.ip(
        "link add dev7 index 7 type veth peer name far",
        "address add 192.0.2.9/32 dev dev7",
        "address add 2001:db8::9/128 dev dev7 nodad",
        "link set far up",
        "link set dev7 up",
    )
    yield made
    made.close()


def shown(space: Space, version: int) -> list[dict[str, Any]]:
    """Our routes as `ip` shows them."""
    argv = ["ip", f"-{version}", "-j", "route", "show", "proto", str(PROTOCOL)]
    found: list[dict[str, Any]] = json.loads(space.run(argv).output())
    return found


def networks(version: int, count: int) -> list[Any]:
    """As many networks."""
    form = "10.{}.{}.0/24" if version == 4 else "2001:db8:{:x}:{:x}::/64"
    return [ip_network(form.format(1 + number // 200, number % 200)) for number in range(count)]


@pytest.mark.parametrize("version", [4, 6])
def test_many_routes_at_once(space: Space, version: int) -> None:
    """More than one datagram's worth; each with a blackhole behind it; removed again."""
    routes: RouteSocket = space.call(RouteSocket)
    wanted = networks(version, 150)
    source = ip_address("192.0.2.9" if version == 4 else "2001:db8::9")
    for verb in ("replace", "add"):
        changes = [
            RouteChange(
                verb=verb, network=each, **({"interface": 7, "source": source} if verb == "add" else {})
            )
            for each in wanted
        ]
        assert routes.change(changes) == [None] * len(wanted)
    found = shown(space, version)
    into = [each for each in found if each.get("dev") == "dev7" and each.get("prefsrc") == str(source)]
    holes = [each for each in found if each.get("type") == "blackhole" and each["metric"] == 0xFFFFFFFF]
    assert {each["dst"] for each in into} == {each["dst"] for each in holes} == {str(each) for each in wanted}
    for interface in (7, None):
        changes = [RouteChange(verb="del", network=each, interface=interface) for each in wanted]
        assert routes.change(changes) == [None] * len(wanted)
    assert shown(space, version) == []
    routes.close()


@pytest.mark.parametrize("version", [4, 6])
def test_what_a_killed_run_leaves_behind(space: Space, version: int) -> None:
    """Blackholes without a route of ours before them; those of a run that lives, and other people's, are not meant."""
    routes: RouteSocket = space.call(RouteSocket)
    assert routes.left_behind() == []
    wanted = [*networks(version, 100), ip_network("0.0.0.0/0" if version == 4 else "::/0")]
    routes.change([RouteChange(verb="replace", network=each) for each in wanted])
    alive, left = wanted[:40], wanted[40:]
    routes.change([RouteChange(verb="add", network=each, interface=7) for each in alive])
    routes.change([RouteChange(verb="replace", network=each, table=229) for each in alive[:5]])
    other = "203.0.113.0/24" if version == 4 else "2001:db8:ffff::/48"
    space.ip(f"route add blackhole {other} metric 4294967295")
    assert set(routes.left_behind()) == set(left)
    space.ip("link del dev7")
    assert set(routes.left_behind()) == set(wanted)
    routes.close()


def test_refusals_belong_to_their_changes(space: Space) -> None:
    """What is there already, what is not there, a device that does not exist; the others are done."""
    routes: RouteSocket = space.call(RouteSocket)
    first, second = networks(4, 2)
    space.ip(f"route add {first} dev dev7")
    results = routes.change(
        [
            RouteChange(verb="add", network=first, interface=7),
            RouteChange(verb="add", network=second, interface=7),
            RouteChange(verb="add", network=second, interface=99),
            RouteChange(verb="del", network=first),
        ]
    )
    assert [each.errno if each is not None else 0 for each in results][:2] == [errno.EEXIST, 0]
    assert all(results[2:])
    assert [each["dst"] for each in shown(space, 4)] == [str(second)]
    routes.close()


@pytest.mark.parametrize("version", [4, 6])
def test_events_tell_ours_from_others(space: Space, version: int) -> None:
    """What a mirror of the kernel's table hears of our routes."""

    def subscribe() -> socket.socket:
        events = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        events.bind((0, 0x40 if version == 4 else 0x400))
        events.settimeout(3)
        return events

    events: socket.socket = space.call(subscribe)
    routes: RouteSocket = space.call(RouteSocket)
    (network,) = networks(version, 1)
    heard: Callable[[], bytes] = lambda: events.recv(4096)  # noqa: E731
    for verb in ("add", "del"):
        routes.change([RouteChange(verb=verb, network=network, interface=7)])
        message = heard()
        assert is_ours(message)
        (parsed,) = MarshalRtnl().parse(message)
        ours, mirror = read_own(message), Mirror(())
        for each in (ours, parsed):
            key, route = _route(each)
            assert (key[0], route.hops[0].interface, route.unicast) == (network, 7, True)
            assert mirror.apply(each) in ("", "route")
        assert _route(ours) == _route(parsed)
        assert ours["event"] == parsed["event"]
        assert not is_our_blackhole(message)
        routes.change([RouteChange(verb=verb, network=network)])
        assert is_our_blackhole(heard())
    space.ip(f"route add {network} dev dev7")
    assert not is_ours(heard())
    routes.close()
    events.close()
