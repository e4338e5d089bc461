"""Traffic that waits for an SA: a packet met a PROTECT policy that has none (RFC 4301 5.1: the SA is brought about).

    report_acquires   worker: one entry per flow, once a second and policy, into its ring; a full ring drops them
    take_acquires     control: what all workers reported since it last looked

The packets themselves are dropped ("policy_no_sa"); whoever sent them sends again. A worker never waits for control.
"""

from libc.stdint cimport uint8_t

from ext.counters cimport DROP_POLICY_NO_SA
from ext.packet cimport PACKET_NO_PORTS, Packet
from ext.policy cimport Addresses, policy_of, read_addresses
from ext.sa cimport ACQUIRES, Acquire, AcquireRing, Policy, TablesView, load64, store64
from ext.wire cimport likely

cdef enum:
    PAUSE = 1000000000          # nanoseconds between two reports of one policy


cdef void report_acquires(const Batch *batch, const Leaders *leaders, Tables *tables, AcquireLimit *limit,
                          uint64_t now) noexcept nogil:
    """Tell control of the flows in an outbound batch whose policy has no SA; `data` is at their IP header."""
    cdef uint32_t place
    cdef const Packet *packet
    for place in range(leaders.count):
        packet = &batch.packets[leaders.packets[place]]
        if likely(packet.verdict != DROP_POLICY_NO_SA, 1):
            continue
        _report(packet, tables, limit, now)


cdef void _report(const Packet *packet, Tables *tables, AcquireLimit *limit, uint64_t now) noexcept nogil:
    """One flow, unless its policy was reported within the last second."""
    cdef const Policy *policy = policy_of(packet, packet, tables, False)
    cdef AcquireRing *ring = tables.acquires
    cdef uint64_t head = ring.head
    cdef uint32_t index
    cdef uint32_t place
    cdef Acquire *entry
    cdef Addresses addresses
    if policy == NULL:          # the SPD was replaced meanwhile
        return
    index = <uint32_t>(policy - tables.policies)
    place = index % REMEMBERED
    if limit.policies[place] == index + 1 and now < limit.until[place]:
        return
    if head - load64(&ring.taken) >= ACQUIRES:
        return
    limit.policies[place] = index + 1
    limit.until[place] = now + PAUSE
    entry = &ring.entries[head % ACQUIRES]
    read_addresses(packet, &addresses)
    entry.source_high = addresses.source_high
    entry.source_low = addresses.source_low
    entry.destination_high = addresses.destination_high
    entry.destination_low = addresses.destination_low
    entry.policy = index
    entry.source_port = packet.source_port
    entry.destination_port = packet.destination_port
    entry.family = packet.family
    entry.protocol = packet.protocol
    entry.has_ports = <uint8_t>(packet.flags & PACKET_NO_PORTS == 0)
    store64(&ring.head, head + 1)


def take_acquires(TablesView view) -> list[tuple[int, int, int, int, int, int | None, int | None]]:
    """What the workers reported since the last call: (policy index, family, source, destination, protocol, ports).

    Addresses are numbers; the two ports, host order, are None where there are none; for ICMP the first is
    type << 8 | code (RFC 4301 4.4.1.1). For control's view only.
    """
    cdef uint32_t worker
    cdef uint64_t head
    cdef uint64_t at
    cdef AcquireRing *ring
    cdef const Acquire *entry
    found = []
    for worker in range(view.c.header.workers):
        ring = &view.c.acquires[worker]
        head = load64(&ring.head)
        # A number that no worker can have written is nothing to count up to.
        at = ring.taken if head - ring.taken <= ACQUIRES else head
        while at != head:
            entry = &ring.entries[at % ACQUIRES]
            found.append((
                entry.policy, entry.family, <object>entry.source_high << 64 | entry.source_low,
                <object>entry.destination_high << 64 | entry.destination_low, entry.protocol,
                entry.source_port if entry.has_ports else None, entry.destination_port if entry.has_ports else None,
            ))
            at += 1
        store64(&ring.taken, head)
    return found
