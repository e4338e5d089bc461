"""A generator and a sink in one thread: packets at a chosen rate, each numbered, and how long each was on its way.

    due       how many packets the rate asks for by now; what is missing goes out, at most a burst at a time
    stamp     the last 16 bytes of a packet are a mark and its number; when it left is remembered here
    collect   what the sink has received: the number tells when it left, and so its latency

Between generator and sink a packet may have been sealed. Its ESP sequence number tells its number then, as the
gateway numbers packets in the order in which it gets them; a packet lost before it was numbered shifts those after it
by one, which moves their latencies by the time between two packets, and shows as a loss.

One clock and one CPU for both ends: no synchronisation, but what arrives while a burst is handed over waits that long.
The sink never sleeps. Latency is what a host sees: from before the system call that sends to after the ring was read.

Not here: IPv6 outside, and any look at what arrived besides its number.
"""

from dataclasses import dataclass

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from ext.clock cimport now_ns
from ext.counters cimport PASS
from ext.packet cimport (
    BATCH_MAX, LINK_ETHERNET, NO_INDEX, Batch, FramePool, Packet, Port, PortHandle, frame_give, frame_take,
)
from ext.wire cimport load16, load32

cdef enum:
    ETHERNET = 14
    ESP = 50
    UDP = 17
    NUMBER = 8                  # bytes
    STAMP = 16                  # mark and number
    MARK = 0x45535041           # in each half of the stamp's first eight bytes
    PACKETS_MAX = 1 << 23       # of one run: times and latencies take twelve bytes each


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """What became of one run.

    `sent` of `wanted` packets were taken by the port in `nanoseconds`; `received` came back with a number of this run,
    `reordered` of them after a higher one, `repeated` a second time; `strange` had no such number. `latencies`:
    nanoseconds of each packet sent, as native uint32; 0 was lost.
    """

    wanted: int
    sent: int
    nanoseconds: int
    received: int
    reordered: int
    repeated: int
    strange: int
    latencies: bytes


cdef struct Run:
    const uint8_t *frames       # templates, `stride` bytes apart
    const uint32_t *lengths
    uint32_t templates
    uint32_t stride
    uint64_t first_sequence     # ESP number of packet 0
    uint64_t limit              # packets at most
    uint64_t sent
    uint64_t received
    uint64_t reordered
    uint64_t repeated
    uint64_t strange
    uint64_t highest            # number seen, plus one
    uint64_t *times             # when each was handed over
    uint32_t *latencies


cdef inline void _prepare(Run *run, Port *port, Packet *packet, uint64_t frame, uint64_t number) noexcept nogil:
    """Template and stamp into a frame."""
    cdef FramePool *pool = port.frames
    cdef uint32_t which = <uint32_t>(number % run.templates)
    cdef uint32_t length = run.lengths[which]
    cdef uint32_t mark[2]
    mark[0] = mark[1] = <uint32_t>MARK
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
    memcpy(packet.data, run.frames + <uint64_t>which * run.stride, length - STAMP)
    memcpy(packet.data + length - STAMP, mark, NUMBER)
    memcpy(packet.data + length - NUMBER, &number, NUMBER)


cdef uint32_t _send(Run *run, Port *port, Batch *batch, uint64_t due, uint32_t burst) noexcept nogil:
    """At most a burst of what is due; returns how many the port took."""
    cdef Packet *packets[BATCH_MAX]
    cdef uint32_t count = 0
    cdef uint32_t taken, index
    cdef uint64_t frame = 0
    cdef uint64_t now
    while count < burst and run.sent + count < due and frame_take(port.frames, &frame):
        _prepare(run, port, &batch.packets[count], frame, run.sent + count)
        packets[count] = &batch.packets[count]
        count += 1
    if count:
        now = now_ns()
        for index in range(count):
            run.times[run.sent + index] = now
    taken = port.transmit(port, packets, count) if count else 0
    for index in range(taken, count):
        frame_give(port.frames, packets[index].frame)
    run.sent += taken
    port.flush(port)
    return taken


cdef inline bint _number(const Run *run, const Port *port, const Packet *packet, uint64_t *number) noexcept nogil:
    """The number of what arrived; False when it is none of ours."""
    cdef const uint8_t *ip = packet.data
    cdef uint32_t length = packet.length
    cdef uint32_t mark[2]
    cdef uint32_t header
    if port.link == LINK_ETHERNET:
        if length < ETHERNET + 20:
            return False
        ip += ETHERNET
        length -= ETHERNET
    header = (ip[0] & 15) * 4
    if ip[0] >> 4 != 4 or header < 20 or load16(ip + 2) > length or load16(ip + 2) < header + 8 + STAMP:
        return False
    length = load16(ip + 2)
    memcpy(mark, ip + length - STAMP, NUMBER)
    if mark[0] == <uint32_t>MARK and mark[1] == <uint32_t>MARK:
        memcpy(number, ip + length - NUMBER, NUMBER)
    elif ip[9] == ESP:
        number[0] = <uint32_t>(load32(ip + header + 4) - <uint32_t>run.first_sequence)
    elif ip[9] == UDP:
        number[0] = <uint32_t>(load32(ip + header + 12) - <uint32_t>run.first_sequence)
    else:
        return False
    return number[0] < run.sent


