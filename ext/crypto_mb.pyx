"""The engine on libipsec-mb: x86 with AES-NI, code picked for the CPU at run time.

A list is walked once. GCM and GMAC jobs are done on the spot, because at 64 bytes every nanosecond shows: by code of
our own (gcm_vaes.h) on the key data that the library expanded when the SA was made, for the lengths at which a trial
when the engine is made finds it faster; else by one direct call of the library per packet. All other jobs are noted,
and then done group by group; a group is one cipher with one key size and one integrity algorithm, of whatever SAs.

- ChaCha20-Poly1305, CCM, and of other ciphers the XCBC and CMAC go through the manager's ring: jobs may come back in
  any order or late, so each carries its position, and the ring is flushed before the list is returned.
- The library has no CCM with 192-bit keys: its CBC and CTR make it up, one packet after the other.
- CBC, CTR, NULL and HMAC go through the two synchronous bursts, first the one, then the other, over job structures of
  our own whose constant fields stay filled from list to list. That is faster than the ring's chained jobs by a tenth,
  and it lets each half run where it is fastest: AES on the widest vectors; HMAC-SHA2-256 and SHA1 on the CPU's SHA
  instructions, which the library uses in its SSE code only (two lanes of SHA-NI do twice as much SHA2-256 as eight of
  AVX2). Which manager hashes faster is measured when the engine is made.

A packet is decrypted only if its ICV matched, except by AEAD calls, which do both at once.
Limits: text of up to TEXT_MAX bytes; not thread-safe, so one engine per process.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from ext.clock cimport now_ns
from ext.crypto cimport (
    CIPHER_AES_CBC, CIPHER_AES_CCM, CIPHER_AES_CTR, CIPHER_AES_GCM, CIPHER_AES_GMAC, CIPHER_CHACHA20_POLY1305,
    CIPHER_NULL, EXPANDED_DECRYPT, EXPANDED_ENCRYPT, EXPANDED_IPAD, EXPANDED_LAST, EXPANDED_MAC, EXPANDED_OPAD,
    INTEGRITY_AES_CMAC, INTEGRITY_AES_GMAC, INTEGRITY_AES_XCBC, INTEGRITY_HMAC_SHA1, INTEGRITY_HMAC_SHA2_256,
    INTEGRITY_HMAC_SHA2_384, INTEGRITY_NONE, KEY_EXPANDED, SUITE_CIPHER, SUITE_INTEGRITY_SHIFT, SUITE_KEY,
    SUITE_KEY_SHIFT, SUITE_ODD_ICV, TEXT_MAX, Engine, EngineHandle, Job, JobList, Key, icv_length_of, key_valid,
    text_fits,
)
from ext.libipsec_mb cimport *
from ext.packet cimport BATCH_MAX
from ext.secret cimport explicit_bzero, same_icv, same_icv16

cdef extern from *:
    """
    #include <stdlib.h>
    _Static_assert(sizeof(struct gcm_key_data) <= 1024, "gcm_key_data does not fit Key.expanded");
    """
    int posix_memalign(void **area, size_t alignment, size_t size) noexcept nogil
    bint likely "__builtin_expect"(bint condition, bint value) noexcept nogil
    uint32_t lowest_bit "__builtin_ctzll"(uint64_t bits) noexcept nogil

cdef extern from "gcm_vaes.h":
    # Job.nonce with Job.aad behind it is what they take for `nonce`.
    void gcm_vaes_seal(GcmHash *hash, const GcmHash *earlier, const uint8_t *keys, uint32_t rounds,
                       const uint8_t *powers, const uint8_t *nonce, uint32_t aad_length, uint8_t *text,
                       uint32_t length) noexcept nogil
    void gcm_vaes_seal_last(const GcmHash *hash) noexcept nogil
    bint gcm_vaes_open(const uint8_t *keys, uint32_t rounds, const uint8_t *powers, const uint8_t *nonce,
                       uint32_t aad_length, uint8_t *text, uint32_t length) noexcept nogil
    void gcm_vaes_mac(uint8_t *tag, const uint8_t *keys, uint32_t rounds, const uint8_t *powers, const uint8_t *nonce,
                      const uint8_t *text, uint32_t length) noexcept nogil
    void gcm_vaes_mac_extended(uint8_t *tag, const uint8_t *keys, uint32_t rounds, const uint8_t *powers,
                               const uint8_t *nonce, const uint8_t *aad, const uint8_t *text,
                               uint32_t length) noexcept nogil
    uint32_t gcm_vaes_powers(const uint8_t *expanded, uint32_t rounds, uint32_t size) noexcept nogil

cdef enum:
    GROUP_INTEGRITY = 7         # mask: a group is Integrity + 8 * (0 NULL, 1 to 3 CBC, 4 to 6 CTR, by length of key),
    GROUP_CIPHER_SHIFT = 3
    GROUP_CBC = 8
    GROUP_CTR = 32
    GROUP_CHACHA = 56           # or one of these, which none of those is
    GROUP_CCM = 57              # 128 and 256 bits
    GROUP_CCM_192 = 58
    # What is neither GCM nor ESP's GMAC, by suite: AH's GMAC is the cipher NULL and an Integrity.
    SUITE_OF_GMAC = SUITE_CIPHER | 7 << SUITE_INTEGRITY_SHIFT
    AH_GMAC = CIPHER_NULL | INTEGRITY_AES_GMAC << SUITE_INTEGRITY_SHIFT
    GROUP_OPEN = 64             # added to `laid_out` for the direction
    NO_GROUP = 0xFFFFFFFF
    OWN_STRIDE = 2048           # bytes between the scratch packets of _choose_gcm

cdef const uint8_t *ZERO_IV = b"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"


# The list, seal.

cdef void _seal(Engine *engine, JobList *list) noexcept nogil:
    """Seal every job of the list in place."""
    cdef MbState *state = <MbState *>engine.state
    cdef uint64_t groups = 0
    cdef uint32_t index
    cdef Job *job
    cdef const Key *key
    cdef uint32_t begun = 0
    state.others = 0
    for index in range(list.count):
        job = &list.jobs[index]
        key = job.key
        if likely(_is_own(state, job), 1):
            gcm_vaes_seal(
                &state.hashes[begun & 1], &state.hashes[~begun & 1] if begun else NULL, key.expanded, _rounds_of(job),
                key.expanded + state.own_powers, job.nonce, job.aad_length, job.text, job.text_length)
            begun += 1
            job.ok = 1
        elif job.suite & SUITE_CIPHER == CIPHER_AES_GCM:
            state.gcm_seal[job.suite >> SUITE_KEY_SHIFT & SUITE_KEY](
                <const gcm_key_data *>key.expanded, &state.context, job.text, job.text, job.text_length,
                job.nonce, job.aad, job.aad_length, job.icv, key.icv_length if job.suite & SUITE_ODD_ICV else 16)
            job.ok = 1
        elif job.suite & SUITE_CIPHER == CIPHER_AES_GMAC:
            _gmac(state, job, job.icv)
            job.ok = 1
        elif job.suite & SUITE_OF_GMAC == AH_GMAC:
            _gmac_of_packet(state, job, job.icv)
            job.ok = 1
        else:
            groups |= _note(state, job, index)
    if begun:
        gcm_vaes_seal_last(&state.hashes[~begun & 1])
    if groups:
        _do_groups(state, list, groups, False)


cdef inline bint _is_own(const MbState *state, const Job *job) noexcept nogil:
    """GCM as ESP has it, the whole ICV behind the text, of a length that gcm_vaes.h does faster than the library."""
    return (job.suite & (SUITE_CIPHER | SUITE_ODD_ICV) == CIPHER_AES_GCM and job.text_length - 1 < state.own_limit
            and job.icv == job.text + job.text_length)


cdef inline uint32_t _rounds_of(const Job *job) noexcept nogil:
    """AES rounds: 10, 12 or 14."""
    return 10 + 2 * (job.suite >> SUITE_KEY_SHIFT & SUITE_KEY)


cdef inline void _gmac(MbState *state, const Job *job, uint8_t *tag) noexcept nogil:
    """RFC 4543 3.2: a GCM tag of nothing but AAD, which are SPI, number, IV and text. With ESN the number in it is
    longer than in the packet (RFC 4543 3.3), so that it comes in two pieces."""
    cdef uint32_t bits = job.suite >> SUITE_KEY_SHIFT & SUITE_KEY
    cdef const uint8_t *keys = &job.key.expanded[0]
    cdef const gcm_key_data *expanded = <const gcm_key_data *>job.key.expanded
    if likely(job.text_length - 1 < state.own_mac_limit, 1):
        if likely(job.aad_length == 8, 1):
            gcm_vaes_mac(tag, keys, _rounds_of(job), keys + state.own_powers, job.nonce, job.text - 16,
                         job.text_length + 16)
        else:
            gcm_vaes_mac_extended(tag, keys, _rounds_of(job), keys + state.own_powers, job.nonce, job.aad, job.text,
                                  job.text_length)
        return
    if job.aad_length == 8:
        state.gcm_seal[bits](
            expanded, &state.context, job.text, job.text, 0, job.nonce, job.text - 16, job.text_length + 16, tag, 16)
        return
    state.gmac_init[bits](expanded, &state.context, job.nonce, 12)
    state.gmac_update[bits](expanded, &state.context, job.aad, job.aad_length)
    state.gmac_update[bits](expanded, &state.context, job.text - 8, job.text_length + 8)
    state.gmac_finalize[bits](expanded, &state.context, tag, 16)


cdef inline void _gmac_of_packet(MbState *state, const Job *job, uint8_t *tag) noexcept nogil:
    """AH's (RFC 4543 4): all from `esp` to the text's end is AAD, and with ESN the number's high half behind it."""
    cdef const uint8_t *keys = &job.key.expanded[0]
    cdef uint32_t length = <uint32_t>(job.text - job.esp) + job.text_length
    if job.aad_length == 4:
        memcpy(job.text + job.text_length, job.aad, 4)      # RFC 4302 2.5.1: appended, not sent
        length += 4
    if likely(length - 17 < state.own_mac_limit, 1):
        gcm_vaes_mac(tag, keys, _rounds_of(job), keys + state.own_powers, job.nonce, job.esp, length)
        return
    state.gcm_seal[job.suite >> SUITE_KEY_SHIFT & SUITE_KEY](
        <const gcm_key_data *>keys, &state.context, tag, job.esp, 0, job.nonce, job.esp, length, tag, 16)


