"""A port that lives in memory: inject -> receive -> (the kernels) -> transmit -> collect.

Injected packets wait in a ring and are copied into frames by `receive`, as a socket would do it, so the
pool may run dry and frames are accounted for; transmitted packets are copied out into a second ring and
their frames given back, and a full ring takes no more, as a full transmit queue would.
Both rings have one producer and one consumer: Python may inject and collect while a loop runs in
another thread without the GIL.

Two modes make it a traffic generator and a sink for benches, with no Python while they run:
`replay` presents a fixed list of packets again and again (each costs one memcpy from a template into its
frame, about 5 ns for 64 bytes and 25 ns for 1400 bytes that are in cache: measure a bare
replay-to-discard run beside the real one and subtract), and `discard` makes transmit only count.

For the fuzzer, `tight` gives each packet room of its own before and behind, drawn at random among sizes at which
something changes, and hides all else of the frame: a sanitizer build reports whoever touches it.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy
from posix.unistd cimport close as close_fd

import os

from ext.counters cimport PASS
from ext.packet cimport (
    BATCH_MAX, LINK_ETHERNET, NO_INDEX, PACKET_PARTIAL_CHECKSUM, Batch, FramePool, Packet, Pool, Port, PortHandle,
    frame_give, frame_take, hide_bytes,
)

cdef extern from "<unistd.h>" nogil:
    ssize_t read(int fd, void *buffer, size_t length) noexcept

cdef extern from *:
    uint32_t load "__atomic_load_n"(uint32_t *where, int order) noexcept nogil
    void store "__atomic_store_n"(uint32_t *where, uint32_t value, int order) noexcept nogil
    int ACQUIRE "__ATOMIC_ACQUIRE"
    int RELEASE "__ATOMIC_RELEASE"


cdef inline uint32_t ip_bytes(Port *port, uint32_t length) noexcept nogil:
    """What counters count: the length without the link header."""
    return length if port.link != LINK_ETHERNET else length - 14 if length > 14 else 0


cdef enum:
    REDZONE = 64                # bytes at both ends of a frame that no tight packet may use

# The outbound walk wants 86 bytes before a packet and 65 behind it; a link header is 14, ICMP errors want 42 or 62.
cdef uint16_t[8] _leads = [86, 86, 256, 0, 13, 42, 62, 85]
cdef uint16_t[8] _tails = [65, 65, 200, 0, 1, 16, 48, 64]


cdef inline void _place(MemoryState *state, FramePool *pool, Packet *packet, uint32_t length) noexcept nogil:
    """Where in its frame the packet lies, and the room around it."""
    cdef uint8_t *frame = pool.base + packet.frame
    cdef uint32_t room = pool.frame_size - 2 * REDZONE - length
    cdef uint32_t lead, tail, choices
    if state.tight == 0 or length + 2 * REDZONE > pool.frame_size:
        packet.data = frame + pool.headroom
        packet.headroom = <uint16_t>pool.headroom
        packet.tailroom = <uint16_t>(pool.frame_size - pool.headroom - length)
        return
    state.tight ^= state.tight << 13        # xorshift64
    state.tight ^= state.tight >> 7
    state.tight ^= state.tight << 17
    choices = 8 if state.tight >> 32 & 3 == 0 else 3    # mostly enough for the outbound walk
    lead = min(<uint32_t>_leads[(state.tight >> 8 & 0xFF) % choices], room)
    tail = min(<uint32_t>_tails[(state.tight >> 16 & 0xFF) % choices], room - lead)
    packet.data = frame + REDZONE + lead
    if state.tight >> 24 & 1:
        packet.data = frame + pool.frame_size - REDZONE - tail - length
    packet.headroom = <uint16_t>lead
    packet.tailroom = <uint16_t>tail
    hide_bytes(frame, <size_t>(packet.data - frame) - lead)
    hide_bytes(packet.data + length + tail, <size_t>(frame + pool.frame_size - packet.data) - length - tail)


cdef inline uint32_t _fill(Port *port, MemoryState *state, FramePool *pool, Packet *packet, const uint8_t *what,
                           uint32_t length, uint8_t flags) noexcept nogil:
    """Copy `length` bytes into packet.frame, and describe them; returns what counters count."""
    packet.length = length
    packet.sa = NO_INDEX
    packet.adjacency = NO_INDEX
    packet.verdict = PASS
    packet.flags = flags
    packet.port = port.index
    _place(state, pool, packet, length)
    memcpy(packet.data, what, length)
    return ip_bytes(port, length)


cdef uint32_t memory_receive(Port *port, Batch *batch) noexcept nogil:
    """Copy what was injected, or the next templates, into frames."""
    cdef MemoryState *state = <MemoryState *>port.state
    cdef uint64_t bytes_seen = 0
    cdef uint32_t count = (_receive_replay(port, state, port.frames, batch, &bytes_seen) if state.template_count
                           else _receive_injected(port, state, port.frames, batch, &bytes_seen))
    batch.count = count
    state.received += count
    state.received_bytes += bytes_seen
    port.counters.rx_packets += count
    port.counters.rx_bytes += bytes_seen
    return count


cdef uint32_t _receive_injected(Port *port, MemoryState *state, FramePool *pool, Batch *batch,
                                uint64_t *bytes_seen) noexcept nogil:
    cdef Ring *ring = &state.inbound
    cdef uint32_t waiting = min(load(&ring.head, ACQUIRE) - ring.tail, <uint32_t>BATCH_MAX)
    cdef uint32_t count = 0
    cdef uint32_t slot
    while count < waiting and frame_take(pool, &batch.packets[count].frame):
        slot = (ring.tail + count) & ring.mask
        bytes_seen[0] += _fill(port, state, pool, &batch.packets[count], ring.area + <uint64_t>slot * ring.slot_size,
                               ring.lengths[slot], ring.flags[slot])
        count += 1
    store(&ring.tail, ring.tail + count, RELEASE)
    return count


cdef uint32_t _receive_replay(Port *port, MemoryState *state, FramePool *pool, Batch *batch,
                              uint64_t *bytes_seen) noexcept nogil:
    cdef uint32_t wanted = <uint32_t>min(state.replay_left, <uint64_t>BATCH_MAX)
    cdef uint32_t count = 0
    cdef uint32_t slot = state.template_next
    while count < wanted and frame_take(pool, &batch.packets[count].frame):
        bytes_seen[0] += _fill(port, state, pool, &batch.packets[count],
                               state.templates + <uint64_t>slot * pool.frame_size, state.template_lengths[slot],
                               <uint8_t>state.template_flags)
        slot += 1
        if slot == state.template_count:
            slot = 0
        count += 1
    state.replay_left -= count
    state.template_next = slot
    return count


cdef uint32_t memory_transmit(Port *port, Packet **packets, uint32_t count) noexcept nogil:
    """Copy packets out for `collect` (or only count them) and give their frames back."""
    cdef MemoryState *state = <MemoryState *>port.state
    cdef Ring *ring = &state.outbound
    cdef uint32_t room
    cdef uint32_t taken = count
    cdef uint32_t index, slot
    cdef uint64_t bytes_sent = 0
    if not state.discard:
        room = ring.mask + 1 - (ring.head - load(&ring.tail, ACQUIRE))
        if taken > room:
            taken = room
            port.counters.tx_full += 1
        for index in range(taken):
            slot = (ring.head + index) & ring.mask
            ring.lengths[slot] = packets[index].length
            # A packet never leaves its frame, and a slot is as large as a frame.
            memcpy(ring.area + <uint64_t>slot * ring.slot_size, packets[index].data, packets[index].length)
        store(&ring.head, ring.head + taken, RELEASE)
    for index in range(taken):
        bytes_sent += ip_bytes(port, packets[index].length)
        frame_give(port.frames, packets[index].frame)
    state.transmitted += taken
    state.transmitted_bytes += bytes_sent
    port.counters.tx_packets += taken
    port.counters.tx_bytes += bytes_sent
    return taken


cdef void memory_flush(Port *port) noexcept nogil:
    """Nothing waits anywhere."""
    pass


cdef bint memory_arm(Port *port) noexcept nogil:
    """Quiet the eventfd, then see whether something was injected meanwhile; a replay never sleeps."""
    cdef MemoryState *state = <MemoryState *>port.state
    cdef uint64_t ignored
    if state.template_count:
        return state.replay_left == 0
    read(port.fd, &ignored, sizeof(ignored))
    return load(&state.inbound.head, ACQUIRE) == state.inbound.tail


cdef int _make_ring(Ring *ring, uint32_t slots, uint32_t slot_size) except -1:
    """Allocate a ring; calloc leaves its pages untouched until they are used."""
    ring.slot_size = slot_size
    ring.mask = slots - 1
    ring.area = <uint8_t *>calloc(slots, slot_size)
    ring.lengths = <uint32_t *>calloc(slots, sizeof(uint32_t))
    ring.flags = <uint8_t *>calloc(slots, 1)
    if ring.area == NULL or ring.lengths == NULL or ring.flags == NULL:
        raise MemoryError(f"memory port: ring of {slots} slots of {slot_size} bytes")
    return 0


cdef class MemoryPort(PortHandle):
    """A port without a network.

    `link` is 0 when packets carry an Ethernet header and 1 when they begin at the IP header; `capacity` is the
    number of packets that each direction holds (a power of two). With `discard`, transmit keeps nothing.
    """

    def __cinit__(self):
        self.c.fd = -1

    def __init__(self, Pool pool, str name="memory", int role=0, int link=1, int mtu=1500, addresses=(),
                 uint32_t capacity=4096, bint discard=False):
        super().__init__(pool, name, role, link, mtu, addresses)
        if capacity == 0 or capacity & (capacity - 1):
            raise ValueError(f"capacity is {capacity}; it must be a power of two")
        if self.state.inbound.area != NULL:
            raise RuntimeError("a memory port is initialised once")
        _make_ring(&self.state.inbound, capacity, pool.c.frame_size)
        _make_ring(&self.state.outbound, capacity, pool.c.frame_size)
        self.state.discard = discard
        self.c.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.c.state = &self.state
        self.c.receive = memory_receive
        self.c.transmit = memory_transmit
        self.c.flush = memory_flush
        self.c.arm = memory_arm

    def __dealloc__(self):
        free(self.state.inbound.area)
        free(self.state.inbound.lengths)
        free(self.state.inbound.flags)
        free(self.state.outbound.area)
        free(self.state.outbound.lengths)
        free(self.state.outbound.flags)
        free(self.state.templates)
        free(self.state.template_lengths)
        if self.c.fd >= 0:
            close_fd(self.c.fd)

    def inject(self, packets, bint partial_checksum=False) -> None:
        """Queue packets to be received, all or none.

        `partial_checksum` marks them as carrying only the pseudo-header sum. Raises BufferError when the queue
        has no room for all, ValueError for a packet that no frame could hold.
        """
        cdef Ring *ring = &self.state.inbound
        cdef uint32_t room = ring.mask + 1 - (ring.head - load(&ring.tail, ACQUIRE))
        cdef uint32_t head = ring.head
        cdef uint32_t slot
        cdef const unsigned char[::1] view
        if len(packets) > room:
            raise BufferError(f"{self.name}: {len(packets)} packets injected, room for {room}")
        for packet in packets:
            self._check_fits(packet)
            slot = head & ring.mask
            ring.lengths[slot] = <uint32_t>len(packet)
            ring.flags[slot] = PACKET_PARTIAL_CHECKSUM if partial_checksum else 0
            if len(packet):
                view = packet
                memcpy(ring.area + <uint64_t>slot * ring.slot_size, &view[0], len(packet))
            head += 1
        store(&ring.head, head, RELEASE)
        if packets:
            os.eventfd_write(self.c.fd, 1)

    def collect(self, limit=None) -> list:
        """What was transmitted since the last call, oldest first; at most `limit` packets."""
        cdef Ring *ring = &self.state.outbound
        cdef uint32_t waiting = load(&ring.head, ACQUIRE) - ring.tail
        cdef uint32_t index, slot
        if limit is not None and limit < waiting:
            waiting = limit
        packets = []
        for index in range(waiting):
            slot = (ring.tail + index) & ring.mask
            packets.append((<const char *>ring.area + <uint64_t>slot * ring.slot_size)[:ring.lengths[slot]])
        store(&ring.tail, ring.tail + waiting, RELEASE)
        return packets

    def replay(self, packets, uint64_t limit=0xFFFFFFFFFFFFFFFF, bint partial_checksum=False) -> None:
        """Present `packets` in turn, `limit` packets in all (for ever by default); an empty list ends it.

        Not to be called while a loop runs on this port.
        """
        cdef uint32_t slot_size = self.pool.c.frame_size
        cdef uint32_t index = 0
        cdef const unsigned char[::1] view
        for packet in packets:
            self._check_fits(packet)
        free(self.state.templates)
        free(self.state.template_lengths)
        self.state.template_count = 0
        self.state.templates = <uint8_t *>calloc(max(1, len(packets)), slot_size)
        self.state.template_lengths = <uint32_t *>calloc(max(1, len(packets)), sizeof(uint32_t))
        if self.state.templates == NULL or self.state.template_lengths == NULL:
            raise MemoryError(f"{self.name}: {len(packets)} templates of {slot_size} bytes")
        for packet in packets:
            if len(packet):
                view = packet
                memcpy(self.state.templates + <uint64_t>index * slot_size, &view[0], len(packet))
            self.state.template_lengths[index] = <uint32_t>len(packet)
            index += 1
        self.state.template_next = 0
        self.state.template_flags = PACKET_PARTIAL_CHECKSUM if partial_checksum else 0
        self.state.replay_left = limit
        self.state.template_count = index

    def _check_fits(self, packet):
        room = self.pool.c.frame_size - self.pool.c.headroom
        if len(packet) > room:
            raise ValueError(f"{self.name}: packet of {len(packet)} bytes, a frame holds {room}")

    @property
    def discard(self) -> bool:
        """True when transmit only counts."""
        return self.state.discard != 0

    @discard.setter
    def discard(self, bint value):
        self.state.discard = value

    @property
    def tight(self) -> int:
        """0, or a number not 0 that begins the draw of each packet's room; for the fuzzer."""
        return self.state.tight

    @tight.setter
    def tight(self, uint64_t value):
        self.state.tight = value

    @property
    def waiting(self) -> int:
        """Injected packets that were not received yet."""
        return <uint32_t>(self.state.inbound.head - self.state.inbound.tail)

    @property
    def received(self) -> tuple:
        """(packets, IP bytes) received since the port was made."""
        return self.state.received, self.state.received_bytes

    @property
    def transmitted(self) -> tuple:
        """(packets, IP bytes) transmitted since the port was made."""
        return self.state.transmitted, self.state.transmitted_bytes

    @property
    def mode(self) -> str:
        """"memory", and what it does besides."""
        return "memory/replay" if self.state.template_count else "memory/discard" if self.state.discard else "memory"
