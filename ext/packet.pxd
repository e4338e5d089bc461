"""A packet, a batch of them, and the pool of frames they lie in.

A frame is a fixed slice of one memory area per worker (the AF_XDP UMEM when there is one).
Packets are worked on where they lie: receive puts `data` at the link header, `wire.parse_batch`
moves it to the IP header, ESP moves it again, transmit writes a link header before it.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from ext.counters cimport PortCounters

cdef extern from *:
    """
    #ifndef ESPLANADE_HIDE
    #if defined(__SANITIZE_ADDRESS__)
    #include <sanitizer/asan_interface.h>
    #define ESPLANADE_HIDE(at, size) __asan_poison_memory_region((at), (size))
    #define ESPLANADE_SHOW(at, size) __asan_unpoison_memory_region((at), (size))
    #else
    #define ESPLANADE_HIDE(at, size) ((void)0)
    #define ESPLANADE_SHOW(at, size) ((void)0)
    #endif
    #endif
    """
    # In the sanitizer build, bytes that nobody may touch: a free frame, and what lies around a tight packet.
    void hide_bytes "ESPLANADE_HIDE"(const void *at, size_t size) noexcept nogil
    void show_bytes "ESPLANADE_SHOW"(const void *at, size_t size) noexcept nogil

cdef enum:
    BATCH_MAX = 64              # packets in a batch
    NO_INDEX = 0xFFFFFFFF       # "none" for every table index
    NO_LEADER = 255
    NO_PORT = 255               # Packet.leaves_by

cdef enum PacketFlag:
    PACKET_PARTIAL_CHECKSUM = 1 # receive knows that the TCP/UDP checksum holds only the pseudo-header sum
    PACKET_FRAGMENT = 2         # IP fragment (any offset, or more-fragments)
    PACKET_NO_PORTS = 4         # transport header not present (later fragment) or has no ports
    PACKET_UDP_ENCAP = 8        # inbound: ESP was inside UDP
    PACKET_WHOLE_CHECKSUM = 16  # receive knows that the TCP/UDP checksum is complete
    PACKET_CUT_AFTER = 32       # outbound: may be over the MTU, its outer packet will be fragmented
    PACKET_WAITS = 128          # dealt: AH of an SA bundle, which who settles the batch opens (esp_in.pyx)
    PACKET_DUMMY = 64           # outbound: no packet, but bytes for the peer to discard (RFC 4303 2.6)

cdef struct Packet:             # 64 bytes, one cache line
    uint8_t  *data              # first byte of the packet as it stands now (link header, then IP header)
    uint64_t  frame             # offset in FramePool.base of the frame's first byte
    uint64_t  sequence          # host order: the extended ESP sequence number
    uint32_t  length            # bytes at `data`
    uint32_t  sa                # index in the SAD
    uint32_t  adjacency         # index of the adjacency it leaves by
    uint32_t  inner_bytes       # length of the inner IP packet (statistics)
    uint16_t  headroom          # writable bytes before `data`: at least so many
    uint16_t  tailroom          # writable bytes after `data + length`: at least so many
    uint8_t   family            # 4 or 6
    uint8_t   protocol          # transport protocol number
    uint16_t  transport         # offset from `data` of the transport header (inbound: of the ESP header)
    uint16_t  source_port       # host order; ICMP: type << 8 | code (RFC 4301 4.4.1.1); 0 when none.
    uint16_t  destination_port  # Both are set for leaders only (see Leaders)
    uint8_t   verdict           # counters.Verdict
    uint8_t   flags             # PacketFlag
    uint8_t   tos               # DSCP and ECN byte of the header at `data`
    uint8_t   port              # index of the port it came in by
    uint8_t   authentic         # dealt (deal.pyx): 1 when the ICV has passed, so the replay window may know its number
    uint8_t   leaves_by         # dealt: index of the port it is ready for, link header and all; NO_PORT: it is not
    uint8_t   spare[6]

cdef struct Batch:
    uint32_t count
    uint32_t reserved[15]
    Packet packets[BATCH_MAX]

cdef struct Leaders:            # who stands for whom: packets of one flow in a row follow the first of them
    uint32_t count
    uint8_t  packets[BATCH_MAX] # indices of leaders, ascending
    uint8_t  leader[BATCH_MAX]  # packet -> its leader (itself, for a leader); NO_LEADER: its parse failed

cdef struct FramePool:
    uint8_t  *base
    uint64_t *free              # stack of offsets of free frames
    uint32_t  free_count
    uint32_t  frame_count
    uint32_t  frame_size        # bytes, a power of two (2048 or 4096)
    uint32_t  headroom          # a driver that fills a frame itself puts the packet here (256, as AF_XDP does)
    uint64_t  size              # bytes at base

cdef inline bint frame_take(FramePool *pool, uint64_t *frame) noexcept nogil:
    """Take a free frame; False when there is none."""
    if pool.free_count == 0:
        return False
    pool.free_count -= 1
    frame[0] = pool.free[pool.free_count]
    show_bytes(pool.base + frame[0], pool.frame_size)
    return True

cdef inline void frame_give(FramePool *pool, uint64_t frame) noexcept nogil:
    """Give a frame back (any offset inside it will do)."""
    frame &= ~(<uint64_t>pool.frame_size - 1)
    pool.free[pool.free_count] = frame
    pool.free_count += 1
    hide_bytes(pool.base + frame, pool.frame_size)

cdef enum Link:
    LINK_ETHERNET = 0           # frames carry a 14-byte Ethernet header
    LINK_IP = 1                 # packets begin at the IP header (TUN, sockets, memory)

cdef enum Role:
    ROLE_PROTECTED = 0          # RFC 4301 3.1: the side in clear
    ROLE_UNPROTECTED = 1        # the side that carries ESP

cdef struct Port:
    # Up to BATCH_MAX packets into batch.packets[0:count]; sets data, frame, length, headroom, tailroom,
    # flags, verdict = PASS, sa = adjacency = NO_INDEX and port; returns the count. Never blocks.
    uint32_t (*receive)(Port *port, Batch *batch) noexcept nogil
    # Takes packets (IP header at data, or link header for LINK_ETHERNET: already written). Every frame
    # of packets[0:returned] belongs to the port from now on (it gives them back to `frames` once sent);
    # the caller keeps the rest. Never blocks; `flush` makes the kernel look.
    uint32_t (*transmit)(Port *port, Packet **packets, uint32_t count) noexcept nogil
    # Kick the kernel if something waits, reap completions, refill rings. Called once per loop.
    void (*flush)(Port *port) noexcept nogil
    # Last thing before poll(): ask for wake-ups. 0 when something arrived meanwhile and sleep is off.
    bint (*arm)(Port *port) noexcept nogil
    # Packets that the kernel had for this port since it was opened and threw away: no frame, a frame too short, no
    # room. Asks the kernel. NULL: the driver cannot tell.
    uint64_t (*lost)(Port *port) noexcept nogil
    uint64_t lost_before        # what `lost` said last
    void *state                 # the driver's own struct
    FramePool *frames
    PortCounters *counters
    int fd                      # readable when packets wait
    uint8_t role                # Role
    uint8_t link                # Link
    uint8_t index               # position in the worker's port list; Adjacency.port refers to it
    uint8_t has_ipv4
    uint8_t has_ipv6
    uint8_t whole_only          # it cannot send fragments: a socket makes its headers
    uint8_t in_place            # the caller of receive will not write to packets on this core: no need to copy them
    uint8_t spare[1]
    uint32_t mtu                # of the interface, bytes of IP packet
    uint8_t ipv4[4]             # source of our ICMP errors on this port
    uint8_t ipv6[16]

cdef class Pool:
    """The frames of one worker, in one page-aligned memory area."""
    cdef FramePool c

cdef class PortHandle:
    """Base of every driver's port object: holds the C Port that the loop calls through."""
    cdef Port c
    cdef PortCounters own_counters  # what `c.counters` is until a worker points it into the tables
    cdef readonly Pool pool     # keeps the frames alive as long as the port
    cdef readonly str name
