"""AF_XDP: one socket per (interface, queue) on the worker's frames.

    steered frame -> the kernel writes it into a frame of the fill ring -> rx ring -> receive: a Packet where it
    lies, or, where the kernel has copied, in a frame of our own -> (the kernels) -> transmit of this or another
    port: its offset into the tx ring -> kick -> the kernel sends it -> completion ring -> flush: the frame is free

The ports of one worker share one UMEM, which is the worker's frame pool; each has four rings of its own. Every
frame is at any time in exactly one place: free in the pool, in a batch, `filled` (fill or rx ring of one port)
or `sending` (tx ring, kernel or completion ring of one port).

Zero-copy is a property of the UMEM: the kernel gives all its sockets the mode of the first. Where a later port
cannot do what the first could, all must be opened anew, on a new pool, with zero_copy="off".

The kernel knows frames of a page at most, and engines want a packet in one piece. So of a larger frame (jumbo packets)
only the first page is filled by the kernel: a packet of several descriptors is put together in the frame of its first,
whose other pages are free, and leaves again as one descriptor per page that it touches (`xsk_receive_parts`, ADR 71).

Limits: a packet is at most frame_size - 256 bytes with its Ethernet header. With frames of a page or less the kernel
drops longer ones and counts them as `rx_dropped`; in larger ones the rest is cut off, and the parser drops what is
shorter than its header says. Longer ones are, above all, the segmentation super-frames of a veth peer's stack: turn its
TSO off where the program is generic or takes jumbo packets. Frames that a closed port held are not given back: a pool
lives as long as its ports do.
"""

cimport cython
from libc.errno cimport EAGAIN, EBUSY, EINTR, EINVAL, ENOBUFS, EOPNOTSUPP, EPERM, errno
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from ext.counters cimport PASS
from ext.libbpf cimport bpf_map_delete_elem, bpf_map_update_elem
from ext.libxdp cimport (
    XDP_COPY, XDP_OPTIONS, XDP_OPTIONS_ZEROCOPY, XDP_PKT_CONTD, XDP_STATISTICS, XDP_USE_NEED_WAKEUP, XDP_USE_SG,
    XDP_ZEROCOPY, XSK_LIBXDP_FLAGS__INHIBIT_PROG_LOAD, xdp_desc, xdp_options, xdp_statistics, xsk_cons_nb_avail,
    xsk_prod_nb_free, xsk_ring_cons__cancel, xsk_ring_cons__comp_addr, xsk_ring_cons__peek, xsk_ring_cons__release,
    xsk_ring_cons__rx_desc, xsk_ring_prod__fill_addr, xsk_ring_prod__needs_wakeup, xsk_ring_prod__reserve,
    xsk_ring_prod__submit, xsk_ring_prod__tx_desc, xsk_socket__create_shared, xsk_socket__delete, xsk_socket__fd,
    xsk_socket_config, xsk_umem__create, xsk_umem__delete, xsk_umem_config,
)
from ext.linuxnet cimport (
    MSG_DONTWAIT, SO_SNDBUF, SO_SNDBUFFORCE, SOL_SOCKET, SOL_XDP, getsockopt, recvfrom, sendto, setsockopt,
)
from ext.packet cimport (
    BATCH_MAX, LINK_ETHERNET, NO_INDEX, Batch, FramePool, Packet, Pool, Port, PortHandle, frame_give, frame_take,
)

import os
import time

cdef extern from *:
    """
    #include <sys/socket.h>
    #include <bpf/libbpf.h>
    #include <xdp/libxdp.h>
    #ifndef SO_PREFER_BUSY_POLL         /* Linux 5.11 */
    #define SO_PREFER_BUSY_POLL 69
    #define SO_BUSY_POLL_BUDGET 70
    #endif

    /* Both libraries tell stderr what we tell the user ourselves. */
    static void silence(void)
    {
        libbpf_set_print(NULL);
        libxdp_set_print(NULL);
    }
    """
    void silence()
    int SO_BUSY_POLL, SO_PREFER_BUSY_POLL, SO_BUSY_POLL_BUDGET
    void prefetch "__builtin_prefetch"(const void *address) noexcept nogil

