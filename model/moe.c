/* A mixture of experts, on the CPU: the router, and each expert's MLP over the tokens it is given.
 *
 *   p = softmax(x router^T), all experts, F32        w = the experts_per_token largest of p
 *   w /= sum(w), where the model does that           lowest index first on ties
 *   y = sum over experts, in their order, of w_e * down_e(act(gate_e(x)) * up_e(x))
 *     + sigmoid(x shared_gate^T) * the shared expert's, where there is one
 *
 * Rounding to the compute type is transformers': router logits, w, each product and each sum.
 *
 * Tokens are sorted by expert; an expert gathers its rows, and what its down Linear reads lies by
 * token, so that a tap sees all experts of a token side by side. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/half.h"
#include "model/model_impl.h"

/* One mixture under way. */
typedef struct mix {
    fp8_model *m;
    fp8_mixture *experts;
    int64_t layer, tokens, hidden, count, k;
    const fp8_tap *tap;
    const fp8_tensor *x;
    int64_t *begin; /* [count + 1] into scratch.rows: tokens * k + choice, sorted by expert */
} mix;

static float rounded(const mix *j, float v) {
    return j->m->type == FP8_DTYPE_BF16 ? fp8_round_bf16(v) : v;
}

static float get(const mix *j, const void *x, int64_t i) {
    return j->m->type == FP8_DTYPE_BF16 ? fp8_bf16_to_f32(((const uint16_t *)x)[i])
                                        : ((const float *)x)[i];
}

static void set(const mix *j, void *x, int64_t i, float v) {
    if (j->m->type == FP8_DTYPE_BF16) ((uint16_t *)x)[i] = fp8_f32_to_bf16(v);
    else ((float *)x)[i] = v;
}

static fp8_tensor view(const mix *j, void *data, int64_t rows, int64_t width) {
    return fp8_tensor_view(data, j->m->type, FP8_PLACE_CPU, rows, width);
}

/* ---- the router ------------------------------------------------------------------------------ */

/* out F32 [tokens, rows of w] = x w^T, as values of the compute type. */
static fp8_status product(const mix *j, float *out, const fp8_tensor *w) {
    const int64_t n = w->shape[0];
    const fp8_gemm g = {.m = j->tokens, .n = n, .k = j->hidden, .lda = j->hidden,
                        .ldb = j->hidden, .ldd = n, .a_dtype = j->m->type,
                        .b_dtype = j->m->type, .d_dtype = FP8_DTYPE_F32, .alpha = 1.0f,
                        .a = j->x->data, .b = w->data, .d = out};
    const fp8_tensor y = fp8_tensor_view(out, FP8_DTYPE_F32, FP8_PLACE_CPU, j->tokens, n);
    fp8_status st = FP8_OK;

    FP8_TRY(fp8_gemm_run(j->m->device, &g, j->m->workspace.data, j->m->workspace.bytes));
    FP8_TRY(j->m->ops->round(j->m->device, &y, j->m->type));
done:
    return st;
}

static void softmax(float *x, int64_t n) {
    float max = x[0], sum = 0.0f;
    for (int64_t i = 1; i < n; i++) max = x[i] > max ? x[i] : max;
    for (int64_t i = 0; i < n; i++) sum += x[i] = expf(x[i] - max);
    for (int64_t i = 0; i < n; i++) x[i] /= sum;
}

/* The k largest of p, which is spoilt: taken ones become -1. */
static void choose(const mix *j, float *p, int32_t *top, float *weights) {
    float sum = 0.0f;

    for (int64_t c = 0; c < j->k; c++) {
        int32_t best = 0;
        for (int32_t e = 1; e < j->count; e++) best = p[e] > p[best] ? e : best;
        top[c] = best;
        weights[c] = p[best];
        sum += p[best];
        p[best] = -1.0f;
    }
    for (int64_t c = 0; c < j->k; c++)
        weights[c] = rounded(j, j->m->config.norm_top_k ? weights[c] / sum : weights[c]);
}

static fp8_status route(mix *j) {
    fp8_scratch *s = &j->m->scratch;
    const int64_t chosen = j->tokens * j->k;
    fp8_status st = FP8_OK;

    FP8_TRY(product(j, s->router, &j->experts->router));
    memset(j->begin, 0, (size_t)(j->count + 1) * sizeof *j->begin);
    for (int64_t t = 0; t < j->tokens; t++) {
        float *p = s->router + t * j->count;
        softmax(p, j->count);
        choose(j, p, s->top + t * j->k, s->top_weights + t * j->k);
    }
    for (int64_t i = 0; i < chosen; i++) {
        j->begin[s->top[i] + 1]++;
        j->experts->tokens[s->top[i]]++;
    }
    for (int64_t e = 0; e < j->count; e++) j->begin[e + 1] += j->begin[e];
    for (int64_t i = 0; i < chosen; i++) s->rows[j->begin[s->top[i]]++] = (int32_t)i;
    for (int64_t e = j->count; e > 0; e--) j->begin[e] = j->begin[e - 1];
    j->begin[0] = 0;
done:
    return st;
}