cdef uint32_t _collect(Run *run, Port *port, Batch *batch) noexcept nogil:
    """One batch of what has arrived; returns its count."""
    cdef uint32_t count = port.receive(port, batch)
    cdef uint32_t index
    cdef uint64_t number = 0
    cdef uint64_t taken
    cdef uint64_t now = now_ns() if count else 0
    for index in range(count):
        if not _number(run, port, &batch.packets[index], &number):
            run.strange += 1
        elif run.latencies[number]:
            run.repeated += 1
        else:
            taken = now - run.times[number]
            run.latencies[number] = <uint32_t>min(max(taken, <uint64_t>1), <uint64_t>0xFFFFFFFF)
            run.received += 1
            if number < run.highest:
                run.reordered += 1
            else:
                run.highest = number + 1
        frame_give(port.frames, batch.packets[index].frame)
    port.flush(port)
    return count


cdef uint64_t _run(Run *run, Port *source, Port *sink, Batch *batch, double rate, uint64_t duration, uint64_t settle,
                   uint32_t burst) noexcept nogil:
    """Send for `duration`, then wait until nothing has come for `settle`; returns the nanoseconds of sending."""
    cdef uint64_t begun = now_ns()
    cdef uint64_t now = begun
    cdef uint64_t last, due, sending
    while now - begun < duration and run.sent < run.limit:
        due = run.limit if rate <= 0 else <uint64_t>((now - begun) * rate / 1e9) + 1
        _send(run, source, batch, min(due, run.limit), burst)
        if sink != NULL:
            _collect(run, sink, batch)
        now = now_ns()
    sending = now - begun
    last = now
    while now - last < settle and (sink == NULL or run.received < run.sent):
        source.flush(source)
        if sink != NULL and _collect(run, sink, batch):
            last = now
        now = now_ns()
    return sending


def exchange(PortHandle source not None, frames, double rate, double seconds, PortHandle sink=None,
             uint64_t first_sequence=1, double settle=0.1, uint32_t burst=32, uint64_t packets=0) -> Exchange:
    """Send `frames` in turn at `rate` packets per second (0: as fast as the port takes them), and receive.

    A frame begins with its Ethernet header and ends in 16 bytes to be written over. `source` and `sink` are ports of
    pools of their own, or of one. `first_sequence` is the ESP number that the gateway will give to packet 0. After
    `seconds`, or `packets` if that is not 0, what is still on its way has `settle` seconds from the last arrival on.
    Raises ValueError for frames that do not fit.
    """
    cdef Run run
    cdef Batch batch
    cdef uint32_t room = source.pool.c.frame_size - source.pool.c.headroom
    cdef uint8_t *area = NULL
    cdef uint32_t *lengths = NULL
    cdef const char *content
    cdef uint64_t nanoseconds
    cdef uint64_t duration = <uint64_t>(seconds * 1e9)
    cdef Port *target = NULL if sink is None else &sink.c
    if not frames or any(not ETHERNET + 28 + STAMP <= len(frame) <= room for frame in frames):
        sizes = [len(frame) for frame in frames]
        raise ValueError(f"frames of {sizes} bytes; wanted {ETHERNET + 28 + STAMP} to {room}")
    if not 0 < burst <= BATCH_MAX:
        raise ValueError(f"burst is {burst}; a batch holds 1 to {BATCH_MAX}")
    memset(&run, 0, sizeof(Run))
    memset(&batch, 0, sizeof(Batch))
    run.templates = <uint32_t>len(frames)
    run.stride = room
    run.first_sequence = first_sequence
    run.limit = <uint64_t>PACKETS_MAX if rate <= 0 else min(<uint64_t>(rate * seconds) + 1, <uint64_t>PACKETS_MAX)
    if packets:
        run.limit = min(run.limit, packets)
    area = <uint8_t *>malloc(<size_t>run.templates * room)
    lengths = <uint32_t *>malloc(run.templates * sizeof(uint32_t))
    run.times = <uint64_t *>malloc(run.limit * sizeof(uint64_t))
    run.latencies = <uint32_t *>calloc(run.limit, sizeof(uint32_t))
    try:
        if area == NULL or lengths == NULL or run.times == NULL or run.latencies == NULL:
            raise MemoryError(f"{run.limit} packets")
        for index, frame in enumerate(frames):
            content = frame
            memcpy(area + <uint64_t>index * room, content, len(frame))
            lengths[index] = <uint32_t>len(frame)
        run.frames = area
        run.lengths = lengths
        if sink is not None:
            sink.c.in_place = True
        with nogil:
            nanoseconds = _run(&run, &source.c, target, &batch, rate, duration, <uint64_t>(settle * 1e9), burst)
        return Exchange(
            wanted=run.limit, sent=run.sent, nanoseconds=nanoseconds, received=run.received,
            reordered=run.reordered, repeated=run.repeated, strange=run.strange,
            latencies=(<const char *>run.latencies)[:run.sent * sizeof(uint32_t)],
        )
    finally:
        if sink is not None:
            sink.c.in_place = False
        free(area)
        free(lengths)
        free(run.times)
        free(run.latencies)
