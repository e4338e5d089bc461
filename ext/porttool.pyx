"""Ports driven from Python: what tests and offline commands need, one batch per call, never the packet path.

`receive` copies a batch out and gives the frames back, `transmit` copies packets into frames and hands them
over, `forward` moves packets from one port to another without Python until a time or a count is reached,
`cut` and `join` show what `segment` and `coalesce` make of packets.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from ext.coalesce cimport Run, Runs, gather, order, run_apply, run_undo

from ext.counters cimport PASS
from ext.linuxnet cimport iovec
from ext.packet cimport (
    BATCH_MAX, LINK_ETHERNET, NO_INDEX, Batch, FramePool, Packet, Port, PortHandle, frame_give, frame_take,
)
from ext.segment cimport SUPER_HEAD, SUPER_MAX, Super, VnetHeader, arrive, segment

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
    cdef uint32_t taken, index
    cdef uint32_t count = _load(&batch, pointers, pool, packets, flags)
    with nogil:
        taken = port.c.transmit(&port.c, pointers, count)
        port.c.flush(&port.c)
    for index in range(taken, count):
        frame_give(pool, pointers[index].frame)
    return taken


cdef uint32_t _load(Batch *batch, Packet **pointers, FramePool *pool, packets, uint8_t flags) except? 0xFFFFFFFF:
    """Copy packets into frames, as many as the pool has."""
    cdef Packet *packet
    cdef uint64_t frame
    cdef uint32_t count = 0
    cdef const char *source
    room = pool.frame_size - pool.headroom
    if len(packets) > BATCH_MAX:
        raise ValueError(f"{len(packets)} packets; a batch holds {BATCH_MAX}")
    for content in packets:
        if len(content) > room:
            raise ValueError(f"packet of {len(content)} bytes; a frame holds {room}")
    memset(batch, 0, sizeof(Batch))
    for content in packets:
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
    return count


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
    cdef uint64_t start = now_ns()
    cdef uint64_t end = start + <uint64_t>(seconds * 1e9)
    cdef uint64_t quiet = <uint64_t>(idle * 1e9)
    cdef uint64_t last = start
    cdef uint64_t now = start
    cdef uint64_t moved = 0
    cdef uint64_t refused = 0
    cdef uint32_t taken
    if source.c.frames != sink.c.frames:
        raise ValueError("forward needs two ports of one pool")
    with nogil:
        while now < end and moved < limit and now - last < quiet:
            taken = _move(&source.c, &sink.c, &refused)
            source.c.flush(&source.c)
            sink.c.flush(&sink.c)
            moved += taken
            now = now_ns()
            if taken:
                last = now
    return moved, refused, last - start


cdef uint32_t _move(Port *source, Port *sink, uint64_t *refused) noexcept nogil:
    """One batch from one port to another; what is refused twice is dropped. Returns how many were taken."""
    cdef Batch batch
    cdef Packet *pointers[BATCH_MAX]
    cdef uint32_t taken, index
    cdef uint32_t count = source.receive(source, &batch)
    if count == 0:
        return 0
    for index in range(count):
        pointers[index] = &batch.packets[index]
    taken = sink.transmit(sink, pointers, count)
    if taken < count:
        sink.flush(sink)
        taken += sink.transmit(sink, pointers + taken, count - taken)
    for index in range(taken, count):
        frame_give(source.frames, pointers[index].frame)
    refused[0] += count - taken
    return taken


def relay(PortHandle left, PortHandle right, double seconds) -> tuple:
    """Join two ports of one pool back to back for a time, asleep when idle; returns packets moved each way."""
    cdef pollfd watched[2]
    cdef uint64_t end = now_ns() + <uint64_t>(seconds * 1e9)
    cdef uint64_t refused = 0
    cdef uint64_t rightward = 0
    cdef uint64_t leftward = 0
    cdef uint32_t moved, back
    if left.c.frames != right.c.frames:
        raise ValueError("relay needs two ports of one pool")
    watched[0].fd = left.c.fd
    watched[1].fd = right.c.fd
    watched[0].events = POLLIN
    watched[1].events = POLLIN
    with nogil:
        while now_ns() < end:
            moved = _move(&left.c, &right.c, &refused)
            back = _move(&right.c, &left.c, &refused)
            left.c.flush(&left.c)
            right.c.flush(&right.c)
            rightward += moved
            leftward += back
            if moved + back == 0 and left.c.arm(&left.c) and right.c.arm(&right.c):
                poll(watched, 2, 5)
    return rightward, leftward


def cut(PortHandle port, const unsigned char[::1] header not None, const unsigned char[::1] data not None) -> list:
    """What a port delivers for one packet with this virtio_net_hdr, batch after batch, as lists of (bytes, flags).

    `port` lends its pool and its kind of link. Raises ValueError for a packet that no kernel could hand over.
    """
    cdef Batch batch
    cdef Super whole
    cdef VnetHeader about
    cdef FramePool *pool = port.c.frames
    cdef uint64_t frame
    cdef uint32_t length = <uint32_t>len(data)
    cdef uint32_t room = pool.frame_size - pool.headroom
    cdef uint32_t head = length if length < room else room
    cdef uint32_t index
    cdef uint8_t *overflow
    if len(header) != sizeof(VnetHeader) or length == 0 or length > SUPER_MAX or not frame_take(pool, &frame):
        raise ValueError(f"header of {len(header)} bytes, packet of {length}, {pool.free_count} frames free")
    overflow = <uint8_t *>malloc(SUPER_HEAD + SUPER_MAX)
    if overflow == NULL:
        frame_give(pool, frame)
        raise MemoryError("buffer for a super-frame")
    memset(&whole, 0, sizeof(Super))
    memcpy(&about, &header[0], sizeof(VnetHeader))
    memcpy(pool.base + frame + pool.headroom, &data[0], head)
    if length > head:
        memcpy(overflow + SUPER_HEAD, &data[head], length - head)
    batch.count = 0
    arrive(&port.c, &batch, &whole, &about, frame, overflow + SUPER_HEAD, length)
    batches = []
    while batch.count:
        packets = []
        for index in range(batch.count):
            _check(pool, &batch.packets[index])
            content = (<const char *>batch.packets[index].data)[:batch.packets[index].length]
            packets.append((content, batch.packets[index].flags))
            frame_give(pool, batch.packets[index].frame)
        batches.append(packets)
        batch.count = 0
        segment(&whole, &port.c, &batch)
    free(overflow)
    return batches


def join(PortHandle port, packets) -> list:
    """The runs that `coalesce` makes of a batch, as (virtio_net_hdr, super-packet, packets in it, packets undone).

    The last is what the run's packets are after run_undo: the packets as they were.
    """
    cdef Batch batch
    cdef Packet *pointers[BATCH_MAX]
    cdef Runs runs
    cdef Run *run
    cdef iovec parts[BATCH_MAX]
    cdef FramePool *pool = port.c.frames
    cdef uint32_t link = 14 if port.c.link == LINK_ETHERNET else 0
    cdef uint32_t index, part, used
    cdef uint32_t at = 0
    cdef uint32_t count = _load(&batch, pointers, pool, packets, 0)
    runs.no_udp = False
    gather(&runs, pointers, count, link)
    order(&runs, pointers, count)
    joined = []
    for index in range(runs.count):
        run = &runs.runs[index]
        used = run_apply(run, pointers + at, link, parts)
        content = b""
        for part in range(used):
            content += (<const char *>parts[part].iov_base)[:parts[part].iov_len]
        about = (<const char *>&run.about)[:sizeof(VnetHeader)]
        run_undo(run, pointers + at, link)
        undone = []
        for part in range(run.count):
            undone.append((<const char *>pointers[at + part].data)[:pointers[at + part].length])
        joined.append((about, content, run.count, undone))
        at += run.count
    for index in range(count):
        frame_give(pool, pointers[index].frame)
    return joined
