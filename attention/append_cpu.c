/* The append on the CPU: one head at a time, threaded over rows. */
#include <math.h>
#include <pthread.h>

#include "attention/append_impl.h"
#include "core/half.h"
#include "quant/quant.h"

enum { MAX_DIM = FP8_HEAD_DIM_MAX, GRAIN = 4 };

typedef struct append_job {
    const fp8_kv_pages *pages;
    const fp8_kv_batch *batch;
    const fp8_kv_append *a;
    pthread_mutex_t lock; /* guards the amax slots */
} append_job;

/* ---- elements -------------------------------------------------------------------------------- */

static float load(const void *x, fp8_dtype t, int64_t i) {
    if (t == FP8_DTYPE_F32) return ((const float *)x)[i];
    if (t == FP8_DTYPE_F16) return fp8_f16_to_f32(((const uint16_t *)x)[i]);
    return fp8_bf16_to_f32(((const uint16_t *)x)[i]);
}

static void store(void *x, fp8_dtype t, int64_t i, float v, float scale) {
    if (t == FP8_DTYPE_F32) ((float *)x)[i] = v;
    else if (t == FP8_DTYPE_F16) ((uint16_t *)x)[i] = fp8_f32_to_f16(v);
    else if (t == FP8_DTYPE_BF16) ((uint16_t *)x)[i] = fp8_f32_to_bf16(v);
    else if (isnan(v * scale)) ((uint8_t *)x)[i] = 0x7f;
    else ((uint8_t *)x)[i] = fp8_from_f32(FP8_DTYPE_E4M3, v * scale);
}

static float round_real(fp8_dtype t, float v) {
    if (t == FP8_DTYPE_F32) return v;
    return t == FP8_DTYPE_F16 ? fp8_f16_to_f32(fp8_f32_to_f16(v)) : fp8_round_bf16(v);
}

/* ---- one head -------------------------------------------------------------------------------- */

static void norm_head(const fp8_kv_append *a, const void *weight, float *v, int64_t d) {
    double sum = 0;
    float r;

    for (int64_t i = 0; i < d; i++) sum += (double)v[i] * (double)v[i];
    r = 1.0f / sqrtf((float)(sum / (double)d) + a->eps);
    for (int64_t i = 0; i < d; i++) {
        const float w = load(weight, a->dtype, i);
        v[i] *= r;
        if (a->norm == FP8_NORM_RMS_PLUS) v[i] *= 1.0f + w;
        else v[i] = (a->rounded ? round_real(a->dtype, v[i]) : v[i]) * w;
        if (a->rounded) v[i] = round_real(a->dtype, v[i]);
    }
}

static void rotate_head(const fp8_kv_append *a, float *v, int64_t position) {
    const int64_t half = a->rotary_dim / 2;
    const float *cos = a->cos + position * half, *sin = a->sin + position * half;

    for (int64_t i = 0; i < half; i++) {
        const int64_t at = a->rope == FP8_ROPE_HALVES ? i : 2 * i;
        const int64_t with = a->rope == FP8_ROPE_HALVES ? i + half : 2 * i + 1;
        const float x = v[at], y = v[with];
        v[at] = x * cos[i] - y * sin[i];
        v[with] = y * cos[i] + x * sin[i];
    }
}

static void observe(fp8_amax_slot *found, const float *v, int64_t d) {
    for (int64_t i = 0; i < d; i++) {
        if (!isfinite(v[i])) found->nonfinite++;
        else if (fabsf(v[i]) > found->amax) found->amax = fabsf(v[i]);
    }
}

/* Of Q and K. */
static void make_head(const fp8_kv_append *a, const fp8_append_heads *h, int64_t row, int64_t head,
                      int64_t d, int64_t position, float *v) {
    const int64_t from = row * h->token_stride + head * h->head_stride;
    for (int64_t i = 0; i < d; i++) v[i] = load(h->x, a->dtype, from + i);
    if (h->norm_weight) norm_head(a, h->norm_weight, v, d);
    if (a->rotary_dim > 0) rotate_head(a, v, position);
}

/* ---- one row --------------------------------------------------------------------------------- */

