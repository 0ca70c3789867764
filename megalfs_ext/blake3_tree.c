/* BLAKE3 of many slices at once: the trees above the blake3 kernels.
 *
 * All slices of a forest share the lanes: leaves of one slice fill a batch that leaves of the one before
 * began, and parents are made level by level over all trees together, so that lanes idle once a forest
 * instead of once a slice and level. Pairing neighbours level by level, an odd last node passing upward,
 * gives BLAKE3's tree: left subtrees are the largest powers of two (BLAKE3 paper, section 2.1).  */
#include "kernels.h"

#include <stdlib.h>

/* 4 MiB of slices: 128 KiB of nodes, which stay in L2, and at most half a batch in 256 idle. A power of two,
 * so that a larger slice splits into whole subtrees.  */
enum { FOREST_NODES = 4096 };

typedef struct {
    size_t first, count; /* nodes of its current level */
    bool is_root;
    uint8_t *out;
} tree;

typedef struct {
    const blake3_kernel *kernel;
    blake3_batch batch;
    size_t capacity, used, trees;
    uint8_t (*nodes)[BLAKE3_CV];
    tree *tree;
} forest;

static void batch_flush(forest *self)
{
    if (self->batch.count) {
        self->kernel->batch(&self->batch);
        self->batch.count = 0;
    }
}

static void batch_kind(forest *self, size_t blocks, uint32_t flags, uint32_t first, uint32_t last)
{
    batch_flush(self);
    self->batch.blocks = blocks;
    self->batch.flags = flags;
    self->batch.flags_first = first;
    self->batch.flags_last = last;
}

static void batch_add(forest *self, const uint8_t *in, uint64_t counter, uint8_t *out)
{
    size_t lane = self->batch.count++;
    self->batch.in[lane] = in;
    self->batch.counter[lane] = counter;
    self->batch.out[lane] = out;
    if (self->batch.count == BLAKE3_LANES_MAX) {
        batch_flush(self);
    }
}

/* A leaf that is short, or alone and so the root.  */
static void single_leaf(const blake3_kernel *kernel, slice leaf, uint64_t counter, bool is_root, uint8_t *out)
{
    uint32_t cv[8];
    memcpy(cv, BLAKE3_IV, sizeof cv);
    uint32_t start = BLAKE3_CHUNK_START;
    while (leaf.size > BLAKE3_BLOCK) {
        kernel->compress(cv, leaf.bytes, BLAKE3_BLOCK, counter, start);
        start = 0;
        leaf.bytes += BLAKE3_BLOCK;
        leaf.size -= BLAKE3_BLOCK;
    }
    uint8_t last[BLAKE3_BLOCK] = {0};
    if (leaf.size) {
        memcpy(last, leaf.bytes, leaf.size);
    }
    kernel->compress(cv, last, (uint32_t)leaf.size, counter,
                     start | BLAKE3_CHUNK_END | (is_root ? BLAKE3_ROOT : 0));
    for (int i = 0; i < 8; i++) {
        store_le32(out + 4 * i, cv[i]);
    }
}

static size_t leaves_of(size_t size)
{
    return size ? (size - 1) / BLAKE3_LEAF + 1 : 1;
}

static void reduce(forest *self)
{
    batch_kind(self, 1, BLAKE3_PARENT, 0, 0);
    for (bool again = true; again;) {
        again = false;
        for (size_t t = 0; t < self->trees; t++) {
            tree *it = &self->tree[t];
            for (size_t i = 0; it->count > (it->is_root ? 2 : 1) && i + 1 < it->count; i += 2) {
                batch_add(self, self->nodes[it->first + i], 0, self->nodes[it->first + i / 2]);
            }
        }
        batch_flush(self);
        /* Only now: a waiting batch may still have to read the place where the odd node goes.  */
        for (size_t t = 0; t < self->trees; t++) {
            tree *it = &self->tree[t];
            size_t stop = it->is_root ? 2 : 1;
            if (it->count > stop) {
                if (it->count % 2) {
                    memcpy(self->nodes[it->first + it->count / 2], self->nodes[it->first + it->count - 1],
                           BLAKE3_CV);
                }
                it->count = (it->count + 1) / 2;
                again = again || it->count > stop;
            }
        }
    }
    batch_kind(self, 1, BLAKE3_PARENT | BLAKE3_ROOT, 0, 0);
    for (size_t t = 0; t < self->trees; t++) {
        tree *it = &self->tree[t];
        if (it->is_root) {
            batch_add(self, self->nodes[it->first], 0, it->out);
        } else {
            memcpy(it->out, self->nodes[it->first], BLAKE3_CV);
        }
    }
    batch_flush(self);
    self->used = 0;
    self->trees = 0;
    batch_kind(self, BLAKE3_LEAF / BLAKE3_BLOCK, 0, BLAKE3_CHUNK_START, BLAKE3_CHUNK_END);
}

static uint8_t (*tree_add(forest *self, size_t count, bool is_root, uint8_t *out))[BLAKE3_CV]
{
    if (count > self->capacity - self->used) {
        reduce(self);
    }
    self->tree[self->trees++] = (tree){self->used, count, is_root, out};
    self->used += count;
    return &self->nodes[self->used - count];
}

