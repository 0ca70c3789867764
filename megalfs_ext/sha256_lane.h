/* A lane of the SHA-256 kernels, and who runs lanes: what the schedulers of chunks and of segments share.
 *
 * A lane is a state and a run of whole blocks; when the run is used up, `next` gives it another or ends it.  */
#ifndef MEGALFS_SHA256_LANE_H
#define MEGALFS_SHA256_LANE_H

#include "kernels.h"

typedef struct lane lane;
struct lane {
    uint32_t state[8];
    const uint8_t *blocks;
    size_t count;
    bool (*next)(lane *self); /* false: nothing left */
    void *owner;
    size_t index;   /* what the lane works on now, in the owner's terms */
    slice rest;     /* of the message: bytes behind the current run */
    uint64_t total; /* size of the message, for its padding */
    bool is_padded;
    uint8_t block[2 * SHA256_BLOCK];
};

/* How many lanes `jobs` messages or segments shall share. More than two only if sixteen at once pay.  */
size_t sha256_lanes_for(const sha256_kernel *kernel, size_t jobs);
/* Runs up to SHA256_LANES lanes until none of them has a next run.  */
void sha256_run_lanes(const sha256_kernel *kernel, lane *const *lanes, size_t count);
/* The run that pads a message of `total` bytes whose last ones are `rest` (FIPS 180-4, 5.1.1).  */
void sha256_message_pad(lane *self);

#endif
