/* SHA-256 with AVX-512: sixteen chains at a time, one in each 32-bit lane.
 *
 * No chain is faster than alone, but sixteen need some 1,800 instructions for 16 x 64 bytes, 900 cycles on two
 * ports. That beats two interleaved SHA-NI chains wherever sha256rnds2 is slow: on Golden Cove it takes 2.9
 * cycles, so two chains gain 1.37 over one at best (2.1 GB/s), and sixteen lanes 2. Rotations and three-input
 * logic are single instructions, and the 8 words of state with the 16 of the message fit the 32 registers.  */
#include "kernels.h"

#if MEGALFS_X86
#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq")))
#include "transpose_avx512.h"

bool sha256_avx512_can_run(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

bool sha256_shani_avx512_can_run(void)
{
    return sha256_shani_can_run() && sha256_avx512_can_run();
}

#define ADD _mm512_add_epi32
#define ROR _mm512_ror_epi32
#define XOR3(x, y, z) _mm512_ternarylogic_epi32(x, y, z, 0x96)
#define CHOICE(x, y, z) _mm512_ternarylogic_epi32(x, y, z, 0xca)
#define MAJORITY(x, y, z) _mm512_ternarylogic_epi32(x, y, z, 0xe8)

/* Round t on message word w (FIPS 180-4, 6.2.2); the caller renames the eight variables.  */
#define ROUND(a, b, c, d, e, f, g, h, t, w) \
    { \
        __m512i t1 = ADD(ADD(h, ADD(w, _mm512_set1_epi32((int)SHA256_K[t]))), \
                         ADD(XOR3(ROR(e, 6), ROR(e, 11), ROR(e, 25)), CHOICE(e, f, g))); \
        d = ADD(d, t1); \
        h = ADD(t1, ADD(XOR3(ROR(a, 2), ROR(a, 13), ROR(a, 22)), MAJORITY(a, b, c))); \
    }
/* Word t becomes word t + 16 in place: the message needs sixteen registers.  */
#define EXTEND(w, t) \
    { \
        __m512i early = w[(t + 1) & 15], late = w[(t + 14) & 15]; \
        w[t] = ADD(ADD(w[t], XOR3(ROR(early, 7), ROR(early, 18), _mm512_srli_epi32(early, 3))), \
                   ADD(w[(t + 9) & 15], XOR3(ROR(late, 17), ROR(late, 19), _mm512_srli_epi32(late, 10)))); \
    }
#define EIGHT(STEP, base, t) \
    STEP(a, b, c, d, e, f, g, h, base, t) STEP(h, a, b, c, d, e, f, g, base, t + 1) \
    STEP(g, h, a, b, c, d, e, f, base, t + 2) STEP(f, g, h, a, b, c, d, e, base, t + 3) \
    STEP(e, f, g, h, a, b, c, d, base, t + 4) STEP(d, e, f, g, h, a, b, c, base, t + 5) \
    STEP(c, d, e, f, g, h, a, b, base, t + 6) STEP(b, c, d, e, f, g, h, a, base, t + 7)
#define FIRST(a, b, c, d, e, f, g, h, base, t) ROUND(a, b, c, d, e, f, g, h, base + (t), w[t])
#define LATER(a, b, c, d, e, f, g, h, base, t) EXTEND(w, t) FIRST(a, b, c, d, e, f, g, h, base, t)

/* Sixteen streams are more than the processor's own prefetch follows, which stops at each page as well.  */
enum { AHEAD = 4 * SHA256_BLOCK };

TARGET static inline void compress_sixteen(__m512i state[8], const uint8_t *const blocks[16], size_t at)
{
    const __m512i big_endian = _mm512_broadcast_i32x4(_mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203));
    __m512i w[16];
    for (int lane = 0; lane < 16; lane++) {
        _mm_prefetch((const char *)blocks[lane] + at + AHEAD, _MM_HINT_T0);
    }
    load_block(w, blocks, at);
    for (int i = 0; i < 16; i++) {
        w[i] = _mm512_shuffle_epi8(w[i], big_endian);
    }
    __m512i a = state[0], b = state[1], c = state[2], d = state[3];
    __m512i e = state[4], f = state[5], g = state[6], h = state[7];
    EIGHT(FIRST, 0, 0)
    EIGHT(FIRST, 0, 8)
    for (int base = 16; base < 64; base += 16) {
        EIGHT(LATER, base, 0)
        EIGHT(LATER, base, 8)
    }
    state[0] = ADD(state[0], a);
    state[1] = ADD(state[1], b);
    state[2] = ADD(state[2], c);
    state[3] = ADD(state[3], d);
    state[4] = ADD(state[4], e);
    state[5] = ADD(state[5], f);
    state[6] = ADD(state[6], g);
    state[7] = ADD(state[7], h);
}

TARGET void sha256_sixteen_avx512(uint32_t *const states[16], const uint8_t *const blocks[16], size_t count)
{
    uint32_t words[8][16];
    __m512i state[8];
    for (int i = 0; i < 8; i++) {
        for (int lane = 0; lane < 16; lane++) {
            words[i][lane] = states[lane][i];
        }
        state[i] = _mm512_loadu_si512(words[i]);
    }
    for (size_t block = 0; block < count; block++) {
        compress_sixteen(state, blocks, block * SHA256_BLOCK);
    }
    for (int i = 0; i < 8; i++) {
        _mm512_storeu_si512(words[i], state[i]);
        for (int lane = 0; lane < 16; lane++) {
            states[lane][i] = words[i][lane];
        }
    }
}
#endif
