"""libipsec-mb by itself, as fast as a caller can drive it: what the kernels' speed is divided by.

Nothing of the engine lies between: no Job, no list, no check. 64 packets of one key in turn; GCM and GMAC by the direct
call, the rest by bursts of 64 over job structures that are filled beforehand where they are the caller's own (CBC, CTR,
HMAC) and each time where they are the library's (ChaCha20-Poly1305, CCM, XCBC, CMAC). Hashes run on the code that the
engine found faster. CCM with 192-bit keys, which the library lacks, is one burst of CBC and one of CTR.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memset

from ext.clock cimport now_ns
from ext.crypto cimport (
    CIPHER_AES_CBC, CIPHER_AES_CCM, CIPHER_AES_CTR, CIPHER_AES_GCM, CIPHER_AES_GMAC, CIPHER_CHACHA20_POLY1305,
    EXPANDED_DECRYPT, EXPANDED_ENCRYPT, EXPANDED_IPAD, EXPANDED_LAST, EXPANDED_MAC, EXPANDED_OPAD,
    INTEGRITY_AES_GMAC, INTEGRITY_AES_XCBC, INTEGRITY_HMAC_SHA1, INTEGRITY_HMAC_SHA2_256, INTEGRITY_HMAC_SHA2_384,
    INTEGRITY_NONE, TEXT_MAX, Key, icv_length_of, integrity_length_of,
)
from ext.crypto_mb cimport MbEngine, MbState
from ext.libipsec_mb cimport *
from ext.packet cimport BATCH_MAX

cdef extern from *:
    """
    #include <stdlib.h>
    """
    int posix_memalign(void **area, size_t alignment, size_t size) noexcept nogil

cdef struct Bench:
    MbState *state
    Key *key
    IMB_JOB *jobs               # BATCH_MAX of them
    uint8_t *buffers            # packet n: text at 64 + n * stride, 8 bytes of header before it, ICV behind it
    uint32_t size               # bytes of text
    uint32_t stride
    bint opening
    uint8_t nonce[16]
    uint8_t aad[16]


def bare(
    MbEngine engine, int cipher, int integrity, int key_bits, uint32_t size, uint64_t packets, str direction="seal",
    int repeats=5, uint32_t stride=2048,
) -> float:
    """Nanoseconds per packet: the best of `repeats` runs of `packets` packets (rounded up to a batch).

    `size` is the text in bytes, as in Job (CBC: the IV's 16 included, rounded up to a block); buffers lie `stride`
    bytes apart, 2048 as packets in frames do. Integrity algorithms cover 8 bytes before the text too, AEADs 8 bytes of
    AAD and AES-GMAC the IV; ICVs are as long as usual. `key_bits` is of AES-GMAC as an integrity algorithm its own.
    Raises ValueError for what the engine cannot do.
    """
    cdef Bench bench
    cdef uint64_t best = 0xFFFFFFFFFFFFFFFF
    cdef uint64_t took
    cdef uint64_t rounds = packets // BATCH_MAX + 1
    if direction not in ("seal", "open"):
        raise ValueError(f"direction is {direction!r}; it is 'seal' or 'open'")
    if size + 128 > stride or size > TEXT_MAX:
        raise ValueError(f"{size} bytes of text do not fit buffers {stride} bytes apart")
    memset(&bench, 0, sizeof(Bench))
    bench.state = engine.state
    bench.size = (size + 15) // 16 * 16 if cipher == CIPHER_AES_CBC else size
    bench.stride = stride
    bench.opening = direction == "open"
    try:
        _prepare(&bench)
        bench.key.cipher = <uint8_t>cipher
        bench.key.integrity = <uint8_t>integrity
        bench.key.encryption_length = <uint8_t>(key_bits // 8)
        bench.key.icv_length = 16 if cipher >= CIPHER_AES_GCM else icv_length_of(<uint32_t>integrity)
        bench.key.integrity_length = integrity_length_of(<uint32_t>integrity)
        if integrity == INTEGRITY_AES_GMAC:
            bench.key.integrity_length, bench.key.encryption_length = bench.key.encryption_length, 0
        engine.expand_at(<size_t>bench.key)
        _fill_jobs(&bench)
        for _ in range(max(1, repeats)):
            with nogil:
                took = _run(&bench, rounds)
            if took < best:
                best = took
    finally:
        free(bench.key)
        free(bench.jobs)
        free(bench.buffers)
    return <double>best / <double>(rounds * BATCH_MAX)


cdef int _prepare(Bench *bench) except -1:
    """Memory for key (all zero), job structures and packets."""
    if (posix_memalign(<void **>&bench.key, 64, sizeof(Key))
            or posix_memalign(<void **>&bench.jobs, 64, BATCH_MAX * sizeof(IMB_JOB))
            or posix_memalign(<void **>&bench.buffers, 4096, <size_t>bench.stride * (BATCH_MAX + 1))):
        raise MemoryError("buffers")
    memset(bench.key, 0, sizeof(Key))
    memset(bench.jobs, 0, BATCH_MAX * sizeof(IMB_JOB))
    memset(bench.buffers, 0x5A, <size_t>bench.stride * (BATCH_MAX + 1))
    return 0


cdef void _fill_jobs(Bench *bench) noexcept nogil:
    """CBC, CTR and HMAC jobs, once for all rounds: nothing in them changes."""
    cdef IMB_JOB *mb
    cdef uint8_t *text
    cdef uint32_t slot
    for slot in range(<uint32_t>BATCH_MAX):
        mb = &bench.jobs[slot]
        text = bench.buffers + <size_t>bench.stride * slot + 64
        mb.enc_keys = &bench.key.expanded[EXPANDED_ENCRYPT]
        mb.dec_keys = &bench.key.expanded[EXPANDED_DECRYPT]
        mb.key_len_in_bytes = bench.key.encryption_length
        mb.src = text - 8
        mb.dst = text
        mb.cipher_start_src_offset_in_bytes = 8
        mb.msg_len_to_cipher_in_bytes = bench.size
        mb.msg_len_to_hash_in_bytes = bench.size + 8
        mb.iv = &bench.nonce[0]
        mb.iv_len_in_bytes = 12 if bench.key.cipher == CIPHER_AES_CTR else 16
        mb.auth_tag_output = text + bench.size
        mb.auth_tag_output_len_in_bytes = bench.key.icv_length
        mb.hmac_ipad = &bench.key.expanded[EXPANDED_IPAD]
        mb.hmac_opad = &bench.key.expanded[EXPANDED_OPAD]
        mb.cipher_mode = IMB_CIPHER_CNTR if bench.key.cipher == CIPHER_AES_CTR else IMB_CIPHER_CBC
        mb.cipher_direction = IMB_DIR_DECRYPT if bench.opening else IMB_DIR_ENCRYPT
        mb.chain_order = IMB_ORDER_HASH_CIPHER if bench.opening else IMB_ORDER_CIPHER_HASH
        mb.hash_alg = _hash_of(bench.key.integrity)


cdef inline IMB_HASH_ALG _hash_of(uint32_t integrity) noexcept nogil:
    """The library's name for an Integrity."""
    if integrity == INTEGRITY_HMAC_SHA2_256:
        return IMB_AUTH_HMAC_SHA_256
    if integrity == INTEGRITY_HMAC_SHA2_384:
        return IMB_AUTH_HMAC_SHA_384
    if integrity == INTEGRITY_HMAC_SHA1:
        return IMB_AUTH_HMAC_SHA_1
    return IMB_AUTH_HMAC_SHA_512


cdef uint64_t _run(Bench *bench, uint64_t rounds) noexcept nogil:
    """Nanoseconds for rounds * BATCH_MAX packets."""
    cdef uint64_t started = now_ns()
    cdef uint32_t cipher = bench.key.cipher
    if cipher == CIPHER_AES_GCM:
        _gcm(bench, rounds)
    elif cipher == CIPHER_AES_GMAC or bench.key.integrity == INTEGRITY_AES_GMAC:
        _gmac(bench, rounds)
    elif cipher == CIPHER_CHACHA20_POLY1305 or cipher == CIPHER_AES_CCM and bench.key.encryption_length != 24:
        _ring(bench, rounds)
    else:
        _bursts(bench, rounds)
    return now_ns() - started


cdef void _gcm(Bench *bench, uint64_t rounds) noexcept nogil:
    """The direct call."""
    cdef const gcm_key_data *expanded = <const gcm_key_data *>bench.key.expanded
    cdef uint32_t length = (bench.key.encryption_length >> 3) - 2     # as in MbState: 128, 192, 256 bits
    cdef aes_gcm_enc_dec_t call = bench.state.gcm_open[length] if bench.opening else bench.state.gcm_seal[length]
    cdef uint8_t *text
    cdef uint32_t _slot
    cdef uint64_t _turn
    for _turn in range(rounds):
        text = bench.buffers + 64
        for _slot in range(<uint32_t>BATCH_MAX):
            call(expanded, &bench.state.context, text, text, bench.size, bench.nonce, bench.aad, 8,
                 text + bench.size, 16)
            text += bench.stride


cdef void _gmac(Bench *bench, uint64_t rounds) noexcept nogil:
    """The direct call with nothing but AAD, which is faster than the library's own three for GMAC."""
    cdef const gcm_key_data *expanded = <const gcm_key_data *>bench.key.expanded
    cdef uint32_t bytes_ = bench.key.encryption_length if bench.key.encryption_length else bench.key.integrity_length
    cdef uint32_t before = 16 if bench.key.encryption_length else 8
    cdef aes_gcm_enc_dec_t call = bench.state.gcm_seal[(bytes_ >> 3) - 2]
    cdef uint8_t *text
    cdef uint32_t _slot
    cdef uint64_t _turn
    for _turn in range(rounds):
        text = bench.buffers + 64
        for _slot in range(<uint32_t>BATCH_MAX):
            call(expanded, &bench.state.context, text, text, 0, bench.nonce, text - before, bench.size + before,
                 text + bench.size, 16)
            text += bench.stride


cdef void _ring(Bench *bench, uint64_t rounds) noexcept nogil:
    """The ring's burst: ChaCha20-Poly1305, CCM, and AES-XCBC and AES-CMAC without a cipher."""
    cdef IMB_JOB *ring[BATCH_MAX]
    cdef uint8_t *text
    cdef uint32_t done, slot
    cdef uint64_t _turn
    for _turn in range(rounds):
        IMB_GET_NEXT_BURST(bench.state.manager, BATCH_MAX, ring)
        text = bench.buffers + 64
        for slot in range(<uint32_t>BATCH_MAX):
            ring[slot].src = ring[slot].dst = text
            ring[slot].cipher_start_src_offset_in_bytes = ring[slot].hash_start_src_offset_in_bytes = 0
            ring[slot].auth_tag_output = text + bench.size
            if bench.key.integrity:
                _lay_mac(bench, ring[slot], text)
            else:
                _lay_aead(bench, ring[slot])
            text += bench.stride
        done = IMB_SUBMIT_BURST_NOCHECK(bench.state.manager, BATCH_MAX, ring)
        while done < BATCH_MAX:
            done += IMB_FLUSH_BURST(bench.state.manager, BATCH_MAX - done, ring)


cdef inline void _lay_aead(Bench *bench, IMB_JOB *mb) noexcept nogil:
    """One job of ChaCha20-Poly1305 or CCM."""
    cdef bint ccm = bench.key.cipher == CIPHER_AES_CCM
    mb.cipher_mode = IMB_CIPHER_CCM if ccm else IMB_CIPHER_CHACHA20_POLY1305
    mb.hash_alg = IMB_AUTH_AES_CCM if ccm else IMB_AUTH_CHACHA20_POLY1305
    mb.cipher_direction = IMB_DIR_DECRYPT if bench.opening else IMB_DIR_ENCRYPT
    # CCM's tag is of the plaintext, Poly1305's of the ciphertext.
    mb.chain_order = IMB_ORDER_HASH_CIPHER if bench.opening != ccm else IMB_ORDER_CIPHER_HASH
    mb.enc_keys = mb.dec_keys = &bench.key.expanded[EXPANDED_ENCRYPT] if ccm else &bench.key.encryption[0]
    mb.key_len_in_bytes = bench.key.encryption_length
    mb.msg_len_to_cipher_in_bytes = mb.msg_len_to_hash_in_bytes = bench.size
    mb.iv = &bench.nonce[0]
    mb.iv_len_in_bytes = 11 if ccm else 12
    if ccm:
        mb.ccm_aad = &bench.aad[0]
        mb.ccm_aad_length = 8
    else:
        mb.chacha_aad = &bench.aad[0]
        mb.chacha_aad_length = 8
    mb.auth_tag_output_len_in_bytes = 16


cdef inline void _lay_mac(Bench *bench, IMB_JOB *mb, uint8_t *text) noexcept nogil:
    """One job of AES-XCBC or AES-CMAC."""
    cdef const uint8_t *expanded = &bench.key.expanded[0]
    mb.cipher_mode = IMB_CIPHER_NULL
    mb.cipher_direction = IMB_DIR_ENCRYPT
    mb.chain_order = IMB_ORDER_CIPHER_HASH
    mb.src = text - 8
    mb.msg_len_to_cipher_in_bytes = 0
    mb.msg_len_to_hash_in_bytes = bench.size + 8
    mb.auth_tag_output_len_in_bytes = 12
    if bench.key.integrity == INTEGRITY_AES_XCBC:
        mb.hash_alg = IMB_AUTH_AES_XCBC
        mb.xcbc_k1 = <const uint32_t *>(expanded + EXPANDED_MAC)
        mb.xcbc_k2 = expanded + EXPANDED_LAST
        mb.xcbc_k3 = expanded + EXPANDED_LAST + 16
    else:
        mb.hash_alg = IMB_AUTH_AES_CMAC
        mb.cmac_key = expanded + EXPANDED_MAC
        mb.cmac_subkey1 = expanded + EXPANDED_LAST
        mb.cmac_subkey2 = expanded + EXPANDED_LAST + 16


cdef void _bursts(Bench *bench, uint64_t rounds) noexcept nogil:
    """The synchronous bursts: cipher, then integrity (their order makes no difference to the time)."""
    cdef uint32_t integrity = bench.key.integrity
    cdef IMB_CIPHER_DIRECTION direction = IMB_DIR_DECRYPT if bench.opening else IMB_DIR_ENCRYPT
    cdef IMB_KEY_SIZE_BYTES bytes_ = <IMB_KEY_SIZE_BYTES>bench.key.encryption_length
    cdef bint ccm = bench.key.cipher == CIPHER_AES_CCM
    cdef uint64_t _turn
    for _turn in range(rounds):
        if bench.key.cipher == CIPHER_AES_CBC or ccm:
            IMB_SUBMIT_CIPHER_BURST_NOCHECK(
                bench.state.manager, bench.jobs, BATCH_MAX, IMB_CIPHER_CBC, IMB_DIR_ENCRYPT if ccm else direction,
                bytes_)
        if bench.key.cipher == CIPHER_AES_CTR or ccm:
            IMB_SUBMIT_CIPHER_BURST_NOCHECK(
                bench.state.manager, bench.jobs, BATCH_MAX, IMB_CIPHER_CNTR, direction, bytes_)
        if integrity >= INTEGRITY_AES_XCBC:
            _ring(bench, 1)
        elif integrity != INTEGRITY_NONE:
            IMB_SUBMIT_HASH_BURST_NOCHECK(
                bench.state.hasher[integrity], bench.jobs, BATCH_MAX, _hash_of(integrity))
