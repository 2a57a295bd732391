/* The CPU matrix product. D is cut into blocks, each made whole by one worker: A and B are widened
 * to F32 a slab of FP8_TILE_K columns at a time, packed into the worker's part of the workspace,
 * and multiplied tile by tile out of the caches. Every element is summed over k in ascending order,
 * so the cut and the number of threads leave no trace in the result.
 *
 *   block       BLOCK_M x BLOCK_N of D; A slab 365 KiB, B slab 192 KiB, sums 252 KiB: the L2 cache
 *   tile        14 x 32 (AVX-512), 6 x 16 (AVX2): the registers; its B panel, 32 KiB: the L1 cache
 *   repacking   A n / BLOCK_N times, B m / BLOCK_M times, each for BLOCK_N, BLOCK_M products */
#include "quant/gemm_cpu.h"

#include <string.h>

enum {
    BLOCK_M = 336, /* a multiple of 14, 6 and 4 rows */
    BLOCK_N = 192, /* a multiple of 32 and 16 columns */
    PACK_K = 128   /* columns of B widened before they are transposed: up to 16 KiB */
};

static int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t up_to(int64_t n, int64_t step) { return (n + step - 1) / step * step; }
static int64_t pieces(int64_t n, int64_t step) { return (n + step - 1) / step; }

/* How D is cut, and the floats of a worker's slabs. */
typedef struct gemm_plan {
    int64_t block_m, block_n, num_m, num_n, batch;
    int64_t a_floats, b_floats;
} gemm_plan;

static gemm_plan make_plan(const fp8_simd *s, int32_t threads, const fp8_gemm *g) {
    gemm_plan p = {.batch = g->batch > 1 ? g->batch : 1};

    /* Rows in equal blocks: 400 as 200 + 200, not as 336 + 64. */
    p.num_m = pieces(g->m, BLOCK_M);
    p.block_m = min64(BLOCK_M, up_to(pieces(g->m, p.num_m), s->tile_rows));
    p.num_m = pieces(g->m, p.block_m);
    /* Columns in narrower blocks while some thread would get less than three. */
    p.block_n = min64(BLOCK_N, up_to(g->n, s->tile_cols));
    while (p.block_n > 2 * s->tile_cols &&
           p.batch * p.num_m * pieces(g->n, p.block_n) < 3 * (int64_t)threads)
        p.block_n -= s->tile_cols;
    p.num_n = pieces(g->n, p.block_n);
    p.a_floats = p.block_m * FP8_TILE_A_STRIDE;
    p.b_floats = p.block_n * FP8_TILE_A_STRIDE; /* OpenBLAS: rows as those of A */
    return p;
}

/* Scratch of one worker, a multiple of 256 bytes, for the largest block that m and n allow: a plan
 * for more rows may have smaller blocks, and workspaces are sized once, for the most rows. */
static int64_t scratch_floats(const fp8_simd *s, const fp8_gemm *g) {
    const int64_t m = min64(BLOCK_M, up_to(g->m, s->tile_rows));
    const int64_t n = min64(BLOCK_N, up_to(g->n, s->tile_cols));
    return up_to((m + n) * FP8_TILE_A_STRIDE + m * n, 64);
}

static int is_small(const fp8_gemm *g) { return g->m <= FP8_GEMM_SMALL_M && !g->b_is_kn; }

size_t fp8_cpu_gemm_workspace_size(const fp8_simd *s, int32_t threads, const fp8_gemm *g) {
    if (g->m <= 0 || g->n <= 0) return 0;
    if (fp8_gemm_is_gated(g->activation)) return fp8_cpu_gemm_gated_size(s, threads, g);
    if (is_small(g)) return 0;
    return (size_t)threads * (size_t)scratch_floats(s, g) * sizeof(float);
}

/* ---- one block ------------------------------------------------------------------------------- */

typedef struct gemm_job {
    const fp8_simd *s;
    fp8_inner inner;
    const fp8_gemm *g;
    gemm_plan plan;
    float *scratch;
} gemm_job;

/* Where a block lies. */
typedef struct gemm_block {
    int64_t batch, row, col, rows, cols;
} gemm_block;

/* a[i, p] = A[row + i, k0 + p], rows FP8_TILE_A_STRIDE floats apart. */
static void pack_a(const gemm_job *j, const gemm_block *at, float *a, int64_t k0, int64_t k) {
    const fp8_gemm *g = j->g;
    for (int64_t i = 0; i < at->rows; i++)
        fp8_gemm_widen_a(j->s, g, at->batch, at->row + i, k0, a + i * FP8_TILE_A_STRIDE, k);
}

/* b[p, c] = B[col + c, k0 + p]: tile_cols columns from `col` on, 0 past the last of `cols`. */
static void pack_b_nk(const gemm_job *j, const gemm_block *at, float *b, int64_t col, int64_t cols,
                      int64_t k0, int64_t k) {
    const fp8_gemm *g = j->g;
    const int64_t width = j->s->tile_cols;
    _Alignas(64) float rows[32 * PACK_K];

    if (cols < width) memset(b, 0, (size_t)(width * k) * sizeof *b);
    for (int64_t p = 0; p < k; p += PACK_K) {
        const int64_t len = min64(PACK_K, k - p);
        for (int64_t c = 0; c < cols; c++)
            fp8_gemm_widen_b(j->s, g, at->batch, col + c, k0 + p, rows + c * PACK_K, len);
        j->s->transpose(b + p * width, width, rows, PACK_K, cols, len);
    }
}

