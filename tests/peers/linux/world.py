"""Our gateway and the kernel's IPsec on one cable, and some cases at a time proven between them.

    host eth0 ---- lan0 [gateway] wan0 ---- bridge ---- eth0 [guest]        tunnel mode
                tun [gateway] wan0 ---- bridge ---- eth0 [guest]            transport mode: the gateway is the host

Both families everywhere. The gateway holds all cases of the run from the start; the guest has the states and policies
of the cases at hand only, each on addresses of its own, which are the host's and the guest's. What an SA counts is its
case's; what a whole side drops is held against all cases that were at hand.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from control.lab.gateway import toml_table
from control.lab.space import PREFIX, LabError, free_tag, make_spaces
from tests.peers.daemon import Daemon
from tests.peers.linux import traffic
from tests.peers.linux.cases import (
    HOST_LENGTH,
    HOSTS,
    INNER,
    OUTER,
    PREFIX_LENGTH,
    Case,
    Pair,
    numbered,
)
from tests.peers.linux.guest import LINK_MTU, Guest

JUMBO_MTU = 9000  # of the protected side of jumbo links
PLAIN_MTU = 1500  # of all other links
# What hosts on those send by: no suite makes it too long, so nobody has to find the path's MTU, and nothing is too big.
LAN_MTU = 1400
LARGEST = 8900  # bytes of UDP payload
LARGEST_WHOLE = 1300  # where the kernel would fragment ESP
STREAM = 1 << 18  # bytes by TCP
PINGS = 3  # each way
SETTLED_SECONDS = 10.0  # a bound for what is on its way when everything has come back
LENGTHS = ((4, 24), (6, 64))  # of the prefixes of OUTER


class World:
    """A gateway with all of `cases`, on the guest's cable."""

    def __init__(
        self, guest: Guest, cases: Sequence[Case], mode: str, driver: str, jumbo: bool = True
    ) -> None:
        """Nothing runs before `opened`. `driver` is that of the ports on cables."""
        self.guest = guest
        self.mode = mode
        self.driver = driver
        self.cable_mtu, self.mtu = (LINK_MTU, JUMBO_MTU) if jumbo else (PLAIN_MTU, LAN_MTU)
        self.pairs = numbered(cases)

    @contextlib.contextmanager
    def opened(self) -> Iterator[World]:
        """Everything up meanwhile."""
        with contextlib.ExitStack() as stack:
            directory = Path(tempfile.mkdtemp(prefix=f"{PREFIX}-{free_tag()}-linux-"))
            stack.callback(shutil.rmtree, directory, ignore_errors=True)
            tag = free_tag()
            spaces = make_spaces([f"{PREFIX}-{tag}-gw", f"{PREFIX}-{tag}-host"], directory)
            # In transport mode the gateway's own programs send.
            self.gateway, self.host = spaces if self.mode == "tunnel" else (spaces[0], spaces[0])
            for space in spaces:
                stack.callback(space.close)
                space.sysctl(ipv6__conf__default__accept_dad=0)
            stack.enter_context(self.guest.attached(self.gateway, "wan0"))
            self._wire()
            self.ours = Daemon(self.gateway, directory, {}, base=self._configuration())
            self.ours.start()
            stack.callback(self.ours.stop)
            yield self

    def _wire(self) -> None:
        """Addresses and routes on all three."""
        self.gateway.ip(
            f"link set wan0 mtu {self.cable_mtu} up",
            "link set lo up",
            *(f"address add {OUTER[family][0]}/{length} dev wan0" for family, length in LENGTHS),
        )
        self.guest.ip(
            f"link set eth0 mtu {self.cable_mtu}",
            *(
                f"address replace {OUTER[family][1]}/{length} dev eth0{' nodad' if family == 6 else ''}"
                for family, length in LENGTHS
            ),
            *(
                f"route replace {networks[family][0]}/{PREFIX_LENGTH[family]} via {OUTER[family][0]}"
                for family in (4, 6)
                for networks in (INNER, HOSTS)
            ),
        )
        if self.mode == "tunnel":
            self._wire_lan()
        else:
            self.gateway.ip(
                *(
                    f"address add {pair.local}/{HOST_LENGTH[pair.case.inner]} dev wan0"
                    for pair in self.pairs.values()
                ),
                *(
                    f"route add {HOSTS[family][1]}/{PREFIX_LENGTH[family]} via {OUTER[family][1]}"
                    for family in (4, 6)
                ),
            )

    def _wire_lan(self) -> None:
        """The protected side of a tunnel: one host with the addresses of all cases."""
        link = max(self.mtu, PLAIN_MTU)
        self.gateway.sysctl(ipv4__ip_forward=1, ipv6__conf__all__forwarding=1)
        self.gateway.ip(
            f"link add lan0 mtu {link} type veth peer name eth0 mtu {link} netns {self.host.name}",
            "link set lan0 up",
            *(f"address add {self._router(family)}/{PREFIX_LENGTH[family]} dev lan0" for family in (4, 6)),
        )
        families = {pair.case.inner for pair in self.pairs.values()}
        self.host.ip(
            "link set lo up",
            "link set eth0 up",
            *(
                f"address add {pair.local}/{PREFIX_LENGTH[pair.case.inner]} dev eth0"
                for pair in self.pairs.values()
            ),
            *(
                f"route add {INNER[family][1]}/{PREFIX_LENGTH[family]} via {self._router(family)} mtu {self.mtu}"
                for family in families
            ),
        )

    @staticmethod
    def _router(family: int) -> str:
        """The gateway's address on the protected side: the last but one of the network."""
        return "10.1.255.254" if family == 4 else "2001:db8:1::ffff:fffe"

    def _configuration(self) -> str:
        text = '[gateway]\nworkers = 1\nstate_dir = "{directory}/state"\nrun_dir = "{directory}/run"\n'
        if self.mode == "tunnel":
            lan: dict[str, object] = {"driver": self.driver, "interface": "lan0"}
        else:
            lan = {"driver": "tun", "interface": "esp0", "mtu": self.mtu}
        wan: dict[str, object] = {"driver": self.driver}
        wan |= {"interface": "wan0"} if self.driver in ("packet", "xdp") else {}
        text += toml_table("[port]", {"name": "lan", "role": "protected", **lan})
        text += toml_table("[port]", {"name": "wan", "role": "unprotected", **wan})
        return text + "".join(pair.tables() for pair in self.pairs.values())

    def _largest(self, case: Case) -> int:
        """Of a case's datagrams: what does not fit goes through a tunnel as fragments of the inner IPv6 packet.

        IPv4 packets without DF and those in transport mode the kernel fragments when they have become ESP.
        """
        return LARGEST if case.jumbo or (case.mode, case.inner) == ("tunnel", 6) else LARGEST_WHOLE

    # --- some cases ----------------------------------------------------------------------------------

    def prove(self, cases: Sequence[Case], datagrams: int = 1000) -> dict[Case, Agreement]:
        """Set the cases up in the guest, send everything through all of them by turns, and read all counters.

        So many `datagrams` each way through each.
        """
        pairs = [self.pairs[case] for case in cases]
        hosts = [
            f"{pair.remote}/{HOST_LENGTH[pair.case.inner]} dev lo{' nodad' if pair.case.inner == 6 else ''}"
            for pair in pairs
        ]
        with self.guest.encapsulating() if any(case.encap for case in cases) else contextlib.nullcontext():
            self.guest.ip(
                *(f"address add {host}" for host in hosts),
                *(command for pair in pairs for command in (*pair.states(), *pair.policies())),
            )
            try:
                self.guest.ask("echo", addresses=[pair.remote for pair in pairs])
                return dict(zip(cases, self._send(pairs, datagrams), strict=True))
            finally:
                self.guest.ask("silence")
                self.guest.ip(
                    "xfrm policy flush",
                    "xfrm state flush",
                    *(f"address delete {host.removesuffix(' nodad')}" for host in hosts),
                )

    def _send(self, pairs: Sequence[Pair], count: int) -> list[Agreement]:
        errors, drops = self.guest.xfrm_errors(), self.ours.status()["drops"]
        flows = [(pair.local, pair.remote, pair.number, self._largest(pair.case)) for pair in pairs]
        back = [(there, here, *rest) for here, there, *rest in flows]
        pings = self.host.call(lambda: traffic.pings(flows, PINGS))
        pings_back = self.guest.ask("pings", wait=300.0, flows=back, count=PINGS)
        sent = self.host.call(lambda: traffic.datagrams(flows, count))
        streams = self.host.call(lambda: traffic.streams(flows, STREAM))
        kernel, ours = self._counters(pairs)
        kernel_errors = changes(errors, self.guest.xfrm_errors())
        our_drops = changes(drops, self.ours.status()["drops"])
        return [
            Agreement(
                pings_lost=pings[at] + pings_back[at],
                datagrams=sent[at],
                streamed=streams[at],
                kernel={spi: kernel[spi] for spi in pair.spis},
                kernel_errors=kernel_errors,
                ours={spi: ours[spi] for spi in pair.spis},
                our_drops=our_drops,
                count=count,
            )
            for at, pair in enumerate(pairs)
        ]

    def _counters(self, pairs: Sequence[Pair]) -> tuple[dict[int, Counters], dict[int, Counters]]:
        """The kernel's and ours once they agree, or will not any more: the last of a stream may be on its way."""
        spis = {spi for pair in pairs for spi in pair.spis}
        deadline = time.monotonic() + SETTLED_SECONDS
        while True:
            kernel, ours = kernel_counters(self.guest), our_counters(self.ours.status(), spis)
            if kernel == ours or time.monotonic() > deadline:
                return kernel, ours


