"""The engine on OpenSSL 3 libcrypto: every CPU, one packet after the other.

Contexts are what costs in OpenSSL, so each process keeps a keyed one per SA and direction (and one for HMAC) and gives
it only the next IV. They are made when the process first uses the SA, found by Key.index, made anew when Key.id says
that the slot holds another SA by now, and dropped by `forget`. Nothing is allocated after a key's first packet.

Key.expanded stays unused: contexts are private to a process and cannot lie in shared tables.
Limits: not thread-safe, one engine per process; made after fork, since contexts do not pass to children usefully.
"""

from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcpy, memset

from ext.crypto cimport (
    CIPHERS, CIPHER_AES_CBC, CIPHER_AES_CCM, CIPHER_AES_CTR, CIPHER_AES_GCM, CIPHER_AES_GMAC, CIPHER_NULL,
    INTEGRITY_AES_CMAC, INTEGRITY_AES_GMAC, INTEGRITY_AES_XCBC, INTEGRITY_HMAC_SHA1, INTEGRITY_HMAC_SHA2_256,
    INTEGRITY_HMAC_SHA2_384, INTEGRITY_NONE, Engine, EngineHandle, Job, JobList, Key, key_valid, text_fits,
)
from ext.libcrypto cimport *
from ext.secret cimport explicit_bzero, same_icv

cdef enum:
    INDEX_END = 1 << 24         # SA indices beyond this are refused: 128 MB of table

cdef const uint8_t *ZERO_IV = b"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"


# The list.

cdef void _seal(Engine *engine, JobList *list) noexcept nogil:
    """Seal every job of the list in place."""
    cdef EvpState *state = <EvpState *>engine.state
    cdef uint32_t index
    cdef Job *job
    cdef SaContexts *contexts
    for index in range(list.count):
        job = &list.jobs[index]
        contexts = _contexts(state, job.key, False)
        if contexts == NULL or not text_fits(job):
            job.ok = 0
        elif job.key.cipher == CIPHER_AES_CCM:
            job.ok = _seal_ccm(contexts.cipher[0], job)
        elif job.key.cipher >= CIPHER_AES_GCM:
            job.ok = _seal_aead(contexts.cipher[0], job)
        else:
            job.ok = _seal_two(state, contexts, job, list.computed[index])
        if not job.ok:
            ERR_clear_error()


cdef bint _seal_aead(EVP_CIPHER_CTX *context, Job *job) noexcept nogil:
    """AES-GCM, ChaCha20-Poly1305, and AES-GMAC, whose IV and text are AAD (RFC 4543 3.3)."""
    cdef int length = 0
    if EVP_EncryptInit_ex2(context, NULL, NULL, job.nonce, NULL) != 1:
        return False
    if job.aad_length and EVP_EncryptUpdate(context, NULL, &length, _aad_of(job), job.aad_length) != 1:
        return False
    if job.key.cipher == CIPHER_AES_GMAC:
        if EVP_EncryptUpdate(context, NULL, &length, job.text - 8, <int>job.text_length + 8) != 1:
            return False
    elif job.text_length and EVP_EncryptUpdate(context, job.text, &length, job.text, <int>job.text_length) != 1:
        return False
    # A stream cipher: the end adds no text, and `length` is where it would go.
    if EVP_EncryptFinal_ex(context, job.text + job.text_length, &length) != 1:
        return False
    return EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_AEAD_GET_TAG, job.key.icv_length, job.icv) == 1


cdef inline const uint8_t *_aad_of(const Job *job) noexcept nogil:
    """SPI and number; what AES-GMAC covers lies in the packet, as the other engine reads it, unless it is with ESN."""
    if job.key.cipher == CIPHER_AES_GMAC and job.aad_length == 8:
        return job.text - 16
    return job.aad


cdef bint _seal_ccm(EVP_CIPHER_CTX *context, Job *job) noexcept nogil:
    """AES-CCM, which wants the length of the text before all else, and the text in one piece."""
    cdef int length = 0
    if EVP_EncryptInit_ex2(context, NULL, NULL, job.nonce + 1, NULL) != 1:
        return False
    if EVP_EncryptUpdate(context, NULL, &length, NULL, <int>job.text_length) != 1:
        return False
    if job.aad_length and EVP_EncryptUpdate(context, NULL, &length, job.aad, job.aad_length) != 1:
        return False
    if EVP_EncryptUpdate(context, job.text, &length, job.text, <int>job.text_length) != 1:
        return False
    return EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_AEAD_GET_TAG, job.key.icv_length, job.icv) == 1


