/* Several SHA-256 chains at once: the scheduler above the sha256 kernels.
 *
 * One chain is bound by the latency of its rounds and leaves half of the unit idle, so a second, independent
 * chain in the same loop is nearly free (two streams 1.02 cycles a byte, one 2.02: cdc.md 3); a kernel may run
 * sixteen at once. A lane is a state and a run of whole blocks; when the run is used up, `next` gives it another
 * or ends it. Which chains share the loop - chunks, segments, or the file and its chunks - is all that differs.  */
#include "sha256_lane.h"

#include <stdlib.h>

void sha256_load(uint32_t state[8], const uint8_t *bytes)
{
    for (int i = 0; i < 8; i++) {
        state[i] = load_be32(bytes + 4 * i);
    }
}

void sha256_store(uint8_t *bytes, const uint32_t state[8])
{
    for (int i = 0; i < 8; i++) {
        store_be32(bytes + 4 * i, state[i]);
    }
}

/* Two lanes with a run each, or one (b is NULL), to the end of all their runs.  */
static void run_pair(const sha256_kernel *kernel, lane *a, lane *b)
{
    bool has_a = true, has_b = b != NULL;
    while (has_a && has_b) {
        size_t count = a->count < b->count ? a->count : b->count;
        kernel->two(a->state, a->blocks, b->state, b->blocks, count);
        a->blocks += count * SHA256_BLOCK;
        b->blocks += count * SHA256_BLOCK;
        a->count -= count;
        b->count -= count;
        has_a = a->count || a->next(a);
        has_b = b->count || b->next(b);
    }
    lane *left = has_a ? a : b;
    for (bool has = has_a || has_b; has; has = left->next(left)) {
        kernel->one(left->state, left->blocks, left->count);
    }
}

static void run_two(const sha256_kernel *kernel, lane *a, lane *b)
{
    bool has_a = a->next(a), has_b = b->next(b);
    if (has_a || has_b) {
        run_pair(kernel, has_a ? a : b, has_a && has_b ? b : NULL);
    }
}

/* Lanes that have a run, and what a kernel of several wants to see of them.  */
typedef struct {
    lane *lanes[SHA256_LANES];
    size_t count;
    uint32_t *states[SHA256_LANES], spare[8];
    const uint8_t *blocks[SHA256_LANES];
} busy_lanes;

static void start_lanes(busy_lanes *busy, lane *const *lanes, size_t count)
{
    *busy = (busy_lanes){0};
    for (size_t i = 0; i < count; i++) {
        if (lanes[i]->next(lanes[i])) {
            busy->lanes[busy->count++] = lanes[i];
        }
    }
}

/* Fills in states and blocks of `width` lanes; those that nobody has repeat the first into a spare state.
 * Returns how many blocks all have, at most `limit`.  */
static size_t gather_lanes(busy_lanes *busy, size_t width, size_t limit)
{
    size_t shortest = limit;
    for (size_t i = 0; i < width; i++) {
        bool is_busy = i < busy->count;
        busy->states[i] = is_busy ? busy->lanes[i]->state : busy->spare;
        busy->blocks[i] = busy->lanes[is_busy ? i : 0]->blocks;
        shortest = is_busy && busy->lanes[i]->count < shortest ? busy->lanes[i]->count : shortest;
    }
    return shortest;
}

/* All lanes went on by `count` blocks; those at their end leave.  */
static void advance_lanes(busy_lanes *busy, size_t count)
{
    size_t kept = 0;
    for (size_t i = 0; i < busy->count; i++) {
        lane *self = busy->lanes[i];
        self->blocks += count * SHA256_BLOCK;
        self->count -= count;
        if (self->count || self->next(self)) {
            busy->lanes[kept++] = self;
        }
    }
    busy->count = kept;
}

/* Sixteen at a time while there are enough, then pairs.  */
static void finish_lanes(const sha256_kernel *kernel, busy_lanes *busy)
{
    while (kernel->sixteen && busy->count >= kernel->sixteen_min) {
        size_t count = gather_lanes(busy, SHA256_LANES, SIZE_MAX);
        kernel->sixteen(busy->states, busy->blocks, count);
        advance_lanes(busy, count);
    }
    for (size_t i = 0; i < busy->count; i += 2) {
        run_pair(kernel, busy->lanes[i], i + 1 < busy->count ? busy->lanes[i + 1] : NULL);
    }
}

