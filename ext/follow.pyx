"""A peer behind a NAT that got another mapping: authenticated packets come from elsewhere (RFC 7296 section 2.23).

    read_source     worker: where a packet comes from, while its outer header is there
    note_source     worker: the new source into the SA's own record, under its replay lock; the same one is noted once
    take_sources    control: what was noted since it last looked

Only a packet right of the replay window's top is asked: what was held up on the old way does not bring it back. Whether
the peer is followed is control's to say. A worker that dies half-way leaves an odd version, which nobody reads.
"""

from libc.stdint cimport uint16_t, uint32_t, uint64_t

from ext.counters cimport WorkerCounters
from ext.sa cimport SA_LIVE, Sa, SaSource, TablesView, load32, load64, store32, store64
from ext.wire cimport load16, load32 as read32, load64 as read64


cdef void read_source(const Packet *packet, Source *source) noexcept nogil:
    """Where a packet in UDP comes from: `data` at its outer IP header, `transport` at ESP."""
    source.port = load16(packet.data + packet.transport - 8)
    source.high = 0
    if packet.family == 4:
        source.low = read32(packet.data + 12)
    else:
        source.high = read64(packet.data + 8)
        source.low = read64(packet.data + 16)


cdef void note_source(const Source *seen, Sa *sa, Tables *tables) noexcept nogil:
    """Keep where an authenticated packet came from; the caller holds the SA's replay lock."""
    cdef SaSource *source = &sa.source
    cdef uint32_t version = source.version
    if (version and not version & 1
            and source.port == seen.port and source.low == seen.low and source.high == seen.high):
        return
    store32(&source.version, version | 1)
    source.high = seen.high
    source.low = seen.low
    source.port = seen.port
    store32(&source.version, (version | 1) + 1)
    store64(&tables.worker.moved, tables.worker.moved + 1)


def count_moved(TablesView view) -> int:
    """How often workers have noted another source so far: while it stays, there is nothing to take."""
    cdef WorkerCounters *workers = view._workers()
    cdef uint32_t index
    cdef uint64_t total = 0
    for index in range(view.c.header.workers):
        total += load64(&workers[index].moved)
    return total


def take_sources(TablesView view) -> list[tuple[int, int, int, int]]:
    """(SA index, family, source address as a number, source port) of all that was noted since the last call.

    One look at every SA slot: to be called when `count_moved` has grown. For control's view only.
    """
    cdef uint32_t index
    cdef uint32_t version
    cdef uint64_t high
    cdef uint64_t low
    cdef uint16_t port
    cdef Sa *sa
    found = []
    for index in range(view.c.header.sas_used):
        sa = &view.c.sas[index]
        version = load32(&sa.source.version)
        if version == sa.source.taken or version & 1 or not sa.hot.flags & SA_LIVE:
            continue
        high = load64(&sa.source.high)
        low = load64(&sa.source.low)
        port = sa.source.port
        if load32(&sa.source.version) != version:
            continue            # written again meanwhile, and counted again: the next call takes it
        sa.source.taken = version
        found.append((index, sa.hot.header[0] >> 4, <object>high << 64 | low, port))
    return found
