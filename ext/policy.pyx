"""The SPD and the route table: longest prefix first, then the ordered candidates of that prefix.

Outbound, per batch:

    (wire.parse_next) a packet with the addresses, protocol and ports of the one before it follows that one;
                      only leaders are looked up (a burst of one flow costs one lookup)
    lookup_policies   1 touch home slots  2 longest prefix -> the policy itself, where the slot repeats it, else
                      candidates, touch policies  3 first candidate whose selector matches -> verdict and SA

RFC 4301's SPD is ordered. The builder gives every prefix the list of *all* policies that overlap it, in SPD
order, so the longest prefix's list alone decides and the answer equals a scan of the whole SPD.

A table has two halves. Control fills the idle one and flips `active`; a batch reads `active` once.
"""

from libc.string cimport memset

from ext.counters cimport DROP_NO_POLICY, DROP_POLICY_DISCARD, DROP_POLICY_NO_SA, BYPASSED, PASS
from ext.sa cimport (
    ACTION_BYPASS, ACTION_PROTECT, SA_SHARED, VALUE_DIRECT, Policy, Selector, TablesView, sa_of_worker,
)
from ext.wire cimport touch, unlikely

import secrets

cdef extern from *:
    int popcount "__builtin_popcountll"(uint64_t value) noexcept nogil


cdef uint32_t lpm_find(const Lpm *lpm, uint8_t family, uint64_t high, uint64_t low) noexcept nogil:
    """Value of the longest prefix that holds the address; NO_INDEX when none does."""
    cdef const LpmSlot *slot = _find_slot(lpm, family, high, low)
    return <uint32_t>NO_INDEX if slot == NULL else slot.value


cdef const LpmSlot *_find_slot(const Lpm *lpm, uint8_t family, uint64_t high, uint64_t low) noexcept nogil:
    """Slot of the longest prefix that holds the address; NULL when none does."""
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
                return slot
            at = (at + 1) & lpm.mask
    return NULL


cdef void lpm_touch(const Lpm *lpm, uint8_t family, uint64_t high, uint64_t low) noexcept nogil:
    """Fetch the slot that lpm_find will look at first."""
    cdef uint8_t prefix
    if family == 4:
        if lpm.half.ipv4_count == 0:
            return
        prefix = lpm.half.ipv4_prefixes[0]
        touch(&lpm.slots[lpm_home(lpm, 0, low & mask_ipv4(prefix), prefix)])
    else:
        if lpm.half.ipv6_count == 0:
            return
        prefix = lpm.half.ipv6_prefixes[0]
        touch(&lpm.slots[lpm_home(lpm, high & mask_high(prefix), low & mask_low(prefix), prefix)])


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


cdef inline void _judge(Packet *packet, const Tables *tables, uint8_t action, uint32_t sa) noexcept nogil:
    """Verdict and SA of a leader whose policy is found."""
    if action == ACTION_PROTECT:
        packet.sa = sa
        # NO_INDEX has the bit SA_SHARED, too: most packets pay for one comparison.
        if unlikely(sa >= <uint32_t>SA_SHARED, 0):
            if sa == NO_INDEX:
                packet.verdict = DROP_POLICY_NO_SA
            else:
                packet.sa = sa_of_worker(tables, sa)
    elif action == ACTION_BYPASS:
        packet.verdict = BYPASSED
    else:
        packet.verdict = DROP_POLICY_DISCARD


