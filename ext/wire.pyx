"""Link and IP headers: strip the link header, prove the IP header sound, find the transport.

    parse_batch       Ethernet -> IP; runts, VLAN tags and other ethertypes named; runs of one flow grouped
    parse_next        (wire.pxd) the usual packet from three loads; all others go to
    parse_slowly      version, lengths, IPv4 checksum, extension headers, ports; every bound checked against
                      `length`, so what comes after may trust transport, protocol and ports
    complete_checksum TCP and UDP checksums that a local stack left half made

Not handled: IPv6 jumbograms (payload length 0), IPv4 source routes (treated as plain options).
"""

from ext.counters cimport (
    DROP_CHECKSUM, DROP_EXTENSION_HEADER, DROP_HEADER_LENGTH, DROP_LENGTH, DROP_NOT_IP, DROP_RUNT, DROP_VERSION,
    DROP_VLAN, PASS,
)
from ext.packet cimport (
    LINK_ETHERNET, NO_LEADER, PACKET_FRAGMENT, PACKET_NO_PORTS, ROLE_PROTECTED, Leaders,
)

cdef enum:
    EXTENSION_HEADERS_MAX = 8
    ETHERTYPE_IPV4 = 0x0800
    ETHERTYPE_IPV6 = 0x86DD
    ETHERTYPE_VLAN = 0x8100
    ETHERTYPE_QINQ = 0x88A8
    UDP_CHECKSUM_AT = 6
    TCP_CHECKSUM_AT = 16


cdef void parse_batch(Batch *batch, const Port *port, Leaders *leaders) noexcept nogil:
    """Move every packet to its IP header, parse it and group runs of one flow.

    On a protected port, checksums that a local stack left half made are finished here.
    """
    cdef uint32_t index
    cdef Packet *packet
    cdef Flow flow
    cdef bint ethernet = port.link == LINK_ETHERNET
    cdef bint protected = port.role == ROLE_PROTECTED
    flow_begin(&flow)
    leaders.count = 0
    for index in range(batch.count):
        packet = &batch.packets[index]
        if ethernet:
            packet.verdict = _strip_ethernet(packet)
            if unlikely(packet.verdict != PASS, 0):
                leaders.leader[index] = NO_LEADER
                continue
        packet.verdict = parse_next(batch, index, leaders, &flow)
        if protected and unlikely(packet.verdict == PASS and is_half_made(packet), 0):
            complete_checksum(packet)


cdef inline uint8_t _strip_ethernet(Packet *packet) noexcept nogil:
    """Past the Ethernet header; PASS or why not."""
    cdef uint16_t ethertype
    if unlikely(packet.length < ETHERNET_HEADER, 0):
        return DROP_RUNT
    ethertype = load16(packet.data + 12)
    packet.data += ETHERNET_HEADER
    packet.headroom += ETHERNET_HEADER
    packet.length -= ETHERNET_HEADER
    if likely(ethertype == ETHERTYPE_IPV4 or ethertype == ETHERTYPE_IPV6, 1):
        if unlikely(packet.length == 0, 0):
            return DROP_RUNT
        return PASS if packet.data[0] >> 4 == (4 if ethertype == ETHERTYPE_IPV4 else 6) else DROP_VERSION
    return DROP_VLAN if ethertype == ETHERTYPE_VLAN or ethertype == ETHERTYPE_QINQ else DROP_NOT_IP


