"""libxdp's AF_XDP part: the used subset of xdp/xsk.h and linux/if_xdp.h. Functions return a negative errno."""

from libc.stdint cimport uint16_t, uint32_t, uint64_t

cdef extern from *:
    """
    #include <linux/if_xdp.h>
    #ifndef XDP_USE_SG                  /* headers before Linux 6.6 */
    #define XDP_USE_SG (1 << 4)
    #define XDP_PKT_CONTD (1 << 0)
    #endif
    """

cdef extern from "<linux/if_xdp.h>" nogil:
    enum:
        XDP_COPY
        XDP_ZEROCOPY
        XDP_USE_NEED_WAKEUP
        XDP_OPTIONS
        XDP_OPTIONS_ZEROCOPY
        XDP_STATISTICS
        XDP_USE_SG                  # of bind, since Linux 6.6: packets of several descriptors
        XDP_PKT_CONTD               # xdp_desc.options: the packet goes on in the next descriptor
    struct xdp_desc:
        uint64_t addr               # offset in the UMEM
        uint32_t len
        uint32_t options
    struct xdp_options:
        uint32_t flags
    struct xdp_statistics:
        uint64_t rx_dropped
        uint64_t rx_invalid_descs
        uint64_t tx_invalid_descs
        uint64_t rx_ring_full
        uint64_t rx_fill_ring_empty_descs
        uint64_t tx_ring_empty_descs

cdef extern from "<xdp/xsk.h>" nogil:
    enum:
        XSK_LIBXDP_FLAGS__INHIBIT_PROG_LOAD
    struct xsk_ring_prod:
        uint32_t size
    struct xsk_ring_cons:
        uint32_t size
    struct xsk_umem:
        pass
    struct xsk_socket:
        pass
    struct xsk_umem_config:
        uint32_t fill_size
        uint32_t comp_size
        uint32_t frame_size
        uint32_t frame_headroom
        uint32_t flags
    struct xsk_socket_config:
        uint32_t rx_size
        uint32_t tx_size
        uint32_t libxdp_flags
        uint32_t xdp_flags
        uint16_t bind_flags

    uint64_t *xsk_ring_prod__fill_addr(xsk_ring_prod *fill, uint32_t index)
    const uint64_t *xsk_ring_cons__comp_addr(const xsk_ring_cons *completion, uint32_t index)
    xdp_desc *xsk_ring_prod__tx_desc(xsk_ring_prod *tx, uint32_t index)
    const xdp_desc *xsk_ring_cons__rx_desc(const xsk_ring_cons *rx, uint32_t index)
    bint xsk_ring_prod__needs_wakeup(const xsk_ring_prod *ring)
    uint32_t xsk_prod_nb_free(xsk_ring_prod *ring, uint32_t wanted)
    uint32_t xsk_cons_nb_avail(xsk_ring_cons *ring, uint32_t wanted)
    uint32_t xsk_ring_prod__reserve(xsk_ring_prod *ring, uint32_t count, uint32_t *index)
    void xsk_ring_prod__submit(xsk_ring_prod *ring, uint32_t count)
    uint32_t xsk_ring_cons__peek(xsk_ring_cons *ring, uint32_t count, uint32_t *index)
    void xsk_ring_cons__release(xsk_ring_cons *ring, uint32_t count)
    void xsk_ring_cons__cancel(xsk_ring_cons *ring, uint32_t count)

    int xsk_umem__create(
        xsk_umem **umem, void *area, uint64_t size, xsk_ring_prod *fill, xsk_ring_cons *completion,
        const xsk_umem_config *config)
    int xsk_umem__delete(xsk_umem *umem)
    int xsk_socket__create_shared(
        xsk_socket **socket, const char *interface, uint32_t queue, xsk_umem *umem, xsk_ring_cons *rx,
        xsk_ring_prod *tx, xsk_ring_prod *fill, xsk_ring_cons *completion, const xsk_socket_config *config)
    void xsk_socket__delete(xsk_socket *socket)
    int xsk_socket__fd(const xsk_socket *socket)
