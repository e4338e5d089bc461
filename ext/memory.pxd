"""A port that lives in memory: the double of every other driver in tests, benches and offline work."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from ext.packet cimport PortHandle

cdef struct Ring:               # one producer, one consumer; slots of `slot_size` bytes
    uint8_t  *area
    uint32_t *lengths           # bytes in each slot
    uint8_t  *flags             # packet.PacketFlag of each slot
    uint32_t  slot_size         # bytes
    uint32_t  mask              # slots - 1; slots is a power of two
    uint32_t  head              # next slot to fill, written by the producer only (wraps)
    uint32_t  tail              # next slot to read, written by the consumer only (wraps)

cdef struct MemoryState:
    Ring inbound                # injected, not yet received
    Ring outbound               # transmitted, not yet collected
    uint8_t  *templates         # replay: the packets, one per slot of the pool's frame size
    uint32_t *template_lengths
    uint32_t  template_count    # 0: no replay
    uint32_t  template_next
    uint64_t  replay_left       # packets still to present; counts down
    uint64_t  received
    uint64_t  received_bytes
    uint64_t  transmitted
    uint64_t  transmitted_bytes
    uint32_t  discard           # transmit counts and gives frames back
    uint32_t  template_flags
    uint64_t  tight             # 0: packets lie behind the pool's headroom; else the state of a random draw

cdef class MemoryPort(PortHandle):
    cdef MemoryState state
