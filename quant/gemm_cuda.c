/* Matrix products on CUDA: which of four ways; or our kernel for few rows of A (skinny.h) where it
 * was measured faster.
 *
 *   direct  cuBLASLt makes D, with scalar descales, bias, GELU, residual, and for an E4M3 D scale
 *           and amax, at its store
 *   outer   the same with a descale a row and a column (FP8 on Hopper); a scalar is repeated to a
 *           vector
 *   blocks  the same with a descale a row and 128 columns of A and a 128 x 128 block of B (FP8 on
 *           Hopper). cuBLASLt takes a multiple of 4 rows: those left over go the way `after`,
 *           padded, and so does a product of few rows
 *   after   cuBLASLt makes F32 sums, a kernel of ours does the rest of the store: dense operands
 *           with descales, combinations that cuBLASLt has not, and where the others find no
 *           algorithm (logged). D of F32 is made in place, else the sums pass through the workspace
 *
 * Workspace: [descales of A, or scalars that must move][descales of B][padded rows][sums]
 * [cuBLASLt's own]. Sums are made and stored in passes over the rows, so that they stay within
 * SUMS_BYTES however many tokens come. */
#include <cuda_runtime_api.h>
#include <stddef.h>
#include <stdlib.h>

#include "core/cuda_check.h"
#include "quant/cuda_ops.h"
#include "quant/gemm_cuda.h"
#include "quant/skinny.h"

enum { ALIGN_BYTES = 256, PASS_ROWS = 128, ROW_STEP = 4, SCALAR_BYTES = 16, NUM_SCALARS = 3 };
static const size_t LT_BYTES = (size_t)32 << 20; /* what cuBLASLt asks for on Hopper */
static const size_t SUMS_BYTES = (size_t)64 << 20;

typedef enum gemm_way { WAY_DIRECT, WAY_OUTER, WAY_BLOCKS, WAY_AFTER } gemm_way;

static int is_fp8(fp8_dtype t) { return t == FP8_DTYPE_E4M3 || t == FP8_DTYPE_E5M2; }
static int is_half(fp8_dtype t) { return t == FP8_DTYPE_BF16 || t == FP8_DTYPE_F16; }
static int64_t batch_of(const fp8_gemm *g) { return g->batch > 1 ? g->batch : 1; }
static int64_t up_to(int64_t x, int64_t unit) { return (x + unit - 1) / unit * unit; }
static int64_t groups_of(const fp8_gemm *g) { return up_to(g->k, FP8_GEMM_BLOCK) / FP8_GEMM_BLOCK; }

/* ---- what can run ---------------------------------------------------------------------------- */

/* Rows of `ld` bytes-wide elements that all start on 16 bytes. */
static int on_16(const void *p, fp8_dtype t, int64_t ld, int64_t stride, int64_t batch) {
    const int64_t size = (int64_t)fp8_dtype_size(t);
    return (uintptr_t)p % 16 == 0 && ld * size % 16 == 0 &&
           (batch == 1 || stride * size % 16 == 0);
}

/* NULL, or why these block descales cannot be. */
static const char *refuse_blocks(const fp8_device *d, const fp8_gemm *g) {
    if (!is_fp8(g->a_dtype)) return "block descales need FP8 operands";
    if (fp8_device_capability(d) != 90) return "block descales need compute capability 9.0";
    if (batch_of(g) > 1) return "block descales do not go with a batch";
    if (g->accumulate == FP8_ACCUMULATE_FAST) return "block descales need exact accumulation";
    if (g->b_descale_ld != up_to(groups_of(g), 4))
        return "b_descale_ld must be ceil(k / 128) up to a multiple of 4";
    return (uintptr_t)g->b_descale % 16 ? "b_descale must lie on 16 bytes" : NULL;
}

