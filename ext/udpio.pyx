"""ESP and AH over kernel sockets: `UdpPort` for ESP in UDP (RFC 3948), `RawPort` for IP protocols 50 and 51.

The kernels see whole outer IP packets whatever the driver, so
    receive     recvmmsg -> payload into a frame, outer IP (and UDP) header synthesized before it from the sender's
                address, the control messages and the lengths; a UDP_GRO super-datagram is cut by its size
    transmit    outer header -> address, source and TOS; payload by sendmmsg, runs of equal size to one peer as one
                UDP_SEGMENT message. RawPort sends whole packets (IP_HDRINCL)
The kernel has verified the UDP checksum, reassembled fragments and checked the outer header: the synthesized one holds
what survived: addresses, ports, TOS (ECN included), and a TTL of 64 where the socket tells none.

The sockets come from dataplane.ports.udp and .raw. Sockets cannot send what the header says of DF, ID and TTL: UDP
sends with DF and the route's TTL (IP_PMTUDISC_PROBE: never fragmented here; too long is EMSGSIZE, counted).
One port has up to two sockets, one per family, and a raw one as many for each protocol; `fd` is an epoll of all.
A port that is there for reassembled fragments only, beside one that reads the interface, is `seldom` looked at: a
system call per round would cost the others' packets more than its own are worth.
"""

from libc.errno cimport EAGAIN, EINTR, EINVAL, EIO, EMSGSIZE, ENOBUFS, errno
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy, memset
from posix.unistd cimport close as close_fd

import os
import select
import socket

from ext.linuxnet cimport (
    CMSG_DATA, CMSG_FIRSTHDR, CMSG_LEN, CMSG_NXTHDR, CMSG_SPACE, IP_PKTINFO, IP_TOS, IPPROTO_IP, IPPROTO_IPV6,
    IPPROTO_UDP, IPV6_HOPLIMIT, IPV6_PKTINFO, IPV6_TCLASS, MSG_DONTWAIT, UDP_GRO, UDP_SEGMENT, cmsghdr, in6_pktinfo,
    in_pktinfo, mmsghdr, recvmmsg, sendmmsg, sockaddr_in, sockaddr_in6,
)
from ext.packet cimport (
    BATCH_MAX, LINK_IP, PACKET_WHOLE_CHECKSUM, Batch, FramePool, Packet, Pool, Port, PortHandle, frame_give, frame_take,
)
from ext.packetsock cimport NO_FRAME, socket_drops
from ext.rawsock cimport put_name, send_whole, sender_init, settle
from ext.segment cimport SUPER_HEAD, SUPER_MAX, describe, splits
from ext.wire cimport PROTOCOL_AH, PROTOCOL_ESP, PROTOCOL_UDP, likely, raw32, restamp_ipv4, store16, store32

cdef enum:
    STRIDE = SUPER_HEAD + SUPER_MAX
    OUTER_TTL = 64
    QUIET_TURNS = 15            # a quiet family is looked at in one of 16 calls (a power of two less one)
    SELDOM_TURNS = 63           # a `seldom` port in one of 64, unless it brought something or poll() has spoken


# ---- receive --------------------------------------------------------------------------------------------------


cdef uint32_t _gather(Port *port, Pair *pair, Batch *batch) noexcept nogil:
    """Add what came by both families to the batch; returns whether there was any.

    A family that is quiet costs a system call only now and then while the other is busy.
    """
    cdef Intake *first = &pair.ipv6 if pair.ipv6_first else &pair.ipv4
    cdef Intake *second = &pair.ipv4 if pair.ipv6_first else &pair.ipv6
    cdef uint32_t before = batch.count
    pair.turn += 1
    first.busy = _take_in(port, first, batch)
    if not first.busy or second.busy or pair.turn & QUIET_TURNS == 0:
        second.busy = _take_in(port, second, batch)
        if second.busy and not first.busy:
            pair.ipv6_first ^= 1
    return batch.count > before


cdef inline bint _due(Seldom *seldom) noexcept nogil:
    """Whether to look at the port's sockets in this call."""
    if likely(not seldom.on, 1):
        return True
    seldom.calls += 1
    return seldom.busy or seldom.calls & SELDOM_TURNS == 0


