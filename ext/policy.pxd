"""Longest-prefix tables and selectors: how a packet finds its policy and a decrypted packet its route."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from ext.packet cimport BATCH_MAX, NO_INDEX, PACKET_NO_PORTS, Batch, Leaders, Packet
from ext.sa cimport LpmHalf, LpmSlot, LpmTable, PlainSelector, Policy, Sa, Selector, Tables
from ext.wire cimport load32, load64

cdef enum:
    FEW = 4                     # up to so many flows in a batch, touching ahead costs more than it saves

cdef struct Lpm:                # one half resolved to pointers, taken once per batch
    const LpmHalf *half
    const LpmSlot *slots
    const uint32_t *candidates
    uint64_t seed
    uint32_t mask

cdef inline void lpm_open(Lpm *lpm, const Tables *tables, const LpmTable *table) noexcept nogil:
    """Resolve the active half. One load of `active`: the whole batch then sees one consistent table."""
    cdef const LpmHalf *half = &table.halves[table.active & 1]
    cdef const uint8_t *base = <const uint8_t *>tables.header
    lpm.half = half
    lpm.slots = <const LpmSlot *>(base + half.slots_offset)
    lpm.candidates = <const uint32_t *>(base + half.candidates_offset)
    lpm.seed = half.seed
    lpm.mask = half.mask

cdef inline uint32_t lpm_home(const Lpm *lpm, uint64_t high, uint64_t low, uint8_t prefix) noexcept nogil:
    """Home slot of a masked prefix: seeded, so that nobody outside can aim at one slot."""
    cdef uint64_t mixed = (low ^ lpm.seed) * <uint64_t>0x9E3779B97F4A7C15ULL
    mixed ^= (high + prefix) * <uint64_t>0xC2B2AE3D27D4EB4FULL
    mixed ^= mixed >> 29
    return <uint32_t>(mixed >> 32) & lpm.mask

cdef inline uint64_t mask_high(uint8_t prefix) noexcept nogil:
    """Upper 64 bits of an IPv6 prefix mask."""
    if prefix == 0:
        return 0
    return ~<uint64_t>0 if prefix >= 64 else ~<uint64_t>0 << (64 - prefix)

cdef inline uint64_t mask_low(uint8_t prefix) noexcept nogil:
    """Lower 64 bits of an IPv6 prefix mask."""
    if prefix <= 64:
        return 0
    return ~<uint64_t>0 if prefix >= 128 else ~<uint64_t>0 << (128 - prefix)

cdef inline uint64_t mask_ipv4(uint8_t prefix) noexcept nogil:
    """Mask of an IPv4 prefix in the low 32 bits."""
    return (~<uint64_t>0 << (32 - prefix)) & <uint32_t>0xFFFFFFFFU

cdef struct Addresses:          # host order; IPv4 in the low 32 bits of `low`
    uint64_t source_high, source_low
    uint64_t destination_high, destination_low

cdef inline void read_addresses(const Packet *packet, Addresses *addresses) noexcept nogil:
    cdef const uint8_t *header = packet.data
    if packet.family == 4:
        addresses.source_high = 0
        addresses.source_low = load32(header + 12)
        addresses.destination_high = 0
        addresses.destination_low = load32(header + 16)
    else:
        addresses.source_high = load64(header + 8)
        addresses.source_low = load64(header + 16)
        addresses.destination_high = load64(header + 24)
        addresses.destination_low = load64(header + 32)

cdef inline bint in_prefix(uint64_t high, uint64_t low, uint64_t first_high, uint64_t first_low,
                           uint8_t length) noexcept nogil:
    """128-bit (high, low) has the first `length` bits of (first_high, first_low)."""
    return (high ^ first_high) & mask_high(length) == 0 and (low ^ first_low) & mask_low(length) == 0

cdef inline bint plain_matches(const PlainSelector *plain, const Packet *packet,
                               const Addresses *addresses) noexcept nogil:
    """As `selector_matches`, for a selector of two prefixes and ANY port."""
    return (plain.family == packet.family and (plain.protocol == 0 or plain.protocol == packet.protocol)
            and in_prefix(addresses.destination_high, addresses.destination_low,
                          plain.destination_high, plain.destination_low, plain.destination_prefix)
            and in_prefix(addresses.source_high, addresses.source_low,
                          plain.source_high, plain.source_low, plain.source_prefix))

cdef inline bint _ports_match(uint16_t first, uint16_t last, uint16_t port, uint8_t flags) noexcept nogil:
    """One side's ports. A packet without ports (a later fragment, ESP) has 0: only ANY and OPAQUE take it.

    A range that is upside down is OPAQUE (RFC 4301 4.4.1.1): packets whose ports cannot be seen, and no other.
    """
    if first == 0 and last == 65535:
        return True
    if flags & PACKET_NO_PORTS:
        return first > last
    return first <= port <= last

cdef inline bint selector_matches(const Selector *selector, const Packet *packet,
                                  const Addresses *addresses) noexcept nogil:
    """RFC 4301 4.4.1.1: ranges of addresses and ports, protocol; ANY takes packets without ports too."""
    if selector.family != packet.family:
        return False
    if selector.protocol != 0 and selector.protocol != packet.protocol:
        return False
    if packet.family == 4:
        if (addresses.source_low < selector.source_first_low or addresses.source_low > selector.source_last_low
                or addresses.destination_low < selector.destination_first_low
                or addresses.destination_low > selector.destination_last_low):
            return False
    elif not (not_below(addresses.source_high, addresses.source_low,
                        selector.source_first_high, selector.source_first_low)
              and not_below(selector.source_last_high, selector.source_last_low,
                            addresses.source_high, addresses.source_low)
              and not_below(addresses.destination_high, addresses.destination_low,
                            selector.destination_first_high, selector.destination_first_low)
              and not_below(selector.destination_last_high, selector.destination_last_low,
                            addresses.destination_high, addresses.destination_low)):
        return False
    return (_ports_match(selector.source_port_first, selector.source_port_last, packet.source_port, packet.flags)
            and _ports_match(selector.destination_port_first, selector.destination_port_last,
                             packet.destination_port, packet.flags))

cdef inline bint not_below(uint64_t high, uint64_t low, uint64_t floor_high, uint64_t floor_low) noexcept nogil:
    """128-bit (high, low) >= (floor_high, floor_low)."""
    return high > floor_high or (high == floor_high and low >= floor_low)

cdef uint32_t lpm_find(const Lpm *lpm, uint8_t family, uint64_t high, uint64_t low) noexcept nogil
cdef void lpm_touch(const Lpm *lpm, uint8_t family, uint64_t high, uint64_t low) noexcept nogil
cdef void lookup_policies(Batch *batch, const Tables *tables, const Leaders *leaders) noexcept nogil

cdef const Policy *policy_of(const Packet *packet, const Packet *leader, const Tables *tables,
                             bint reversed) noexcept nogil
