"""The configuration as the rest of the control plane sees it: frozen, typed, complete.

SAs and policies are already the dataplane's own specifications; ports still lack what only the running
system knows (MAC, MTU, addresses), which `control.ports` adds.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Interface, IPv6Interface
from pathlib import Path

from control.config.ike import IkeConfig
from control.config.problems import Problem
from dataplane.model import Address, PolicySpec, PortSpec, Role, SaSpec

InterfaceAddress = IPv4Interface | IPv6Interface

DRIVERS = ("xdp", "packet", "tun", "udp", "raw")
LINK_DRIVERS = ("xdp", "packet")  # drivers that sit on an existing network interface
SOCKET_DRIVERS = ("udp", "raw")  # drivers over an ordinary kernel socket


@dataclass(frozen=True, kw_only=True)
class GatewaySettings:
    """The [gateway] table."""

    workers: int  # processes
    # CPU numbers that the gateway uses, workers pinned in turn; () takes all we may.
    cpus: tuple[int, ...] = ()
    deal: bool = True  # a worker whose core is full lets others open its inbound packets
    spin: bool = True  # workers look on for a while where pauses between packets are short
    engine: str = "auto"  # auto, ipsec-mb, openssl
    state_dir: Path = Path("/var/lib/esplanade")  # sequence high-water marks; must survive a restart
    run_dir: Path = Path("/run/esplanade")  # status.sock
    log_level: str = "info"  # debug, info, warning, error
    log_json: bool = False
    path_mtu_age: float = 600.0  # seconds; RFC 1191 section 6.3


@dataclass(frozen=True, kw_only=True)
class PortConfig:
    """One [[port]]."""

    name: str
    role: Role
    driver: str  # one of DRIVERS
    interface: str  # "" for udp and raw
    xdp_mode: str = "auto"  # auto, native, generic
    zero_copy: str = "auto"  # auto, on, off
    busy_poll: int = 0  # xdp: microseconds that a look drives the driver for; 0: interrupts do
    mtu: int | None = None  # bytes of IP packet; None: the interface's (tun: what the tunnels leave)
    encap_port: int = 4500  # local UDP port of ESP in UDP
    addresses: tuple[InterfaceAddress, ...] = ()  # tun: given to the device we make
    bind: tuple[Address, ...] = ()  # udp and raw: local addresses; () takes those of the SAs
    routes: bool = True  # tun: add routes for the remote ranges of protect and discard policies


def reassembling(ports: Iterable[PortConfig | PortSpec], *, encapsulated: bool) -> list[tuple[str, int]]:
    """(driver, UDP port) of every socket that takes what the kernel puts together of fragments, beside `ports`.

    Unprotected interfaces want them where no port of theirs has such a socket. `encapsulated`: ESP may come in UDP.
    """
    outside = [port for port in ports if port.role is Role.UNPROTECTED]
    drivers = {port.driver for port in outside}
    if drivers.isdisjoint(LINK_DRIVERS):
        return []
    found = [] if "raw" in drivers else [("raw", 0)]
    if encapsulated and "udp" not in drivers:
        found += sorted({("udp", port.encap_port) for port in outside if port.driver in LINK_DRIVERS})
    return found


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole configuration that passed every check."""

    source: str
    gateway: GatewaySettings
    ports: tuple[PortConfig, ...]
    sas: tuple[SaSpec, ...]
    policies: tuple[PolicySpec, ...]
    ike: IkeConfig = field(default_factory=IkeConfig)
    warnings: tuple[Problem, ...] = field(default=())

    @property
    def encapsulated(self) -> bool:
        """Whether ESP in UDP may come."""
        return bool(self.ike.connections) or any(sa.encap is not None for sa in self.sas)

    def port(self, name: str) -> PortConfig:
        """The port of this name; KeyError if there is none."""
        for port in self.ports:
            if port.name == name:
                return port
        raise KeyError(name)