cdef uint32_t _count_received(Port *port, const Batch *batch) noexcept nogil:
    """The port's counters; returns the packets received."""
    cdef uint32_t index
    port.counters.rx_packets += batch.count
    for index in range(batch.count):
        port.counters.rx_bytes += batch.packets[index].length
    return batch.count


cdef uint32_t _take_in(Port *port, Intake *intake, Batch *batch) noexcept nogil:
    """Add this socket's datagrams to the batch, with one system call at most; returns whether there were any."""
    cdef uint32_t before = batch.count
    if intake.fd < 0:
        return 0
    if batch.count == BATCH_MAX:
        return intake.busy
    _cut(port, intake, batch)
    if intake.taken == intake.received and intake.whole_done == intake.whole_length:
        _refill(port, intake)
    while (intake.taken < intake.received and batch.count < BATCH_MAX
            and intake.whole_done == intake.whole_length):
        _accept(port, intake, batch, intake.taken)
        intake.taken += 1
    return batch.count > before


cdef void _refill(Port *port, Intake *intake) noexcept nogil:
    """Give every message a frame and ask the kernel for more."""
    cdef FramePool *pool = port.frames
    cdef uint32_t ready = 0
    cdef mmsghdr *message
    cdef int count
    intake.received = 0
    intake.taken = 0
    while ready < MESSAGES:
        if intake.frames[ready] == NO_FRAME:
            if not frame_take(pool, &intake.frames[ready]):
                intake.frames[ready] = NO_FRAME
                break
            intake.parts[ready][0].iov_base = pool.base + intake.frames[ready] + pool.headroom + intake.outer
            message = &intake.messages[ready]
            message.msg_hdr.msg_namelen = sizeof(sockaddr_in6)
            message.msg_hdr.msg_controllen = CONTROL_SIZE
        ready += 1
    if ready == 0:
        return
    count = recvmmsg(intake.fd, intake.messages, ready, MSG_DONTWAIT, NULL)
    port.counters.rx_syscalls += 1
    # An error is either "nothing there" or one that an ICMP message left on the socket: reading it has cleared it.
    if count > 0:
        intake.received = <uint32_t>count


cdef void _accept(Port *port, Intake *intake, Batch *batch, uint32_t index) noexcept nogil:
    """One message: into the batch where it lies, or, when it holds several datagrams, made ready to be cut."""
    cdef FramePool *pool = port.frames
    cdef uint64_t frame = intake.frames[index]
    cdef uint32_t length = intake.messages[index].msg_len
    cdef uint32_t room = pool.frame_size - pool.headroom - intake.outer
    cdef uint32_t head = length if length < room else room
    cdef uint32_t size = 0
    cdef uint8_t *payload = pool.base + frame + pool.headroom + intake.outer
    cdef uint8_t *overflow
    intake.frames[index] = NO_FRAME
    if intake.outer:
        size = _synthesize(intake, index)
    if 0 < size < length and size <= room:
        overflow = intake.overflow + <uint64_t>index * STRIDE + SUPER_HEAD
        memcpy(overflow - head, payload, head)
        frame_give(pool, frame)
        intake.whole = overflow - head
        intake.whole_length = length
        intake.whole_done = 0
        intake.whole_size = size
        if not splits(batch, length, size):
            _cut(port, intake, batch)
        return
    if intake.outer:
        _stamp(intake, payload - intake.outer, length)
    # What is longer than a frame is truncated, and its length field then names the drop.
    describe(
        port, &batch.packets[batch.count], frame, pool.headroom, intake.outer + head, PACKET_WHOLE_CHECKSUM,
    )
    batch.count += 1


cdef void _cut(Port *port, Intake *intake, Batch *batch) noexcept nogil:
    """Datagrams of a UDP_GRO message, one frame each, until batch or pool are full or it ends."""
    cdef FramePool *pool = port.frames
    cdef uint32_t size
    cdef uint64_t frame
    cdef uint8_t *target
    while batch.count < BATCH_MAX and intake.whole_done < intake.whole_length:
        if not frame_take(pool, &frame):
            return
        size = intake.whole_length - intake.whole_done
        if size > intake.whole_size:
            size = intake.whole_size
        target = pool.base + frame + pool.headroom
        memcpy(target + intake.outer, intake.whole + intake.whole_done, size)
        _stamp(intake, target, size)
        describe(port, &batch.packets[batch.count], frame, pool.headroom, intake.outer + size, PACKET_WHOLE_CHECKSUM)
        batch.count += 1
        intake.whole_done += size


