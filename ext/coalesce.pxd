"""Runs of packets that leave in one system call as one super-packet."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from ext.linuxnet cimport iovec
from ext.packet cimport BATCH_MAX, Packet
from ext.segment cimport VnetHeader

cdef enum:
    OPEN_RUNS = 8               # flows followed at a time within one batch

cdef struct Run:
    VnetHeader about            # what the kernel is told of it; zero for a single packet
    uint8_t   family            # 4 or 6; 0: not TCP or UDP, never joined
    uint8_t   protocol
    uint8_t   last_flags        # TCP flags of the last packet
    uint8_t   first_flags       # TCP flags of the first, as they were
    uint8_t   verified          # the first packet's checksum was found right
    uint32_t  first             # index of its first packet
    uint32_t  last              # index of its last packet
    uint32_t  count             # packets
    uint32_t  payload           # bytes behind the transport header, all packets
    uint32_t  next_sequence     # TCP, host order
    uint32_t  flow              # hash of addresses and ports
    uint16_t  headers           # bytes before the payload, link header included
    uint16_t  transport         # offset of the transport header, link header included
    uint16_t  size              # payload bytes of the first packet
    uint16_t  identification    # IPv4 ID of the last packet, host order
    uint16_t  checksum          # the first packet's transport checksum, as it was

cdef struct Runs:
    uint32_t count
    uint32_t open_count
    uint32_t link               # bytes of link header before each packet
    bint     no_udp             # join no UDP: set by a port whose kernel refuses such runs; gather leaves it alone
    uint8_t  open[OPEN_RUNS]    # indices of runs that may grow
    uint8_t  next[BATCH_MAX]    # index of the packet that follows in the same run
    Run runs[BATCH_MAX]         # in the order in which they leave

cdef void gather(Runs *runs, Packet **packets, uint32_t count, uint32_t link) noexcept nogil
cdef void order(const Runs *runs, Packet **packets, uint32_t count) noexcept nogil
cdef uint32_t run_apply(Run *run, Packet **members, uint32_t link, iovec *parts) noexcept nogil
cdef void run_undo(const Run *run, Packet **members, uint32_t link) noexcept nogil
cdef bint run_refused(Runs *runs, const Run *run, int error) noexcept nogil
