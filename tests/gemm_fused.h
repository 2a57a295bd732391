/* tests/gemm_fused.h - products with everything that is fused behind them, and block descales, on
 * any device against the formula in double: the same table for the CPU and CUDA. */
#ifndef FP8_TESTS_GEMM_FUSED_H
#define FP8_TESTS_GEMM_FUSED_H
#include <string.h>

#include "core/half.h"
#include "quant/cast.h"
#include "quant/gemm.h"
#include "tests/check.h"

static const fp8_dtype fused_types[] = {FP8_DTYPE_F32, FP8_DTYPE_BF16, FP8_DTYPE_F16,
                                        FP8_DTYPE_E4M3, FP8_DTYPE_E5M2};
enum { F32, BF16, F16, E4M3, E5M2 };
enum { PLAIN, SCALARS, VECTORS, BLOCKS };

typedef struct fused_case {
    const char *name;
    int64_t m, n, k;
    int a, b, d, scaling;
    int bias, residual; /* -1 none, else a type */
    int act, amax; /* act: as fp8_gemm_activation has them */
    int in_place; /* the residual is what d holds */
    int pad;      /* elements between rows of D and the residual, 16-byte steps */
} fused_case;

/* Elements of a type with their values, on the host and the device. */
typedef struct fused_operand {
    float *values;
    void *device;
    size_t bytes;
} fused_operand;

static inline float fused_value(fp8_dtype t, const void *raw, int64_t i) {
    if (t == FP8_DTYPE_F32) return ((const float *)raw)[i];
    if (t == FP8_DTYPE_BF16) return fp8_bf16_to_f32(((const uint16_t *)raw)[i]);
    if (t == FP8_DTYPE_F16) return fp8_f16_to_f32(((const uint16_t *)raw)[i]);
    return fp8_to_f32(t, ((const uint8_t *)raw)[i]);
}

static inline void fused_store(fp8_dtype t, void *raw, int64_t i, float v) {
    if (t == FP8_DTYPE_F32) ((float *)raw)[i] = v;
    else if (t == FP8_DTYPE_BF16) ((uint16_t *)raw)[i] = fp8_f32_to_bf16(v);
    else if (t == FP8_DTYPE_F16) ((uint16_t *)raw)[i] = fp8_f32_to_f16(v);
    else ((uint8_t *)raw)[i] = fp8_from_f32(t, v);
}

/* same_sign: |N| + 0.5. positive: (0.5, 1.5), for descales. */
enum { NORMAL, SAME_SIGN, POSITIVE };
static inline fused_operand fused_make(fp8_device *d, fp8_dtype t, int64_t n, uint64_t seed,
                                       int kind, float by) {
    fused_operand o = {.bytes = (size_t)n * fp8_dtype_size(t)};
    void *raw = malloc(o.bytes + 4);

    o.values = malloc((size_t)(n + 1) * sizeof(float));
    if (!raw || !o.values) exit(1);
    for (int64_t i = 0; i < n; i++) {
        float v = kind == POSITIVE ? (float)(0.5 + check_uniform(&seed)) : check_normal(&seed);
        if (kind == SAME_SIGN) v = fabsf(v) + 0.5f;
        fused_store(t, raw, i, v * by);
        o.values[i] = fused_value(t, raw, i);
    }
    CHECK_STATUS(fp8_device_alloc(d, &o.device, o.bytes), FP8_OK);
    CHECK_STATUS(fp8_device_upload(d, o.device, raw, o.bytes), FP8_OK);
    free(raw);
    return o;
}

static inline void fused_drop(fp8_device *d, fused_operand *o) {
    fp8_device_free(d, o->device);
    free(o->values);
}

typedef struct fused_problem {
    fp8_gemm g;
    fused_operand a, b, d, bias, residual, a_descale, b_descale, d_scale, amax;
} fused_problem;

