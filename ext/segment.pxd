"""Packets larger than the wire: what the kernel says about them, and how far the cutting has gone."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from ext.packet cimport BATCH_MAX, Batch, FramePool, Packet, Port

cdef enum:
    VNET_NEEDS_CSUM = 1         # VIRTIO_NET_HDR_F_NEEDS_CSUM: the field holds the pseudo-header sum only
    VNET_DATA_VALID = 2         # VIRTIO_NET_HDR_F_DATA_VALID
    GSO_NONE = 0
    GSO_TCPV4 = 1
    GSO_TCPV6 = 4
    GSO_UDP_L4 = 5
    GSO_ECN = 0x80              # or-ed to a TCP type: CWR is set in the first segment
    SUPER_MAX = 65536 + 18      # bytes: the longest packet a kernel hands over, with its link header
    BATCH_WORTHWHILE = 16       # packets with which a batch goes on its way rather than begin what it cannot hold whole
    SUPER_HEAD = 65536 + 64     # bytes kept free before an overflow buffer: a whole packet may lie in its (jumbo) frame

cdef struct VnetHeader:         # struct virtio_net_hdr, 10 bytes, host order (asserted in segment.pyx)
    uint8_t  flags
    uint8_t  gso_type
    uint16_t header_length      # a hint; not trusted
    uint16_t gso_size           # bytes of payload in each segment
    uint16_t csum_start         # from the packet's first byte, link header included
    uint16_t csum_offset        # of the checksum field, from csum_start

cdef struct Super:              # one packet to be cut
    uint8_t  *data              # link or IP header, then transport header, then all the payload
    uint64_t  sum               # of both addresses and the protocol: the pseudo-header without its length
    uint32_t  headers           # bytes before the payload
    uint32_t  payload           # bytes
    uint32_t  done              # payload bytes cut off so far; `done == payload` when nothing is left
    uint32_t  sequence          # TCP, host order: of the first segment
    uint16_t  segment_size      # payload bytes per segment
    uint16_t  network           # offset of the IP header
    uint16_t  transport         # offset of the transport header
    uint16_t  identification    # IPv4 ID of the next segment, host order
    uint8_t   family            # 4 or 6
    uint8_t   protocol          # 6 or 17
    uint8_t   tcp_flags         # as they came
    uint8_t   checksummed       # 0: UDP without checksum stays without

cdef inline bint splits(const Batch *batch, uint32_t length, uint32_t size) noexcept nogil:
    """Whether `length` bytes cut into pieces of `size` bytes should wait for the next batch.

    A super-packet that goes through in one batch leaves as one super-packet on the other side.
    """
    return batch.count >= BATCH_WORTHWHILE and (length + size - 1) // size > BATCH_MAX - batch.count

cdef bint super_begin(Super *whole, const FramePool *pool, const VnetHeader *about, uint8_t *data, uint32_t length,
                      uint8_t link) noexcept nogil
cdef uint32_t segment(Super *whole, Port *port, Batch *batch) noexcept nogil
cdef void describe(const Port *port, Packet *packet, uint64_t frame, uint32_t offset, uint32_t length,
                   uint8_t flags) noexcept nogil
cdef void finish_checksum(const VnetHeader *about, uint8_t *data, uint32_t length) noexcept nogil
cdef uint64_t copy_and_sum(uint8_t *target, const uint8_t *source, uint32_t length) noexcept nogil
cdef uint64_t sum_long(const uint8_t *source, uint32_t length) noexcept nogil
cdef uint16_t partial_checksum(const uint8_t *network, uint8_t family, uint8_t protocol, uint32_t length) noexcept nogil
cdef void arrive(Port *port, Batch *batch, Super *whole, const VnetHeader *about, uint64_t frame, uint8_t *overflow,
                 uint32_t length) noexcept nogil
