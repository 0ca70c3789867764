/* Which kernel runs: one table per stage, and a default that was measured rather than guessed.
 *
 * The CPU's flags say what can run, not what is fast: borg's AVX2 and AVX-512 Gear kernels lose to scalar
 * code on every CPU reported, and vpermi2b costs three times as much on Intel as on AMD (cdc.md 1, 1b). So
 * the first need of a stage times each of its kernels, half a millisecond in all, and keeps the fastest of those
 * that answer as the portable one does: a compiler's bug or a CPU's fault must not become a wrong digest.  */
#include "kernels.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>


/* A name without functions is a kernel that this build does not have.  */
#if MEGALFS_X86
#define ON_X86(...) __VA_ARGS__
#else
#define ON_X86(...)
#endif

const cdc_kernel CDC_KERNELS[] = {
    {.name = "portable", .cut = cdc_cut_portable},
    {.name = "strips", .cut = cdc_cut_strips},
    {.name = "vbmi", ON_X86(.cut = cdc_cut_vbmi, .can_run = cdc_vbmi_can_run)},
};
/* chunk_share: where two chains of SHA-NI run at the speed of one, the file's takes all chunks along; beside it in
 * AVX-512, 0.85 of a window, since with more than that the last of eight lanes outlast it (Golden Cove).  */
enum { SHANI = 1 };
const sha256_kernel SHA256_KERNELS[] = {
    {.name = "portable", .one = sha256_one_portable, .two = sha256_two_portable},
    [SHANI] = {.name = "shani",
     ON_X86(.one = sha256_one_shani, .two = sha256_two_shani, .chunk_share = 1.0,
            .can_run = sha256_shani_can_run)},
    {.name = "avx512",
     ON_X86(.one = sha256_one_portable, .two = sha256_two_portable, .sixteen = sha256_sixteen_avx512,
            .sixteen_min = 3, .can_run = sha256_avx512_can_run)},
    {.name = "shani+avx512",
     ON_X86(.one = sha256_one_shani, .two = sha256_two_shani, .sixteen = sha256_sixteen_avx512,
            .sixteen_min = 12, .beside = sha256_beside_avx512, .chunk_share = 0.85,
            .can_run = sha256_shani_avx512_can_run)},
};
const blake3_kernel BLAKE3_KERNELS[] = {
    {.name = "portable", .batch = blake3_batch_portable, .compress = blake3_compress_portable},
    {.name = "avx2",
     ON_X86(.batch = blake3_batch_avx2, .compress = blake3_compress_portable,
            .can_run = blake3_avx2_can_run)},
    {.name = "avx512",
     ON_X86(.batch = blake3_batch_avx512, .compress = blake3_compress_avx512,
            .can_run = blake3_avx512_can_run)},
};

#define LENGTH(array) (sizeof(array) / sizeof *(array))
const size_t KERNEL_COUNT[STAGES] = {LENGTH(CDC_KERNELS), LENGTH(SHA256_KERNELS), LENGTH(BLAKE3_KERNELS)};

const char *kernel_name(stage which, size_t index)
{
    return which == STAGE_CDC      ? CDC_KERNELS[index].name
           : which == STAGE_SHA256 ? SHA256_KERNELS[index].name
                                   : BLAKE3_KERNELS[index].name;
}

/* Found by `measured_default`. No stage has more kernels than this.  */
static atomic_bool is_wrong[STAGES][8];

kernel_status kernel_state(stage which, size_t index)
{
    bool is_compiled = which == STAGE_CDC      ? CDC_KERNELS[index].cut != NULL
                       : which == STAGE_SHA256 ? SHA256_KERNELS[index].one != NULL
                                               : BLAKE3_KERNELS[index].batch != NULL;
    if (!is_compiled) {
        return KERNEL_NOT_COMPILED;
    }
    bool (*can_run)(void) = which == STAGE_CDC      ? CDC_KERNELS[index].can_run
                            : which == STAGE_SHA256 ? SHA256_KERNELS[index].can_run
                                                    : BLAKE3_KERNELS[index].can_run;
    if (can_run && !can_run()) {
        return KERNEL_CPU_CANNOT;
    }
    return atomic_load(&is_wrong[which][index]) ? KERNEL_WRONG : KERNEL_OK;
}

/* Enough for a stable order of kernels (they differ by 5 % to 600 %) in about a millisecond a stage.  */
enum { CDC_SAMPLE = 128 << 10, BLAKE3_SAMPLE = 32 << 10, TRIALS = 5 };
enum { SHA256_SAMPLE = 2 << 10, SHA256_MESSAGE = 2 << 10 }; /* one pair, and sixteen */

