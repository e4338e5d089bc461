"""Inbound ESP and AH, tunnel and transport mode: 1 find SA 2 admit 3 open 4 finish 5 check selectors and route.

    find SA    outer header -> ESP header (through UDP where there is one) or AH -> SPI -> SA
    admit      addresses, encapsulation, lengths, replay check; the engine's job
    open       the engine checks and deciphers the whole batch in place; of AH (ah.pyx) it checks the ICV
    finish     replay window moved, only now that the ICV has passed (RFC 4303 3.4.3); where the packet came from noted,
               if not from the peer as we know it (follow.pyx); padding and next header checked; `data` moved to the
               inner packet, which is parsed; ECN (RFC 6040). Transport mode: the IP header moves to the right, up to
               its payload; checksums mended behind NAT (RFC 3948 3.1.2)
    selectors  the inner packet must be what the SA is for (RFC 4301 5.2), then it is routed

Of an SA bundle, AH around ESP (RFC 2401 4.3), `finish` takes off the AH and sets the packet aside; then those aside
take the whole walk again, as ESP. Neither SA takes anything without the other (DROP_BUNDLE).

Fragments and ESP behind extension headers other than those `wire` walks end in named drops.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memmove, memset

from ext.ah cimport AH_HEADER, Ah, AhHeaders, ah_prepare, ah_strip, ah_unwrap, speaks_ah
from ext.counters cimport (
    BYPASSED, DROP_AH_TRUNCATED, DROP_BUNDLE, DROP_CLEARTEXT, DROP_DUMMY, DROP_ECN, DROP_ENCAP_MISMATCH,
    DROP_ESP_MISALIGNED, DROP_ESP_TRUNCATED, DROP_FRAGMENT, DROP_INNER_MALFORMED, DROP_INNER_SELECTORS,
    DROP_INTEGRITY, DROP_NAT_KEEPALIVE, DROP_NEXT_HEADER, DROP_NO_SA, DROP_NOT_ESP, DROP_PADDING, DROP_TOO_BIG,
    DROP_TTL, DROP_WRONG_ADDRESS, PASS, TO_KERNEL,
)
from ext.crypto cimport Job, put_job, suite_is_aead, touch_key
from ext.follow cimport Source, Sources, comes_from_peer, note_source, read_source
from ext.packet cimport (
    BATCH_MAX, NO_INDEX, NO_LEADER, NO_PORT, PACKET_FRAGMENT, PACKET_NO_PORTS, PACKET_UDP_ENCAP, PACKET_WAITS, Packet,
)
from ext.policy cimport (
    FEW, Addresses, Lpm, lpm_find, lpm_open, lpm_touch, plain_matches, policy_of, read_addresses, selector_matches,
)
from ext.replay cimport extend_sequence, replay_accept, replay_check, replay_lock, replay_unlock
from ext.sa cimport (
    ACTION_BYPASS, BUNDLE_OUTER, MEND_KNOWN, MEND_SUM, OWN_PORT, REPLAY_BLOCKS, ROUTE_KERNEL, SA_ENCAP, SA_ESN,
    SA_MSS_CLAMP, SHOWN_PORT, Adjacency, Policy, Replay, Sa, spi_find, spi_touch,
)
from ext.wire cimport (
    ETHERNET_HEADER, PROTOCOL_AH, PROTOCOL_ESP, PROTOCOL_IPIP, PROTOCOL_IPV6, PROTOCOL_NONE, PROTOCOL_TCP,
    PROTOCOL_UDP, Flow, bswap32, bswap64, clamp_mss, complete_checksum, decrement_ttl, flow_begin, fold, likely,
    load16, load32, load64, parse_next, put_raw16, put_raw32, put_raw64, raw16, raw32, raw64, restamp_ipv4, store16,
    store32, store64, sum_bytes, swap_port, touch, unlikely,
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
    /* Of the eight bytes before the trailer: which are padding, and what they have to be, where n of them are. */
    static const uint64_t esp_pad_mask[8] = {
        0, ~0ULL << 56, ~0ULL << 48, ~0ULL << 40, ~0ULL << 32, ~0ULL << 24, ~0ULL << 16, ~0ULL << 8,
    };
    #define PAD 0x0807060504030201ULL
    static const uint64_t esp_pad_word[8] = {
        0, PAD << 56, PAD << 48, PAD << 40, PAD << 32, PAD << 24, PAD << 16, PAD << 8,
    };
    #undef PAD
    """
    const uint8_t esp_pad_bytes[256]
    const uint64_t esp_pad_mask[8]
    const uint64_t esp_pad_word[8]

cdef enum:
    ESP_HEADER = 8
    ESP_TRAILER = 2
    UDP_HEADER = 8
    NOT_ESP = 0x1000000         # Lock.overhead of AH: its packets need no branch of their own among ESP's
    ECN_MASK = 3
    ECN_NOT_ECT = 0
    ECN_ECT1 = 1
    ECN_CE = 3


