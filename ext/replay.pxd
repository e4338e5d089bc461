"""Anti-replay window: RFC 4303 3.4.3 and Appendix A, kept in blocks as RFC 6479 does."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from ext.counters cimport DROP_REPLAY, DROP_REPLAY_OLD, PASS
from ext.sa cimport REPLAY_BLOCKS, Replay

cdef extern from *:
    """
    #define LOAD_ACQUIRE(address) __atomic_load_n((address), __ATOMIC_ACQUIRE)
    #define STORE_TOP(address, value) __atomic_store_n((address), (value), __ATOMIC_RELEASE)
    """
    void store_top "STORE_TOP"(uint64_t *address, uint64_t value) noexcept nogil
    uint64_t load_acquire "LOAD_ACQUIRE"(const uint64_t *address) noexcept nogil

cdef inline uint64_t extend_sequence(uint64_t top, uint32_t window, uint32_t low) noexcept nogil:
    """The 64-bit number that `low` stands for, seen from `top` (RFC 4303 A2.1)."""
    cdef uint64_t top_high = top >> 32
    cdef uint32_t top_low = <uint32_t>top
    cdef uint32_t bottom = top_low - window + 1
    if top_low >= window - 1:
        # Case A: the window lies in one subspace; a number below it belongs to the next.
        return (top_high + (low < bottom)) << 32 | low
    # Case B: the window reaches back into the subspace before. There is none before the first.
    if low >= bottom and top_high > 0:
        return (top_high - 1) << 32 | low
    return top_high << 32 | low

cdef inline uint8_t replay_check(const Replay *replay, uint64_t sequence) noexcept nogil:
    """May this number be new? Reads only: the window moves after the ICV has passed, in replay_accept."""
    cdef uint64_t top = load_acquire(&replay.top)
    if replay.window == 0 or sequence > top:
        return PASS
    if sequence == 0 or top - sequence >= replay.window:
        return DROP_REPLAY_OLD
    if replay.blocks[(sequence >> 6) & (REPLAY_BLOCKS - 1)] >> (sequence & 63) & 1:
        return DROP_REPLAY
    return PASS

cdef void replay_lock(Replay *replay, uint32_t owner) noexcept nogil
cdef void replay_unlock(Replay *replay) noexcept nogil
cdef uint8_t replay_accept_rest(Replay *replay, uint64_t sequence) noexcept nogil

cdef inline uint8_t replay_accept(Replay *replay, uint64_t sequence) noexcept nogil:
    """Mark a number as seen, moving the window when it is the highest; the caller holds the lock.

    PASS, or the drop that a second copy deserves. Here: the next number in the top's own block.
    """
    cdef uint64_t top = replay.top
    if sequence > top and sequence >> 6 == top >> 6:
        replay.blocks[(sequence >> 6) & (REPLAY_BLOCKS - 1)] |= <uint64_t>1 << (sequence & 63)
        store_top(&replay.top, sequence)
        return PASS
    return replay_accept_rest(replay, sequence)
