/* The scalar oracle, and every call of cast.h: argument checks, then the CPU or the CUDA half. */
#include "quant/cast.h"

#include <assert.h>
#include <math.h>

#include "core/half.h"
#include "quant/cast_cpu.h"
#include "quant/cuda_ops.h"

/* ---- the oracle ------------------------------------------------------------------------------ */

/* All fields but `drop` and `nan` are bits of floats, or differences of such bits. */
typedef struct fp8_format {
    uint32_t drop;       /* mantissa bits of a float that the code does not keep */
    uint32_t rebias;     /* exponent bias of a float less that of the code, in code units */
    uint32_t max;        /* largest finite value */
    uint32_t min_normal; /* below it the spacing of codes is constant */
    uint32_t magic;      /* a float whose unit in the last place is that spacing */
    uint8_t nan;
} fp8_format;

static const fp8_format e4m3 = {20, 120u << 3, 0x43e00000u, 0x3c800000u, 0x46800000u, 0x7f};
static const fp8_format e5m2 = {21, 112u << 2, 0x47600000u, 0x38800000u, 0x43000000u, 0x7e};

static int is_fp8(fp8_dtype t) { return t == FP8_DTYPE_E4M3 || t == FP8_DTYPE_E5M2; }

static int is_real(fp8_dtype t) {
    return t == FP8_DTYPE_F32 || t == FP8_DTYPE_BF16 || t == FP8_DTYPE_F16;
}

uint8_t fp8_from_f32(fp8_dtype to, float x) {
    const fp8_format *f = to == FP8_DTYPE_E4M3 ? &e4m3 : &e5m2;
    const uint32_t bits = fp8_f32_bits(x);
    const uint8_t sign = (uint8_t)(bits >> 24 & 0x80u);
    uint32_t u = bits & 0x7fffffffu;

    assert(is_fp8(to));
    if (u > 0x7f800000u) return (uint8_t)(f->nan | sign);
    if (u > f->max) u = f->max;
    if (u < f->min_normal) /* the sum rounds to the spacing; its last bits are the code */
        return (uint8_t)((fp8_f32_bits(fp8_bits_f32(u) + fp8_bits_f32(f->magic)) - f->magic) |
                         sign);
    u += (1u << (f->drop - 1)) - 1u + (u >> f->drop & 1u);
    return (uint8_t)(((u >> f->drop) - f->rebias) | sign);
}

/* E5M2 is the upper half of an F16; so is E4M3 with its exponent up one bit, 2^8 too small. */
float fp8_to_f32(fp8_dtype from, uint8_t code) {
    const uint32_t sign = (uint32_t)(code & 0x80u), magnitude = code & 0x7fu;

    assert(is_fp8(from));
    if (from == FP8_DTYPE_E5M2) return fp8_f16_to_f32((uint16_t)(code << 8));
    if (magnitude == 0x7fu) return fp8_bits_f32(sign << 24 | 0x7fc00000u);
    return fp8_f16_to_f32((uint16_t)(sign << 8 | magnitude << 7)) * 256.0f;
}

float fp8_max_of(fp8_dtype t) {
    assert(is_fp8(t));
    return t == FP8_DTYPE_E4M3 ? FP8_E4M3_MAX : FP8_E5M2_MAX;
}

/* ---- checks ---------------------------------------------------------------------------------- */

static fp8_status check_types(const char *what, fp8_dtype code, fp8_dtype real) {
    if (is_fp8(code) && is_real(real)) return FP8_OK;
    return FP8_FAIL(FP8_EINVAL, "%s: %s with %s, expected F8_E4M3 or F8_E5M2 with F32, BF16 or F16",
                    what, fp8_dtype_name(code), fp8_dtype_name(real));
}

static fp8_status check_buffers(const char *what, int64_t n, const void *a, const void *b) {
    if (n < 0) return FP8_FAIL(FP8_EINVAL, "%s: %lld elements", what, (long long)n);
    if (n > 0 && (!a || !b)) return FP8_FAIL(FP8_EINVAL, "%s: a buffer is NULL", what);
    return FP8_OK;
}

static fp8_status check_matrix(const char *what, int64_t rows, int64_t cols, int32_t axis) {
    if (rows < 0 || cols < 0 || axis < 0 || axis > 1 || (cols && rows > INT64_MAX / 4 / cols))
        return FP8_FAIL(FP8_EINVAL, "%s: [%lld, %lld], axis %d: expected sizes >= 0, axis 0 or 1",
                        what, (long long)rows, (long long)cols, axis);
    return FP8_OK;
}