cdef void inbound(Batch *batch, Tables *tables, Engine *engine, Inbound *scratch, uint64_t now) noexcept nogil:
    """Take a batch of outer IP packets, parsed with `scratch.leaders`, to inner packets or to a verdict.

    Afterwards a packet that PASSes has `data` at its inner IP header and an adjacency; one that is TO_KERNEL
    is as complete, and the kernel has to find its way.
    """
    scratch.bundled.count = 0
    _walk(batch, tables, engine, scratch, now)
    if unlikely(scratch.bundled.count > 0, 0):
        _open_bundled(batch, tables, engine, scratch, now)


cdef inline void _walk(Batch *batch, Tables *tables, Engine *engine, Inbound *scratch, uint64_t now) noexcept nogil:
    """All steps once, for the packets that have a leader."""
    find_sas(batch, tables, engine, &scratch.leaders)
    admit(batch, tables, scratch)
    engine.open(engine, &scratch.jobs)
    finish(batch, tables, scratch, now)
    select_and_route(batch, tables, scratch)


cdef void _open_bundled(Batch *batch, Tables *tables, Engine *engine, Inbound *scratch, uint64_t now) noexcept nogil:
    """The walk again for ESP whose AH is off; the leaders of all other packets stay what they are."""
    cdef Leaders others = scratch.leaders
    cdef uint32_t at
    cdef uint32_t index
    memset(scratch.leaders.leader, NO_LEADER, batch.count)
    scratch.leaders.count = scratch.bundled.count
    for at in range(scratch.bundled.count):
        index = scratch.bundled.packets[at]
        scratch.leaders.packets[at] = <uint8_t>index
        scratch.leaders.leader[index] = <uint8_t>index
    scratch.bundled.opening = True
    _walk(batch, tables, engine, scratch, now)
    scratch.bundled.opening = False
    for at in range(scratch.bundled.count):
        index = scratch.bundled.packets[at]
        others.leader[index] = scratch.leaders.leader[index]
    scratch.leaders = others


# ---- In two parts: `inbound` for a batch whose turn has not come ------------------------------------------------


cdef void inbound_ahead(Batch *batch, Tables *tables, Engine *engine, Inbound *scratch, uint32_t ports) noexcept nogil:
    """`inbound`, but that it changes nothing outside the batch; `scratch.unsettled` is set.

    Packets that a port with an index below `ports` will take get their link header here, and `leaves_by`: who settles
    the batch need not touch them again. Any worker may do this, for batches in any order.
    """
    cdef uint32_t at
    cdef Packet *packet
    cdef const Adjacency *adjacency
    for at in range(batch.count):
        batch.packets[at].authentic = 0
        batch.packets[at].leaves_by = NO_PORT
    scratch.elsewhere.count = 0
    scratch.waiting = 0
    inbound(batch, tables, engine, scratch, 0)
    for at in range(scratch.jobs.count):
        packet = &batch.packets[scratch.jobs.jobs[at].packet]
        packet.authentic = scratch.jobs.jobs[at].ok != 0
        if unlikely(packet.verdict != PASS or packet.adjacency == NO_INDEX, 0):
            continue
        adjacency = &tables.adjacencies[packet.adjacency]
        if unlikely(not adjacency.valid or adjacency.port >= ports, 0):
            continue
        packet.leaves_by = <uint8_t>adjacency.port
        if adjacency.link_length:
            packet.data -= ETHERNET_HEADER
            packet.length += ETHERNET_HEADER
            memcpy(packet.data, adjacency.link_header, ETHERNET_HEADER)


cdef void inbound_settle(Batch *batch, Tables *tables, const Sources *elsewhere, uint64_t now) noexcept nogil:
    """The rest of `inbound`, for batches in the order in which they came: replay windows, counters and moved peers."""
    cdef uint32_t at
    cdef uint32_t sa = NO_INDEX
    cdef uint32_t moved = 0
    cdef uint8_t verdict
    cdef uint64_t packets = 0
    cdef uint64_t bytes_ = 0
    cdef Replay *replay = NULL
    cdef Packet *packet
    for at in range(batch.count):
        packet = &batch.packets[at]
        if unlikely(not packet.authentic, 0):
            continue
        if packet.sa != sa:
            if replay != NULL:
                replay_unlock(replay)
                tables.sa_counters[sa].packets += packets
                tables.sa_counters[sa].bytes += bytes_
                packets = bytes_ = 0
            sa = packet.sa
            replay = &tables.sas[sa].replay
            replay_lock(replay, tables.worker_index + 1)
            tables.sa_counters[sa].last_used = now
            while moved < elsewhere.count and elsewhere.each[moved].packet < at:
                moved += 1
            if moved < elsewhere.count and elsewhere.each[moved].packet == at and packet.sequence > replay.top:
                note_source(&elsewhere.each[moved], &tables.sas[sa], tables)
        verdict = replay_accept(replay, packet.sequence)
        if unlikely(verdict != PASS, 0):
            packet.verdict = verdict
            packet.leaves_by = NO_PORT
        elif likely(packet.verdict == PASS or packet.verdict == TO_KERNEL, 1):
            packets += 1
            bytes_ += packet.inner_bytes
    if replay != NULL:
        replay_unlock(replay)
        tables.sa_counters[sa].packets += packets
        tables.sa_counters[sa].bytes += bytes_


