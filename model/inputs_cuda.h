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
/* ids = chosen; positions, kv_lengths, rows' positions each one more; [count], device. */
FP8_NODISCARD fp8_status fp8_inputs_advance_cuda(fp8_device *d, int32_t *ids, int32_t *positions,
                                                 int32_t *kv_lengths, fp8_sample_row *rows,
                                                 const int32_t *chosen, int64_t count);
#ifdef __cplusplus
}
#endif
#endif