static void run_sample(stage which, size_t index, const uint8_t *sample)
{
    if (which == STAGE_CDC) {
        cdc_params params;
        if (!cdc_params_init(&params, 4 << 10, 256 << 10, 1 << 20, 1)) {
            CDC_KERNELS[index].cut(&params, sample, CDC_SAMPLE);
        }
    } else if (which == STAGE_SHA256) {
        uint32_t a[8], b[8];
        memcpy(a, SHA256_INITIAL, sizeof a);
        memcpy(b, SHA256_INITIAL, sizeof b);
        const sha256_kernel *kernel = &SHA256_KERNELS[index];
        kernel->two(a, sample, b, sample + SHA256_SAMPLE, SHA256_SAMPLE / SHA256_BLOCK);
        slice messages[SHA256_LANES];
        uint8_t digests[SHA256_LANES * SHA256_DIGEST];
        for (size_t i = 0; i < SHA256_LANES; i++) {
            messages[i] = (slice){sample + i * SHA256_MESSAGE, SHA256_MESSAGE};
        }
        sha256_slices(kernel, messages, SHA256_LANES, digests);
    } else {
        uint8_t digest[BLAKE3_CV];
        slice whole = {sample, BLAKE3_SAMPLE};
        blake3_slices(&BLAKE3_KERNELS[index], &whole, 1, digest);
    }
}

enum { ANSWER_BYTES = 1 << 10, CUTS_MAX = ANSWER_BYTES / sizeof(uint64_t) };

/* The chain of a file beside eight others; of a kernel without such a loop, one after the other.  */
static void answer_beside(const sha256_kernel *kernel, const uint8_t *sample, uint8_t *answer)
{
    enum { COUNT = SHA256_SAMPLE / SHA256_BLOCK / SHA256_BESIDE_BLOCKS };
    uint32_t file[8], states[SHA256_BESIDE][8], *lanes[SHA256_BESIDE];
    const uint8_t *blocks[SHA256_BESIDE];
    memcpy(file, SHA256_INITIAL, sizeof file);
    for (size_t i = 0; i < SHA256_BESIDE; i++) {
        memcpy(states[i], SHA256_INITIAL, sizeof states[i]);
        lanes[i] = states[i];
        blocks[i] = sample + i * SHA256_MESSAGE;
    }
    if (kernel->beside) {
        kernel->beside(file, sample, lanes, blocks, COUNT);
    } else {
        kernel->one(file, sample, COUNT * SHA256_BESIDE_BLOCKS);
        for (size_t i = 0; i < SHA256_BESIDE; i++) {
            kernel->one(lanes[i], blocks[i], COUNT);
        }
    }
    memcpy(answer, file, sizeof file);
    memcpy(answer + sizeof file, states, sizeof states);
}

/* What a kernel makes of the sample: cuts of small chunks, or digests of one, two, sixteen and odd messages, and
 * what groups and their join give.  */
static void answer_of(stage which, size_t index, const uint8_t *sample, uint8_t answer[ANSWER_BYTES])
{
    memset(answer, 0, ANSWER_BYTES);
    if (which == STAGE_CDC) {
        cdc_params params;
        if (!cdc_params_init(&params, 512, 2 << 10, 8 << 10, 1)) {
            for (size_t at = 0, i = 0; at < CDC_SAMPLE && i < CUTS_MAX; i++) {
                size_t length = CDC_KERNELS[index].cut(&params, sample + at, CDC_SAMPLE - at);
                store_le64(answer + i * sizeof(uint64_t), length);
                at += length ? length : CDC_SAMPLE;
            }
        }
    } else if (which == STAGE_SHA256) {
        slice messages[SHA256_LANES + 1];
        for (size_t i = 0; i <= SHA256_LANES; i++) {
            messages[i] = (slice){sample + i * SHA256_MESSAGE, SHA256_MESSAGE - 37 * i};
        }
        sha256_slices(&SHA256_KERNELS[index], messages, SHA256_LANES + 1, answer);
        uint32_t states[3][8];
        for (int i = 0; i < 3; i++) {
            memcpy(states[i], SHA256_INITIAL, sizeof states[i]);
        }
        SHA256_KERNELS[index].one(states[0], sample, SHA256_SAMPLE / SHA256_BLOCK);
        SHA256_KERNELS[index].two(states[1], sample, states[2], sample + SHA256_SAMPLE, SHA256_SAMPLE / SHA256_BLOCK);
        uint8_t *end = answer + (SHA256_LANES + 1) * SHA256_DIGEST;
        memcpy(end, states, sizeof states);
        answer_beside(&SHA256_KERNELS[index], sample, end + sizeof states);
    } else {
        slice messages[3] = {{sample, BLAKE3_SAMPLE}, {sample + 1, 5 * 1024 + 63}, {sample + 7, 100}};
        blake3_slices(&BLAKE3_KERNELS[index], messages, 3, answer);
        /* A group as it may lie in a long input, numbers of leaves carrying into their upper half.  */
        slice group = {sample + 3, 17 * BLAKE3_LEAF + 63};
        blake3_groups(&BLAKE3_KERNELS[index], group, (1ULL << 32) - 8, answer + 3 * BLAKE3_CV);
        blake3_join(&BLAKE3_KERNELS[index], answer, 4, answer + 4 * BLAKE3_CV);
    }
#ifdef MEGALFS_WRONG_KERNEL /* of a build for tests */
    if (strcmp(kernel_name(which, index), MEGALFS_WRONG_KERNEL) == 0) {
        answer[0] ^= 1;
    }
#endif
}

