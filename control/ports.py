"""From configured ports to the dataplane's: what only the running system knows is added here.

MAC, MTU and addresses of interfaces come from the netlink mirror; a TUN device's MTU from what the tunnels
leave inside their paths; the addresses of socket ports from the SAs.

Fragments that reach an interface of ours go to the kernel, which puts them together; `helper_specs` are the sockets
that take what came of them (docs/adr/0067-the-kernel-reassembles.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv6Address
from itertools import chain
from typing import Any

from control.config import Config, PortConfig
from control.config.schema import SOCKET_DRIVERS, reassembling
from control.net.mirror import Mirror, MirrorPort
from dataplane.model import Address, Direction, PortSpec, Role, SaSpec

ETHERNET_MTU = 1500
ENCAPSULATION_MOST = 128  # bytes that no SA's headers and trailer exceed
SOCKET_MTU_MOST = 9216  # a socket port over a loopback path needs no frames of 64 KiB
# The suites are negotiated later; what AES-GCM in UDP over IPv6 leaves of 1500, rounded down.
IKE_TUN_MTU = 1400
IPV6_LEAST = 1280  # RFC 8200 section 5: a link that carries IPv6 has at least this

PathMtu = Callable[[str], int | None]  # by name of an outbound SA


class PortSetupError(Exception):
    """A port cannot be set up as configured; the text says why and what mends it."""


def mirror_ports(ports: Sequence[PortConfig]) -> list[MirrorPort]:
    """The ports as the mirror needs them."""
    return [
        MirrorPort(name=port.name, role=port.role, driver=port.driver, interface=port.interface)
        for port in ports
    ]


def port_specs(config: Config, mirror: Mirror, path_mtu: PathMtu) -> list[PortSpec]:
    """Every port for the dataplane; PortSetupError names all that cannot be set up."""
    specs, problems = [], []
    for port, mirrored in zip(config.ports, mirror.ports, strict=True):
        try:
            specs.append(_port_spec(config, port, mirrored, mirror, path_mtu))
        except PortSetupError as error:
            problems.append(str(error))
    if problems:
        raise PortSetupError("; ".join(problems))
    return specs


def helper_specs(config: Config, specs: Sequence[PortSpec]) -> list[PortSpec]:
    """Ports beside the configured ones, for ESP and AH that the kernel had to reassemble, in UDP too."""
    room = max(spec.mtu for spec in specs) + ENCAPSULATION_MOST  # for the largest that can be delivered
    common: dict[str, Any] = {
        "role": Role.UNPROTECTED,
        "interface": "",
        "mtu": room,
        "options": {"seldom": "on"},
        "helper": True,
    }
    return [
        PortSpec(name=f"reassembled-{port}", driver=driver, encap_port=port, **common)
        if driver == "udp"
        else PortSpec(name="reassembled", driver=driver, **common)
        for driver, port in reassembling(specs, encapsulated=config.encapsulated)
    ]


def reassembles_udp(config: Config) -> bool:
    """Whether `helper_specs` has sockets for ESP in UDP: something may come so, and no configured port has them."""
    return any(driver == "udp" for driver, _ in reassembling(config.ports, encapsulated=config.encapsulated))


def _port_spec(
    config: Config, port: PortConfig, mirrored: MirrorPort, mirror: Mirror, path_mtu: PathMtu
) -> PortSpec:
    mac = b""
    if mirrored.has_link_header:
        link = mirror.link_of(mirrored)
        if link is None:
            names = ", ".join(sorted(each.name for each in mirror.links.values())) or "none"
            raise PortSetupError(
                f"port {port.name}: there is no interface {port.interface}; there are {names}; mend port.interface"
            )
        if len(link.mac) != 6:
            raise PortSetupError(
                f'port {port.name}: {port.interface} is no Ethernet interface; use driver = "tun", "udp" or "raw"'
            )
        mac, mtu, addresses = link.mac, port.mtu or link.mtu, tuple(mirror.addresses_of(mirrored))
    elif port.driver == "tun":
        mtu = port.mtu or tun_mtu(config.sas, path_mtu, ike=bool(config.ike.connections))
        addresses = tuple(interface.ip for interface in port.addresses) or _inner_addresses(config, mirror)
    else:
        mtu = port.mtu or _socket_mtu(config.sas, path_mtu)
        # Sockets are bound where peers send to, so that nothing else is taken from the host.
        addresses = port.bind or _sa_addresses(config)
    return PortSpec(
        name=port.name,
        role=port.role,
        driver=port.driver,
        interface=port.interface,
        mtu=mtu,
        mac=mac,
        addresses=addresses,
        encap_port=port.encap_port,
        xdp_mode=port.xdp_mode,
        zero_copy=port.zero_copy,
        busy_poll=port.busy_poll,
    )


def unserved(old: Config, new: Config) -> list[str]:
    """Addresses of `new`'s SAs and connections that the sockets of udp and raw ports, made for `old`, are not bound to.

    Of one family they are bound to its only address, or to any (dataplane/ports/sockets.py).
    """
    ports = [port for port in old.ports if port.driver in SOCKET_DRIVERS]
    if len(ports) < sum(port.role is Role.UNPROTECTED for port in old.ports):
        return []  # an interface is read, which has all addresses
    wanted = _sa_addresses(new)
    missing = []
    for port in ports:
        bound = port.bind or _sa_addresses(old)
        if not bound:
            continue
        for address in wanted:
            same = {each for each in bound if each.version == address.version}
            if len(same) < 2 and address not in same:
                missing.append(str(address))
        if not wanted and not port.bind:
            missing.append("any address")
    return list(dict.fromkeys(missing))


def _sa_addresses(config: Config) -> tuple[Address, ...]:
    """Where manual SAs and connections are at home; () for any address, as soon as one connection says so."""
    found = [sa.local for sa in config.sas]
    for connection in config.ike.connections:
        plain = [each for each in connection.local_addresses if isinstance(each, IPv4Address | IPv6Address)]
        if not plain or len(plain) < len(connection.local_addresses):
            return ()
        found += plain
    return tuple(dict.fromkeys(found))


def tun_mtu(sas: Sequence[SaSpec], path_mtu: PathMtu, *, ike: bool = False) -> int:
    """The room that every outbound SA leaves inside its path; 1500 bytes are assumed where there is none yet."""
    rooms = [sa.inner_mtu(path_mtu(sa.name) or ETHERNET_MTU) for sa in sas if sa.direction is Direction.OUT]
    if ike:
        rooms.append(IKE_TUN_MTU)
    return max(min(rooms, default=ETHERNET_MTU), IPV6_LEAST)


def _socket_mtu(sas: Sequence[SaSpec], path_mtu: PathMtu) -> int:
    """The largest path that outer packets take."""
    paths = [path_mtu(sa.name) or ETHERNET_MTU for sa in sas if sa.direction is Direction.OUT]
    return min(max([ETHERNET_MTU, *paths]), SOCKET_MTU_MOST)


def _inner_addresses(config: Config, mirror: Mirror) -> tuple[Address, ...]:
    """Own addresses inside the policies' local ranges: what ICMP errors come from when the device has none."""
    ranges = [(policy.selector.local_first, policy.selector.local_last) for policy in config.policies]
    own = [
        address
        for address in mirror.local_addresses()
        if not address.is_loopback and not address.is_link_local
    ]
    inside = [
        address
        for address in own
        if any(
            first.version == address.version and int(first) <= int(address) <= int(last)
            for first, last in ranges
        )
    ]
    return tuple(dict.fromkeys(chain(inside, own)))
