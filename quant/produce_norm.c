/* RMS and layer norm on the CPU, for produce_rows.c. Sums run in LANES partial F32 sums over a
 * chunk, and those in double: an order that depends on neither threads nor vector width. */
#include <math.h>

#include "core/mathfn.h"
#include "quant/produce_impl.h"
#include "quant/simd.h"

enum { CHUNK = FP8_PRODUCE_CHUNK, LANES = 16 };

static int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }

static const void *at(const void *x, fp8_dtype t, int64_t i) {
    return (const char *)x + i * (int64_t)fp8_dtype_size(t);
}

/* ---- arithmetic ------------------------------------------------------------------------------ */

FP8_VECTOR static void add_powers(float *restrict lanes, const float *restrict x, int64_t n,
                                  float mean, int power) {
    for (int64_t i = 0; i < n; i += LANES)
        for (int k = 0; k < LANES; k++) {
            const float v = x[i + k] - mean;
            lanes[k] += power == 2 ? v * v : v;
        }
}

float fp8_cpu_sum_powers(const float *x, int64_t n, float mean, int power) {
    const int64_t whole = n / LANES * LANES;
    float lanes[LANES] = {0}, sum = 0;

    add_powers(lanes, x, whole, mean, power);
    for (int64_t i = whole; i < n; i++) {
        const float v = x[i] - mean;
        lanes[i % LANES] += power == 2 ? v * v : v;
    }
    for (int k = 0; k < LANES; k++) sum += lanes[k];
    return sum;
}

FP8_VECTOR static void multiply(float *restrict x, const float *restrict w, int64_t n) {
    for (int64_t i = 0; i < n; i++) x[i] *= w[i];
}

FP8_VECTOR static void scale_by(float *x, int64_t n, float factor) {
    for (int64_t i = 0; i < n; i++) x[i] *= factor;
}

FP8_VECTOR static void normalize_plus(float *restrict x, const float *restrict w, int64_t n,
                                      float rstd) {
    for (int64_t i = 0; i < n; i++) x[i] = x[i] * rstd * (1.0f + w[i]);
}

FP8_VECTOR static void normalize_layer(float *restrict x, const float *restrict w, int64_t n,
                                       float mean, float rstd) {
    for (int64_t i = 0; i < n; i++) x[i] = (x[i] - mean) * rstd * w[i];
}

FP8_VECTOR static void add(float *restrict x, const float *restrict y, int64_t n) {
    for (int64_t i = 0; i < n; i++) x[i] += y[i];
}

void fp8_cpu_normalize(float *x, const float *w, const float *b, int64_t n, fp8_norm_kind kind,
                       fp8_row_stats stats, int rounded, fp8_dtype dtype) {
    switch (kind) {
    case FP8_NORM_RMS:
        scale_by(x, n, stats.rstd);
        if (rounded) fp8_cpu_round(x, dtype, n);
        multiply(x, w, n);
        return;
    case FP8_NORM_RMS_PLUS: normalize_plus(x, w, n, stats.rstd); return;
    case FP8_NORM_LAYER:
        normalize_layer(x, w, n, stats.mean, stats.rstd);
        if (b) add(x, b, n);
        return;
    }
}

/* ---- a row ----------------------------------------------------------------------------------- */

/* A norm, and what it is of: x, or h once that is written; NULL: made of x in each pass. */
typedef struct norm_op {
    fp8_norm norm;
    const void *in;
    int64_t in_stride;
} norm_op;

/* h [len <= CHUNK] of a row from column c on. */
static void make_stream(float *x, const fp8_norm *n, int64_t row, int64_t c, int64_t len) {
    const fp8_simd *s = fp8_simd_best();
    const int64_t from = n->from ? n->from[row] : row;
    _Alignas(64) float y[CHUNK];

    s->widen(x, at(n->x, n->dtype, from * n->x_stride + c), n->dtype, len);
    if (n->multiplier != 1.0f) {
        scale_by(x, len, n->multiplier);
        fp8_cpu_round(x, n->dtype, len);
    }
    if (!n->residual) return;
    s->widen(y, at(n->residual, n->dtype, from * n->residual_stride + c), n->dtype, len);
    add(x, y, len);
    fp8_cpu_round(x, n->dtype, len);
}

static void write_stream(const fp8_norm *n, int64_t row) {
    _Alignas(64) float x[CHUNK];

    for (int64_t c = 0; c < n->cols; c += CHUNK) {
        const int64_t len = min64(CHUNK, n->cols - c);
        make_stream(x, n, row, c, len);
        fp8_simd_best()->narrow(
            (char *)n->h + (row * n->h_stride + c) * (int64_t)fp8_dtype_size(n->dtype), n->dtype,
            x, len);
    }
}

static void read_in(float *x, const norm_op *o, int64_t row, int64_t c, int64_t len) {
    const fp8_dtype t = o->norm.dtype;
    if (o->in) fp8_simd_best()->widen(x, at(o->in, t, row * o->in_stride + c), t, len);
    else make_stream(x, &o->norm, row, c, len);
}

static float mean_power(const norm_op *o, int64_t row, float mean, int power) {
    const fp8_norm *n = &o->norm;
    _Alignas(64) float x[CHUNK];
    double sum = 0;

    for (int64_t c = 0; c < n->cols; c += CHUNK) {
        const int64_t len = min64(CHUNK, n->cols - c);
        read_in(x, o, row, c, len);
        sum += (double)fp8_cpu_sum_powers(x, len, mean, power);
    }
    return (float)(sum / (double)n->cols);
}

static void norm_begin(const void *op, int64_t row, fp8_row_stats *stats) {
    const norm_op *o = op;

    if (o->norm.h) write_stream(&o->norm, row);
    stats->mean = o->norm.kind == FP8_NORM_LAYER ? mean_power(o, row, 0.0f, 1) : 0.0f;
    stats->rstd = 1.0f / sqrtf(mean_power(o, row, stats->mean, 2) + o->norm.eps);
}

static void norm_values(const void *op, int64_t row, const fp8_row_stats *stats, int64_t col,
                        int64_t n, float *v) {
    const norm_op *o = op;
    const fp8_dtype t = o->norm.dtype;
    _Alignas(64) float w[CHUNK], b[CHUNK];

    read_in(v, o, row, col, n);
    fp8_simd_best()->widen(w, at(o->norm.weight, t, col), t, n);
    if (o->norm.bias) fp8_simd_best()->widen(b, at(o->norm.bias, t, col), t, n);
    fp8_cpu_normalize(v, w, o->norm.bias ? b : NULL, n, o->norm.kind, *stats, o->norm.rounded, t);
}

fp8_status fp8_cpu_produce_norm(fp8_device *d, const fp8_sink *out, const fp8_norm *norm) {
    const int plain = !norm->residual && !norm->from;
    const norm_op op = {*norm, plain ? norm->x : norm->h, plain ? norm->x_stride : norm->h_stride};
    const fp8_row_source source = {.op = &op, .dtype = norm->dtype, .rows = norm->rows,
                                   .cols = norm->cols, .begin = norm_begin,
                                   .values = norm_values};
    return fp8_cpu_produce_rows(d, out, &source);
}
