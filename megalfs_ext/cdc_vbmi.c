/* FastCDC v2020 with AVX-512 VBMI: 64 bytes a step, the Gear table held in registers, cuts unchanged.
 *
 * The low 32 bits of the hash depend only on the low 32 bits of the table and the last 32 bytes, because
 * carries go upward. So a test of the mask's low bits in 32-bit lanes misses no cut; what it finds too much
 * is settled by the whole hash of 48 bytes. The table's low halves are four planes of 256 bytes, looked up by
 * two vpermi2b each, without gathers (which lose: 1.5 GB/s). Inside a lane of four bytes Horner's rule,
 * across lanes doubling: 4, 8, 16, 32 bytes, feeding forward only. Measured 0.48 cycles a byte plus what
 * false hits cost; described in full in cdc.md 1b.  */
#include "kernels.h"

#if MEGALFS_X86
#include <immintrin.h>

#define TARGET __attribute__((target("avx512f,avx512bw,avx512vbmi,bmi2")))

enum { VECTOR = 64 };

/* With n mask bits in the low half, one byte in 2^n is a false hit of 60-120 cycles: 8 bits are where the
 * strips become faster (6 bits cost 1.0 cycle a byte, cdc.md 1b).  */
enum { LOW_BITS_MIN = 8 };

bool cdc_vbmi_can_run(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("bmi2");
}

typedef struct {
    __m512i below[4][2], above[4][2]; /* plane, 64 entries each: byte values below 128, and from 128 */
} planes;

/* Hashes at the four bytes of each 32-bit lane, of that lane alone; `whole` is the last.  */
typedef struct {
    __m512i first, second, third, whole;
} lanes;

/* Made anew for every chunk, some 300 cycles, rather than kept as a second table that could differ.  */
TARGET static inline planes planes_load(void)
{
    uint8_t bytes[4][256];
    for (int i = 0; i < 256; i += 8) {
        __m512i words = _mm512_loadu_si512(CDC_GEAR + i);
        for (unsigned plane = 0; plane < 4; plane++) {
            _mm_storel_epi64((__m128i *)(bytes[plane] + i),
                             _mm512_cvtepi64_epi8(_mm512_srli_epi64(words, 8 * plane)));
        }
    }
    planes table;
    for (int plane = 0; plane < 4; plane++) {
        for (int half = 0; half < 2; half++) {
            table.below[plane][half] = _mm512_loadu_si512(bytes[plane] + 64 * half);
            table.above[plane][half] = _mm512_loadu_si512(bytes[plane] + 128 + 64 * half);
        }
    }
    return table;
}

/* A 4 x 4 transpose in each 16 bytes, so that unpacking leaves byte 4l + j in lane l of register j.  */
#define TRANSPOSE _mm512_broadcast_i32x4(_mm_set_epi8(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0))

TARGET static inline __m512i look_up(const planes *table, int plane, __m512i bytes, __mmask64 is_above)
{
    __m512i below = _mm512_permutex2var_epi8(table->below[plane][0], bytes, table->below[plane][1]);
    __m512i above = _mm512_permutex2var_epi8(table->above[plane][0], bytes, table->above[plane][1]);
    return _mm512_mask_blend_epi8(is_above, below, above);
}

TARGET static inline __m512i twice_plus(__m512i x, __m512i y)
{
    /* Adds, not shifts: those share a port with the shuffles on Zen 4.  */
    return _mm512_add_epi32(_mm512_add_epi32(x, x), y);
}

TARGET static inline lanes lanes_load(const planes *table, const uint8_t *bytes, size_t at, size_t to)
{
    __m512i x;
    if (to - at >= VECTOR) {
        x = _mm512_loadu_si512(bytes + at);
    } else {
        x = _mm512_maskz_loadu_epi8(_bzhi_u64(~0ULL, (unsigned)(to - at)), bytes + at);
    }
    x = _mm512_shuffle_epi8(x, TRANSPOSE);
    __mmask64 is_above = _mm512_movepi8_mask(x);
    __m512i p0 = look_up(table, 0, x, is_above), p1 = look_up(table, 1, x, is_above);
    __m512i p2 = look_up(table, 2, x, is_above), p3 = look_up(table, 3, x, is_above);
    __m512i low_01 = _mm512_unpacklo_epi8(p0, p1), high_01 = _mm512_unpackhi_epi8(p0, p1);
    __m512i low_23 = _mm512_unpacklo_epi8(p2, p3), high_23 = _mm512_unpackhi_epi8(p2, p3);
    lanes result;
    result.first = _mm512_unpacklo_epi16(low_01, low_23);
    result.second = twice_plus(result.first, _mm512_unpackhi_epi16(low_01, low_23));
    result.third = twice_plus(result.second, _mm512_unpacklo_epi16(high_01, high_23));
    result.whole = twice_plus(result.third, _mm512_unpackhi_epi16(high_01, high_23));
    return result;
}

