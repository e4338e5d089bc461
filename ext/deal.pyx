"""Dealing: one SA's packets arrive at one worker, and every worker opens them.

An SA's ESP packets have no ports, so a network card gives all of them to one queue, and that queue's worker does all
the work of a tunnel. So the worker that is full posts its batches as they came; the others, when they have nothing of
their own to do, take one and do with it, where it lies, all that needs no order: parse, find the SA, decipher,
strip, check selectors, route, write the link header. What needs order stays with the worker that received: it
settles batches in the order in which they came, so the replay window moves and packets leave exactly as if it had
been alone.

    owner     receive -> deal_post                                       while there is room for a batch
              deal_claim: open one that nobody took                      when there is none, or nothing came in
              deal_done -> settle, transmit                              the oldest batch, once it is open
    helper    deal_help: take a posted batch, open it, DONE              after a round with little of its own

One compare-and-exchange per batch decides who opens it; no lock is held by anybody. What a batch must never be is
waited for without end, so for the oldest one:

    not taken              its owner takes it back and opens it
    taken, helper dead     (its pid is gone from the tables) packets dropped as "worker_lost"
    taken, helper stopped  LATE_NS without an answer: dropped as well, and the frames kept until the helper is done
                           or dead, for it may still write into them

Dealing starts when the owner is full, that is when it has been busy for nearly a whole window and most batches were
full, and stops when its own work and what others did for it would fit one core (`deal_measure`). Where it brings less
than a tenth more, because the cores are far from each other or have other work, it is given up for a while.

Frames and slots lie in memory that all workers map, each at an address of its own: who helps shifts the pointers.

Limits: receiving and sending stay with one core, so what the ports cost bounds the gain. Outbound needs none of this:
flows spread over the queues, and any worker may send on any SA.
"""

from libc.errno cimport errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memset, strerror
from posix.unistd cimport close as close_fd
from posix.unistd cimport dup

import time

from ext.clock cimport now_ns
from ext.counters cimport DROP_WORKER_LOST, WorkerCounters
from ext.crypto cimport EngineHandle
from ext.esp_in cimport Inbound, inbound_ahead
from ext.packet cimport ROLE_UNPROTECTED, Batch, Packet, Pool, Port, frame_give
from ext.sa cimport TablesView, load32, load64, store32, store64, store64_fenced
from ext.wire cimport parse_batch, unlikely

cdef extern from *:
    """
    #include <sys/mman.h>
    #include <sys/stat.h>
    #include <unistd.h>

    static inline int esplanade_swap(uint64_t *at, uint64_t from, uint64_t to)
    {
        return __atomic_compare_exchange_n(at, &from, to, 0, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
    }
    static long long file_size(int fd)
    {
        struct stat status;
        return fstat(fd, &status) == 0 ? (long long)status.st_size : -1;
    }
    #define ASSERT_LINES(size) _Static_assert((size) % 64 == 0, #size " is not whole lines")
    #define EXCHANGE(at, value) __atomic_exchange_n((at), (value), __ATOMIC_SEQ_CST)
    #define PREFETCH_WRITE(at) __builtin_prefetch((at), 1)
    """
    void prefetch_write "PREFETCH_WRITE"(const void *at) noexcept nogil
    bint swap "esplanade_swap"(uint64_t *at, uint64_t old, uint64_t new) noexcept nogil
    void assert_lines "ASSERT_LINES"(size_t size) noexcept nogil
    uint32_t exchange "EXCHANGE"(uint32_t *at, uint32_t value) noexcept nogil
    long long file_size(int fd) noexcept nogil
    void *mmap(void *addr, size_t length, int prot, int flags, int fd, long offset) noexcept nogil
    int munmap(void *addr, size_t length) noexcept nogil
    int madvise(void *addr, size_t length, int advice) noexcept nogil
    int PROT_READ, PROT_WRITE, MAP_SHARED, MADV_DONTDUMP
    void *MAP_FAILED

cdef extern from "<stdlib.h>" nogil:
    void *aligned_alloc(size_t alignment, size_t size)

cdef extern from "<unistd.h>" nogil:
    ssize_t read(int fd, void *buffer, size_t length) noexcept
    ssize_t write(int fd, const void *buffer, size_t length) noexcept