cdef inline uint64_t _note(MbState *state, Job *job, uint32_t index) noexcept nogil:
    """Remember a job that is neither GCM nor GMAC; returns its group's bit."""
    cdef uint32_t cipher = job.suite & SUITE_CIPHER
    cdef uint32_t bits = job.suite >> SUITE_KEY_SHIFT & SUITE_KEY
    cdef uint32_t group = job.suite >> SUITE_INTEGRITY_SHIFT
    if cipher == CIPHER_CHACHA20_POLY1305:
        group = GROUP_CHACHA
    elif cipher == CIPHER_AES_CCM:
        group = GROUP_CCM_192 if bits == 1 else GROUP_CCM
    elif cipher == CIPHER_AES_CBC:
        group += GROUP_CBC + (bits << GROUP_CIPHER_SHIFT)
    elif cipher == CIPHER_AES_CTR:
        group += GROUP_CTR + (bits << GROUP_CIPHER_SHIFT)
    job.ok = 0
    state.member[state.others] = <uint8_t>index
    state.group[state.others] = <uint8_t>group
    state.others += 1
    return <uint64_t>1 << group


cdef void _do_groups(MbState *state, JobList *list, uint64_t groups, bint opening) noexcept nogil:
    """Do what `_note` collected."""
    cdef uint32_t group
    while groups:
        group = lowest_bit(groups)
        groups &= groups - 1
        if group == GROUP_CCM_192:
            _do_ccm192(state, list, opening)
        elif group >= GROUP_CHACHA:
            _do_ring(state, list, group, opening)
        elif opening:
            _open_group(state, list, group)
        else:
            _seal_group(state, list, group)


cdef inline uint32_t _key_bytes(uint32_t group) noexcept nogil:
    """Bytes of the cipher's key of a group: 16, 24 or 32; of NULL what the library never looks at."""
    cdef uint32_t cipher = group >> GROUP_CIPHER_SHIFT
    return 8 * (cipher + 1 if cipher < 4 else cipher - 2)


cdef void _lay_out(MbState *state, uint32_t group, bint opening) noexcept nogil:
    """Set the fields of the job structures that are the same for every job of a group."""
    cdef uint32_t slot
    cdef uint32_t layout = group | (<uint32_t>GROUP_OPEN if opening else 0)
    cdef IMB_JOB *mb
    if state.laid_out == layout:
        return
    state.laid_out = layout
    for slot in range(<uint32_t>BATCH_MAX):
        mb = &state.jobs[slot]
        mb.key_len_in_bytes = _key_bytes(group)
        mb.cipher_mode = IMB_CIPHER_CBC if group < GROUP_CTR else IMB_CIPHER_CNTR
        mb.cipher_direction = IMB_DIR_DECRYPT if opening else IMB_DIR_ENCRYPT
        mb.chain_order = IMB_ORDER_HASH_CIPHER if opening else IMB_ORDER_CIPHER_HASH
        mb.hash_alg = _hash_of(group & GROUP_INTEGRITY)
        mb.iv = ZERO_IV
        # Of twelve bytes CTR makes the first counter block by a 1 behind them, as RFC 3686 4 has it.
        mb.iv_len_in_bytes = 16 if group < GROUP_CTR else 12
        mb.hash_start_src_offset_in_bytes = 0
        mb.auth_tag_output_len_in_bytes = icv_length_of(group & GROUP_INTEGRITY)


