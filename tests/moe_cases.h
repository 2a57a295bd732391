/* tests/moe_cases.h - rows of a mixture of experts on any device, against obvious loops: who is
 * chosen, where the rows lie, and their sum. */
#ifndef FP8_TESTS_MOE_CASES_H
#define FP8_TESTS_MOE_CASES_H
#include <string.h>

#include "core/half.h"
#include "model/ops.h"
#include "tests/check.h"

enum { MOE_GUARD = 64 };

static fp8_device *moe_device;
static const fp8_ops *moe_ops;

typedef struct moe_case {
    const char *name;
    int64_t tokens, experts, per_token, hidden;
    int normalize;
    int spoil; /* 1: NaN, Inf and ties among the logits; 2: all tokens want expert 0 */
} moe_case;

static const moe_case moe_cases[] = {
    {"one", 1, 1, 1, 1, 0, 0},          {"none", 0, 4, 2, 8, 1, 0},
    {"mixtral", 94, 8, 2, 64, 1, 0},    {"all of them", 33, 5, 5, 17, 1, 0},
    {"qwen", 257, 60, 4, 40, 0, 0},     {"qwen3", 1000, 128, 8, 24, 1, 0},
    {"hostile", 200, 16, 4, 33, 1, 1},  {"hostile, as they are", 65, 7, 3, 5, 0, 1},
    {"one expert", 300, 12, 1, 9, 1, 2}, {"few tokens", 3, 200, 16, 31, 1, 0},
};
enum { NUM_MOE_CASES = sizeof moe_cases / sizeof *moe_cases };

/* Device memory with guards; host memory of the same bytes. */
typedef struct moe_array {
    char *device, *host;
    size_t bytes;
} moe_array;

static moe_array moe_make(size_t bytes) {
    moe_array a = {.bytes = bytes, .host = calloc(bytes + 1, 1)};
    void *p = NULL;
    CHECK_STATUS(fp8_device_alloc(moe_device, &p, bytes + MOE_GUARD), FP8_OK);
    CHECK_STATUS(fp8_device_fill(moe_device, p, 0xee, bytes + MOE_GUARD), FP8_OK);
    a.device = p;
    return a;
}

static void moe_send(const moe_array *a) {
    CHECK_STATUS(fp8_device_upload(moe_device, a->device, a->host, a->bytes), FP8_OK);
}

static void moe_fetch(const moe_array *a) {
    unsigned char guard[MOE_GUARD];
    CHECK_STATUS(fp8_device_download(moe_device, a->host, a->device, a->bytes), FP8_OK);
    CHECK_STATUS(fp8_device_download(moe_device, guard, a->device + a->bytes, MOE_GUARD), FP8_OK);
    for (int i = 0; i < MOE_GUARD; i++) CHECK(guard[i] == 0xee);
}

static void moe_free(moe_array *a) {
    fp8_device_free(moe_device, a->device);
    free(a->host);
}

static float moe_value(uint64_t *seed, const moe_case *c, int64_t expert) {
    static const float hostile[] = {NAN, INFINITY, -INFINITY, 0.0f, -0.0f, 1.0f, 1e30f, 1e-40f};
    const float x = check_normal(seed);
    if (c->spoil == 1 && check_random(seed) % 4 == 0) return hostile[check_random(seed) % 8];
    return c->spoil == 2 && expert == 0 ? 50.0f : fp8_round_bf16(x);
}

/* ---- the obvious version --------------------------------------------------------------------- */

/* Is expert a before b? */
static int moe_before(const float *x, int64_t a, int64_t b) {
    if (isnan(x[a]) != isnan(x[b])) return isnan(x[b]);
    return x[a] > x[b] || (!(x[a] < x[b]) && a < b);
}

/* The softmax in F32 may make equal what was not, or NaN of all: such rows have no one answer. */
static int moe_has_answer(const float *x, int64_t n) {
    float max = -INFINITY, least = INFINITY;
    for (int64_t i = 0; i < n; i++) {
        if (!isfinite(x[i])) return 0;
        for (int64_t o = 0; o < i; o++)
            if (x[i] != x[o] && fabsf(x[i] - x[o]) < 1e-5f) return 0;
        max = fmaxf(max, x[i]);
        least = fminf(least, x[i]);
    }
    return max - least < 60.0f;
}

