"""The shared segment seen from one process: map, check, publish, wait, wipe.

Control makes the segment (dataplane/tables.py) and fills entries as numpy arrays; what must be one atomic
store, a fence or a guaranteed wipe is done here. Workers map it by the descriptor they were given and hand
`TablesView.c` to the kernels.

How an entry comes and goes, without a lock on the packet path:
1 control fills a free slot; 2 one store publishes it (spi_insert, set_policy_sa, set_adjacency, an LPM flip);
3 one store unlinks it; 4 bump() makes a generation; 5 when quiescent(generation), nobody can hold it;
6 wipe() zeroes it and the slot is free.

Not here: who owns which slot (dataplane/tables.py), the LPM tables (ext/policy.pyx), replay (ext/replay.pyx).
Everything but the inline functions in sa.pxd is for control: microseconds, not nanoseconds.
"""

from cpython.buffer cimport PyBUF_ND, PyBUF_STRIDES
from libc.errno cimport errno
from libc.stddef cimport size_t
from libc.stdint cimport int64_t
from libc.string cimport memset, strerror

from ext.counters cimport PortCounters, SaCounters, WorkerCounters
from ext.crypto cimport Key

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <stddef.h>
    #include <string.h>
    #include <sys/mman.h>
    #include <sys/stat.h>
    #include <sys/syscall.h>
    #include <unistd.h>

    #define ASSERT_SIZE(size, want) _Static_assert((size) == (want), #size " is not " #want)

    #define STORE16(at, value) __atomic_store_n((at), (value), __ATOMIC_RELEASE)

    static long long segment_size(int fd) {
        struct stat status;
        return fstat(fd, &status) == 0 ? (long long)status.st_size : -1;
    }

    /* By number: the wrapper is newer than some C libraries. MLOCK_ONFAULT is 1. */
    static int lock_on_fault(const void *at, size_t size) {
        return (int)syscall(SYS_mlock2, at, size, 1);
    }
    """
    void store16 "STORE16"(uint16_t *at, uint16_t value) noexcept nogil
    void assert_size "ASSERT_SIZE"(size_t size, size_t want) noexcept nogil
    long long segment_size(int fd) noexcept nogil
    int lock_on_fault(const void *at, size_t size) noexcept nogil
    void explicit_bzero(void *at, size_t size) noexcept nogil
    void *mmap(void *addr, size_t length, int prot, int flags, int fd, long offset) noexcept nogil
    int munmap(void *addr, size_t length) noexcept nogil
    int madvise(void *addr, size_t length, int advice) noexcept nogil
    int PROT_READ, PROT_WRITE, MAP_SHARED, MADV_DONTDUMP
    void *MAP_FAILED


cdef void _assert_sizes() noexcept nogil:
    assert_size(sizeof(SaSequence), 64)
    assert_size(sizeof(SaHot), 64)
    assert_size(sizeof(SaInbound), 64)
    assert_size(sizeof(Key), 1152)
    assert_size(sizeof(Replay), 64 + 8 * REPLAY_BLOCKS)
    assert_size(sizeof(Sa), SA_LINES * 64)
    assert_size(sizeof(Selector), 96)
    assert_size(sizeof(Policy), 128)
    assert_size(sizeof(Adjacency), 32)
    assert_size(sizeof(LpmSlot), 64)
    assert_size(sizeof(SaCounters), 256)
    assert_size(sizeof(PortCounters), 64)
    assert_size(sizeof(WorkerCounters), 2048)
    assert_size(sizeof(Acquire), 64)
    assert_size(sizeof(AcquireRing), 128 + 64 * ACQUIRES)


_assert_sizes()


cdef class TablesView:
    """A mapping of the segment behind `fd`; the descriptor itself may be closed afterwards.

    `worker_index` is given in workers: it sets the pointers to that worker's counters. The mapping stays
    out of core dumps and is locked in memory page by page as it is touched, if the kernel lets us
    (`lock_error` says why not). Raises OSError when it cannot be mapped and ValueError when the segment
    is not one of ours, of another version, or cut short.
    """

    def __cinit__(self, int fd, worker_index=None):
        cdef long long size = segment_size(fd)
        if size < 0:
            raise OSError(errno, f"tables segment: fstat of descriptor {fd}: {strerror(errno).decode()}")
        if size < <long long>sizeof(TablesHeader):
            raise ValueError(f"tables segment is {size} bytes; its header alone is {sizeof(TablesHeader)}")
        cdef void *area = mmap(NULL, <size_t>size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
        if area == MAP_FAILED:
            raise OSError(errno, f"tables segment: mmap of {size} bytes: {strerror(errno).decode()}")
        self.c.header = <TablesHeader *>area
        self.mapped = <size_t>size
        madvise(area, self.mapped, MADV_DONTDUMP)
        self.lock_error = ""
        if lock_on_fault(area, self.mapped) != 0:
            self.lock_error = strerror(errno).decode()
        self._check()
        self._point(worker_index)

    cdef _check(self):
        """Refuse a segment that is not laid out as this code was compiled."""
        cdef TablesHeader *header = self.c.header
        if header.magic != TABLES_MAGIC:
            raise ValueError(f"tables segment has magic 0x{header.magic:x}, wanted 0x{TABLES_MAGIC:x}")
        if header.version != TABLES_VERSION:
            raise ValueError(f"tables segment has version {header.version}, wanted {TABLES_VERSION}")
        if header.size != self.mapped:
            raise ValueError(f"tables segment is {self.mapped} bytes, its header says {header.size}")
        if header.spi_mask & (header.spi_mask + 1) or header.spi_mask < 1:
            raise ValueError(f"tables segment has SPI mask 0x{header.spi_mask:x}, wanted 2**n - 1")
        self._check_area("sas", header.sas_offset, header.max_sas, sizeof(Sa))
        self._check_area("spis", header.spis_offset, <uint64_t>header.spi_mask + 1, sizeof(uint64_t))
        self._check_area("policies", header.policies_offset, header.max_policies, sizeof(Policy))
        self._check_area("selectors", header.selectors_offset, header.max_selectors,
                         sizeof(Selector))
        self._check_area("adjacencies", header.adjacencies_offset, header.max_adjacencies,
                         sizeof(Adjacency))
        self._check_area("workers", header.workers_offset, header.workers, sizeof(WorkerCounters))
        self._check_area("sa_counters", header.sa_counters_offset,
                         <uint64_t>header.workers * header.max_sas, sizeof(SaCounters))
        self._check_area("acquires", header.acquires_offset, header.workers, sizeof(AcquireRing))

    cdef _check_area(self, str name, uint64_t offset, uint64_t count, size_t size):
        """Every array lies inside the segment, on a cache line (counts are below 2**40)."""
        if offset % 64 or offset > self.mapped or count * size > self.mapped - offset:
            raise ValueError(f"tables segment: {name} ({count} of {size} bytes at {offset}) leaves its"
                             f" {self.mapped} bytes or is off a cache line")

    cdef _point(self, worker_index):
        """Set the plain pointers that the kernels use."""
        cdef uint8_t *base = <uint8_t *>self.c.header
        cdef TablesHeader *header = self.c.header
        self.c.sas = <Sa *>(base + header.sas_offset)
        self.c.spis = <uint64_t *>(base + header.spis_offset)
        self.c.policies = <Policy *>(base + header.policies_offset)
        self.c.selectors = <Selector *>(base + header.selectors_offset)
        self.c.adjacencies = <Adjacency *>(base + header.adjacencies_offset)
        self.c.acquires = <AcquireRing *>(base + header.acquires_offset)
        self.c.worker = NULL
        self.c.sa_counters = NULL
        if worker_index is None:
            return
        if not 0 <= worker_index < header.workers:
            raise ValueError(f"worker index {worker_index}; the segment has {header.workers} workers")
        self.c.worker_index = worker_index
        self.c.worker = <WorkerCounters *>(base + header.workers_offset) + self.c.worker_index
        self.c.sa_counters = (<SaCounters *>(base + header.sa_counters_offset)
                              + <uint64_t>self.c.worker_index * header.max_sas)
        self.c.acquires += self.c.worker_index

    def __dealloc__(self):
        if self.c.header != NULL:
            munmap(self.c.header, self.mapped)

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        """The whole segment as writable bytes: numpy arrays over it keep the view alive."""
        buffer.buf = self.c.header
        buffer.obj = self
        buffer.len = self.mapped
        buffer.itemsize = 1
        buffer.readonly = 0
        buffer.ndim = 1
        buffer.format = NULL    # plain bytes
        buffer.shape = <Py_ssize_t *>&self.mapped if flags & PyBUF_ND else NULL
        buffer.strides = &buffer.itemsize if (flags & PyBUF_STRIDES) == PyBUF_STRIDES else NULL
        buffer.suboffsets = NULL
        buffer.internal = NULL

    @property
    def size(self) -> int:
        """Bytes of the segment."""
        return self.mapped

    # --- SPI table -------------------------------------------------------------------------------

    cdef int64_t _spi_place(self, uint32_t spi) noexcept nogil:
        """Where `spi` is, or -1 less the free slot where it belongs; the table is never more than half full."""
        cdef uint32_t mask = self.c.header.spi_mask
        cdef uint32_t at = spi_slot(&self.c, spi)
        while self.c.spis[at] != 0:
            if <uint32_t>(self.c.spis[at] >> 32) == spi:
                return at
            at = (at + 1) & mask
        return -1 - <int64_t>at

    def spi_insert(self, uint32_t spi, uint32_t index):
        """Publish inbound SA `index` under `spi` (host order); the slot must be filled already.

        Raises ValueError for SPI 0 or one that is taken, OverflowError when half of the table is in use.
        """
        cdef int64_t place
        if spi == 0:
            raise ValueError("SPI 0 never goes on the wire (RFC 4303 section 2.1)")
        self._sa(index)
        place = self._spi_place(spi)
        if place >= 0:
            raise ValueError(f"SPI 0x{spi:08x} is taken by SA slot {<uint32_t>self.c.spis[place] - 1}")
        if self.spis > self.c.header.spi_mask // 2:
            raise OverflowError(f"SPI table of {self.c.header.spi_mask + 1} slots is half full: that is all it takes")
        self.spis += 1
        store64(&self.c.spis[-1 - place], <uint64_t>spi << 32 | (index + 1))

    def spi_replace(self, uint32_t spi, uint32_t index):
        """Give `spi` to another SA by one store: no packet finds neither. KeyError when it is not there."""
        cdef int64_t place = self._spi_place(spi)
        self._sa(index)
        if spi == 0 or place < 0:
            raise KeyError(f"SPI 0x{spi:08x}")
        store64(&self.c.spis[place], <uint64_t>spi << 32 | (index + 1))

    def spi_remove(self, uint32_t spi):
        """Unlink `spi`; packets that carry it are unknown from now on. KeyError when it is not there.

        Entries behind it that the hole would cut off from their home move up, so years of rekeying leave no
        tombstones. A reader that passed the hole before the copy and comes to the old place after its end
        would miss: `spi_moves` is bumped between the two, and tells it to look again.
        """
        cdef uint32_t mask = self.c.header.spi_mask
        cdef int64_t place = self._spi_place(spi)
        cdef uint32_t hole
        cdef uint32_t at
        cdef uint32_t home
        if spi == 0 or place < 0:
            raise KeyError(f"SPI 0x{spi:08x}")
        hole = at = <uint32_t>place
        while True:
            at = (at + 1) & mask
            if self.c.spis[at] == 0:
                break
            home = spi_slot(&self.c, <uint32_t>(self.c.spis[at] >> 32))
            if ((at - home) & mask) >= ((at - hole) & mask):
                store64(&self.c.spis[hole], self.c.spis[at])
                store64(&self.c.header.spi_moves, self.c.header.spi_moves + 1)
                hole = at
        store64(&self.c.spis[hole], 0)
        self.spis -= 1

    def spi_lookup(self, uint32_t spi):
        """What the packet path would find: an SA index, or None."""
        cdef uint32_t index = spi_find(&self.c, spi)
        return None if index == <uint32_t>NO_INDEX else index

    def spi_misses(self, uint32_t spi, uint32_t rounds) -> int:
        """Of `rounds` look-ups without the GIL, how many did not find `spi`. For the test of concurrent moves."""
        cdef uint32_t misses = 0
        cdef uint32_t _round
        with nogil:
            for _round in range(rounds):
                misses += spi_find(&self.c, spi) == <uint32_t>NO_INDEX
        return misses

    # --- single stores ---------------------------------------------------------------------------

    cdef Sa *_sa(self, uint32_t index) except NULL:
        """The slot, or IndexError."""
        if index >= self.c.header.max_sas:
            raise IndexError(f"SA index {index}; the table holds {self.c.header.max_sas}")
        return &self.c.sas[index]

    def set_adjacency(self, uint32_t sa, uint32_t adjacency):
        """SA `sa` leaves by `adjacency` from now on (NO_INDEX: ask the kernel)."""
        if adjacency != <uint32_t>NO_INDEX and adjacency >= self.c.header.max_adjacencies:
            raise IndexError(f"adjacency {adjacency}; the table holds {self.c.header.max_adjacencies}")
        store32(&self._sa(sa).hot.adjacency, adjacency)

    def set_mtu(self, uint32_t sa, uint16_t inner, uint16_t path):
        """SA `sa` takes inner packets of up to `inner` bytes from now on, and sends outer ones of up to `path`."""
        cdef Sa *entry = self._sa(sa)
        store16(&entry.sequence.path_mtu, path)
        store16(&entry.hot.inner_mtu, inner)

    def set_resources(self, uint32_t sa, list workers):
        """Which outbound SA each of the first RESOURCES workers uses in the place of `sa` (NO_INDEX: that one)."""
        cdef uint32_t *own = <uint32_t *>&self._sa(sa).inbound
        cdef uint32_t worker
        cdef uint32_t index
        if len(workers) > RESOURCES:
            raise ValueError(f"SAs of {len(workers)} workers; the table has room for {RESOURCES}")
        for index in workers:
            if index != <uint32_t>NO_INDEX:
                self._sa(index)
        for worker in range(RESOURCES):
            store32(&own[worker], workers[worker] if worker < <uint32_t>len(workers) else <uint32_t>NO_INDEX)

    def set_bundle(self, uint32_t sa, uint32_t bundle):
        """SA `sa` is in an SA bundle from now on: index + 1 of the SA around it, or BUNDLE_*; 0: in none."""
        cdef Sa *entry = self._sa(sa)
        if 0 < bundle < <uint32_t>BUNDLE_BROKEN:
            self._sa(bundle - 1)
        store32(&entry.replay.bundle if entry.hot.flags & SA_INBOUND else &entry.sequence.bundle, bundle)

    def set_policy_sa(self, uint32_t policy, uint32_t sa):
        """Policy `policy` protects with outbound SA `sa` from now on (NO_INDEX: none; SA_SHARED: see set_resources)."""
        if policy >= self.c.header.max_policies:
            raise IndexError(f"policy {policy}; the table holds {self.c.header.max_policies}")
        if sa != <uint32_t>NO_INDEX:
            self._sa(sa & ~<uint32_t>SA_SHARED)
        cdef Policy *entry = &self.c.policies[policy]
        cdef LpmSlot *slots = <LpmSlot *>(
            <uint8_t *>self.c.header + self.c.header.spd.halves[entry.half & 1].slots_offset)
        cdef uint32_t slot = entry.slot
        store32(&entry.sa, sa)
        while slot:
            store32(&slots[slot - 1].sa, sa)
            slot = slots[slot - 1].next

    def set_limit(self, uint32_t sa, uint64_t limit):
        """Outbound SA `sa` may use numbers below `limit`; the mark must be on disk already. It only grows."""
        cdef Sa *entry = self._sa(sa)
        if limit > entry.sequence.hard_limit:
            raise ValueError(f"sequence limit {limit} is past the hard limit {entry.sequence.hard_limit}")
        if limit < load64(&entry.sequence.limit):
            raise ValueError(f"sequence limit {limit} is below the present one {entry.sequence.limit}")
        store64(&entry.sequence.limit, limit)

    def sequence(self, uint32_t sa):
        """(next, limit) of an outbound SA, host order."""
        cdef Sa *entry = self._sa(sa)
        return load64(&entry.sequence.next), load64(&entry.sequence.limit)

    # --- generations -----------------------------------------------------------------------------

    @property
    def generation(self) -> int:
        """The present generation."""
        return load64(&self.c.header.generation)

    def bump(self):
        """Begin a generation after something was unlinked; returns it, for `quiescent`."""
        return add64(&self.c.header.generation, 1)

    cdef WorkerCounters *_workers(self) noexcept:
        """The first worker's counters."""
        return <WorkerCounters *>(<uint8_t *>self.c.header + self.c.header.workers_offset)

    def quiescent(self, uint64_t generation):
        """True when every live worker has finished what it began before `generation`."""
        cdef WorkerCounters *workers = self._workers()
        cdef uint32_t index
        for index in range(self.c.header.workers):
            if load64(&workers[index].pid) != 0 and load64(&workers[index].seen_generation) < generation:
                return False
        return True

    def worker_enter(self, uint64_t pid):
        """A worker says that it lives, asleep until its loop begins. To be called before the first look."""
        if self.c.worker == NULL:
            raise ValueError("this view belongs to control, not to a worker")
        self.c.worker.heartbeat = 0
        store64(&self.c.worker.seen_generation, QUIESCENT)
        store64_fenced(&self.c.worker.pid, pid)

    def worker_gone(self, uint32_t index):
        """Control says that worker `index` is dead: it holds no reference, its replay locks are released.

        A window whose update was cut short is filled with ones first: numbers up to its top count as
        seen, so a half-made update can only drop, never accept a packet twice. Returns how many there were.
        """
        cdef WorkerCounters *workers = self._workers()
        if index >= self.c.header.workers:
            raise IndexError(f"worker {index}; the segment has {self.c.header.workers}")
        released = self.release_locks(index)
        store64(&workers[index].seen_generation, QUIESCENT)
        store64(&workers[index].pid, 0)
        return released

    def release_locks(self, uint32_t worker_index):
        """Release the replay locks of a worker that is dead; see `worker_gone`. Returns how many it held."""
        cdef uint32_t index
        cdef uint32_t released = 0
        cdef Replay *replay
        for index in range(self.c.header.sas_used):
            replay = &self.c.sas[index].replay
            if load32(&replay.lock) != worker_index + 1:
                continue
            memset(&replay.blocks[0], 0xFF, sizeof(replay.blocks))
            # Numbers right of the top are still to come, those in its own block too.
            replay.blocks[(replay.top >> 6) & (REPLAY_BLOCKS - 1)] = (<uint64_t>2 << (replay.top & 63)) - 1
            store32(&replay.lock, 0)
            released += 1
        return released

    # --- removal ---------------------------------------------------------------------------------

    def wipe(self, uint32_t sa):
        """Zero SA slot `sa`, keys and all; nobody may hold it any more (`quiescent`)."""
        explicit_bzero(self._sa(sa), sizeof(Sa))

    def wipe_counters(self, uint32_t sa):
        """Zero what every worker counted for SA slot `sa`: the slot's next owner starts at 0."""
        cdef uint8_t *base = <uint8_t *>self.c.header
        cdef SaCounters *counters = <SaCounters *>(base + self.c.header.sa_counters_offset)
        cdef uint32_t index
        self._sa(sa)
        for index in range(self.c.header.workers):
            memset(&counters[<uint64_t>index * self.c.header.max_sas + sa], 0, sizeof(SaCounters))
