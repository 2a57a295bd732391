/* model/ops.h - private: what a model needs besides quant/ (Linears, producers, lookups) and
 * attention: the scoring of logits, and who takes which rows in a mixture of experts; one table a
 * place.
 *
 * Tensors are packed and in the device's place. All asynchronous on CUDA. */
#ifndef FP8_MODEL_OPS_H
#define FP8_MODEL_OPS_H
#include <stdint.h>

#include "core/device.h"
#ifdef __cplusplus
extern "C" {
#endif

/* The experts of each token, and its rows sorted by expert (moe_rows.c, moe_rows.cu).
 *
 *   p = softmax(logits[t,:]) in F32; the per_token largest, lowest index first on ties, NaN last;
 *   their p, with normalize divided by their sum, each rounded to `to`
 *
 * A token has a row for each of its experts; rows are sorted by expert, within one by token. */
typedef struct fp8_route {
    int64_t tokens, experts, per_token; /* 1 <= per_token <= experts; tokens * per_token < 2^31 */
    int normalize;
    fp8_dtype to;        /* BF16 | F32 */
    float *logits;       /* in, spoilt [tokens, experts] */
    int32_t *chosen;     /* out [tokens, per_token] experts, ascending */
    float *weights;      /* out [tokens, per_token] of these */
    int32_t *places;     /* out [tokens, per_token] their rows, ascending */
    int32_t *from;       /* out [tokens * per_token] the token of a row */
    int32_t *begin;      /* out [experts + 1] the first row of each expert */
    int32_t *host_begin; /* out, host: the same; waits for it */
} fp8_route;

/* x[t,:] = sum over the token's experts, in their order, of weight * row, and of sigmoid(gate) *
 * what the shared expert made; each product and each sum rounded to dtype. */
typedef struct fp8_combine {
    int64_t tokens, hidden, per_token;
    fp8_dtype dtype;          /* of x, rows and shared: BF16 | F32 */
    const void *rows;         /* in [tokens * per_token, hidden] */
    const float *weights;     /* in [tokens, per_token] */
    const int32_t *places;    /* in [tokens, per_token] */
    const void *shared;       /* in [tokens, hidden]; NULL: none */
    const float *shared_gate; /* in [tokens] logits; with shared */
} fp8_combine;

typedef struct fp8_ops {
    /* logits F32 [rows, vocab] rounded to the compute type's values (HF's logits are of that
     * type). */
    fp8_status (*round)(fp8_device *d, const fp8_tensor *x, fp8_dtype to);
    /* x F32 = round(cap * round(tanh(round(x / cap)))), rounded to the values of `to`. */
    fp8_status (*softcap)(fp8_device *d, const fp8_tensor *x, float cap, fp8_dtype to);
    /* See fp8_model_score; all pointers in the device's place; kl, top1, reference may be NULL. */
    fp8_status (*score)(fp8_device *d, const fp8_tensor *logits, const fp8_tensor *reference,
                        const int32_t *targets, float *nll, float *kl, uint8_t *top1);
    fp8_status (*route)(fp8_device *d, const fp8_route *r);
    /* x out [tokens, hidden] */
    fp8_status (*combine)(fp8_device *d, void *x, const fp8_combine *c);
} fp8_ops;

const fp8_ops *fp8_ops_cpu(void);
const fp8_ops *fp8_ops_cuda(void); /* only in a build with CUDA */

#ifdef __cplusplus
}
#endif
#endif