/* NULL, or why this product cannot run as it stands. */
static const char *refuse(const fp8_device *d, const fp8_gemm *g) {
    const int64_t batch = batch_of(g);

    if (g->scaling == FP8_GEMM_BLOCKS && refuse_blocks(d, g)) return refuse_blocks(d, g);
    if (is_fp8(g->a_dtype) != is_fp8(g->b_dtype)) return "FP8 meets FP8 only";
    if (!is_fp8(g->a_dtype))
        return g->a_dtype == g->b_dtype ? NULL : "operands must be of one type, or both FP8";
    if (fp8_device_capability(d) < 89) return "FP8 needs compute capability 8.9";
    if (g->b_is_kn) return "FP8 needs B as [n, k]";
    if (g->a_dtype == FP8_DTYPE_E5M2 && g->b_dtype == FP8_DTYPE_E5M2)
        return "at most one operand may be E5M2";
    if (g->k % 16 || g->n % 16) return "FP8 needs k and n that are multiples of 16";
    if (!on_16(g->a, g->a_dtype, g->lda, g->a_stride, batch) ||
        !on_16(g->b, g->b_dtype, g->ldb, g->b_stride, batch) ||
        !on_16(g->d, g->d_dtype, g->ldd, g->d_stride, batch))
        return "FP8 needs rows of A, B and D on 16 bytes";
    return NULL;
}

/* Is this, on AUTO, our kernel's? */
static int takes_skinny(const fp8_device *d, const fp8_gemm *g) {
    const char *want = getenv("FP8_GEMM_SKINNY");
    const int never = want && *want == '0', always = want && *want == '1';

    return !never && g->backend == FP8_GEMM_AUTO && is_fp8(g->a_dtype) &&
           (always || skinny_pays(g)) && skinny_check(d, g) == FP8_OK;
}

int fp8_cuda_gemm_gates(const fp8_device *d, const fp8_gemm *g) {
    return fp8_gemm_is_gated(g->activation) && (g->backend == FP8_GEMM_SKINNY
                                                    ? skinny_check(d, g) == FP8_OK
                                                    : takes_skinny(d, g));
}

int fp8_cuda_gemm_supported(const fp8_device *d, const fp8_gemm *g) {
    return g->backend == FP8_GEMM_SKINNY ? skinny_check(d, g) == FP8_OK : !refuse(d, g);
}

/* cuBLASLt wants scalars of FP8 products there (measured: cuBLAS 13.1, H200, 2026-11-21: with bias
 * and residual a descale 4 bytes off is "not supported"). */
static int on_scalar(const float *p) { return (uintptr_t)p % SCALAR_BYTES == 0; }

/* Can cuBLASLt add this bias? */
static int adds_bias(const fp8_gemm *g) {
    const int fp8 = is_fp8(g->a_dtype);

    if (!g->bias) return 1;
    if (fp8 && g->d_dtype == FP8_DTYPE_F32) return g->bias_dtype == FP8_DTYPE_BF16;
    if (g->d_dtype != FP8_DTYPE_E4M3) return g->bias_dtype == g->d_dtype;
    return g->residual ? g->bias_dtype == g->residual_dtype : is_half(g->bias_dtype);
}

/* Can cuBLASLt store this D itself? */
static int stores_result(const fp8_gemm *g) {
    const int fp8 = is_fp8(g->a_dtype);

    if (!adds_bias(g) || fp8_gemm_is_gated(g->activation)) return 0;
    if (fp8 && g->residual &&
        !on_16(g->residual, g->residual_dtype, g->ldr, g->r_stride, batch_of(g)))
        return 0;
    if (g->d_dtype == FP8_DTYPE_E4M3)
        return fp8 && g->scaling == FP8_GEMM_ROWS && batch_of(g) == 1 && on_scalar(g->d_amax) &&
               (!g->residual || is_half(g->residual_dtype));
    if (g->d_amax || (g->residual && g->residual_dtype != g->d_dtype)) return 0;
    return fp8 || g->d_dtype == g->a_dtype || g->d_dtype == FP8_DTYPE_F32;
}