cdef enum:
    ETHERNET_HEADER = 14
    PAGE = 4096                 # a UMEM's chunks are no larger
    KICK_BATCH = 32             # descriptors the kernel sends per call in copy mode
    REFILL_BATCH = 64           # frames given to the fill ring at a time
    SEND_BUFFER = 8 << 20       # bytes of sent packets the kernel may hold before it says "try again"
    RETRY_MILLISECONDS = 1

silence()


# ---- The four callbacks of Port, in the order of a packet's life ------------------------------------------------


cdef uint32_t xsk_receive(Port *port, Batch *batch) noexcept nogil:
    """Describe what the rx ring holds, at most a batch."""
    cdef XskState *state = <XskState *>port.state
    cdef uint64_t bytes_seen = 0
    cdef uint32_t at = 0
    cdef uint32_t index
    cdef const xdp_desc *descriptor
    cdef uint32_t count = xsk_ring_cons__peek(&state.rx, BATCH_MAX, &at)
    batch.count = count
    if count == 0:
        return 0
    for index in range(count):
        descriptor = xsk_ring_cons__rx_desc(&state.rx, at + index)
        _describe(port, &batch.packets[index], descriptor)
        bytes_seen += descriptor.len
    xsk_ring_cons__release(&state.rx, count)
    state.filled -= count
    port.counters.rx_packets += count
    port.counters.rx_bytes += bytes_seen - count * ETHERNET_HEADER
    if not state.zero_copy and not port.in_place:
        _copy_out(port, batch)
    return count


cdef inline void _describe(Port *port, Packet *packet, const xdp_desc *descriptor) noexcept nogil:
    """The packet that begins with this descriptor."""
    cdef FramePool *frames = port.frames
    cdef uint64_t offset = descriptor.addr & (frames.frame_size - 1)
    packet.data = frames.base + descriptor.addr
    prefetch(packet.data)
    packet.frame = descriptor.addr - offset
    packet.length = descriptor.len
    packet.sa = NO_INDEX
    packet.adjacency = NO_INDEX
    packet.headroom = <uint16_t>offset
    packet.tailroom = <uint16_t>(frames.frame_size - offset - descriptor.len)
    packet.verdict = PASS
    packet.flags = 0
    packet.port = port.index


cdef void _copy_out(Port *port, Batch *batch) noexcept nogil:
    """Give the kernel its frames back, and work on copies in ours: lines that both write travel both ways (ADR 74)."""
    cdef XskState *state = <XskState *>port.state
    cdef FramePool *frames = port.frames
    cdef uint64_t frame = 0
    cdef uint32_t at = 0
    cdef uint32_t index
    cdef Packet *packet
    # Without frames to copy to, the packets stay where they are.
    if frames.free_count < batch.count or xsk_ring_prod__reserve(&state.fill, batch.count, &at) == 0:
        return
    for index in range(batch.count):
        packet = &batch.packets[index]
        frame_take(frames, &frame)
        memcpy(frames.base + frame + packet.headroom, packet.data, packet.length)
        xsk_ring_prod__fill_addr(&state.fill, at + index)[0] = packet.frame
        packet.frame = frame
        packet.data = frames.base + frame + packet.headroom
    xsk_ring_prod__submit(&state.fill, batch.count)
    state.filled += batch.count


cdef uint32_t xsk_transmit(Port *port, Packet **packets, uint32_t count) noexcept nogil:
    """Put packets into the tx ring, as many as it has room for; kick the kernel for each full KICK_BATCH."""
    cdef XskState *state = <XskState *>port.state
    cdef uint64_t bytes_sent = 0
    cdef uint32_t at = 0
    cdef uint32_t index
    cdef xdp_desc *descriptor
    cdef uint32_t room = xsk_prod_nb_free(&state.tx, count)
    if room < count:
        port.counters.tx_full += 1
        _kick(port)
        room = xsk_prod_nb_free(&state.tx, count)
        if room < count:
            count = room
    if count == 0:
        return 0
    xsk_ring_prod__reserve(&state.tx, count, &at)
    for index in range(count):
        descriptor = xsk_ring_prod__tx_desc(&state.tx, at + index)
        descriptor.addr = packets[index].data - port.frames.base
        descriptor.len = packets[index].length
        descriptor.options = 0
        bytes_sent += packets[index].length
    xsk_ring_prod__submit(&state.tx, count)
    state.sending += count
    state.unkicked += count
    port.counters.tx_packets += count
    port.counters.tx_bytes += bytes_sent - count * ETHERNET_HEADER
    while state.unkicked >= KICK_BATCH:
        _kick(port)
    return count


