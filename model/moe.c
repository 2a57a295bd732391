/* A mixture of experts: the router, and each expert's MLP over the tokens it is given.
 *
 *   p = softmax(x router^T), all experts, F32        w = the experts_per_token largest of p
 *   w /= sum(w), where the model does that           lowest index first on ties
 *   y = sum over experts, in their order, of w_e * down_e(act(gate_e(x)) * up_e(x))
 *     + sigmoid(x shared_gate^T) * the shared expert's, where there is one
 *
 * Rounding to the compute type is transformers': router logits, w, each product and each sum.
 *
 * A token has one row for each of its experts, and the rows are sorted by expert: an expert's lie
 * side by side from beginning to end, and each Linear of it runs once. Sorting and summing are the
 * place's (ops.h). How many rows an expert has must be known here, before its products are started:
 * on CUDA that waits for the device once a layer, so that no mixture can be captured. */
#include <stdlib.h>
#include <string.h>

#include "model/model_impl.h"

/* One mixture under way. */
typedef struct mix {
    fp8_model *m;
    fp8_mixture *experts;
    int64_t layer, tokens, rows, hidden, count, k;
    const fp8_tap *tap;
    const fp8_tensor *x;
    int32_t *begin; /* [count + 1]: where each expert's rows begin */
} mix;

static fp8_tensor view(const mix *j, void *data, int64_t rows, int64_t width) {
    return fp8_tensor_view(data, j->m->type, fp8_device_place(j->m->device), rows, width);
}

/* Rows [from, from + rows) of x. */
static fp8_tensor cut(const mix *j, const fp8_tensor *x, int64_t from, int64_t rows) {
    const size_t row_bytes = (size_t)x->shape[1] * fp8_dtype_size(x->dtype);
    return view(j, (char *)x->data + (size_t)from * row_bytes, rows, x->shape[1]);
}

/* out F32 [tokens, rows of w] = x w^T, as values of the compute type. */
static fp8_status product(const mix *j, float *out, const fp8_tensor *w) {
    const int64_t n = w->shape[0];
    const fp8_gemm g = {.m = j->tokens, .n = n, .k = j->hidden, .lda = j->hidden,
                        .ldb = j->hidden, .ldd = n, .a_dtype = j->m->type,
                        .b_dtype = j->m->type, .d_dtype = FP8_DTYPE_F32, .alpha = 1.0f,
                        .a = j->x->data, .b = w->data, .d = out};
    const fp8_tensor y = fp8_tensor_view(out, FP8_DTYPE_F32, fp8_device_place(j->m->device),
                                         j->tokens, n);
    fp8_status st = FP8_OK;

    FP8_TRY(fp8_gemm_run(j->m->device, &g, j->m->workspace.data, j->m->workspace.bytes));
    FP8_TRY(j->m->ops->round(j->m->device, &y, j->m->type));
done:
    return st;
}

static fp8_status route(const mix *j) {
    const fp8_scratch *s = &j->m->scratch;
    const fp8_route r = {.tokens = j->tokens, .experts = j->count, .per_token = j->k,
                         .normalize = j->m->config.norm_top_k, .to = j->m->type,
                         .logits = s->router, .chosen = s->chosen, .weights = s->top_weights,
                         .places = s->places, .from = s->from, .begin = s->begin,
                         .host_begin = j->begin};
    fp8_status st = FP8_OK;

    FP8_TRY(product(j, s->router, &j->experts->router));
    FP8_TRY(j->m->ops->route(j->m->device, &r));
    for (int64_t e = 0; e < j->count; e++)
        j->experts->tokens[e] += j->begin[e + 1] - j->begin[e];
done:
    return st;
}

/* ---- experts --------------------------------------------------------------------------------- */

static fp8_status linear(const mix *j, const fp8_linear *l, const fp8_tensor *y,
                         const fp8_tensor *x) {
    return fp8_linear_forward(l, y, x, NULL, FP8_ACCUMULATE_EXACT, j->m->workspace.data,
                              j->m->workspace.bytes);
}

/* y = each expert's `which` Linear of its rows of x. */
static fp8_status each(const mix *j, int which, const fp8_tensor *y, const fp8_tensor *x) {
    fp8_status st = FP8_OK;

    for (int64_t e = 0; e < j->count; e++) {
        const int64_t from = j->begin[e], rows = j->begin[e + 1] - from;
        const fp8_tensor in = cut(j, x, from, rows), out = cut(j, y, from, rows);
        if (rows > 0) FP8_TRY(linear(j, j->experts->experts[e][which], &out, &in));
    }
done:
    return st;
}

/* gate = act(gate) * up */
static fp8_status activate(const mix *j, const fp8_tensor *gate, const fp8_tensor *up) {
    const fp8_sink sink = {.dense = gate->data};
    const fp8_act act = {.act = j->m->config.act, .rounded = 1, .dtype = j->m->type,
                         .rows = gate->shape[0], .cols = gate->shape[1], .x = gate->data,
                         .up = up->data};
    return fp8_produce_act(j->m->device, &sink, &act, FP8_LAUNCH_OVERLAP);
}

/* to[i,:] = x[rows[i],:] */
static fp8_status gather(const mix *j, const fp8_tensor *to, const fp8_tensor *x,
                         const int32_t *rows) {
    const fp8_embedding e = {.dtype = j->m->type, .tokens = to->shape[0], .cols = to->shape[1],
                             .table = x->data, .ids = rows, .multiplier = 1.0f};
    return fp8_embed(j->m->device, to->data, &e, FP8_LAUNCH_ORDERED);
}