static void moe_check_token(const moe_case *c, const float *logits, const int32_t *chosen,
                            const float *weights) {
    double sum = 0, all = 0, max = -INFINITY;

    for (int64_t i = 0; i < c->per_token; i++) {
        CHECK(chosen[i] >= 0 && chosen[i] < c->experts);
        CHECK(i == 0 || chosen[i] > chosen[i - 1]); /* ascending: so all differ */
    }
    if (check_failures || !moe_has_answer(logits, c->experts)) return;
    for (int64_t e = 0; e < c->experts; e++) {
        int64_t better = 0;
        int taken = 0;
        for (int64_t o = 0; o < c->experts; o++) better += moe_before(logits, o, e);
        for (int64_t i = 0; i < c->per_token; i++) taken |= chosen[i] == e;
        CHECK(taken == (better < c->per_token));
        max = fmax(max, (double)logits[e]);
    }
    for (int64_t e = 0; e < c->experts; e++) all += exp((double)logits[e] - max);
    for (int64_t i = 0; i < c->per_token; i++) sum += exp((double)logits[chosen[i]] - max) / all;
    for (int64_t i = 0; i < c->per_token; i++) {
        const double p = exp((double)logits[chosen[i]] - max) / all;
        const double want = c->normalize ? p / sum : p;
        CHECK(fabs((double)weights[i] - want) <= 4.1e-3 * want); /* half a step of BF16, and exp */
        CHECK(weights[i] == fp8_round_bf16(weights[i]));
    }
}

/* Rows by expert, within one by token, each once; places say so from the tokens' side. */
static void moe_check_rows(const moe_case *c, const int32_t *chosen, const int32_t *places,
                           const int32_t *from, const int32_t *begin) {
    int64_t row = 0;
    for (int64_t e = 0; e < c->experts; e++) {
        CHECK(begin[e] == row);
        for (int64_t i = 0; i < c->tokens * c->per_token; i++) {
            if (chosen[i] != e) continue;
            CHECK(places[i] == row && from[row] == i / c->per_token);
            row++;
        }
    }
    CHECK(begin[c->experts] == row && row == c->tokens * c->per_token);
}

/* ---- a case ---------------------------------------------------------------------------------- */

typedef struct moe_arrays {
    moe_array logits, chosen, weights, places, from, begin;
    int32_t *host_begin;
} moe_arrays;

static void moe_test_route(const moe_case *c, moe_arrays *a) {
    const size_t chosen = (size_t)(c->tokens * c->per_token), experts = (size_t)c->experts;
    float *logits = malloc(((size_t)c->tokens * experts + 1) * sizeof *logits);
    uint64_t seed = 77;
    fp8_route r = {.tokens = c->tokens, .experts = c->experts, .per_token = c->per_token,
                   .normalize = c->normalize, .to = FP8_DTYPE_BF16};

    a->logits = moe_make((size_t)c->tokens * experts * sizeof(float));
    a->chosen = moe_make(chosen * sizeof(int32_t));
    a->weights = moe_make(chosen * sizeof(float));
    a->places = moe_make(chosen * sizeof(int32_t));
    a->from = moe_make(chosen * sizeof(int32_t));
    a->begin = moe_make((experts + 1) * sizeof(int32_t));
    a->host_begin = calloc(experts + 1, sizeof *a->host_begin);
    for (int64_t i = 0; i < c->tokens * c->experts; i++)
        logits[i] = moe_value(&seed, c, i % c->experts);
    memcpy(a->logits.host, logits, a->logits.bytes);
    moe_send(&a->logits);
    r.logits = (void *)a->logits.device;
    r.chosen = (void *)a->chosen.device;
    r.weights = (void *)a->weights.device;
    r.places = (void *)a->places.device;
    r.from = (void *)a->from.device;
    r.begin = (void *)a->begin.device;
    r.host_begin = a->host_begin;
    CHECK_STATUS(moe_ops->route(moe_device, &r), FP8_OK);
    moe_fetch(&a->chosen);
    moe_fetch(&a->weights);
    moe_fetch(&a->places);
    moe_fetch(&a->from);
    moe_fetch(&a->begin);
    for (int64_t t = 0; t < c->tokens; t++)
        moe_check_token(c, logits + t * c->experts, (int32_t *)(void *)a->chosen.host +
                        t * c->per_token, (float *)(void *)a->weights.host + t * c->per_token);
    moe_check_rows(c, (void *)a->chosen.host, (void *)a->places.host, (void *)a->from.host,
                   (void *)a->begin.host);
    CHECK(memcmp(a->begin.host, a->host_begin, a->begin.bytes) == 0);
    r.per_token = c->experts + 1;
    CHECK_STATUS(moe_ops->route(moe_device, &r), FP8_EINVAL);
    free(logits);
}