cdef enum:
    STATE = 0xFF
    HOLDER = 0xFFFFFF           # once shifted by 8
    LEAST = 16                  # a batch with fewer packets is not worth handing over
    LATE_NS = 100000000         # a helper that takes longer has been stopped, and its batch is given up
    STAY_NS = 50000             # a helper sleeps when there was nothing to help with for so long
    WINDOW_NS = 2000000         # load is judged over such a time
    FETCH = 256                 # bytes of a packet that a helper asks for ahead; the CPU sees the rest coming
    POOR = 4                    # windows in a row in which dealing brought less than a tenth more: it does not pay
    LASTING = 16                # windows in which it did: it does
    PAUSE_LEAST_NS = 64000000   # from one attempt that did not pay to the next
    PAUSE_MOST_NS = 4000000000
    HUGE = 2 << 20              # each worker's frames begin on a huge page of their own


PATIENCE = 1.0  # seconds


cdef void _assert_sizes() noexcept nogil:
    """What different workers write lies in lines of its own."""
    assert_lines(sizeof(DealSlot))
    assert_lines(sizeof(DealRing))


_assert_sizes()


cdef inline DealSlot *_slot(DealRing *ring, uint64_t number) noexcept nogil:
    return &ring.slots[number & (DEAL_SLOTS - 1)]


# ---- The owner, in the order of a batch's life -----------------------------------------------------------------


cdef bint deal_room(Deal *deal) noexcept nogil:
    """Whether another batch may come under way: into the slot of number `head`."""
    cdef uint32_t place = deal.head & (DEAL_SLOTS - 1)
    if deal.head - deal.tail >= DEAL_SLOTS:
        return False
    if deal.held[place]:
        return _let_go(deal, place)
    return True


cdef void deal_post(Deal *deal, Port *port) noexcept nogil:
    """Batch `head` has come by `port`: offer it to others, or open it here where that pays better."""
    cdef uint32_t place = deal.head & (DEAL_SLOTS - 1)
    cdef DealSlot *slot = &deal.own.slots[place]
    deal.ports[place] = port
    deal.generations[place] = deal.generation
    deal.head += 1
    slot.link = port.link
    if slot.batch.count < LEAST or not deal.active:
        _open_own(deal, slot)
    else:
        store64(&slot.state, DEAL_POSTED)
        deal.tables.worker.dealt += 1
    # Others look at slots by this count; a slot that is not POSTED they leave alone.
    store64_fenced(&deal.own.posted, deal.head)
    if deal.head - deal.unclaimed > 1 and load64(&_slot(deal.own, deal.head - 2).state) == DEAL_POSTED:
        _wake_one(deal)


cdef void _wake_one(Deal *deal) noexcept nogil:
    """Batches wait for a helper: wake one of those who sleep."""
    cdef uint32_t index
    cdef uint64_t one = 1
    for index in range(deal.workers):
        if index != deal.index and load32(&deal.rings[index].asleep) and exchange(&deal.rings[index].asleep, 0):
            write(deal.wake_fds[index], &one, sizeof(one))
            return


cdef bint deal_claim(Deal *deal) noexcept nogil:
    """Open the oldest batch that nobody has taken; False when there is none."""
    cdef DealSlot *slot
    while deal.unclaimed != deal.head:
        slot = _slot(deal.own, deal.unclaimed)
        deal.unclaimed += 1
        if load64(&slot.state) == DEAL_POSTED and swap(&slot.state, DEAL_POSTED, DEAL_OWN):
            _open_own(deal, slot)
            return True
    return False


cdef void _open_own(Deal *deal, DealSlot *slot) noexcept nogil:
    """What a helper would do with a batch of ours."""
    _open(deal, slot)
    slot.spent = 0
    store64(&slot.state, DEAL_DONE)


cdef void _open(Deal *deal, DealSlot *slot) noexcept nogil:
    """All of a batch's walk that needs no order; `data` of its packets is valid here."""
    deal.arrived.link = <uint8_t>slot.link
    parse_batch(&slot.batch, &deal.arrived, &deal.into.leaders)
    inbound_ahead(&slot.batch, deal.tables, deal.engine, deal.into, deal.port_count)
    slot.leaders = deal.into.leaders
    slot.waiting = deal.into.waiting
    slot.elsewhere.count = deal.into.elsewhere.count
    if unlikely(deal.into.elsewhere.count, 0):
        slot.elsewhere = deal.into.elsewhere


cdef bint deal_done(Deal *deal) noexcept nogil:
    """The oldest batch is open, or given up (`deal_lost`). After it, `deal_drop`."""
    cdef uint32_t place = deal.tail & (DEAL_SLOTS - 1)
    cdef DealSlot *slot = &deal.own.slots[place]
    cdef uint64_t state
    if deal.head == deal.tail:
        return False
    state = load64(&slot.state)
    if state & STATE == DEAL_TAKEN:
        return _overdue(deal, place, state)
    deal.waiting_since = 0
    if state & STATE != DEAL_DONE:
        return False
    deal.helped += slot.spent
    return True


