"""Packets of up to 9,000 bytes without DF pass a cable of 1,500 between our gateway and the Linux kernel's IPsec.

We cut them before encapsulation or after it. The kernel enciphers what it sends whole and cuts the outer packets, so
all that comes back from it was reassembled on our side. Nothing is lost, and both sides count the same packets.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from tests.peers.linux.cases import Case
from tests.peers.linux.guest import Guest
from tests.peers.linux.world import PLAIN_MTU, World

pytestmark = pytest.mark.root

SUITE = "aes256gcm16"
CASES = [
    Case(suite=SUITE),
    Case(suite=SUITE, encap=True),
    Case(suite=SUITE, outer=6),
    Case(suite="aes256-sha512", outer=6, encap=True, esn=True),
    Case(suite="sha256", protocol="ah"),
]
HOSTS = [
    Case(suite=SUITE, mode="transport"),
    Case(suite=SUITE, mode="transport", encap=True),
    Case(suite="sha256", protocol="ah", mode="transport"),
]
LARGEST_WHOLE = 7600  # bytes of UDP payload that frames hold as ESP, whatever the MTU


class Narrow(World):
    """A world whose cable carries less than the hosts send, with DF on nothing."""

    def __init__(self, guest: Guest, cases: list[Case], mode: str, fragment: str) -> None:
        """`fragment`: before or after encapsulation."""
        super().__init__(guest, cases, mode, "packet")
        self.cable_mtu = PLAIN_MTU
        self.fragment = fragment

    def _configuration(self) -> str:
        text = super()._configuration()
        # Transport mode takes whole packets, so it has no choice.
        if self.mode == "transport":
            return text
        return text.replace("[[sa]]\n", f'[[sa]]\nfragment = "{self.fragment}"\n')

    @contextlib.contextmanager
    def opened(self) -> Iterator[World]:
        """As ever, and the hosts do not look for the path's MTU, which is to set DF."""
        with super().opened():
            self.host.sysctl(ipv4__ip_no_pmtu_disc=1)
            self._guest_looks(False)
            try:
                yield self
            finally:
                self._guest_looks(True)

    def _guest_looks(self, looks: bool) -> None:
        self.guest.run(["sh", "-c", f"echo {int(not looks)} > /proc/sys/net/ipv4/ip_no_pmtu_disc"])


class AllNarrow(Narrow):
    """Every link carries 1500 bytes, the protected side's too: nothing tells the gateway that more may come."""

    def __init__(self, guest: Guest, cases: list[Case]) -> None:
        """Nothing runs before `opened`."""
        super().__init__(guest, cases, "tunnel", "before")
        self.mtu = PLAIN_MTU

    def _largest(self, case: Case) -> int:
        return LARGEST_WHOLE


@pytest.mark.parametrize(
    ("mode", "fragment", "cases"),
    [
        ("tunnel", "after", CASES[:2]),
        pytest.param("tunnel", "after", CASES[2:], marks=pytest.mark.full),
        pytest.param("tunnel", "before", CASES, marks=pytest.mark.full),
        pytest.param("transport", "after", HOSTS, marks=pytest.mark.full),
    ],
    ids=["tunnel-after", "tunnel-after-more", "tunnel-before", "transport"],
)
def test_large_packets(linux: Guest, mode: str, fragment: str, cases: list[Case]) -> None:
    """Everything that a case of the table has to pass, in pieces."""
    world = Narrow(linux, cases, mode, fragment)
    with world.opened():
        for case, found in world.prove(cases).items():
            try:
                found.check(world.pairs[case])
            except AssertionError as error:
                error.add_note(f"---- ours said\n{world.ours.log(30)}\n---- the guest\n{linux.console(20)}")
                raise
        assert world.ours.status()["events"]["fragmented"] > 0


def test_large_packets_over_ordinary_ports(linux: Guest) -> None:
    """The kernel's ESP of up to 7,800 bytes is opened though no port has an MTU above 1500."""
    cases = CASES[:2]
    world = AllNarrow(linux, cases)
    with world.opened():
        for case, found in world.prove(cases, 300).items():
            try:
                found.check(world.pairs[case])
            except AssertionError as error:
                error.add_note(f"---- ours said\n{world.ours.log(30)}\n---- the guest\n{linux.console(20)}")
                raise
