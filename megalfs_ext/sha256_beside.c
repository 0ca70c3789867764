/* SHA-256 of one chain with SHA-NI and, in the slots that it leaves free, eight others with AVX-512VL.
 *
 * sha256rnds2 waits 4 cycles for the one before it and takes two of them on port 5, so a chain leaves most of
 * three vector ports idle. On Golden Cove eight lanes with as many bytes leave the chain 0.90 of its speed (half as
 * many 0.99; a second SHA-NI chain 0.66, as it wants port 5 too); what bounds it is some 430 operations for three
 * ports in the 128 cycles of a block. So the chain's words are extended without sha256msg1, which is microcode there
 * and stalls the front end for both, and half of each addend goes through memory, which costs no vector port.
 *
 * sha256rnds2 has no VEX form, and beside a register of 0 to 15 whose upper half is in use it costs hundreds of
 * cycles (measured on Golden Cove). So everything wide lives in registers 16 to 31, which do not count: each of
 * them is a variable bound to its register, and each wide instruction an asm statement. That also keeps the two
 * streams in the order written here.  */
#include "kernels.h"

#if MEGALFS_X86
#include <immintrin.h>

#define TARGET __attribute__((target("sha,sse4.1,avx512f,avx512bw,avx512vl,avx512dq")))

typedef __m256i words; /* one word of each of eight lanes */

#define MOVE(to, x) __asm__ volatile("vmovdqa32 %1, %0" : "=v"(to) : "v"(x));
#define LOAD(to, place) __asm__ volatile("vmovdqa32 %1, %0" : "=v"(to) : "m"(place));
#define STORE(place, x) __asm__ volatile("vmovdqa32 %1, %0" : "=m"(place) : "v"(x));
#define ADD(x, y) __asm__ volatile("vpaddd %1, %0, %0" : "+v"(x) : "vm"(y));
#define ADD_EACH(x, word) __asm__ volatile("vpaddd %1%{1to8%}, %0, %0" : "+v"(x) : "m"(word));
#define ROR(to, x, n) __asm__ volatile("vprord %2, %1, %0" : "=v"(to) : "vm"(x), "i"(n));
#define SHR(to, x, n) __asm__ volatile("vpsrld %2, %1, %0" : "=v"(to) : "vm"(x), "i"(n));
#define LOGIC(x, y, z, table) \
    __asm__ volatile("vpternlogd %3, %2, %1, %0" : "+v"(x) : "v"(y), "v"(z), "i"(table));
#define XOR3 0x96
#define CHOICE 0xca
#define MAJORITY 0xe8

/* ---- eight lanes: FIPS 180-4, 6.2.2; the caller renames the eight variables ---- */

#define LANES_ROUND(a, b, c, d, e, f, g, h, t) \
    ADD_EACH(x0, SHA256_K[t]) ADD(h, x0) \
    ROR(x1, e, 6) ROR(x2, e, 11) ROR(x3, e, 25) LOGIC(x1, x2, x3, XOR3) ADD(h, x1) \
    MOVE(x4, e) LOGIC(x4, f, g, CHOICE) ADD(h, x4) \
    ADD(d, h) \
    ROR(x1, a, 2) ROR(x2, a, 13) ROR(x3, a, 22) LOGIC(x1, x2, x3, XOR3) ADD(h, x1) \
    MOVE(x4, a) LOGIC(x4, b, c, MAJORITY) ADD(h, x4)
#define FIRST(a, b, c, d, e, f, g, h, base, t) \
    LOAD(x0, w[t]) LANES_ROUND(a, b, c, d, e, f, g, h, (base) + (t))
/* Word t becomes word t + 16 in place.  */
#define LATER(a, b, c, d, e, f, g, h, base, t) \
    LOAD(x0, w[t]) ADD(x0, w[((t) + 9) & 15]) \
    EXPAND(w[((t) + 1) & 15], 7, 18, 3) EXPAND(w[((t) + 14) & 15], 17, 19, 10) \
    STORE(w[t], x0) LANES_ROUND(a, b, c, d, e, f, g, h, (base) + (t))
#define EXPAND(word, turn, turn_more, shift) \
    ROR(x1, word, turn) ROR(x2, word, turn_more) SHR(x3, word, shift) LOGIC(x1, x2, x3, XOR3) ADD(x0, x1)

/* ---- the chain: the rounds of sha256_shani.c ---- */

#define BIG_ENDIAN_WORDS _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203)
#define FOUR_WORDS(i) _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)chain + (i)), BIG_ENDIAN_WORDS)
#define KEY(i) (*(const __m128i *)(SHA256_K + 4 * (i)))
/* What the loop waits for when a line is not there; the processor's own prefetch stops at each page, and a miss of
 * a lane holds up the chain behind it.  */
