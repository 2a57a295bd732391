/* tests/produce_cases.h - the producers of rows and heads against their formulas in double: the
 * cases that test_produce.c runs on the CPU and gpu_produce.c on CUDA. */
#ifndef FP8_TESTS_PRODUCE_CASES_H
#define FP8_TESTS_PRODUCE_CASES_H
#include "tests/produce_check.h"

static const fp8_dtype produce_types[] = {FP8_DTYPE_BF16, FP8_DTYPE_F32, FP8_DTYPE_F16};
enum { NUM_PRODUCE_TYPES = 3 };

static const sink_shape sink_shapes[] = {
    {"static", FP8_SINK_STATIC, FP8_DTYPE_E4M3, 0, 0, 0, 0, 0},
    {"token", FP8_SINK_TOKEN, FP8_DTYPE_E4M3, 0, 0, 0, 0, 0},
    {"group", FP8_SINK_GROUP, FP8_DTYPE_E4M3, 0, 0, 0, 0, 0},
    {"static, all outputs", FP8_SINK_STATIC, FP8_DTYPE_E4M3, 1, 1, 1, 0, 16},
    {"token, all outputs, odd stride", FP8_SINK_TOKEN, FP8_DTYPE_E5M2, 1, 1, 0, 0, 3},
    {"group, all outputs", FP8_SINK_GROUP, FP8_DTYPE_E5M2, 1, 1, 1, 1, 0},
    {"values only", FP8_SINK_STATIC, FP8_NUM_DTYPES, 1, 0, 0, 0, 0},
    {"amax only", FP8_SINK_STATIC, FP8_NUM_DTYPES, 0, 1, 1, 0, 0},
    {"values and amax", FP8_SINK_STATIC, FP8_NUM_DTYPES, 1, 1, 1, 0, 0},
};
enum { NUM_SINK_SHAPES = sizeof sink_shapes / sizeof *sink_shapes };

/* Normal numbers; `hostile` puts NaN, Inf, -0, subnormal and huge ones into some rows and makes
 * one row zero. */
static inline void fill_real(const twin *t, fp8_dtype type, int64_t rows, int64_t cols,
                             int64_t stride, int hostile, uint64_t seed) {
    static const float odd[] = {NAN, -INFINITY, -0.0f, 1e-40f, 3e38f, INFINITY, 60000.0f, -NAN};
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < stride; c++) {
            const int zero = hostile && r % 7 == 2;
            float v = zero ? 0.0f : check_normal(&seed) * (r % 2 ? 1.0f : 20.0f);
            if (hostile && r % 7 > 3 && check_random(&seed) % 64 == 0)
                v = odd[check_random(&seed) % (r % 7 > 5 ? 8 : 4)];
            if (c >= cols) v = NAN; /* between the rows: never to be read */
            put_real(t->host, type, r * stride + c, v);
        }
    twin_up(t);
}

/* ---- norm ------------------------------------------------------------------------------------ */

typedef struct norm_case {
    fp8_norm_kind kind;
    int residual, rounded, bias;
    int from; /* rows from elsewhere: 1, and h is kept; 2, and it is not */
    float multiplier;
} norm_case;

static const norm_case norm_cases[] = {
    {FP8_NORM_RMS, 0, 0, 0, 0, 0},          {FP8_NORM_RMS, 1, 0, 0, 0, 0},
    {FP8_NORM_RMS, 0, 1, 0, 0, 0},          {FP8_NORM_LAYER, 0, 0, 1, 0, 0},
    {FP8_NORM_RMS_PLUS, 1, 0, 0, 0, 0},     {FP8_NORM_LAYER, 1, 0, 0, 0, 0},
    {FP8_NORM_RMS, 0, 0, 0, 1, 1.75f},      {FP8_NORM_RMS, 1, 0, 0, 2, 0},
    {FP8_NORM_RMS_PLUS, 0, 1, 0, 1, 55.5f}, {FP8_NORM_LAYER, 1, 0, 1, 1, 1},
};
enum { NUM_NORM_CASES = sizeof norm_cases / sizeof *norm_cases };