static gemm_way choose_way(const fp8_device *d, const fp8_gemm *g) {
    const int scaled = g->a_descale || g->b_descale;
    const int vectors = (g->a_descale && g->a_descale_count > 1) ||
                        (g->b_descale && g->b_descale_count > 1);

    if (g->scaling == FP8_GEMM_BLOCKS) return g->k == 0 ? WAY_AFTER : WAY_BLOCKS;
    if (g->k == 0 || !stores_result(g)) return WAY_AFTER;
    if (!scaled) return WAY_DIRECT;
    if (!is_fp8(g->a_dtype)) return WAY_AFTER;
    if (!vectors) return WAY_DIRECT;
    return fp8_device_capability(d) == 90 && batch_of(g) == 1 && g->d_dtype != FP8_DTYPE_E4M3
               ? WAY_OUTER : WAY_AFTER;
}

/* ---- workspace ------------------------------------------------------------------------------- */

typedef struct gemm_layout {
    int64_t pass_rows; /* of D made at once on the way `after` */
    size_t a_descale, b_descale, padded, sums, product;
} gemm_layout;

static size_t aligned(size_t bytes) {
    return (bytes + ALIGN_BYTES - 1) / ALIGN_BYTES * ALIGN_BYTES;
}

static size_t claim(size_t *at, size_t bytes) {
    const size_t begin = *at;
    *at += aligned(bytes);
    return begin;
}

/* F32 sums of the way `after` lie in D itself. */
static int sums_in_place(const fp8_gemm *g, gemm_way way) {
    return g->d_dtype == FP8_DTYPE_F32 && way != WAY_BLOCKS &&
           !fp8_gemm_is_gated(g->activation) &&
           (!g->residual || g->residual != g->d);
}

/* May the sums be wanted? cuBLASLt always has an algorithm for the plain store. */
static int may_go_after(const fp8_gemm *g, gemm_way way) {
    return way != WAY_DIRECT || (is_fp8(g->a_dtype) && (g->activation != FP8_GEMM_IDENTITY ||
                                                        g->residual ||
                                                        g->d_dtype == FP8_DTYPE_E4M3));
}

static gemm_layout make_layout(const fp8_gemm *g, gemm_way way) {
    const size_t row_bytes = (size_t)(batch_of(g) * g->n) * sizeof(float);
    const int64_t fit = (int64_t)(SUMS_BYTES / (row_bytes ? row_bytes : 1)) / PASS_ROWS;
    const int64_t most = fit > 0 ? fit * PASS_ROWS : PASS_ROWS, m = up_to(g->m, ROW_STEP);
    gemm_layout l = {.pass_rows = g->m < most ? g->m : most};
    size_t at = 0;

    if (way == WAY_OUTER) {
        l.a_descale = claim(&at, (size_t)g->m * sizeof(float));
        l.b_descale = claim(&at, (size_t)g->n * sizeof(float));
    } else if (way == WAY_DIRECT && is_fp8(g->a_dtype)) {
        l.a_descale = claim(&at, NUM_SCALARS * SCALAR_BYTES);
    } else if (way == WAY_BLOCKS) {
        l.a_descale = claim(&at, (size_t)(groups_of(g) * m) * sizeof(float));
        l.padded = claim(&at, (size_t)((m < PASS_ROWS ? m : PASS_ROWS) * g->k));
    }
    l.sums = at;
    if (may_go_after(g, way) && !sums_in_place(g, way))
        (void)claim(&at, (size_t)up_to(l.pass_rows, ROW_STEP) * row_bytes);
    l.product = at;
    return l;
}

/* cuBLASLt alone makes D, and need not have any either. */
static int needs_no_workspace(const fp8_gemm *g) {
    return !may_go_after(g, WAY_DIRECT) && on_scalar(g->a_descale) && on_scalar(g->b_descale);
}

size_t fp8_cuda_gemm_workspace_size(const fp8_device *d, const fp8_gemm *g) {
    if (g->backend == FP8_GEMM_SKINNY) return 0;
    return make_layout(g, choose_way(d, g)).product + LT_BYTES;
}

/* ---- the ways -------------------------------------------------------------------------------- */

