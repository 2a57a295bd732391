/* attention/masks_cuda.h - private: the CUDA halves of masks.h. Arguments were checked and nothing
 * is empty. Each launches on the stream of d. FP8_ECUDA: a launch failed. */
#ifndef FP8_ATTENTION_MASKS_CUDA_H
#define FP8_ATTENTION_MASKS_CUDA_H
#include "attention/masks.h"

#ifdef __cplusplus
extern "C" {
#endif

fp8_status attention_cuda_mask_to_bias(fp8_device *d, float *bias, const uint8_t *mask, int64_t n);

/* starts, lengths: at least one is not NULL. b may be 0: starts[0] = 0. */
fp8_status attention_cuda_padding_to_lengths(fp8_device *d, int32_t *starts, int32_t *lengths,
                                             const uint8_t *mask, int64_t b, int64_t s);

/* head_dim 64, 128 or 256; dtype BF16, F16 or F32. */
fp8_status attention_cuda_hadamard(fp8_device *d, void *y, const void *x, fp8_dtype dtype,
                                   const float *signs, int64_t rows, int32_t head_dim);

#ifdef __cplusplus
}
#endif
#endif
