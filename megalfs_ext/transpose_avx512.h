/* Words of sixteen inputs, gathered into vectors of one word of each: what every 16-lane kernel starts with.
 *
 * An includer defines TARGET, which must allow AVX-512F.  */
#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

/* In each 128 bits: four vectors of four words of one input become four of one word of each, or back.  */
TARGET static inline void transpose_four(__m512i x[4])
{
    __m512i a = _mm512_unpacklo_epi32(x[0], x[1]), b = _mm512_unpackhi_epi32(x[0], x[1]);
    __m512i c = _mm512_unpacklo_epi32(x[2], x[3]), d = _mm512_unpackhi_epi32(x[2], x[3]);
    x[0] = _mm512_unpacklo_epi64(a, c);
    x[1] = _mm512_unpackhi_epi64(a, c);
    x[2] = _mm512_unpacklo_epi64(b, d);
    x[3] = _mm512_unpackhi_epi64(b, d);
}

#define FOUR_WORDS(p) _mm_loadu_si128((const __m128i *)(p))

/* m[w] = word w of the block at `at` in every input. Gathering four inputs by masked broadcast loads leaves
 * half of the transpose, which the shuffle ports would pay for, to the load ports.  */
TARGET static inline void load_block(__m512i m[16], const uint8_t *const in[16], size_t at)
{
    for (size_t part = 0; part < 4; part++) {
        for (size_t i = 0; i < 4; i++) {
            size_t place = at + 16 * part;
            __m512i x = _mm512_castsi128_si512(FOUR_WORDS(in[i] + place));
            x = _mm512_mask_broadcast_i32x4(x, 0x00f0, FOUR_WORDS(in[i + 4] + place));
            x = _mm512_mask_broadcast_i32x4(x, 0x0f00, FOUR_WORDS(in[i + 8] + place));
            m[4 * part + i] = _mm512_mask_broadcast_i32x4(x, 0xf000, FOUR_WORDS(in[i + 12] + place));
        }
        transpose_four(m + 4 * part);
    }
}