/* A tree over at most FOREST_NODES leaves, more than one of them when it is a root.  */
static void tree_of_leaves(forest *self, slice bytes, uint64_t counter, bool is_root, uint8_t *out)
{
    size_t count = leaves_of(bytes.size);
    uint8_t(*nodes)[BLAKE3_CV] = tree_add(self, count, is_root, out);
    size_t whole = bytes.size / BLAKE3_LEAF;
    for (size_t i = 0; i < whole; i++) {
        batch_add(self, bytes.bytes + i * BLAKE3_LEAF, counter + i, nodes[i]);
    }
    if (whole < count) {
        slice leaf = {bytes.bytes + whole * BLAKE3_LEAF, bytes.size - whole * BLAKE3_LEAF};
        single_leaf(self->kernel, leaf, counter + whole, false, nodes[whole]);
    }
}

/* More leaves than a forest holds: whole subtrees, then their roots in the same way, one level of them after
 * the other, in memory of 32 bytes per 4 MiB.  */
static int large_slice(forest *self, slice bytes, uint8_t *out)
{
    enum { SUBTREE = FOREST_NODES * BLAKE3_LEAF };
    size_t count = (bytes.size - 1) / SUBTREE + 1;
    uint8_t(*roots)[BLAKE3_CV] = calloc(count, BLAKE3_CV);
    if (!roots) {
        return -1;
    }
    for (size_t i = 0; i < count; i++) {
        size_t left = bytes.size - i * SUBTREE;
        slice part = {bytes.bytes + i * SUBTREE, left < SUBTREE ? left : SUBTREE};
        tree_of_leaves(self, part, (uint64_t)i * FOREST_NODES, false, roots[i]);
    }
    reduce(self);
    while (count > FOREST_NODES) {
        size_t made = 0;
        for (size_t i = 0; i < count; i += FOREST_NODES, made++) {
            size_t taken = count - i < FOREST_NODES ? count - i : FOREST_NODES;
            memcpy(tree_add(self, taken, false, roots[made]), roots[i], taken * BLAKE3_CV);
            reduce(self);
        }
        count = made;
    }
    memcpy(tree_add(self, count, true, out), roots, count * BLAKE3_CV);
    reduce(self);
    free(roots);
    return 0;
}

/* As many nodes as these slices can use at once: a call for one chunk should not pay for fresh pages.  */
static size_t capacity_for(const slice *slices, size_t count)
{
    size_t nodes = 0;
    for (size_t i = 0; i < count && nodes < FOREST_NODES; i++) {
        size_t leaves = leaves_of(slices[i].size);
        nodes += leaves < FOREST_NODES - nodes ? leaves : FOREST_NODES - nodes;
    }
    return nodes;
}

static int forest_open(forest *self, size_t capacity)
{
    self->capacity = capacity;
    self->nodes = malloc((capacity + 1) * sizeof *self->nodes);
    self->tree = malloc((capacity + 1) * sizeof *self->tree);
    batch_kind(self, BLAKE3_LEAF / BLAKE3_BLOCK, 0, BLAKE3_CHUNK_START, BLAKE3_CHUNK_END);
    return self->nodes && self->tree ? 0 : -1;
}

static void forest_close(forest *self)
{
    free(self->tree);
    free(self->nodes);
}

int blake3_slices(const blake3_kernel *kernel, const slice *slices, size_t count, uint8_t *digests)
{
    forest self = {.kernel = kernel};
    int error = forest_open(&self, capacity_for(slices, count));
    for (size_t i = 0; i < count && !error; i++, digests += BLAKE3_CV) {
        size_t leaves = leaves_of(slices[i].size);
        if (leaves == 1) {
            single_leaf(kernel, slices[i], 0, true, digests);
        } else if (leaves <= FOREST_NODES) {
            tree_of_leaves(&self, slices[i], 0, true, digests);
        } else {
            error = large_slice(&self, slices[i], digests);
        }
    }
    if (!error) {
        reduce(&self);
    }
    forest_close(&self);
    return error;
}

int blake3_groups(const blake3_kernel *kernel, slice bytes, uint64_t first_leaf, uint8_t *cvs)
{
    forest self = {.kernel = kernel};
    int error = forest_open(&self, capacity_for(&bytes, 1));
    for (size_t at = 0; at < bytes.size && !error; at += BLAKE3_GROUP, cvs += BLAKE3_CV) {
        size_t left = bytes.size - at;
        slice part = {bytes.bytes + at, left < BLAKE3_GROUP ? left : BLAKE3_GROUP};
        tree_of_leaves(&self, part, first_leaf + at / BLAKE3_LEAF, false, cvs);
    }
    if (!error) {
        reduce(&self);
    }
    forest_close(&self);
    return error;
}

int blake3_join(const blake3_kernel *kernel, const uint8_t *cvs, size_t count, uint8_t *digest)
{
    forest self = {.kernel = kernel};
    int error = forest_open(&self, count);
    if (!error) {
        memcpy(tree_add(&self, count, true, digest), cvs, count * BLAKE3_CV);
        reduce(&self);
    }
    forest_close(&self);
    return error;
}
