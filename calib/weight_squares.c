/* Weights by squares of 128 x 128, on the host. */
#include <math.h>
#include <string.h>

#include "calib/weight_stage.h"
#include "core/half.h"
#include "quant/cast.h"

enum { SIDE = FP8_DIALECT_BLOCK };

typedef struct squares_job {
    uint8_t *codes;
    float *descales;
    const unsigned char *x;
    fp8_dtype from;
    int64_t rows, cols;
    int ue8m0;
} squares_job;

static float value(const squares_job *j, int64_t i) {
    uint16_t half;
    float f;

    if (j->from == FP8_DTYPE_F32) {
        memcpy(&f, j->x + 4 * i, sizeof f);
        return f;
    }
    memcpy(&half, j->x + 2 * i, sizeof half);
    return j->from == FP8_DTYPE_BF16 ? fp8_bf16_to_f32(half) : fp8_f16_to_f32(half);
}

/* The nearest power of two not below: the exponent alone, one more where a fraction follows. */
static float up_to_power(float x) {
    const uint32_t bits = fp8_f32_bits(x);
    uint32_t exponent = (bits >> 23 & 0xff) + ((bits & 0x7fffff) != 0);
    if (exponent < 1) exponent = 1;
    return fp8_bits_f32((exponent > 254 ? 254 : exponent) << 23);
}

static fp8_scale scale_of(const squares_job *j, float amax) {
    fp8_scale s = fp8_scale_of(amax);
    if (!j->ue8m0) return s;
    s.descale = up_to_power(s.descale);
    s.scale = 1.0f / s.descale;
    return s;
}

static void quantize_square(const squares_job *j, int64_t row, int64_t col, float *descale) {
    const int64_t row_end = row + SIDE < j->rows ? row + SIDE : j->rows;
    const int64_t col_end = col + SIDE < j->cols ? col + SIDE : j->cols;
    float amax = 0;
    fp8_scale s;

    for (int64_t r = row; r < row_end; r++)
        for (int64_t c = col; c < col_end; c++) {
            const float a = fabsf(value(j, r * j->cols + c));
            if (isfinite(a) && a > amax) amax = a;
        }
    s = scale_of(j, amax);
    *descale = s.descale;
    for (int64_t r = row; r < row_end; r++)
        for (int64_t c = col; c < col_end; c++)
            j->codes[r * j->cols + c] =
                fp8_from_f32(FP8_DTYPE_E4M3, value(j, r * j->cols + c) * s.scale);
}

static fp8_status quantize_band(void *ctx, int64_t begin, int64_t end, int32_t worker) {
    const squares_job *j = ctx;
    const int64_t wide = (j->cols + SIDE - 1) / SIDE;

    (void)worker;
    for (int64_t i = begin; i < end; i++)
        for (int64_t k = 0; k < wide; k++)
            quantize_square(j, i * SIDE, k * SIDE, j->descales + i * wide + k);
    return FP8_OK;
}

fp8_status fp8_quantize_squares(fp8_pool *pool, uint8_t *codes, float *descales, const void *x,
                                fp8_dtype from, int64_t rows, int64_t cols, int ue8m0) {
    squares_job j = {codes, descales, x, from, rows, cols, ue8m0};
    return fp8_parallel_for(pool, (rows + SIDE - 1) / SIDE, 1, quantize_band, &j);
}