static fp8_status tap(const mix *j, fp8_point point, const fp8_tensor *x) {
    if (!j->tap || !j->tap->on) return FP8_OK;
    return j->tap->on(j->tap->ctx, (int32_t)j->layer, point, x);
}

/* What the down Linears read goes to a tap by token: all experts of one side by side. */
static fp8_status tap_inner(const mix *j, const fp8_tensor *inner) {
    const int64_t width = inner->shape[1];
    const fp8_tensor rows = view(j, j->m->scratch.inner, j->rows, width);
    const fp8_tensor by_token = view(j, j->m->scratch.inner, j->tokens, j->k * width);
    fp8_status st = FP8_OK;

    if (!j->tap || !j->tap->on) return FP8_OK;
    FP8_TRY(gather(j, &rows, inner, j->m->scratch.places));
    FP8_TRY(tap(j, FP8_POINT_DOWN_INPUT, &by_token));
done:
    return st;
}

/* What every expert makes of its rows, into scratch.expert_rows. */
static fp8_status run_experts(const mix *j) {
    const fp8_scratch *s = &j->m->scratch;
    const int64_t width = j->m->config.expert_size;
    const fp8_tensor rows = view(j, s->expert_rows, j->rows, j->hidden);
    const fp8_tensor gate = view(j, s->gate, j->rows, width), up = view(j, s->up, j->rows, width);
    fp8_status st = FP8_OK;

    FP8_TRY(gather(j, &rows, j->x, s->from));
    FP8_TRY(each(j, 0, &gate, &rows));
    FP8_TRY(each(j, 1, &up, &rows));
    FP8_TRY(activate(j, &gate, &up));
    FP8_TRY(tap_inner(j, &gate));
    FP8_TRY(each(j, 2, &rows, &gate));
done:
    return st;
}

/* What the shared expert makes of x, into scratch.shared; its gate's logits into scratch.router. */
static fp8_status run_shared(const mix *j) {
    const fp8_scratch *s = &j->m->scratch;
    fp8_linear *const *shared = j->experts->experts[j->count];
    const int64_t width = fp8_linear_out(shared[0]);
    const fp8_tensor gate = view(j, s->gate, j->tokens, width);
    const fp8_tensor up = view(j, s->up, j->tokens, width);
    const fp8_tensor y = view(j, s->shared, j->tokens, j->hidden);
    fp8_status st = FP8_OK;

    FP8_TRY(linear(j, shared[0], &gate, j->x));
    FP8_TRY(linear(j, shared[1], &up, j->x));
    FP8_TRY(activate(j, &gate, &up));
    FP8_TRY(tap(j, FP8_POINT_SHARED_DOWN_INPUT, &gate));
    FP8_TRY(linear(j, shared[2], &y, &gate));
    FP8_TRY(product(j, s->router, &j->experts->shared_gate));
done:
    return st;
}

fp8_status fp8_mixture_run(fp8_model *m, int64_t index, const fp8_tensor *x,
                           const fp8_tap *tapped) {
    const fp8_model_config *c = &m->config;
    mix j = {.m = m, .experts = &m->layers[index].mixture, .layer = index, .tokens = x->shape[0],
             .rows = x->shape[0] * c->experts_per_token, .hidden = c->hidden_size,
             .count = c->num_experts, .k = c->experts_per_token, .tap = tapped, .x = x};
    const int shared = j.experts->experts[j.count][0] != NULL;
    const fp8_combine sum = {.tokens = j.tokens, .hidden = j.hidden, .per_token = j.k,
                             .dtype = m->type, .rows = m->scratch.expert_rows,
                             .weights = m->scratch.top_weights, .places = m->scratch.places,
                             .shared = shared ? m->scratch.shared : NULL,
                             .shared_gate = m->scratch.router};
    fp8_status st = FP8_OK;

    j.begin = malloc((size_t)(j.count + 1) * sizeof *j.begin);
    if (!j.begin) return FP8_FAIL(FP8_ENOMEM, "rows of %lld experts", (long long)j.count);
    FP8_TRY(route(&j));
    FP8_TRY(run_experts(&j));
    if (shared) FP8_TRY(run_shared(&j));
    FP8_TRY(m->ops->combine(m->device, x->data, &sum));
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
        {(void **)&s->top_weights, k, sizeof *s->top_weights},
        {(void **)&s->chosen, k, sizeof *s->chosen},
        {(void **)&s->places, k, sizeof *s->places},
        {(void **)&s->from, k, sizeof *s->from},
        {&s->expert_rows, k * c->hidden_size, real},
        {&s->inner, k * c->expert_size, real},
        {&s->shared, c->shared_size > 0 ? c->hidden_size : 0, real},
    };
    fp8_status st = FP8_OK;
    void *begin = NULL;

    if (!c->num_experts) goto done;
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++) {
        size_t bytes = 0;
        void *data = NULL;
        FP8_TRY(fp8_mul_size(&bytes, (size_t)m->max_tokens,
                             (size_t)buffers[i].width * buffers[i].element));
        FP8_TRY(fp8_model_alloc(m, &data, bytes));
        memcpy(buffers[i].out, &data, sizeof data);
    }
    FP8_TRY(fp8_model_alloc(m, &begin, (size_t)(c->num_experts + 1) * sizeof *s->begin));
    s->begin = begin;
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
