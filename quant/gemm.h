/* quant/gemm.h - matrix products with what is fused behind them, optionally batched:
 *
 *   v[m,n] = act(alpha * sum_k a_descale A[m,k] * b_descale B[n,k] + bias[n]) + residual[m,n],
 *            or act(its first n / 2 columns) * the others
 *   D = v rounded once, or cast(v * d_scale);  d_amax = max |v|
 *
 * CPU: F32 accumulation, any mix of F32, BF16, F16, E4M3, E5M2 operands, the same result for any
 * thread count: own loops for AVX-512 and AVX2; elsewhere OpenBLAS inside a block when built with
 * it, else portable loops. CUDA: cuBLASLt; FP8 operands where its layout rules fit
 * (fp8_gemm_supported), BF16 and F32 always. What cuBLASLt cannot do at its store, a kernel of
 * ours does behind it: the same numbers, one more pass over D. Which algorithm it runs:
 * quant/gemm_tune.h. */
#ifndef FP8_QUANT_GEMM_H
#define FP8_QUANT_GEMM_H
#include <stddef.h>
#include <stdint.h>

#include "core/device.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef enum fp8_accumulate {
    FP8_ACCUMULATE_EXACT = 0, /* FP32 promotion: the default everywhere */
    FP8_ACCUMULATE_FAST       /* Hopper's FP8 accumulators as they are; not with BLOCKS */
} fp8_accumulate;

typedef enum fp8_gemm_scaling {
    FP8_GEMM_ROWS = 0, /* descales by their count: one, or one a row of A or B */
    FP8_GEMM_BLOCKS    /* A: one a row and FP8_GEMM_BLOCK columns; B: one a square of that side */
} fp8_gemm_scaling;

enum { FP8_GEMM_BLOCK = 128 };

typedef enum fp8_gemm_activation {
    FP8_GEMM_IDENTITY = 0,
    FP8_GEMM_GELU_TANH,  /* as FP8_ACT_GELU_TANH; no activation together with a residual */
    FP8_GEMM_SWIGLU,     /* these two are gated: n is even, the first half of B's rows is the gate,
                          * the second up, D is [m, n/2] = act(gate) * up; FP8_ACT_SILU */
    FP8_GEMM_GEGLU_TANH
} fp8_gemm_activation;

static inline int fp8_gemm_is_gated(fp8_gemm_activation a) { return a >= FP8_GEMM_SWIGLU; }

/* Who makes a product on CUDA. */
typedef enum fp8_gemm_backend {
    FP8_GEMM_AUTO = 0, /* SKINNY where it serves and was measured faster (docs/LINEAR.md), else
                        * cuBLASLt. FP8_GEMM_SKINNY in the environment: 0 cuBLASLt, 1 SKINNY
                        * wherever it serves */
    FP8_GEMM_SKINNY,   /* or FP8_EUNSUPPORTED: a kernel of ours for few rows of A, made to read B at
                        * the speed of memory, with all of the store. Hopper, E4M3 x E4M3 -> F32 |
                        * BF16 | F16 | E4M3, m up to 128, any n and k, rows of A and B on 16 bytes,
                        * descales by count; always EXACT */
    FP8_GEMM_CUBLASLT  /* whatever the environment says */
} fp8_gemm_backend;

typedef struct fp8_gemm {
    int64_t m, n, k;
    const void *a; /* [m,k], row stride lda elements */
    const void *b; /* [n,k], row stride ldb; or [k,n] when b_is_kn */
    void *d;       /* [m,n], row stride ldd; [m,n/2] where the activation is gated */
    int64_t lda, ldb, ldd;
    fp8_dtype a_dtype, b_dtype, d_dtype; /* d: F32 | BF16 | F16 | E4M3 */
    int b_is_kn;
    float alpha;
    fp8_gemm_scaling scaling;
    const float *a_descale, *b_descale; /* NULL = 1 (not with BLOCKS); place of the device */
    int64_t a_descale_count; /* ROWS: 1, or m (one a row of A) */
    int64_t b_descale_count; /* ROWS: 1, or n (one a row of B) */
    int64_t a_descale_ld;    /* BLOCKS: row i, columns 128g ..: a_descale[g * a_descale_ld + i] */
    int64_t b_descale_ld;    /* BLOCKS: block (i, g): b_descale[i * b_descale_ld + g]; CUDA:
                              * ceil(k / 128) up to a multiple of 4, the pointer on 16 bytes */
    const void *bias;        /* [n], NULL = none */
    fp8_dtype bias_dtype;    /* F32 | BF16 | F16; on CUDA that of d (E4M3, F32: BF16) costs least */
    fp8_gemm_activation activation;
    const void *residual;     /* [m,n], row stride ldr; may be d where type and stride are d's;
                               * NULL = none */
    fp8_dtype residual_dtype; /* F32 | BF16 | F16; on CUDA that of d (E4M3: BF16) costs least */
    int64_t ldr;
    const float *d_scale; /* E4M3 d: quantize multiplier, place of the device; NULL = 1 */
    float *d_amax;        /* out: max |v|, not defined where a v is not finite; NULL = not wanted */
    int64_t batch;        /* 0 or 1 = one product */
    int64_t a_stride, b_stride, d_stride, r_stride; /* elements between the products of a batch */
    fp8_accumulate accumulate;
    fp8_gemm_backend backend;
    fp8_launch launch; /* where SKINNY runs, OVERLAP says that B is a constant (core/device.h) */
} fp8_gemm;

/* 1 when `g` (pointers aside) can run as it stands on the device. On CUDA FP8 x FP8 needs k and n
 * multiples of 16, 16-byte aligned rows, not b_is_kn, not both E5M2, capability >= 89; BLOCKS needs
 * Hopper, cuBLAS 12.9, EXACT, no batch. Else dequantize first. fp8_gemm_run says in words which. */
int fp8_gemm_supported(const fp8_device *d, const fp8_gemm *g);

/* 1 where g's gated activation is made as the sums leave the registers and that was measured faster
 * than a pass of its own behind the product (fp8_produce_act); elsewhere it is made from F32 sums
 * in memory. */
int fp8_gemm_gates(const fp8_device *d, const fp8_gemm *g);

/* Bytes of scratch fp8_gemm_run may want for this product (place of d), and for any with fewer
 * rows. */
size_t fp8_gemm_workspace_size(const fp8_device *d, const fp8_gemm *g);

/* Asynchronous on CUDA, and can be captured. FP8_EINVAL (sizes, strides, dtypes, NULL),
 * FP8_EUNSUPPORTED, FP8_ECUDA. */
FP8_NODISCARD fp8_status fp8_gemm_run(fp8_device *d, const fp8_gemm *g, void *workspace,
                                      size_t workspace_bytes);

#ifdef __cplusplus
}
#endif
#endif
