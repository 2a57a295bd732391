/* How a product of few tokens is cut into blocks. Memory is one stream that all multiprocessors
 * share, so blocks need not be even; what counts is that enough of them have copies under way, and
 * that few rounds of starting, reducing and storing are seen.
 *
 * The constants are those that won on an H200 (docs/NOTES.md, Skinny FP8 Linear). */
#include "quant/skinny.h"

enum {
    SHARED_ONE = 227 * 1024, /* a block's most, alone on its multiprocessor */
    SHARED_TWO = 113 * 1024, /* with another beside it: 228 K, 1 K of it a block's own */
    MORE_TOKENS = 64,        /* the tile's, from SKINNY_RESIDUAL_TOKENS on; more: cuBLASLt */
    LEAD = 4,
    LEAD_LONG = 8,
    AHEAD = 2 /* 9 to 32 tokens: 0.3 to 2 us a layer, whatever the cuts (docs/NOTES.md) */
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
    int32_t tokens, n, k, rows, splits, clusters, stages, ahead, lead, bound;
} measured_cut;

enum { MEASURED_SMS = 132, START = SKINNY_RELEASE_AT_START };

static const measured_cut measured[] = {
    {8, 12288, 3072, 112, 2, 110, 7, 2, 2, 4},      {8, 3072, 4096, 96, 6, 32, 8, 0, START, 0},
    {8, 49152, 3072, 96, 1, 256, 8, 4, START, 0},   {8, 3072, 24576, 96, 6, 32, 8, 2, 8, 4},
    {8, 6144, 4096, 112, 4, 55, 6, 2, 2, 4},        {8, 4096, 4096, 128, 6, 32, 6, 4, START, 3},
    {8, 28672, 4096, 112, 1, 256, 7, 4, START, 4},  {8, 4096, 14336, 80, 4, 52, 9, 4, 12, 0},
    {16, 12288, 3072, 96, 2, 128, 7, 2, 2, 3},      {16, 3072, 4096, 128, 4, 24, 5, 0, 4, 3},
    {16, 49152, 3072, 96, 1, 264, 7, 4, 12, 5},     {16, 3072, 24576, 128, 8, 24, 5, 4, 6, 3},
    {16, 6144, 4096, 112, 3, 55, 6, 4, 12, 4},      {16, 4096, 4096, 128, 4, 32, 5, 4, 6, 3},
    {16, 28672, 4096, 112, 1, 256, 6, 2, 8, 4},     {16, 4096, 14336, 128, 6, 32, 5, 4, 6, 3},
    {32, 12288, 3072, 112, 1, 110, 6, 1, 2, 0},     {32, 3072, 4096, 96, 4, 32, 6, 0, 2, 3},
    {32, 49152, 3072, 96, 1, 256, 6, 4, START, 0},  {32, 3072, 24576, 128, 8, 24, 4, 2, 2, 3},
    {32, 6144, 4096, 128, 4, 48, 5, 4, 4, 0},       {32, 4096, 4096, 128, 4, 32, 5, 2, 6, 4},
    {32, 28672, 4096, 112, 1, 256, 5, 1, 16, 0},    {32, 4096, 14336, 80, 4, 52, 7, 4, 8, 4},
    {64, 12288, 3072, 112, 1, 110, 9, 0, 6, 0},     {64, 49152, 3072, 128, 1, 128, 8, 0, 16, 0},
    {64, 28672, 4096, 112, 1, 132, 9, 0, 4, 0},
};

/* Gate and up with their activation at the store, by search over layers with all quantizing. */
static const measured_cut measured_gated[] = {
    {8, 49152, 3072, 96, 1, 264, 8, 2, 12, 3},   {8, 28672, 4096, 112, 1, 256, 7, 0, 8, 4},
    {16, 49152, 3072, 96, 1, 264, 7, 2, 8, 4},   {16, 28672, 4096, 112, 1, 256, 7, 0, 12, 4},
    {32, 49152, 3072, 112, 1, 264, 6, 4, 8, 3},  {32, 28672, 4096, 112, 1, 256, 6, 4, 16, 4},
    {64, 49152, 3072, 128, 1, 128, 9, 0, 12, 0}, {64, 28672, 4096, 112, 1, 128, 10, 0, 4, 0},
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
        t->bound = c->bound;
        if (skinny_shared_bytes(t) > SHARED_TWO) t->resident = 1;
        return 1;
    }
    return 0;
}

/* Up to 32 tokens: the rows of a gated tile that fill rounds of blocks best; fewer rows than the
 * most make no more than one round. */
static int32_t gated_rows(int64_t n, int32_t room) {
    int32_t best = SKINNY_ROWS;
    double full = 0;

    if (n <= (int64_t)room * SKINNY_ROWS) {
        while (best > SKINNY_MIN_ROWS && 3 * ceil_div(n, best) < room) best -= SKINNY_ROW_STEP;
        return best;
    }
    for (int32_t rows = SKINNY_ROWS; rows >= SKINNY_MIN_ROWS; rows -= SKINNY_ROW_STEP) {
        const int64_t tiles = ceil_div(n, rows), rounds = ceil_div(tiles, room);
        const double part = (double)tiles / (double)(rounds * room);
        if (part <= full) continue;
        full = part;
        best = rows;
    }
    return best;
}

