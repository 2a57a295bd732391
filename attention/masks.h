/* attention/masks.h - small helpers that bring a model's masks into the form of attention.h. */
#ifndef FP8_ATTENTION_MASKS_H
#define FP8_ATTENTION_MASKS_H
#include <stdint.h>

#include "core/device.h"
#ifdef __cplusplus
extern "C" {
#endif

/* slopes[num_heads], host: 2^(-8 i / n), i = 1..n, for n the largest power of two up to num_heads;
 * the others 2^(-4 (2 i - 1) / n), i = 1.. Source: ALiBi, Press et al. 2022, and their code. */
void fp8_attention_alibi_slopes(float *slopes, int32_t num_heads);

/* bias[i] = mask[i] ? -inf : 0, F32 [n]; place of d, asynchronous. mask nonzero = masked out. */
FP8_NODISCARD fp8_status fp8_attention_mask_to_bias(fp8_device *d, float *bias, const uint8_t *mask,
                                                    int64_t n);

/* From a padding mask [b, s], nonzero = padding, valid tokens first in each row: lengths[b] =
 * count of zeros, starts[b + 1] = exclusive sums of the lengths (cumulative lengths of the packed
 * tokens). Either output may be NULL. Place of d, asynchronous. */
FP8_NODISCARD fp8_status fp8_attention_padding_to_lengths(fp8_device *d, int32_t *starts,
                                                          int32_t *lengths, const uint8_t *mask,
                                                          int64_t b, int64_t s);

/* y[r, :] = H D x[r, :] / sqrt(d): the rotation of Q and K by a random-sign diagonal D (signs [d],
 * +-1, F32) and a Hadamard matrix, which leaves Q K^T as it is and spreads outliers before
 * quantization. rows of d = 64, 128, 256 elements, BF16 | F16 | F32; y may be x. Asynchronous. */
FP8_NODISCARD fp8_status fp8_attention_hadamard(fp8_device *d, void *y, const void *x,
                                                fp8_dtype dtype, const float *signs, int64_t rows,
                                                int32_t head_dim);

#ifdef __cplusplus
}
#endif
#endif
