/* The wiring of a decoder transformer, once for all families, precisions and devices:
 *
 *   x = embed(ids)
 *   for each layer:  x += o(attention(rope(q(n)), rope(k(n)), v(n)))   n = norm1(x)
 *                    x += down(act(gate(n)) * up(n))                   n = norm2(x)
 *   logits = lm_head(final_norm(x))
 *
 * Everything runs in the scratch that the model was loaded with. Two things may still grow,
 * outside any kernel: a batch of a new look brings an attention plan (plans.c), and the first
 * batch that wants logits their buffer. */
#include "model/model_impl.h"

typedef struct pass {
    fp8_model *m;
    const fp8_batch *batch;
    fp8_kv_cache *cache; /* may be NULL */
    const fp8_tap *tap;  /* may be NULL */
    int64_t tokens, past, max_len;
    int uniform;
    fp8_tensor x, y; /* the residual stream; a norm's or a block's output */
} pass;

static fp8_tensor view(const pass *p, void *data, int64_t width) {
    return fp8_tensor_view(data, p->m->type, fp8_device_place(p->m->device), p->tokens, width);
}

static fp8_status tap(const pass *p, int64_t layer, fp8_point point, const fp8_tensor *x) {
    if (!p->tap || !p->tap->on) return FP8_OK;
    return p->tap->on(p->tap->ctx, (int32_t)layer, point, x);
}

/* ---- Linears --------------------------------------------------------------------------------- */

static fp8_status linear(const pass *p, const fp8_linear *l, const fp8_tensor *y,
                         const fp8_tensor *x, const float *x_descale) {
    return fp8_linear_forward(l, y, x, x_descale, FP8_ACCUMULATE_EXACT, p->m->workspace.data,
                              p->m->workspace.bytes);
}

/* ys[i] = linears[i](y): the input, p->y, is quantized once where they share it. NULL ones are
 * left out. */
static fp8_status linear_group(const pass *p, fp8_linear *const *linears, const fp8_tensor *ys,
                               int count, int share) {
    const fp8_scratch *s = &p->m->scratch;
    fp8_status st = FP8_OK;
    fp8_tensor x = p->y;
    int first = 0;

    while (!linears[first]) first++;
    if (share) {
        FP8_TRY(fp8_linear_quantize_input(linears[first], s->codes, s->descales, &p->y));
        x.data = s->codes;
        x.dtype = FP8_DTYPE_E4M3;
    }
    for (int i = first; i < count; i++)
        if (linears[i]) FP8_TRY(linear(p, linears[i], &ys[i], &x, share ? s->descales : NULL));
done:
    return st;
}

static fp8_status norm(const pass *p, const fp8_tensor *y, const fp8_tensor *x,
                       const fp8_tensor *weight, const fp8_tensor *bias) {
    return p->m->ops->norm(p->m->device, y, x, weight, bias && bias->data ? bias : NULL,
                           p->m->family->norm, (float)p->m->config.norm_eps);
}

/* ---- attention ------------------------------------------------------------------------------- */

/* q or k in place: the heads' own norm, then RoPE, where the model has them. */
static fp8_status position_heads(const pass *p, const fp8_tensor *x, const fp8_tensor *weight) {
    const int64_t dim = p->m->config.head_dim, heads = x->shape[1] / dim;
    const fp8_model *m = p->m;
    fp8_status st = FP8_OK;
    fp8_tensor rows = *x;

    rows.shape[0] = p->tokens * heads;
    rows.shape[1] = dim;
    if (weight->data) FP8_TRY(norm(p, &rows, &rows, weight, NULL));
    if (m->config.rope.type != FP8_ROPE_NONE)
        FP8_TRY(m->ops->rope(m->device, x, heads, dim, x->shape[1], m->rope_cos, m->rope_sin,
                             m->inputs.positions));
done:
    return st;
}

