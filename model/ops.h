/* model/ops.h - private: what a model needs besides quant/ (Linears, producers, lookups) and
 * attention: the scoring of logits, one table a place.
 *
 * Tensors are packed and in the device's place. All asynchronous on CUDA. */
#ifndef FP8_MODEL_OPS_H
#define FP8_MODEL_OPS_H
#include <stdint.h>

#include "core/device.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef struct fp8_ops {
    /* logits F32 [rows, vocab] rounded to the compute type's values (HF's logits are of that
     * type). */
    fp8_status (*round)(fp8_device *d, const fp8_tensor *x, fp8_dtype to);
    /* x F32 = round(cap * round(tanh(round(x / cap)))), rounded to the values of `to`. */
    fp8_status (*softcap)(fp8_device *d, const fp8_tensor *x, float cap, fp8_dtype to);
    /* See fp8_model_score; all pointers in the device's place; kl, top1, reference may be NULL. */
    fp8_status (*score)(fp8_device *d, const fp8_tensor *logits, const fp8_tensor *reference,
                        const int32_t *targets, float *nll, float *kl, uint8_t *top1);
} fp8_ops;

const fp8_ops *fp8_ops_cpu(void);
const fp8_ops *fp8_ops_cuda(void); /* only in a build with CUDA */

#ifdef __cplusplus
}
#endif
#endif