/* The same from B [k, n]. */
static void pack_b_kn(const gemm_job *j, const gemm_block *at, float *b, int64_t col, int64_t cols,
                      int64_t k0, int64_t k) {
    const fp8_gemm *g = j->g;
    const int64_t width = j->s->tile_cols;

    if (cols < width) memset(b, 0, (size_t)(width * k) * sizeof *b);
    for (int64_t p = 0; p < k; p++)
        fp8_gemm_widen_b(j->s, g, at->batch, k0 + p, col, b + p * width, cols);
}

/* c += a b over one slab; rows in tiles of equal height, so that none is left nearly empty. */
static void multiply_slab(const gemm_job *j, const gemm_block *at, float *c, const float *a,
                          const float *b, int64_t k, int first) {
    const int64_t width = j->s->tile_cols, ldc = j->plan.block_n;
    const int64_t height = pieces(at->rows, pieces(at->rows, j->s->tile_rows));

    for (int64_t col = 0; col < at->cols; col += width)
        for (int64_t row = 0; row < at->rows; row += height)
            j->s->tile(c + row * ldc + col, ldc, a + row * FP8_TILE_A_STRIDE, b + col * k,
                       min64(height, at->rows - row), k, first);
}

/* A slab by our tiles: B in panels of tile_cols columns. */
static void add_slab(const gemm_job *j, const gemm_block *at, float *c, const float *a, float *b,
                     int64_t k0, int64_t k) {
    const int64_t width = j->s->tile_cols;

    for (int64_t col = 0; col < at->cols; col += width)
        (j->g->b_is_kn ? pack_b_kn : pack_b_nk)(j, at, b + col * k, at->col + col,
                                                min64(width, at->cols - col), k0, k);
    multiply_slab(j, at, c, a, b, k, k0 == 0);
}

/* A slab by OpenBLAS, which packs for itself: B widened as it lies. */
static void add_slab_blas(const gemm_job *j, const gemm_block *at, float *c, const float *a,
                          float *b, int64_t k0, int64_t k) {
    const fp8_gemm *g = j->g;
    const int64_t rows = g->b_is_kn ? k : at->cols, cols = g->b_is_kn ? at->cols : k;
    const int64_t row0 = g->b_is_kn ? k0 : at->col, col0 = g->b_is_kn ? at->col : k0;
    const int64_t ldb = g->b_is_kn ? j->plan.block_n : FP8_TILE_A_STRIDE;

    for (int64_t r = 0; r < rows; r++)
        fp8_gemm_widen_b(j->s, g, at->batch, row0 + r, col0, b + r * ldb, cols);
    fp8_blas_slab(c, j->plan.block_n, a, b, g->b_is_kn, ldb, at->rows, at->cols, k, k0 == 0);
}

static void run_block(const gemm_job *j, const gemm_block *at, float *scratch) {
    const fp8_gemm *g = j->g;
    float *a = scratch, *b = a + j->plan.a_floats, *c = b + j->plan.b_floats;

    if (g->k == 0) memset(c, 0, (size_t)(at->rows * j->plan.block_n) * sizeof *c);
    for (int64_t k0 = 0; k0 < g->k; k0 += FP8_TILE_K) {
        const int64_t k = min64(FP8_TILE_K, g->k - k0);
        pack_a(j, at, a, k0, k);
        (j->inner == FP8_INNER_BLAS ? add_slab_blas : add_slab)(j, at, c, a, b, k0, k);
    }
    for (int64_t i = 0; i < at->rows; i++)
        fp8_gemm_store(j->s, g, at->batch, at->row + i, at->col, c + i * j->plan.block_n,
                       at->cols);
}

static fp8_status run_blocks(void *ctx, int64_t begin, int64_t end, int32_t worker) {
    const gemm_job *j = ctx;
    const gemm_plan *p = &j->plan;

    for (int64_t i = begin; i < end; i++) {
        const int64_t row = i / p->num_n % p->num_m * p->block_m, col = i % p->num_n * p->block_n;
        const gemm_block at = {i / (p->num_m * p->num_n), row, col,
                               min64(p->block_m, j->g->m - row), min64(p->block_n, j->g->n - col)};
        run_block(j, &at, j->scratch + worker * scratch_floats(j->s, j->g));
    }
    return FP8_OK;
}

fp8_inner fp8_inner_best(void) {
    const int own = fp8_simd_best() != &fp8_simd_scalar;
    return !own && fp8_blas_available() ? FP8_INNER_BLAS : FP8_INNER_TILE;
}

fp8_status fp8_cpu_gemm_run(const fp8_simd *s, fp8_inner inner, fp8_pool *p, const fp8_gemm *g,
                            void *workspace, size_t workspace_bytes) {
    const size_t want = fp8_cpu_gemm_workspace_size(s, fp8_pool_threads(p), g);
    gemm_job j = {.s = s, .inner = inner, .g = g, .scratch = workspace};

    if (fp8_gemm_is_gated(g->activation))
        return fp8_cpu_gemm_gated(s, inner, p, g, workspace, workspace_bytes);
    fp8_gemm_begin(g);
    if (is_small(g)) return fp8_cpu_gemm_small(s, p, g);
    if (!workspace || workspace_bytes < want)
        return FP8_FAIL(FP8_EINVAL, "gemm: workspace of %zu bytes, expected %zu",
                        workspace ? workspace_bytes : 0, want);
    j.plan = make_plan(s, fp8_pool_threads(p), g);
    return fp8_parallel_for(p, j.plan.batch * j.plan.num_m * j.plan.num_n, 1, run_blocks, &j);
}
