"""Bytes on the wire: byte order, Internet checksums, and the parse of link and IP headers."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from ext.counters cimport DROP_CHECKSUM, PASS
from ext.packet cimport (
    NO_INDEX, NO_LEADER, PACKET_FRAGMENT, PACKET_NO_PORTS, PACKET_PARTIAL_CHECKSUM, PACKET_WHOLE_CHECKSUM, Batch,
    Leaders, Packet, Port,
)

cdef extern from *:
    """
    #define ESPLANADE_TOUCH(address) ((void)*(const volatile char *)(address))
    """
    uint16_t bswap16 "__builtin_bswap16"(uint16_t value) noexcept nogil
    uint32_t bswap32 "__builtin_bswap32"(uint32_t value) noexcept nogil
    uint64_t bswap64 "__builtin_bswap64"(uint64_t value) noexcept nogil
    bint unlikely "__builtin_expect"(bint condition, bint expected) noexcept nogil
    bint likely "__builtin_expect"(bint condition, bint expected) noexcept nogil
    # Fetch a line that is needed later. A load, because the CPU drops prefetches while its page walkers are busy, and
    # with many SAs they always are; nobody waits for its value. In loops of its own, so that many are on their way.
    void touch "ESPLANADE_TOUCH"(const void *address) noexcept nogil

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

cdef inline void put_raw64(uint8_t *at, uint64_t value) noexcept nogil:
    memcpy(at, &value, 8)

cdef inline void put_raw32(uint8_t *at, uint32_t value) noexcept nogil:
    memcpy(at, &value, 4)

cdef inline void put_raw16(uint8_t *at, uint16_t value) noexcept nogil:
    memcpy(at, &value, 2)

cdef inline uint16_t fold(uint64_t total) noexcept nogil:
    """64-bit one's complement sum to 16 bits, memory order, not inverted.

    Adding a value to itself with its halves swapped leaves the end-around carry's result in the upper half.
    """
    cdef uint32_t half
    total += total >> 32 | total << 32
    half = <uint32_t>(total >> 32)
    half += half >> 16 | half << 16
    return <uint16_t>(half >> 16)

cdef inline uint64_t sum20(const uint8_t *header) noexcept nogil:
    """Sum of an IPv4 header without options, memory order, not folded."""
    return (<uint64_t>raw32(header) + raw32(header + 4) + raw32(header + 8)
            + raw32(header + 12) + raw32(header + 16))

cdef uint64_t sum_bytes(const uint8_t *at, uint32_t length) noexcept nogil
cdef void parse_batch(Batch *batch, const Port *port, Leaders *leaders) noexcept nogil
cdef uint8_t parse_slowly(Packet *packet) noexcept nogil
cdef void complete_checksum(Packet *packet) noexcept nogil
cdef void restamp_ipv4(uint8_t *header) noexcept nogil
cdef bint swap_port(uint8_t protocol, uint8_t *transport, uint32_t rest, uint32_t at, uint16_t before,
                    uint16_t after) noexcept nogil
cdef void clamp_mss(Packet *packet, uint32_t inner_mtu) noexcept nogil

cdef inline uint32_t one_hop_less(uint32_t word) noexcept nogil:
    """The word of TTL, protocol and checksum in an IPv4 header, memory order, one hop further on.

    The TTL is the high byte of its 16 bits: their sum falls by 0x0100, so the stored complement rises by it. Lying in
    memory, that is a one in the checksum's first byte, whose carry goes into the second, as the end-around carry wants.
    0xFFFF is written as 0, as a sum made anew would be.
    """
    word += 0x0000FFFF
    return word if likely(word < <uint32_t>0xFFFF0000, 1) else word & 0xFFFF

cdef inline void decrement_ttl(Packet *packet) noexcept nogil:
    """One hop less; the IPv4 checksum is mended by RFC 1624."""
    if packet.family == 4:
        put_raw32(packet.data + 8, one_hop_less(raw32(packet.data + 8)))
    else:
        packet.data[7] -= 1

cdef inline uint64_t pseudo_sum(const Packet *packet, uint32_t transport_length) noexcept nogil:
    """Sum of the TCP/UDP pseudo-header (RFC 9293 3.1, RFC 8200 8.1), memory order."""
    cdef const uint8_t *header = packet.data
    cdef uint64_t total = <uint64_t>packet.protocol << 8 | <uint64_t>bswap16(<uint16_t>transport_length) << 16
    if packet.family == 4:
        return total + raw32(header + 12) + raw32(header + 16)
    return (total + raw32(header + 8) + raw32(header + 12) + raw32(header + 16) + raw32(header + 20)
            + raw32(header + 24) + raw32(header + 28) + raw32(header + 32) + raw32(header + 36))

cdef inline bint is_half_made(const Packet *packet) noexcept nogil:
    """The TCP or UDP checksum field holds just the pseudo-header's sum, or receive said so.

    Local stacks over veth and virtio leave it so for the device to finish; the flag that says so is invisible to
    XDP, so the field itself is asked. Recomputing is right even when the equality was chance.
    """
    cdef uint32_t rest = packet.length - packet.transport
    cdef uint32_t at = 16 if packet.protocol == PROTOCOL_TCP else 6
    if packet.flags & (PACKET_WHOLE_CHECKSUM | PACKET_FRAGMENT | PACKET_NO_PORTS) or rest < at + 2:
        return False
    if packet.protocol != PROTOCOL_TCP and packet.protocol != PROTOCOL_UDP:
        return False
    return (packet.flags & PACKET_PARTIAL_CHECKSUM
            or fold(pseudo_sum(packet, rest)) == raw16(packet.data + packet.transport + at))

cdef inline bint same_flow(const Packet *one, const Packet *other) noexcept nogil:
    """Equal family, protocol, ports (ESP, AH: SPI), flags and addresses; IPv4's quicker way is in parse_next."""
    cdef const uint8_t *a = one.data
    cdef const uint8_t *b = other.data
    if (one.source_port != other.source_port or one.destination_port != other.destination_port
            or one.flags != other.flags or one.family != other.family or one.protocol != other.protocol
            or one.transport != other.transport):
        return False
    # Whole ESP and AH headers only: a cut one must not pass its verdict on to good packets behind it.
    if one.protocol == PROTOCOL_ESP and (one.length < <uint32_t>one.transport + 8
                                         or other.length < <uint32_t>other.transport + 8
                                         or raw32(a + one.transport) != raw32(b + one.transport)):
        return False
    if one.protocol == PROTOCOL_AH and (one.length < <uint32_t>one.transport + 12
                                        or other.length < <uint32_t>other.transport + 12
                                        or raw32(a + one.transport + 4) != raw32(b + one.transport + 4)):
        return False
    if one.family == 4:
        return raw64(a + 12) == raw64(b + 12)
    return (raw64(a + 8) == raw64(b + 8) and raw64(a + 16) == raw64(b + 16)
            and raw64(a + 24) == raw64(b + 24) and raw64(a + 32) == raw64(b + 32))

