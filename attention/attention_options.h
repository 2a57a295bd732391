/* attention/attention_options.h - what an attention is: masks, biases, types, layout and all other
 * choices of a plan, and the operands of a run. attention.h is the header to include. */
#ifndef FP8_ATTENTION_ATTENTION_OPTIONS_H
#define FP8_ATTENTION_ATTENTION_OPTIONS_H
#include <stdint.h>

#include "attention/layout.h"
#include "core/tensor.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef enum fp8_attention_backend {
    FP8_BACKEND_AUTO,
    FP8_BACKEND_FLASH,
    FP8_BACKEND_FUSED,
    FP8_BACKEND_UNFUSED,
    FP8_BACKEND_CPU
} fp8_attention_backend;

/* Lengths go with each of them. */
typedef enum fp8_attention_mask {
    FP8_MASK_NONE,
    FP8_MASK_CAUSAL,              /* top-left: query i sees keys j <= i */
    FP8_MASK_CAUSAL_BOTTOM_RIGHT, /* j <= i + s_kv - s_q, with the sequence's own lengths */
    FP8_MASK_ARBITRARY            /* io.mask: nonzero = masked out */
} fp8_attention_mask;

typedef enum fp8_attention_bias {
    FP8_BIAS_NONE,
    FP8_BIAS_PRE_SCALE,  /* S = scale * (Q K^T + bias) */
    FP8_BIAS_POST_SCALE, /* S = scale * Q K^T + bias */
    FP8_BIAS_ALIBI       /* S = scale * Q K^T + slope[h] * (j - (i + s_kv - s_q)); with
                          * FP8_MASK_CAUSAL (top-left) the distance is j - i */
} fp8_attention_bias;

/* Leading dimensions of bias (and of io.mask): [b or 1, h or 1, max_q, max_kv], packed. */
typedef enum fp8_attention_bias_shape {
    FP8_BIAS_11SS,
    FP8_BIAS_1HSS,
    FP8_BIAS_B1SS,
    FP8_BIAS_BHSS
} fp8_attention_bias_shape;

typedef enum fp8_attention_sink {
    FP8_SINK_NONE,
    FP8_SINK_OFF_BY_ONE, /* the sum of exponentials gains exp(0); P is rounded as without */
    FP8_SINK_LEARNABLE   /* ... exp(io.sink[h]) */
} fp8_attention_sink;

/* Index of a descale: tensor 0; head: KV head; batch_head: sequence * num_kv_heads + KV head. That
 * of Q goes by KV head too, as in FlashAttention-3. */
typedef enum fp8_attention_granularity {
    FP8_DESCALE_TENSOR,
    FP8_DESCALE_HEAD,
    FP8_DESCALE_BATCH_HEAD
} fp8_attention_granularity;

/* What becomes of Q, K, V that are not FP8. */
typedef enum fp8_attention_quantize {
    FP8_QUANTIZE_NOT,    /* attention in their own type */
    FP8_QUANTIZE_GIVEN,  /* codes e4m3(x * (1 / descale)), F32, descales given: static, delayed */
    FP8_QUANTIZE_CURRENT /* likewise, descale = amax / 448 of the finite values of this call's
                          * sequences, at least 2^-126; 1 where that amax is 0 */
} fp8_attention_quantize;

typedef enum fp8_attention_precision {
    FP8_ATTENTION_EXACT, /* sums of FP8 P V promoted to FP32 before they lose 1 %, at any length */
    FP8_ATTENTION_FAST   /* Hopper's FP8 accumulators as they are, as the peers do */
} fp8_attention_precision;

