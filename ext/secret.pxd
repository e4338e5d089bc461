"""The two things secrets need: comparison in constant time, and wiping that no compiler leaves out."""

from libc.stdint cimport uint8_t, uint32_t

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>
    static inline int esplanade_same_icv(const uint8_t *one, const uint8_t *other, uint32_t length)
    {
        uint32_t difference = 0, a, b;
        for (uint32_t at = 0; at < length; at += 4) {
            memcpy(&a, one + at, 4);
            memcpy(&b, other + at, 4);
            difference |= a ^ b;
            __asm__("" : "+r"(difference));     /* no shortcut once a difference is known */
        }
        return difference == 0;
    }
    static inline int esplanade_same_icv16(const uint8_t *one, const uint8_t *other)
    {
        uint64_t a[2], b[2], difference;
        memcpy(a, one, 16);
        memcpy(b, other, 16);
        difference = (a[0] ^ b[0]) | (a[1] ^ b[1]);
        __asm__("" : "+r"(difference));
        return difference == 0;
    }
    """
    # 1 where `length` bytes are the same; length is a multiple of 4, as every ICV's is. Time depends on length only.
    bint same_icv "esplanade_same_icv"(const uint8_t *one, const uint8_t *other, uint32_t length) noexcept nogil
    bint same_icv16 "esplanade_same_icv16"(const uint8_t *one, const uint8_t *other) noexcept nogil

cdef extern from "<string.h>":
    void explicit_bzero(void *area, size_t length) noexcept nogil
