"""Anti-replay: check before the ICV, accept after it.

The window is a ring of 128 blocks of 64 numbers; at most 65 are in use (4096 numbers), so a block is cleared
when the window reaches it, never while it still counts. `replay_accept` re-checks, because two copies of one
packet can pass the check in one batch, or in two workers.

Accepting takes a per-SA spin lock for one batch's run. A worker that dies holding it is cleaned up after by
the supervisor (`TablesView.release_locks`), which marks the whole window as seen: no replay is let in.
"""

from ext.sa cimport TablesView

cdef extern from *:
    """
    static inline int esp_try_lock(uint32_t *lock, uint32_t owner) {
        uint32_t unlocked = 0;
        return __atomic_compare_exchange_n(lock, &unlocked, owner, 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED);
    }
    #if defined(__x86_64__)
    #define CPU_RELAX() __builtin_ia32_pause()
    #else
    #define CPU_RELAX() __asm__ volatile("yield")
    #endif
    #define UNLOCK(lock) __atomic_store_n((lock), 0, __ATOMIC_RELEASE)
    """
    bint try_lock "esp_try_lock"(uint32_t *lock, uint32_t owner) noexcept nogil
    void cpu_relax "CPU_RELAX"() noexcept nogil
    void unlock "UNLOCK"(uint32_t *lock) noexcept nogil


cdef void replay_lock(Replay *replay, uint32_t owner) noexcept nogil:
    """Wait for the SA's window; `owner` is the worker's index + 1, so that a dead owner can be told."""
    while not try_lock(&replay.lock, owner):
        cpu_relax()


cdef void replay_unlock(Replay *replay) noexcept nogil:
    """Let the window go."""
    unlock(&replay.lock)


cdef uint8_t replay_accept_rest(Replay *replay, uint64_t sequence) noexcept nogil:
    """replay_accept for numbers outside the top's block, late ones and copies."""
    cdef uint64_t top = replay.top
    cdef uint64_t block = sequence >> 6
    cdef uint64_t bit = <uint64_t>1 << (sequence & 63)
    cdef uint64_t jump
    cdef uint64_t step
    cdef uint64_t *slot = &replay.blocks[block & (REPLAY_BLOCKS - 1)]
    if replay.window == 0:
        if sequence > top:
            store_top(&replay.top, sequence)
        return PASS
    if sequence > top:
        # RFC 6479: every block that the window jumps over is cleared, else stale bits would drop good packets.
        jump = block - (top >> 6)
        if jump > REPLAY_BLOCKS:
            jump = REPLAY_BLOCKS
        for step in range(jump):
            replay.blocks[(block - step) & (REPLAY_BLOCKS - 1)] = 0
        slot[0] |= bit
        store_top(&replay.top, sequence)
        return PASS
    if sequence == 0 or top - sequence >= replay.window:
        return DROP_REPLAY_OLD
    if slot[0] & bit:
        return DROP_REPLAY
    slot[0] |= bit
    return PASS


def check_and_accept(TablesView view, uint32_t sa, uint32_t low, bint esn) -> tuple[int, int]:
    """One number through extend, check and accept on a live window: (verdict, 64-bit number). For tests."""
    cdef Replay *replay = &view.c.sas[sa].replay
    cdef uint64_t sequence = extend_sequence(replay.top, replay.window, low) if esn else low
    cdef uint8_t verdict = replay_check(replay, sequence)
    if verdict == PASS:
        replay_lock(replay, 1)
        verdict = replay_accept(replay, sequence)
        replay_unlock(replay)
    return verdict, sequence
