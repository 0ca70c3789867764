/* FastCDC v2020 on any CPU: neighbouring strips scanned side by side.
 *
 * One Gear chain is bound by the latency of its own shift and add, about one cycle a byte, and leaves most of
 * the core idle. The hash depends on the last 48 bytes only, so a second strip can start anywhere after
 * re-reading 48 bytes. Looking for the earliest cut stays exact: a hit in a later strip only ends the side-by-
 * side scan, and the plain scan goes on from where the first strip stands.  */
#include "kernels.h"

/* 512 bytes: 9 % re-read, and at most one block scanned twice a chunk.  */
enum { STRIP = 512 };

static inline size_t scan_plain(const uint8_t *bytes, size_t at, size_t to, uint64_t hash, uint64_t mask)
{
    for (; at < to; at += 2) {
        hash = (hash << 2) + (CDC_GEAR[bytes[at]] << 1);
        if (!(hash & mask << 1)) {
            return at;
        }
        hash += CDC_GEAR[bytes[at + 1]];
        if (!(hash & mask)) {
            return at + 1;
        }
    }
    return to;
}

size_t cdc_find_strips(const uint8_t *bytes, size_t origin, size_t from, size_t to, uint64_t mask)
{
    uint64_t mask_doubled = mask << 1;
    size_t at = from;
    uint64_t a = cdc_hash(bytes, origin, at);
    while (to - at >= 2 * STRIP) {
        uint64_t b = cdc_hash(bytes, origin, at + STRIP);
        for (size_t stop = at + STRIP; at < stop; at += 2) {
            uint64_t a_first = (a << 2) + (CDC_GEAR[bytes[at]] << 1);
            uint64_t b_first = (b << 2) + (CDC_GEAR[bytes[at + STRIP]] << 1);
            if (!(a_first & mask_doubled)) {
                return at;
            }
            if (!(b_first & mask_doubled)) {
                return scan_plain(bytes, at, to, a, mask);
            }
            uint64_t a_second = a_first + CDC_GEAR[bytes[at + 1]];
            b = b_first + CDC_GEAR[bytes[at + 1 + STRIP]];
            if (!(a_second & mask)) {
                return at + 1;
            }
            if (!(b & mask)) {
                return scan_plain(bytes, at, to, a, mask);
            }
            a = a_second;
        }
        at += STRIP;
        a = b;
    }
    return scan_plain(bytes, at, to, a, mask);
}

size_t cdc_cut_strips(const cdc_params *params, const uint8_t *bytes, size_t size)
{
    if (size <= params->min) {
        return size;
    }
    cdc_plan plan = cdc_plan_chunk(params, size);
    size_t at = cdc_find_strips(bytes, plan.from, plan.from, plan.center, params->mask_s);
    if (at < plan.center) {
        return at;
    }
    at = cdc_find_strips(bytes, plan.from, plan.center, plan.to, params->mask_l);
    return at < plan.to ? at : plan.end;
}
