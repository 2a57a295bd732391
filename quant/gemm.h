/* quant/gemm.h - matrix products: D[m,n] = alpha * A[m,k] B[n,k]^T (+ bias[n]), optionally batched.
 *
 * CPU: F32 accumulation, any mix of F32, BF16, F16, E4M3, E5M2 operands, the same result for any
 * thread count: own loops for AVX-512 and AVX2; elsewhere OpenBLAS inside a block when built with
 * it, else portable loops. CUDA: cuBLASLt; FP8 operands where its layout rules fit
 * (fp8_gemm_supported), BF16 and F32 always. */
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
    FP8_ACCUMULATE_FAST       /* Hopper's FP8 accumulators as they are */
} fp8_accumulate;

typedef struct fp8_gemm {
    int64_t m, n, k;
    const void *a; /* [m,k], row stride lda elements */
    const void *b; /* [n,k], row stride ldb; or [k,n] when b_is_kn */
    void *d;       /* [m,n], row stride ldd */
    int64_t lda, ldb, ldd;
    fp8_dtype a_dtype, b_dtype, d_dtype; /* d: F32 | BF16 | F16 */
    int b_is_kn;
    float alpha;
    const float *a_descale, *b_descale; /* NULL = 1; place of the device */
    int64_t a_descale_count; /* 1, or m (one a row of A) */
    int64_t b_descale_count; /* 1, or n (one a row of B) */
    const void *bias;        /* [n], NULL = none */
    fp8_dtype bias_dtype;    /* F32 | BF16 | F16; on CUDA that of d costs least */
    int64_t batch;           /* 0 or 1 = one product */
    int64_t a_stride, b_stride, d_stride; /* elements between the products of a batch */
    fp8_accumulate accumulate;
} fp8_gemm;

/* 1 when `g` (pointers aside) can run as it stands on the device. On CUDA FP8 x FP8 needs k and n
 * multiples of 16, 16-byte aligned rows, not b_is_kn, capability >= 89; else dequantize first. */
int fp8_gemm_supported(const fp8_device *d, const fp8_gemm *g);

/* Bytes of scratch fp8_gemm_run may want for this product (place of d). */
size_t fp8_gemm_workspace_size(const fp8_device *d, const fp8_gemm *g);

/* Asynchronous on CUDA. FP8_EINVAL (sizes, strides, dtypes, NULL), FP8_EUNSUPPORTED, FP8_ECUDA. */
FP8_NODISCARD fp8_status fp8_gemm_run(fp8_device *d, const fp8_gemm *g, void *workspace,
                                      size_t workspace_bytes);

#ifdef __cplusplus
}
#endif
#endif
