"""libcrypto by itself, with contexts keyed beforehand: what the kernels' speed on this engine is divided by.

64 packets of one key in turn: next IV, AAD, text, tag; or next IV, text, next MAC. Nothing of the engine lies between.
Of AES-XCBC and AES-CMAC, which the engine makes from CBC, it is the CBC of the whole text.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memset

from ext.clock cimport now_ns
from ext.crypto cimport (
    CIPHER_AES_CBC, CIPHER_AES_CCM, CIPHER_AES_GCM, CIPHER_AES_GMAC, CIPHER_NULL, INTEGRITY_AES_GMAC,
    INTEGRITY_AES_XCBC, TEXT_MAX, Key, icv_length_of, integrity_length_of,
)
from ext.crypto_evp cimport EvpEngine, make_chain, make_cipher, make_mac
from ext.libcrypto cimport *
from ext.packet cimport BATCH_MAX

cdef struct Bench:
    EVP_CIPHER_CTX *cipher
    EVP_MAC_CTX *mac
    EVP_CIPHER_CTX *chain       # AES-XCBC, AES-CMAC, and AES-GMAC as integrity
    uint8_t *spare              # where the chain's blocks fall
    uint8_t *buffers            # packet n: text at 64 + n * stride, 8 bytes of header before it, ICV behind it
    uint32_t size               # bytes of text
    uint32_t stride
    bint aead
    bint ccm
    bint gmac                   # as a cipher
    bint gmac_apart             # as integrity
    uint8_t nonce[16]
    uint8_t aad[16]
    uint8_t tag[64]


def bare(
    EvpEngine engine, int cipher, int integrity, int key_bits, uint32_t size, uint64_t packets, str direction="seal",
    int repeats=5, uint32_t stride=2048,
) -> float:
    """Nanoseconds per packet: the best of `repeats` runs of `packets` packets (rounded up to a batch).

    `size` is the text in bytes, as in Job (CBC: the IV's 16 included, rounded up to a block); buffers lie `stride`
    bytes apart, 2048 as packets in frames do. Integrity algorithms cover 8 bytes before the text too, AEADs 8 bytes of
    AAD and AES-GMAC the IV; ICVs are as long as usual. `key_bits` is of AES-GMAC as an integrity algorithm its own.
    Raises ValueError for what the engine cannot do.
    """
    cdef Bench bench
    cdef Key *key = <Key *>calloc(1, sizeof(Key))
    cdef uint64_t best = 0xFFFFFFFFFFFFFFFF
    cdef uint64_t took
    cdef uint64_t rounds = packets // BATCH_MAX + 1
    cdef bint opening = direction == "open"
    cdef uint8_t masks[2][16]
    memset(&bench, 0, sizeof(Bench))
    try:
        if direction not in ("seal", "open"):
            raise ValueError(f"direction is {direction!r}; it is 'seal' or 'open'")
        if size + 128 > stride or size > TEXT_MAX:
            raise ValueError(f"{size} bytes of text do not fit buffers {stride} bytes apart")
        bench.buffers = <uint8_t *>malloc(<size_t>stride * (BATCH_MAX + 1))
        if key == NULL or bench.buffers == NULL:
            raise MemoryError("buffers")
        memset(bench.buffers, 0x5A, <size_t>stride * (BATCH_MAX + 1))
        bench.size = (size + 15) // 16 * 16 if cipher == CIPHER_AES_CBC else size
        bench.stride = stride
        bench.aead = cipher >= CIPHER_AES_GCM
        bench.ccm = cipher == CIPHER_AES_CCM
        bench.gmac = cipher == CIPHER_AES_GMAC
        bench.gmac_apart = integrity == INTEGRITY_AES_GMAC
        key.cipher = <uint8_t>cipher
        key.integrity = <uint8_t>integrity
        key.encryption_length = <uint8_t>(key_bits // 8)
        key.icv_length = 16 if bench.aead else icv_length_of(<uint32_t>integrity)
        key.integrity_length = integrity_length_of(<uint32_t>integrity)
        if bench.gmac_apart:
            key.integrity_length, key.encryption_length = key.encryption_length, 0
        engine.expand_at(<size_t>key)
        if cipher != CIPHER_NULL:
            bench.cipher = make_cipher(&engine.state, key, opening)
        if integrity >= INTEGRITY_AES_XCBC:
            bench.chain = make_chain(&engine.state, key, &masks[0][0])
            # CBC whose output goes where the packet was: as wide as the engine's, which has a place for it.
            bench.spare = <uint8_t *>malloc(stride)
            if bench.spare == NULL:
                raise MemoryError("a buffer")
        elif integrity:
            bench.mac = make_mac(&engine.state, key)
        for _ in range(max(1, repeats)):
            with nogil:
                took = _run(&bench, opening, rounds)
            if took < best:
                best = took
    finally:
        EVP_CIPHER_CTX_free(bench.cipher)
        EVP_MAC_CTX_free(bench.mac)
        EVP_CIPHER_CTX_free(bench.chain)
        free(bench.spare)
        free(bench.buffers)
        free(key)
    return <double>best / <double>(rounds * BATCH_MAX)


cdef uint64_t _run(Bench *bench, bint opening, uint64_t rounds) noexcept nogil:
    """Nanoseconds for rounds * BATCH_MAX packets."""
    cdef uint64_t started = now_ns()
    cdef uint8_t *text
    cdef uint32_t slot
    cdef uint64_t _turn
    for _turn in range(rounds):
        for slot in range(<uint32_t>BATCH_MAX):
            text = bench.buffers + <size_t>bench.stride * slot + 64
            if bench.cipher != NULL:
                if opening:
                    _decipher(bench, text)
                else:
                    _encipher(bench, text)
            if bench.mac != NULL:
                _hash(bench, text)
            elif bench.chain != NULL:
                _chain(bench, text)
    ERR_clear_error()
    return now_ns() - started


cdef inline void _encipher(Bench *bench, uint8_t *text) noexcept nogil:
    """One packet, sealed."""
    cdef int length = 0
    EVP_EncryptInit_ex2(bench.cipher, NULL, NULL, bench.nonce, NULL)
    if bench.ccm:
        EVP_EncryptUpdate(bench.cipher, NULL, &length, NULL, <int>bench.size)
    if bench.aead:
        EVP_EncryptUpdate(bench.cipher, NULL, &length, bench.aad, 8)
    EVP_EncryptUpdate(bench.cipher, NULL if bench.gmac else text, &length, text - 8 if bench.gmac else text,
                      <int>(bench.size + 8 if bench.gmac else bench.size))
    if bench.aead:
        EVP_EncryptFinal_ex(bench.cipher, text + bench.size, &length)
        EVP_CIPHER_CTX_ctrl(bench.cipher, EVP_CTRL_AEAD_GET_TAG, 16, text + bench.size)


cdef inline void _decipher(Bench *bench, uint8_t *text) noexcept nogil:
    """One packet, opened (the tag does not match, which takes no less time)."""
    cdef int length = 0
    EVP_DecryptInit_ex2(bench.cipher, NULL, NULL, bench.nonce, NULL)
    if bench.ccm:
        EVP_CIPHER_CTX_ctrl(bench.cipher, EVP_CTRL_AEAD_SET_TAG, 16, text + bench.size)
        EVP_DecryptUpdate(bench.cipher, NULL, &length, NULL, <int>bench.size)
    if bench.aead:
        EVP_DecryptUpdate(bench.cipher, NULL, &length, bench.aad, 8)
    EVP_DecryptUpdate(bench.cipher, NULL if bench.gmac else text, &length, text - 8 if bench.gmac else text,
                      <int>(bench.size + 8 if bench.gmac else bench.size))
    if bench.aead and not bench.ccm:
        EVP_CIPHER_CTX_ctrl(bench.cipher, EVP_CTRL_AEAD_SET_TAG, 16, text + bench.size)
        EVP_DecryptFinal_ex(bench.cipher, text + bench.size, &length)


cdef inline void _hash(Bench *bench, uint8_t *text) noexcept nogil:
    """One HMAC."""
    cdef size_t length = 0
    EVP_MAC_init(bench.mac, NULL, 0, NULL)
    EVP_MAC_update(bench.mac, text - 8, bench.size + 8)
    EVP_MAC_final(bench.mac, bench.tag, &length, 64)


cdef inline void _chain(Bench *bench, uint8_t *text) noexcept nogil:
    """One AES-XCBC or AES-CMAC, or AES-GMAC."""
    cdef int length = 0
    EVP_EncryptInit_ex2(bench.chain, NULL, NULL, bench.nonce, NULL)
    if bench.gmac_apart:
        EVP_EncryptUpdate(bench.chain, NULL, &length, text - 8, <int>bench.size + 8)
        EVP_EncryptFinal_ex(bench.chain, bench.tag, &length)
        EVP_CIPHER_CTX_ctrl(bench.chain, EVP_CTRL_AEAD_GET_TAG, 16, bench.tag)
    else:
        EVP_EncryptUpdate(bench.chain, bench.spare, &length, text - 8, <int>(bench.size + 8 + 15) // 16 * 16)
