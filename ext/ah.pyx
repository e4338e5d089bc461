"""AH (RFC 4302): the header that authenticates a whole packet, outer IP header included.

    outbound   ah_write    AH with an ICV of zeros; what routers may change is put by and zeroed; the engine's job
               (engine)    hashes from the IP header to the packet's end, and puts the ICV where it belongs
               ah_restore  the IP header gets back what was put by
    inbound    ah_prepare  length, replay check, the ICV taken out, what may change zeroed; the engine's job
               (engine)    hashes and compares
               ah_strip    `data` at the packet in the tunnel; or, in transport mode,
               ah_unwrap   the IP header as it was, behind where the AH stood

Hashing in place, with zeros where RFC 4302 3.3.3.1 wants them, needs no copy of the packet; the headers alone are
copied, to be had back. What may change: of IPv4 TOS, flags and fragment offset, TTL, checksum and most options; of IPv6
traffic class, flow label, hop limit and the options that say so; and a routing header enters as it will arrive. The
high half of an extended sequence number is hashed behind the packet (2.5.1), where four bytes are lent to it.

AES-GMAC's ICV field is an IV and a tag (RFC 4543 4): the tag alone is zero while it is made, the IV is covered where it
stands (docs/adr/0041-ah-covers-gmacs-iv.md).

Refused by name: more than AH_HEADERS_MAX bytes of headers before the AH; options and extension headers that cannot be
followed; routing headers other than types 0 and 2 that still have a way to go, since nobody says how they arrive.
"""

from libc.string cimport memcpy, memset

from ext.counters cimport (
    DROP_AH_LENGTH, DROP_AH_TRUNCATED, DROP_EXTENSION_HEADER, DROP_HEADROOM, DROP_INNER_MALFORMED, DROP_IP_OPTION,
    DROP_NEXT_HEADER, PASS,
)
from ext.replay cimport extend_sequence, replay_check
from ext.sa cimport SA_ESN
from ext.wire cimport (
    PROTOCOL_IPIP, PROTOCOL_IPV6, bswap32, bswap64, likely, put_raw16, put_raw32, put_raw64, raw32, raw64,
    restamp_ipv4, store16, store32, unlikely,
)

cdef enum:
    NEXT_HOP_BY_HOP = 0
    NEXT_ROUTING = 43
    NEXT_DESTINATION = 60
    OPTION_END = 0
    OPTION_NOP = 1
    OPTION_LOOSE_ROUTE = 131
    OPTION_STRICT_ROUTE = 137
    OPTION_MAY_CHANGE = 0x20    # RFC 8200 4.2: the third bit of an IPv6 option's type
    HIGH_HALF = 4               # bytes behind the packet that the sequence number's high half is lent


# An ICV of 12 to ICV_MAX bytes, by words that may overlap.

cdef inline void _zero_icv(uint8_t *icv, uint32_t length) noexcept nogil:
    put_raw64(icv, 0)
    put_raw64(icv + length - 8, 0)
    if length > 16:
        put_raw64(icv + 8, 0)
        put_raw64(icv + length - 16, 0)


cdef inline void _copy_icv(uint8_t *into, const uint8_t *icv, uint32_t length) noexcept nogil:
    put_raw64(into, raw64(icv))
    put_raw64(into + length - 8, raw64(icv + length - 8))
    if length > 16:
        put_raw64(into + 8, raw64(icv + 8))
        put_raw64(into + length - 16, raw64(icv + length - 16))


# What may change on the way: put by, and zero.

