/* tests/hessian_check.h - the sums of compensated rounding on any device, against loops. */
#ifndef FP8_TESTS_HESSIAN_CHECK_H
#define FP8_TESTS_HESSIAN_CHECK_H
#include "calib/hessian.h"
#include "core/half.h"
#include "quant/cast.h"
#include "tests/check.h"

enum { HESSIAN_STEPS = 3 };

typedef struct hessian_case {
    const char *name;
    int64_t cols, tokens; /* tokens: of the first step; later ones have one less */
    fp8_dtype type;
    fp8_scheme scheme;
    int crossed;
} hessian_case;

static inline float hessian_qdq(float x, float descale) {
    const uint8_t code = fp8_from_f32(FP8_DTYPE_E4M3, x * (1.0f / descale));
    return fp8_to_f32(FP8_DTYPE_E4M3, code) * descale;
}

/* What the scheme leaves of a token's values [0, n): a scale of their own, or `descale`. */
static inline void hessian_quantize(float *out, const float *x, int64_t n, fp8_scheme scheme,
                                    float descale) {
    const int64_t span = scheme == FP8_SCHEME_BLOCK ? 128 : n;
    for (int64_t begin = 0; begin < n; begin += span) {
        const int64_t end = begin + span < n ? begin + span : n;
        float amax = 0;
        for (int64_t i = begin; i < end; i++) amax = fabsf(x[i]) > amax ? fabsf(x[i]) : amax;
        for (int64_t i = begin; i < end; i++) {
            if (scheme == FP8_SCHEME_NONE) out[i] = x[i];
            else if (scheme == FP8_SCHEME_TENSOR) out[i] = hessian_qdq(x[i], descale);
            else {
                const float own = amax > 0 ? amax / 448.0f : 1;
                const float scale = amax > 0 ? 448.0f / amax : 1;
                const uint8_t code = fp8_from_f32(FP8_DTYPE_E4M3, x[i] * scale);
                out[i] = fp8_round_bf16(fp8_to_f32(FP8_DTYPE_E4M3, code) * own);
            }
        }
    }
}

static inline void hessian_check(fp8_device *d, const hessian_case *c, uint64_t *seed) {
    const float descale = 0.01171875f; /* 3 * 2^-8: E4M3's codes times it are no BF16 */
    const int64_t n = c->cols, most = c->tokens;
    const size_t size = fp8_dtype_size(c->type);
    float *x = malloc((size_t)(most * n) * sizeof *x), *q = malloc((size_t)(most * n) * sizeof *q);
    float *rounded = malloc((size_t)n * sizeof *rounded);
    double *h = calloc((size_t)(n * n), sizeof *h), *cross = calloc((size_t)(n * n), sizeof *cross);
    double *got = malloc((size_t)(n * n) * sizeof *got), *got_cross = malloc((size_t)(n * n) *
                                                                             sizeof *got_cross);
    void *host = malloc((size_t)(most * n) * size), *dx = NULL, *dq = NULL;
    fp8_hessian *sums = NULL;

    check_case = c->name;
    CHECK_STATUS(fp8_device_alloc(d, &dx, (size_t)(most * n) * size), FP8_OK);
    CHECK_STATUS(fp8_device_alloc(d, &dq, (size_t)(most * n) * size), FP8_OK);
    CHECK_STATUS(fp8_hessian_create(&sums, d, c->type, n + 3, most), FP8_OK);
    CHECK_STATUS(fp8_hessian_begin(sums, n + 4, c->scheme, descale), FP8_EINVAL);
    CHECK_STATUS(fp8_hessian_begin(sums, n, c->scheme, descale), FP8_OK);
    CHECK_STATUS(fp8_hessian_add(sums, NULL, dq, most + 1), FP8_EINVAL);
    for (int step = 0; step < HESSIAN_STEPS; step++) {
        const int64_t tokens = step ? most - 1 : most;
        for (int side = 0; side < 2; side++) {
            float *to = side ? q : x;
            for (int64_t i = 0; i < tokens * n; i++) {
                to[i] = fp8_round_bf16(check_normal(seed) + (i % 7 == 0 ? 2.0f : 0));
                if (side) to[i] = fp8_round_bf16(x[i] + 0.05f * to[i]);
                if (c->type == FP8_DTYPE_F32) ((float *)host)[i] = to[i];
                else ((uint16_t *)host)[i] = fp8_f32_to_bf16(to[i]);
            }
            CHECK_STATUS(fp8_device_upload(d, side ? dq : dx, host, (size_t)(tokens * n) * size),
                         FP8_OK);
        }
        for (int64_t t = 0; t < tokens; t++) {
            hessian_quantize(rounded, q + t * n, n, c->scheme, descale);
            for (int64_t i = 0; i < n; i++)
                for (int64_t k = 0; k < n; k++) {
                    h[i * n + k] += (double)rounded[i] * (double)rounded[k];
                    cross[i * n + k] += (double)rounded[i] * (double)x[t * n + k];
                }
        }
        if (tokens > 0)
            CHECK_STATUS(fp8_hessian_add(sums, c->crossed ? dx : NULL, dq, tokens), FP8_OK);
    }
    CHECK_STATUS(fp8_hessian_read(sums, got, c->crossed ? got_cross : NULL), FP8_OK);
    for (int64_t i = 0; i < n * n; i++) { /* F32 sums: against the diagonals, by Cauchy */
        const double bound = 1e-5 * sqrt(h[i / n * (n + 1)] * h[i % n * (n + 1)]) + 1e-12;
        CHECK(fabs(got[i] - h[i]) <= bound);
        CHECK(got[i] == got[i % n * n + i / n]);
        if (c->crossed) CHECK(fabs(got_cross[i] - cross[i]) <= 2 * bound);
        if (check_failures > 10) break;
    }
    fp8_hessian_destroy(sums);
    fp8_device_free(d, dx);
    fp8_device_free(d, dq);
    free(x);
    free(q);
    free(rounded);
    free(h);
    free(cross);
    free(got);
    free(got_cross);
    free(host);
}

static inline void hessian_check_all(fp8_device *d, int with_f32, uint64_t *seed) {
    static const hessian_case cases[] = {
        {"one input, one token", 1, 1, FP8_DTYPE_BF16, FP8_SCHEME_TENSOR, 1},
        {"odd", 13, 37, FP8_DTYPE_BF16, FP8_SCHEME_TENSOR, 1},
        {"without the cross sums", 64, 130, FP8_DTYPE_BF16, FP8_SCHEME_TENSOR, 0},
        {"large", 130, 300, FP8_DTYPE_BF16, FP8_SCHEME_TENSOR, 1},
        {"by token", 40, 65, FP8_DTYPE_BF16, FP8_SCHEME_DYNAMIC, 1},
        {"by token and group", 200, 33, FP8_DTYPE_BF16, FP8_SCHEME_BLOCK, 1},
        {"not quantized", 31, 33, FP8_DTYPE_BF16, FP8_SCHEME_NONE, 1},
        {"F32", 31, 33, FP8_DTYPE_F32, FP8_SCHEME_TENSOR, 1},
        {"F32 by token", 31, 33, FP8_DTYPE_F32, FP8_SCHEME_TENSOR_DYNAMIC, 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        if (with_f32 || cases[i].type == FP8_DTYPE_BF16) hessian_check(d, &cases[i], seed);
}
#endif
