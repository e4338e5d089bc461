"""Our gateway and the Linux kernel's IPsec agree: pings, TCP and 1,000 datagrams of random sizes through every case.

Nothing is lost, and both sides count the same packets and no error. By default each suite and every
mix of families, ESN and UDP encapsulation once; all combinations with --full.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator

import pytest

from tests.peers.linux.cases import EVERYDAY, SUITES, Case
from tests.peers.linux.guest import Guest
from tests.peers.linux.world import World

pytestmark = pytest.mark.root

MIXES = tuple(itertools.product((4, 6), repeat=2))
WAYS = tuple(itertools.product(MIXES, (False, True), (False, True)))  # (outer, inner), esn, encap


def tunnel(suite: str, way: tuple[tuple[int, int], bool, bool], driver: str = "packet") -> Case:
    """A case of tunnel mode."""
    (outer, inner), esn, encap = way
    return Case(suite=suite, outer=outer, inner=inner, esn=esn, encap=encap, driver=driver)


# Every suite of every day and every way at least once.
SHORT = [tunnel(suite, way) for suite, way in zip(EVERYDAY, itertools.cycle(WAYS))]
XDP = [tunnel(suite, WAYS[at], "xdp") for suite, at in (("aes128gcm16", 2), ("aes256-sha256", 13))]
ALL = list(dict.fromkeys([*SHORT, *(tunnel(*each) for each in itertools.product(SUITES, WAYS)), *XDP]))
PARAMETERS = [
    pytest.param(case, id=str(case), marks=() if case in SHORT or case in XDP else pytest.mark.full)
    for case in sorted(ALL, key=lambda case: case.driver)
]


@pytest.fixture(scope="module")
def world_of(request: pytest.FixtureRequest, linux: Guest) -> Iterator[Callable[[str], World]]:
    """A function that gives the gateway of a driver, with all the driver's cases of this run; one is open at a time."""
    cases = [item.callspec.params["case"] for item in request.session.items if item.module is request.module]
    with contextlib.ExitStack() as stack:
        current: list[World] = []

        def open_world(driver: str) -> World:
            if not current or current[0].driver != driver:
                stack.close()
                world = World(linux, [case for case in cases if case.driver == driver], driver)
                current[:] = [stack.enter_context(world.opened())]
            return current[0]

        yield open_world


@pytest.mark.parametrize("case", PARAMETERS)
def test_agreement(world_of: Callable[[str], World], case: Case) -> None:
    """One case: nothing lost, nothing wrong, no error counted."""
    world = world_of(case.driver)
    try:
        world.prove(case).check(world.pairs[case])
    except BaseException as error:
        error.add_note(
            f"---- ours said\n{world.ours.log(30)}\n---- the guest's console\n{world.guest.console(30)}"
        )
        raise
