"""Where the packets of an inbound SA in UDP come from: compared here, once per batch and SA; told in follow.pyx."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from ext.packet cimport BATCH_MAX, Packet
from ext.sa cimport Sa, SaHot, Tables
from ext.wire cimport raw16, raw32, raw64

cdef struct Source:             # of a packet in UDP, host order
    uint64_t high, low          # address; IPv4: low
    uint16_t port
    uint8_t  packet             # its index in its batch

cdef struct Sources:            # those in a batch that are not the peers' as we know them, for who may note them
    uint32_t count
    Source   each[BATCH_MAX]

cdef inline bint comes_from_peer(const Packet *packet, const SaHot *hot) noexcept nogil:
    """The outer source of a packet in UDP (`data` at its IP header, `transport` at ESP) is the SA's remote end."""
    # The template is that of packets to the peer: its destinations are our sources.
    if raw16(packet.data + packet.transport - 8) != raw16(hot.encap_ports + 2):
        return False
    if packet.family == 4:
        return raw32(packet.data + 12) == raw32(hot.header + 16)
    return raw64(packet.data + 8) == raw64(hot.header + 24) and raw64(packet.data + 16) == raw64(hot.header + 32)

cdef void read_source(const Packet *packet, Source *source) noexcept nogil
cdef void note_source(const Source *seen, Sa *sa, Tables *tables) noexcept nogil
