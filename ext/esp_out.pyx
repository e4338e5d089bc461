"""Outbound ESP and AH, tunnel and transport mode: 1 look up 2 admit 3 number 4 build 5 seal 6 account.

    lookup_policies   (policy.pyx) policy -> SA
    touch_sas         with many flows: their SAs' lines are fetched before anybody waits for them
    admit             TTL, size against the tunnel's MTU, room in the frame; leaders' SAs
                      handed to their followers
    number            one atomic add per SA and batch; a number is never given out twice (RFC 4303 3.3.3)
    build             trailer behind, ESP header, UDP and outer IP before the inner packet, where it lies; transport
                      mode: the packet's own IP header moves to the left, and ESP goes between (RFC 4303 3.1.1). Or AH
                      (ah.pyx)
    seal              the engine enciphers the whole batch, or hashes it
    account           per-SA counters, one update per SA
    surround          packets of an SA bundle: AH around their ESP, by number, build, seal and account once more

Numbers are taken after every check that can refuse a packet, so none is wasted on a drop. The IV is the
64-bit number XOR a constant of the SA: unique by construction (RFC 4106 3.1). What is too big and may be fragmented
is loop.pyx's to cut (fragment.pyx).
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memmove, memset

from ext.ah cimport AH_MOST, AhHeaders, ah_length, ah_restore, ah_write, speaks_ah
from ext.counters cimport (
    DROP_BUNDLE, DROP_CRYPTO, DROP_FRAGMENT, DROP_HEADROOM, DROP_NO_POLICY, DROP_SEQUENCE_EXHAUSTED,
    DROP_SEQUENCE_UNRESERVED,
    DROP_TOO_BIG, DROP_TTL, DROP_WRONG_ADDRESS, PASS, SaCounters,
)
from ext.crypto cimport Job, Key, put_job, suite_is_aead, touch_key
from ext.packet cimport BATCH_MAX, NO_INDEX, NO_LEADER, PACKET_CUT_AFTER, PACKET_DUMMY, PACKET_FRAGMENT, Packet
from ext.policy cimport FEW, lookup_policies
from ext.sa cimport (
    BUNDLE_BROKEN, OWN_PORT, SA_DF_COPY, SA_DF_SET, SA_DSCP_COPY, SA_ENCAP, SA_ESN, SA_MSS_CLAMP, SHOWN_PORT, Sa,
    SaHot, SaSequence, load32,
)
from ext.wire cimport (
    PROTOCOL_AH, PROTOCOL_ESP, PROTOCOL_IPIP, PROTOCOL_IPV6, PROTOCOL_NONE, PROTOCOL_TCP, PROTOCOL_UDP, bswap16,
    bswap32, bswap64, clamp_mss, fold, likely, load16, one_hop_less, put_raw16, put_raw32, put_raw64, raw16, raw32,
    raw64, restamp_ipv4, store16, store32, sum_bytes, swap_port, touch, unlikely,
)

cdef extern from *:
    """
    #define ATOMIC_ADD(address, value) __atomic_fetch_add((address), (value), __ATOMIC_RELAXED)
    #define LOAD_RELAXED(address) __atomic_load_n((address), __ATOMIC_RELAXED)
    #define DONT_FRAGMENT ((uint64_t)0x40 << 48)
    static const unsigned char esp_padding[16] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16};
    static const uint64_t ipip_trailers[4] = {0x0400, 0x040101, 0x04020201, 0x0403030201};
    static const uint64_t ipv6_trailers[4] = {0x2900, 0x290101, 0x29020201, 0x2903030201};
    """
    uint64_t atomic_add "ATOMIC_ADD"(uint64_t *address, uint64_t value) noexcept nogil
    uint64_t load_relaxed "LOAD_RELAXED"(uint64_t *address) noexcept nogil
    const uint8_t esp_padding[16]
    const uint64_t *ipip_trailers   # by bytes of padding: what ends the text, as it lies in memory
    const uint64_t *ipv6_trailers
    const uint64_t DONT_FRAGMENT    # in the first word of an IPv4 header, memory order

cdef enum:
    ESP_HEADER = 8
    UDP_HEADER = 8
    PLAIN_OVERHEAD = 20 + ESP_HEADER + 8 + 16   # IPv4, ESP, IV and ICV
    TRANSPORT_MODE = 1          # beside SA_MSS_CLAMP: what admit() has to see to for the packets of a leader
    WAITS = 2                   # likewise: see Run.waits
    LINK_ROOM = 14              # a link header still has to fit before the outer header
    TRAILER_SLACK = 16          # padding is stored 16 bytes at a time
    RUNS_SEARCHED = 4           # a flow joins one of the last few SAs' runs, else begins a new one
    HEAD_MOST = AH_MOST         # the most that goes before a packet: more than the 72 of IPv6, UDP, ESP and CBC's IV
    BUNDLE_MOST = HEAD_MOST + AH_MOST - 40      # the same where AH without an IP header of its own comes before ESP
    TAIL_MOST = 49 + TRAILER_SLACK      # 15 of padding, 2 of trailer, 32 of ICV: the most that goes behind
    IDENT_STEP = 0x9E3779B1     # spreads SPIs over where SAs begin their IPv4 IDs
    UDP6_LEAST = 40             # ESP in UDP over IPv6 is no shorter: Linux (6.1) drops what is, uncounted (ADR 30)


cdef void outbound(Batch *batch, const Tables *tables, Engine *engine, Outbound *scratch, bint forwards,
                   uint64_t now) noexcept nogil:
    """Take a batch of inner IP packets, parsed with `scratch.leaders`, to outer ESP packets or to a verdict.

    Afterwards a packet that PASSes has `data` at its outer IP header and its SA's adjacency (NO_INDEX: the kernel
    has to find the way). Its room, flags and transport still speak of the inner packet.
    """
    lookup_policies(batch, tables, &scratch.leaders)
    if scratch.leaders.count > FEW:
        touch_sas(batch, tables, engine, &scratch.leaders)
    admit(batch, tables, scratch, forwards)
    _protect(batch, tables, engine, scratch, now)


cdef void outbound_known(Batch *batch, const Tables *tables, Engine *engine, Outbound *scratch,
                         uint64_t now) noexcept nogil:
    """As `outbound`, for packets that have their SA: pieces of one that was too big (loop.pyx)."""
    cdef uint32_t index
    scratch.leaders.count = batch.count
    for index in range(batch.count):
        scratch.leaders.packets[index] = <uint8_t>index
        scratch.leaders.leader[index] = <uint8_t>index
    admit(batch, tables, scratch, False)
    _protect(batch, tables, engine, scratch, now)


cdef inline void _protect(Batch *batch, const Tables *tables, Engine *engine, Outbound *scratch,
                          uint64_t now) noexcept nogil:
    """All that comes after the packets have been admitted."""
    number(batch, tables, scratch)
    build(batch, tables, scratch)
    engine.seal(engine, &scratch.jobs)
    account(batch, tables, scratch, now)
    if unlikely(scratch.bundled != 0, 0):
        _surround(batch, tables, engine, scratch, now)


cdef void touch_sas(const Batch *batch, const Tables *tables, const Engine *engine,
                    const Leaders *leaders) noexcept nogil:
    """Fetch all that the walk will need of the leaders' SAs, while nothing waits for it."""
    cdef uint32_t place
    cdef uint32_t sa
    for place in range(leaders.count):
        sa = batch.packets[leaders.packets[place]].sa
        if sa != NO_INDEX:
            touch(&tables.sas[sa].hot)
            touch(&tables.sas[sa].sequence)
            touch(&tables.sa_counters[sa])
    for place in range(leaders.count):
        sa = batch.packets[leaders.packets[place]].sa
        if sa != NO_INDEX:
            touch_key(engine, &tables.sas[sa].key, tables.sas[sa].hot.suite, False)


