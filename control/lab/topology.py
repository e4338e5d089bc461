"""The cables: client - gateway A - gateway B - server.

    client eth0 ---- lan0 gateway A wan0 ---- wan0 gateway B lan0 ---- eth0 server
        10.1.0.2     .1             198.51.100.1   .2            .1     10.2.0.2

Every line is a veth pair with as many rx and tx queues on both ends as asked for (a native XDP program
refuses a peer with more tx queues than it has rx queues). IPv6 beside IPv4 everywhere. End hosts keep all
their offloads.

With `tapped`, the cable between the gateways runs through a fifth namespace with a bridge: AF_XDP transmits
past every packet socket of its own host, so only a host in the middle can see what is on the wire. It costs
about a third of the speed: speed is measured on the direct cable.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
import threading
from contextlib import ExitStack
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from types import FrameType, TracebackType
from typing import NoReturn, Self

from control.lab.space import PREFIX, LabError, Space, free_tag, make_spaces, sweep

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

TOOLS = {"ip": "iproute2", "nsenter": "util-linux", "unshare": "util-linux", "setpriv": "util-linux"}

# (IPv4, IPv6) of each segment; hosts are numbered by `Lab.address`.
SEGMENTS = {
    "lan-a": (IPv4Network("10.1.0.0/24"), IPv6Network("2001:db8:a::/64")),
    "wan": (IPv4Network("198.51.100.0/24"), IPv6Network("2001:db8:f::/64")),
    "lan-b": (IPv4Network("10.2.0.0/24"), IPv6Network("2001:db8:b::/64")),
}
# host -> interface -> (segment, host number)
INTERFACES = {
    "client": {"eth0": ("lan-a", 2)},
    "gwa": {"lan0": ("lan-a", 1), "wan0": ("wan", 1)},
    "gwb": {"lan0": ("lan-b", 1), "wan0": ("wan", 2)},
    "server": {"eth0": ("lan-b", 2)},
}
PEER = {"gwa": "gwb", "gwb": "gwa"}
FAR_LAN = {"gwa": "lan-b", "gwb": "lan-a"}
NEAR_LAN = {"gwa": "lan-a", "gwb": "lan-b"}
END_HOST_GATEWAY = {"client": "gwa", "server": "gwb"}


def address(host: str, interface: str, version: int = 4) -> Address:
    """The address of a host's interface."""
    segment, number = INTERFACES[host][interface]
    return _network(segment, version)[number]


def _network(segment: str, version: int) -> Network:
    return SEGMENTS[segment][0 if version == 4 else 1]


