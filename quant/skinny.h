/* quant/skinny.h - private: E4M3 products for few rows of A (tokens) on Hopper, made to read B (the
 * weights) at the speed of memory: quant/skinny.cu. */
#ifndef FP8_QUANT_SKINNY_H
#define FP8_QUANT_SKINNY_H
#include <stddef.h>
#include <stdint.h>

#include "quant/gemm.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    SKINNY_ROWS = 128,       /* rows of B of a tile, the most */
    SKINNY_MIN_ROWS = 80,    /* the fewest: the second warpgroup's first warp has some */
    SKINNY_ROW_STEP = 16,    /* a warp's rows */
    SKINNY_BLOCK_K = 128,    /* elements of K of a unit */
    SKINNY_MAX_TOKENS = 128,
    SKINNY_RESIDUAL_TOKENS = 32, /* the most that a residual goes with; more: wide tiles */
    SKINNY_GATED_TOKENS = 64, /* the most of a gated product; more: wide tiles */
    SKINNY_GROUP = 8,        /* gated: rows of gate, then of up, that lie side by side in a tile */
    SKINNY_MAX_SPLITS = 8,   /* the largest cluster every GPU of this kind takes */
    SKINNY_MAX_STAGES = 16,
    SKINNY_WARPS = 8,        /* that multiply */
    SKINNY_CONTROL_BYTES = 976, /* barriers and scales of tokens in shared memory */
    SKINNY_RELEASE_AT_START = INT32_MAX
};

/* How a product is cut. */
typedef struct skinny_tile {
    int32_t tokens;   /* 8, 16, 32, 64, 128: rows of A of a unit, zeros where there are fewer */
    int32_t resident; /* blocks a multiprocessor has room for: 2, or 1, as from 33 tokens on */
    int32_t rows;     /* of B of a tile: SKINNY_MIN_ROWS to SKINNY_ROWS in steps of a warp's */
    int32_t splits;   /* blocks of a cluster, which share the K of a tile */
    int32_t clusters; /* of the grid; with splits one a tile, else a block takes each such tile */
    int32_t stages;   /* units in flight a block */
    int32_t ahead;    /* units beyond the ring that are fetched to the L2 cache, one after the
                       * other, once the ring is full and x is still waited for */
    int32_t lead;     /* units before its end at which a block lets the next kernel start */
    int32_t gated;    /* SKINNY_GROUP rows of gate and of up in turn; one split */
    int32_t bound;    /* the most units of W on their way to a block; 0: what the ring holds */
} skinny_tile;

/* The cut for g, of sizes of at least 1 and at most SKINNY_MAX_TOKENS rows of A, gated at most
 * SKINNY_GATED_TOKENS. */
skinny_tile skinny_choose(const fp8_gemm *g, int32_t num_sms);

/* Was it measured faster than cuBLASLt on products of such sizes? */
int skinny_pays(const fp8_gemm *g);

/* Does g's store ask for wide tiles (skinny_wide.h)? Are they the faster ones for its sizes? */
int skinny_is_wide(const fp8_gemm *g);
int skinny_is_short(const fp8_gemm *g);

/* Shared memory of a block: the ring, partial sums or results on their way out, control. */
size_t skinny_stage_bytes(const skinny_tile *t);
size_t skinny_box_bytes(const skinny_tile *t);
size_t skinny_shared_bytes(const skinny_tile *t);

/* FP8_OK, or FP8_EUNSUPPORTED with the reason: another device or type, rows that do not start on 16
 * bytes, too many tokens, a batch, descales in blocks. Pointers may be NULL. */
FP8_NODISCARD fp8_status skinny_check(const fp8_device *d, const fp8_gemm *g);

/* g's product, promoted to FP32 every 128 of K whatever g->accumulate. No workspace; asynchronous;
 * can be captured; the same bytes every time. FP8_ECUDA; FP8_EUNSUPPORTED as skinny_check, or when
 * this build holds no sm_90a code. */
FP8_NODISCARD fp8_status skinny_run(fp8_device *d, const fp8_gemm *g);

/* The same cut as asked; FP8_EINVAL when it does not fit the product. */
FP8_NODISCARD fp8_status skinny_run_tile(fp8_device *d, const fp8_gemm *g, const skinny_tile *t);

#ifdef __cplusplus
}
#endif
#endif
