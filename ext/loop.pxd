"""A worker's state: everything its loop touches, allocated once."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from ext.acquire cimport AcquireLimit
from ext.counters cimport PORTS_MAX
from ext.crypto cimport Engine, EngineHandle
from ext.deal cimport Deal
from ext.dummy cimport Dummies
from ext.esp_in cimport Inbound
from ext.esp_out cimport Outbound
from ext.icmp cimport IcmpLimit
from ext.idle cimport Idle
from ext.packet cimport BATCH_MAX, Batch, Packet, Pool, Port, PortHandle
from ext.sa cimport Tables, TablesView

cdef struct Worker:
    Tables *tables
    Engine *engine
    Port *ports[PORTS_MAX]
    uint32_t port_count
    Port *kernel                # NULL: packets for the kernel are dropped
    int stop_fd
    uint32_t inside_mtu         # least of the protected ports': what the kernel takes of a decrypted packet
    Idle idle                   # when to sleep
    uint64_t lost_asked         # when the kernel was last asked what it threw away
    Deal *deal                  # NULL: there is no other worker
    Batch batch
    Batch returns               # decrypted packets that go out through a tunnel
    Batch answers               # ICMP errors about decrypted packets: they do, too
    Batch aside                 # over their SA's MTU, and may be fragmented; ICMP errors that have an SA by quotation
    Batch pieces                # what came of them: inner fragments, or whole packets for outer ones
    Batch outer_pieces          # fragments of outer packets
    Outbound out
    Inbound into
    IcmpLimit limit
    Dummies dummies             # the first worker's
    AcquireLimit acquires
    Packet *queues[PORTS_MAX + 1][BATCH_MAX]
    uint32_t queued[PORTS_MAX + 1]

cdef class Loop:
    cdef Worker *worker
    cdef readonly object view   # kept alive as long as the loop
    cdef object keep