static fp8_status check_rows(const char *what, const void *x, fp8_dtype dtype, int64_t rows,
                             int64_t cols, int64_t stride) {
    if (!is_real(dtype))
        return FP8_FAIL(FP8_EINVAL, "%s: %s, expected F32, BF16 or F16", what,
                        fp8_dtype_name(dtype));
    if (rows < 0 || cols < 0 || stride < cols || (stride && rows > INT64_MAX / 4 / stride))
        return FP8_FAIL(FP8_EINVAL, "%s: [%lld, %lld] with row stride %lld", what, (long long)rows,
                        (long long)cols, (long long)stride);
    if (rows * cols > 0 && !x) return FP8_FAIL(FP8_EINVAL, "%s: x is NULL", what);
    return FP8_OK;
}

/* ---- the calls ------------------------------------------------------------------------------- */

fp8_status fp8_quantize(fp8_device *d, uint8_t *codes, fp8_dtype to, const void *x, fp8_dtype from,
                        int64_t n, const float *scale) {
    fp8_status st = FP8_OK;

    FP8_TRY(check_types("quantize", to, from));
    FP8_TRY(check_buffers("quantize", n, codes, x));
    if (n == 0) goto done;
    if (FP8_ON_CUDA(d)) st = FP8_CUDA_CALL(fp8_cuda_quantize(d, codes, to, x, from, n, scale));
    else
        st = fp8_cpu_quantize(fp8_simd_best(), fp8_device_pool(d), codes, to, x, from, n,
                              scale ? *scale : 1.0f);
done:
    return st;
}

fp8_status fp8_dequantize(fp8_device *d, void *x, fp8_dtype to, const uint8_t *codes,
                          fp8_dtype from, int64_t n, const float *descale) {
    fp8_status st = FP8_OK;

    FP8_TRY(check_types("dequantize", from, to));
    FP8_TRY(check_buffers("dequantize", n, codes, x));
    if (n == 0) goto done;
    if (FP8_ON_CUDA(d)) st = FP8_CUDA_CALL(fp8_cuda_dequantize(d, x, to, codes, from, n, descale));
    else
        st = fp8_cpu_dequantize(fp8_simd_best(), fp8_device_pool(d), x, to, codes, from, n,
                                descale ? *descale : 1.0f);
done:
    return st;
}

fp8_status fp8_quantize_groups(fp8_device *d, uint8_t *codes, fp8_dtype to, float *descale,
                               const void *x, fp8_dtype from, int64_t rows, int64_t cols,
                               int32_t axis) {
    fp8_status st = FP8_OK;

    FP8_TRY(check_types("quantize_groups", to, from));
    FP8_TRY(check_matrix("quantize_groups", rows, cols, axis));
    FP8_TRY(check_buffers("quantize_groups", rows * cols, codes, x));
    FP8_TRY(check_buffers("quantize_groups", axis ? cols : rows, descale, descale));
    if ((axis ? cols : rows) == 0) goto done;
    if (FP8_ON_CUDA(d))
        st = FP8_CUDA_CALL(
            fp8_cuda_quantize_groups(d, codes, to, descale, x, from, rows, cols, axis));
    else
        st = fp8_cpu_quantize_groups(fp8_simd_best(), fp8_device_pool(d), codes, to, descale, x,
                                     from, rows, cols, axis);
done:
    return st;
}

fp8_status fp8_dequantize_groups(fp8_device *d, void *x, fp8_dtype to, const uint8_t *codes,
                                 fp8_dtype from, const float *descale, int64_t rows, int64_t cols,
                                 int32_t axis) {
    fp8_status st = FP8_OK;

    FP8_TRY(check_types("dequantize_groups", from, to));
    FP8_TRY(check_matrix("dequantize_groups", rows, cols, axis));
    FP8_TRY(check_buffers("dequantize_groups", rows * cols, codes, x));
    if (rows * cols == 0) goto done;
    FP8_TRY(check_buffers("dequantize_groups", 1, descale, descale));
    if (FP8_ON_CUDA(d))
        st = FP8_CUDA_CALL(
            fp8_cuda_dequantize_groups(d, x, to, codes, from, descale, rows, cols, axis));
    else
        st = fp8_cpu_dequantize_groups(fp8_simd_best(), fp8_device_pool(d), x, to, codes, from,
                                       descale, rows, cols, axis);
done:
    return st;
}