cdef inline uint32_t _find_run(Outbound *scratch, uint32_t sa) noexcept nogil:
    """The run of this SA in the batch, begun if none of the last few is it."""
    cdef uint32_t at = scratch.run_count
    cdef uint32_t floor = at - RUNS_SEARCHED if at > RUNS_SEARCHED else 0
    cdef Run *run
    while at > floor:
        at -= 1
        if scratch.runs[at].sa == sa:
            return at
    run = &scratch.runs[scratch.run_count]
    run.sa = sa
    run.count = 0
    run.bytes = 0
    run.waits = 0
    scratch.run_count += 1
    return scratch.run_count - 1


cdef uint8_t _between_ends(const Packet *packet, const SaHot *hot) noexcept nogil:
    """In transport mode the packet's own header goes out: its addresses must be the SA's (RFC 4301 4.1)."""
    cdef uint32_t at = 12 if packet.family == 4 else 8
    cdef uint32_t size = 8 if packet.family == 4 else 32
    if hot.header[0] >> 4 != packet.family or memcmp(packet.data + at, hot.header + at, size):
        return DROP_WRONG_ADDRESS
    return PASS


cdef void admit(Batch *batch, const Tables *tables, Outbound *scratch, bint forwards) noexcept nogil:
    """Hand the leaders' SAs to their followers; refuse what cannot leave, before it costs a sequence number.

    DROP_TOO_BIG are packets over the SA's MTU, and those of the same SA behind one without DF: loop.pyx sends all in
    their order.
    """
    cdef uint32_t index
    cdef uint32_t count = 0
    cdef uint8_t verdict = DROP_NO_POLICY
    cdef uint32_t sa = NO_INDEX
    cdef uint32_t run_index = 0
    cdef uint32_t mtu = 0
    cdef uint32_t hops = 0
    cdef uint8_t special = 0
    cdef Packet *packet
    cdef Run *run = NULL
    cdef uint32_t packets = 0
    cdef uint64_t bytes_ = 0
    scratch.run_count = 0
    for index in range(batch.count):
        packet = &batch.packets[index]
        if unlikely(scratch.leaders.leader[index] == NO_LEADER, 0):
            continue
        if scratch.leaders.leader[index] == index:
            verdict = packet.verdict
            if verdict == PASS:
                if run != NULL:
                    run.count += packets
                    run.bytes += bytes_
                packets = 0
                bytes_ = 0
                sa = packet.sa
                run_index = _find_run(scratch, sa)
                run = &scratch.runs[run_index]
                mtu = tables.sas[sa].hot.inner_mtu
                special = tables.sas[sa].hot.flags & SA_MSS_CLAMP | <uint8_t>(WAITS if run.waits else 0)
                if unlikely(tables.sas[sa].hot.header_length == 0, 0):
                    special |= TRANSPORT_MODE
                    verdict = _between_ends(packet, &tables.sas[sa].hot)
        if unlikely(verdict != PASS, 0):
            packet.verdict = verdict
            continue
        packet.sa = sa
        # RFC 4301 5.1.2.1: the TTL is decremented when forwarding; a TUN's packets were forwarded by the kernel.
        if forwards:
            hops = raw32(packet.data + 8) if likely(packet.family == 4, 1) else packet.data[7]
            if unlikely((hops & 0xFF) <= 1, 0):
                packet.verdict = DROP_TTL
                continue
        if unlikely(packet.length > mtu and not packet.flags & PACKET_CUT_AFTER, 0):
            packet.verdict = DROP_TOO_BIG
            if packet.family == 4 and not raw64(packet.data) & DONT_FRAGMENT:
                run.waits = 1
                special |= WAITS
            continue
        if unlikely(packet.headroom < HEAD_MOST + LINK_ROOM or packet.tailroom < TAIL_MOST, 0):
            packet.verdict = DROP_HEADROOM
            continue
        if unlikely(special, 0):
            # Receivers give up fragments that come too far apart (Linux: 64 packets of the same sender in between), so
            # what is behind a packet that has to be cut does not overtake its pieces.
            if special & WAITS:
                packet.verdict = DROP_TOO_BIG
                continue
            # RFC 4303 3.1.1: transport mode takes whole packets; the receiver would put fragments together first.
            if special & TRANSPORT_MODE and packet.flags & PACKET_FRAGMENT:
                packet.verdict = DROP_FRAGMENT
                continue
            if special & SA_MSS_CLAMP and packet.protocol == PROTOCOL_TCP:
                clamp_mss(packet, mtu)
        if forwards:
            if likely(packet.family == 4, 1):
                put_raw32(packet.data + 8, one_hop_less(hops))
            else:
                packet.data[7] = <uint8_t>(hops - 1)
        packet.inner_bytes = packet.length
        packets += 1
        bytes_ += packet.length
        scratch.admitted[count] = <uint8_t>index
        scratch.run_of[count] = <uint8_t>run_index
        count += 1
    if run != NULL:
        run.count += packets
        run.bytes += bytes_
    scratch.admitted_count = count


