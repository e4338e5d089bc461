"""Transit ICMP errors that no selector takes by their own header (RFC 4301 6.2).

A router behind a tunnel answers from an address of its own, which the tunnel is not for. The error belongs to the
traffic that caused it, all the same:

    sa_of_quoted      outbound: the SA that would carry the answer to the quoted packet
    quoted_selected   inbound: the quoted packet, its ends swapped, is what the SA is for

Either way the error must go to the quoted packet's source. Only packets that are about to be dropped are looked at.

Limits: of IPv6, quoted extension headers are not walked; a packet that has some matches selectors of ANY protocol only.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcmp, memset

from ext.packet cimport NO_INDEX, PACKET_FRAGMENT, PACKET_NO_PORTS
from ext.policy cimport Addresses, policy_of, read_addresses, selector_matches
from ext.sa cimport ACTION_PROTECT, SA_SHARED, Policy, Sa, sa_of_worker
from ext.wire cimport (
    PROTOCOL_SCTP, PROTOCOL_TCP, PROTOCOL_UDP, PROTOCOL_UDPLITE, load16,
)

cdef enum:
    ICMP_HEADER = 8


cdef inline bint _is_error(uint8_t family, uint8_t kind) noexcept nogil:
    """Unreachable, source quench, redirect, time exceeded, parameter problem; ICMPv6 has errors below 128."""
    if family == 6:
        return 1 <= kind < 128
    return kind == 3 or kind == 4 or kind == 5 or kind == 11 or kind == 12


cdef bint _read(const Packet *packet, Packet *quoted) noexcept nogil:
    """Fill in as much of `quoted` as selectors want; False where `packet` is no error that quotes a packet."""
    cdef uint8_t *at = packet.data + packet.transport
    cdef uint32_t rest = packet.length - packet.transport
    cdef uint32_t head
    if packet.flags & PACKET_NO_PORTS or rest < ICMP_HEADER or not _is_error(packet.family, at[0]):
        return False
    at += ICMP_HEADER
    rest -= ICMP_HEADER
    head = 20 if packet.family == 4 else 40
    if rest < head or at[0] >> 4 != packet.family:
        return False
    memset(quoted, 0, sizeof(Packet))
    quoted.data = at
    quoted.family = packet.family
    if packet.family == 4:
        head = (at[0] & 15) * 4
        if head < 20 or rest < head or memcmp(packet.data + 16, at + 12, 4):
            return False
        quoted.protocol = at[9]
        if load16(at + 6) & 0x1FFF:
            quoted.flags = PACKET_FRAGMENT | PACKET_NO_PORTS
    else:
        if memcmp(packet.data + 24, at + 8, 16):
            return False
        quoted.protocol = at[6]
    quoted.length = rest
    quoted.transport = <uint16_t>head
    if quoted.protocol != PROTOCOL_TCP and quoted.protocol != PROTOCOL_UDP and quoted.protocol != PROTOCOL_SCTP \
            and quoted.protocol != PROTOCOL_UDPLITE or rest < head + 4:
        quoted.flags |= PACKET_NO_PORTS
    if not quoted.flags & PACKET_NO_PORTS:
        quoted.source_port = load16(at + head)
        quoted.destination_port = load16(at + head + 2)
    return True


cdef uint32_t sa_of_quoted(const Packet *packet, const Tables *tables) noexcept nogil:
    """The outbound SA of the traffic that answers what an ICMP error quotes; NO_INDEX where there is none."""
    cdef Packet quoted
    cdef const Policy *policy
    if not _read(packet, &quoted):
        return NO_INDEX
    policy = policy_of(&quoted, &quoted, tables, True)
    if policy == NULL or policy.action != ACTION_PROTECT:
        return NO_INDEX
    if policy.sa >= <uint32_t>SA_SHARED and policy.sa != NO_INDEX:
        return sa_of_worker(tables, policy.sa)
    return policy.sa


cdef bint quoted_selected(const Packet *packet, const Tables *tables) noexcept nogil:
    """Some selector of the SA takes the answer to what a decrypted ICMP error quotes."""
    cdef Packet quoted
    cdef Addresses there
    cdef Addresses ends
    cdef uint16_t port
    cdef uint32_t index
    cdef const Sa *sa = &tables.sas[packet.sa]
    if not _read(packet, &quoted):
        return False
    read_addresses(&quoted, &there)
    ends.source_high = there.destination_high
    ends.source_low = there.destination_low
    ends.destination_high = there.source_high
    ends.destination_low = there.source_low
    port = quoted.source_port
    quoted.source_port = quoted.destination_port
    quoted.destination_port = port
    for index in range(sa.inbound.selector_count):
        if selector_matches(&tables.selectors[sa.inbound.first_selector + index], &quoted, &ends):
            return True
    return False