cdef uint8_t hide(uint8_t *header, uint32_t before, bint arriving, AhHeaders *headers) noexcept nogil:
    """Copy the `before` bytes of headers in front of the AH, and zero in place what the ICV must not cover.

    RFC 4302 3.3.3.1.1 and 3.3.3.1.2. Returns a Verdict; after another than PASS the packet is spoilt.
    """
    headers.length = <uint16_t>before
    if likely(before == 20, 1):
        memcpy(headers.whole, header, 20)
    elif likely(before == 40, 1):
        memcpy(headers.whole, header, 40)
    elif before <= AH_HEADERS_MAX:
        memcpy(headers.whole, header, before)
    else:
        return DROP_EXTENSION_HEADER
    if likely(header[0] >> 4 == 4, 1):
        header[1] = 0                               # DSCP and ECN
        put_raw32(header + 6, <uint32_t>header[9] << 24)     # flags and fragment offset, TTL; the protocol stays
        put_raw16(header + 10, 0)                   # checksum
        return PASS if likely(before == 20, 1) else _hide_options(header, before, arriving)
    put_raw32(header, 0x60)                         # traffic class and flow label; the version stays
    header[7] = 0                                   # hop limit
    return PASS if likely(before == 40, 1) else _hide_extensions(header, before, arriving)


cdef uint8_t _hide_options(uint8_t *header, uint32_t before, bint arriving) noexcept nogil:
    """IPv4 options are zeroed whole unless RFC 4302 appendix A1 lists them as immutable."""
    cdef uint32_t at = 20
    cdef uint32_t size
    cdef uint8_t kind
    while at < before:
        kind = header[at]
        if kind == OPTION_END:
            return PASS
        if kind == OPTION_NOP:
            at += 1
            continue
        if at + 2 > before:
            return DROP_IP_OPTION
        size = header[at + 1]
        if size < 2 or at + size > before:
            return DROP_IP_OPTION
        if kind == OPTION_LOOSE_ROUTE or kind == OPTION_STRICT_ROUTE:
            # The destination enters as it will arrive: the last address of a route that is not yet used up.
            if size >= 7 and <uint32_t>header[at + 2] + 3 <= size:
                if arriving:
                    return DROP_IP_OPTION
                put_raw32(header + 16, raw32(header + at + size - 4))
        if not _immutable(kind):
            memset(header + at, 0, size)
        at += size
    return PASS


cdef inline bint _immutable(uint8_t kind) noexcept nogil:
    """Security (RFC 1108, two), commercial security, router alert, and multi-destination delivery."""
    return kind == 130 or kind == 133 or kind == 134 or kind == 148 or kind == 149


cdef uint8_t _hide_extensions(uint8_t *header, uint32_t before, bint arriving) noexcept nogil:
    """IPv6 hop-by-hop, destination and routing headers, up to the AH."""
    cdef uint8_t next_header = header[6]
    cdef uint8_t verdict
    cdef uint32_t at = 40
    cdef uint32_t size
    while at < before:
        size = (<uint32_t>header[at + 1] + 1) * 8 if at + 8 <= before else AH_HEADERS_MAX
        if at + size > before:
            return DROP_EXTENSION_HEADER
        if next_header == NEXT_HOP_BY_HOP or next_header == NEXT_DESTINATION:
            verdict = _hide_ipv6_options(header + at, size)
        elif next_header == NEXT_ROUTING:
            verdict = _arrive(header, header + at, size, arriving)
        else:
            verdict = DROP_EXTENSION_HEADER
        if verdict != PASS:
            return verdict
        next_header = header[at]
        at += size
    return PASS


cdef uint8_t _hide_ipv6_options(uint8_t *extension, uint32_t size) noexcept nogil:
    """Zero the data, not type and length, of options that may change on the way (RFC 4302 3.3.3.1.2.2)."""
    cdef uint32_t at = 2
    cdef uint32_t length
    while at < size:
        if extension[at] == 0:      # Pad1 has no length
            at += 1
            continue
        if at + 2 > size:
            return DROP_EXTENSION_HEADER
        length = extension[at + 1]
        if at + 2 + length > size:
            return DROP_EXTENSION_HEADER
        if extension[at] & OPTION_MAY_CHANGE:
            memset(extension + at + 2, 0, length)
        at += 2 + length
    return PASS


