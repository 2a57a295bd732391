/* quant/skinny_wide.h - private: E4M3 products for up to 128 rows of A (tokens) on Hopper, by wide
 * tiles of B (the weights), with all of fp8_gemm's store: quant/skinny_wide.cu. */
#ifndef FP8_QUANT_SKINNY_WIDE_H
#define FP8_QUANT_SKINNY_WIDE_H
#include <stddef.h>
#include <stdint.h>

#include "quant/gemm.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    WIDE_BLOCK_K = 128,     /* elements of K of a unit */
    WIDE_MAX_TOKENS = 128,
    WIDE_MAX_ROWS = 256,    /* of B of a tile */
    WIDE_MAX_SPLITS = 8,    /* the largest cluster every GPU of this kind takes */
    WIDE_MAX_STAGES = 12,
    WIDE_WARPS = 8,         /* that multiply */
    WIDE_PAIR_BYTES = 1024, /* F32 sums of 16 tokens by 16 rows of B */
    WIDE_CONTROL_BYTES = 2944, /* barriers, scales and biases in shared memory */
    WIDE_RELEASE_AT_START = INT32_MAX
};

/* How a product is cut. One tile a cluster. */
typedef struct wide_tile {
    int32_t tokens;   /* 64 or 128: rows of A of a unit, zeros where there are fewer */
    int32_t rows;     /* of B of a tile, as compiled: wide_is_compiled */
    int32_t resident; /* blocks a multiprocessor has room for */
    int32_t splits;   /* blocks of a cluster, which share the K of a tile */
    int32_t stages;   /* units of B in flight a block */
    int32_t x_stages; /* of A, at most as many */
    int32_t lead;     /* units before its end at which a block lets the next kernel start */
} wide_tile;

/* Shared memory of a block: the rings (in the end, partial sums), control. */
size_t wide_ring_bytes(const wide_tile *t);
size_t wide_sums_bytes(const wide_tile *t);
size_t wide_shared_bytes(const wide_tile *t);

int wide_gates(const wide_tile *t);     /* has it gate and up in the same threads? */
int32_t wide_chunk(const wide_tile *t); /* rows of gate that lie together in a gated tile */

/* The cut for g, of at most WIDE_MAX_TOKENS rows. */
wide_tile wide_choose(const fp8_gemm *g, int32_t num_sms);

/* g's product by this cut; FP8_EINVAL when it does not fit. */
FP8_NODISCARD fp8_status wide_run_tile(fp8_device *d, const fp8_gemm *g, const wide_tile *t);

#ifdef __cplusplus
}
#endif
#endif