static float scale_of(const fp8_kv_pages *p, const float *descale, int64_t kv_head) {
    if (!descale) return 1.0f;
    return 1.0f / descale[p->granularity == FP8_DESCALE_HEAD ? kv_head : 0];
}

static void append_q(const append_job *j, int64_t row, int64_t position, fp8_amax_slot *found) {
    const fp8_kv_append *a = j->a;
    const fp8_kv_pages *p = j->pages;
    const int64_t group = a->num_heads / p->num_kv_heads, d = p->d_qk;
    float v[MAX_DIM];

    for (int64_t h = 0; h < a->num_heads; h++) {
        const float scale = a->q_dtype == FP8_DTYPE_E4M3 ? scale_of(p, a->q_descale, h / group)
                                                         : 1.0f;
        make_head(a, &a->q, row, h, d, position, v);
        observe(found, v, d);
        for (int64_t i = 0; i < d; i++)
            store(a->q_out, a->q_dtype, (row * a->num_heads + h) * d + i, v[i], scale);
    }
}

static void append_kv(const append_job *j, int64_t row, const append_row *r, int64_t position,
                      fp8_amax_slot found[2]) {
    const fp8_kv_append *a = j->a;
    const fp8_kv_pages *p = j->pages;
    const int64_t slot = r->page >= 0 ? r->key % p->page_size : 0;
    float v[MAX_DIM];

    for (int64_t h = 0; h < p->num_kv_heads; h++) {
        const int64_t from = row * a->v.token_stride + h * a->v.head_stride;
        make_head(a, &a->k, row, h, p->d_qk, position, v);
        observe(&found[0], v, p->d_qk);
        for (int64_t i = 0; i < p->d_qk && r->page >= 0; i++)
            store(p->k, p->dtype, kv_k_offset(p, r->page, h, slot) + i, v[i],
                  scale_of(p, p->k_descale, h));
        for (int64_t i = 0; i < p->d_v; i++) v[i] = load(a->v.x, a->dtype, from + i);
        observe(&found[1], v, p->d_v);
        for (int64_t i = 0; i < p->d_v && r->page >= 0; i++)
            store(p->v, p->dtype, kv_v_offset(p, r->page, h, slot) + i * p->page_size, v[i],
                  scale_of(p, p->v_descale, h));
    }
}

static void join(fp8_amax_slot *slot, const fp8_amax_slot *found) {
    if (!slot) return;
    if (found->amax > slot->amax) slot->amax = found->amax;
    if (found->amax > slot->amax_without_first) slot->amax_without_first = found->amax;
    slot->nonfinite += found->nonfinite;
}

static fp8_status append_rows(void *ctx, int64_t begin, int64_t end, int32_t worker) {
    append_job *j = ctx;
    const fp8_kv_append *a = j->a;
    const fp8_kv_batch *b = j->batch;
    fp8_amax_slot found[3] = {{0}};

    (void)worker;
    for (int64_t row = begin; row < end; row++) {
        int64_t seq = 0, position = 0;
        append_row r;
        while (seq < b->num_seqs && b->q_starts[seq + 1] <= row) seq++;
        r = append_row_of(j->pages, b, row, seq);
        if (r.seq < 0) continue;
        if (a->rotary_dim > 0) position = append_position(a, row, r.key);
        if (a->q.x) append_q(j, row, position, &found[0]);
        if (a->k.x) append_kv(j, row, &r, position, &found[1]);
    }
    pthread_mutex_lock(&j->lock);
    join(a->q.amax, &found[0]);
    join(a->k.amax, &found[1]);
    join(a->v.amax, &found[2]);
    pthread_mutex_unlock(&j->lock);
    return FP8_OK;
}

fp8_status append_run_cpu(fp8_device *d, const fp8_kv_pages *pages, const fp8_kv_batch *batch,
                          const fp8_kv_append *append) {
    append_job j = {pages, batch, append, PTHREAD_MUTEX_INITIALIZER};
    const fp8_status st =
        fp8_parallel_for(fp8_device_pool(d), batch->total_q, GRAIN, append_rows, &j);
    pthread_mutex_destroy(&j.lock);
    return st;
}
