/* Matrix products on CUDA: which of three ways.
 *
 *   direct  cuBLASLt makes D, with scalar descales and the bias at its store
 *   outer   the same with a descale a row and a column (FP8 on Hopper); a scalar is repeated to a
 *           vector
 *   after   cuBLASLt makes F32 sums, a kernel of ours scales, adds the bias and rounds: dense
 *           operands with descales, combinations of types that cuBLASLt has not, and where `outer`
 *           finds no algorithm (logged). D of F32 is scaled in place, else the sums pass through
 *           the workspace
 *
 * Workspace: [descales m][descales n][sums][cuBLASLt's own]. Sums are made and stored in passes
 * over the rows, so that they stay within SUMS_BYTES however many tokens come. */
#include <stddef.h>

#include "quant/cuda_ops.h"
#include "quant/gemm_cuda.h"

enum { ALIGN_BYTES = 256, PASS_ROWS = 128 };
static const size_t LT_BYTES = (size_t)32 << 20; /* what cuBLASLt asks for on Hopper */
static const size_t SUMS_BYTES = (size_t)64 << 20;

typedef enum gemm_way { WAY_DIRECT, WAY_OUTER, WAY_AFTER } gemm_way;

static int is_fp8(fp8_dtype t) { return t == FP8_DTYPE_E4M3 || t == FP8_DTYPE_E5M2; }
static int64_t batch_of(const fp8_gemm *g) { return g->batch > 1 ? g->batch : 1; }

/* ---- what can run ---------------------------------------------------------------------------- */

/* Rows of `ld` bytes-wide elements that all start on 16 bytes. */
static int on_16(const void *p, fp8_dtype t, int64_t ld, int64_t stride, int64_t batch) {
    const int64_t size = (int64_t)fp8_dtype_size(t);
    return (uintptr_t)p % 16 == 0 && ld * size % 16 == 0 &&
           (batch == 1 || stride * size % 16 == 0);
}

int fp8_cuda_gemm_supported(const fp8_device *d, const fp8_gemm *g) {
    const int64_t batch = batch_of(g);

    if (!is_fp8(g->a_dtype)) return g->a_dtype == g->b_dtype;
    return is_fp8(g->b_dtype) && fp8_device_capability(d) >= 89 && !g->b_is_kn &&
           !(g->a_dtype == FP8_DTYPE_E5M2 && g->b_dtype == FP8_DTYPE_E5M2) && g->k % 16 == 0 &&
           g->n % 16 == 0 && on_16(g->a, g->a_dtype, g->lda, g->a_stride, batch) &&
           on_16(g->b, g->b_dtype, g->ldb, g->b_stride, batch) &&
           on_16(g->d, g->d_dtype, g->ldd, g->d_stride, batch);
}

/* Can cuBLASLt store this D, with this bias, from these operands? (Its FP8 kernels take no F32
 * bias.) */
static int stores_result(const fp8_gemm *g) {
    const int fp8 = is_fp8(g->a_dtype);

    if (!fp8 && g->d_dtype != g->a_dtype && g->d_dtype != FP8_DTYPE_F32) return 0;
    return !g->bias || (g->bias_dtype == g->d_dtype && !(fp8 && g->d_dtype == FP8_DTYPE_F32));
}

static gemm_way choose_way(const fp8_device *d, const fp8_gemm *g) {
    const int scaled = g->a_descale || g->b_descale;
    const int vectors = (g->a_descale && g->a_descale_count > 1) ||
                        (g->b_descale && g->b_descale_count > 1);

    if (g->k == 0 || !stores_result(g)) return WAY_AFTER;
    if (!scaled) return WAY_DIRECT;
    if (!is_fp8(g->a_dtype)) return WAY_AFTER;
    if (!vectors) return WAY_DIRECT;
    return fp8_device_capability(d) == 90 && batch_of(g) == 1 ? WAY_OUTER : WAY_AFTER;
}

/* ---- workspace ------------------------------------------------------------------------------- */

