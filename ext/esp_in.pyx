"""Inbound ESP, tunnel mode: 1 find SA 2 admit 3 open 4 accept 5 strip 6 check selectors and route.

    find SA    outer header -> ESP header (through UDP where there is one) -> SPI -> SA
    admit      addresses, encapsulation, lengths, replay check; the engine's job
    open       the engine checks and deciphers the whole batch in place
    accept     replay window moved, only now that the ICV has passed (RFC 4303 3.4.3)
    strip      padding and next header checked; `data` moved to the inner packet; ECN (RFC 6040)
    selectors  the inner packet must be what the SA is for (RFC 4301 5.2), then it is routed

Fragments, ESP behind extension headers other than those `wire` walks, and transport mode end in named drops.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from ext.counters cimport (
    DROP_DUMMY, DROP_ECN, DROP_ENCAP_MISMATCH, DROP_ESP_MISALIGNED, DROP_ESP_TRUNCATED, DROP_FRAGMENT,
    DROP_INNER_MALFORMED, DROP_INNER_SELECTORS, DROP_INTEGRITY, DROP_NAT_KEEPALIVE, DROP_NEXT_HEADER, DROP_NO_SA,
    DROP_NOT_ESP, DROP_PADDING, DROP_TTL, DROP_WRONG_ADDRESS, PASS, TO_KERNEL, SaCounters,
)
from ext.crypto cimport Job
from ext.packet cimport (
    NO_INDEX, PACKET_FRAGMENT, PACKET_UDP_ENCAP,
    Packet,
)
from ext.policy cimport (
    Addresses, Lpm, find_leaders, lpm_find, lpm_open, lpm_prefetch, read_addresses, selector_matches,
)
from ext.replay cimport extend_sequence, replay_accept, replay_check, replay_lock, replay_unlock
from ext.sa cimport (
    REPLAY_BLOCKS, SA_ENCAP, SA_ESN, SA_MSS_CLAMP, Sa, SaHot, SaInbound, spi_find,
    spi_prefetch,
)
from ext.wire cimport (
    PROTOCOL_ESP, PROTOCOL_IPIP, PROTOCOL_IPV6, PROTOCOL_NONE, PROTOCOL_TCP, PROTOCOL_UDP, clamp_mss, decrement_ttl,
    fold, load16, load32, load64, parse_ip, prefetch, prefetch_write, put_raw16, raw16, store32, store64, unlikely,
)

cdef extern from *:
    """
    static const unsigned char esp_pad_bytes[256] = {
    #define ROW(n) n+1,n+2,n+3,n+4,n+5,n+6,n+7,n+8,n+9,n+10,n+11,n+12,n+13,n+14,n+15,n+16
        ROW(0), ROW(16), ROW(32), ROW(48), ROW(64), ROW(80), ROW(96), ROW(112), ROW(128), ROW(144), ROW(160),
        ROW(176), ROW(192), ROW(208), ROW(224),
        241,242,243,244,245,246,247,248,249,250,251,252,253,254,255,0
    #undef ROW
    };
    """
    const uint8_t esp_pad_bytes[256]

cdef enum:
    ESP_HEADER = 8
    ESP_TRAILER = 2
    UDP_HEADER = 8
    ECN_MASK = 3
    ECN_NOT_ECT = 0
    ECN_ECT1 = 1
    ECN_CE = 3


cdef void inbound(Batch *batch, Tables *tables, Engine *engine, Inbound *scratch, uint64_t now) noexcept nogil:
    """Take a batch of outer IP packets (parsed) to inner packets, or to a verdict that says why not.

    Afterwards a packet that PASSes has `data` at its inner IP header and an adjacency; one that is TO_KERNEL
    is as complete, and the kernel has to find its way.
    """
    _find_sas(batch, tables)
    _admit(batch, tables, scratch)
    engine.open(engine, &scratch.jobs)
    _accept(batch, tables, scratch, now)
    _strip(batch, tables, scratch)
    _select_and_route(batch, tables, scratch)


cdef inline uint8_t _find_esp(Packet *packet) noexcept nogil:
    """Leave `transport` at the ESP header; PASS or why there is none."""
    cdef uint32_t rest = packet.length - packet.transport
    cdef const uint8_t *transport = packet.data + packet.transport
    if unlikely(packet.flags & PACKET_FRAGMENT, 0):
        return DROP_FRAGMENT
    if packet.protocol == PROTOCOL_ESP:
        return DROP_ESP_TRUNCATED if rest < ESP_HEADER else PASS
    if packet.protocol != PROTOCOL_UDP or rest < UDP_HEADER:
        return DROP_NOT_ESP
    if load16(transport + 4) < UDP_HEADER or load16(transport + 4) > rest:
        return DROP_NOT_ESP
    packet.tailroom += <uint16_t>(rest - load16(transport + 4))
    packet.length -= rest - load16(transport + 4)
    rest = load16(transport + 4) - UDP_HEADER
    if rest == 1 and transport[UDP_HEADER] == 0xFF:
        return DROP_NAT_KEEPALIVE       # RFC 3948 2.3; it proves nothing about the peer
    packet.transport += UDP_HEADER
    packet.flags |= PACKET_UDP_ENCAP
    if rest < ESP_HEADER:
        return DROP_ESP_TRUNCATED
    # A zero SPI is the non-ESP marker of RFC 3948 2.2: IKE, which steering leaves to the kernel.
    return DROP_NOT_ESP if load32(transport + UDP_HEADER) == 0 else PASS


cdef void _find_sas(Batch *batch, Tables *tables) noexcept nogil:
    """SPI -> SA; a run of one SPI costs one look-up. Cold lines are asked for two passes ahead."""
    cdef uint32_t index
    cdef uint32_t spi
    cdef uint32_t last_spi = 0
    cdef uint32_t last_sa = NO_INDEX
    cdef Packet *packet
    cdef Sa *sa
    cdef const uint8_t *key
    for index in range(batch.count):
        packet = &batch.packets[index]
        if unlikely(packet.verdict != PASS, 0):
            continue
        packet.verdict = _find_esp(packet)
        if packet.verdict == PASS:
            spi = load32(packet.data + packet.transport)
            if spi != last_spi:
                spi_prefetch(tables, spi)
                last_spi = spi
    last_spi = 0
    for index in range(batch.count):
        packet = &batch.packets[index]
        if unlikely(packet.verdict != PASS, 0):
            continue
        spi = load32(packet.data + packet.transport)
        if spi != last_spi:
            last_spi = spi
            last_sa = spi_find(tables, spi)
            if last_sa != NO_INDEX:
                sa = &tables.sas[last_sa]
                key = sa.key.expanded
                prefetch(&sa.hot)
                prefetch(&sa.inbound)
                prefetch_write(&sa.replay, 1)
                prefetch_write(&sa.replay.blocks[(load32(packet.data + packet.transport + 4) >> 6)
                                                 & (REPLAY_BLOCKS - 1)], 1)
                prefetch(key)
                prefetch(key + 64)
                prefetch(key + 128)
                prefetch(key + 192)
                prefetch(key + 256)
                prefetch(key + 320)
                prefetch_write(&tables.sa_counters[last_sa], 1)
        packet.sa = last_sa
        if unlikely(last_sa == NO_INDEX, 0):
            packet.verdict = DROP_NO_SA


cdef inline bint _addresses_match(const Packet *packet, const SaInbound *inbound) noexcept nogil:
    """The outer destination is the SA's own. The source may differ: a peer behind NAT moves."""
    if packet.family == 4:
        return load32(packet.data + 16) == inbound.local_low and inbound.local_high == 0
    return load64(packet.data + 24) == inbound.local_high and load64(packet.data + 32) == inbound.local_low


