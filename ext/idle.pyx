"""How long a worker looks for packets before it sleeps: as long as it pays, on a CPU that nobody else wants.

    a round is empty -> idle_enough: look again, or sleep? -> (sleep) -> idle_woken: was it worth it?

To be woken costs a packet 10 to 40 microseconds, several times what a gateway needs for it. So where pauses between
packets are short, the worker looks into its rings until the next comes; where they are long, it sleeps at once. What
it has found by sleeping decides: a pause that looking would have bridged doubles the time for which it looks, a longer
one halves it, down to none. An idle gateway never looks.

Somebody who looks is always runnable, and so is not let in before others as a sleeper is that wakes. Between two
looks the worker yields, so whoever waits for the CPU has it next. If the clock has jumped then, somebody kept it, and
from there on being woken is quicker: no looking for 20 ms, twice as long each time it happens again, up to a second.

All functions are pure: they take the time, and nothing but the struct is changed.
"""

from libc.string cimport memset

cdef enum:
    SPIN_NS = 100000            # at most: pauses of steady traffic of 10,000 packets per second
    FIRST_NS = 12500            # where growing begins, and shrinking ends
    AWAY_NS = 200000            # between two looks: longer than interrupts and the kernel's network work take
    BAR_NS = 20000000
    BAR_MOST_NS = 1000000000


cdef void idle_begin(Idle *idle, bint spin) noexcept nogil:
    """A worker that has seen nothing yet; without `spin` it always sleeps at once."""
    memset(idle, 0, sizeof(Idle))
    idle.most = SPIN_NS if spin else 0


cdef bint idle_enough(Idle *idle, uint64_t now) noexcept nogil:
    """After a few empty rounds: True when it is time to sleep, else look on."""
    if idle.most == 0:
        return True
    if idle.since == 0:
        idle.since = now
    elif now - idle.seen > <uint64_t>AWAY_NS:
        if idle.bar == 0 or now > idle.barred + <uint64_t>BAR_MOST_NS:
            idle.bar = BAR_NS
        else:
            idle.bar = min(2 * idle.bar, <uint64_t>BAR_MOST_NS)
        idle.barred = now + idle.bar
        idle.budget = 0
    idle.seen = now
    return now - idle.since >= idle.budget


cdef void idle_woken(Idle *idle, uint64_t now) noexcept nogil:
    """After sleep: the next stretch is as long as this one says."""
    cdef uint64_t pause = now - idle.since
    if idle.since == 0 or idle.most == 0:
        return
    idle.since = 0
    if pause > idle.most:
        idle.budget = idle.budget // 2 if idle.budget > <uint64_t>FIRST_NS else 0
    elif now >= idle.barred:
        idle.budget = min(max(2 * idle.budget, <uint64_t>FIRST_NS), idle.most)


cdef class Patience:
    """The same for tests: `spin` False is a worker that always sleeps at once. Times are nanoseconds, not 0."""

    def __init__(self, *, bint spin=True):
        idle_begin(&self.c, spin)

    @property
    def budget(self) -> int:
        """Nanoseconds of empty rounds before sleep, as things are now."""
        return self.c.budget

    def enough(self, now: int) -> bool:
        """After a few empty rounds: sleep?"""
        return idle_enough(&self.c, now)

    def over(self) -> None:
        """A round was not empty."""
        idle_over(&self.c)

    def woken(self, now: int) -> None:
        """After sleep."""
        idle_woken(&self.c, now)