cdef enum:
    FLOW_UNSEEN = 1             # Flow.first, which has no such bit: there is no leader yet, or it came by the slow way

cdef struct Flow:               # the last leader, as parse_next compares with it
    uint64_t first              # IPv4: source and protocol, or FLOW_UNSEEN
    uint64_t second             # IPv4: destination and ports (ESP: and SPI)
    uint32_t leader             # its index in the batch; NO_INDEX: none yet

cdef inline void flow_begin(Flow *flow) noexcept nogil:
    """There is no leader yet."""
    flow.first = FLOW_UNSEEN
    flow.second = 0
    flow.leader = NO_INDEX

cdef inline bint _sums_up(uint64_t first, uint64_t second, uint64_t third) noexcept nogil:
    """The checksum of an IPv4 header of 20 bytes holds; `third` begins with its last four."""
    return likely(fold(<uint64_t><uint32_t>first + (first >> 32) + <uint32_t>second + (second >> 32)
                       + <uint32_t>third) == 0xFFFF, 1)

cdef inline void _fill_in(Packet *packet, uint64_t first, uint32_t protocol, uint32_t total) noexcept nogil:
    """What parse_next finds out about every packet that it takes."""
    # family, protocol and transport offset in one store
    put_raw32(&packet.family, 4 | protocol << 8 | 20 << 16)
    packet.tos = <uint8_t>(first >> 8)
    packet.length = total

cdef inline uint8_t parse_next(Batch *batch, uint32_t index, Leaders *leaders, Flow *flow) noexcept nogil:
    """Check the IP header at `data` of packet `index`, fill in its fields and say whom it follows.

    Cuts off what is behind the IP packet. Returns a Verdict. Here: whole IPv4 packets without options
    that carry TCP, UDP or ESP, from three loads; parse_slowly takes every other.
    """
    cdef Packet *packet = &batch.packets[index]
    cdef const uint8_t *header = packet.data
    cdef uint64_t first
    cdef uint64_t second
    cdef uint64_t third
    cdef uint64_t flow_first
    cdef uint32_t total
    cdef uint32_t protocol
    cdef uint8_t verdict
    if likely(packet.length >= 28, 1):
        first = raw64(header)           # version .. fragment offset
        second = raw64(header + 8)      # TTL, protocol, checksum, source
        third = raw64(header + 16)      # destination, ports or SPI
        protocol = <uint8_t>(second >> 8)
        total = bswap16(<uint16_t>(first >> 16))
        if likely(first & <uint64_t>0xFFBF0000000000FFULL == 0x45 and total - 28 <= packet.length - 28, 1):
            flow_first = second & <uint64_t>0xFFFFFFFF0000FF00ULL
            if likely(flow.first == flow_first and flow.second == third, 1):
                if unlikely(not _sums_up(first, second, third), 0):
                    leaders.leader[index] = NO_LEADER
                    return DROP_CHECKSUM
                _fill_in(packet, first, protocol, total)
                leaders.leader[index] = <uint8_t>flow.leader
                return PASS
            if likely(protocol == PROTOCOL_TCP or protocol == PROTOCOL_UDP or protocol == PROTOCOL_ESP, 1):
                if unlikely(not _sums_up(first, second, third), 0):
                    leaders.leader[index] = NO_LEADER
                    return DROP_CHECKSUM
                _fill_in(packet, first, protocol, total)
                packet.source_port = bswap16(<uint16_t>(third >> 32))
                packet.destination_port = bswap16(<uint16_t>(third >> 48))
                if protocol == PROTOCOL_ESP:
                    packet.flags |= PACKET_NO_PORTS
                flow.first = flow_first
                flow.second = third
                _lead(index, leaders, flow)
                return PASS
    verdict = parse_slowly(packet)
    if verdict != PASS:
        leaders.leader[index] = NO_LEADER
        return verdict
    if (flow.leader != NO_INDEX and flow.first == FLOW_UNSEEN
            and same_flow(&batch.packets[flow.leader], packet)):
        leaders.leader[index] = <uint8_t>flow.leader
        return PASS
    flow.first = FLOW_UNSEEN
    _lead(index, leaders, flow)
    return PASS

cdef inline void _lead(uint32_t index, Leaders *leaders, Flow *flow) noexcept nogil:
    """Packet `index` is a leader."""
    flow.leader = index
    leaders.leader[index] = <uint8_t>index
    leaders.packets[leaders.count] = <uint8_t>index
    leaders.count += 1