cdef void _admit(Batch *batch, Tables *tables, Inbound *scratch) noexcept nogil:
    """All that can be checked before the cipher runs, and the engine's job for what passes."""
    cdef uint32_t index
    cdef uint32_t count = 0
    cdef Packet *packet
    for index in range(batch.count):
        packet = &batch.packets[index]
        if unlikely(packet.verdict != PASS, 0):
            continue
        packet.verdict = _prepare(packet, &tables.sas[packet.sa], &scratch.jobs.jobs[count])
        if packet.verdict == PASS:
            scratch.jobs.jobs[count].packet = <uint16_t>index
            count += 1
    scratch.jobs.count = count


cdef inline uint8_t _prepare(Packet *packet, Sa *sa, Job *job) noexcept nogil:
    """One packet's checks and job."""
    cdef SaHot *hot = &sa.hot
    cdef uint8_t *esp = packet.data + packet.transport
    cdef uint32_t rest = packet.length - packet.transport
    cdef uint32_t overhead = ESP_HEADER + hot.iv_length + hot.icv_length
    cdef uint32_t text_length
    if unlikely(not _addresses_match(packet, &sa.inbound), 0):
        return DROP_WRONG_ADDRESS
    if unlikely((hot.flags & SA_ENCAP != 0) != (packet.flags & PACKET_UDP_ENCAP != 0), 0):
        return DROP_ENCAP_MISMATCH
    if unlikely(rest < overhead + ESP_TRAILER, 0):
        return DROP_ESP_TRUNCATED
    text_length = rest - overhead
    if unlikely(text_length & (hot.align - 1), 0):
        return DROP_ESP_MISALIGNED
    packet.sequence = load32(esp + 4)
    if hot.flags & SA_ESN:
        packet.sequence = extend_sequence(sa.replay.top, sa.replay.window, <uint32_t>packet.sequence)
    cdef uint8_t verdict = replay_check(&sa.replay, packet.sequence)
    if unlikely(verdict != PASS, 0):
        return verdict
    job.esp = esp
    job.text = esp + ESP_HEADER + hot.iv_length
    job.text_length = text_length
    job.icv = job.text + text_length
    job.key = &sa.key
    job.ok = 0
    if hot.iv_length == 8:
        memcpy(job.nonce, hot.salt, 4)
        memcpy(job.nonce + 4, esp + ESP_HEADER, 8)
        if hot.flags & SA_ESN:
            memcpy(job.aad, esp, 4)
            store64(job.aad + 4, packet.sequence)
            job.aad_length = 12
        else:
            memcpy(job.aad, esp, 8)
            job.aad_length = 8
        return PASS
    job.text -= hot.iv_length
    job.text_length += hot.iv_length
    job.aad_length = 0
    if hot.flags & SA_ESN:
        store32(job.aad, <uint32_t>(packet.sequence >> 32))
        job.aad_length = 4
    return PASS


