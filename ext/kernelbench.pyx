"""Times the kernels on batches in memory, beside nothing but themselves.

    lay          64 inner packets into their frames, Ethernet header first          not timed
    parse        parse_batch: link and IP header                                     timed apart
    outbound     policy look-up .. cipher .. finished outer packet, counters        timed
    turn round   what was sent is what now arrives, where it lies                   not timed
    parse        parse_batch                                                         timed apart
    inbound      SPI look-up .. cipher .. replay, trailer, selectors, route         timed

So inbound sees true sequence numbers and ICVs, and every verdict is checked. The tables must hold an outbound SA per
flow and the inbound SA that opens what it sends. The clock is read three times per batch and direction: about 1 ns
per packet, and it counts against us. `profile` times each stage of the two walks, `count_steps` counts its
instructions, and `fetch` times what the memory alone costs when SAs are cold. Receive and transmit are the ports'
business (ext.portbench); the bare cipher call is timed by the engines (`EngineHandle.bare`).
"""

from dataclasses import dataclass

from libc.errno cimport errno
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memset

from ext.clock cimport now_ns
from ext.counters cimport PASS
from ext cimport esp_in, esp_out
from ext.crypto cimport CIPHER_AES_GCM, Engine, EngineHandle, touch_key
from ext.esp_in cimport Inbound, inbound
from ext.esp_out cimport Outbound, outbound
from ext.packet cimport BATCH_MAX, LINK_ETHERNET, NO_INDEX, ROLE_PROTECTED, ROLE_UNPROTECTED, Batch, Packet, Port
from ext.policy cimport FEW, Lpm, lookup_policies, lpm_open
from ext.sa cimport Sa, Tables, TablesView, tables_enter, tables_leave
from ext.wire cimport ETHERNET_HEADER, parse_batch, restamp_ipv4, store16, store32, touch

cdef extern from *:
    """
    #include <stdlib.h>
    """
    int posix_memalign(void **area, size_t alignment, size_t size) noexcept nogil

cdef extern from *:
    """
    #include <signal.h>
    #include <sys/ptrace.h>
    #include <sys/wait.h>
    #include <unistd.h>

    static void set_mark(uint32_t *mark, uint32_t value)
    {
        *(volatile uint32_t *)mark = value;
    }

    static uint32_t get_mark(const uint32_t *mark)
    {
        return *(const volatile uint32_t *)mark;
    }

    static int single_step(int pid)
    {
        return ptrace(PTRACE_SINGLESTEP, pid, 0, 0) == 0 ? 0 : -1;
    }

    /* `count` additions in a chain, a multiple of 16; an addition takes one cycle on every CPU that we know of. */
    static void add_up(uint64_t count)
    {
        uint64_t sum = 0;
        for (; count; count -= 16)
            __asm__ volatile(".rept 16; add $3, %0; .endr" : "+r"(sum));
    }
    """
    void set_mark(uint32_t *mark, uint32_t value) noexcept nogil
    uint32_t get_mark(const uint32_t *mark) noexcept nogil
    int single_step(int pid) noexcept nogil
    void add_up(uint64_t count) noexcept nogil
    int waitpid(int pid, int *status, int options) noexcept nogil
    int kill(int pid, int signal) noexcept nogil
    int getpid() noexcept nogil
    int SIGSTOP

cdef enum:
    MARK_END = 99
    WARM_BATCHES = 8
    ADDITIONS = 1 << 20
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
    Port protected, unprotected
    Times times
    const uint8_t *template     # the inner packet
    uint32_t length
    uint32_t flows
    uint32_t base               # IPv4 destination of flow 0, host order
    uint8_t *frames
    uint64_t random
    double slowdown             # 1: none
    uint32_t *mark              # NULL, or where to say which stage begins, instead of looking at the clock


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


