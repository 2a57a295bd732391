/* core/tensor.h - tensor views, quantized tensors, checked sizes.
 *
 * A view owns nothing; row-major, packed, outermost dimension first; ndim 0 is a scalar. */
#ifndef FP8_CORE_TENSOR_H
#define FP8_CORE_TENSOR_H
#include <stddef.h>
#include <stdint.h>

#include "core/dtype.h"
#include "core/status.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { FP8_MAX_DIMS = 8 };

typedef enum fp8_place { FP8_PLACE_CPU = 0, FP8_PLACE_CUDA = 1 } fp8_place;

typedef struct fp8_tensor {
    void *data;
    fp8_dtype dtype;
    fp8_place place;
    int32_t ndim;
    int64_t shape[FP8_MAX_DIMS];
} fp8_tensor;

/* What one scale covers. */
typedef enum fp8_granularity {
    FP8_PER_TENSOR = 0, /* descale [1] */
    FP8_PER_CHANNEL,    /* descale [rows]: one an output channel */
    FP8_PER_TOKEN,      /* descale [rows]: one a token */
    FP8_PER_BLOCK       /* descale [ceil(rows/block[0]), ceil(cols/block[1])] */
} fp8_granularity;

/* codes * descale = the value. Made and read by the quantizer calls of quant/. */
typedef struct fp8_qtensor {
    fp8_tensor codes;   /* E4M3 or E5M2 */
    fp8_tensor descale; /* F32 */
    fp8_granularity granularity;
    int32_t block[2];   /* FP8_PER_BLOCK only */
} fp8_qtensor;

/* *out = a * b. FP8_EOVERFLOW when it does not fit. */
FP8_NODISCARD fp8_status fp8_mul_size(size_t *out, size_t a, size_t b);
FP8_NODISCARD fp8_status fp8_add_size(size_t *out, size_t a, size_t b);

/* Number of elements of a shape; 1 for ndim 0. FP8_EINVAL: a negative size or ndim out of range;
 * FP8_EOVERFLOW: more than INT64_MAX. */
FP8_NODISCARD fp8_status fp8_shape_count(int64_t *out, const int64_t *shape, int32_t ndim);

/* Bytes of a packed tensor. FP8_EINVAL also when a sub-byte type does not fill whole bytes. */
FP8_NODISCARD fp8_status fp8_shape_bytes(size_t *out, fp8_dtype dtype, const int64_t *shape,
                                         int32_t ndim);

/* Element count of a view whose shape has been checked already. */
int64_t fp8_tensor_count(const fp8_tensor *t);

/* View of `data` with the given shape (rows, cols; cols < 0 gives a vector of `rows`). */
fp8_tensor fp8_tensor_view(void *data, fp8_dtype dtype, fp8_place place, int64_t rows,
                           int64_t cols);

/* "[4096, 128]" into buf; returns buf. */
const char *fp8_shape_text(char *buf, size_t bytes, const int64_t *shape, int32_t ndim);

#ifdef __cplusplus
}
#endif
#endif
