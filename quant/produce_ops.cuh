/* quant/produce_ops.cuh - private: what a norm and an activation compute from one element, and the
 * arguments of their kernels. */
#ifndef FP8_QUANT_PRODUCE_OPS_CUH
#define FP8_QUANT_PRODUCE_OPS_CUH
#include "quant/produce_device.cuh"

namespace fp8 {

/* ---- norm ------------------------------------------------------------------------------------ */

template <typename T> struct norm_args {
    const T *x, *residual, *weight, *bias;
    T *h;
    int64_t x_stride, residual_stride, h_stride, rows, cols;
    fp8_norm_kind kind;
    float eps;
    bool rounded;
};

template <typename T>
static __device__ __forceinline__ float normalize(const norm_args<T> &a, float h, float w, float b,
                                                  float mean, float rstd) {
    if (a.kind == FP8_NORM_RMS) {
        const float v = __fmul_rn(h, rstd);
        return __fmul_rn(a.rounded ? round_to<T>(v) : v, w);
    }
    if (a.kind == FP8_NORM_RMS_PLUS)
        return __fmul_rn(__fmul_rn(h, rstd), __fadd_rn(1.0f, w));
    h = __fmul_rn(__fmul_rn(__fsub_rn(h, mean), rstd), w);
    return a.bias ? __fadd_rn(h, b) : h;
}

/* ---- activation ------------------------------------------------------------------------------ */

template <typename T> struct act_args {
    const T *x, *up;
    int64_t x_stride, up_stride, rows, cols;
    fp8_activation act;
    bool rounded;
};

/* x / (1 + 2^z) */
static __device__ __forceinline__ float gate(float x, float z) {
    float e, r;
    asm("ex2.approx.f32 %0, %1;" : "=f"(e) : "f"(z));
    asm("rcp.approx.f32 %0, %1;" : "=f"(r) : "f"(1.0f + e));
    return x * r;
}

/* The forms of core/mathfn.h: no cancellation near -1, -0 and NaN kept. */
template <int N>
static __device__ __forceinline__ void activate(float *v, fp8_activation act) {
    const float log2e = 1.44269504088896341f;
    switch (act) {
    case FP8_ACT_SILU:
#pragma unroll
        for (int k = 0; k < N; k++) v[k] = gate(v[k], -log2e * v[k]);
        return;
    case FP8_ACT_GELU_TANH:
#pragma unroll
        for (int k = 0; k < N; k++) {
            const float twice = -2.0f * 0.7978845608028654f * log2e;
            v[k] = gate(v[k], v[k] * fmaf(twice * 0.044715f, v[k] * v[k], twice));
        }
        return;
    case FP8_ACT_GELU_ERF:
#pragma unroll
        for (int k = 0; k < N; k++) v[k] *= 0.5f * (1.0f + erff(v[k] * 0.70710678118654752f));
        return;
    case FP8_ACT_RELU:
#pragma unroll
        for (int k = 0; k < N; k++) v[k] = v[k] < 0.0f ? 0.0f : v[k];
        return;
    }
}

template <typename T, int N>
static __device__ __forceinline__ void act_values(float *v, const float *up,
                                                  const act_args<T> &a) {
    activate<N>(v, a.act);
    if (!a.up) return;
#pragma unroll
    for (int k = 0; k < N; k++) v[k] = (a.rounded ? round_to<T>(v[k]) : v[k]) * up[k];
}

} /* namespace fp8 */
#endif