static inline void fused_scale(fp8_device *d, fused_problem *p, const fused_case *c) {
    const int64_t groups = (c->k + 127) / 128, blocks = (c->n + 127) / 128;
    fp8_gemm *g = &p->g;

    if (c->scaling == PLAIN) return;
    if (c->scaling == BLOCKS) {
        g->scaling = FP8_GEMM_BLOCKS;
        g->a_descale_ld = (c->m + 3) / 4 * 4;
        g->b_descale_ld = (groups + 3) / 4 * 4;
        p->a_descale = fused_make(d, FP8_DTYPE_F32, groups * g->a_descale_ld, 4, POSITIVE, 0.1f);
        p->b_descale = fused_make(d, FP8_DTYPE_F32, blocks * g->b_descale_ld, 5, POSITIVE, 0.1f);
    } else {
        g->a_descale_count = c->scaling == VECTORS ? c->m : 1;
        g->b_descale_count = c->scaling == VECTORS ? c->n : 1;
        p->a_descale = fused_make(d, FP8_DTYPE_F32, g->a_descale_count, 4, POSITIVE, 0.1f);
        p->b_descale = fused_make(d, FP8_DTYPE_F32, g->b_descale_count, 5, POSITIVE, 0.1f);
    }
    g->a_descale = p->a_descale.device;
    g->b_descale = p->b_descale.device;
}

static inline fused_problem fused_problem_of(fp8_device *d, const fused_case *c, int kind) {
    const float grow_a = c->a >= E4M3 ? 4.0f : 1.0f, grow_b = c->b >= E4M3 ? 4.0f : 1.0f;
    const int64_t ld = (c->act >= FP8_GEMM_SWIGLU ? c->n / 2 : c->n) + c->pad;
    const float scale = 3.0f / sqrtf((float)c->k), big = 1e30f;
    fused_problem p = {0};
    fp8_gemm *g = &p.g;

    *g = (fp8_gemm){.m = c->m, .n = c->n, .k = c->k, .lda = c->k, .ldb = c->k, .ldd = ld,
                    .a_dtype = fused_types[c->a], .b_dtype = fused_types[c->b],
                    .d_dtype = fused_types[c->d], .alpha = kind == SAME_SIGN ? 0.75f : scale,
                    .activation = (fp8_gemm_activation)c->act};
    p.a = fused_make(d, g->a_dtype, c->m * c->k, 1, kind, grow_a);
    p.b = fused_make(d, g->b_dtype, c->n * c->k, 2, kind, grow_b);
    p.d = fused_make(d, g->d_dtype, c->m * ld, 3, NORMAL, 1);
    g->a = p.a.device, g->b = p.b.device, g->d = p.d.device;
    fused_scale(d, &p, c);
    if (c->bias >= 0) {
        p.bias = fused_make(d, fused_types[c->bias], c->n, 6, NORMAL, 1);
        g->bias = p.bias.device, g->bias_dtype = fused_types[c->bias];
    }
    if (c->residual >= 0) {
        p.residual = fused_make(d, fused_types[c->residual], c->m * ld, c->in_place ? 3 : 7,
                                NORMAL, 1);
        g->residual = c->in_place ? p.d.device : p.residual.device;
        g->residual_dtype = fused_types[c->residual], g->ldr = ld;
    }
    if (c->d == E4M3) {
        p.d_scale = fused_make(d, FP8_DTYPE_F32, 1, 8, POSITIVE, 8);
        g->d_scale = p.d_scale.device;
    }
    if (c->amax) { /* whatever it holds before does not count */
        p.amax = fused_make(d, FP8_DTYPE_F32, 4, 9, POSITIVE, big);
        g->d_amax = p.amax.device;
    }
    return p;
}

static inline void fused_drop_problem(fp8_device *d, fused_problem *p) {
    fused_operand *all[] = {&p->a, &p->b, &p->d, &p->bias, &p->residual, &p->a_descale,
                            &p->b_descale, &p->d_scale, &p->amax};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) fused_drop(d, all[i]);
}

static inline double fused_gelu(double v) {
    return v / 2 * (1 + tanh(0.7978845608028654 * (v + 0.044715 * v * v * v)));
}