cdef inline IMB_HASH_ALG _hash_of(uint32_t integrity) noexcept nogil:
    """The library's name for an Integrity."""
    if integrity == INTEGRITY_HMAC_SHA2_256:
        return IMB_AUTH_HMAC_SHA_256
    if integrity == INTEGRITY_HMAC_SHA2_384:
        return IMB_AUTH_HMAC_SHA_384
    if integrity == INTEGRITY_HMAC_SHA1:
        return IMB_AUTH_HMAC_SHA_1
    return IMB_AUTH_HMAC_SHA_512


cdef inline void _lay_hash(IMB_JOB *mb, const Job *job) noexcept nogil:
    """What the HMAC covers: ESP header, text and, with ESN, the sequence number's high half where the ICV will go."""
    mb.msg_len_to_hash_in_bytes = <uint64_t>(job.text - job.esp) + job.text_length
    if job.aad_length == 4:
        memcpy(job.text + job.text_length, job.aad, 4)      # RFC 4303 2.2.1: appended, not sent
        mb.msg_len_to_hash_in_bytes += 4
    mb.hmac_ipad = job.key.expanded + EXPANDED_IPAD
    mb.hmac_opad = job.key.expanded + EXPANDED_OPAD


cdef void _seal_group(MbState *state, JobList *list, uint32_t group) noexcept nogil:
    """Encipher, then hash: CBC, CTR and NULL."""
    cdef uint32_t integrity = group & GROUP_INTEGRITY
    cdef uint32_t count = 0
    cdef uint32_t done = 0
    cdef uint32_t slot
    cdef Job *job
    cdef IMB_JOB *mb
    _lay_out(state, group, False)
    for slot in range(state.others):
        job = &list.jobs[state.member[slot]]
        if state.group[slot] != group or not text_fits(job):
            continue
        mb = &state.jobs[count]
        state.position[count] = state.member[slot]
        count += 1
        mb.src = job.esp
        if group >= GROUP_CBC:
            mb.dst = job.text
            mb.enc_keys = job.key.expanded + EXPANDED_ENCRYPT
            mb.cipher_start_src_offset_in_bytes = <uint64_t>(job.text - job.esp)
            mb.msg_len_to_cipher_in_bytes = job.text_length
            mb.iv = ZERO_IV if group < GROUP_CTR else &job.nonce[0]
        if integrity:
            _lay_hash(mb, job)
            mb.auth_tag_output = job.icv
    done = count
    if group >= GROUP_CTR:
        done = IMB_SUBMIT_CIPHER_BURST_NOCHECK(
            state.manager, state.jobs, count, IMB_CIPHER_CNTR, IMB_DIR_ENCRYPT, <IMB_KEY_SIZE_BYTES>_key_bytes(group))
    elif group >= GROUP_CBC:
        done = IMB_SUBMIT_CIPHER_BURST_NOCHECK(
            state.manager, state.jobs, count, IMB_CIPHER_CBC, IMB_DIR_ENCRYPT, <IMB_KEY_SIZE_BYTES>_key_bytes(group))
    if integrity and done == count:
        done = _hash(state, list, count, integrity)
    if done == count:
        for slot in range(count):
            list.jobs[state.position[slot]].ok = 1


cdef uint32_t _hash(MbState *state, JobList *list, uint32_t count, uint32_t integrity) noexcept nogil:
    """The ICVs of state.jobs[:count]; returns how many were made."""
    if integrity < INTEGRITY_AES_XCBC:
        return IMB_SUBMIT_HASH_BURST_NOCHECK(state.hasher[integrity], state.jobs, count, _hash_of(integrity))
    return _mac_by_ring(state, list, count, integrity)


cdef uint32_t _mac_by_ring(MbState *state, JobList *list, uint32_t count, uint32_t integrity) noexcept nogil:
    """AES-XCBC and AES-CMAC, which no synchronous burst does."""
    cdef uint32_t slot
    cdef uint32_t done
    cdef uint32_t more
    cdef IMB_JOB *mb
    cdef const uint8_t *expanded
    if IMB_GET_NEXT_BURST(state.manager, count, state.ring) != count:
        return 0
    for slot in range(count):
        mb = state.ring[slot]
        expanded = &list.jobs[state.position[slot]].key.expanded[0]
        mb.cipher_mode = IMB_CIPHER_NULL
        mb.cipher_direction = IMB_DIR_ENCRYPT
        mb.chain_order = IMB_ORDER_CIPHER_HASH
        mb.src = state.jobs[slot].src
        mb.msg_len_to_cipher_in_bytes = 0
        mb.hash_start_src_offset_in_bytes = 0
        mb.msg_len_to_hash_in_bytes = state.jobs[slot].msg_len_to_hash_in_bytes
        mb.auth_tag_output = state.jobs[slot].auth_tag_output
        mb.auth_tag_output_len_in_bytes = 12
        if integrity == INTEGRITY_AES_XCBC:
            mb.hash_alg = IMB_AUTH_AES_XCBC
            mb.xcbc_k1 = <const uint32_t *>(expanded + EXPANDED_MAC)
            mb.xcbc_k2 = expanded + EXPANDED_LAST
            mb.xcbc_k3 = expanded + EXPANDED_LAST + 16
        else:
            mb.hash_alg = IMB_AUTH_AES_CMAC
            mb.cmac_key = expanded + EXPANDED_MAC
            mb.cmac_subkey1 = expanded + EXPANDED_LAST
            mb.cmac_subkey2 = expanded + EXPANDED_LAST + 16
    done = IMB_SUBMIT_BURST_NOCHECK(state.manager, count, state.ring)
    while done < count:
        more = IMB_FLUSH_BURST(state.manager, count - done, state.ring)
        if more == 0:
            break
        done += more
    return done


# The list, open.

