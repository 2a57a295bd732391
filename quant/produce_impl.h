/* quant/produce_impl.h - private: the parts of the fused producers. produce.c checks what callers
 * give and fills in default strides; the CPU halves make a row's values, which produce_rows.c
 * quantizes; the CUDA halves are kernels. Arguments here were checked and nothing is empty. */
#ifndef FP8_QUANT_PRODUCE_IMPL_H
#define FP8_QUANT_PRODUCE_IMPL_H
#include "quant/cuda_ops.h"
#include "quant/delayed.h"
#include "quant/lookup.h"
#include "quant/produce.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- CPU ------------------------------------------------------------------------------------- */

/* Values are made and quantized so many at a time: whole groups, in the L1 cache. */
enum { FP8_PRODUCE_CHUNK = 512 };

typedef struct fp8_row_stats {
    float mean, rstd;
} fp8_row_stats;

/* A producer of rows. */
typedef struct fp8_row_source {
    const void *op;
    fp8_dtype dtype; /* real type */
    int64_t rows, cols;
    int keep_nan_sign;
    /* Looks at a row before its values are asked for; NULL: no need. */
    void (*begin)(const void *op, int64_t row, fp8_row_stats *stats);
    /* v[0 .. n) = values of columns col .. col + n; n <= FP8_PRODUCE_CHUNK. */
    void (*values)(const void *op, int64_t row, const fp8_row_stats *stats, int64_t col, int64_t n,
                   float *v);
} fp8_row_source;

fp8_status fp8_cpu_produce_rows(fp8_device *d, const fp8_sink *out, const fp8_row_source *source);

/* codes[i] = cast(v[i] * scale), NaN as produce.h says. */
void fp8_cpu_encode(uint8_t *codes, fp8_dtype code, const float *v, int64_t n, float scale,
                    int keep_nan_sign);
/* x[i] rounded to t, still as floats; n <= FP8_PRODUCE_CHUNK. */
void fp8_cpu_round(float *x, fp8_dtype t, int64_t n);
/* sum of (x[i] - mean)^power, power 1 or 2, in F32; n <= FP8_PRODUCE_CHUNK. */
float fp8_cpu_sum_powers(const float *x, int64_t n, float mean, int power);
/* x[i] becomes the normed value; `rounded` and kinds as fp8_norm; b may be NULL. */
void fp8_cpu_normalize(float *x, const float *w, const float *b, int64_t n, fp8_norm_kind kind,
                       fp8_row_stats stats, int rounded, fp8_dtype dtype);
/* *slot joined with figures found elsewhere. */
void fp8_cpu_join_amax(fp8_amax_slot *slot, const fp8_amax_slot *found);

fp8_status fp8_cpu_produce_norm(fp8_device *d, const fp8_sink *out, const fp8_norm *norm);
fp8_status fp8_cpu_produce_act(fp8_device *d, const fp8_sink *out, const fp8_act *act);
fp8_status fp8_cpu_produce_cast(fp8_device *d, const fp8_sink *out, const void *x, fp8_dtype dtype,
                                int64_t rows, int64_t cols, int64_t x_stride);
fp8_status fp8_cpu_produce_qkv(fp8_device *d, const fp8_qkv *qkv);

/* ---- CUDA ------------------------------------------------------------------------------------ */

fp8_status fp8_cuda_produce_norm(fp8_device *d, const fp8_sink *out, const fp8_norm *norm,
                                 fp8_launch launch);
fp8_status fp8_cuda_produce_act(fp8_device *d, const fp8_sink *out, const fp8_act *act,
                                fp8_launch launch);
fp8_status fp8_cuda_produce_cast(fp8_device *d, const fp8_sink *out, const void *x,
                                 fp8_dtype dtype, int64_t rows, int64_t cols, int64_t x_stride,
                                 fp8_launch launch);
fp8_status fp8_cuda_produce_qkv(fp8_device *d, const fp8_qkv *qkv, fp8_launch launch);
fp8_status fp8_cuda_delayed_update(fp8_device *d, const fp8_delayed *state,
                                   const fp8_recipe *recipe, fp8_dtype to, fp8_launch launch);
fp8_status fp8_cuda_embed(fp8_device *d, void *x, const fp8_embedding *e, fp8_launch launch);
fp8_status fp8_cuda_top_k(fp8_device *d, int32_t *ids, float *values, const void *logits,
                          fp8_dtype dtype, int64_t rows, int64_t vocab, int64_t stride, int32_t k,
                          fp8_launch launch);

#ifdef __cplusplus
}
#endif
#endif
