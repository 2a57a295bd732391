/* quant/qkv_device.cuh - private: what the kernels of the heads of Q, K and V share: arguments, and
 * what a thread does with its 16 elements of a head. */
#ifndef FP8_QUANT_QKV_DEVICE_CUH
#define FP8_QUANT_QKV_DEVICE_CUH
#include "quant/produce_device.cuh"

namespace fp8 {

enum {
    UNIT = 2 * PIECE, /* elements a thread */
    PARTS = 3         /* q, k, v */
};

template <typename T> struct heads_args {
    const T *x, *weight;
    T *dense;
    uint8_t *codes;
    const float *scale;
    fp8_amax_slot *amax;
    int64_t x_token, x_head, dense_token, dense_head, codes_token, codes_head, codes_dim;
    int heads, padded, scale_stride; /* padded: heads, up to whole warps */
};

template <typename T> struct qkv_args {
    heads_args<T> part[PARTS];
    const float *cos, *sin;
    const int32_t *positions;
    const uint8_t *first;
    int dim, rotary;
    fp8_norm_kind norm;
    float eps, per_dim; /* per_dim = 1 / dim */
    bool rounded, e5m2;
};

template <typename T>
static __device__ __forceinline__ float norm_one(const qkv_args<T> &a, float x, float rstd,
                                                 float w) {
    float v = __fmul_rn(x, rstd);
    if (a.norm == FP8_NORM_RMS_PLUS) v = __fmul_rn(v, __fadd_rn(1.0f, w));
    else v = __fmul_rn(a.rounded ? round_to<T>(v) : v, w);
    return a.rounded ? round_to<T>(v) : v;
}

static __device__ __forceinline__ void rotate(float *a, float *b, float cos, float sin) {
    const float u = *a, v = *b;
    *a = __fsub_rn(__fmul_rn(u, cos), __fmul_rn(v, sin));
    *b = __fadd_rn(__fmul_rn(v, cos), __fmul_rn(u, sin));
}

/* Eight codes, dim_stride apart. */
static __device__ __forceinline__ void store_codes(uint8_t *to, int64_t dim_stride,
                                                   const float v[PIECE], float scale, bool e5m2) {
    const uint2 codes = {encode4<false>(v, scale, e5m2), encode4<false>(v + 4, scale, e5m2)};

    if (dim_stride == 1) {
        *reinterpret_cast<uint2 *>(to) = codes;
        return;
    }
#pragma unroll
    for (int k = 0; k < PIECE; k++)
        to[k * dim_stride] = (uint8_t)((k < 4 ? codes.x : codes.y) >> (k % 4 * 8));
}

/* What a thread holds of every head: elements at low .. low + 7 and high .. high + 7. */
struct unit {
    int low, high;
    bool there, turns;
};

template <typename T>
static __device__ __forceinline__ unit unit_of(const qkv_args<T> &a, int slot) {
    const int turning = a.rotary / UNIT;
    unit u = {slot * PIECE, slot * PIECE + a.rotary / 2, slot * UNIT < a.dim, slot < turning};
    if (!u.turns) {
        u.low = slot * UNIT;
        u.high = u.low + PIECE;
    }
    return u;
}

/* 1 / root mean square of a head, which `lanes` lanes have. */
template <typename T>
static __device__ __forceinline__ float head_rstd(const float (&v)[2][PIECE], const qkv_args<T> &a,
                                                  int lanes) {
    float part[2] = {};

#pragma unroll
    for (int k = 0; k < PIECE; k++) {
        part[0] = fmaf(v[0][k], v[0][k], part[0]);
        part[1] = fmaf(v[1][k], v[1][k], part[1]);
    }
    float sum = part[0] + part[1];
#pragma unroll
    for (int off = 16; off > 0; off /= 2)
        if (off < lanes) sum += __shfl_xor_sync(0xffffffffu, sum, off);
    return rsqrtf(fmaf(sum, a.per_dim, a.eps));
}

/* PLAIN: known to be neither rounded nor of 1 + w. */
template <bool PLAIN, typename T>
static __device__ __forceinline__ void norm_piece(float v[PIECE], const qkv_args<T> &a, float rstd,
                                                  const float w[PIECE]) {
    if constexpr (!PLAIN)
        if (a.norm != FP8_NORM_RMS || a.rounded) { /* told apart once for eight elements */
#pragma unroll
            for (int k = 0; k < PIECE; k++) v[k] = norm_one(a, v[k], rstd, w[k]);
            return;
        }
#pragma unroll
    for (int k = 0; k < PIECE; k++) v[k] = __fmul_rn(__fmul_rn(v[k], rstd), w[k]);
}

} /* namespace fp8 */
#endif
