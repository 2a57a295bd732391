/* quant/gemm_cuda.h - private: the parts of a matrix product on CUDA. gemm_cuda.c decides who does
 * what; gemm_lt_cuda.c is one call of cuBLASLt; gemm_store.cu what cuBLASLt cannot do at its
 * store. */
#ifndef FP8_QUANT_GEMM_CUDA_H
#define FP8_QUANT_GEMM_CUDA_H
#include "quant/gemm.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum fp8_lt_scaling {
    FP8_LT_NONE,   /* no descales */
    FP8_LT_SCALAR, /* one float each (or NULL) */
    FP8_LT_OUTER   /* vectors [m] and [n]; Hopper, cuBLAS 12.9 */
} fp8_lt_scaling;

/* g's product as cuBLASLt is to make it: result, descales and bias are those named here, not
 * g's. */
typedef struct fp8_lt_call {
    const fp8_gemm *g;
    void *d;
    fp8_dtype d_dtype;
    int64_t ldd, d_stride;
    float alpha;
    fp8_lt_scaling scaling;
    const float *a_descale, *b_descale;
    const void *bias; /* of d_dtype; NULL = none */
    void *workspace;
    size_t workspace_bytes;
} fp8_lt_call;

/* *found = 0, and nothing done, when cuBLASLt offers no algorithm for it. */
fp8_status fp8_lt_run(fp8_device *d, const fp8_lt_call *call, int *found);

/* Rows [row0, row0 + rows) of g's D, of every product of the batch, from F32 sums:
 * d = round(alpha * a_descale * b_descale * sums + bias). sums row i is row row0 + i; NULL: all 0.
 * May work in place (sums = D's rows). */
fp8_status fp8_cuda_gemm_store(fp8_device *d, const fp8_gemm *g, const float *sums, int64_t ld,
                               int64_t stride, int64_t row0, int64_t rows);

/* out[i] = *scalar (NULL: 1), n of them. */
fp8_status fp8_cuda_repeat(fp8_device *d, float *out, const float *scalar, int64_t n);

#ifdef __cplusplus
}
#endif
#endif