cdef void number(Batch *batch, const Tables *tables, Outbound *scratch) noexcept nogil:
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


cdef struct Stamp:              # what all packets of one SA have in common, taken once per run
    uint64_t first, second, third       # IPv4: the template, words as they lie in memory
    uint64_t copied             # bits of the inner IPv4 header's first word that go outward: ECN, and DSCP and DF
                                # where the SA copies them
    uint64_t constant_sum       # of first to third, for the header checksum
    uint64_t iv_mask
    uint64_t spi                # network order
    uint32_t salt
    uint32_t adjacency
    uint32_t overhead           # ESP header, IV and ICV; or the AH with its ICV
    uint32_t align_mask
    uint8_t suite
    uint32_t lead               # bytes from the outer IP header to the inner packet
    uint32_t first_ident        # IPv4 ID of number 0
    bint ah                     # AH, not ESP
    uint32_t pad_to             # inner packets are made so long at least (RFC 4303 2.7)
    bint plain                  # IPv4 outside, AEAD, no ESN, UDP, padding or dummies: the way most packets go


cdef void _stamp(const Sa *sa, Stamp *stamp) noexcept nogil:
    """Gather an SA's constants."""
    cdef const SaHot *hot = &sa.hot
    stamp.iv_mask = raw64(sa.sequence.iv_mask)
    stamp.spi = hot.spi
    stamp.first_ident = (bswap32(hot.spi) * IDENT_STEP) >> 16
    stamp.suite = hot.suite
    stamp.salt = raw32(hot.salt)
    stamp.adjacency = hot.adjacency
    stamp.overhead = ESP_HEADER + hot.iv_length + hot.icv_length
    stamp.align_mask = hot.align - 1
    stamp.lead = hot.header_length + ESP_HEADER + hot.iv_length
    if hot.flags & SA_ENCAP:
        stamp.lead += UDP_HEADER
    stamp.pad_to = sa.sequence.pad_to if sa.sequence.pad_to < hot.inner_mtu else hot.inner_mtu
    stamp.ah = speaks_ah(hot)
    if stamp.ah:
        stamp.pad_to = 0        # RFC 4303 2.7 is ESP's
        stamp.overhead = ah_length(hot)
        stamp.lead = hot.header_length + stamp.overhead
    stamp.plain = (hot.header_length == 20 and suite_is_aead(hot.suite) and hot.iv_length == 8
                   and hot.icv_length == 16 and not hot.flags & (SA_ESN | SA_ENCAP)
                   and sa.sequence.pad_to == 0 and sa.sequence.dummies == 0)
    # RFC 6040 4.1 normal mode: ECN is always copied. Bytes 0 and 1 of `first` are constant but for it, 2 to 7 vary.
    stamp.copied = 0x0300
    stamp.first = raw64(hot.header) & <uint64_t>0xFFFF
    if hot.flags & SA_DSCP_COPY:
        stamp.copied = 0xFF00
        stamp.first &= 0xFF
    if hot.flags & SA_DF_COPY:
        stamp.copied |= DONT_FRAGMENT
    elif hot.flags & SA_DF_SET:
        stamp.first |= DONT_FRAGMENT
    stamp.second = raw64(hot.header + 8)
    stamp.third = raw32(hot.header + 16)
    stamp.constant_sum = (<uint64_t><uint32_t>stamp.first + (stamp.first >> 32) + <uint32_t>stamp.second
                          + (stamp.second >> 32) + stamp.third)


