/* attention/append.h - the new tokens' Q, K and V from the projections into cache and query, in one
 * pass and one launch: per head RMS norm, RoPE, quantize; K and V to their places in the pages, V
 * transposed; Q packed, as decode and prefill read it.
 *
 * Formulas, value by value, in F32:
 *   q, k   per head h: h * r * w, r = 1 / sqrt(mean(h^2) + eps), where there is a weight; then the
 *          first rotary_dim elements turn by the angles of the token's position:
 *            (a, b) -> (a cos - b sin, b cos + a sin)
 *   codes  e4m3(v * (1 / descale)): nearest even, saturating, NaN 0x7f; real types: v rounded once
 * as fp8_produce_qkv (quant/produce.h), whose results these are, to parts in 10^6 between devices.
 * A cache in a real type takes v in the type of x. The same input gives the same bytes. */
#ifndef FP8_ATTENTION_APPEND_H
#define FP8_ATTENTION_APPEND_H
#include <stdint.h>

#include "attention/cache.h"
#include "core/device.h"
#include "quant/produce.h"
#ifdef __cplusplus
extern "C" {
#endif

/* Which two elements turn together. Table column i is theirs. */
typedef enum fp8_rope_form {
    FP8_ROPE_HALVES,     /* i and i + rotary_dim / 2: Llama, Qwen, GPT-NeoX */
    FP8_ROPE_INTERLEAVED /* 2 i and 2 i + 1: GPT-J, Cohere, DeepSeek */
} fp8_rope_form;

/* One of Q, K, V as the projections left it. */
typedef struct fp8_append_heads {
    const void *x; /* in [total_q, heads, d], place of the device; NULL: this part is absent */
    int64_t token_stride, head_stride; /* elements; 0, 0 = packed */
    const void *norm_weight; /* in [d_qk], type of x; q and k only; NULL: not normed */
    fp8_amax_slot *amax; /* io, 1 slot: joined with the figures of what is quantized, of every row
                          * that is in a sequence, has it a place or not; NULL: none */
} fp8_append_heads;

typedef struct fp8_kv_append {
    fp8_append_heads q, k, v; /* k and v: both or none */
    int32_t num_heads;        /* of Q */
    fp8_dtype dtype;          /* of x and weights: BF16, F16; F32 (cpu only) */
    fp8_norm_kind norm;       /* of heads: RMS | RMS_PLUS (1 + w) */
    float eps;
    int rounded; /* 1: the norm rounds to the real type, RMS before its weight too */
    int32_t rotary_dim; /* even, at most d_qk; 0: nothing turns */
    fp8_rope_form rope;
    const float *cos, *sin; /* in [num_positions, rotary_dim / 2] */
    int64_t num_positions;
    const int32_t *positions; /* in [total_q], clamped to the tables; NULL: the token's key */
    void *q_out;              /* out [total_q, num_heads, d_qk]; may be q.x where it is packed and
                               * of its type */
    fp8_dtype q_dtype;        /* of q_out: E4M3, or dtype */
    const float *q_descale;   /* in, E4M3: [1] or [num_kv_heads] by pages->granularity; Q's head h
                               * goes by KV head h / (num_heads / num_kv_heads) */
} fp8_kv_append;

/* Rows that are in no sequence (beyond q_starts[num_seqs]) are left alone; a row whose key has no
 * place in the cache still gives its Q. Runs on `d`: pool threads on the CPU, asynchronously on the
 * stream on CUDA; nothing is allocated. Distinct tokens of a call must have distinct places.
 * FP8_EINVAL: NULL where something is needed, sizes or types not named above; FP8_EUNSUPPORTED: F32
 * on CUDA; FP8_ECUDA. */
FP8_NODISCARD fp8_status fp8_kv_append_run(fp8_device *d, const fp8_kv_pages *pages,
                                           const fp8_kv_batch *batch, const fp8_kv_append *append,
                                           fp8_launch launch);

#ifdef __cplusplus
}
#endif
#endif
