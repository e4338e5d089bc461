"""Ports driven from Python: what tests and offline commands need, one batch per call, never the packet path.

`receive` copies a batch out and gives the frames back, `transmit` copies packets into frames and hands them
over, `forward` moves packets from one port to another without Python until a time or a count is reached.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from ext.counters cimport PASS
from ext.packet cimport BATCH_MAX, NO_INDEX, Batch, FramePool, Packet, Port, PortHandle, frame_give, frame_take

cdef extern from "<time.h>" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    int clock_gettime(int clock, timespec *now) noexcept
    int CLOCK_MONOTONIC

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd *fds, unsigned long count, int timeout) noexcept
    short POLLIN


cdef inline uint64_t now_ns() noexcept nogil:
    """CLOCK_MONOTONIC in nanoseconds."""
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <uint64_t>now.tv_sec * 1000000000 + <uint64_t>now.tv_nsec


def receive(PortHandle port) -> list:
    """One batch as a list of (bytes, flags); its frames are free again. Flushes the port first, as the loop does."""
    cdef Batch batch
    cdef Packet *packet
    cdef uint32_t index
    memset(&batch, 0xA5, sizeof(batch))
    with nogil:
        port.c.flush(&port.c)
        port.c.receive(&port.c, &batch)
    received = []
    for index in range(batch.count):
        packet = &batch.packets[index]
        _check(port.c.frames, packet)
        received.append(((<const char *>packet.data)[:packet.length], packet.flags))
        frame_give(port.c.frames, packet.frame)
    return received


cdef int _check(FramePool *pool, Packet *packet) except -1:
    """The promises of Port.receive about one packet."""
    cdef uint8_t *start = pool.base + packet.frame
    if packet.frame % pool.frame_size != 0 or packet.frame >= pool.size:
        raise AssertionError(f"frame {packet.frame} is no frame of the pool")
    if packet.data - packet.headroom < start:
        raise AssertionError(f"headroom {packet.headroom} reaches before the frame")
    if packet.data + packet.length + packet.tailroom > start + pool.frame_size:
        raise AssertionError(f"length {packet.length} and tailroom {packet.tailroom} reach past the frame")
    if packet.verdict != PASS or packet.sa != NO_INDEX or packet.adjacency != NO_INDEX:
        raise AssertionError("verdict, sa or adjacency not set by receive")
    return 0


def transmit(PortHandle port, packets, uint8_t flags=0) -> int:
    """Hand over at most 64 packets; returns how many the port took. Raises ValueError for too many or too long."""
    cdef Batch batch
    cdef Packet *pointers[BATCH_MAX]
    cdef FramePool *pool = port.c.frames
    cdef Packet *packet
    cdef uint64_t frame
    cdef uint32_t taken, index
    cdef uint32_t count = 0
    cdef const char *source
    memset(&batch, 0, sizeof(batch))
    if len(packets) > BATCH_MAX:
        raise ValueError(f"{len(packets)} packets; a batch holds {BATCH_MAX}")
    for content in packets:
        if len(content) > pool.frame_size - pool.headroom:
            raise ValueError(f"packet of {len(content)} bytes; a frame holds {pool.frame_size - pool.headroom}")
        if not frame_take(pool, &frame):
            break
        packet = &batch.packets[count]
        source = content
        packet.frame = frame
        packet.data = pool.base + frame + pool.headroom
        packet.length = <uint32_t>len(content)
        packet.headroom = <uint16_t>pool.headroom
        packet.tailroom = <uint16_t>(pool.frame_size - pool.headroom - packet.length)
        packet.flags = flags
        memcpy(packet.data, source, packet.length)
        pointers[count] = packet
        count += 1
    with nogil:
        taken = port.c.transmit(&port.c, pointers, count)
        port.c.flush(&port.c)
    for index in range(taken, count):
        frame_give(pool, pointers[index].frame)
    return taken


def wait(PortHandle port, double seconds) -> bool:
    """Arm the port and sleep until something can be received or the time is over."""
    cdef pollfd watched
    cdef int timeout = <int>(seconds * 1000)
    cdef int ready
    watched.fd = port.c.fd
    watched.events = POLLIN
    watched.revents = 0
    with nogil:
        ready = 1 if not port.c.arm(&port.c) else poll(&watched, 1, timeout)
    return ready > 0


def receive_all(PortHandle port, double seconds=1.0, int at_least=1) -> list:
    """Batches until `at_least` packets came or the time is over."""
    cdef uint64_t end = now_ns() + <uint64_t>(seconds * 1e9)
    received = []
    while len(received) < at_least and now_ns() < end:
        batch = receive(port)
        received += batch
        if not batch:
            wait(port, min(0.05, max(0.0, (end - now_ns()) / 1e9 if end > now_ns() else 0.0)))
    return received


def forward(PortHandle source, PortHandle sink, double seconds, uint64_t limit=0xFFFFFFFFFFFFFFFF,
            double idle=3600.0) -> tuple:
    """Move packets from `source` to `sink` as they are, for a time, a count, or until `idle` seconds brought nothing.

    Returns (packets taken by the sink, packets that it refused twice, nanoseconds). Both ports share a pool.
    """
    cdef Batch batch
    cdef Packet *pointers[BATCH_MAX]
    cdef uint64_t start = now_ns()
    cdef uint64_t end = start + <uint64_t>(seconds * 1e9)
    cdef uint64_t quiet = <uint64_t>(idle * 1e9)
    cdef uint64_t last = start
    cdef uint64_t now = start
    cdef uint64_t moved = 0
    cdef uint64_t refused = 0
    cdef uint32_t count, taken, index
    if source.c.frames != sink.c.frames:
        raise ValueError("forward needs two ports of one pool")
    with nogil:
        while now < end and moved < limit and now - last < quiet:
            count = source.c.receive(&source.c, &batch)
            for index in range(count):
                pointers[index] = &batch.packets[index]
            taken = 0
            if count:
                taken = sink.c.transmit(&sink.c, pointers, count)
                if taken < count:
                    sink.c.flush(&sink.c)
                    taken += sink.c.transmit(&sink.c, pointers + taken, count - taken)
                for index in range(taken, count):
                    frame_give(source.c.frames, pointers[index].frame)
            source.c.flush(&source.c)
            sink.c.flush(&sink.c)
            moved += taken
            refused += count - taken
            now = now_ns()
            if count:
                last = now
    return moved, refused, last - start