cdef inline uint64_t _ident(uint64_t sequence, const Stamp *stamp) noexcept nogil:
    """IPv4 ID of a packet, in any byte order: the number's low half, from where the SA begins, so that the fragments of
    SAs between the same hosts are apart (RFC 6864 4.3). Never 0: raw sockets put another in its place, which AH covers.
    """
    cdef uint64_t ident = (sequence + stamp.first_ident) & 0xFFFF
    return ident + (ident == 0)


cdef inline uint64_t _copied_outward(const Packet *packet, const Stamp *stamp) noexcept nogil:
    """TOS and DF that the inner packet lends its outer IPv4 header; an IPv6 packet never lets itself be cut."""
    if likely(packet.family == 4, 1):
        return raw64(packet.data) & stamp.copied
    return (<uint64_t>packet.tos << 8 | DONT_FRAGMENT) & stamp.copied


cdef void build(Batch *batch, const Tables *tables, Outbound *scratch) noexcept nogil:
    """Write everything but ciphertext around each admitted packet, and the engine's job for it."""
    cdef uint32_t first = 0
    cdef uint32_t end
    cdef uint32_t count = scratch.admitted_count
    cdef Run *run
    cdef Sa *sa
    cdef Stamp stamp
    scratch.jobs.count = 0
    scratch.udp6 = 0
    scratch.bundled = 0
    scratch.ah.count = 0
    while first < count:
        end = first + 1
        while end < count and scratch.run_of[end] == scratch.run_of[first]:
            end += 1
        run = &scratch.runs[scratch.run_of[first]]
        sa = &tables.sas[run.sa]
        _stamp(sa, &stamp)
        scratch.bundled |= sa.sequence.bundle
        if unlikely(run.next + (end - first) > run.end, 0):
            end = _cut_short(batch, scratch, run, sa, first, end)
        if likely(stamp.plain, 1):
            _build_plain(batch, scratch, run.next, sa, &stamp, first, end)
        elif stamp.ah:
            _build_ah(batch, scratch, run.next, sa, &stamp, first, end)
        elif sa.hot.header_length == 0:
            _build_transport(batch, scratch, run.next, sa, &stamp, first, end)
        else:
            _build_any(batch, scratch, run.next, sa, &stamp, first, end)
        run.next += end - first
        first = end
        while first < count and batch.packets[scratch.admitted[first]].verdict != PASS:
            first += 1


cdef uint32_t _cut_short(Batch *batch, Outbound *scratch, Run *run, const Sa *sa, uint32_t first,
                         uint32_t end) noexcept nogil:
    """Too few numbers for these packets: the last of them are dropped. Returns where the rest ends."""
    cdef uint32_t at
    cdef Packet *packet
    cdef uint32_t enough = first + <uint32_t>(run.end - run.next)
    for at in range(enough, end):
        packet = &batch.packets[scratch.admitted[at]]
        packet.verdict = (DROP_SEQUENCE_EXHAUSTED if sa.sequence.limit >= sa.sequence.hard_limit
                          else DROP_SEQUENCE_UNRESERVED)
        run.bytes -= packet.length
        run.count -= 1
    return enough


cdef inline Job *_begin_job(Outbound *scratch, uint32_t at, const Sa *sa) noexcept nogil:
    """The next free job, for the packet at place `at` of the admitted ones."""
    cdef Job *job = &scratch.jobs.jobs[scratch.jobs.count]
    scratch.jobs.count += 1
    job.packet = scratch.admitted[at]
    job.suite = sa.hot.suite
    job.key = &sa.key
    return job


cdef inline uint32_t _write_trailer(uint8_t *text, uint32_t length, uint32_t next_header,
                                    uint32_t align_mask) noexcept nogil:
    """RFC 4303 2.4: pad bytes count up from 1; then their number and the next header. Returns the text's length."""
    cdef uint32_t padding = (0 - (length + 2)) & align_mask
    memcpy(text + length, esp_padding, 16)
    put_raw16(text + length + padding, <uint16_t>(padding | next_header << 8))
    return length + padding + 2