static inline double overflow(double x) { return x > (double)FLT_MAX ? INFINITY : x; }

/* v [cols] of one row h [cols]. Roundings of a sum of squares: 32 to 75 in a thread's and the
 * tree's, one more a 512 columns where a row is walked; halved by the root, and a few. */
static inline void norm_row(interval *v, const double *h, const double *w, const double *b,
                            int64_t cols, const norm_case *k, double eps, fp8_dtype type) {
    const double depth = 80 + (double)cols / 256, n = (double)cols;
    double mean = 0, size = 0, square = 0, rstd;

    for (int64_t c = 0; k->kind == FP8_NORM_LAYER && c < cols; c++) {
        mean += h[c];
        size += fabs(h[c]) / n;
    }
    mean = size > (double)FLT_MAX / n ? NAN : mean / n; /* the sum overflows: all is NaN */
    for (int64_t c = 0; c < cols; c++) square += overflow((h[c] - mean) * (h[c] - mean));
    rstd = 1 / sqrt(overflow(square) / n + eps);
    for (int64_t c = 0; c < cols; c++) {
        const double room = k->kind == FP8_NORM_LAYER ? depth * ulp * size + 1e-44 : 0;
        interval x = iv_room(iv(h[c] - mean), isfinite(room) ? room : 0);
        x = iv_widen(iv_mul(iv_widen(x, 1), rstd), depth / 2 + 4);
        if (k->kind == FP8_NORM_RMS && k->rounded) x = iv_round(x, type);
        x = iv_widen(iv_mul(x, k->kind == FP8_NORM_RMS_PLUS ? 1 + w[c] : w[c]), 3);
        if (k->bias) x = iv_widen(iv_add(x, iv(b[c])), 1);
        v[c] = x;
    }
}

/* What h must be, of the case's rows, to `want`. */
static inline void want_stream(const twin *want, const twin *x, const twin *y, const int32_t *from,
                               const norm_case *k, fp8_dtype type, int64_t rows, int64_t cols,
                               int64_t stride) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < cols; c++) {
            const int64_t at = (k->from ? from[r] : r) * stride + c;
            float v = real_at(x->host, type, at);
            if (k->multiplier != 0.0f) v = round_real(v * k->multiplier, type);
            if (k->residual) v = round_real(v + real_at(y->host, type, at), type);
            put_real(want->host, type, r * stride + c, v);
        }
}

/* What lies at `got` where h was to be written. */
static inline void check_stream(const twin *got, const twin *want, fp8_dtype type, int64_t rows,
                                int64_t cols, int64_t stride) {
    for (int64_t i = 0; i < rows * stride; i++) {
        const float a = real_at(got->host, type, i), b = real_at(want->host, type, i);
        if (i % stride >= cols || (isnan(a) && isnan(b)) || a == b) continue;
        fprintf(stderr, "[%s] h %lld: got %a, want %a\n", check_case, (long long)i, (double)a,
                (double)b);
        CHECK(!"h");
        return;
    }
}