typedef struct gemm_run {
    fp8_device *d;
    const fp8_gemm *g;
    gemm_way way;
    gemm_layout at;
    char *workspace;
    size_t bytes;
    fp8_lt_tuning *tuning;
} gemm_run;

/* g's product with its whole store. */
static fp8_lt_call whole_call(const fp8_gemm *g, fp8_lt_scaling scaling) {
    const fp8_dtype other = g->bias ? g->bias_dtype : FP8_DTYPE_BF16;
    return (fp8_lt_call){.g = g, .d = g->d, .d_dtype = g->d_dtype, .ldd = g->ldd,
                         .d_stride = g->d_stride, .alpha = g->alpha, .scaling = scaling,
                         .a_descale = g->a_descale, .b_descale = g->b_descale, .bias = g->bias,
                         .bias_dtype = g->bias_dtype, .residual = g->residual,
                         .c_dtype = g->residual ? g->residual_dtype
                                    : g->d_dtype == FP8_DTYPE_E4M3 ? other : g->d_dtype,
                         .ldr = g->ldr, .r_stride = g->r_stride,
                         .gelu = g->activation == FP8_GEMM_GELU_TANH, .d_scale = g->d_scale,
                         .d_amax = g->d_amax};
}

static void give_workspace(const gemm_run *r, fp8_lt_call *call) {
    call->tuning = r->tuning;
    if (!r->workspace || r->bytes <= r->at.product) return;
    call->workspace = r->workspace + r->at.product;
    call->workspace_bytes = r->bytes - r->at.product;
    if (call->workspace_bytes > LT_BYTES) call->workspace_bytes = LT_BYTES;
}

static fp8_status no_algorithm(const fp8_gemm *g) {
    return FP8_FAIL(FP8_EUNSUPPORTED, "gemm: cuBLASLt has no algorithm for %s x %s -> %s, "
                    "m=%lld n=%lld k=%lld lda=%lld ldb=%lld ldd=%lld",
                    fp8_dtype_name(g->a_dtype), fp8_dtype_name(g->b_dtype),
                    fp8_dtype_name(g->d_dtype), (long long)g->m, (long long)g->n, (long long)g->k,
                    (long long)g->lda, (long long)g->ldb, (long long)g->ldd);
}

/* *p, a scalar, moved to a slot of the workspace unless it is NULL or lies on 16 bytes. */
static fp8_status align_scalar(const gemm_run *r, const float **p, int slot) {
    float *moved = (float *)(void *)(r->workspace + r->at.a_descale + slot * SCALAR_BYTES);
    fp8_status st = FP8_OK;

    if (on_scalar(*p)) goto done;
    FP8_TRY(fp8_cuda_repeat(r->d, moved, *p, 1));
    *p = moved;
done:
    return st;
}

static fp8_status run_direct(const gemm_run *r, int *found) {
    const int scaled = r->g->a_descale || r->g->b_descale;
    fp8_lt_call call = whole_call(r->g, scaled ? FP8_LT_SCALAR : FP8_LT_NONE);
    fp8_status st;

    FP8_TRY(align_scalar(r, &call.a_descale, 0));
    FP8_TRY(align_scalar(r, &call.b_descale, 1));
    FP8_TRY(align_scalar(r, &call.d_scale, 2));
    give_workspace(r, &call);
    FP8_TRY(fp8_lt_run(r->d, &call, found));
done:
    return st;
}

static fp8_status run_outer(const gemm_run *r, int *found) {
    const fp8_gemm *g = r->g;
    fp8_lt_call call = whole_call(g, FP8_LT_OUTER);
    float *a = (float *)(void *)(r->workspace + r->at.a_descale);
    float *b = (float *)(void *)(r->workspace + r->at.b_descale);
    fp8_status st = FP8_OK;

    if (!g->a_descale || g->a_descale_count != g->m) {
        FP8_TRY(fp8_cuda_repeat(r->d, a, g->a_descale, g->m));
        call.a_descale = a;
    }
    if (!g->b_descale || g->b_descale_count != g->n) {
        FP8_TRY(fp8_cuda_repeat(r->d, b, g->b_descale, g->n));
        call.b_descale = b;
    }
    give_workspace(r, &call);
    FP8_TRY(fp8_lt_run(r->d, &call, found));
done:
    return st;
}