class Lab:
    """Client, two gateways and server; a context manager that leaves nothing behind.

    `queues` is the number of rx and tx queues of every veth end. `routed`: gateways forward by the kernel and
    know the far network's route; without it they have a default route to each other instead, as gateways on the
    Internet do. `static_neighbours` fills every neighbour table; otherwise ARP and ND do. `tapped` puts
    `wire` between the gateways. `mtu` is of every interface, bytes of IP packet.
    """

    def __init__(
        self,
        *,
        queues: int = 2,
        routed: bool = True,
        static_neighbours: bool = False,
        tapped: bool = False,
        mtu: int = 1500,
    ) -> None:
        """Remember what to build; nothing happens before `with`."""
        self.queues = queues
        self.routed = routed
        self.static_neighbours = static_neighbours
        self.tapped = tapped
        self.mtu = mtu
        self.directory = Path()
        self.spaces: dict[str, Space] = {}
        self._stack = ExitStack()

    @property
    def client(self) -> Space:
        """The host behind gateway A."""
        return self.spaces["client"]

    @property
    def server(self) -> Space:
        """The host behind gateway B."""
        return self.spaces["server"]

    def __enter__(self) -> Self:
        """Build it. On any failure, all that was built is removed before the error goes on."""
        check_tools(TOOLS)
        sweep()
        with ExitStack() as stack:
            stack.enter_context(SignalsRaise())
            self.directory = Path(tempfile.mkdtemp(prefix=f"{PREFIX}-{os.getpid()}-lab-"))
            stack.callback(shutil.rmtree, self.directory, ignore_errors=True)
            hosts = [*INTERFACES, *(["wire"] if self.tapped else [])]
            tag = free_tag()
            spaces = make_spaces([f"{PREFIX}-{tag}-{host}" for host in hosts], self.directory)
            self.spaces = dict(zip(hosts, spaces, strict=True))
            for space in spaces:
                stack.callback(space.close)
            self._quieten()
            self._cable()
            self._configure()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take everything down; a second Ctrl-C meanwhile does not stop it half-way."""
        self._stack.close()
        self.spaces = {}

    def _quieten(self) -> None:
        """Sysctls first: interfaces shall come up without address detection or router solicitations."""
        for host, space in self.spaces.items():
            if host == "wire":
                space.sysctl(ipv6__conf__all__disable_ipv6=1, ipv6__conf__default__disable_ipv6=1)
                continue
            space.sysctl(
                ipv4__conf__all__rp_filter=0,
                ipv4__conf__default__rp_filter=0,
                ipv6__conf__default__accept_dad=0,
                ipv6__conf__default__router_solicitations=0,
            )
            if host in PEER:
                space.sysctl(ipv4__ip_forward=1, ipv6__conf__all__forwarding=1)

    def _cable(self) -> None:
        self._pair("client", "eth0", "gwa", "lan0")
        self._pair("server", "eth0", "gwb", "lan0")
        if not self.tapped:
            self._pair("gwa", "wan0", "gwb", "wan0")
            return
        self._pair("gwa", "wan0", "wire", "port-a")
        self._pair("gwb", "wan0", "wire", "port-b")
        self.spaces["wire"].ip(
            # Longer than any program may answer to in this lab: the bridge must not age what it learned.
            "link add br0 type bridge mcast_snooping 0 ageing_time 360000",
            *(f"link set port-{side} master br0 mtu {self.mtu} up" for side in "ab"),
            "link set br0 up",
        )

    def _pair(self, host: str, interface: str, peer: str, peer_interface: str) -> None:
        queues = f"numrxqueues {self.queues} numtxqueues {self.queues}"
        far_end = f"peer name {peer_interface} {queues} netns {self.spaces[peer].name}"
        self.spaces[host].ip(f"link add {interface} {queues} type veth {far_end}")

    def _configure(self) -> None:
        for host, interfaces in INTERFACES.items():
            commands = ["link set lo up"]
            for interface, (segment, number) in interfaces.items():
                commands.append(f"link set {interface} mtu {self.mtu} up")
                for version in (4, 6):
                    network = _network(segment, version)
                    commands.append(f"address add {network[number]}/{network.prefixlen} dev {interface}")
            self.spaces[host].ip(*commands, *self._routes(host))
        if self.static_neighbours:
            self._fill_neighbours()

    def _routes(self, host: str) -> list[str]:
        if host in END_HOST_GATEWAY:
            gateway = END_HOST_GATEWAY[host]
            return [f"route add default via {address(gateway, 'lan0', version)}" for version in (4, 6)]
        return [
            f"route add {_network(FAR_LAN[host], version) if self.routed else 'default'} "
            f"via {address(PEER[host], 'wan0', version)}"
            for version in (4, 6)
        ]

    def route_into(self, gateway: str, device: str) -> None:
        """Send the far network of `gateway` ("gwa", "gwb") into `device`, a TUN interface there."""
        self.spaces[gateway].ip(
            *(f"route replace {_network(FAR_LAN[gateway], version)} dev {device}" for version in (4, 6))
        )

    def _fill_neighbours(self) -> None:
        for host, interfaces in INTERFACES.items():
            for interface, (segment, _) in interfaces.items():
                for other, others in INTERFACES.items():
                    for other_interface, (other_segment, _) in others.items():
                        if other_segment != segment or other == host:
                            continue
                        mac = self.mac(other, other_interface)
                        self.spaces[host].ip(
                            *(
                                f"neighbour replace {address(other, other_interface, version)} lladdr {mac} "
                                f"dev {interface} nud permanent"
                                for version in (4, 6)
                            )
                        )

    def mac(self, host: str, interface: str) -> str:
        """The link address of an interface, such as "02:00:5e:10:00:01"."""
        shown = self.spaces[host].run(["ip", "-j", "link", "show", "dev", interface])
        return str(json.loads(shown.output())[0]["address"])

    def set_offloads(self, on: bool) -> None:
        """Switch TSO, GSO and GRO of the two end hosts' interfaces (only for the `plain` comparison)."""
        check_tools({"ethtool": "ethtool"})
        state = "on" if on else "off"
        for space in (self.client, self.server):
            space.run(["ethtool", "-K", "eth0", "tso", state, "gso", state, "gro", state])


def check_tools(tools: dict[str, str]) -> None:
    """LabError unless every program is found; `tools` maps it to its Debian package."""
    missing = {package for tool, package in tools.items() if shutil.which(tool) is None}
    if missing:
        raise LabError(
            f"programs are missing; install them with: apt-get install {' '.join(sorted(missing))}"
        )


class SignalsRaise:
    """While active, SIGTERM and SIGHUP raise SystemExit and SIGINT KeyboardInterrupt: `with` blocks unwind.

    After the first, all three are ignored until the block is left: clean-up is not interrupted half-way.
    Does nothing off the main thread, where Python delivers no signals.
    """

    def __init__(self) -> None:
        """Nothing changes before `with`."""
        self._before: dict[signal.Signals, signal._HANDLER] = {}

    def __enter__(self) -> Self:
        """Install the handlers."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                self._before[number] = signal.signal(number, self._unwind)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Put the earlier handlers back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _unwind(self, number: int, frame: FrameType | None) -> NoReturn:
        for each in self._before:
            signal.signal(each, signal.SIG_IGN)
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)