cdef void _open(Engine *engine, JobList *list) noexcept nogil:
    """Verify and open every job of the list in place."""
    cdef MbState *state = <MbState *>engine.state
    cdef uint64_t groups = 0
    cdef uint32_t index
    cdef uint8_t tag[16]
    cdef uint8_t received[16]
    cdef Job *job
    cdef const Key *key
    state.others = 0
    for index in range(list.count):
        job = &list.jobs[index]
        key = job.key
        if likely(_is_own(state, job), 1):
            job.ok = gcm_vaes_open(
                key.expanded, _rounds_of(job), key.expanded + state.own_powers, job.nonce, job.aad_length, job.text,
                job.text_length)
        elif job.suite & SUITE_CIPHER == CIPHER_AES_GCM:
            state.gcm_open[job.suite >> SUITE_KEY_SHIFT & SUITE_KEY](
                <const gcm_key_data *>key.expanded, &state.context, job.text, job.text, job.text_length,
                job.nonce, job.aad, job.aad_length, tag, 16)
            job.ok = (same_icv(tag, job.icv, key.icv_length) if job.suite & SUITE_ODD_ICV
                      else same_icv16(tag, job.icv))
        elif job.suite & SUITE_CIPHER == CIPHER_AES_GMAC:
            _gmac(state, job, tag)
            job.ok = same_icv16(tag, job.icv)
        elif job.suite & SUITE_OF_GMAC == AH_GMAC:
            memcpy(received, job.icv, 16)       # the high half of the number may go where the ICV arrived
            _gmac_of_packet(state, job, tag)
            job.ok = same_icv16(tag, received)
        else:
            groups |= _note(state, job, index)
    if groups:
        _do_groups(state, list, groups, True)


cdef void _open_group(MbState *state, JobList *list, uint32_t group) noexcept nogil:
    """Hash, compare, then decipher what matched: CBC, CTR and NULL."""
    cdef uint32_t integrity = group & GROUP_INTEGRITY
    cdef uint32_t length = icv_length_of(integrity)
    cdef uint32_t count = 0
    cdef uint32_t position, slot
    cdef Job *job
    cdef IMB_JOB *mb
    _lay_out(state, group, True)
    for slot in range(state.others):
        position = state.member[slot]
        job = &list.jobs[position]
        if state.group[slot] != group or not text_fits(job):
            continue
        mb = &state.jobs[count]
        state.position[count] = <uint8_t>position
        count += 1
        mb.src = job.esp
        job.ok = 1
        if integrity:
            # The high half of the number goes where the ICV arrived.
            memcpy(list.received[position], job.icv, length)
            _lay_hash(mb, job)
            mb.auth_tag_output = list.computed[position]
    if integrity:
        if _hash(state, list, count, integrity) != count:
            for slot in range(count):
                list.jobs[state.position[slot]].ok = 0
            return
        for slot in range(count):
            position = state.position[slot]
            list.jobs[position].ok = same_icv(list.computed[position], list.received[position], length)
    if group >= GROUP_CBC:
        _decipher(state, list, group, count)


cdef void _decipher(MbState *state, JobList *list, uint32_t group, uint32_t count) noexcept nogil:
    """Decipher those of the group's jobs that are `ok` and have text (behind the IV, with CBC)."""
    cdef uint32_t kept = 0
    cdef uint32_t done = 0
    cdef uint32_t slot
    cdef uint32_t block = 16 if group < GROUP_CTR else 0
    cdef Job *job
    cdef IMB_JOB *mb
    for slot in range(count):
        job = &list.jobs[state.position[slot]]
        if job.ok != 1 or job.text_length == block:
            continue
        # The hash is done, so the structures may be filled anew, from the first.
        mb = &state.jobs[kept]
        state.position[kept] = state.position[slot]
        kept += 1
        mb.src = job.text
        mb.dst = job.text + block
        mb.iv = job.text if block else &job.nonce[0]
        mb.enc_keys = job.key.expanded + EXPANDED_ENCRYPT
        mb.dec_keys = job.key.expanded + EXPANDED_DECRYPT
        mb.cipher_start_src_offset_in_bytes = block
        mb.msg_len_to_cipher_in_bytes = job.text_length - block
    if kept == 0:
        return
    if block:
        done = IMB_SUBMIT_CIPHER_BURST_NOCHECK(
            state.manager, state.jobs, kept, IMB_CIPHER_CBC, IMB_DIR_DECRYPT, <IMB_KEY_SIZE_BYTES>_key_bytes(group))
    else:
        done = IMB_SUBMIT_CIPHER_BURST_NOCHECK(
            state.manager, state.jobs, kept, IMB_CIPHER_CNTR, IMB_DIR_DECRYPT, <IMB_KEY_SIZE_BYTES>_key_bytes(group))
    if done != kept:
        for slot in range(kept):
            list.jobs[state.position[slot]].ok = 0


# Both directions.

cdef void _do_ring(MbState *state, JobList *list, uint32_t group, bint opening) noexcept nogil:
    """Seal or open the list's ChaCha20-Poly1305 or CCM jobs through the manager's ring."""
    cdef uint32_t wanted = 0
    cdef uint32_t count, done, position, slot
    cdef Job *job
    cdef uint8_t members[BATCH_MAX]
    for slot in range(state.others):
        position = state.member[slot]
        if state.group[slot] == group and text_fits(&list.jobs[position]):
            members[wanted] = <uint8_t>position
            wanted += 1
    # The ring holds four batches and is always left empty, so it has room; what it had none for would stay not ok.
    count = IMB_GET_NEXT_BURST(state.manager, wanted, state.ring)
    for slot in range(count):
        position = members[slot]
        job = &list.jobs[position]
        if group == GROUP_CHACHA:
            _lay_chacha(state.ring[slot], job, opening)
        else:
            _lay_ccm(state.ring[slot], job, opening)
        state.ring[slot].auth_tag_output = &list.computed[position][0] if opening else job.icv
        state.ring[slot].user_data = <void *><size_t>position
    done = IMB_SUBMIT_BURST_NOCHECK(state.manager, count, state.ring)
    _collect(state, list, done, opening)
    while done < count:
        slot = IMB_FLUSH_BURST(state.manager, count - done, state.ring)
        if slot == 0:
            return
        _collect(state, list, slot, opening)
        done += slot


cdef inline void _lay_chacha(IMB_JOB *mb, const Job *job, bint opening) noexcept nogil:
    """Fill one job of the ring."""
    mb.cipher_mode = IMB_CIPHER_CHACHA20_POLY1305
    mb.hash_alg = IMB_AUTH_CHACHA20_POLY1305
    mb.cipher_direction = IMB_DIR_DECRYPT if opening else IMB_DIR_ENCRYPT
    mb.chain_order = IMB_ORDER_HASH_CIPHER if opening else IMB_ORDER_CIPHER_HASH
    mb.enc_keys = &job.key.encryption[0]
    mb.dec_keys = &job.key.encryption[0]
    mb.key_len_in_bytes = 32
    mb.src = job.text
    mb.dst = job.text
    mb.cipher_start_src_offset_in_bytes = 0
    mb.msg_len_to_cipher_in_bytes = job.text_length
    mb.hash_start_src_offset_in_bytes = 0
    mb.msg_len_to_hash_in_bytes = job.text_length
    mb.iv = &job.nonce[0]
    mb.iv_len_in_bytes = 12
    mb.chacha_aad = &job.aad[0]
    mb.chacha_aad_length = job.aad_length
    mb.auth_tag_output_len_in_bytes = 16


