/* SHA-256 with the SHA extensions: one chain, or two in one loop.
 *
 * sha256rnds2 takes 4 cycles and each waits for the one before, so a single chain fills half of the unit:
 * 32 x 4 cycles for 64 bytes, 2.0 cycles a byte. Two independent chains, interleaved group by group, fill it:
 * 1.05 here, 1.0 at best. The unit wants the state as (a b e f) and (c d g h), and gives message words four
 * at a time (Intel SHA Extensions, Gulley et al., 2013).  */
#include "kernels.h"

#if MEGALFS_X86
#include <cpuid.h>
#include <immintrin.h>

#define TARGET __attribute__((target("sha,sse4.1,ssse3")))

bool sha256_shani_can_run(void)
{
    unsigned a, b, c, d;
    /* __builtin_cpu_supports does not know "sha" before gcc 14.  */
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & bit_SHA) && __builtin_cpu_supports("sse4.1");
}

typedef struct {
    __m128i abef, cdgh;
} packed;

TARGET static inline packed pack(const uint32_t state[8])
{
    __m128i low = _mm_loadu_si128((const __m128i *)state);
    __m128i high = _mm_loadu_si128((const __m128i *)(state + 4));
    __m128i badc = _mm_shuffle_epi32(low, 0xb1);
    __m128i hgfe = _mm_shuffle_epi32(high, 0x1b);
    return (packed){_mm_alignr_epi8(badc, hgfe, 8), _mm_blend_epi16(hgfe, badc, 0xf0)};
}

TARGET static inline void unpack(uint32_t state[8], packed from)
{
    __m128i feba = _mm_shuffle_epi32(from.abef, 0x1b);
    __m128i dchg = _mm_shuffle_epi32(from.cdgh, 0xb1);
    _mm_storeu_si128((__m128i *)state, _mm_blend_epi16(feba, dchg, 0xf0));
    _mm_storeu_si128((__m128i *)(state + 4), _mm_alignr_epi8(dchg, feba, 8));
}

#define LOAD(p, i) \
    _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)(p) + (i)), \
                     _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203))
#define KEY(i) (*(const __m128i *)(SHA256_K + 4 * (i)))

/* Keeps the order written here: left to gcc 12's scheduler, two chains reach 3.36 GB/s instead of 3.50.  */
#define PIN(x) __asm__ volatile("" : "+x"(x));

/* Rounds 4i to 4i+3 on message words m.  */
#define ROUNDS(s, i, m) \
    { \
        __m128i wk = _mm_add_epi32(m, KEY(i)); \
        s.cdgh = _mm_sha256rnds2_epu32(s.cdgh, s.abef, wk); \
        PIN(s.cdgh) \
        s.abef = _mm_sha256rnds2_epu32(s.abef, s.cdgh, _mm_shuffle_epi32(wk, 0x0e)); \
        PIN(s.abef) \
    }
/* With words 4i in m1 and 4i-4 in m0: m2 becomes words 4i+4; m0 becomes their part in words 4i+12.  */
#define EXTEND(m0, m1, m2) \
    m2 = _mm_sha256msg2_epu32(_mm_add_epi32(m2, _mm_alignr_epi8(m1, m0, 4)), m1); \
    PIN(m2)
#define PREPARE(m0, m1) \
    m0 = _mm_sha256msg1_epu32(m0, m1); \
    PIN(m0)

TARGET void sha256_one_shani(uint32_t state[8], const uint8_t *blocks, size_t count)
{
    packed s = pack(state);
    for (; count; count--, blocks += SHA256_BLOCK) {
        packed before = s;
        __m128i w0 = LOAD(blocks, 0), w1 = LOAD(blocks, 1), w2 = LOAD(blocks, 2), w3 = LOAD(blocks, 3);
#define STEP(i, m0, m1, m2) EXTEND(m0, m1, m2) PREPARE(m0, m1) ROUNDS(s, i, m1)
        ROUNDS(s, 0, w0)
        ROUNDS(s, 1, w1) PREPARE(w0, w1)
        ROUNDS(s, 2, w2) PREPARE(w1, w2)
        STEP(3, w2, w3, w0)
        STEP(4, w3, w0, w1)
        STEP(5, w0, w1, w2)
        STEP(6, w1, w2, w3)
        STEP(7, w2, w3, w0)
        STEP(8, w3, w0, w1)
        STEP(9, w0, w1, w2)
        STEP(10, w1, w2, w3)
        STEP(11, w2, w3, w0)
        STEP(12, w3, w0, w1)
        ROUNDS(s, 13, w1) EXTEND(w0, w1, w2)
        ROUNDS(s, 14, w2) EXTEND(w1, w2, w3)
        ROUNDS(s, 15, w3)
#undef STEP
        s.abef = _mm_add_epi32(s.abef, before.abef);
        s.cdgh = _mm_add_epi32(s.cdgh, before.cdgh);
    }
    unpack(state, s);
}

TARGET void sha256_two_shani(uint32_t state_a[8], const uint8_t *blocks_a, uint32_t state_b[8],
                             const uint8_t *blocks_b, size_t count)
{
    packed a = pack(state_a), b = pack(state_b);
    for (; count; count--, blocks_a += SHA256_BLOCK, blocks_b += SHA256_BLOCK) {
        packed a_before = a, b_before = b;
        __m128i a0 = LOAD(blocks_a, 0), a1 = LOAD(blocks_a, 1), a2 = LOAD(blocks_a, 2);
        __m128i b0 = LOAD(blocks_b, 0), b1 = LOAD(blocks_b, 1), b2 = LOAD(blocks_b, 2);
        __m128i a3 = LOAD(blocks_a, 3), b3 = LOAD(blocks_b, 3);
#define BOTH(i, m) ROUNDS(a, i, a##m) ROUNDS(b, i, b##m)
#define STEP(i, m0, m1, m2) \
    EXTEND(a##m0, a##m1, a##m2) EXTEND(b##m0, b##m1, b##m2) PREPARE(a##m0, a##m1) PREPARE(b##m0, b##m1) \
    BOTH(i, m1)
        BOTH(0, 0)
        BOTH(1, 1) PREPARE(a0, a1) PREPARE(b0, b1)
        BOTH(2, 2) PREPARE(a1, a2) PREPARE(b1, b2)
        STEP(3, 2, 3, 0)
        STEP(4, 3, 0, 1)
        STEP(5, 0, 1, 2)
        STEP(6, 1, 2, 3)
        STEP(7, 2, 3, 0)
        STEP(8, 3, 0, 1)
        STEP(9, 0, 1, 2)
        STEP(10, 1, 2, 3)
        STEP(11, 2, 3, 0)
        STEP(12, 3, 0, 1)
        BOTH(13, 1) EXTEND(a0, a1, a2) EXTEND(b0, b1, b2)
        BOTH(14, 2) EXTEND(a1, a2, a3) EXTEND(b1, b2, b3)
        BOTH(15, 3)
#undef STEP
#undef BOTH
        a.abef = _mm_add_epi32(a.abef, a_before.abef);
        a.cdgh = _mm_add_epi32(a.cdgh, a_before.cdgh);
        b.abef = _mm_add_epi32(b.abef, b_before.abef);
        b.cdgh = _mm_add_epi32(b.cdgh, b_before.cdgh);
    }
    unpack(state_a, a);
    unpack(state_b, b);
}
#endif
