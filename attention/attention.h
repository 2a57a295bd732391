/* attention/attention.h - scaled dot-product attention over packed sequences, with the softmax in
 * FP32, behind one plan/run pair over several backends.
 *
 *   O[i] = sum_j softmax_j(scale * Q[i] . K[j], masked) V[j]      per sequence and query head
 *
 * Backends, named as Transformer Engine's users know them: `flash` (our FP8 kernel for Hopper:
 * codes in, P in E4M3, d 64, 128 or 256), `fused` (cuDNN), `unfused` (cuBLASLt products around an
 * FP32 softmax kernel; any GPU, any option here), `cpu` (threaded; with F32 data it is the oracle).
 * plan() picks one and keeps, in words, why each other was passed over. FP8_FLASH_ATTN=0|1 (so far
 * `flash` serves only with 1, or when the options ask for it), FP8_FUSED_ATTN=0|1 and
 * FP8_UNFUSED_ATTN=0|1 switch backends off; FP8_ATTENTION_BACKEND prefers one.
 * A plan holds no data; run() allocates no device memory and does not synchronise.
 *
 * Numerics: scores, maximum and sum in FP32, one rounding of O. P meets V as FP32 on the CPU and as
 * BF16 on CUDA, or as E4M3 with quantize_p; the sum is of the unrounded exponentials. NaN and Inf
 * follow the formula: in Q they spoil their row, in K and V the rows that see them, and in V
 * possibly others of the sequence (0 * NaN). */
#ifndef FP8_ATTENTION_ATTENTION_H
#define FP8_ATTENTION_ATTENTION_H
#include <stddef.h>
#include <stdint.h>

#include "core/device.h"
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

typedef enum fp8_attention_mask {
    FP8_MASK_NONE,
    FP8_MASK_CAUSAL /* bottom-right: query i of s_q sees keys j <= i + s_kv - s_q */
} fp8_attention_mask;

typedef struct fp8_attention_options {
    int32_t num_heads, num_kv_heads, d_qk, d_v; /* num_heads a multiple of num_kv_heads */
    int64_t num_seqs, max_q, max_kv;            /* largest lengths a run may bring */
    fp8_attention_mask mask;
    int64_t window; /* keys each query sees, itself included (causal only); 0 = all */
    float scale;    /* multiplies Q K^T; 0 = 1/sqrt(d_qk) */
    fp8_dtype dtype;   /* type of O, and of Q, K, V unless they are codes: BF16 | F32 (CPU only) */
    fp8_dtype q_dtype, kv_dtype; /* dtype, or E4M3 with descales at run time */
    int quantize_p;    /* 1: P is rounded to E4M3 with a 2^8 offset before P V, as FP8 kernels do */
    int uniform; /* 1: a promise that all lengths are max_q and max_kv, that sequence s starts at
                  * row s * max, and that strides are the four below; `fused` needs it */
    fp8_attention_backend backend; /* AUTO, or one that must serve (else FP8_EUNSUPPORTED) */
    int64_t o_stride, q_stride, k_stride, v_stride; /* of a uniform plan; 0 = heads * d, packed */
} fp8_attention_options;

/* Packed (thd) operands. Token t of sequence s is row starts[s] + t. */
typedef struct fp8_attention_io {
    void *o;               /* [total_q, num_heads, d_v], row stride o_stride elements */
    const void *q, *k, *v; /* [total_q, num_heads, d_qk], [total_kv, num_kv_heads, d_qk | d_v] */
    int64_t o_stride, q_stride, k_stride, v_stride; /* elements between tokens */
    const int32_t *q_starts, *kv_starts; /* [num_seqs + 1], place of the device */
    int64_t total_q, total_kv;           /* rows that may be read or written */
    const float *q_descale, *k_descale, *v_descale; /* 1 float each, same place; E4M3 only */
} fp8_attention_io;

typedef struct fp8_attention_plan fp8_attention_plan;

/* FP8_EINVAL: a size or option that makes no sense; FP8_EUNSUPPORTED: nothing serves it. */
FP8_NODISCARD fp8_status fp8_attention_plan_create(fp8_attention_plan **out, fp8_device *d,
                                                   const fp8_attention_options *options);
void fp8_attention_plan_destroy(fp8_attention_plan *p);
fp8_attention_backend fp8_attention_plan_backend(const fp8_attention_plan *p);
/* One line a backend: "fused: cuDNN 9.14: serves" / "fused: sliding window ...". */
const char *fp8_attention_plan_reasons(const fp8_attention_plan *p);
/* cpu: some hundred KB a thread, whatever the lengths. unfused: at most 1 GiB beside what cuBLASLt
 * wants, more only where 64 queries of one KV head need it. fused: what cuDNN asks for. */
size_t fp8_attention_workspace_size(const fp8_attention_plan *p);

/* Rows with no key to see, and sequences of length 0, give 0. Lengths beyond the plan's maxima or
 * starts outside the totals are clamped: no byte outside the buffers is read or written.
 * Asynchronous on CUDA. `flash` wants addresses and rows of O, Q, K, V that are multiples of 16
 * bytes. FP8_EINVAL (NULL, strides, alignment, workspace), FP8_ECUDA. */
FP8_NODISCARD fp8_status fp8_attention_run(fp8_attention_plan *p, const fp8_attention_io *io,
                                           void *workspace, size_t workspace_bytes);

const char *fp8_attention_backend_name(fp8_attention_backend b);

#ifdef __cplusplus
}
#endif
#endif
