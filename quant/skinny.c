/* How a product of few tokens is cut into blocks. Memory is one stream that all multiprocessors
 * share, so blocks need not be even; what counts is that enough of them have copies under way, and
 * that few rounds of starting, reducing and storing are seen.
 *
 * The constants are those that won on an H200 (docs/NOTES.md, Skinny FP8 Linear). */
#include "quant/skinny.h"

enum {
    SHARED_ONE = 227 * 1024, /* a block's most, alone on its multiprocessor */
    SHARED_TWO = 113 * 1024, /* with another beside it: 228 K, 1 K of it a block's own */
    LEAD = 4,
    LEAD_LONG = 8
};

static int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

size_t skinny_box_bytes(const skinny_tile *t) {
    const int32_t units = SKINNY_WARPS * t->tokens / 8; /* of 8 tokens and a warp's 16 rows */
    const int32_t owned = (units + t->splits - 1) / t->splits;
    if (t->splits > 1) return (size_t)(owned * (t->splits - 1)) * 16 * 8 * sizeof(float);
    return (size_t)t->tokens * SKINNY_ROWS * 2; /* BF16 or F16 results */
}

static size_t stage_bytes(const skinny_tile *t) {
    return (size_t)(SKINNY_ROWS + t->tokens) * SKINNY_BLOCK_K;
}

size_t skinny_shared_bytes(const skinny_tile *t) {
    return (size_t)t->stages * stage_bytes(t) + skinny_box_bytes(t) + SKINNY_CONTROL_BYTES;
}

static int32_t most_stages(const skinny_tile *t) {
    const size_t room = t->resident > 1 ? SHARED_TWO : SHARED_ONE;
    const size_t fixed = skinny_box_bytes(t) + SKINNY_CONTROL_BYTES;
    const int32_t fit = (int32_t)((room - fixed) / stage_bytes(t));
    return fit < SKINNY_MAX_STAGES ? fit : SKINNY_MAX_STAGES;
}

/* The fewest blocks a tile that make two thirds of the multiprocessors busy. */
static int32_t choose_splits(int64_t tiles, int64_t units, int32_t num_sms) {
    static const int32_t all[] = {1, 2, 3, 4, 6, SKINNY_MAX_SPLITS}; /* 5, 7 leave SMs of a GPC */
    int32_t splits = 1;
    for (size_t i = 0; i < sizeof all / sizeof *all && all[i] <= units; i++) {
        splits = all[i];
        if (3 * tiles * splits >= 2 * (int64_t)num_sms) break;
    }
    return splits;
}

skinny_tile skinny_choose(int64_t m, int64_t n, int64_t k, int32_t num_sms) {
    const int64_t tiles = ceil_div(n, SKINNY_ROWS), units = ceil_div(k, SKINNY_BLOCK_K);
    skinny_tile t = {.tokens = 8, .resident = 2, .clusters = (int32_t)tiles, .lead = LEAD};

    while (t.tokens < m) t.tokens *= 2;
    if (t.tokens == SKINNY_MAX_TOKENS) t.resident = 1;
    t.splits = choose_splits(tiles, units, num_sms);
    t.stages = most_stages(&t);
    if (t.splits > 1 || tiles <= num_sms) return t;
    if (tiles >= t.resident * (int64_t)num_sms) {
        t.clusters = t.resident * num_sms;
        t.lead = LEAD_LONG;
    } else {
        t.clusters = num_sms;
        t.lead = SKINNY_RELEASE_AT_START;
    }
    return t;
}