cdef inline void _lay_ccm(IMB_JOB *mb, const Job *job, bint opening) noexcept nogil:
    """Fill one job of the ring; the tag covers plaintext, and its length enters it (RFC 3610 2.2)."""
    mb.cipher_mode = IMB_CIPHER_CCM
    mb.hash_alg = IMB_AUTH_AES_CCM
    mb.cipher_direction = IMB_DIR_DECRYPT if opening else IMB_DIR_ENCRYPT
    mb.chain_order = IMB_ORDER_CIPHER_HASH if opening else IMB_ORDER_HASH_CIPHER
    mb.enc_keys = job.key.expanded + EXPANDED_ENCRYPT
    mb.dec_keys = job.key.expanded + EXPANDED_ENCRYPT
    mb.key_len_in_bytes = job.key.encryption_length
    mb.src = job.text
    mb.dst = job.text
    mb.cipher_start_src_offset_in_bytes = 0
    mb.msg_len_to_cipher_in_bytes = job.text_length
    mb.hash_start_src_offset_in_bytes = 0
    mb.msg_len_to_hash_in_bytes = job.text_length
    mb.iv = &job.nonce[1]
    mb.iv_len_in_bytes = 11
    mb.ccm_aad = &job.aad[0]
    mb.ccm_aad_length = job.aad_length
    mb.auth_tag_output_len_in_bytes = job.key.icv_length


cdef void _collect(MbState *state, JobList *list, uint32_t count, bint opening) noexcept nogil:
    """Take the verdicts of completed jobs of the ring."""
    cdef uint32_t position, slot
    cdef Job *job
    for slot in range(count):
        if state.ring[slot].status != IMB_STATUS_COMPLETED:
            continue
        position = <uint32_t><size_t>state.ring[slot].user_data
        job = &list.jobs[position]
        job.ok = same_icv(list.computed[position], job.icv, job.key.icv_length) if opening else 1


# CCM with 192-bit keys.

cdef void _do_ccm192(MbState *state, JobList *list, bint opening) noexcept nogil:
    """Seal or open the list's CCM jobs with keys of 192 bits: RFC 3610 2.2 and 2.3 over the library's CBC and CTR."""
    cdef uint32_t position, slot
    cdef uint8_t counter[16]
    cdef uint8_t tag[16]
    cdef uint8_t *own
    cdef Job *job
    state.laid_out = NO_GROUP       # the first of the job structures is used up here
    for slot in range(state.others):
        position = state.member[slot]
        job = &list.jobs[position]
        if state.group[slot] != GROUP_CCM_192 or not text_fits(job):
            continue
        own = list.computed[position]
        memset(counter, 0, 16)
        counter[0] = 3              # four bytes of length and counter, less 1
        memcpy(counter + 1, job.nonce + 1, 11)
        if not opening:
            _ccm_tag(state, job, tag)
        memset(own, 0, 16)
        _cipher_one(state, job.key, True, counter, own, own, 16)
        counter[15] = 1
        if job.text_length:
            _cipher_one(state, job.key, True, counter, job.text, job.text, job.text_length)
        if opening:
            _ccm_tag(state, job, tag)
        _xor16(own, tag)
        if opening:
            job.ok = same_icv(own, job.icv, job.key.icv_length)
        else:
            memcpy(job.icv, own, job.key.icv_length)
            job.ok = 1


cdef inline void _xor16(uint8_t *into, const uint8_t *other) noexcept nogil:
    cdef uint32_t at
    for at in range(16):
        into[at] ^= other[at]


cdef void _ccm_tag(MbState *state, const Job *job, uint8_t *tag) noexcept nogil:
    """RFC 3610 2.2: CBC-MAC over lengths and nonce, AAD with its length before it, and text, each padded with zeros."""
    cdef uint8_t *chain = state.chain
    cdef uint32_t at = 0
    cdef uint32_t held = 32 if job.aad_length else 16
    cdef uint32_t taken
    memset(tag, 0, 16)
    memset(chain, 0, 32)
    chain[0] = (0x40 if job.aad_length else 0) | (job.key.icv_length - 2) << 2 | 3
    memcpy(chain + 1, job.nonce + 1, 11)
    chain[13] = <uint8_t>(job.text_length >> 16)
    chain[14] = <uint8_t>(job.text_length >> 8)
    chain[15] = <uint8_t>job.text_length
    chain[17] = job.aad_length      # 12 at most: with two bytes before it less than a block
    memcpy(chain + 18, job.aad, job.aad_length)
    while True:
        taken = min(<uint32_t>sizeof(state.chain) - held, job.text_length - at)
        memcpy(chain + held, job.text + at, taken)
        at += taken
        held += taken
        while held % 16:
            chain[held] = 0
            held += 1
        _cipher_one(state, job.key, False, tag, chain, chain, held)
        memcpy(tag, chain + held - 16, 16)
        held = 0
        if at == job.text_length:
            return


cdef void _cipher_one(MbState *state, const Key *key, bint counting, const uint8_t *iv, const uint8_t *text,
                      uint8_t *into, uint32_t length) noexcept nogil:
    """Encipher one piece of text, by CTR from counter block `iv` or by CBC; a burst of one cannot fail."""
    cdef IMB_JOB *mb = &state.jobs[0]
    mb.cipher_mode = IMB_CIPHER_CNTR if counting else IMB_CIPHER_CBC
    mb.cipher_direction = IMB_DIR_ENCRYPT
    mb.chain_order = IMB_ORDER_CIPHER_HASH
    mb.enc_keys = key.expanded + EXPANDED_ENCRYPT
    mb.key_len_in_bytes = key.encryption_length
    mb.src = text
    mb.dst = into
    mb.cipher_start_src_offset_in_bytes = 0
    mb.msg_len_to_cipher_in_bytes = length
    mb.iv = iv
    mb.iv_len_in_bytes = 16
    if counting:
        IMB_SUBMIT_CIPHER_BURST_NOCHECK(
            state.manager, mb, 1, IMB_CIPHER_CNTR, IMB_DIR_ENCRYPT, <IMB_KEY_SIZE_BYTES>key.encryption_length)
    else:
        IMB_SUBMIT_CIPHER_BURST_NOCHECK(
            state.manager, mb, 1, IMB_CIPHER_CBC, IMB_DIR_ENCRYPT, <IMB_KEY_SIZE_BYTES>key.encryption_length)


