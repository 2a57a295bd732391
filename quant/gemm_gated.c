/* Gated products on the CPU: gate and up meet only when both are whole, so that sums in F32 come
 * first. */
#include "core/mathfn.h"
#include "quant/gemm_cpu.h"

enum { ALIGN_BYTES = 256 };

/* g's product with its bias, ungated, as F32 [batch, m, n] in `sums`. */
static fp8_gemm sums_of(const fp8_gemm *g, float *sums) {
    fp8_gemm plain = *g;
    plain.d = sums;
    plain.d_dtype = FP8_DTYPE_F32;
    plain.ldd = g->n;
    plain.d_stride = g->m * g->n;
    plain.activation = FP8_GEMM_IDENTITY;
    plain.d_scale = NULL;
    plain.d_amax = NULL;
    return plain;
}

static size_t sums_bytes(const fp8_gemm *g) {
    const size_t batch = g->batch > 1 ? (size_t)g->batch : 1;
    const size_t bytes = batch * (size_t)g->m * (size_t)g->n * sizeof(float);
    return (bytes + ALIGN_BYTES - 1) / ALIGN_BYTES * ALIGN_BYTES;
}

size_t fp8_cpu_gemm_gated_size(const fp8_simd *s, int32_t threads, const fp8_gemm *g) {
    const fp8_gemm plain = sums_of(g, NULL);
    return sums_bytes(g) + fp8_cpu_gemm_workspace_size(s, threads, &plain);
}

typedef struct gated_job {
    const fp8_simd *s;
    fp8_gemm last; /* the store alone: v as it is */
    const float *sums;
    int64_t half;
    int silu;
} gated_job;

static fp8_status store_rows(void *ctx, int64_t begin, int64_t end, int32_t worker) {
    const gated_job *j = ctx;
    _Alignas(64) float v[FP8_GEMM_STORE_MAX];

    (void)worker;
    for (int64_t r = begin; r < end; r++)
        for (int64_t c = 0; c < j->half; c += FP8_GEMM_STORE_MAX) {
            const float *gate = j->sums + 2 * r * j->half + c, *up = gate + j->half;
            const int64_t n = j->half - c < FP8_GEMM_STORE_MAX ? j->half - c : FP8_GEMM_STORE_MAX;
            for (int64_t i = 0; i < n; i++)
                v[i] = (j->silu ? fp8_siluf(gate[i]) : fp8_gelu_tanhf(gate[i])) * up[i];
            fp8_gemm_store(j->s, &j->last, r / j->last.m, r % j->last.m, c, v, n);
        }
    return FP8_OK;
}

fp8_status fp8_cpu_gemm_gated(const fp8_simd *s, fp8_inner inner, fp8_pool *p, const fp8_gemm *g,
                              void *workspace, size_t workspace_bytes) {
    const size_t want = fp8_cpu_gemm_gated_size(s, fp8_pool_threads(p), g);
    const fp8_gemm plain = sums_of(g, workspace);
    gated_job j = {s, *g, workspace, g->n / 2, g->activation == FP8_GEMM_SWIGLU};
    fp8_status st;

    if (!workspace || workspace_bytes < want)
        return FP8_FAIL(FP8_EINVAL, "gemm: workspace of %zu bytes, expected %zu",
                        workspace ? workspace_bytes : 0, want);
    j.last.n = j.half;
    j.last.alpha = 1;
    j.last.scaling = FP8_GEMM_ROWS;
    j.last.a_descale = j.last.b_descale = NULL;
    j.last.bias = NULL;
    j.last.activation = FP8_GEMM_IDENTITY;
    FP8_TRY(fp8_cpu_gemm_run(s, inner, p, &plain, (char *)workspace + sums_bytes(g),
                             workspace_bytes - sums_bytes(g)));
    fp8_gemm_begin(g);
    FP8_TRY(fp8_parallel_for(p, g->m * (g->batch > 1 ? g->batch : 1), 1, store_rows, &j));
done:
    return st;
}
