"""What lies between two peers: a cable, a router with NAT and a narrow link, or a wire that loses and reorders.

    left  eth0 -------------------------------- eth0  right        direct
    left  eth0 -- near  middle  far ----------- eth0  right        routed, with NAT and MTU as asked for
    left  eth0 -- near [relay] far ------------ eth0  right        lossy: `relay.Relay` moves the frames

Each peer has a protected network on its loopback: 10.1.0.1/24 and 2001:db8:a::1/64 left, 10.2.0.1/24 and
2001:db8:b::1/64 right. Both families everywhere. No link-local addresses: those that appear late look to a
MOBIKE peer like a change of address.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from control.lab.space import PREFIX, Space, free_tag, make_spaces, sweep
from control.lab.topology import SignalsRaise

Address = IPv4Address | IPv6Address
INSIDE = {  # side -> version -> (address, network) behind the peer
    "left": {4: ("10.1.0.1", "10.1.0.0/24"), 6: ("2001:db8:a::1", "2001:db8:a::/64")},
    "right": {4: ("10.2.0.1", "10.2.0.0/24"), 6: ("2001:db8:b::1", "2001:db8:b::/64")},
}
OTHER = {"left": "right", "right": "left"}


@dataclass(kw_only=True)
class Wire:
    """The namespaces and the addresses of one laboratory."""

    spaces: dict[str, Space]
    directory: Path
    outside: dict[str, dict[int, str]] = field(default_factory=dict)  # side -> version -> address of eth0

    @property
    def left(self) -> Space:
        """The left peer."""
        return self.spaces["left"]

    @property
    def right(self) -> Space:
        """The right peer."""
        return self.spaces["right"]

    @property
    def middle(self) -> Space:
        """What is between them."""
        return self.spaces["middle"]

    def address(self, side: str, version: int = 4) -> Address:
        """The outer address of a side."""
        return ip_address(self.outside[side][version])


@contextlib.contextmanager
def _spaces(*names: str) -> Iterator[Wire]:
    sweep()
    with contextlib.ExitStack() as stack:
        stack.enter_context(SignalsRaise())
        directory = Path(tempfile.mkdtemp(prefix=f"{PREFIX}-{os.getpid()}-peer-"))
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        tag = free_tag()
        spaces = make_spaces([f"{PREFIX}-{tag}-{name}" for name in names], directory)
        for space in spaces:
            stack.callback(space.close)
            space.sysctl(
                ipv4__conf__all__rp_filter=0,
                ipv4__conf__default__rp_filter=0,
                ipv6__conf__default__accept_dad=0,
                ipv6__conf__default__router_solicitations=0,
                ipv6__conf__default__addr_gen_mode=1,
            )
            space.ip("link set lo up")
        for name, space in zip(names, spaces, strict=True):
            if name in INSIDE:
                space.ip(
                    *(f"address add {address}/{net[-2:]} dev lo" for address, net in INSIDE[name].values())
                )
        yield Wire(spaces=dict(zip(names, spaces, strict=True)), directory=directory)


@contextlib.contextmanager
def direct() -> Iterator[Wire]:
    """A cable: left 192.0.2.1 and 2001:db8::1, right .2."""
    with _spaces("left", "right") as wire:
        wire.left.ip(f"link add eth0 type veth peer name eth0 netns {wire.right.name}")
        _address(wire, "left", ("192.0.2.1/24", "2001:db8::1/64"))
        _address(wire, "right", ("192.0.2.2/24", "2001:db8::2/64"))
        yield wire


@contextlib.contextmanager
def relayed() -> Iterator[Wire]:
    """Two cables that end in `middle`, at interfaces near and far, where nothing forwards yet: run a Relay."""
    with _spaces("left", "middle", "right") as wire:
        for side, end in (("left", "near"), ("right", "far")):
            wire.middle.ip(f"link add {end} type veth peer name eth0 netns {wire.spaces[side].name}")
            wire.middle.ip(f"link set {end} up")
        _address(wire, "left", ("192.0.2.1/24", "2001:db8::1/64"))
        _address(wire, "right", ("192.0.2.2/24", "2001:db8::2/64"))
        yield wire


@contextlib.contextmanager
def routed(*, nat: bool = False, mtu: int = 1500) -> Iterator[Wire]:
    """A router: left 192.0.2.2 (NAT: 10.0.0.2), right 203.0.113.2; `mtu` is of the left cable's both ends.

    With `nat` the router masquerades what goes to the right, each flow behind a port of 20000 to 30000.
    """
    with _spaces("left", "middle", "right") as wire:
        near, far = ("10.0.0" if nat else "192.0.2"), "203.0.113"
        for side, end in (("left", "near"), ("right", "far")):
            wire.middle.ip(f"link add {end} type veth peer name eth0 netns {wire.spaces[side].name}")
        wire.middle.sysctl(ipv4__ip_forward=1, ipv6__conf__all__forwarding=1)
        wire.middle.ip(
            f"address add {near}.1/24 dev near",
            "address add 2001:db8:1::1/64 dev near",
            f"address add {far}.1/24 dev far",
            "address add 2001:db8:2::1/64 dev far",
            f"link set near mtu {mtu} up",
            "link set far up",
        )
        _address(wire, "left", (f"{near}.2/24", "2001:db8:1::2/64"), mtu)
        _address(wire, "right", (f"{far}.2/24", "2001:db8:2::2/64"))
        for side, via in (("left", (f"{near}.1", "2001:db8:1::1")), ("right", (f"{far}.1", "2001:db8:2::1"))):
            wire.spaces[side].ip(*(f"route add default via {gateway}" for gateway in via))
        if nat:
            masquerade(wire.middle)
        yield wire


def _address(wire: Wire, side: str, addresses: tuple[str, str], mtu: int = 1500) -> None:
    wire.spaces[side].ip(
        *(f"address add {each} dev eth0" for each in addresses), f"link set eth0 mtu {mtu} up"
    )
    wire.outside[side] = {
        version: address.partition("/")[0] for version, address in zip((4, 6), addresses, strict=True)
    }


def masquerade(router: Space) -> None:
    """Hide what leaves by `far` behind its address and a random port."""
    ports = "masquerade to :20000-30000 random"
    router.run(
        [
            "nft",
            "add table ip nat; add chain ip nat out { type nat hook postrouting priority 100; }; "
            f'add rule ip nat out oifname "far" meta l4proto udp {ports}; '
            'add rule ip nat out oifname "far" masquerade',
        ]
    )


def forget_mappings(router: Space) -> None:
    """Empty the router's table of flows, as a reboot does: the next packet gets another port."""
    from pyroute2.netlink.nfnetlink.nfctsocket import NFCTSocket

    def flush() -> None:
        with contextlib.closing(NFCTSocket()) as table:
            table.flush()

    router.call(flush)


@contextlib.contextmanager
def two_behind_one(*, left: bool = True) -> Iterator[Wire]:
    """Two clients, left 10.0.0.2 and other 10.0.1.2, behind one masquerading router; right is 203.0.113.2.

    Without `left` there is no such namespace, and whoever takes its place brings the router's interface near along.
    """
    ends = {"left": ("near", "10.0.0"), "other": ("near2", "10.0.1"), "right": ("far", "203.0.113")}
    if not left:
        del ends["left"]
    with _spaces("middle", *ends) as wire:
        wire.middle.sysctl(ipv4__ip_forward=1)
        for side, (end, network) in ends.items():
            space = wire.spaces[side]
            wire.middle.ip(
                f"link add {end} type veth peer name eth0 netns {space.name}",
                f"address add {network}.1/24 dev {end}",
                f"link set {end} up",
            )
            space.ip(
                f"address add {network}.2/24 dev eth0",
                "link set eth0 up",
                f"route add default via {network}.1",
            )
            wire.outside[side] = {4: f"{network}.2"}
        masquerade(wire.middle)
        yield wire
