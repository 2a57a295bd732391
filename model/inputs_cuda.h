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
/* The end of a step (advance.cu); device but for out. */
typedef struct fp8_step_end {
    int32_t *out[2];       /* [count] pinned host memory: of the two, that of the turn */
    int32_t *turn;         /* 0 | 1 */
    const int32_t *chosen; /* [count] */
    int64_t count;
    int advances; /* 1: ids, positions, kv_lengths, rows become the next step's */
    int32_t *ids, *positions, *kv_lengths; /* [count] */
    fp8_sample_row *rows;                  /* [count] */
} fp8_step_end;
FP8_NODISCARD fp8_status fp8_step_end_cuda(fp8_device *d, const fp8_step_end *e);
#ifdef __cplusplus
}
#endif
#endif