cdef bint _seal_two(EvpState *state, SaContexts *contexts, Job *job, uint8_t *tag) noexcept nogil:
    """Encipher, then hash: CBC, CTR and NULL."""
    cdef int length = 0
    cdef uint8_t counter[16]
    if job.key.cipher != CIPHER_NULL and job.text_length:
        if EVP_EncryptInit_ex2(contexts.cipher[0], NULL, NULL, _first_block(job, counter), NULL) != 1:
            return False
        if EVP_EncryptUpdate(contexts.cipher[0], job.text, &length, job.text, <int>job.text_length) != 1:
            return False
    if job.key.integrity == INTEGRITY_NONE:
        return True
    if not _hash(state, contexts, job, tag):
        return False
    memcpy(job.icv, tag, job.key.icv_length)
    return True


cdef inline const uint8_t *_first_block(const Job *job, uint8_t *counter) noexcept nogil:
    """What the cipher begins with: CBC zeros (see Job.text), CTR nonce, IV and a counter that is 1 (RFC 3686 4)."""
    if job.key.cipher == CIPHER_AES_CBC:
        return ZERO_IV
    memcpy(counter, job.nonce, 12)
    memset(counter + 12, 0, 4)
    counter[15] = 1
    return counter


cdef bint _hash(EvpState *state, SaContexts *contexts, const Job *job, uint8_t *tag) noexcept nogil:
    """The ICV over ESP header, text and, with ESN, the number's high half (RFC 4303 2.2.1: appended, not sent)."""
    cdef size_t length = 0
    if job.key.integrity == INTEGRITY_AES_GMAC:
        return _gmac(contexts.chain, job, tag)
    if job.key.integrity >= INTEGRITY_AES_XCBC:
        return _chain(state, contexts, job, tag)
    if EVP_MAC_init(contexts.mac, NULL, 0, NULL) != 1:
        return False
    if EVP_MAC_update(contexts.mac, job.esp, <size_t>(job.text - job.esp) + job.text_length) != 1:
        return False
    if job.aad_length == 4 and EVP_MAC_update(contexts.mac, job.aad, 4) != 1:
        return False
    return EVP_MAC_final(contexts.mac, tag, &length, 64) == 1


cdef bint _gmac(EVP_CIPHER_CTX *context, const Job *job, uint8_t *tag) noexcept nogil:
    """AES-GMAC as an integrity algorithm (RFC 4543 4)."""
    cdef int length = 0
    if EVP_EncryptInit_ex2(context, NULL, NULL, job.nonce, NULL) != 1:
        return False
    if EVP_EncryptUpdate(
            context, NULL, &length, job.esp, <int>(<size_t>(job.text - job.esp) + job.text_length)) != 1:
        return False
    if job.aad_length == 4 and EVP_EncryptUpdate(context, NULL, &length, job.aad, 4) != 1:
        return False
    if EVP_EncryptFinal_ex(context, tag, &length) != 1:
        return False
    return EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_AEAD_GET_TAG, 16, tag) == 1


cdef bint _chain(EvpState *state, SaContexts *contexts, const Job *job, uint8_t *tag) noexcept nogil:
    """AES-XCBC (RFC 3566 4.2) and AES-CMAC (RFC 4493 2.4): CBC-MAC whose last block is treated apart.

    libcrypto has no XCBC; the two differ in their keys only, so both go this way.
    """
    cdef EVP_CIPHER_CTX *context = contexts.chain
    cdef const uint8_t *at = job.esp
    cdef uint32_t rest = <uint32_t>(job.text - job.esp) + job.text_length
    cdef uint32_t taken
    cdef int length = 0
    cdef uint8_t end[32]            # what is left for the last block, and the high half of the number
    if EVP_EncryptInit_ex2(context, NULL, NULL, ZERO_IV, NULL) != 1:
        return False
    while rest > 16:
        taken = min((rest - 1) & ~<uint32_t>15, <uint32_t>sizeof(state.scratch))
        if EVP_EncryptUpdate(context, state.scratch, &length, at, <int>taken) != 1:
            return False
        at += taken
        rest -= taken
    memset(end, 0, sizeof(end))
    memcpy(end, at, rest)
    if job.aad_length == 4:
        memcpy(end + rest, job.aad, 4)
        rest += 4
    if rest > 16:
        if EVP_EncryptUpdate(context, state.scratch, &length, end, 16) != 1:
            return False
        memcpy(end, end + 16, 16)
        rest -= 16
    if rest < 16:
        end[rest] = 0x80
    for taken in range(16):
        end[taken] ^= contexts.last[rest < 16][taken]
    return EVP_EncryptUpdate(context, tag, &length, end, 16) == 1


