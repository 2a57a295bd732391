/* model/ops_cuda.cuh - private: what the CUDA operations of ops.h share. */
#ifndef FP8_MODEL_OPS_CUDA_CUH
#define FP8_MODEL_OPS_CUDA_CUH
#include <cuda_bf16.h>

#include "core/cuda_check.h"
#include "model/ops.h"

typedef __nv_bfloat16 bf16;

enum { VEC = 8, QUAD = 4 }; /* BF16, and floats, in the widest load: 16 bytes */

/* ---- device: eight BF16 at a time ---------------------------------------------------------- */

static __device__ inline void unpack8(float out[VEC], uint4 in) {
    const unsigned word[4] = {in.x, in.y, in.z, in.w};
#pragma unroll
    for (int k = 0; k < 4; k++) { /* a BF16 is the upper half of its float */
        out[2 * k] = __uint_as_float(word[k] << 16);
        out[2 * k + 1] = __uint_as_float(word[k] & 0xffff0000u);
    }
}

static __device__ inline unsigned pack2(float low, float high) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const unsigned *>(&pair);
}

static __device__ inline uint4 pack8(const float in[VEC]) {
    return make_uint4(pack2(in[0], in[1]), pack2(in[2], in[3]), pack2(in[4], in[5]),
                      pack2(in[6], in[7]));
}

static __device__ inline float round_bf16(float v) {
    return __bfloat162float(__float2bfloat16_rn(v));
}

/* ---- host ---------------------------------------------------------------------------------- */

/* 16-byte loads are possible from p (NULL: nothing to load). */
static inline int aligned16(const void *p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

/* FP8_EINVAL unless t is of that type, on the device, and has as many elements. */
fp8_status fp8_ops_check(const char *operation, const fp8_tensor *t, fp8_dtype dtype,
                         int64_t count);

fp8_status fp8_norm_cuda(fp8_device *d, const fp8_tensor *y, const fp8_tensor *x,
                         const fp8_tensor *w, const fp8_tensor *b, fp8_norm_kind kind, float eps);
fp8_status fp8_score_cuda(fp8_device *d, const fp8_tensor *logits, const fp8_tensor *reference,
                          const int32_t *targets, float *nll, float *kl, uint8_t *top1);
fp8_status fp8_argmax_cuda(fp8_device *d, const fp8_tensor *logits, int32_t *best);
#endif
