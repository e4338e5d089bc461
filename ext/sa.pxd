"""The shared tables: SAD, SPI hash, SPD, routes, adjacencies and counters in one memory segment.

Control writes configuration, workers read it. Workers write sequence numbers, replay windows and
counters. Nothing here is locked on the packet path: entries are published by one aligned store, whole
tables by a generation (see `LpmTable`), and control frees nothing before every worker has gone past the
generation in which it was unlinked (`WorkerCounters.seen_generation`).
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from ext.counters cimport SaCounters, WorkerCounters
from ext.crypto cimport Key
from ext.packet cimport NO_INDEX
from ext.wire cimport touch

cdef extern from *:
    """
    #ifndef ESPLANADE_ATOMICS
    #define ESPLANADE_ATOMICS
    #define QUIESCENT UINT64_MAX
    #define load32(at) __atomic_load_n((at), __ATOMIC_ACQUIRE)
    #define load64(at) __atomic_load_n((at), __ATOMIC_ACQUIRE)
    #define store32(at, value) __atomic_store_n((at), (value), __ATOMIC_RELEASE)
    #define store64(at, value) __atomic_store_n((at), (value), __ATOMIC_RELEASE)
    #define store64_fenced(at, value) __atomic_store_n((at), (value), __ATOMIC_SEQ_CST)
    #define add64(at, value) __atomic_add_fetch((at), (value), __ATOMIC_SEQ_CST)
    #endif
    """
    const uint64_t QUIESCENT    # WorkerCounters.seen_generation of a worker that holds no reference at all
    uint32_t load32(const uint32_t *at) noexcept nogil
    uint64_t load64(const uint64_t *at) noexcept nogil
    void store32(uint32_t *at, uint32_t value) noexcept nogil
    void store64(uint64_t *at, uint64_t value) noexcept nogil
    void store64_fenced(uint64_t *at, uint64_t value) noexcept nogil
    uint64_t add64(uint64_t *at, uint64_t value) noexcept nogil     # returns the sum

cdef enum:
    TABLES_MAGIC = 0x45535031   # "ESP1"
    TABLES_VERSION = 2
    REPLAY_BLOCKS = 128         # 64-bit blocks: the power of two above 4096 / 64 + 1
    VALUE_DIRECT = 0x40000000
    ROUTE_KERNEL = 0xFFFFFFFE   # a route's value: the kernel's, whatever the SPD says (NO_INDEX: ask the SPD first)
    ACQUIRES = 64               # entries of an AcquireRing, a power of two
    # In SaHot.header of an inbound SA in transport mode and UDP:
    MEND_KNOWN = 2              # this byte is 1 where both addresses before NAT are known,
    MEND_SUM = 4                # and here is the complement of their sum (16 bits, memory order)
    # In SaHot.header of an SA in transport mode and UDP over IPv4, either direction; network order, 0: as they are.
    OWN_PORT = 6                # the peer's TCP or UDP port as it is in the SA,
    SHOWN_PORT = 10             # and as this host and its policies see it
    RESOURCES = 16              # workers that may have outbound SAs of their own (RFC 9611)
    SA_SHARED = 0x80000000      # in Policy.sa: the workers' own SAs are in the SaInbound of this one: see sa_of_worker
    # SA bundles, AH around ESP (RFC 2401 4.3), in SaSequence.bundle and Replay.bundle. 0: the SA is in none
    BUNDLE_OUTER = 0xFFFFFFFF   # it is the AH of bundles: nothing but their ESP may be in it
    BUNDLE_BROKEN = 0xFFFFFFFE  # the AH that it must go or come with is gone: nothing passes
    SA_LINES = 39               # odd, so that hot lines of neighbours fall into different cache sets

cdef enum SaFlag:
    SA_ESN = 1
    SA_ENCAP = 2                # RFC 3948 UDP encapsulation
    SA_INBOUND = 4
    SA_DF_COPY = 8              # RFC 4301 5.1.2: DF of the outer header: copied,
    SA_DF_SET = 16              # set, or (neither flag) clear
    SA_DSCP_COPY = 32           # else the template's DSCP stays
    SA_LIVE = 64                # slot in use
    SA_MSS_CLAMP = 128          # clamp TCP MSS to what fits the tunnel

cdef enum Oversize:             # what becomes of a packet over the SA's MTU that may be fragmented
    CUT_BEFORE = 0              # its pieces are enciphered; their receiver puts them together
    CUT_AFTER = 1               # the outer packet is fragmented; the peer puts it together before it deciphers
    CUT_NEVER = 2               # it may not be fragmented: an ICMP error answers it

cdef struct SaSequence:         # 64 bytes: outbound only; numbers are written by workers
    uint64_t next               # host order; the next number to send; never reused (atomic)
    uint64_t limit              # exclusive; workers use numbers below it only
    uint8_t  iv_mask[16]        # XORed into the number: the IV (AEAD: bytes 0-7) or the nonce block (CBC)
    uint64_t hard_limit         # exclusive: 2**32, or 2**64 - 2**32 with ESN, so that `next` may pass it a little
    uint16_t path_mtu           # largest outer packet, host order; control changes it with SaHot.inner_mtu
    uint16_t pad_to             # inner packets are padded to so many bytes (RFC 4303 2.7), host order; 0: they are not
    uint8_t  oversize           # Oversize
    uint8_t  spare_oversize
    uint16_t dummies            # dummy packets per second on the average (RFC 4303 2.6), host order
    uint32_t bundle             # index + 1 of the SA (AH in transport mode) around this one's packets, or BUNDLE_*
    uint8_t  spare[12]

cdef struct SaHot:              # 64 bytes: read per packet; while live only `adjacency` and `inner_mtu` change
    uint8_t  header[40]         # outer IP header template (IPv4 in the first 20); length, ID, checksum zero. Its
                                # protocol says what the SA speaks: ESP, UDP (before ESP) or AH
                                # Transport mode, inbound in UDP: see MEND_KNOWN
    uint8_t  encap_ports[4]     # UDP source, destination; network order
    uint32_t spi                # network order
    uint8_t  salt[4]
    uint32_t adjacency          # outbound: where the outer packet leaves; NO_INDEX: ask the kernel
    uint16_t inner_mtu          # outbound: largest inner packet, host order (outer PMTU less overhead)
    uint8_t  header_length      # 20 or 40 (without UDP); 0: transport mode, packets keep their own header
    uint8_t  flags              # SaFlag
    uint8_t  suite              # crypto.suite_of(key)
    uint8_t  iv_length          # 0, 8 or 16
    uint8_t  icv_length
    uint8_t  align              # of payload + trailer: 4 or 16; of AH, with its ICV: 4 or 8

cdef struct PlainSelector:      # 40 bytes: two prefixes, a protocol and ANY port, as most selectors are
    uint64_t source_high, source_low    # host order; IPv4 in the low 32 bits of the low half
    uint64_t destination_high, destination_low
    uint8_t  source_prefix      # bits of the 128 that count (IPv4: 96 and more)
    uint8_t  destination_prefix
    uint8_t  protocol           # 0 is ANY
    uint8_t  family             # 4 or 6; 0: there is no plain selector, look into the array
    uint8_t  spare[4]

cdef struct SaInbound:          # 64 bytes: inbound only, read per packet
    uint64_t local_high, local_low      # host order; IPv4 in the low 32 bits of local_low
    uint32_t first_selector     # index in the selector array
    uint32_t selector_count
    PlainSelector plain         # the first selector again, where it is plain: saves fetching it from the array

cdef struct Replay:             # 64 + 1024 bytes
    uint64_t top                # host order; highest sequence number accepted, 0 at first
    uint32_t lock               # worker index + 1 while that worker accepts a batch
    uint32_t window             # numbers, 64 .. 4096; 0: no replay protection
    uint32_t bundle             # inbound: index + 1 of the SA (AH) that packets must come by, or BUNDLE_*
    uint8_t  spare[44]
    uint64_t blocks[REPLAY_BLOCKS]

cdef struct SaSource:           # 64 bytes: where packets of an inbound SA in UDP came from last, if not from its peer
    uint64_t high, low          # address, host order; IPv4 in the low 32 bits of low
    uint32_t version            # odd while it is written, under the replay lock; 0: never was
    uint32_t taken              # the version that control has read last; control's own
    uint16_t port               # host order
    uint8_t  spare[38]

cdef struct Sa:                 # SA_LINES * 64 bytes
    SaSequence sequence
    SaHot hot
    SaInbound inbound
    Key key                     # 1152
    Replay replay               # 1088
    SaSource source

cdef struct Selector:           # 96 bytes. Oriented like the packet: source and destination as on the wire
    uint64_t source_first_high, source_first_low        # host order, inclusive ranges; IPv4 in the low 32 bits
    uint64_t source_last_high, source_last_low
    uint64_t destination_first_high, destination_first_low
    uint64_t destination_last_high, destination_last_low
    uint16_t source_port_first, source_port_last        # host order; 0..65535 is ANY, 65535..0 OPAQUE
    uint16_t destination_port_first, destination_port_last
    uint8_t  family             # 4 or 6
    uint8_t  protocol           # 0 is ANY
    uint8_t  spare[22]

cdef enum Action:
    ACTION_DISCARD = 0
    ACTION_PROTECT = 1
    ACTION_BYPASS = 2

cdef struct Policy:             # 128 bytes: an outbound SPD entry
    Selector selector           # source is local, destination is remote
    uint32_t sa                 # outbound SA, swapped by one store at rekey; NO_INDEX: none yet. SA_SHARED may be set
    uint32_t slot               # first of the LPM slots that repeat `sa`, + 1; 0: none does
    uint8_t  action             # Action
    uint8_t  half               # of the LPM table that has those slots
    uint8_t  spare[22]

cdef struct Adjacency:          # 32 bytes; never changed once published: a new one is made and swapped in
    uint8_t  link_header[14]    # destination MAC, source MAC, ethertype
    uint8_t  link_length        # 14, or 0 on LINK_IP ports
    uint8_t  valid
    uint16_t port               # worker's port index
    uint16_t mtu
    uint8_t  spare[12]

cdef struct LpmSlot:            # 64 bytes: one prefix in an open-addressing hash
    uint64_t high, low          # host order, masked
    uint32_t value              # SPD: first index in the candidates array, or VALUE_DIRECT | policy index where
                                # there is just one; routes: adjacency index, ROUTE_KERNEL or NO_INDEX
    uint8_t  prefix             # length in bits (IPv4: 0-32)
    uint8_t  family             # 4, 6; 0: free slot
    # SPD, where the one policy is plain (see PlainSelector; its destination is this prefix or wider): the whole of it.
    uint8_t  plain              # 1: what follows holds
    uint8_t  action             # Action
    uint64_t source_high, source_low
    uint8_t  source_prefix      # bits of 128
    uint8_t  protocol
    uint8_t  spare[14]
    uint32_t sa                 # Policy.sa; both are swapped by TablesView.set_policy_sa
    uint32_t next               # the next slot that repeats the same policy, + 1; 0: none

cdef struct Acquire:            # 64 bytes: a packet met a PROTECT policy that has no SA
    uint64_t source_high, source_low    # host order; IPv4 in the low 32 bits
    uint64_t destination_high, destination_low
    uint32_t policy             # index
    uint16_t source_port, destination_port      # host order, as in Packet
    uint8_t  family             # 4 or 6
    uint8_t  protocol
    uint8_t  has_ports
    uint8_t  spare[21]

cdef struct AcquireRing:        # the worker writes entries and then `head`, control reads them and then moves `taken`
    uint64_t head               # entries ever written
    uint64_t spare_head[7]
    uint64_t taken              # entries ever read
    uint64_t spare_taken[7]
    Acquire entries[ACQUIRES]

cdef struct LpmHalf:
    uint64_t slots_offset       # of LpmSlot[mask + 1], from the segment's start
    uint64_t candidates_offset  # of uint32_t[]: policy indices in SPD order, each run ended by NO_INDEX
    uint64_t seed               # of the hash
    uint32_t capacity           # slots there is room for, a power of two; set when the segment is made
    uint32_t candidates_capacity
    uint32_t mask               # slots in use less one; chosen by policy.lpm_publish
    uint32_t spare
    uint8_t  ipv4_count, ipv6_count
    uint8_t  ipv4_prefixes[33]  # lengths in use, longest first
    uint8_t  ipv6_prefixes[129]

cdef struct LpmTable:           # two halves: control writes the idle one, then flips `active`
    uint32_t active             # 0 or 1
    uint32_t spare
    LpmHalf halves[2]

cdef struct TablesHeader:
    uint64_t magic
    uint32_t version
    uint32_t engine             # 0: crypto_mb, 1: crypto_evp: the layout of Key.expanded
    uint64_t size               # of the segment
    uint64_t generation         # bumped after each unlink or flip
    uint32_t max_sas, max_policies, max_selectors, max_adjacencies, max_routes, workers
    uint32_t spi_mask
    uint32_t sas_used           # one past the highest SA slot ever used: bounds every scan of the SAD
    uint64_t sas_offset, spis_offset, policies_offset, selectors_offset, adjacencies_offset
    uint64_t workers_offset     # WorkerCounters[workers]
    uint64_t sa_counters_offset # SaCounters[workers][max_sas]
    uint64_t acquires_offset    # AcquireRing[workers]
    uint64_t boot_id            # random, tells one run from the next
    uint64_t spi_moves          # bumped between the copy and the end of an SPI entry that moves
    LpmTable spd
    LpmTable routes
    uint64_t dummy_sas          # how many outbound SAs send dummy packets

cdef struct Tables:             # one process's view: plain pointers into the segment
    TablesHeader *header
    Sa *sas
    uint64_t *spis              # inbound: SPI (host order) << 32 | SA index + 1; 0: free
    Policy *policies
    Selector *selectors
    Adjacency *adjacencies
    WorkerCounters *worker      # this worker's (NULL in control)
    SaCounters *sa_counters     # this worker's
    AcquireRing *acquires       # this worker's (control: the first of all)
    uint32_t worker_index


cdef inline uint32_t sa_of_worker(const Tables *t, uint32_t shared) noexcept nogil:
    """This worker's own outbound SA in the place of a policy's (Policy.sa with SA_SHARED), or that one itself.

    An outbound SA has no use for its SaInbound: there lie the indices of RESOURCES workers, NO_INDEX for none.
    """
    cdef uint32_t common = shared & ~<uint32_t>SA_SHARED
    cdef const uint32_t *own = <const uint32_t *>&t.sas[common].inbound
    cdef uint32_t found = load32(&own[t.worker_index & (RESOURCES - 1)])
    return common if found == <uint32_t>NO_INDEX else found

cdef inline uint32_t spi_slot(const Tables *t, uint32_t spi) noexcept nogil:
    """Where the search for `spi` (host order) begins: Fibonacci hashing. We choose SPIs: nobody can aim."""
    return <uint32_t>((spi * <uint64_t>0x9E3779B97F4A7C15) >> 32) & t.header.spi_mask

cdef inline void spi_touch(const Tables *t, uint32_t spi) noexcept nogil:
    """Fetch the line in which `spi_find` will look first."""
    touch(&t.spis[spi_slot(t, spi)])

cdef inline uint32_t spi_find(const Tables *t, uint32_t spi) noexcept nogil:
    """Index of the inbound SA with this SPI (host order), or NO_INDEX.

    Linear probing at a load of one half or less, without tombstones: one cache line as a rule. Control may
    move entries towards their home meanwhile (TablesView.spi_remove); whoever misses during a move looks again.
    """
    cdef uint32_t mask = t.header.spi_mask
    cdef uint32_t at
    cdef uint64_t entry
    cdef uint64_t moves
    if spi == 0:                # RFC 4303 2.1: never on the wire; and a free slot's upper half is zero
        return NO_INDEX
    while True:
        moves = load64(&t.header.spi_moves)
        at = spi_slot(t, spi)
        while True:
            entry = load64(&t.spis[at])
            if <uint32_t>(entry >> 32) == spi:
                return <uint32_t>entry - 1
            if entry == 0:
                break
            at = (at + 1) & mask
        if load64(&t.header.spi_moves) == moves:
            return NO_INDEX

cdef inline void tables_enter(Tables *t) noexcept nogil:
    """The worker begins, or wakes up: from here on it may hold references.

    The fence keeps the table reads that follow from being done before control can see that we are awake.
    """
    store64_fenced(&t.worker.seen_generation, load64(&t.header.generation))

cdef inline void tables_pass(Tables *t) noexcept nogil:
    """Once per loop, between two batches: every reference of earlier batches is gone."""
    cdef uint64_t generation = load64(&t.header.generation)
    if t.worker.seen_generation != generation:
        store64(&t.worker.seen_generation, generation)

cdef inline void tables_leave(Tables *t) noexcept nogil:
    """Before sleep and at the end: the worker holds no reference until it enters again."""
    store64(&t.worker.seen_generation, QUIESCENT)

cdef class TablesView:
    """One process's mapping of the segment; see ext/sa.pyx."""
    cdef Tables c
    cdef size_t mapped          # bytes at c.header
    cdef uint32_t spis          # entries of the SPI table (control's view only)
    cdef readonly str lock_error    # why the segment is not locked in memory; "" when it is
    cdef _check(self)
    cdef _check_area(self, str name, uint64_t offset, uint64_t count, size_t size)
    cdef _point(self, worker_index)
    cdef int64_t _spi_place(self, uint32_t spi) noexcept nogil
    cdef WorkerCounters *_workers(self) noexcept
    cdef Sa *_sa(self, uint32_t index) except NULL