static inline void run_norm(fp8_device *d, fp8_dtype type, const norm_case *k,
                            const sink_shape *shape, int64_t rows, int64_t cols, size_t skew,
                            int hostile) {
    const size_t real = fp8_dtype_size(type);
    const int64_t stride = cols + shape->gap;
    const double eps = 1e-5;
    const size_t bytes = (size_t)(rows * stride) * real;
    twin x = twin_make(d, bytes, skew * real), y = twin_make(d, bytes, 0);
    twin stream = twin_make(d, bytes, 0), want = twin_make(d, bytes, 0);
    twin from = twin_make(d, (size_t)rows * sizeof(int32_t), 0);
    twin w = twin_make(d, (size_t)cols * real, 0), b = twin_make(d, (size_t)cols * real, 0);
    sink_twin out = sink_make(d, shape, type, rows, cols, skew);
    interval *v = calloc((size_t)(rows * cols) + 1, sizeof *v);
    double *h = calloc((size_t)cols * 3 + 1, sizeof *h), *wd = h + cols, *bd = wd + cols;
    int32_t *const rows_of = (int32_t *)(void *)from.host;
    fp8_norm n = {k->kind, (float)eps, k->rounded, type, rows, cols, x.dev, NULL, NULL,
                  shape->gap ? stride : 0, stride, stride, w.dev, k->bias ? b.dev : NULL, NULL,
                  k->multiplier};

    fill_real(&x, type, rows, cols, stride, hostile, 11);
    fill_real(&y, type, rows, cols, stride, 0, 12);
    fill_real(&w, type, 1, cols, cols, 0, 13);
    fill_real(&b, type, 1, cols, cols, 0, 14);
    for (int64_t r = 0; r < rows; r++) rows_of[r] = (int32_t)((r * 5 + 3) % rows);
    twin_up(&from);
    if (k->residual) {
        n.residual = y.dev;
        n.h = x.dev;
    }
    if (k->from) {
        n.from = (const int32_t *)(const void *)from.dev;
        n.h = k->from == 1 ? stream.dev : NULL;
    }
    CHECK_STATUS(fp8_produce_norm(d, &out.sink, &n, FP8_LAUNCH_ORDERED), FP8_OK);
    for (int64_t c = 0; c < cols; c++) {
        wd[c] = (double)real_at(w.host, type, c);
        bd[c] = (double)real_at(b.host, type, c);
    }
    want_stream(&want, &x, &y, rows_of, k, type, rows, cols, stride);
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t c = 0; c < cols; c++) h[c] = (double)real_at(want.host, type, r * stride + c);
        norm_row(v + r * cols, h, wd, bd, cols, k, (double)(float)eps, type);
    }
    sink_check(&out, v);
    if (k->from == 1) twin_down(&stream), check_stream(&stream, &want, type, rows, cols, stride);
    if (!k->from) twin_down(&x), check_stream(&x, &want, type, rows, cols, stride);
    free(v), free(h);
    twin_free(&x), twin_free(&y), twin_free(&stream), twin_free(&want), twin_free(&from);
    twin_free(&w), twin_free(&b);
    sink_free(&out);
}

/* ---- activation ------------------------------------------------------------------------------ */

/* act(x) in F32: an exponential is off by a few ulp and by what the rounding of its argument y
 * makes, |y| ulp (GELU: 8 |y|, y being a polynomial), of which e^-y / (1 + e^-y) is seen. */
static inline interval act_of(double x, fp8_activation act) {
    const double u = 0.7978845608028654 * (x + 0.044715 * x * x * x);
    const double y = act == FP8_ACT_GELU_TANH ? 2 * u : x, e = exp(-y);

    if (act == FP8_ACT_RELU) return iv(x < 0 ? 0 : x);
    if (act == FP8_ACT_GELU_ERF)
        return iv_room(iv_widen(iv(x * 0.5 * (1 + erf(x / sqrt(2.0)))), 8),
                       isinf(x) ? 0 : fabs(x) * 8 * ulp);
    /* beyond, e^-y or the sum overflows in F32; near there it may or may not */
    if (y < -88.7) return y < -104.5 || isinf(x) ? iv(isinf(x) ? NAN : -0.0)
                                                 : (interval){x / (1 + exp(88.6)), 0};
    return iv_widen(iv(x / (1 + e)),
                    10 + (act == FP8_ACT_GELU_TANH ? 8 : 2) * fabs(y) * e / (1 + e));
}

