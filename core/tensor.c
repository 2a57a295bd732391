#include "core/tensor.h"

#include <stdio.h>

fp8_status fp8_mul_size(size_t *out, size_t a, size_t b) {
    if (__builtin_mul_overflow(a, b, out))
        return FP8_FAIL(FP8_EOVERFLOW, "%zu * %zu does not fit in size_t", a, b);
    return FP8_OK;
}

fp8_status fp8_add_size(size_t *out, size_t a, size_t b) {
    if (__builtin_add_overflow(a, b, out))
        return FP8_FAIL(FP8_EOVERFLOW, "%zu + %zu does not fit in size_t", a, b);
    return FP8_OK;
}

fp8_status fp8_shape_count(int64_t *out, const int64_t *shape, int32_t ndim) {
    int64_t n = 1;
    int zero = 0;

    if (ndim < 0 || ndim > FP8_MAX_DIMS)
        return FP8_FAIL(FP8_EINVAL, "rank %d, expected 0 to %d", ndim, FP8_MAX_DIMS);
    for (int32_t i = 0; i < ndim; i++) {
        if (shape[i] < 0)
            return FP8_FAIL(FP8_EINVAL, "dimension %d is %lld", i, (long long)shape[i]);
        zero |= shape[i] == 0;
    }
    /* A zero dimension makes the whole product 0, whatever the others would overflow to. */
    for (int32_t i = 0; i < ndim && !zero; i++)
        if (__builtin_mul_overflow(n, shape[i], &n)) {
            char text[128];
            return FP8_FAIL(FP8_EOVERFLOW, "shape %s has more than 2^63-1 elements",
                            fp8_shape_text(text, sizeof text, shape, ndim));
        }
    *out = zero ? 0 : n;
    return FP8_OK;
}

fp8_status fp8_shape_bytes(size_t *out, fp8_dtype dtype, const int64_t *shape, int32_t ndim) {
    int64_t n = 0, bits = 0;
    fp8_status st = fp8_shape_count(&n, shape, ndim);

    if (st != FP8_OK) return st;
    if (fp8_dtype_bits(dtype) == 0) return FP8_FAIL(FP8_EINVAL, "unknown dtype %d", (int)dtype);
    if (__builtin_mul_overflow(n, (int64_t)fp8_dtype_bits(dtype), &bits))
        return FP8_FAIL(FP8_EOVERFLOW, "%lld elements of %s overflow", (long long)n,
                        fp8_dtype_name(dtype));
    if (bits % 8)
        return FP8_FAIL(FP8_EINVAL, "%lld elements of %s do not fill whole bytes", (long long)n,
                        fp8_dtype_name(dtype));
    *out = (size_t)(bits / 8);
    return FP8_OK;
}

int64_t fp8_tensor_count(const fp8_tensor *t) {
    int64_t n = 1;
    for (int32_t i = 0; i < t->ndim; i++) n *= t->shape[i];
    return n;
}

fp8_tensor fp8_tensor_view(void *data, fp8_dtype dtype, fp8_place place, int64_t rows,
                           int64_t cols) {
    fp8_tensor t = {.data = data, .dtype = dtype, .place = place, .ndim = cols < 0 ? 1 : 2};
    t.shape[0] = rows;
    if (cols >= 0) t.shape[1] = cols;
    return t;
}

const char *fp8_shape_text(char *buf, size_t bytes, const int64_t *shape, int32_t ndim) {
    size_t at = 0;
    int n = snprintf(buf, bytes, "[");
    for (int32_t i = 0; n > 0 && i < ndim; i++) {
        at += (size_t)n;
        if (at >= bytes) return buf;
        n = snprintf(buf + at, bytes - at, "%s%lld", i ? ", " : "", (long long)shape[i]);
    }
    at += n > 0 ? (size_t)n : 0;
    if (at < bytes) snprintf(buf + at, bytes - at, "]");
    return buf;
}
