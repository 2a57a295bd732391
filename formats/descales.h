/* formats/descales.h - the scales of a checkpoint: the shape they have in each dialect, and their
 * values, checked. */
#ifndef FP8_FORMATS_DESCALES_H
#define FP8_FORMATS_DESCALES_H
#include <stdint.h>

#include "formats/checkpoint.h"
#include "formats/dialect.h"
#ifdef __cplusplus
extern "C" {
#endif

/* Number of descales of a weight [rows, cols] as stored, and the shape that holds them on disk:
 *   TENSOR, TENSOR_DYNAMIC  1: [] or [1]
 *   DYNAMIC                 channels (rows, or cols where in_out): [out], [out, 1]; [1, out] beside
 *                           an [in, out] weight, so that it broadcasts over the codes
 *   BLOCK                   ceil(rows / 128) * ceil(cols / 128)
 *   MX                      rows * cols / 32
 * shape has room for 2. FP8_EUNSUPPORTED: weights kept [in, out] where a dialect cannot say so; MX:
 * cols that 32 does not divide. */
FP8_NODISCARD fp8_status fp8_descale_shape(int64_t *shape, int32_t *ndim, int64_t *count,
                                           fp8_dialect dialect, fp8_scheme scheme, int64_t rows,
                                           int64_t cols, int in_out);

/* Values of the tensor `name`, F32, BF16, F16 or F8_E8M0 on disk: 1 of them, or `channels` in a row
 * (every other dimension 1). *out is allocated, free(). FP8_ENOTFOUND; FP8_EFORMAT: dtype or shape;
 * FP8_EDATA: one is not finite and positive. */
FP8_NODISCARD fp8_status fp8_descales_load(float **out, int64_t *count, const fp8_checkpoint *c,
                                           const char *name, int64_t channels);
/* Likewise one a square of 128 x 128 of a weight [rows, cols]: row-major. */
FP8_NODISCARD fp8_status fp8_block_descales_load(float **out, int64_t *count,
                                                 const fp8_checkpoint *c, const char *name,
                                                 int64_t rows, int64_t cols);
/* Likewise one a row and 32 columns; U8 on disk, the exponent + 127. */
FP8_NODISCARD fp8_status fp8_mx_descales_load(float **out, int64_t *count, const fp8_checkpoint *c,
                                              const char *name, int64_t rows, int64_t cols);
/* Those of a weight [rows, cols], whatever the scheme (not NONE). */
FP8_NODISCARD fp8_status fp8_weight_descales_load(float **out, int64_t *count,
                                                  const fp8_checkpoint *c, const char *name,
                                                  fp8_scheme scheme, int64_t rows, int64_t cols,
                                                  int in_out);
/* What weight descales are on disk, and x [n] as that: U8 (of powers of two), BF16 or F32. `out`
 * may be x itself. */
fp8_dtype fp8_weight_descale_dtype(fp8_scheme scheme, int bf16);
void fp8_descales_pack(void *out, fp8_dtype to, const float *x, int64_t n);

/* Element i of a tensor of those types (which need not be aligned). */
float fp8_descale_at(const fp8_tensor *t, int64_t i);
int fp8_descale_dtype(fp8_dtype t); /* 1: one of them */

#ifdef __cplusplus
}
#endif
#endif
