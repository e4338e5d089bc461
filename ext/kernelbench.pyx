"""Times the kernels on batches in memory, beside nothing but themselves.

    lay          64 inner packets into their frames, Ethernet header first          not timed
    parse        strip_link: link and IP header                                     timed apart
    outbound     policy look-up .. cipher .. finished outer packet, counters        timed
    turn round   what was sent is what now arrives, where it lies                   not timed
    parse        strip_link                                                         timed apart
    inbound      SPI look-up .. cipher .. replay, trailer, selectors, route         timed

So inbound sees true sequence numbers and ICVs, and every verdict is checked. The tables must hold an outbound SA per
flow and the inbound SA that opens what it sends. The clock is read three times per batch and direction: about 1 ns
per packet, and it counts against us. `profile` splits the two walks where they call the engine. Receive and transmit
are the ports' business (ext.portbench); the bare cipher call is timed by the engines (`EngineHandle.bare`).
"""

from dataclasses import dataclass

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memset

from ext.clock cimport now_ns
from ext.counters cimport PASS
from ext.crypto cimport Engine, EngineHandle, JobList
from ext.esp_in cimport Inbound, inbound
from ext.esp_out cimport Outbound, outbound
from ext.packet cimport BATCH_MAX, LINK_ETHERNET, NO_INDEX, Batch, Packet, Port
from ext.policy cimport lookup_policies
from ext.sa cimport Tables, TablesView, tables_enter, tables_leave
from ext.wire cimport ETHERNET_HEADER, restamp_ipv4, store16, store32, strip_link

cdef extern from *:
    """
    #include <stdlib.h>
    """
    int posix_memalign(void **area, size_t alignment, size_t size) noexcept nogil

cdef enum:
    FRAME = 2048                # bytes between two packets: as in a worker's pool
    LEAD = 256                  # headroom, as AF_XDP leaves it
    TAIL = 128                  # room for trailer and ICV

cdef struct Times:              # nanoseconds, all batches together
    uint64_t out_parse
    uint64_t out
    uint64_t in_parse
    uint64_t into

cdef struct Bench:
    Batch batch                 # first: a packet is a cache line
    Outbound out
    Inbound into
    Port port
    Times times
    const uint8_t *template     # the inner packet
    uint32_t length
    uint32_t flows
    uint32_t base               # IPv4 destination of flow 0, host order
    uint8_t *frames
    uint64_t random

cdef struct TimedEngine:        # passes calls on to an engine and notes when
    Engine engine               # first: what the kernels are given
    Engine *real
    uint64_t entered
    uint64_t left


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Nanoseconds per packet. `out` and `into` are the walks from look-up to finish; `*_parse` comes on top."""

    out_parse: float
    out: float
    in_parse: float
    into: float


cdef inline uint64_t _draw(Bench *bench) noexcept nogil:
    """xorshift64*: which flow comes next."""
    bench.random ^= bench.random >> 12
    bench.random ^= bench.random << 25
    bench.random ^= bench.random >> 27
    return (bench.random * <uint64_t>0x2545F4914F6CDD1DULL) >> 32


cdef void _lay(Bench *bench) noexcept nogil:
    """64 inner packets into their frames; with several flows, the destination tells the flow."""
    cdef uint32_t index
    cdef Packet *packet
    cdef uint8_t *inner
    bench.batch.count = BATCH_MAX
    for index in range(<uint32_t>BATCH_MAX):
        packet = &bench.batch.packets[index]
        memset(packet, 0, sizeof(Packet))
        packet.frame = index * FRAME
        inner = bench.frames + packet.frame + LEAD
        memcpy(inner, bench.template, bench.length)
        if bench.flows > 1:
            store32(inner + 16, bench.base + <uint32_t>(_draw(bench) % bench.flows))
            restamp_ipv4(inner)
        packet.data = inner
        packet.length = bench.length
        packet.headroom = LEAD
        packet.tailroom = <uint16_t>(FRAME - LEAD - bench.length)
        _add_link(packet)


cdef inline void _add_link(Packet *packet) noexcept nogil:
    """An Ethernet header before the packet, and all that a port's receive sets."""
    store16(packet.data - 2, 0x0800 if packet.data[0] >> 4 == 4 else 0x86DD)
    packet.data -= ETHERNET_HEADER
    packet.length += ETHERNET_HEADER
    packet.headroom -= ETHERNET_HEADER
    packet.sa = NO_INDEX
    packet.adjacency = NO_INDEX
    packet.flags = 0
    packet.verdict = PASS