# Keys.

cdef int _expand(Engine *engine, Key *key) noexcept nogil:
    """Key schedules, GCM hash keys and what MACs make of their key into key.expanded."""
    cdef MbState *state = <MbState *>engine.state
    cdef uint8_t unused[256]
    if <size_t>key & 63 or not key_valid(key):
        return -1
    if key.cipher == CIPHER_AES_GCM or key.cipher == CIPHER_AES_GMAC:
        _expand_gcm(state.manager, key.encryption, key.encryption_length, key.expanded)
    elif key.cipher != CIPHER_NULL and key.cipher != CIPHER_CHACHA20_POLY1305:
        _expand_aes(state.manager, key.encryption, key.encryption_length, key.expanded + EXPANDED_ENCRYPT,
                    key.expanded + EXPANDED_DECRYPT)
    if key.integrity == INTEGRITY_AES_GMAC:
        _expand_gcm(state.manager, key.integrity_key, key.integrity_length, key.expanded)
    elif key.integrity == INTEGRITY_AES_XCBC:
        state.manager.xcbc_keyexp(key.integrity_key, key.expanded + EXPANDED_MAC, key.expanded + EXPANDED_LAST,
                                  key.expanded + EXPANDED_LAST + 16)
    elif key.integrity == INTEGRITY_AES_CMAC:
        _expand_aes(state.manager, key.integrity_key, 16, key.expanded + EXPANDED_MAC, unused)
        explicit_bzero(unused, sizeof(unused))
        state.manager.cmac_subkey_gen_128(key.expanded + EXPANDED_MAC, key.expanded + EXPANDED_LAST,
                                          key.expanded + EXPANDED_LAST + 16)
    elif key.integrity != INTEGRITY_NONE:
        _expand_hmac(state.manager, key, 0x36, key.expanded + EXPANDED_IPAD)
        _expand_hmac(state.manager, key, 0x5C, key.expanded + EXPANDED_OPAD)
    return 0


cdef void _expand_gcm(IMB_MGR *manager, const uint8_t *key, uint32_t length, uint8_t *into) noexcept nogil:
    """Round keys and the hash key's powers."""
    if length == 16:
        manager.gcm128_pre(key, <gcm_key_data *>into)
    elif length == 24:
        manager.gcm192_pre(key, <gcm_key_data *>into)
    else:
        manager.gcm256_pre(key, <gcm_key_data *>into)


cdef void _expand_aes(IMB_MGR *manager, const uint8_t *key, uint32_t length, uint8_t *encrypt,
                      uint8_t *decrypt) noexcept nogil:
    """Round keys, up to 240 bytes each way."""
    cdef keyexp_t schedule = manager.keyexp_256
    if length == 16:
        schedule = manager.keyexp_128
    elif length == 24:
        schedule = manager.keyexp_192
    schedule(key, encrypt, decrypt)


cdef void _expand_hmac(IMB_MGR *manager, const Key *key, uint8_t pad, uint8_t *state) noexcept nogil:
    """RFC 2104 2: the hash's state after one block of key XOR pad."""
    cdef uint8_t block[128]
    cdef uint32_t index
    memset(block, pad, sizeof(block))
    for index in range(key.integrity_length):
        block[index] ^= key.integrity_key[index]
    if key.integrity == INTEGRITY_HMAC_SHA2_256:
        manager.sha256_one_block(block, state)
    elif key.integrity == INTEGRITY_HMAC_SHA2_384:
        manager.sha384_one_block(block, state)
    elif key.integrity == INTEGRITY_HMAC_SHA1:
        manager.sha1_one_block(block, state)
    else:
        manager.sha512_one_block(block, state)
    explicit_bzero(block, sizeof(block))


cdef void _forget(Engine *engine, uint32_t index) noexcept nogil:
    """Nothing per SA is kept outside Key; the scratch of the last GCM calls and of CBC-MAC is wiped."""
    cdef MbState *state = <MbState *>engine.state
    explicit_bzero(state.chain, sizeof(state.chain))
    explicit_bzero(&state.context, sizeof(state.context))
    explicit_bzero(state.hashes, sizeof(state.hashes))


cdef class MbEngine(EngineHandle):
    """The engine on libipsec-mb. Raises RuntimeError where the CPU has no AES-NI or the library fails its self-test."""

    def __cinit__(self):
        cdef IMB_ARCH arch = IMB_ARCH_NONE
        cdef IMB_MGR *manager
        self.name = "ipsec-mb"
        self.reason = ""
        self.number = 0
        if posix_memalign(<void **>&self.state, 64, sizeof(MbState)):
            self.state = NULL
            raise MemoryError("the engine's state")
        memset(self.state, 0, sizeof(MbState))
        manager = self.state.manager = alloc_mb_mgr(0)
        if manager == NULL:
            raise MemoryError("libipsec-mb's manager")
        init_mb_mgr_auto(manager, &arch)
        if imb_get_errno(manager) != 0 or arch < IMB_ARCH_SSE:
            error = imb_get_strerror(imb_get_errno(manager)).decode()
            raise RuntimeError(f"libipsec-mb {_version()}: this CPU lacks AES-NI, or the self-test failed ({error})")
        self.state.gcm_seal[0], self.state.gcm_open[0] = manager.gcm128_enc, manager.gcm128_dec
        self.state.gcm_seal[1], self.state.gcm_open[1] = manager.gcm192_enc, manager.gcm192_dec
        self.state.gcm_seal[2], self.state.gcm_open[2] = manager.gcm256_enc, manager.gcm256_dec
        self.state.gmac_init = [manager.gmac128_init, manager.gmac192_init, manager.gmac256_init]
        self.state.gmac_update = [manager.gmac128_update, manager.gmac192_update, manager.gmac256_update]
        self.state.gmac_finalize = [manager.gmac128_finalize, manager.gmac192_finalize, manager.gmac256_finalize]
        self.state.hasher = [NULL, manager, manager, manager, manager, manager, manager, manager]
        self.state.laid_out = NO_GROUP
        self.c.state = self.state
        self.c.expand = _expand
        self.c.seal = _seal
        self.c.open = _open
        self.c.forget = _forget
        if manager.features & IMB_FEATURE_SHANI and arch > IMB_ARCH_SSE:
            _choose_hashers(self.state)
        _choose_gcm(self.state)
        _find_key_lines(&self.c)

    def __dealloc__(self):
        if self.state != NULL:
            if self.state.sse != NULL:
                free_mb_mgr(self.state.sse)
            if self.state.manager != NULL:
                free_mb_mgr(self.state.manager)
            explicit_bzero(self.state, sizeof(MbState))
            free(self.state)

    def features(self) -> dict:
        """Library, code path and CPU flags, for `status` and `doctor`."""
        cdef uint64_t flags = self.state.manager.features
        cdef uint32_t arch = self.state.manager.used_arch
        return {
            "engine": self.name,
            "library": f"libipsec-mb {_version()}",
            "architecture": _ARCHITECTURES.get(arch, str(arch)),
            "aes_gcm": _gcm_name(self.state.own_limit),
            "aes_gmac": _gcm_name(self.state.own_mac_limit),
            "sha256": _hasher_name(self.state, INTEGRITY_HMAC_SHA2_256),
            "sha1": _hasher_name(self.state, INTEGRITY_HMAC_SHA1),
            "cpu": [name for name, flag in _FLAGS.items() if flags & flag == flag],
        }

    def use_library_gcm(self, bint library) -> None:
        """Leave GCM and GMAC to the library, or (False) all that gcm_vaes.h can do to it: for tests and benches."""
        self.state.own_limit = TEXT_MAX if not library and self.state.own_powers else 0
        self.state.own_mac_limit = self.state.own_limit
        _find_key_lines(&self.c)

    def use_sha_ni(self, bint wanted) -> bool:
        """Hash HMAC-SHA2-256 and SHA1 on SHA-NI, or (False) as the architecture has it, whichever is faster: for tests.

        False where there is no choice.
        """
        if self.state.sse == NULL:
            return False
        self.state.hasher[<int>INTEGRITY_HMAC_SHA2_256] = self.state.sse if wanted else self.state.manager
        self.state.hasher[<int>INTEGRITY_HMAC_SHA1] = self.state.sse if wanted else self.state.manager
        return True

    def bare(
        self, cipher, integrity, key_bits, size, packets, direction="seal", repeats=5, stride=2048,
    ) -> float:
        """Nanoseconds per packet of the library's own calls, without this engine: see ext.bare_mb."""
        from ext.bare_mb import bare

        return bare(self, cipher, integrity, key_bits, size, packets, direction, repeats, stride)


