"""Outbound ESP: what `loop` and the benches call."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from ext.crypto cimport Engine, JobList
from ext.packet cimport BATCH_MAX, Batch, Port
from ext.policy cimport Leaders
from ext.sa cimport Tables

cdef struct Run:                # the packets of one batch that share an SA
    uint32_t sa
    uint32_t count
    uint64_t next               # the run's next sequence number
    uint64_t end                # exclusive
    uint64_t bytes              # of inner packets

cdef struct Outbound:           # scratch of the outbound walk, one per worker
    JobList jobs
    Leaders leaders
    Run runs[BATCH_MAX]
    uint32_t run_count
    uint8_t run_of[BATCH_MAX]

cdef void outbound(Batch *batch, const Tables *tables, Engine *engine, Outbound *scratch, const Port *port,
                   uint64_t now) noexcept nogil
