/* model/inputs_cuda.h - private: a copy to the device that waits for nothing. */
#ifndef FP8_MODEL_INPUTS_CUDA_H
#define FP8_MODEL_INPUTS_CUDA_H
#include <stddef.h>

#include "core/device.h"

/* src: from fp8_device_alloc_host, unchanged until an event recorded after this is reached. */
FP8_NODISCARD fp8_status fp8_inputs_copy_cuda(fp8_device *d, void *dst, const void *src,
                                              size_t bytes);
#endif