cdef void inbound_late(Batch *batch, Tables *tables, Engine *engine, Inbound *scratch, Leaders *leaders,
                       uint64_t now) noexcept nogil:
    """`inbound` for what waits in a batch that is settled: two windows move for one packet, so nobody does it ahead."""
    cdef uint32_t index
    cdef Packet *packet
    scratch.leaders.count = 0
    for index in range(batch.count):
        packet = &batch.packets[index]
        scratch.leaders.leader[index] = NO_LEADER
        if packet.flags & PACKET_WAITS:
            packet.flags &= <uint8_t>~PACKET_WAITS
            scratch.leaders.leader[index] = <uint8_t>index
            scratch.leaders.packets[scratch.leaders.count] = <uint8_t>index
            scratch.leaders.count += 1
    inbound(batch, tables, engine, scratch, now)
    for index in range(batch.count):
        if scratch.leaders.leader[index] != NO_LEADER:
            leaders.leader[index] = scratch.leaders.leader[index]


# ---- The steps ------------------------------------------------------------------------------------------------


cdef inline uint8_t _find_esp(Packet *packet) noexcept nogil:
    """Leave `transport` at the ESP header or AH; PASS or why there is none."""
    cdef uint32_t rest = packet.length - packet.transport
    cdef const uint8_t *transport = packet.data + packet.transport
    if unlikely(packet.flags & PACKET_FRAGMENT, 0):
        return DROP_FRAGMENT
    if packet.protocol == PROTOCOL_ESP:
        return DROP_ESP_TRUNCATED if rest < ESP_HEADER else PASS
    if packet.protocol == PROTOCOL_AH:
        return DROP_AH_TRUNCATED if rest < AH_HEADER else PASS
    if packet.protocol != PROTOCOL_UDP or rest < UDP_HEADER:
        return DROP_NOT_ESP
    if load16(transport + 4) < UDP_HEADER or load16(transport + 4) > rest:
        return DROP_NOT_ESP
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


cdef inline bint _is_bare(const Packet *packet) noexcept nogil:
    """ESP or AH right behind the IP header, where the parser sees the SPI; the two numbers differ in their last bit."""
    return packet.protocol | 1 == PROTOCOL_AH


cdef inline const uint8_t *_spi(const Packet *packet) noexcept nogil:
    """The SPI, which the sequence number follows, of a packet that has one."""
    return packet.data + packet.transport + (4 if packet.protocol == PROTOCOL_AH else 0)


cdef inline bint _follows(const Packet *packet, const Leaders *leaders, uint32_t index) noexcept nogil:
    """The packet before it settled its SA: same addresses, ESP or AH, same SPI. UDP hides its SPI from the parser."""
    return leaders.leader[index] != index and _is_bare(packet)


cdef void _judge_clear(Batch *batch, uint32_t index, const Tables *tables, const Leaders *leaders) noexcept nogil:
    """Not ESP, or UDP that only looked like it: steering sends these up when they come from a protected network."""
    cdef Packet *packet = &batch.packets[index]
    cdef const Policy *policy = policy_of(packet, &batch.packets[leaders.leader[index]], tables, True)
    if policy == NULL:
        return
    if policy.action == ACTION_BYPASS:
        packet.verdict = BYPASSED
    elif packet.verdict != DROP_FRAGMENT:
        # A fragment that may not pass keeps its name: it may be one of ESP in UDP.
        packet.verdict = DROP_CLEARTEXT


cdef inline uint32_t _begin_runs(const Batch *batch, const Leaders *leaders, uint8_t *first) noexcept nogil:
    """Indices of leaders, and of every packet that must find its SA by itself (see `_follows`); returns how many."""
    cdef uint32_t count = 0
    cdef uint32_t place
    cdef uint32_t index
    cdef uint32_t end
    for place in range(leaders.count):
        index = leaders.packets[place]
        first[count] = <uint8_t>index
        count += 1
        if likely(_is_bare(&batch.packets[index]), 1):
            continue
        end = leaders.packets[place + 1] if place + 1 < leaders.count else batch.count
        for index in range(index + 1, end):
            if leaders.leader[index] != NO_LEADER:
                first[count] = <uint8_t>index
                count += 1
    return count


cdef void find_sas(Batch *batch, Tables *tables, const Engine *engine, const Leaders *leaders) noexcept nogil:
    """SPI -> SA for leaders and for whatever came in UDP; with many flows, their SAs' lines are fetched."""
    cdef uint32_t at
    cdef uint32_t index
    cdef uint32_t spi
    cdef uint8_t first[BATCH_MAX]
    cdef uint32_t count = _begin_runs(batch, leaders, first)
    cdef Packet *packet
    for at in range(count):
        index = first[at]
        packet = &batch.packets[index]
        packet.verdict = _find_esp(packet)
        if unlikely(packet.verdict != PASS, 0):
            # UDP with next to nothing in it is no ESP either, nor are fragments of other protocols.
            if packet.verdict == DROP_NOT_ESP or (
                    not _is_bare(packet)
                    and (packet.verdict == DROP_ESP_TRUNCATED or packet.verdict == DROP_FRAGMENT)):
                _judge_clear(batch, index, tables, leaders)
        if packet.verdict == PASS and leaders.count > FEW:
            spi_touch(tables, load32(_spi(packet)))
    for at in range(count):
        index = first[at]
        packet = &batch.packets[index]
        if packet.verdict != PASS:
            continue
        spi = load32(_spi(packet))
        packet.sa = spi_find(tables, spi)
        if unlikely(packet.sa == NO_INDEX, 0):
            packet.verdict = DROP_NO_SA
            if packet.flags & PACKET_UDP_ENCAP:
                _judge_clear(batch, index, tables, leaders)
    if leaders.count > FEW:
        _touch_sas(batch, tables, engine, first, count)


