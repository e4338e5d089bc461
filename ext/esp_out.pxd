"""Outbound ESP: what `loop` and the benches call."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from ext.ah cimport Ah
from ext.crypto cimport Engine, JobList
from ext.packet cimport BATCH_MAX, Batch, Leaders, Port
from ext.sa cimport Tables

cdef struct Run:                # the packets of one batch that share an SA
    uint32_t sa
    uint32_t count
    uint64_t next               # the run's next sequence number
    uint64_t end                # exclusive
    uint64_t bytes              # of inner packets
    uint64_t waits              # not 0: a packet was too big, and those behind it wait until it has been cut

cdef struct Outbound:           # scratch of the outbound walk, one per worker
    JobList jobs
    Leaders leaders
    uint32_t run_count
    uint32_t admitted_count
    uint32_t udp6               # jobs whose UDP checksum account() has to fill in
    uint32_t bundled            # not 0: some run's packets are to be put into AH
    uint8_t admitted[BATCH_MAX] # packets that admit() let through, in order
    uint8_t run_of[BATCH_MAX]   # their runs
    Run runs[BATCH_MAX]
    Ah ah

# `forwards`: the packets came in on a link, so this gateway is a hop and the TTL falls.
cdef void outbound(Batch *batch, const Tables *tables, Engine *engine, Outbound *scratch, bint forwards,
                   uint64_t now) noexcept nogil

# The same for packets whose SA is known already: every one leads itself, PASSes and has its `sa`.
cdef void outbound_known(Batch *batch, const Tables *tables, Engine *engine, Outbound *scratch,
                         uint64_t now) noexcept nogil

# The stages of `outbound`, in order, for the bench that times each (lookup_policies and engine.seal are the others).
cdef void touch_sas(const Batch *batch, const Tables *tables, const Engine *engine,
                    const Leaders *leaders) noexcept nogil
cdef void admit(Batch *batch, const Tables *tables, Outbound *scratch, bint forwards) noexcept nogil
cdef void number(Batch *batch, const Tables *tables, Outbound *scratch) noexcept nogil
cdef void build(Batch *batch, const Tables *tables, Outbound *scratch) noexcept nogil
cdef void account(Batch *batch, const Tables *tables, Outbound *scratch, uint64_t now) noexcept nogil
