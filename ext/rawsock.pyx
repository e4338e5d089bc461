"""The way out through the kernel: whole IP packets by raw sockets, to wherever its routing sends them.

Packets without adjacency, and traffic for this host, leave here: the kernel routes them, resolves the neighbour,
queues meanwhile, and the netlink mirror then learns the neighbour, so that the next packets take the fast way. IPv4
goes by IP_HDRINCL (the kernel fills in an ID of 0 and the header checksum), IPv6 by IPV6_HDRINCL; the destination is
read from the header. One sendmmsg() per run of one family.

Not here: receiving (fd is -1), fragmenting: a packet beyond the interface's MTU is refused (EMSGSIZE) and counted. The
loop cuts those that came out of a tunnel before.
"""

from libc.errno cimport EAGAIN, EINTR, ENOBUFS, errno
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy, memset
from posix.unistd cimport close as close_fd

from ext.linuxnet cimport AF_INET, AF_INET6, MSG_DONTWAIT, mmsghdr, sendmmsg, sockaddr_in, sockaddr_in6
from ext.packet cimport BATCH_MAX, LINK_IP, Batch, Packet, Pool, Port, PortHandle, frame_give


cdef void sender_init(Sender *sender, int ipv4, int ipv6) noexcept nogil:
    """Tie the messages to their parts and names, once."""
    cdef uint32_t index
    memset(sender, 0, sizeof(Sender))
    sender.ipv4 = ipv4
    sender.ipv6 = ipv6
    for index in range(<uint32_t>BATCH_MAX):
        sender.messages[index].msg_hdr.msg_iov = &sender.parts[index]
        sender.messages[index].msg_hdr.msg_iovlen = 1
        sender.messages[index].msg_hdr.msg_name = &sender.names[index]


cdef void put_name(sockaddr_in6 *name, mmsghdr *message, uint8_t family, const uint8_t *address,
                   const uint8_t *port) noexcept nogil:
    """Fill in where a message goes: an address of 4 or 16 bytes, and a port in network order (NULL: none)."""
    cdef sockaddr_in *name4
    if family == 4:
        name4 = <sockaddr_in *>name
        name4.sin_family = AF_INET
        name4.sin_port = 0
        memcpy(&name4.sin_addr, address, 4)
        if port != NULL:
            memcpy(&name4.sin_port, port, 2)
        message.msg_hdr.msg_namelen = sizeof(sockaddr_in)
        return
    name.sin6_family = AF_INET6
    name.sin6_port = 0
    memcpy(&name.sin6_addr, address, 16)
    if port != NULL:
        memcpy(&name.sin6_port, port, 2)
    message.msg_hdr.msg_namelen = sizeof(sockaddr_in6)


cdef uint32_t send_whole(Sender *sender, Port *port, Packet **packets, uint32_t count) noexcept nogil:
    """Port.transmit for IP packets as they stand: to the destination in their header."""
    cdef uint32_t taken = 0
    cdef uint32_t run
    cdef uint32_t index
    cdef uint8_t version
    cdef int fd
    cdef int result
    cdef const uint8_t *data
    while taken < count:
        version = packets[taken].data[0] >> 4
        fd = sender.ipv4 if version == 4 else sender.ipv6 if version == 6 else -1
        if fd < 0:
            settle(port, packets + taken, 1, False)
            taken += 1
            continue
        run = 0
        while taken + run < count and packets[taken + run].data[0] >> 4 == version:
            data = packets[taken + run].data
            sender.parts[run].iov_base = <void *>data
            sender.parts[run].iov_len = packets[taken + run].length
            put_name(&sender.names[run], &sender.messages[run], version, data + (16 if version == 4 else 24), NULL)
            run += 1
        index = 0
        while index < run:
            result = sendmmsg(fd, sender.messages + index, run - index, MSG_DONTWAIT)
            port.counters.tx_syscalls += 1
            if result > 0:
                settle(port, packets + taken + index, <uint32_t>result, True)
                index += <uint32_t>result
            elif errno == EAGAIN or errno == ENOBUFS:
                port.counters.tx_full += 1
                return taken + index
            elif errno != EINTR:
                # No route, prohibited, too long: this packet is lost, the others go on.
                settle(port, packets + taken + index, 1, False)
                index += 1
        taken += run
    return taken


cdef void settle(Port *port, Packet **packets, uint32_t count, bint sent) noexcept nogil:
    """The kernel has copied or refused these packets: count them and give their frames back."""
    cdef uint32_t index
    for index in range(count):
        if sent:
            port.counters.tx_packets += 1
            port.counters.tx_bytes += packets[index].length
        else:
            port.counters.tx_errors += 1
        frame_give(port.frames, packets[index].frame)


cdef uint32_t kernel_receive(Port *port, Batch *batch) noexcept nogil:
    """Nothing, ever."""
    batch.count = 0
    return 0


cdef uint32_t kernel_transmit(Port *port, Packet **packets, uint32_t count) noexcept nogil:
    """Hand packets to the kernel's routing."""
    return send_whole(<Sender *>port.state, port, packets, count)


cdef void kernel_flush(Port *port) noexcept nogil:
    """Every message has reached the kernel already."""
    pass


cdef bint kernel_arm(Port *port) noexcept nogil:
    """It never keeps anybody awake."""
    return True


cdef void _close(Sender *sender) noexcept:
    if sender.ipv4 >= 0:
        close_fd(sender.ipv4)
    if sender.ipv6 >= 0:
        close_fd(sender.ipv6)
    sender.ipv4 = -1
    sender.ipv6 = -1


cdef class KernelPort(PortHandle):
    """Raw sockets of protocol IPPROTO_RAW as a port that only transmits; owns both descriptors (-1: family not served).

    A packet of a family without socket counts as an error, as does one that the kernel refuses.
    """

    def __init__(self, Pool pool, str name="kernel", int ipv4_fd=-1, int ipv6_fd=-1, int mtu=65535):
        super().__init__(pool, name, 0, LINK_IP, mtu)
        sender_init(&self.sender, ipv4_fd, ipv6_fd)
        self.c.state = &self.sender
        self.c.receive = kernel_receive
        self.c.transmit = kernel_transmit
        self.c.flush = kernel_flush
        self.c.arm = kernel_arm

    def __cinit__(self):
        self.sender.ipv4 = -1
        self.sender.ipv6 = -1

    def __dealloc__(self):
        _close(&self.sender)

    def close(self) -> None:
        """Close both sockets; what is transmitted afterwards counts as errors."""
        _close(&self.sender)

    @property
    def mode(self) -> str:
        """The families served."""
        return "+".join(
            name for name, fd in (("ipv4", self.sender.ipv4), ("ipv6", self.sender.ipv6)) if fd >= 0
        )