#define PREFETCH(place) _mm_prefetch((const char *)(place), _MM_HINT_T0);
enum { CHAIN_AHEAD = 1024, LANE_AHEAD = 4 * SHA256_BLOCK };
#define PIN(x) __asm__ volatile("" : "+x"(x));

#define CHAIN_ROUNDS(i, m) \
    { \
        __m128i wk = _mm_add_epi32(m, KEY(i)); \
        __asm__ volatile("vmovdqa %1, %0" : "=m"(addend[(i) & 3].all) : "x"(wk)); \
        cdgh = _mm_sha256rnds2_epu32(cdgh, abef, wk); \
        PIN(cdgh) \
        __asm__ volatile("vmovq %1, %0" : "=x"(wk) : "m"(addend[(i) & 3].half[1])); \
        abef = _mm_sha256rnds2_epu32(abef, cdgh, wk); \
        PIN(abef) \
    }
#define EXTEND(m0, m1, m2) \
    m2 = _mm_sha256msg2_epu32(_mm_add_epi32(m2, _mm_alignr_epi8(m1, m0, 4)), m1); \
    PIN(m2)
/* What sha256msg1 does.  */
#define PREPARE(m0, m1) \
    { \
        __m128i later = _mm_alignr_epi8(m1, m0, 4), turned, turned_more; \
        __asm__ volatile("vprord $7, %1, %0" : "=x"(turned) : "x"(later)); \
        __asm__ volatile("vprord $18, %1, %0" : "=x"(turned_more) : "x"(later)); \
        __asm__ volatile("vpsrld $3, %0, %0" : "+x"(later)); \
        __asm__ volatile("vpternlogd %3, %2, %1, %0" : "+x"(later) : "x"(turned), "x"(turned_more), "i"(XOR3)); \
        __asm__ volatile("vpaddd %1, %0, %0" : "+x"(m0) : "x"(later)); \
    }
#define STEP(i, m0, m1, m2) EXTEND(m0, m1, m2) PREPARE(m0, m1) CHAIN_ROUNDS(i, m1)

/* A block of the chain, with eight rounds of the lanes spread over it.  */
#define BLOCK(ROUND, base, t) \
    { \
        __m128i abef_before = abef, cdgh_before = cdgh; \
        __m128i m0 = FOUR_WORDS(0), m1 = FOUR_WORDS(1), m2 = FOUR_WORDS(2), m3 = FOUR_WORDS(3); \
        PREFETCH(chain + CHAIN_AHEAD) \
        chain += SHA256_BLOCK; \
        CHAIN_ROUNDS(0, m0) \
        CHAIN_ROUNDS(1, m1) PREPARE(m0, m1) \
        ROUND(a, b, c, d, e, f, g, h, base, t) \
        CHAIN_ROUNDS(2, m2) PREPARE(m1, m2) \
        STEP(3, m2, m3, m0) \
        ROUND(h, a, b, c, d, e, f, g, base, (t) + 1) \
        STEP(4, m3, m0, m1) STEP(5, m0, m1, m2) \
        ROUND(g, h, a, b, c, d, e, f, base, (t) + 2) \
        STEP(6, m1, m2, m3) STEP(7, m2, m3, m0) \
        ROUND(f, g, h, a, b, c, d, e, base, (t) + 3) \
        STEP(8, m3, m0, m1) STEP(9, m0, m1, m2) \
        ROUND(e, f, g, h, a, b, c, d, base, (t) + 4) \
        STEP(10, m1, m2, m3) STEP(11, m2, m3, m0) \
        ROUND(d, e, f, g, h, a, b, c, base, (t) + 5) \
        STEP(12, m3, m0, m1) \
        CHAIN_ROUNDS(13, m1) EXTEND(m0, m1, m2) \
        ROUND(c, d, e, f, g, h, a, b, base, (t) + 6) \
        CHAIN_ROUNDS(14, m2) EXTEND(m1, m2, m3) \
        CHAIN_ROUNDS(15, m3) \
        ROUND(b, c, d, e, f, g, h, a, base, (t) + 7) \
        abef = _mm_add_epi32(abef, abef_before); \
        cdgh = _mm_add_epi32(cdgh, cdgh_before); \
    }

/* ---- the lanes' message words: four of two lanes in a register become one of eight lanes ---- */

#define HALF(to, p) __asm__ volatile("vmovdqu32 %1, %x0" : "=v"(to) : "m"(*(const __m128i_u *)(p)));
#define OTHER_HALF(x, p) \
    __asm__ volatile("vinserti32x4 $1, %1, %0, %0" : "+v"(x) : "m"(*(const __m128i_u *)(p)));
#define SWAP(x) __asm__ volatile("vpshufb %1, %0, %0" : "+v"(x) : "m"(SWAPPED_BYTES.all));
#define UNPACK(which, to, x, y) \
    __asm__ volatile("vpunpck" which " %2, %1, %0" : "=v"(to) : "v"(x), "v"(y));
