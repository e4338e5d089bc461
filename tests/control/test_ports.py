"""Ports as the dataplane gets them, routes into a TUN device, and the mirror's finer points."""

from __future__ import annotations

import copy
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from control.config import Config, ConfigError, parse
from control.net.mirror import Mirror, MirrorPort
from control.net.tun import routes_for
from control.ports import PortSetupError, helper_specs, mirror_ports, port_specs, tun_mtu
from dataplane.layout import PORTS_MAX
from dataplane.model import Action, PolicySpec, PortSpec, Role, SelectorSpec
from dataplane.ports.drivers import frame_size
from tests.control.config.good import GOOD


def link(index: int, name: str, **values: Any) -> dict[str, Any]:
    return {
        "event": "RTM_NEWLINK",
        "index": index,
        "ifname": name,
        "address": f"02:00:00:00:00:{index:02x}",
        "mtu": 1500,
        "flags": 0x41,
        "family": 0,
        **values,
    }


def address(index: int, text: str) -> dict[str, Any]:
    return {"event": "RTM_NEWADDR", "index": index, "local": text}


def neighbour(
    index: int, text: str, mac: str | None, state: int, event: str = "RTM_NEWNEIGH"
) -> dict[str, Any]:
    return {
        "event": event,
        "ifindex": index,
        "dst": text,
        "lladdr": mac,
        "state": state,
        "family": 2 if "." in text else 10,
    }


def values(*ports: dict[str, Any]) -> dict[str, Any]:
    changed = copy.deepcopy(GOOD)
    changed["port"] = list(ports)
    for sa in changed["sa"]:
        sa["encap"] = True
    return changed


TUN = {"name": "lan", "role": "protected", "driver": "tun", "interface": "esp0"}
UDP = {"name": "wan", "role": "unprotected", "driver": "udp"}


def test_link_ports_take_the_interface_as_it_is() -> None:
    config = parse(GOOD)
    mirror = Mirror(mirror_ports(config.ports))
    for message in (
        link(1, "lo", address="00:00:00:00:00:00", mtu=65536),
        link(2, "eth0", mtu=9000),
        link(3, "eth1"),
        address(3, "10.1.0.1"),
        address(3, "fe80::1"),
        address(3, "2001:db8::1"),
        address(2, "192.0.2.1"),
    ):
        mirror.apply(message)
    lan, wan = port_specs(config, mirror, lambda _name: None)
    assert (lan.mac, lan.mtu, wan.mtu) == (bytes.fromhex("020000000003"), 1500, 9000)
    assert [str(found) for found in lan.addresses] == ["10.1.0.1", "2001:db8::1", "fe80::1"]


def test_every_port_that_cannot_be_is_named() -> None:
    changed = copy.deepcopy(GOOD)
    changed["port"][0]["interface"] = "lo"
    config = parse(changed)
    mirror = Mirror(mirror_ports(config.ports))
    mirror.apply(link(1, "lo", address="00:00:00:00:00:00"))
    with pytest.raises(
        PortSetupError,
        match=r"port lan: lo is no Ethernet.*; port wan: there is no interface eth0; there are lo",
    ):
        port_specs(config, mirror, lambda _name: None)


def test_tun_and_udp_ports() -> None:
    config = parse(values({**TUN, "addresses": ["10.9.0.1/24"]}, UDP))
    mirror = Mirror(mirror_ports(config.ports))
    lan, wan = port_specs(config, mirror, lambda _name: 1450)
    assert (lan.mtu, [str(found) for found in lan.addresses]) == (config.sas[0].inner_mtu(1450), ["10.9.0.1"])
    assert (wan.interface, wan.encap_port, [str(found) for found in wan.addresses]) == (
        "",
        4500,
        ["192.0.2.1"],
    )
    assert tun_mtu(config.sas, lambda _name: None) == config.sas[0].inner_mtu(1500) == 1438
    assert tun_mtu(config.sas, lambda _name: 600) == 1280
    # Without addresses of its own, ICMP errors come from one of ours that is inside the tunnel's local range.
    config = parse(values(TUN, UDP))
    mirror = Mirror(mirror_ports(config.ports))
    for message in (link(2, "eth0"), address(2, "192.0.2.1"), address(2, "10.1.0.9")):
        mirror.apply(message)
    lan, _ = port_specs(config, mirror, lambda _name: None)
    assert str(lan.addresses[0]) == "10.1.0.9"


