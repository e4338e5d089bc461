"""When a worker looks on and when it sleeps: ext.idle by a clock of the test's own, and what a worker then does."""

from __future__ import annotations

from ext.idle import Patience

US = 1_000
MS = 1_000_000
SECOND = 1_000_000_000
MOST = 100 * US
STEP = 1 * US  # between two looks at the clock


class Clock:
    """A worker's rounds as `run` of ext.loop makes them, on a clock that only the test moves."""

    def __init__(self, **options: bool) -> None:
        """Nothing seen so far."""
        self.patience = Patience(**options)
        self.now = SECOND
        self.slept = 0

    def pause(self, nanoseconds: int) -> bool:
        """No packet for so long, then one; True when the worker slept meanwhile."""
        end = self.now + nanoseconds
        slept = False
        while not slept and self.now < end:
            slept = self.patience.enough(self.now)
            self.now += 0 if slept else STEP
        self.now = max(self.now, end)
        if slept:
            self.patience.woken(self.now)
            self.slept += 1
        self.patience.over()
        return slept


def test_short_pauses_are_bridged() -> None:
    """A few wake-ups, each worth a longer look, and then none; first looks are short."""
    clock = Clock()
    budgets = []
    for _ in range(1000):
        clock.pause(60 * US)
        budgets.append(clock.patience.budget)
    assert clock.slept == 4
    assert budgets[:5] == [12_500, 25 * US, 50 * US, MOST, MOST]


def test_long_pauses_are_slept_through() -> None:
    """Whoever gets a packet a millisecond looks for none, and comes to that within a few pauses."""
    clock = Clock()
    for _ in range(10):
        clock.pause(20 * US)
    assert not clock.pause(20 * US)
    budgets = []
    for _ in range(5):
        assert clock.pause(MS)
        budgets.append(clock.patience.budget)
    assert budgets == [12_500, 0, 0, 0, 0]


def test_one_long_pause_is_no_end_of_a_stream() -> None:
    """The next short one is bridged by what is left."""
    clock = Clock()
    for _ in range(10):
        clock.pause(90 * US)
    assert clock.patience.budget == MOST
    assert clock.pause(5 * MS)
    assert clock.patience.budget == MOST // 2
    assert not clock.pause(40 * US)


def test_a_cpu_that_others_want_is_left_to_them() -> None:
    """A jump of the clock between two looks bars looking, twice as long each time, and not for ever."""
    clock = Clock()
    barred = []
    for _ in range(9):
        while clock.patience.budget == 0:
            clock.pause(20 * US)
        clock.patience.enough(clock.now)
        clock.now += 3 * MS  # somebody's slice
        assert clock.patience.enough(clock.now)
        clock.patience.woken(clock.now)
        begun = clock.now
        while clock.patience.budget == 0:
            assert clock.pause(20 * US)
        barred.append((clock.now - begun) // MS)
    assert barred == [20, 40, 80, 160, 320, 640, 1000, 1000, 1000]


def test_a_quiet_second_forgives() -> None:
    """What happened long ago does not lengthen the next bar."""
    clock = Clock()
    for _ in range(2):
        for _ in range(5000):
            clock.pause(20 * US)
        clock.patience.enough(clock.now)
        clock.now += MS
        assert clock.patience.enough(clock.now)
        clock.patience.over()
        assert clock.pause(19 * MS)
        assert clock.patience.budget == 0
        clock.now += 2 * MS
        clock.pause(20 * US)
        assert clock.patience.budget > 0
        clock.now += 2 * SECOND


def test_rounds_that_work_are_no_absence() -> None:
    """Time between empty stretches is the worker's own, however long."""
    clock = Clock()
    for _ in range(10):
        clock.pause(20 * US)
    before = clock.patience.budget
    clock.now += 50 * MS
    assert not clock.pause(10 * US)
    assert clock.patience.budget == before


def test_spin_off_always_sleeps() -> None:
    """`spin = false`: no pause is too short."""
    clock = Clock(spin=False)
    assert all(clock.pause(2 * US) for _ in range(100))
    assert clock.patience.budget == 0