/* From 33 tokens on a block has its multiprocessor to itself, all of shared memory as its ring, and
 * takes one tile after the other. The rows with which the busiest has the least to do, and in *full
 * the work there is over what all could do meanwhile; of nearly equal ones the most rows, which
 * read x the fewest times. */
static int32_t even_rows(int64_t n, int32_t num_sms, double *full) {
    int64_t least = 0;
    int32_t best = 0;

    for (int32_t rows = SKINNY_ROWS; rows >= SKINNY_MIN_ROWS; rows -= SKINNY_ROW_STEP) {
        const int64_t busiest = ceil_div(ceil_div(n, rows), num_sms) * rows;
        if (best && 100 * busiest > 97 * least) continue;
        least = busiest;
        best = rows;
    }
    *full = (double)n / (double)(least * num_sms);
    return best;
}

/* Up to 32 tokens the chains took 3.74 to 4.05 TB/s, cuBLASLt's 3.15 to 3.41, with all the
 * quantizing between them 3.41 to 3.94 and 2.80 to 3.15. From 33 to 64 a layer with all quantizing
 * took 83.6 us where cuBLASLt's took 97.1 (Gemma-7B), and 70.0 where they took 83.1 (Llama-8B), as
 * its kernels do not overlap with those before them; at 128 ours were slower. A gated activation at
 * the store pays from 33 on where blocks have nearly equal work. An amax was not timed. The
 * smallest Linear in these chains has 12.6 MB, from 33 tokens on 9.4 (docs/NOTES.md, Skinny FP8
 * Linear). */
int skinny_pays(const fp8_gemm *g) {
    const int is_few = g->m <= SKINNY_RESIDUAL_TOKENS;
    const int64_t least_bytes = is_few ? 12000000 : 9000000;
    const double least_full = 0.85;
    double full;

    if (g->n * g->k < least_bytes || g->m > MORE_TOKENS || g->d_amax) return 0;
    if (!fp8_gemm_is_gated(g->activation)) return !is_few || !skinny_is_wide(g);
    (void)even_rows(g->n, MEASURED_SMS, &full);
    return !skinny_is_wide(g) && (is_few || full >= least_full);
}

/* Whole sums of so few rows would leave multiprocessors idle; of parts of K that blocks of a
 * cluster exchange, wide tiles were the faster ones at 64 tokens. */
int skinny_is_short(const fp8_gemm *g) {
    const double least_full = 0.8;
    double full;

    if (g->m <= SKINNY_RESIDUAL_TOKENS || g->m > MORE_TOKENS) return 0;
    (void)even_rows(g->n, MEASURED_SMS, &full);
    return !fp8_gemm_is_gated(g->activation) && full < least_full;
}

int skinny_is_wide(const fp8_gemm *g) {
    if (fp8_gemm_is_gated(g->activation))
        return g->m > SKINNY_GATED_TOKENS || g->n % (2 * SKINNY_GROUP) || g->d_amax || g->residual;
    return g->activation != FP8_GEMM_IDENTITY || g->d_scale || g->d_amax ||
           g->d_dtype == FP8_DTYPE_E4M3 || (g->residual && g->m > SKINNY_RESIDUAL_TOKENS);
}

/* 33 to 64 tokens. */
static void choose_more(skinny_tile *t, int64_t n, int32_t num_sms) {
    double full;
    int64_t tiles;

    t->rows = even_rows(n, num_sms, &full);
    t->splits = 1;
    tiles = ceil_div(n, t->rows);
    t->clusters = (int32_t)ceil_div(tiles, ceil_div(tiles, num_sms));
    t->stages = most_stages(t);
}

static void choose_gated(skinny_tile *t, int64_t n, int32_t num_sms) {
    const int32_t room = t->resident * num_sms;

    t->rows = gated_rows(n, room);
    t->splits = 1;
    t->clusters = ceil_div(n, t->rows) < room ? (int32_t)ceil_div(n, t->rows) : room;
    t->stages = most_stages(t);
}

skinny_tile skinny_choose(const fp8_gemm *g, int32_t num_sms) {
    const int64_t tiles = ceil_div(g->n, SKINNY_ROWS), units = ceil_div(g->k, SKINNY_BLOCK_K);
    skinny_tile t = {.tokens = 8, .resident = 2, .rows = SKINNY_ROWS, .clusters = (int32_t)tiles,
                     .lead = LEAD, .gated = fp8_gemm_is_gated(g->activation)};

    while (t.tokens < g->m) t.tokens *= 2;
    if (t.tokens >= MORE_TOKENS) t.resident = 1;
    if (t.tokens == 16 || t.tokens == 32) t.ahead = AHEAD;
    if (num_sms == MEASURED_SMS && take_measured(&t, g->n, g->k)) return t;
    if (t.tokens == MORE_TOKENS && (t.gated || !skinny_is_short(g))) {
        choose_more(&t, g->n, num_sms);
        return t;
    }
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
