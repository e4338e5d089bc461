"""Dealing: what the loop and the worker see of batches that other workers open."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from ext.crypto cimport Engine, EngineHandle
from ext.esp_in cimport Inbound
from ext.follow cimport Sources
from ext.packet cimport Batch, Leaders, Pool, Port
from ext.sa cimport Tables, TablesView, load64, store64

cdef enum:
    DEAL_SLOTS = 8              # batches of one worker under way at most, a power of two
    TEAM_MAX = 64               # workers

cdef enum DealState:            # bits 0-7 of DealSlot.state
    DEAL_FREE = 0
    DEAL_OWN = 1                # its owner opens it
    DEAL_POSTED = 2             # whoever swaps it for DEAL_TAKEN, or its owner for DEAL_OWN, opens it
    DEAL_TAKEN = 3              # another worker opens it: that one's index in bits 8-31, its pid in bits 32-63
    DEAL_DONE = 4               # opened, and all has been done but for what `inbound_settle` does

cdef struct DealSlot:
    uint64_t state              # DealState and who; swapped by compare-and-exchange
    uint64_t spare_state[7]
    uint64_t spent              # nanoseconds that another worker took for it; 0: its owner opened it
    uint64_t lost               # packets of a batch given up, whose frames its owner still keeps. Written by the owner
    uint64_t link               # of the port by which the batch came: packet.Link
    uint64_t waiting            # packets that wait for who settles the batch: packet.PACKET_WAITS
    uint64_t spare_spent[4]
    Batch batch                 # Packet.data is the owner's pointer, but while a helper has the batch
    Leaders leaders             # of the inner packets
    uint8_t spare_leaders[60]
    Sources elsewhere           # packets that do not come from their peer, noted when they are settled
    uint8_t spare_elsewhere[56]

cdef struct DealRing:           # one per worker, in memory that all of them share
    uint64_t posted             # batches ever posted, over all processes that bore this index; others look here
    uint64_t frames             # the owner's own addresses of its frames
    uint64_t spare_posted[6]
    uint32_t asleep             # 1: the worker sleeps, or is about to; swapped to 0 by who wakes it
    uint32_t spare_asleep[15]
    DealSlot slots[DEAL_SLOTS]

cdef struct Deal:               # one worker's side
    DealRing *rings             # of all workers
    DealRing *own
    uint8_t  *frames            # all workers' frames: `share` bytes each
    uint64_t  share
    uint32_t  workers
    uint32_t  index
    Tables   *tables
    Engine   *engine
    uint32_t  port_count        # ports of every worker; the loop sets it
    Inbound  *into              # scratch of the walk
    Port      arrived           # stands for the port by which a batch came, when it is parsed
    bint      always            # for tests: deal whatever the load
    bint      active            # dealing now
    # Batches under way: slots head % DEAL_SLOTS down to tail % DEAL_SLOTS; below `unclaimed` none is POSTED any more.
    uint64_t  head
    uint64_t  tail
    uint64_t  unclaimed
    uint64_t  waiting_since     # when the oldest was found to be with another worker; 0: it was not
    Port     *ports[DEAL_SLOTS]
    uint64_t  generation        # of the tables, when this round began
    uint64_t  generations[DEAL_SLOTS]   # ... that in which the batch was filled
    bint      held[DEAL_SLOTS]  # given up for lost, but a live worker may still write into its frames
    # Helping.
    uint32_t  next_ring         # whom to help first
    uint64_t  last_help         # when there was something to help with
    uint64_t  seen[TEAM_MAX]    # per ring: batches that were looked at
    int       wake_fds[TEAM_MAX]
    # Load: see deal_measure.
    uint64_t  window            # when the present window began
    uint64_t  idle              # nanoseconds in it without a packet
    uint64_t  idle_since        # when the last packet was done with; 0: there is one
    uint64_t  helped            # nanoseconds that others have opened for us in it
    uint64_t  packets           # received in it
    uint64_t  rate_alone        # packets per second of the last window without dealing
    uint64_t  pause             # nanoseconds: what was waited after the last attempt that did not pay
    uint64_t  pause_until
    uint32_t  poor              # windows in a row in which dealing did not pay
    uint32_t  good              # windows in which it did
    uint32_t  rounds            # in it, with a packet
    uint32_t  full              # ... with a full batch

cdef inline bint deal_flying(const Deal *deal) noexcept nogil:
    """Some batch is under way."""
    return deal.head != deal.tail

cdef inline DealSlot *deal_slot(const Deal *deal, uint64_t number) noexcept nogil:
    """Where batch `number` is."""
    return &deal.own.slots[number & (DEAL_SLOTS - 1)]

cdef inline Port *deal_port(const Deal *deal) noexcept nogil:
    """By which the oldest batch came."""
    return deal.ports[deal.tail & (DEAL_SLOTS - 1)]

cdef inline bint deal_lost(const Deal *deal) noexcept nogil:
    """The oldest batch has been given up."""
    return deal.held[deal.tail & (DEAL_SLOTS - 1)]

cdef inline void deal_pass(Deal *deal) noexcept nogil:
    """As sa.tables_pass, once per round: the references of batches under way are still held."""
    deal.generation = load64(&deal.tables.header.generation)
    cdef uint64_t seen = deal.generations[deal.tail & (DEAL_SLOTS - 1)] if deal_flying(deal) else deal.generation
    if deal.tables.worker.seen_generation != seen:
        store64(&deal.tables.worker.seen_generation, seen)

cdef bint deal_room(Deal *deal) noexcept nogil
cdef void deal_post(Deal *deal, Port *port) noexcept nogil
cdef bint deal_claim(Deal *deal) noexcept nogil
cdef bint deal_done(Deal *deal) noexcept nogil
cdef void deal_drop(Deal *deal) noexcept nogil
cdef uint32_t deal_help(Deal *deal) noexcept nogil
cdef bint deal_may_sleep(Deal *deal) noexcept nogil
cdef void deal_woken(Deal *deal, bint signalled) noexcept nogil
cdef void deal_measure(Deal *deal, uint32_t received, bint full, uint64_t now) noexcept nogil

cdef class Team:
    """See deal.pyx."""
    cdef Deal c
    cdef void *area
    cdef size_t mapped
    cdef readonly Pool pool     # this worker's frames

    cdef adopt(self, TablesView view, EngineHandle engine)
