/* How the skinny product is cut into wide tiles, and what they take of shared memory. */
#include "quant/skinny.h"
#include "quant/skinny_wide.h"

static int32_t pairs_of_warp(const wide_tile *t) {
    const int32_t rows = t->tokens == 64 ? t->rows / 2 : t->rows; /* of a warpgroup */
    return (rows / 8 + 1) / 2;
}

int wide_gates(const wide_tile *t) { return t->tokens == 128 || t->rows >= 192; }
int32_t wide_chunk(const wide_tile *t) { return t->tokens == 64 ? t->rows / 4 : t->rows / 2; }

size_t wide_ring_bytes(const wide_tile *t) {
    return (size_t)t->stages * (size_t)t->rows * WIDE_BLOCK_K;
}

size_t wide_sums_bytes(const wide_tile *t) {
    const int32_t each = (WIDE_WARPS * pairs_of_warp(t) + t->splits - 1) / t->splits;
    return (size_t)each * (size_t)t->splits * WIDE_PAIR_BYTES;
}

size_t wide_shared_bytes(const wide_tile *t) {
    return wide_ring_bytes(t) + (size_t)t->x_stages * (size_t)t->tokens * WIDE_BLOCK_K +
           WIDE_CONTROL_BYTES;
}

/* ---- the cut --------------------------------------------------------------------------------- */

enum {
    SHARED_ONE = 227 * 1024, /* a block's most, alone on its multiprocessor */
    SHARED_TWO = 113 * 1024  /* with another beside it: 228 K, 1 K of it a block's own */
};

static int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* As many stages as fit. */
static void take_room(wide_tile *t) {
    const size_t room = t->resident > 1 ? SHARED_TWO : SHARED_ONE;
    t->stages = WIDE_MAX_STAGES;
    while (t->stages > 1 && wide_shared_bytes(t) > room) t->stages--;
    if (t->x_stages > t->stages) t->x_stages = t->stages;
}

static int fits(const wide_tile *t, int gated) {
    return wide_sums_bytes(t) <= wide_ring_bytes(t) && (!gated || wide_gates(t));
}

/* Rows of W times units of K that the busiest multiprocessor has, by the most splits that leave a
 * block a multiprocessor. */
static int64_t cost_of(wide_tile *t, int64_t n, int64_t units, int gated, int32_t num_sms) {
    static const int32_t all[] = {8, 6, 4, 3, 2, 1}; /* 5, 7 leave SMs of a GPC */
    const int64_t tiles = ceil_div(n, t->rows);
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        t->splits = all[i];
        take_room(t);
        if (all[i] == 1) break;
        if (!gated && tiles * all[i] <= num_sms && 2 * all[i] <= units && fits(t, 0)) break;
    }
    return ceil_div(tiles * t->splits, num_sms) * t->rows * ceil_div(units, t->splits);
}

enum {
    MEASURED_SMS = 132,
    X_STAGES = 5,
    X_STAGES_WIDE = 3,
    X_STAGES_LONG = 8,
    LEAD = 2,
    MANY_ROWS = 192,
    START = WIDE_RELEASE_AT_START
};

/* Cuts found by search over layers with all quantizing at 64 tokens (docs/NOTES.md). */
static const struct measured_cut {
    int32_t n, k, rows, resident, splits, stages, x_stages, lead;
} measured[] = {
    {3072, 4096, 96, 2, 4, 5, 5, START}, {3072, 24576, 128, 1, 4, 10, 8, START},
    {6144, 4096, 96, 2, 3, 5, 5, 2},     {4096, 4096, 96, 2, 3, 5, 5, 6},
    {4096, 14336, 128, 1, 3, 9, 8, 0},   {16384, 4096, 128, 2, 2, 4, 4, 6},
    {3584, 18944, 128, 1, 4, 8, 6, 2},   {4096, 16384, 128, 1, 3, 6, 6, 2},
    {3072, 3072, 96, 2, 3, 4, 4, 2},     {3072, 8192, 96, 1, 3, 8, 8, 2},
};

static int take_measured(wide_tile *t, const fp8_gemm *g) {
    for (size_t i = 0; i < sizeof measured / sizeof *measured; i++) {
        const struct measured_cut *c = &measured[i];
        if (c->n != g->n || c->k != g->k) continue;
        t->rows = c->rows;
        t->resident = c->resident;
        t->splits = c->splits;
        t->stages = c->stages;
        t->x_stages = c->x_stages;
        t->lead = c->lead;
        return 1;
    }
    return 0;
}

/* What won for most of them: two to four parts of K. Of long sums (down) tiles of 128 rows, a block
 * a multiprocessor with deep rings; else of 96 rows, up to one and a half of them. */
static int take_usual(wide_tile *t, const fp8_gemm *g, int64_t units, int32_t num_sms) {
    const int is_long = 2 * g->k >= 5 * g->n;
    const int32_t rows = is_long ? 128 : 96, most_blocks = is_long ? num_sms : 3 * num_sms / 2;
    const int64_t tiles = ceil_div(g->n, rows);
    int32_t splits = 4;

    while (splits > 1 && tiles * splits > most_blocks) splits--;
    if (splits == 1 || 3 * tiles * splits < 2 * num_sms || 2 * splits > units) return 0;
    *t = (wide_tile){.tokens = 64, .rows = rows, .resident = is_long ? 1 : 2, .splits = splits,
                     .x_stages = is_long ? X_STAGES_LONG : X_STAGES, .lead = LEAD};
    take_room(t);
    return 1;
}

/* The rows of least cost; of equal ones the most, which read x the fewest times. */
wide_tile wide_choose(const fp8_gemm *g, int32_t num_sms) {
    static const int32_t few[] = {192, 224, 128, 112, 96}, many[] = {112, 96};
    const int gated = fp8_gemm_is_gated(g->activation), is_many = g->m > 64;
    const int64_t units = ceil_div(g->k, WIDE_BLOCK_K);
    const size_t count = is_many ? sizeof many / sizeof *many : sizeof few / sizeof *few;
    wide_tile best = {.tokens = 64, .lead = WIDE_RELEASE_AT_START};
    int64_t least = INT64_MAX;

    if (!is_many && !gated && num_sms == MEASURED_SMS && take_measured(&best, g)) return best;
    if (!is_many && !gated && take_usual(&best, g, units, num_sms)) return best;
    for (size_t i = 0; i < count; i++) {
        const int32_t rows = (is_many ? many : few)[i];
        wide_tile t = {.tokens = is_many ? 128 : 64, .rows = rows, .resident = 2,
                       .x_stages = rows < MANY_ROWS ? X_STAGES : X_STAGES_WIDE,
                       .lead = WIDE_RELEASE_AT_START};
        const int64_t cost = cost_of(&t, g->n, units > 0 ? units : 1, gated, num_sms);
        if (!fits(&t, gated) || cost >= least) continue;
        least = cost;
        best = t;
    }
    return best;
}