cdef uint32_t xsk_receive_parts(Port *port, Batch *batch) noexcept nogil:
    """The same for frames of several pages: descriptors that belong together become one packet."""
    cdef XskState *state = <XskState *>port.state
    cdef FramePool *frames = port.frames
    cdef uint64_t bytes_seen = 0
    cdef uint32_t at = 0
    cdef uint32_t taken = 0     # descriptors of whole packets
    cdef uint32_t seen = 0
    cdef uint32_t room
    cdef bint begins = True
    cdef const xdp_desc *descriptor
    cdef Packet *packet = NULL
    cdef uint32_t count = xsk_ring_cons__peek(&state.rx, state.rx.size, &at)
    batch.count = 0
    # A packet's descriptors may be there in part (zero-copy); those are left until the others are.
    while seen < count and batch.count < BATCH_MAX:
        seen += 1
        if not xsk_ring_cons__rx_desc(&state.rx, at + seen - 1).options & XDP_PKT_CONTD:
            while taken < seen:
                descriptor = xsk_ring_cons__rx_desc(&state.rx, at + taken)
                taken += 1
                if begins:
                    packet = &batch.packets[batch.count]
                    _describe(port, packet, descriptor)
                    begins = False
                    continue
                room = min(descriptor.len, <uint32_t>packet.tailroom)
                memcpy(packet.data + packet.length, frames.base + descriptor.addr, room)
                packet.length += room
                packet.tailroom -= <uint16_t>room
                frame_give(frames, descriptor.addr)
            begins = True
            batch.count += 1
            bytes_seen += packet.length
    if taken < count:
        xsk_ring_cons__cancel(&state.rx, count - taken)
    if taken:
        xsk_ring_cons__release(&state.rx, taken)
        state.filled -= taken
        port.counters.rx_packets += batch.count
        port.counters.rx_bytes += bytes_seen - batch.count * ETHERNET_HEADER
    return batch.count


