"""Dummy packets: what hides when a tunnel is quiet (RFC 4303 2.6).

    dummies_make    every tick: which SAs have some due, by chance -> bytes for each, of random length

One worker makes them for all SAs. They go through the outbound walk with next header 59 (esp_out.pyx), so that nobody
on the path can tell them from others, and the peer drops them. How many a tick brings is drawn from 32 chances, nearly
a Poisson process: packets at even distances would be known by that. Chance is the kernel's, since whoever could go on
with the series would know every dummy.

Limits: DUMMY_SAS_MAX SAs; new ones are found within a second; a worker whose core is full looks rarely, and there is
nothing to hide then. Bytes are zero, which shows where the cipher is NULL.
"""

from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from ext.counters cimport PASS
from ext.packet cimport BATCH_MAX, NO_INDEX, PACKET_DUMMY, PACKET_NO_PORTS, Packet, frame_take
from ext.sa cimport SA_INBOUND, SA_LIVE, Sa
from ext.wire cimport PROTOCOL_NONE

cdef extern from "<sys/random.h>" nogil:
    ssize_t getrandom(void *buffer, size_t length, unsigned int flags)

cdef enum:
    DRAWS = 32                  # chances per tick and SA
    TAIL_ROOM = 128             # behind a packet, for ESP's trailer
    TICK_NS = 1000000 * DUMMY_TICK_MS
    SCAN_NS = 1000000000        # between two scans of the SAD, and the longest time that is made up for


cdef uint32_t dummies_make(Dummies *dummies, const Tables *tables, FramePool *frames, Batch *batch,
                           uint64_t now) noexcept nogil:
    """Fill the batch with the dummies that are due, for `outbound_known`; returns their number."""
    cdef uint64_t elapsed = now - dummies.looked
    cdef uint32_t index
    batch.count = 0
    if dummies.looked == 0 or elapsed > <uint64_t>SCAN_NS:
        elapsed = TICK_NS
    elif elapsed < <uint64_t>TICK_NS:
        return 0
    dummies.looked = now
    if dummies.scanned == 0 or now - dummies.scanned >= <uint64_t>SCAN_NS:
        dummies.scanned = now
        _scan(dummies, tables)
    for index in range(dummies.count):
        _make_some(&tables.sas[dummies.sas[index]], dummies.sas[index], tables, frames, batch, elapsed)
    return batch.count


cdef void _scan(Dummies *dummies, const Tables *tables) noexcept nogil:
    """Note the SAs that send dummies."""
    cdef uint32_t index
    dummies.count = 0
    for index in range(tables.header.sas_used):
        if _sends(&tables.sas[index]) and dummies.count < DUMMY_SAS_MAX:
            dummies.sas[dummies.count] = index
            dummies.count += 1


cdef inline bint _sends(const Sa *sa) noexcept nogil:
    """Control zeroes `dummies` before it waits for the workers and wipes the SA."""
    return sa.sequence.dummies != 0 and sa.hot.flags & (SA_LIVE | SA_INBOUND) == SA_LIVE


cdef void _make_some(const Sa *sa, uint32_t index, const Tables *tables, FramePool *frames, Batch *batch,
                     uint64_t elapsed) noexcept nogil:
    """As many of one SA as its chances of `elapsed` nanoseconds say."""
    cdef uint32_t chances[DRAWS + DRAWS]
    cdef uint32_t draw
    cdef uint64_t wins
    cdef uint64_t frame
    cdef uint32_t most
    cdef Packet *packet
    if not _sends(sa) or getrandom(chances, sizeof(chances), 0) != sizeof(chances):
        return
    # Each draw wins with a chance of rate * elapsed / DRAWS, here in units of 2**-32; `elapsed` is a second at most.
    # 2**32 / 10**9 / DRAWS is 0.134217728; the product of rate and time is below 2**40.
    wins = <uint64_t>sa.sequence.dummies * elapsed * 134217 // 1000000
    most = frames.frame_size - frames.headroom - TAIL_ROOM
    if sa.hot.inner_mtu < most:
        most = sa.hot.inner_mtu
    if most == 0:
        return
    for draw in range(DRAWS):
        if chances[draw] >= wins or batch.count == BATCH_MAX:
            continue
        if not frame_take(frames, &frame):
            return
        packet = &batch.packets[batch.count]
        batch.count += 1
        memset(packet, 0, sizeof(Packet))
        packet.frame = frame
        packet.data = frames.base + frame + frames.headroom
        packet.length = 1 + chances[DRAWS + draw] % most
        packet.headroom = <uint16_t>frames.headroom
        packet.tailroom = <uint16_t>(frames.frame_size - frames.headroom - packet.length)
        memset(packet.data, 0, packet.length if packet.length > 64 else 64)   # the walk reads a header's worth
        packet.family = 4
        packet.protocol = PROTOCOL_NONE
        packet.flags = PACKET_DUMMY | PACKET_NO_PORTS
        packet.verdict = PASS
        packet.sa = index
        packet.adjacency = NO_INDEX