cdef inline void _judge_plain(Packet *packet, const Tables *tables, const LpmSlot *slot,
                              const Addresses *addresses) noexcept nogil:
    """The prefix has one policy, which the slot repeats."""
    if (slot.protocol and slot.protocol != packet.protocol) or not in_prefix(
            addresses.source_high, addresses.source_low, slot.source_high, slot.source_low, slot.source_prefix):
        packet.verdict = DROP_NO_POLICY
    else:
        _judge(packet, tables, slot.action, slot.sa)


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
    cdef uint8_t waiting[BATCH_MAX]         # leaders, by their place, whose policies have to be fetched
    cdef uint32_t waiting_count = 0
    cdef uint32_t place
    cdef uint32_t index
    cdef uint32_t count = leaders.count
    cdef bint ahead = count > FEW
    cdef const LpmSlot *slot
    cdef const Policy *policy
    cdef Packet *packet
    lpm_open(&spd, tables, &tables.header.spd)
    for index in range(count):
        packet = &batch.packets[leaders.packets[index]]
        read_addresses(packet, &addresses[index])
        if ahead:
            lpm_touch(&spd, packet.family, addresses[index].destination_high, addresses[index].destination_low)
    for index in range(count):
        packet = &batch.packets[leaders.packets[index]]
        if packet.verdict != PASS:
            continue
        slot = _find_slot(&spd, packet.family, addresses[index].destination_high, addresses[index].destination_low)
        if slot == NULL:
            packet.verdict = DROP_NO_POLICY
        elif slot.plain:
            _judge_plain(packet, tables, slot, &addresses[index])
        else:
            values[waiting_count] = slot.value
            waiting[waiting_count] = <uint8_t>index
            waiting_count += 1
            if ahead:
                _touch_policy(tables, &spd, slot.value)
    for place in range(waiting_count):
        index = waiting[place]
        packet = &batch.packets[leaders.packets[index]]
        policy = _match(packet, tables, &spd, values[place], &addresses[index])
        if policy == NULL:
            packet.verdict = DROP_NO_POLICY
        else:
            _judge(packet, tables, policy.action, policy.sa)


cdef inline void _touch_policy(const Tables *tables, const Lpm *spd, uint32_t value) noexcept nogil:
    """Fetch the first candidate, or the list of them."""
    if value & VALUE_DIRECT:
        touch(&tables.policies[value & ~<uint32_t>VALUE_DIRECT])
        touch(&tables.policies[value & ~<uint32_t>VALUE_DIRECT].sa)
    else:
        touch(&spd.candidates[value])


cdef bint _repeat(LpmSlot *slot, const Policy *policy) noexcept nogil:
    """Write a policy into its slot, where its selector is plain but for the destination; False where it is not."""
    cdef const Selector *selector = &policy.selector
    cdef uint64_t high = selector.source_first_high ^ selector.source_last_high
    cdef uint64_t low = selector.source_first_low ^ selector.source_last_low
    # The bits that differ between the ends of a prefix are all ones, from the right, and the first end has zeros there.
    if not ((high == 0 and low & (low + 1) == 0) or (low == ~<uint64_t>0 and high & (high + 1) == 0)):
        return False
    if high & selector.source_first_high or low & selector.source_first_low:
        return False
    if (selector.source_port_last - selector.source_port_first != 65535
            or selector.destination_port_last - selector.destination_port_first != 65535):
        return False
    slot.source_high = selector.source_first_high
    slot.source_low = selector.source_first_low
    slot.source_prefix = <uint8_t>(128 - popcount(high) - popcount(low))
    slot.protocol = selector.protocol
    slot.action = policy.action
    slot.sa = policy.sa
    slot.plain = 1
    return True


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
    cdef Policy *policy
    cdef uint8_t idle
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
    idle = <uint8_t>(1 - (table.active & 1))
    half = &table.halves[idle]
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
        if flat[at] < view.c.header.max_policies:
            view.c.policies[flat[at]].slot = 0
        elif flat[at] != <uint32_t>NO_INDEX:
            raise ValueError(f"{which}: policy {flat[at]}; the table holds {view.c.header.max_policies}")
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
        if spd and value & VALUE_DIRECT:
            policy = &view.c.policies[value & ~<uint32_t>VALUE_DIRECT]
            if _repeat(&slots[at], policy):
                slots[at].next = policy.slot
                policy.slot = at + 1
                policy.half = idle
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
