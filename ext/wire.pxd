"""Bytes on the wire: byte order, Internet checksums, and the parse of link and IP headers."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from ext.packet cimport Batch, Packet, Port

cdef extern from *:
    uint16_t bswap16 "__builtin_bswap16"(uint16_t value) noexcept nogil
    uint32_t bswap32 "__builtin_bswap32"(uint32_t value) noexcept nogil
    uint64_t bswap64 "__builtin_bswap64"(uint64_t value) noexcept nogil
    bint unlikely "__builtin_expect"(bint condition, bint expected) noexcept nogil
    void prefetch "__builtin_prefetch"(const void *address) noexcept nogil
    void prefetch_write "__builtin_prefetch"(const void *address, int write) noexcept nogil

cdef enum:
    PROTOCOL_ICMP = 1
    PROTOCOL_IPIP = 4
    PROTOCOL_TCP = 6
    PROTOCOL_UDP = 17
    PROTOCOL_IPV6 = 41
    PROTOCOL_ESP = 50
    PROTOCOL_AH = 51
    PROTOCOL_ICMPV6 = 58
    PROTOCOL_NONE = 59
    PROTOCOL_SCTP = 132
    PROTOCOL_UDPLITE = 136
    ETHERNET_HEADER = 14

# Loads and stores of big-endian fields at any alignment (x86 and arm64 are little-endian; memcpy is one move).

cdef inline uint16_t load16(const uint8_t *at) noexcept nogil:
    cdef uint16_t value
    memcpy(&value, at, 2)
    return bswap16(value)

cdef inline uint32_t load32(const uint8_t *at) noexcept nogil:
    cdef uint32_t value
    memcpy(&value, at, 4)
    return bswap32(value)

cdef inline uint64_t load64(const uint8_t *at) noexcept nogil:
    cdef uint64_t value
    memcpy(&value, at, 8)
    return bswap64(value)

cdef inline void store16(uint8_t *at, uint16_t value) noexcept nogil:
    value = bswap16(value)
    memcpy(at, &value, 2)

cdef inline void store32(uint8_t *at, uint32_t value) noexcept nogil:
    value = bswap32(value)
    memcpy(at, &value, 4)

cdef inline void store64(uint8_t *at, uint64_t value) noexcept nogil:
    value = bswap64(value)
    memcpy(at, &value, 8)

# Internet checksums (RFC 1071) are summed in memory order: the sum of byte-swapped words is the byte-swapped sum.

cdef inline uint32_t raw32(const uint8_t *at) noexcept nogil:
    cdef uint32_t value
    memcpy(&value, at, 4)
    return value

cdef inline uint16_t raw16(const uint8_t *at) noexcept nogil:
    cdef uint16_t value
    memcpy(&value, at, 2)
    return value

cdef inline uint64_t raw64(const uint8_t *at) noexcept nogil:
    cdef uint64_t value
    memcpy(&value, at, 8)
    return value

cdef inline void put_raw16(uint8_t *at, uint16_t value) noexcept nogil:
    memcpy(at, &value, 2)

cdef inline uint16_t fold(uint64_t total) noexcept nogil:
    """64-bit one's complement sum to 16 bits, memory order, not inverted."""
    total = <uint32_t>total + (total >> 32)
    total = <uint32_t>total + (total >> 32)
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    return <uint16_t>total

cdef inline uint64_t sum20(const uint8_t *header) noexcept nogil:
    """Sum of an IPv4 header without options, memory order, not folded."""
    return (<uint64_t>raw32(header) + raw32(header + 4) + raw32(header + 8)
            + raw32(header + 12) + raw32(header + 16))

cdef uint64_t sum_bytes(const uint8_t *at, uint32_t length) noexcept nogil
cdef uint32_t strip_link(Batch *batch, const Port *port) noexcept nogil
cdef uint8_t parse_ip(Packet *packet) noexcept nogil
cdef void complete_checksum(Packet *packet) noexcept nogil
cdef void restamp_ipv4(uint8_t *header) noexcept nogil
cdef void clamp_mss(Packet *packet, uint32_t inner_mtu) noexcept nogil

cdef inline void decrement_ttl(Packet *packet) noexcept nogil:
    """One hop less; the IPv4 checksum is mended by RFC 1624."""
    cdef uint32_t checksum
    if packet.family == 4:
        packet.data[8] -= 1
        # The TTL is the high byte of its word: the sum falls by 0x0100, so the stored complement rises by it.
        checksum = <uint32_t>load16(packet.data + 10) + 0x0100
        store16(packet.data + 10, <uint16_t>(checksum + (checksum >> 16)))
    else:
        packet.data[7] -= 1
