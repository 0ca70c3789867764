/* BLAKE3's compression function in plain C (BLAKE3 paper, section 2.2), and its constants.  */
#include "kernels.h"

const uint32_t BLAKE3_IV[8] = {
    0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
};

static inline uint32_t rotr(uint32_t word, unsigned by)
{
    return word >> by | word << (32 - by);
}

static inline void mix(uint32_t v[16], int a, int b, int c, int d, uint32_t x, uint32_t y)
{
    v[a] += v[b] + x;
    v[d] = rotr(v[d] ^ v[a], 16);
    v[c] += v[d];
    v[b] = rotr(v[b] ^ v[c], 12);
    v[a] += v[b] + y;
    v[d] = rotr(v[d] ^ v[a], 8);
    v[c] += v[d];
    v[b] = rotr(v[b] ^ v[c], 7);
}

void blake3_compress_portable(uint32_t cv[8], const uint8_t block[BLAKE3_BLOCK], uint32_t size,
                              uint64_t counter, uint32_t flags)
{
    uint32_t m[16], v[16];
    for (int i = 0; i < 16; i++) {
        m[i] = load_le32(block + 4 * i);
    }
    memcpy(v, cv, 32);
    memcpy(v + 8, BLAKE3_IV, 16);
    v[12] = (uint32_t)counter;
    v[13] = (uint32_t)(counter >> 32);
    v[14] = size;
    v[15] = flags;
    for (int round = 0; round < 7; round++) {
        const uint8_t *s = BLAKE3_SCHEDULE[round];
        mix(v, 0, 4, 8, 12, m[s[0]], m[s[1]]);
        mix(v, 1, 5, 9, 13, m[s[2]], m[s[3]]);
        mix(v, 2, 6, 10, 14, m[s[4]], m[s[5]]);
        mix(v, 3, 7, 11, 15, m[s[6]], m[s[7]]);
        mix(v, 0, 5, 10, 15, m[s[8]], m[s[9]]);
        mix(v, 1, 6, 11, 12, m[s[10]], m[s[11]]);
        mix(v, 2, 7, 8, 13, m[s[12]], m[s[13]]);
        mix(v, 3, 4, 9, 14, m[s[14]], m[s[15]]);
    }
    for (int i = 0; i < 8; i++) {
        cv[i] = v[i] ^ v[i + 8];
    }
}

void blake3_batch_portable(const blake3_batch *batch)
{
    for (size_t lane = 0; lane < batch->count; lane++) {
        uint32_t cv[8];
        memcpy(cv, BLAKE3_IV, sizeof cv);
        for (size_t i = 0; i < batch->blocks; i++) {
            uint32_t flags = batch->flags | (i == 0 ? batch->flags_first : 0) |
                             (i + 1 == batch->blocks ? batch->flags_last : 0);
            const uint8_t *block = batch->in[lane] + i * BLAKE3_BLOCK;
            blake3_compress_portable(cv, block, BLAKE3_BLOCK, batch->counter[lane], flags);
        }
        for (int i = 0; i < 8; i++) {
            store_le32(batch->out[lane] + 4 * i, cv[i]);
        }
    }
}
