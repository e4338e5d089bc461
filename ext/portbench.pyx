"""What a pair of ports can carry with nothing in between: the yardstick for every driver.

    generate(port)   frame from the pool -> template and a number -> transmit      as fast as the port takes them
    forward(a, b)    receive on one -> swap the MAC addresses -> transmit on the other, both ways
    receive_only(a)  receive -> frame back to the pool

Each runs without the GIL for the given time and returns (packets, nanoseconds): run them in threads or
processes of their own. An idle side sleeps in poll() for at most a millisecond, so that on a machine with
few cores it does not take the time of whoever feeds it. Packets stay where the port received them (`in_place`).

Not here: latency, and any look at what the packets are.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from ext.clock cimport now_ns
from ext.counters cimport PASS
from ext.packet cimport (
    BATCH_MAX, LINK_ETHERNET, NO_INDEX, Batch, FramePool, Packet, Port, PortHandle, frame_give, frame_take,
)

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd *fds, unsigned long count, int timeout) noexcept
    short POLLIN

cdef enum:
    IDLE_LOOPS = 64     # empty loops before sleeping
    NUMBER_SIZE = 8     # bytes of the running number at a generated packet's end


cdef void doze(Port **ports, uint32_t count) noexcept nogil:
    """Sleep until one of at most two ports can receive, or a millisecond has gone."""
    cdef pollfd watched[2]
    cdef uint32_t index
    for index in range(count):
        if not ports[index].arm(ports[index]):
            return
        watched[index].fd = ports[index].fd
        watched[index].events = POLLIN
        watched[index].revents = 0
    poll(watched, count, 1)


cdef void swap_macs(Packet *packet) noexcept nogil:
    """Exchange the Ethernet addresses, which is what a mirror does and about what a router costs."""
    cdef uint8_t destination[6]
    memcpy(destination, packet.data, 6)
    memcpy(packet.data, packet.data + 6, 6)
    memcpy(packet.data + 6, destination, 6)


cdef uint32_t carry(Port *source, Port *target, Batch *batch) noexcept nogil:
    """One batch from `source` to `target`; what the target has no room for is dropped."""
    cdef Packet *packets[BATCH_MAX]
    cdef uint32_t index
    cdef uint32_t count = source.receive(source, batch)
    cdef uint32_t sent = 0
    if count:
        for index in range(count):
            packets[index] = &batch.packets[index]
            if source.link == LINK_ETHERNET:
                swap_macs(packets[index])
        sent = target.transmit(target, packets, count)
        for index in range(sent, count):
            frame_give(source.frames, packets[index].frame)
    source.flush(source)
    target.flush(target)
    return sent


def forward(PortHandle a, PortHandle b, double seconds) -> tuple:
    """Forward between two ports that share a pool, for `seconds`; returns (packets sent, nanoseconds).

    Raises ValueError for ports that do not fit each other.
    """
    cdef Port *ports[2]
    cdef Batch batch
    cdef uint64_t start, now, end
    cdef uint64_t total = 0
    cdef uint32_t moved
    cdef uint32_t idle = 0
    if a.c.frames != b.c.frames:
        raise ValueError(f"ports {a.name} and {b.name} have different pools; a frame cannot go from one to the other")
    if a.c.link != b.c.link:
        raise ValueError(f"ports {a.name} and {b.name} differ in link type")
    ports[0] = &a.c
    ports[1] = &b.c
    memset(&batch, 0, sizeof(batch))
    a.c.in_place = b.c.in_place = True
    with nogil:
        start = now = now_ns()
        end = start + <uint64_t>(seconds * 1e9)
        while now < end:
            moved = carry(ports[0], ports[1], &batch) + carry(ports[1], ports[0], &batch)
            total += moved
            idle = 0 if moved else idle + 1
            if idle >= IDLE_LOOPS:
                doze(ports, 2)
            now = now_ns()
    a.c.in_place = b.c.in_place = False
    return total, now - start


def receive_only(PortHandle port, double seconds) -> tuple:
    """Receive and give every frame back, for `seconds`; returns (packets, nanoseconds)."""
    cdef Port *ports[1]
    cdef Port *source = &port.c
    cdef Batch batch
    cdef uint64_t start, now, end
    cdef uint64_t total = 0
    cdef uint32_t count, index
    cdef uint32_t idle = 0
    ports[0] = source
    memset(&batch, 0, sizeof(batch))
    source.in_place = True
    with nogil:
        start = now = now_ns()
        end = start + <uint64_t>(seconds * 1e9)
        while now < end:
            count = source.receive(source, &batch)
            for index in range(count):
                frame_give(source.frames, batch.packets[index].frame)
            source.flush(source)
            total += count
            idle = 0 if count else idle + 1
            if idle >= IDLE_LOOPS:
                doze(ports, 1)
            now = now_ns()
    source.in_place = False
    return total, now - start


def generate(PortHandle port, bytes template, int size, double seconds, int burst=32) -> tuple:
    """Send packets of `size` bytes for `seconds`; returns (packets taken by the port, nanoseconds).

    Each begins with `template` (link header first on Ethernet ports), is filled up with zeros, and ends with a
    running 64-bit number where there is room for one, so no two are alike. `burst` packets go to each
    transmit call. Raises ValueError for sizes that do not fit a frame or a batch.
    """
    cdef FramePool *pool = port.c.frames
    cdef Port *target = &port.c
    cdef const char *content = template
    cdef uint32_t length = size
    cdef uint32_t template_length = <uint32_t>len(template)
    cdef Batch batch
    cdef Packet *packets[BATCH_MAX]
    cdef uint64_t start, now, end
    cdef uint64_t total = 0
    cdef uint64_t number = 0
    cdef uint32_t limit = burst
    cdef uint32_t count, sent, index
    if not 0 < burst <= BATCH_MAX:
        raise ValueError(f"burst is {burst}; a batch holds 1 to {BATCH_MAX}")
    if not len(template) <= size <= <int>(pool.frame_size - pool.headroom):
        raise ValueError(f"size is {size}; between the template's {len(template)} and a frame's "
                         f"{pool.frame_size - pool.headroom} is possible")
    memset(&batch, 0, sizeof(batch))
    with nogil:
        start = now = now_ns()
        end = start + <uint64_t>(seconds * 1e9)
        while now < end:
            count = 0
            while count < limit and prepare(target, &batch.packets[count], content, template_length, length, number):
                packets[count] = &batch.packets[count]
                number += 1
                count += 1
            sent = target.transmit(target, packets, count) if count else 0
            for index in range(sent, count):
                frame_give(pool, packets[index].frame)
            number -= count - sent
            total += sent
            target.flush(target)
            now = now_ns()
    return total, now - start


cdef bint prepare(
    Port *port, Packet *packet, const char *content, uint32_t content_length, uint32_t length, uint64_t number
) noexcept nogil:
    """Fill a frame of the pool; False when there is none."""
    cdef FramePool *pool = port.frames
    cdef uint64_t frame = 0
    if not frame_take(pool, &frame):
        return False
    packet.frame = frame
    packet.data = pool.base + frame + pool.headroom
    packet.length = length
    packet.headroom = <uint16_t>pool.headroom
    packet.tailroom = <uint16_t>(pool.frame_size - pool.headroom - length)
    packet.sa = NO_INDEX
    packet.adjacency = NO_INDEX
    packet.verdict = PASS
    packet.flags = 0
    packet.port = port.index
    memcpy(packet.data, content, content_length)
    memset(packet.data + content_length, 0, length - content_length)
    if length - content_length >= NUMBER_SIZE:
        memcpy(packet.data + length - NUMBER_SIZE, &number, NUMBER_SIZE)
    return True
