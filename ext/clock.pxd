"""The monotonic clock, without Python."""

from libc.stdint cimport uint64_t

cdef extern from *:
    """
    #include <stdint.h>
    #include <time.h>
    static inline uint64_t esplanade_now(void)
    {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
    }
    """
    # CLOCK_MONOTONIC in nanoseconds; no system call where the kernel has a vDSO for it.
    uint64_t now_ns "esplanade_now"() noexcept nogil