/* The sum with its descales and bias. */
static inline double fused_sum(const fused_problem *p, int64_t i, int64_t j) {
    const fp8_gemm *g = &p->g;
    const float *a = p->a.values + i * g->lda, *b = p->b.values + j * g->ldb;
    double sum = 0, group = 0, v;

    for (int64_t k = 0; k < g->k; k++) {
        group += (double)a[k] * (double)b[k];
        if (g->scaling != FP8_GEMM_BLOCKS || (k % 128 != 127 && k != g->k - 1)) continue;
        sum += group * (double)p->a_descale.values[k / 128 * g->a_descale_ld + i] *
               (double)p->b_descale.values[j / 128 * g->b_descale_ld + k / 128];
        group = 0;
    }
    v = (sum + group) * (double)g->alpha;
    if (g->scaling == FP8_GEMM_ROWS && g->a_descale)
        v *= (double)p->a_descale.values[g->a_descale_count > 1 ? i : 0] *
             (double)p->b_descale.values[g->b_descale_count > 1 ? j : 0];
    return g->bias ? v + (double)p->bias.values[j] : v;
}

static inline double fused_expected(const fused_problem *p, int64_t i, int64_t j) {
    const fp8_gemm *g = &p->g;
    double v = fused_sum(p, i, j);

    if (g->activation == FP8_GEMM_SWIGLU) v /= 1 + exp(-v);
    else if (g->activation != FP8_GEMM_IDENTITY) v = fused_gelu(v);
    if (fp8_gemm_is_gated(g->activation)) v *= fused_sum(p, i, g->n / 2 + j);
    return v + (g->residual ? (double)p->residual.values[i * g->ldr + j] : 0);
}

/* An E4M3 result is the cast of v * scale, or where v lies near to a boundary its neighbour. */
static inline void fused_check_code(float got, double want, double *off) {
    const float near = fp8_to_f32(FP8_DTYPE_E4M3, fp8_from_f32(FP8_DTYPE_E4M3, (float)want));
    *off += got != near;
    if (fabsf(got - near) <= 0.13f * fabsf(near) + 0x1p-9f) return;
    if (++check_failures < 10)
        fprintf(stderr, "[%s] got %g, want %g\n", check_case, (double)got, (double)near);
}

/* Checks D and amax against the formula: relative L2 at most `bound`, E4M3 codes in at most 8 % of
 * the places a neighbour, amax to 1e-3; what lies between rows is as it was. */
static inline void fused_check(fp8_device *d, fused_problem *p, double bound, int64_t row_step) {
    const fp8_gemm *g = &p->g;
    const float scale = g->d_scale ? p->d_scale.values[0] : 1;
    void *raw = malloc(p->d.bytes + 4);
    double error = 0, reference = 0, amax = 0, off = 0, count = 0;
    float got_amax = 0;

    if (!raw) exit(1);
    CHECK_STATUS(fp8_device_download(d, raw, p->d.device, p->d.bytes), FP8_OK);
    for (int64_t i = 0; i < g->m; i += row_step)
        for (int64_t j = 0; j < g->ldd; j++) {
            const float got = fused_value(g->d_dtype, raw, i * g->ldd + j);
            double want;
            if (j >= (fp8_gemm_is_gated(g->activation) ? g->n / 2 : g->n)) {
                CHECK(got == p->d.values[i * g->ldd + j]);
                continue;
            }
            want = fused_expected(p, i, j);
            amax = fmax(amax, fabs(want));
            count++;
            if (g->d_dtype == FP8_DTYPE_E4M3) fused_check_code(got, want * (double)scale, &off);
            error += ((double)got - want) * ((double)got - want);
            reference += want * want;
        }
    if (g->d_dtype == FP8_DTYPE_E4M3) {
        if (off > 0.08 * count + 1) {
            fprintf(stderr, "[%s] %g of %g codes differ\n", check_case, off, count);
            check_failures++;
        }
    } else if (!(sqrt(error / reference) <= bound)) {
        fprintf(stderr, "[%s] relative error %.3g, expected at most %.3g\n", check_case,
                sqrt(error / reference), bound);
        check_failures++;
    }
    if (g->d_amax && row_step == 1) {
        CHECK_STATUS(fp8_device_download(d, &got_amax, p->amax.device, sizeof got_amax), FP8_OK);
        if (fabs((double)got_amax - amax) > 2e-3 * amax) {
            fprintf(stderr, "[%s] amax %g, expected %g\n", check_case, (double)got_amax, amax);
            check_failures++;
        }
    }
    free(raw);
}

