/* quant/skinny_cuda.h - private: what the host half of the skinny product hands to its kernel. */
#ifndef FP8_QUANT_SKINNY_CUDA_H
#define FP8_QUANT_SKINNY_CUDA_H
#include <cuda.h> /* CUtensorMap; nothing of libcuda is linked */

#include "core/tensor_map.h"
#include "quant/skinny.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct skinny_args {
    CUtensorMap w_map; /* (k, n), box (SKINNY_BLOCK_K, rows), swizzled; gated: (k, SKINNY_GROUP, 2,
                        * groups), box (SKINNY_BLOCK_K, SKINNY_GROUP, 2, rows' groups) */
    CUtensorMap x_map; /* (k, tokens), box (SKINNY_BLOCK_K, tile's tokens), swizzled */
    CUtensorMap d_map; /* (n, tokens), box (a warp's rows, tile's tokens); with d_by_copy */
    void *d;
    const void *bias, *residual;
    const float *a_descale, *b_descale, *d_scale;
    int64_t ldd, ldr;
    int32_t tokens, columns, rows, tiles, units, splits, stages, stage_bytes, box_bytes;
    int32_t ahead, lead;                          /* as skinny_tile has them */
    int32_t bound, paced; /* units of W at once, at most `stages`; paced: W comes by and by */
    int32_t a_vector, b_vector, d_by_copy, early; /* early: W before the previous kernel's end */
    int32_t pairs; /* two columns of D can be stored at once */
    float alpha;
    fp8_gemm_activation activation;
    fp8_dtype d_dtype, bias_dtype, residual_dtype;
} skinny_args;

/* A map of [rows, cols] elements of 1 or 2 bytes, boxes [box_rows, box_cols]. FP8_ECUDA. */
FP8_NODISCARD fp8_status skinny_make_map(fp8_tensor_map_encode encode, CUtensorMap *map,
                                         const char *name, const void *x,
                                         CUtensorMapDataType type, int64_t rows, int64_t cols,
                                         int64_t ld_bytes, int32_t box_rows, int32_t box_cols,
                                         CUtensorMapSwizzle swizzle);

/* Of gate and up, joined in b [n, k], n a multiple of 2 SKINNY_GROUP: boxes of `rows`, SKINNY_GROUP
 * rows of each in turn. FP8_ECUDA. */
FP8_NODISCARD fp8_status skinny_make_gated_map(fp8_tensor_map_encode encode, CUtensorMap *map,
                                               const void *b, int64_t n, int64_t k, int64_t ldb,
                                               int32_t rows);

/* FP8_EUNSUPPORTED when this build holds no sm_90a code. */
fp8_status skinny_available(void);

fp8_status skinny_launch(fp8_device *d, const skinny_args *a, const skinny_tile *t,
                         fp8_launch launch);

#ifdef __cplusplus
}
#endif
#endif
