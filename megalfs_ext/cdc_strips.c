/* FastCDC v2020 on any CPU: neighbouring strips scanned side by side.
 *
 * One Gear chain is bound by the latency of its own shift and add, about one cycle a byte, and leaves most of
 * the core idle. The hash depends on the last 48 bytes only, so a second strip can start anywhere after
 * re-reading 48 bytes. Looking for the earliest cut stays exact: a hit in either strip only ends the scan of
 * the two, and a plain scan over them finds the first.  */
#include "kernels.h"

/* 512 bytes: 9 % is read twice to start a strip, and at most two strips are scanned again a chunk.  */
enum { STRIP = 512, STEP = 8 };

static size_t find_plain(const uint8_t *bytes, size_t at, size_t to, uint64_t hash, uint64_t mask)
{
    for (; at < to; at++) {
        hash = (hash << 1) + CDC_GEAR[bytes[at]];
        if (!(hash & mask)) {
            return at;
        }
    }
    return to;
}

size_t cdc_find_strips(const uint8_t *bytes, size_t origin, size_t from, size_t to, uint64_t mask)
{
    size_t at = from;
    uint64_t a = cdc_hash(bytes, origin, at);
    for (; to - at >= 2 * STRIP; at += 2 * STRIP) {
        uint64_t b = cdc_hash(bytes, origin, at + STRIP);
        const uint8_t *stop = bytes + at + STRIP;
        for (const uint8_t *p = bytes + at; p < stop; p += STEP) {
            /* One byte a step: two strips hide the latency that the two-byte step saves.  */
#pragma GCC unroll 8
            for (int i = 0; i < STEP; i++) {
                a = (a << 1) + CDC_GEAR[p[i]];
                if (__builtin_expect(!(a & mask), 0)) {
                    goto found;
                }
                b = (b << 1) + CDC_GEAR[p[i + STRIP]];
                if (__builtin_expect(!(b & mask), 0)) {
                    goto found;
                }
            }
        }
        a = b;
    }
    return find_plain(bytes, at, to, a, mask);
found:
    /* Somewhere in these two strips: the plain scan says where first.  */
    return find_plain(bytes, at, to, cdc_hash(bytes, origin, at), mask);
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
