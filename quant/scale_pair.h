/* quant/scale_pair.h - private: the one place where an amax becomes a scale and a descale; shared
 * by the recipe, the CPU and the CUDA quantizers, so that all agree to the bit. */
#ifndef FP8_QUANT_SCALE_PAIR_H
#define FP8_QUANT_SCALE_PAIR_H
#include <float.h>

#ifdef __CUDACC__
#define FP8_HOST_DEVICE __host__ __device__
#else
#define FP8_HOST_DEVICE
#endif

/* A quotient of amax > 0, finite, and q_max, either way round: rounded once, no Inf and nothing
 * below the normal floats, so that a host which flushes subnormals (many BLAS builds set that) gets
 * the same scales. */
static inline FP8_HOST_DEVICE float fp8_scale_quotient(float over, float under) {
    const float q = over / under, least = q > FLT_MIN ? q : FLT_MIN;
    return least > FLT_MAX ? FLT_MAX : least;
}

static inline FP8_HOST_DEVICE void fp8_scale_pair(float q_max, float amax, float *scale,
                                                  float *descale) {
    *scale = fp8_scale_quotient(q_max, amax);
    *descale = fp8_scale_quotient(amax, q_max);
}
#endif
