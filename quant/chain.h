/* quant/chain.h - Linears that follow each other, in one launch.
 *
 * In a decoding step the Linears between two attentions (o, gate and up, down, and the next layer's
 * q, k and v) take some 5 to 40 us each. Launched one by one, memory rests for 3 to 4 us at the end
 * of each. A chain is one kernel: weights stream on while sums are joined, normed and quantized.
 *
 *   codes x -> o, h += ..  -> norm -> codes -> gate, up, act -> codes -> down, h += .. -> norm ..
 */
#ifndef FP8_QUANT_CHAIN_H
#define FP8_QUANT_CHAIN_H
#include <stddef.h>
#include <stdint.h>

#include "quant/linear.h"
#include "quant/produce.h"
#ifdef __cplusplus
extern "C" {
#endif

enum { FP8_CHAIN_MAX_STEPS = 4, FP8_CHAIN_MAX_TOKENS = 128 };

/* v = act(c W^T + b), c the step's codes. With `adds`, h = round(h + v): the residual stream. What
 * the next step reads is codes, by its own input scale, of norm(h) after a step that adds, else of
 * v. The last step has neither norm nor activation: it adds, or its v is y. */
typedef struct fp8_chain_step {
    const fp8_linear *linear; /* E4M3 [out, in], descale of the tensor or one an output, input
                               * STATIC, compute type BF16; outlives the chain */
    fp8_gemm_activation activation; /* gated: `linear` is gate and up joined */
    int adds;                       /* not with an activation */
    const void *norm_weight;        /* BF16 [out], place; where it adds and is not the last, else
                                     * NULL */
    const void *norm_bias;          /* BF16 [out]: FP8_NORM_LAYER's; NULL: none */
    fp8_norm_kind norm;
    float eps;
} fp8_chain_step;

typedef struct fp8_chain fp8_chain;

/* count: 1 to FP8_CHAIN_MAX_STEPS. FP8_EINVAL: steps that do not fit each other; FP8_EUNSUPPORTED:
 * Linears of other kinds than a chain is made of (each message says which step and why);
 * FP8_ENOMEM, FP8_ECUDA. It is one launch where FP8_CHAIN=1 in the environment asks for that:
 * measured, in an engine it takes as long as its steps (docs/NOTES.md). */
FP8_NODISCARD fp8_status fp8_chain_create(fp8_chain **out, fp8_device *d,
                                          const fp8_chain_step *steps, int32_t count);
void fp8_chain_destroy(fp8_chain *c); /* NULL is fine */

/* Place of the device; two chains of one stream may use the same. */
size_t fp8_chain_workspace_size(const fp8_chain *c, int64_t max_tokens);

/* 1: so many tokens are one launch (asked for, Hopper, 1 to FP8_CHAIN_MAX_TOKENS tokens, every in
 * and out a multiple of 16); 0: fp8_chain_run goes step by step, as fp8_linear_apply and
 * fp8_produce_norm would. *why, if not NULL: the reason, a constant. */
int fp8_chain_is_one_launch(const fp8_chain *c, int64_t tokens, const char **why);

typedef struct fp8_chain_call {
    const fp8_tensor *x; /* in: E4M3 [tokens, in of the first step], by its input scale */
    const fp8_tensor *h; /* io: BF16 [tokens, out of each step that adds], packed; NULL: none */
    const fp8_tensor *y; /* out: BF16 [tokens, out of the last step], packed; NULL: it adds */
    void *workspace;     /* on 256 bytes */
    size_t workspace_bytes;
} fp8_chain_call;

/* Asynchronous, allocates nothing, can be captured. Sums are promoted to FP32 every 128 of K; their
 * order follows from the shapes alone: a token's bytes are the same whatever tokens are beside it
 * and how many. One chain runs on one stream at a time. NOTE: the kernel's blocks wait for each
 * other, one a multiprocessor: two chains on two streams of one GPU at once may never end.
 * FP8_EINVAL: shapes, types, workspace (expected, found). */
FP8_NODISCARD fp8_status fp8_chain_run(const fp8_chain *c, const fp8_chain_call *call);

#ifdef __cplusplus
}
#endif
#endif
