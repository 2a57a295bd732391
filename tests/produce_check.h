/* tests/produce_check.h - what test_produce.c and gpu_produce.c share: buffers on any device with
 * guards, intervals that hold a formula's value whatever the rounding of its steps, and the check
 * of a sink against them. */
#ifndef FP8_TESTS_PRODUCE_CHECK_H
#define FP8_TESTS_PRODUCE_CHECK_H
#include <float.h>
#include <string.h>

#include "core/half.h"
#include "quant/quant.h"
#include "tests/check.h"

/* ---- buffers --------------------------------------------------------------------------------- */

enum { GUARD = 64, GUARD_BYTE = 0xee };

/* A host copy and its twin on the device, `skew` bytes past a 64-byte boundary. */
typedef struct twin {
    fp8_device *device;
    size_t bytes;
    unsigned char *host, *base, *dev;
} twin;

/* Device memory is handed out from one block, which starts anew when all of it was given back. */
enum { TWIN_POOL = 64 << 20 };
static unsigned char *twin_pool;
static size_t twin_used, twin_live;

static inline unsigned char *twin_take(fp8_device *d, size_t bytes) {
    unsigned char *p;
    if (!twin_pool) CHECK_STATUS(fp8_device_alloc(d, (void **)&twin_pool, TWIN_POOL), FP8_OK);
    if (twin_live == 0) twin_used = 0;
    p = twin_pool + twin_used;
    twin_used += (bytes + 255) / 256 * 256;
    twin_live++;
    if (twin_used <= TWIN_POOL) return p;
    fprintf(stderr, "TWIN_POOL is too small\n");
    exit(1);
}

static inline twin twin_make(fp8_device *d, size_t bytes, size_t skew) {
    twin t = {d, bytes, calloc(bytes + 16, 1), NULL, NULL};
    t.base = twin_take(d, bytes + skew + 2 * GUARD);
    CHECK_STATUS(fp8_device_fill(d, t.base, GUARD_BYTE, bytes + skew + 2 * GUARD), FP8_OK);
    t.dev = t.base + GUARD + skew;
    return t;
}

static inline void twin_up(const twin *t) {
    CHECK_STATUS(fp8_device_upload(t->device, t->dev, t->host, t->bytes), FP8_OK);
}

/* The device's bytes to the host; what lies around them must be untouched. */
static inline void twin_down(const twin *t) {
    unsigned char guards[2 * GUARD];
    CHECK_STATUS(fp8_device_download(t->device, t->host, t->dev, t->bytes), FP8_OK);
    CHECK_STATUS(fp8_device_download(t->device, guards, t->dev - GUARD, GUARD), FP8_OK);
    CHECK_STATUS(fp8_device_download(t->device, guards + GUARD, t->dev + t->bytes, GUARD), FP8_OK);
    for (int i = 0; i < 2 * GUARD; i++)
        if (guards[i] != GUARD_BYTE) {
            CHECK(!"written outside a buffer");
            break;
        }
}

static inline void twin_free(twin *t) {
    twin_live--;
    free(t->host);
}

static inline void put_real(void *x, fp8_dtype t, int64_t i, float v) {
    uint16_t h;
    if (t == FP8_DTYPE_F32) {
        memcpy((char *)x + 4 * i, &v, 4);
        return;
    }
    h = t == FP8_DTYPE_BF16 ? fp8_f32_to_bf16(v) : fp8_f32_to_f16(v);
    memcpy((char *)x + 2 * i, &h, 2);
}

static inline float real_at(const void *x, fp8_dtype t, int64_t i) {
    uint16_t h;
    float v;
    if (t == FP8_DTYPE_F32) {
        memcpy(&v, (const char *)x + 4 * i, 4);
        return v;
    }
    memcpy(&h, (const char *)x + 2 * i, 2);
    return t == FP8_DTYPE_BF16 ? fp8_bf16_to_f32(h) : fp8_f16_to_f32(h);
}

static inline float round_real(float v, fp8_dtype t) {
    unsigned char x[4];
    put_real(x, t, 0, v);
    return real_at(x, t, 0);
}

