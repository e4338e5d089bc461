"""Packet socket: recvmmsg -> cut super-frames -> (the kernels) -> coalesce runs -> sendmmsg.

    receive     up to 64 frames per system call, each scattered: virtio_net_hdr, a frame of the pool, and overflow for
                what is longer; plain packets stay where they landed, super-frames (the tap sees them before the driver
                cuts them, and after GRO has joined them) are cut by `segment`, over several batches if need be
    transmit    one message per run; segments of one TCP flow leave as one super-frame, which the driver, or the
                receiving end of a veth pair, cuts or takes whole

The descriptor comes from dataplane.ports.packet, bound and filtered. Without the steering filter the socket would see
all that the interface receives, with VLAN tags taken out and frames for other hosts among it: the filter drops both.

A ring (TPACKET_V3) was considered: it gives packets by whole blocks, a block's time-out is at least a millisecond, and
what lies in the ring must be copied into a frame all the same; recvmmsg copies once and at once.
"""

from libc.errno cimport EAGAIN, EINTR, ENOBUFS, errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset
from posix.unistd cimport close as close_fd

from ext.coalesce cimport Run, gather, order, run_apply, run_refused, run_undo
from ext.linuxnet cimport (
    MSG_DONTWAIT, SK_MEMINFO_DROPS, SK_MEMINFO_VARS, SO_MEMINFO, SOL_SOCKET, getsockopt, recvmmsg, sendmmsg,
)
from ext.packet cimport (
    BATCH_MAX, LINK_ETHERNET, Batch, FramePool, Packet, Pool, Port, PortHandle, frame_give, frame_take,
)
from ext.segment cimport GSO_NONE, SUPER_HEAD, SUPER_MAX, VnetHeader, arrive, segment
from ext.wire cimport ETHERNET_HEADER

cdef enum:
    STRIDE = SUPER_HEAD + SUPER_MAX     # bytes from one message's overflow to the next


cdef uint32_t packet_receive(Port *port, Batch *batch) noexcept nogil:
    """Finish what the last system call brought, or make the next one."""
    cdef PacketState *state = <PacketState *>port.state
    cdef uint32_t index
    batch.count = 0
    segment(&state.whole, port, batch)
    if state.taken == state.received and batch.count == 0 and state.whole.done == state.whole.payload:
        _refill(port)
    while state.taken < state.received and batch.count < BATCH_MAX and state.whole.done == state.whole.payload:
        index = state.taken
        arrive(
            port, batch, &state.whole, &state.about[index], state.frames[index],
            state.overflow + <uint64_t>index * STRIDE + SUPER_HEAD,
            state.rx[index].msg_len - <uint32_t>sizeof(VnetHeader),
        )
        state.frames[index] = NO_FRAME
        state.taken += 1
    port.counters.rx_packets += batch.count
    for index in range(batch.count):
        port.counters.rx_bytes += batch.packets[index].length - ETHERNET_HEADER
    return batch.count


cdef void _refill(Port *port) noexcept nogil:
    """Give every message a frame and ask the kernel for more."""
    cdef PacketState *state = <PacketState *>port.state
    cdef FramePool *pool = port.frames
    cdef uint32_t ready = 0
    cdef uint32_t index
    cdef int count
    state.received = 0
    state.taken = 0
    while ready < state.appetite:
        if state.frames[ready] == NO_FRAME:
            if not frame_take(pool, &state.frames[ready]):
                state.frames[ready] = NO_FRAME
                break
            state.rx_parts[ready][1].iov_base = pool.base + state.frames[ready] + pool.headroom
        ready += 1
    if ready == 0:
        return
    count = recvmmsg(state.fd, state.rx, ready, MSG_DONTWAIT, NULL)
    port.counters.rx_syscalls += 1
    if count <= 0:
        # Nothing there; or the kernel threw one away that it cannot describe (EINVAL: GSO inside a tunnel), or the
        # interface went down: the next call goes on.
        return
    state.received = <uint32_t>count
    state.appetite = BATCH_MAX
    for index in range(state.received):
        if state.about[index].gso_type != GSO_NONE:
            state.appetite = FEW
            break
    _skip_runts(state)


cdef void _skip_runts(PacketState *state) noexcept nogil:
    """Move messages without even a link header out of the way (none is known to occur)."""
    cdef uint32_t index
    for index in range(state.received):
        if state.rx[index].msg_len < sizeof(VnetHeader) + ETHERNET_HEADER:
            # The batch accounting takes the link header for granted; such a frame is made one of zeros.
            state.rx[index].msg_len = sizeof(VnetHeader) + ETHERNET_HEADER
            memset(state.rx_parts[index][1].iov_base, 0, ETHERNET_HEADER)


cdef uint64_t packet_lost(Port *port) noexcept nogil:
    """What found the socket's buffer full."""
    return socket_drops((<PacketState *>port.state).fd)


cdef uint64_t socket_drops(int fd) noexcept nogil:
    """Packets that the kernel had for a socket and dropped since it was opened (ss shows them as d); 0 without one."""
    cdef uint32_t[SK_MEMINFO_VARS] info
    cdef uint32_t length = sizeof(info)
    if fd < 0 or getsockopt(fd, SOL_SOCKET, SO_MEMINFO, info, &length) or length < sizeof(info):
        return 0
    return info[SK_MEMINFO_DROPS]