cdef void _open(Engine *engine, JobList *list) noexcept nogil:
    """Verify and open every job of the list in place."""
    cdef EvpState *state = <EvpState *>engine.state
    cdef uint32_t index
    cdef Job *job
    cdef SaContexts *contexts
    for index in range(list.count):
        job = &list.jobs[index]
        contexts = _contexts(state, job.key, True)
        if contexts == NULL or not text_fits(job):
            job.ok = 0
        elif job.key.cipher == CIPHER_AES_CCM:
            job.ok = _open_ccm(contexts.cipher[1], job)
        elif job.key.cipher >= CIPHER_AES_GCM:
            job.ok = _open_aead(contexts.cipher[1], job)
        else:
            job.ok = _open_two(state, contexts, job, list.computed[index])
        if not job.ok:
            ERR_clear_error()


cdef bint _open_aead(EVP_CIPHER_CTX *context, Job *job) noexcept nogil:
    """AES-GCM, ChaCha20-Poly1305 and AES-GMAC; the library compares tags in constant time."""
    cdef int length = 0
    if EVP_DecryptInit_ex2(context, NULL, NULL, job.nonce, NULL) != 1:
        return False
    if job.aad_length and EVP_DecryptUpdate(context, NULL, &length, _aad_of(job), job.aad_length) != 1:
        return False
    if job.key.cipher == CIPHER_AES_GMAC:
        if EVP_DecryptUpdate(context, NULL, &length, job.text - 8, <int>job.text_length + 8) != 1:
            return False
    elif job.text_length and EVP_DecryptUpdate(context, job.text, &length, job.text, <int>job.text_length) != 1:
        return False
    if EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_AEAD_SET_TAG, job.key.icv_length, job.icv) != 1:
        return False
    return EVP_DecryptFinal_ex(context, job.text + job.text_length, &length) == 1


cdef bint _open_ccm(EVP_CIPHER_CTX *context, Job *job) noexcept nogil:
    """AES-CCM; the library compares tags in constant time, and wipes text whose tag is wrong."""
    cdef int length = 0
    if EVP_DecryptInit_ex2(context, NULL, NULL, job.nonce + 1, NULL) != 1:
        return False
    if EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_AEAD_SET_TAG, job.key.icv_length, job.icv) != 1:
        return False
    if EVP_DecryptUpdate(context, NULL, &length, NULL, <int>job.text_length) != 1:
        return False
    if job.aad_length and EVP_DecryptUpdate(context, NULL, &length, job.aad, job.aad_length) != 1:
        return False
    return EVP_DecryptUpdate(context, job.text, &length, job.text, <int>job.text_length) == 1


cdef bint _open_two(EvpState *state, SaContexts *contexts, Job *job, uint8_t *tag) noexcept nogil:
    """Hash, compare, then decipher: CBC, CTR and NULL."""
    cdef int length = 0
    cdef uint32_t block = 16 if job.key.cipher == CIPHER_AES_CBC else 0
    cdef uint8_t counter[16]
    cdef const uint8_t *iv = job.text
    if job.key.integrity != INTEGRITY_NONE:
        if not _hash(state, contexts, job, tag) or not same_icv(tag, job.icv, job.key.icv_length):
            return False
    if job.key.cipher == CIPHER_NULL or job.text_length == block:
        return True
    if not block:
        iv = _first_block(job, counter)
    if EVP_DecryptInit_ex2(contexts.cipher[1], NULL, NULL, iv, NULL) != 1:
        return False
    return EVP_DecryptUpdate(
        contexts.cipher[1], job.text + block, &length, job.text + block, <int>(job.text_length - block)) == 1


# Contexts.

