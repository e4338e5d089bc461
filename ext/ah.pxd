"""AH (RFC 4302): what the outbound and the inbound walk call where an SA speaks it."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from ext.crypto cimport ICV_MAX, Job
from ext.packet cimport BATCH_MAX, Batch, Packet
from ext.sa cimport Sa, SaHot
from ext.wire cimport PROTOCOL_AH

cdef enum:
    AH_HEADER = 12              # next header, length, reserved, SPI, sequence number; the ICV follows
    AH_HEADERS_MAX = 464        # bytes of IP header, options and extension headers before the AH that we can put by
    AH_MOST = 40 + AH_HEADER + ICV_MAX + 4  # what goes before a packet: IPv6, AH, the longest ICV and its padding;
                                # AES-GMAC's has 8 bytes of IV more and 16 of ICV less

cdef struct AhHeaders:          # 512 bytes: one packet's headers, while zeros stand for what may change on the way
    uint16_t length             # bytes of `whole` in use: all that comes before the AH
    uint8_t  packet             # its index in the batch
    uint8_t  spare[13]
    uint8_t  icv[ICV_MAX]       # inbound: as it arrived; in the packet are zeros
    uint8_t  whole[AH_HEADERS_MAX]

cdef struct Ah:                 # scratch, one per walk
    uint32_t count              # packets of this batch
    uint32_t reserved[15]
    AhHeaders headers[BATCH_MAX]    # outbound: [0:count]; inbound: by the packet's index

cdef inline bint speaks_ah(const SaHot *hot) noexcept nogil:
    """The SA's protocol, as its outer header has it."""
    return hot.header[9 if hot.header[0] >> 4 == 4 else 6] == PROTOCOL_AH

cdef inline uint32_t ah_length(const SaHot *hot) noexcept nogil:
    """Bytes of the AH with its ICV, padded to 32 bits over IPv4 and 64 over IPv6 (RFC 4302 2.2, 3.3.3.2.1)."""
    cdef uint32_t mask = hot.align - 1
    return (AH_HEADER + hot.iv_length + hot.icv_length + mask) & ~mask

# Outbound: the AH of a packet whose IP header stands at `data`, complete but for the ICV, and the engine's job for it.
cdef uint8_t ah_write(Packet *packet, uint32_t before, uint8_t next_header, const Sa *sa, uint64_t sequence,
                      AhHeaders *headers, Job *job) noexcept nogil
# Outbound, after the engine: what was zero for the ICV gets its values back.
cdef void ah_restore(Batch *batch, const Ah *scratch) noexcept nogil
# Inbound: a packet's AH checked, and its job; then, once the ICV has passed, taken off: tunnel, transport mode.
cdef uint8_t ah_prepare(Packet *packet, uint32_t index, Sa *sa, AhHeaders *headers, Job *job) noexcept nogil
cdef uint8_t ah_strip(Packet *packet) noexcept nogil
cdef uint8_t ah_unwrap(Packet *packet, uint32_t next_at, AhHeaders *headers) noexcept nogil