typedef struct gemm_layout {
    int64_t pass_rows; /* of D made at once on the way `after` */
    size_t a_descale, b_descale, sums, product;
} gemm_layout;

static size_t aligned(size_t bytes) {
    return (bytes + ALIGN_BYTES - 1) / ALIGN_BYTES * ALIGN_BYTES;
}

static gemm_layout make_layout(const fp8_gemm *g, gemm_way way) {
    const size_t row_bytes = (size_t)(batch_of(g) * g->n) * sizeof(float);
    const int64_t fit = (int64_t)(SUMS_BYTES / (row_bytes ? row_bytes : 1)) / PASS_ROWS;
    const int64_t most = fit > 0 ? fit * PASS_ROWS : PASS_ROWS;
    gemm_layout l = {.pass_rows = g->m < most ? g->m : most};
    size_t at = 0;

    if (way == WAY_OUTER) {
        l.a_descale = at;
        at += aligned((size_t)g->m * sizeof(float));
        l.b_descale = at;
        at += aligned((size_t)g->n * sizeof(float));
    }
    l.sums = at;
    if (way != WAY_DIRECT && g->d_dtype != FP8_DTYPE_F32)
        at += aligned((size_t)l.pass_rows * row_bytes);
    l.product = at;
    return l;
}

size_t fp8_cuda_gemm_workspace_size(const fp8_device *d, const fp8_gemm *g) {
    return make_layout(g, choose_way(d, g)).product + LT_BYTES;
}

/* ---- the three ways -------------------------------------------------------------------------- */

static fp8_lt_call whole_call(const fp8_gemm *g, fp8_lt_scaling scaling) {
    return (fp8_lt_call){.g = g, .d = g->d, .d_dtype = g->d_dtype, .ldd = g->ldd,
                         .d_stride = g->d_stride, .alpha = g->alpha, .scaling = scaling,
                         .a_descale = g->a_descale, .b_descale = g->b_descale, .bias = g->bias};
}

static void give_workspace(fp8_lt_call *call, char *workspace, size_t bytes, size_t used) {
    if (!workspace || bytes <= used) return;
    call->workspace = workspace + used;
    call->workspace_bytes = bytes - used < LT_BYTES ? bytes - used : LT_BYTES;
}

static fp8_status no_algorithm(const fp8_gemm *g) {
    return FP8_FAIL(FP8_EUNSUPPORTED, "gemm: cuBLASLt has no algorithm for %s x %s -> %s, "
                    "m=%lld n=%lld k=%lld lda=%lld ldb=%lld ldd=%lld",
                    fp8_dtype_name(g->a_dtype), fp8_dtype_name(g->b_dtype),
                    fp8_dtype_name(g->d_dtype), (long long)g->m, (long long)g->n, (long long)g->k,
                    (long long)g->lda, (long long)g->ldb, (long long)g->ldd);
}

static fp8_status run_direct(fp8_device *d, const fp8_gemm *g, char *workspace, size_t bytes) {
    const int scaled = g->a_descale || g->b_descale;
    fp8_lt_call call = whole_call(g, scaled ? FP8_LT_SCALAR : FP8_LT_NONE);
    fp8_status st = FP8_OK;
    int found = 0;

    give_workspace(&call, workspace, bytes, 0);
    FP8_TRY(fp8_lt_run(d, &call, &found));
    if (!found) st = no_algorithm(g);
done:
    return st;
}

static fp8_status run_outer(fp8_device *d, const fp8_gemm *g, const gemm_layout *l,
                            char *workspace, size_t bytes, int *found) {
    fp8_lt_call call = whole_call(g, FP8_LT_OUTER);
    float *a = (float *)(void *)(workspace + l->a_descale);
    float *b = (float *)(void *)(workspace + l->b_descale);
    fp8_status st = FP8_OK;

    if (!g->a_descale || g->a_descale_count != g->m) {
        FP8_TRY(fp8_cuda_repeat(d, a, g->a_descale, g->m));
        call.a_descale = a;
    }
    if (!g->b_descale || g->b_descale_count != g->n) {
        FP8_TRY(fp8_cuda_repeat(d, b, g->b_descale, g->n));
        call.b_descale = b;
    }
    give_workspace(&call, workspace, bytes, l->product);
    FP8_TRY(fp8_lt_run(d, &call, found));
done:
    return st;
}