cdef inline uint64_t _ended(const Bench *bench, uint64_t begun) noexcept nogil:
    """Now; with a slowdown, once the walk that began at `begun` has taken that many times its time."""
    cdef uint64_t now = now_ns()
    cdef uint64_t end
    if bench.slowdown > 1.0:
        end = begun + <uint64_t>((now - begun) * bench.slowdown)
        while now < end:
            now = now_ns()
    return now


cdef int _measure(Bench *bench, Tables *tables, Engine *engine, uint32_t batches) noexcept nogil:
    """Add the time of `batches` batches to bench.times; -1, or a verdict that should not be (inbound: + 256)."""
    cdef uint64_t begun, parsed
    cdef uint32_t _batch, index
    cdef int bad
    for _batch in range(batches):
        _lay(bench)
        begun = now_ns()
        parse_batch(&bench.batch, &bench.protected, &bench.out.leaders)
        parsed = now_ns()
        outbound(&bench.batch, tables, engine, &bench.out, True, parsed)
        bench.times.out += _ended(bench, parsed) - parsed
        bench.times.out_parse += parsed - begun
        bad = _first_bad(bench)
        if bad >= 0:
            return bad
        for index in range(bench.batch.count):
            _add_link(&bench.batch.packets[index])
        begun = now_ns()
        parse_batch(&bench.batch, &bench.unprotected, &bench.into.leaders)
        parsed = now_ns()
        inbound(&bench.batch, tables, engine, &bench.into, parsed)
        bench.times.into += _ended(bench, parsed) - parsed
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
    bench.slowdown = 1.0
    bench.protected.link = LINK_ETHERNET
    bench.protected.role = ROLE_PROTECTED
    bench.unprotected.link = LINK_ETHERNET
    bench.unprotected.role = ROLE_UNPROTECTED
    return bench


cdef int _check(int bad) except -1:
    """RuntimeError for a verdict that `_measure` found."""
    from ext.counters import VERDICT_NAMES

    if bad >= 0:
        raise RuntimeError(f"{'in' if bad & 256 else 'out'}bound: a packet ended as {VERDICT_NAMES[bad & 255]!r}")
    return 0


def measure(TablesView view, EngineHandle engine, bytes packet, uint32_t batches, uint32_t flows=1,
            uint32_t base=0, uint64_t seed=1, double slowdown=1.0) -> Timing:
    """Time `batches` batches of 64 packets, outbound and inbound.

    `packet` is the inner IP packet; with `flows` > 1 (IPv4 only) its destination is `base` + a random number below
    `flows`. `slowdown` makes each walk take so many times its time: a regression made to order, for those who look
    for one. Raises RuntimeError with the verdict when a packet does not pass.
    """
    cdef Bench *bench = _make(packet, flows, base, seed)
    cdef Times times
    cdef int bad
    cdef double packets = <double>batches * BATCH_MAX
    bench.slowdown = slowdown
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


# The same, stage by stage.

OUTBOUND_STAGES = ("parse", "look up", "admit", "number", "build", "seal", "account")
INBOUND_STAGES = ("parse", "find SA", "admit", "open", "finish", "select and route")
STAGES = tuple(f"out: {name}" for name in OUTBOUND_STAGES) + tuple(f"in: {name}" for name in INBOUND_STAGES)


cdef inline uint64_t _begin(Bench *bench, uint32_t mark) noexcept nogil:
    """Now; or, for who counts steps, only the mark of the stage that begins (its number + 1; 0: none does)."""
    if bench.mark != NULL:
        set_mark(bench.mark, mark)
        return 0
    return now_ns()


cdef inline uint64_t _lap(Bench *bench, uint64_t *stages, uint32_t stage, uint64_t begun) noexcept nogil:
    """Add what has passed since `begun` to a stage, and begin the next."""
    cdef uint64_t now = _begin(bench, stage + 2)
    stages[stage] += now - begun
    return now


cdef inline void _last_lap(Bench *bench, uint64_t *stages, uint32_t stage, uint64_t begun) noexcept nogil:
    """Add what has passed since `begun` to the last stage of a walk."""
    stages[stage] += _begin(bench, 0) - begun


