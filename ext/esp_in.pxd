"""Inbound ESP: what `loop` and the benches call."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from ext.ah cimport Ah
from ext.crypto cimport Engine, JobList
from ext.follow cimport Sources
from ext.packet cimport BATCH_MAX, Batch, Leaders
from ext.sa cimport Replay, Tables

cdef struct Bundled:            # packets whose AH is off, and whose ESP comes next
    uint32_t count
    bint opening                # what goes through the walk now is these
    uint8_t packets[BATCH_MAX]  # their indices
    uint32_t under[BATCH_MAX]   # by packet: the SA that its AH was of

cdef struct Inbound:            # scratch of the inbound walk, one per worker; zeroed at first
    JobList jobs
    Leaders leaders             # of the outer packets, then of the inner ones
    Ah ah
    Sources elsewhere           # what `unsettled` finds of packets that do not come from their peer (follow.pyx)
    bint unsettled              # windows, counters and what is sent wait for `inbound_settle`, in another worker
    uint32_t waiting            # packets of this batch that have PACKET_WAITS
    Bundled bundled
    Replay blank                # ... and this stands for every window until then: it lets all pass

cdef void inbound(Batch *batch, Tables *tables, Engine *engine, Inbound *scratch, uint64_t now) noexcept nogil

# The same in two parts, for batches that one worker receives and another may open.
cdef void inbound_ahead(Batch *batch, Tables *tables, Engine *engine, Inbound *scratch, uint32_t ports) noexcept nogil
cdef void inbound_settle(Batch *batch, Tables *tables, const Sources *elsewhere, uint64_t now) noexcept nogil
# The rest for packets that wait: AH of SA bundles, with what is in it. `leaders` are told of the inner flows.
cdef void inbound_late(Batch *batch, Tables *tables, Engine *engine, Inbound *scratch, Leaders *leaders,
                       uint64_t now) noexcept nogil

# The stages of `inbound`, in order, for the bench that times each (engine.open is the other).
cdef void find_sas(Batch *batch, Tables *tables, const Engine *engine, const Leaders *leaders) noexcept nogil
cdef void admit(Batch *batch, Tables *tables, Inbound *scratch) noexcept nogil
cdef void finish(Batch *batch, Tables *tables, Inbound *scratch, uint64_t now) noexcept nogil
cdef void select_and_route(Batch *batch, Tables *tables, Inbound *scratch) noexcept nogil
