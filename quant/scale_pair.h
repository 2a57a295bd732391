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

/* amax > 0 and finite. Each quotient rounded once; no Inf and nothing below the normal floats comes
 * out, so that a host which flushes subnormals (many BLAS builds set that) gets the same scales. */
static inline FP8_HOST_DEVICE void fp8_scale_pair(float q_max, float amax, float *scale,
                                                  float *descale) {
    const float up = q_max / amax, down = amax / q_max;
    *scale = up > FLT_MAX ? FLT_MAX : up;
    *descale = down > FLT_MIN ? down : FLT_MIN;
}
#endif