cdef uint8_t _arrive(uint8_t *header, uint8_t *routing, uint32_t size, bint arriving) noexcept nogil:
    """Destination and routing header as they will be at the last address (RFC 4302 3.3.3.1.2.2, RFC 2460 4.4)."""
    cdef uint32_t left = routing[3]
    cdef uint32_t addresses = (size - 8) >> 4
    cdef uint32_t _hop
    cdef uint8_t *at
    cdef uint8_t last[16]
    if left == 0:
        return PASS
    # Whoever receives AH is where the route ends.
    if arriving or left > addresses or (routing[2] != 0 and routing[2] != 2):
        return DROP_EXTENSION_HEADER
    memcpy(last, routing + 8 + 16 * (addresses - 1), 16)
    # Each stop swaps the destination with the next address: in the end those still to come have moved on by one.
    at = routing + 8 + 16 * (addresses - 1)
    for _hop in range(left - 1):
        memcpy(at, at - 16, 16)
        at -= 16
    memcpy(at, header + 24, 16)
    memcpy(header + 24, last, 16)
    routing[3] = 0
    return PASS


# Outbound.

cdef uint8_t ah_write(Packet *packet, uint32_t before, uint8_t next_header, const Sa *sa, uint64_t sequence,
                      AhHeaders *headers, Job *job) noexcept nogil:
    """Write the AH behind the `before` bytes of headers at `data`, and the job that fills in its ICV.

    All other bytes of the packet are final, `length` counts the AH, and 4 bytes behind the packet may be written to.
    Returns a Verdict: headers that cannot be followed are the only reason for another than PASS.
    """
    cdef uint8_t *ah = packet.data + before
    cdef uint32_t length = ah_length(&sa.hot)
    cdef uint64_t iv
    cdef uint8_t verdict = hide(packet.data, before, False, headers)
    if unlikely(verdict != PASS, 0):
        return verdict
    put_raw32(ah, next_header | ((length >> 2) - 2) << 8)
    memcpy(ah + 4, &sa.hot.spi, 4)
    store32(ah + 8, <uint32_t>sequence)
    put_raw32(ah + length - 4, 0)       # padding, where there is any
    _zero_icv(ah + AH_HEADER, sa.hot.iv_length + sa.hot.icv_length)
    _fill_job(packet, sa, sequence, job)
    job.icv = ah + AH_HEADER + sa.hot.iv_length
    if sa.hot.iv_length:
        iv = bswap64(sequence) ^ raw64(sa.sequence.iv_mask)
        put_raw64(ah + AH_HEADER, iv)
        _fill_nonce(sa, iv, job)
    return PASS


cdef inline void _fill_nonce(const Sa *sa, uint64_t iv, Job *job) noexcept nogil:
    """AES-GMAC's: salt, then the IV that stands before the tag (RFC 4543 3.2, 4)."""
    memcpy(job.nonce, sa.hot.salt, 4)
    put_raw64(job.nonce + 4, iv)


cdef inline void _fill_job(const Packet *packet, const Sa *sa, uint64_t sequence, Job *job) noexcept nogil:
    """All of the packet, and with ESN the number's high half behind it (RFC 4302 2.5.1)."""
    job.esp = packet.data
    job.text = packet.data
    job.text_length = packet.length
    job.aad_length = 0
    if sa.hot.flags & SA_ESN:
        store32(job.aad, <uint32_t>(sequence >> 32))
        job.aad_length = 4


cdef void ah_restore(Batch *batch, const Ah *scratch) noexcept nogil:
    """Give the packets' headers back what `ah_write` put by."""
    cdef uint32_t index
    cdef const AhHeaders *headers
    for index in range(scratch.count):
        headers = &scratch.headers[index]
        memcpy(batch.packets[headers.packet].data, headers.whole, headers.length)


# Inbound.