cdef void _touch_sas(const Batch *batch, const Tables *tables, const Engine *engine, const uint8_t *first,
                     uint32_t count) noexcept nogil:
    """Fetch all that the walk will need of the SAs of these packets, while nothing waits for it."""
    cdef uint32_t at
    cdef const Packet *packet
    cdef const Sa *sa
    for at in range(count):
        packet = &batch.packets[first[at]]
        if packet.sa != NO_INDEX:
            sa = &tables.sas[packet.sa]
            touch(&sa.hot)
            touch(&sa.inbound)
            touch(&sa.replay)
            touch(&sa.replay.blocks[(load32(_spi(packet) + 4) >> 6) & (REPLAY_BLOCKS - 1)])
            touch(&tables.sa_counters[packet.sa])
    for at in range(count):
        packet = &batch.packets[first[at]]
        if packet.sa != NO_INDEX:
            sa = &tables.sas[packet.sa]
            touch_key(engine, &sa.key, sa.hot.suite, True)


cdef inline bint _addresses_match(const Packet *packet, const Sa *sa) noexcept nogil:
    """The outer destination is the SA's own, in its family. The source may differ: a peer behind NAT moves."""
    if packet.family == 4:
        return load32(packet.data + 16) == sa.inbound.local_low and sa.hot.header[0] >> 4 == 4
    return (load64(packet.data + 24) == sa.inbound.local_high and load64(packet.data + 32) == sa.inbound.local_low
            and sa.hot.header[0] >> 4 == 6)


cdef inline uint8_t _suits(const Packet *packet, const Sa *sa) noexcept nogil:
    """What holds for a whole run: protocol, outer destination and encapsulation are the SA's."""
    if speaks_ah(&sa.hot) != (packet.protocol == PROTOCOL_AH):
        return DROP_NO_SA       # RFC 4301 4.1: protocol and SPI together name an SA
    if not _addresses_match(packet, sa):
        return DROP_WRONG_ADDRESS
    if (sa.hot.flags & SA_ENCAP != 0) != (packet.flags & PACKET_UDP_ENCAP != 0):
        return DROP_ENCAP_MISMATCH
    return PASS


cdef uint8_t _suits_bundle(const Sa *sa, const Inbound *scratch, uint32_t index) noexcept nogil:
    """ESP of a bundle comes by its own AH and never bare; and what comes by the AH of a bundle is of that bundle."""
    if scratch.bundled.opening:
        return PASS if sa.replay.bundle == scratch.bundled.under[index] + 1 else DROP_BUNDLE
    return PASS if sa.replay.bundle == <uint32_t>BUNDLE_OUTER and not scratch.unsettled else DROP_BUNDLE


cdef void _let_wait(Packet *packet, const Sa *sa, Inbound *scratch) noexcept nogil:
    """AH of a bundle in a batch that may not be settled yet: `inbound_late` will see to it."""
    if sa.replay.bundle == <uint32_t>BUNDLE_OUTER:
        packet.flags |= PACKET_WAITS
        scratch.waiting += 1


cdef struct Lock:               # what all packets of one SA have in common, taken once per run
    Sa *sa
    uint64_t top                # of the replay window, as this batch found it
    uint32_t window
    uint32_t overhead           # ESP header, IV and ICV; of AH more than any packet has
    uint32_t align_mask
    uint32_t iv_length
    uint32_t salt
    uint8_t suite
    bint ah                     # AH, not ESP
    bint plain                  # AEAD without ESN: the way most packets go


cdef void _take(Sa *sa, bint ah, Lock *lock) noexcept nogil:
    """Gather an SA's constants."""
    lock.sa = sa
    lock.top = sa.replay.top
    lock.window = sa.replay.window
    lock.ah = ah
    lock.overhead = <uint32_t>NOT_ESP if lock.ah else ESP_HEADER + sa.hot.iv_length + sa.hot.icv_length
    lock.align_mask = sa.hot.align - 1
    lock.iv_length = sa.hot.iv_length
    lock.salt = raw32(sa.hot.salt)
    lock.suite = sa.hot.suite
    lock.plain = suite_is_aead(sa.hot.suite) and sa.hot.iv_length == 8 and not sa.hot.flags & SA_ESN


