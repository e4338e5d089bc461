"""A TUN device's queue as a port."""

from libc.stdint cimport uint8_t, uint32_t

from ext.coalesce cimport Runs
from ext.linuxnet cimport iovec
from ext.packet cimport BATCH_MAX, PortHandle
from ext.segment cimport Super, VnetHeader

cdef struct TunState:
    int fd
    VnetHeader about            # of the packet read last
    uint8_t *overflow           # what of it is longer than a frame; SUPER_HEAD bytes before it are ours too
    uint8_t *overflow_area      # what to free
    Super whole                 # the super-frame that is being cut
    Runs runs
    iovec parts[BATCH_MAX + 1]

cdef class TunPort(PortHandle):
    cdef TunState state
    cdef readonly str offloads