cdef inline SaContexts *_contexts(EvpState *state, const Key *key, bint opening) noexcept nogil:
    """The contexts for this key and direction; NULL when they cannot be made."""
    cdef SaContexts *contexts
    if key.index < state.capacity:
        contexts = state.contexts[key.index]
        if contexts != NULL and contexts.id == key.id:
            if contexts.cipher[opening] != NULL or key.cipher == CIPHER_NULL:
                return contexts
    return _make_contexts(state, key, opening)


cdef SaContexts *_make_contexts(EvpState *state, const Key *key, bint opening) noexcept nogil:
    """First packet of an SA in this process and direction: make what it needs."""
    cdef SaContexts *contexts
    if not key_valid(key) or not _reach(state, key.index):
        return NULL
    contexts = state.contexts[key.index]
    if contexts != NULL and contexts.id != key.id:
        _drop(state, key.index)
        contexts = NULL
    if contexts == NULL:
        contexts = <SaContexts *>calloc(1, sizeof(SaContexts))
        if contexts == NULL:
            return NULL
        contexts.id = key.id
        state.contexts[key.index] = contexts
        state.in_use += 1
    if not _make_mac(state, contexts, key):
        _drop(state, key.index)
        return NULL
    if key.cipher != CIPHER_NULL and contexts.cipher[opening] == NULL:
        contexts.cipher[opening] = make_cipher(state, key, opening)
        if contexts.cipher[opening] == NULL:
            _drop(state, key.index)
            return NULL
    return contexts


cdef bint _make_mac(EvpState *state, SaContexts *contexts, const Key *key) noexcept nogil:
    """What the key's integrity algorithm needs, if it is not there yet."""
    if key.integrity == INTEGRITY_NONE:
        return True
    if key.integrity < INTEGRITY_AES_XCBC:
        if contexts.mac == NULL:
            contexts.mac = make_mac(state, key)
        return contexts.mac != NULL
    if contexts.chain == NULL:
        contexts.chain = make_chain(state, key, &contexts.last[0][0])
    return contexts.chain != NULL


cdef bint _reach(EvpState *state, uint32_t index) noexcept nogil:
    """Let the table reach this index; it doubles, so that few SAs need few bytes."""
    cdef uint32_t capacity = state.capacity
    cdef void *larger
    if index < capacity:
        return True
    if index >= INDEX_END:
        return False
    while capacity <= index:
        capacity *= 2
    larger = realloc(state.contexts, capacity * sizeof(SaContexts *))
    if larger == NULL:
        return False
    state.contexts = <SaContexts **>larger
    memset(state.contexts + state.capacity, 0, (capacity - state.capacity) * sizeof(SaContexts *))
    state.capacity = capacity
    return True


cdef const EVP_CIPHER *_algorithm(const EvpState *state, const Key *key) noexcept nogil:
    """The library's cipher for a valid key."""
    cdef uint32_t bits = (key.encryption_length >> 3) - 2
    if key.cipher == CIPHER_AES_GCM or key.cipher == CIPHER_AES_GMAC:
        return state.gcm[bits]
    if key.cipher == CIPHER_AES_CBC:
        return state.cbc[bits]
    if key.cipher == CIPHER_AES_CTR:
        return state.ctr[bits]
    if key.cipher == CIPHER_AES_CCM:
        return state.ccm[bits]
    return state.chacha


cdef EVP_CIPHER_CTX *make_cipher(const EvpState *state, const Key *key, bint opening) noexcept nogil:
    """A keyed cipher context, or NULL. IVs are of the ciphers' default lengths, 12 bytes, of CBC and CTR 16; of CCM 11
    (RFC 4309 4)."""
    cdef EVP_CIPHER_CTX *context = EVP_CIPHER_CTX_new()
    cdef int encrypt = 0 if opening else 1
    cdef bint made
    if context == NULL:
        return NULL
    made = EVP_CipherInit_ex2(context, _algorithm(state, key), NULL, NULL, encrypt, NULL) == 1
    if made and key.cipher == CIPHER_AES_CCM:
        made = (EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_AEAD_SET_IVLEN, 11, NULL) == 1
                and EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_AEAD_SET_TAG, key.icv_length, NULL) == 1)
    if not made or EVP_CipherInit_ex2(context, NULL, key.encryption, NULL, encrypt, NULL) != 1 or (
            EVP_CIPHER_CTX_set_padding(context, 0) != 1):
        EVP_CIPHER_CTX_free(context)
        return NULL
    return context