cdef uint8_t parse_slowly(Packet *packet) noexcept nogil:
    """Parse any IP packet into its fields, by the whole rule book. Returns a Verdict."""
    cdef const uint8_t *header = packet.data
    cdef uint32_t total
    cdef uint32_t header_length
    if unlikely(packet.length < 20, 0):
        return DROP_RUNT
    if header[0] >> 4 == 4:
        header_length = (header[0] & 15) * 4
        total = load16(header + 2)
        if unlikely(header_length < 20 or header_length > packet.length, 0):
            return DROP_HEADER_LENGTH
        if unlikely(total < header_length or total > packet.length, 0):
            return DROP_LENGTH
        if header_length == 20:
            if unlikely(fold(sum20(header)) != 0xFFFF, 0):
                return DROP_CHECKSUM
        elif fold(sum_bytes(header, header_length)) != 0xFFFF:
            return DROP_CHECKSUM
        packet.family = 4
        packet.tos = header[1]
        packet.protocol = header[9]
        packet.transport = <uint16_t>header_length
        packet.length = total
        if unlikely(load16(header + 6) & 0x3FFF, 0):
            packet.flags |= PACKET_FRAGMENT
            if load16(header + 6) & 0x1FFF:
                packet.flags |= PACKET_NO_PORTS
                return PASS
        _read_ports(packet)
        return PASS
    if unlikely(header[0] >> 4 != 6, 0):
        return DROP_VERSION
    if unlikely(packet.length < 40, 0):
        return DROP_RUNT
    total = 40 + <uint32_t>load16(header + 4)
    if unlikely(total > packet.length, 0):
        return DROP_LENGTH
    packet.family = 6
    packet.tos = <uint8_t>(load16(header) >> 4)
    packet.length = total
    return _walk_extension_headers(packet)


cdef inline void _read_ports(Packet *packet) noexcept nogil:
    """Ports of TCP, UDP, SCTP and UDP-Lite; type and code of ICMP in source_port (RFC 4301 4.4.1.1)."""
    cdef const uint8_t *transport = packet.data + packet.transport
    cdef uint32_t rest = packet.length - packet.transport
    cdef uint8_t protocol = packet.protocol
    if (protocol == PROTOCOL_TCP or protocol == PROTOCOL_UDP or protocol == PROTOCOL_SCTP
            or protocol == PROTOCOL_UDPLITE):
        if rest >= 4:
            packet.source_port = load16(transport)
            packet.destination_port = load16(transport + 2)
            return
    elif protocol == PROTOCOL_ICMP or protocol == PROTOCOL_ICMPV6:
        if rest >= 2:
            packet.source_port = load16(transport)
            packet.destination_port = packet.source_port
            return
    packet.source_port = 0
    packet.destination_port = 0
    packet.flags |= PACKET_NO_PORTS


cdef uint8_t _walk_extension_headers(Packet *packet) noexcept nogil:
    """Follow IPv6 extension headers (RFC 8200 4) to the transport, at most EXTENSION_HEADERS_MAX of them."""
    cdef const uint8_t *at
    cdef uint8_t next_header = packet.data[6]
    cdef uint32_t offset = 40
    cdef uint32_t size
    cdef int _seen
    for _seen in range(EXTENSION_HEADERS_MAX + 1):
        if next_header == 0 or next_header == 43 or next_header == 60 or next_header == 44:
            if offset + 8 > packet.length:
                return DROP_EXTENSION_HEADER
            at = packet.data + offset
            if next_header == 44:
                packet.flags |= PACKET_FRAGMENT
                size = 8
                if load16(at + 2) & 0xFFF8:
                    packet.protocol = at[0]
                    packet.transport = <uint16_t>(offset + 8)
                    packet.flags |= PACKET_NO_PORTS
                    packet.source_port = 0
                    packet.destination_port = 0
                    return PASS
            else:
                size = (<uint32_t>at[1] + 1) * 8
                if offset + size > packet.length:
                    return DROP_EXTENSION_HEADER
            next_header = at[0]
            offset += size
            continue
        packet.protocol = next_header
        packet.transport = <uint16_t>offset
        _read_ports(packet)
        return PASS
    return DROP_EXTENSION_HEADER


cdef uint64_t sum_bytes(const uint8_t *at, uint32_t length) noexcept nogil:
    """One's complement sum of any bytes, memory order; `fold` makes 16 bits of it."""
    cdef uint64_t first = 0
    cdef uint64_t second = 0
    cdef uint64_t word
    cdef uint16_t last = 0
    while length >= 16:
        word = raw64(at)
        first += <uint32_t>word + (word >> 32)
        word = raw64(at + 8)
        second += <uint32_t>word + (word >> 32)
        at += 16
        length -= 16
    first += second
    while length >= 4:
        first += raw32(at)
        at += 4
        length -= 4
    if length >= 2:
        first += raw16(at)
        at += 2
        length -= 2
    if length:
        # An odd last byte is padded with a zero after it, in memory order.
        memcpy(&last, at, 1)
        first += last
    return first


