"""TUN queue: read -> cut super-frames -> (the kernels) -> coalesce runs -> writev.

A TUN descriptor moves one packet per system call, so the packets must be large: with TUNSETOFFLOAD the
kernel hands over TCP and UDP super-frames of up to 64 KB uncut (`segment` cuts them), and takes super-packets
that `coalesce` makes of a batch, gathered by writev() from the frames where they lie. Traffic that cannot be
joined costs one system call per packet.

The descriptor comes from dataplane.ports.tun: IFF_TUN | IFF_NO_PI | IFF_VNET_HDR | IFF_MULTI_QUEUE, O_NONBLOCK, one
queue per worker. Not handled: TAP devices (`packet` on a veth pair does the same).
"""

from libc.errno cimport EAGAIN, EBADFD, EINTR, ENOBUFS, errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from posix.unistd cimport close as close_fd

from ext.coalesce cimport Run, gather, order, run_apply, run_refused, run_undo
from ext.linuxnet cimport iovec, readv, writev
from ext.packet cimport BATCH_MAX, LINK_IP, Batch, FramePool, Packet, Pool, Port, PortHandle, frame_give, frame_take
from ext.segment cimport SUPER_HEAD, SUPER_MAX, VnetHeader, arrive, segment


cdef uint32_t tun_receive(Port *port, Batch *batch) noexcept nogil:
    """Go on cutting, then read packets until the batch is full, the queue empty or the pool dry."""
    cdef TunState *state = <TunState *>port.state
    cdef FramePool *pool = port.frames
    cdef iovec parts[3]
    cdef uint64_t frame
    cdef ssize_t length
    cdef uint32_t index
    batch.count = 0
    segment(&state.whole, port, batch)
    parts[0].iov_base = &state.about
    parts[0].iov_len = sizeof(VnetHeader)
    parts[1].iov_len = pool.frame_size - pool.headroom
    parts[2].iov_base = state.overflow
    parts[2].iov_len = SUPER_MAX
    while batch.count < BATCH_MAX and state.whole.done == state.whole.payload and frame_take(pool, &frame):
        parts[1].iov_base = pool.base + frame + pool.headroom
        length = readv(state.fd, parts, 3)
        port.counters.rx_syscalls += 1
        if length <= <ssize_t>sizeof(VnetHeader):
            frame_give(pool, frame)
            if length < 0 and errno == EBADFD:
                port.fd = -1        # the device was deleted: poll() would report that for ever
            break
        arrive(port, batch, &state.whole, &state.about, frame, state.overflow, <uint32_t>(length - sizeof(VnetHeader)))
    port.counters.rx_packets += batch.count
    for index in range(batch.count):
        port.counters.rx_bytes += batch.packets[index].length
    return batch.count


cdef uint32_t tun_transmit(Port *port, Packet **packets, uint32_t count) noexcept nogil:
    """Write a batch as few super-packets as it makes; rearranges `packets` by flow (never within one)."""
    cdef TunState *state = <TunState *>port.state
    cdef Run *run
    cdef uint32_t index, member, parts
    cdef uint32_t taken = 0
    cdef ssize_t written
    gather(&state.runs, packets, count, 0)
    order(&state.runs, packets, count)
    for index in range(state.runs.count):
        run = &state.runs.runs[index]
        parts = run_apply(run, packets + taken, 0, state.parts + 1)
        state.parts[0].iov_base = &run.about
        state.parts[0].iov_len = sizeof(VnetHeader)
        written = writev(state.fd, state.parts, <int>(parts + 1))
        port.counters.tx_syscalls += 1
        if written < 0:
            if run_refused(&state.runs, run, errno):
                run_undo(run, packets + taken, 0)
                break
            if errno == EAGAIN or errno == ENOBUFS or errno == EINTR:
                run_undo(run, packets + taken, 0)
                port.counters.tx_full += 1
                break
            port.counters.tx_errors += run.count
        else:
            port.counters.tx_packets += run.count
        for member in range(taken, taken + run.count):
            if written >= 0:
                port.counters.tx_bytes += packets[member].length
            frame_give(port.frames, packets[member].frame)
        taken += run.count
    return taken


cdef void tun_flush(Port *port) noexcept nogil:
    """Every write has reached the kernel already."""
    pass


cdef bint tun_arm(Port *port) noexcept nogil:
    """Sleep unless a super-frame is half cut."""
    cdef TunState *state = <TunState *>port.state
    return state.whole.done == state.whole.payload


cdef class TunPort(PortHandle):
    """One queue of a TUN device; owns `fd` from here on.

    `offloads` is what TUNSETOFFLOAD accepted, shown by `mode`: "tso", "tso+uso" or "".
    """

    def __cinit__(self):
        self.state.fd = -1

    def __init__(self, Pool pool, str name, int fd, int role=0, int mtu=1500, addresses=(), str offloads=""):
        super().__init__(pool, name, role, LINK_IP, mtu, addresses)
        self.state.overflow_area = <uint8_t *>malloc(SUPER_HEAD + SUPER_MAX)
        if self.state.overflow_area == NULL:
            raise MemoryError(f"{name}: buffer for super-frames")
        self.state.overflow = self.state.overflow_area + SUPER_HEAD
        self.state.fd = fd
        # What a kernel can be asked to hand over uncut, it takes, too: Linux learned both with 6.2.
        self.state.runs.no_udp = "uso" not in offloads
        self.offloads = offloads
        self.c.fd = fd
        self.c.state = &self.state
        self.c.receive = tun_receive
        self.c.transmit = tun_transmit
        self.c.flush = tun_flush
        self.c.arm = tun_arm

    def __dealloc__(self):
        if self.state.fd >= 0:
            close_fd(self.state.fd)
        free(self.state.overflow_area)

    def close(self) -> None:
        """Close the queue; what was not yet cut is lost."""
        if self.state.fd >= 0:
            close_fd(self.state.fd)
        self.c.fd = -1
        self.state.fd = -1
        self.state.whole.done = self.state.whole.payload

    @property
    def mode(self) -> str:
        """"queue", and the offloads in use."""
        return f"queue/{self.offloads}" if self.offloads else "queue"