/* ---- intervals ------------------------------------------------------------------------------- */

/* All values that a formula in F32 may give; NaN in both for NaN, -Inf .. Inf for Inf or NaN. */
typedef struct interval {
    double lo, hi;
} interval;

static const double ulp = 0x1p-24; /* half a unit in the last place: one rounding */

static inline interval iv(double v) { return (interval){v, v}; }

/* Room for `roundings` relative errors of 2^-24, and for results below the normal floats. */
static inline interval iv_widen(interval a, double roundings) {
    const double most = fmax(fabs(a.lo), fabs(a.hi)), by = isinf(most) ? 0 : most * roundings * ulp;
    if (a.lo == 0 && a.hi == 0) return a;
    return (interval){a.lo - by - 1e-44, a.hi + by + 1e-44};
}

static inline interval iv_room(interval a, double by) { return (interval){a.lo - by, a.hi + by}; }
static inline interval iv_add(interval a, interval b) {
    return (interval){a.lo + b.lo, a.hi + b.hi};
}

static inline interval iv_mul(interval a, double b) {
    const double p = a.lo * b, q = a.hi * b;
    if (isnan(p) && isnan(q)) return iv(NAN);
    if (isnan(p) || isnan(q)) return (interval){-INFINITY, INFINITY};
    return (interval){p < q ? p : q, p < q ? q : p};
}

static inline interval iv_mul2(interval a, interval b) {
    const interval p = iv_mul(a, b.lo), q = iv_mul(a, b.hi);
    if (isnan(p.lo) || isnan(q.lo)) return iv(NAN);
    return (interval){fmin(p.lo, q.lo), fmax(p.hi, q.hi)};
}

static inline interval iv_round(interval a, fp8_dtype t) {
    return (interval){(double)round_real((float)a.lo, t), (double)round_real((float)a.hi, t)};
}

/* ---- a sink and what it must hold ------------------------------------------------------------ */

/* Every output of a sink for [rows, cols], strides past the row, each with its twin. */
typedef struct sink_twin {
    fp8_sink sink;
    fp8_dtype dtype;
    int64_t rows, cols, groups;
    twin codes, scale, descale, dense, amax, first;
} sink_twin;

typedef struct sink_shape {
    const char *name;
    fp8_sink_scaling scaling;
    fp8_dtype code; /* FP8_NUM_DTYPES: no codes */
    int dense, amax, first, group_major;
    int64_t gap; /* elements between rows beyond cols */
} sink_shape;

static const fp8_amax_slot amax_before = {0.0625f, 0.03125f, 3, 0};

static inline sink_twin sink_make(fp8_device *d, const sink_shape *s, fp8_dtype dtype,
                                  int64_t rows, int64_t cols, size_t skew) {
    const int64_t groups = (cols + FP8_SINK_GROUP_COLS - 1) / FP8_SINK_GROUP_COLS;
    const int64_t stride = cols + s->gap;
    const size_t real = fp8_dtype_size(dtype);
    sink_twin t = {.dtype = dtype, .rows = rows, .cols = cols, .groups = groups};

    t.codes = twin_make(d, (size_t)(rows * stride), skew);
    t.dense = twin_make(d, (size_t)(rows * stride) * real, skew * real);
    t.descale = twin_make(d, (size_t)(rows * groups) * 4 + 4, 0);
    t.scale = twin_make(d, 4, 0);
    t.amax = twin_make(d, sizeof amax_before, 0);
    t.first = twin_make(d, (size_t)rows + 1, 0);
    memset(t.codes.host, 0x5a, t.codes.bytes);
    memset(t.dense.host, 0x5a, t.dense.bytes);
    memcpy(t.scale.host, &(float){37.5f}, 4);
    memcpy(t.amax.host, &amax_before, sizeof amax_before);
    for (int64_t r = 0; r < rows; r++) t.first.host[r] = r % 3 == 0;
    twin_up(&t.codes), twin_up(&t.dense), twin_up(&t.scale), twin_up(&t.amax), twin_up(&t.first);
    t.sink = (fp8_sink){.codes_stride = s->gap ? stride : 0, .dense_stride = s->gap ? stride : 0};
    if (s->code != FP8_NUM_DTYPES) {
        t.sink.codes = t.codes.dev;
        t.sink.code = s->code;
        t.sink.scaling = s->scaling;
        t.sink.scale = (float *)(void *)t.scale.dev;
        t.sink.descale = (float *)(void *)t.descale.dev;
    }
    if (s->group_major) {
        t.sink.descale_row_stride = 1;
        t.sink.descale_group_stride = rows;
    }
    if (s->dense) t.sink.dense = t.dense.dev;
    if (s->amax) t.sink.amax = (fp8_amax_slot *)(void *)t.amax.dev;
    if (s->first) t.sink.first = t.first.dev;
    return t;
}

