/* calib/hessian.h - private: what compensated rounding needs to know of a Linear's input, summed
 * over calibration tokens: H = sum q q^T of the input as the quantized model will see it, and
 * C = sum q x^T against the input x of the BF16 model. Gathered on the device of the model, in F32,
 * by matrix products. */
#ifndef FP8_CALIB_HESSIAN_H
#define FP8_CALIB_HESSIAN_H
#include <stdint.h>

#include "core/device.h"
#include "formats/dialect.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef struct fp8_hessian fp8_hessian;

/* Room for inputs up to `cols` wide, up to `tokens` of them at once, of the type `type` (BF16 |
 * F32). On the device: (8 cols + 8 tokens) cols bytes. */
FP8_NODISCARD fp8_status fp8_hessian_create(fp8_hessian **out, fp8_device *d, fp8_dtype type,
                                            int64_t cols, int64_t tokens);
void fp8_hessian_destroy(fp8_hessian *h); /* NULL is fine */

/* Begins anew, for an input `cols` wide. scheme: how it is quantized on its way into the Linear;
 * TENSOR: with `descale`. NONE: not at all. */
FP8_NODISCARD fp8_status fp8_hessian_begin(fp8_hessian *h, int64_t cols, fp8_scheme scheme,
                                           float descale);
/* Joins tokens: x of the BF16 model, q of the quantized one (before it quantizes it), both
 * [tokens, cols], place of the device. x NULL: H alone. */
FP8_NODISCARD fp8_status fp8_hessian_add(fp8_hessian *h, const void *x, const void *q,
                                         int64_t tokens);
/* The sums as they lie on the device, F32 [cols, cols]: H = *factor^2 * hessian (of its halves the
 * lower one counts), C = *factor * cross. Until begin or add. */
void fp8_hessian_sums(const fp8_hessian *h, const float **hessian, const float **cross,
                      double *factor);
/* hessian [cols, cols], cross [cols, cols] (row: of q; may be NULL), on the host. */
FP8_NODISCARD fp8_status fp8_hessian_read(fp8_hessian *h, double *hessian, double *cross);

#ifdef __cplusplus
}
#endif
#endif