void sha256_run_lanes(const sha256_kernel *kernel, lane *const *lanes, size_t count)
{
    busy_lanes busy;
    start_lanes(&busy, lanes, count);
    finish_lanes(kernel, &busy);
}

/* The lane `file` at its full speed to its end, with the others beside it; then what is left of those.  */
static void run_beside(const sha256_kernel *kernel, lane *file, lane *const *lanes, size_t count)
{
    busy_lanes busy;
    start_lanes(&busy, lanes, count);
    for (bool has = file->next(file); has; has = file->count || file->next(file)) {
        size_t steps = busy.count ? gather_lanes(&busy, SHA256_BESIDE, file->count / SHA256_BESIDE_BLOCKS) : 0;
        size_t taken = steps ? steps * SHA256_BESIDE_BLOCKS : file->count;
        if (steps) {
            kernel->beside(file->state, file->blocks, busy.states, busy.blocks, steps);
            advance_lanes(&busy, steps);
        } else {
            kernel->one(file->state, file->blocks, taken);
        }
        file->blocks += taken * SHA256_BLOCK;
        file->count -= taken;
    }
    finish_lanes(kernel, &busy);
}

size_t sha256_lanes_for(const sha256_kernel *kernel, size_t jobs)
{
    if (!kernel->sixteen || jobs < kernel->sixteen_min) {
        return 2;
    }
    return jobs < SHA256_LANES ? jobs : SHA256_LANES;
}

/* ---- a message: whole blocks, then its padding (FIPS 180-4, 5.1.1) ---- */

void sha256_message_start(lane *self, const uint32_t state[8], slice message, uint64_t total)
{
    memcpy(self->state, state, sizeof self->state);
    self->blocks = message.bytes;
    self->count = message.size / SHA256_BLOCK;
    size_t whole = self->count * SHA256_BLOCK;
    self->rest = (slice){message.size ? message.bytes + whole : NULL, message.size - whole};
    self->total = total;
    self->is_padded = false;
}

void sha256_message_pad(lane *self)
{
    size_t used = self->rest.size;
    self->count = used < SHA256_BLOCK - 8 ? 1 : 2;
    size_t size = self->count * SHA256_BLOCK;
    memset(self->block, 0, size);
    if (used) {
        memcpy(self->block, self->rest.bytes, used);
    }
    self->block[used] = 0x80;
    store_be32(self->block + size - 8, (uint32_t)(self->total >> 29));
    store_be32(self->block + size - 4, (uint32_t)(self->total << 3));
    self->blocks = self->block;
    self->is_padded = true;
}

void sha256_finish(const sha256_kernel *kernel, const uint32_t state[8], slice tail, uint64_t total,
                   uint8_t *digest)
{
    lane self;
    sha256_message_start(&self, state, tail, total);
    kernel->one(self.state, self.blocks, self.count);
    sha256_message_pad(&self);
    kernel->one(self.state, self.blocks, self.count);
    sha256_store(digest, self.state);
}

/* ---- many slices, each a message of its own ---- */

/* The largest first, so that lanes end at about the same time; as they lie where memory is short.  */
typedef struct {
    const slice *slices;
    size_t count, taken;
    uint8_t *digests;
    const slice **order;
} slice_queue;

static int larger_first(const void *a, const void *b)
{
    size_t size_a = (*(const slice *const *)a)->size, size_b = (*(const slice *const *)b)->size;
    return (size_a < size_b) - (size_a > size_b);
}

static slice_queue queue_slices(const slice *slices, size_t count, size_t lanes, uint8_t *digests)
{
    slice_queue queue = {slices, count, 0, digests, NULL};
    if (lanes > 2) {
        queue.order = malloc(count * sizeof *queue.order);
    }
    for (size_t i = 0; queue.order && i < count; i++) {
        queue.order[i] = &slices[i];
    }
    if (queue.order) {
        qsort(queue.order, count, sizeof *queue.order, larger_first);
    }
    return queue;
}