static inline void sink_free(sink_twin *t) {
    twin_free(&t->codes), twin_free(&t->scale), twin_free(&t->descale), twin_free(&t->dense);
    twin_free(&t->amax), twin_free(&t->first);
}

/* Largest finite magnitude that v [n] may and must have. */
static inline interval amax_of(const interval *v, int64_t n) {
    interval most = {0, 0};
    for (int64_t i = 0; i < n; i++) {
        const double hi = fmax(fabs(v[i].lo), fabs(v[i].hi));
        const double lo = v[i].lo <= 0 && v[i].hi >= 0 ? 0 : fmin(fabs(v[i].lo), fabs(v[i].hi));
        if (isnan(v[i].lo) || isinf(v[i].lo) || isinf(v[i].hi)) continue;
        most.hi = fmax(most.hi, hi);
        most.lo = fmax(most.lo, lo);
    }
    return most;
}

/* The multipliers that an amax within `amax` may give. */
static inline interval scale_of(interval amax, fp8_dtype code) {
    const double most = (double)fp8_max_of(code);
    const interval s = {amax.hi > 0 ? most / amax.hi : 1, amax.lo > 0 ? most / amax.lo : DBL_MAX};
    return iv_widen((interval){fmin(s.lo, FLT_MAX), fmin(s.hi, FLT_MAX)}, 1);
}

/* A code may be any between those of the interval's ends. */
static inline int code_fits(uint8_t got, fp8_dtype code, interval v, interval scale) {
    const interval p = iv_widen(iv_mul2(v, scale), 1);
    const float g = fp8_to_f32(code, got);

    if (v.lo < v.hi && isinf(v.lo) && isinf(v.hi)) return 1;
    if (isnan(v.lo)) return got == (code == FP8_DTYPE_E4M3 ? 0x7f : 0x7e);
    return g >= fp8_to_f32(code, fp8_from_f32(code, (float)p.lo)) &&
           g <= fp8_to_f32(code, fp8_from_f32(code, (float)p.hi));
}

static inline int real_fits(float got, fp8_dtype t, interval v) {
    const interval r = iv_round(v, t);
    if (v.lo < v.hi && isinf(v.lo) && isinf(v.hi)) return !isfinite(got);
    if (isnan(v.lo)) return isnan(got);
    return (double)got >= r.lo && (double)got <= r.hi;
}

static inline int close_to(double got, interval want) {
    const interval w = iv_widen(want, 2);
    return got >= w.lo && got <= w.hi;
}

