/* The memory that every forward of a model runs in, made for its largest, and the output layer,
 * whose product has its part in that. */
#include <string.h>

#include "core/log.h"
#include "model/model_impl.h"

/* ---- the output layer ------------------------------------------------------------------------ */

static fp8_gemm lm_head_product(const fp8_model *m, int64_t rows) {
    const int64_t hidden = m->config.hidden_size, vocab = m->config.vocab_size;
    return (fp8_gemm){
        .m = rows, .n = vocab, .k = hidden, .lda = hidden, .ldb = hidden, .ldd = vocab,
        .a_dtype = m->type, .b_dtype = m->type, .d_dtype = FP8_DTYPE_F32, .alpha = 1.0f,
        .b = m->lm_head.data,
    };
}

fp8_status fp8_model_lm_head(fp8_model *m, const fp8_tensor *logits, const fp8_tensor *x) {
    fp8_gemm g = lm_head_product(m, x->shape[0]);
    fp8_status st = FP8_OK;

    g.a = x->data;
    g.d = logits->data;
    FP8_TRY(fp8_gemm_run(m->device, &g, m->workspace.data, m->workspace.bytes));
    FP8_TRY(m->ops->round(m->device, logits, m->type));
    if (m->config.logit_softcap > 0)
        FP8_TRY(m->ops->softcap(m->device, logits, (float)m->config.logit_softcap, m->type));
done:
    return st;
}

/* ---- scratch --------------------------------------------------------------------------------- */

enum { ALIGN = 256 };

static size_t larger(size_t a, size_t b) { return a > b ? a : b; }
static size_t aligned(size_t bytes) { return (bytes + ALIGN - 1) / ALIGN * ALIGN; }

/* What the Linears of a layer want, and its mixture. */
static size_t layer_workspace(const fp8_model *m, int64_t index) {
    size_t most = fp8_mixture_workspace(m, &m->layers[index].mixture);

    for (int k = 0; k < FP8_NUM_LINEAR_KINDS; k++) {
        const fp8_linear *l = m->layers[index].linears[k];
        const fp8_tensor residual = {.dtype = m->type};
        fp8_dtype y = m->type;
        fp8_linear_call call;
        if (!l) continue;
        most = larger(most, fp8_linear_workspace_size(l, m->max_tokens));
        call = fp8_layer_call(m, index, (fp8_linear_kind)k, &residual, &y);
        most = larger(most, fp8_linear_apply_workspace_size(l, m->max_tokens, y, &call));
    }
    return most;
}

static size_t workspace_bytes(const fp8_model *m) {
    const fp8_gemm g = lm_head_product(m, m->max_tokens);
    size_t most = m->lm_head.data ? fp8_gemm_workspace_size(m->device, &g) : 0;

    for (int64_t i = 0; i < m->config.num_layers; i++) most = larger(most, layer_workspace(m, i));
    return most;
}

static fp8_status alloc_rows(fp8_model *m, void **out, int64_t width, size_t element) {
    fp8_status st = FP8_OK;
    size_t bytes = 0;
    FP8_TRY(fp8_mul_size(&bytes, (size_t)m->max_tokens, (size_t)width * element));
    FP8_TRY(fp8_model_alloc(m, out, bytes));
done:
    return st;
}

/* q, k and v one after the other, so that joined Linears can leave theirs there side by side. */
static fp8_status alloc_heads(fp8_model *m, int64_t q, int64_t kv) {
    const size_t row = (size_t)m->max_tokens * fp8_dtype_size(m->type);
    const size_t q_bytes = aligned(row * (size_t)q), kv_bytes = aligned(row * (size_t)kv);
    fp8_status st = FP8_OK;
    void *at = NULL;

    FP8_TRY(fp8_model_alloc(m, &at, q_bytes + 2 * kv_bytes));
    m->scratch.q = at;
    m->scratch.k = (char *)at + q_bytes;
    m->scratch.v = (char *)at + q_bytes + kv_bytes;
done:
    return st;
}

/* What gate and up take, in this order: nobody needs it while attention runs. */
static fp8_status measure_inner(fp8_model *m, int64_t mlp) {
    const char *const *linears = m->family->linears;
    const int gated = linears[FP8_LINEAR_GATE] || linears[FP8_LINEAR_GATE_UP];
    fp8_status st = FP8_OK;
    size_t bytes = 0;

    FP8_TRY(fp8_mul_size(&bytes, (size_t)m->max_tokens, (size_t)mlp * fp8_dtype_size(m->type)));
    m->up_bytes = aligned(bytes);
    m->inner_bytes = (gated ? 2 : 1) * m->up_bytes;
done:
    return st;
}

static void cut_shared(fp8_model *m) {
    const fp8_buffer *all = &m->shared;
    char *inner = all->data ? (char *)all->data + all->bytes - m->inner_bytes : NULL;

    m->workspace = (fp8_buffer){all->data, inner ? all->bytes - m->inner_bytes : 0};
    m->scratch.gate = m->inner_bytes > m->up_bytes ? inner : NULL;
    m->scratch.up = inner ? inner + m->inner_bytes - m->up_bytes : NULL;
}

