/* The wiring of a decoder transformer, once for all families, precisions and devices:
 *
 *   x = embed(ids)
 *   for each layer:  x += o(attention(rope(q(n)), rope(k(n)), v(n)))   n = norm1(x)
 *                    x += down(act(gate(n)) * up(n))                   n = norm2(x)
 *                    (Gemma 2 and 3 norm what is added, too)
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
    int pending;     /* y holds a block's result that x does not have yet */
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

/* The input of Linears on its way: values in the compute type, codes, or both. */
typedef struct input {
    fp8_tensor x;           /* what the Linears take */
    const float *x_descale; /* of codes */
    fp8_sink sink;
} input;

/* The sink for the input of `l` (NULL: of no Linear), `width` wide. Values go to `dense`: always
 * where there are no codes, else where a tap may look at them. */
static fp8_status open_input(const pass *p, input *in, const fp8_linear *l, void *dense,
                             int64_t width) {
    fp8_scratch *s = &p->m->scratch;
    fp8_status st = FP8_OK;

    *in = (input){.x = view(p, dense, width)};
    if (l) {
        FP8_TRY(fp8_linear_sink(l, &in->sink, &in->x_descale, s->codes, s->descales));
        if (in->sink.scaling == FP8_SINK_GROUP)
            in->sink.descale_group_stride = (p->tokens + 3) / 4 * 4;
        in->x.data = s->codes;
        in->x.dtype = FP8_DTYPE_E4M3;
    }
    if (!l || p->tap) in->sink.dense = dense;
done:
    return st;
}

/* p->x += p->y where a block has left its result there, and the norm of p->x: as codes for `l`, or
 * as values in p->y. Without codes the steps round as transformers' do. */
static fp8_status norm(pass *p, input *in, const fp8_linear *l, const fp8_tensor *weight,
                       const fp8_tensor *bias) {
    const int64_t width = p->m->config.hidden_size;
    fp8_norm n = {.kind = p->m->family->norm,
                  .eps = (float)p->m->config.norm_eps,
                  .rounded = l == NULL,
                  .dtype = p->m->type,
                  .rows = p->tokens,
                  .cols = width,
                  .x = p->x.data,
                  .weight = weight->data,
                  .bias = bias->data};
    fp8_status st = FP8_OK;

    if (p->pending) {
        n.residual = p->y.data;
        n.h = p->x.data;
    }
    p->pending = 0;
    FP8_TRY(open_input(p, in, l, p->y.data, width));
    FP8_TRY(fp8_produce_norm(p->m->device, &in->sink, &n, FP8_LAUNCH_OVERLAP));
done:
    return st;
}

/* The norm of what a block has brought, in place, before it is added. */
static fp8_status norm_after(const pass *p, const fp8_tensor *weight) {
    const fp8_sink sink = {.dense = p->y.data};
    const fp8_norm n = {.kind = p->m->family->norm,
                        .eps = (float)p->m->config.norm_eps,
                        .rounded = 1,
                        .dtype = p->m->type,
                        .rows = p->tokens,
                        .cols = p->m->config.hidden_size,
                        .x = p->y.data,
                        .weight = weight->data};
    if (!weight->data) return FP8_OK;
    return fp8_produce_norm(p->m->device, &sink, &n, FP8_LAUNCH_OVERLAP);
}

/* ys[i] = linears[i](x); NULL ones are left out. */
static fp8_status linear_group(const pass *p, fp8_linear *const *linears, const fp8_tensor *ys,
                               int count, const input *in) {
    fp8_status st = FP8_OK;
    for (int i = 0; i < count; i++)
        if (linears[i]) FP8_TRY(linear(p, linears[i], &ys[i], &in->x, in->x_descale));
done:
    return st;
}

static const fp8_linear *first_of(fp8_linear *const *linears) {
    while (!*linears) linears++;
    return *linears;
}

/* ---- attention ------------------------------------------------------------------------------- */

/* Where attention finds the keys or values of this batch, as codes or as they are: at the end of
 * the cache or in the scratch. *rows = the first row attention sees. */