cdef void admit(Batch *batch, Tables *tables, Inbound *scratch) noexcept nogil:
    """All that can be checked before the cipher runs, and the engine's job for what passes."""
    cdef uint32_t index
    cdef uint32_t count = 0
    cdef uint32_t sa = NO_INDEX
    cdef uint8_t verdict = DROP_NO_SA
    cdef uint8_t verdict_of_packet
    cdef Packet *packet
    cdef Lock lock
    memset(&lock, 0, sizeof(Lock))
    for index in range(batch.count):
        packet = &batch.packets[index]
        if unlikely(scratch.leaders.leader[index] == NO_LEADER, 0):
            continue
        if not _follows(packet, &scratch.leaders, index):
            verdict = packet.verdict
            sa = packet.sa
            if verdict == PASS:
                verdict = _suits(packet, &tables.sas[sa])
                _take(&tables.sas[sa], packet.protocol == PROTOCOL_AH, &lock)
                if unlikely((tables.sas[sa].replay.bundle != 0 or scratch.bundled.opening) and verdict == PASS, 0):
                    verdict = _suits_bundle(&tables.sas[sa], scratch, index)
        packet.sa = sa
        if unlikely(verdict != PASS, 0):
            packet.verdict = verdict
            if unlikely(verdict == DROP_BUNDLE and scratch.unsettled, 0):
                _let_wait(packet, &tables.sas[sa], scratch)
            continue
        verdict_of_packet = _prepare(packet, index, &lock, &scratch.jobs.jobs[count], &scratch.ah)
        packet.verdict = verdict_of_packet
        count += verdict_of_packet == PASS
    scratch.jobs.count = count


cdef inline uint8_t _prepare(Packet *packet, uint32_t index, const Lock *lock, Job *job, Ah *ah) noexcept nogil:
    """One packet's lengths and replay check, and its job."""
    cdef uint8_t *esp = packet.data + packet.transport
    cdef uint32_t rest = packet.length - packet.transport
    cdef uint32_t text_length = rest - lock.overhead
    cdef uint64_t spi_and_number
    cdef uint64_t sequence
    cdef uint8_t verdict
    if unlikely(rest < lock.overhead + ESP_TRAILER, 0):
        return ah_prepare(packet, index, lock.sa, &ah.headers[index], job) if lock.ah else DROP_ESP_TRUNCATED
    if unlikely(text_length & lock.align_mask, 0):
        return DROP_ESP_MISALIGNED
    spi_and_number = raw64(esp)
    sequence = bswap32(<uint32_t>(spi_and_number >> 32))
    job.key = &lock.sa.key
    if likely(lock.plain, 1):
        packet.sequence = sequence
        # Right of the window's top it is new for certain; finish() looks again in any case.
        if unlikely(sequence <= lock.top, 0):
            verdict = replay_check(&lock.sa.replay, sequence)
            if verdict != PASS:
                return verdict
        job.text = esp + ESP_HEADER + 8
        job.icv = esp + ESP_HEADER + 8 + text_length
        put_raw32(job.nonce, lock.salt)
        put_raw64(job.nonce + 4, raw64(esp + ESP_HEADER))
        put_raw64(job.aad, spi_and_number)
        put_job(job, text_length, index, lock.suite, 8)
        return PASS
    job.text_length = text_length
    job.suite = lock.suite
    job.packet = <uint8_t>index
    if lock.sa.hot.flags & SA_ESN:
        sequence = extend_sequence(lock.sa.replay.top, lock.window, <uint32_t>sequence)
    packet.sequence = sequence
    verdict = replay_check(&lock.sa.replay, sequence)
    if unlikely(verdict != PASS, 0):
        return verdict
    job.esp = esp
    job.text = esp + ESP_HEADER + lock.iv_length
    job.icv = job.text + text_length
    if lock.iv_length <= 8:
        # Without an IV in the packet, it is the number (RFC 8750 4); NULL has no use for either.
        put_raw32(job.nonce, lock.salt)
        put_raw64(job.nonce + 4, raw64(esp + ESP_HEADER) if lock.iv_length else bswap64(sequence))
    else:
        job.text -= lock.iv_length
        job.text_length += lock.iv_length
    if suite_is_aead(lock.suite):
        memcpy(job.aad, esp, 4)
        if lock.sa.hot.flags & SA_ESN:
            store64(job.aad + 4, sequence)
            job.aad_length = 12
        else:
            store32(job.aad + 4, <uint32_t>sequence)
            job.aad_length = 8
        return PASS
    job.aad_length = 0
    if lock.sa.hot.flags & SA_ESN:
        store32(job.aad, <uint32_t>(sequence >> 32))
        job.aad_length = 4
    return PASS


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


cdef inline uint8_t _check_padding(const uint8_t *end, uint32_t padding, uint32_t text_length) noexcept nogil:
    """Pad bytes count up from 1 (RFC 4303 2.4), and are the text's. PASS or DROP_PADDING."""
    if unlikely(padding + ESP_TRAILER > text_length, 0):
        return DROP_PADDING
    if likely(padding < 8, 1):
        if unlikely(raw64(end - 10) & esp_pad_mask[padding] != esp_pad_word[padding], 0):
            return DROP_PADDING
    elif memcmp(end - 2 - padding, esp_pad_bytes, padding) != 0:
        return DROP_PADDING
    return PASS


