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
    if (t->gated) return 0;
    return (size_t)t->tokens * SKINNY_ROWS * 2; /* BF16 or F16 results */
}

size_t skinny_stage_bytes(const skinny_tile *t) {
    return (size_t)(t->rows + t->tokens) * SKINNY_BLOCK_K;
}

/* Behind the ring. Products read SKINNY_ROWS rows whatever a tile has, past x of the last stage:
 * what comes of it is not used, but the memory must be the block's. */
static size_t other_bytes(const skinny_tile *t) {
    const size_t used = skinny_box_bytes(t) + SKINNY_CONTROL_BYTES;
    const size_t read = t->rows + t->tokens < SKINNY_ROWS
                            ? (size_t)(SKINNY_ROWS - t->rows - t->tokens) * SKINNY_BLOCK_K : 0;
    return used > read ? used : read;
}

size_t skinny_shared_bytes(const skinny_tile *t) {
    return (size_t)t->stages * skinny_stage_bytes(t) + other_bytes(t);
}

static int32_t most_stages(const skinny_tile *t) {
    const size_t room = t->resident > 1 ? SHARED_TWO : SHARED_ONE;
    const int32_t fit = (int32_t)((room - other_bytes(t)) / skinny_stage_bytes(t));
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

/* Cuts found by search over the chain of all Linears of Gemma 7B and Llama 8B, up to 32 tokens with
 * all quantizing between them (docs/NOTES.md, Skinny FP8 Linear): the first row whose tokens, n and
 * k are the product's. */
typedef struct measured_cut {
    int32_t tokens, n, k, rows, splits, clusters, stages, ahead, lead;
} measured_cut;

enum { MEASURED_SMS = 132, START = SKINNY_RELEASE_AT_START };

static const measured_cut measured[] = {
    {8, 12288, 3072, 112, 2, 110, 7, 0, 4},     {8, 3072, 4096, 96, 6, 32, 8, 0, START},
    {8, 49152, 3072, 128, 1, 264, 6, 0, START}, {8, 3072, 24576, 96, 6, 32, 8, 0, 12},
    {8, 6144, 4096, 112, 4, 55, 7, 0, 2},       {8, 4096, 4096, 128, 6, 32, 6, 0, START},
    {8, 28672, 4096, 112, 1, 256, 7, 0, 0},     {8, 4096, 14336, 80, 4, 52, 9, 0, 12},
    {16, 12288, 3072, 96, 2, 128, 7, 0, 2},     {16, 3072, 4096, 96, 4, 32, 7, 2, 4},
    {16, 49152, 3072, 128, 1, 264, 6, 0, START}, {16, 3072, 24576, 96, 6, 32, 4, 0, 6},
    {16, 6144, 4096, 112, 3, 55, 6, 0, 2},      {16, 4096, 4096, 128, 4, 32, 5, 0, 6},
    {16, 28672, 4096, 112, 1, 256, 6, 0, 4},    {16, 4096, 14336, 128, 6, 32, 5, 0, 6},
    {32, 12288, 3072, 128, 1, 96, 5, 0, 6},     {32, 3072, 4096, 96, 4, 32, 6, 0, 4},
    {32, 3072, 24576, 128, 4, 24, 5, 0, 8},     {32, 6144, 4096, 128, 2, 48, 5, 0, 6},
    {32, 4096, 4096, 128, 4, 32, 5, 0, 2},      {32, 28672, 4096, 112, 1, 256, 5, 0, 4},
    {32, 4096, 14336, 80, 2, 52, 7, 0, 6},
    {64, 12288, 3072, 96, 1, 128, 4, 0, 2},     {64, 3072, 4096, 96, 4, 32, 4, 0, 2},
    {64, 49152, 3072, 128, 1, 264, 4, 0, 2},    {64, 3072, 24576, 96, 4, 32, 4, 0, 2},
    {64, 6144, 4096, 112, 4, 55, 4, 0, 2},      {64, 4096, 4096, 112, 4, 37, 4, 2, 2},
    {64, 28672, 4096, 112, 1, 256, 4, 0, START},
    {64, 4096, 14336, 112, 4, 37, 4, 0, 4},
};

/* Gate and up with their activation at the store, by search over layers with all quantizing. */
static const measured_cut measured_gated[] = {
    {8, 49152, 3072, 96, 1, 264, 8, 0, 8},  {8, 28672, 4096, 112, 1, 256, 7, 0, 4},
    {16, 49152, 3072, 96, 1, 264, 6, 0, 8}, {16, 28672, 4096, 112, 1, 256, 7, 0, 8},
    {32, 49152, 3072, 96, 1, 264, 6, 0, 0}, {32, 28672, 4096, 112, 1, 256, 6, 0, 0},
    {64, 49152, 3072, 96, 1, 256, 5, 0, 0}, {64, 28672, 4096, 112, 1, 256, 3, 0, START},
};

enum {
    NUM_MEASURED = sizeof measured / sizeof *measured,
    NUM_MEASURED_GATED = sizeof measured_gated / sizeof *measured_gated
};

static int take_measured(skinny_tile *t, int64_t n, int64_t k) {
    const measured_cut *all = t->gated ? measured_gated : measured;
    const size_t count = t->gated ? NUM_MEASURED_GATED : NUM_MEASURED;

    for (size_t i = 0; i < count; i++) {
        const measured_cut *c = &all[i];
        if (c->tokens != t->tokens || c->n != n || c->k != k) continue;
        t->rows = c->rows;
        t->splits = c->splits;
        t->clusters = c->clusters;
        t->stages = c->stages;
        t->ahead = c->ahead;
        t->lead = c->lead;
        return 1;
    }
    return 0;
}

/* The rows of a gated tile that fill rounds of blocks best, and in *full how much of the rounds, 1
 * where there is one; fewer rows than the most make no more than one round. */
static int32_t gated_rows(int64_t n, int32_t room, double *full) {
    int32_t best = SKINNY_ROWS;

    *full = 0;
    if (n <= (int64_t)room * SKINNY_ROWS) {
        *full = 1;
        while (best > SKINNY_MIN_ROWS && 3 * ceil_div(n, best) < room) best -= SKINNY_ROW_STEP;
        return best;
    }
    for (int32_t rows = SKINNY_ROWS; rows >= SKINNY_MIN_ROWS; rows -= SKINNY_ROW_STEP) {
        const int64_t tiles = ceil_div(n, rows), rounds = ceil_div(tiles, room);
        const double part = (double)tiles / (double)(rounds * room);
        if (part <= *full) continue;
        *full = part;
        best = rows;
    }
    return best;
}

/* Up to 32 tokens the chains took 3.35 to 4.04 TB/s, cuBLASLt's 3.15 to 3.41, with residuals and
 * the quantizing between them 3.35 to 3.80 and 2.86 to 3.15; at 64 it depends on the sizes. Of more
 * rows than columns they are ours there: alone as fast (q k v) or faster (an output layer of 786
 * MB: 223 us against 265), and where a step's launches overlap cuBLASLt's do not (docs/NOTES.md, An
 * engine that serves: what a step is made of). A gated activation at the store took 2 to 5 us off a
 * layer up to 32 tokens, and at 64, where rounds of blocks are nearly full, 1 to 4 (Gemma-7B,
 * Llama-8B, Llama-3B, Qwen2-7B; the last, by rounds full to three quarters, was 1 us slower). The
 * smallest Linear in them has 12.6 MB. */
int skinny_pays(const fp8_gemm *g) {
    const int64_t few_tokens = SKINNY_RESIDUAL_TOKENS, more_tokens = 64, least_bytes = 12000000;
    const int64_t bytes = g->n * g->k;
    const double least_full = 0.85;
    double full;

    if (bytes < least_bytes || g->m > more_tokens || skinny_is_wide(g)) return 0;
    if (!fp8_gemm_is_gated(g->activation))
        return g->m <= few_tokens || g->n > g->k || skinny_is_long(g);
    (void)gated_rows(g->n, 2 * MEASURED_SMS, &full);
    return g->m <= few_tokens || full >= least_full;
}

/* cuBLASLt cuts such a product and adds the parts in a launch of its own: an engine's step of
 * Gemma-7B's sizes with 64 sequences takes 4.55 ms with that and 4.40 to 4.50 with wide tiles for
 * down (docs/NOTES.md). */
int skinny_is_long(const fp8_gemm *g) {
    return g->m > SKINNY_RESIDUAL_TOKENS && g->m <= 64 && g->k >= 3 * g->n;
}

int skinny_is_wide(const fp8_gemm *g) {
    if (fp8_gemm_is_gated(g->activation))
        return g->m > SKINNY_GATED_TOKENS || g->n % (2 * SKINNY_GROUP) || g->d_amax || g->residual;
    return g->activation != FP8_GEMM_IDENTITY || g->d_scale || g->d_amax ||
           g->d_dtype == FP8_DTYPE_E4M3 || (g->residual && g->m > SKINNY_RESIDUAL_TOKENS);
}

static void choose_gated(skinny_tile *t, int64_t n, int32_t num_sms) {
    const int32_t room = t->resident * num_sms;
    double full;

    t->rows = gated_rows(n, room, &full);
    t->splits = 1;
    t->clusters = ceil_div(n, t->rows) < room ? (int32_t)ceil_div(n, t->rows) : room;
    t->stages = most_stages(t);
}

skinny_tile skinny_choose(const fp8_gemm *g, int32_t num_sms) {
    const int64_t tiles = ceil_div(g->n, SKINNY_ROWS), units = ceil_div(g->k, SKINNY_BLOCK_K);
    skinny_tile t = {.tokens = 8, .resident = 2, .rows = SKINNY_ROWS, .clusters = (int32_t)tiles,
                     .lead = LEAD, .gated = fp8_gemm_is_gated(g->activation)};

    while (t.tokens < g->m) t.tokens *= 2;
    if (t.tokens == SKINNY_MAX_TOKENS) t.resident = 1;
    if (num_sms == MEASURED_SMS && take_measured(&t, g->n, g->k)) return t;
    if (t.gated) {
        choose_gated(&t, g->n, num_sms);
        return t;
    }
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