cdef int _first_bad(const Bench *bench) noexcept nogil:
    """A verdict of the batch that is not PASS, or -1."""
    cdef uint32_t index
    for index in range(bench.batch.count):
        if bench.batch.packets[index].verdict != PASS:
            return bench.batch.packets[index].verdict
    return -1


cdef int _measure(Bench *bench, Tables *tables, Engine *engine, uint32_t batches) noexcept nogil:
    """Add the time of `batches` batches to bench.times; -1, or a verdict that should not be (inbound: + 256)."""
    cdef uint64_t begun, parsed
    cdef uint32_t _batch, index
    cdef int bad
    for _batch in range(batches):
        _lay(bench)
        begun = now_ns()
        strip_link(&bench.batch, &bench.port)
        parsed = now_ns()
        outbound(&bench.batch, tables, engine, &bench.out, &bench.port, parsed)
        bench.times.out += now_ns() - parsed
        bench.times.out_parse += parsed - begun
        bad = _first_bad(bench)
        if bad >= 0:
            return bad
        for index in range(bench.batch.count):
            _add_link(&bench.batch.packets[index])
        begun = now_ns()
        strip_link(&bench.batch, &bench.port)
        parsed = now_ns()
        inbound(&bench.batch, tables, engine, &bench.into, parsed)
        bench.times.into += now_ns() - parsed
        bench.times.in_parse += parsed - begun
        bad = _first_bad(bench)
        if bad >= 0:
            return bad + 256
    return -1


cdef Bench *_make(bytes packet, uint32_t flows, uint32_t base, uint64_t seed) except NULL:
    """State for one measurement; `packet` must outlive it."""
    cdef Bench *bench = NULL
    cdef uint8_t *frames = NULL
    if len(packet) + LEAD + TAIL > FRAME or len(packet) < 20:
        raise ValueError(f"packet of {len(packet)} bytes; a frame here holds 20 to {FRAME - LEAD - TAIL}")
    if flows > 1 and packet[0] >> 4 != 4:
        raise ValueError("several flows are told apart by their IPv4 destination; this packet is not IPv4")
    if (posix_memalign(<void **>&bench, 64, sizeof(Bench))
            or posix_memalign(<void **>&frames, 4096, BATCH_MAX * FRAME)):
        free(bench)
        raise MemoryError("batches and frames")
    memset(bench, 0, sizeof(Bench))
    memset(frames, 0, BATCH_MAX * FRAME)
    bench.frames = frames
    bench.template = packet
    bench.length = <uint32_t>len(packet)
    bench.flows = flows
    bench.base = base
    bench.random = seed | 1
    bench.port.link = LINK_ETHERNET
    return bench


cdef int _check(int bad) except -1:
    """RuntimeError for a verdict that `_measure` found."""
    from ext.counters import VERDICT_NAMES

    if bad >= 0:
        raise RuntimeError(f"{'in' if bad & 256 else 'out'}bound: a packet ended as {VERDICT_NAMES[bad & 255]!r}")
    return 0