static inline void run_act(fp8_device *d, fp8_dtype type, fp8_activation act, int gated,
                           int rounded, const sink_shape *shape, int64_t rows, int64_t cols,
                           size_t skew, int hostile) {
    const size_t real = fp8_dtype_size(type);
    const int64_t stride = 2 * cols + shape->gap; /* gate and up side by side */
    twin x = twin_make(d, (size_t)(rows * stride) * real, skew * real);
    sink_twin out = sink_make(d, shape, type, rows, cols, skew);
    interval *v = calloc((size_t)(rows * cols) + 1, sizeof *v);
    const fp8_act a = {act, rounded, type, rows, cols, x.dev,
                       gated ? x.dev + (size_t)cols * real : NULL, stride, stride};

    fill_real(&x, type, rows, 2 * cols, stride, hostile, 21);
    CHECK_STATUS(fp8_produce_act(d, &out.sink, &a, FP8_LAUNCH_ORDERED), FP8_OK);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < cols; c++) {
            interval y = act_of((double)real_at(x.host, type, r * stride + c), act);
            if (gated && rounded) y = iv_round(y, type);
            if (gated) y = iv_widen(iv_mul(y, (double)real_at(x.host, type,
                                                              r * stride + cols + c)), 1);
            if (y.lo < -(double)FLT_MAX) y.lo = -INFINITY; /* the product overflows in F32 */
            if (y.hi > (double)FLT_MAX) y.hi = INFINITY;
            v[r * cols + c] = y;
        }
    sink_check(&out, v);
    free(v);
    twin_free(&x);
    sink_free(&out);
}

/* Every BF16 there is, through every activation; in place. */
static inline void run_act_all(fp8_device *d) {
    enum { N = 65536 };
    for (int act = FP8_ACT_SILU; act <= FP8_ACT_RELU; act++) {
        twin x = twin_make(d, N * 2, 0), before = twin_make(d, N * 2, 0);
        const fp8_act a = {.act = (fp8_activation)act, .dtype = FP8_DTYPE_BF16, .rows = 4,
                           .cols = N / 4, .x = x.dev};
        const fp8_sink out = {.dense = x.dev};
        int bad = 0;
        check_case = "every BF16";
        for (int i = 0; i < N; i++) ((uint16_t *)(void *)x.host)[i] = (uint16_t)i;
        memcpy(before.host, x.host, N * 2);
        twin_up(&x);
        CHECK_STATUS(fp8_produce_act(d, &out, &a, FP8_LAUNCH_ORDERED), FP8_OK);
        twin_down(&x);
        for (int i = 0; i < N && bad < 10; i++) {
            const float from = real_at(before.host, FP8_DTYPE_BF16, i);
            const interval y = act_of((double)from, (fp8_activation)act);
            if (real_fits(real_at(x.host, FP8_DTYPE_BF16, i), FP8_DTYPE_BF16, y)) continue;
            fprintf(stderr, "[%s] activation %d of %a: got %a, want %a .. %a\n", check_case, act,
                    (double)from, (double)real_at(x.host, FP8_DTYPE_BF16, i), y.lo, y.hi);
            bad++;
        }
        CHECK(bad == 0);
        twin_free(&x), twin_free(&before);
    }
}

/* 300 and 302 by turns: variance 1 about the mean, lost in E[x^2] - mean^2. And the same bytes in
 * place, over x and over the residual, as beside them. */