cdef void deal_drop(Deal *deal) noexcept nogil:
    """The oldest batch has left."""
    cdef uint32_t place = deal.tail & (DEAL_SLOTS - 1)
    if not deal.held[place]:
        deal.own.slots[place].state = DEAL_FREE
    deal.tail += 1
    deal.waiting_since = 0
    if deal.unclaimed < deal.tail:
        deal.unclaimed = deal.tail


cdef inline WorkerCounters *_worker(const Deal *deal, uint32_t index) noexcept nogil:
    """Another worker's counters: its pid is there while it lives."""
    return <WorkerCounters *>(<uint8_t *>deal.tables.header + deal.tables.header.workers_offset) + index


cdef inline bint _lives(const Deal *deal, uint64_t state) noexcept nogil:
    """The process that took a batch is still the one that bears its index."""
    cdef uint32_t holder = <uint32_t>(state >> 8) & HOLDER
    return holder < deal.workers and load64(&_worker(deal, holder).pid) == state >> 32


cdef bint _overdue(Deal *deal, uint32_t place, uint64_t state) noexcept nogil:
    """The oldest batch is with a helper: give it up when that one is dead or has been stopped. True: it is given up."""
    cdef uint64_t now = now_ns()
    cdef DealSlot *slot = &deal.own.slots[place]
    cdef bint lives = _lives(deal, state)
    if deal.waiting_since == 0:
        deal.waiting_since = now
    if lives and now - deal.waiting_since < LATE_NS:
        return False
    if load64(&slot.state) != state:
        return False            # it was done at the last moment: the next look finds that
    deal.held[place] = True
    slot.lost = slot.batch.count        # the frames are `_let_go`'s
    deal.tables.worker.verdicts[<int>DROP_WORKER_LOST] += slot.lost
    return True


cdef bint _let_go(Deal *deal, uint32_t place) noexcept nogil:
    """Take back the frames of a batch given up, once nobody can write into them any more; False: not yet."""
    cdef DealSlot *slot = &deal.own.slots[place]
    cdef uint64_t state = load64(&slot.state)
    cdef uint32_t at
    if state & STATE == DEAL_TAKEN and _lives(deal, state):
        return False
    for at in range(<uint32_t>slot.lost):
        frame_give(deal.ports[place].frames, slot.batch.packets[at].frame)
    slot.state = DEAL_FREE
    deal.held[place] = False
    return True


# ---- The helper ---------------------------------------------------------------------------------------------


cdef uint32_t deal_help(Deal *deal) noexcept nogil:
    """Open one batch of another worker; returns its packets, 0 when nobody has one."""
    cdef uint32_t _turn
    cdef uint32_t index
    cdef uint32_t count
    cdef uint64_t posted
    cdef DealRing *ring
    for _turn in range(deal.workers):
        index = deal.next_ring
        deal.next_ring = index + 1 if index + 1 < deal.workers else 0
        if index == deal.index:
            continue
        ring = &deal.rings[index]
        posted = load64(&ring.posted)
        if posted - deal.seen[index] > DEAL_SLOTS:
            deal.seen[index] = posted - DEAL_SLOTS
        while deal.seen[index] != posted:
            deal.seen[index] += 1
            count = _take(deal, ring, index, _slot(ring, deal.seen[index] - 1))
            if count:
                deal.next_ring = index
                return count
    return 0


cdef uint32_t _take(Deal *deal, DealRing *ring, uint32_t owner, DealSlot *slot) noexcept nogil:
    """Open this batch, if it is still to be had; returns its packets."""
    cdef uint64_t taken = <uint64_t>DEAL_TAKEN | <uint64_t>deal.index << 8 | deal.tables.worker.pid << 32
    cdef uint64_t shift, begun
    cdef uint32_t at, count
    if load64(&slot.state) != DEAL_POSTED or not swap(&slot.state, DEAL_POSTED, taken):
        return 0
    begun = now_ns()
    count = slot.batch.count
    # Not before: a new process may have taken the owner's place meanwhile, with its frames elsewhere.
    shift = <uint64_t>deal.frames + deal.share * owner - ring.frames
    _fetch(&slot.batch, shift)
    _open(deal, slot)
    for at in range(count):
        slot.batch.packets[at].data = <uint8_t *>(<uint64_t>slot.batch.packets[at].data - shift)
    deal.last_help = now_ns()
    slot.spent = deal.last_help - begun
    deal.tables.worker.helped += 1
    store64(&slot.state, DEAL_DONE)
    return count