_ARCHITECTURES = {IMB_ARCH_SSE: "sse", IMB_ARCH_AVX: "avx", IMB_ARCH_AVX2: "avx2", IMB_ARCH_AVX512: "avx512"}
_FLAGS = {
    "aes": IMB_FEATURE_AESNI, "pclmulqdq": IMB_FEATURE_PCLMULQDQ, "sse4_2": IMB_FEATURE_SSE4_2,
    "avx": IMB_FEATURE_AVX, "avx2": IMB_FEATURE_AVX2, "avx512": IMB_FEATURE_AVX512_SKX, "vaes": IMB_FEATURE_VAES,
    "vpclmulqdq": IMB_FEATURE_VPCLMULQDQ, "gfni": IMB_FEATURE_GFNI, "sha_ni": IMB_FEATURE_SHANI,
}


cdef str _gcm_name(uint32_t limit):
    """Which code does AES-GCM or GMAC, for `features`: ours up to `limit` bytes."""
    if limit == 0:
        return "as architecture"
    return "vaes" if limit == TEXT_MAX else f"vaes up to {limit} bytes, then as architecture"


cdef str _hasher_name(const MbState *state, uint32_t integrity):
    """Which code hashes, for `features`."""
    return "as architecture" if state.hasher[integrity] == state.manager else "sse, SHA-NI"


def _version() -> str:
    """Version of the library that is loaded."""
    return imb_get_version_str().decode()


# Measured when the engine is made.

cdef int _choose_hashers(MbState *state) except -1:
    """Give HMAC-SHA2-256 and SHA1 to SHA-NI where that is faster (about 0.3 ms each)."""
    cdef uint8_t *scratch = <uint8_t *>calloc(BATCH_MAX, 1024)
    if scratch == NULL:
        raise MemoryError("scratch packets")
    state.sse = alloc_mb_mgr(0)
    if state.sse == NULL:
        free(scratch)
        raise MemoryError("libipsec-mb's second manager")
    init_mb_mgr_sse(state.sse)
    if imb_get_errno(state.sse) == 0:
        _choose_hasher(state, INTEGRITY_HMAC_SHA2_256, scratch)
        _choose_hasher(state, INTEGRITY_HMAC_SHA1, scratch)
    free(scratch)
    return 0


cdef void _choose_hasher(MbState *state, uint32_t integrity, uint8_t *scratch) noexcept nogil:
    """Time both managers with this hash, each after a cipher burst as in real work, over 64 KiB of scratch packets."""
    cdef uint32_t _attempt, choice, slot
    cdef uint64_t started, took
    cdef uint64_t best[2]
    cdef IMB_MGR *candidates[2]
    candidates = [state.manager, state.sse]
    best = [0xFFFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF]
    _lay_out(state, GROUP_CBC + integrity, False)
    for slot in range(<uint32_t>BATCH_MAX):
        _lay_scratch(&state.jobs[slot], scratch + 1024 * slot, 256, scratch)
    for _attempt in range(5):
        for choice in range(2):
            started = now_ns()
            IMB_SUBMIT_CIPHER_BURST_NOCHECK(
                state.manager, state.jobs, BATCH_MAX, IMB_CIPHER_CBC, IMB_DIR_ENCRYPT, <IMB_KEY_SIZE_BYTES>16)
            IMB_SUBMIT_HASH_BURST_NOCHECK(candidates[choice], state.jobs, BATCH_MAX, _hash_of(integrity))
            took = now_ns() - started
            if took < best[choice]:
                best[choice] = took
    if best[1] < best[0]:
        state.hasher[integrity] = state.sse
    state.laid_out = NO_GROUP


cdef void _lay_scratch(IMB_JOB *mb, uint8_t *packet, uint32_t size, const uint8_t *expanded) noexcept nogil:
    """A CBC + HMAC job: 8 bytes of header, then text, then room for the ICV."""
    mb.enc_keys = expanded + EXPANDED_ENCRYPT
    mb.dec_keys = expanded + EXPANDED_DECRYPT
    mb.src = packet
    mb.dst = packet + 8
    mb.cipher_start_src_offset_in_bytes = 8
    mb.msg_len_to_cipher_in_bytes = size
    mb.msg_len_to_hash_in_bytes = size + 8
    mb.auth_tag_output = packet + 8 + size
    mb.hmac_ipad = expanded + EXPANDED_IPAD
    mb.hmac_opad = expanded + EXPANDED_OPAD