cdef uint8_t ah_prepare(Packet *packet, uint32_t index, Sa *sa, AhHeaders *headers, Job *job) noexcept nogil:
    """One packet's lengths and replay check, and its job. `transport` is at the AH; returns a Verdict.

    RFC 4302 3.4.2 to 3.4.4. The ICV's padding over IPv4 may make the AH a multiple of 64 bits, as it must over IPv6:
    Linux pads so unless told otherwise. It is covered by the ICV, whatever it holds.
    """
    cdef uint8_t *ah = packet.data + packet.transport
    cdef uint32_t rest = packet.length - packet.transport
    cdef uint32_t iv_length = sa.hot.iv_length
    cdef uint32_t field = iv_length + sa.hot.icv_length     # what RFC 4302 calls the ICV: AES-GMAC's begins with an IV
    cdef uint32_t length
    cdef uint64_t sequence
    cdef uint8_t verdict
    if unlikely(rest < AH_HEADER + field, 0):
        return DROP_AH_TRUNCATED
    length = (<uint32_t>ah[1] + 2) * 4
    if unlikely(length != ah_length(&sa.hot)
                and length != ((AH_HEADER + field + 7) & ~<uint32_t>7), 0):
        return DROP_AH_LENGTH
    if unlikely(rest < length, 0):
        return DROP_AH_TRUNCATED
    sequence = bswap32(raw32(ah + 8))
    if sa.hot.flags & SA_ESN:
        if unlikely(packet.tailroom < HIGH_HALF, 0):
            return DROP_HEADROOM
        sequence = extend_sequence(sa.replay.top, sa.replay.window, <uint32_t>sequence)
    packet.sequence = sequence
    verdict = replay_check(&sa.replay, sequence)
    if unlikely(verdict != PASS, 0):
        return verdict
    verdict = hide(packet.data, packet.transport, True, headers)
    if unlikely(verdict != PASS, 0):
        return verdict
    _copy_icv(headers.icv, ah + AH_HEADER + iv_length, sa.hot.icv_length)
    if iv_length:
        _fill_nonce(sa, raw64(ah + AH_HEADER), job)
    _zero_icv(ah + AH_HEADER + iv_length, sa.hot.icv_length)
    _fill_job(packet, sa, sequence, job)
    job.icv = headers.icv
    job.key = &sa.key
    job.packet = <uint8_t>index
    job.suite = sa.hot.suite
    return PASS


cdef uint8_t ah_unwrap(Packet *packet, uint32_t next_at, AhHeaders *headers) noexcept nogil:
    """The packet without its AH (RFC 4302 3.1.1). `next_at` is where the headers before it name what follows."""
    cdef const uint8_t *ah = packet.data + packet.transport
    cdef uint32_t length = (<uint32_t>ah[1] + 2) * 4
    headers.whole[next_at] = ah[0]
    packet.data += length
    packet.length -= length
    memcpy(packet.data, headers.whole, headers.length)
    if packet.family == 4:
        store16(packet.data + 2, <uint16_t>packet.length)
        restamp_ipv4(packet.data)
    else:
        store16(packet.data + 4, <uint16_t>(packet.length - 40))
    packet.flags = 0
    return PASS


cdef uint8_t ah_strip(Packet *packet) noexcept nogil:
    """`data` at the inner packet of a tunnel (RFC 4302 3.1.2)."""
    cdef const uint8_t *ah = packet.data + packet.transport
    cdef uint32_t before = packet.transport + (<uint32_t>ah[1] + 2) * 4
    cdef uint8_t next_header = ah[0]
    if unlikely(next_header != PROTOCOL_IPIP and next_header != PROTOCOL_IPV6, 0):
        return DROP_NEXT_HEADER
    packet.data += before
    packet.length -= before
    # What receive knew of checksums was about the outer packet.
    packet.flags = 0
    if unlikely(packet.length == 0, 0):
        return DROP_INNER_MALFORMED
    return PASS if packet.data[0] >> 4 == (4 if next_header == PROTOCOL_IPIP else 6) else DROP_INNER_MALFORMED