/* Keys or values of this batch to where attention reads them: as codes or as they are, at the
 * end of the cache or in the scratch. *rows = the first row attention sees. */
static fp8_status store_kv(const pass *p, const fp8_tensor *x, int64_t layer, int is_value,
                           const float *scale, uint8_t *codes, const void **rows) {
    const fp8_kv_cache *c = p->cache;
    const int64_t width = x->shape[1];
    void *to = codes;

    *rows = scale ? codes : x->data;
    if (c) {
        unsigned char *data = c->data + (size_t)(2 * layer + is_value) * c->plane_bytes;
        *rows = data;
        to = data + (size_t)p->past * c->row_bytes;
    }
    if (scale)
        return fp8_quantize(p->m->device, to, FP8_DTYPE_E4M3, x->data, x->dtype, p->tokens * width,
                            scale);
    if (c) return fp8_device_copy(p->m->device, to, x->data, (size_t)p->tokens * c->row_bytes);
    return FP8_OK;
}

static fp8_attention_options attention_options(const pass *p, int64_t layer) {
    const fp8_model *m = p->m;
    const fp8_model_config *c = &m->config;
    const int64_t window = c->layer_window[layer];
    const int codes = m->quant.attention != FP8_ATTENTION_NONE;
    fp8_attention_options o = FP8_ATTENTION_OPTIONS;

    o.num_heads = (int32_t)c->num_heads;
    o.num_kv_heads = (int32_t)c->num_kv_heads;
    o.d_qk = o.d_v = (int32_t)c->head_dim;
    o.num_seqs = p->batch->num_seqs;
    o.max_q = p->max_len;
    o.max_kv = p->past + p->max_len;
    o.layout = p->uniform ? FP8_LAYOUT_BSHD_BSHD_BSHD : FP8_LAYOUT_THD_THD_THD;
    o.mask = FP8_MASK_CAUSAL_BOTTOM_RIGHT;
    o.window_left = window > 0 ? window - 1 : -1; /* a model's window counts the query itself */
    o.o_dtype = m->type;
    o.q_dtype = codes ? FP8_DTYPE_E4M3 : m->type;
    o.kv_dtype = m->quant.kv_fp8 ? FP8_DTYPE_E4M3 : m->type;
    o.quantize_p = 0; /* no backend here gains from a rounded P; it costs 0.15 % (NOTES) */
    return o;
}

static fp8_status attend(const pass *p, int64_t layer, const fp8_tensor *o, const fp8_tensor *q,
                         const fp8_tensor *k, const fp8_tensor *v) {
    fp8_model *m = p->m;
    const fp8_attention_options options = attention_options(p, layer);
    const float *scales = m->layers[layer].kv_scales;
    const int64_t q_width = q->shape[1];
    fp8_attention_plan *plan = NULL;
    fp8_status st = FP8_OK;
    fp8_attention_io io = {
        .o = o->data,
        .q = q->data,
        .q_starts = m->inputs.starts,
        .kv_starts = p->cache ? m->inputs.kv_starts : m->inputs.starts,
        .total_q = p->tokens,
        .total_kv = p->past + p->tokens,
    };

    FP8_TRY(store_kv(p, k, layer, 0, scales ? scales + 2 : NULL, m->scratch.k_codes, &io.k));
    FP8_TRY(store_kv(p, v, layer, 1, scales ? scales + 4 : NULL, m->scratch.v_codes, &io.v));
    if (scales) {
        io.k_descale = scales + 3;
        io.v_descale = scales + 5;
    }
    if (options.q_dtype == FP8_DTYPE_E4M3) {
        FP8_TRY(fp8_quantize(m->device, m->scratch.q_codes, FP8_DTYPE_E4M3, q->data, q->dtype,
                             p->tokens * q_width, scales));
        io.q = m->scratch.q_codes;
        io.q_descale = scales + 1;
    }
    FP8_TRY(fp8_plan_get(m, &plan, &options));
    FP8_TRY(fp8_attention_run(plan, &io, m->workspace.data, m->workspace.bytes));
done:
    return st;
}

