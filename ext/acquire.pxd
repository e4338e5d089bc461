"""How a worker tells control that traffic waits for an SA."""

from libc.stdint cimport uint32_t, uint64_t

from ext.packet cimport Batch, Leaders
from ext.sa cimport Tables

cdef enum:
    REMEMBERED = 64             # policies, by the low bits of their index

cdef struct AcquireLimit:       # one worker's memory of what it has reported lately
    uint32_t policies[REMEMBERED]   # index + 1; 0: none
    uint64_t until[REMEMBERED]      # CLOCK_MONOTONIC nanoseconds

cdef void report_acquires(const Batch *batch, const Leaders *leaders, Tables *tables, AcquireLimit *limit,
                          uint64_t now) noexcept nogil