cdef uint32_t packet_transmit(Port *port, Packet **packets, uint32_t count) noexcept nogil:
    """Send a batch in as few frames as it makes; rearranges `packets` by flow (never within one)."""
    cdef PacketState *state = <PacketState *>port.state
    cdef Run *run
    cdef uint32_t index, parts
    cdef uint32_t at = 0
    cdef uint32_t used = 0
    cdef uint32_t sent = 0
    cdef uint32_t taken = 0
    cdef int result
    gather(&state.runs, packets, count, ETHERNET_HEADER)
    order(&state.runs, packets, count)
    for index in range(state.runs.count):
        run = &state.runs.runs[index]
        state.tx_parts[used].iov_base = &run.about
        state.tx_parts[used].iov_len = sizeof(VnetHeader)
        state.tx[index].msg_hdr.msg_iov = &state.tx_parts[used]
        parts = run_apply(run, packets + at, ETHERNET_HEADER, &state.tx_parts[used + 1])
        state.tx[index].msg_hdr.msg_iovlen = parts + 1
        used += parts + 1
        at += run.count
    while sent < state.runs.count:
        result = sendmmsg(state.fd, state.tx + sent, state.runs.count - sent, MSG_DONTWAIT)
        port.counters.tx_syscalls += 1
        if result < 0:
            if errno == EINTR:
                continue
            if errno == EAGAIN or errno == ENOBUFS:
                port.counters.tx_full += 1
                break
            if run_refused(&state.runs, &state.runs.runs[sent], errno):
                break       # the next call offers its packets one by one
            # The kernel refuses this one (too long, interface down): it is gone, the others get their chance.
            port.counters.tx_errors += state.runs.runs[sent].count
            taken += _release(port, packets + taken, state.runs.runs[sent].count, False)
            sent += 1
            continue
        for index in range(<uint32_t>result):
            taken += _release(port, packets + taken, state.runs.runs[sent + index].count, True)
        sent += <uint32_t>result
    at = taken
    for index in range(sent, state.runs.count):
        run_undo(&state.runs.runs[index], packets + at, ETHERNET_HEADER)
        at += state.runs.runs[index].count
    return taken


cdef uint32_t _release(Port *port, Packet **packets, uint32_t count, bint sent) noexcept nogil:
    """The kernel has copied these packets (or refused them): their frames are free. Returns `count`."""
    cdef uint32_t index
    for index in range(count):
        if sent:
            port.counters.tx_packets += 1
            port.counters.tx_bytes += packets[index].length - ETHERNET_HEADER
        frame_give(port.frames, packets[index].frame)
    return count


cdef void packet_flush(Port *port) noexcept nogil:
    """Every message has reached the kernel already."""
    pass


cdef bint packet_arm(Port *port) noexcept nogil:
    """Sleep unless something received still waits here."""
    cdef PacketState *state = <PacketState *>port.state
    return state.taken == state.received and state.whole.done == state.whole.payload


cdef class PacketPort(PortHandle):
    """A packet socket, bound to one interface, with PACKET_VNET_HDR; owns `fd` from here on.

    `fanout` is how it shares the interface with the other workers' sockets ("hash", "lb" or ""), shown by `mode`.
    """

    def __cinit__(self):
        self.c.fd = -1

    def __init__(self, Pool pool, str name, int fd, int role=0, int mtu=1500, addresses=(), str fanout=""):
        cdef uint32_t index
        super().__init__(pool, name, role, LINK_ETHERNET, mtu, addresses)
        self.state.overflow = <uint8_t *>malloc(<size_t>BATCH_MAX * STRIDE)
        if self.state.overflow == NULL:
            raise MemoryError(f"{name}: buffers for super-frames")
        self.state.fd = fd
        self.state.appetite = BATCH_MAX
        for index in range(<uint32_t>BATCH_MAX):
            self.state.frames[index] = NO_FRAME
            self.state.rx_parts[index][0].iov_base = &self.state.about[index]
            self.state.rx_parts[index][0].iov_len = sizeof(VnetHeader)
            self.state.rx_parts[index][1].iov_len = pool.c.frame_size - pool.c.headroom
            self.state.rx_parts[index][2].iov_base = self.state.overflow + <uint64_t>index * STRIDE + SUPER_HEAD
            self.state.rx_parts[index][2].iov_len = SUPER_MAX
            self.state.rx[index].msg_hdr.msg_iov = self.state.rx_parts[index]
            self.state.rx[index].msg_hdr.msg_iovlen = 3
        self.fanout = fanout
        self.c.fd = fd
        self.c.state = &self.state
        self.c.receive = packet_receive
        self.c.transmit = packet_transmit
        self.c.flush = packet_flush
        self.c.arm = packet_arm
        self.c.lost = packet_lost

    def __dealloc__(self):
        if self.c.fd >= 0:
            close_fd(self.c.fd)
        free(self.state.overflow)

    def close(self) -> None:
        """Close the socket and give back the frames that wait for packets; what was not yet cut is lost."""
        cdef uint32_t index
        if self.c.fd < 0:
            return
        close_fd(self.c.fd)
        self.c.fd = -1
        self.state.fd = -1
        self.state.received = self.state.taken = 0
        self.state.whole.done = self.state.whole.payload
        for index in range(<uint32_t>BATCH_MAX):
            if self.state.frames[index] != NO_FRAME:
                frame_give(self.c.frames, self.state.frames[index])
                self.state.frames[index] = NO_FRAME

    @property
    def mode(self) -> str:
        """"socket", and how the interface is shared."""
        return f"socket/{self.fanout}" if self.fanout else "socket"