static fp8_status attention_block(const pass *p, int64_t index) {
    const fp8_model *m = p->m;
    const fp8_layer *layer = &m->layers[index];
    const int64_t q_width = m->config.num_heads * m->config.head_dim;
    const int64_t kv_width = m->config.num_kv_heads * m->config.head_dim;
    const fp8_tensor qkv[3] = {view(p, m->scratch.q, q_width), view(p, m->scratch.k, kv_width),
                               view(p, m->scratch.v, kv_width)};
    const fp8_tensor o = view(p, m->scratch.attn, q_width);
    fp8_status st = FP8_OK;

    FP8_TRY(norm(p, &p->y, &p->x, &layer->norm1, &layer->norm1_bias));
    FP8_TRY(tap(p, index, FP8_POINT_QKV_INPUT, &p->y));
    FP8_TRY(linear_group(p, &layer->linears[FP8_LINEAR_Q], qkv, 3, layer->share_qkv));
    FP8_TRY(position_heads(p, &qkv[0], &layer->q_norm));
    FP8_TRY(position_heads(p, &qkv[1], &layer->k_norm));
    FP8_TRY(tap(p, index, FP8_POINT_Q, &qkv[0]));
    FP8_TRY(tap(p, index, FP8_POINT_K, &qkv[1]));
    FP8_TRY(tap(p, index, FP8_POINT_V, &qkv[2]));
    FP8_TRY(attend(p, index, &o, &qkv[0], &qkv[1], &qkv[2]));
    FP8_TRY(tap(p, index, FP8_POINT_O_INPUT, &o));
    FP8_TRY(linear(p, layer->linears[FP8_LINEAR_O], &p->y, &o, NULL));
    FP8_TRY(m->ops->add(m->device, &p->x, &p->y));
done:
    return st;
}

/* ---- MLP, logits ----------------------------------------------------------------------------- */

static fp8_status mlp_block(const pass *p, int64_t index) {
    const fp8_model *m = p->m;
    const fp8_layer *layer = &m->layers[index];
    const int gated = layer->linears[FP8_LINEAR_GATE] != NULL;
    const fp8_tensor ys[2] = {view(p, m->scratch.gate, m->config.intermediate_size),
                              view(p, m->scratch.up, m->config.intermediate_size)};
    const fp8_tensor *inner = &ys[!gated]; /* what the activation is of, and where it goes */
    fp8_status st = FP8_OK;

    FP8_TRY(norm(p, &p->y, &p->x, &layer->norm2, &layer->norm2_bias));
    FP8_TRY(tap(p, index, FP8_POINT_UP_INPUT, &p->y));
    FP8_TRY(linear_group(p, &layer->linears[FP8_LINEAR_GATE], ys, 2, layer->share_up));
    FP8_TRY(m->ops->activate(m->device, inner, inner, gated ? &ys[1] : NULL, m->config.act));
    FP8_TRY(tap(p, index, FP8_POINT_DOWN_INPUT, inner));
    FP8_TRY(linear(p, layer->linears[FP8_LINEAR_DOWN], &p->y, inner, NULL));
    FP8_TRY(m->ops->add(m->device, &p->x, &p->y));
done:
    return st;
}

