/* Matrix products: the checks, and which half runs. */
#include "quant/gemm.h"

#include "quant/cuda_ops.h"
#include "quant/gemm_cpu.h"

static int is_operand(fp8_dtype t) {
    return t == FP8_DTYPE_F32 || t == FP8_DTYPE_BF16 || t == FP8_DTYPE_F16 ||
           t == FP8_DTYPE_E4M3 || t == FP8_DTYPE_E5M2;
}

static int is_real(fp8_dtype t) { return is_operand(t) && fp8_dtype_size(t) > 1; }
static int is_result(fp8_dtype t) { return is_real(t) || t == FP8_DTYPE_E4M3; }

static int64_t batch_of(const fp8_gemm *g) { return g->batch > 1 ? g->batch : 1; }

/* Rows of `ld` elements, `cols` of them used, must not overlap nor run past what int64 counts. */
static int layout_fits(int64_t rows, int64_t cols, int64_t ld, int64_t stride, int64_t batch) {
    return ld >= cols && ld <= INT64_MAX / 16 / (rows + 1) &&
           (batch == 1 || (stride >= 0 && stride <= INT64_MAX / 16 / batch));
}

static fp8_status check_shape(const fp8_gemm *g) {
    const int64_t limit = INT64_C(1) << 40, batch = batch_of(g);
    const int64_t b_rows = g->b_is_kn ? g->k : g->n, b_cols = g->b_is_kn ? g->n : g->k;
    const int64_t d_cols = fp8_gemm_is_gated(g->activation) ? g->n / 2 : g->n;

    if (fp8_gemm_is_gated(g->activation) && g->n % 2)
        return FP8_FAIL(FP8_EINVAL, "gemm: n=%lld with a gate, expected even", (long long)g->n);
    if (g->m < 0 || g->n < 0 || g->k < 0 || g->batch < 0 || g->m > limit || g->n > limit ||
        g->k > limit)
        return FP8_FAIL(FP8_EINVAL, "gemm: m=%lld n=%lld k=%lld batch=%lld", (long long)g->m,
                        (long long)g->n, (long long)g->k, (long long)g->batch);
    if (!layout_fits(g->m, g->k, g->lda, g->a_stride, batch) ||
        !layout_fits(b_rows, b_cols, g->ldb, g->b_stride, batch) ||
        !layout_fits(g->m, d_cols, g->ldd, g->d_stride, batch))
        return FP8_FAIL(FP8_EINVAL,
                        "gemm: lda=%lld ldb=%lld ldd=%lld, expected at least %lld, %lld, %lld "
                        "(batch strides %lld, %lld, %lld)",
                        (long long)g->lda, (long long)g->ldb, (long long)g->ldd, (long long)g->k,
                        (long long)b_cols, (long long)d_cols, (long long)g->a_stride,
                        (long long)g->b_stride, (long long)g->d_stride);
    return FP8_OK;
}

static fp8_status check_types(const fp8_gemm *g) {
    if (!is_operand(g->a_dtype) || !is_operand(g->b_dtype) || !is_result(g->d_dtype) ||
        (g->bias && !is_real(g->bias_dtype)) || (g->residual && !is_real(g->residual_dtype)))
        return FP8_FAIL(FP8_EINVAL, "gemm: %s x %s -> %s with bias %s, residual %s",
                        fp8_dtype_name(g->a_dtype), fp8_dtype_name(g->b_dtype),
                        fp8_dtype_name(g->d_dtype),
                        g->bias ? fp8_dtype_name(g->bias_dtype) : "none",
                        g->residual ? fp8_dtype_name(g->residual_dtype) : "none");
    return FP8_OK;
}

static fp8_status check_descales(const fp8_gemm *g) {
    const int64_t groups = (g->k + FP8_GEMM_BLOCK - 1) / FP8_GEMM_BLOCK;

    if (g->scaling == FP8_GEMM_BLOCKS) {
        if (!g->a_descale || !g->b_descale || g->a_descale_ld < g->m || g->b_descale_ld < groups)
            return FP8_FAIL(FP8_EINVAL,
                            "gemm: block descales%s with strides %lld and %lld, expected at least "
                            "%lld and %lld", g->a_descale && g->b_descale ? "" : " that are NULL",
                            (long long)g->a_descale_ld, (long long)g->b_descale_ld,
                            (long long)g->m, (long long)groups);
        return FP8_OK;
    }
    if ((g->a_descale && g->a_descale_count != 1 && g->a_descale_count != g->m) ||
        (g->b_descale && g->b_descale_count != 1 && g->b_descale_count != g->n))
        return FP8_FAIL(FP8_EINVAL,
                        "gemm: %lld and %lld descales, expected 1 or %lld, and 1 or %lld",
                        (long long)g->a_descale_count, (long long)g->b_descale_count,
                        (long long)g->m, (long long)g->n);
    return FP8_OK;
}