typedef struct fp8_attention_options {
    int32_t num_heads, num_kv_heads, d_qk, d_v; /* num_heads a multiple of num_kv_heads */
    int64_t num_seqs, max_q, max_kv;            /* largest lengths a run may bring */
    fp8_attention_layout layout;
    int has_strides;        /* 1: the four below count, not those of the layout */
    fp8_strides q, k, v, o; /* elements; no two elements of a tensor in one place */
    int padding; /* 1: runs of a layout that is not packed bring lengths, or may; with 0 they are
                  * all max_q and max_kv. Packed sequences always have lengths. */
    fp8_attention_mask mask;
    fp8_attention_bias_shape mask_shape; /* of FP8_MASK_ARBITRARY */
    int64_t window_left, window_right;   /* query at diagonal t sees keys t - left .. t + right;
                                          * -1 = no bound. The diagonal is that of the mask,
                                          * bottom-right for FP8_MASK_NONE and ARBITRARY. */
    fp8_attention_bias bias;
    fp8_attention_bias_shape bias_shape;
    fp8_dtype bias_dtype; /* F32 | BF16 | F16 */
    float softcap;        /* S = softcap * tanh(S / softcap) before the post-scale bias; 0 = none */
    fp8_attention_sink sink;
    float scale;          /* multiplies Q K^T; 0 = 1/sqrt(d_qk) */
    fp8_dtype q_dtype, kv_dtype; /* E4M3 with descales, BF16, F16, or F32 (cpu, unfused); those that
                                  * are not E4M3 of one type */
    fp8_dtype o_dtype;    /* BF16, F16, F32, or E4M3 with io.o_scale */
    fp8_attention_quantize quantize; /* of Q, K, V that are not E4M3 (fp8_dpa) */
    int hadamard; /* 1: Q and K, both quantized here, are rotated before, which spreads outliers:
                   * in each block of B columns r[c] = sum_i (-1)^popcount(i & c) x[i] / sqrt(B),
                   * B the largest power of two that divides d_qk, at most 128. S stays what it is;
                   * descales of Q and K, given or current, are those of r. flash: d_qk a multiple
                   * of 32 */
    fp8_attention_granularity granularity; /* of the three descales */
    int quantize_p; /* 1: P is rounded to E4M3 with a 2^8 offset before P V, as FP8 kernels do;
                     * flash and fused always do for FP8 operands and serve only with it */
    fp8_attention_precision precision;
    int32_t promote_keys; /* the most keys between promotions; 0: the backend's choice */
    int want_lse, want_amax; /* 1: io.lse, io.amax_s and io.amax_o are written */
    fp8_attention_backend backend; /* AUTO, or one that must serve (else FP8_EUNSUPPORTED) */
} fp8_attention_options;
/* Start from this: fp8_attention_options o = FP8_ATTENTION_OPTIONS; then set sizes and the rest. */
#define FP8_ATTENTION_OPTIONS                                                                      \
    {                                                                                              \
        .layout = FP8_LAYOUT_THD_THD_THD, .window_left = -1, .window_right = -1,                   \
        .bias_dtype = FP8_DTYPE_F32, .q_dtype = FP8_DTYPE_BF16, .kv_dtype = FP8_DTYPE_BF16,        \
        .o_dtype = FP8_DTYPE_BF16                                                                  \
    }

/* Operands, all in the place of the device. Token i of sequence s is row starts[s] + i of a packed
 * layout, (s, i) of the others. Unless it says otherwise a pointer may be NULL where the plan's
 * options do not ask for it. */
typedef struct fp8_attention_io {
    void *o;                              /* out */
    const void *q, *k, *v;                /* of max_q, max_kv rows a sequence, or total rows */
    const int32_t *q_starts, *kv_starts;  /* packed: [num_seqs], or [num_seqs + 1] if no lengths */
    const int32_t *q_lengths, *kv_lengths; /* [num_seqs]; NULL: packed, starts[s + 1] - starts[s];
                                            * else max_q, max_kv. Not packed: only with padding */
    int64_t total_q, total_kv;            /* packed: rows that may be read or written */
    const float *q_descale, *k_descale, *v_descale; /* E4M3 or FP8_QUANTIZE_GIVEN */
    const float *o_scale;                 /* [1], E4M3 out: codes = e4m3(O * o_scale) */
    const uint8_t *mask;                  /* mask_shape */
    const void *bias;                     /* bias_shape */
    const float *alibi_slopes;            /* [num_heads]; NULL: fp8_attention_alibi_slopes' */
    const float *sink;                    /* [num_heads] */
    float *lse;    /* [num_seqs, num_heads, max_q], or [num_heads, total_q] packed: log of the sum
                    * of exponentials (sink included), natural; -inf for a row without a key */
    float *amax_s, *amax_o; /* [1] each: max P (softmax'd) and max |O| before o_scale, written */
} fp8_attention_io;

#ifdef __cplusplus
}
#endif
#endif