static double seconds_since(const struct timespec *from)
{
    struct timespec to;
    clock_gettime(CLOCK_MONOTONIC, &to);
    return (double)(to.tv_sec - from->tv_sec) + 1e-9 * (double)(to.tv_nsec - from->tv_nsec);
}

static double seconds_of(stage which, size_t index, const uint8_t *sample)
{
    double best = 1e9;
    for (int trial = 0; trial < TRIALS; trial++) {
        struct timespec from;
        clock_gettime(CLOCK_MONOTONIC, &from);
        run_sample(which, index, sample);
        double seconds = seconds_since(&from);
        best = seconds < best ? seconds : best;
    }
    return best;
}

/* Threads that come here together measure twice and agree well enough; the first answer stays.  */
static size_t measured_default(stage which)
{
    static atomic_size_t chosen_plus_one[STAGES];
    size_t known = atomic_load(&chosen_plus_one[which]);
    if (known) {
        return known - 1;
    }
    size_t fastest = 0;
    double best = 1e9;
    uint8_t *sample = malloc(CDC_SAMPLE);
    /* Short of memory, the portable kernel is right and the question stays open.  */
    if (!sample) {
        return 0;
    }
    uint64_t word = 1;
    for (size_t i = 0; i < CDC_SAMPLE; i += 8) {
        word = word * 6364136223846793005 + 1442695040888963407; /* Knuth's MMIX generator */
        store_le64(sample + i, word ^ word >> 32);
    }
    uint8_t right[ANSWER_BYTES], answer[ANSWER_BYTES];
    answer_of(which, 0, sample, right);
    for (size_t i = 0; i < KERNEL_COUNT[which]; i++) {
        if (kernel_state(which, i) == KERNEL_OK) {
            answer_of(which, i, sample, answer);
            if (i && memcmp(answer, right, sizeof right) != 0) {
                atomic_store(&is_wrong[which][i], true);
                continue;
            }
            double seconds = seconds_of(which, i, sample);
            if (seconds < best) {
                best = seconds;
                fastest = i;
            }
        }
    }
    free(sample);
    size_t expected = 0;
    return atomic_compare_exchange_strong(&chosen_plus_one[which], &expected, fastest + 1) ? fastest
                                                                                           : expected - 1;
}

kernel_status kernel_find(stage which, const char *name, size_t *index)
{
    if (!name) {
        *index = measured_default(which);
        return KERNEL_OK;
    }
    for (size_t i = 0; i < KERNEL_COUNT[which]; i++) {
        if (strcmp(name, kernel_name(which, i)) == 0) {
            *index = i;
            return kernel_state(which, i);
        }
    }
    return KERNEL_UNKNOWN;
}

/* Two chains take 1.05 times as long as one on Zen 4, and 1.54 times on Golden Cove.  */
static const double PAIR_IS_CHEAP = 1.25;

static bool is_pair_cheap(void)
{
    static const uint8_t sample[2][8 << 10];
    enum { COUNT = sizeof sample[0] / SHA256_BLOCK };
    double one = 1e9, two = 1e9;
    for (int trial = 0; trial < TRIALS; trial++) {
        uint32_t a[8] = {0}, b[8] = {0};
        struct timespec from;
        clock_gettime(CLOCK_MONOTONIC, &from);
        SHA256_KERNELS[SHANI].one(a, sample[0], COUNT);
        double seconds = seconds_since(&from);
        one = seconds < one ? seconds : one;
        clock_gettime(CLOCK_MONOTONIC, &from);
        SHA256_KERNELS[SHANI].two(a, sample[0], b, sample[1], COUNT);
        seconds = seconds_since(&from);
        two = seconds < two ? seconds : two;
    }
    return two < PAIR_IS_CHEAP * one;
}

kernel_status kernel_find_chain(const char *name, size_t *index)
{
    enum { UNKNOWN, CHEAP, DEAR };
    static atomic_int answer;
    kernel_status status = kernel_find(STAGE_SHA256, name, index);
    if (!name && SHA256_KERNELS[*index].beside) {
        if (atomic_load(&answer) == UNKNOWN) {
            atomic_store(&answer, is_pair_cheap() ? CHEAP : DEAR);
        }
        *index = atomic_load(&answer) == CHEAP ? SHANI : *index;
    }
    return status;
}
