#include "calib/requantize.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "calib/weight_stage.h"
#include "core/half.h"
#include "quant/cast.h"

enum { GRAIN_ROWS = 16 };

typedef struct values_job {
    const fp8_coded *w;
    float table[256]; /* of a code */
    float *values, *row_amax;
} values_job;

typedef struct codes_job {
    const fp8_coded *w;
    const float *values, *scales; /* scales: 1, or one a channel */
    uint8_t *codes;
    int by_channel;
} codes_job;

static int is_power_of_two(float x) { return (fp8_f32_bits(x) & 0x7fffff) == 0; }

int fp8_coded_keeps(const fp8_coded *w, fp8_scheme scheme, int ue8m0) {
    for (int64_t i = 0; (ue8m0 || scheme == FP8_SCHEME_MX) && i < w->count; i++)
        if (!is_power_of_two(w->descales[i])) return 0;
    return w->entry->tensor.dtype == FP8_DTYPE_E4M3 &&
           (w->scheme == FP8_SCHEME_TENSOR || w->scheme == scheme);
}

void fp8_coded_spread(float *out, int64_t count, const fp8_coded *w) {
    for (int64_t i = 0; i < count; i++) out[i] = w->descales[w->count == count ? i : 0];
}

static float descale_at(const fp8_coded *w, int64_t r, int64_t c) {
    const int64_t side = FP8_DIALECT_BLOCK;

    if (w->scheme == FP8_SCHEME_TENSOR) return w->descales[0];
    if (w->scheme == FP8_SCHEME_DYNAMIC) return w->descales[w->in_out ? c : r];
    if (w->scheme == FP8_SCHEME_MX)
        return w->descales[r * (w->cols / FP8_DIALECT_MX) + c / FP8_DIALECT_MX];
    return w->descales[r / side * ((w->cols + side - 1) / side) + c / side];
}

static fp8_status value_rows(void *ctx, int64_t begin, int64_t end, int32_t worker) {
    const values_job *j = ctx;
    const uint8_t *codes = j->w->entry->tensor.data;
    const int64_t cols = j->w->cols;

    (void)worker;
    for (int64_t r = begin; r < end; r++) {
        float amax = 0;
        for (int64_t c = 0; c < cols; c++) {
            const float v = j->table[codes[r * cols + c]] * descale_at(j->w, r, c);
            if (fabsf(v) > amax && isfinite(v)) amax = fabsf(v);
            j->values[r * cols + c] = v;
        }
        j->row_amax[r] = amax;
    }
    return FP8_OK;
}

fp8_status fp8_coded_values(float *values, float *amax, fp8_pool *pool, const fp8_coded *w) {
    values_job j = {.w = w, .values = values};
    fp8_status st = FP8_OK;

    j.row_amax = malloc((size_t)(w->rows + 1) * sizeof *j.row_amax);
    if (!j.row_amax) return FP8_FAIL(FP8_ENOMEM, "'%s'", w->name);
    for (int i = 0; i < 256; i++) j.table[i] = fp8_to_f32(w->entry->tensor.dtype, (uint8_t)i);
    FP8_TRY(fp8_parallel_for(pool, w->rows, GRAIN_ROWS, value_rows, &j));
    if (amax) *amax = 0;
    for (int64_t r = 0; amax && r < w->rows; r++)
        if (j.row_amax[r] > *amax) *amax = j.row_amax[r];
done:
    free(j.row_amax);
    return st;
}

static fp8_status code_rows(void *ctx, int64_t begin, int64_t end, int32_t worker) {
    const codes_job *j = ctx;
    const int64_t cols = j->w->cols;

    (void)worker;
    for (int64_t r = begin; r < end; r++)
        for (int64_t c = 0; c < cols; c++) {
            const int64_t channel = j->w->in_out ? c : r;
            const float scale = j->scales[j->by_channel ? channel : 0];
            j->codes[r * cols + c] =
                fp8_from_f32(FP8_DTYPE_E4M3, j->values[r * cols + c] * scale);
        }
    return FP8_OK;
}

/* scales and descales of w's output channels. */
static void scale_channels(float *scales, float *descales, const float *values,
                           const fp8_coded *w) {
    const int64_t channels = w->in_out ? w->cols : w->rows;

    memset(scales, 0, (size_t)channels * sizeof *scales); /* the amax first */
    for (int64_t i = 0; i < w->rows * w->cols; i++) {
        float *amax = &scales[w->in_out ? i % w->cols : i / w->cols];
        if (fabsf(values[i]) > *amax && isfinite(values[i])) *amax = fabsf(values[i]);
    }
    for (int64_t i = 0; i < channels; i++) {
        const fp8_scale s = fp8_scale_of(scales[i]);
        scales[i] = s.scale;
        descales[i] = s.descale;
    }
}

fp8_status fp8_coded_quantize(uint8_t *codes, float *descales, fp8_pool *pool, const float *values,
                              const fp8_coded *w, fp8_scheme scheme, int ue8m0, float amax) {
    static const fp8_weight_grid mx = {1, FP8_DIALECT_MX, FP8_GRID_MX};
    const int64_t channels = w->in_out ? w->cols : w->rows;
    const fp8_scale one = fp8_scale_of(amax);
    float *scales = NULL;
    codes_job j = {.w = w, .values = values, .scales = &one.scale, .codes = codes};
    fp8_status st = FP8_OK;

    if (scheme == FP8_SCHEME_BLOCK)
        return fp8_quantize_squares(pool, codes, descales, values, FP8_DTYPE_F32, w->rows, w->cols,
                                    ue8m0);
    if (scheme == FP8_SCHEME_MX)
        return fp8_quantize_grid(pool, codes, descales, values, FP8_DTYPE_F32, w->rows, w->cols,
                                 &mx);
    if (scheme == FP8_SCHEME_DYNAMIC) {
        j.scales = scales = malloc((size_t)(channels + 1) * sizeof *scales);
        if (!scales) return FP8_FAIL(FP8_ENOMEM, "'%s'", w->name);
        scale_channels(scales, descales, values, w);
        j.by_channel = 1;
    } else {
        descales[0] = one.descale;
    }
    FP8_TRY(fp8_parallel_for(pool, w->rows, GRAIN_ROWS, code_rows, &j));
done:
    free(scales);
    return st;
}
