"""What the ESP passes ask of a crypto engine, and the key material it keeps per SA.

Two engines stand behind this: `crypto_mb` (libipsec-mb) and `crypto_evp` (OpenSSL libcrypto).
Both seal and open a whole JobList in place; tests hold them byte-identical.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from ext.packet cimport BATCH_MAX

cdef enum Cipher:
    CIPHER_NULL = 0
    CIPHER_AES_CBC = 1
    CIPHER_AES_CTR = 2          # RFC 3686, with integrity only
    CIPHER_AES_GCM = 3          # from here on AEADs: see suite_is_aead
    CIPHER_CHACHA20_POLY1305 = 4
    CIPHER_AES_CCM = 5          # RFC 4309
    CIPHER_AES_GMAC = 6         # RFC 4543: integrity alone, by an AEAD's rules
    CIPHERS = 8

cdef enum Integrity:
    INTEGRITY_NONE = 0          # AEAD ciphers; alone only in test vectors
    INTEGRITY_HMAC_SHA2_256 = 1 # truncated to 128 bits, RFC 4868
    INTEGRITY_HMAC_SHA2_384 = 2 # 192
    INTEGRITY_HMAC_SHA2_512 = 3 # 256
    INTEGRITY_HMAC_SHA1 = 4     # 96, RFC 2404
    INTEGRITY_AES_XCBC = 5      # 96, RFC 3566
    INTEGRITY_AES_CMAC = 6      # 96, RFC 4494
    INTEGRITY_AES_GMAC = 7      # 128, RFC 4543: of AH, with CIPHER_NULL; its nonce is Job.nonce
    INTEGRITIES = 8

cdef enum:
    KEY_EXPANDED = 1024         # bytes an engine may use for expanded keys (64-byte aligned)
    # libipsec-mb's use of Key.expanded: round keys of CBC, CTR and CCM; the HMACs' two states; XCBC's K1 or CMAC's key
    # as round keys, and the two keys for the last block. GCM and GMAC have struct gcm_key_data from 0.
    EXPANDED_ENCRYPT = 0
    EXPANDED_DECRYPT = 256
    EXPANDED_IPAD = 512
    EXPANDED_OPAD = 576
    EXPANDED_MAC = 512
    EXPANDED_LAST = 704
    ICV_MAX = 32                # longest ICV we use, bytes
    SUITE_CIPHER = 7            # mask: see suite_of
    SUITE_KEY_SHIFT = 3
    SUITE_KEY = 3               # mask, once shifted: 0 is 128 bits of key (or none), 1 is 192, 2 is 256
    SUITE_INTEGRITY_SHIFT = 5   # what is left of a byte, three bits: no mask is needed
    SUITE_ODD_ICV = 0xE0        # mask: some bit of it is set where an AEAD's ICV is shorter than 16 bytes
    TEXT_MAX = 65000            # bytes of text in a job: libipsec-mb counts lengths in 16 bits

cdef struct Key:                # 1152 bytes
    uint8_t  expanded[KEY_EXPANDED]
    uint8_t  encryption[32]     # raw key without salt: engines without pre-expansion use it
    uint8_t  integrity_key[64]
    uint64_t id                 # never the same for two SAs of one dataplane: tells a reused slot apart
    uint32_t index              # the SA's own index
    uint8_t  cipher             # Cipher
    uint8_t  integrity          # Integrity
    uint8_t  encryption_length  # bytes
    uint8_t  integrity_length   # bytes
    uint8_t  icv_length         # bytes
    uint8_t  spare[15]

cdef struct Job:                # 64 bytes
    uint8_t  nonce[12]          # AEAD, CTR: salt | IV; AES-CCM's is nonce[1:12]. CBC, NULL: unused
    uint8_t  aad[12]            # AEAD: SPI | (ESN high half) | sequence. CBC, CTR, NULL with ESN: aad[0:4] is the
                                # sequence number's high half, and aad_length is 4 (RFC 4303 2.2.1: it follows the text)
    uint8_t  *esp               # the ESP header: where what an integrity algorithm covers begins. AEADs do not read it,
                                # but AES-GMAC wants SPI, number and IV right before the text: they are covered too
    uint8_t  *text              # enciphered in place. CBC: text begins *at the IV field*, 16 bytes before the payload:
                                # seal enciphers it from a zero IV, so the IV on the wire is E(K, nonce block),
                                # unpredictable as RFC 3602 3 and SP 800-38A Appendix C want; open uses it as IV
    uint8_t  *icv               # seal: written here; open: what arrived, compared in constant time
    const Key *key
    uint32_t text_length        # bytes (CBC: with the IV's 16)
    uint8_t  packet             # index of the packet in its batch
    uint8_t  suite              # suite_of(key): what an engine would else have to fetch the end of Key for
    uint8_t  aad_length         # AEAD: 8 or 12; others: 0 or 4
    uint8_t  ok                 # result: 1 done (open: and the ICV matched), 0 not

cdef inline void put_job(Job *job, uint32_t text_length, uint32_t packet, uint32_t suite,
                         uint32_t aad_length) noexcept nogil:
    """The last four fields before `ok`, and that one zero, in one store."""
    cdef uint64_t word = text_length | <uint64_t>(packet | suite << 8 | aad_length << 16) << 32
    memcpy(&job.text_length, &word, 8)

cdef struct JobList:
    uint32_t count
    uint32_t reserved[15]
    Job jobs[BATCH_MAX]
    uint8_t received[BATCH_MAX][ICV_MAX]    # scratch of the engines: ICVs that arrived
    uint8_t computed[BATCH_MAX][64]         # scratch of the engines: ICVs computed

cdef struct Engine:
    void *state
    # Expand key.encryption and key.integrity_key into key.expanded. 0, or -1 for a combination it cannot do.
    int (*expand)(Engine *engine, Key *key) noexcept nogil
    void (*seal)(Engine *engine, JobList *list) noexcept nogil
    void (*open)(Engine *engine, JobList *list) noexcept nogil
    # Forget all it may hold of this key (contexts, cached schedules).
    void (*forget)(Engine *engine, uint32_t index) noexcept nogil
    # [0 seal, 1 open][Cipher]: bit n is set where a short packet makes the engine read bytes 64n .. 64n+63 of Key
    uint32_t key_lines[2][CIPHERS]

cdef extern from *:
    """
    static inline void esplanade_touch_lines(const void *base, uint32_t lines)
    {
        for (; lines; lines &= lines - 1)
            (void)*((const volatile char *)base + 64 * __builtin_ctz(lines));
    }
    """
    void touch_lines "esplanade_touch_lines"(const void *base, uint32_t lines) noexcept nogil

cdef inline void touch_key(const Engine *engine, const Key *key, uint8_t suite, bint opening) noexcept nogil:
    """Fetch what seal or open will read of this key: about seven lines, so once per run of one SA."""
    touch_lines(key, engine.key_lines[opening][suite & SUITE_CIPHER])

cdef inline uint8_t icv_length_of(uint32_t integrity) noexcept nogil:
    """Bytes of ICV by Integrity: RFC 4868 2.1.1, 2404 2, 3566 4, 4494 2, 4543 3 (none for INTEGRITY_NONE)."""
    if integrity == INTEGRITY_AES_GMAC:
        return 16
    if integrity >= INTEGRITY_HMAC_SHA1:
        return 12
    return <uint8_t>(8 * integrity + 8) if integrity else 0

cdef inline uint8_t integrity_length_of(uint32_t integrity) noexcept nogil:
    """Bytes of key by Integrity: HMACs as many as the hash gives (RFC 4868 2.1.1, RFC 2404 3), AES 16 (RFC 3566 4,
    RFC 4494 2), which for GMAC is the shortest of three."""
    if integrity >= INTEGRITY_AES_XCBC:
        return 16
    return 20 if integrity == INTEGRITY_HMAC_SHA1 else 2 * icv_length_of(integrity)

cdef inline uint8_t suite_of(const Key *key) noexcept nogil:
    """Cipher | key's length << 3 (see SUITE_KEY) | << 5: of an AEAD (16 - bytes of ICV) / 4, else Integrity.

    The key is the cipher's, or of AES-GMAC in AH the integrity's.
    """
    cdef uint32_t length = key.encryption_length
    cdef uint32_t last = key.integrity
    if key.cipher >= CIPHER_AES_GCM:
        last = (16 - key.icv_length) >> 2
    elif key.integrity == INTEGRITY_AES_GMAC:
        length = key.integrity_length
    return <uint8_t>(key.cipher | ((length >> 3) - 2 if length else 0) << SUITE_KEY_SHIFT
                     | last << SUITE_INTEGRITY_SHIFT)

cdef inline bint suite_is_aead(uint32_t suite) noexcept nogil:
    """Nonce and AAD by RFC 4106 4 and 5: of AES-GCM, ChaCha20-Poly1305, AES-CCM and AES-GMAC."""
    return suite & SUITE_CIPHER >= CIPHER_AES_GCM

cdef inline bint key_valid(const Key *key) noexcept nogil:
    """The algorithms and lengths of a key are a combination that both engines can do."""
    cdef uint32_t length = key.encryption_length
    cdef bint aes = length == 16 or length == 24 or length == 32
    if key.cipher >= CIPHER_AES_GCM:
        if key.integrity != INTEGRITY_NONE or key.cipher > CIPHER_AES_GMAC:
            return False
        if key.cipher == CIPHER_CHACHA20_POLY1305:
            return length == 32 and key.icv_length == 16
        if key.cipher == CIPHER_AES_GMAC:
            return aes and key.icv_length == 16
        return aes and (key.icv_length == 8 or key.icv_length == 12 or key.icv_length == 16)
    if not aes if key.cipher != CIPHER_NULL else length != 0:
        return False
    length = key.integrity_length
    if key.integrity == INTEGRITY_NONE:
        return length == 0 and key.icv_length == 0
    if key.icv_length != icv_length_of(key.integrity) or key.integrity > INTEGRITY_AES_GMAC:
        return False
    if key.integrity == INTEGRITY_AES_GMAC:
        return key.cipher == CIPHER_NULL and (length == 16 or length == 24 or length == 32)
    if key.integrity >= INTEGRITY_AES_XCBC:
        return length == 16
    return 0 < length <= 64

cdef inline bint text_fits(const Job *job) noexcept nogil:
    """The text has a length that its cipher can take; the ESP passes send no other."""
    if job.text_length > TEXT_MAX:
        return False
    if job.suite & SUITE_CIPHER != CIPHER_AES_CBC:
        return True
    return job.text_length >= 16 and job.text_length % 16 == 0

cdef class EngineHandle:
    """Base of both engines: holds the C Engine that the ESP passes call through."""
    cdef Engine c
    cdef readonly str name      # "ipsec-mb" or "openssl"
    cdef readonly int number    # TablesHeader.engine: the layout of Key.expanded
    cdef public str reason      # why this engine: set by whoever chose it