/* Final norm, and the logits of every token or of each sequence's last. */
static fp8_status finish(const pass *p, fp8_logits want, fp8_tensor *logits) {
    fp8_model *m = p->m;
    const int64_t layers = m->config.num_layers, vocab = m->config.vocab_size;
    const int64_t rows = want == FP8_LOGITS_ALL ? p->tokens : p->batch->num_seqs;
    fp8_status st = FP8_OK;
    fp8_tensor x = p->y;
    size_t bytes = 0;

    FP8_TRY(norm(p, &p->y, &p->x, &m->final_norm, &m->final_norm_bias));
    FP8_TRY(tap(p, layers, FP8_POINT_HIDDEN, &p->y));
    FP8_TRY(tap(p, -1, FP8_POINT_LM_HEAD_INPUT, &p->y));
    if (want == FP8_LOGITS_NONE) return FP8_OK;
    if (want == FP8_LOGITS_LAST) { /* the residual stream has done its duty: its memory is free */
        x = p->x;
        x.shape[0] = rows;
        FP8_TRY(m->ops->gather(m->device, &x, &p->y, m->inputs.last));
    }
    FP8_TRY(fp8_mul_size(&bytes, (size_t)rows * sizeof(float), (size_t)vocab));
    FP8_TRY(fp8_buffer_reserve(m->device, &m->logits, bytes));
    *logits = fp8_tensor_view(m->logits.data, FP8_DTYPE_F32, fp8_device_place(m->device), rows,
                              vocab);
    FP8_TRY(fp8_model_lm_head(m, logits, &x));
done:
    return st;
}

/* ---- the forward ----------------------------------------------------------------------------- */

static fp8_status check_cache(const fp8_model *m, const fp8_batch *b, const fp8_kv_cache *c) {
    if (c->model != m) return FP8_FAIL(FP8_EINVAL, "the KV cache belongs to another model");
    if (b->num_seqs != 1)
        return FP8_FAIL(FP8_EINVAL, "%lld sequences with a KV cache, expected 1",
                        (long long)b->num_seqs);
    if (b->num_tokens > c->capacity - c->length)
        return FP8_FAIL(FP8_EINVAL, "KV cache: %lld tokens do not fit, %lld of %lld are taken",
                        (long long)b->num_tokens, (long long)c->length, (long long)c->capacity);
    return FP8_OK;
}

/* Equal lengths are worth a plan of exactly those; but a cached sequence grows from call to
 * call, and a lone one of odd length will hardly come again: those take a plan of rounded
 * lengths. */
static void measure(pass *p) {
    const fp8_batch *b = p->batch;
    int equal = 1;

    for (int64_t s = 0; s < b->num_seqs; s++) {
        const int64_t len = (int64_t)b->starts[s + 1] - b->starts[s];
        equal &= s == 0 || len == p->max_len;
        if (len > p->max_len) p->max_len = len;
    }
    p->uniform = equal && !p->cache && (b->num_seqs > 1 || p->max_len % 64 == 0);
}

fp8_status fp8_model_forward(fp8_model *m, const fp8_batch *batch, fp8_kv_cache *cache,
                             const fp8_tap *tapped, fp8_logits want, fp8_tensor *logits) {
    const int64_t past = cache ? cache->length : 0;
    pass p = {.m = m, .batch = batch, .cache = cache, .tap = tapped, .past = past};
    fp8_status st = FP8_OK;

    if (want != FP8_LOGITS_NONE && !logits)
        return FP8_FAIL(FP8_EINVAL, "logits are wanted, but there is no tensor for them");
    if (cache && batch) FP8_TRY(check_cache(m, batch, cache));
    FP8_TRY(fp8_inputs_send(m, batch, past));
    p.tokens = batch->num_tokens;
    p.x = view(&p, m->scratch.x, m->config.hidden_size);
    p.y = view(&p, m->scratch.y, m->config.hidden_size);
    measure(&p);

    FP8_TRY(m->ops->embed(m->device, &p.x, &m->embed, m->inputs.ids, m->embed_multiplier,
                          m->positions.data ? &m->positions : NULL, m->inputs.positions));
    for (int64_t i = 0; i < m->config.num_layers; i++) {
        FP8_TRY(tap(&p, i, FP8_POINT_HIDDEN, &p.x));
        FP8_TRY(attention_block(&p, i));
        FP8_TRY(mlp_block(&p, i));
    }
    FP8_TRY(finish(&p, want, logits));
    if (cache) cache->length = past + batch->num_tokens;
done:
    return st;
}