static inline void run_norm_places(fp8_device *d, int64_t rows, int64_t cols) {
    const size_t bytes = (size_t)(rows * cols) * 2;
    twin x = twin_make(d, bytes, 0), y = twin_make(d, bytes, 0), z = twin_make(d, bytes, 0);
    twin w = twin_make(d, (size_t)cols * 2, 0);
    fp8_norm n = {.kind = FP8_NORM_LAYER, .eps = 1e-6f, .dtype = FP8_DTYPE_BF16, .rows = rows,
                  .cols = cols, .x = x.dev, .weight = w.dev};
    fp8_sink out = {.dense = y.dev};
    int bad = 0;

    check_case = "norm of a large offset";
    for (int64_t i = 0; i < cols; i++) put_real(w.host, FP8_DTYPE_BF16, i, 1.0f);
    for (int64_t i = 0; i < rows * cols; i++)
        put_real(x.host, FP8_DTYPE_BF16, i, i % 2 ? 302.0f : 300.0f);
    twin_up(&w), twin_up(&x);
    CHECK_STATUS(fp8_produce_norm(d, &out, &n, FP8_LAUNCH_ORDERED), FP8_OK);
    twin_down(&y);
    for (int64_t i = 0; i < rows * cols; i++)
        bad += real_at(y.host, FP8_DTYPE_BF16, i) != (i % 2 ? 1.0f : -1.0f);
    CHECK(bad == 0);

    check_case = "norm in place";
    fill_real(&w, FP8_DTYPE_BF16, 1, cols, cols, 0, 15);
    fill_real(&x, FP8_DTYPE_BF16, rows, cols, cols, 1, 16);
    fill_real(&z, FP8_DTYPE_BF16, rows, cols, cols, 0, 17);
    n.kind = FP8_NORM_RMS;
    CHECK_STATUS(fp8_produce_norm(d, &out, &n, FP8_LAUNCH_ORDERED), FP8_OK);
    out.dense = x.dev;
    CHECK_STATUS(fp8_produce_norm(d, &out, &n, FP8_LAUNCH_ORDERED), FP8_OK);
    twin_down(&x), twin_down(&y);
    CHECK(memcmp(x.host, y.host, bytes) == 0);
    n.residual = z.dev; /* h over x, values beside; then values over the residual */
    n.h = x.dev;
    out.dense = y.dev;
    CHECK_STATUS(fp8_produce_norm(d, &out, &n, FP8_LAUNCH_ORDERED), FP8_OK);
    twin_up(&x);
    out.dense = z.dev;
    CHECK_STATUS(fp8_produce_norm(d, &out, &n, FP8_LAUNCH_ORDERED), FP8_OK);
    twin_down(&z), twin_down(&y);
    CHECK(memcmp(z.host, y.host, bytes) == 0);
    twin_free(&x), twin_free(&y), twin_free(&z), twin_free(&w);
}

static inline void run_all_places(fp8_device *d) {
    run_act_all(d);
    run_norm_places(d, 3, 128);
    run_norm_places(d, 5, 4096);
    run_norm_places(d, 7, 130);
    run_norm_places(d, 600, 512);
}

/* ---- cast ------------------------------------------------------------------------------------ */

/* As fp8_quantize_groups and fp8_quantize do it, by their CPU versions: every bit. */
static inline void run_cast(fp8_device *d, fp8_device *cpu, fp8_dtype type,
                            const sink_shape *shape, int64_t rows, int64_t cols, size_t skew) {
    const size_t real = fp8_dtype_size(type);
    const int64_t stride = cols + shape->gap;
    twin x = twin_make(d, (size_t)(rows * stride) * real, skew * real);
    sink_twin out = sink_make(d, shape, type, rows, cols, skew);
    const int64_t width = shape->scaling == FP8_SINK_GROUP ? FP8_SINK_GROUP_COLS : cols;
    uint8_t *want = calloc((size_t)cols + 1, 1);
    int bad = 0;

    fill_real(&x, type, rows, cols, stride, 1, 31);
    CHECK_STATUS(fp8_produce_cast(d, &out.sink, x.dev, type, rows, cols, shape->gap ? stride : 0,
                                  FP8_LAUNCH_ORDERED), FP8_OK);
    twin_down(&out.codes), twin_down(&out.descale), twin_down(&out.dense);
    for (int64_t r = 0; r < rows && !bad && shape->code != FP8_NUM_DTYPES; r++)
        for (int64_t c = 0; c < cols; c += width) {
            const int64_t n = c + width < cols ? width : cols - c, group = c / width;
            const void *from = x.host + (size_t)(r * stride + c) * real;
            const int64_t at = shape->group_major ? r + group * rows
                               : r * (shape->scaling == FP8_SINK_GROUP ? out.groups : 1) + group;
            float descale = 0;
            if (shape->scaling == FP8_SINK_STATIC)
                CHECK_STATUS(fp8_quantize(cpu, want, shape->code, from, type, n, &(float){37.5f}),
                             FP8_OK);
            else
                CHECK_STATUS(fp8_quantize_groups(cpu, want, shape->code, &descale, from, type, 1,
                                                 n, 0), FP8_OK);
            bad |= memcmp(want, out.codes.host + r * (cols + shape->gap) + c, (size_t)n) != 0;
            if (shape->scaling != FP8_SINK_STATIC)
                bad |= memcmp(&descale, out.descale.host + 4 * at, 4) != 0;
        }
    for (int64_t i = 0; i < rows * stride && shape->dense && !bad; i++) {
        const float a = real_at(x.host, type, i), b = real_at(out.dense.host, type, i);
        bad |= i % stride < cols && !(isnan(a) && isnan(b)) && a != b;
    }
    CHECK(!bad);
    free(want);
    twin_free(&x);
    sink_free(&out);
}