cdef uint32_t _synthesize(Intake *intake, uint32_t index) noexcept nogil:
    """Make intake.header of what recvmsg() told, lengths still missing; returns the UDP_GRO size, 0 for none."""
    cdef uint8_t *header = intake.header
    cdef uint8_t *ports
    cdef mmsghdr *message = &intake.messages[index]
    cdef cmsghdr *control = CMSG_FIRSTHDR(&message.msg_hdr)
    cdef sockaddr_in6 *name = &intake.names[index]
    cdef int value
    cdef uint32_t size = 0
    cdef uint8_t tos = 0
    cdef uint8_t ttl = OUTER_TTL
    cdef uint8_t protocol = intake.protocol
    memset(header, 0, OUTER_MAX)
    while control != NULL:
        if control.cmsg_level == IPPROTO_UDP and control.cmsg_type == UDP_GRO:
            memcpy(&value, CMSG_DATA(control), sizeof(int))
            size = <uint32_t>value
        elif control.cmsg_level == IPPROTO_IP and control.cmsg_type == IP_PKTINFO:
            memcpy(header + 16, &(<in_pktinfo *>CMSG_DATA(control)).ipi_addr, 4)
        elif control.cmsg_level == IPPROTO_IP and control.cmsg_type == IP_TOS:
            tos = CMSG_DATA(control)[0]
        elif control.cmsg_level == IPPROTO_IPV6 and control.cmsg_type == IPV6_PKTINFO:
            memcpy(header + 24, &(<in6_pktinfo *>CMSG_DATA(control)).ipi6_addr, 16)
        elif control.cmsg_level == IPPROTO_IPV6 and control.cmsg_type == IPV6_TCLASS:
            memcpy(&value, CMSG_DATA(control), sizeof(int))
            tos = <uint8_t>value
        elif control.cmsg_level == IPPROTO_IPV6 and control.cmsg_type == IPV6_HOPLIMIT:
            memcpy(&value, CMSG_DATA(control), sizeof(int))
            ttl = <uint8_t>value
        control = CMSG_NXTHDR(&message.msg_hdr, control)
    if intake.family == 4:
        header[0] = 0x45
        header[1] = tos
        header[8] = ttl
        header[9] = protocol
        memcpy(header + 12, &(<sockaddr_in *>name).sin_addr, 4)
        ports = header + 20
        memcpy(ports, &(<sockaddr_in *>name).sin_port, 2)
        memcpy(ports + 2, intake.local_port, 2)
    else:
        store32(header, <uint32_t>0x60000000 | <uint32_t>tos << 20)
        header[6] = protocol
        header[7] = ttl
        memcpy(header + 8, &name.sin6_addr, 16)
        ports = header + 40
        if intake.udp:
            memcpy(ports, &name.sin6_port, 2)
            memcpy(ports + 2, intake.local_port, 2)
    return size


cdef inline void _stamp(Intake *intake, uint8_t *target, uint32_t payload) noexcept nogil:
    """Write the synthesized header for `payload` bytes to `target`."""
    cdef uint32_t total = intake.outer + payload
    memcpy(target, intake.header, intake.outer)
    if intake.family == 4:
        store16(target + 2, <uint16_t>total)
        if intake.udp:
            store16(target + 24, <uint16_t>(payload + 8))
        restamp_ipv4(target)
    else:
        store16(target + 4, <uint16_t>(total - 40))
        if intake.udp:
            store16(target + 44, <uint16_t>(payload + 8))


cdef bint _idle(const Intake *intake) noexcept nogil:
    """Nothing received waits here."""
    return intake.taken == intake.received and intake.whole_done == intake.whole_length


# ---- UDP ------------------------------------------------------------------------------------------------------


cdef uint32_t udp_receive(Port *port, Batch *batch) noexcept nogil:
    """Port.receive."""
    cdef UdpState *state = <UdpState *>port.state
    batch.count = 0
    if not _due(&state.seldom):
        return 0
    state.seldom.busy = _gather(port, &state.sockets, batch)
    return _count_received(port, batch)