cdef int _choose_gcm(MbState *state) except -1:
    """Set both own limits: up to which length gcm_vaes.h is faster than the library (about 1 ms, with VAES only)."""
    cdef uint64_t wanted = IMB_FEATURE_AVX2 | IMB_FEATURE_VAES | IMB_FEATURE_VPCLMULQDQ
    cdef uint8_t *packets = NULL
    cdef Key *key = NULL
    if state.manager.features & wanted != wanted:
        return 0
    if posix_memalign(<void **>&key, 64, sizeof(Key)) or posix_memalign(<void **>&packets, 64, 64 * OWN_STRIDE):
        free(key)
        raise MemoryError("scratch packets")
    memset(key, 0, sizeof(Key))
    memset(packets, 0x5A, 64 * OWN_STRIDE)
    state.manager.gcm128_pre(key.encryption, <gcm_key_data *>key.expanded)
    state.own_powers = gcm_vaes_powers(key.expanded, 10, KEY_EXPANDED)
    if state.own_powers:
        state.own_limit = _limit_of_own(state, key, packets, _time_gcm)
        state.own_mac_limit = _limit_of_own(state, key, packets, _time_gmac)
    free(key)
    free(packets)
    return 0


cdef uint32_t _limit_of_own(MbState *state, const Key *key, uint8_t *packets, gcm_timer_t time_of) noexcept nogil:
    """Up to how many bytes our code is faster, by the best of several attempts at five sizes; TEXT_MAX: at all."""
    cdef uint32_t[5] sizes = [80, 160, 320, 640, 1440]
    cdef uint32_t limit = 0
    cdef uint32_t _attempt, choice, place
    cdef uint64_t best[2]
    cdef uint64_t took
    for place in range(5):
        best = [0xFFFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF]
        for _attempt in range(7):
            for choice in range(2):
                took = time_of(state, key, packets, sizes[place], choice == 1)
                if took < best[choice]:
                    best[choice] = took
        if best[1] >= best[0]:
            return limit
        limit = sizes[place]
    return TEXT_MAX


cdef uint64_t _time_gcm(MbState *state, const Key *key, uint8_t *packets, uint32_t size, bint own) noexcept nogil:
    """Sealing."""
    cdef uint64_t begun = now_ns()
    cdef uint32_t index
    cdef uint8_t nonce[24]
    cdef uint8_t *text
    memset(nonce, 0, sizeof(nonce))
    for index in range(64):
        text = packets + OWN_STRIDE * index
        if own:
            gcm_vaes_seal(
                &state.hashes[index & 1], &state.hashes[~index & 1] if index else NULL, key.expanded, 10,
                key.expanded + state.own_powers, nonce, 8, text, size)
        else:
            state.gcm_seal[0](<const gcm_key_data *>key.expanded, &state.context, text, text, size, nonce,
                              nonce + 12, 8, text + size, 16)
    if own:
        gcm_vaes_seal_last(&state.hashes[1])
    return now_ns() - begun


cdef uint64_t _time_gmac(MbState *state, const Key *key, uint8_t *packets, uint32_t size, bint own) noexcept nogil:
    """Hashing alone."""
    cdef uint64_t begun = now_ns()
    cdef uint32_t index
    cdef uint8_t nonce[16]
    cdef uint8_t *text
    memset(nonce, 0, sizeof(nonce))
    for index in range(64):
        text = packets + OWN_STRIDE * index
        if own:
            gcm_vaes_mac(text + size, key.expanded, 10, key.expanded + state.own_powers, nonce, text, size)
        else:
            state.gcm_seal[0](<const gcm_key_data *>key.expanded, &state.context, text, text, 0, nonce, text, size,
                              text + size, 16)
    return now_ns() - begun


cdef int _find_key_lines(Engine *engine) except -1:
    """Fill Engine.key_lines. For the library's GCM by trial: which lines of the key data change the result of an
    84-byte packet (the hash keys' place in it depends on the code the library picked for the CPU)."""
    cdef uint32_t rounds_of_256 = 0xF                                   # 240 bytes of round keys
    cdef uint32_t opening, line, index
    cdef MbState *state = <MbState *>engine.state
    cdef aes_gcm_enc_dec_t call
    cdef Key *key = NULL
    cdef uint8_t text[84]
    cdef uint8_t tag[16]
    cdef uint8_t wanted[16]
    cdef uint8_t nonce[12]
    if posix_memalign(<void **>&key, 64, sizeof(Key)):
        raise MemoryError("a key")
    memset(key, 0, sizeof(Key))
    memset(nonce, 0, sizeof(nonce))
    key.cipher, key.encryption_length, key.icv_length = CIPHER_AES_GCM, 32, 16
    for opening in range(2):
        engine.key_lines[opening][<int>CIPHER_NULL] = 1 << (EXPANDED_IPAD // 64) | 1 << (EXPANDED_OPAD // 64)
        engine.key_lines[opening][<int>CIPHER_AES_CBC] = engine.key_lines[opening][<int>CIPHER_NULL] | (
            rounds_of_256 << ((EXPANDED_DECRYPT if opening else EXPANDED_ENCRYPT) // 64))
        engine.key_lines[opening][<int>CIPHER_AES_CTR] = engine.key_lines[opening][<int>CIPHER_NULL] | rounds_of_256
        engine.key_lines[opening][<int>CIPHER_AES_CCM] = rounds_of_256
        engine.key_lines[opening][<int>CIPHER_CHACHA20_POLY1305] = 1 << 16      # the raw key
        engine.key_lines[opening][<int>CIPHER_AES_GCM] = 0
        if state.own_limit:
            engine.key_lines[opening][<int>CIPHER_AES_GCM] = rounds_of_256
            for index in range(8):
                engine.key_lines[opening][<int>CIPHER_AES_GCM] |= <uint32_t>1 << ((state.own_powers + 16 * index) // 64)
            engine.key_lines[opening][<int>CIPHER_AES_GMAC] = engine.key_lines[opening][<int>CIPHER_AES_GCM]
            continue
        for line in range(KEY_EXPANDED // 64 + 1):
            # First with nothing spoilt: the tag that is wanted.
            _expand(engine, key)
            if line > 0:
                for index in range(64):
                    key.expanded[64 * (line - 1) + index] ^= 0x5A
            memset(text, 0x5A, sizeof(text))
            call = state.gcm_open[2] if opening else state.gcm_seal[2]
            call(
                <const gcm_key_data *>key.expanded, &state.context, text, text, sizeof(text), nonce, nonce, 8, tag, 16)
            if line == 0:
                memcpy(wanted, tag, 16)
            elif not same_icv16(wanted, tag):
                engine.key_lines[opening][<int>CIPHER_AES_GCM] |= <uint32_t>1 << (line - 1)
        engine.key_lines[opening][<int>CIPHER_AES_GMAC] = engine.key_lines[opening][<int>CIPHER_AES_GCM]
    free(key)
    return 0
