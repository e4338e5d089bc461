"""Times the kernels from look-up to finish on batches in memory, beside nothing but themselves.

One round: 64 inner packets are laid into their frames (not timed), `strip_link` + `outbound` run (timed), the
ESP packets stay where they lie, `strip_link` + `inbound` run on them (timed), and every verdict is checked. So
inbound sees true sequence numbers and ICVs. The tables must hold an outbound SA per flow and the inbound SA that
opens what it sends. The clock is read twice per batch and direction: under 1 ns per packet.

`profile` does the same and reports each stage. The bare cipher call is timed by the engines (`bare`).
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from ext.clock cimport now_ns
from ext.counters cimport PASS
from ext.crypto cimport Engine, EngineHandle
from ext.esp_in cimport Inbound, inbound
from ext.esp_out cimport Outbound, outbound
from ext.packet cimport BATCH_MAX, LINK_IP, NO_INDEX, Batch, Packet, Port
from ext.sa cimport Tables, TablesView, tables_enter, tables_leave
from ext.wire cimport restamp_ipv4, store32, strip_link

cdef enum:
    FRAME = 2048                # bytes between two packets: as in a worker's pool
    LEAD = 256                  # headroom, as AF_XDP leaves it

cdef struct Bench:
    Batch batch
    Outbound out
    Inbound into
    Port port
    uint8_t *frames
    uint64_t random


cdef inline uint64_t _draw(Bench *bench) noexcept nogil:
    """xorshift64*: which flow comes next."""
    bench.random ^= bench.random >> 12
    bench.random ^= bench.random << 25
    bench.random ^= bench.random >> 27
    return bench.random * <uint64_t>0x2545F4914F6CDD1DULL


cdef void _lay(Bench *bench, const uint8_t *template, uint32_t length, uint32_t flows, uint32_t base) noexcept nogil:
    """64 inner packets into their frames; with several flows, the destination tells the flow."""
    cdef uint32_t index
    cdef Packet *packet
    bench.batch.count = BATCH_MAX
    for index in range(BATCH_MAX):
        packet = &bench.batch.packets[index]
        memset(packet, 0, sizeof(Packet))
        packet.data = bench.frames + index * FRAME + LEAD
        memcpy(packet.data, template, length)
        if flows > 1:
            store32(packet.data + 16, base + <uint32_t>(_draw(bench) % flows))
            restamp_ipv4(packet.data)
        packet.length = length
        packet.headroom = LEAD
        packet.tailroom = <uint16_t>(FRAME - LEAD - length)
        packet.sa = NO_INDEX
        packet.adjacency = NO_INDEX


cdef void _turn_round(Bench *bench) noexcept nogil:
    """What was sent is what now arrives."""
    cdef uint32_t index
    cdef Packet *packet
    for index in range(bench.batch.count):
        packet = &bench.batch.packets[index]
        packet.sa = NO_INDEX
        packet.adjacency = NO_INDEX
        packet.flags = 0
        packet.verdict = PASS


cdef int _first_bad(const Bench *bench) noexcept nogil:
    cdef uint32_t index
    for index in range(bench.batch.count):
        if bench.batch.packets[index].verdict != PASS:
            return bench.batch.packets[index].verdict
    return -1


def measure(TablesView view, EngineHandle engine, bytes packet, uint32_t batches, uint32_t flows=1,
            uint32_t base=0, uint64_t seed=1) -> tuple[float, float]:
    """(outbound, inbound) nanoseconds per packet over `batches` batches of 64.

    `packet` is the inner IP packet; with `flows` > 1 (IPv4 only) its destination is `base` + a random number below
    `flows`. Raises RuntimeError with the verdict when a packet does not pass.
    """
    cdef Bench *bench = <Bench *>calloc(1, sizeof(Bench) + 64)
    cdef Tables *tables = &view.c
    cdef Engine *c_engine = &engine.c
    cdef const uint8_t *template = packet
    cdef uint32_t length = <uint32_t>len(packet)
    cdef uint64_t started
    cdef uint64_t out_ns = 0
    cdef uint64_t in_ns = 0
    cdef uint32_t _round
    cdef int bad = -1
    cdef str where = "outbound"
    if length + LEAD + 128 > FRAME:
        raise ValueError(f"packet of {length} bytes; a frame here holds {FRAME - LEAD - 128}")
    if bench == NULL:
        raise MemoryError("bench state")
    bench.frames = <uint8_t *>calloc(BATCH_MAX + 1, FRAME)
    if bench.frames == NULL:
        free(bench)
        raise MemoryError("bench frames")
    bench.random = seed
    bench.port.link = LINK_IP
    with nogil:
        tables_enter(tables)
        for _round in range(batches):
            _lay(bench, template, length, flows, base)
            started = now_ns()
            strip_link(&bench.batch, &bench.port)
            outbound(&bench.batch, tables, c_engine, &bench.out, &bench.port, started)
            out_ns += now_ns() - started
            bad = _first_bad(bench)
            if bad >= 0:
                break
            _turn_round(bench)
            started = now_ns()
            strip_link(&bench.batch, &bench.port)
            inbound(&bench.batch, tables, c_engine, &bench.into, started)
            in_ns += now_ns() - started
            bad = _first_bad(bench)
            if bad >= 0:
                with gil:
                    where = "inbound"
                break
        tables_leave(tables)
    free(bench.frames)
    free(bench)
    if bad >= 0:
        from ext.counters import VERDICT_NAMES
        raise RuntimeError(f"{where}: a packet ended as {VERDICT_NAMES[bad]!r}")
    return out_ns / batches / BATCH_MAX, in_ns / batches / BATCH_MAX
