"""Frames and ports as Python sees them: made once at start, never touched per packet.

A Pool is one mmap of frame_count * frame_size bytes (the UMEM of AF_XDP ports) and a stack of free
frames. A PortHandle is the base of every driver: it owns the C Port that `loop` calls through.
Sizes are asserted here because `dataplane.tables` and the drivers rely on them.
"""

from libc.errno cimport errno
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, strerror

import ipaddress

cdef extern from *:
    """
    #include <sys/mman.h>
    #include <linux/mman.h>
    #ifndef MADV_POPULATE_WRITE         /* Linux 5.14; glibc's header is older */
    #define MADV_POPULATE_WRITE 23
    #endif
    #define ASSERT_SIZE(size, want) _Static_assert((size) == (want), #size " is not " #want)
    """
    void assert_size "ASSERT_SIZE"(size_t size, size_t want) noexcept nogil
    void *mmap(void *addr, size_t length, int prot, int flags, int fd, long offset) noexcept nogil
    int munmap(void *addr, size_t length) noexcept nogil
    int madvise(void *addr, size_t length, int advice) noexcept nogil
    int PROT_READ, PROT_WRITE, MAP_PRIVATE, MAP_SHARED, MAP_ANONYMOUS, MAP_HUGETLB, MAP_HUGE_2MB
    int MADV_HUGEPAGE, MADV_DONTDUMP, MADV_POPULATE_WRITE
    void *MAP_FAILED


cdef enum:
    HUGE = 2 << 20              # bytes of a huge page


cdef void _assert_sizes() noexcept nogil:
    assert_size(sizeof(Packet), 64)


_assert_sizes()


cdef uint64_t _mapped(uint64_t size) noexcept nogil:
    """Bytes of address space for `size` bytes of frames: whole huge pages from one on."""
    return size if size < HUGE else (size + HUGE - 1) & ~<uint64_t>(HUGE - 1)


cdef void *_map_private(uint64_t size) noexcept nogil:
    """Memory on reserved huge pages, else on memory that the kernel may put on huge pages, else on any; MAP_FAILED."""
    cdef int access = PROT_READ | PROT_WRITE
    cdef int kind = MAP_PRIVATE | MAP_ANONYMOUS
    cdef uint64_t before
    cdef uint8_t *area
    if size < HUGE:
        return mmap(NULL, size, access, kind, -1, 0)
    area = <uint8_t *>mmap(NULL, size, access, kind | MAP_HUGETLB | MAP_HUGE_2MB, -1, 0)
    if <void *>area != MAP_FAILED:
        # A container's limit is enforced at the first touch, by SIGBUS; here it is an error.
        if madvise(area, size, MADV_POPULATE_WRITE) == 0:
            return area
        munmap(area, size)
    area = <uint8_t *>mmap(NULL, size + HUGE, access, kind, -1, 0)
    if <void *>area == MAP_FAILED:
        return area
    # Huge pages begin at their own multiples; what lies around is given back.
    before = (HUGE - <uint64_t>area % HUGE) % HUGE
    if before:
        munmap(area, before)
    munmap(area + before + size, HUGE - before)
    madvise(area + before, size, MADV_HUGEPAGE)
    return area + before


