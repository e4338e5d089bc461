"""The OpenSSL engine: what it keeps per SA."""

from libc.stdint cimport uint32_t, uint64_t

from ext.crypto cimport EngineHandle, Key
from ext.libcrypto cimport EVP_CIPHER, EVP_CIPHER_CTX, EVP_MAC, EVP_MAC_CTX

cdef struct SaContexts:
    uint64_t id                     # Key.id that the contexts were made for
    EVP_CIPHER_CTX *cipher[2]       # keyed, by direction: 0 seal, 1 open; NULL before the first use
    EVP_MAC_CTX *mac                # keyed; NULL before the first use

cdef struct EvpState:
    SaContexts **contexts           # by Key.index; NULL where this process has not used the SA
    uint32_t capacity               # entries of `contexts`
    uint32_t in_use                 # entries that are not NULL
    EVP_CIPHER *cbc[3]              # by key length in bytes / 8 - 2
    EVP_CIPHER *gcm[3]
    EVP_CIPHER *chacha
    EVP_MAC *hmac

cdef class EvpEngine(EngineHandle):
    cdef EvpState state

# A context keyed for one direction, or NULL.
cdef EVP_CIPHER_CTX *make_cipher(const EvpState *state, const Key *key, bint opening) noexcept nogil
cdef EVP_MAC_CTX *make_mac(const EvpState *state, const Key *key) noexcept nogil
