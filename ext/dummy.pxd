"""Dummy packets (RFC 4303 2.6): what loop.pyx calls. See dummy.pyx."""

from libc.stdint cimport uint32_t, uint64_t

from ext.packet cimport Batch, FramePool
from ext.sa cimport Tables

cdef enum:
    DUMMY_SAS_MAX = 64          # SAs of a gateway that send dummies
    DUMMY_TICK_MS = 10          # between two looks at whether some are due

cdef struct Dummies:            # times in nanoseconds of the monotonic clock
    uint64_t looked             # the last tick; 0: there was none
    uint64_t scanned            # when `sas` was made
    uint32_t count
    uint32_t sas[DUMMY_SAS_MAX]

cdef uint32_t dummies_make(Dummies *dummies, const Tables *tables, FramePool *frames, Batch *batch,
                           uint64_t now) noexcept nogil
