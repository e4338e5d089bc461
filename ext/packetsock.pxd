"""A packet socket on one interface as a port."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from ext.coalesce cimport Runs
from ext.linuxnet cimport iovec, mmsghdr
from ext.packet cimport BATCH_MAX, PortHandle
from ext.segment cimport Super, VnetHeader

cdef enum:
    NO_FRAME = 0xFFFFFFFFFFFFFFFF
    FEW = 8                     # messages asked for while super-frames come: what fits the second-level cache

cdef struct PacketState:
    int fd
    uint32_t received           # messages of the last recvmmsg()
    uint32_t taken              # of these, how many have joined a batch
    uint32_t appetite           # messages to ask for next time
    Super whole                 # the super-frame that is being cut
    uint8_t *overflow           # per message SUPER_HEAD + SUPER_MAX bytes
    uint64_t frames[BATCH_MAX]  # per message the frame that its head is received into, or NO_FRAME
    VnetHeader about[BATCH_MAX]
    iovec rx_parts[BATCH_MAX][3]
    mmsghdr rx[BATCH_MAX]
    Runs runs
    iovec tx_parts[2 * BATCH_MAX]
    mmsghdr tx[BATCH_MAX]

cdef uint64_t socket_drops(int fd) noexcept nogil

cdef class PacketPort(PortHandle):
    cdef PacketState state
    cdef readonly str fanout