cdef inline void _fetch(Batch *batch, uint64_t shift) noexcept nogil:
    """The frames lie elsewhere in our memory; what we need first of them is asked for, much at once."""
    cdef uint32_t at, line
    cdef Packet *packet
    for at in range(batch.count):
        packet = &batch.packets[at]
        packet.data = <uint8_t *>(<uint64_t>packet.data + shift)
        for line in range((min(packet.length, <uint32_t>FETCH) + 63) >> 6):
            prefetch_write(packet.data + 64 * line)


cdef bint deal_may_sleep(Deal *deal) noexcept nogil:
    """Say that we sleep; False when there is something to help with, or was a moment ago."""
    cdef uint32_t index
    if deal.last_help and now_ns() - deal.last_help < STAY_NS:
        return False
    exchange(&deal.own.asleep, 1)
    # Whoever posts after this look sees that we sleep: both sides store, fence, and then look.
    for index in range(deal.workers):
        if index != deal.index and load64(&deal.rings[index].posted) != deal.seen[index]:
            store32(&deal.own.asleep, 0)
            return False
    return True


cdef void deal_woken(Deal *deal, bint signalled) noexcept nogil:
    """We are awake; `signalled`: because another worker wanted help."""
    cdef uint64_t ignored
    store32(&deal.own.asleep, 0)
    if signalled:
        read(deal.wake_fds[deal.index], &ignored, sizeof(ignored))
        deal.last_help = now_ns()


# ---- When to deal ---------------------------------------------------------------------------------------------


cdef void deal_measure(Deal *deal, uint32_t received, bint full, uint64_t now) noexcept nogil:
    """Once per round: is this core full, or would what it and its helpers do fit one core?

    `now` is the time if something was received; `full`: a batch was, so more may have waited.
    """
    cdef uint64_t elapsed
    if received == 0:
        if deal.idle_since == 0 and not deal_flying(deal):
            deal.idle_since = now_ns()
        return
    if deal.idle_since:
        deal.idle += now - deal.idle_since
        deal.idle_since = 0
    deal.rounds += 1
    deal.full += full
    deal.packets += received
    elapsed = now - deal.window
    if elapsed < WINDOW_NS:
        return
    if not deal.always:
        _judge(deal, elapsed, now)
    deal.window = now
    deal.idle = deal.helped = deal.packets = deal.rounds = deal.full = 0


cdef void _judge(Deal *deal, uint64_t elapsed, uint64_t now) noexcept nogil:
    """The window is over: deal or not in the next one.

    Where another core is far away, packets cost more on the way there than the cipher does: what does not pay is
    given up, for twice as long each time.
    """
    cdef bint busy = deal.idle * 20 < elapsed and deal.full * 2 > deal.rounds
    cdef uint64_t rate = deal.packets * 1000000000 // elapsed
    if not deal.active:
        deal.active = busy and now >= deal.pause_until
        deal.rate_alone = rate
        deal.poor = deal.good = 0
        return
    if (elapsed - min(elapsed, deal.idle) + deal.helped) * 5 <= elapsed * 4:
        deal.active = False
        return
    if not busy or rate * 10 > deal.rate_alone * 11:
        deal.poor = 0
        deal.good += 1
        if deal.good >= LASTING:
            deal.pause = 0
        return
    deal.poor += 1
    if deal.poor >= POOR:
        deal.active = False
        deal.pause = min(max(2 * deal.pause, <uint64_t>PAUSE_LEAST_NS), <uint64_t>PAUSE_MOST_NS)
        deal.pause_until = now + deal.pause


# ---- Opening ------------------------------------------------------------------------------------------------


cdef inline size_t _rings_size(uint32_t workers) noexcept nogil:
    return (workers * sizeof(DealRing) + HUGE - 1) & ~<size_t>(HUGE - 1)


cdef inline size_t _share(uint32_t frame_count, uint32_t frame_size) noexcept nogil:
    return (<size_t>frame_count * frame_size + HUGE - 1) & ~<size_t>(HUGE - 1)


def team_size(uint32_t workers, uint32_t frame_count, uint32_t frame_size) -> int:
    """Bytes of the memory that a team of `workers` shares, each with so many frames."""
    return _rings_size(workers) + <size_t>workers * _share(frame_count, frame_size)


