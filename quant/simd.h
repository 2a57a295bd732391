/* quant/simd.h - private: the row primitives that CPU casts, observation and matrix products are
 * made of, in versions for several instruction sets. All give the same bits (tile and dot with F32
 * operands excepted where a processor has no fused multiply-add). Any length, any alignment. */
#ifndef FP8_QUANT_SIMD_H
#define FP8_QUANT_SIMD_H
#include <stdint.h>

#include "core/dtype.h"

/* A panel of A holds up to FP8_TILE_K columns a row, rows FP8_TILE_A_STRIDE floats apart: 17 cache
 * lines, so that the rows of a tile fall into different sets of the L1 cache. */
enum { FP8_TILE_K = 256, FP8_TILE_A_STRIDE = FP8_TILE_K + 16, FP8_DOT_LANES = 16 };

typedef struct fp8_simd {
    const char *name;
    int32_t tile_rows, tile_cols; /* most rows tile() takes, and the columns it always makes */

    /* out[i] = the value of in[i]; F32, BF16, F16, E4M3 or E5M2. */
    void (*widen)(float *out, const void *in, fp8_dtype from, int64_t n);
    /* out[i] = in[i] rounded to nearest even; F32, BF16 or F16. */
    void (*narrow)(void *out, fp8_dtype to, const float *in, int64_t n);
    /* codes[i] = cast(x[i] * scale); E4M3 or E5M2. */
    void (*encode)(uint8_t *codes, fp8_dtype to, const float *x, int64_t n, float scale);
    /* Largest finite |x[i]|, 0 if none; adds the number of others to *nonfinite. */
    float (*amax)(const float *x, int64_t n, uint32_t *nonfinite);
    /* The same of BF16, which need not be widened for it. */
    float (*amax_bf16)(const void *x, int64_t n, uint32_t *nonfinite);
    /* out[c * out_stride + r] = in[r * in_stride + c]. */
    void (*transpose)(float *out, int64_t out_stride, const float *in, int64_t in_stride,
                      int64_t rows, int64_t cols);
    /* out[j] = acc[j] * (row * column[j]) + bias[j]; column and bias may be NULL (1 and no sum). */
    void (*finish)(float *out, const float *acc, float row, const float *column, const float *bias,
                   int64_t n);
    /* c[i, j] = (first ? 0 : c[i, j]) + sum over k of a[i, k] * b[k, j], k ascending.
     * c [rows, tile_cols] ld ldc; a [rows, k] ld FP8_TILE_A_STRIDE; b [k, tile_cols] packed. */
    void (*tile)(float *c, int64_t ldc, const float *a, const float *b, int64_t rows, int64_t k,
                 int first);
    /* lanes[i, j, l] += sum over k = l, l + 16, ... of a[i, k] * b[j, k]; i < rows <= 4, j < 4.
     * n a multiple of FP8_DOT_LANES. */
    void (*dot)(float *lanes, const float *a, int64_t a_stride, int64_t rows, const float *b,
                int64_t b_stride, int64_t n);
} fp8_simd;

typedef enum fp8_simd_level {
    FP8_SIMD_SCALAR,
    FP8_SIMD_AVX2,   /* with FMA and F16C */
    FP8_SIMD_AVX512, /* F, BW, VL, DQ */
    FP8_NUM_SIMD_LEVELS
} fp8_simd_level;

const fp8_simd *fp8_simd_at(fp8_simd_level level); /* NULL: not on this processor */
const fp8_simd *fp8_simd_best(void);

/* The tables, each in its own file. */
extern const fp8_simd fp8_simd_scalar;
#if defined(__x86_64__)
extern const fp8_simd fp8_simd_avx2, fp8_simd_avx512;
#endif
#endif
