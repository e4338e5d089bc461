"""The replay window against a model that remembers every number: RFC 4303 section 3.4.3 and appendix A.

The model derives extended numbers in another way than the kernel: of all numbers with these low 32 bits it takes the
one that lies within 2**32 of the window's left edge, which is what appendix A2.1 comes to.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.model import EspProposal
from dataplane.tables import Limits, Tables
from ext.counters import VERDICT_NAMES
from ext.replay import check_and_accept
from tests.dataplane.make import GCM, GCM_ESN, make_inbound
from tests.ext.crypto_jobs import ENGINES

SPACE = 2**32


class Model:
    """A window that remembers everything."""

    def __init__(self, window: int, start: int, esn: bool) -> None:
        self.window = window
        self.top = start - 1
        self.start = start
        self.esn = esn
        self.seen: set[int] = set()

    def extend(self, low: int) -> int:
        """The 64-bit number."""
        if not self.esn:
            return low
        edge = self.top - self.window + 1
        number = edge + (low - edge) % SPACE
        return number if number >= 0 else number + SPACE

    def receive(self, low: int) -> tuple[str, int]:
        """Verdict and number."""
        number = self.extend(low)
        if number == 0 or number <= self.top - self.window:
            return "replay_old", number
        if number < self.start or number in self.seen:
            return "replay", number
        self.seen.add(number)
        self.top = max(self.top, number)
        return "pass", number


@pytest.fixture(scope="module")
def tables() -> Iterator[Tables]:
    """Tables of their own; every example takes a slot and gives it back."""
    made = Tables(
        engine=next(iter(ENGINES.values())),
        limits=Limits(max_sas=8, max_policies=8, max_selectors=16, max_adjacencies=8, max_routes=8,
                      max_prefixes=8, max_candidates=8),
    )  # fmt: skip
    yield made
    made.close()


def against_model(
    tables: Tables, proposal: EspProposal, window: int, start: int, moves: list[tuple[str, int]]
) -> None:
    """Run one history through both."""
    model = Model(window, start, proposal.esn)
    spec = make_inbound(proposal=proposal, replay_window=window, sequence=start)
    index = tables.add_sa(spec, start=start, limit=0)
    try:
        for kind, value in moves:
            if kind == "ahead":
                number = model.top + value
            elif kind == "edge":
                number = model.top - window + value
            elif kind == "again":
                number = sorted(model.seen)[value % len(model.seen)] if model.seen else start
            else:
                number = value
            if not proposal.esn and number >= SPACE:
                number = model.top
            low = number % SPACE
            verdict, got = check_and_accept(tables.view, index, low, proposal.esn)
            want = model.receive(low)
            assert (VERDICT_NAMES[verdict], got) == want, (kind, value, hex(model.top), hex(low))
            assert tables.replay_top(index) == model.top
    finally:
        tables.drop_sa(index)
        assert tables.later.run() == 0


near = st.integers(1, 130)
move = st.one_of(
    st.tuples(st.just("ahead"), near),
    st.tuples(st.just("ahead"), st.integers(-4200, 0)),
    st.tuples(st.just("ahead"), st.sampled_from([63, 64, 65, 4095, 4096, 4097, 8191, 8192, 8193, 8256])),
    st.tuples(st.just("ahead"), st.integers(1, 2**31)),
    st.tuples(st.just("edge"), st.integers(-2, 2)),
    st.tuples(st.just("again"), st.integers(0, 1000)),
    st.tuples(st.just("low"), st.integers(0, SPACE - 1)),
)
windows = st.one_of(st.sampled_from([64, 65, 127, 128, 1024, 4095, 4096]), st.integers(64, 4096))


@settings(max_examples=300, deadline=None)
@given(windows, st.one_of(st.just(1), st.integers(1, 20000)), st.lists(move, max_size=120))
def test_short_numbers(tables: Tables, window: int, start: int, moves: list[tuple[str, int]]) -> None:
    """32-bit numbers, jumps of every size, up to the end of the number space."""
    against_model(tables, GCM, window, start, moves)


esn_starts = st.one_of(
    st.just(1),
    st.integers(1, 10000),
    st.integers(SPACE - 5000, SPACE + 5000),
    st.integers(7 * SPACE - 5000, 7 * SPACE + 5000),
    st.integers(1, 2**60),
)


@settings(max_examples=400, deadline=None)
@given(windows, esn_starts, st.lists(move, max_size=120))
def test_extended_numbers(tables: Tables, window: int, start: int, moves: list[tuple[str, int]]) -> None:
    """64-bit numbers on both sides of every 2**32."""
    against_model(tables, GCM_ESN, window, start, moves)


@pytest.mark.parametrize("window", [64, 100, 1024, 4096])
def test_every_number_of_a_window(tables: Tables, window: int) -> None:
    """Backwards from the top: all of the window pass once, the next to the left does not; then all are replays."""
    for start in (1, SPACE - window // 2):
        top = start + 3 * window
        numbers = [top - at for at in range(window + 1)]
        moves = [("low", top % SPACE)] + [("low", number % SPACE) for number in numbers[1:] + numbers]
        against_model(tables, GCM_ESN, window, start, moves)


def test_a_late_workers_packets_by_default(tables: Tables) -> None:
    """What 4,095 later packets have overtaken, while a worker waited for its core, is new: no replay, no next cycle."""
    spec = make_inbound(proposal=GCM_ESN)
    index = tables.add_sa(spec, start=1, limit=0)
    try:
        for number, want in ((1, "pass"), (5000, "pass"), (905, "pass"), (4000, "pass"), (905, "replay")):
            verdict, got = check_and_accept(tables.view, index, number, True)
            assert (VERDICT_NAMES[verdict], got) == (want, number)
        # Appendix A2.1: the next 2**32.
        assert check_and_accept(tables.view, index, 904, True)[1] == SPACE + 904
    finally:
        tables.drop_sa(index)
        assert tables.later.run() == 0


def test_no_stale_bits(tables: Tables) -> None:
    """RFC 6479: after any jump, none of the numbers that the window now holds counts as seen."""
    for jump in (1, 63, 64, 65, 4096, 8128, 8191, 8192, 8193, 16384, 1 << 20):
        moves = [("low", number) for number in range(1, 4097)] + [("ahead", jump)]
        moves += [("edge", at) for at in range(1, 4097, 3)]
        against_model(tables, GCM, 4096, 1, moves)