static fp8_status check_store(const fp8_gemm *g) {
    if (g->residual && !layout_fits(g->m, g->n, g->ldr, g->r_stride, batch_of(g)))
        return FP8_FAIL(FP8_EINVAL, "gemm: residual with ldr=%lld, expected at least %lld "
                        "(batch stride %lld)", (long long)g->ldr, (long long)g->n,
                        (long long)g->r_stride);
    if (g->residual && g->residual == g->d &&
        (g->residual_dtype != g->d_dtype || g->ldr != g->ldd))
        return FP8_FAIL(FP8_EINVAL, "gemm: a residual %s ldr=%lld in the place of d, which is %s "
                        "ldd=%lld", fp8_dtype_name(g->residual_dtype), (long long)g->ldr,
                        fp8_dtype_name(g->d_dtype), (long long)g->ldd);
    if (g->residual && g->activation != FP8_GEMM_IDENTITY)
        return FP8_FAIL(FP8_EINVAL, "gemm: an activation and a residual in one product");
    if (g->d_scale && g->d_dtype != FP8_DTYPE_E4M3)
        return FP8_FAIL(FP8_EINVAL, "gemm: d_scale with d of %s, expected F8_E4M3",
                        fp8_dtype_name(g->d_dtype));
    return FP8_OK;
}

fp8_status fp8_gemm_check(const fp8_gemm *g) {
    fp8_status st;
    FP8_TRY(check_shape(g));
    FP8_TRY(check_types(g));
    FP8_TRY(check_descales(g));
    FP8_TRY(check_store(g));
done:
    return st;
}

int fp8_gemm_supported(const fp8_device *d, const fp8_gemm *g) {
    if (fp8_gemm_check(g) != FP8_OK) return 0;
    return FP8_ON_CUDA(d) ? (int)FP8_CUDA_CALL(fp8_cuda_gemm_supported(d, g)) : 1;
}

int fp8_gemm_gates(const fp8_device *d, const fp8_gemm *g) {
    if (fp8_gemm_check(g) != FP8_OK || !FP8_ON_CUDA(d)) return 0;
    return (int)FP8_CUDA_CALL(fp8_cuda_gemm_gates(d, g));
}

size_t fp8_gemm_workspace_size(const fp8_device *d, const fp8_gemm *g) {
    if (FP8_ON_CUDA(d)) return (size_t)FP8_CUDA_CALL(fp8_cuda_gemm_workspace_size(d, g));
    return fp8_cpu_gemm_workspace_size(fp8_simd_best(), fp8_pool_threads(fp8_device_pool(d)), g);
}

fp8_status fp8_gemm_run(fp8_device *d, const fp8_gemm *g, void *workspace,
                        size_t workspace_bytes) {
    fp8_status st = FP8_OK;

    FP8_TRY(fp8_gemm_check(g));
    if (g->m == 0 || g->n == 0) goto done;
    if (!g->d || (g->k > 0 && (!g->a || !g->b))) {
        st = FP8_FAIL(FP8_EINVAL, "gemm: an operand is NULL");
        goto done;
    }
    if (FP8_ON_CUDA(d)) st = FP8_CUDA_CALL(fp8_cuda_gemm_run(d, g, workspace, workspace_bytes));
    else
        st = fp8_cpu_gemm_run(fp8_simd_best(), fp8_inner_best(), fp8_device_pool(d), g, workspace,
                              workspace_bytes);
done:
    return st;
}

static fp8_status tune(fp8_device *d, const fp8_gemm *g, void *workspace, size_t workspace_bytes,
                       int same_bits, fp8_gemm_tuned *tuned) {
    fp8_gemm_tuned found = {0};
    fp8_status st = FP8_OK;

    FP8_TRY(fp8_gemm_check(g));
    if (g->m > 0 && g->n > 0 && FP8_ON_CUDA(d))
        FP8_TRY(FP8_CUDA_CALL(fp8_cuda_gemm_tune(d, g, workspace, workspace_bytes, same_bits,
                                                 &found)));
done:
    if (tuned) *tuned = found;
    (void)workspace, (void)workspace_bytes, (void)same_bits;
    return st;
}

fp8_status fp8_gemm_tune(fp8_device *d, const fp8_gemm *g, void *workspace, size_t workspace_bytes,
                         fp8_gemm_tuned *tuned) {
    return tune(d, g, workspace, workspace_bytes, 0, tuned);
}

fp8_status fp8_gemm_tune_same_bits(fp8_device *d, const fp8_gemm *g, void *workspace,
                                   size_t workspace_bytes, fp8_gemm_tuned *tuned) {
    return tune(d, g, workspace, workspace_bytes, 1, tuned);
}
