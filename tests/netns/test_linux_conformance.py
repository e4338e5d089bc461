"""Our gateway and the Linux kernel's IPsec agree: pings, TCP and 1,000 datagrams of random sizes through every case.

Nothing is lost, and both sides count the same packets and no error. By default a suite of each kind,
with every mix of families, ESN and UDP encapsulation once; all combinations with --full.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator

import pytest

from tests.conformance import LINUX
from tests.conftest import Agreement
from tests.peers.linux.cases import SUITES, Case
from tests.peers.linux.guest import Guest
from tests.peers.linux.world import World

pytestmark = pytest.mark.root

MIXES = tuple(itertools.product((4, 6), repeat=2))
WAYS = tuple(itertools.product(MIXES, (False, True), (False, True)))  # (outer, inner), esn, encap


def tunnel(suite: str, way: tuple[tuple[int, int], bool, bool], driver: str = "packet") -> Case:
    """A case of tunnel mode."""
    (outer, inner), esn, encap = way
    return Case(suite=suite, outer=outer, inner=inner, esn=esn, encap=encap, driver=driver)


# One suite of each kind, and every way at least once.
KINDS = (
    *(
        "aes128gcm16",
        "aes256gcm16",
        "aes192gcm8",
        "chacha20poly1305",
        "aes128ccm16",
        "aes256ccm8",
        "aes128gmac",
    ),
    *("aes128-sha256", "aes192-sha384", "aes256-sha512", "aes128-sha1", "aes256-aescmac", "aes128-aesxcbc"),
    *("aes128ctr-sha256", "aes256ctr-aescmac", "null-sha256", "null-aesxcbc"),
)
SHORT = [tunnel(suite, way) for suite, way in zip(KINDS, itertools.cycle(WAYS), strict=False)]
HOSTS = tuple(itertools.product((4, 6), (False, True), (False, True)))  # family, esn, encap


def transport(suite: str, way: tuple[int, bool, bool], driver: str = "packet") -> Case:
    """A case of transport mode."""
    family, esn, encap = way
    return Case(
        suite=suite, mode="transport", outer=family, inner=family, esn=esn, encap=encap, driver=driver
    )


HOSTS_SHORT = [transport(suite, way) for suite, way in zip(KINDS[::2], HOSTS, strict=False)]
HOSTS_SHORT += [transport("aes256gcm16", HOSTS[0], "raw"), transport("chacha20poly1305", HOSTS[7], "udp")]
DEFAULT = [*SHORT, *HOSTS_SHORT]
ALL = dict.fromkeys(
    [
        *DEFAULT,
        *(tunnel(*each) for each in itertools.product(SUITES, WAYS)),
        *(transport(*each) for each in itertools.product(SUITES, HOSTS)),
    ]
)
PARAMETERS = [
    pytest.param(case, id=str(case), marks=() if case in DEFAULT else pytest.mark.full)
    for case in sorted(ALL, key=lambda case: case.world)
]


@pytest.fixture(scope="module")
def world_of(request: pytest.FixtureRequest, linux: Guest) -> Iterator[Callable[[Case], World]]:
    """A function that gives the gateway for a case, with all others of the run that it suits; one is open at a time."""
    cases = [item.callspec.params["case"] for item in request.session.items if item.module is request.module]
    with contextlib.ExitStack() as stack:
        current: list[World] = []

        def open_world(case: Case) -> World:
            if not current or case not in current[0].pairs:
                stack.close()
                world = World(linux, [each for each in cases if each.world == case.world], *case.world)
                current[:] = [stack.enter_context(world.opened())]
            return current[0]

        yield open_world


@pytest.mark.parametrize("case", PARAMETERS)
def test_agreement(world_of: Callable[[Case], World], case: Case, agreement: Agreement) -> None:
    """One case: nothing lost, nothing wrong, no error counted."""
    agreement(
        peer=LINUX,
        protocol=case.protocol,
        mode=case.mode,
        suite=case.suite,
        mix=case.mix,
        esn=case.esn,
        encap=case.encap,
    )
    world = world_of(case)
    try:
        world.prove(case).check(world.pairs[case])
    except BaseException as error:
        error.add_note(
            f"---- ours said\n{world.ours.log(30)}\n---- the guest's console\n{world.guest.console(30)}"
        )
        raise