/* One pass of rows: F32 sums, then the store. */
static fp8_status run_pass(fp8_device *d, const fp8_gemm *g, const gemm_layout *l, char *workspace,
                           size_t bytes, int64_t row, int64_t rows) {
    const int in_place = g->d_dtype == FP8_DTYPE_F32;
    const size_t a_offset = (size_t)(row * g->lda) * fp8_dtype_size(g->a_dtype);
    fp8_gemm part = *g;
    fp8_lt_call call = {.g = &part, .d_dtype = FP8_DTYPE_F32, .alpha = 1};
    fp8_status st = FP8_OK;
    int found = 0;

    part.m = rows;
    part.a = (const char *)g->a + a_offset;
    call.d = in_place ? (void *)((float *)g->d + row * g->ldd) : (void *)(workspace + l->sums);
    call.ldd = in_place ? g->ldd : g->n;
    call.d_stride = in_place ? g->d_stride : rows * g->n;
    give_workspace(&call, workspace, bytes, l->product);
    if (g->k == 0) {
        FP8_TRY(fp8_cuda_gemm_store(d, g, NULL, 0, 0, row, rows));
        goto done;
    }
    FP8_TRY(fp8_lt_run(d, &call, &found));
    if (!found) {
        st = no_algorithm(&part);
        goto done;
    }
    FP8_TRY(fp8_cuda_gemm_store(d, g, call.d, call.ldd, call.d_stride, row, rows));
done:
    return st;
}

static fp8_status run_after(fp8_device *d, const fp8_gemm *g, const gemm_layout *l,
                            char *workspace, size_t bytes) {
    fp8_status st = FP8_OK;
    for (int64_t row = 0; row < g->m && st == FP8_OK; row += l->pass_rows) {
        const int64_t left = g->m - row;
        st = run_pass(d, g, l, workspace, bytes, row, left < l->pass_rows ? left : l->pass_rows);
    }
    return st;
}

fp8_status fp8_cuda_gemm_run(fp8_device *d, const fp8_gemm *g, void *workspace,
                             size_t workspace_bytes) {
    const gemm_way way = choose_way(d, g);
    const gemm_layout l = make_layout(g, way);
    fp8_status st = FP8_OK;
    int found = 0;

    if (!fp8_cuda_gemm_supported(d, g)) {
        st = FP8_FAIL(FP8_EUNSUPPORTED, "gemm: %s x %s on %s, m=%lld n=%lld k=%lld lda=%lld "
                      "ldb=%lld ldd=%lld b_is_kn=%d: see fp8_gemm_supported",
                      fp8_dtype_name(g->a_dtype), fp8_dtype_name(g->b_dtype), fp8_device_name(d),
                      (long long)g->m, (long long)g->n, (long long)g->k, (long long)g->lda,
                      (long long)g->ldb, (long long)g->ldd, g->b_is_kn);
        goto done;
    }
    if (l.product > 0 && (!workspace || workspace_bytes < l.product)) {
        st = FP8_FAIL(FP8_EINVAL, "gemm: workspace of %zu bytes, expected %zu",
                      workspace ? workspace_bytes : 0, fp8_cuda_gemm_workspace_size(d, g));
        goto done;
    }
    if (way == WAY_DIRECT) {
        FP8_TRY(run_direct(d, g, workspace, workspace_bytes));
        goto done;
    }
    if (way == WAY_OUTER) FP8_TRY(run_outer(d, g, &l, workspace, workspace_bytes, &found));
    if (!found) FP8_TRY(run_after(d, g, &l, workspace, workspace_bytes));
done:
    return st;
}
