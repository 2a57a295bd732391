/* Weights by squares of 128 x 128, on the host. */
#include "calib/weight_stage.h"
#include "core/half.h"
#include "quant/cast.h"

enum { SIDE = FP8_DIALECT_BLOCK };

typedef struct squares_job {
    fp8_device *inline_device; /* runs where it is called */
    uint8_t *codes;
    float *descales;
    const unsigned char *x;
    fp8_dtype from;
    int64_t rows, cols;
    int ue8m0;
} squares_job;

/* The nearest power of two not below: the exponent alone, one more where a fraction follows. */
static float up_to_power(float x) {
    const uint32_t bits = fp8_f32_bits(x);
    uint32_t exponent = (bits >> 23 & 0xff) + ((bits & 0x7fffff) != 0);
    if (exponent < 1) exponent = 1;
    return fp8_bits_f32((exponent > 254 ? 254 : exponent) << 23);
}

fp8_scale fp8_weight_scale_of(float amax, int ue8m0) {
    fp8_scale s = fp8_scale_of(amax);
    if (!ue8m0) return s;
    s.descale = up_to_power(s.descale);
    s.scale = 1.0f / s.descale;
    return s;
}

static fp8_status quantize_square(const squares_job *j, int64_t row, int64_t col, float *descale) {
    const int64_t height = row + SIDE < j->rows ? SIDE : j->rows - row;
    const int64_t width = col + SIDE < j->cols ? SIDE : j->cols - col;
    const int64_t begin = row * j->cols + col, size = (int64_t)fp8_dtype_size(j->from);
    fp8_amax_slot found = {0};
    fp8_scale s;
    fp8_status st = FP8_OK;

    FP8_TRY(fp8_observe(j->inline_device, &found, j->x + begin * size, j->from, height, width,
                        j->cols, NULL));
    s = fp8_weight_scale_of(found.amax, j->ue8m0);
    *descale = s.descale;
    for (int64_t r = 0; r < height; r++) {
        const int64_t at = begin + r * j->cols;
        FP8_TRY(fp8_quantize(j->inline_device, j->codes + at, FP8_DTYPE_E4M3, j->x + at * size,
                             j->from, width, &s.scale));
    }
done:
    return st;
}

static fp8_status quantize_band(void *ctx, int64_t begin, int64_t end, int32_t worker) {
    const squares_job *j = ctx;
    const int64_t wide = (j->cols + SIDE - 1) / SIDE;

    fp8_status st = FP8_OK;

    (void)worker;
    for (int64_t i = begin; i < end; i++)
        for (int64_t k = 0; k < wide; k++)
            FP8_TRY(quantize_square(j, i * SIDE, k * SIDE, j->descales + i * wide + k));
done:
    return st;
}

fp8_status fp8_quantize_squares(fp8_pool *pool, uint8_t *codes, float *descales, const void *x,
                                fp8_dtype from, int64_t rows, int64_t cols, int ue8m0) {
    squares_job j = {NULL, codes, descales, x, from, rows, cols, ue8m0};
    fp8_status st = FP8_OK;

    FP8_TRY(fp8_device_create(&j.inline_device, "cpu", 1));
    st = fp8_parallel_for(pool, (rows + SIDE - 1) / SIDE, 1, quantize_band, &j);
done:
    fp8_device_destroy(j.inline_device);
    return st;
}