cdef class Pool:
    """frame_count frames of frame_size bytes (2048 or 4096), zeroed, all free.

    Frames hold packets in clear, so they are left out of core dumps. They lie in memory of this process alone, or at
    `offset` bytes in that of the descriptor `fd`, which other workers map too. From 2 MiB on it is huge pages where
    there are any: reserved ones first, transparent ones else (dataplane/pages.py tells which). Raises ValueError for a
    size that is no power of two and MemoryError when the kernel has no memory.
    """

    def __cinit__(
        self, uint32_t frame_count, uint32_t frame_size=2048, uint32_t headroom=256, *, int fd=-1, uint64_t offset=0
    ):
        cdef uint32_t index
        if frame_size & (frame_size - 1) or frame_size < 2048:
            raise ValueError(f"frame_size is {frame_size}; it must be a power of two from 2048 up")
        if frame_count == 0:
            raise ValueError("frame_count is 0; a pool needs at least one frame")
        self.c.size = <uint64_t>frame_count * frame_size
        cdef uint64_t mapped = _mapped(self.c.size)
        cdef void *area
        if fd < 0:
            area = _map_private(mapped)
        else:
            area = mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_SHARED, fd, offset)
        if area == MAP_FAILED:
            raise MemoryError(f"mmap of {self.c.size} bytes of frames: {strerror(errno).decode()}")
        self.c.base = <uint8_t *>area
        madvise(area, mapped, MADV_DONTDUMP)
        if fd >= 0:
            madvise(area, mapped, MADV_HUGEPAGE)
        self.c.free = <uint64_t *>calloc(frame_count, sizeof(uint64_t))
        if self.c.free == NULL:
            raise MemoryError(f"stack of {frame_count} free frames")
        self.c.frame_count = frame_count
        self.c.frame_size = frame_size
        self.c.headroom = headroom
        for index in range(frame_count):
            # The lowest frames come out first and stay warm in the cache.
            self.c.free[index] = <uint64_t>(frame_count - 1 - index) * frame_size
        self.c.free_count = frame_count
        hide_bytes(area, self.c.size)

    def __dealloc__(self):
        free(self.c.free)
        if self.c.base != NULL:
            show_bytes(self.c.base, self.c.size)
            munmap(self.c.base, _mapped(self.c.size))

    @property
    def free_count(self) -> int:
        """Frames not in use."""
        return self.c.free_count

    @property
    def frame_count(self) -> int:
        """Frames in all."""
        return self.c.frame_count

    @property
    def address(self) -> int:
        """Where the frames lie in this process, for whoever asks the kernel about them."""
        return <size_t>self.c.base

    @property
    def frame_size(self) -> int:
        """Bytes in a frame."""
        return self.c.frame_size


cdef class PortHandle:
    """What every driver's port has in common; drivers derive from it and set the C callbacks.

    `role` is 0 protected, 1 unprotected; `link` 0 Ethernet, 1 bare IP; `mtu` in bytes of IP packet;
    `addresses` are the interface's own, the first of each family being the source of ICMP errors.
    """

    def __init__(self, Pool pool, str name, int role, int link, int mtu, addresses=()):
        self.pool = pool
        self.name = name
        self.c.frames = &pool.c
        self.c.counters = &self.own_counters
        self.c.role = role
        self.c.link = link
        self.c.mtu = mtu
        self.c.fd = -1
        cdef bytes packed
        for address in addresses:
            packed = ipaddress.ip_address(address).packed
            if len(packed) == 4 and not self.c.has_ipv4:
                memcpy(self.c.ipv4, <const char *>packed, 4)
                self.c.has_ipv4 = 1
            elif len(packed) == 16 and not self.c.has_ipv6:
                memcpy(self.c.ipv6, <const char *>packed, 16)
                self.c.has_ipv6 = 1

    @property
    def fd(self) -> int:
        """The descriptor that poll() watches; -1 when there is none."""
        return self.c.fd

    @property
    def link(self) -> int:
        """0 Ethernet, 1 bare IP."""
        return self.c.link

    @property
    def counters(self) -> dict:
        """The port's counters by name, as far as this process sees them."""
        return {
            "rx_packets": self.c.counters.rx_packets,
            "rx_bytes": self.c.counters.rx_bytes,
            "tx_packets": self.c.counters.tx_packets,
            "tx_bytes": self.c.counters.tx_bytes,
            "rx_syscalls": self.c.counters.rx_syscalls,
            "tx_syscalls": self.c.counters.tx_syscalls,
            "tx_full": self.c.counters.tx_full,
            "tx_errors": self.c.counters.tx_errors,
        }

    @property
    def lost(self) -> int:
        """Packets that the kernel had for this port and threw away, as far as it tells; 0 where it does not."""
        return 0 if self.c.lost == NULL else self.c.lost(&self.c)

    @property
    def mode(self) -> str:
        """The mode in use, as `status` shows it; drivers with several override it."""
        return ""
