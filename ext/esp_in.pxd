"""Inbound ESP: what `loop` and the benches call."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from ext.ah cimport Ah
from ext.crypto cimport Engine, JobList
from ext.packet cimport Batch, Leaders
from ext.sa cimport Tables

cdef struct Inbound:            # scratch of the inbound walk, one per worker
    JobList jobs
    Leaders leaders             # of the outer packets, then of the inner ones
    Ah ah

cdef void inbound(Batch *batch, Tables *tables, Engine *engine, Inbound *scratch, uint64_t now) noexcept nogil

# The same in two halves, for `loop` where engine.open may run in another worker in between.
cdef void inbound_begin(Batch *batch, Tables *tables, const Engine *engine, Inbound *scratch) noexcept nogil
cdef void inbound_end(Batch *batch, Tables *tables, Inbound *scratch, uint64_t now) noexcept nogil

# The stages of `inbound`, in order, for the bench that times each (engine.open is the other).
cdef void find_sas(Batch *batch, Tables *tables, const Engine *engine, const Leaders *leaders) noexcept nogil
cdef void admit(Batch *batch, Tables *tables, Inbound *scratch) noexcept nogil
cdef void finish(Batch *batch, Tables *tables, Inbound *scratch, uint64_t now) noexcept nogil
cdef void select_and_route(Batch *batch, Tables *tables, Inbound *scratch) noexcept nogil
