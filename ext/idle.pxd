"""How long a worker looks for packets before it sleeps. See idle.pyx."""

from libc.stdint cimport uint64_t

cdef struct Idle:               # all in nanoseconds, times of the monotonic clock
    uint64_t most               # of empty rounds before sleep; 0: sleep at once, always
    uint64_t budget             # the same, as things are now
    uint64_t since              # when rounds began to be empty; 0: the last one was not
    uint64_t seen               # the last look at the clock since then
    uint64_t barred             # no looking before then: others want the CPU
    uint64_t bar                # for how long the last time

cdef void idle_begin(Idle *idle, bint spin) noexcept nogil
cdef bint idle_enough(Idle *idle, uint64_t now) noexcept nogil
cdef void idle_woken(Idle *idle, uint64_t now) noexcept nogil
cdef inline void idle_over(Idle *idle) noexcept nogil:
    """A round was not empty."""
    idle.since = 0

cdef class Patience:
    """See idle.pyx."""
    cdef Idle c
