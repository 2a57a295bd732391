/* quant/lookup.h - the two ends of a model: rows of an embedding table by token id, and the best
 * token ids of rows of logits. Every call runs on `d`, asynchronously on CUDA; pointers are of that
 * place, nothing is allocated. FP8_EINVAL: NULL, negative sizes, a dtype not named; FP8_ECUDA. */
#ifndef FP8_QUANT_LOOKUP_H
#define FP8_QUANT_LOOKUP_H
#include <stdint.h>

#include "core/device.h"
#ifdef __cplusplus
extern "C" {
#endif

/* x[t,:] = round(table[ids[t],:] * multiplier), then with positions
 * x[t,:] = round(that + positions_table[positions[t],:]). Multiplier 1 leaves bits alone. */
typedef struct fp8_embedding {
    fp8_dtype dtype; /* of x and the tables: F32 | BF16 | F16 */
    int64_t tokens, cols;
    const void *table;  /* in [vocab, cols] */
    const int32_t *ids; /* in [tokens], checked by the caller */
    float multiplier;
    const void *positions_table; /* in [positions, cols]; NULL: none */
    const int32_t *positions;    /* in [tokens], checked by the caller; with a positions_table */
} fp8_embedding;

/* x out [tokens, cols] */
FP8_NODISCARD fp8_status fp8_embed(fp8_device *d, void *x, const fp8_embedding *e,
                                   fp8_launch launch);

enum { FP8_TOP_K_MAX = 256 };

/* The k highest logits of each row, highest first; equal ones by lowest index, NaN counts as -Inf,
 * -0 as 0: one answer whatever the device.
 *   ids     out  [rows, k] I32
 *   values  out  [rows, k] F32 as they were compared; NULL: none
 *   logits  in   [rows, vocab], rows `stride` elements apart (0 = vocab), F32 | BF16 | F16
 * 1 <= k <= FP8_TOP_K_MAX, k <= vocab < 2^31. */
FP8_NODISCARD fp8_status fp8_top_k(fp8_device *d, int32_t *ids, float *values, const void *logits,
                                   fp8_dtype dtype, int64_t rows, int64_t vocab, int64_t stride,
                                   int32_t k, fp8_launch launch);

#ifdef __cplusplus
}
#endif
#endif
