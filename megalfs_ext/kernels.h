/* The kernels of megalfs: what each stage promises, and the table to choose one from.
 *
 * Three stages (cdc, sha256, blake3), several kernels each, all equal bit for bit to reference.py. A kernel
 * is a small struct of functions; everything above it (the chunk loop, the two-lane scheduler, the BLAKE3
 * tree) is written once. Nothing here knows Python.  */
#ifndef MEGALFS_KERNELS_H
#define MEGALFS_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define MEGALFS_X86 1
#else
#define MEGALFS_X86 0
#endif

static inline uint32_t load_le32(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static inline uint64_t load_le64(const uint8_t *p)
{
    return (uint64_t)load_le32(p) | (uint64_t)load_le32(p + 4) << 32;
}

static inline uint32_t load_be32(const uint8_t *p)
{
    return (uint32_t)p[3] | (uint32_t)p[2] << 8 | (uint32_t)p[1] << 16 | (uint32_t)p[0] << 24;
}

static inline void store_le32(uint8_t *p, uint32_t word)
{
    p[0] = (uint8_t)word;
    p[1] = (uint8_t)(word >> 8);
    p[2] = (uint8_t)(word >> 16);
    p[3] = (uint8_t)(word >> 24);
}

static inline void store_le64(uint8_t *p, uint64_t word)
{
    store_le32(p, (uint32_t)word);
    store_le32(p + 4, (uint32_t)(word >> 32));
}

static inline void store_be32(uint8_t *p, uint32_t word)
{
    p[3] = (uint8_t)word;
    p[2] = (uint8_t)(word >> 8);
    p[1] = (uint8_t)(word >> 16);
    p[0] = (uint8_t)(word >> 24);
}

typedef struct {
    const uint8_t *bytes;
    size_t size;
} slice;

/* ---- cdc: FastCDC v2020 -------------------------------------------------------------------------------- */

/* No mask reaches above bit 47, so a cut depends on the last 48 bytes only (cdc.md 1b).  */
enum { CDC_WINDOW = 48 };

extern const uint64_t CDC_GEAR[256];

typedef struct {
    size_t min, avg, max;
    uint64_t mask_s, mask_l; /* before and after the average: harder, then easier to meet */
} cdc_params;

/* Size of the first chunk of `bytes`, of which `size` > 0 remain to the end of the region.  */
typedef size_t cdc_cut_fn(const cdc_params *params, const uint8_t *bytes, size_t size);

typedef struct {
    const char *name;
    cdc_cut_fn *cut;       /* NULL: not compiled in */
    bool (*can_run)(void); /* NULL: everywhere */
} cdc_kernel;

cdc_cut_fn cdc_cut_portable, cdc_cut_strips, cdc_cut_vbmi;
bool cdc_vbmi_can_run(void);

/* First cut in [from, to) of a chunk whose hash starts at `origin`, or `to`; all three even.  */
size_t cdc_find_strips(const uint8_t *bytes, size_t origin, size_t from, size_t to, uint64_t mask);

/* Where the two scans of a chunk begin and end, in bytes: [from, center) with mask_s, [center, to) with
 * mask_l, else the chunk is `end` long. The two-byte step of the definition makes all three even.  */
typedef struct {
    size_t from, center, to, end;
} cdc_plan;

static inline cdc_plan cdc_plan_chunk(const cdc_params *params, size_t size)
{
    size_t end = size < params->max ? size : params->max;
    size_t center = params->avg < end ? params->avg : end;
    return (cdc_plan){params->min & ~(size_t)1, center & ~(size_t)1, end & ~(size_t)1, end};
}

/* The hash after bytes[from, to), exact in the bits the masks see.  */
static inline uint64_t cdc_hash(const uint8_t *bytes, size_t from, size_t to)
{
    uint64_t hash = 0;
    for (size_t at = to - from > CDC_WINDOW ? to - CDC_WINDOW : from; at < to; at++) {
        hash = (hash << 1) + CDC_GEAR[bytes[at]];
    }
    return hash;
}

typedef struct {
    uint64_t *ends;
    size_t count, capacity;
} cdc_ends;

/* NULL, or what is wrong with these numbers.  */
const char *cdc_params_init(cdc_params *params, size_t min, size_t avg, size_t max, unsigned normalization);
/* Both return -1 when memory is short; the caller frees ends->ends either way.  */
int cdc_scan(const cdc_kernel *kernel, const cdc_params *params, slice region, bool is_final, cdc_ends *ends);
int cdc_scan_threads(const cdc_kernel *kernel, const cdc_params *params, slice region, unsigned threads,
                     cdc_ends *ends);
enum { CDC_THREADS_MAX = 64 };

/* ---- sha256 -------------------------------------------------------------------------------------------- */

enum { SHA256_BLOCK = 64, SHA256_DIGEST = 32, SHA256_SEGMENT = 1 << 20 };

typedef void sha256_one_fn(uint32_t state[8], const uint8_t *blocks, size_t count);
typedef void sha256_two_fn(uint32_t state_a[8], const uint8_t *blocks_a, uint32_t state_b[8],
                           const uint8_t *blocks_b, size_t count);

enum { SHA256_LANES = 16 };
typedef void sha256_sixteen_fn(uint32_t *const states[SHA256_LANES], const uint8_t *const blocks[SHA256_LANES],
                               size_t count);

/* One chain at its full speed, and eight others at an eighth of it: `count` blocks of each lane beside
 * count * SHA256_BESIDE_BLOCKS blocks of the chain.  */
enum { SHA256_BESIDE = 8, SHA256_BESIDE_BLOCKS = 8 };
typedef void sha256_beside_fn(uint32_t state[8], const uint8_t *chain, uint32_t *const states[SHA256_BESIDE],
                              const uint8_t *const lanes[SHA256_BESIDE], size_t count);

typedef struct {
    const char *name;
    sha256_one_fn *one;         /* NULL: not compiled in */
    sha256_two_fn *two;         /* two independent chains over `count` blocks each */
    sha256_sixteen_fn *sixteen; /* the same of sixteen, or NULL */
    size_t sixteen_min;         /* with fewer chains than this, pairs are faster */
    sha256_beside_fn *beside;   /* what a file's chain runs with, or NULL: `two` */
    double chunk_share;         /* of the chunks' bytes, what a file's chain best takes along */
    bool (*can_run)(void);
} sha256_kernel;

sha256_one_fn sha256_one_portable, sha256_one_shani;
sha256_two_fn sha256_two_portable, sha256_two_shani;
sha256_sixteen_fn sha256_sixteen_avx512;
sha256_beside_fn sha256_beside_avx512;
bool sha256_shani_can_run(void), sha256_avx512_can_run(void), sha256_shani_avx512_can_run(void);

extern const uint32_t SHA256_INITIAL[8];
extern const uint32_t SHA256_K[64];

void sha256_load(uint32_t state[8], const uint8_t *bytes);
void sha256_store(uint8_t *bytes, const uint32_t state[8]);
/* The digest when `tail` follows `total - tail.size` bytes (whole blocks) that led to `state`.  */
void sha256_finish(const sha256_kernel *kernel, const uint32_t state[8], slice tail, uint64_t total,
                   uint8_t *digest);
void sha256_slices(const sha256_kernel *kernel, const slice *slices, size_t count, uint8_t *digests);
/* failed[k] = 1 where segment k does not take state k of `before` to state k of `after`.  */
void sha256_segments(const sha256_kernel *kernel, const uint8_t *bytes, size_t count, const uint8_t *before,
                     const uint8_t *after, uint8_t *failed);
/* The same of a file of `size` bytes: segment k starts at offset k of `offsets` (u64, multiples of SHA256_SEGMENT
 * below `size`, or 0). The one that ends the file takes its state to the digest of the file. Returns 0 or what
 * errno was; ENODATA where the file is shorter.  */
int sha256_file_segments(const sha256_kernel *kernel, int fd, uint64_t size, const uint8_t *offsets,
                         size_t count, const uint8_t *before, const uint8_t *after, uint8_t *failed);

typedef struct {
    uint32_t state[8];
    uint64_t total;              /* bytes so far */
    uint8_t carry[SHA256_BLOCK]; /* the last total % 64 of them */
} sha256_chain;

/* Takes the chain over `all`; writes the digest of each slice, which lie in it in order, and the chain's state
 * at every multiple of SHA256_SEGMENT reached: chain_states_count() of them.  */
size_t sha256_chain_states_count(uint64_t total, size_t size);
void sha256_chain_update(const sha256_kernel *kernel, sha256_chain *chain, slice all, const slice *slices,
                         size_t count, uint8_t *digests, uint8_t *states);

/* ---- blake3 -------------------------------------------------------------------------------------------- */

enum { BLAKE3_BLOCK = 64, BLAKE3_LEAF = 1024, BLAKE3_CV = 32, BLAKE3_LANES_MAX = 16 };
/* A group is a whole subtree, checked without the rest of its input; as many as are joined have 256 MiB.  */
enum { BLAKE3_GROUP = 64 * BLAKE3_LEAF, BLAKE3_GROUPS_MAX = 4096 };
enum { BLAKE3_CHUNK_START = 1, BLAKE3_CHUNK_END = 2, BLAKE3_PARENT = 4, BLAKE3_ROOT = 8 };

/* Chaining values of up to BLAKE3_LANES_MAX inputs of `blocks` whole blocks each, one per lane; the first
 * and last block of each get their flags besides `flags`. Writes 32 bytes to each out.  */
typedef struct {
    const uint8_t *in[BLAKE3_LANES_MAX];
    uint8_t *out[BLAKE3_LANES_MAX];
    uint64_t counter[BLAKE3_LANES_MAX];
    size_t count, blocks;
    uint32_t flags, flags_first, flags_last;
} blake3_batch;

typedef void blake3_batch_fn(const blake3_batch *batch);
typedef void blake3_compress_fn(uint32_t cv[8], const uint8_t block[BLAKE3_BLOCK], uint32_t size,
                                uint64_t counter, uint32_t flags);

typedef struct {
    const char *name;
    blake3_batch_fn *batch; /* NULL: not compiled in */
    blake3_compress_fn *compress;
    bool (*can_run)(void);
} blake3_kernel;

blake3_batch_fn blake3_batch_portable, blake3_batch_avx2, blake3_batch_avx512;
blake3_compress_fn blake3_compress_portable, blake3_compress_avx512;
bool blake3_avx2_can_run(void);
bool blake3_avx512_can_run(void);

extern const uint32_t BLAKE3_IV[8];
/* The message permutation of table 2, applied 0 to 6 times; here, so that unrolled
 * rounds know their words when compiled.  */
static const uint8_t BLAKE3_SCHEDULE[7][16] = {
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15},
    {2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8},
    {3, 4, 10, 12, 13, 2, 7, 14, 6, 5, 9, 0, 11, 15, 8, 1},
    {10, 7, 12, 9, 14, 3, 13, 15, 4, 0, 11, 2, 5, 8, 1, 6},
    {12, 13, 9, 11, 15, 10, 14, 8, 7, 2, 5, 3, 0, 1, 6, 4},
    {9, 14, 11, 5, 8, 12, 15, 1, 13, 3, 0, 10, 2, 6, 4, 7},
    {11, 15, 5, 0, 1, 9, 8, 6, 14, 10, 2, 12, 3, 4, 7, 13},
};

