"""Our gateway and the Linux kernel's IPsec agree: pings, TCP and 1,000 datagrams of random sizes through every case.

Half of the datagrams go each way. Nothing is lost, and both sides count the same packets and no error. By default a
suite of each kind, with every mix of families, ESN and UDP encapsulation once; with --full twice the datagrams through
those, and all combinations beside them.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import pytest

from tests.conftest import Agreement as Agrees
from tests.peers.linux.cases import INTEGRITIES, SUITES, Case, Pair
from tests.peers.linux.guest import Guest, booted
from tests.peers.linux.world import Agreement, World

pytestmark = pytest.mark.root

MIXES = tuple(itertools.product((4, 6), repeat=2))
WAYS = tuple(itertools.product(MIXES, (False, True), (False, True)))  # (outer, inner), esn, encap


def tunnel(suite: str, way: tuple[tuple[int, int], bool, bool], **rest: Any) -> Case:
    """A case of tunnel mode."""
    (outer, inner), esn, encap = way
    return Case(suite=suite, outer=outer, inner=inner, esn=esn, encap=encap, **rest)


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


def transport(suite: str, way: tuple[int, bool, bool], **rest: Any) -> Case:
    """A case of transport mode."""
    family, esn, encap = way
    return Case(suite=suite, mode="transport", outer=family, inner=family, esn=esn, encap=encap, **rest)


HOSTS_SHORT = [transport(suite, way) for suite, way in zip(KINDS[::2], HOSTS, strict=False)]
HOSTS_SHORT += [transport("aes256gcm16", HOSTS[0], driver="raw")]
HOSTS_SHORT += [transport("chacha20poly1305", HOSTS[7], driver="udp")]
# Links of 1,500 bytes: datagrams of IPv6 cross a tunnel in fragments.
NARROW = [
    tunnel("aes128gcm16", WAYS[4], driver="xdp", jumbo=False),
    tunnel("aes256-sha256", WAYS[15], driver="xdp", jumbo=False),
    tunnel("aes256gcm16", WAYS[9], jumbo=False),
    transport("aes128-sha256", HOSTS[4], jumbo=False),
    transport("chacha20poly1305", HOSTS[3], jumbo=False),
]

# AH: every integrity algorithm that the kernel has in it, and of GMAC none.
AH_WAYS = tuple(itertools.product(MIXES, (False, True)))
AH_HOSTS = tuple(itertools.product((4, 6), (False, True)))


def ah_tunnel(suite: str, way: tuple[tuple[int, int], bool]) -> Case:
    """A case of AH in tunnel mode."""
    return replace(tunnel(suite, (*way, False)), protocol="ah")


def ah_transport(suite: str, way: tuple[int, bool]) -> Case:
    """A case of AH between hosts."""
    return replace(transport(suite, (*way, False)), protocol="ah")


AH_SHORT = [
    *map(ah_tunnel, ("sha256", "sha512", "aesxcbc", "sha384"), (AH_WAYS[1], *AH_WAYS[2::2])),
    *map(ah_transport, ("sha256", "aescmac", "sha1"), (AH_HOSTS[0], *AH_HOSTS[2:])),
]
# SA bundles, AH around ESP. Where a tunnel changes the family the kernel has none: it holds the AH's selector, which
# can only be of its own family, against the packet before the tunnel, and finds no state (EEXIST).
BUNDLE_MIXES = tuple(((family, family), esn) for family in (4, 6) for esn in (False, True))
BUNDLE_SUITES = (
    ("aes128gcm16", "sha256"),
    ("aes256-sha512", "sha512"),
    ("null-sha1", "aesxcbc"),
    ("chacha20poly1305", "aescmac"),
)
BUNDLE_SHORT = [
    *(
        replace(tunnel(suite, (mix, esn, False)), around=around)
        for (mix, esn), (suite, around) in list(zip(BUNDLE_MIXES, BUNDLE_SUITES, strict=True))[::3]
    ),
    *(
        replace(transport(suite, (family, esn, False)), around=around)
        for family, esn, (suite, around) in zip((4, 6), (True, False), BUNDLE_SUITES, strict=False)
    ),
]
JUMBO_XDP = [tunnel("aes256gcm16", WAYS[7], driver="xdp")]
DEFAULT = [*SHORT, *HOSTS_SHORT, *NARROW, *JUMBO_XDP, *AH_SHORT, *BUNDLE_SHORT]
ALL = dict.fromkeys(
    [
        *DEFAULT,
        # A run that is ended early has tried every suite in some ways.
        *(tunnel(suite, way) for way in WAYS for suite in SUITES),
        *(transport(suite, way) for way in HOSTS for suite in SUITES),
        *(ah_tunnel(suite, way) for way in AH_WAYS for suite in INTEGRITIES),
        *(ah_transport(suite, way) for way in AH_HOSTS for suite in INTEGRITIES),
        *(
            replace(tunnel(suite, (mix, esn, False)), around=around)
            for mix, esn in BUNDLE_MIXES
            for suite, around in BUNDLE_SUITES
        ),
        *(
            replace(transport(suite, (family, esn, False)), around=around)
            for family, esn in AH_HOSTS
            for suite, around in BUNDLE_SUITES
        ),
        replace(transport("aes256gcm16", HOSTS[0], driver="raw"), around="sha256"),
        replace(tunnel("aes256gcm16", WAYS[0], driver="xdp"), around="sha384"),
    ]
)
PARAMETERS = [
    pytest.param(case, id=str(case), marks=() if case in DEFAULT else pytest.mark.full)
    for case in sorted(ALL, key=lambda case: case.world)
]


BATCH = 16  # cases that are proven at a time
DATAGRAMS, DATAGRAMS_MORE = 500, 1000  # each way, through each case
GUESTS = min(os.cpu_count() or 1, 4)


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What came of a case, and what the gateway and the guest had said by then."""

    found: Agreement
    pair: Pair
    said: str


