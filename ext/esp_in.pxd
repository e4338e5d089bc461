"""Inbound ESP: what `loop` and the benches call."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from ext.crypto cimport Engine, JobList
from ext.packet cimport BATCH_MAX, Batch, Port
from ext.policy cimport Leaders
from ext.sa cimport Tables

cdef struct Inbound:            # scratch of the inbound walk, one per worker
    JobList jobs
    Leaders leaders

cdef void inbound(Batch *batch, Tables *tables, Engine *engine, Inbound *scratch, uint64_t now) noexcept nogil
