"""Outbound ESP, tunnel mode: 1 look up 2 admit 3 number 4 build 5 seal 6 account.

    lookup_policies   (policy.pyx) policy -> SA
    admit             TTL, size against the tunnel's MTU, room in the frame; half-made checksums finished
    number            one atomic add per SA and batch; a number is never given out twice (RFC 4303 3.3.3)
    build             trailer behind, ESP header, UDP and outer IP before the inner packet, where it lies
    seal              the engine enciphers the whole batch
    account           per-SA counters, one update per SA

Numbers are taken after every check that can refuse a packet, so none is wasted on a drop. The IV is the
64-bit number XOR a constant of the SA: unique by construction (RFC 4106 3.1). Transport mode and
fragmentation of oversize packets without DF do not live here.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from ext.counters cimport (
    DROP_CRYPTO, DROP_HEADROOM, DROP_SEQUENCE_EXHAUSTED, DROP_SEQUENCE_UNRESERVED, DROP_TOO_BIG, DROP_TTL, PASS,
    TO_KERNEL, SaCounters,
)
from ext.crypto cimport Job
from ext.packet cimport LINK_ETHERNET, NO_INDEX, PACKET_WHOLE_CHECKSUM, Packet
from ext.policy cimport lookup_policies
from ext.sa cimport SA_DF_COPY, SA_DF_SET, SA_DSCP_COPY, SA_ENCAP, SA_ESN, SA_MSS_CLAMP, Sa, SaHot, SaSequence
from ext.wire cimport (
    PROTOCOL_TCP, PROTOCOL_UDP, bswap16, clamp_mss, complete_checksum, decrement_ttl, fold, load16, put_raw16, store16,
    store32, store64, sum20, sum_bytes, unlikely,
)

cdef extern from *:
    """
    #define ATOMIC_ADD(address, value) __atomic_fetch_add((address), (value), __ATOMIC_RELAXED)
    #define LOAD_RELAXED(address) __atomic_load_n((address), __ATOMIC_RELAXED)
    static const unsigned char esp_padding[16] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16};
    """
    uint64_t atomic_add "ATOMIC_ADD"(uint64_t *address, uint64_t value) noexcept nogil
    uint64_t load_relaxed "LOAD_RELAXED"(uint64_t *address) noexcept nogil
    const uint8_t esp_padding[16]

cdef enum:
    ESP_HEADER = 8
    UDP_HEADER = 8
    LINK_ROOM = 14              # a link header still has to fit before the outer header
    TRAILER_SLACK = 16          # padding is stored 16 bytes at a time
    RUNS_SEARCHED = 4           # a packet joins one of the last few runs, else begins a new one


cdef void outbound(Batch *batch, const Tables *tables, Engine *engine, Outbound *scratch, const Port *port,
                   uint64_t now) noexcept nogil:
    """Take a batch of inner IP packets (parsed) to outer ESP packets, or to a verdict that says why not.

    Afterwards a packet that PASSes has `data` at its outer IP header and its SA's adjacency; one that is
    TO_KERNEL is as complete and has no adjacency yet.
    """
    lookup_policies(batch, tables, &scratch.leaders)
    _admit(batch, tables, scratch, port)
    _number(batch, tables, scratch)
    _build(batch, tables, scratch, port)
    engine.seal(engine, &scratch.jobs)
    _account(batch, tables, scratch, now)


cdef inline void _join_run(Outbound *scratch, Packet *packet, uint32_t index) noexcept nogil:
    """Count the packet into its SA's run."""
    cdef int at = <int>scratch.run_count - 1
    cdef int floor = at - RUNS_SEARCHED
    cdef Run *run
    while at >= 0 and at > floor:
        run = &scratch.runs[at]
        if run.sa == packet.sa:
            run.count += 1
            run.bytes += packet.length
            scratch.run_of[index] = <uint8_t>at
            return
        at -= 1
    run = &scratch.runs[scratch.run_count]
    run.sa = packet.sa
    run.count = 1
    run.bytes = packet.length
    scratch.run_of[index] = <uint8_t>scratch.run_count
    scratch.run_count += 1