/* Scale of row r, column c; its descale is checked at the first column of what it covers. */
static inline interval sink_scale(const sink_twin *t, const interval *v, int64_t r, int64_t c) {
    const fp8_sink *s = &t->sink;
    const int64_t width = s->scaling == FP8_SINK_TOKEN ? t->cols : FP8_SINK_GROUP_COLS;
    const int64_t begin = c / width * width, group = c / FP8_SINK_GROUP_COLS;
    const int64_t count = begin + width < t->cols ? width : t->cols - begin;
    interval amax;

    if (s->scaling == FP8_SINK_STATIC) return iv(37.5);
    amax = amax_of(v + r * t->cols + begin, count);
    if (c == begin) {
        const int64_t at = s->scaling == FP8_SINK_TOKEN ? r
                           : s->descale_row_stride == 1 ? r + group * t->rows
                                                        : r * t->groups + group;
        const double got = (double)((float *)(void *)t->descale.host)[at];
        const double most = (double)fp8_max_of(s->code);
        const interval want = {fmax(amax.lo / most, FLT_MIN), fmax(amax.hi / most, FLT_MIN)};
        if (!close_to(got, amax.hi > 0 ? want : iv(1)) && !(amax.lo <= 1e-44 && got == 1)) {
            fprintf(stderr, "[%s] descale of row %lld, column %lld: got %a, want %a .. %a\n",
                    check_case, (long long)r, (long long)c, got, want.lo, want.hi);
            check_failures++;
        }
    }
    return scale_of(amax, s->code);
}

static inline void check_amax(const sink_twin *t, const interval *v) {
    fp8_amax_slot got;
    interval all = {0.0625, 0.0625}, later = {0.03125, 0.03125};
    uint32_t others = amax_before.nonfinite;

    memcpy(&got, t->amax.host, sizeof got);
    for (int64_t r = 0; r < t->rows; r++) {
        const interval row = amax_of(v + r * t->cols, t->cols);
        all = (interval){fmax(all.lo, row.lo), fmax(all.hi, row.hi)};
        if (!t->sink.first || !t->first.host[r])
            later = (interval){fmax(later.lo, row.lo), fmax(later.hi, row.hi)};
        for (int64_t c = 0; c < t->cols; c++) {
            const interval x = v[r * t->cols + c];
            others += isnan(x.lo) || isinf(x.lo) || isinf(x.hi);
        }
    }
    CHECK(close_to((double)got.amax, all));
    CHECK(close_to((double)got.amax_without_first, later));
    CHECK(got.nonfinite == others);
}

/* Everything the sink was asked for against v [rows, cols]; nothing between the rows changed. */
static inline void sink_check(sink_twin *t, const interval *v) {
    const int64_t code_stride = t->sink.codes_stride ? t->sink.codes_stride : t->cols;
    const int64_t dense_stride = t->sink.dense_stride ? t->sink.dense_stride : t->cols;
    int bad = 0;

    twin_down(&t->codes), twin_down(&t->descale), twin_down(&t->dense), twin_down(&t->amax);
    for (int64_t r = 0; r < t->rows && bad < 10; r++) {
        interval scale = iv(1);
        for (int64_t c = 0; c < t->cols && bad < 10; c++) {
            const interval x = v[r * t->cols + c];
            const uint8_t code = t->codes.host[r * code_stride + c];
            const float dense = real_at(t->dense.host, t->dtype, r * dense_stride + c);
            if (t->sink.codes && (c == 0 || (t->sink.scaling == FP8_SINK_GROUP &&
                                             c % FP8_SINK_GROUP_COLS == 0)))
                scale = sink_scale(t, v, r, c);
            if (t->sink.codes && !code_fits(code, t->sink.code, x, scale)) {
                fprintf(stderr, "[%s] code [%lld, %lld] of [%lld, %lld]: got %02x, value %a .. %a"
                        ", scale %a .. %a\n", check_case, (long long)r, (long long)c,
                        (long long)t->rows, (long long)t->cols, code, x.lo, x.hi, scale.lo,
                        scale.hi);
                bad++;
            }
            if (t->sink.dense && !real_fits(dense, t->dtype, x)) {
                fprintf(stderr, "[%s] value [%lld, %lld] of [%lld, %lld]: got %a, want %a .. %a\n",
                        check_case, (long long)r, (long long)c, (long long)t->rows,
                        (long long)t->cols, (double)dense, x.lo, x.hi);
                bad++;
            }
        }
        for (int64_t c = t->cols; c < code_stride; c++)
            bad += t->codes.host[r * code_stride + c] != 0x5a;
    }
    CHECK(bad == 0);
    if (t->sink.amax) check_amax(t, v);
}
#endif