cdef void _build_plain(Batch *batch, Outbound *scratch, uint64_t sequence, const Sa *sa, const Stamp *stamp,
                       uint32_t first, uint32_t end) noexcept nogil:
    """Packets of one SA: IPv4 outside, AEAD, 32-bit numbers, no UDP.

    Fields are put together in registers and stored whole: reading back what was just stored in pieces stalls.
    """
    cdef uint32_t at
    cdef uint32_t index
    cdef uint32_t length
    cdef uint32_t padding
    cdef uint32_t suite = stamp.suite
    cdef const Key *key = &sa.key
    cdef Packet *packet
    cdef Job *job = &scratch.jobs.jobs[scratch.jobs.count]
    cdef uint8_t *inner
    cdef uint64_t varying
    cdef uint64_t spi_and_number
    cdef uint64_t iv
    cdef const uint64_t *trailers
    scratch.jobs.count += end - first
    for at in range(first, end):
        index = scratch.admitted[at]
        packet = &batch.packets[index]
        # Read once into locals: for all the compiler knows, every byte stored below might change these.
        inner = packet.data
        length = packet.length
        trailers = ipip_trailers
        varying = raw64(inner)
        if unlikely(packet.family != 4, 0):
            trailers = ipv6_trailers
            varying = <uint64_t>packet.tos << 8 | DONT_FRAGMENT
        padding = (0 - (length + 2)) & 3
        put_raw64(inner + length, trailers[padding])
        length += padding + 2
        job.text = inner
        job.icv = inner + length
        job.key = key
        put_job(job, length, index, suite, 8)
        length += PLAIN_OVERHEAD
        varying = varying & stamp.copied | <uint64_t>bswap16(<uint16_t>length) << 16 | _ident(sequence, stamp) << 32
        spi_and_number = stamp.spi | <uint64_t>bswap32(<uint32_t>sequence) << 32
        iv = bswap64(sequence) ^ stamp.iv_mask
        put_raw64(inner - 16, spi_and_number)
        put_raw64(inner - 8, iv)
        put_raw32(job.nonce, stamp.salt)
        put_raw64(job.nonce + 4, iv)
        put_raw64(job.aad, spi_and_number)
        _write_ipv4(inner - 36, stamp, varying)
        packet.data = inner - 36
        packet.length = length
        packet.adjacency = stamp.adjacency
        packet.sequence = sequence
        sequence += 1
        job += 1


cdef void _pad(Packet *packet, uint32_t length) noexcept nogil:
    """RFC 4303 2.7: zeros behind the inner packet, whose own length says where it ends; as many as the frame takes."""
    cdef uint32_t room = packet.length + packet.tailroom - TAIL_MOST    # admit() has seen that it is no less
    if length > room:
        length = room
    if length > packet.length:
        memset(packet.data + packet.length, 0, length - packet.length)
        packet.tailroom -= <uint16_t>(length - packet.length)
        packet.length = length


cdef void _build_any(Batch *batch, Outbound *scratch, uint64_t sequence, const Sa *sa, const Stamp *stamp,
                     uint32_t first, uint32_t end) noexcept nogil:
    """Packets of one SA of any kind."""
    cdef const SaHot *hot = &sa.hot
    cdef uint32_t at
    cdef uint32_t total
    cdef Packet *packet
    cdef Job *job
    cdef uint8_t *esp
    cdef uint8_t *outer
    cdef uint64_t varying
    cdef uint32_t next_header
    if hot.flags & SA_ENCAP and hot.header_length == 40:
        scratch.udp6 += end - first
    for at in range(first, end):
        packet = &batch.packets[scratch.admitted[at]]
        if unlikely(packet.length < stamp.pad_to, 0):
            _pad(packet, stamp.pad_to)
        job = _begin_job(scratch, at, sa)
        job.text = packet.data
        next_header = PROTOCOL_IPIP if packet.family == 4 else PROTOCOL_IPV6
        if unlikely(packet.flags & PACKET_DUMMY, 0):
            next_header = PROTOCOL_NONE
        job.text_length = _write_trailer(packet.data, packet.length, next_header, stamp.align_mask)
        job.icv = packet.data + job.text_length
        total = job.text_length + stamp.overhead
        varying = _copied_outward(packet, stamp)
        outer = packet.data - stamp.lead
        esp = packet.data - hot.iv_length - ESP_HEADER
        job.esp = esp
        _write_esp(sa, sequence, esp, job)
        if hot.flags & SA_ENCAP:
            # RFC 3948 2.1: the UDP checksum is zero over IPv4; account() fills it in over IPv6.
            total += UDP_HEADER
            put_raw64(esp - UDP_HEADER, raw32(hot.encap_ports) | <uint64_t>bswap16(<uint16_t>total) << 32)
        if hot.header_length == 20:
            varying |= <uint64_t>bswap16(<uint16_t>(total + 20)) << 16 | _ident(sequence, stamp) << 32
            _write_ipv4(outer, stamp, varying)
        else:
            _write_ipv6(outer, hot, packet.tos & (0xFF if hot.flags & SA_DSCP_COPY else 3), total)
        packet.length = total + hot.header_length
        packet.data = outer
        packet.adjacency = stamp.adjacency
        packet.sequence = sequence
        sequence += 1


cdef uint32_t _header_in_front(const Packet *packet, uint32_t *next_at) noexcept nogil:
    """Bytes of IP header and extension headers that stay before ESP; `next_at` is where they name what follows.

    IPv6: those that routers look at (RFC 4303 3.1.1): hop-by-hop options, a routing header and what comes before that
    one. Destination options for the last hop alone are enciphered. The parser has checked all bounds.
    """
    cdef uint32_t offset = 40
    cdef uint32_t front = 40
    cdef uint8_t next_header
    if packet.family == 4:
        next_at[0] = 9
        return packet.transport
    next_at[0] = 6
    next_header = packet.data[6]
    while offset < packet.transport and (next_header == 0 or next_header == 43 or next_header == 60):
        if next_header != 60:
            next_at[0] = offset
            front = offset + (<uint32_t>packet.data[offset + 1] + 1) * 8
        next_header = packet.data[offset]
        offset += (<uint32_t>packet.data[offset + 1] + 1) * 8
    return front