cdef uint32_t udp_transmit(Port *port, Packet **packets, uint32_t count) noexcept nogil:
    """Port.transmit: IP and UDP headers become addresses, runs become one message each."""
    cdef UdpState *state = <UdpState *>port.state
    cdef uint32_t taken = 0
    cdef uint32_t messages, index
    cdef int result
    cdef int fd
    while taken < count:
        messages = _build(state, packets + taken, count - taken)
        if messages == 0:
            settle(port, packets + taken, 1, False)
            taken += 1
            continue
        fd = state.sockets.ipv4.fd if packets[taken].data[0] >> 4 == 4 else state.sockets.ipv6.fd
        result = sendmmsg(fd, state.tx, messages, MSG_DONTWAIT)
        port.counters.tx_syscalls += 1
        if result > 0:
            if state.segmenting == SEGMENTING_DOUBTED:
                state.segmenting = SEGMENTING_OFF
            for index in range(<uint32_t>result):
                settle(port, packets + taken, state.counts[index], True)
                taken += state.counts[index]
        elif errno == EAGAIN or errno == ENOBUFS:
            port.counters.tx_full += 1
            break
        elif (errno == EIO or errno == EINVAL) and state.counts[0] > 1:
            # No checksum offload on the way out; or the address or the size is at fault, not the run.
            state.segmenting = SEGMENTING_DOUBTED
        elif errno != EINTR:
            if errno == EMSGSIZE:
                state.too_big += state.counts[0]
            settle(port, packets + taken, state.counts[0], False)
            taken += state.counts[0]
            if state.segmenting == SEGMENTING_DOUBTED:
                state.segmenting = SEGMENTING_ON
    return taken


cdef uint32_t _build(UdpState *state, Packet **packets, uint32_t count) noexcept nogil:
    """Fill messages from packets of one family and return their number; 0 when the first cannot be sent at all."""
    cdef uint32_t messages = 0
    cdef uint32_t at = 0
    cdef uint32_t run
    cdef uint32_t index
    cdef uint8_t version = packets[0].data[0] >> 4
    cdef uint32_t outer = 28 if version == 4 else 48
    while at < count and packets[at].data[0] >> 4 == version and _sendable(state, packets[at]):
        run = _run_length(state, packets + at, count - at, outer)
        for index in range(at, at + run):
            state.tx_parts[index].iov_base = packets[index].data + outer
            state.tx_parts[index].iov_len = packets[index].length - outer
        state.tx[messages].msg_hdr.msg_iov = &state.tx_parts[at]
        state.tx[messages].msg_hdr.msg_iovlen = run
        _address(state, messages, packets[at], run)
        state.counts[messages] = run
        messages += 1
        at += run
    return messages


cdef inline bint _sendable(const UdpState *state, const Packet *packet) noexcept nogil:
    """An outer header without options, UDP, of a family that has a socket."""
    if packet.data[0] == 0x45:
        return state.sockets.ipv4.fd >= 0 and packet.length > 28 and packet.data[9] == PROTOCOL_UDP
    return (state.sockets.ipv6.fd >= 0 and packet.length > 48 and packet.data[0] >> 4 == 6
            and packet.data[6] == PROTOCOL_UDP)


cdef uint32_t _run_length(const UdpState *state, Packet **packets, uint32_t count, uint32_t outer) noexcept nogil:
    """How many packets can go as one UDP_SEGMENT message: same headers, same size, the last may be shorter."""
    cdef const uint8_t *first = packets[0].data
    cdef const uint8_t *data
    cdef uint32_t size = packets[0].length
    cdef uint32_t total = size - outer
    cdef uint32_t run = 1
    if state.segmenting != SEGMENTING_ON:
        return 1
    while run < count and run < RUN_MAX:
        data = packets[run].data
        total += packets[run].length - outer
        if packets[run].length > size or packets[run].length <= outer or total > RUN_BYTES:
            break
        if outer == 28:
            # Version, IHL and TOS; protocol; addresses and ports.
            if first[0] != data[0] or first[1] != data[1] or first[9] != data[9]:
                break
            if memcmp(first + 12, data + 12, 12) != 0:
                break
        elif raw32(first) != raw32(data) or first[6] != data[6] or memcmp(first + 8, data + 8, 36) != 0:
            break
        run += 1
        if packets[run - 1].length < size:
            break
    return run


