/* Shapes as text, and the random data that fills them. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench/bench_impl.h"
#include "core/half.h"

/* ---- shapes ---------------------------------------------------------------------------------- */

static fp8_status bad_shape(const char *text, const char *what) {
    return FP8_FAIL(FP8_EINVAL,
                    "--shape '%s': %s; expected b,h,h_kv,d,s,none|causal|causal_br[,bias], with d "
                    "as d_qk/d_v and s as s_q/s_kv where they differ",
                    text, what);
}

/* A number, or two with '/' between them; *at moves past the comma that must follow. */
static int read_sizes(const char **at, int64_t *first, int64_t *second) {
    char *end = NULL;
    errno = 0;
    *first = *second = strtoll(*at, &end, 10);
    if (second != first && *end == '/') *second = strtoll(end + 1, &end, 10);
    if (errno || end == *at || *end != ',' || *first <= 0 || *second <= 0 || *first > INT32_MAX ||
        *second > INT32_MAX)
        return 0;
    *at = end + 1;
    return 1;
}

static const struct {
    const char *name;
    fp8_attention_mask mask;
} masks[] = {
    {"none", FP8_MASK_NONE},
    {"causal", FP8_MASK_CAUSAL},
    {"causal_br", FP8_MASK_CAUSAL_BOTTOM_RIGHT},
};

fp8_status bench_parse_shape(bench_shape *out, const char *text) {
    const char *at = text;
    size_t i = 0, len;

    memset(out, 0, sizeof *out);
    if (strlen(text) >= sizeof out->name) return bad_shape(text, "too long");
    strcpy(out->name, text);
    if (!read_sizes(&at, &out->b, &out->b) || !read_sizes(&at, &out->h, &out->h) ||
        !read_sizes(&at, &out->h_kv, &out->h_kv) || !read_sizes(&at, &out->d_qk, &out->d_v) ||
        !read_sizes(&at, &out->s_q, &out->s_kv))
        return bad_shape(text, "not five positive sizes");
    if (out->h % out->h_kv != 0) return bad_shape(text, "h is no multiple of h_kv");
    len = strcspn(at, ",");
    while (i < 3 && (strlen(masks[i].name) != len || memcmp(masks[i].name, at, len) != 0)) i++;
    if (i == 3) return bad_shape(text, "a mask that is not known");
    out->mask = masks[i].mask;
    out->bias = strcmp(at + len, ",bias") == 0;
    if (at[len] && !out->bias) return bad_shape(text, "something after the mask");
    return FP8_OK;
}

static double visible(const bench_shape *x) { return x->mask == FP8_MASK_NONE ? 1.0 : 0.5; }

double bench_scores(const bench_shape *x) {
    return visible(x) * (double)(x->b * x->h) * (double)x->s_q * (double)x->s_kv;
}

double bench_flops(const bench_shape *x) {
    return 2.0 * bench_scores(x) * (double)(x->d_qk + x->d_v);
}

/* ---- data ------------------------------------------------------------------------------------ */

enum { NUM_QUANTILES = 1 << 14, PIECE = 1 << 20 };

typedef struct normal_job {
    float quantile[NUM_QUANTILES]; /* of the normal distribution, at the middle of each share */
    uint16_t *x;
    int64_t n;
    uint64_t seed;
    int32_t most;
    float *amax; /* of each piece */
} normal_job;

static uint64_t mix(uint64_t z) { /* SplitMix64's finisher */
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* By bisection on erfc, from the median up. */
static void fill_quantiles(float *quantile) {
    double x = 0;
    for (int i = 0; i < NUM_QUANTILES / 2; i++) {
        const double above = 0.5 - (i + 0.5) / NUM_QUANTILES;
        double low = x, high = x + 1;
        for (int step = 0; step < 40; step++) {
            const double middle = 0.5 * (low + high);
            if (0.5 * erfc(middle * 0.70710678118654752) > above) low = middle;
            else high = middle;
        }
        x = low;
        quantile[NUM_QUANTILES / 2 + i] = (float)x;
        quantile[NUM_QUANTILES / 2 - 1 - i] = (float)-x;
    }
}

static fp8_status fill_pieces(void *ctx, int64_t begin, int64_t end, int32_t worker) {
    normal_job *job = ctx;
    (void)worker;
    for (int64_t p = begin; p < end; p++) {
        const int64_t last = (p + 1) * PIECE < job->n ? (p + 1) * PIECE : job->n;
        float amax = 0;
        for (int64_t i = p * PIECE; i < last; i++) {
            const uint64_t r = mix(job->seed + 0x9e3779b97f4a7c15u * (uint64_t)(i + 1));
            const float whole = (float)(1 + (int64_t)((r >> 32) % (uint64_t)job->most));
            const float x = fp8_round_bf16(job->quantile[r % NUM_QUANTILES] * whole);
            job->x[i] = fp8_f32_to_bf16(x);
            if (fabsf(x) > amax) amax = fabsf(x);
        }
        job->amax[p] = amax;
    }
    return FP8_OK;
}

fp8_status bench_normal(uint16_t *x, int64_t n, uint64_t seed, int32_t most, float *amax,
                        fp8_pool *pool) {
    const int64_t pieces = (n + PIECE - 1) / PIECE;
    normal_job *job = malloc(sizeof *job);
    float *found = calloc((size_t)pieces + 1, sizeof *found);
    fp8_status st;

    if (!job || !found) {
        st = FP8_FAIL(FP8_ENOMEM, "bench: random data");
        goto done;
    }
    fill_quantiles(job->quantile);
    job->x = x;
    job->n = n;
    job->seed = mix(seed);
    job->most = most;
    job->amax = found;
    FP8_TRY(fp8_parallel_for(pool, pieces, 1, fill_pieces, job));
    *amax = 0;
    for (int64_t p = 0; p < pieces; p++)
        if (found[p] > *amax) *amax = found[p];
done:
    free(found);
    free(job);
    return st;
}
