/* What every producer of rows does with its values on the CPU, and the plain one. A row is taken a
 * chunk at a time; where a row has one scale of its own, its values are made twice: once for the
 * amax, once for the codes, which costs less than memory for a row. */
#include <pthread.h>

#include "core/mathfn.h"
#include "quant/produce_impl.h"
#include "quant/scale_pair.h"
#include "quant/simd.h"

enum { CHUNK = FP8_PRODUCE_CHUNK, GRAIN = 32 * 1024 /* elements a worker takes at a time */ };

static int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
static float max_float(float a, float b) { return a > b ? a : b; }

/* ---- parts ----------------------------------------------------------------------------------- */

FP8_VECTOR static void clear_nan_signs(uint8_t *codes, int64_t n, uint8_t nan) {
    for (int64_t i = 0; i < n; i++) codes[i] = (codes[i] & 0x7fu) == nan ? nan : codes[i];
}

void fp8_cpu_encode(uint8_t *codes, fp8_dtype code, const float *v, int64_t n, float scale,
                    int keep_nan_sign) {
    fp8_simd_best()->encode(codes, code, v, n, scale);
    if (!keep_nan_sign) clear_nan_signs(codes, n, code == FP8_DTYPE_E4M3 ? 0x7f : 0x7e);
}

void fp8_cpu_round(float *x, fp8_dtype t, int64_t n) {
    const fp8_simd *s = fp8_simd_best();
    _Alignas(64) uint16_t half[CHUNK];

    if (t == FP8_DTYPE_F32) return;
    s->narrow(half, t, x, n);
    s->widen(x, half, t, n);
}

void fp8_cpu_join_amax(fp8_amax_slot *slot, const fp8_amax_slot *found) {
    slot->amax = max_float(slot->amax, found->amax);
    slot->amax_without_first = max_float(slot->amax_without_first, found->amax_without_first);
    slot->nonfinite += found->nonfinite;
}

/* ---- a row into the sink --------------------------------------------------------------------- */

typedef struct rows_job {
    const fp8_sink *out;
    const fp8_row_source *source;
    pthread_mutex_t lock; /* guards *out->amax: maxima and counts come in any order */
} rows_job;

static float amax_of_row(const rows_job *j, int64_t row, const fp8_row_stats *stats) {
    const fp8_row_source *s = j->source;
    _Alignas(64) float v[CHUNK];
    uint32_t nonfinite = 0;
    float amax = 0;

    for (int64_t c = 0; c < s->cols; c += CHUNK) {
        const int64_t n = min64(CHUNK, s->cols - c);
        s->values(s->op, row, stats, c, n, v);
        amax = max_float(amax, fp8_simd_best()->amax(v, n, &nonfinite));
    }
    return amax;
}

/* The scale for a row or group of that amax; its descale stored. */
static float own_scale(const fp8_sink *out, float amax, float *descale) {
    float scale = 1.0f;
    *descale = 1.0f;
    if (amax > 0) fp8_scale_pair(fp8_max_of(out->code), amax, &scale, descale);
    return scale;
}

static void encode_groups(const rows_job *j, int64_t row, int64_t col, const float *v, int64_t n) {
    const fp8_sink *out = j->out;

    for (int64_t i = 0; i < n; i += FP8_SINK_GROUP_COLS) {
        const int64_t len = min64(FP8_SINK_GROUP_COLS, n - i);
        const int64_t group = (col + i) / FP8_SINK_GROUP_COLS;
        float *descale = out->descale + row * out->descale_row_stride +
                         group * out->descale_group_stride;
        uint32_t nonfinite = 0;
        const float scale = own_scale(out, fp8_simd_best()->amax(v + i, len, &nonfinite), descale);
        fp8_cpu_encode(out->codes + row * out->codes_stride + col + i, out->code, v + i, len,
                       scale, j->source->keep_nan_sign);
    }
}

static void produce_row(const rows_job *j, int64_t row, fp8_amax_slot *found) {
    const fp8_row_source *s = j->source;
    const fp8_sink *out = j->out;
    const int64_t size = (int64_t)fp8_dtype_size(s->dtype);
    _Alignas(64) float v[CHUNK];
    fp8_row_stats stats = {0};
    float scale = out->scale ? *out->scale : 1.0f, amax = 0;

    if (s->begin) s->begin(s->op, row, &stats);
    if (out->codes && out->scaling == FP8_SINK_TOKEN)
        scale = own_scale(out, amax_of_row(j, row, &stats), &out->descale[row]);
    for (int64_t c = 0; c < s->cols; c += CHUNK) {
        const int64_t n = min64(CHUNK, s->cols - c);
        s->values(s->op, row, &stats, c, n, v);
        if (out->codes && out->scaling == FP8_SINK_GROUP) encode_groups(j, row, c, v, n);
        else if (out->codes)
            fp8_cpu_encode(out->codes + row * out->codes_stride + c, out->code, v, n, scale,
                           s->keep_nan_sign);
        if (out->dense)
            fp8_simd_best()->narrow((char *)out->dense + (row * out->dense_stride + c) * size,
                                    s->dtype, v, n);
        if (out->amax)
            amax = max_float(amax, fp8_simd_best()->amax(v, n, &found->nonfinite));
    }
    found->amax = max_float(found->amax, amax);
    if (!out->first || !out->first[row])
        found->amax_without_first = max_float(found->amax_without_first, amax);
}

static fp8_status produce_range(void *ctx, int64_t begin, int64_t end, int32_t worker) {
    rows_job *j = ctx;
    fp8_amax_slot found = {0};

    (void)worker;
    for (int64_t r = begin; r < end; r++) produce_row(j, r, &found);
    if (!j->out->amax) return FP8_OK;
    pthread_mutex_lock(&j->lock);
    fp8_cpu_join_amax(j->out->amax, &found);
    pthread_mutex_unlock(&j->lock);
    return FP8_OK;
}

fp8_status fp8_cpu_produce_rows(fp8_device *d, const fp8_sink *out, const fp8_row_source *source) {
    rows_job j = {.out = out, .source = source, .lock = PTHREAD_MUTEX_INITIALIZER};
    const int64_t grain = source->cols < GRAIN ? GRAIN / source->cols : 1;
    const fp8_status st =
        fp8_parallel_for(fp8_device_pool(d), source->rows, grain, produce_range, &j);

    pthread_mutex_destroy(&j.lock);
    return st;
}

/* ---- the plain producer ---------------------------------------------------------------------- */

typedef struct cast_op {
    const char *x;
    fp8_dtype dtype;
    int64_t stride;
} cast_op;

static void cast_values(const void *op, int64_t row, const fp8_row_stats *stats, int64_t col,
                        int64_t n, float *v) {
    const cast_op *o = op;
    const int64_t at = (row * o->stride + col) * (int64_t)fp8_dtype_size(o->dtype);

    (void)stats;
    fp8_simd_best()->widen(v, o->x + at, o->dtype, n);
}

fp8_status fp8_cpu_produce_cast(fp8_device *d, const fp8_sink *out, const void *x, fp8_dtype dtype,
                                int64_t rows, int64_t cols, int64_t x_stride) {
    const cast_op op = {x, dtype, x_stride};
    const fp8_row_source source = {.op = &op, .dtype = dtype, .rows = rows, .cols = cols,
                                   .keep_nan_sign = 1, .values = cast_values};
    return fp8_cpu_produce_rows(d, out, &source);
}