cdef int _profile(Bench *bench, Tables *tables, Engine *engine, uint32_t batches, uint64_t *stages) noexcept nogil:
    """As `_measure`; stages[0:7] and [7:13] are those of `profile`."""
    cdef uint64_t at
    cdef uint32_t _batch, index
    cdef int bad
    cdef Batch *batch = &bench.batch
    for _batch in range(batches):
        _lay(bench)
        at = _begin(bench, 1)
        parse_batch(batch, &bench.protected, &bench.out.leaders)
        at = _lap(bench, stages, 0, at)
        lookup_policies(batch, tables, &bench.out.leaders)
        if bench.out.leaders.count > FEW:
            esp_out.touch_sas(batch, tables, engine, &bench.out.leaders)
        at = _lap(bench, stages, 1, at)
        esp_out.admit(batch, tables, &bench.out, True)
        at = _lap(bench, stages, 2, at)
        esp_out.number(batch, tables, &bench.out)
        at = _lap(bench, stages, 3, at)
        esp_out.build(batch, tables, &bench.out)
        at = _lap(bench, stages, 4, at)
        engine.seal(engine, &bench.out.jobs)
        at = _lap(bench, stages, 5, at)
        esp_out.account(batch, tables, &bench.out, at)
        _last_lap(bench, stages, 6, at)
        bad = _first_bad(bench)
        if bad >= 0:
            return bad
        for index in range(batch.count):
            _add_link(&batch.packets[index])
        at = _begin(bench, 8)
        parse_batch(batch, &bench.unprotected, &bench.into.leaders)
        at = _lap(bench, stages, 7, at)
        esp_in.find_sas(batch, tables, engine, &bench.into.leaders)
        at = _lap(bench, stages, 8, at)
        esp_in.admit(batch, tables, &bench.into)
        at = _lap(bench, stages, 9, at)
        engine.open(engine, &bench.into.jobs)
        at = _lap(bench, stages, 10, at)
        esp_in.finish(batch, tables, &bench.into, at)
        at = _lap(bench, stages, 11, at)
        esp_in.select_and_route(batch, tables, &bench.into)
        _last_lap(bench, stages, 12, at)
        bad = _first_bad(bench)
        if bad >= 0:
            return bad + 256
    return -1


def profile(TablesView view, EngineHandle engine, bytes packet, uint32_t batches, uint32_t flows=1,
            uint32_t base=0, uint64_t seed=1) -> dict[str, float]:
    """Nanoseconds per packet by stage ("out: parse", ...); arguments and errors as in `measure`.

    The clock adds about half a nanosecond to each stage.
    """
    cdef Bench *bench = _make(packet, flows, base, seed)
    cdef uint64_t stages[13]
    cdef int bad
    memset(stages, 0, sizeof(stages))
    with nogil:
        tables_enter(&view.c)
        bad = _profile(bench, &view.c, &engine.c, batches, stages)
        tables_leave(&view.c)
    free(bench.frames)
    free(bench)
    _check(bad)
    return {name: stages[index] / (<double>batches * BATCH_MAX) for index, name in enumerate(STAGES)}


# Its instructions, counted one by one.

def walk_to_be_counted(TablesView view, EngineHandle engine, bytes packet, marks) -> None:
    """For a traced child: walk until all is warm, stop (SIGSTOP), then walk one batch and say where it is.

    `marks` is a shared buffer of 4 bytes: the stage's number in STAGES + 1, 0 outside of them, MARK_END at the end.
    Errors as `measure`.
    """
    cdef Bench *bench = _make(packet, 1, 0, 1)
    cdef uint64_t stages[13]
    cdef unsigned char[::1] shared = marks
    cdef int bad
    memset(stages, 0, sizeof(stages))
    with nogil:
        tables_enter(&view.c)
        bad = _profile(bench, &view.c, &engine.c, WARM_BATCHES, stages)
        if bad < 0:
            bench.mark = <uint32_t *>&shared[0]
            kill(getpid(), SIGSTOP)
            bad = _profile(bench, &view.c, &engine.c, 1, stages)
            set_mark(bench.mark, MARK_END)
        tables_leave(&view.c)
    free(bench.frames)
    free(bench)
    _check(bad)