fp8_status fp8_model_reserve(fp8_model *m, size_t products, size_t attention) {
    const size_t before = m->shared.bytes, first = aligned(larger(products, m->workspace.bytes));
    const size_t all = aligned(larger(first + m->inner_bytes, attention));
    const fp8_status st = fp8_buffer_reserve(m->device, &m->shared, all);
    fp8_status back = FP8_OK;

    if (st != FP8_OK && before > 0) /* the model goes on with what it had */
        back = fp8_buffer_reserve(m->device, &m->shared, before);
    if (back != FP8_OK) fp8_log(FP8_LOG_WARNING, "the model has lost its workspace");
    cut_shared(m);
    return st;
}

fp8_status fp8_model_make_room(fp8_model *m, const fp8_linear *joined, void **room) {
    const fp8_linear_call gated = {.accumulate = m->accumulate, .activation = FP8_GEMM_SWIGLU};
    const int64_t tokens = m->max_tokens, out = fp8_linear_out(joined);
    fp8_status st = FP8_OK;

    if (room && !*room)
        FP8_TRY(fp8_model_alloc(m, room, (size_t)(tokens * out) * fp8_dtype_size(m->type)));
    FP8_TRY(fp8_model_reserve(m, fp8_linear_workspace_size(joined, tokens), 0));
    if (out % 2 == 0)
        FP8_TRY(fp8_model_reserve(m, fp8_linear_apply_workspace_size(joined, tokens,
                                                                     FP8_DTYPE_E4M3, &gated), 0));
done:
    return st;
}

fp8_status fp8_model_make_codes(fp8_model *m) {
    fp8_scratch *s = &m->scratch;
    fp8_status st = FP8_OK;
    void *data = NULL;

    if (s->codes) return FP8_OK; /* with its descales, as wide as any input */
    FP8_TRY(alloc_rows(m, &data, 1, sizeof *s->descales));
    s->descales = data;
    FP8_TRY(alloc_rows(m, &data, m->config.hidden_size, sizeof *s->codes));
    s->codes = data;
done:
    return st;
}

fp8_status fp8_model_create_scratch(fp8_model *m) {
    const fp8_model_config *c = &m->config;
    const int64_t q = c->num_heads * c->head_dim, kv = c->num_kv_heads * c->head_dim;
    const int64_t experts = c->num_experts ? c->experts_per_token * c->expert_size : 0;
    const int64_t mixture = experts > c->shared_size ? experts : c->shared_size;
    const int64_t mlp = c->intermediate_size > mixture ? c->intermediate_size : mixture;
    const int64_t inner = mlp > q ? mlp : q;
    const int64_t widest = c->hidden_size > inner ? c->hidden_size : inner;
    const int quantized = m->quant.scheme != FP8_SCHEME_NONE ||
                          m->weights == FP8_FORM_QUANTIZED;
    /* BLOCK: one a group of columns, for tokens up to a multiple of 4. */
    const int64_t groups = (widest + FP8_SINK_GROUP_COLS - 1) / FP8_SINK_GROUP_COLS;
    const int64_t descales = m->quant.scheme != FP8_SCHEME_BLOCK ? 1
                             : m->max_tokens % 4 == 0            ? groups
                             : m->max_tokens < 3                 ? 4 * groups
                                                                 : 2 * groups;
    fp8_scratch *s = &m->scratch;
    const struct {
        void **out;
        int64_t width;
        size_t element; /* 0: the compute type's */
        int wanted;
    } buffers[] = {
        {&s->x, c->hidden_size, 0, 1},
        {&s->y, c->hidden_size, 0, 1},
        {&s->attn, q, 0, 1},
        {(void **)&s->codes, widest, 1, quantized},
        {(void **)&s->descales, descales, sizeof(float), quantized},
        {(void **)&s->q_codes, q, 1, m->quant.attention != FP8_ATTENTION_NONE},
        {(void **)&s->k_codes, kv, 1, m->quant.kv_fp8},
        {(void **)&s->v_codes, kv, 1, m->quant.kv_fp8},
    };
    fp8_status st = FP8_OK;

    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++) {
        const size_t element = buffers[i].element ? buffers[i].element : fp8_dtype_size(m->type);
        void *data = NULL;
        if (!buffers[i].wanted) continue;
        FP8_TRY(alloc_rows(m, &data, buffers[i].width, element));
        memcpy(buffers[i].out, &data, sizeof data);
    }
    FP8_TRY(alloc_heads(m, q, kv));
    FP8_TRY(measure_inner(m, mlp));
    FP8_TRY(fp8_model_reserve(m, workspace_bytes(m), 0));
    FP8_TRY(fp8_mixture_scratch(m));
    FP8_TRY(fp8_inputs_create(m));
    FP8_TRY(fp8_rope_extend(m, m->max_tokens));
done:
    return st;
}