static void place_kv(const pass *p, fp8_heads *h, const fp8_tensor *x, int64_t layer, int is_value,
                     const float *scale, uint8_t *codes, const void **rows) {
    const fp8_kv_cache *c = p->cache;
    unsigned char *to = scale ? codes : x->data;

    *rows = to;
    if (c) {
        unsigned char *data = c->data + (size_t)(2 * layer + is_value) * c->plane_bytes;
        *rows = data;
        to = data + (size_t)p->past * c->row_bytes;
    }
    h->scale = scale;
    if (scale) h->codes = to;
    else h->dense = to;
}

/* Values have no use for a kernel where they stay as they are. */
static int has_work(const fp8_heads *h, int turns) {
    return turns || h->norm_weight || h->codes || h->dense != h->x;
}

/* The heads' own norm, RoPE and quantizing of q, k and v [tokens, heads * dim], where the model has
 * them, to where attention reads them; q and k then point to their values, if a tap looks. */
static fp8_status place_heads(const pass *p, int64_t index, fp8_tensor qkv[3],
                              fp8_attention_io *io) {
    const fp8_model *m = p->m;
    const fp8_layer *layer = &m->layers[index];
    const float *scales = layer->kv_scales;
    const int turns = m->config.rope.type != FP8_ROPE_NONE;
    const int local = m->config.layer_window[index] && m->config.rope_local.type != FP8_ROPE_NONE;
    const fp8_rope_table *table = local ? &m->rope_local : &m->rope;
    const int codes = m->quant.attention != FP8_ATTENTION_NONE;
    fp8_qkv op = {.q = {.x = qkv[0].data, .norm_weight = layer->q_norm.data},
                  .k = {.x = qkv[1].data, .norm_weight = layer->k_norm.data},
                  .v = {.x = qkv[2].data},
                  .dtype = m->type,
                  .code = FP8_DTYPE_E4M3,
                  .tokens = p->tokens,
                  .dim = m->config.head_dim,
                  .rotary_dim = m->config.rotary_dim,
                  .cos = table->cos,
                  .sin = table->sin,
                  .positions = m->inputs.positions,
                  .norm = m->family->norm == FP8_NORM_RMS_PLUS ? FP8_NORM_RMS_PLUS : FP8_NORM_RMS,
                  .eps = (float)m->config.norm_eps,
                  .rounded = !scales && !codes};

    io->q = codes ? (void *)m->scratch.q_codes : qkv[0].data;
    if (codes) {
        op.q.codes = m->scratch.q_codes;
        op.q.scale = scales;
    }
    if (!codes || p->tap) op.q.dense = qkv[0].data;
    place_kv(p, &op.k, &qkv[1], index, 0, scales ? scales + 2 : NULL, m->scratch.k_codes, &io->k);
    place_kv(p, &op.v, &qkv[2], index, 1, scales ? scales + 4 : NULL, m->scratch.v_codes, &io->v);
    if (p->tap && op.k.codes) op.k.dense = qkv[1].data;
    if (op.k.dense) qkv[1].data = op.k.dense;
    op.q.heads = has_work(&op.q, turns) ? m->config.num_heads : 0;
    op.k.heads = has_work(&op.k, turns) ? m->config.num_kv_heads : 0;
    op.v.heads = has_work(&op.v, 0) ? m->config.num_kv_heads : 0;
    return fp8_produce_qkv(m->device, &op, FP8_LAUNCH_OVERLAP);
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
    o.scale = (float)c->attention_scale;
    o.softcap = (float)c->softcap;
    o.o_dtype = m->type;
    o.q_dtype = codes ? FP8_DTYPE_E4M3 : m->type;
    o.kv_dtype = m->quant.kv_fp8 ? FP8_DTYPE_E4M3 : m->type;
    o.quantize_p = 0; /* no backend here gains from a rounded P; it costs 0.15 % (NOTES) */
    return o;
}