def count_steps(int pid, marks) -> dict[str, float]:
    """Instructions per packet by stage, of a stopped child in `walk_to_be_counted`, which is stepped to its end.

    Those that set the marks are among them: one or two per stage and batch. Raises OSError when it cannot be traced, or
    ends before its mark does.
    """
    cdef const unsigned char[::1] shared = marks
    cdef const uint32_t *mark = <const uint32_t *>&shared[0]
    cdef uint64_t counts[14]
    cdef uint32_t stage = 0
    cdef int status = 0
    memset(counts, 0, sizeof(counts))
    with nogil:
        while True:
            stage = get_mark(mark)
            if stage == MARK_END or single_step(pid) != 0 or waitpid(pid, &status, 0) != pid:
                break
            if status & 0xFF != 0x7F or stage > 13:     # it has ended, or the mark is no stage's
                break
            counts[stage] += 1
    if stage != MARK_END:
        raise OSError(errno, f"process {pid} cannot be stepped, or ended with status {status:#x} in stage {stage}")
    return {name: counts[index + 1] / <double>BATCH_MAX for index, name in enumerate(STAGES)}


def gigahertz() -> float:
    """The clock of this core just now: additions per nanosecond, each of which waits for the one before."""
    cdef uint64_t begun = now_ns()
    add_up(ADDITIONS)
    return <double>ADDITIONS / <double>(now_ns() - begun)


# What memory alone costs.

cdef inline uint64_t _draw_below(uint64_t *random, uint64_t end) noexcept nogil:
    random[0] ^= random[0] >> 12
    random[0] ^= random[0] << 25
    random[0] ^= random[0] >> 27
    return ((random[0] * <uint64_t>0x2545F4914F6CDD1DULL) >> 32) % end


cdef void _fetch(const Tables *tables, const Engine *engine, uint64_t packets, uint64_t sas, bint opening,
                 uint64_t seed) noexcept nogil:
    """Touch every line that a packet of a random SA needs, and do nothing with them."""
    cdef uint64_t random = seed | 1
    cdef uint64_t _packet
    cdef const Sa *sa
    cdef Lpm spd
    lpm_open(&spd, tables, &tables.header.spd)
    for _packet in range(packets):
        sa = &tables.sas[_draw_below(&random, sas)]
        touch_key(engine, &sa.key, CIPHER_AES_GCM, opening)
        touch(&sa.hot)
        touch(&tables.sa_counters[_draw_below(&random, sas)])
        if opening:
            touch(&tables.spis[_draw_below(&random, <uint64_t>tables.header.spi_mask + 1)])
            touch(&sa.inbound)
            touch(&sa.replay)
            touch(&sa.replay.blocks)
        else:
            touch(&spd.slots[_draw_below(&random, <uint64_t>spd.mask + 1)])
            touch(&sa.sequence)


def fetch(TablesView view, EngineHandle engine, uint64_t packets, uint64_t sas, bint opening, uint64_t seed=1) -> float:
    """Nanoseconds per packet to fetch the lines that AES-GCM packets of random SAs need, as fast as memory gives them.

    `sas` is how many records of the SAD to pick from, 1 or more; `seed` begins the choice.
    """
    cdef uint64_t begun
    if not 1 <= sas <= view.c.header.max_sas or packets == 0:
        raise ValueError(f"{packets} packets of {sas} SAs; wanted some of 1 to {view.c.header.max_sas}")
    begun = now_ns()
    with nogil:
        _fetch(&view.c, &engine.c, packets, sas, opening, seed)
    return (now_ns() - begun) / <double>packets
