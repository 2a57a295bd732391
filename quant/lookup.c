/* The calls of lookup.h, and their CPU halves. Rows are spread over the pool. */
#include "quant/lookup.h"

#include <math.h>
#include <string.h>

#include "core/mathfn.h"
#include "quant/produce_impl.h"
#include "quant/simd.h"

enum { CHUNK = 512, GRAIN = 32 * 1024 };

static int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }

static int is_real(fp8_dtype t) {
    return t == FP8_DTYPE_F32 || t == FP8_DTYPE_BF16 || t == FP8_DTYPE_F16;
}

/* ---- embedding ------------------------------------------------------------------------------- */

FP8_VECTOR static void scale_by(float *x, int64_t n, float factor) {
    for (int64_t i = 0; i < n; i++) x[i] *= factor;
}

FP8_VECTOR static void add(float *restrict x, const float *restrict y, int64_t n) {
    for (int64_t i = 0; i < n; i++) x[i] += y[i];
}

typedef struct embed_job {
    char *x;
    const fp8_embedding *e;
} embed_job;

static void embed_row(const embed_job *j, int64_t t) {
    const fp8_embedding *e = j->e;
    const fp8_simd *s = fp8_simd_best();
    const int64_t size = (int64_t)fp8_dtype_size(e->dtype);
    const char *row = (const char *)e->table + e->ids[t] * e->cols * size;
    _Alignas(64) float x[CHUNK], y[CHUNK];

    for (int64_t c = 0; c < e->cols; c += CHUNK) {
        const int64_t n = min64(CHUNK, e->cols - c);
        s->widen(x, row + c * size, e->dtype, n);
        scale_by(x, n, e->multiplier);
        if (e->positions_table) {
            const int64_t at = e->positions[t] * e->cols + c;
            fp8_cpu_round(x, e->dtype, n);
            s->widen(y, (const char *)e->positions_table + at * size, e->dtype, n);
            add(x, y, n);
        }
        s->narrow(j->x + (t * e->cols + c) * size, e->dtype, x, n);
    }
}

static fp8_status embed_range(void *ctx, int64_t begin, int64_t end, int32_t worker) {
    const embed_job *j = ctx;
    const fp8_embedding *e = j->e;
    const size_t bytes = (size_t)e->cols * fp8_dtype_size(e->dtype);
    const int plain = e->multiplier == 1.0f && !e->positions_table;

    (void)worker;
    for (int64_t t = begin; t < end; t++)
        if (!plain) embed_row(j, t);
        else
            memcpy(j->x + (size_t)t * bytes, (const char *)e->table + (size_t)e->ids[t] * bytes,
                   bytes);
    return FP8_OK;
}

fp8_status fp8_embed(fp8_device *d, void *x, const fp8_embedding *e, fp8_launch launch) {
    embed_job j = {x, e};
    const int64_t grain = e->cols > 0 && e->cols < GRAIN ? GRAIN / e->cols : 1;
    fp8_status st = FP8_OK;

    if (!is_real(e->dtype) || e->tokens < 0 || e->cols < 0 || e->tokens > INT32_MAX)
        return FP8_FAIL(FP8_EINVAL, "embed: %lld tokens of %lld %s", (long long)e->tokens,
                        (long long)e->cols, fp8_dtype_name(e->dtype));
    if (e->tokens == 0 || e->cols == 0) return FP8_OK;
    if (!x || !e->table || !e->ids || (e->positions_table && !e->positions))
        return FP8_FAIL(FP8_EINVAL, "embed: a buffer is NULL");
    if (FP8_ON_CUDA(d)) st = FP8_CUDA_CALL(fp8_cuda_embed(d, x, e, launch));
    else st = fp8_parallel_for(fp8_device_pool(d), e->tokens, grain, embed_range, &j);
    (void)launch;
    return st;
}

/* ---- top k ----------------------------------------------------------------------------------- */

typedef struct top_job {
    int32_t *ids;
    float *values;
    const char *logits;
    fp8_dtype dtype;
    int64_t vocab, stride;
    int32_t k;
} top_job;

/* NaN becomes -Inf and -0 becomes 0; returns the largest. */
FP8_VECTOR static float comparable(float *x, int64_t n) {
    float most = -INFINITY;
    for (int64_t i = 0; i < n; i++) x[i] = x[i] != x[i] ? -INFINITY : x[i] + 0.0f;
    for (int64_t i = 0; i < n; i++) most = x[i] > most ? x[i] : most;
    return most;
}

/* `v` of index `id`, larger than every index before, into the sorted list of `count`. */
static int32_t insert(const top_job *j, float *values, int32_t *ids, int32_t count, float v,
                      int32_t id) {
    int32_t at = count < j->k ? count : j->k - 1;

    if (count == j->k && !(v > values[at])) return count;
    for (; at > 0 && v > values[at - 1]; at--) {
        values[at] = values[at - 1];
        ids[at] = ids[at - 1];
    }
    values[at] = v;
    ids[at] = id;
    return count < j->k ? count + 1 : count;
}

static void top_of_row(const top_job *j, int64_t row, float *values, int32_t *ids) {
    const int64_t size = (int64_t)fp8_dtype_size(j->dtype);
    const char *x = j->logits + row * j->stride * size;
    _Alignas(64) float v[CHUNK];
    int32_t count = 0;

    for (int64_t c = 0; c < j->vocab; c += CHUNK) {
        const int64_t n = min64(CHUNK, j->vocab - c);
        float most;
        fp8_simd_best()->widen(v, x + c * size, j->dtype, n);
        most = comparable(v, n);
        if (count == j->k && !(most > values[count - 1])) continue;
        for (int64_t i = 0; i < n; i++)
            count = insert(j, values, ids, count, v[i], (int32_t)(c + i));
    }
}

static fp8_status top_range(void *ctx, int64_t begin, int64_t end, int32_t worker) {
    const top_job *j = ctx;
    float values[FP8_TOP_K_MAX];

    (void)worker;
    for (int64_t r = begin; r < end; r++) {
        top_of_row(j, r, values, j->ids + r * j->k);
        if (j->values) memcpy(j->values + r * j->k, values, (size_t)j->k * sizeof *values);
    }
    return FP8_OK;
}

fp8_status fp8_top_k(fp8_device *d, int32_t *ids, float *values, const void *logits,
                     fp8_dtype dtype, int64_t rows, int64_t vocab, int64_t stride, int32_t k,
                     fp8_launch launch) {
    top_job j = {ids, values, logits, dtype, vocab, stride ? stride : vocab, k};
    fp8_status st = FP8_OK;

    if (!is_real(dtype) || rows < 0 || rows > INT32_MAX || vocab > INT32_MAX || k < 1 ||
        k > FP8_TOP_K_MAX || k > vocab || j.stride < vocab)
        return FP8_FAIL(FP8_EINVAL, "top_k: %d of [%lld, %lld] %s, rows %lld apart; expected 1 to "
                        "%d of at most 2^31-1", k, (long long)rows, (long long)vocab,
                        fp8_dtype_name(dtype), (long long)j.stride, FP8_TOP_K_MAX);
    if (rows == 0) return FP8_OK;
    if (!ids || !logits) return FP8_FAIL(FP8_EINVAL, "top_k: a buffer is NULL");
    if (FP8_ON_CUDA(d))
        st = FP8_CUDA_CALL(fp8_cuda_top_k(d, ids, values, logits, dtype, rows, vocab, j.stride, k,
                                          launch));
    else st = fp8_parallel_for(fp8_device_pool(d), rows, 1, top_range, &j);
    (void)launch;
    return st;
}
