"""Whole IP packets through raw sockets."""

from libc.stdint cimport uint8_t, uint32_t

from ext.linuxnet cimport iovec, mmsghdr, sockaddr_in6
from ext.packet cimport BATCH_MAX, Packet, Port, PortHandle

cdef struct Sender:
    int ipv4                    # raw socket with IP_HDRINCL; -1: none
    int ipv6                    # raw socket with IPV6_HDRINCL; -1: none
    iovec parts[BATCH_MAX]
    sockaddr_in6 names[BATCH_MAX]   # a sockaddr_in is shorter
    mmsghdr messages[BATCH_MAX]

cdef uint32_t send_whole(Sender *sender, Port *port, Packet **packets, uint32_t count) noexcept nogil
cdef void settle(Port *port, Packet **packets, uint32_t count, bint sent) noexcept nogil
cdef void sender_init(Sender *sender, int ipv4, int ipv6) noexcept nogil
cdef void put_name(sockaddr_in6 *name, mmsghdr *message, uint8_t family, const uint8_t *address,
                   const uint8_t *port) noexcept nogil

cdef class KernelPort(PortHandle):
    cdef Sender sender
