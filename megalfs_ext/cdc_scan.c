/* From one chunk to all of them: the loop above the cdc kernels, alone or on several threads.
 *
 * A chunk depends on nothing before its start, so two scans that share one cut share all later ones. That
 * makes threads exact: each starts at an arbitrary offset as if a chunk began there, and the joined list
 * follows the earlier thread until its cuts meet the later one's (0-2 extra chunks, cdc.md 1b).  */
#include "kernels.h"

#include <pthread.h>
#include <stdlib.h>

/* Masks by number of bits, 5 to 25 (destor; restic-FastCDC; the values of fastcdc-rs).  */
static const uint64_t MASKS[26] = {
    [5] = 0x1804110,       [6] = 0x1803110,       [7] = 0x18035100,      [8] = 0x1800035300,
    [9] = 0x19000353000,   [10] = 0x590003530000, [11] = 0xd90003530000, [12] = 0xd90103530000,
    [13] = 0xd90303530000, [14] = 0xd90313530000, [15] = 0xd90f03530000, [16] = 0xd90303537000,
    [17] = 0xd90703537000, [18] = 0xd90707537000, [19] = 0xd91707537000, [20] = 0xd91747537000,
    [21] = 0xd91767537000, [22] = 0xd93767537000, [23] = 0xd93777537000, [24] = 0xd93777577000,
    [25] = 0xdb3777577000,
};

/* The limits of fastcdc-rs: outside them no published cut points exist.  */
enum {
    MIN_BYTES_MIN = 64,
    MIN_BYTES_MAX = 1 << 20,
    AVG_BYTES_MIN = 256,
    AVG_BYTES_MAX = 4 << 20,
    MAX_BYTES_MIN = 1 << 10,
    MAX_BYTES_MAX = 16 << 20,
    NORMALIZATION_MAX = 3,
};

/* log2 rounded to the nearest, as fastcdc-rs does: up when avg^2 >= 2^(2k+1), which avg^2 never equals.  */
static unsigned log2_rounded(uint64_t avg)
{
    unsigned floor = 63 - (unsigned)__builtin_clzll(avg);
    return floor + (avg * avg > (uint64_t)1 << (2 * floor + 1));
}

const char *cdc_params_init(cdc_params *params, size_t min, size_t avg, size_t max, unsigned normalization)
{
    if (min < MIN_BYTES_MIN || min > MIN_BYTES_MAX) {
        return "min must be 64 to 1048576 bytes";
    }
    if (avg < AVG_BYTES_MIN || avg > AVG_BYTES_MAX) {
        return "avg must be 256 to 4194304 bytes";
    }
    if (max < MAX_BYTES_MIN || max > MAX_BYTES_MAX) {
        return "max must be 1024 to 16777216 bytes";
    }
    if (min > avg || avg > max) {
        return "min <= avg <= max must hold";
    }
    if (normalization > NORMALIZATION_MAX) {
        return "normalization must be 0 to 3";
    }
    unsigned bits = log2_rounded(avg);
    *params = (cdc_params){min, avg, max, MASKS[bits + normalization], MASKS[bits - normalization]};
    return NULL;
}

static int append(cdc_ends *ends, uint64_t end)
{
    if (ends->count == ends->capacity) {
        size_t capacity = ends->capacity ? 2 * ends->capacity : 256;
        if (capacity > SIZE_MAX / sizeof *ends->ends) {
            return -1;
        }
        uint64_t *grown = realloc(ends->ends, capacity * sizeof *grown);
        if (!grown) {
            return -1;
        }
        ends->ends = grown;
        ends->capacity = capacity;
    }
    ends->ends[ends->count++] = end;
    return 0;
}

int cdc_scan(const cdc_kernel *kernel, const cdc_params *params, slice region, bool is_final, cdc_ends *ends)
{
    size_t at = 0;
    while (is_final ? at < region.size : region.size - at >= params->max) {
        at += kernel->cut(params, region.bytes + at, region.size - at);
        if (append(ends, at) < 0) {
            return -1;
        }
    }
    return 0;
}

typedef struct {
    const cdc_kernel *kernel;
    const cdc_params *params;
    slice region;
    size_t from, to; /* starts at `from`; the last cut is the first one at or past `to` */
    cdc_ends ends;
    int error;
} part;

static void *scan_part(void *argument)
{
    part *self = argument;
    size_t at = self->from;
    while (at < self->to && !self->error) {
        at += self->kernel->cut(self->params, self->region.bytes + at, self->region.size - at);
        self->error = append(&self->ends, at);
    }
    return NULL;
}

/* Appends from `at` until a cut of `next` is met, then the rest of `next`. Returns the last cut, 0 on error.
 */
static size_t join_part(size_t at, const part *next, cdc_ends *ends)
{
    size_t met = 0;
    for (;;) {
        while (met < next->ends.count && next->ends.ends[met] < at) {
            met++;
        }
        if (at == next->from || (met < next->ends.count && next->ends.ends[met] == at)) {
            break;
        }
        if (at >= next->to) {
            return at;
        }
        at += next->kernel->cut(next->params, next->region.bytes + at, next->region.size - at);
        if (append(ends, at) < 0) {
            return 0;
        }
    }
    for (size_t i = at == next->from ? 0 : met + 1; i < next->ends.count; i++) {
        at = next->ends.ends[i];
        if (append(ends, at) < 0) {
            return 0;
        }
    }
    return at;
}

int cdc_scan_threads(const cdc_kernel *kernel, const cdc_params *params, slice region, unsigned threads,
                     cdc_ends *ends)
{
    part parts[CDC_THREADS_MAX] = {0};
    pthread_t ids[CDC_THREADS_MAX];
    bool is_started[CDC_THREADS_MAX] = {0};
    int error = 0;
    if (threads > CDC_THREADS_MAX) {
        threads = CDC_THREADS_MAX;
    }
    /* A part shorter than one chunk could only be thrown away.  */
    while (threads > 1 && region.size / threads < params->max) {
        threads--;
    }
    for (unsigned i = 0; i < threads; i++) {
        size_t step = region.size / threads;
        size_t to = i + 1 < threads ? (i + 1) * step : region.size;
        parts[i] = (part){kernel, params, region, i * step, to, {0}, 0};
        /* No thread to be had is no error: the part is then scanned here.  */
        is_started[i] = i > 0 && pthread_create(&ids[i], NULL, scan_part, &parts[i]) == 0;
    }
    for (unsigned i = 0; i < threads; i++) {
        if (!is_started[i]) {
            scan_part(&parts[i]);
        }
    }
    for (unsigned i = 1; i < threads; i++) {
        if (is_started[i]) {
            pthread_join(ids[i], NULL);
        }
    }
    for (unsigned i = 0; i < threads; i++) {
        error |= parts[i].error;
    }
    size_t at = 0;
    for (unsigned i = 0; i < threads && !error && region.size; i++) {
        at = join_part(at, &parts[i], ends);
        error = at == 0 ? -1 : 0;
    }
    for (unsigned i = 0; i < threads; i++) {
        free(parts[i].ends.ends);
    }
    return error ? -1 : 0;
}
