"""AH behind IPv4 options and IPv6 extension headers: our gateway and the Linux kernel agree on what of them is covered.

Transport mode, where the headers of programs go out as they are: record route and timestamps, which routers fill in;
options that may change on the way and such that may not, hop by hop and for the destination.
"""

from __future__ import annotations

import re
import socket
from typing import Any

import pytest

from tests.peers.linux.cases import Case, Pair
from tests.peers.linux.guest import Guest
from tests.peers.linux.traffic import PORT
from tests.peers.linux.world import World, changes

pytestmark = [pytest.mark.root, pytest.mark.full]

PINGS = 5
PING_OPTIONS = (["-R"], ["-T", "tsonly"], ["-T", "tsandaddr"])
# Next header and length, the first of which the kernel fills in; an option of 10 bytes that may change, or one that may
# not; padding, of which Linux takes at most 7 bytes.
MAY_CHANGE = bytes([0, 1, 0x3E, 10, *range(10), 1, 0])
MAY_NOT = bytes([0, 1, 0x1E, 10, *range(10), 1, 0])
# Hop by hop, for the destination.
EXTENSIONS = ((MAY_CHANGE, b""), (MAY_NOT, b""), (b"", MAY_CHANGE), (MAY_CHANGE, MAY_NOT))


def exchange(source: str, target: str, port: int, hop_by_hop: bytes, destination: bytes) -> int:
    """Send datagrams with these extension headers to an echo; returns how many come back."""
    back = 0
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.bind((source, 0))
        sock.settimeout(5.0)
        for name, content in ((socket.IPV6_HOPOPTS, hop_by_hop), (socket.IPV6_DSTOPTS, destination)):
            if content:
                sock.setsockopt(socket.IPPROTO_IPV6, name, content)
        for number in range(5):
            sock.sendto(b"%d" % number, (target, port))
            try:
                back += sock.recv(100) == b"%d" % number
            except TimeoutError:
                break
    return back


class Headers(World):
    """Two hosts whose programs send with options or extension headers."""

    def __init__(self, guest: Guest, cases: list[Case]) -> None:
        super().__init__(guest, cases, "transport", "packet")

    def _send(self, pairs: Any, datagrams: int) -> Any:
        """By case: what came back of each kind of header, errors of the kernel's, drops of ours."""
        return [self._of(pair) for pair in pairs]

    def _of(self, pair: Pair) -> dict[str, Any]:
        errors, drops = self.guest.xfrm_errors(), self.ours.status()["drops"]
        back = self._pings(pair) if pair.case.outer == 4 else self._datagrams(pair)
        return {
            "back": back,
            "errors": changes(errors, self.guest.xfrm_errors()),
            "drops": changes(drops, self.ours.status()["drops"]),
        }

    def _pings(self, pair: Pair) -> list[int]:
        found = []
        for options in PING_OPTIONS:
            argv = ["ping", "-n", "-i", "0.2", "-c", str(PINGS), "-w", "20", *options, "-I"]
            for output in (
                self.host.run([*argv, pair.local, pair.remote], check=False).output(),
                self.guest.run([*argv, pair.remote, pair.local], check=False),
            ):
                answered = set(re.findall(r"icmp_seq=(\d+) .*time=", output))
                assert "RR:" in output or "TS:" in output, output
                found.append(len(answered & {str(number) for number in range(1, PINGS + 1)}))
        return found

    def _datagrams(self, pair: Pair) -> list[int]:
        found = []
        for extensions in EXTENSIONS:
            found.append(self.host.call(lambda: exchange(pair.local, pair.remote, PORT, *extensions)))  # noqa: B023
        return found


@pytest.mark.parametrize("esn", [False, True])
@pytest.mark.parametrize(("family", "suite"), [(4, "sha256"), (4, "sha512"), (6, "sha256"), (6, "aescmac")])
def test_headers_before_ah(linux: Guest, family: int, suite: str, esn: bool) -> None:
    """Nothing is lost and no ICV is wrong, whoever sends."""
    case = Case(suite=suite, protocol="ah", mode="transport", outer=family, inner=family, esn=esn)
    world = Headers(linux, [case])
    with world.opened():
        found = world.prove([case])[case]
    kinds = 2 * len(PING_OPTIONS) if family == 4 else len(EXTENSIONS)
    assert found == {"back": [PINGS] * kinds, "errors": {}, "drops": {}}