/* ---- Q, K, V --------------------------------------------------------------------------------- */

typedef struct qkv_case {
    int64_t tokens, heads[3], dim, rotary, gap;
    int norm, per_head, turned; /* per_head: a scale a head; turned: V as [head][dim][token] */
    fp8_norm_kind kind;
    int rounded, dense;
    size_t skew;
    int codes_only; /* no amax */
} qkv_case;

static const qkv_case qkv_cases[] = {
    {3, {4, 2, 2}, 64, 64, 0, 0, 0, 0, FP8_NORM_RMS, 0, 0, 0, 0},
    {17, {8, 2, 2}, 128, 128, 8, 1, 1, 1, FP8_NORM_RMS, 0, 1, 0, 0},
    {5, {3, 1, 1}, 96, 32, 0, 1, 0, 0, FP8_NORM_RMS_PLUS, 0, 1, 0, 0},
    {130, {4, 4, 4}, 256, 256, 0, 0, 1, 0, FP8_NORM_RMS, 0, 0, 0, 0},
    {2, {2, 1, 1}, 80, 20, 0, 1, 0, 0, FP8_NORM_RMS, 1, 1, 0, 0},
    {7, {5, 1, 1}, 33, 6, 3, 1, 0, 1, FP8_NORM_RMS, 0, 1, 1, 0},
    {9, {2, 2, 2}, 48, 0, 0, 0, 0, 0, FP8_NORM_RMS, 0, 1, 0, 0},
    {4, {12, 0, 0}, 64, 64, 0, 0, 0, 0, FP8_NORM_RMS, 0, 1, 0, 0},
    {4, {0, 2, 2}, 1024, 512, 0, 1, 0, 1, FP8_NORM_RMS, 0, 1, 0, 0},
    {1, {1, 1, 1}, 1, 0, 0, 1, 0, 0, FP8_NORM_RMS, 0, 1, 0, 0},
    {66, {2, 1, 1}, 72, 48, 16, 1, 1, 0, FP8_NORM_RMS_PLUS, 1, 0, 0, 0},
    {1100, {6, 2, 2}, 64, 64, 0, 0, 0, 0, FP8_NORM_RMS, 0, 0, 0, 1},
    {1061, {5, 1, 1}, 128, 96, 8, 1, 1, 0, FP8_NORM_RMS, 0, 0, 0, 1},
    {1089, {2, 1, 0}, 32, 0, 0, 1, 0, 0, FP8_NORM_RMS_PLUS, 1, 0, 0, 1},
    {3, {4, 2, 2}, 128, 128, 0, 1, 0, 0, FP8_NORM_RMS, 0, 0, 0, 1},
    {531, {38, 8, 8}, 128, 128, 0, 1, 0, 0, FP8_NORM_RMS, 0, 0, 0, 1}, /* a warp a chunk */
    {140, {70, 20, 20}, 128, 64, 0, 1, 1, 0, FP8_NORM_RMS, 0, 0, 0, 1},  /* chunks in two rounds */
};
enum { NUM_QKV_CASES = sizeof qkv_cases / sizeof *qkv_cases, QKV_POSITIONS = 40 };

