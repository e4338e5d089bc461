"""The AF_XDP port, as the worker's loop and benches see it."""

from libc.stdint cimport uint8_t, uint32_t

from ext.libxdp cimport xsk_ring_cons, xsk_ring_prod, xsk_socket, xsk_umem
from ext.packet cimport Pool, PortHandle

cdef struct XskState:
    xsk_ring_cons rx
    xsk_ring_prod tx
    xsk_ring_prod fill
    xsk_ring_cons completion
    int fd
    uint32_t fill_target    # frames kept in fill and rx ring together
    uint32_t refill_batch   # frames worth a refill
    uint32_t filled         # frames there now
    uint32_t sending        # frames in tx ring, kernel or completion ring
    uint32_t unkicked       # descriptors the kernel has not been told of
    uint32_t chunk          # bytes of a frame that one descriptor can describe: all of it, or a page
    uint8_t *parts          # per frame, descriptors yet to complete; NULL: every packet is one descriptor
    bint zero_copy
    bint busy_poll          # each look without a packet has the kernel drive the card's queue
    bint refused            # the last kick met an error that waiting alone does not mend (link down)

cdef class Umem:
    """See xsk.pyx."""
    cdef xsk_umem *umem             # NULL until the first port opens
    cdef xsk_ring_prod fill         # made with the UMEM, taken over by the first port
    cdef xsk_ring_cons completion
    cdef readonly Pool pool
    cdef readonly int ports         # open ports
    cdef readonly str zero_copy     # auto, on, off: what is asked
    cdef bint is_zero_copy          # what the first port got, and so all
    cdef uint32_t chunk             # see XskState
    cdef uint8_t *parts

    cdef int _register(self, uint32_t ring) except -1
    cdef int _release(self) except -1

cdef class XskPort(PortHandle):
    """See xsk.pyx."""
    cdef XskState state
    cdef xsk_socket *socket
    cdef int xsks_fd                # our duplicate of the XSKMAP's descriptor
    cdef readonly Umem umem
    cdef readonly str interface
    cdef readonly int queue
    cdef readonly str xdp_mode      # native or generic: how the program that feeds us is attached

    cdef int _open(self, uint32_t ring, double retry) except -1
    cdef int _bind(self, uint32_t ring, bint zero_copy)
    cdef int _adopt(self) except -1
    cdef int _set_busy_poll(self, int microseconds) except -1
