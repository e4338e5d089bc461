/* AES-GCM for the lengths that packets have, on CPUs with VAES and VPCLMULQDQ: two blocks to a 256-bit register.
 *
 * libipsec-mb's direct call takes any length and, where there is no AVX-512, one block to a register; at 64 bytes of
 * packet most of its time goes into finding out which case it has. Here a text is cut into units of eight blocks and a
 * tail of at most eight, whose number picks a straight run of code. A packet's hash waits for the last round of its
 * own cipher, so sealing hashes one packet while it enciphers the next (gcm_vaes_seal), or one unit while it enciphers the
 * next (gcm_unit); opening has no such wait. GMAC (gcm_vaes_mac) is a hash without a cipher, for AH and for ESP that
 * enciphers nothing.
 *
 * Round keys are those of FIPS 197 in their order. The hash key's powers H^8 .. H^1 follow each other in memory, each
 * byte-reversed and multiplied by x, the form that saves a shift per product (Gueron, Kounavis: "Intel Carry-Less
 * Multiplication Instruction and its Usage for Computing the GCM Mode", 2010).
 *
 * Bounds: the ICV's 16 bytes follow the text. The last block is read and written over them and leaves them as they
 * were; nothing before the text and nothing behind the ICV is touched. GMAC reads what it covers and nothing else. Time depends on lengths alone: no table is
 * looked up by secret values, no branch taken on them.
 */
#ifndef ESPLANADE_GCM_VAES_H
#define ESPLANADE_GCM_VAES_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#define GCM_TARGET target("avx2,aes,vaes,pclmul,vpclmulqdq")
#define GCM_CALL __attribute__((noinline, unused, GCM_TARGET)) static
#define GCM_INLINE static inline __attribute__((always_inline, GCM_TARGET))

typedef struct {
    __m256i low, middle, high;      /* sums of the partial products, before reduction */
} GcmSum;

/* Masks: 32 bytes from 16 - n on keep a whole block and n bytes of the next, 16 bytes from 32 - n on n bytes of one. */
static const uint8_t gcm_keep[48] = {
    0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF,
    0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF,
};

GCM_INLINE __m128i gcm_load(const void *at)
{
    return _mm_loadu_si128((const __m128i *)at);
}

GCM_INLINE void gcm_store(void *at, __m128i block)
{
    _mm_storeu_si128((__m128i *)at, block);
}

GCM_INLINE __m256i gcm_load2(const void *at)
{
    return _mm256_loadu_si256((const __m256i *)at);
}

GCM_INLINE void gcm_store2(void *at, __m256i blocks)
{
    _mm256_storeu_si256((__m256i *)at, blocks);
}

GCM_INLINE __m256i gcm_reverse(__m256i blocks)
{
    return _mm256_shuffle_epi8(blocks, _mm256_broadcastsi128_si256(
        _mm_set_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)));
}

