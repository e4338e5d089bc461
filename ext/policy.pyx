"""The SPD and the route table: longest prefix first, then the ordered candidates of that prefix.

Outbound, per batch:

    (wire.parse_next) a packet with the addresses, protocol and ports of the one before it follows that one;
                      only leaders are looked up (a burst of one flow costs one lookup)
    lookup_policies   1 prefetch home slots  2 longest prefix -> candidates, prefetch policies
                      3 first candidate whose selector matches -> verdict and SA, prefetch the SA's hot lines

RFC 4301's SPD is ordered. The builder gives every prefix the list of *all* policies that overlap it, in SPD
order, so the longest prefix's list alone decides and the answer equals a scan of the whole SPD.

A table has two halves. Control fills the idle one and flips `active`; a batch reads `active` once.
"""

from libc.string cimport memset

from ext.counters cimport DROP_NO_POLICY, DROP_POLICY_DISCARD, DROP_POLICY_NO_SA, BYPASSED, PASS
from ext.sa cimport ACTION_BYPASS, ACTION_PROTECT, Policy, TablesView, VALUE_DIRECT
from ext.wire cimport prefetch

import secrets

cdef enum:
    FEW = 4                     # up to so many flows in a batch, asking ahead costs more than it saves


cdef uint32_t lpm_find(const Lpm *lpm, uint8_t family, uint64_t high, uint64_t low) noexcept nogil:
    """Value of the longest prefix that holds the address; NO_INDEX when none does."""
    cdef const LpmHalf *half = lpm.half
    cdef const LpmSlot *slot
    cdef uint32_t index
    cdef uint32_t at
    cdef uint64_t masked_high
    cdef uint64_t masked_low
    cdef uint8_t prefix
    cdef uint32_t count = half.ipv4_count if family == 4 else half.ipv6_count
    for index in range(count):
        if family == 4:
            prefix = half.ipv4_prefixes[index]
            masked_high = 0
            masked_low = low & mask_ipv4(prefix)
        else:
            prefix = half.ipv6_prefixes[index]
            masked_high = high & mask_high(prefix)
            masked_low = low & mask_low(prefix)
        at = lpm_home(lpm, masked_high, masked_low, prefix)
        while True:
            slot = &lpm.slots[at]
            if slot.family == 0:
                break
            if (slot.low == masked_low and slot.high == masked_high and slot.prefix == prefix
                    and slot.family == family):
                return slot.value
            at = (at + 1) & lpm.mask
    return NO_INDEX


cdef void lpm_prefetch(const Lpm *lpm, uint8_t family, uint64_t high, uint64_t low) noexcept nogil:
    """Ask for the slot that lpm_find will look at first."""
    cdef uint8_t prefix
    if family == 4:
        if lpm.half.ipv4_count == 0:
            return
        prefix = lpm.half.ipv4_prefixes[0]
        prefetch(&lpm.slots[lpm_home(lpm, 0, low & mask_ipv4(prefix), prefix)])
    else:
        if lpm.half.ipv6_count == 0:
            return
        prefix = lpm.half.ipv6_prefixes[0]
        prefetch(&lpm.slots[lpm_home(lpm, high & mask_high(prefix), low & mask_low(prefix), prefix)])


cdef inline const Policy *_match(const Packet *packet, const Tables *tables, const Lpm *spd, uint32_t value,
                                 const Addresses *addresses) noexcept nogil:
    """The first candidate that takes the packet (RFC 4301 5.1), or NULL."""
    cdef const Policy *policy
    cdef uint32_t direct[2]
    cdef const uint32_t *candidate
    if value == NO_INDEX:
        return NULL
    if value & VALUE_DIRECT:
        direct[0] = value & ~<uint32_t>VALUE_DIRECT
        direct[1] = NO_INDEX
        candidate = direct
    else:
        candidate = &spd.candidates[value]
    while candidate[0] != NO_INDEX:
        policy = &tables.policies[candidate[0]]
        if selector_matches(&policy.selector, packet, addresses):
            return policy
        candidate += 1
    return NULL


cdef inline void _judge(Packet *packet, const Tables *tables, const Lpm *spd, uint32_t value,
                        const Addresses *addresses) noexcept nogil:
    """Verdict and SA of a leader by its policy."""
    cdef const Policy *policy = _match(packet, tables, spd, value, addresses)
    if policy == NULL:
        packet.verdict = DROP_NO_POLICY
    elif policy.action == ACTION_PROTECT:
        packet.sa = policy.sa
        if packet.sa == NO_INDEX:
            packet.verdict = DROP_POLICY_NO_SA
    elif policy.action == ACTION_BYPASS:
        packet.verdict = BYPASSED
    else:
        packet.verdict = DROP_POLICY_DISCARD


cdef const Policy *policy_of(const Packet *packet, const Packet *leader, const Tables *tables,
                             bint reversed) noexcept nogil:
    """The SPD entry of one packet off the usual way, or NULL; `leader` has its ports.

    `reversed` swaps the ends: which policy would the answer meet on its way out (RFC 4301 5.2)?
    """
    cdef Lpm spd
    cdef Addresses there
    cdef Addresses ends
    cdef Packet asked = packet[0]
    read_addresses(packet, &there)
    ends = there
    asked.source_port = leader.source_port
    asked.destination_port = leader.destination_port
    asked.flags |= leader.flags & PACKET_NO_PORTS
    if reversed:
        ends.source_high = there.destination_high
        ends.source_low = there.destination_low
        ends.destination_high = there.source_high
        ends.destination_low = there.source_low
        asked.source_port = leader.destination_port
        asked.destination_port = leader.source_port
    lpm_open(&spd, tables, &tables.header.spd)
    return _match(&asked, tables, &spd,
                  lpm_find(&spd, packet.family, ends.destination_high, ends.destination_low), &ends)