/* The whole hash at one position; four chains, joined, because one of 48 steps would wait for itself.  */
static inline uint64_t hash_at(const uint8_t *bytes, size_t origin, size_t at)
{
    enum { PART = CDC_WINDOW / 4 };
    if (at + 1 - origin < CDC_WINDOW) {
        return cdc_hash(bytes, origin, at + 1);
    }
    const uint8_t *from = bytes + at + 1 - CDC_WINDOW;
    uint64_t a = 0, b = 0, c = 0, d = 0;
    for (int i = 0; i < PART; i++) {
        a = (a << 1) + CDC_GEAR[from[i]];
        b = (b << 1) + CDC_GEAR[from[i + PART]];
        c = (c << 1) + CDC_GEAR[from[i + 2 * PART]];
        d = (d << 1) + CDC_GEAR[from[i + 3 * PART]];
    }
    return (a << 3 * PART) + (b << 2 * PART) + (c << PART) + d;
}

/* First cut in [from, to) of a chunk whose hash starts at `origin`, or `to`.  */
TARGET static size_t find(const planes *table, const uint8_t *bytes, size_t origin, size_t from, size_t to,
                          uint64_t mask)
{
    const __m512i low_mask = _mm512_set1_epi32((int)(uint32_t)mask);
    /* Two lanes up and 8 bits left, and four lanes up and 16 bits left, as one zeroing permutation each.  */
    uint8_t by_9[64];
    uint16_t by_18[32];
    for (int i = 0; i < 64; i++) {
        by_9[i] = (uint8_t)(64 + i - 9);
    }
    for (int i = 0; i < 32; i++) {
        by_18[i] = (uint16_t)(32 + i - 9);
    }
    const __m512i up_9 = _mm512_loadu_si512(by_9), up_18 = _mm512_loadu_si512(by_18);
    const __mmask64 not_first = 0xeeeeeeeeeeeeeeee;
    const __mmask32 not_low = 0xaaaaaaaa;

    /* A full window before `from`, whose own hits are ignored; nothing before the origin, where h = 0.  */
    size_t at = from - origin > VECTOR ? from - VECTOR : origin;
    __m512i old_4 = _mm512_setzero_si512(), old_8 = old_4, old_16 = old_4, old_32 = old_4;
    lanes next = at < to ? lanes_load(table, bytes, at, to) : (lanes){old_4, old_4, old_4, old_4};
    for (; at < to; at += VECTOR) {
        lanes now = next;
        /* The look-ups of the next vector fill the wait of this one's chain: 0.53 to 0.48 cycles a byte.  */
        if (to - at > VECTOR) {
            next = lanes_load(table, bytes, at + VECTOR, to);
        }
        __m512i sum_4 = now.whole;
        __m512i sum_8 = _mm512_add_epi32(sum_4, _mm512_slli_epi32(_mm512_alignr_epi32(sum_4, old_4, 15), 4));
        __m512i sum_16 = _mm512_add_epi32(
            sum_8, _mm512_maskz_permutex2var_epi8(not_first, old_8, up_9, sum_8));
        __m512i sum_32 = _mm512_add_epi32(
            sum_16, _mm512_maskz_permutex2var_epi16(not_low, old_16, up_18, sum_16));
        __m512i before = _mm512_alignr_epi32(sum_32, old_32, 15);
        old_4 = sum_4;
        old_8 = sum_8;
        old_16 = sum_16;
        old_32 = sum_32;
        __m512i before_2 = _mm512_add_epi32(before, before);
        __m512i before_4 = _mm512_add_epi32(before_2, before_2);
        __m512i before_8 = _mm512_add_epi32(before_4, before_4);
        __mmask16 hit_0 = _mm512_testn_epi32_mask(_mm512_add_epi32(before_2, now.first), low_mask);
        __mmask16 hit_1 = _mm512_testn_epi32_mask(_mm512_add_epi32(before_4, now.second), low_mask);
        __mmask16 hit_2 = _mm512_testn_epi32_mask(_mm512_add_epi32(before_8, now.third), low_mask);
        __mmask16 hit_3 = _mm512_testn_epi32_mask(sum_32, low_mask);
        if (__builtin_expect(hit_0 | hit_1 | hit_2 | hit_3, 0)) {
            uint64_t hits = _pdep_u64(hit_0, 0x1111111111111111) | _pdep_u64(hit_1, 0x2222222222222222) |
                            _pdep_u64(hit_2, 0x4444444444444444) | _pdep_u64(hit_3, 0x8888888888888888);
            for (; hits; hits &= hits - 1) {
                size_t place = at + (size_t)__builtin_ctzll(hits);
                if (place >= from && place < to && !(hash_at(bytes, origin, place) & mask)) {
                    return place;
                }
            }
        }
    }
    return to;
}

static size_t find_best(const planes *table, const uint8_t *bytes, size_t origin, size_t from, size_t to,
                        uint64_t mask)
{
    if (__builtin_popcountll(mask & 0xffffffff) < LOW_BITS_MIN) {
        return cdc_find_strips(bytes, origin, from, to, mask);
    }
    return find(table, bytes, origin, from, to, mask);
}

size_t cdc_cut_vbmi(const cdc_params *params, const uint8_t *bytes, size_t size)
{
    if (size <= params->min) {
        return size;
    }
    planes table = planes_load();
    cdc_plan plan = cdc_plan_chunk(params, size);
    size_t at = find_best(&table, bytes, plan.from, plan.from, plan.center, params->mask_s);
    if (at < plan.center) {
        return at;
    }
    at = find_best(&table, bytes, plan.from, plan.center, plan.to, params->mask_l);
    return at < plan.to ? at : plan.end;
}
#endif