class Station:
    """A guest, and the gateway that is beside it at the moment."""

    def __init__(self, guest: Guest, cases: Iterable[Case]) -> None:
        """Nothing happens before `prove`. `cases` are all of the run."""
        self.guest = guest
        self._cases = list(cases)
        self._stack = contextlib.ExitStack()
        self._world: World | None = None

    def prove(self, batch: Sequence[Case], datagrams: int) -> dict[Case, Proof]:
        """Prove the cases together, with so many datagrams through each; an error carries what was said."""
        try:
            world = self._open(batch[0])
            found = world.prove(batch, datagrams)
        except Exception as error:
            error.add_note(self._said())
            raise
        return {case: Proof(found=found[case], pair=world.pairs[case], said=self._said()) for case in batch}

    def _open(self, case: Case) -> World:
        """The gateway for a case, with all others of the run that it suits; one is open at a time."""
        if self._world is None or case not in self._world.pairs:
            self.close()
            world = World(self.guest, [each for each in self._cases if each.world == case.world], *case.world)
            self._world = self._stack.enter_context(world.opened())
        return self._world

    def _said(self) -> str:
        ours = self._world.ours.log(30) if self._world is not None else ""
        return f"---- ours said\n{ours}\n---- the guest's console\n{self.guest.console(30)}"

    def close(self) -> None:
        """End the gateway."""
        self._world = None
        self._stack.close()


class Matrix:
    """All cases of a run, a batch at a time on each of some guests: the emulation of one keeps one core busy.

    What is begun with the first case that is asked for goes on by itself, in the order of the tests.
    """

    def __init__(self, guest: Guest, cases: Sequence[Case], *, full: bool) -> None:
        """Nothing happens before `proven`. `full` is for more datagrams through those of `DEFAULT`."""
        more = set(DEFAULT) if full else set()
        batches: list[tuple[list[Case], int]] = []
        for (_, doubled), alike in itertools.groupby(cases, key=lambda case: (case.world, case in more)):
            while batch := list(itertools.islice(alike, BATCH)):
                batches.append((batch, DATAGRAMS_MORE if doubled else DATAGRAMS))
        self._waiting = iter(batches)
        self._proofs: dict[Case, Future[Proof]] = {case: Future() for case in cases}
        self._guests = [guest]
        self._beside = min(GUESTS, len(batches)) - 1
        # Programs end with the thread that started them, so each guest has one that stays to the end.
        self._pool = ThreadPoolExecutor(1 + self._beside, thread_name_prefix="guest")
        self._threads: list[Future[None]] = []

    def proven(self, case: Case) -> Proof:
        """What came of a case. What kept its batch from being proven is raised for each of them."""
        if not self._threads:
            self._threads.append(self._pool.submit(self._work, self._guests[0]))
            self._threads += [self._pool.submit(self._work_beside) for _ in range(self._beside)]
        return self._proofs[case].result()

    def _work(self, guest: Guest) -> None:
        """Prove what is waiting, batch for batch."""
        with contextlib.closing(Station(guest, self._proofs)) as station:
            while (each := next(self._waiting, None)) is not None:
                batch, datagrams = each
                try:
                    proofs = station.prove(batch, datagrams)
                except Exception as error:
                    for case in batch:
                        self._proofs[case].set_exception(error)
                else:
                    for case, proof in proofs.items():
                        self._proofs[case].set_result(proof)

    def _work_beside(self) -> None:
        """The same on one more guest."""
        with booted() as guest:
            self._guests.append(guest)
            self._work(guest)

    def close(self) -> None:
        """End everything; an error of a further guest is raised here. What is under way is not waited for."""
        self._waiting = iter(())
        if not all(proof.done() for proof in self._proofs.values()):
            for guest in self._guests:
                guest.close()
        self._pool.shutdown()
        for thread in self._threads:
            thread.result()


@pytest.fixture(scope="module")
def matrix(request: pytest.FixtureRequest, linux: Guest) -> Iterator[Matrix]:
    """The cases of this run."""
    cases = [item.callspec.params["case"] for item in request.session.items if item.module is request.module]
    with contextlib.closing(Matrix(linux, cases, full=request.config.getoption("--full"))) as made:
        yield made


@pytest.mark.parametrize("case", PARAMETERS)
def test_agreement(matrix: Matrix, case: Case, agreement: Agrees) -> None:
    """One case: nothing lost, nothing wrong, no error counted."""
    agreement(**case.agreement)
    proof = matrix.proven(case)
    try:
        proof.found.check(proof.pair)
    except AssertionError as error:
        error.add_note(proof.said)
        raise