/* One head's values [dim] as intervals. */
static inline void head_values(interval *v, const void *x, int64_t at, const void *w,
                               const float *cos, const float *sin, const qkv_case *k, int turns,
                               fp8_dtype type) {
    double square = 0, rstd;

    for (int64_t i = 0; i < k->dim; i++) v[i] = iv((double)real_at(x, type, at + i));
    for (int64_t i = 0; i < k->dim; i++) square += overflow(v[i].lo * v[i].lo);
    rstd = 1 / sqrt(overflow(square) / (double)k->dim + (double)1e-6f);
    for (int64_t i = 0; i < k->dim && w; i++) {
        const double weight = (double)real_at(w, type, i);
        v[i] = iv_widen(iv_mul(v[i], rstd), 50);
        if (k->rounded && k->kind == FP8_NORM_RMS) v[i] = iv_round(v[i], type);
        v[i] = iv_widen(iv_mul(v[i], k->kind == FP8_NORM_RMS_PLUS ? 1 + weight : weight), 3);
        if (k->rounded) v[i] = iv_round(v[i], type);
    }
    for (int64_t i = 0; i < k->rotary / 2 && turns; i++) {
        const interval a = v[i], b = v[i + k->rotary / 2];
        const double c = (double)cos[i], s = (double)sin[i];
        v[i] = iv_widen(iv_add(iv_widen(iv_mul(a, c), 1), iv_widen(iv_mul(b, -s), 1)), 1);
        v[i + k->rotary / 2] =
            iv_widen(iv_add(iv_widen(iv_mul(b, c), 1), iv_widen(iv_mul(a, s), 1)), 1);
    }
}

typedef struct part_twin {
    twin x, weight, scale, codes, dense, amax;
    int64_t stride, heads;
} part_twin;

static inline part_twin part_make(fp8_device *d, fp8_heads *h, const qkv_case *k, int part,
                                  fp8_dtype type, uint64_t seed) {
    const size_t real = fp8_dtype_size(type);
    const int64_t heads = k->heads[part], width = heads * k->dim, stride = width + k->gap;
    part_twin t = {.stride = stride, .heads = heads};

    t.x = twin_make(d, (size_t)(k->tokens * stride) * real, k->skew * real);
    t.weight = twin_make(d, (size_t)k->dim * real, 0);
    t.scale = twin_make(d, (size_t)heads * 4 + 4, 0);
    t.codes = twin_make(d, (size_t)(k->tokens * width), k->skew);
    t.dense = twin_make(d, (size_t)(k->tokens * width) * real, k->skew * real);
    t.amax = twin_make(d, sizeof amax_before, 0);
    memcpy(t.amax.host, &amax_before, sizeof amax_before);
    for (int64_t i = 0; i <= heads; i++)
        ((float *)(void *)t.scale.host)[i] = 20.0f + (float)(k->per_head ? i : 0) * 3.7f;
    fill_real(&t.x, type, k->tokens, width, stride, part == 1, seed);
    fill_real(&t.weight, type, 1, k->dim, k->dim, 0, seed + 1);
    twin_up(&t.scale), twin_up(&t.amax);
    *h = (fp8_heads){.heads = heads, .x = t.x.dev, .x_token_stride = stride,
                     .x_head_stride = k->dim, .scale = (float *)(void *)t.scale.dev,
                     .scale_stride = k->per_head, .codes = t.codes.dev,
                     .dense = k->dense ? t.dense.dev : NULL,
                     .norm_weight = k->norm && part < 2 ? t.weight.dev : NULL,
                     .amax = k->codes_only ? NULL : (fp8_amax_slot *)(void *)t.amax.dev};
    if (part == 2 && k->turned) {
        h->codes_token_stride = 1;
        h->codes_head_stride = k->dim * k->tokens;
        h->codes_dim_stride = k->tokens;
    }
    return t;
}