static fp8_status attend(const pass *p, int64_t layer, fp8_attention_io *io) {
    fp8_model *m = p->m;
    const fp8_attention_options options = attention_options(p, layer);
    const float *scales = m->layers[layer].kv_scales;
    fp8_attention_plan *plan = NULL;
    fp8_status st = FP8_OK;

    io->q_starts = m->inputs.starts;
    io->kv_starts = p->cache ? m->inputs.kv_starts : m->inputs.starts;
    io->total_q = p->tokens;
    io->total_kv = p->past + p->tokens;
    if (scales) {
        io->k_descale = scales + 3;
        io->v_descale = scales + 5;
    }
    if (options.q_dtype == FP8_DTYPE_E4M3) io->q_descale = scales + 1;
    FP8_TRY(fp8_plan_get(m, &plan, &options));
    FP8_TRY(fp8_attention_run(plan, io, m->workspace.data, m->workspace.bytes));
done:
    return st;
}

static fp8_status attention_block(pass *p, int64_t index) {
    const fp8_model *m = p->m;
    const fp8_layer *layer = &m->layers[index];
    fp8_linear *const *linears = &layer->linears[FP8_LINEAR_Q];
    const int64_t q_width = m->config.num_heads * m->config.head_dim;
    const int64_t kv_width = m->config.num_kv_heads * m->config.head_dim;
    fp8_tensor qkv[3] = {view(p, m->scratch.q, q_width), view(p, m->scratch.k, kv_width),
                         view(p, m->scratch.v, kv_width)};
    const fp8_tensor o = view(p, m->scratch.attn, q_width);
    fp8_attention_io io = {.o = o.data};
    fp8_status st = FP8_OK;
    input in;

    FP8_TRY(norm(p, &in, layer->share_qkv ? first_of(linears) : NULL, &layer->norm1,
                 &layer->norm1_bias));
    FP8_TRY(tap(p, index, FP8_POINT_HIDDEN, &p->x));
    FP8_TRY(tap(p, index, FP8_POINT_QKV_INPUT, &p->y));
    FP8_TRY(linear_group(p, linears, qkv, 3, &in));
    FP8_TRY(place_heads(p, index, qkv, &io));
    FP8_TRY(tap(p, index, FP8_POINT_Q, &qkv[0]));
    FP8_TRY(tap(p, index, FP8_POINT_K, &qkv[1]));
    FP8_TRY(tap(p, index, FP8_POINT_V, &qkv[2]));
    FP8_TRY(attend(p, index, &io));
    FP8_TRY(tap(p, index, FP8_POINT_O_INPUT, &o));
    FP8_TRY(linear(p, layer->linears[FP8_LINEAR_O], &p->y, &o, NULL));
    FP8_TRY(norm_after(p, &layer->norm1_after));
    p->pending = 1;
done:
    return st;
}

/* ---- MLP, logits ----------------------------------------------------------------------------- */

static fp8_status mixture_block(pass *p, int64_t index) {
    const fp8_layer *layer = &p->m->layers[index];
    fp8_status st = FP8_OK;
    input in;

    FP8_TRY(norm(p, &in, NULL, &layer->norm2, &layer->norm2_bias));
    FP8_TRY(tap(p, index, FP8_POINT_UP_INPUT, &p->y));
    FP8_TRY(fp8_mixture_run(p->m, index, &p->y, p->tap));
    FP8_TRY(norm_after(p, &layer->norm2_after));
    p->pending = 1;
done:
    return st;
}

static fp8_status mlp_block(pass *p, int64_t index) {
    const fp8_model *m = p->m;
    const fp8_layer *layer = &m->layers[index];
    fp8_linear *const *linears = &layer->linears[FP8_LINEAR_GATE];
    const fp8_linear *down = layer->linears[FP8_LINEAR_DOWN];
    const int64_t width = m->config.intermediate_size;
    const int gated = linears[0] != NULL, quantized = fp8_linear_input_scaling(down) !=
                                                      FP8_INPUT_DENSE;
    const fp8_tensor ys[2] = {view(p, m->scratch.gate, width), view(p, m->scratch.up, width)};
    const fp8_tensor *inner = &ys[!gated]; /* what the activation is of, and where values go */
    const fp8_act act = {.act = m->config.act, .rounded = !quantized, .dtype = m->type,
                         .rows = p->tokens, .cols = width, .x = inner->data,
                         .up = gated ? ys[1].data : NULL};
    fp8_status st = FP8_OK;
    input in;

    FP8_TRY(norm(p, &in, layer->share_up ? first_of(linears) : NULL, &layer->norm2,
                 &layer->norm2_bias));
    FP8_TRY(tap(p, index, FP8_POINT_UP_INPUT, &p->y));
    FP8_TRY(linear_group(p, linears, ys, 2, &in));
    FP8_TRY(open_input(p, &in, quantized ? down : NULL, inner->data, width));
    FP8_TRY(fp8_produce_act(m->device, &in.sink, &act, FP8_LAUNCH_OVERLAP));
    FP8_TRY(tap(p, index, FP8_POINT_DOWN_INPUT, inner));
    FP8_TRY(linear(p, down, &p->y, &in.x, in.x_descale));
    FP8_TRY(norm_after(p, &layer->norm2_after));
    p->pending = 1;
done:
    return st;
}

