/* quant/cast_cpu.h - private: the CPU halves of quant/cast.h over one version of the row
 * primitives, which tests choose. Arguments were checked. p NULL runs on the calling thread. */
#ifndef FP8_QUANT_CAST_CPU_H
#define FP8_QUANT_CAST_CPU_H
#include "quant/cast.h"
#include "quant/simd.h"

fp8_status fp8_cpu_quantize(const fp8_simd *s, fp8_pool *p, uint8_t *codes, fp8_dtype to,
                            const void *x, fp8_dtype from, int64_t n, float scale);
fp8_status fp8_cpu_dequantize(const fp8_simd *s, fp8_pool *p, void *x, fp8_dtype to,
                              const uint8_t *codes, fp8_dtype from, int64_t n, float descale);
fp8_status fp8_cpu_quantize_groups(const fp8_simd *s, fp8_pool *p, uint8_t *codes, fp8_dtype to,
                                   float *descale, const void *x, fp8_dtype from, int64_t rows,
                                   int64_t cols, int32_t axis);
fp8_status fp8_cpu_dequantize_groups(const fp8_simd *s, fp8_pool *p, void *x, fp8_dtype to,
                                     const uint8_t *codes, fp8_dtype from, const float *descale,
                                     int64_t rows, int64_t cols, int32_t axis);
fp8_status fp8_cpu_transpose_codes(fp8_pool *p, uint8_t *out, const uint8_t *in, int64_t rows,
                                   int64_t cols);
/* codes may be NULL. */
fp8_status fp8_cpu_quantize_transposed(const fp8_simd *s, fp8_pool *p, uint8_t *codes_t,
                                       uint8_t *codes, fp8_dtype to, const void *x,
                                       fp8_dtype from, int64_t rows, int64_t cols, float scale);
/* bins may be NULL. */
fp8_status fp8_cpu_observe(const fp8_simd *s, fp8_pool *p, fp8_amax_slot *out,
                           fp8_magnitudes *bins, const void *x, fp8_dtype dtype, int64_t rows,
                           int64_t cols, int64_t stride, const uint8_t *first);
enum { FP8_ERROR_PIECES = 64 }; /* partial sums in the workspace: fixed, whatever the threads */
fp8_status fp8_cpu_measure_error(const fp8_simd *s, fp8_pool *p, fp8_error_stats *out,
                                 const void *x, fp8_dtype dtype, int64_t rows, int64_t cols,
                                 int64_t stride, fp8_dtype to, float scale, float descale,
                                 void *workspace);
#endif