cdef inline uint8_t _strip_one(Packet *packet, const Job *job, uint32_t iv_block) noexcept nogil:
    """Trailer checks, then `data` at the inner packet. `iv_block`: bytes of IV that Job.text begins with."""
    cdef const uint8_t *end = job.icv
    cdef uint8_t *text = job.text + iv_block
    cdef uint32_t text_length = job.text_length - iv_block
    cdef uint32_t trailer = raw16(end - 2)
    cdef uint32_t padding = trailer & 0xFF
    cdef uint32_t next_header = trailer >> 8
    if unlikely(_check_padding(end, padding, text_length) != PASS, 0):
        return DROP_PADDING
    if unlikely(next_header != PROTOCOL_IPIP and next_header != PROTOCOL_IPV6, 0):
        return DROP_DUMMY if next_header == PROTOCOL_NONE else DROP_NEXT_HEADER
    text_length -= ESP_TRAILER + padding
    packet.data = text
    packet.length = text_length
    # What receive knew of checksums was about the outer packet.
    packet.flags = 0
    return PASS if text[0] >> 4 == (4 if next_header == PROTOCOL_IPIP else 6) else DROP_INNER_MALFORMED


cdef uint32_t _next_header_at(const Packet *packet, uint32_t front) noexcept nogil:
    """Where the headers before ESP, `front` bytes, name what follows them."""
    cdef uint32_t at = 6
    cdef uint32_t offset = 40
    if packet.family == 4:
        return 9
    while offset < front:
        at = offset
        offset += (<uint32_t>packet.data[offset + 1] + 1) * 8
    return at


cdef uint8_t _strip_transport(Packet *packet, const Job *job, uint32_t iv_block) noexcept nogil:
    """Trailer checks, then the IP header goes up to its payload, with its length and protocol as they were."""
    cdef const uint8_t *end = job.icv
    cdef uint8_t *text = job.text + iv_block
    cdef uint32_t text_length = job.text_length - iv_block
    cdef uint32_t padding = end[-2]
    cdef uint32_t front = packet.transport - (UDP_HEADER if packet.flags & PACKET_UDP_ENCAP else 0)
    cdef uint8_t *header = text - front
    if _check_padding(end, padding, text_length) != PASS:
        return DROP_PADDING
    if end[-1] == PROTOCOL_NONE:
        return DROP_DUMMY
    packet.data[_next_header_at(packet, front)] = end[-1]
    memmove(header, packet.data, front)
    packet.data = header
    packet.length = front + text_length - ESP_TRAILER - padding
    if packet.family == 4:
        store16(header + 2, <uint16_t>packet.length)
        restamp_ipv4(header)
    else:
        store16(header + 4, <uint16_t>(packet.length - 40))
    packet.flags = 0
    return PASS


cdef uint8_t _check_payload(Packet *packet, const Sa *sa) noexcept nogil:
    """What transport mode brought, once parsed: no fragment, and a checksum that NAT cannot have broken."""
    cdef uint8_t *checksum
    cdef const uint8_t *header = packet.data
    cdef uint64_t total
    cdef uint16_t mended
    cdef uint32_t at
    if packet.flags & PACKET_FRAGMENT:
        return DROP_INNER_MALFORMED     # RFC 4303 3.1.1
    if unlikely(raw16(sa.hot.header + <int>OWN_PORT) != 0, 0) and packet.family == 4:
        # Of several peers behind one NAT: each is seen by a port of its own. What has not the SA's is not the SA's.
        if not swap_port(packet.protocol, packet.data + packet.transport, packet.length - packet.transport, 0,
                         raw16(sa.hot.header + <int>OWN_PORT), raw16(sa.hot.header + <int>SHOWN_PORT)):
            return DROP_INNER_SELECTORS
        packet.source_port = load16(sa.hot.header + <int>SHOWN_PORT)
    if not sa.hot.flags & SA_ENCAP or (packet.protocol != PROTOCOL_TCP and packet.protocol != PROTOCOL_UDP):
        return PASS
    at = 16 if packet.protocol == PROTOCOL_TCP else 6
    if packet.length < packet.transport + at + 2:
        return PASS                     # cut short: the stack's to refuse
    checksum = packet.data + packet.transport + at
    if packet.protocol == PROTOCOL_UDP and packet.family == 4 and raw16(checksum) == 0:
        return PASS                     # RFC 768: there is none
    if not sa.hot.header[<int>MEND_KNOWN]:
        complete_checksum(packet)       # RFC 3948 3.1.2 b: the ICV has vouched for the payload
        return PASS
    # RFC 3948 3.1.2 a, with RFC 1624: without the addresses that the sender summed, with those that the packet has.
    total = <uint64_t><uint16_t>~raw16(checksum) + raw16(sa.hot.header + MEND_SUM)
    if packet.family == 4:
        total += <uint64_t>raw32(header + 12) + raw32(header + 16)
    else:
        total += sum_bytes(header + 8, 32)
    mended = ~fold(total)
    put_raw16(checksum, 0xFFFF if mended == 0 and packet.protocol == PROTOCOL_UDP else mended)
    return PASS


