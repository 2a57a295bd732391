/* model/sample.h - the next id from a row of logits: greedy, or drawn.
 *
 *   temperature 0: the highest logit, lowest id on ties; NaN counts as -Inf
 *   else z = logit / temperature; keep the top_k highest (all with the k-th's value: ties stay);
 *   of these the fewest, highest first, whose probabilities sum to top_p or more (again all with
 *   the last one's value), p = softmax(z) over what top_k kept; then draw by
 *     argmax over kept i of z_i - log(-log(u_i)),  u_i = a hash of (seed, position, i) in (0, 1)
 *   which draws i with its probability among the kept. What is drawn depends on the row, seed and
 *   position alone, not on what else is in the batch. */
#ifndef FP8_MODEL_SAMPLE_H
#define FP8_MODEL_SAMPLE_H
#include <stdint.h>

#include "core/device.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef struct fp8_sampling {
    float temperature; /* 0: greedy */
    int32_t top_k;     /* 0: all */
    float top_p;       /* 0 or 1: all */
    uint64_t seed;
} fp8_sampling;

/* FP8_EINVAL: temperature negative or not finite, top_k negative, top_p outside 0 .. 1. */
FP8_NODISCARD fp8_status fp8_sampling_check(const fp8_sampling *s);

/* One row's way of choosing, as the device reads it. */
typedef struct fp8_sample_row {
    fp8_sampling how;
    int64_t position; /* tokens before the one that is drawn */
} fp8_sample_row;

/* ids[r] = the choice of logits[r]. ids out [rows] I32, logits in [rows, vocab] F32 | BF16 (dtype),
 * rows in [rows]; place of the device; asynchronous on CUDA. */
FP8_NODISCARD fp8_status fp8_sample(fp8_device *d, int32_t *ids, const void *logits,
                                    fp8_dtype dtype, const fp8_sample_row *rows,
                                    int64_t num_rows, int64_t vocab);

#ifdef __cplusplus
}
#endif
#endif
