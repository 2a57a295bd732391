/* Sampling: what a row's way of choosing may be, and the CPU's version, which is the CUDA one's
 * oracle. */
#include "model/sample.h"

#include <math.h>
#include <stdlib.h>

#include "core/half.h"
#include "model/sample_impl.h"

fp8_status fp8_sampling_check(const fp8_sampling *s) {
    if (!(s->temperature >= 0.0f) || isinf(s->temperature))
        return FP8_FAIL(FP8_EINVAL, "temperature %g, expected 0 (greedy) or more",
                        (double)s->temperature);
    if (s->top_k < 0) return FP8_FAIL(FP8_EINVAL, "top_k %d, expected 0 (all) or more", s->top_k);
    if (!(s->top_p >= 0.0f && s->top_p <= 1.0f))
        return FP8_FAIL(FP8_EINVAL, "top_p %g, expected 0 (all) to 1", (double)s->top_p);
    return FP8_OK;
}

static float at(const float *x, int64_t i) { return isnan(x[i]) ? -INFINITY : x[i]; }

static int falling(const void *a, const void *b) {
    const float x = *(const float *)a, y = *(const float *)b;
    return (x < y) - (x > y);
}

/* The least logit that is kept; `sorted` is room for the row. */
static float threshold(const fp8_sampling *s, const float *x, int64_t n, float *sorted) {
    const int64_t kept = s->top_k && s->top_k < n ? s->top_k : n;
    double sum = 0, part = 0;
    int64_t count = kept;

    for (int64_t i = 0; i < n; i++) sorted[i] = at(x, i);
    qsort(sorted, (size_t)n, sizeof *sorted, falling);
    while (count < n && sorted[count] == sorted[kept - 1]) count++;
    if (s->top_p == 0.0f || s->top_p == 1.0f) return sorted[count - 1];
    for (int64_t i = 0; i < count; i++) sum += (double)sample_weight(s, sorted[i], sorted[0]);
    for (int64_t i = 0; i < count; i++) {
        part += (double)sample_weight(s, sorted[i], sorted[0]);
        if (part >= (double)s->top_p * sum) return sorted[i];
    }
    return sorted[count - 1];
}

static int32_t greedy(const float *x, int64_t n) {
    int64_t best = 0;
    for (int64_t i = 1; i < n; i++)
        if (at(x, i) > at(x, best)) best = i;
    return (int32_t)best;
}

static int32_t draw(const fp8_sample_row *row, const float *x, int64_t n, float *sorted) {
    const float least = threshold(&row->how, x, n, sorted);
    int64_t best = 0;
    float most = -INFINITY;

    for (int64_t i = 0; i < n; i++) {
        const float z = at(x, i);
        float v;
        if (z < least || z == -INFINITY) continue;
        v = sample_score(row, z, i);
        if (v > most) {
            most = v;
            best = i;
        }
    }
    return most == -INFINITY ? greedy(x, n) : (int32_t)best;
}

typedef struct sample_job {
    int32_t *ids;
    const void *logits;
    fp8_dtype dtype;
    const fp8_sample_row *rows;
    int64_t vocab;
} sample_job;

static fp8_status choose(void *ctx, int64_t begin, int64_t end, int32_t worker) {
    const sample_job *j = ctx;
    const int64_t n = j->vocab;
    float *sorted = malloc(2 * (size_t)n * sizeof *sorted), *values = sorted + n;

    (void)worker;
    if (!sorted) return FP8_FAIL(FP8_ENOMEM, "%lld logits", (long long)n);
    for (int64_t r = begin; r < end; r++) {
        const float *x = j->dtype == FP8_DTYPE_F32 ? (const float *)j->logits + r * n : values;
        for (int64_t i = 0; x == values && i < n; i++)
            values[i] = fp8_bf16_to_f32(((const uint16_t *)j->logits)[r * n + i]);
        j->ids[r] = j->rows[r].how.temperature == 0.0f ? greedy(x, n)
                                                       : draw(&j->rows[r], x, n, sorted);
    }
    free(sorted);
    return FP8_OK;
}

fp8_status fp8_sample(fp8_device *d, int32_t *ids, const void *logits, fp8_dtype dtype,
                      const fp8_sample_row *rows, int64_t num_rows, int64_t vocab) {
    sample_job j = {ids, logits, dtype, rows, vocab};

    if (dtype != FP8_DTYPE_F32 && dtype != FP8_DTYPE_BF16)
        return FP8_FAIL(FP8_EINVAL, "sample: logits of %s, expected F32 or BF16",
                        fp8_dtype_name(dtype));
    if (num_rows < 0 || vocab < 1 || vocab > INT32_MAX)
        return FP8_FAIL(FP8_EINVAL, "sample: %lld rows of %lld logits", (long long)num_rows,
                        (long long)vocab);
    if (num_rows == 0) return FP8_OK;
    if (!ids || !logits || !rows) return FP8_FAIL(FP8_EINVAL, "sample: NULL ids, logits or rows");
#if FP8_CUDA
    if (fp8_device_place(d) == FP8_PLACE_CUDA)
        return sample_cuda(d, ids, logits, dtype, rows, num_rows, vocab);
#endif
    return fp8_parallel_for(fp8_device_pool(d), num_rows, 1, choose, &j);
}