cdef uint8_t _set_aside(const Packet *packet, uint32_t index, Tables *tables, Inbound *scratch) noexcept nogil:
    """A packet whose AH of a bundle is off: until its ESP is, too, it is dropped."""
    if packet.protocol == PROTOCOL_ESP:
        scratch.bundled.packets[scratch.bundled.count] = <uint8_t>index
        scratch.bundled.under[index] = packet.sa
        scratch.bundled.count += 1
        tables.sa_counters[packet.sa].packets += 1
        tables.sa_counters[packet.sa].bytes += packet.length
    return DROP_BUNDLE


cdef void _from_elsewhere(const Packet *packet, uint32_t index, Tables *tables, Inbound *scratch) noexcept nogil:
    """Note the source of a packet that has passed, or let `inbound_settle` do so."""
    cdef Source source
    cdef Source *place = &scratch.elsewhere.each[scratch.elsewhere.count] if scratch.unsettled else &source
    read_source(packet, place)
    place.packet = <uint8_t>index
    if scratch.unsettled:
        scratch.elsewhere.count += 1
    else:
        note_source(place, &tables.sas[packet.sa], tables)


cdef struct Finish:             # what the jobs of one SA have in common, taken once per run
    Replay *replay              # locked; NULL: there is no run yet
    uint32_t iv_block           # bytes of IV that Job.text begins with
    bint tunnel                 # of ESP: `_strip_one` does it
    bint transport
    bint more                   # something is to be done once the inner packet is parsed, besides ECN
    uint32_t clamp_mtu          # 0: TCP's MSS stays


cdef void _begin_run(const Packet *packet, uint32_t index, Tables *tables, Inbound *scratch, uint64_t now,
                     Finish *run) noexcept nogil:
    """The window of the packet's SA is locked, and the SA used now."""
    cdef const Sa *sa = &tables.sas[packet.sa]
    if run.replay != NULL:
        replay_unlock(run.replay)
    run.replay = &scratch.blank if scratch.unsettled else &tables.sas[packet.sa].replay
    replay_lock(run.replay, tables.worker_index + 1)
    if not scratch.unsettled:
        tables.sa_counters[packet.sa].last_used = now
    # What is right of the top will be accepted, for certain: nobody else moves the window meanwhile.
    if (sa.hot.flags & SA_ENCAP and (packet.sequence > run.replay.top or scratch.unsettled)
            and unlikely(not comes_from_peer(packet, &sa.hot), 0)):
        _from_elsewhere(packet, index, tables, scratch)
    run.iv_block = 16 if sa.hot.iv_length == 16 else 0
    run.transport = sa.hot.header_length == 0
    run.tunnel = not run.transport and not speaks_ah(&sa.hot)
    run.clamp_mtu = sa.hot.inner_mtu if sa.hot.flags & SA_MSS_CLAMP else 0
    run.more = run.transport or run.clamp_mtu != 0


cdef void finish(Batch *batch, Tables *tables, Inbound *scratch, uint64_t now) noexcept nogil:
    """Move the replay windows, strip and parse what is new; leaders are now those of inner flows, within one SA.

    Runs of one SA share one hold of its window's lock.
    """
    cdef uint32_t at
    cdef uint32_t index
    cdef uint32_t count = scratch.jobs.count
    cdef uint32_t sa = NO_INDEX
    cdef uint8_t tos
    cdef uint8_t verdict
    cdef const Job *job
    cdef Packet *packet
    cdef Finish run
    cdef Flow flow
    memset(&run, 0, sizeof(Finish))
    flow_begin(&flow)
    scratch.leaders.count = 0
    for at in range(count):
        job = &scratch.jobs.jobs[at]
        index = job.packet
        packet = &batch.packets[index]
        if unlikely(not job.ok, 0):
            packet.verdict = DROP_INTEGRITY
            continue
        if unlikely(packet.sa != sa, 0):
            sa = packet.sa
            _begin_run(packet, index, tables, scratch, now, &run)
            flow_begin(&flow)
        verdict = replay_accept(run.replay, packet.sequence)
        if likely(verdict == PASS, 1):
            tos = packet.tos
            verdict = (_strip_one(packet, job, run.iv_block) if likely(run.tunnel, 1)
                       else _strip_other(packet, job, &run, &scratch.ah.headers[index]))
            if likely(verdict == PASS, 1):
                if unlikely(parse_next(batch, index, &scratch.leaders, &flow) != PASS, 0):
                    packet.verdict = DROP_INNER_MALFORMED
                    continue
                packet.inner_bytes = packet.length
                if unlikely(tos & ECN_MASK or run.more, 0):
                    verdict = _look_inside(packet, index, tos, tables, scratch, &run)
        packet.verdict = verdict
    if run.replay != NULL:
        replay_unlock(run.replay)


cdef uint8_t _strip_other(Packet *packet, const Job *job, const Finish *run, AhHeaders *headers) noexcept nogil:
    """AH, and ESP in transport mode."""
    if packet.protocol != PROTOCOL_AH:
        return _strip_transport(packet, job, run.iv_block)
    return ah_unwrap(packet, _next_header_at(packet, packet.transport), headers) if run.transport else ah_strip(packet)