cdef uint32_t _lengthen(uint8_t *text, uint32_t length, uint32_t least, uint32_t align_mask) noexcept nogil:
    """Count the padding of a text that has its trailer on until it is `least` bytes long, aligned (RFC 4303 2.4)."""
    cdef uint32_t wanted = (least + align_mask) & ~align_mask
    cdef uint8_t padding = text[length - 2]
    cdef uint8_t next_header = text[length - 1]
    while length < wanted:
        padding += 1
        text[length - 2] = padding
        length += 1
    text[length - 2] = padding
    text[length - 1] = next_header
    return length


cdef void _build_transport(Batch *batch, Outbound *scratch, uint64_t sequence, const Sa *sa, const Stamp *stamp,
                           uint32_t first, uint32_t end) noexcept nogil:
    """Packets of one SA in transport mode: their own header moves to the left, changed in length and protocol."""
    cdef const SaHot *hot = &sa.hot
    cdef bint encap = hot.flags & SA_ENCAP
    cdef uint32_t shift = ESP_HEADER + hot.iv_length + (UDP_HEADER if encap else 0)
    cdef uint8_t protocol = PROTOCOL_UDP if encap else PROTOCOL_ESP
    cdef uint32_t at
    cdef uint32_t front
    cdef uint32_t next_at
    cdef Packet *packet
    cdef Job *job
    cdef uint8_t *esp
    cdef uint8_t *header
    for at in range(first, end):
        packet = &batch.packets[scratch.admitted[at]]
        job = _begin_job(scratch, at, sa)
        front = _header_in_front(packet, &next_at)
        header = packet.data - shift
        job.text = packet.data + front
        job.text_length = _write_trailer(job.text, packet.length - front, packet.data[next_at], stamp.align_mask)
        if unlikely(encap and packet.family == 6 and job.text_length + stamp.overhead < UDP6_LEAST, 0):
            job.text_length = _lengthen(job.text, job.text_length, UDP6_LEAST - stamp.overhead, stamp.align_mask)
        job.icv = job.text + job.text_length
        if unlikely(raw16(hot.header + <int>OWN_PORT) != 0, 0) and packet.family == 4:
            # Of several peers behind one NAT: the packet goes to the port that this one has itself.
            swap_port(packet.protocol, job.text, packet.length - front, 2, raw16(hot.header + <int>SHOWN_PORT),
                      raw16(hot.header + <int>OWN_PORT))
        memmove(header, packet.data, front)
        esp = job.text - hot.iv_length - ESP_HEADER
        job.esp = esp
        packet.length = front + job.text_length + stamp.overhead + (UDP_HEADER if encap else 0)
        packet.data = header
        _write_esp(sa, sequence, esp, job)
        header[next_at] = protocol
        if packet.family == 4:
            store16(header + 2, <uint16_t>packet.length)
            restamp_ipv4(header)
        else:
            store16(header + 4, <uint16_t>(packet.length - 40))
            scratch.udp6 += encap
        if encap:
            put_raw64(esp - UDP_HEADER,
                      raw32(hot.encap_ports) | <uint64_t>bswap16(<uint16_t>(packet.length - front)) << 32)
        packet.adjacency = stamp.adjacency
        packet.sequence = sequence
        sequence += 1


cdef void _build_ah(Batch *batch, Outbound *scratch, uint64_t sequence, const Sa *sa, const Stamp *stamp,
                    uint32_t first, uint32_t end) noexcept nogil:
    """Packets of one SA that are authenticated only, in either mode."""
    cdef const SaHot *hot = &sa.hot
    cdef AhHeaders *headers
    cdef uint32_t at
    cdef uint32_t front
    cdef uint8_t next_header
    cdef Packet *packet
    cdef Job *job
    for at in range(first, end):
        packet = &batch.packets[scratch.admitted[at]]
        job = _begin_job(scratch, at, sa)
        headers = &scratch.ah.headers[scratch.ah.count]
        headers.packet = scratch.admitted[at]
        if likely(hot.header_length, 1):
            next_header = PROTOCOL_IPIP if packet.family == 4 else PROTOCOL_IPV6
            front = hot.header_length
            _write_outer(packet, hot, stamp, sequence)
        else:
            front = _let_in(packet, stamp.overhead, PROTOCOL_AH, &next_header)
        packet.adjacency = stamp.adjacency
        packet.sequence = sequence
        packet.verdict = ah_write(packet, front, next_header, sa, sequence, headers, job)
        sequence += 1
        if likely(packet.verdict == PASS, 1):
            scratch.ah.count += 1
        else:
            # Its own options, in transport mode. The number is lost: a gap in them harms nobody.
            scratch.jobs.count -= 1
            scratch.runs[scratch.run_of[at]].count -= 1
            scratch.runs[scratch.run_of[at]].bytes -= packet.inner_bytes