cdef void _accept(Batch *batch, Tables *tables, Inbound *scratch, uint64_t now) noexcept nogil:
    """Move the replay windows: runs of one SA share one hold of its lock."""
    cdef uint32_t index
    cdef Job *job
    cdef Packet *packet
    cdef Sa *locked = NULL
    cdef Sa *sa
    for index in range(scratch.jobs.count):
        job = &scratch.jobs.jobs[index]
        packet = &batch.packets[job.packet]
        if unlikely(not job.ok, 0):
            packet.verdict = DROP_INTEGRITY
            continue
        sa = &tables.sas[packet.sa]
        if sa != locked:
            if locked != NULL:
                replay_unlock(&locked.replay)
            replay_lock(&sa.replay, tables.worker_index + 1)
            tables.sa_counters[packet.sa].last_used = now
            locked = sa
        packet.verdict = replay_accept(&sa.replay, packet.sequence)
    if locked != NULL:
        replay_unlock(&locked.replay)


cdef inline uint8_t _merge_ecn(Packet *packet, uint8_t outer_tos) noexcept nogil:
    """RFC 6040 4.2: what the outer ECN field says enters the inner one. PASS or DROP_ECN."""
    cdef uint8_t outer = outer_tos & ECN_MASK
    cdef uint8_t inner = packet.tos & ECN_MASK
    cdef uint16_t before
    if outer == inner or (outer != ECN_CE and outer != ECN_ECT1):
        return PASS
    if inner == ECN_NOT_ECT:
        # CE over a transport that cannot see it is a drop; ECT(1) over it is not.
        return DROP_ECN if outer == ECN_CE else PASS
    if outer == ECN_ECT1 and inner == ECN_CE:
        return PASS
    packet.tos = (packet.tos & ~ECN_MASK) | outer
    if packet.family == 4:
        before = raw16(packet.data)
        packet.data[1] = packet.tos
        put_raw16(packet.data + 10, ~fold(<uint64_t><uint16_t>~raw16(packet.data + 10)
                                          + <uint16_t>~before + raw16(packet.data)))
    else:
        packet.data[1] = (packet.data[1] & 0x0F) | <uint8_t>(packet.tos << 4)
    return PASS