cdef class Team:
    """Worker `index` of `workers`, on the shared memory `fd` (`team_size` bytes, zeroed when made).

    `pool` is this worker's share of the frames, each with `headroom`: its ports must be on it.
    `wake_fds` is one eventfd per worker. With `always`, batches are dealt whatever the load. Raises OSError for
    memory that cannot be mapped, ValueError for one of another size.
    """

    def __cinit__(
        self, int fd, uint32_t index, uint32_t workers, wake_fds, *, uint32_t frame_count, uint32_t frame_size,
        uint32_t headroom=256, bint always=False,
    ):
        cdef uint32_t worker
        for worker in range(<uint32_t>TEAM_MAX):
            self.c.wake_fds[worker] = -1
        if not 0 < workers <= TEAM_MAX or index >= workers or len(wake_fds) != workers:
            raise ValueError(f"worker {index} of {workers} with {len(wake_fds)} wake-up descriptors;"
                             f" a team has 1 to {TEAM_MAX} workers, each with one")
        self.mapped = team_size(workers, frame_count, frame_size)
        if file_size(fd) != <long long>self.mapped:
            raise ValueError(f"the team's memory is {file_size(fd)} bytes; {workers} workers with {frame_count} frames"
                             f" of {frame_size} bytes share {self.mapped}")
        self.area = mmap(NULL, self.mapped, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
        if self.area == MAP_FAILED:
            self.area = NULL
            raise OSError(errno, f"team: mmap of {self.mapped} bytes: {strerror(errno).decode()}")
        madvise(self.area, self.mapped, MADV_DONTDUMP)
        self.c.rings = <DealRing *>self.area
        self.c.own = &self.c.rings[index]
        self.c.frames = <uint8_t *>self.area + _rings_size(workers)
        self.c.share = _share(frame_count, frame_size)
        self.c.workers = workers
        self.c.index = index
        self.c.always = self.c.active = always
        for worker in range(workers):
            self.c.wake_fds[worker] = dup(wake_fds[worker])
        self.c.into = <Inbound *>aligned_alloc(64, (sizeof(Inbound) + 63) & ~<size_t>63)
        if self.c.into == NULL:
            raise MemoryError("scratch for batches of other workers")
        memset(self.c.into, 0, sizeof(Inbound))
        self.c.into.unsettled = True
        self.c.arrived.role = ROLE_UNPROTECTED
        self.pool = Pool(frame_count, frame_size, headroom, fd=fd, offset=_rings_size(workers) + index * self.c.share)

    def __dealloc__(self):
        cdef uint32_t worker
        for worker in range(self.c.workers):
            if self.c.wake_fds[worker] >= 0:
                close_fd(self.c.wake_fds[worker])
        free(self.c.into)
        if self.area != NULL:
            munmap(self.area, self.mapped)

    cdef adopt(self, TablesView view, EngineHandle engine):
        """Take the ring over from the process that had it before; the loop calls this before its first packet.

        What that one left with helpers is waited for, since they write into frames that are ours now: TimeoutError
        after PATIENCE seconds, so that the supervisor tries again.
        """
        cdef uint32_t index
        cdef uint64_t state
        cdef DealSlot *slot
        self.c.tables = &view.c
        self.c.engine = &engine.c
        deadline = time.monotonic() + PATIENCE
        for index in range(<uint32_t>DEAL_SLOTS):
            slot = &self.c.own.slots[index]
            swap(&slot.state, DEAL_POSTED, DEAL_FREE)
            state = load64(&slot.state)
            while state & STATE == DEAL_TAKEN and _lives(&self.c, state):
                if time.monotonic() > deadline:
                    raise TimeoutError(f"worker {<uint32_t>(state >> 8) & HOLDER} has kept a batch of the worker"
                                       f" {self.c.index} before this one for {PATIENCE} s: it has been stopped")
                time.sleep(0.001)
                state = load64(&slot.state)
            slot.state = DEAL_FREE
        self.c.own.frames = <uint64_t>self.pool.c.base
        self.c.head = self.c.tail = self.c.unclaimed = self.c.own.posted
        for index in range(self.c.workers):
            self.c.seen[index] = load64(&self.c.rings[index].posted)
        store32(&self.c.own.asleep, 0)
        self.c.window = now_ns()

    def judge(self, uint32_t packets, bint full, uint64_t idle, uint64_t helped, uint64_t now) -> bool:
        """Load as a round at `now` would report it, with `idle` and `helped` nanoseconds: deal or not. For tests."""
        self.c.idle += idle
        self.c.helped += helped
        deal_measure(&self.c, packets, full, now)
        return self.c.active != 0

    @property
    def dealing(self) -> bool:
        """Whether batches are offered to other workers now."""
        return self.c.active != 0
