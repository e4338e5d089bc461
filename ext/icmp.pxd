"""ICMP errors made of the packet they answer."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from ext.packet cimport Packet, Port

cdef struct IcmpLimit:          # token bucket, one per worker
    uint64_t tokens
    uint64_t last               # nanoseconds

cdef uint8_t icmp_answer(Packet *packet, const Port *port, uint32_t mtu, IcmpLimit *limit, uint64_t now) noexcept nogil