/* ---- experts --------------------------------------------------------------------------------- */

static fp8_status linear(const mix *j, const fp8_linear *l, const fp8_tensor *y,
                         const fp8_tensor *x) {
    return fp8_linear_forward(l, y, x, NULL, FP8_ACCUMULATE_EXACT, j->m->workspace.data,
                              j->m->workspace.bytes);
}

/* *inner (in scratch.gate) = act(gate(x)) * up(x) of one expert. */
static fp8_status expand(const mix *j, fp8_linear *const expert[3], const fp8_tensor *x,
                         fp8_tensor *inner) {
    const int64_t rows = x->shape[0], width = fp8_linear_out(expert[0]);
    const fp8_tensor gate = view(j, j->m->scratch.gate, rows, width);
    const fp8_tensor up = view(j, j->m->scratch.up, rows, width);
    const fp8_sink sink = {.dense = gate.data};
    const fp8_act act = {.act = j->m->config.act, .rounded = 1, .dtype = j->m->type, .rows = rows,
                         .cols = width, .x = gate.data, .up = up.data};
    fp8_status st = FP8_OK;

    FP8_TRY(linear(j, expert[0], &gate, x));
    FP8_TRY(linear(j, expert[1], &up, x));
    FP8_TRY(fp8_produce_act(j->m->device, &sink, &act, FP8_LAUNCH_OVERLAP));
    *inner = gate;
done:
    return st;
}

/* Row i of `to` = row from[i] / divisor of `x`, or with `back` the other way round. */
static void move_rows(void *to, const void *x, const int32_t *from, int64_t divisor, int64_t count,
                      size_t bytes, int back) {
    for (int64_t i = 0; i < count; i++) {
        const size_t there = (size_t)(from[i] / divisor) * bytes, here = (size_t)i * bytes;
        memcpy((char *)to + (back ? there : here), (const char *)x + (back ? here : there), bytes);
    }
}

/* What every expert's down Linear reads, by token and choice, into scratch.inner. */
static fp8_status expand_all(const mix *j) {
    const fp8_scratch *s = &j->m->scratch;
    const size_t element = fp8_dtype_size(j->m->type);
    fp8_status st = FP8_OK;

    for (int64_t e = 0; e < j->count; e++) {
        const int64_t n = j->begin[e + 1] - j->begin[e];
        const int32_t *rows = s->rows + j->begin[e];
        const fp8_tensor x = view(j, s->expert_x, n, j->hidden);
        fp8_tensor inner;
        if (n == 0) continue;
        move_rows(x.data, j->x->data, rows, j->k, n, (size_t)j->hidden * element, 0);
        FP8_TRY(expand(j, j->experts->experts[e], &x, &inner));
        move_rows(s->inner, inner.data, rows, 1, n, (size_t)inner.shape[1] * element, 1);
    }
done:
    return st;
}

/* sums[token] += weight * y, for the choices in rows. */
static void collect(const mix *j, const int32_t *rows, int64_t n, const void *y) {
    const fp8_scratch *s = &j->m->scratch;
    for (int64_t i = 0; i < n; i++) {
        const float weight = s->top_weights[rows[i]];
        float *sum = s->sums + rows[i] / j->k * j->hidden;
        for (int64_t c = 0; c < j->hidden; c++) {
            const float v = rounded(j, get(j, y, i * j->hidden + c) * weight);
            sum[c] = rounded(j, sum[c] + v);
        }
    }
}

static fp8_status contract_all(const mix *j) {
    const fp8_scratch *s = &j->m->scratch;
    const int64_t width = j->m->config.expert_size;
    const size_t row_bytes = (size_t)width * fp8_dtype_size(j->m->type);
    fp8_status st = FP8_OK;

    memset(s->sums, 0, (size_t)(j->tokens * j->hidden) * sizeof *s->sums);
    for (int64_t e = 0; e < j->count; e++) {
        const int64_t n = j->begin[e + 1] - j->begin[e];
        const int32_t *rows = s->rows + j->begin[e];
        const fp8_tensor inner = view(j, s->gate, n, width);
        const fp8_tensor y = view(j, s->expert_y, n, j->hidden);
        if (n == 0) continue;
        move_rows(inner.data, s->inner, rows, 1, n, row_bytes, 0);
        FP8_TRY(linear(j, j->experts->experts[e][2], &y, &inner));
        collect(j, rows, n, y.data);
    }
done:
    return st;
}

static fp8_status tap(const mix *j, fp8_point point, const fp8_tensor *x) {
    if (!j->tap || !j->tap->on) return FP8_OK;
    return j->tap->on(j->tap->ctx, (int32_t)j->layer, point, x);
}

