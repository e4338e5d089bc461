"""The libipsec-mb engine: what `bench` and the ESP passes may see of it."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from ext.crypto cimport INTEGRITIES, EngineHandle, Key
from ext.libipsec_mb cimport (
    IMB_JOB, IMB_MGR, aes_gcm_enc_dec_t, aes_gmac_finalize_t, aes_gmac_init_t, aes_gmac_update_t, gcm_context_data,
)
from ext.packet cimport BATCH_MAX

cdef extern from "gcm_vaes.h":
    ctypedef struct GcmHash:
        pass

cdef struct MbState:
    aes_gcm_enc_dec_t gcm_seal[4]       # by the suite's key length: 128, 192, 256 bits
    aes_gcm_enc_dec_t gcm_open[4]
    aes_gmac_init_t gmac_init[3]
    aes_gmac_update_t gmac_update[3]
    aes_gmac_finalize_t gmac_finalize[3]
    gcm_context_data context            # scratch of one GCM or GMAC call of the library
    GcmHash hashes[2]                   # of the packet being sealed and the one before
    uint32_t own_limit                  # GCM texts of up to so many bytes go to gcm_vaes.h; 0: none does
    uint32_t own_mac_limit              # GMAC's likewise, where it has more than 16 bytes to hash
    uint32_t own_powers                 # where in Key.expanded it finds the hash key's powers
    IMB_MGR *manager                    # the library's choice for this CPU: ciphers, and most hashes
    IMB_MGR *sse                        # NULL, or a second one: SSE code with SHA-NI (see crypto_mb.pyx)
    IMB_MGR *hasher[INTEGRITIES]        # by Integrity: the one of the two that is faster here
    uint32_t others                     # jobs of the list that are not GCM,
    uint8_t member[BATCH_MAX]           # their positions in it
    uint8_t group[BATCH_MAX]            # and their groups: jobs of one group go to the library in one call
    uint8_t position[BATCH_MAX]         # of jobs[n] in the list
    uint8_t chain[1024]                 # scratch of CBC-MAC (see `_ccm_tag`)
    uint32_t laid_out                   # group and direction that the constant fields of `jobs` are set for
    IMB_JOB *ring[BATCH_MAX]
    IMB_JOB jobs[BATCH_MAX]

# How long 64 packets of `size` bytes, 2048 apart, take in nanoseconds: by gcm_vaes.h or by the library.
ctypedef uint64_t (*gcm_timer_t)(MbState *state, const Key *key, uint8_t *packets, uint32_t size,
                                 bint own) noexcept nogil

cdef class MbEngine(EngineHandle):
    cdef MbState *state