cdef void _address(UdpState *state, uint32_t index, const Packet *packet, uint32_t run) noexcept nogil:
    """Destination, and control messages for source address, TOS and datagram size."""
    cdef mmsghdr *message = &state.tx[index]
    cdef uint8_t *control = state.tx_control[index]
    cdef const uint8_t *data = packet.data
    cdef in_pktinfo local4
    cdef in6_pktinfo local6
    cdef int tos
    cdef uint16_t size
    cdef size_t used
    if data[0] >> 4 == 4:
        put_name(&state.tx_names[index], message, 4, data + 16, data + 22)
        memset(&local4, 0, sizeof(local4))
        memcpy(&local4.ipi_spec_dst, data + 12, 4)
        used = _control(control, IPPROTO_IP, IP_PKTINFO, &local4, sizeof(local4))
        tos = data[1]
        if tos:
            used += _control(control + used, IPPROTO_IP, IP_TOS, &tos, sizeof(int))
    else:
        put_name(&state.tx_names[index], message, 6, data + 24, data + 42)
        memset(&local6, 0, sizeof(local6))
        memcpy(&local6.ipi6_addr, data + 8, 16)
        used = _control(control, IPPROTO_IPV6, IPV6_PKTINFO, &local6, sizeof(local6))
        tos = (data[0] & 15) << 4 | data[1] >> 4
        if tos:
            used += _control(control + used, IPPROTO_IPV6, IPV6_TCLASS, &tos, sizeof(int))
    if run > 1:
        size = <uint16_t>(packet.length - (28 if data[0] >> 4 == 4 else 48))
        used += _control(control + used, IPPROTO_UDP, UDP_SEGMENT, &size, sizeof(uint16_t))
    message.msg_hdr.msg_controllen = used


cdef size_t _control(uint8_t *at, int level, int kind, const void *value, size_t length) noexcept nogil:
    """Write one control message and return the bytes it takes; at most three of them fit CONTROL_SIZE (40+24+24)."""
    cdef cmsghdr *header = <cmsghdr *>at
    header.cmsg_len = CMSG_LEN(length)
    header.cmsg_level = level
    header.cmsg_type = kind
    memcpy(CMSG_DATA(header), value, length)
    return CMSG_SPACE(length)


cdef void _flush(Port *port) noexcept nogil:
    """Every message has reached the kernel already."""
    pass


cdef bint udp_arm(Port *port) noexcept nogil:
    """Sleep unless something received still waits here."""
    cdef UdpState *state = <UdpState *>port.state
    state.seldom.busy = True
    return _idle(&state.sockets.ipv4) and _idle(&state.sockets.ipv6)


cdef uint64_t udp_lost(Port *port) noexcept nogil:
    """What found a socket's buffer full, or had a wrong UDP checksum."""
    cdef UdpState *state = <UdpState *>port.state
    return socket_drops(state.sockets.ipv4.fd) + socket_drops(state.sockets.ipv6.fd)


# ---- raw ------------------------------------------------------------------------------------------------------


cdef uint32_t raw_receive(Port *port, Batch *batch) noexcept nogil:
    """Port.receive. AH's sockets take turns with ESP's while they are busy, and are looked at now and then if not."""
    cdef RawState *state = <RawState *>port.state
    cdef bint ah_first
    batch.count = 0
    if not _due(&state.seldom):
        return 0
    state.turn += 1
    ah_first = state.turn & QUIET_TURNS == 0 or (state.ah_busy and state.turn & 1)
    if ah_first:
        state.ah_busy = _gather(port, &state.ah, batch)
    _gather(port, &state.sockets, batch)
    if not ah_first and (state.ah_busy or batch.count == 0):
        state.ah_busy = _gather(port, &state.ah, batch)
    state.seldom.busy = batch.count > 0
    return _count_received(port, batch)


cdef uint32_t raw_transmit(Port *port, Packet **packets, uint32_t count) noexcept nogil:
    """Port.transmit: outer packets as they stand."""
    cdef RawState *state = <RawState *>port.state
    return send_whole(&state.sender, port, packets, count)


cdef bint raw_arm(Port *port) noexcept nogil:
    """Sleep unless something received still waits here."""
    cdef RawState *state = <RawState *>port.state
    state.seldom.busy = True
    return (_idle(&state.sockets.ipv4) and _idle(&state.sockets.ipv6)
            and _idle(&state.ah.ipv4) and _idle(&state.ah.ipv6))


cdef uint64_t raw_lost(Port *port) noexcept nogil:
    """What found a socket's buffer full."""
    cdef RawState *state = <RawState *>port.state
    return (socket_drops(state.sockets.ipv4.fd) + socket_drops(state.sockets.ipv6.fd)
            + socket_drops(state.ah.ipv4.fd) + socket_drops(state.ah.ipv6.fd))