fp8_status fp8_transpose_codes(fp8_device *d, uint8_t *out, const uint8_t *in, int64_t rows,
                               int64_t cols) {
    fp8_status st = FP8_OK;

    FP8_TRY(check_matrix("transpose_codes", rows, cols, 0));
    FP8_TRY(check_buffers("transpose_codes", rows * cols, out, in));
    if (rows * cols == 0) goto done;
    if (FP8_ON_CUDA(d)) st = FP8_CUDA_CALL(fp8_cuda_transpose_codes(d, out, in, rows, cols));
    else st = fp8_cpu_transpose_codes(fp8_device_pool(d), out, in, rows, cols);
done:
    return st;
}

fp8_status fp8_quantize_transposed(fp8_device *d, uint8_t *codes_t, uint8_t *codes, fp8_dtype to,
                                   const void *x, fp8_dtype from, int64_t rows, int64_t cols,
                                   const float *scale) {
    fp8_status st = FP8_OK;

    FP8_TRY(check_types("quantize_transposed", to, from));
    FP8_TRY(check_matrix("quantize_transposed", rows, cols, 0));
    FP8_TRY(check_buffers("quantize_transposed", rows * cols, codes_t, x));
    if (rows * cols == 0) goto done;
    if (FP8_ON_CUDA(d))
        st = FP8_CUDA_CALL(
            fp8_cuda_quantize_transposed(d, codes_t, codes, to, x, from, rows, cols, scale));
    else
        st = fp8_cpu_quantize_transposed(fp8_simd_best(), fp8_device_pool(d), codes_t, codes, to,
                                         x, from, rows, cols, scale ? *scale : 1.0f);
done:
    return st;
}

static fp8_status observe(fp8_device *d, fp8_amax_slot *out, fp8_magnitudes *bins, const void *x,
                          fp8_dtype dtype, int64_t rows, int64_t cols, int64_t stride,
                          const uint8_t *first) {
    fp8_status st = FP8_OK;

    FP8_TRY(check_buffers("observe", 1, out, out));
    FP8_TRY(check_rows("observe", x, dtype, rows, cols, stride));
    if (rows * cols == 0) goto done;
    if (FP8_ON_CUDA(d))
        st = FP8_CUDA_CALL(fp8_cuda_observe(d, out, bins, x, dtype, rows, cols, stride, first));
    else
        st = fp8_cpu_observe(fp8_simd_best(), fp8_device_pool(d), out, bins, x, dtype, rows, cols,
                             stride, first);
done:
    return st;
}

fp8_status fp8_observe(fp8_device *d, fp8_amax_slot *out, const void *x, fp8_dtype dtype,
                       int64_t rows, int64_t cols, int64_t stride, const uint8_t *first) {
    return observe(d, out, NULL, x, dtype, rows, cols, stride, first);
}

fp8_status fp8_observe_magnitudes(fp8_device *d, fp8_amax_slot *out, fp8_magnitudes *bins,
                                  const void *x, fp8_dtype dtype, int64_t rows, int64_t cols,
                                  int64_t stride, const uint8_t *first) {
    fp8_status st = FP8_OK;

    FP8_TRY(check_buffers("observe_magnitudes", 1, bins, bins));
    FP8_TRY(observe(d, out, bins, x, dtype, rows, cols, stride, first));
done:
    return st;
}

size_t fp8_measure_error_workspace(const fp8_device *d) {
    if (FP8_ON_CUDA(d)) return (size_t)FP8_CUDA_CALL(fp8_cuda_measure_error_workspace(d));
    return FP8_ERROR_PIECES * 2 * sizeof(double);
}

fp8_status fp8_measure_error(fp8_device *d, fp8_error_stats *out, const void *x, fp8_dtype dtype,
                             int64_t rows, int64_t cols, int64_t stride, fp8_dtype to,
                             const float *scale, const float *descale, void *workspace) {
    fp8_status st = FP8_OK;

    FP8_TRY(check_types("measure_error", to, dtype));
    FP8_TRY(check_buffers("measure_error", 1, out, workspace));
    FP8_TRY(check_buffers("measure_error", 1, scale, descale));
    FP8_TRY(check_rows("measure_error", x, dtype, rows, cols, stride));
    if (rows * cols == 0) goto done;
    if (FP8_ON_CUDA(d))
        st = FP8_CUDA_CALL(fp8_cuda_measure_error(d, out, x, dtype, rows, cols, stride, to, scale,
                                                  descale, workspace));
    else
        st = fp8_cpu_measure_error(fp8_simd_best(), fp8_device_pool(d), out, x, dtype, rows, cols,
                                   stride, to, *scale, *descale, workspace);
done:
    return st;
}