cdef uint8_t _look_inside(Packet *packet, uint32_t index, uint8_t outer_tos, Tables *tables, Inbound *scratch,
                          const Finish *run) noexcept nogil:
    """ECN or, in transport mode, the payload; then TCP's MSS."""
    cdef const Sa *sa = &tables.sas[packet.sa]
    cdef uint8_t verdict
    if run.transport:
        verdict = _check_payload(packet, sa)
        if sa.replay.bundle == <uint32_t>BUNDLE_OUTER and verdict == PASS:
            verdict = _set_aside(packet, index, tables, scratch)
    else:
        verdict = _merge_ecn(packet, outer_tos)
    if run.clamp_mtu and packet.protocol == PROTOCOL_TCP:
        clamp_mss(packet, run.clamp_mtu)
    return verdict


cdef inline bint _selected(const Tables *tables, const Sa *sa, const Packet *packet,
                           const Addresses *addresses) noexcept nogil:
    """RFC 4301 5.2 step 4: some selector of the SA takes the decrypted packet."""
    cdef uint32_t index
    if plain_matches(&sa.inbound.plain, packet, addresses):
        return True
    if sa.inbound.selector_count == 1 and sa.inbound.plain.family:
        return False
    for index in range(sa.inbound.selector_count):
        if selector_matches(&tables.selectors[sa.inbound.first_selector + index], packet, addresses):
            return True
    return False


cdef void select_and_route(Batch *batch, Tables *tables, Inbound *scratch) noexcept nogil:
    """Selectors and route once per run of a flow, TTL and counters for every packet."""
    cdef Lpm routes
    cdef Addresses addresses
    cdef uint32_t at
    cdef uint32_t index
    cdef uint32_t adjacency = NO_INDEX
    cdef uint32_t sa = NO_INDEX
    cdef uint32_t leader = NO_LEADER
    cdef uint8_t verdict = DROP_INNER_SELECTORS
    cdef bint forwards = False
    cdef uint32_t mtu = 0
    cdef uint64_t packets = 0
    cdef uint64_t bytes_ = 0
    cdef Packet *packet
    lpm_open(&routes, tables, &tables.header.routes)
    if scratch.leaders.count > FEW:
        _touch_routes(batch, tables, scratch, &routes)
    for at in range(scratch.jobs.count):
        index = scratch.jobs.jobs[at].packet
        packet = &batch.packets[index]
        # An ECN drop may have hit the leader itself: the first packet of its run that still stands leads.
        if unlikely(packet.verdict != PASS, 0):
            continue
        if scratch.leaders.leader[index] != leader:
            leader = scratch.leaders.leader[index]
            if packets and not scratch.unsettled:
                tables.sa_counters[sa].packets += packets
                tables.sa_counters[sa].bytes += bytes_
            packets = 0
            bytes_ = 0
            # ... and has its ports from it: the parser read none but the leader's.
            packet.source_port = batch.packets[leader].source_port
            packet.destination_port = batch.packets[leader].destination_port
            packet.flags |= batch.packets[leader].flags & PACKET_NO_PORTS
            sa = packet.sa
            read_addresses(packet, &addresses)
            verdict = DROP_INNER_SELECTORS
            if _selected(tables, &tables.sas[sa], packet, &addresses):
                adjacency = lpm_find(&routes, packet.family, addresses.destination_high, addresses.destination_low)
                verdict = TO_KERNEL if adjacency == NO_INDEX or adjacency == ROUTE_KERNEL else PASS
                forwards = verdict == PASS and tables.adjacencies[adjacency].link_length != 0
                if forwards:
                    mtu = tables.adjacencies[adjacency].mtu
        packet.verdict = verdict
        packet.adjacency = adjacency
        if unlikely(verdict == DROP_INNER_SELECTORS, 0):
            continue
        if forwards:
            # Forwarded by us, not by the kernel: one hop less (RFC 4301 5.1.2.1).
            if unlikely((packet.data[8] if packet.family == 4 else packet.data[7]) <= 1, 0):
                packet.verdict = DROP_TTL
                continue
            if unlikely(packet.length > mtu, 0):
                packet.verdict = DROP_TOO_BIG
                continue
            decrement_ttl(packet)
        packets += 1
        bytes_ += packet.length
    if packets and not scratch.unsettled:
        tables.sa_counters[sa].packets += packets
        tables.sa_counters[sa].bytes += bytes_


cdef void _touch_routes(Batch *batch, Tables *tables, Inbound *scratch, const Lpm *routes) noexcept nogil:
    """Routes and selectors (those that the SA does not repeat) of many flows, fetched ahead."""
    cdef uint32_t index
    cdef Packet *packet
    cdef Addresses addresses
    for index in range(scratch.leaders.count):
        packet = &batch.packets[scratch.leaders.packets[index]]
        read_addresses(packet, &addresses)
        lpm_touch(routes, packet.family, addresses.destination_high, addresses.destination_low)
        if tables.sas[packet.sa].inbound.plain.family == 0:
            touch(&tables.selectors[tables.sas[packet.sa].inbound.first_selector])
