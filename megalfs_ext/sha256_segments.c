/* Segments of one SHA-256 chain, each proven alone from the state before it: in memory, or read from a file.
 *
 * From a file, each lane reads its segment in slices, so that all lanes together stay in the L2 cache: sixteen
 * segments read whole are 16 MiB, which come back from memory.  */
#include "sha256_lane.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

typedef struct {
    const uint8_t *before, *after;
    size_t count, taken;
    uint8_t *failed;
} segment_queue;

/* Notes how the lane's segment ended, if it had one.  */
static void settle(lane *self, segment_queue *queue)
{
    if (self->index < queue->count) {
        uint8_t reached[SHA256_DIGEST];
        sha256_store(reached, self->state);
        const uint8_t *claimed = queue->after + self->index * SHA256_DIGEST;
        queue->failed[self->index] = memcmp(reached, claimed, sizeof reached) != 0;
    }
}

static bool take(lane *self, segment_queue *queue)
{
    if (queue->taken == queue->count) {
        self->index = queue->count;
        return false;
    }
    self->index = queue->taken++;
    sha256_load(self->state, queue->before + self->index * SHA256_DIGEST);
    return true;
}

typedef struct {
    segment_queue queue;
    const uint8_t *bytes;
} memory;

static bool memory_next(lane *self)
{
    memory *from = self->owner;
    settle(self, &from->queue);
    if (!take(self, &from->queue)) {
        return false;
    }
    self->blocks = from->bytes + self->index * SHA256_SEGMENT;
    self->count = SHA256_SEGMENT / SHA256_BLOCK;
    return true;
}

void sha256_segments(const sha256_kernel *kernel, const uint8_t *bytes, size_t count, const uint8_t *before,
                     const uint8_t *after, uint8_t *failed)
{
    memory from = {{before, after, count, 0, failed}, bytes};
    lane lanes[SHA256_LANES], *each[SHA256_LANES];
    for (size_t i = 0; i < SHA256_LANES; i++) {
        lanes[i] = (lane){.next = memory_next, .owner = &from, .index = count};
        each[i] = &lanes[i];
    }
    sha256_run_lanes(kernel, each, sha256_lanes_for(kernel, count));
}

/* ---- from a file ---- */

/* A line more than a slice apart: a multiple of 4 KiB would put the same block of all lanes into one set of the L1
 * cache, which holds fewer than sixteen.  */
enum { SLICE_BYTES = 32 << 10, SLICE_STRIDE = SLICE_BYTES + SHA256_BLOCK };

typedef struct {
    segment_queue queue;
    int fd, error;
    const uint8_t *offsets;
    uint64_t size; /* of the file */
} file;

typedef struct {
    lane lane; /* first: `next` gets this one */
    uint8_t *buffer;
    uint64_t at, end; /* what of the segment is not read yet */
} file_lane;

static int read_fully(int fd, uint8_t *buffer, size_t size, uint64_t offset)
{
    while (size) {
        ssize_t got = pread(fd, buffer, size, (off_t)offset);
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got <= 0) {
            return got < 0 ? errno : ENODATA;
        }
        buffer += got;
        size -= (size_t)got;
        offset += (uint64_t)got;
    }
    return 0;
}

/* The next slice; bytes behind its last whole block occur at the end of the file only.  */
static bool read_slice(file_lane *self, file *from)
{
    size_t size = self->end - self->at < SLICE_BYTES ? (size_t)(self->end - self->at) : SLICE_BYTES;
    from->error = read_fully(from->fd, self->buffer, size, self->at);
    if (from->error) {
        return false;
    }
    self->at += size;
    lane *lane = &self->lane;
    lane->blocks = self->buffer;
    lane->count = size / SHA256_BLOCK;
    size_t whole = lane->count * SHA256_BLOCK;
    lane->rest = (slice){self->buffer + whole, size - whole};
    return true;
}

static bool file_next(lane *lane)
{
    file_lane *self = (file_lane *)lane;
    file *from = lane->owner;
    bool has_segment = lane->index < from->queue.count;
    for (;;) {
        if (from->error) {
            return false;
        }
        if (has_segment && self->at < self->end) {
            if (read_slice(self, from) && lane->count) {
                return true;
            }
        } else if (has_segment && self->end == from->size && !lane->is_padded) {
            sha256_message_pad(lane);
            return true;
        } else {
            settle(lane, &from->queue);
            has_segment = take(lane, &from->queue);
            if (!has_segment) {
                return false;
            }
            self->at = load_le64(from->offsets + 8 * lane->index);
            self->end = from->size - self->at < SHA256_SEGMENT ? from->size : self->at + SHA256_SEGMENT;
            lane->is_padded = false;
            lane->rest.size = 0;
        }
    }
}

int sha256_file_segments(const sha256_kernel *kernel, int fd, uint64_t size, const uint8_t *offsets,
                         size_t count, const uint8_t *before, const uint8_t *after, uint8_t *failed)
{
    size_t width = sha256_lanes_for(kernel, count);
    uint8_t *buffer = malloc(width * SLICE_STRIDE);
    if (!buffer) {
        return ENOMEM;
    }
    file from = {{before, after, count, 0, failed}, fd, 0, offsets, size};
    file_lane lanes[SHA256_LANES];
    lane *each[SHA256_LANES];
    for (size_t i = 0; i < width; i++) {
        lanes[i] = (file_lane){
            .lane = {.next = file_next, .owner = &from, .index = count, .total = size},
            .buffer = buffer + i * SLICE_STRIDE,
        };
        each[i] = &lanes[i].lane;
    }
    sha256_run_lanes(kernel, each, width);
    free(buffer);
    return from.error;
}
