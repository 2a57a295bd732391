/* Activations, alone or gated, on the CPU, for produce_rows.c. */
#include <math.h>

#include "core/mathfn.h"
#include "quant/produce_impl.h"
#include "quant/simd.h"

enum { CHUNK = FP8_PRODUCE_CHUNK };

FP8_VECTOR static void apply(float *x, int64_t n, fp8_activation act) {
    switch (act) {
    case FP8_ACT_SILU:
        for (int64_t i = 0; i < n; i++) x[i] = fp8_siluf(x[i]);
        return;
    case FP8_ACT_GELU_TANH:
        for (int64_t i = 0; i < n; i++) x[i] = fp8_gelu_tanhf(x[i]);
        return;
    case FP8_ACT_GELU_ERF:
        for (int64_t i = 0; i < n; i++) x[i] *= 0.5f * (1.0f + erff(x[i] * 0.70710678118654752f));
        return;
    case FP8_ACT_RELU:
        for (int64_t i = 0; i < n; i++) x[i] = x[i] < 0.0f ? 0.0f : x[i];
        return;
    }
}

FP8_VECTOR static void multiply(float *restrict x, const float *restrict y, int64_t n) {
    for (int64_t i = 0; i < n; i++) x[i] *= y[i];
}

static void act_values(const void *op, int64_t row, const fp8_row_stats *stats, int64_t col,
                       int64_t n, float *v) {
    const fp8_act *a = op;
    const int64_t size = (int64_t)fp8_dtype_size(a->dtype);
    _Alignas(64) float up[CHUNK];

    (void)stats;
    fp8_simd_best()->widen(v, (const char *)a->x + (row * a->x_stride + col) * size, a->dtype, n);
    apply(v, n, a->act);
    if (!a->up) return;
    if (a->rounded) fp8_cpu_round(v, a->dtype, n);
    fp8_simd_best()->widen(up, (const char *)a->up + (row * a->up_stride + col) * size, a->dtype,
                           n);
    multiply(v, up, n);
}

fp8_status fp8_cpu_produce_act(fp8_device *d, const fp8_sink *out, const fp8_act *act) {
    const fp8_row_source source = {.op = act, .dtype = act->dtype, .rows = act->rows,
                                   .cols = act->cols, .values = act_values};
    return fp8_cpu_produce_rows(d, out, &source);
}