def test_helpers_for_what_the_kernel_reassembles() -> None:
    """Sockets beside an interface that is read, of the kinds that the SAs can bring; not where they are configured."""
    bare = copy.deepcopy(GOOD)
    del bare["sa"][1]["encap"]
    config = parse(bare)
    mirror = Mirror(mirror_ports(config.ports))
    for message in (link(2, "eth0", mtu=9000), link(3, "eth1"), address(2, "192.0.2.1")):
        mirror.apply(message)
    specs = port_specs(config, mirror, lambda _name: None)
    (helper,) = helper_specs(config, specs)
    assert (helper.driver, helper.role, helper.helper, helper.mtu) == ("raw", Role.UNPROTECTED, True, 9128)
    encapsulated = parse(values(*GOOD["port"]))
    raw, udp = helper_specs(encapsulated, port_specs(encapsulated, mirror, lambda _name: None))
    assert (raw.driver, udp.driver, udp.encap_port) == ("raw", "udp", 4500)
    # Their frames hold what peers may fragment, whatever the MTU; with a ring, what the largest MTU wants.
    narrow = [replace(spec, mtu=1500) for spec in [*specs, raw, udp]]
    assert [spec.driver for spec in specs] == ["xdp", "packet"]
    assert frame_size(narrow) == 2048
    assert frame_size([replace(spec, driver="packet") for spec in narrow[:2]]) == 2048
    assert frame_size([*(replace(spec, driver="packet") for spec in narrow[:2]), *narrow[2:]]) == 8192
    # A port that has sockets already takes them all.
    sockets = parse(values(TUN, UDP))
    assert not helper_specs(
        sockets, port_specs(sockets, Mirror(mirror_ports(sockets.ports)), lambda _name: None)
    )
    both = [*specs, PortSpec(name="more", role=Role.UNPROTECTED, driver="raw", interface="")]
    assert not helper_specs(config, both)


@pytest.mark.parametrize(
    ("driver", "encap_ports", "bare", "most"),
    [
        ("udp", (4500,), False, 7),
        ("raw", (), True, 7),
        ("packet", (), True, 6),
        ("packet", (4500,), False, 5),
        ("packet", (4500, 4501), False, 4),
    ],
)
def test_as_many_ports_as_a_worker_takes(
    driver: str, encap_ports: tuple[int, ...], bare: bool, most: int
) -> None:
    """What the file may have is what a start can have, helpers among it."""
    outside = [
        {"name": f"wan{number}", "role": "unprotected", "driver": driver}
        | ({"interface": f"wan{number}"} if driver == "packet" else {})
        | ({"encap_port": port} if port else {})
        for number, port in enumerate(encap_ports or (0,))
    ]

    def read(count: int) -> Config:
        inside = [
            {"name": f"lan{number}", "role": "protected", "driver": "packet", "interface": f"lan{number}"}
            for number in range(count - len(outside))
        ]
        given = values(*inside, *outside)
        for sa in given["sa"]:
            sa.pop("encap", None)
            if not bare:
                sa["encap"] = True
        return parse(given)

    config = read(most)
    mirror = Mirror(mirror_ports(config.ports))
    for index, port in enumerate(config.ports):
        mirror.apply(link(index + 2, port.interface))
    specs = port_specs(config, mirror, lambda _name: None)
    assert len([*specs, *helper_specs(config, specs)]) == PORTS_MAX - 1
    with pytest.raises(ConfigError, match=f"port: got {most + 1} ports, want at most {most}"):
        read(most + 1)


