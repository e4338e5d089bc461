"""OpenSSL 3 libcrypto: the subset that `crypto_evp` uses. Declarations only."""

cdef extern from "<openssl/evp.h>" nogil:
    struct evp_cipher_st:
        pass
    struct evp_cipher_ctx_st:
        pass
    struct evp_mac_st:
        pass
    struct evp_mac_ctx_st:
        pass
    ctypedef evp_cipher_st EVP_CIPHER
    ctypedef evp_cipher_ctx_st EVP_CIPHER_CTX
    ctypedef evp_mac_st EVP_MAC
    ctypedef evp_mac_ctx_st EVP_MAC_CTX

    EVP_CIPHER *EVP_CIPHER_fetch(void *library, const char *name, const char *properties) noexcept
    void EVP_CIPHER_free(EVP_CIPHER *cipher) noexcept
    EVP_CIPHER_CTX *EVP_CIPHER_CTX_new() noexcept
    void EVP_CIPHER_CTX_free(EVP_CIPHER_CTX *context) noexcept
    int EVP_CIPHER_CTX_set_padding(EVP_CIPHER_CTX *context, int padding) noexcept
    int EVP_CIPHER_CTX_ctrl(EVP_CIPHER_CTX *context, int kind, int length, void *data) noexcept
    int EVP_CTRL_AEAD_GET_TAG
    int EVP_CTRL_AEAD_SET_TAG
    int EVP_CTRL_AEAD_SET_IVLEN
    # 1 when done. A NULL cipher or key keeps the one that the context has.
    int EVP_CipherInit_ex2(EVP_CIPHER_CTX *context, const EVP_CIPHER *cipher, const unsigned char *key,
                           const unsigned char *iv, int encrypt, const OSSL_PARAM *parameters) noexcept
    int EVP_EncryptInit_ex2(EVP_CIPHER_CTX *context, const EVP_CIPHER *cipher, const unsigned char *key,
                            const unsigned char *iv, const OSSL_PARAM *parameters) noexcept
    int EVP_EncryptUpdate(EVP_CIPHER_CTX *context, unsigned char *out, int *out_length,
                          const unsigned char *text, int length) noexcept
    int EVP_EncryptFinal_ex(EVP_CIPHER_CTX *context, unsigned char *out, int *out_length) noexcept
    int EVP_DecryptInit_ex2(EVP_CIPHER_CTX *context, const EVP_CIPHER *cipher, const unsigned char *key,
                            const unsigned char *iv, const OSSL_PARAM *parameters) noexcept
    int EVP_DecryptUpdate(EVP_CIPHER_CTX *context, unsigned char *out, int *out_length,
                          const unsigned char *text, int length) noexcept
    int EVP_DecryptFinal_ex(EVP_CIPHER_CTX *context, unsigned char *out, int *out_length) noexcept

    EVP_MAC *EVP_MAC_fetch(void *library, const char *algorithm, const char *properties) noexcept
    void EVP_MAC_free(EVP_MAC *mac) noexcept
    EVP_MAC_CTX *EVP_MAC_CTX_new(EVP_MAC *mac) noexcept
    void EVP_MAC_CTX_free(EVP_MAC_CTX *context) noexcept
    # 1 when done. A NULL key starts the next message under the same key.
    int EVP_MAC_init(EVP_MAC_CTX *context, const unsigned char *key, size_t length,
                     const OSSL_PARAM *parameters) noexcept
    int EVP_MAC_update(EVP_MAC_CTX *context, const unsigned char *data, size_t length) noexcept
    int EVP_MAC_final(EVP_MAC_CTX *context, unsigned char *out, size_t *out_length, size_t room) noexcept

cdef extern from "<openssl/params.h>" nogil:
    ctypedef struct OSSL_PARAM:
        pass
    OSSL_PARAM OSSL_PARAM_construct_utf8_string(const char *key, char *text, size_t size) noexcept
    OSSL_PARAM OSSL_PARAM_construct_end() noexcept

cdef extern from "<openssl/core_names.h>" nogil:
    const char *OSSL_MAC_PARAM_DIGEST

cdef extern from "<openssl/err.h>" nogil:
    void ERR_clear_error() noexcept
    unsigned long ERR_peek_last_error() noexcept
    void ERR_error_string_n(unsigned long error, char *text, size_t size) noexcept

cdef extern from "<openssl/crypto.h>" nogil:
    const char *OpenSSL_version(int what) noexcept
    int OPENSSL_VERSION
    int OPENSSL_CPU_INFO
