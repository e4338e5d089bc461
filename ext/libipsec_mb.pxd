"""libipsec-mb 1.3 and later: the subset that `crypto_mb` uses. Declarations only."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef extern from "<intel-ipsec-mb.h>" nogil:
    struct gcm_key_data:
        pass
    struct gcm_context_data:
        pass

    ctypedef enum IMB_STATUS:
        IMB_STATUS_COMPLETED
    ctypedef enum IMB_CIPHER_MODE:
        IMB_CIPHER_CBC
        IMB_CIPHER_CNTR
        IMB_CIPHER_NULL
        IMB_CIPHER_CCM
        IMB_CIPHER_CHACHA20_POLY1305
    ctypedef enum IMB_CIPHER_DIRECTION:
        IMB_DIR_ENCRYPT
        IMB_DIR_DECRYPT
    ctypedef enum IMB_HASH_ALG:
        IMB_AUTH_HMAC_SHA_1
        IMB_AUTH_HMAC_SHA_256
        IMB_AUTH_HMAC_SHA_384
        IMB_AUTH_HMAC_SHA_512
        IMB_AUTH_AES_XCBC
        IMB_AUTH_AES_CMAC
        IMB_AUTH_AES_CCM
        IMB_AUTH_CHACHA20_POLY1305
    ctypedef enum IMB_CHAIN_ORDER:
        IMB_ORDER_CIPHER_HASH
        IMB_ORDER_HASH_CIPHER
    ctypedef enum IMB_KEY_SIZE_BYTES:
        pass
    ctypedef enum IMB_ARCH:
        IMB_ARCH_NONE
        IMB_ARCH_NOAESNI
        IMB_ARCH_SSE
        IMB_ARCH_AVX
        IMB_ARCH_AVX2
        IMB_ARCH_AVX512

    ctypedef struct IMB_JOB:
        const void *enc_keys
        const void *dec_keys
        uint64_t key_len_in_bytes
        const uint8_t *src
        uint8_t *dst
        uint64_t cipher_start_src_offset_in_bytes
        uint64_t msg_len_to_cipher_in_bytes
        uint64_t hash_start_src_offset_in_bytes
        uint64_t msg_len_to_hash_in_bytes
        const uint8_t *iv
        uint64_t iv_len_in_bytes
        uint8_t *auth_tag_output
        uint64_t auth_tag_output_len_in_bytes
        const uint8_t *hmac_ipad "u.HMAC._hashed_auth_key_xor_ipad"
        const uint8_t *hmac_opad "u.HMAC._hashed_auth_key_xor_opad"
        const uint32_t *xcbc_k1 "u.XCBC._k1_expanded"
        const uint8_t *xcbc_k2 "u.XCBC._k2"
        const uint8_t *xcbc_k3 "u.XCBC._k3"
        const void *cmac_key "u.CMAC._key_expanded"
        const void *cmac_subkey1 "u.CMAC._skey1"
        const void *cmac_subkey2 "u.CMAC._skey2"
        const void *ccm_aad "u.CCM.aad"
        uint64_t ccm_aad_length "u.CCM.aad_len_in_bytes"
        const void *chacha_aad "u.CHACHA20_POLY1305.aad"
        uint64_t chacha_aad_length "u.CHACHA20_POLY1305.aad_len_in_bytes"
        IMB_STATUS status
        IMB_CIPHER_MODE cipher_mode
        IMB_CIPHER_DIRECTION cipher_direction
        IMB_HASH_ALG hash_alg
        IMB_CHAIN_ORDER chain_order
        void *user_data

    ctypedef void (*aes_gcm_enc_dec_t)(
        const gcm_key_data *key, gcm_context_data *context, uint8_t *out, const uint8_t *text, uint64_t length,
        const uint8_t *iv, const uint8_t *aad, uint64_t aad_length, uint8_t *tag, uint64_t tag_length) noexcept
    ctypedef void (*aes_gmac_init_t)(
        const gcm_key_data *key, gcm_context_data *context, const uint8_t *iv, uint64_t iv_length) noexcept
    ctypedef void (*aes_gmac_update_t)(
        const gcm_key_data *key, gcm_context_data *context, const uint8_t *text, uint64_t length) noexcept
    ctypedef void (*aes_gmac_finalize_t)(
        const gcm_key_data *key, gcm_context_data *context, uint8_t *tag, uint64_t tag_length) noexcept
    ctypedef void (*aes_gcm_pre_t)(const void *key, gcm_key_data *expanded) noexcept
    ctypedef void (*keyexp_t)(const void *key, void *encrypt, void *decrypt) noexcept
    ctypedef void (*cmac_subkey_gen_t)(const void *expanded, void *subkey1, void *subkey2) noexcept
    ctypedef void (*xcbc_keyexp_t)(const void *key, void *k1, void *k2, void *k3) noexcept
    ctypedef void (*hash_one_block_t)(const void *block, void *digest) noexcept

    ctypedef struct IMB_MGR:
        uint64_t features
        uint32_t used_arch
        keyexp_t keyexp_128
        keyexp_t keyexp_192
        keyexp_t keyexp_256
        cmac_subkey_gen_t cmac_subkey_gen_128
        xcbc_keyexp_t xcbc_keyexp
        hash_one_block_t sha1_one_block
        hash_one_block_t sha256_one_block
        hash_one_block_t sha384_one_block
        hash_one_block_t sha512_one_block
        aes_gcm_enc_dec_t gcm128_enc
        aes_gcm_enc_dec_t gcm192_enc
        aes_gcm_enc_dec_t gcm256_enc
        aes_gcm_enc_dec_t gcm128_dec
        aes_gcm_enc_dec_t gcm192_dec
        aes_gcm_enc_dec_t gcm256_dec
        aes_gmac_init_t gmac128_init
        aes_gmac_init_t gmac192_init
        aes_gmac_init_t gmac256_init
        aes_gmac_update_t gmac128_update
        aes_gmac_update_t gmac192_update
        aes_gmac_update_t gmac256_update
        aes_gmac_finalize_t gmac128_finalize
        aes_gmac_finalize_t gmac192_finalize
        aes_gmac_finalize_t gmac256_finalize
        aes_gcm_pre_t gcm128_pre
        aes_gcm_pre_t gcm192_pre
        aes_gcm_pre_t gcm256_pre

    IMB_MGR *alloc_mb_mgr(uint64_t flags) noexcept
    void free_mb_mgr(IMB_MGR *manager) noexcept
    void init_mb_mgr_auto(IMB_MGR *manager, IMB_ARCH *arch) noexcept
    void init_mb_mgr_sse(IMB_MGR *manager) noexcept
    int imb_get_errno(IMB_MGR *manager) noexcept
    const char *imb_get_strerror(int error) noexcept
    const char *imb_get_version_str() noexcept

    # Jobs of the manager's own ring; any may complete in any order (SUBMIT and FLUSH return those that did).
    uint32_t IMB_GET_NEXT_BURST(IMB_MGR *manager, uint32_t count, IMB_JOB **jobs) noexcept
    uint32_t IMB_SUBMIT_BURST(IMB_MGR *manager, uint32_t count, IMB_JOB **jobs) noexcept
    uint32_t IMB_SUBMIT_BURST_NOCHECK(IMB_MGR *manager, uint32_t count, IMB_JOB **jobs) noexcept
    uint32_t IMB_FLUSH_BURST(IMB_MGR *manager, uint32_t count, IMB_JOB **jobs) noexcept
    # Jobs of the caller's own array, of one algorithm; all are complete on return.
    uint32_t IMB_SUBMIT_CIPHER_BURST_NOCHECK(
        IMB_MGR *manager, IMB_JOB *jobs, uint32_t count, IMB_CIPHER_MODE cipher, IMB_CIPHER_DIRECTION direction,
        IMB_KEY_SIZE_BYTES key_size) noexcept
    uint32_t IMB_SUBMIT_HASH_BURST_NOCHECK(IMB_MGR *manager, IMB_JOB *jobs, uint32_t count, IMB_HASH_ALG hash) noexcept

    enum:
        IMB_FEATURE_SHANI
        IMB_FEATURE_AESNI
        IMB_FEATURE_PCLMULQDQ
        IMB_FEATURE_SSE4_2
        IMB_FEATURE_AVX
        IMB_FEATURE_AVX2
        IMB_FEATURE_AVX512_SKX
        IMB_FEATURE_VAES
        IMB_FEATURE_VPCLMULQDQ
        IMB_FEATURE_GFNI
        IMB_FEATURE_SAFE_DATA
        IMB_FEATURE_SAFE_PARAM
        IMB_FEATURE_SELF_TEST
        IMB_FEATURE_SELF_TEST_PASS