cdef uint32_t xsk_transmit_parts(Port *port, Packet **packets, uint32_t count) noexcept nogil:
    """The same for frames of several pages: a descriptor per page that a packet touches."""
    cdef XskState *state = <XskState *>port.state
    cdef uint64_t bytes_sent = 0
    cdef uint32_t mask = state.chunk - 1
    cdef uint32_t at = 0
    cdef uint32_t used = 0      # descriptors
    cdef uint32_t taken = 0     # packets
    cdef uint32_t parts, left
    cdef uint64_t where
    cdef xdp_desc *descriptor
    cdef uint32_t room = xsk_prod_nb_free(&state.tx, state.tx.size)
    while taken < count:
        where = packets[taken].data - port.frames.base
        left = packets[taken].length
        parts = ((<uint32_t>where & mask) + left + mask) // state.chunk
        if used + parts > room:
            port.counters.tx_full += 1
            break
        state.parts[where // port.frames.frame_size] = <uint8_t>parts
        xsk_ring_prod__reserve(&state.tx, parts, &at)
        used += parts
        taken += 1
        bytes_sent += left
        while parts:
            parts -= 1
            descriptor = xsk_ring_prod__tx_desc(&state.tx, at)
            at += 1
            descriptor.addr = where
            descriptor.len = min(left, state.chunk - (<uint32_t>where & mask))
            descriptor.options = <uint32_t>XDP_PKT_CONTD if parts else 0
            where += descriptor.len
            left -= descriptor.len
    if used == 0:
        _kick(port)
        return 0
    xsk_ring_prod__submit(&state.tx, used)
    state.sending += used
    state.unkicked += used
    port.counters.tx_packets += taken
    port.counters.tx_bytes += bytes_sent - taken * ETHERNET_HEADER
    while state.unkicked >= KICK_BATCH:
        _kick(port)
    return taken


cdef void _kick(Port *port) noexcept nogil:
    """Make the kernel send up to KICK_BATCH descriptors; zero-copy drivers are told only when they sleep."""
    cdef XskState *state = <XskState *>port.state
    state.unkicked -= min(state.unkicked, <uint32_t>KICK_BATCH)
    if state.zero_copy and not xsk_ring_prod__needs_wakeup(&state.tx):
        return
    port.counters.tx_syscalls += 1
    state.refused = False
    if sendto(state.fd, NULL, 0, MSG_DONTWAIT, NULL, 0) >= 0 or errno == EAGAIN or errno == ENOBUFS or errno == EINTR:
        return      # done, or done in part: what is left in the ring goes with the next kick
    if errno == EBUSY:
        # Copy mode: the device dropped one packet (no carrier), and its frame completes like any other.
        port.counters.tx_errors += not state.zero_copy
        return
    state.refused = True


cdef uint32_t _unsent(XskState *state) noexcept nogil:
    """Descriptors in the tx ring that the kernel has not taken."""
    return state.tx.size - xsk_prod_nb_free(&state.tx, state.tx.size)


cdef void xsk_flush(Port *port) noexcept nogil:
    """Kick for what waits, take back what was sent, refill."""
    cdef XskState *state = <XskState *>port.state
    cdef uint32_t waiting, before
    if state.sending:
        waiting = _unsent(state)
        while waiting:
            before = waiting
            _kick(port)
            if state.zero_copy:
                break
            waiting = _unsent(state)
            if waiting == before:   # the kernel is out of buffers: the next loop tries again
                break
        state.unkicked = 0
        _reap(port)
    _refill(port)


cdef void _reap(Port *port) noexcept nogil:
    """Frames that the kernel has sent go back to the pool."""
    cdef XskState *state = <XskState *>port.state
    cdef FramePool *frames = port.frames
    cdef uint32_t at = 0
    cdef uint32_t index
    cdef uint64_t frame
    cdef uint32_t count = xsk_ring_cons__peek(&state.completion, state.completion.size, &at)
    if count == 0:
        return
    if state.parts == NULL:
        for index in range(count):
            frame_give(frames, xsk_ring_cons__comp_addr(&state.completion, at + index)[0])
    else:
        for index in range(count):
            frame = xsk_ring_cons__comp_addr(&state.completion, at + index)[0]
            state.parts[frame // frames.frame_size] -= 1
            if state.parts[frame // frames.frame_size] == 0:
                frame_give(frames, frame)
    xsk_ring_cons__release(&state.completion, count)
    state.sending -= count


cdef void _refill(Port *port) noexcept nogil:
    """Bring fill and rx ring together up to the target, in batches; wake a driver that waits for frames."""
    cdef XskState *state = <XskState *>port.state
    cdef FramePool *frames = port.frames
    cdef uint32_t wanted = state.fill_target - state.filled
    cdef uint32_t at = 0
    cdef uint32_t index
    cdef uint64_t frame = 0
    if wanted >= state.refill_batch:
        wanted = min(wanted, frames.free_count)
        # The ring is as large as the target at least, so there is room for all that is wanted.
        if wanted and xsk_ring_prod__reserve(&state.fill, wanted, &at) == wanted:
            for index in range(wanted):
                frame_take(frames, &frame)
                xsk_ring_prod__fill_addr(&state.fill, at + index)[0] = frame
            xsk_ring_prod__submit(&state.fill, wanted)
            state.filled += wanted
    if xsk_ring_prod__needs_wakeup(&state.fill) or (state.busy_poll and xsk_cons_nb_avail(&state.rx, 1) == 0):
        port.counters.rx_syscalls += 1
        recvfrom(state.fd, NULL, 0, MSG_DONTWAIT, NULL, NULL)


cdef bint xsk_arm(Port *port) noexcept nogil:
    """The kernel wakes poll() whenever the rx ring is not empty, so only what waits now matters."""
    cdef XskState *state = <XskState *>port.state
    if xsk_cons_nb_avail(&state.rx, 1):
        return False
    # Unsent packets need another kick soon, unless the link is down: then there is nothing to be had by spinning.
    return state.sending == 0 or state.refused or _unsent(state) == 0


# ---- A closed port ------------------------------------------------------------------------------------------


cdef uint32_t _receive_nothing(Port *port, Batch *batch) noexcept nogil:
    batch.count = 0
    return 0


cdef uint32_t _transmit_nothing(Port *port, Packet **packets, uint32_t count) noexcept nogil:
    return 0


cdef void _flush_nothing(Port *port) noexcept nogil:
    pass


cdef bint _arm_nothing(Port *port) noexcept nogil:
    return True


cdef uint64_t xsk_lost(Port *port) noexcept nogil:
    """What the kernel dropped: too long or without a frame (rx_dropped has both in copy mode), or the ring was full."""
    cdef xdp_statistics statistics
    if not _ask_statistics(<XskState *>port.state, &statistics):
        return port.lost_before
    return statistics.rx_dropped + statistics.rx_ring_full


cdef bint _ask_statistics(XskState *state, xdp_statistics *statistics) noexcept nogil:
    cdef uint32_t length = sizeof(xdp_statistics)
    memset(statistics, 0, sizeof(xdp_statistics))
    return getsockopt(state.fd, SOL_XDP, XDP_STATISTICS, statistics, &length) == 0


cdef void _close_callbacks(Port *port) noexcept nogil:
    port.receive = _receive_nothing
    port.transmit = _transmit_nothing
    port.flush = _flush_nothing
    port.arm = _arm_nothing
    port.lost = NULL
    port.fd = -1


# ---- Opening and closing ------------------------------------------------------------------------------------


cdef class Umem:
    """The frame pool of a worker, registered with the kernel when its first port opens.

    `zero_copy` is "auto" (try it, else copy), "on" (or fail) or "off". The pages are pinned, so the memory is
    resident from then on.
    """

    def __init__(self, Pool pool, str zero_copy="auto"):
        if zero_copy not in ("auto", "on", "off"):
            raise ValueError(f"zero_copy is {zero_copy!r}; it must be auto, on or off")
        self.pool = pool
        self.zero_copy = zero_copy
        self.chunk = min(pool.c.frame_size, <uint32_t>PAGE)
        if self.chunk < pool.c.frame_size and self.parts == NULL:
            self.parts = <uint8_t *>calloc(pool.c.frame_count, 1)
            if self.parts == NULL:
                raise MemoryError(f"a byte for each of {pool.c.frame_count} frames")

    def __dealloc__(self):
        free(self.parts)
        if self.umem != NULL:
            xsk_umem__delete(self.umem)

    cdef int _register(self, uint32_t ring) except -1:
        """Give the pool to the kernel; the rings made here become the first port's."""
        cdef xsk_umem_config config
        cdef int error
        memset(&config, 0, sizeof(config))
        config.fill_size = ring
        config.comp_size = ring
        config.frame_size = self.chunk
        error = xsk_umem__create(
            &self.umem, self.pool.c.base, self.pool.c.size, &self.fill, &self.completion, &config)
        if error:
            self.umem = NULL
            hint = {
                ENOBUFS: "pinning it takes CAP_IPC_LOCK or a larger RLIMIT_MEMLOCK",
                EPERM: "AF_XDP sockets take CAP_NET_RAW",
            }.get(-error, "")
            raise OSError(-error, f"register {self.pool.c.size} bytes of frames as UMEM: {os.strerror(-error)}"
                          + (f": {hint}" if hint else ""))
        return 0

    cdef int _release(self) except -1:
        if self.umem != NULL:
            xsk_umem__delete(self.umem)
            self.umem = NULL
        return 0


@cython.no_gc_clear
cdef class XskPort(PortHandle):
    """One AF_XDP socket on `queue` of `interface`, fed by the steering program whose XSKMAP is `xsks_fd`.

    `ring` is the size of each of its four rings (a power of two), `fill` how many frames it keeps ready for
    reception (default: the ring's size, but at most a quarter of the pool), `busy_poll` for how many microseconds a
    look drives the queue (0: interrupts do). Opening is tried again for `retry`
    seconds while the kernel still holds the queue for a socket that has died (EBUSY). Nothing is received
    before the first `flush`, which brings the first frames. Raises OSError with what was tried.
    """

    def __init__(
        self, Umem umem, str name, str interface, int queue, int xsks_fd, *, int role, int mtu, addresses=(),
        str xdp_mode="native", int ring=2048, int fill=0, double retry=1.0, int busy_poll=0,
    ):
        cdef Pool pool = umem.pool
        super().__init__(pool, name, role, LINK_ETHERNET, mtu, addresses)
        _close_callbacks(&self.c)
        self.xsks_fd = -1
        if ring <= 0 or ring & (ring - 1):
            raise ValueError(f"port {name}: ring is {ring}; it must be a power of two")
        if fill == 0:
            fill = min(ring, pool.frame_count // 4)
        if not 0 < fill <= ring:
            raise ValueError(f"port {name}: fill is {fill}; it must be between 1 and the ring's {ring}")
        self.umem = umem
        self.interface = interface
        self.queue = queue
        self.xdp_mode = xdp_mode
        self.state.fill_target = fill
        self.state.refill_batch = max(1, min(REFILL_BATCH, fill // 2))
        self.state.chunk = umem.chunk
        self.state.parts = umem.parts
        self.c.state = &self.state
        self._open(ring, retry)
        umem.ports += 1
        try:
            self._set_busy_poll(busy_poll)
            self.xsks_fd = os.dup(xsks_fd)
            self._adopt()
        except BaseException:
            self.close()
            raise
        self.c.fd = self.state.fd
        self.c.receive = xsk_receive if self.state.parts == NULL else xsk_receive_parts
        self.c.transmit = xsk_transmit if self.state.parts == NULL else xsk_transmit_parts
        self.c.flush = xsk_flush
        self.c.arm = xsk_arm
        self.c.lost = xsk_lost

    def __dealloc__(self):
        if self.socket != NULL:
            self.close()

    cdef int _open(self, uint32_t ring, double retry) except -1:
        """Create and bind the socket: the first port of a UMEM tries its modes in turn, later ones follow it."""
        cdef int error = 0
        first = self.umem.ports == 0
        modes = {"auto": (True, False), "on": (True,), "off": (False,)}[self.umem.zero_copy]
        if not first:
            modes = (bool(self.umem.is_zero_copy),)
        elif self.xdp_mode == "generic":
            # A generic program runs behind the driver: frames are copied in any case.
            if self.umem.zero_copy == "on":
                raise OSError(EOPNOTSUPP, f"{self.interface}: zero-copy wants native XDP; the program is generic")
            modes = (False,)
        deadline = time.monotonic() + retry
        tried = {}
        while True:
            for zero_copy in modes:
                if first:
                    # A socket that failed to bind cannot be used again, and the first one is the UMEM's own.
                    self.umem._release()
                    self.umem._register(ring)
                error = self._bind(ring, zero_copy)
                if error == 0:
                    return 0
                tried["zero-copy" if zero_copy else "copy"] = error
            if EBUSY not in tried.values() or time.monotonic() > deadline:
                break
            time.sleep(RETRY_MILLISECONDS / 1000)
        if first:
            self.umem._release()
        what = "; ".join(f"{mode}: {os.strerror(code)}" for mode, code in tried.items())
        if self.umem.parts != NULL and error == EINVAL:
            what += f" (frames of {self.pool.frame_size} bytes want Linux 6.6)"
        if EBUSY in tried.values():
            what += f" (another AF_XDP socket holds the queue, still after {retry:g} s)"
        raise OSError(error, f"open AF_XDP socket on {self.interface} queue {self.queue}: {what}")

    cdef int _bind(self, uint32_t ring, bint zero_copy):
        """One attempt; 0, or errno."""
        cdef xsk_socket_config config
        cdef xdp_options options
        cdef uint32_t length = sizeof(options)
        cdef int error
        cdef bytes interface = self.interface.encode()
        memset(&config, 0, sizeof(config))
        config.rx_size = ring
        config.tx_size = ring
        config.libxdp_flags = XSK_LIBXDP_FLAGS__INHIBIT_PROG_LOAD
        config.bind_flags = <uint16_t>(XDP_USE_NEED_WAKEUP | (XDP_ZEROCOPY if zero_copy else XDP_COPY)
                                       | (XDP_USE_SG if self.umem.parts != NULL else 0))
        error = xsk_socket__create_shared(
            &self.socket, interface, self.queue, self.umem.umem, &self.state.rx, &self.state.tx,
            &self.state.fill, &self.state.completion, &config)
        if error:
            self.socket = NULL
            return -error
        self.state.fd = xsk_socket__fd(self.socket)
        options.flags = 0
        getsockopt(self.state.fd, SOL_XDP, XDP_OPTIONS, &options, &length)
        self.state.zero_copy = options.flags & XDP_OPTIONS_ZEROCOPY != 0
        self.umem.is_zero_copy = self.state.zero_copy
        return 0

    cdef int _adopt(self) except -1:
        """Enlarge the send buffer and enter the XSKMAP: from here on, frames arrive."""
        cdef int size = SEND_BUFFER
        cdef uint32_t key = self.queue
        # Copy mode charges sent packets to the socket until their receiver lets go of them.
        if setsockopt(self.state.fd, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof(size)):
            setsockopt(self.state.fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size))
        if bpf_map_update_elem(self.xsks_fd, &key, &self.state.fd, 0):
            raise OSError(errno, f"enter queue {self.queue} of {self.interface} in the XSKMAP: {os.strerror(errno)}")
        return 0

    cdef int _set_busy_poll(self, int microseconds) except -1:
        """Have the kernel run the queue's NAPI instance in our system calls, not in interrupts while we make them."""
        cdef int number
        if microseconds == 0:
            return 0
        for option, value in (
            (SO_PREFER_BUSY_POLL, 1), (SO_BUSY_POLL, microseconds), (SO_BUSY_POLL_BUDGET, <int>BATCH_MAX),
        ):
            number = value
            if setsockopt(self.state.fd, SOL_SOCKET, option, &number, sizeof(number)):
                raise OSError(errno, f"busy polling on {self.interface} queue {self.queue}: {os.strerror(errno)}"
                              + (": it needs CAP_NET_ADMIN" if errno == EPERM else ""))
        self.state.busy_poll = True
        return 0

    def close(self) -> None:
        """Leave the XSKMAP and close the socket; the steering program then drops what it steers here.

        The last port to close releases the UMEM. Until then the socket of the first stays bound, because
        the UMEM is its own; it receives nothing more.
        """
        cdef uint32_t key = self.queue
        _close_callbacks(&self.c)
        if self.socket == NULL:
            return
        if self.xsks_fd >= 0:
            bpf_map_delete_elem(self.xsks_fd, &key)    # may be refused once capabilities are dropped
            os.close(self.xsks_fd)
            self.xsks_fd = -1
        xsk_socket__delete(self.socket)
        self.socket = NULL
        self.umem.ports -= 1
        if self.umem.ports == 0:
            self.umem._release()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    @property
    def mode(self) -> str:
        """"native/zero-copy", "native/copy" or "generic/copy"."""
        return f"{self.xdp_mode}/{'zero-copy' if self.state.zero_copy else 'copy'}"

    @property
    def frames_filled(self) -> int:
        """Frames that wait for a packet, or hold one that waits for `receive`."""
        return self.state.filled

    @property
    def frames_sending(self) -> int:
        """Descriptors handed to the kernel by `transmit` and not yet back. Where packets are one descriptor each, these
        are frames, and with `frames_filled` of all ports, the pool's free frames and those in batches, they are all."""
        return self.state.sending

    def statistics(self) -> dict:
        """What the kernel counts per socket (struct xdp_statistics): why packets were not received or sent."""
        cdef xdp_statistics statistics
        if self.socket == NULL:
            raise ValueError(f"port {self.name} is closed")
        if not _ask_statistics(&self.state, &statistics):
            raise OSError(errno, f"statistics of {self.interface} queue {self.queue}: {os.strerror(errno)}")
        return {
            "rx_dropped": statistics.rx_dropped,
            "rx_ring_full": statistics.rx_ring_full,
            "rx_no_frame": statistics.rx_fill_ring_empty_descs,
            "rx_invalid": statistics.rx_invalid_descs,
            "tx_invalid": statistics.tx_invalid_descs,
        }
