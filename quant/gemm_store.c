/* The ends of the CPU matrix product: rows into F32, and sums into D. */
#include "core/mathfn.h"
#include "quant/gemm_cpu.h"

/* x[i] *= the descale of its group, for columns k0 ..; descale[0] is that of the first. */
static void scale_groups(float *x, int64_t n, const float *descale, int64_t stride) {
    for (int64_t i = 0; i < n; i++) x[i] *= descale[i / FP8_GEMM_BLOCK * stride];
}

void fp8_gemm_widen_a(const fp8_simd *s, const fp8_gemm *g, int64_t batch, int64_t row, int64_t k0,
                      float *out, int64_t k) {
    s->widen(out, fp8_gemm_at(g->a, g->a_dtype, g->lda, g->a_stride, batch, row, k0), g->a_dtype,
             k);
    if (g->scaling == FP8_GEMM_BLOCKS)
        scale_groups(out, k, g->a_descale + k0 / FP8_GEMM_BLOCK * g->a_descale_ld + row,
                     g->a_descale_ld);
}

void fp8_gemm_widen_b(const fp8_simd *s, const fp8_gemm *g, int64_t batch, int64_t row,
                      int64_t col0, float *out, int64_t n) {
    s->widen(out, fp8_gemm_at(g->b, g->b_dtype, g->ldb, g->b_stride, batch, row, col0), g->b_dtype,
             n);
    if (g->scaling != FP8_GEMM_BLOCKS) return;
    if (!g->b_is_kn) {
        scale_groups(out, n, g->b_descale + row / FP8_GEMM_BLOCK * g->b_descale_ld +
                                 col0 / FP8_GEMM_BLOCK, 1);
        return;
    }
    for (int64_t i = 0; i < n; i++) /* [k, n]: columns may begin inside a block */
        out[i] *= g->b_descale[(col0 + i) / FP8_GEMM_BLOCK * g->b_descale_ld +
                               row / FP8_GEMM_BLOCK];
}

void fp8_gemm_begin(const fp8_gemm *g) {
    if (g->d_amax) *g->d_amax = 0;
}

FP8_VECTOR static void gelu(float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++) x[i] = fp8_gelu_tanhf(x[i]);
}

/* *slot = max(*slot, value): a maximum has no order, so threads leave no trace. */
static void join_amax(float *slot, float value) {
    float seen;
    __atomic_load(slot, &seen, __ATOMIC_RELAXED);
    while (value > seen && !__atomic_compare_exchange(slot, &seen, &value, 1, __ATOMIC_RELAXED,
                                                      __ATOMIC_RELAXED)) {}
}

static void add_row(const fp8_simd *s, const fp8_gemm *g, float *out, const char *row, int64_t n) {
    _Alignas(64) float more[FP8_GEMM_STORE_MAX];
    s->widen(more, row, g->residual_dtype, n);
    for (int64_t i = 0; i < n; i++) out[i] += more[i];
}

void fp8_gemm_store(const fp8_simd *s, const fp8_gemm *g, int64_t batch, int64_t row, int64_t col,
                    const float *acc, int64_t n) {
    const int in_sums = g->scaling == FP8_GEMM_BLOCKS; /* descales are in the sums already */
    const float *const a = in_sums ? NULL : g->a_descale, *const b = in_sums ? NULL : g->b_descale;
    const int per_column = b && g->b_descale_count > 1;
    const float a_row = a ? a[g->a_descale_count > 1 ? row : 0] : 1.0f;
    const float b_all = b && !per_column ? b[0] : 1.0f;
    char *const d = (char *)g->d + (batch * g->d_stride + row * g->ldd + col) *
                                       (int64_t)fp8_dtype_size(g->d_dtype);
    _Alignas(64) float bias[FP8_GEMM_STORE_MAX], out[FP8_GEMM_STORE_MAX];
    uint32_t nonfinite = 0;

    if (g->bias) {
        const int64_t size = (int64_t)fp8_dtype_size(g->bias_dtype);
        s->widen(bias, (const char *)g->bias + col * size, g->bias_dtype, n);
    }
    s->finish(out, acc, g->alpha * a_row * b_all, per_column ? b + col : NULL,
              g->bias ? bias : NULL, n);
    if (g->activation == FP8_GEMM_GELU_TANH) gelu(out, n);
    if (g->residual)
        add_row(s, g, out, fp8_gemm_at(g->residual, g->residual_dtype, g->ldr, g->r_stride, batch,
                                       row, col), n);
    if (g->d_amax) join_amax(g->d_amax, s->amax(out, n, &nonfinite));
    if (g->d_dtype == FP8_DTYPE_E4M3)
        s->encode((uint8_t *)d, g->d_dtype, out, n, g->d_scale ? *g->d_scale : 1.0f);
    else s->narrow(d, g->d_dtype, out, n);
}