/* dst [rows, row_bytes], rows dst_stride bytes apart, from rows src_stride bytes apart. */
static fp8_status copy_rows(fp8_device *d, void *dst, size_t dst_stride, const void *src,
                            size_t src_stride, size_t row_bytes, int64_t rows) {
    fp8_status st = FP8_OK;
    FP8_TRY_CUDA(cudaMemcpy2DAsync(dst, dst_stride, src, src_stride, row_bytes, (size_t)rows,
                                   cudaMemcpyDeviceToDevice, fp8_device_stream(d)));
done:
    return st;
}

/* The descales of A's rows [row, row + rows) as cuBLASLt reads them: [groups][rows, padded]. */
static fp8_status block_descales(const gemm_run *r, const float **out, int64_t row, int64_t rows) {
    const fp8_gemm *g = r->g;
    const float *given = g->a_descale + row;
    const int64_t stride = up_to(rows, ROW_STEP);
    float *packed = (float *)(void *)(r->workspace + r->at.a_descale);

    *out = given;
    if (g->a_descale_ld == stride && rows == stride && (uintptr_t)given % 16 == 0) return FP8_OK;
    *out = packed;
    return copy_rows(r->d, packed, (size_t)stride * sizeof *packed, given,
                     (size_t)g->a_descale_ld * sizeof *given, (size_t)rows * sizeof *given,
                     groups_of(g));
}

/* Makes `part`, a copy of g, the product of rows [row, row + rows), with padding if need be. */
static fp8_status cut_rows(const gemm_run *r, fp8_gemm *part, fp8_lt_call *call, int64_t row,
                           int64_t rows) {
    const fp8_gemm *g = r->g;
    const size_t size = fp8_dtype_size(g->a_dtype);
    const char *a = (const char *)g->a + (size_t)(row * g->lda) * size;
    fp8_status st = FP8_OK;

    *part = *g;
    part->m = rows;
    part->a = a;
    if (r->way != WAY_BLOCKS) goto done;
    call->scaling = FP8_LT_BLOCKS;
    call->b_descale = g->b_descale;
    FP8_TRY(block_descales(r, &call->a_descale, row, rows));
    if (rows % ROW_STEP == 0) goto done;
    part->m = up_to(rows, ROW_STEP); /* what the added rows hold does not matter */
    part->a = r->workspace + r->at.padded;
    part->lda = g->k;
    FP8_TRY(copy_rows(r->d, r->workspace + r->at.padded, (size_t)g->k * size, a,
                      (size_t)g->lda * size, (size_t)g->k * size, rows));
done:
    return st;
}

/* One pass of rows: F32 sums, then the store. */
static fp8_status run_pass(const gemm_run *r, int64_t row, int64_t rows) {
    const fp8_gemm *g = r->g;
    const int in_place = sums_in_place(g, r->way);
    fp8_gemm part;
    fp8_lt_call call = {.g = &part, .d_dtype = FP8_DTYPE_F32, .c_dtype = FP8_DTYPE_F32, .alpha = 1};
    fp8_status st = FP8_OK;
    int found = 0;

    if (g->k == 0) {
        FP8_TRY(fp8_cuda_gemm_store(r->d, g, NULL, 0, 0, row, rows));
        goto done;
    }
    FP8_TRY(cut_rows(r, &part, &call, row, rows));
    call.d = in_place ? (void *)((float *)g->d + row * g->ldd)
                      : (void *)(r->workspace + r->at.sums);
    call.ldd = in_place ? g->ldd : g->n;
    call.d_stride = in_place ? g->d_stride : part.m * g->n;
    give_workspace(r, &call);
    FP8_TRY(fp8_lt_run(r->d, &call, &found));
    if (!found) {
        st = no_algorithm(&part);
        goto done;
    }
    FP8_TRY(fp8_cuda_gemm_store(r->d, g, call.d, call.ldd, call.d_stride, row, rows));
done:
    return st;
}