static inline void fused_run(fp8_device *d, const fused_problem *p) {
    const size_t bytes = fp8_gemm_workspace_size(d, &p->g);
    void *workspace = NULL;

    CHECK_STATUS(fp8_device_alloc(d, &workspace, bytes), FP8_OK);
    CHECK(fp8_gemm_supported(d, &p->g));
    CHECK_STATUS(fp8_gemm_run(d, &p->g, workspace, bytes), FP8_OK);
    CHECK_STATUS(fp8_device_sync(d), FP8_OK);
    fp8_device_free(d, workspace);
}

/* Rounding of the store, with the sums': 2^-9 a BF16 element at most, some 1.7e-3 in L2. */
static inline double fused_bound(int d) { return d == F32 ? 1e-3 : d == F16 ? 1.2e-3 : 4e-3; }

static inline void fused_test(fp8_device *d, const fused_case *c, int kind) {
    fused_problem p = fused_problem_of(d, c, kind);
    check_case = c->name;
    fused_run(d, &p);
    fused_check(d, &p, fused_bound(c->d), c->m * c->n * c->k > (int64_t)1 << 28 ? 97 : 1);
    fused_drop_problem(d, &p);
}

static const fused_case fused_cases[] = {
    {"gelu", 33, 64, 96, BF16, BF16, BF16, PLAIN, -1, -1, 1, 0, 0, 0},
    {"bias, gelu", 33, 64, 96, BF16, BF16, BF16, PLAIN, BF16, -1, 1, 0, 0, 8},
    {"residual", 33, 64, 96, BF16, BF16, BF16, PLAIN, BF16, BF16, 0, 0, 0, 8},
    {"residual f32 of bf16", 33, 64, 96, BF16, BF16, BF16, PLAIN, BF16, F32, 0, 0, 0, 0},
    {"f32 in place", 9, 64, 96, F32, F32, F32, PLAIN, F32, F32, 0, 1, 1, 4},
    {"bf16 to codes", 33, 64, 96, BF16, BF16, E4M3, PLAIN, BF16, -1, 1, 1, 0, 16},
    {"fp8 gelu", 48, 64, 256, E4M3, E4M3, BF16, SCALARS, -1, -1, 1, 0, 0, 0},
    {"fp8 bias gelu", 48, 64, 256, E4M3, E4M3, BF16, SCALARS, BF16, -1, 1, 0, 0, 0},
    {"fp8 residual", 48, 64, 256, E4M3, E4M3, BF16, SCALARS, BF16, BF16, 0, 0, 0, 8},
    {"fp8 residual in place", 48, 64, 256, E4M3, E4M3, BF16, SCALARS, -1, BF16, 0, 0, 1, 0},
    {"fp8 residual in place, vectors", 17, 64, 256, E4M3, E4M3, BF16, VECTORS, BF16, BF16, 0, 0,
     1, 0},
    {"fp8 residual f32", 48, 64, 256, E4M3, E4M3, F32, SCALARS, BF16, F32, 0, 0, 0, 4},
    {"fp8 residual f32, f32 in place", 48, 64, 256, E4M3, E4M3, F32, VECTORS, F32, F32, 0, 0, 1, 0},
    {"fp8 to codes", 48, 64, 256, E4M3, E4M3, E4M3, SCALARS, -1, -1, 0, 0, 0, 16},
    {"fp8 to codes, amax", 48, 64, 256, E4M3, E4M3, E4M3, SCALARS, -1, -1, 0, 1, 0, 0},
    {"fp8 to codes, bias, amax", 48, 64, 256, E4M3, E4M3, E4M3, SCALARS, BF16, -1, 0, 1, 0, 0},
    {"fp8 to codes, f16 bias", 48, 64, 256, E4M3, E4M3, E4M3, SCALARS, F16, -1, 0, 0, 0, 0},
    {"fp8 to codes, bias, gelu, amax", 48, 64, 256, E4M3, E4M3, E4M3, SCALARS, BF16, -1, 1, 1, 0,
     0},
    {"fp8 to codes, residual, amax", 48, 64, 256, E4M3, E4M3, E4M3, SCALARS, BF16, BF16, 0, 1, 0,
     0},
    {"fp8 to codes, vectors, amax", 19, 64, 256, E4M3, E4M3, E4M3, VECTORS, BF16, -1, 0, 1, 0, 0},
    {"fp8 amax of bf16", 19, 64, 256, E4M3, E4M3, BF16, SCALARS, -1, -1, 0, 1, 0, 0},
    {"fp8 vectors, gelu", 48, 64, 256, E4M3, E4M3, BF16, VECTORS, BF16, -1, 1, 0, 0, 0},
    {"e5m2 x e4m3, bias gelu", 48, 64, 256, E5M2, E4M3, BF16, SCALARS, BF16, -1, 1, 0, 0, 0},
    {"e4m3 x e5m2 vectors", 48, 64, 256, E4M3, E5M2, BF16, VECTORS, -1, -1, 0, 0, 0, 0},
    {"e4m3 x e5m2 to codes", 48, 64, 256, E4M3, E5M2, E4M3, SCALARS, -1, -1, 0, 1, 0, 0},
    {"blocks", 64, 256, 512, E4M3, E4M3, BF16, BLOCKS, -1, -1, 0, 0, 0, 0},
    {"blocks f32", 64, 256, 512, E4M3, E4M3, F32, BLOCKS, -1, -1, 0, 0, 0, 0},
    {"blocks f16", 64, 256, 512, E4M3, E4M3, F16, BLOCKS, -1, -1, 0, 0, 0, 8},
    {"blocks bias", 64, 256, 512, E4M3, E4M3, BF16, BLOCKS, BF16, -1, 0, 0, 0, 0},
    {"blocks residual", 64, 256, 512, E4M3, E4M3, BF16, BLOCKS, -1, BF16, 0, 0, 1, 0},
    {"blocks to codes", 64, 256, 512, E4M3, E4M3, E4M3, BLOCKS, BF16, -1, 1, 1, 0, 0},
    {"blocks, one row", 1, 144, 400, E4M3, E4M3, BF16, BLOCKS, -1, -1, 0, 0, 0, 0},
    {"blocks, odd rows", 37, 144, 400, E4M3, E4M3, BF16, BLOCKS, BF16, BF16, 0, 0, 0, 8},
    {"blocks, odd rows f32", 135, 272, 144, E4M3, E4M3, F32, BLOCKS, -1, F32, 0, 0, 1, 4},
    {"blocks, odd rows, both", 259, 272, 144, E4M3, E4M3, BF16, BLOCKS, -1, -1, 0, 0, 0, 0},
    {"swiglu", 33, 64, 96, BF16, BF16, BF16, PLAIN, -1, -1, 2, 0, 0, 8},
    {"swiglu, few rows, bias", 5, 66, 96, BF16, BF16, F32, PLAIN, BF16, -1, 2, 1, 0, 4},
    {"fp8 swiglu", 48, 64, 256, E4M3, E4M3, BF16, VECTORS, BF16, -1, 2, 1, 0, 8},
    {"fp8 geglu to codes", 48, 96, 256, E4M3, E4M3, E4M3, SCALARS, -1, -1, 3, 1, 0, 0},
    {"blocks, swiglu to codes", 64, 256, 512, E4M3, E4M3, E4M3, BLOCKS, -1, -1, 2, 0, 0, 0},
    {"blocks, e5m2", 64, 128, 256, E5M2, E4M3, BF16, BLOCKS, -1, -1, 0, 0, 0, 0},
};
#endif
