#include "attention/masks.h"

#include <math.h>

#include "attention/attention_impl.h"
#include "core/half.h"
#if FP8_CUDA
#include "attention/masks_cuda.h"
#endif

#if FP8_CUDA
static int on_cuda(const fp8_device *d) { return fp8_device_place(d) == FP8_PLACE_CUDA; }
#endif

void fp8_attention_alibi_slopes(float *slopes, int32_t num_heads) {
    for (int32_t i = 0; i < num_heads; i++) slopes[i] = attention_alibi_slope(i, num_heads);
}

/* ---- masks ----------------------------------------------------------------------------------- */

fp8_status fp8_attention_mask_to_bias(fp8_device *d, float *bias, const uint8_t *mask, int64_t n) {
    if (!d || n < 0 || (n > 0 && (!bias || !mask)))
        return FP8_FAIL(FP8_EINVAL, "mask to bias: device=%p bias=%p mask=%p n %lld", (void *)d,
                        (void *)bias, (const void *)mask, (long long)n);
    if (n == 0) return FP8_OK;
#if FP8_CUDA
    if (on_cuda(d)) return attention_cuda_mask_to_bias(d, bias, mask, n);
#endif
    for (int64_t i = 0; i < n; i++) bias[i] = mask[i] ? -INFINITY : 0.0f;
    return FP8_OK;
}

fp8_status fp8_attention_padding_to_lengths(fp8_device *d, int32_t *starts, int32_t *lengths,
                                            const uint8_t *mask, int64_t b, int64_t s) {
    int64_t count, start = 0;
    fp8_status st = FP8_OK;

    if (!d || b < 0 || s < 0 || (b > 0 && s > 0 && !mask))
        return FP8_FAIL(FP8_EINVAL, "padding to lengths: device=%p mask=%p b %lld s %lld",
                        (void *)d, (const void *)mask, (long long)b, (long long)s);
    FP8_TRY(fp8_shape_count(&count, (int64_t[]){b, s}, 2));
    if (count > INT32_MAX)
        return FP8_FAIL(FP8_EINVAL, "padding to lengths: %lld x %lld tokens, expected below 2^31",
                        (long long)b, (long long)s);
    if (!starts && !lengths) return FP8_OK;
#if FP8_CUDA
    if (on_cuda(d)) return attention_cuda_padding_to_lengths(d, starts, lengths, mask, b, s);
#endif
    for (int64_t i = 0; i < b; i++) {
        int32_t length = 0;
        for (int64_t t = 0; t < s; t++) length += mask[i * s + t] == 0;
        if (lengths) lengths[i] = length;
        if (starts) starts[i] = (int32_t)start;
        start += length;
    }
    if (starts) starts[b] = (int32_t)start;
done:
    return st;
}

/* ---- Hadamard -------------------------------------------------------------------------------- */

typedef struct hadamard_job {
    void *y;
    const void *x;
    const float *signs;
    fp8_dtype dtype;
    int32_t d;
} hadamard_job;

enum { MAX_D = 256 };

static float load(const void *x, fp8_dtype dtype, int64_t i) {
    if (dtype == FP8_DTYPE_BF16) return fp8_bf16_to_f32(((const uint16_t *)x)[i]);
    if (dtype == FP8_DTYPE_F16) return fp8_f16_to_f32(((const uint16_t *)x)[i]);
    return ((const float *)x)[i];
}

static void store(void *y, fp8_dtype dtype, int64_t i, float v) {
    if (dtype == FP8_DTYPE_BF16) ((uint16_t *)y)[i] = fp8_f32_to_bf16(v);
    else if (dtype == FP8_DTYPE_F16) ((uint16_t *)y)[i] = fp8_f32_to_f16(v);
    else ((float *)y)[i] = v;
}

/* The butterfly: log2(d) rounds of sums and differences, H in its natural order. */
static void rotate(float *row, int32_t d) {
    const float norm = 1.0f / sqrtf((float)d);
    for (int32_t step = 1; step < d; step *= 2)
        for (int32_t i = 0; i < d; i++) {
            const float a = row[i], b = row[i ^ step];
            if (i & step) continue;
            row[i] = a + b;
            row[i ^ step] = a - b;
        }
    for (int32_t i = 0; i < d; i++) row[i] *= norm;
}

static fp8_status rotate_rows(void *ctx, int64_t begin, int64_t end, int32_t worker) {
    const hadamard_job *j = ctx;
    float row[MAX_D];
    (void)worker;
    for (int64_t r = begin; r < end; r++) {
        for (int32_t c = 0; c < j->d; c++)
            row[c] = load(j->x, j->dtype, r * j->d + c) * j->signs[c];
        rotate(row, j->d);
        for (int32_t c = 0; c < j->d; c++) store(j->y, j->dtype, r * j->d + c, row[c]);
    }
    return FP8_OK;
}

fp8_status fp8_attention_hadamard(fp8_device *d, void *y, const void *x, fp8_dtype dtype,
                                  const float *signs, int64_t rows, int32_t head_dim) {
    hadamard_job j = {y, x, signs, dtype, head_dim};
    if (!d || rows < 0 || (rows > 0 && (!y || !x || !signs)))
        return FP8_FAIL(FP8_EINVAL, "hadamard: device=%p y=%p x=%p signs=%p rows %lld", (void *)d,
                        y, x, (const void *)signs, (long long)rows);
    if (head_dim != 64 && head_dim != 128 && head_dim != 256)
        return FP8_FAIL(FP8_EINVAL, "hadamard: head_dim %d, expected 64, 128 or 256", head_dim);
    if (dtype != FP8_DTYPE_BF16 && dtype != FP8_DTYPE_F16 && dtype != FP8_DTYPE_F32)
        return FP8_FAIL(FP8_EINVAL, "hadamard: %s, expected BF16, F16 or F32",
                        fp8_dtype_name(dtype));
    if (rows == 0) return FP8_OK;
#if FP8_CUDA
    if (on_cuda(d)) return attention_cuda_hadamard(d, y, x, dtype, signs, rows, head_dim);
#endif
    return fp8_parallel_for(fp8_device_pool(d), rows, 64, rotate_rows, &j);
}
