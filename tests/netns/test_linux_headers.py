"""AH and ESP behind IPv4 options and IPv6 extension headers: our gateway and the Linux kernel agree on what is covered.

Transport mode, where the headers of programs go out as they are, from us and from the kernel: record route and
timestamps, which routers fill in; options that may change on the way and such that may not, hop by hop and for the
destination; routing headers.
"""

from __future__ import annotations

import re
import socket
from typing import Any

import pytest

from tests.peers.linux.cases import Case, Pair
from tests.peers.linux.guest import Guest
from tests.peers.linux.traffic import Echo, behind
from tests.peers.linux.world import World, changes

pytestmark = [pytest.mark.root, pytest.mark.full]

PINGS = 5
PING_OPTIONS = (["-R"], ["-T", "tsonly"], ["-T", "tsandaddr"])
HOP_BY_HOP, ROUTING, DESTINATION = 0, 43, 60
# Next header and length, the first of which is filled in; an option of 10 bytes that may change, or one that may not;
# padding, of which Linux takes at most 7 bytes.
MAY_CHANGE = bytes([0, 1, 0x3E, 10, *range(10), 1, 0])
MAY_NOT = bytes([0, 1, 0x1E, 10, *range(10), 1, 0])
# Of type 0, with one address: the way is done.
USED_UP = bytes([0, 2, 0, 0, *bytes(4)]) + socket.inet_pton(socket.AF_INET6, "2001:db8:99::1")
# Or leads on to that address.
STILL_TO_GO = USED_UP[:3] + b"\x01" + USED_UP[4:]
CHAINS = (
    [(HOP_BY_HOP, MAY_CHANGE)],
    [(HOP_BY_HOP, MAY_NOT)],
    [(DESTINATION, MAY_CHANGE)],
    [(HOP_BY_HOP, MAY_CHANGE), (DESTINATION, MAY_NOT)],
    [(ROUTING, USED_UP)],
    [(HOP_BY_HOP, MAY_NOT), (DESTINATION, MAY_CHANGE), (ROUTING, USED_UP), (DESTINATION, MAY_CHANGE)],
)


def in_hex(chain: list[tuple[int, bytes]]) -> list[tuple[int, str]]:
    """A chain as it is passed on to whoever sends it."""
    return [(kind, header.hex()) for kind, header in chain]


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
        kernel, ours = self._counters([pair])
        return {
            "back": back,
            # Both sides saw as many behind AH, each way, as were answered: none came in clear.
            "protected": [
                kernel[spi] == ours[spi] and ours[spi].packets >= sum(back)
                for spi in (pair.spi_out, pair.spi_in)
            ],
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
        """By chain of extension headers: how many from here were answered, and how many from the kernel's side."""
        found = []
        echo = self.host.call(lambda: Echo([pair.local]))
        try:
            for chain in map(in_hex, CHAINS):
                found.append(self.host.call(lambda: behind(pair.local, pair.remote, chain, PINGS)))  # noqa: B023
                found.append(self._from_there(pair, chain))
        finally:
            echo.close()
        return found

    def _from_there(self, pair: Pair, chain: list[tuple[int, str]]) -> int:
        return int(self.guest.ask("behind", source=pair.remote, target=pair.local, chain=chain, count=PINGS))


@pytest.mark.parametrize("esn", [False, True])
@pytest.mark.parametrize(
    ("protocol", "family", "suite"),
    [
        *(("ah", 4, "sha256"), ("ah", 4, "sha512"), ("ah", 6, "sha256"), ("ah", 6, "aescmac")),
        *(("esp", 4, "aes128gcm16"), ("esp", 6, "aes128gcm16")),
    ],
)
def test_headers_before(linux: Guest, protocol: str, family: int, suite: str, esn: bool) -> None:
    """Nothing is lost and no ICV is wrong, whoever sends; ESP goes behind the same headers."""
    case = Case(suite=suite, protocol=protocol, mode="transport", outer=family, inner=family, esn=esn)
    world = Headers(linux, [case])
    with world.opened():
        found = world.prove([case])[case]
    kinds = 2 * len(PING_OPTIONS if family == 4 else CHAINS)
    assert found == {"back": [PINGS] * kinds, "protected": [True, True], "errors": {}, "drops": {}}


class OnTheWay(Headers):
    """What the kernel sends by a route that leads on from us."""

    def _datagrams(self, pair: Pair) -> list[int]:
        return [self._from_there(pair, in_hex([(ROUTING, STILL_TO_GO)]))]


def test_a_route_that_leads_on(linux: Guest) -> None:
    """AH of a packet whose route does not end here is refused by name: its ICV is for another (RFC 5095, too)."""
    case = Case(suite="sha256", protocol="ah", mode="transport", outer=6, inner=6, esn=False)
    world = OnTheWay(linux, [case])
    with world.opened():
        found = world.prove([case])[case]
    assert (found["back"], found["errors"], found["drops"]) == ([0], {}, {"extension_header": 1})