cdef void complete_checksum(Packet *packet) noexcept nogil:
    """Compute the TCP or UDP checksum of a whole packet; the caller has decided who needs it."""
    cdef uint32_t rest = packet.length - packet.transport
    cdef uint8_t *transport = packet.data + packet.transport
    cdef uint32_t at = TCP_CHECKSUM_AT if packet.protocol == PROTOCOL_TCP else UDP_CHECKSUM_AT
    cdef uint16_t checksum
    put_raw16(transport + at, 0)
    checksum = ~fold(pseudo_sum(packet, rest) + sum_bytes(transport, rest))
    if checksum == 0 and packet.protocol == PROTOCOL_UDP:
        checksum = 0xFFFF       # RFC 768: zero would mean "no checksum"
    put_raw16(transport + at, checksum)


cdef void restamp_ipv4(uint8_t *header) noexcept nogil:
    """Recompute the checksum of an IPv4 header (any IHL)."""
    put_raw16(header + 10, 0)
    put_raw16(header + 10, ~fold(sum_bytes(header, (header[0] & 15) * 4)))


cdef bint swap_port(uint8_t protocol, uint8_t *transport, uint32_t rest, uint32_t at, uint16_t before,
                    uint16_t after) noexcept nogil:
    """Put another port in the place of `before` (both as in memory) and mend the TCP or UDP checksum (RFC 1624).

    `rest` is what there is from `transport` on, `at` 0 for the source and 2 for the destination. False where `before`
    is not there: then nothing is changed.
    """
    cdef uint32_t sum_at = TCP_CHECKSUM_AT if protocol == PROTOCOL_TCP else UDP_CHECKSUM_AT
    cdef uint16_t checksum
    if (protocol != PROTOCOL_TCP and protocol != PROTOCOL_UDP) or rest < sum_at + 2 or raw16(transport + at) != before:
        return False
    put_raw16(transport + at, after)
    checksum = raw16(transport + sum_at)
    if checksum == 0 and protocol == PROTOCOL_UDP:
        return True             # RFC 768: there is none
    checksum = ~fold(<uint64_t><uint16_t>~checksum + <uint16_t>~before + after)
    put_raw16(transport + sum_at, 0xFFFF if checksum == 0 and protocol == PROTOCOL_UDP else checksum)
    return True


cdef void clamp_mss(Packet *packet, uint32_t inner_mtu) noexcept nogil:
    """Lower the MSS option of a TCP SYN to what fits `inner_mtu` (RFC 9293 3.7.1); the checksum must be whole."""
    cdef uint8_t *tcp = packet.data + packet.transport
    cdef uint32_t rest = packet.length - packet.transport
    cdef uint32_t header
    cdef uint32_t at = 20
    cdef uint32_t mss = inner_mtu - 40 if packet.family == 4 else inner_mtu - 60
    cdef uint16_t before
    cdef uint16_t after
    if packet.flags & (PACKET_FRAGMENT | PACKET_NO_PORTS) or rest < 20 or not tcp[13] & 2:
        return
    header = (tcp[12] >> 4) * 4
    if header < 20 or header > rest:
        return
    while at + 1 < header and tcp[at] != 0:
        if tcp[at] == 1:
            at += 1
            continue
        if tcp[at + 1] < 2 or at + tcp[at + 1] > header:
            return
        if tcp[at] == 2 and tcp[at + 1] == 4:
            if load16(tcp + at + 2) > mss:
                before = raw16(tcp + at + 2)
                store16(tcp + at + 2, <uint16_t>mss)
                after = raw16(tcp + at + 2)
                if at & 1:      # the value straddles two checksum words: its bytes count swapped
                    before = bswap16(before)
                    after = bswap16(after)
                put_raw16(tcp + TCP_CHECKSUM_AT,
                          ~fold(<uint64_t><uint16_t>~raw16(tcp + TCP_CHECKSUM_AT) + <uint16_t>~before + after))
            return
        at += tcp[at + 1]