cdef inline void _write_outer(Packet *packet, const SaHot *hot, const Stamp *stamp, uint64_t sequence) noexcept nogil:
    """The outer header of a tunnel, `stamp.lead` bytes before the packet."""
    cdef uint64_t varying = _copied_outward(packet, stamp)
    packet.data -= stamp.lead
    packet.length += stamp.lead
    if hot.header_length == 20:
        varying |= <uint64_t>bswap16(<uint16_t>packet.length) << 16 | _ident(sequence, stamp) << 32
        _write_ipv4(packet.data, stamp, varying)
    else:
        _write_ipv6(packet.data, hot, packet.tos & (0xFF if hot.flags & SA_DSCP_COPY else 3), packet.length - 40)


cdef uint32_t _let_in(Packet *packet, uint32_t size, uint8_t protocol, uint8_t *next_header) noexcept nogil:
    """Move the packet's own headers to the left, so that `size` bytes of `protocol` fit behind them.

    Returns the headers' length; `next_header` is what followed them.
    """
    cdef uint32_t next_at
    cdef uint32_t front = _header_in_front(packet, &next_at)
    next_header[0] = packet.data[next_at]
    packet.data[next_at] = protocol
    memmove(packet.data - size, packet.data, front)
    packet.data -= size
    packet.length += size
    if packet.family == 4:
        store16(packet.data + 2, <uint16_t>packet.length)
        restamp_ipv4(packet.data)
    else:
        store16(packet.data + 4, <uint16_t>(packet.length - 40))
    return front


cdef inline void _write_ipv4(uint8_t *outer, const Stamp *stamp, uint64_t varying) noexcept nogil:
    """The outer IPv4 header: the stamp with TOS, length, ID and DF."""
    put_raw64(outer, stamp.first | varying)
    # The template's checksum field is zero: bytes 2 and 3 of `second`.
    put_raw64(outer + 8, stamp.second | <uint64_t><uint16_t>~fold(
        stamp.constant_sum + <uint32_t>varying + (varying >> 32)) << 16)
    put_raw32(outer + 16, <uint32_t>stamp.third)


cdef inline void _write_ipv6(uint8_t *outer, const SaHot *hot, uint8_t inner_tos, uint32_t payload) noexcept nogil:
    """The outer IPv6 header: the template with traffic class and payload length."""
    cdef uint64_t first = raw64(hot.header) & <uint64_t>0xFFFF0000FFFF0F00ULL
    cdef uint8_t tos = inner_tos
    if not hot.flags & SA_DSCP_COPY:
        tos |= <uint8_t>(load16(hot.header) >> 4) & 0xFC
    first |= 0x60 | tos >> 4 | <uint64_t>(tos & 15) << 12
    first |= <uint64_t>bswap16(<uint16_t>payload) << 32
    put_raw64(outer, first)
    memcpy(outer + 8, hot.header + 8, 32)


cdef inline void _write_esp(const Sa *sa, uint64_t sequence, uint8_t *esp, Job *job) noexcept nogil:
    """SPI, number and what follows them until the text begins."""
    memcpy(esp, &sa.hot.spi, 4)
    store32(esp + 4, <uint32_t>sequence)
    if suite_is_aead(sa.hot.suite):
        _write_aead(sa, sequence, esp, job)
    else:
        _write_unauthenticated(sa, sequence, esp, job)


cdef inline void _write_aead(const Sa *sa, uint64_t sequence, uint8_t *esp, Job *job) noexcept nogil:
    """IV on the wire unless it is implicit, nonce and AAD for the engine (RFC 4106 3-5, RFC 7634 2, RFC 8750 4)."""
    cdef uint64_t iv = bswap64(sequence) ^ raw64(sa.sequence.iv_mask)
    if sa.hot.iv_length:
        put_raw64(esp + ESP_HEADER, iv)
    memcpy(job.nonce, sa.hot.salt, 4)
    put_raw64(job.nonce + 4, iv)
    memcpy(job.aad, &sa.hot.spi, 4)
    if sa.hot.flags & SA_ESN:
        put_raw64(job.aad + 4, bswap64(sequence))
        job.aad_length = 12
    else:
        store32(job.aad + 4, <uint32_t>sequence)
        job.aad_length = 8


cdef inline void _write_unauthenticated(const Sa *sa, uint64_t sequence, uint8_t *esp, Job *job) noexcept nogil:
    """Ciphers that need an integrity algorithm: what their IV is made of, high half of the number for the hash."""
    cdef uint64_t iv
    if sa.hot.iv_length == 8:
        # AES-CTR: the IV is the number, and never comes twice with one key (RFC 3686 3.1).
        iv = bswap64(sequence) ^ raw64(sa.sequence.iv_mask)
        put_raw64(esp + ESP_HEADER, iv)
        memcpy(job.nonce, sa.hot.salt, 4)
        put_raw64(job.nonce + 4, iv)
    elif sa.hot.iv_length:
        # Enciphered together with the payload, this block becomes the IV: see crypto.pxd, Job.text.
        put_raw64(esp + ESP_HEADER, raw64(sa.sequence.iv_mask))
        put_raw64(esp + ESP_HEADER + 8, bswap64(sequence) ^ raw64(sa.sequence.iv_mask + 8))
        job.text -= sa.hot.iv_length
        job.text_length += sa.hot.iv_length
    job.aad_length = 0
    if sa.hot.flags & SA_ESN:
        store32(job.aad, <uint32_t>(sequence >> 32))
        job.aad_length = 4


