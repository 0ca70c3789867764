/* BLAKE3 with AVX-512: sixteen leaves or parents at a time.
 *
 * The 16 words of the state and the 16 of the message just fill the 32 registers.  */
#include "kernels.h"

#if MEGALFS_X86
#include <immintrin.h>

#define TARGET __attribute__((target("avx512f,avx512vl,avx512dq")))

bool blake3_avx512_can_run(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq");
}

#define ROR16(x) _mm256_ror_epi32(x, 16)
#define ROR12(x) _mm256_ror_epi32(x, 12)
#define ROR8(x) _mm256_ror_epi32(x, 8)
#define ROR7(x) _mm256_ror_epi32(x, 7)
#include "blake3_eight.h"

#undef ROR16
#undef ROR12
#undef ROR8
#undef ROR7
#define ADD _mm512_add_epi32
#define XOR _mm512_xor_si512
#define ROR16(x) _mm512_ror_epi32(x, 16)
#define ROR12(x) _mm512_ror_epi32(x, 12)
#define ROR8(x) _mm512_ror_epi32(x, 8)
#define ROR7(x) _mm512_ror_epi32(x, 7)

#include "transpose_avx512.h"

/* Sixteen streams a leaf apart are more than the hardware follows: from memory 4.3 GB/s, so 5.6 (Zen 4). The
 * address is where the batch after the next most likely is; a prefetch of anything else is only lost.  */
enum { PREFETCH_BYTES = 2 * 16 * BLAKE3_LEAF };

TARGET static inline void prefetch_block(const uint8_t *const in[16], size_t at)
{
    for (size_t i = 0; i < 16; i++) {
        _mm_prefetch((const char *)((uintptr_t)in[i] + at + PREFETCH_BYTES), _MM_HINT_T1);
    }
}

TARGET static void batch_sixteen(const blake3_batch *batch)
{
    const uint8_t *in[16];
    uint32_t low[16], high[16];
    for (size_t i = 0; i < 16; i++) {
        size_t lane = i < batch->count ? i : 0;
        in[i] = batch->in[lane];
        low[i] = (uint32_t)batch->counter[lane];
        high[i] = (uint32_t)(batch->counter[lane] >> 32);
    }
    const __m512i counter_low = _mm512_loadu_si512(low), counter_high = _mm512_loadu_si512(high);
    __m512i cv[8];
    for (int i = 0; i < 8; i++) {
        cv[i] = _mm512_set1_epi32((int)BLAKE3_IV[i]);
    }
    for (size_t block = 0; block < batch->blocks; block++) {
        uint32_t flags = batch->flags | (block == 0 ? batch->flags_first : 0) |
                         (block + 1 == batch->blocks ? batch->flags_last : 0);
        __m512i m[16], v[16];
        load_block(m, in, block * BLAKE3_BLOCK);
        if (batch->blocks > 1) {
            prefetch_block(in, block * BLAKE3_BLOCK);
        }
        for (int i = 0; i < 8; i++) {
            v[i] = cv[i];
        }
        for (int i = 0; i < 4; i++) {
            v[i + 8] = _mm512_set1_epi32((int)BLAKE3_IV[i]);
        }
        v[12] = counter_low;
        v[13] = counter_high;
        v[14] = _mm512_set1_epi32(BLAKE3_BLOCK);
        v[15] = _mm512_set1_epi32((int)flags);
        SEVEN_ROUNDS(v, m)
        for (int i = 0; i < 8; i++) {
            cv[i] = XOR(v[i], v[i + 8]);
        }
    }
    transpose_four(cv);
    transpose_four(cv + 4);
    for (size_t i = 0; i < 4; i++) {
#define STORE(k) \
    if (i + 4 * k < batch->count) { \
        _mm_storeu_si128((__m128i *)batch->out[i + 4 * k], _mm512_extracti32x4_epi32(cv[i], k)); \
        _mm_storeu_si128((__m128i *)(batch->out[i + 4 * k] + 16), _mm512_extracti32x4_epi32(cv[i + 4], k)); \
    }
        STORE(0)
        STORE(1)
        STORE(2)
        STORE(3)
#undef STORE
    }
}

TARGET void blake3_batch_avx512(const blake3_batch *batch)
{
    /* Half vectors take half the time.  */
    if (batch->count <= 8) {
        batch_eight(batch, 0);
    } else {
        batch_sixteen(batch);
    }
}

/* One block in rows of four words, for leaves that are short: latency bound, about 230 cycles.  */
TARGET void blake3_compress_avx512(uint32_t cv[8], const uint8_t block[BLAKE3_BLOCK], uint32_t size,
                                   uint64_t counter, uint32_t flags)
{
    const __m512i words = _mm512_loadu_si512(block);
    __m128i a = FOUR_WORDS(cv), b = FOUR_WORDS(cv + 4), c = FOUR_WORDS(BLAKE3_IV);
    __m128i d = _mm_set_epi32((int)flags, (int)size, (int)(counter >> 32), (int)counter);
    for (int round = 0; round < 7; round++) {
        /* The schedule in the order of the steps below: even entries before odd ones, columns first.  */
        const __m512i order = _mm512_permutexvar_epi32(
            _mm512_set_epi32(15, 13, 11, 9, 14, 12, 10, 8, 7, 5, 3, 1, 6, 4, 2, 0),
            _mm512_cvtepu8_epi32(FOUR_WORDS(BLAKE3_SCHEDULE[round])));
        const __m512i m = _mm512_permutexvar_epi32(order, words);
#define STEP(k, ror_d, ror_b) \
    a = _mm_add_epi32(_mm_add_epi32(a, _mm512_extracti32x4_epi32(m, k)), b); \
    d = _mm_ror_epi32(_mm_xor_si128(d, a), ror_d); \
    c = _mm_add_epi32(c, d); \
    b = _mm_ror_epi32(_mm_xor_si128(b, c), ror_b);
        STEP(0, 16, 12)
        STEP(1, 8, 7)
        b = _mm_shuffle_epi32(b, 0x39);
        c = _mm_shuffle_epi32(c, 0x4e);
        d = _mm_shuffle_epi32(d, 0x93);
        STEP(2, 16, 12)
        STEP(3, 8, 7)
        b = _mm_shuffle_epi32(b, 0x93);
        c = _mm_shuffle_epi32(c, 0x4e);
        d = _mm_shuffle_epi32(d, 0x39);
#undef STEP
    }
    _mm_storeu_si128((__m128i *)cv, _mm_xor_si128(a, c));
    _mm_storeu_si128((__m128i *)(cv + 4), _mm_xor_si128(b, d));
}
#endif