static inline void part_check(part_twin *t, const qkv_case *k, int part, const float *cos,
                              const float *sin, const int32_t *positions, fp8_dtype type) {
    const int64_t width = t->heads * k->dim;
    interval *v = calloc((size_t)(k->tokens * width) + 1, sizeof *v);
    sink_twin figures = {.rows = k->tokens, .cols = width, .amax = t->amax};
    int bad = 0;

    twin_down(&t->codes), twin_down(&t->dense), twin_down(&t->amax);
    figures.amax = t->amax;
    for (int64_t i = 0; i < k->tokens * t->heads && bad < 10; i++) {
        const int64_t token = i / t->heads, head = i % t->heads;
        const int64_t angle = positions[token] * (k->rotary / 2);
        interval *x = v + token * width + head * k->dim;
        head_values(x, t->x.host, token * t->stride + head * k->dim,
                    k->norm && part < 2 ? t->weight.host : NULL, cos + angle, sin + angle, k,
                    part < 2, type);
        for (int64_t e = 0; e < k->dim && bad < 10; e++) {
            const int64_t at = token * width + head * k->dim + e;
            const int64_t to = part == 2 && k->turned ? (head * k->dim + e) * k->tokens + token
                                                      : at;
            const interval scale = iv((double)((float *)(void *)t->scale.host)[head]);
            const int wrong = !code_fits(t->codes.host[to], FP8_DTYPE_E4M3, x[e], scale) ||
                              (k->dense && !real_fits(real_at(t->dense.host, type, at), type,
                                                      x[e]));
            if (!wrong) continue;
            fprintf(stderr, "[%s] part %d, token %lld, head %lld, element %lld: %02x for %a .. %a"
                    "\n", check_case, part, (long long)token, (long long)head, (long long)e,
                    t->codes.host[to], x[e].lo, x[e].hi);
            bad++;
        }
    }
    CHECK(bad == 0);
    if (t->heads > 0 && !k->codes_only) check_amax(&figures, v);
    free(v);
}

static inline void run_qkv(fp8_device *d, const qkv_case *k, fp8_dtype type) {
    const size_t table = (size_t)QKV_POSITIONS * (size_t)k->rotary / 2 * 4;
    twin cos_ = twin_make(d, table, 0), sin_ = twin_make(d, table, 0);
    twin positions = twin_make(d, (size_t)k->tokens * 4, 0);
    fp8_qkv op = {.dtype = type, .code = FP8_DTYPE_E4M3, .tokens = k->tokens, .dim = k->dim,
                  .rotary_dim = k->rotary, .cos = (float *)(void *)cos_.dev,
                  .sin = (float *)(void *)sin_.dev, .positions = (int32_t *)(void *)positions.dev,
                  .norm = k->kind, .eps = 1e-6f, .rounded = k->rounded};
    float *cosines = (float *)(void *)cos_.host, *sines = (float *)(void *)sin_.host;
    int32_t *at = (int32_t *)(void *)positions.host;
    part_twin part[3];

    for (int64_t i = 0; i < QKV_POSITIONS * k->rotary / 2; i++) {
        cosines[i] = (float)cos((double)i * 0.37);
        sines[i] = (float)sin((double)i * 0.37);
    }
    for (int64_t i = 0; i < k->tokens; i++) at[i] = (int32_t)((i * 7 + 3) % QKV_POSITIONS);
    twin_up(&cos_), twin_up(&sin_), twin_up(&positions);
    part[0] = part_make(d, &op.q, k, 0, type, 41);
    part[1] = part_make(d, &op.k, k, 1, type, 43);
    part[2] = part_make(d, &op.v, k, 2, type, 45);
    CHECK_STATUS(fp8_produce_qkv(d, &op, FP8_LAUNCH_ORDERED), FP8_OK);
    for (int i = 0; i < 3; i++) {
        part_check(&part[i], k, i, cosines, sines, at, type);
        twin_free(&part[i].x), twin_free(&part[i].weight), twin_free(&part[i].scale);
        twin_free(&part[i].codes), twin_free(&part[i].dense), twin_free(&part[i].amax);
    }
    twin_free(&cos_), twin_free(&sin_), twin_free(&positions);
}
#endif