def test_routes_into_the_device() -> None:
    config = parse(GOOD)
    peers = [sa.remote for sa in config.sas]
    found = {str(network): source for network, source in routes_for(config.policies, peers).items()}
    # The range 10.3.0.1-10.3.0.9 as prefixes; "any" but for the peer, whom outer packets must reach.
    exact = ["10.2.0.0/24", "10.3.0.1/32", "10.3.0.2/31", "10.3.0.4/30", "10.3.0.8/31", "::/0"]
    assert set(exact) < set(found) and len(found) == len(exact) + 32
    networks = [ip_network(text) for text in found]
    assert not any(ip_address("192.0.2.2") in network for network in networks)
    for near in ("192.0.2.1", "192.0.2.3", "0.0.0.0", "255.255.255.255"):
        assert any(ip_address(near) in network for network in networks)


def test_routes_of_one_address_of_ours_leave_with_it() -> None:
    """What a server lent us is the source of what goes through its tunnel."""
    lent, server = ip_address("10.9.0.5"), ip_address("192.0.2.2")
    policy = PolicySpec(
        name="roadwarrior",
        action=Action.PROTECT,
        selector=SelectorSpec.from_networks(ip_network("10.9.0.5/32"), ip_network("192.0.2.0/30")),
    )
    networks = ("192.0.2.0/31", "192.0.2.3/32")
    assert routes_for([policy], [server]) == {ip_network(text): None for text in networks}
    assert routes_for([policy], [server], [lent]) == {ip_network(text): lent for text in networks}


def test_mirror_ignores_what_changes_nothing() -> None:
    mirror = Mirror([MirrorPort(name="lan", role=Role.PROTECTED, driver="xdp", interface="eth1")])
    assert mirror.apply(link(3, "eth1")) == "link" and mirror.apply(link(3, "eth1")) == ""
    # A bridge that lets a port go tells so with the bridge's family; the link is still there.
    assert mirror.apply({**link(3, "eth1"), "event": "RTM_DELLINK", "family": 7}) == "" and mirror.links
    mac = "02:00:00:00:00:aa"
    assert mirror.apply(neighbour(3, "10.0.0.1", None, 0x01)) == ""  # incomplete
    assert mirror.apply(neighbour(3, "10.0.0.1", mac, 0x02)) == "neighbour"
    assert mirror.apply(neighbour(3, "10.0.0.1", mac, 0x04)) == ""  # only stale
    assert mirror.stale(set()) == [(3, ip_address("10.0.0.1"))]
    assert mirror.apply(neighbour(3, "10.0.0.1", "02:00:00:00:00:bb", 0x04)) == "neighbour"
    assert mirror.apply(neighbour(3, "10.0.0.1", None, 0x20)) == "neighbour"  # failed
    assert mirror.apply(neighbour(3, "10.0.0.1", None, 0x20, "RTM_DELNEIGH")) == ""
    assert mirror.apply({"event": "RTM_NEWRULE"}) == "" and mirror.apply({}) == ""


def test_ipv6_hops_of_a_dump_are_one_route() -> None:
    mirror = Mirror([MirrorPort(name="lan", role=Role.PROTECTED, driver="xdp", interface="eth1")])
    mirror.apply(link(3, "eth1"))
    for gateway in ("2001:db8::1", "2001:db8::2"):
        mirror.load_route(
            {
                "family": 10,
                "table": 254,
                "flags": 0,
                "dst": "2001:db8:9::",
                "dst_len": 48,
                "type": 1,
                "priority": 1024,
                "tos": 0,
                "oif": 3,
                "gateway": gateway,
            }
        )
    mirror.apply(neighbour(3, "2001:db8::2", "02:00:00:00:00:bb", 0x02))
    routes = {str(route.prefix): route.adjacency for route in mirror.routes()}
    found = routes["2001:db8:9::/48"]
    assert found is not None and found.destination_mac.hex() == "0200000000bb"  # the hop that can be used
    assert mirror.next_hops([]) == {(3, ip_address("2001:db8::1")), (3, ip_address("2001:db8::2"))}