#define TWO_LANES(x, lane, part) \
    HALF(x, lanes[lane] + at + 16 * (part)) OTHER_HALF(x, lanes[(lane) + 4] + at + 16 * (part)) SWAP(x)
#define LOAD_PART(part) \
    TWO_LANES(x0, 0, part) TWO_LANES(x1, 1, part) TWO_LANES(x2, 2, part) TWO_LANES(x3, 3, part) \
    UNPACK("ldq", x4, x0, x1) UNPACK("hdq", x5, x0, x1) UNPACK("ldq", x6, x2, x3) UNPACK("hdq", x7, x2, x3) \
    UNPACK("lqdq", x0, x4, x6) UNPACK("hqdq", x1, x4, x6) UNPACK("lqdq", x2, x5, x7) UNPACK("hqdq", x3, x5, x7) \
    STORE(w[4 * (part)], x0) STORE(w[4 * (part) + 1], x1) \
    STORE(w[4 * (part) + 2], x2) STORE(w[4 * (part) + 3], x3)

#define WORDS(name, number) register words name __asm__("xmm" #number)
#define EACH_STATE(DO) DO(0, a) DO(1, b) DO(2, c) DO(3, d) DO(4, e) DO(5, f) DO(6, g) DO(7, h)
#define LOAD_STATE(i, x) LOAD(x, reached.all[i])
#define ADD_STATE(i, x) ADD(x, reached.all[i]) STORE(reached.all[i], x)

static const union {
    _Alignas(32) uint8_t each[32];
    words all;
} SWAPPED_BYTES = {{3, 2, 1, 0, 7, 6, 5, 4, 11, 10, 9, 8, 15, 14, 13, 12,
                 3, 2, 1, 0, 7, 6, 5, 4, 11, 10, 9, 8, 15, 14, 13, 12}};

TARGET void sha256_beside_avx512(uint32_t state[8], const uint8_t *chain, uint32_t *const states[SHA256_BESIDE],
                                 const uint8_t *const lanes[SHA256_BESIDE], size_t count)
{
    WORDS(a, 16);
    WORDS(b, 17);
    WORDS(c, 18);
    WORDS(d, 19);
    WORDS(e, 20);
    WORDS(f, 21);
    WORDS(g, 22);
    WORDS(h, 23);
    WORDS(x0, 24);
    WORDS(x1, 25);
    WORDS(x2, 26);
    WORDS(x3, 27);
    WORDS(x4, 28);
    WORDS(x5, 29);
    WORDS(x6, 30);
    WORDS(x7, 31);
    words w[16];
    union {
        uint32_t each[8][SHA256_BESIDE];
        words all[8];
    } reached;
    union {
        __m128i all;
        uint64_t half[2];
    } addend[4];
    for (int i = 0; i < 8; i++) {
        for (int lane = 0; lane < SHA256_BESIDE; lane++) {
            reached.each[i][lane] = states[lane][i];
        }
    }
    __m128i low = _mm_loadu_si128((const __m128i *)state), high = _mm_loadu_si128((const __m128i *)(state + 4));
    __m128i badc = _mm_shuffle_epi32(low, 0xb1), hgfe = _mm_shuffle_epi32(high, 0x1b);
    __m128i abef = _mm_alignr_epi8(badc, hgfe, 8), cdgh = _mm_blend_epi16(hgfe, badc, 0xf0);
    __asm__ volatile("vzeroupper" ::: "memory"); /* copying the states may have used what is wide below 16 */
    for (size_t at = 0; at < count * SHA256_BLOCK; at += SHA256_BLOCK) {
        for (int lane = 0; lane < SHA256_BESIDE; lane++) {
            PREFETCH(lanes[lane] + at + LANE_AHEAD)
        }
        LOAD_PART(0)
        LOAD_PART(1)
        LOAD_PART(2)
        LOAD_PART(3)
        EACH_STATE(LOAD_STATE)
        BLOCK(FIRST, 0, 0)
        BLOCK(FIRST, 0, 8)
        for (int base = 16; base < 64; base += 16) {
            BLOCK(LATER, base, 0)
            BLOCK(LATER, base, 8)
        }
        EACH_STATE(ADD_STATE)
    }
    for (int i = 0; i < 8; i++) {
        for (int lane = 0; lane < SHA256_BESIDE; lane++) {
            states[lane][i] = reached.each[i][lane];
        }
    }
    __m128i feba = _mm_shuffle_epi32(abef, 0x1b), dchg = _mm_shuffle_epi32(cdgh, 0xb1);
    _mm_storeu_si128((__m128i *)state, _mm_blend_epi16(feba, dchg, 0xf0));
    _mm_storeu_si128((__m128i *)(state + 4), _mm_alignr_epi8(dchg, feba, 8));
}
#endif
