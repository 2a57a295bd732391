/* model/inputs_cuda.h - private: a step's inputs on CUDA. */
#ifndef FP8_MODEL_INPUTS_CUDA_H
#define FP8_MODEL_INPUTS_CUDA_H
#include <stddef.h>

#include "core/device.h"
#include "model/sample.h"
#ifdef __cplusplus
extern "C" {
#endif

/* A copy to the device that waits for nothing. src: from fp8_device_alloc_host, unchanged until an
 * event recorded after this is reached. */
FP8_NODISCARD fp8_status fp8_inputs_copy_cuda(fp8_device *d, void *dst, const void *src,
                                              size_t bytes);
/* The end of a step (sample.cu): out[turn[s]][s] = the id of row s; turn[s] = 1 - turn[s]; and
 * where it advances ids[s] = that id, positions[s], kv_lengths[s], rows[s].position each one more,
 * unless kv_lengths[s] is 0. Device but for out. */
typedef struct fp8_step_end {
    int32_t *out[2]; /* pinned host memory: of the two, that of the row's turn */
    int32_t *turn;   /* 0 | 1, of each row; NULL: a choice of ids and no step's end */
    int advances;    /* 1: inputs become the next step's */
    int32_t *ids, *positions, *kv_lengths;
    fp8_sample_row *rows;
} fp8_step_end;

/* fp8_sample of checked arguments, num_rows > 0, and the end of the step whose rows these are. */
FP8_NODISCARD fp8_status fp8_choose_cuda(fp8_device *d, int32_t *ids, const void *logits,
                                         fp8_dtype dtype, const fp8_sample_row *rows,
                                         int64_t num_rows, int64_t vocab,
                                         const fp8_step_end *end);
#ifdef __cplusplus
}
#endif
#endif
