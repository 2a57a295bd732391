/* quant/gemm_cuda.h - private: the parts of a matrix product on CUDA. gemm_cuda.c decides who does
 * what; gemm_lt_cuda.c is one call of cuBLASLt, gemm_choice_cuda.c the algorithm it uses,
 * gemm_tune_cuda.c the timing of algorithms; gemm_store.cu what cuBLASLt cannot do at its store. */
#ifndef FP8_QUANT_GEMM_CUDA_H
#define FP8_QUANT_GEMM_CUDA_H
#include "quant/gemm.h"
#include "quant/gemm_tune.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum fp8_lt_scaling {
    FP8_LT_NONE,   /* no descales */
    FP8_LT_SCALAR, /* one float each (or NULL) */
    FP8_LT_OUTER,  /* vectors [m] and [n]; Hopper, cuBLAS 12.9 */
    FP8_LT_BLOCKS  /* [k / 128][m] and [n / 128][k / 128, padded]; likewise; m a multiple of 4 */
} fp8_lt_scaling;

typedef struct fp8_lt_tuning fp8_lt_tuning;

/* g's product as cuBLASLt is to make it: sizes and operands are g's, everything behind the sum is
 * what is named here. */
typedef struct fp8_lt_call {
    const fp8_gemm *g;
    void *d;
    fp8_dtype d_dtype;
    int64_t ldd, d_stride;
    float alpha;
    fp8_lt_scaling scaling;
    const float *a_descale, *b_descale;
    const void *bias; /* NULL = none */
    fp8_dtype bias_dtype;
    const void *residual; /* NULL = none */
    fp8_dtype c_dtype;    /* of the residual; without one, of d unless that is FP8 */
    int64_t ldr, r_stride;
    int gelu;
    const float *d_scale; /* FP8 d */
    float *d_amax;        /* FP8 d; NULL = none */
    void *workspace;
    size_t workspace_bytes;
    fp8_lt_tuning *tuning; /* not NULL: time the algorithms first */
} fp8_lt_call;

/* *found = 0, and nothing done, when cuBLASLt offers no algorithm for it. */
fp8_status fp8_lt_run(fp8_device *d, const fp8_lt_call *call, int *found);

/* The product; with tuning, algorithms are timed where cuBLASLt is called. */
fp8_status fp8_cuda_gemm_make(fp8_device *d, const fp8_gemm *g, void *workspace,
                              size_t workspace_bytes, fp8_lt_tuning *tuning);

/* Rows [row0, row0 + rows) of g's D, of every product of the batch, from F32 sums: g's whole store,
 * descales included unless these are BLOCKS. sums row i is row row0 + i; NULL: all 0. May work in
 * place (sums = D's rows). d_amax is joined, not set. */
fp8_status fp8_cuda_gemm_store(fp8_device *d, const fp8_gemm *g, const float *sums, int64_t ld,
                               int64_t stride, int64_t row0, int64_t rows);

/* out[i] = *scalar (NULL: 1), n of them. */
fp8_status fp8_cuda_repeat(fp8_device *d, float *out, const float *scalar, int64_t n);

#ifdef __cplusplus
}
#endif
#endif
