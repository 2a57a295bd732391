/* Scores of logits rows. log softmax is taken about the row's maximum; exponentials are summed in
 * LANES partial F32 sums over CHUNK elements, and those in double. */
#include "model/score_cpu.h"

#include <assert.h>
#include <math.h>

#include "core/mathfn.h"

enum { CHUNK = 512, LANES = 16 };

typedef struct row_stats {
    float max;   /* NaN passed over; -Inf when nothing is left */
    double lse;  /* log sum exp(x): NaN when the row holds one */
} row_stats;

FP8_VECTOR static float row_max(const float *x, int64_t n) {
    float lanes[LANES], max = -INFINITY;

    for (int k = 0; k < LANES; k++) lanes[k] = -INFINITY;
    for (int64_t i = 0; i + LANES <= n; i += LANES)
        for (int k = 0; k < LANES; k++) lanes[k] = x[i + k] > lanes[k] ? x[i + k] : lanes[k];
    for (int64_t i = n / LANES * LANES; i < n; i++) max = x[i] > max ? x[i] : max;
    for (int k = 0; k < LANES; k++) max = lanes[k] > max ? lanes[k] : max;
    return max;
}

/* sum over one chunk of exp(x - max). */
FP8_VECTOR static float sum_exp(const float *restrict x, int64_t n, float max) {
    float lanes[LANES] = {0}, sum = 0.0f;

    for (int64_t i = 0; i + LANES <= n; i += LANES)
        for (int k = 0; k < LANES; k++) lanes[k] += fp8_expf(x[i + k] - max);
    for (int64_t i = n / LANES * LANES; i < n; i++) sum += fp8_expf(x[i] - max);
    for (int k = 0; k < LANES; k++) sum += lanes[k];
    return sum;
}

static row_stats stats_of(const float *x, int64_t n) {
    row_stats s = {row_max(x, n), 0.0};
    for (int64_t i = 0; i < n; i += CHUNK)
        s.lse += (double)sum_exp(x + i, n - i < CHUNK ? n - i : CHUNK, s.max);
    s.lse = log(s.lse) + (double)s.max;
    return s;
}

/* Sum over one chunk of exp(ref - max) (ref - x); nothing where the exponential is 0, so that two
 * -Inf agree. The difference of close logits is exact, that of their log-probabilities is not. */
static inline float gap_term(float ref, float x, float max) {
    const float e = fp8_expf(ref - max);
    const uint32_t mask = 0u - (uint32_t)(fp8_f32_bits(e) != 0u); /* a branch keeps it scalar */
    return fp8_bits_f32(fp8_f32_bits(e * (ref - x)) & mask);
}

FP8_VECTOR static float sum_gaps(const float *restrict ref, const float *restrict x, int64_t n,
                                 float max) {
    float lanes[LANES] = {0}, sum = 0.0f;

    for (int64_t i = 0; i + LANES <= n; i += LANES)
        for (int k = 0; k < LANES; k++) lanes[k] += gap_term(ref[i + k], x[i + k], max);
    for (int64_t i = n / LANES * LANES; i < n; i++) sum += gap_term(ref[i], x[i], max);
    for (int k = 0; k < LANES; k++) sum += lanes[k];
    return sum;
}

/* KL(p || q) = sum p (ref - x) - lse(ref) + lse(x), p = exp(ref - lse(ref)). */
static double kl_of(const float *ref, row_stats rs, const float *x, row_stats s, int64_t n) {
    double gaps = 0.0;
    for (int64_t i = 0; i < n; i += CHUNK)
        gaps += (double)sum_gaps(ref + i, x + i, n - i < CHUNK ? n - i : CHUNK, rs.max);
    return gaps * exp((double)rs.max - rs.lse) + (s.lse - rs.lse);
}

/* Whether x[0 .. n) holds `value`; NaN counts as -Inf. */
FP8_VECTOR static int holds(const float *x, int64_t n, float value) {
    const int nan_too = value == -INFINITY;
    int found = 0;
    for (int64_t i = 0; i < n; i++) found |= (x[i] == value) | (nan_too & (x[i] != x[i]));
    return found;
}

/* The first index of the row's maximum; 0 for an empty row. */
static int32_t index_of(const float *x, int64_t n, float max) {
    int64_t i = 0;

    while (i < n && !holds(x + i, n - i < CHUNK ? n - i : CHUNK, max)) i += CHUNK;
    while (i < n && !holds(x + i, 1, max)) i++;
    return i < n ? (int32_t)i : 0;
}

typedef struct score_job {
    const fp8_tensor *logits, *reference;
    const int32_t *targets;
    float *nll, *kl;
    uint8_t *top1;
} score_job;

static fp8_status score_range(void *ctx, int64_t begin, int64_t end, int32_t worker) {
    const score_job *j = ctx;
    const int64_t vocab = j->logits->shape[1];
    (void)worker;

    for (int64_t r = begin; r < end; r++) {
        const float *x = (const float *)j->logits->data + r * vocab;
        const row_stats s = stats_of(x, vocab);
        const float *ref;
        row_stats rs;

        j->nll[r] = (float)(s.lse - (double)x[j->targets[r]]);
        if (!j->kl && !j->top1) continue;
        ref = (const float *)j->reference->data + r * vocab;
        rs = stats_of(ref, vocab);
        if (j->kl) j->kl[r] = (float)kl_of(ref, rs, x, s, vocab);
        if (j->top1) j->top1[r] = index_of(x, vocab, s.max) == index_of(ref, vocab, rs.max);
    }
    return FP8_OK;
}

fp8_status fp8_score_cpu(fp8_device *d, const fp8_tensor *logits, const fp8_tensor *reference,
                         const int32_t *targets, float *nll, float *kl, uint8_t *top1) {
    score_job j = {logits, reference, targets, nll, kl, top1};
    assert(reference || (!kl && !top1));
    return fp8_parallel_for(fp8_device_pool(d), logits->shape[0], 1, score_range, &j);
}
