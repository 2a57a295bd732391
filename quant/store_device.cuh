/* quant/store_device.cuh - private: what the stores of products share on the device. */
#ifndef FP8_QUANT_STORE_DEVICE_CUH
#define FP8_QUANT_STORE_DEVICE_CUH
#include "quant/cast_device.cuh"

namespace fp8 {

/* Element i of a bias or residual. */
static __device__ __forceinline__ float real_at(const void *p, fp8_dtype t, int64_t i) {
    if (t == FP8_DTYPE_F32) return static_cast<const float *>(p)[i];
    if (t == FP8_DTYPE_BF16) return to_float(static_cast<const __nv_bfloat16 *>(p)[i]);
    return to_float(static_cast<const __half *>(p)[i]);
}

/* As fp8_siluf, x / (1 + e^-x), and fp8_gelu_tanhf, x / (1 + e^-2u). */
static __device__ __forceinline__ float activate(float x, bool silu) {
    const float cube = __fmul_rn(__fmul_rn(__fmul_rn(0.044715f, x), x), x);
    const float u = __fmul_rn(0.7978845608028654f, __fadd_rn(x, cube));
    return x / (1.0f + expf(silu ? -x : -2.0f * u));
}

} /* namespace fp8 */
#endif
