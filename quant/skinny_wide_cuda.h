/* quant/skinny_wide_cuda.h - private: what the host half of the wide skinny product hands to its
 * kernel. */
#ifndef FP8_QUANT_SKINNY_WIDE_CUDA_H
#define FP8_QUANT_SKINNY_WIDE_CUDA_H
#include <cuda.h> /* CUtensorMap; nothing of libcuda is linked */

#include "quant/skinny_wide.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct wide_args {
    CUtensorMap w_map; /* (k, n), box (WIDE_BLOCK_K, rows of a box), swizzled */
    CUtensorMap x_map; /* (k, tokens), box (WIDE_BLOCK_K, tile's tokens), swizzled */
    void *d;
    const void *bias, *residual;
    const float *a_descale, *b_descale, *d_scale;
    float *d_amax;
    int64_t ldd, ldr;
    int32_t tokens, n, columns, tiles, units, splits, stages, x_stages, lead, pair_slots;
    int32_t a_vector, b_vector, gated, early; /* gated: D has half of B's n rows as columns */
    int32_t vectors;                          /* rows of D in steps of 4 columns */
    float alpha;
    fp8_gemm_activation activation;
    fp8_dtype d_dtype, bias_dtype, residual_dtype;
} wide_args;

int wide_is_compiled(const wide_tile *t);
fp8_status wide_launch(fp8_device *d, const wide_args *a, const wide_tile *t, fp8_launch launch);

#ifdef __cplusplus
}
#endif
#endif