cdef EVP_CIPHER_CTX *make_chain(const EvpState *state, const Key *key, uint8_t *last) noexcept nogil:
    """A keyed context for AES-XCBC, AES-CMAC or AES-GMAC, or NULL; `last` takes the two masks of SaContexts."""
    cdef EVP_CIPHER_CTX *context = EVP_CIPHER_CTX_new()
    cdef const EVP_CIPHER *cipher = state.cbc[0]
    cdef uint8_t first[16]
    cdef int length = 0
    cdef bint made
    if context == NULL:
        return NULL
    if key.integrity == INTEGRITY_AES_GMAC:
        cipher = state.gcm[(key.integrity_length >> 3) - 2]
    made = EVP_CipherInit_ex2(context, cipher, key.integrity_key, ZERO_IV, 1, NULL) == 1
    if made and key.integrity != INTEGRITY_AES_GMAC:
        made = EVP_CIPHER_CTX_set_padding(context, 0) == 1
        if key.integrity == INTEGRITY_AES_CMAC:
            # RFC 4493 2.3: the two masks are a block of zeros, enciphered, doubled once and twice.
            memset(last, 0, 16)
            made = made and EVP_EncryptUpdate(context, last, &length, last, 16) == 1
            _double(last, last)
            _double(last, last + 16)
        else:
            # RFC 3566 4.1: three keys from one.
            made = made and _encipher_block(context, 1, first) and _encipher_block(context, 2, last)
            made = made and _encipher_block(context, 3, last + 16)
            made = made and EVP_CipherInit_ex2(context, NULL, first, ZERO_IV, 1, NULL) == 1
            explicit_bzero(first, sizeof(first))
    if not made:
        EVP_CIPHER_CTX_free(context)
        return NULL
    return context


cdef bint _encipher_block(EVP_CIPHER_CTX *context, uint8_t value, uint8_t *into) noexcept nogil:
    """Sixteen bytes of `value` through a CBC context, by themselves."""
    cdef int length = 0
    memset(into, value, 16)
    return (EVP_EncryptInit_ex2(context, NULL, NULL, ZERO_IV, NULL) == 1
            and EVP_EncryptUpdate(context, into, &length, into, 16) == 1)


cdef void _double(const uint8_t *block, uint8_t *into) noexcept nogil:
    """Multiply by x in GF(2^128), most significant byte first (RFC 4493 2.3); in constant time."""
    cdef uint32_t at
    cdef uint8_t carry = block[0] >> 7
    for at in range(15):
        into[at] = <uint8_t>(block[at] << 1 | block[at + 1] >> 7)
    into[15] = <uint8_t>(block[15] << 1) ^ (0x87 & -carry)


cdef EVP_MAC_CTX *make_mac(const EvpState *state, const Key *key) noexcept nogil:
    """A keyed HMAC context, or NULL."""
    cdef EVP_MAC_CTX *context = EVP_MAC_CTX_new(state.hmac)
    cdef OSSL_PARAM parameters[2]
    cdef const char *digest = "SHA512"
    if context == NULL:
        return NULL
    if key.integrity == INTEGRITY_HMAC_SHA2_256:
        digest = "SHA256"
    elif key.integrity == INTEGRITY_HMAC_SHA2_384:
        digest = "SHA384"
    elif key.integrity == INTEGRITY_HMAC_SHA1:
        digest = "SHA1"
    parameters[0] = OSSL_PARAM_construct_utf8_string(OSSL_MAC_PARAM_DIGEST, <char *>digest, 0)
    parameters[1] = OSSL_PARAM_construct_end()
    if EVP_MAC_init(context, key.integrity_key, key.integrity_length, parameters) != 1:
        EVP_MAC_CTX_free(context)
        return NULL
    return context


cdef void _drop(EvpState *state, uint32_t index) noexcept nogil:
    """Free an SA's contexts; the library wipes their keys."""
    cdef SaContexts *contexts = state.contexts[index]
    state.contexts[index] = NULL
    state.in_use -= 1
    EVP_CIPHER_CTX_free(contexts.cipher[0])
    EVP_CIPHER_CTX_free(contexts.cipher[1])
    EVP_MAC_CTX_free(contexts.mac)
    EVP_CIPHER_CTX_free(contexts.chain)
    explicit_bzero(contexts, sizeof(SaContexts))
    free(contexts)


