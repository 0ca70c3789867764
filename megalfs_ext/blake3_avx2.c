/* BLAKE3 with AVX2: eight leaves or parents at a time.
 *
 * There is no rotate: by 16 and 8 a byte shuffle does it in one instruction, by 12 and 7 two shifts.  */
#include "kernels.h"

#if MEGALFS_X86
#include <immintrin.h>

#define TARGET __attribute__((target("avx2")))

bool blake3_avx2_can_run(void)
{
    return __builtin_cpu_supports("avx2");
}

#define SHUFFLE(x, ...) _mm256_shuffle_epi8(x, _mm256_broadcastsi128_si256(_mm_setr_epi8(__VA_ARGS__)))
#define ROR16(x) SHUFFLE(x, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13)
#define ROR8(x) SHUFFLE(x, 1, 2, 3, 0, 5, 6, 7, 4, 9, 10, 11, 8, 13, 14, 15, 12)
#define ROR12(x) _mm256_or_si256(_mm256_srli_epi32(x, 12), _mm256_slli_epi32(x, 20))
#define ROR7(x) _mm256_or_si256(_mm256_srli_epi32(x, 7), _mm256_slli_epi32(x, 25))
#include "blake3_eight.h"

TARGET void blake3_batch_avx2(const blake3_batch *batch)
{
    for (size_t first = 0; first < batch->count; first += 8) {
        batch_eight(batch, first);
    }
}
#endif