cdef void account(Batch *batch, const Tables *tables, Outbound *scratch, uint64_t now) noexcept nogil:
    """Per-SA counters; what waits for the engine: headers before AH, the UDP checksum of IPv6 (RFC 8200 8.1)."""
    cdef uint32_t index
    cdef Run *run
    cdef Packet *packet
    cdef SaCounters *counters
    for index in range(scratch.jobs.count):
        if unlikely(not scratch.jobs.jobs[index].ok, 0):
            packet = &batch.packets[scratch.jobs.jobs[index].packet]
            packet.verdict = DROP_CRYPTO
            tables.sa_counters[packet.sa].packets -= 1
            tables.sa_counters[packet.sa].bytes -= packet.inner_bytes
    if unlikely(scratch.ah.count > 0, 0):
        ah_restore(batch, &scratch.ah)
    if unlikely(scratch.udp6 > 0, 0):
        for index in range(scratch.jobs.count):
            packet = &batch.packets[scratch.jobs.jobs[index].packet]
            if packet.data[0] >> 4 == 6 and tables.sas[packet.sa].hot.flags & SA_ENCAP:
                _checksum_udp6(packet, scratch.jobs.jobs[index].esp - UDP_HEADER)
    for index in range(scratch.run_count):
        run = &scratch.runs[index]
        if unlikely(run.count == 0, 0):
            continue
        counters = &tables.sa_counters[run.sa]
        counters.packets += run.count
        counters.bytes += run.bytes
        counters.last_used = now


cdef void _checksum_udp6(Packet *packet, uint8_t *udp) noexcept nogil:
    cdef uint32_t length = <uint32_t>(packet.data + packet.length - udp)
    cdef uint64_t total = sum_bytes(packet.data + 8, 32) + sum_bytes(udp, length)
    cdef uint16_t checksum
    total += bswap16(<uint16_t>length) + bswap16(PROTOCOL_UDP)
    checksum = ~fold(total)
    put_raw16(udp + 6, checksum if checksum else 0xFFFF)


cdef void _surround(Batch *batch, const Tables *tables, Engine *engine, Outbound *scratch,
                    uint64_t now) noexcept nogil:
    """AH around what has become ESP of an SA in a bundle (RFC 2401 4.3): the second half of the walk once more.

    What passes is its ESP SA's again afterwards; what does not is counted at the SA of the AH.
    """
    cdef uint32_t inner[BATCH_MAX]
    cdef uint32_t inner_bytes[BATCH_MAX]
    cdef uint32_t at
    cdef uint32_t index
    cdef uint32_t run
    cdef uint32_t count = 0
    cdef Packet *packet
    scratch.run_count = 0
    for at in range(scratch.admitted_count):
        index = scratch.admitted[at]
        packet = &batch.packets[index]
        inner[index] = packet.sa
        inner_bytes[index] = packet.inner_bytes
        if packet.verdict != PASS or not _goes_around(packet, tables):
            continue
        run = _find_run(scratch, packet.sa)
        scratch.runs[run].count += 1
        scratch.runs[run].bytes += packet.length
        scratch.admitted[count] = <uint8_t>index
        scratch.run_of[count] = <uint8_t>run
        count += 1
    scratch.admitted_count = count
    number(batch, tables, scratch)
    build(batch, tables, scratch)
    engine.seal(engine, &scratch.jobs)
    account(batch, tables, scratch, now)
    for at in range(count):
        packet = &batch.packets[scratch.admitted[at]]
        packet.inner_bytes = inner_bytes[scratch.admitted[at]]
        if likely(packet.verdict == PASS, 1):
            packet.sa = inner[scratch.admitted[at]]


cdef bint _goes_around(Packet *packet, const Tables *tables) noexcept nogil:
    """Make a packet of ESP one to be put into AH; False when it is in no bundle, or cannot be and has its verdict."""
    cdef uint32_t bundle = load32(&tables.sas[packet.sa].sequence.bundle)
    cdef uint32_t at = 40
    cdef uint8_t next_header
    if bundle == 0:
        return False
    if unlikely(bundle == <uint32_t>BUNDLE_BROKEN, 0):
        packet.verdict = DROP_BUNDLE
        return False
    if unlikely(packet.headroom < BUNDLE_MOST + LINK_ROOM, 0):      # it is still that before the inner packet
        packet.verdict = DROP_HEADROOM
        return False
    packet.sa = bundle - 1
    packet.inner_bytes = packet.length
    packet.family = packet.data[0] >> 4
    if packet.family == 4:
        at = (packet.data[0] & 15) * 4
    else:
        # Those extension headers that stayed before ESP, in transport mode: they stay before AH.
        next_header = packet.data[6]
        while next_header != PROTOCOL_ESP and at < packet.length:
            next_header = packet.data[at]
            at += (<uint32_t>packet.data[at + 1] + 1) * 8
    packet.transport = <uint16_t>at
    return True