# ---- what Python sees -----------------------------------------------------------------------------------------


cdef int _open_intake(Intake *intake, FramePool *pool, int fd, uint8_t family, uint8_t protocol) except -1:
    """Allocate the overflow and tie the messages to their buffers."""
    cdef uint32_t index
    cdef bint udp = protocol == PROTOCOL_UDP
    intake.fd = fd
    intake.family = family
    intake.udp = udp
    intake.protocol = protocol
    intake.outer = (28 if family == 4 else 48) if udp else (0 if family == 4 else 40)
    if fd < 0:
        return 0
    if udp:
        with socket.socket(fileno=os.dup(fd)) as sock:
            store16(intake.local_port, sock.getsockname()[1])
    intake.overflow = <uint8_t *>malloc(<size_t>MESSAGES * STRIDE)
    if intake.overflow == NULL:
        raise MemoryError("buffers for super-datagrams")
    for index in range(<uint32_t>MESSAGES):
        intake.frames[index] = NO_FRAME
        intake.parts[index][0].iov_len = pool.frame_size - pool.headroom - intake.outer
        intake.parts[index][1].iov_base = intake.overflow + <uint64_t>index * STRIDE + SUPER_HEAD
        intake.parts[index][1].iov_len = SUPER_MAX
        intake.messages[index].msg_hdr.msg_iov = intake.parts[index]
        intake.messages[index].msg_hdr.msg_iovlen = 2
        intake.messages[index].msg_hdr.msg_name = &intake.names[index]
        intake.messages[index].msg_hdr.msg_control = intake.control[index]
    return 0


cdef int _close_intake(Intake *intake, FramePool *pool) except -1:
    """Close the socket and give waiting frames back."""
    cdef uint32_t index
    if intake.fd < 0:
        return 0
    for index in range(<uint32_t>MESSAGES):
        if intake.frames[index] != NO_FRAME:
            frame_give(pool, intake.frames[index])
            intake.frames[index] = NO_FRAME
    _free_intake(intake)
    return 0


cdef int _free_intake(Intake *intake) except -1:
    """Close the socket and free its buffers; the frames are the pool's affair."""
    if intake.fd >= 0:
        close_fd(intake.fd)
    intake.fd = -1
    intake.received = intake.taken = 0
    intake.whole_done = intake.whole_length
    free(intake.overflow)
    intake.overflow = NULL
    return 0


cdef object _watch(fds):
    """An epoll object that is readable when one of these descriptors (-1: none) is."""
    watch = select.epoll()
    for fd in fds:
        if fd >= 0:
            watch.register(fd, select.EPOLLIN)
    return watch


cdef str _families(int ipv4, int ipv6):
    """What `mode` shows: the families that have a socket."""
    return "+".join([name for name, fd in (("ipv4", ipv4), ("ipv6", ipv6)) if fd >= 0])