static float moe_get(const moe_array *a, int bf16, int64_t i) {
    return bf16 ? fp8_bf16_to_f32(((uint16_t *)(void *)a->host)[i]) : ((float *)(void *)a->host)[i];
}

static void moe_fill(moe_array *a, int bf16, int64_t n, uint64_t seed) {
    for (int64_t i = 0; i < n; i++) {
        const float v = check_normal(&seed);
        if (bf16) ((uint16_t *)(void *)a->host)[i] = fp8_f32_to_bf16(v);
        else ((float *)(void *)a->host)[i] = v;
    }
    moe_send(a);
}

static float moe_round(int bf16, float v) { return bf16 ? fp8_round_bf16(v) : v; }

/* Every step as it is written, but for the sigmoid bit for bit. */
static void moe_test_combine(const moe_case *c, moe_arrays *a, int bf16, int shared) {
    const size_t element = bf16 ? 2 : 4, n = (size_t)(c->tokens * c->hidden);
    moe_array rows = moe_make(n * (size_t)c->per_token * element), x = moe_make(n * element);
    moe_array other = moe_make(n * element), gate = moe_make((size_t)c->tokens * sizeof(float));
    const float *weights = (void *)a->weights.host, *gates = (void *)gate.host;
    const int32_t *places = (void *)a->places.host;
    fp8_combine s = {.tokens = c->tokens, .hidden = c->hidden, .per_token = c->per_token,
                     .dtype = bf16 ? FP8_DTYPE_BF16 : FP8_DTYPE_F32, .rows = rows.device,
                     .weights = (void *)a->weights.device, .places = (void *)a->places.device,
                     .shared = shared ? other.device : NULL, .shared_gate = (void *)gate.device};
    double error = 0;

    moe_fill(&rows, bf16, c->tokens * c->per_token * c->hidden, 3);
    moe_fill(&other, bf16, c->tokens * c->hidden, 4);
    moe_fill(&gate, 0, c->tokens, 5);
    CHECK_STATUS(moe_ops->combine(moe_device, x.device, &s), FP8_OK);
    moe_fetch(&x);
    for (int64_t i = 0; i < c->tokens * c->hidden; i++) {
        const int64_t t = i / c->hidden, first = t * c->per_token;
        float sum = 0;
        for (int64_t k = first; k < first + c->per_token; k++) {
            const float y = moe_get(&rows, bf16, places[k] * c->hidden + i % c->hidden);
            sum = moe_round(bf16, sum + moe_round(bf16, y * weights[k]));
        }
        if (shared) {
            const float open = moe_round(bf16, 1.0f / (1.0f + expf(-gates[t])));
            sum = moe_round(bf16, sum + moe_round(bf16, moe_get(&other, bf16, i) * open));
        }
        if (isnan(sum) && isnan(moe_get(&x, bf16, i))) continue;
        error = fmax(error, fabs((double)(moe_get(&x, bf16, i) - sum)) / (1 + fabs((double)sum)));
        if (!shared) CHECK(moe_get(&x, bf16, i) == sum);
    }
    CHECK(error <= (bf16 ? 2e-2 : 1e-6));
    s.dtype = FP8_DTYPE_E4M3;
    CHECK_STATUS(moe_ops->combine(moe_device, x.device, &s), FP8_EINVAL);
    moe_free(&rows);
    moe_free(&x);
    moe_free(&other);
    moe_free(&gate);
}

static void moe_test_all(void) {
    for (int i = 0; i < NUM_MOE_CASES; i++) {
        const moe_case *c = &moe_cases[i];
        moe_arrays a;
        check_case = c->name;
        moe_test_route(c, &a);
        for (int k = 0; k < 4; k++) moe_test_combine(c, &a, k & 1, k >> 1);
        moe_free(&a.logits);
        moe_free(&a.chosen);
        moe_free(&a.weights);
        moe_free(&a.places);
        moe_free(&a.from);
        moe_free(&a.begin);
        free(a.host_begin);
    }
}
#endif
