"""ICMP errors by what they quote: what loop.pyx calls."""

from libc.stdint cimport uint32_t

from ext.packet cimport Packet
from ext.sa cimport Tables
from ext.wire cimport PROTOCOL_ICMP, PROTOCOL_ICMPV6

cdef inline bint may_quote(const Packet *packet) noexcept nogil:
    """ICMP of the packet's family, whole or a first fragment: worth a closer look."""
    return packet.protocol == (PROTOCOL_ICMP if packet.family == 4 else PROTOCOL_ICMPV6)

cdef uint32_t sa_of_quoted(const Packet *packet, const Tables *tables) noexcept nogil
cdef bint quoted_selected(const Packet *packet, const Tables *tables) noexcept nogil