static bool slice_next(lane *self)
{
    slice_queue *queue = self->owner;
    if (self->index < queue->count) {
        if (!self->is_padded) {
            sha256_message_pad(self);
            return true;
        }
        sha256_store(queue->digests + self->index * SHA256_DIGEST, self->state);
    }
    if (queue->taken == queue->count) {
        self->index = queue->count;
        return false;
    }
    size_t turn = queue->taken++;
    self->index = queue->order ? (size_t)(queue->order[turn] - queue->slices) : turn;
    slice message = queue->slices[self->index];
    sha256_message_start(self, SHA256_INITIAL, message, message.size);
    if (!self->count) {
        sha256_message_pad(self);
    }
    return true;
}

static void slice_lanes(lane *lanes, lane **each, size_t count, slice_queue *queue)
{
    for (size_t i = 0; i < count; i++) {
        lanes[i].next = slice_next;
        lanes[i].owner = queue;
        lanes[i].index = queue->count;
        lanes[i].count = 0;
        each[i] = &lanes[i];
    }
}

void sha256_slices(const sha256_kernel *kernel, const slice *slices, size_t count, uint8_t *digests)
{
    size_t width = sha256_lanes_for(kernel, count);
    slice_queue queue = queue_slices(slices, count, width, digests);
    lane lanes[SHA256_LANES], *each[SHA256_LANES];
    slice_lanes(lanes, each, width, &queue);
    sha256_run_lanes(kernel, each, width);
    free(queue.order);
}

/* ---- the chain of a file beside the digests of its chunks ---- */

typedef struct {
    sha256_chain *chain;
    slice left;
    uint8_t *states;
} chain_feed;

/* Gives the file's lane its next run: the carried block made whole, or blocks up to the next state.  */
static bool chain_next(lane *self)
{
    chain_feed *feed = self->owner;
    sha256_chain *chain = feed->chain;
    if (chain->total && chain->total % SHA256_SEGMENT == 0 && self->index) {
        sha256_store(feed->states, self->state);
        feed->states += SHA256_DIGEST;
    }
    self->index = 1;
    size_t carried = chain->total % SHA256_BLOCK;
    if (carried) {
        size_t missing = SHA256_BLOCK - carried;
        size_t taken = missing <= feed->left.size ? missing : feed->left.size;
        memcpy(chain->carry + carried, feed->left.bytes, taken);
        feed->left.bytes += taken;
        feed->left.size -= taken;
        chain->total += taken;
        self->blocks = chain->carry;
        self->count = 1;
        return taken == missing;
    }
    size_t size = SHA256_SEGMENT - chain->total % SHA256_SEGMENT;
    if (size > feed->left.size) {
        size = feed->left.size - feed->left.size % SHA256_BLOCK;
    }
    if (!size) {
        memcpy(chain->carry, feed->left.bytes, feed->left.size);
        chain->total += feed->left.size;
        feed->left.size = 0;
        return false;
    }
    self->blocks = feed->left.bytes;
    self->count = size / SHA256_BLOCK;
    feed->left.bytes += size;
    feed->left.size -= size;
    chain->total += size;
    return true;
}

size_t sha256_chain_states_count(uint64_t total, size_t size)
{
    return (size_t)((total + size) / SHA256_SEGMENT - total / SHA256_SEGMENT);
}

void sha256_chain_update(const sha256_kernel *kernel, sha256_chain *chain, slice all, const slice *slices,
                         size_t count, uint8_t *digests, uint8_t *states)
{
    if (!all.size) {
        sha256_slices(kernel, slices, count, digests);
        return;
    }
    chain_feed feed = {chain, all, states};
    lane file = {.next = chain_next, .owner = &feed};
    memcpy(file.state, chain->state, sizeof file.state);
    size_t width = kernel->beside ? SHA256_BESIDE : 1;
    slice_queue queue = queue_slices(slices, count, width, digests);
    lane lanes[SHA256_BESIDE], *each[SHA256_BESIDE];
    slice_lanes(lanes, each, width, &queue);
    if (kernel->beside) {
        run_beside(kernel, &file, each, width);
    } else {
        run_two(kernel, &file, lanes);
    }
    memcpy(chain->state, file.state, sizeof file.state);
    free(queue.order);
}