static fp8_status add_shared(const mix *j) {
    const fp8_scratch *s = &j->m->scratch;
    fp8_linear *const *shared = j->experts->experts[j->count];
    const fp8_tensor y = view(j, s->expert_y, j->tokens, j->hidden);
    fp8_status st = FP8_OK;
    fp8_tensor inner;

    if (!shared[0]) return FP8_OK;
    FP8_TRY(expand(j, shared, j->x, &inner));
    FP8_TRY(tap(j, FP8_POINT_SHARED_DOWN_INPUT, &inner));
    FP8_TRY(linear(j, shared[2], &y, &inner));
    FP8_TRY(product(j, s->router, &j->experts->shared_gate));
    for (int64_t t = 0; t < j->tokens; t++) {
        const float open = rounded(j, 1.0f / (1.0f + expf(-s->router[t])));
        float *sum = s->sums + t * j->hidden;
        for (int64_t c = 0; c < j->hidden; c++) {
            const float v = rounded(j, get(j, y.data, t * j->hidden + c) * open);
            sum[c] = rounded(j, sum[c] + v);
        }
    }
done:
    return st;
}

fp8_status fp8_mixture_run(fp8_model *m, int64_t index, const fp8_tensor *x,
                           const fp8_tap *tapped) {
    const fp8_model_config *c = &m->config;
    mix j = {.m = m, .experts = &m->layers[index].mixture, .layer = index, .tokens = x->shape[0],
             .hidden = c->hidden_size, .count = c->num_experts, .k = c->experts_per_token,
             .tap = tapped, .x = x};
    const fp8_tensor inner = view(&j, m->scratch.inner, j.tokens, j.k * c->expert_size);
    fp8_status st = FP8_OK;

    j.begin = malloc((size_t)(j.count + 1) * sizeof *j.begin);
    if (!j.begin) return FP8_FAIL(FP8_ENOMEM, "rows of %lld experts", (long long)j.count);
    FP8_TRY(route(&j));
    FP8_TRY(expand_all(&j));
    FP8_TRY(tap(&j, FP8_POINT_DOWN_INPUT, &inner));
    FP8_TRY(contract_all(&j));
    FP8_TRY(add_shared(&j));
    for (int64_t i = 0; i < j.tokens * j.hidden; i++) set(&j, x->data, i, m->scratch.sums[i]);
done:
    free(j.begin);
    return st;
}

/* ---- a mixture's life ------------------------------------------------------------------------ */

fp8_status fp8_mixture_scratch(fp8_model *m) {
    const fp8_model_config *c = &m->config;
    const int64_t k = c->experts_per_token;
    fp8_scratch *s = &m->scratch;
    const size_t real = fp8_dtype_size(m->type);
    const struct {
        void **out;
        int64_t width;
        size_t element;
    } buffers[] = {
        {(void **)&s->router, c->num_experts, sizeof *s->router},
        {(void **)&s->sums, c->hidden_size, sizeof *s->sums},
        {(void **)&s->top_weights, k, sizeof *s->top_weights},
        {(void **)&s->top, k, sizeof *s->top},
        {(void **)&s->rows, k, sizeof *s->rows},
        {&s->expert_x, c->hidden_size, real},
        {&s->expert_y, c->hidden_size, real},
        {&s->inner, k * c->expert_size, real},
    };
    fp8_status st = FP8_OK;

    for (size_t i = 0; c->num_experts && i < sizeof buffers / sizeof *buffers; i++) {
        size_t bytes = 0;
        void *data = NULL;
        FP8_TRY(fp8_mul_size(&bytes, (size_t)m->max_tokens,
                             (size_t)buffers[i].width * buffers[i].element));
        FP8_TRY(fp8_model_alloc(m, &data, bytes));
        memcpy(buffers[i].out, &data, sizeof data);
    }
done:
    return st;
}

size_t fp8_mixture_workspace(const fp8_model *m, const fp8_mixture *x) {
    size_t most = 0;
    for (int64_t e = 0; x->experts && e <= m->config.num_experts; e++)
        for (int k = 0; k < 3; k++) {
            const fp8_linear *l = x->experts[e][k];
            const size_t bytes = l ? fp8_linear_workspace_size(l, m->max_tokens) : 0;
            if (bytes > most) most = bytes;
        }
    return most;
}

void fp8_mixture_destroy(const fp8_model *m, fp8_mixture *x) {
    for (int64_t e = 0; x->experts && e <= m->config.num_experts; e++)
        for (int k = 0; k < 3; k++) fp8_linear_destroy(x->experts[e][k]);
    free(x->experts);
    free(x->tokens);
}

const int64_t *fp8_model_expert_tokens(const fp8_model *m, int64_t layer) {
    return layer >= 0 && layer < m->config.num_layers ? m->layers[layer].mixture.tokens : NULL;
}