/* Final norm, and the logits of every token or of each sequence's last. */
static fp8_status finish(pass *p, fp8_logits want, fp8_tensor *logits) {
    fp8_model *m = p->m;
    const int64_t layers = m->config.num_layers, vocab = m->config.vocab_size;
    const int64_t rows = want == FP8_LOGITS_ALL ? p->tokens : p->batch->num_seqs;
    fp8_status st = FP8_OK;
    fp8_tensor x = p->y;
    size_t bytes = 0;
    input in;

    FP8_TRY(norm(p, &in, NULL, &m->final_norm, &m->final_norm_bias));
    FP8_TRY(tap(p, layers, FP8_POINT_HIDDEN, &p->y));
    FP8_TRY(tap(p, -1, FP8_POINT_LM_HEAD_INPUT, &p->y));
    if (want == FP8_LOGITS_NONE) return FP8_OK;
    if (want == FP8_LOGITS_LAST) { /* the residual stream has done its duty: its memory is free */
        const fp8_embedding last = {.dtype = m->type, .tokens = rows, .cols = x.shape[1],
                                    .table = p->y.data, .ids = m->inputs.last, .multiplier = 1};
        x = p->x;
        x.shape[0] = rows;
        FP8_TRY(fp8_embed(m->device, x.data, &last, FP8_LAUNCH_OVERLAP));
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

/* Keys that were turned by other frequencies than this batch asks for are of no use to it. YaRN and
 * the like never change; dynamic RoPE keeps old keys as they are, as transformers does. */
static fp8_status fit_rope(const pass *p) {
    const fp8_rope_config *rope = &p->m->config.rope;
    int64_t length = p->past + p->max_len;

    if (p->cache && p->cache->intended > length) length = p->cache->intended;
    if (p->past > 0 && rope->type == FP8_ROPE_LONGROPE &&
        fp8_rope_key(rope, length) != p->m->rope.key)
        return FP8_FAIL(FP8_EINVAL, "longrope: %lld cached tokens were turned for sequences up to "
                        "%lld, found %lld: clear the cache and bring them again",
                        (long long)p->past, (long long)rope->original_max_position,
                        (long long)length);
    return fp8_rope_fit(p->m, length);
}

static fp8_status embed(const pass *p) {
    const fp8_model *m = p->m;
    const fp8_embedding e = {.dtype = m->type,
                             .tokens = p->tokens,
                             .cols = m->config.hidden_size,
                             .table = m->embed.data,
                             .ids = m->inputs.ids,
                             .multiplier = m->embed_multiplier,
                             .positions_table = m->positions.data,
                             .positions = m->inputs.positions};
    return fp8_embed(m->device, p->x.data, &e, FP8_LAUNCH_ORDERED);
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
    FP8_TRY(fit_rope(&p));

    FP8_TRY(embed(&p));
    for (int64_t i = 0; i < m->config.num_layers; i++) {
        FP8_TRY(attention_block(&p, i));
        FP8_TRY(m->layers[i].mixture.experts ? mixture_block(&p, i) : mlp_block(&p, i));
    }
    FP8_TRY(finish(&p, want, logits));
    if (cache) cache->length = past + batch->num_tokens;
done:
    return st;
}
