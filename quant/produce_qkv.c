/* Heads of Q, K and V on the CPU: norm, RoPE and cast of one head at a time, on the stack. */
#include <math.h>
#include <pthread.h>
#include <string.h>

#include "core/mathfn.h"
#include "quant/produce_impl.h"
#include "quant/simd.h"

enum { MAX_DIM = FP8_HEAD_DIM_MAX, GRAIN = 32 * 1024 };

typedef struct heads_job {
    const fp8_qkv *op;
    const fp8_heads *part;
    int rotates;
    pthread_mutex_t lock; /* guards *part->amax */
} heads_job;

/* The halves of a head turn against each other. */
FP8_VECTOR static void rotate(float *restrict a, float *restrict b, const float *restrict cos,
                              const float *restrict sin, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        const float u = a[i], v = b[i];
        a[i] = u * cos[i] - v * sin[i];
        b[i] = v * cos[i] + u * sin[i];
    }
}

static void norm_head(const heads_job *j, float *x) {
    const fp8_qkv *op = j->op;
    _Alignas(64) float w[MAX_DIM];
    fp8_row_stats stats = {0};
    double sum = 0;

    for (int64_t c = 0; c < op->dim; c += FP8_PRODUCE_CHUNK) {
        const int64_t n = op->dim - c < FP8_PRODUCE_CHUNK ? op->dim - c : FP8_PRODUCE_CHUNK;
        sum += (double)fp8_cpu_sum_powers(x + c, n, 0.0f, 2);
    }
    stats.rstd = 1.0f / sqrtf((float)(sum / (double)op->dim) + op->eps);
    fp8_simd_best()->widen(w, j->part->norm_weight, op->dtype, op->dim);
    for (int64_t c = 0; c < op->dim; c += FP8_PRODUCE_CHUNK) {
        const int64_t n = op->dim - c < FP8_PRODUCE_CHUNK ? op->dim - c : FP8_PRODUCE_CHUNK;
        fp8_cpu_normalize(x + c, w + c, NULL, n, op->norm, stats, op->rounded, op->dtype);
        if (op->rounded) fp8_cpu_round(x + c, op->dtype, n);
    }
}

static void store_codes(const heads_job *j, int64_t token, int64_t head, const float *v) {
    const fp8_heads *p = j->part;
    const float scale = p->scale ? p->scale[head * p->scale_stride] : 1.0f;
    uint8_t *to = p->codes + token * p->codes_token_stride + head * p->codes_head_stride;
    uint8_t codes[MAX_DIM];

    fp8_cpu_encode(codes, j->op->code, v, j->op->dim, scale, 0);
    for (int64_t i = 0; i < j->op->dim; i++) to[i * p->codes_dim_stride] = codes[i];
}

static float produce_head(const heads_job *j, int64_t token, int64_t head, uint32_t *nonfinite) {
    const fp8_qkv *op = j->op;
    const fp8_heads *p = j->part;
    const int64_t size = (int64_t)fp8_dtype_size(op->dtype), half = op->rotary_dim / 2;
    const int64_t from = token * p->x_token_stride + head * p->x_head_stride;
    const int64_t to = token * p->dense_token_stride + head * p->dense_head_stride;
    _Alignas(64) float v[MAX_DIM];

    fp8_simd_best()->widen(v, (const char *)p->x + from * size, op->dtype, op->dim);
    if (p->norm_weight) norm_head(j, v);
    if (j->rotates && half > 0) {
        const int64_t angle = op->positions[token] * half;
        rotate(v, v + half, op->cos + angle, op->sin + angle, half);
    }
    if (p->codes) store_codes(j, token, head, v);
    if (p->dense)
        fp8_simd_best()->narrow((char *)p->dense + to * size, op->dtype, v, op->dim);
    return p->amax ? fp8_simd_best()->amax(v, op->dim, nonfinite) : 0.0f;
}

static fp8_status produce_tokens(void *ctx, int64_t begin, int64_t end, int32_t worker) {
    heads_job *j = ctx;
    fp8_amax_slot found = {0};

    (void)worker;
    for (int64_t t = begin; t < end; t++)
        for (int64_t h = 0; h < j->part->heads; h++) {
            const float amax = produce_head(j, t, h, &found.nonfinite);
            if (amax > found.amax) found.amax = amax;
            if (amax > found.amax_without_first && (!j->op->first || !j->op->first[t]))
                found.amax_without_first = amax;
        }
    if (!j->part->amax) return FP8_OK;
    pthread_mutex_lock(&j->lock);
    fp8_cpu_join_amax(j->part->amax, &found);
    pthread_mutex_unlock(&j->lock);
    return FP8_OK;
}

static fp8_status produce_part(fp8_device *d, const fp8_qkv *op, const fp8_heads *part,
                               int rotates) {
    const int64_t width = part->heads * op->dim, grain = width < GRAIN ? GRAIN / (width + 1) : 1;
    heads_job j = {op, part, rotates, PTHREAD_MUTEX_INITIALIZER};
    fp8_status st = FP8_OK;

    if (width == 0) return FP8_OK;
    st = fp8_parallel_for(fp8_device_pool(d), op->tokens, grain > 0 ? grain : 1, produce_tokens,
                          &j);
    pthread_mutex_destroy(&j.lock);
    return st;
}

fp8_status fp8_cpu_produce_qkv(fp8_device *d, const fp8_qkv *qkv) {
    fp8_status st = FP8_OK;

    FP8_TRY(produce_part(d, qkv, &qkv->q, 1));
    FP8_TRY(produce_part(d, qkv, &qkv->k, 1));
    FP8_TRY(produce_part(d, qkv, &qkv->v, 0));
done:
    return st;
}
