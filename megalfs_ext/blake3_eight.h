/* Eight BLAKE3 inputs in 256-bit vectors, for every instruction set that has them.
 *
 * An includer defines TARGET and the four rotations of blake3_rounds.h, which is all that AVX2 and AVX-512VL
 * do differently here.  */
#include <immintrin.h>

#define ADD _mm256_add_epi32
#define XOR _mm256_xor_si256
#include "blake3_rounds.h"

/* Turns eight vectors, one input each, into eight of one word each, or back.  */
TARGET static inline void transpose_eight(__m256i x[8])
{
    __m256i pairs[8], fours[8];
    for (int i = 0; i < 8; i += 2) {
        pairs[i] = _mm256_unpacklo_epi32(x[i], x[i + 1]);
        pairs[i + 1] = _mm256_unpackhi_epi32(x[i], x[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        fours[i] = _mm256_unpacklo_epi64(pairs[i], pairs[i + 2]);
        fours[i + 1] = _mm256_unpackhi_epi64(pairs[i], pairs[i + 2]);
        fours[i + 2] = _mm256_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
        fours[i + 3] = _mm256_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        x[i] = _mm256_permute2x128_si256(fours[i], fours[i + 4], 0x20);
        x[i + 4] = _mm256_permute2x128_si256(fours[i], fours[i + 4], 0x31);
    }
}

/* Lanes first to first + 7 of the batch; those beyond its count repeat the first and are not stored.  */
TARGET static inline void batch_eight(const blake3_batch *batch, size_t first)
{
    const uint8_t *in[8];
    uint32_t low[8], high[8];
    size_t count = batch->count - first < 8 ? batch->count - first : 8;
    for (size_t i = 0; i < 8; i++) {
        size_t lane = first + (i < count ? i : 0);
        in[i] = batch->in[lane];
        low[i] = (uint32_t)batch->counter[lane];
        high[i] = (uint32_t)(batch->counter[lane] >> 32);
    }
    const __m256i counter_low = _mm256_loadu_si256((const __m256i *)low);
    const __m256i counter_high = _mm256_loadu_si256((const __m256i *)high);
    __m256i cv[8];
    for (int i = 0; i < 8; i++) {
        cv[i] = _mm256_set1_epi32((int)BLAKE3_IV[i]);
    }
    for (size_t block = 0; block < batch->blocks; block++) {
        uint32_t flags = batch->flags | (block == 0 ? batch->flags_first : 0) |
                         (block + 1 == batch->blocks ? batch->flags_last : 0);
        __m256i m[16], v[16];
        for (int i = 0; i < 8; i++) {
            m[i] = _mm256_loadu_si256((const __m256i *)(in[i] + block * BLAKE3_BLOCK));
            m[i + 8] = _mm256_loadu_si256((const __m256i *)(in[i] + block * BLAKE3_BLOCK + 32));
        }
        transpose_eight(m);
        transpose_eight(m + 8);
        for (int i = 0; i < 8; i++) {
            v[i] = cv[i];
        }
        for (int i = 0; i < 4; i++) {
            v[i + 8] = _mm256_set1_epi32((int)BLAKE3_IV[i]);
        }
        v[12] = counter_low;
        v[13] = counter_high;
        v[14] = _mm256_set1_epi32(BLAKE3_BLOCK);
        v[15] = _mm256_set1_epi32((int)flags);
        SEVEN_ROUNDS(v, m)
        for (int i = 0; i < 8; i++) {
            cv[i] = XOR(v[i], v[i + 8]);
        }
    }
    transpose_eight(cv);
    for (size_t i = 0; i < count; i++) {
        _mm256_storeu_si256((__m256i *)batch->out[first + i], cv[i]);
    }
}

#undef ADD
#undef XOR
