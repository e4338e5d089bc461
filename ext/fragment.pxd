"""Fragmentation: what loop.pyx calls."""

from libc.stdint cimport uint32_t

from ext.packet cimport FramePool, Packet

cdef enum:
    PIECES_MAX = 48             # of one packet; 64 KB at an MTU of 1420

cdef uint32_t fragment_packet(FramePool *frames, Packet *whole, uint32_t mtu, uint32_t identification,
                              Packet *pieces) noexcept nogil
