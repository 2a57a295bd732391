/* quant/cast_device.cuh - private: one element in and out of FP8 on the device, 16-byte vectors,
 * and grids sized to the machine. Bit-equal to the scalar oracle in cast.c. */
#ifndef FP8_QUANT_CAST_DEVICE_CUH
#define FP8_QUANT_CAST_DEVICE_CUH
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <stdint.h>

#include "core/cuda_check.h"
#include "core/dtype.h"

namespace fp8 {

enum { VECTOR_BYTES = 16 };

/* What one thread loads or stores at once. */
template <typename T> struct alignas(VECTOR_BYTES) vector16 {
    enum { COUNT = VECTOR_BYTES / sizeof(T) };
    T at[COUNT];
};

static __device__ __forceinline__ float to_float(float x) { return x; }
static __device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
/* F16 NaN by hand: the conversion instruction drops its sign. */
static __device__ __forceinline__ float to_float(__half x) {
    const uint32_t u = __half_as_ushort(x);
    if ((u & 0x7fffu) > 0x7c00u) return __uint_as_float((u & 0x8000u) << 16 | 0x7fc00000u);
    return __half2float(x);
}

template <typename T> __device__ __forceinline__ T from_float(float x);
template <> __device__ __forceinline__ float from_float(float x) { return x; }
/* BF16 by hand: the conversion instruction drops the sign of a NaN, the oracle keeps it. */
template <> __device__ __forceinline__ __nv_bfloat16 from_float(float x) {
    const uint32_t u = __float_as_uint(x);
    const bool nan = (u & 0x7fffffffu) > 0x7f800000u;
    const uint32_t rounded = nan ? u | 0x400000u : u + 0x7fffu + (u >> 16 & 1u);
    return __ushort_as_bfloat16((unsigned short)(rounded >> 16));
}
template <> __device__ __forceinline__ __half from_float(float x) {
    const uint32_t u = __float_as_uint(x);
    if ((u & 0x7fffffffu) > 0x7f800000u)
        return __ushort_as_half((unsigned short)((u >> 16 & 0x8000u) | 0x7e00u));
    return __float2half_rn(x);
}

/* The 7 magnitude bits of cast(|p|). The instruction (8.9 and newer) saturates and rounds to
 * nearest even; below, the integer steps of fp8_from_f32. */
static __device__ __forceinline__ uint32_t encode_magnitude(float p, bool e5m2) {
    uint32_t u = __float_as_uint(p) & 0x7fffffffu;
    if (u > 0x7f800000u) return e5m2 ? 0x7eu : 0x7fu;
#if __CUDA_ARCH__ >= 890
    return __nv_cvt_float_to_fp8(__uint_as_float(u), __NV_SATFINITE, e5m2 ? __NV_E5M2 : __NV_E4M3);
#else
    const uint32_t drop = e5m2 ? 21 : 20, rebias = e5m2 ? 112u << 2 : 120u << 3;
    const uint32_t magic = e5m2 ? 0x43000000u : 0x46800000u;
    u = min(u, e5m2 ? 0x47600000u : 0x43e00000u);
    if (u < (e5m2 ? 0x38800000u : 0x3c800000u))
        return __float_as_uint(__fadd_rn(__uint_as_float(u), __uint_as_float(magic))) - magic;
    u += (1u << (drop - 1)) - 1u + (u >> drop & 1u);
    return (u >> drop) - rebias;
#endif
}

/* cast(x * scale). The sign is that of the operands: of a NaN product the device makes its own. */
static __device__ __forceinline__ uint8_t encode(float x, float scale, bool e5m2) {
    const uint32_t sign = (__float_as_uint(x) ^ __float_as_uint(scale)) >> 24 & 0x80u;
    return (uint8_t)(encode_magnitude(__fmul_rn(x, scale), e5m2) | sign);
}

/* Is one of the four codes a NaN, or E5M2's Inf? They are the last codes of their formats. */
static __device__ __forceinline__ bool any_special_code(uint32_t codes, bool e5m2) {
    return (((codes & 0x7f7f7f7fu) + (e5m2 ? 0x04040404u : 0x01010101u)) & 0x80808080u) != 0;
}

/* cast(v[k] * scale), the first in the low byte. A NaN's sign is as encode()'s, or 0. The
 * instruction makes every NaN 0x7f; E5M2's is 0x7e here. */
template <bool KEEP_NAN_SIGN>
static __device__ __forceinline__ uint32_t encode4(const float *v, float scale, bool e5m2) {
    uint32_t codes = 0;

#if __CUDA_ARCH__ >= 890
    const __nv_fp8_interpretation_t kind = e5m2 ? __NV_E5M2 : __NV_E4M3;
    const float2 low = make_float2(__fmul_rn(v[0], scale), __fmul_rn(v[1], scale));
    const float2 high = make_float2(__fmul_rn(v[2], scale), __fmul_rn(v[3], scale));
    uint32_t nans;

    codes = __nv_cvt_float2_to_fp8x2(low, __NV_SATFINITE, kind);
    codes |= (uint32_t)__nv_cvt_float2_to_fp8x2(high, __NV_SATFINITE, kind) << 16;
    if (!KEEP_NAN_SIGN && !e5m2) return codes;
    nans = ((codes & 0x7f7f7f7fu) + 0x01010101u) & 0x80808080u;
    if (nans == 0) return codes;
    codes ^= e5m2 ? nans >> 7 : 0u;
#pragma unroll
    for (int k = 0; k < 4; k++) {
        const uint32_t sign = (__float_as_uint(v[k]) ^ __float_as_uint(scale)) & 0x80000000u;
        if (KEEP_NAN_SIGN) codes |= nans & (0x80u << (8 * k)) & (sign >> (24 - 8 * k));
    }
#else
#pragma unroll
    for (int k = 0; k < 4; k++) {
        uint32_t code = encode(v[k], scale, e5m2);
        if (!KEEP_NAN_SIGN && (code & 0x7fu) == (e5m2 ? 0x7eu : 0x7fu)) code &= 0x7fu;
        codes |= code << (8 * k);
    }
#endif
    return codes;
}

/* E5M2 is the upper half of an F16; so is E4M3 with its exponent moved up one bit, 2^8 too
 * small. */
static __device__ __forceinline__ float decode(uint8_t code, bool e5m2) {
    const uint32_t sign = code & 0x80u, magnitude = code & 0x7fu;
    if (e5m2 && magnitude > 0x7cu) /* the device's conversion drops sign and payload of a NaN */
        return __uint_as_float(sign << 24 | 0x7fc00000u | (code & 3u) << 21);
    if (e5m2) return __half2float(__ushort_as_half((unsigned short)(code << 8)));
    if (magnitude == 0x7fu) return __uint_as_float(sign << 24 | 0x7fc00000u);
    return __half2float(__ushort_as_half((unsigned short)(sign << 8 | magnitude << 7))) * 256.0f;
}

/* out[k] = value of the code in byte k. */
static __device__ __forceinline__ void decode4(float *out, uint32_t codes, bool e5m2) {
#if __CUDA_ARCH__ >= 890
    if (!any_special_code(codes, e5m2)) {
        const __nv_fp8_interpretation_t kind = e5m2 ? __NV_E5M2 : __NV_E4M3;
        const __half2_raw low =
            __nv_cvt_fp8x2_to_halfraw2((__nv_fp8x2_storage_t)(codes & 0xffffu), kind);
        const __half2_raw high =
            __nv_cvt_fp8x2_to_halfraw2((__nv_fp8x2_storage_t)(codes >> 16), kind);
        const float2 a = __half22float2(low), b = __half22float2(high);
        out[0] = a.x, out[1] = a.y, out[2] = b.x, out[3] = b.y;
        return;
    }
#endif
#pragma unroll
    for (int k = 0; k < 4; k++) out[k] = decode((uint8_t)(codes >> (8 * k)), e5m2);
}

/* value * descale. A NaN code keeps its sign, which the device's product would drop. */
static __device__ __forceinline__ float scaled(float value, float descale) {
    return value != value ? value : __fmul_rn(value, descale);
}

/* Four values rounded; unlike from_float's, a NaN loses its sign. */
static __device__ __forceinline__ void narrow4(float *out, const float *v) {
#pragma unroll
    for (int k = 0; k < 4; k++) out[k] = v[k];
}
static __device__ __forceinline__ void narrow4(__nv_bfloat16 *out, const float *v) {
    const __nv_bfloat162 low = __floats2bfloat162_rn(v[0], v[1]);
    const __nv_bfloat162 high = __floats2bfloat162_rn(v[2], v[3]);
    out[0] = low.x, out[1] = low.y, out[2] = high.x, out[3] = high.y;
}
static __device__ __forceinline__ void narrow4(__half *out, const float *v) {
    const __half2 low = __floats2half2_rn(v[0], v[1]), high = __floats2half2_rn(v[2], v[3]);
    out[0] = low.x, out[1] = low.y, out[2] = high.x, out[3] = high.y;
}

/* Bits of a non-negative float order like the float, so an integer maximum is exact; Inf and NaN
 * lie above every finite value. */
static __device__ __forceinline__ uint32_t magnitude_bits(float x) {
    return __float_as_uint(x) & 0x7fffffffu;
}
static __device__ __forceinline__ bool is_finite_bits(uint32_t u) { return u < 0x7f800000u; }

static __device__ __forceinline__ uint32_t warp_max(uint32_t v) {
#if __CUDA_ARCH__ >= 800
    return __reduce_max_sync(0xffffffffu, v);
#else
    for (int off = 16; off > 0; off >>= 1) v = max(v, __shfl_xor_sync(0xffffffffu, v, off));
    return v;
#endif
}

static __device__ __forceinline__ uint32_t warp_sum(uint32_t v) {
    for (int off = 16; off > 0; off >>= 1) v += __shfl_xor_sync(0xffffffffu, v, off);
    return v;
}

static inline bool aligned16(const void *p) { return (uintptr_t)p % VECTOR_BYTES == 0; }

/* Blocks for `units` of work, at most per_sm of them on each multiprocessor of the current
 * device. */
static inline fp8_status grid_for(int64_t units, int per_sm, unsigned *blocks) {
    fp8_status st = FP8_OK;
    int device = 0, sms = 0;
    int64_t most;

    FP8_TRY_CUDA(cudaGetDevice(&device));
    FP8_TRY_CUDA(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device));
    most = (int64_t)sms * per_sm;
    *blocks = (unsigned)(units < 1 ? 1 : units < most ? units : most);
done:
    return st;
}

} /* namespace fp8 */

/* Runs the statement with T the element type that `dtype` (F32, BF16 or F16) names. */
#define FP8_FOR_REAL(dtype, ...)                                                                   \
    do {                                                                                           \
        if ((dtype) == FP8_DTYPE_F32) {                                                            \
            using T = float;                                                                       \
            __VA_ARGS__;                                                                           \
        } else if ((dtype) == FP8_DTYPE_BF16) {                                                    \
            using T = __nv_bfloat16;                                                               \
            __VA_ARGS__;                                                                           \
        } else {                                                                                   \
            using T = __half;                                                                      \
            __VA_ARGS__;                                                                           \
        }                                                                                          \
    } while (0)
#endif