cdef inline uint8_t _strip_one(Packet *packet, const Job *job, const SaHot *hot) noexcept nogil:
    """Trailer checks, then `data` at the inner header and that header parsed."""
    cdef const uint8_t *end = job.icv
    cdef uint32_t skipped = 0
    cdef uint8_t next_header = (end - 1)[0]
    cdef uint32_t padding = (end - 2)[0]
    cdef uint32_t text_length = job.text_length
    cdef uint8_t *text = job.text
    cdef uint8_t outer_tos = packet.tos
    cdef uint8_t verdict
    if hot.iv_length == 16:
        text += 16
        text_length -= 16
    if unlikely(padding + ESP_TRAILER > text_length, 0):
        return DROP_PADDING
    if unlikely(padding != 0 and memcmp(end - 2 - padding, esp_pad_bytes, padding) != 0, 0):
        return DROP_PADDING
    if unlikely(next_header != PROTOCOL_IPIP and next_header != PROTOCOL_IPV6, 0):
        return DROP_DUMMY if next_header == PROTOCOL_NONE else DROP_NEXT_HEADER
    skipped = <uint32_t>(text - packet.data)
    packet.headroom += <uint16_t>skipped
    packet.tailroom += <uint16_t>(packet.length - skipped - (text_length - ESP_TRAILER - padding))
    packet.data = text
    packet.length = text_length - ESP_TRAILER - padding
    # What receive knew of checksums was about the outer packet.
    packet.flags = 0
    verdict = parse_ip(packet)
    if unlikely(verdict != PASS or (packet.family == 4) != (next_header == PROTOCOL_IPIP), 0):
        return DROP_INNER_MALFORMED
    return _merge_ecn(packet, outer_tos)


cdef void _strip(Batch *batch, Tables *tables, Inbound *scratch) noexcept nogil:
    """Strip every packet that was accepted."""
    cdef uint32_t index
    cdef Job *job
    cdef Packet *packet
    cdef SaHot *hot
    for index in range(scratch.jobs.count):
        job = &scratch.jobs.jobs[index]
        packet = &batch.packets[job.packet]
        if packet.verdict != PASS:
            continue
        hot = &tables.sas[packet.sa].hot
        packet.verdict = _strip_one(packet, job, hot)
        if hot.flags & SA_MSS_CLAMP and packet.verdict == PASS and packet.protocol == PROTOCOL_TCP:
            clamp_mss(packet, hot.inner_mtu)


cdef inline bint _selected(const Tables *tables, const Sa *sa, const Packet *packet,
                           const Addresses *addresses) noexcept nogil:
    """RFC 4301 5.2 step 4: some selector of the SA takes the decrypted packet."""
    cdef uint32_t index
    for index in range(sa.inbound.selector_count):
        if selector_matches(&tables.selectors[sa.inbound.first_selector + index], packet, addresses):
            return True
    return False


cdef void _select_and_route(Batch *batch, Tables *tables, Inbound *scratch) noexcept nogil:
    """Selectors, route and TTL; packets of one flow on one SA follow their leader."""
    cdef Lpm routes
    cdef Addresses addresses
    cdef uint32_t index
    cdef uint32_t last_sa = NO_INDEX
    cdef int last = -1
    cdef Packet *packet
    cdef Packet *leader
    cdef const Sa *sa
    cdef SaCounters *counters
    lpm_open(&routes, tables, &tables.header.routes)
    find_leaders(batch, &scratch.leaders)
    if scratch.leaders.count > 4:
        for index in range(scratch.leaders.count):
            packet = &batch.packets[scratch.leaders.packets[index]]
            read_addresses(packet, &addresses)
            lpm_prefetch(&routes, packet.family, addresses.destination_high, addresses.destination_low)
            prefetch(&tables.selectors[tables.sas[packet.sa].inbound.first_selector])
    for index in range(batch.count):
        packet = &batch.packets[index]
        if packet.verdict != PASS:
            continue
        sa = &tables.sas[packet.sa]
        if last == <int>scratch.leaders.leader[index] and packet.sa == last_sa:
            leader = &batch.packets[last]
            packet.adjacency = leader.adjacency
        else:
            last = <int>scratch.leaders.leader[index]
            last_sa = packet.sa
            read_addresses(packet, &addresses)
            if not _selected(tables, sa, packet, &addresses):
                packet.verdict = DROP_INNER_SELECTORS
                last_sa = NO_INDEX
                continue
            packet.adjacency = lpm_find(&routes, packet.family, addresses.destination_high,
                                        addresses.destination_low)
            # The leader itself may be another SA's packet; what follows copies from there.
            batch.packets[last].adjacency = packet.adjacency
        if packet.adjacency == NO_INDEX:
            packet.verdict = TO_KERNEL
        elif tables.adjacencies[packet.adjacency].link_length:
            # Forwarded by us, not by the kernel: one hop less (RFC 4301 5.1.2.1).
            if unlikely((packet.data[8] if packet.family == 4 else packet.data[7]) <= 1, 0):
                packet.verdict = DROP_TTL
                continue
            decrement_ttl(packet)
        packet.inner_bytes = packet.length
        counters = &tables.sa_counters[packet.sa]
        counters.packets += 1
        counters.bytes += packet.length