cdef void _admit(Batch *batch, const Tables *tables, Outbound *scratch, const Port *port) noexcept nogil:
    """Refuse what cannot leave, before it costs a sequence number."""
    cdef uint32_t index
    cdef Packet *packet
    cdef const SaHot *hot
    cdef uint32_t ttl
    cdef bint forwards = port.link == LINK_ETHERNET
    scratch.run_count = 0
    for index in range(batch.count):
        packet = &batch.packets[index]
        if unlikely(packet.verdict != PASS, 0):
            continue
        hot = &tables.sas[packet.sa].hot
        # RFC 4301 5.1.2.1: the TTL is decremented when forwarding; a TUN's packets were forwarded by the kernel.
        ttl = packet.data[8] if packet.family == 4 else packet.data[7]
        if unlikely(forwards and ttl <= 1, 0):
            packet.verdict = DROP_TTL
            continue
        if unlikely(packet.length > hot.inner_mtu, 0):
            packet.verdict = DROP_TOO_BIG
            continue
        # 40 + 8 + 8 + 16 bytes before, 15 + 2 + 32 after are the most that any SA adds.
        if unlikely(packet.headroom < 72 + LINK_ROOM or packet.tailroom < 49 + TRAILER_SLACK, 0):
            packet.verdict = DROP_HEADROOM
            continue
        if not packet.flags & PACKET_WHOLE_CHECKSUM:
            complete_checksum(packet)
        if hot.flags & SA_MSS_CLAMP and packet.protocol == PROTOCOL_TCP:
            clamp_mss(packet, hot.inner_mtu)
        packet.inner_bytes = packet.length
        _join_run(scratch, packet, index)


cdef void _number(Batch *batch, const Tables *tables, Outbound *scratch) noexcept nogil:
    """Reserve each run's numbers. Past the limit nothing is taken and the run's packets are dropped."""
    cdef uint32_t index
    cdef Run *run
    cdef SaSequence *sequence
    cdef uint64_t limit
    for index in range(scratch.run_count):
        run = &scratch.runs[index]
        sequence = &tables.sas[run.sa].sequence
        limit = load_relaxed(&sequence.limit)
        # Looked at first, so that a stopped SA's counter does not run on; the add alone decides.
        if unlikely(load_relaxed(&sequence.next) >= limit, 0):
            run.next = limit
            run.end = limit
            continue
        run.next = atomic_add(&sequence.next, run.count)
        run.end = run.next + run.count
        if unlikely(run.end > limit, 0):
            run.end = limit if run.next < limit else run.next


cdef void _build(Batch *batch, const Tables *tables, Outbound *scratch, const Port *port) noexcept nogil:
    """Write everything but ciphertext around each inner packet, and the engine's job for it."""
    cdef uint32_t index
    cdef uint32_t count = 0
    cdef Packet *packet
    cdef Run *run
    cdef Sa *sa
    cdef bint forwards = port.link == LINK_ETHERNET
    for index in range(batch.count):
        packet = &batch.packets[index]
        if unlikely(packet.verdict != PASS, 0):
            continue
        run = &scratch.runs[scratch.run_of[index]]
        sa = &tables.sas[packet.sa]
        if unlikely(run.next >= run.end, 0):
            packet.verdict = (DROP_SEQUENCE_EXHAUSTED if sa.sequence.limit >= sa.sequence.hard_limit
                              else DROP_SEQUENCE_UNRESERVED)
            run.bytes -= packet.length
            run.count -= 1
            continue
        packet.sequence = run.next
        run.next += 1
        if forwards:
            decrement_ttl(packet)
        _encapsulate(packet, sa, &scratch.jobs.jobs[count])
        scratch.jobs.jobs[count].packet = <uint16_t>index
        count += 1
    scratch.jobs.count = count


cdef inline void _encapsulate(Packet *packet, Sa *sa, Job *job) noexcept nogil:
    """Trailer, ESP header with IV, UDP and outer IP around one inner packet; see the module's walk."""
    cdef SaHot *hot = &sa.hot
    cdef uint8_t *inner = packet.data
    cdef uint32_t length = packet.length
    cdef uint32_t padding = (0 - (length + 2)) & <uint32_t>(hot.align - 1)
    cdef uint8_t *trailer = inner + length
    cdef uint8_t *esp = inner - hot.iv_length - ESP_HEADER
    cdef uint8_t *outer
    cdef uint32_t header_length = hot.header_length
    cdef uint32_t total
    cdef uint8_t tos
    cdef bint dont_fragment
    # RFC 4303 2.4: pad bytes count up from 1; then their number and the next header.
    memcpy(trailer, esp_padding, 16)
    trailer[padding] = <uint8_t>padding
    trailer[padding + 1] = 4 if packet.family == 4 else 41
    memcpy(esp, &hot.spi, 4)
    store32(esp + 4, <uint32_t>packet.sequence)

    job.esp = esp
    job.text = inner
    job.text_length = length + padding + 2
    job.icv = inner + job.text_length
    job.key = &sa.key
    job.ok = 0
    if hot.iv_length == 8:
        _write_aead(sa, packet.sequence, esp, job)
    else:
        _write_cbc(sa, packet.sequence, esp, job)

    outer = esp - header_length
    total = <uint32_t>(job.icv - esp) + hot.icv_length
    tos = packet.tos if hot.flags & SA_DSCP_COPY else 0
    dont_fragment = hot.flags & SA_DF_SET or (
        hot.flags & SA_DF_COPY and (packet.family == 6 or inner[6] & 0x40))
    if hot.flags & SA_ENCAP:
        outer -= UDP_HEADER
        total += UDP_HEADER
        memcpy(outer + header_length, hot.encap_ports, 4)
        store16(outer + header_length + 4, <uint16_t>total)
        put_raw16(outer + header_length + 6, 0)     # RFC 3948 2.1: zero over IPv4; _account fills it over IPv6
    memcpy(outer, hot.header, 20)
    if header_length == 20:
        total += 20
        # RFC 6040 4.1 normal mode: the ECN field is copied outward.
        outer[1] = tos if hot.flags & SA_DSCP_COPY else (hot.header[1] & 0xFC) | (packet.tos & 3)
        store16(outer + 2, <uint16_t>total)
        store16(outer + 4, <uint16_t>packet.sequence)
        store16(outer + 6, 0x4000 if dont_fragment else 0)
        put_raw16(outer + 10, ~fold(sum20(outer)))
    else:
        memcpy(outer + 20, &hot.header[20], 20)
        store16(outer + 4, <uint16_t>total)
        total += 40
        if not hot.flags & SA_DSCP_COPY:
            tos = <uint8_t>((load16(hot.header) >> 4) & 0xFC) | (packet.tos & 3)
        outer[0] = 0x60 | tos >> 4
        outer[1] = (outer[1] & 0x0F) | <uint8_t>(tos << 4)

    packet.headroom -= <uint16_t>(inner - outer)
    packet.tailroom -= <uint16_t>(padding + 2 + hot.icv_length)
    packet.data = outer
    packet.length = total
    packet.transport = <uint16_t>(esp - outer)
    packet.adjacency = hot.adjacency
    if unlikely(hot.adjacency == NO_INDEX, 0):
        packet.verdict = TO_KERNEL


