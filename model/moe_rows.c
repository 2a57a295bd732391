/* Rows of a mixture of experts on the CPU, and the checks of both places (ops.h). */
#include <math.h>
#include <string.h>

#include "core/half.h"
#include "model/moe_impl.h"

enum { TOKEN_PIECE = 16 /* tokens a worker takes at a time */ };

fp8_status fp8_moe_check_route(const fp8_route *r) {
    const int pointers = r->logits && r->chosen && r->weights && r->places && r->from &&
                         r->begin && r->host_begin;

    if (r->tokens < 0 || r->experts < 1 || r->per_token < 1 || r->per_token > r->experts ||
        r->experts > INT32_MAX || r->tokens > INT32_MAX / r->per_token)
        return FP8_FAIL(FP8_EINVAL, "route: %lld tokens, %lld of %lld experts each",
                        (long long)r->tokens, (long long)r->per_token, (long long)r->experts);
    if (r->to != FP8_DTYPE_BF16 && r->to != FP8_DTYPE_F32)
        return FP8_FAIL(FP8_EINVAL, "route: weights as %s", fp8_dtype_name(r->to));
    return pointers ? FP8_OK : FP8_FAIL(FP8_EINVAL, "route: a pointer is NULL");
}

fp8_status fp8_moe_check_combine(const void *x, const fp8_combine *c) {
    if (c->tokens < 0 || c->hidden < 0 || c->per_token < 1)
        return FP8_FAIL(FP8_EINVAL, "combine: %lld tokens of %lld, %lld experts each",
                        (long long)c->tokens, (long long)c->hidden, (long long)c->per_token);
    if (c->dtype != FP8_DTYPE_BF16 && c->dtype != FP8_DTYPE_F32)
        return FP8_FAIL(FP8_EINVAL, "combine: rows of %s", fp8_dtype_name(c->dtype));
    if (!x || !c->rows || !c->weights || !c->places || (c->shared && !c->shared_gate))
        return FP8_FAIL(FP8_EINVAL, "combine: a pointer is NULL");
    return FP8_OK;
}

/* ---- who takes which rows -------------------------------------------------------------------- */

static fp8_status choose_range(void *ctx, int64_t begin, int64_t end, int32_t worker) {
    const fp8_route *r = ctx;

    (void)worker;
    for (int64_t t = begin; t < end; t++) {
        float *p = r->logits + t * r->experts, *weights = r->weights + t * r->per_token;
        fp8_moe_softmax(p, r->experts);
        fp8_moe_choose(r->chosen + t * r->per_token, weights, p, r->experts, r->per_token,
                       r->normalize);
        for (int64_t c = 0; r->to == FP8_DTYPE_BF16 && c < r->per_token; c++)
            weights[c] = fp8_round_bf16(weights[c]);
    }
    return FP8_OK;
}

fp8_status fp8_route_cpu(fp8_device *d, const fp8_route *r) {
    fp8_status st = FP8_OK;

    FP8_TRY(fp8_moe_check_route(r));
    FP8_TRY(fp8_parallel_for(fp8_device_pool(d), r->tokens, TOKEN_PIECE, choose_range,
                             (void *)(uintptr_t)r));
    memset(r->begin, 0, (size_t)(r->experts + 1) * sizeof *r->begin);
    for (int64_t i = 0; i < r->tokens * r->per_token; i++) r->begin[r->chosen[i] + 1]++;
    for (int64_t e = 0; e < r->experts; e++) r->begin[e + 1] += r->begin[e];
    for (int64_t i = 0; i < r->tokens * r->per_token; i++) {
        const int32_t row = r->begin[r->chosen[i]]++;
        r->places[i] = row;
        r->from[row] = (int32_t)(i / r->per_token);
    }
    for (int64_t e = r->experts; e > 0; e--) r->begin[e] = r->begin[e - 1];
    r->begin[0] = 0;
    memcpy(r->host_begin, r->begin, (size_t)(r->experts + 1) * sizeof *r->begin);
done:
    return st;
}

/* ---- what they make, added up ---------------------------------------------------------------- */

typedef struct combine_job {
    const fp8_combine *c;
    void *x;
    int bf16;
} combine_job;

static float rounded(const combine_job *j, float v) { return j->bf16 ? fp8_round_bf16(v) : v; }

static float get(const combine_job *j, const void *x, int64_t i) {
    return j->bf16 ? fp8_bf16_to_f32(((const uint16_t *)x)[i]) : ((const float *)x)[i];
}

static fp8_status combine_range(void *ctx, int64_t begin, int64_t end, int32_t worker) {
    const combine_job *j = ctx;
    const fp8_combine *c = j->c;

    (void)worker;
    for (int64_t i = begin * c->hidden; i < end * c->hidden; i++) {
        const int64_t t = i / c->hidden, col = i % c->hidden;
        float sum = 0.0f;
        for (int64_t e = t * c->per_token; e < (t + 1) * c->per_token; e++) {
            const float y = get(j, c->rows, c->places[e] * c->hidden + col);
            sum = rounded(j, sum + rounded(j, y * c->weights[e]));
        }
        if (c->shared) {
            const float open = rounded(j, 1.0f / (1.0f + expf(-c->shared_gate[t])));
            sum = rounded(j, sum + rounded(j, get(j, c->shared, i) * open));
        }
        if (j->bf16) ((uint16_t *)j->x)[i] = fp8_f32_to_bf16(sum);
        else ((float *)j->x)[i] = sum;
    }
    return FP8_OK;
}

fp8_status fp8_combine_cpu(fp8_device *d, void *x, const fp8_combine *c) {
    combine_job j = {c, x, c->dtype == FP8_DTYPE_BF16};
    fp8_status st = FP8_OK;

    FP8_TRY(fp8_moe_check_combine(x, c));
    FP8_TRY(fp8_parallel_for(fp8_device_pool(d), c->tokens, TOKEN_PIECE, combine_range, &j));
done:
    return st;
}
