/* model/ops.h - private: the operations a transformer's wiring needs besides Linear and
 * attention, one table a place. ops_cpu.c is the oracle of ops_cuda.cu.
 *
 * Tensors are packed, of the compute type (BF16, on the CPU also F32) unless named otherwise,
 * and in the device's place. Arithmetic in F32, rounded once on store. All asynchronous on CUDA. */
#ifndef FP8_MODEL_OPS_H
#define FP8_MODEL_OPS_H
#include <stdint.h>

#include "core/device.h"
#include "formats/config.h"
#include "quant/quant.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef struct fp8_ops {
    /* x[t,:] = round(table[ids[t],:] * multiplier) (+ positions_table[positions[t],:]). x
     * [tokens, width]; table [vocab, width]; multiplier 1 leaves bits alone; positions_table
     * NULL = none. Ids and positions were checked. */
    fp8_status (*embed)(fp8_device *d, const fp8_tensor *x, const fp8_tensor *table,
                        const int32_t *ids, float multiplier, const fp8_tensor *positions_table,
                        const int32_t *positions);
    /* y = norm(x) row by row, RMS rounding before the weight; y may be x. w, b [cols] (b NULL
     * unless LAYER). */
    fp8_status (*norm)(fp8_device *d, const fp8_tensor *y, const fp8_tensor *x, const fp8_tensor *w,
                       const fp8_tensor *b, fp8_norm_kind kind, float eps);
    /* Rotates in place, rotate_half form: x [tokens, heads, dim]; cos, sin F32 [max_position,
     * dim/2], already rounded to the compute type. row_stride: elements between tokens. */
    fp8_status (*rope)(fp8_device *d, const fp8_tensor *x, int64_t heads, int64_t dim,
                       int64_t row_stride, const float *cos, const float *sin,
                       const int32_t *positions);
    /* y = act(x), or y = round(act(gate)) * up when up is not NULL; y may be an input. */
    fp8_status (*activate)(fp8_device *d, const fp8_tensor *y, const fp8_tensor *x,
                           const fp8_tensor *up, fp8_activation act);
    /* x += y. */
    fp8_status (*add)(fp8_device *d, const fp8_tensor *x, const fp8_tensor *y);
    /* out[i,:] = x[rows[i],:]; rows in the device's place. */
    fp8_status (*gather)(fp8_device *d, const fp8_tensor *out, const fp8_tensor *x,
                         const int32_t *rows);
    /* logits F32 [rows, vocab] rounded to the compute type's values (HF's logits are of that
     * type). */
    fp8_status (*round)(fp8_device *d, const fp8_tensor *x, fp8_dtype to);
    /* See fp8_model_score; all pointers in the device's place; kl, top1, reference may be NULL. */
    fp8_status (*score)(fp8_device *d, const fp8_tensor *logits, const fp8_tensor *reference,
                        const int32_t *targets, float *nll, float *kl, uint8_t *top1);
    /* best[r] = argmax of logits[r], lowest index on ties; NaN counts as -Inf. */
    fp8_status (*argmax)(fp8_device *d, const fp8_tensor *logits, int32_t *best);
} fp8_ops;

const fp8_ops *fp8_ops_cpu(void);
const fp8_ops *fp8_ops_cuda(void); /* only in a build with CUDA */

#ifdef __cplusplus
}
#endif
#endif
