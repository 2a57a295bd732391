/* Products of a few rows, as decoding asks for: limited by reading B, so each row of B is widened
 * once and met by all rows of A while it is in the L1 cache. An element's sum is FP8_DOT_LANES
 * partial sums by k modulo that, added as a tree: a fixed order. */
#include <string.h>

#include "quant/gemm_cpu.h"

enum {
    CHUNK_K = 512, /* of A 16 KiB and of four rows of B 8 KiB at a time: the L1 cache */
    DOT_ROWS = 4,  /* of A and of B that dot() takes at once */
    GROUP = 32,    /* rows of B that share one widening of A; their sums: 16 KiB */
    GRAIN = 128 * 1024 /* elements of B a piece of work: some 20 us, against 5 to hand it out */
};

static int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }

typedef struct small_job {
    const fp8_simd *s;
    const fp8_gemm *g;
    int64_t groups; /* a product */
} small_job;

/* Zeros up to a multiple of the lanes; returns that length. */
static int64_t pad(float *out, int64_t n) {
    const int64_t padded = (n + FP8_DOT_LANES - 1) / FP8_DOT_LANES * FP8_DOT_LANES;
    memset(out + n, 0, (size_t)(padded - n) * sizeof *out);
    return padded;
}

static float tree_sum(const float *lanes) {
    float sum[FP8_DOT_LANES];
    memcpy(sum, lanes, sizeof sum);
    for (int half = FP8_DOT_LANES / 2; half > 0; half /= 2)
        for (int l = 0; l < half; l++) sum[l] += sum[l + half];
    return sum[0];
}

typedef float dot_lanes[DOT_ROWS][DOT_ROWS][FP8_DOT_LANES]; /* [row of A, row of B, lane] */
enum { A_QUADS = FP8_GEMM_SMALL_M / DOT_ROWS, B_QUADS = GROUP / DOT_ROWS };

/* lanes[q][h] += for B rows 4q .. and A rows 4h .., over one chunk of k. */
static void multiply_chunk(const small_job *j, int64_t batch, int64_t col, int64_t cols, int64_t k0,
                           dot_lanes lanes[B_QUADS][A_QUADS]) {
    const fp8_gemm *g = j->g;
    const int64_t k = min64(CHUNK_K, g->k - k0);
    _Alignas(64) float a[FP8_GEMM_SMALL_M * CHUNK_K], b[DOT_ROWS * CHUNK_K];
    int64_t len = 0;

    for (int64_t i = 0; i < g->m; i++) {
        fp8_gemm_widen_a(j->s, g, batch, i, k0, a + i * CHUNK_K, k);
        len = pad(a + i * CHUNK_K, k);
    }
    for (int64_t c = 0; c < cols; c += DOT_ROWS) {
        const int64_t rows = min64(DOT_ROWS, cols - c);
        for (int64_t r = 0; r < rows; r++) {
            fp8_gemm_widen_b(j->s, g, batch, col + c + r, k0, b + r * CHUNK_K, k);
            len = pad(b + r * CHUNK_K, k);
        }
        if (rows < DOT_ROWS)
            memset(b + rows * CHUNK_K, 0, (size_t)((DOT_ROWS - rows) * CHUNK_K) * sizeof *b);
        for (int64_t i = 0; i < g->m; i += DOT_ROWS)
            j->s->dot(lanes[c / DOT_ROWS][i / DOT_ROWS][0][0], a + i * CHUNK_K, CHUNK_K,
                      min64(DOT_ROWS, g->m - i), b, CHUNK_K, len);
    }
}

static fp8_status run_groups(void *ctx, int64_t begin, int64_t end, int32_t worker) {
    const small_job *j = ctx;
    const fp8_gemm *g = j->g;
    _Alignas(64) dot_lanes lanes[B_QUADS][A_QUADS];
    float sums[GROUP];

    (void)worker;
    for (int64_t group = begin; group < end; group++) {
        const int64_t batch = group / j->groups, col = group % j->groups * GROUP;
        const int64_t cols = min64(GROUP, g->n - col);
        memset(lanes, 0, sizeof lanes);
        for (int64_t k0 = 0; k0 < g->k; k0 += CHUNK_K)
            multiply_chunk(j, batch, col, cols, k0, lanes);
        for (int64_t i = 0; i < g->m; i++) {
            for (int64_t c = 0; c < cols; c++)
                sums[c] = tree_sum(
                    lanes[c / DOT_ROWS][i / DOT_ROWS][i % DOT_ROWS][c % DOT_ROWS]);
            fp8_gemm_store(j->s, g, batch, i, col, sums, cols);
        }
    }
    return FP8_OK;
}

fp8_status fp8_cpu_gemm_small(const fp8_simd *s, fp8_pool *p, const fp8_gemm *g) {
    small_job j = {s, g, (g->n + GROUP - 1) / GROUP};
    const int64_t grain = GRAIN / GROUP / (g->k > 0 ? g->k : 1);

    return fp8_parallel_for(p, j.groups * (g->batch > 1 ? g->batch : 1), grain > 0 ? grain : 1,
                            run_groups, &j);
}