cdef inline void _write_aead(Sa *sa, uint64_t sequence, uint8_t *esp, Job *job) noexcept nogil:
    """IV on the wire, nonce and AAD for the engine (RFC 4106 3-5, RFC 7634 2)."""
    cdef uint64_t mask
    store64(esp + ESP_HEADER, sequence)
    memcpy(&mask, sa.sequence.iv_mask, 8)
    mask ^= (<uint64_t *>(esp + ESP_HEADER))[0]
    memcpy(esp + ESP_HEADER, &mask, 8)
    memcpy(job.nonce, sa.hot.salt, 4)
    memcpy(job.nonce + 4, &mask, 8)
    if sa.hot.flags & SA_ESN:
        memcpy(job.aad, esp, 4)
        store64(job.aad + 4, sequence)
        job.aad_length = 12
    else:
        memcpy(job.aad, esp, 8)
        job.aad_length = 8


cdef inline void _write_cbc(Sa *sa, uint64_t sequence, uint8_t *esp, Job *job) noexcept nogil:
    """Nonce block in the IV field (CBC), high sequence half for the HMAC."""
    cdef uint32_t index
    if sa.hot.iv_length:
        # Enciphered together with the payload, this block becomes the IV: see crypto.pxd, Job.text.
        memcpy(esp + ESP_HEADER, sa.sequence.iv_mask, 8)
        store64(esp + ESP_HEADER + 8, sequence)
        for index in range(8):
            esp[ESP_HEADER + 8 + index] ^= sa.sequence.iv_mask[8 + index]
        job.text -= sa.hot.iv_length
        job.text_length += sa.hot.iv_length
    job.aad_length = 0
    if sa.hot.flags & SA_ESN:
        store32(job.aad, <uint32_t>(sequence >> 32))
        job.aad_length = 4


cdef void _account(Batch *batch, const Tables *tables, Outbound *scratch, uint64_t now) noexcept nogil:
    """Per-SA counters; the UDP checksum that IPv6 demands (RFC 8200 8.1)."""
    cdef uint32_t index
    cdef Run *run
    cdef Job *job
    cdef Packet *packet
    cdef SaCounters *counters
    for index in range(scratch.jobs.count):
        job = &scratch.jobs.jobs[index]
        packet = &batch.packets[job.packet]
        if unlikely(not job.ok, 0):
            packet.verdict = DROP_CRYPTO
            run = &scratch.runs[scratch.run_of[job.packet]]
            run.count -= 1
            run.bytes -= packet.inner_bytes
        elif unlikely(packet.data[0] >> 4 == 6 and packet.data[6] == PROTOCOL_UDP, 0):
            _checksum_udp6(packet.data, packet.length)
    for index in range(scratch.run_count):
        run = &scratch.runs[index]
        counters = &tables.sa_counters[run.sa]
        counters.packets += run.count
        counters.bytes += run.bytes
        counters.last_used = now


cdef void _checksum_udp6(uint8_t *header, uint32_t length) noexcept nogil:
    cdef uint64_t total = sum_bytes(header + 8, length - 8)     # addresses and the whole UDP datagram
    cdef uint16_t checksum
    total += bswap16(<uint16_t>(length - 40)) + bswap16(PROTOCOL_UDP)
    checksum = ~fold(total)
    put_raw16(header + 46, checksum if checksum else 0xFFFF)