GCM_INLINE __m128i gcm_reverse1(__m128i block)
{
    return _mm_shuffle_epi8(block, _mm_set_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
}

/* sum = blocks * powers, lane by lane. Four plain products: Karatsuba's three and its additions take as long. */
GCM_INLINE void gcm_multiply_first(GcmSum *sum, __m256i blocks, __m256i powers)
{
    sum->low = _mm256_clmulepi64_epi128(blocks, powers, 0x00);
    sum->middle = _mm256_xor_si256(_mm256_clmulepi64_epi128(blocks, powers, 0x01),
                                   _mm256_clmulepi64_epi128(blocks, powers, 0x10));
    sum->high = _mm256_clmulepi64_epi128(blocks, powers, 0x11);
}

/* sum += blocks * powers */
GCM_INLINE void gcm_multiply(GcmSum *sum, __m256i blocks, __m256i powers)
{
    GcmSum product;
    gcm_multiply_first(&product, blocks, powers);
    sum->low = _mm256_xor_si256(sum->low, product.low);
    sum->middle = _mm256_xor_si256(sum->middle, product.middle);
    sum->high = _mm256_xor_si256(sum->high, product.high);
}

GCM_INLINE __m128i gcm_fold(__m256i lanes)
{
    return _mm_xor_si128(_mm256_castsi256_si128(lanes), _mm256_extracti128_si256(lanes, 1));
}

/* The sum of both lanes modulo the field's polynomial: the lower half is folded upwards 64 bits at a time. */
GCM_INLINE __m128i gcm_reduce(const GcmSum *sum)
{
    const __m128i polynomial = _mm_set_epi64x((long long)0xC200000000000000ULL, 1);
    __m128i low = gcm_fold(sum->low), middle = gcm_fold(sum->middle), high = gcm_fold(sum->high);
    middle = _mm_xor_si128(middle, _mm_shuffle_epi32(low, 0x4E));
    middle = _mm_xor_si128(middle, _mm_clmulepi64_si128(polynomial, low, 0x01));
    high = _mm_xor_si128(high, _mm_shuffle_epi32(middle, 0x4E));
    return _mm_xor_si128(high, _mm_clmulepi64_si128(polynomial, middle, 0x01));
}

GCM_INLINE __m256i gcm_round_key(const uint8_t *keys, uint32_t round)
{
    return _mm256_broadcastsi128_si256(gcm_load(keys + 16 * round));
}

/* Encipher `count` pairs of counter blocks. */
GCM_INLINE void gcm_encipher(__m256i *pairs, const uint32_t count, const uint8_t *keys, uint32_t rounds)
{
    __m256i key = gcm_round_key(keys, 0);
    uint32_t round, at;
#pragma GCC unroll 5
    for (at = 0; at < count; at++)
        pairs[at] = _mm256_xor_si256(pairs[at], key);
#pragma GCC unroll 9
    for (round = 1; round < 10; round++) {
        key = gcm_round_key(keys, round);
#pragma GCC unroll 5
        for (at = 0; at < count; at++)
            pairs[at] = _mm256_aesenc_epi128(pairs[at], key);
    }
    for (round = 10; __builtin_expect(round < rounds, 0); round++) {
        key = gcm_round_key(keys, round);
#pragma GCC unroll 5
        for (at = 0; at < count; at++)
            pairs[at] = _mm256_aesenc_epi128(pairs[at], key);
    }
    key = gcm_round_key(keys, rounds);
#pragma GCC unroll 5
    for (at = 0; at < count; at++)
        pairs[at] = _mm256_aesenclast_epi128(pairs[at], key);
}

/* Eight blocks at `text`, to or from plain. `counter` holds the numbers of the first two, byte-reversed. */
GCM_INLINE void gcm_crypt_unit(const uint8_t *keys, uint32_t rounds, __m256i *counter, uint8_t *text)
{
    const __m256i two = _mm256_set_epi32(0, 0, 0, 2, 0, 0, 0, 2);
    __m256i pairs[4];
    uint32_t at;
#pragma GCC unroll 4
    for (at = 0; at < 4; at++) {
        pairs[at] = gcm_reverse(*counter);
        *counter = _mm256_add_epi32(*counter, two);
    }
    gcm_encipher(pairs, 4, keys, rounds);
#pragma GCC unroll 4
    for (at = 0; at < 4; at++)
        gcm_store2(text + 32 * at, _mm256_xor_si256(pairs[at], gcm_load2(text + 32 * at)));
}

/* Eight blocks of ciphertext enter the hash. */
GCM_INLINE __m128i gcm_hash_unit(const uint8_t *powers, __m128i hash, const uint8_t *text)
{
    GcmSum sum;
    uint32_t at;
    gcm_multiply_first(&sum, _mm256_xor_si256(gcm_reverse(gcm_load2(text)), _mm256_zextsi128_si256(hash)),
                       gcm_load2(powers));
#pragma GCC unroll 4
    for (at = 1; at < 4; at++)
        gcm_multiply(&sum, gcm_reverse(gcm_load2(text + 32 * at)), gcm_load2(powers + 32 * at));
    return gcm_reduce(&sum);
}

/* Both at once: eight blocks at `text` are enciphered while eight blocks of ciphertext at `hashed` enter the hash.
 * The steps alternate lest one fill the CPU's queues and keep the other out. Opening, both are the same blocks. */
GCM_INLINE __m128i gcm_unit(const uint8_t *keys, uint32_t rounds, __m256i *counter, uint8_t *text,
                            const uint8_t *powers, __m128i hash, const uint8_t *hashed)
{
    const __m256i two = _mm256_set_epi32(0, 0, 0, 2, 0, 0, 0, 2);
    __m256i pairs[4], data[4], key = gcm_round_key(keys, 0);
    GcmSum sum;
    uint32_t at, round;
#pragma GCC unroll 4
    for (at = 0; at < 4; at++) {
        pairs[at] = _mm256_xor_si256(gcm_reverse(*counter), key);
        *counter = _mm256_add_epi32(*counter, two);
    }
#pragma GCC unroll 9
    for (round = 1; round < 10; round++) {
        key = gcm_round_key(keys, round);
#pragma GCC unroll 4
        for (at = 0; at < 4; at++)
            pairs[at] = _mm256_aesenc_epi128(pairs[at], key);
        if (round == 1)
            gcm_multiply_first(&sum, gcm_reverse(gcm_load2(hashed + 32)), gcm_load2(powers + 32));
        if (round == 2 || round == 3)
            gcm_multiply(&sum, gcm_reverse(gcm_load2(hashed + 32 * round)), gcm_load2(powers + 32 * round));
        if (round == 4)
            gcm_multiply(&sum, _mm256_xor_si256(gcm_reverse(gcm_load2(hashed)), _mm256_zextsi128_si256(hash)),
                         gcm_load2(powers));
        if (round == 6)
            hash = gcm_reduce(&sum);
    }
    for (round = 10; __builtin_expect(round < rounds, 0); round++) {
        key = gcm_round_key(keys, round);
#pragma GCC unroll 4
        for (at = 0; at < 4; at++)
            pairs[at] = _mm256_aesenc_epi128(pairs[at], key);
    }
    key = gcm_round_key(keys, rounds);
#pragma GCC unroll 4
    for (at = 0; at < 4; at++) {
        data[at] = gcm_load2(text + 32 * at);
        gcm_store2(text + 32 * at, _mm256_xor_si256(data[at], _mm256_aesenclast_epi128(pairs[at], key)));
    }
    return hash;
}

/* The last `blocks` (0 to 8) blocks, of whose last `last` bytes count. Returns the tag's mask, E(K, start | 1). */
GCM_INLINE __m128i gcm_crypt_tail(const uint32_t blocks, const uint8_t *keys, uint32_t rounds, __m128i start,
                                  uint32_t counter, uint8_t *text, uint32_t last)
{
    const __m256i both = _mm256_broadcastsi128_si256(start);
    const uint32_t count = blocks / 2 + 1;
    __m256i pairs[5], data;
    __m128i was;
    uint32_t at;
    /* Numbers in pairs; the lane behind the last block is the mask's. */
#pragma GCC unroll 5
    for (at = 0; at < count; at++) {
        const uint32_t low = __builtin_bswap32(counter + 2 * at);
        const uint32_t high = at + 1 < count ? __builtin_bswap32(counter + 2 * at + 1) : 0x01000000;
        pairs[at] = _mm256_or_si256(both, _mm256_set_epi32((int)high, 0, 0, 0, (int)low, 0, 0, 0));
    }
    gcm_encipher(pairs, count, keys, rounds);
#pragma GCC unroll 4
    for (at = 0; at < blocks / 2; at++) {
        data = gcm_load2(text + 32 * at);
        pairs[at] = _mm256_xor_si256(pairs[at], data);
        if (2 * at + 2 == blocks)
            pairs[at] = _mm256_blendv_epi8(data, pairs[at], gcm_load2(gcm_keep + 16 - last));
        gcm_store2(text + 32 * at, pairs[at]);
    }
    if (blocks & 1) {
        was = gcm_load(text + 16 * (blocks - 1));
        gcm_store(text + 16 * (blocks - 1),
                  _mm_blendv_epi8(was, _mm_xor_si128(was, _mm256_castsi256_si128(pairs[count - 1])),
                                  gcm_load(gcm_keep + 32 - last)));
    }
    return _mm256_extracti128_si256(pairs[count - 1], 1);
}

/* The last `blocks` (0 to 7) blocks of ciphertext and the lengths enter the hash. What was hashed before them is
 * `head`, which still needs H^`power`. */
GCM_INLINE __m128i gcm_hash_tail(const uint32_t blocks, const uint8_t *powers, __m128i head, uint32_t power,
                                 __m128i lengths, const uint8_t *text, uint32_t last)
{
    GcmSum sum;
    __m256i data;
    uint32_t at;
    gcm_multiply_first(
        &sum, _mm256_inserti128_si256(_mm256_castsi128_si256(head), lengths, 1),
        _mm256_inserti128_si256(_mm256_castsi128_si256(gcm_load(powers + 16 * (8 - power))),
                                gcm_load(powers + 112), 1));
#pragma GCC unroll 3
    for (at = 0; at < blocks / 2; at++) {
        data = gcm_load2(text + 32 * at);
        if (2 * at + 2 == blocks)
            data = _mm256_and_si256(data, gcm_load2(gcm_keep + 16 - last));
        gcm_multiply(&sum, gcm_reverse(data), gcm_load2(powers + 16 * (7 - blocks + 2 * at)));
    }
    if (blocks & 1) {
        data = _mm256_zextsi128_si256(
            _mm_and_si128(gcm_load(text + 16 * (blocks - 1)), gcm_load(gcm_keep + 32 - last)));
        gcm_multiply(&sum, gcm_reverse(data), gcm_load2(powers + 96));
    }
    return gcm_reduce(&sum);
}

#define GCM_EACH(CASE) CASE(1); CASE(2); CASE(3); CASE(4); CASE(5); CASE(6); CASE(7)

GCM_INLINE __m128i gcm_crypt_last(uint32_t blocks, const uint8_t *keys, uint32_t rounds, __m128i start,
                                  uint32_t counter, uint8_t *text, uint32_t last)
{
#define GCM_CASE(n) case n: return gcm_crypt_tail(n, keys, rounds, start, counter, text, last)
    switch (blocks) {
    GCM_EACH(GCM_CASE);
    GCM_CASE(8);
    default:
        return gcm_crypt_tail(0, keys, rounds, start, counter, text, last);
    }
#undef GCM_CASE
}

GCM_INLINE __m128i gcm_hash_last(uint32_t blocks, const uint8_t *powers, __m128i head, uint32_t power,
                                 __m128i lengths, const uint8_t *text, uint32_t last)
{
#define GCM_CASE(n) case n: return gcm_hash_tail(n, powers, head, power, lengths, text, last)
    switch (blocks) {
    GCM_EACH(GCM_CASE);
    default:
        return gcm_hash_tail(0, powers, head, power, lengths, text, last);
    }
#undef GCM_CASE
}

/* block times H */
GCM_INLINE __m128i gcm_times_h(const uint8_t *powers, __m128i block)
{
    GcmSum sum;
    gcm_multiply_first(&sum, _mm256_zextsi128_si256(block), _mm256_zextsi128_si256(gcm_load(powers + 112)));
    return gcm_reduce(&sum);
}

typedef struct {                    /* one packet's way through the hash */
    __m128i mask;                   /* the tag is hash XOR mask */
    __m128i head;                   /* what was hashed so far: the AAD, or with units all before `text` */
    const uint8_t *powers;
    const uint8_t *text;            /* from here on ciphertext is still to be hashed */
    uint8_t *icv;
    uint32_t units;                 /* whole units there; then the tail: */
    uint32_t blocks;
    uint32_t last;                  /* bytes of its last block that count */
    uint32_t length;                /* of the whole text, and of the AAD, in bytes */
    uint32_t aad_length;
    uint32_t separate;              /* 1: the head is a block by itself, before the text's first: one more power */
} GcmHash;

GCM_INLINE void gcm_begin(GcmHash *hash, const uint8_t *powers, const uint8_t *nonce, uint32_t aad_length,
                          uint8_t *text, uint32_t length)
{
    uint64_t first;
    uint32_t second;
    memcpy(&first, nonce + 12, 8);
    memcpy(&second, nonce + 20, 4);
    hash->head = gcm_reverse1(_mm_set_epi64x(aad_length == 12 ? second : 0, (long long)first));
    hash->powers = powers;
    hash->text = text;
    hash->icv = text + length;
    hash->units = length >> 7;
    hash->blocks = ((length & 127) + 15) >> 4;
    hash->last = ((length - 1) & 15) + 1;
    hash->length = length;
    hash->aad_length = aad_length;
    hash->separate = 1;
    if (length > 96) {
        /* Not all blocks fit the powers at once: the AAD enters by itself. */
        hash->head = gcm_times_h(powers, hash->head);
        hash->separate = 0;
    }
}

/* Hash what is left; returns the tag. */
GCM_INLINE __m128i gcm_finish(const GcmHash *hash)
{
    const __m128i lengths = _mm_set_epi64x(8 * (long long)hash->aad_length, 8 * (long long)hash->length);
    const uint8_t *text = hash->text;
    __m128i head = hash->head;
    uint32_t blocks = hash->blocks, units;
    for (units = hash->units; __builtin_expect(units > 0, 0); units--, text += 128)
        head = gcm_hash_unit(hash->powers, head, text);
    if (__builtin_expect(blocks == 8, 0)) {
        head = gcm_times_h(hash->powers, _mm_xor_si128(head, gcm_reverse1(gcm_load(text))));
        text += 16;
        blocks = 7;
    }
    head = gcm_hash_last(blocks, hash->powers, head, blocks + 1 + hash->separate, lengths, text, hash->last);
    return _mm_xor_si128(hash->mask, gcm_reverse1(head));
}

GCM_INLINE __m128i gcm_start_of(const uint8_t *nonce)
{
    return _mm_and_si128(gcm_load(nonce), _mm_set_epi32(0, -1, -1, -1));
}

/* The first two blocks' numbers, byte-reversed, for gcm_crypt_unit. */
GCM_INLINE __m256i gcm_counter(__m128i start)
{
    return _mm256_add_epi32(gcm_reverse(_mm256_broadcastsi128_si256(start)), _mm256_set_epi32(0, 0, 0, 3, 0, 0, 0, 2));
}

/* Seal `length` (at least 1) bytes at `text` in place, but for the ICV, which the next call or gcm_vaes_seal_last writes:
 * `earlier`, begun by the call before (NULL: there was none), is hashed meanwhile. `nonce` is 12 bytes, with the AAD
 * (8 or 12 bytes) behind them. */
GCM_CALL void gcm_vaes_seal(
    GcmHash *hash, const GcmHash *earlier, const uint8_t *keys, uint32_t rounds, const uint8_t *powers,
    const uint8_t *nonce, uint32_t aad_length, uint8_t *text, uint32_t length)
{
    const __m128i start = gcm_start_of(nonce);
    const uint32_t units = length >> 7;
    uint32_t unit;
    gcm_begin(hash, powers, nonce, aad_length, text, length);
    if (__builtin_expect(units > 0, 0)) {
        __m256i counter = gcm_counter(start);
        __m128i head = hash->head;
        gcm_crypt_unit(keys, rounds, &counter, text);
        for (unit = 1; unit < units; unit++) {
            head = gcm_unit(keys, rounds, &counter, text + 128 * unit, powers, head, text + 128 * (unit - 1));
        }
        hash->head = head;
        hash->text = text + 128 * (units - 1);
        hash->units = 1;
        hash->mask = gcm_crypt_last(hash->blocks, keys, rounds, start, 2 + 8 * units, text + 128 * units, hash->last);
    } else {
        hash->mask = gcm_crypt_last(hash->blocks, keys, rounds, start, 2, text, hash->last);
    }
    if (earlier != NULL)
        gcm_store(earlier->icv, gcm_finish(earlier));
}

/* The ICV of the last packet sealed. */
GCM_CALL void gcm_vaes_seal_last(const GcmHash *hash)
{
    gcm_store(hash->icv, gcm_finish(hash));
}

/* Open in place; 1 where the 16 bytes behind the text are its ICV. */
GCM_CALL int gcm_vaes_open(
    const uint8_t *keys, uint32_t rounds, const uint8_t *powers, const uint8_t *nonce, uint32_t aad_length,
    uint8_t *text, uint32_t length)
{
    const __m128i start = gcm_start_of(nonce);
    const __m128i received = gcm_load(text + length);
    const uint32_t units = length >> 7;
    uint32_t unit;
    GcmHash hash;
    __m128i tag;
    gcm_begin(&hash, powers, nonce, aad_length, text, length);
    if (__builtin_expect(units > 0, 0)) {
        __m256i counter = gcm_counter(start);
        __m128i head = hash.head;
        for (unit = 0; unit < units; unit++) {
            head = gcm_unit(keys, rounds, &counter, text + 128 * unit, powers, head, text + 128 * unit);
        }
        hash.head = head;
        hash.text = text + 128 * units;
        hash.units = 0;
    }
    hash.mask = _mm_setzero_si128();
    tag = gcm_finish(&hash);
    tag = _mm_xor_si128(
        tag, gcm_crypt_last(hash.blocks, keys, rounds, start, 2 + 8 * units, text + 128 * units, hash.last));
    tag = _mm_xor_si128(tag, received);
    return _mm_testz_si128(tag, tag);
}

/* Moves the last n of 16 bytes to the front, reverses the block as gcm_reverse1 does and clears the rest: 16 bytes from n. */
static const uint8_t gcm_last[32] = {
    0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80,
    15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0,
};

/* `head` and the `count` - 1 blocks at `text` enter the hash together; `count` is 1 to 8. */
GCM_INLINE __m128i gcm_mac_begin(const uint32_t count, const uint8_t *powers, __m128i head, const uint8_t *text)
{
    GcmSum sum;
    uint32_t at;
    powers += 16 * (8 - count);
    if (count == 1)
        return gcm_times_h(powers - 112, head);
    gcm_multiply_first(
        &sum, _mm256_inserti128_si256(_mm256_castsi128_si256(head), gcm_reverse1(gcm_load(text)), 1),
        gcm_load2(powers));
#pragma GCC unroll 3
    for (at = 1; at < count / 2; at++)
        gcm_multiply(&sum, gcm_reverse(gcm_load2(text + 32 * at - 16)), gcm_load2(powers + 32 * at));
    if (count & 1)
        gcm_multiply(&sum, _mm256_zextsi128_si256(gcm_reverse1(gcm_load(text + 16 * (count - 2)))),
                     _mm256_zextsi128_si256(gcm_load(powers + 16 * (count - 1))));
    return gcm_reduce(&sum);
}

/* `head`, the `count` blocks at `text` (0 to 5), and the pair of the last block and the lengths. */
GCM_INLINE __m128i gcm_mac_end(const uint32_t count, const uint8_t *powers, __m128i head, const uint8_t *text, __m256i pair)
{
    GcmSum sum;
    uint32_t at;
    gcm_multiply_first(&sum, pair, gcm_load2(powers + 96));
    powers += 16 * (5 - count);
    if (count & 1)
        gcm_multiply(
            &sum, _mm256_inserti128_si256(_mm256_castsi128_si256(head), gcm_reverse1(gcm_load(text)), 1),
            gcm_load2(powers));
    else
        gcm_multiply(&sum, _mm256_zextsi128_si256(head), _mm256_zextsi128_si256(gcm_load(powers)));
#pragma GCC unroll 2
    for (at = count & 1; at < count; at += 2)
        gcm_multiply(&sum, gcm_reverse(gcm_load2(text + 16 * at)), gcm_load2(powers + 16 * (at + 1)));
    return gcm_reduce(&sum);
}

/* The tag of RFC 4543 3.2: of the block `first` and the `length` bytes at `text` (at least 1, and 16 bytes that may be
 * read end with them), all of them AAD. `nonce` is 12 bytes, with anything behind them. */
GCM_CALL __m128i gcm_vaes_mac_of(const uint8_t *keys, uint32_t rounds, const uint8_t *powers, const uint8_t *nonce,
                                 __m128i first, const uint8_t *text, uint32_t length)
{
    const uint8_t *end = text + length;
    const uint32_t whole = (length - 1) >> 4;       /* blocks at `text` before the last one */
    const __m128i last = _mm_shuffle_epi8(gcm_load(end - 16), gcm_load(gcm_last + length - 16 * whole));
    const __m128i lengths = _mm_set_epi64x(8 * (16 + (long long)length), 0);
    const __m256i pair = _mm256_inserti128_si256(_mm256_castsi128_si256(last), lengths, 1);
    __m128i mask = _mm_xor_si128(_mm_or_si128(gcm_start_of(nonce), _mm_set_epi32(0x01000000, 0, 0, 0)), gcm_load(keys));
    __m128i hash = gcm_reverse1(first);
    uint32_t round, units;
    for (round = 1; round < rounds; round++)
        mask = _mm_aesenc_si128(mask, gcm_load(keys + 16 * round));
    mask = _mm_aesenclast_si128(mask, gcm_load(keys + 16 * rounds));
#define GCM_END(n) case n: hash = gcm_mac_end(n, powers, hash, text, pair); break
    switch (whole) {
    GCM_END(0); GCM_END(1); GCM_END(2); GCM_END(3); GCM_END(4); GCM_END(5);
    default:
        /* Units of eight from the end: the last has six blocks and the pair, the first what is left. */
        units = (whole - 6) >> 3;
#define GCM_BEGIN(n) case n: hash = gcm_mac_begin(n + 1, powers, hash, text); text += 16 * n; break
        switch ((whole - 6) & 7) {
        GCM_EACH(GCM_BEGIN);
        default:
            hash = gcm_mac_begin(1, powers, hash, text);
        }
#undef GCM_BEGIN
        for (; units > 0; units--, text += 128)
            hash = gcm_hash_unit(powers, hash, text);
        hash = gcm_mac_end(5, powers, _mm_xor_si128(hash, gcm_reverse1(gcm_load(text))), text + 16, pair);
    }
#undef GCM_END
    return _mm_xor_si128(mask, gcm_reverse1(hash));
}

/* The same, of `length` bytes (more than 16) at `text`. */
GCM_CALL void gcm_vaes_mac(uint8_t *tag, const uint8_t *keys, uint32_t rounds, const uint8_t *powers,
                           const uint8_t *nonce, const uint8_t *text, uint32_t length)
{
    gcm_store(tag, gcm_vaes_mac_of(keys, rounds, powers, nonce, gcm_load(text), text + 16, length - 16));
}

/* The same, of the 12 bytes at `aad`, the 8 before `text`, and the `length` bytes (or none) there: what RFC 4543 3.3 covers
 * where the number is longer than in the packet. The 16 bytes before `text` may be read. */
GCM_CALL void gcm_vaes_mac_extended(uint8_t *tag, const uint8_t *keys, uint32_t rounds, const uint8_t *powers,
                                    const uint8_t *nonce, const uint8_t *aad, const uint8_t *text, uint32_t length)
{
    uint8_t first[16];
    memcpy(first, aad, 12);
    memcpy(first + 12, text - 8, 4);
    gcm_store(tag, gcm_vaes_mac_of(keys, rounds, powers, nonce, gcm_load(first), text - 4, length + 4));
}

/* Where in `expanded` (`size` bytes, round keys first) H^8 .. H^1 lie as they are wanted here; 0 where they do not. */
GCM_CALL uint32_t gcm_vaes_powers(
    const uint8_t *expanded, uint32_t rounds, uint32_t size)
{
    __m128i block = gcm_load(expanded);
    uint8_t powers[128] = {0};
    uint64_t half[2], carry;
    uint32_t at;
    int power;
    for (at = 1; at < rounds; at++)
        block = _mm_aesenc_si128(block, gcm_load(expanded + 16 * at));
    gcm_store(half, gcm_reverse1(_mm_aesenclast_si128(block, gcm_load(expanded + 16 * rounds))));
    carry = half[1] >> 63;
    half[1] = (half[1] << 1 | half[0] >> 63) ^ carry * 0xC200000000000000ULL;
    half[0] = half[0] << 1 ^ carry;
    memcpy(powers + 112, half, 16);
    block = gcm_load(half);
    for (power = 6; power >= 0; power--)
        gcm_store(powers + 16 * power, block = gcm_times_h(powers, block));
    for (at = 16 * (rounds + 1); at + 128 <= size; at += 16)
        if (memcmp(expanded + at, powers, 128) == 0)
            return at;
    return 0;
}

#endif
