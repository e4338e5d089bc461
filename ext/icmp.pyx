"""ICMP errors: time exceeded, fragmentation needed, packet too big (RFC 792, RFC 1191, RFC 4443).

The offending packet becomes its own answer: headers are written before it, where it lies, and its tail is cut.
Never answered: ICMP errors, later fragments, multicast and broadcast, packets from nobody (RFC 1122 3.2.2,
RFC 4443 2.4 e), and more than BURST + RATE per second (RFC 4443 2.4 f).
"""

from libc.stdint cimport uint8_t, uint16_t
from libc.string cimport memcpy, memset

from ext.counters cimport DROP_ICMP_LIMIT, DROP_TOO_BIG, DROP_TTL, ICMP_SENT
from ext.packet cimport LINK_IP, NO_INDEX, PACKET_NO_PORTS, PACKET_FRAGMENT, PACKET_WHOLE_CHECKSUM
from ext.wire cimport (
    PROTOCOL_ICMP, PROTOCOL_ICMPV6, bswap16, fold, parse_slowly, put_raw16, restamp_ipv4, store16, store32,
    sum_bytes,
)

cdef enum:
    RATE = 1000                 # answers per second
    BURST = 100
    TOKEN = 1000000             # nanoseconds that one answer costs (1e9 / RATE)
    ICMP_HEADER = 8
    IPV4_ROOM = 548             # RFC 1812 4.3.2.3: the answer stays within 576 bytes
    IPV6_ROOM = 1232            # RFC 4443 3.1: within the minimum MTU of 1280
    TTL = 64


cdef inline bint _take_token(IcmpLimit *limit, uint64_t now) noexcept nogil:
    """Token bucket in nanoseconds: time adds, answers take."""
    limit.tokens += now - limit.last
    limit.last = now
    if limit.tokens > BURST * TOKEN:
        limit.tokens = BURST * TOKEN
    if limit.tokens < TOKEN:
        return False
    limit.tokens -= TOKEN
    return True


cdef inline bint _answerable(const Packet *packet) noexcept nogil:
    """What RFC 1122 and RFC 4443 let an error answer."""
    cdef const uint8_t *header = packet.data
    cdef uint8_t kind = <uint8_t>(packet.source_port >> 8)
    if packet.flags & PACKET_NO_PORTS and packet.flags & PACKET_FRAGMENT:
        return False
    if packet.family == 4:
        if packet.protocol == PROTOCOL_ICMP and kind != 8 and kind != 0:
            return False
        # sources: 0/8, loopback, multicast and beyond; destinations: multicast and broadcast
        return not (header[12] == 0 or header[12] == 127 or header[12] >= 224 or header[16] >= 224)
    if packet.protocol == PROTOCOL_ICMPV6 and kind < 128:
        return False
    # RFC 4443 2.4 e.3: packet too big is the one error that multicast may get; we keep it simple and send none.
    return not (header[8] == 0xFF or header[24] == 0xFF or (header[8] == 0 and header[9] == 0))


cdef uint8_t icmp_answer(Packet *packet, const Port *port, uint32_t mtu, IcmpLimit *limit, uint64_t now) noexcept nogil:
    """Turn a packet whose verdict is DROP_TTL or DROP_TOO_BIG into the error that answers it.

    The source is the port's own address, on a TUN the packet's destination. Returns ICMP_SENT with the packet parsed
    anew and PASSing, its verdict when it must not be answered, or DROP_ICMP_LIMIT.
    """
    cdef uint8_t verdict = packet.verdict
    cdef uint32_t quoted
    cdef uint32_t header_length
    cdef uint8_t source[16]
    cdef uint8_t beyond[16]
    cdef uint8_t *header
    cdef uint8_t *icmp
    cdef uint64_t total
    cdef const uint8_t *own = &port.ipv4[0] if packet.family == 4 else &port.ipv6[0]
    if not _answerable(packet):
        return verdict
    if not (port.has_ipv4 if packet.family == 4 else port.has_ipv6):
        if port.link != LINK_IP:
            return verdict
        # A TUN's answers go into the kernel, which takes none from an address of its own: it comes from beyond.
        memcpy(beyond, packet.data + (16 if packet.family == 4 else 24), 4 if packet.family == 4 else 16)
        own = &beyond[0]
    if not _take_token(limit, now):
        return DROP_ICMP_LIMIT
    header_length = 20 if packet.family == 4 else 40
    if packet.headroom < header_length + ICMP_HEADER + 14:
        return verdict
    quoted = packet.length
    if quoted > (IPV4_ROOM if packet.family == 4 else IPV6_ROOM):
        quoted = IPV4_ROOM if packet.family == 4 else IPV6_ROOM
    memcpy(source, packet.data + (12 if packet.family == 4 else 8), 16 if packet.family == 6 else 4)
    icmp = packet.data - ICMP_HEADER
    header = icmp - header_length
    memset(header, 0, header_length + ICMP_HEADER)
    if packet.family == 4:
        header[0] = 0x45
        header[1] = 0xC0        # RFC 1812 4.3.2.5: precedence of internetwork control
        store16(header + 2, <uint16_t>(20 + ICMP_HEADER + quoted))
        header[8] = TTL
        header[9] = PROTOCOL_ICMP
        memcpy(header + 12, own, 4)
        memcpy(header + 16, source, 4)
        restamp_ipv4(header)
        icmp[0] = 11 if verdict == DROP_TTL else 3
        icmp[1] = 0 if verdict == DROP_TTL else 4
        if verdict == DROP_TOO_BIG:
            store16(icmp + 6, <uint16_t>mtu)
        total = 0
    else:
        header[0] = 0x60
        store16(header + 4, <uint16_t>(ICMP_HEADER + quoted))
        header[6] = PROTOCOL_ICMPV6
        header[7] = TTL
        memcpy(header + 8, own, 16)
        memcpy(header + 24, source, 16)
        icmp[0] = 3 if verdict == DROP_TTL else 2
        if verdict == DROP_TOO_BIG:
            store32(icmp + 4, mtu if mtu > 1280 else 1280)
        total = sum_bytes(header + 8, 32) + bswap16(<uint16_t>(ICMP_HEADER + quoted)) + bswap16(PROTOCOL_ICMPV6)
    put_raw16(icmp + 2, ~fold(total + sum_bytes(icmp, ICMP_HEADER + quoted)))
    packet.headroom -= <uint16_t>(header_length + ICMP_HEADER)
    packet.tailroom += <uint16_t>(packet.length - quoted)
    packet.data = header
    packet.length = header_length + ICMP_HEADER + quoted
    packet.flags = PACKET_WHOLE_CHECKSUM
    packet.sa = NO_INDEX
    packet.adjacency = NO_INDEX
    packet.verdict = parse_slowly(packet)
    return ICMP_SENT