/* Rows from `row` on. */
static fp8_status run_after(const gemm_run *r, int64_t row) {
    const fp8_gemm *g = r->g;
    fp8_status st = FP8_OK;

    if (g->d_amax) FP8_TRY(fp8_device_fill(r->d, g->d_amax, 0, sizeof *g->d_amax));
    while (row < g->m) {
        int64_t rows = g->m - row < r->at.pass_rows ? g->m - row : r->at.pass_rows;
        if (r->way == WAY_BLOCKS && rows > PASS_ROWS) rows -= rows % ROW_STEP;
        FP8_TRY(run_pass(r, row, rows));
        row += rows;
    }
done:
    return st;
}

/* As many rows as cuBLASLt can store itself; *rows = how many, 0 when it has no algorithm. */
static fp8_status run_blocks(const gemm_run *r, int64_t *rows) {
    const fp8_gemm *g = r->g;
    const int64_t whole = g->m % ROW_STEP == 0 || g->m > PASS_ROWS ? g->m - g->m % ROW_STEP : 0;
    fp8_gemm part;
    fp8_lt_call call = whole_call(g, FP8_LT_BLOCKS);
    fp8_status st = FP8_OK;
    int found = 0;

    *rows = 0;
    if (whole == 0 || !stores_result(g)) goto done;
    call.g = &part;
    FP8_TRY(cut_rows(r, &part, &call, 0, whole));
    give_workspace(r, &call);
    FP8_TRY(fp8_lt_run(r->d, &call, &found));
    if (found) *rows = whole;
done:
    return st;
}

static fp8_status run_way(const gemm_run *r) {
    int64_t row = 0;
    fp8_status st = FP8_OK;
    int found = 0;

    if (r->way == WAY_DIRECT) FP8_TRY(run_direct(r, &found));
    if (r->way == WAY_OUTER) FP8_TRY(run_outer(r, &found));
    if (r->way == WAY_BLOCKS) FP8_TRY(run_blocks(r, &row));
    if (found) row = r->g->m;
    if (row == r->g->m) goto done;
    st = may_go_after(r->g, r->way) ? run_after(r, row) : no_algorithm(r->g);
done:
    return st;
}

fp8_status fp8_cuda_gemm_make(fp8_device *d, const fp8_gemm *g, void *workspace,
                              size_t workspace_bytes, fp8_lt_tuning *tuning) {
    const char *why = refuse(d, g);
    gemm_run r = {.d = d, .g = g, .way = choose_way(d, g), .workspace = workspace,
                  .bytes = workspace_bytes, .tuning = tuning};

    r.at = make_layout(g, r.way);
    if (why)
        return FP8_FAIL(FP8_EUNSUPPORTED, "gemm: %s (%s x %s on %s, m=%lld n=%lld k=%lld lda=%lld "
                        "ldb=%lld ldd=%lld b_is_kn=%d)", why, fp8_dtype_name(g->a_dtype),
                        fp8_dtype_name(g->b_dtype), fp8_device_name(d), (long long)g->m,
                        (long long)g->n, (long long)g->k, (long long)g->lda, (long long)g->ldb,
                        (long long)g->ldd, g->b_is_kn);
    if (r.way == WAY_DIRECT && !workspace && needs_no_workspace(g)) r.at = (gemm_layout){0};
    if (r.at.product > 0 && (!workspace || workspace_bytes < r.at.product))
        return FP8_FAIL(FP8_EINVAL, "gemm: workspace of %zu bytes, expected %zu",
                        workspace ? workspace_bytes : 0, fp8_cuda_gemm_workspace_size(d, g));
    return run_way(&r);
}

fp8_status fp8_cuda_gemm_run(fp8_device *d, const fp8_gemm *g, void *workspace,
                             size_t workspace_bytes) {
    if (g->backend == FP8_GEMM_SKINNY || takes_skinny(d, g)) return skinny_run(d, g);
    return fp8_cuda_gemm_make(d, g, workspace, workspace_bytes, NULL);
}
