/* FastCDC v2020 in plain C, two bytes per step (Xia et al., TPDS 2020, section 4; fastcdc-rs v2020).
 *
 * Shifting by two and testing the first byte of each pair in a doubled domain (table and masks shifted by
 * one) gives the tests of the one-byte loop, because no mask reaches the bits that the shift loses.  */
#include "kernels.h"

static inline size_t scan(const uint8_t *bytes, size_t from, size_t to, uint64_t *hash_io, uint64_t mask)
{
    uint64_t hash = *hash_io;
    uint64_t mask_doubled = mask << 1;
    for (size_t at = from; at < to; at += 2) {
        hash = (hash << 2) + (CDC_GEAR[bytes[at]] << 1);
        if (!(hash & mask_doubled)) {
            return at;
        }
        hash += CDC_GEAR[bytes[at + 1]];
        if (!(hash & mask)) {
            return at + 1;
        }
    }
    *hash_io = hash;
    return to;
}

size_t cdc_cut_portable(const cdc_params *params, const uint8_t *bytes, size_t size)
{
    if (size <= params->min) {
        return size;
    }
    cdc_plan plan = cdc_plan_chunk(params, size);
    uint64_t hash = 0;
    size_t at = scan(bytes, plan.from, plan.center, &hash, params->mask_s);
    if (at < plan.center) {
        return at;
    }
    at = scan(bytes, plan.center, plan.to, &hash, params->mask_l);
    return at < plan.to ? at : plan.end;
}