/* The digest of each slice; -1 when memory is short, as of the two below.  */
int blake3_slices(const blake3_kernel *kernel, const slice *slices, size_t count, uint8_t *digests);
/* The chaining value, never the root's, of each group of an input in which `bytes` begin with leaf `first_leaf`.
 * Their last group may be short.  */
int blake3_groups(const blake3_kernel *kernel, slice bytes, uint64_t first_leaf, uint8_t *cvs);
/* The digest of an input from the chaining values of all its groups, of which there are two at least.  */
int blake3_join(const blake3_kernel *kernel, const uint8_t *cvs, size_t count, uint8_t *digest);

/* ---- choice -------------------------------------------------------------------------------------------- */

typedef enum { STAGE_CDC, STAGE_SHA256, STAGE_BLAKE3, STAGES } stage;
typedef enum { KERNEL_OK, KERNEL_UNKNOWN, KERNEL_NOT_COMPILED, KERNEL_CPU_CANNOT, KERNEL_WRONG } kernel_status;

extern const size_t KERNEL_COUNT[STAGES];
const char *kernel_name(stage which, size_t index);
kernel_status kernel_state(stage which, size_t index);
/* NULL names the default: the fastest of a self-measurement of about a millisecond, made once.  */
kernel_status kernel_find(stage which, const char *name, size_t *index);
/* The same for a file's chain with its chunks: not the default of STAGE_SHA256 where pairs alone are faster.  */
kernel_status kernel_find_chain(const char *name, size_t *index);
extern const cdc_kernel CDC_KERNELS[];
extern const sha256_kernel SHA256_KERNELS[];
extern const blake3_kernel BLAKE3_KERNELS[];

#endif
