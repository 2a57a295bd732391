/* Weights by rectangles, after the rules of other packages: on the host, one value after the
 * other. */
#include <math.h>

#include "calib/real.h"
#include "calib/weight_stage.h"
#include "quant/cast.h"

typedef struct grid_job {
    fp8_weight_grid grid;
    uint8_t *codes;
    float *descales;
    const void *x;
    fp8_dtype from;
    int64_t rows, cols;
} grid_job;

int64_t fp8_weight_grid_count(const fp8_weight_grid *g, int64_t rows, int64_t cols) {
    return fp8_pieces(rows, g->row_span) * fp8_pieces(cols, g->col_span);
}

static float value_at(const grid_job *j, int64_t i) { return fp8_real_at(j->x, j->from, i); }

/* The power of two by which amax comes below 448, from 1.75 of a power on the next one:
 * compressed-tensors adds a quarter to the mantissa and drops it. */
static float descale_mx(float amax) {
    const int32_t sum = (int32_t)((fp8_f32_bits(amax) + (1u << 21)) >> 23) - 8;
    return ldexpf(1.0f, (sum < 0 ? 0 : sum) - 127);
}

/* amax / 448 as a BF16 quotient; its epsilon for 0. */
static float descale_bf16(float amax) {
    const float descale = fp8_round_bf16(amax / FP8_E4M3_MAX);
    return descale == 0.0f ? 0x1p-7f : descale;
}

static void quantize_cell(const grid_job *j, int64_t row, int64_t col, float *descale) {
    const int64_t bottom = row + j->grid.row_span, right = col + j->grid.col_span;
    const int64_t end = bottom < j->rows ? bottom : j->rows;
    const int64_t stop = right < j->cols ? right : j->cols;
    const int mx = j->grid.rule == FP8_GRID_MX;
    float amax = 0.0f, scale;

    for (int64_t r = row; r < end; r++)
        for (int64_t c = col; c < stop; c++) {
            const float v = fabsf(value_at(j, r * j->cols + c));
            if (v > amax && isfinite(v)) amax = v;
        }
    *descale = mx ? descale_mx(amax) : descale_bf16(amax);
    scale = 1.0f / *descale; /* of a power of two: exact */
    for (int64_t r = row; r < end; r++)
        for (int64_t c = col; c < stop; c++) {
            const int64_t i = r * j->cols + c;
            const float v = value_at(j, i);
            const float q = mx ? v * scale : fp8_round_bf16(v / *descale);
            j->codes[i] = fp8_from_f32(FP8_DTYPE_E4M3, q);
        }
}

static fp8_status quantize_bands(void *ctx, int64_t begin, int64_t end, int32_t worker) {
    const grid_job *j = ctx;
    const int64_t wide = fp8_pieces(j->cols, j->grid.col_span);

    (void)worker;
    for (int64_t i = begin; i < end; i++)
        for (int64_t k = 0; k < wide; k++)
            quantize_cell(j, i * j->grid.row_span, k * j->grid.col_span,
                          j->descales + i * wide + k);
    return FP8_OK;
}

fp8_status fp8_quantize_grid(fp8_pool *pool, uint8_t *codes, float *descales, const void *x,
                             fp8_dtype from, int64_t rows, int64_t cols,
                             const fp8_weight_grid *grid) {
    grid_job j = {*grid, codes, descales, x, from, rows, cols};

    if (grid->rule == FP8_GRID_BF16 && from != FP8_DTYPE_BF16)
        return FP8_FAIL(FP8_EUNSUPPORTED, "BF16 scales are of BF16 weights, found %s",
                        fp8_dtype_name(from));
    return fp8_parallel_for(pool, fp8_pieces(rows, grid->row_span), 1, quantize_bands, &j);
}