def measure(TablesView view, EngineHandle engine, bytes packet, uint32_t batches, uint32_t flows=1,
            uint32_t base=0, uint64_t seed=1) -> Timing:
    """Time `batches` batches of 64 packets, outbound and inbound.

    `packet` is the inner IP packet; with `flows` > 1 (IPv4 only) its destination is `base` + a random number below
    `flows`. Raises RuntimeError with the verdict when a packet does not pass.
    """
    cdef Bench *bench = _make(packet, flows, base, seed)
    cdef Times times
    cdef int bad
    cdef double packets = <double>batches * BATCH_MAX
    with nogil:
        tables_enter(&view.c)
        bad = _measure(bench, &view.c, &engine.c, batches)
        tables_leave(&view.c)
    times = bench.times
    free(bench.frames)
    free(bench)
    _check(bad)
    return Timing(
        out_parse=times.out_parse / packets, out=times.out / packets,
        in_parse=times.in_parse / packets, into=times.into / packets,
    )


# The same, split where the walks call the engine.

cdef void _timed_seal(Engine *engine, JobList *jobs) noexcept nogil:
    """Stands before Engine.seal."""
    cdef TimedEngine *timed = <TimedEngine *>engine
    timed.entered = now_ns()
    timed.real.seal(timed.real, jobs)
    timed.left = now_ns()


cdef void _timed_open(Engine *engine, JobList *jobs) noexcept nogil:
    """Stands before Engine.open."""
    cdef TimedEngine *timed = <TimedEngine *>engine
    timed.entered = now_ns()
    timed.real.open(timed.real, jobs)
    timed.left = now_ns()


cdef int _profile(Bench *bench, Tables *tables, TimedEngine *timed, uint32_t batches, uint64_t *stages) noexcept nogil:
    """As `_measure`; stages[0:5] and [5:9] are those of `profile`."""
    cdef uint64_t begun, parsed, found
    cdef uint32_t _batch, index
    cdef int bad
    for _batch in range(batches):
        _lay(bench)
        begun = now_ns()
        strip_link(&bench.batch, &bench.port)
        parsed = now_ns()
        # Once more inside `outbound`, where it then finds its lines in the cache.
        lookup_policies(&bench.batch, tables, &bench.out.leaders)
        found = now_ns()
        outbound(&bench.batch, tables, &timed.engine, &bench.out, &bench.port, found)
        stages[4] += now_ns() - timed.left
        stages[0] += parsed - begun
        stages[1] += found - parsed
        stages[2] += timed.entered - found
        stages[3] += timed.left - timed.entered
        bad = _first_bad(bench)
        if bad >= 0:
            return bad
        for index in range(bench.batch.count):
            _add_link(&bench.batch.packets[index])
        begun = now_ns()
        strip_link(&bench.batch, &bench.port)
        parsed = now_ns()
        inbound(&bench.batch, tables, &timed.engine, &bench.into, parsed)
        stages[8] += now_ns() - timed.left
        stages[5] += parsed - begun
        stages[6] += timed.entered - parsed
        stages[7] += timed.left - timed.entered
        bad = _first_bad(bench)
        if bad >= 0:
            return bad + 256
    return -1


STAGES = (
    "out: parse", "out: look up", "out: look up again, admit, number, build", "out: seal", "out: account",
    "in: parse", "in: find SA, admit", "in: open", "in: accept, strip, select, route",
)


def profile(TablesView view, EngineHandle engine, bytes packet, uint32_t batches, uint32_t flows=1,
            uint32_t base=0, uint64_t seed=1) -> dict[str, float]:
    """Nanoseconds per packet by stage (STAGES); arguments and errors as in `measure`.

    The policy look-up runs twice: its first run is a stage of its own, the second, with warm lines, is part of the
    next stage. So the sum is a little more than what `measure` says.
    """
    cdef Bench *bench = _make(packet, flows, base, seed)
    cdef TimedEngine timed
    cdef uint64_t stages[9]
    cdef int bad
    memset(stages, 0, sizeof(stages))
    timed.engine = engine.c
    timed.engine.seal = _timed_seal
    timed.engine.open = _timed_open
    timed.real = &engine.c
    with nogil:
        tables_enter(&view.c)
        bad = _profile(bench, &view.c, &timed, batches, stages)
        tables_leave(&view.c)
    free(bench.frames)
    free(bench)
    _check(bad)
    return {name: stages[index] / (<double>batches * BATCH_MAX) for index, name in enumerate(STAGES)}
