/* model/block.h - one decoder block over Linears that the caller made: GPT-2's (LayerNorm, GELU,
 * biases), Llama's and Gemma's (RMS norm, gated MLP, RoPE). It is the layer of every model here
 * (model/layer.c), so that both compute the same:
 *
 *   x += o(attention(rope(q(n)), rope(k(n)), v(n)))   n = norm1(x)
 *   x += down(act(gate(n)) * up(n))                   n = norm2(x);  down(act(up(n))) if ungated
 *
 * The precision of the Linears is theirs: dense, FP8 by a static scale, by a token's, or in blocks.
 * Attention is causal, in the compute type, or in E4M3 where descales of q, k and v are given.
 * One thread uses a block at a time. A forward is asynchronous on CUDA and can be captured in a
 * graph after one forward of the same batch: a new one brings an attention plan. */
#ifndef FP8_MODEL_BLOCK_H
#define FP8_MODEL_BLOCK_H
#include <stdint.h>

#include "attention/attention.h"
#include "attention/cache.h"
#include "quant/quant.h"
#ifdef __cplusplus
extern "C" {
#endif

struct fp8_tap; /* model.h */

typedef struct fp8_block fp8_block;

typedef enum fp8_block_steps {
    FP8_BLOCK_AT_STORE = 0, /* residuals, GELU (tanh), and codes of a known scale are made at the
                             * store of a product where nothing stands between */
    FP8_BLOCK_SINGLE        /* each a pass of its own: to measure what the above is worth */
} fp8_block_steps;

/* Tensors are [hidden] (norms of heads [head_dim]), of the compute type, in the place of the
 * device; data NULL = none. They and the Linears are the caller's and outlive the block. */
typedef struct fp8_block_spec {
    int64_t hidden, num_heads, num_kv_heads, head_dim;
    int64_t max_tokens;   /* most that one forward may bring: sizes the scratch */
    int64_t max_position; /* positions are below it; 0 = max_tokens */
    fp8_dtype compute;    /* BF16; on the CPU F32 too */
    fp8_norm_kind norm;
    float norm_eps;
    fp8_tensor norm1, norm1_bias, norm2, norm2_bias; /* biases: LAYER's */
    fp8_tensor q_norm, k_norm;                       /* of each head, before RoPE */
    fp8_tensor norm1_after, norm2_after;             /* of what is added: Gemma 2 and 3 */
    /* inputs DENSE, STATIC, DYNAMIC or GROUPS; gate NULL: none */
    fp8_linear *q, *k, *v, *o, *gate, *up, *down;
    fp8_activation act;
    int64_t rotary_dim;    /* elements of a head that turn; 0: no RoPE */
    double rope_theta;
    int64_t window;        /* keys a query sees, itself included; 0 = all before it */
    float attention_scale; /* 0: 1 / sqrt(head_dim) */
    float softcap;
    float q_descale, k_descale, v_descale; /* all positive: attention in E4M3; all 0: not */
    int quantize_p;                        /* these two as fp8_attention_options has them */
    fp8_attention_precision precision;
    fp8_attention_backend backend;         /* AUTO, or one that must serve */
    fp8_accumulate accumulate;             /* of the FP8 Linears */
    fp8_block_steps steps;
    /* q, k, v and gate, up in one product (fp8_linear_join), for forwards over pages; q, k, v over
     * whole sequences too, where no RoPE or norm follows and their descales are one; NULL: none */
    fp8_linear *joined_qkv, *joined_up;
} fp8_block_spec;

/* FP8_EINVAL: sizes, types or scalings that do not fit (which), FP8_ENOMEM, FP8_ECUDA. */
FP8_NODISCARD fp8_status fp8_block_create(fp8_block **out, fp8_device *d,
                                          const fp8_block_spec *spec);
void fp8_block_destroy(fp8_block *b);

/* Packed sequences, each from its first token on. Arrays in the place of the device. */
typedef struct fp8_block_batch {
    const int32_t *starts;    /* [num_seqs + 1] */
    const int32_t *positions; /* [tokens]; NULL without RoPE */
    int64_t num_seqs, max_len;
    int equal; /* 1: every sequence has max_len tokens */
} fp8_block_batch;

/* y = the block of x, both [tokens, hidden] of the compute type; y may be x. tap (model.h), layer
 * 0, sees the points of a layer, in their values: then nothing is made at a store. FP8_EINVAL: x, y
 * or batch; FP8_EUNSUPPORTED: no backend serves this attention. */
FP8_NODISCARD fp8_status fp8_block_forward(fp8_block *b, const fp8_tensor *y,
                                           const fp8_tensor *x, const fp8_block_batch *batch,
                                           const struct fp8_tap *tap);

/* The same with keys and values in pages of the caller's (attention/cache.h): those of x's tokens
 * are appended, and a token sees all keys of its sequence up to its own. pages: E4M3 where the
 * block has descales, which are then theirs, else of the compute type; batch->total_q = x's rows.
 * positions may be NULL without RoPE. Decoding is a token a sequence; prefill in pieces, and both
 * mixed, are batches like others. A captured one is good until a forward over pages of other sizes
 * brings another plan. FP8_EINVAL: x, y, pages or batch. */
FP8_NODISCARD fp8_status fp8_block_forward_pages(fp8_block *b, const fp8_tensor *y,
                                                 const fp8_tensor *x, const int32_t *positions,
                                                 const fp8_kv_pages *pages,
                                                 const fp8_kv_batch *batch);

/* fp8_linear_tune of every product, as a forward of so many tokens calls it. Waits. */
FP8_NODISCARD fp8_status fp8_block_tune(fp8_block *b, int64_t tokens);

/* The attention backend of the last forward without pages; AUTO before the first. */
fp8_attention_backend fp8_block_backend(const fp8_block *b);

#ifdef __cplusplus
}
#endif
#endif