cdef class UdpPort(PortHandle):
    """UDP sockets, one per family (-1: not served), bound to the encapsulation port; owns both descriptors.

    Packets have an outer IP and UDP header, as if they had come from an interface. `seldom`: another port has most of
    the packets. Raises ValueError without any socket.
    """

    def __cinit__(self):
        self.state.sockets.ipv4.fd = -1
        self.state.sockets.ipv6.fd = -1

    def __init__(self, Pool pool, str name, int ipv4_fd=-1, int ipv6_fd=-1, int role=1, int mtu=1500, addresses=(),
                 bint seldom=False):
        cdef uint32_t index
        super().__init__(pool, name, role, LINK_IP, mtu, addresses)
        if ipv4_fd < 0 and ipv6_fd < 0:
            raise ValueError(f"{name}: a udp port needs a socket of at least one family")
        _open_intake(&self.state.sockets.ipv4, &pool.c, ipv4_fd, 4, PROTOCOL_UDP)
        _open_intake(&self.state.sockets.ipv6, &pool.c, ipv6_fd, 6, PROTOCOL_UDP)
        self.state.segmenting = SEGMENTING_ON
        self.state.seldom.on = seldom
        self.state.seldom.busy = True
        for index in range(<uint32_t>BATCH_MAX):
            self.state.tx[index].msg_hdr.msg_name = &self.state.tx_names[index]
            self.state.tx[index].msg_hdr.msg_control = self.state.tx_control[index]
        self.watch = _watch((ipv4_fd, ipv6_fd))
        self.c.fd = self.watch.fileno()
        self.c.state = &self.state
        self.c.receive = udp_receive
        self.c.transmit = udp_transmit
        self.c.whole_only = True
        self.c.flush = _flush
        self.c.arm = udp_arm
        self.c.lost = udp_lost

    def __dealloc__(self):
        _free_intake(&self.state.sockets.ipv4)
        _free_intake(&self.state.sockets.ipv6)

    def close(self) -> None:
        """Close the sockets and give back the frames that wait for packets."""
        _close_intake(&self.state.sockets.ipv4, self.c.frames)
        _close_intake(&self.state.sockets.ipv6, self.c.frames)
        self.watch.close()
        self.c.fd = -1

    @property
    def too_big(self) -> int:
        """Packets that the kernel refused because they exceed the route's MTU (EMSGSIZE); in tx_errors, too."""
        return self.state.too_big

    @property
    def mode(self) -> str:
        """The families served, and "gso" while UDP_SEGMENT is in use."""
        families = _families(self.state.sockets.ipv4.fd, self.state.sockets.ipv6.fd)
        return f"{families}/gso" if self.state.segmenting != SEGMENTING_OFF else families


cdef class RawPort(PortHandle):
    """Raw sockets of protocols 50 and 51, one per family (-1: not served); owns the descriptors.

    IPv4 packets come and go as they are; IPv6 packets get an outer header on receive, and leave by IPV6_HDRINCL.
    `seldom`: another port has most of the packets.
    Raises ValueError without any socket.
    """

    def __cinit__(self):
        self.state.sockets.ipv4.fd = -1
        self.state.sockets.ipv6.fd = -1
        self.state.ah.ipv4.fd = -1
        self.state.ah.ipv6.fd = -1

    def __init__(self, Pool pool, str name, int ipv4_fd=-1, int ipv6_fd=-1, int ah_ipv4_fd=-1, int ah_ipv6_fd=-1,
                 int role=1, int mtu=1500, addresses=(), bint seldom=False):
        super().__init__(pool, name, role, LINK_IP, mtu, addresses)
        if ipv4_fd < 0 and ipv6_fd < 0:
            raise ValueError(f"{name}: a raw port needs a socket of at least one family")
        _open_intake(&self.state.sockets.ipv4, &pool.c, ipv4_fd, 4, PROTOCOL_ESP)
        _open_intake(&self.state.sockets.ipv6, &pool.c, ipv6_fd, 6, PROTOCOL_ESP)
        _open_intake(&self.state.ah.ipv4, &pool.c, ah_ipv4_fd, 4, PROTOCOL_AH)
        _open_intake(&self.state.ah.ipv6, &pool.c, ah_ipv6_fd, 6, PROTOCOL_AH)
        sender_init(&self.state.sender, ipv4_fd, ipv6_fd)
        self.state.seldom.on = seldom
        self.state.seldom.busy = True
        self.watch = _watch((ipv4_fd, ipv6_fd, ah_ipv4_fd, ah_ipv6_fd))
        self.c.fd = self.watch.fileno()
        self.c.state = &self.state
        self.c.receive = raw_receive
        self.c.transmit = raw_transmit
        self.c.flush = _flush
        self.c.arm = raw_arm
        self.c.lost = raw_lost

    def __dealloc__(self):
        _free_intake(&self.state.sockets.ipv4)
        _free_intake(&self.state.sockets.ipv6)
        _free_intake(&self.state.ah.ipv4)
        _free_intake(&self.state.ah.ipv6)

    def close(self) -> None:
        """Close the sockets and give back the frames that wait for packets."""
        _close_intake(&self.state.sockets.ipv4, self.c.frames)
        _close_intake(&self.state.sockets.ipv6, self.c.frames)
        _close_intake(&self.state.ah.ipv4, self.c.frames)
        _close_intake(&self.state.ah.ipv6, self.c.frames)
        self.state.sender.ipv4 = -1
        self.state.sender.ipv6 = -1
        self.watch.close()
        self.c.fd = -1

    @property
    def mode(self) -> str:
        """The families served."""
        return _families(self.state.sockets.ipv4.fd, self.state.sockets.ipv6.fd)
