/* quant/gemm_cpu.h - private: the CPU matrix product over one version of the row primitives, which
 * tests choose. Arguments were checked. */
#ifndef FP8_QUANT_GEMM_CPU_H
#define FP8_QUANT_GEMM_CPU_H
#include "quant/gemm.h"
#include "quant/simd.h"

/* Up to this many rows of A the product is limited by reading B once: no packing, no workspace. */
enum { FP8_GEMM_SMALL_M = 8, FP8_GEMM_STORE_MAX = 256 };

/* Who multiplies inside a block: fp8_simd.tile, or OpenBLAS. */
typedef enum fp8_inner { FP8_INNER_TILE, FP8_INNER_BLAS } fp8_inner;
fp8_inner fp8_inner_best(void);

size_t fp8_cpu_gemm_workspace_size(const fp8_simd *s, int32_t threads, const fp8_gemm *g);
fp8_status fp8_cpu_gemm_run(const fp8_simd *s, fp8_inner inner, fp8_pool *p, const fp8_gemm *g,
                            void *workspace, size_t workspace_bytes);

/* c [m, n] = (first ? 0 : c) + a b; a [m, k] with rows FP8_TILE_A_STRIDE apart; b [n, k], or [k, n]
 * when b_is_kn. Only called where available. */
int fp8_blas_available(void);
void fp8_blas_slab(float *c, int64_t ldc, const float *a, const float *b, int b_is_kn, int64_t ldb,
                   int64_t m, int64_t n, int64_t k, int first);

/* m <= FP8_GEMM_SMALL_M, b not b_is_kn. */
fp8_status fp8_cpu_gemm_small(const fp8_simd *s, fp8_pool *p, const fp8_gemm *g);

/* Pointer to element [row, col] of product `batch` of an operand. */
static inline const char *fp8_gemm_at(const void *x, fp8_dtype t, int64_t ld, int64_t stride,
                                      int64_t batch, int64_t row, int64_t col) {
    return (const char *)x + (batch * stride + row * ld + col) * (int64_t)fp8_dtype_size(t);
}

/* out [k] = A[row, k0 ..], out [n] = B[row, k0 ..] or, b_is_kn, B[row, col0 ..] of product `batch`
 * in F32, times its descales where these are BLOCKS. k0 and col0 are multiples of FP8_GEMM_BLOCK
 * then. */
void fp8_gemm_widen_a(const fp8_simd *s, const fp8_gemm *g, int64_t batch, int64_t row, int64_t k0,
                      float *out, int64_t k);
void fp8_gemm_widen_b(const fp8_simd *s, const fp8_gemm *g, int64_t batch, int64_t row,
                      int64_t col0, float *out, int64_t n);

/* A gated product: F32 sums of all n columns in the workspace, then the store of half as many. */
size_t fp8_cpu_gemm_gated_size(const fp8_simd *s, int32_t threads, const fp8_gemm *g);
fp8_status fp8_cpu_gemm_gated(const fp8_simd *s, fp8_inner inner, fp8_pool *p, const fp8_gemm *g,
                              void *workspace, size_t workspace_bytes);

/* Before the first store of a product: d_amax = 0. */
void fp8_gemm_begin(const fp8_gemm *g);

/* Stores acc [n], n <= FP8_GEMM_STORE_MAX, as d[row, col ..]: all that gemm.h's formula has behind
 * the sum, in F32, rounded once. */
void fp8_gemm_store(const fp8_simd *s, const fp8_gemm *g, int64_t batch, int64_t row, int64_t col,
                    const float *acc, int64_t n);
#endif