cdef void lookup_policies(Batch *batch, const Tables *tables, const Leaders *leaders) noexcept nogil:
    """Give every leader that PASSes its SA, or the verdict of its policy; esp_out.admit hands both to followers."""
    cdef Lpm spd
    cdef Addresses addresses[BATCH_MAX]
    cdef uint32_t values[BATCH_MAX]
    cdef uint32_t index
    cdef uint32_t count = leaders.count
    cdef Packet *packet
    lpm_open(&spd, tables, &tables.header.spd)
    for index in range(count):
        packet = &batch.packets[leaders.packets[index]]
        read_addresses(packet, &addresses[index])
        if count > FEW:
            lpm_prefetch(&spd, packet.family, addresses[index].destination_high, addresses[index].destination_low)
    for index in range(count):
        packet = &batch.packets[leaders.packets[index]]
        values[index] = lpm_find(&spd, packet.family, addresses[index].destination_high,
                                 addresses[index].destination_low)
        if count > FEW and values[index] != NO_INDEX:
            if values[index] & VALUE_DIRECT:
                prefetch(&tables.policies[values[index] & ~<uint32_t>VALUE_DIRECT])
                prefetch(&tables.policies[values[index] & ~<uint32_t>VALUE_DIRECT].sa)
            else:
                prefetch(&spd.candidates[values[index]])
    for index in range(count):
        packet = &batch.packets[leaders.packets[index]]
        if packet.verdict == PASS:
            _judge(packet, tables, &spd, values[index], &addresses[index])
            if count > FEW and packet.verdict == PASS:
                prefetch_sa(tables, packet.sa)


def lpm_publish(TablesView view, str which, list entries, list candidates) -> None:
    """Build the idle half of the SPD ("spd") or the route table ("routes") and make it the active one.

    `entries` are (family, high, low, prefix, value) with masked addresses as host-order 64-bit halves;
    for the SPD, value is an index into `candidates`, a flat list of runs of policy indices, each run ended
    by NO_INDEX (0xFFFFFFFF); for routes it is an adjacency index. The caller waits until every worker has
    left the half that is built here (`TablesView.quiescent`). Raises ValueError when something does not fit.
    """
    cdef LpmTable *table
    cdef LpmHalf *half
    cdef Lpm lpm
    cdef LpmSlot *slots
    cdef uint32_t *flat
    cdef uint32_t at
    cdef uint32_t size
    cdef uint32_t value
    cdef uint64_t high
    cdef uint64_t low
    cdef uint8_t family
    cdef uint8_t prefix
    cdef bint spd = which == "spd"
    if which not in ("spd", "routes"):
        raise ValueError(f"table {which!r}; expected 'spd' or 'routes'")
    table = &view.c.header.spd if spd else &view.c.header.routes
    half = &table.halves[1 - (table.active & 1)]
    size = 16
    while size < 2 * len(entries):
        size *= 2
    if size > half.capacity:
        raise ValueError(f"{which}: {len(entries)} prefixes need {size} slots; the table has {half.capacity}")
    if <uint64_t>len(candidates) > half.candidates_capacity:
        raise ValueError(f"{which}: {len(candidates)} candidates; the table has room for {half.candidates_capacity}")
    half.mask = size - 1
    half.seed = secrets.randbits(64)
    slots = <LpmSlot *>(<uint8_t *>view.c.header + half.slots_offset)
    flat = <uint32_t *>(<uint8_t *>view.c.header + half.candidates_offset)
    memset(slots, 0, size * sizeof(LpmSlot))
    for at in range(<uint32_t>len(candidates)):
        flat[at] = candidates[at]
    lpm.seed = half.seed
    lpm.mask = half.mask
    lengths = {4: set(), 6: set()}
    for entry in entries:
        family, high, low, prefix, value = entry
        if family == 4 and prefix > 32 or family == 6 and prefix > 128 or family not in (4, 6):
            raise ValueError(f"{which}: prefix length {prefix} of family {family}")
        if spd and flat[value] != NO_INDEX and flat[value + 1] == NO_INDEX:
            value = VALUE_DIRECT | flat[value]
        lengths[family].add(prefix)
        at = lpm_home(&lpm, high, low, prefix)
        while slots[at].family:
            if (slots[at].high == high and slots[at].low == low and slots[at].prefix == prefix
                    and slots[at].family == family):
                raise ValueError(f"{which}: the same prefix twice (family {family}, /{prefix})")
            at = (at + 1) & lpm.mask
        slots[at].high = high
        slots[at].low = low
        slots[at].prefix = prefix
        slots[at].family = family
        slots[at].value = value
    half.ipv4_count = <uint8_t>len(lengths[4])
    half.ipv6_count = <uint8_t>len(lengths[6])
    for at, prefix in enumerate(sorted(lengths[4], reverse=True)):
        half.ipv4_prefixes[at] = prefix
    for at, prefix in enumerate(sorted(lengths[6], reverse=True)):
        half.ipv6_prefixes[at] = prefix
    _flip(table)


cdef extern from *:
    """
    #define STORE_RELEASE(address, value) __atomic_store_n((address), (value), __ATOMIC_RELEASE)
    """
    void store_release "STORE_RELEASE"(uint32_t *address, uint32_t value) noexcept nogil


cdef void _flip(LpmTable *table) noexcept nogil:
    store_release(&table.active, 1 - (table.active & 1))
