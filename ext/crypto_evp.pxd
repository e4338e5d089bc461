"""The OpenSSL engine: what it keeps per SA."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from ext.crypto cimport EngineHandle, Key
from ext.libcrypto cimport EVP_CIPHER, EVP_CIPHER_CTX, EVP_MAC, EVP_MAC_CTX

cdef struct SaContexts:
    uint64_t id                     # Key.id that the contexts were made for
    EVP_CIPHER_CTX *cipher[2]       # keyed, by direction: 0 seal, 1 open; NULL before the first use
    EVP_MAC_CTX *mac                # HMAC: keyed; NULL before the first use
    EVP_CIPHER_CTX *chain           # AES-XCBC, AES-CMAC: AES-CBC; AES-GMAC: AES-GCM; keyed; NULL before the first use
    uint8_t last[2][16]             # AES-XCBC, AES-CMAC: what the last block is XORed with, 0 if it is whole, 1 if not

cdef struct EvpState:
    SaContexts **contexts           # by Key.index; NULL where this process has not used the SA
    uint32_t capacity               # entries of `contexts`
    uint32_t in_use                 # entries that are not NULL
    EVP_CIPHER *cbc[3]              # by key length in bytes / 8 - 2
    EVP_CIPHER *gcm[3]
    EVP_CIPHER *ctr[3]
    EVP_CIPHER *ccm[3]
    EVP_CIPHER *chacha
    EVP_MAC *hmac
    uint8_t scratch[1024]           # where AES-XCBC and AES-CMAC let the enciphered blocks fall

cdef class EvpEngine(EngineHandle):
    cdef EvpState state

# A context keyed for one direction, or NULL.
cdef EVP_CIPHER_CTX *make_cipher(const EvpState *state, const Key *key, bint opening) noexcept nogil
cdef EVP_CIPHER_CTX *make_chain(const EvpState *state, const Key *key, uint8_t *last) noexcept nogil
cdef EVP_MAC_CTX *make_mac(const EvpState *state, const Key *key) noexcept nogil
