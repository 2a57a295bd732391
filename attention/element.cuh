/* attention/element.cuh - private: eight elements of a row at once, of any dtype, in and out of
 * F32; warp and block reductions. A dtype is a run-time switch here: these kernels wait for memory,
 * and the branch is the same for all threads. */
#ifndef FP8_ATTENTION_ELEMENT_CUH
#define FP8_ATTENTION_ELEMENT_CUH
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <stdint.h>

#include "core/dtype.h"

namespace attention {

enum { VEC = 8, WARP = 32 };

static __device__ __forceinline__ float widen(float x) { return x; }
static __device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
static __device__ __forceinline__ float widen(__half x) { return __half2float(x); }
static __device__ __forceinline__ float widen(__nv_fp8_e4m3 x) { return static_cast<float>(x); }

/* Rounded to nearest even; E4M3 saturates. */
static __device__ __forceinline__ void narrow(float *to, float x) { *to = x; }
static __device__ __forceinline__ void narrow(__nv_bfloat16 *to, float x) {
    *to = __float2bfloat16_rn(x);
}
static __device__ __forceinline__ void narrow(__half *to, float x) { *to = __float2half_rn(x); }
static __device__ __forceinline__ void narrow(__nv_fp8_e4m3 *to, float x) {
    to->__x = __nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E4M3);
}

/* What rounding to E4M3 leaves of x. */
static __device__ __forceinline__ float round_e4m3(float x) {
    __nv_fp8_e4m3 code;
    narrow(&code, x);
    return widen(code);
}

template <typename T> struct alignas(sizeof(T) * VEC > 16 ? 16 : sizeof(T) * VEC) eight {
    T at[VEC];
};

/* x[0 .. n) = p[0 .. n), the rest 0. whole: n is VEC and p on the vector's alignment. */
template <typename T>
static __device__ __forceinline__ void load_as(float x[VEC], const T *p, int64_t n, bool whole) {
    if (whole) {
        const eight<T> v = *reinterpret_cast<const eight<T> *>(p);
#pragma unroll
        for (int i = 0; i < VEC; i++) x[i] = widen(v.at[i]);
    } else {
#pragma unroll
        for (int i = 0; i < VEC; i++) x[i] = i < n ? widen(p[i]) : 0.0f;
    }
}

template <typename T>
static __device__ __forceinline__ void store_as(T *p, const float x[VEC], int64_t n, bool whole) {
    eight<T> v;
#pragma unroll
    for (int i = 0; i < VEC; i++) narrow(&v.at[i], x[i]);
    if (whole) {
        *reinterpret_cast<eight<T> *>(p) = v;
    } else {
#pragma unroll
        for (int i = 0; i < VEC; i++)
            if (i < n) p[i] = v.at[i];
    }
}

/* Elements at .. at + n of an array of `dtype`: E4M3, BF16, F16 or F32. */
static __device__ __forceinline__ void load8(float x[VEC], const void *p, fp8_dtype dtype,
                                             int64_t at, int64_t n, bool whole) {
    switch (dtype) {
    case FP8_DTYPE_E4M3:
        load_as(x, static_cast<const __nv_fp8_e4m3 *>(p) + at, n, whole);
        break;
    case FP8_DTYPE_BF16:
        load_as(x, static_cast<const __nv_bfloat16 *>(p) + at, n, whole);
        break;
    case FP8_DTYPE_F16:
        load_as(x, static_cast<const __half *>(p) + at, n, whole);
        break;
    default: load_as(x, static_cast<const float *>(p) + at, n, whole);
    }
}

static __device__ __forceinline__ void store8(void *p, fp8_dtype dtype, int64_t at,
                                              const float x[VEC], int64_t n, bool whole) {
    switch (dtype) {
    case FP8_DTYPE_E4M3:
        store_as(static_cast<__nv_fp8_e4m3 *>(p) + at, x, n, whole);
        break;
    case FP8_DTYPE_BF16:
        store_as(static_cast<__nv_bfloat16 *>(p) + at, x, n, whole);
        break;
    case FP8_DTYPE_F16: store_as(static_cast<__half *>(p) + at, x, n, whole); break;
    default: store_as(static_cast<float *>(p) + at, x, n, whole);
    }
}

/* One element likewise. */
static __device__ __forceinline__ float load1(const void *p, fp8_dtype dtype, int64_t at) {
    switch (dtype) {
    case FP8_DTYPE_E4M3: return widen(static_cast<const __nv_fp8_e4m3 *>(p)[at]);
    case FP8_DTYPE_BF16: return widen(static_cast<const __nv_bfloat16 *>(p)[at]);
    case FP8_DTYPE_F16: return widen(static_cast<const __half *>(p)[at]);
    default: return static_cast<const float *>(p)[at];
    }
}

/* x = max or sum over the block, in every thread, in an order of its own. NaN passes through the
 * sum only. `shared` holds a float a warp. */
template <bool MAX>
static __device__ float block_reduce(float x, float *shared) {
    const int num_warps = blockDim.x / WARP;
    for (int off = WARP / 2; off > 0; off >>= 1) {
        const float y = __shfl_xor_sync(0xffffffffu, x, off);
        x = MAX ? fmaxf(x, y) : x + y;
    }
    if (num_warps == 1) return x;
    __syncthreads(); /* NOTE: the last use of `shared` is over */
    if (threadIdx.x % WARP == 0) shared[threadIdx.x / WARP] = x;
    __syncthreads();
    x = shared[0];
    for (int i = 1; i < num_warps; i++) x = MAX ? fmaxf(x, shared[i]) : x + shared[i];
    return x;
}

/* *slot = max(*slot, x), x >= 0; NaN is passed over. Bits of such floats order like them: an
 * integer maximum is the same in any order. Most find nothing larger than what is there: look
 * before the atomic. */
static __device__ __forceinline__ void raise_amax(float *slot, float x) {
    if (x > *reinterpret_cast<volatile float *>(slot))
        atomicMax(reinterpret_cast<unsigned *>(slot), __float_as_uint(x));
}

} /* namespace attention */
#endif