@dataclass(frozen=True, kw_only=True)
class Counters:
    """Of one SA: packets that passed, and those that were refused, by reason."""

    packets: int
    refused: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """What came of a case; errors and drops are those of all cases that were sent by turns with it."""

    pings_lost: int
    datagrams: dict[str, int]
    streamed: int  # bytes
    kernel: dict[int, Counters]  # by SPI
    kernel_errors: dict[str, int]  # changes of /proc/net/xfrm_stat
    ours: dict[int, Counters]
    our_drops: dict[str, int]  # of the whole gateway
    count: int  # datagrams that there should be

    def check(self, pair: Pair) -> None:
        """AssertionError unless nothing is lost, and both sides counted the same packets and no error."""
        assert self.pings_lost == 0, self
        assert self.datagrams == {"sent": self.count, "back": self.count, "lost": 0, "wrong": 0}, self
        assert self.streamed == STREAM, self
        assert self.kernel_errors == {}, self
        assert self.our_drops == {}, self
        for spi in pair.spis:
            assert self.kernel[spi] == self.ours[spi], self
            assert self.kernel[spi].packets > self.count, self
            assert not any(self.kernel[spi].refused.values()), self


def kernel_counters(guest: Guest) -> dict[int, Counters]:
    """What `ip -s xfrm state` counts, by SPI."""
    found = {}
    for block in re.split(r"^(?=src )", guest.run(["ip", "-s", "xfrm", "state"]), flags=re.MULTILINE):
        spi = re.search(r"spi 0x([0-9a-f]+)", block)
        packets = re.search(r"lifetime current:\s+\d+\(bytes\), (\d+)\(packets\)", block)
        failures = re.search(r"replay-window (\d+) replay (\d+) failed (\d+)", block)
        if spi and packets and failures:
            refused = {"replay": int(failures[2]), "failed": int(failures[3])}
            found[int(spi[1], 16)] = Counters(
                packets=int(packets[1]), refused={name: count for name, count in refused.items() if count}
            )
        elif block.strip():
            raise LabError(f"ip -s xfrm state said something else than expected: {block}")
    return found


def our_counters(status: dict[str, Any], spis: set[int]) -> dict[int, Counters]:
    """The same of our SAs."""
    return {
        sa["spi"]: Counters(
            packets=sa["packets"], refused={name: count for name, count in sa["drops"].items() if count}
        )
        for sa in status["sas"]
        if sa["spi"] in spis
    }


def changes(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    """Counters that grew."""
    return {
        name: count - before.get(name, 0) for name, count in after.items() if count != before.get(name, 0)
    }