# Keys.

cdef int _expand(Engine *engine, Key *key) noexcept nogil:
    """Nothing to expand: each process keys its own contexts."""
    return 0 if key_valid(key) else -1


cdef void _forget(Engine *engine, uint32_t index) noexcept nogil:
    """Drop the SA's contexts, if this process has any."""
    cdef EvpState *state = <EvpState *>engine.state
    if index < state.capacity and state.contexts[index] != NULL:
        _drop(state, index)


cdef class EvpEngine(EngineHandle):
    """The engine on OpenSSL's libcrypto. Raises RuntimeError where its providers lack an algorithm."""

    def __cinit__(self):
        cdef uint32_t index
        self.name = "openssl"
        self.reason = ""
        self.number = 1
        self.state.capacity = 64
        self.state.contexts = <SaContexts **>calloc(self.state.capacity, sizeof(SaContexts *))
        if self.state.contexts == NULL:
            raise MemoryError("the table of contexts")
        for index, bits in enumerate((b"128", b"192", b"256")):
            self.state.cbc[index] = _fetch(b"AES-" + bits + b"-CBC")
            self.state.gcm[index] = _fetch(b"AES-" + bits + b"-GCM")
            self.state.ctr[index] = _fetch(b"AES-" + bits + b"-CTR")
            self.state.ccm[index] = _fetch(b"AES-" + bits + b"-CCM")
        self.state.chacha = _fetch(b"ChaCha20-Poly1305")
        self.state.hmac = EVP_MAC_fetch(NULL, b"HMAC", NULL)
        if self.state.hmac == NULL:
            raise RuntimeError(f"libcrypto offers no HMAC: {_last_error()}")
        self.c.state = &self.state
        self.c.expand = _expand
        self.c.seal = _seal
        self.c.open = _open
        self.c.forget = _forget
        # What a packet reads of Key is its tail; the rest is read when contexts are made.
        for index in range(<uint32_t>CIPHERS):
            self.c.key_lines[0][index] = self.c.key_lines[1][index] = 1 << 17

    def __dealloc__(self):
        cdef uint32_t index
        if self.state.contexts != NULL:
            for index in range(self.state.capacity):
                if self.state.contexts[index] != NULL:
                    _drop(&self.state, index)
            free(self.state.contexts)
        for index in range(3):
            EVP_CIPHER_free(self.state.cbc[index])
            EVP_CIPHER_free(self.state.gcm[index])
            EVP_CIPHER_free(self.state.ctr[index])
            EVP_CIPHER_free(self.state.ccm[index])
        EVP_CIPHER_free(self.state.chacha)
        EVP_MAC_free(self.state.hmac)
        explicit_bzero(&self.state, sizeof(EvpState))

    @property
    def contexts_in_use(self) -> int:
        """SAs that this process holds contexts of."""
        return self.state.in_use

    def bare(
        self, cipher, integrity, key_bits, size, packets, direction="seal", repeats=5, stride=2048,
    ) -> float:
        """Nanoseconds per packet of the library's own calls, without this engine: see ext.bare_evp."""
        from ext.bare_evp import bare

        return bare(self, cipher, integrity, key_bits, size, packets, direction, repeats, stride)

    def features(self) -> dict:
        """Library and CPU capability words, for `status` and `doctor`."""
        information = OpenSSL_version(OPENSSL_CPU_INFO).decode()
        return {
            "engine": self.name,
            "library": OpenSSL_version(OPENSSL_VERSION).decode(),
            "architecture": information.removeprefix("CPUINFO: "),
            "sha256": "as architecture",
            "sha1": "as architecture",
            "cpu": [],
        }


cdef EVP_CIPHER *_fetch(bytes name) except NULL:
    """A cipher of the default provider."""
    cdef EVP_CIPHER *cipher = EVP_CIPHER_fetch(NULL, name, NULL)
    if cipher == NULL:
        raise RuntimeError(f"libcrypto offers no {name.decode()}: {_last_error()}")
    return cipher


def _last_error() -> str:
    """What the library said last."""
    cdef char text[256]
    ERR_error_string_n(ERR_peek_last_error(), text, sizeof(text))
    ERR_clear_error()
    return text.decode()
