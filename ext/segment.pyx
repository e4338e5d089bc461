"""Cut the super-frames of TSO, USO and GRO into packets of wire size.

    super_begin   prove the headers sound, note what every segment shares
    segment       one frame per segment: headers copied, payload copied and summed in one pass,
                  lengths, ID, sequence, flags and checksums made right; stops when the batch or the
                  pool is full and goes on there next time (`Super.done`)

The result is what the kernel's own segmentation gives (net/ipv4/tcp_offload.c): the IPv4 ID counts up, FIN
and PSH stand in the last segment only, CWR in the first only (RFC 3168 6.1.2), every checksum is complete.
A kernel's `hdr_len` is only a hint (the linear part of its buffer), so headers are measured here.

Not handled: UFO (IP fragments by virtio, switched off at every port), GSO inside tunnels, IPv6 extension
headers other than those that `csum_start` skips. Such packets are refused by super_begin; the port delivers
their truncated head, which the parser drops as "length".
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from ext.counters cimport PASS
from ext.packet cimport (
    BATCH_MAX, LINK_ETHERNET, NO_INDEX, PACKET_WHOLE_CHECKSUM, Batch, FramePool, Packet, Port, frame_give, frame_take,
)
from ext.wire cimport (
    ETHERNET_HEADER, PROTOCOL_TCP, PROTOCOL_UDP, bswap16, fold, load16, load32, put_raw16, raw32, store16, store32,
    sum20, sum_bytes,
)

cdef extern from *:
    """
    /* Sums of 32-bit words in 64-bit lanes: gcc makes 8 adds of 4 lanes of this with AVX2, of 2 with SSE2.
       The resolver of target_clones runs before the sanitizers are ready, so they get the plain body. */
    #if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__)
    #define ESP_CLONES __attribute__((target_clones("avx2", "default")))
    #else
    #define ESP_CLONES
    #endif
    typedef uint32_t esp_word __attribute__((aligned(1), may_alias));

    static uint64_t esp_tail(const uint8_t *from, uint32_t rest)
    {
        uint32_t word = 0;
        __builtin_memcpy(&word, from, rest);
        return word;
    }

    ESP_CLONES static uint64_t esp_copy_sum(uint8_t *__restrict to, const uint8_t *__restrict from, uint32_t length)
    {
        const esp_word *source = (const esp_word *)from;
        esp_word *target = (esp_word *)to;
        uint64_t total = 0;
        uint32_t words = length / 4, i;
        for (i = 0; i < words; i++) {
            target[i] = source[i];
            total += source[i];
        }
        if (length & 3) {
            __builtin_memcpy(to + words * 4, from + words * 4, length & 3);
            total += esp_tail(from + words * 4, length & 3);
        }
        return total;
    }

    ESP_CLONES static uint64_t esp_sum(const uint8_t *from, uint32_t length)
    {
        const esp_word *source = (const esp_word *)from;
        uint64_t total = 0;
        uint32_t words = length / 4, i;
        for (i = 0; i < words; i++)
            total += source[i];
        if (length & 3)
            total += esp_tail(from + words * 4, length & 3);
        return total;
    }
    #define ASSERT_SIZE(size, want) _Static_assert((size) == (want), #size " is not " #want)
    """
    uint64_t esp_copy_sum(uint8_t *target, const uint8_t *source, uint32_t length) noexcept nogil
    uint64_t esp_sum(const uint8_t *source, uint32_t length) noexcept nogil
    void assert_size "ASSERT_SIZE"(size_t size, size_t want) noexcept nogil

cdef enum:
    TCP_FIN = 0x01
    TCP_PSH = 0x08
    TCP_CWR = 0x80


cdef void _assert_sizes() noexcept nogil:
    assert_size(sizeof(VnetHeader), 10)


_assert_sizes()


cdef uint64_t copy_and_sum(uint8_t *target, const uint8_t *source, uint32_t length) noexcept nogil:
    """memcpy that also sums what it copies; `wire.fold` makes a checksum of the result."""
    return esp_copy_sum(target, source, length)


cdef uint64_t sum_long(const uint8_t *source, uint32_t length) noexcept nogil:
    """As wire.sum_bytes, for hundreds of bytes and more."""
    return esp_sum(source, length)


cdef inline uint64_t _address_sum(const uint8_t *network, uint8_t family) noexcept nogil:
    """Sum of both addresses, memory order."""
    if family == 4:
        return <uint64_t>raw32(network + 12) + raw32(network + 16)
    return sum_bytes(network + 8, 32)


cdef uint16_t partial_checksum(
    const uint8_t *network, uint8_t family, uint8_t protocol, uint32_t length
) noexcept nogil:
    """What a device expects in the field with VNET_NEEDS_CSUM: the folded pseudo-header sum, memory order."""
    return fold(_address_sum(network, family) + bswap16(protocol) + bswap16(<uint16_t>length))


cdef bint super_begin(Super *whole, const FramePool *pool, const VnetHeader *about, uint8_t *data, uint32_t length,
                      uint8_t link) noexcept nogil:
    """Prepare to cut the `length` bytes at `data`, which stay where they are until the cutting is over.

    False when the headers do not hold together, or one segment would not fit a frame.
    """
    cdef uint32_t network = ETHERNET_HEADER if link == LINK_ETHERNET else 0
    cdef uint32_t transport
    cdef uint32_t size
    cdef uint8_t kind = about.gso_type & ~GSO_ECN
    if about.gso_size == 0 or length < network + 20:
        return False
    if data[network] >> 4 == 4 and (kind == GSO_TCPV4 or kind == GSO_UDP_L4):
        size = (data[network] & 15) * 4
        if size < 20 or length < network + size or load16(data + network + 6) & 0x3FFF:
            return False
        whole.family = 4
        whole.protocol = data[network + 9]
        whole.identification = load16(data + network + 4)
        transport = network + size
    elif data[network] >> 4 == 6 and (kind == GSO_TCPV6 or kind == GSO_UDP_L4) and length >= network + 40:
        whole.family = 6
        whole.protocol = data[network + 6]
        transport = network + 40
        if whole.protocol != PROTOCOL_TCP and whole.protocol != PROTOCOL_UDP:
            # Extension headers: the kernel walked over them to set csum_start.
            if not about.flags & VNET_NEEDS_CSUM or about.csum_start < transport:
                return False
            transport = about.csum_start
            whole.protocol = PROTOCOL_UDP if kind == GSO_UDP_L4 else PROTOCOL_TCP
    else:
        return False
    if whole.protocol != (PROTOCOL_UDP if kind == GSO_UDP_L4 else PROTOCOL_TCP):
        return False
    whole.checksummed = 1
    if whole.protocol == PROTOCOL_TCP:
        if length < transport + 20:
            return False
        size = (data[transport + 12] >> 4) * 4
        if size < 20:
            return False
        whole.sequence = load32(data + transport + 4)
        whole.tcp_flags = data[transport + 13]
    else:
        size = 8
        if length < transport + 8:
            return False
        whole.checksummed = about.flags & VNET_NEEDS_CSUM or load16(data + transport + 6) != 0
    if length < transport + size or transport + size + about.gso_size > pool.frame_size - pool.headroom:
        return False
    whole.data = data
    whole.headers = transport + size
    whole.payload = length - whole.headers
    whole.done = 0
    whole.segment_size = about.gso_size
    whole.network = <uint16_t>network
    whole.transport = <uint16_t>transport
    whole.sum = _address_sum(data + network, whole.family) + bswap16(whole.protocol)
    return whole.payload > 0


cdef uint32_t segment(Super *whole, Port *port, Batch *batch) noexcept nogil:
    """Append segments to the batch until it is full, the pool is empty or nothing is left; returns their number."""
    cdef FramePool *pool = port.frames
    cdef uint32_t before = batch.count
    cdef uint32_t size
    cdef uint64_t frame
    while batch.count < BATCH_MAX and whole.done < whole.payload:
        if not frame_take(pool, &frame):
            break
        size = whole.payload - whole.done
        if size > whole.segment_size:
            size = whole.segment_size
        _cut(whole, pool.base + frame + pool.headroom, size)
        describe(port, &batch.packets[batch.count], frame, pool.headroom, whole.headers + size, PACKET_WHOLE_CHECKSUM)
        batch.count += 1
    return batch.count - before


cdef void _cut(Super *whole, uint8_t *target, uint32_t size) noexcept nogil:
    """Write the next segment, with `size` bytes of payload, to `target`."""
    cdef uint8_t *network = target + whole.network
    cdef uint8_t *transport = target + whole.transport
    cdef uint32_t transport_length = whole.headers - whole.transport + size
    cdef uint32_t field
    cdef uint16_t checksum
    cdef uint64_t total = whole.sum + bswap16(<uint16_t>transport_length)
    memcpy(target, whole.data, whole.headers)
    if whole.family == 4:
        store16(network + 2, <uint16_t>(whole.headers - whole.network + size))
        store16(network + 4, whole.identification)
        whole.identification += 1
        put_raw16(network + 10, 0)
        if whole.transport - whole.network == 20:
            put_raw16(network + 10, ~fold(sum20(network)))
        else:
            put_raw16(network + 10, ~fold(sum_bytes(network, whole.transport - whole.network)))
    else:
        store16(network + 4, <uint16_t>(whole.headers - whole.network - 40 + size))
    if whole.protocol == PROTOCOL_TCP:
        store32(transport + 4, whole.sequence + whole.done)
        if whole.done:
            transport[13] &= ~TCP_CWR
        if whole.done + size < whole.payload:
            transport[13] &= ~(TCP_FIN | TCP_PSH)
        field = 16
    else:
        store16(transport + 4, <uint16_t>transport_length)
        field = 6
    put_raw16(transport + field, 0)
    total += sum_bytes(transport, whole.headers - whole.transport)
    total += esp_copy_sum(target + whole.headers, whole.data + whole.headers + whole.done, size)
    if whole.checksummed:
        checksum = ~fold(total)
        if checksum == 0 and whole.protocol == PROTOCOL_UDP:
            checksum = 0xFFFF       # RFC 768: zero would mean "no checksum"
        put_raw16(transport + field, checksum)
    whole.done += size


cdef void describe(const Port *port, Packet *packet, uint64_t frame, uint32_t offset, uint32_t length,
                   uint8_t flags) noexcept nogil:
    """Fill a Packet for `length` bytes that lie `offset` bytes into `frame`, as Port.receive promises."""
    packet.data = port.frames.base + frame + offset
    packet.frame = frame
    packet.length = length
    packet.headroom = <uint16_t>offset
    packet.tailroom = <uint16_t>(port.frames.frame_size - offset - length)
    packet.sa = NO_INDEX
    packet.adjacency = NO_INDEX
    packet.verdict = PASS
    packet.flags = flags
    packet.port = port.index


cdef void finish_checksum(const VnetHeader *about, uint8_t *data, uint32_t length) noexcept nogil:
    """Complete the checksum of a packet that is not cut, when `about` says that it is partial.

    What the device would do: sum from csum_start to the end; the field holds the pseudo-header's sum already.
    """
    cdef uint32_t at = <uint32_t>about.csum_start + about.csum_offset
    cdef uint16_t checksum
    if not about.flags & VNET_NEEDS_CSUM or at + 2 > length:
        return
    checksum = ~fold(esp_sum(data + about.csum_start, length - about.csum_start))
    if checksum == 0 and about.csum_offset == 6:
        checksum = 0xFFFF
    put_raw16(data + at, checksum)


cdef void arrive(Port *port, Batch *batch, Super *whole, const VnetHeader *about, uint64_t frame, uint8_t *overflow,
                 uint32_t length) noexcept nogil:
    """Take in one packet that was scattered by readv() or recvmsg(): its head fills `frame` behind the headroom, the
    rest lies at `overflow`, before which SUPER_HEAD bytes are free.

    A plain packet joins the batch where it lies. A super-frame is made contiguous (its head moves before the
    overflow), its frame goes back and its first segments join the batch. The batch must have room for one packet.
    """
    cdef FramePool *pool = port.frames
    cdef uint8_t *data = pool.base + frame + pool.headroom
    cdef uint32_t room = pool.frame_size - pool.headroom
    cdef uint32_t head = length if length < room else room
    # A longer one than any kernel gives today (BIG TCP) would not lie whole in the overflow.
    if about.gso_type != GSO_NONE and length <= SUPER_MAX:
        memcpy(overflow - head, data, head)
        if super_begin(whole, pool, about, overflow - head, length, port.link):
            frame_give(pool, frame)
            if not splits(batch, whole.payload, whole.segment_size):
                segment(whole, port, batch)
            return
    # Longer than a frame (or a super-frame that makes no sense): the parser drops the truncated head as "length".
    finish_checksum(about, data, head)
    describe(port, &batch.packets[batch.count], frame, pool.headroom, head, PACKET_WHOLE_CHECKSUM)
    batch.count += 1
