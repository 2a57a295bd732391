/* quant/chain_cuda.h - private: what the host half of a chain hands to its kernel. */
#ifndef FP8_QUANT_CHAIN_CUDA_H
#define FP8_QUANT_CHAIN_CUDA_H
#include <cuda.h> /* CUtensorMap; nothing of libcuda is linked */

#include "core/tensor_map.h"
#include "quant/chain_impl.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    CHAIN_BLOCK_K = 128,        /* of K in a unit, one byte an element: a swizzled row */
    CHAIN_MAX_ROWS = 128,       /* of W in a tile */
    CHAIN_ROW_STEP = 16,        /* a warp's */
    CHAIN_MAX_SPLITS = 4,
    CHAIN_MAX_COLUMNS = 16384,  /* of a norm */
    CHAIN_RING_BYTES = 224 << 10,
    CHAIN_W_UNITS = 24,         /* at once in the ring of W */
    CHAIN_LINE = 32             /* words between counters that all blocks look at */
};

/* Counters in the chain's own memory, 0 between runs: the ticket of blocks that have ended, then
 * for each step who has left sums for h and who has left codes. */
enum {
    CHAIN_ADDED = CHAIN_LINE,
    CHAIN_READY = CHAIN_ADDED + FP8_CHAIN_MAX_STEPS * CHAIN_LINE,
    CHAIN_COUNTERS = CHAIN_READY + FP8_CHAIN_MAX_STEPS * CHAIN_LINE
};

typedef struct chain_stage {
    CUtensorMap w_map; /* (k, out), box (CHAIN_BLOCK_K, rows); gated: (k, 8, 2, out / 16), box
                        * (CHAIN_BLOCK_K, 8, 2, rows / 16): 8 rows of gate, then 8 of up */
    CUtensorMap x_map; /* (k, tokens), box (CHAIN_BLOCK_K, tokens of the kernel) */
    const float *x_descale, *w_descale; /* w: 1, or with w_vector [out]; NULL = 1 */
    const float *code_scale;            /* of the codes for the next step */
    const void *bias;
    const uint16_t *norm_weight, *norm_bias; /* BF16 [out] */
    uint16_t *h;    /* BF16 [tokens, out], io; NULL: does not add */
    uint16_t *y;    /* BF16 [tokens, out]; NULL: not the last step */
    uint8_t *codes; /* E4M3 [tokens, columns]; NULL: the last step */
    int32_t out, columns;
    int32_t rows, tiles, units; /* rows of W in a tile; units of K */
    int32_t splits; /* blocks of a team, which take a part of K each: 1 but for a step that adds */
    int32_t w_vector;
    fp8_dtype bias_dtype;
    fp8_gemm_activation activation;
    fp8_norm_kind norm;
    float eps;
} chain_stage;

typedef struct chain_args {
    chain_stage steps[FP8_CHAIN_MAX_STEPS];
    float *sums; /* of a step that adds: [splits][tokens][out] */
    uint32_t *counters;
    int32_t count, tokens;
    int32_t flight; /* units of W that may be on their way to a block at once */
} chain_args;

/* FP8_EUNSUPPORTED when this build holds no sm_90a code. */
fp8_status chain_available(void);
/* Tokens of the kernel that serves so many. */
int32_t chain_kernel_tokens(int64_t tokens);
fp8_status chain_start(fp8_device *d, const chain_args *a, int32_t blocks);

#ifdef __cplusplus
}
#endif
#endif
