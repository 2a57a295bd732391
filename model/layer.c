/* The wiring of a decoder layer, once for all families, precisions and devices:
 *
 *   x += o(attention(rope(q(n)), rope(k(n)), v(n)))   n = norm1(x)
 *   x += down(act(gate(n)) * up(n))                   n = norm2(x)
 *   (Gemma 2 and 3 norm what is added, too)
 *
 * What is added waits in y until the next norm, which adds it in its pass; or, with
 * FP8_STEPS_AT_STORE, the Linear that makes it adds it, as it then does GELU and quantizing; or all
 * from attention's output to the next layer's q, k and v is one chain (layer_chain.c). */
#include "core/range.h"
#include "model/model_impl.h"

typedef fp8_pass pass;

/* Sequences up to which, and from which, a step of decoding appends within attention: measured, at
 * 64 steps are 1 % (Gemma-7B's sizes) and 1.6 % (Llama-8B's) longer within, at 1 0.3 % shorter, at
 * 256 5 % (Llama-8B's; docs/NOTES.md). */
enum { MOST_WITHIN = 8, LEAST_WITHIN = 256 };

static fp8_tensor view(const pass *p, void *data, int64_t width) {
    return fp8_tensor_view(data, p->m->type, fp8_device_place(p->m->device), p->tokens, width);
}

fp8_status fp8_pass_tap(pass *p, int64_t layer, fp8_point point, const fp8_tensor *x) {
    const unsigned bit = 1u << point;
    const int joined = (p->joined & bit) != 0;

    p->joined &= ~bit;
    if (joined || !p->tap || !p->tap->on) return FP8_OK;
    return p->tap->on(p->tap->ctx, (int32_t)layer, point, x);
}

/* Where the figures of what is made next go on the way; NULL: the tap sees it when it is there. */
static fp8_amax_slot *slot_of(pass *p, int64_t layer, fp8_point point, const uint8_t **first) {
    fp8_amax_slot *slot = NULL;

    if (p->tap && p->tap->slot)
        slot = p->tap->slot(p->tap->ctx, (int32_t)layer, point, first);
    if (slot) p->joined |= 1u << point;
    return slot;
}

/* ---- Linears --------------------------------------------------------------------------------- */

/* Weights and input are codes with one scale each: such a product stores codes, too. */
static int makes_codes(const fp8_linear *l) {
    return l && fp8_linear_input_scaling(l) == FP8_INPUT_STATIC;
}

/* The scale by which the product of q, k or v stores codes; NULL: something comes between. */
static const float *heads_scale(const fp8_model *m, const fp8_layer *layer, fp8_linear_kind kind) {
    const int turns = m->config.rope.type != FP8_ROPE_NONE && kind != FP8_LINEAR_V;
    const fp8_tensor *norm = kind == FP8_LINEAR_Q ? &layer->q_norm : &layer->k_norm;
    const int wanted = kind == FP8_LINEAR_Q ? m->quant.attention != FP8_ATTENTION_NONE
                                            : m->quant.kv_fp8;
    if (!wanted || turns || (kind != FP8_LINEAR_V && norm->data)) return NULL;
    return layer->kv_scales + 2 * (kind - FP8_LINEAR_Q) * FP8_SCALE_STEP;
}

/* GELU at the store of the up Linear, which leaves what the down Linear reads. */
static void add_activation(const fp8_model *m, const fp8_layer *layer, fp8_linear_call *c,
                           fp8_dtype *y) {
    const fp8_linear *up = layer->linears[FP8_LINEAR_UP], *down = layer->linears[FP8_LINEAR_DOWN];
    const int dense = fp8_linear_input_scaling(down) == FP8_INPUT_DENSE;
    const float *descale = NULL;
    fp8_sink sink = {0};

    if (layer->linears[FP8_LINEAR_GATE] || m->config.act != FP8_ACT_GELU_TANH) return;
    if (!dense && !(makes_codes(up) && makes_codes(down))) return;
    if (!dense && fp8_linear_sink(down, &sink, &descale, NULL, NULL) != FP8_OK) return;
    c->activation = FP8_GEMM_GELU_TANH;
    c->y_scale = sink.scale;
    if (!dense) *y = FP8_DTYPE_E4M3;
}

fp8_linear_call fp8_layer_call(const fp8_model *m, int64_t index, fp8_linear_kind kind,
                               const fp8_tensor *residual, fp8_dtype *y) {
    const fp8_layer *layer = &m->layers[index];
    fp8_linear_call c = {.accumulate = m->accumulate};

    *y = m->type;
    if (m->steps != FP8_STEPS_AT_STORE) return c;
    if (kind <= FP8_LINEAR_V && makes_codes(layer->linears[kind])) {
        c.y_scale = heads_scale(m, layer, kind);
        if (c.y_scale) *y = FP8_DTYPE_E4M3;
    }
    if (kind == FP8_LINEAR_UP) add_activation(m, layer, &c, y);
    if ((kind == FP8_LINEAR_O && !layer->norm1_after.data) ||
        (kind == FP8_LINEAR_DOWN && !layer->norm2_after.data))
        c.residual = residual;
    return c;
}

/* As fp8_layer_call, of a pass: a tap sees values, so that nothing may happen at a store. */
static fp8_linear_call call_of(const pass *p, int64_t index, fp8_linear_kind kind, fp8_dtype *y) {
    *y = p->m->type;
    if (p->tap || (p->paged && kind <= FP8_LINEAR_V)) /* append quantizes what goes into pages */
        return (fp8_linear_call){.accumulate = p->m->accumulate};
    return fp8_layer_call(p->m, index, kind, &p->x, y);
}

static fp8_status linear(const pass *p, const fp8_linear *l, const fp8_tensor *y,
                         const fp8_tensor *x, const float *x_descale, fp8_linear_call call) {
    call.x_descale = x_descale;
    return fp8_linear_apply(l, y, x, &call, p->m->workspace.data, p->m->workspace.bytes);
}

/* Codes of the layer's weights anew, where they are to be made in every pass. */
static fp8_status recast(const pass *p, int64_t index, fp8_linear_kind first,
                         fp8_linear_kind last) {
    const fp8_layer *layer = &p->m->layers[index];
    fp8_status st = FP8_OK;

    for (int k = first; k <= (int)last; k++)
        if (layer->values[k])
            FP8_TRY(fp8_linear_recast(layer->linears[k], layer->values[k], p->m->type));
done:
    return st;
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
 * as values in p->y. Without codes the steps round as transformers' do. It is the layer's `point`;
 * layer -1: of no layer. */
static fp8_status norm(pass *p, input *in, const fp8_linear *l, const fp8_tensor *weight,
                       const fp8_tensor *bias, int64_t layer, fp8_point point) {
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
        n.h = p->out.data;
        p->x = p->out;
    }
    p->pending = 0;
    FP8_TRY(open_input(p, in, l, p->y.data, width));
    if (layer >= 0) in->sink.amax = slot_of(p, layer, point, &in->sink.first);
    FP8_TRY(FP8_IN_RANGE("norm", fp8_produce_norm(p->m->device, &in->sink, &n,
                                                  FP8_LAUNCH_OVERLAP)));
done:
    return st;
}

fp8_status fp8_pass_norm(pass *p, const fp8_tensor *weight, const fp8_tensor *bias) {
    input in;
    return norm(p, &in, NULL, weight, bias, -1, FP8_POINT_LM_HEAD_INPUT);
}

fp8_status fp8_pass_settle(pass *p) {
    const fp8_sink nothing = {0};
    const fp8_norm n = {.kind = FP8_NORM_RMS, .dtype = p->m->type, .rows = p->tokens,
                        .cols = p->m->config.hidden_size, .x = p->x.data, .residual = p->y.data,
                        .h = p->out.data, .weight = p->m->layers[0].norm1.data};
    if (!p->pending) return FP8_OK;
    p->pending = 0;
    p->x = p->out;
    return fp8_produce_norm(p->m->device, &nothing, &n, FP8_LAUNCH_OVERLAP);
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

/* What a block brings: its last Linear of `in`, added to the residual stream at the store or left
 * in y. */
static fp8_status bring(pass *p, int64_t index, fp8_linear_kind kind, const fp8_tensor *x,
                        const float *x_descale) {
    const fp8_layer *layer = &p->m->layers[index];
    fp8_status st = FP8_OK;
    fp8_dtype type;
    const fp8_linear_call call = call_of(p, index, kind, &type);

    FP8_TRY(recast(p, index, kind, kind));
    FP8_TRY(linear(p, layer->linears[kind], call.residual ? &p->out : &p->y, x, x_descale, call));
    if (call.residual) {
        p->x = p->out;
        goto done;
    }
    FP8_TRY(norm_after(p, kind == FP8_LINEAR_O ? &layer->norm1_after : &layer->norm2_after));
    p->pending = 1;
    if (p->m->steps == FP8_STEPS_SINGLE) FP8_TRY(fp8_pass_settle(p));
done:
    return st;
}

static const fp8_linear *first_of(fp8_linear *const *linears) {
    while (!*linears) linears++;
    return *linears;
}

/* ---- attention ------------------------------------------------------------------------------- */

/* Where the keys or values of this batch go, `fresh` without a cache; *rows = the first row that
 * attention sees. */
static void *kv_place(const pass *p, int64_t layer, int is_value, void *fresh,
                      const void **rows) {
    const fp8_kv_cache *c = p->cache;
    unsigned char *plane;

    *rows = fresh;
    if (!c) return fresh;
    plane = c->data + (size_t)(2 * layer + is_value) * c->plane_bytes;
    *rows = plane;
    return plane + (size_t)p->past * c->row_bytes;
}

/* The same for a part of the heads' producer, as codes or as they are. */
static void place_kv(const pass *p, fp8_heads *h, const fp8_tensor *x, int64_t layer, int is_value,
                     const float *scale, uint8_t *codes, const void **rows) {
    void *to = kv_place(p, layer, is_value, scale ? (void *)codes : x->data, rows);

    h->scale = scale;
    if (scale) h->codes = to;
    else h->dense = to;
}

/* What a step over pages may use in place of several. */
static const fp8_linear *joined_of(const pass *p, const fp8_linear *l) {
    return p->paged && p->paged->joined ? l : NULL;
}

fp8_tensor fp8_pass_joined_qkv(const pass *p, int64_t index) {
    const fp8_scratch *s = &p->m->scratch;
    return view(p, s->joined_qkv ? s->joined_qkv : s->q,
                fp8_linear_out(p->m->layers[index].joined_qkv));
}

/* The call by which q, k and v, joined, leave side by side what attention over whole sequences
 * reads: values, or codes of one scale. 0: something comes between. */
static int joins_call(const fp8_model *m, int64_t index, fp8_linear_call *call, fp8_dtype *y) {
    const fp8_layer *layer = &m->layers[index];
    const int codes = layer->kv_scales != NULL;

    *call = (fp8_linear_call){.accumulate = m->accumulate};
    *y = codes ? FP8_DTYPE_E4M3 : m->type;
    if (codes) call->y_scale = layer->kv_scales;
    if (!layer->joined_qkv || !m->joins_sequences || m->steps != FP8_STEPS_AT_STORE) return 0;
    if (m->config.rope.type != FP8_ROPE_NONE || layer->q_norm.data || layer->k_norm.data) return 0;
    return !codes || (layer->one_kv_scale && m->quant.attention != FP8_ATTENTION_NONE &&
                      makes_codes(layer->joined_qkv));
}

fp8_linear_call fp8_layer_joined_call(const fp8_model *m, int64_t index, fp8_dtype *y) {
    fp8_linear_call call;
    if (joins_call(m, index, &call, y)) return call;
    *y = m->type;
    return (fp8_linear_call){.accumulate = m->accumulate};
}

static int joins_sequences(const pass *p, int64_t index) {
    fp8_linear_call call;
    fp8_dtype y;
    return !p->paged && !p->cache && !p->tap && joins_call(p->m, index, &call, &y);
}

static const fp8_linear *joined_qkv_of(const pass *p, int64_t index) {
    const fp8_linear *l = p->m->layers[index].joined_qkv;
    return joins_sequences(p, index) ? l : joined_of(p, l);
}

/* q, k and v from their Linears: values in the scratch, or codes where attention reads them. */
static fp8_status project(const pass *p, int64_t index, fp8_tensor qkv[3], const input *in) {
    const fp8_model *m = p->m;
    fp8_linear *const *linears = m->layers[index].linears;
    const fp8_linear *joined = joined_qkv_of(p, index);
    const void *rows;
    fp8_status st = FP8_OK;

    FP8_TRY(recast(p, index, FP8_LINEAR_Q, FP8_LINEAR_V));
    if (joined) {
        fp8_tensor y = fp8_pass_joined_qkv(p, index);
        fp8_linear_call call = {.accumulate = m->accumulate};
        if (joins_sequences(p, index)) call = fp8_layer_joined_call(m, index, &y.dtype);
        return linear(p, joined, &y, &in->x, in->x_descale, call);
    }
    for (int i = 0; i < 3; i++) {
        const fp8_linear_call call = call_of(p, index, (fp8_linear_kind)(FP8_LINEAR_Q + i),
                                             &qkv[i].dtype);
        if (qkv[i].dtype == FP8_DTYPE_E4M3)
            qkv[i].data = i == 0 ? m->scratch.q_codes
                                 : kv_place(p, index, i == 2, i == 1 ? m->scratch.k_codes
                                                                     : m->scratch.v_codes, &rows);
        FP8_TRY(linear(p, linears[FP8_LINEAR_Q + i], &qkv[i], &in->x, in->x_descale, call));
    }
done:
    return st;
}

/* q, k and v of norm1 of p->x, which has taken what was pending. */
static fp8_status norm_and_project(pass *p, int64_t index, fp8_tensor qkv[3]) {
    const fp8_layer *layer = &p->m->layers[index];
    fp8_status st = FP8_OK;
    input in;

    FP8_TRY(norm(p, &in, layer->share_qkv ? first_of(&layer->linears[FP8_LINEAR_Q]) : NULL,
                 &layer->norm1, &layer->norm1_bias, index, FP8_POINT_QKV_INPUT));
    FP8_TRY(fp8_pass_tap(p, index, FP8_POINT_HIDDEN, &p->x));
    FP8_TRY(fp8_pass_tap(p, index, FP8_POINT_QKV_INPUT, &p->y));
    FP8_TRY(FP8_IN_RANGE("q k v", project(p, index, qkv, &in)));
done:
    return st;
}

/* Where q, k and v are, each by itself or side by side. */
static void find_qkv(const pass *p, int64_t index, fp8_tensor qkv[3]) {
    const fp8_model *m = p->m;
    const fp8_linear *joined = joined_qkv_of(p, index);
    const int codes = joins_sequences(p, index) && m->layers[index].kv_scales;
    const int64_t q_width = m->config.num_heads * m->config.head_dim;
    const int64_t kv_width = m->config.num_kv_heads * m->config.head_dim;
    char *at = joined ? fp8_pass_joined_qkv(p, index).data : NULL;

    qkv[0] = view(p, m->scratch.q, q_width);
    qkv[1] = view(p, m->scratch.k, kv_width);
    qkv[2] = view(p, m->scratch.v, kv_width);
    for (int i = 0; joined && i < 3; i++) {
        qkv[i].data = at;
        if (codes) qkv[i].dtype = FP8_DTYPE_E4M3;
        at += (size_t)qkv[i].shape[1] * fp8_dtype_size(qkv[i].dtype);
    }
}

/* Codes are done; values have no use for a kernel where they stay as they are. */
static int has_work(const fp8_heads *h, const fp8_tensor *x, int turns) {
    if (x->dtype == FP8_DTYPE_E4M3) return 0;
    return turns || h->norm_weight || h->codes || h->dense != h->x;
}

static const fp8_rope_table *rope_of(const fp8_model *m, int64_t layer) {
    const int local = m->config.layer_window[layer] && m->config.rope_local.type != FP8_ROPE_NONE;
    return local ? &m->rope_local : &m->rope;
}

static fp8_norm_kind head_norm(const fp8_model *m) {
    return m->family->norm == FP8_NORM_RMS_PLUS ? FP8_NORM_RMS_PLUS : FP8_NORM_RMS;
}

/* The heads' own norm, RoPE and quantizing of q, k and v [tokens, heads * dim], where the model has
 * them, to where attention reads them; q and k then point to their values, if a tap looks. */
static fp8_status place_heads(pass *p, int64_t index, fp8_tensor qkv[3],
                              fp8_attention_io *io) {
    const fp8_model *m = p->m;
    const fp8_layer *layer = &m->layers[index];
    const float *scales = layer->kv_scales;
    const int turns = m->config.rope.type != FP8_ROPE_NONE;
    const fp8_rope_table *table = rope_of(m, index);
    const float *const k_scale = scales ? scales + 2 * FP8_SCALE_STEP : NULL;
    const float *const v_scale = scales ? scales + 4 * FP8_SCALE_STEP : NULL;
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
                  .positions = p->positions,
                  .norm = head_norm(m),
                  .eps = (float)m->config.norm_eps,
                  .rounded = !scales && !codes};

    io->q = codes ? (void *)m->scratch.q_codes : qkv[0].data;
    if (codes) {
        op.q.codes = m->scratch.q_codes;
        op.q.scale = scales;
    }
    if (!codes || p->tap) op.q.dense = qkv[0].data;
    place_kv(p, &op.k, &qkv[1], index, 0, k_scale, m->scratch.k_codes, &io->k);
    place_kv(p, &op.v, &qkv[2], index, 1, v_scale, m->scratch.v_codes, &io->v);
    if (p->tap && op.k.codes) op.k.dense = qkv[1].data;
    if (op.k.dense) qkv[1].data = op.k.dense;
    op.q.heads = has_work(&op.q, &qkv[0], turns) ? m->config.num_heads : 0;
    op.k.heads = has_work(&op.k, &qkv[1], turns) ? m->config.num_kv_heads : 0;
    op.v.heads = has_work(&op.v, &qkv[2], 0) ? m->config.num_kv_heads : 0;
    if (op.q.heads) op.q.amax = slot_of(p, index, FP8_POINT_Q, &op.first);
    if (op.k.heads) op.k.amax = slot_of(p, index, FP8_POINT_K, &op.first);
    return fp8_produce_qkv(m->device, &op, FP8_LAUNCH_OVERLAP);
}

/* Q and K of `heads` heads, V, as their Linears left them. */
static fp8_append_heads append_part(const fp8_model *m, const fp8_linear *joined,
                                    const fp8_tensor *x, const fp8_tensor *norm) {
    return (fp8_append_heads){.x = x->data,
                              .norm_weight = norm ? norm->data : NULL,
                              .token_stride = joined ? fp8_linear_out(joined) : 0,
                              .head_stride = joined ? m->config.head_dim : 0};
}

/* The same into the pages of a step; q goes to q_codes, or stays where it is. */
static fp8_kv_append append_of(const pass *p, int64_t index, const fp8_tensor qkv[3]) {
    const fp8_model *m = p->m;
    const fp8_layer *layer = &m->layers[index];
    const fp8_rope_table *table = rope_of(m, index);
    const fp8_linear *joined = joined_of(p, layer->joined_qkv);
    const int codes = p->paged->q_codes;
    return (fp8_kv_append){
        .q = append_part(m, joined, &qkv[0], &layer->q_norm),
        .k = append_part(m, joined, &qkv[1], &layer->k_norm),
        .v = append_part(m, joined, &qkv[2], NULL),
        .num_heads = (int32_t)m->config.num_heads,
        .dtype = m->type,
        .norm = head_norm(m),
        .eps = (float)m->config.norm_eps,
        .rounded = !codes && p->paged->pages[index].dtype != FP8_DTYPE_E4M3,
        .rotary_dim = m->config.rope.type == FP8_ROPE_NONE ? 0 : (int32_t)m->config.rotary_dim,
        .rope = FP8_ROPE_HALVES,
        .cos = table->cos,
        .sin = table->sin,
        .num_positions = table->positions,
        .positions = p->positions,
        .q_out = codes ? (void *)m->scratch.q_codes : m->scratch.q,
        .q_dtype = codes ? FP8_DTYPE_E4M3 : m->type,
        .q_descale = codes ? layer->kv_scales + FP8_SCALE_STEP : NULL};
}

/* FP8 attention leaves the codes that the o Linear reads. */
static int o_codes(const pass *p, int64_t layer) {
    if (p->paged) return p->paged->o_codes;
    return p->m->steps == FP8_STEPS_AT_STORE && !p->tap &&
           p->m->quant.attention != FP8_ATTENTION_NONE &&
           makes_codes(p->m->layers[layer].linears[FP8_LINEAR_O]);
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
    o.num_seqs = p->num_seqs;
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
    o.quantize_p = m->quantize_p; /* a model's is 0: no gain, and it costs 0.15 % (NOTES) */
    o.precision = m->attention_precision;
    o.backend = m->backend;
    if (o_codes(p, layer)) o.o_dtype = FP8_DTYPE_E4M3;
    if (joins_sequences(p, layer)) {
        const int64_t q = c->num_heads * c->head_dim, all = q + 2 * c->num_kv_heads * c->head_dim;
        const int64_t seq = p->uniform ? p->max_len : 0;
        o.has_strides = 1;
        o.q = o.k = o.v = (fp8_strides){seq * all, all, c->head_dim};
        o.o = (fp8_strides){seq * q, q, c->head_dim};
    }
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
        io->k_descale = scales + 3 * FP8_SCALE_STEP;
        io->v_descale = scales + 5 * FP8_SCALE_STEP;
    }
    if (options.q_dtype == FP8_DTYPE_E4M3) io->q_descale = scales + FP8_SCALE_STEP;
    FP8_TRY(fp8_plan_get(m, &plan, &options));
    FP8_TRY(fp8_attention_run(plan, io, m->shared.data, m->shared.bytes));
done:
    return st;
}

/* A step into and over its pages; one launch where there can be one and it takes less time. */
static fp8_status append_and_attend(const pass *p, int64_t index, const fp8_tensor qkv[3],
                                    const fp8_attention_io *io) {
    const fp8_model *m = p->m;
    const int codes = p->paged->q_codes;
    const fp8_kv_append op = append_of(p, index, qkv);
    fp8_decode_plan *plan = p->paged->plans[index];
    const fp8_decode_io d = {
        .pages = p->paged->pages[index],
        .batch = p->paged->batch,
        .o = io->o,
        .o_scale = io->o_scale,
        .q = codes ? (void *)m->scratch.q_codes : m->scratch.q,
        .q_descale = codes ? m->layers[index].kv_scales + FP8_SCALE_STEP : NULL};
    const int within = d.batch.num_seqs <= MOST_WITHIN || d.batch.num_seqs >= LEAST_WITHIN;
    fp8_status st = FP8_OK;

    if (within && fp8_decode_append_is_one(plan, &d, &op))
        return FP8_IN_RANGE("heads and attention",
                            fp8_decode_append_run(plan, &d, &op, m->shared.data, m->shared.bytes));
    FP8_TRY(FP8_IN_RANGE("heads", fp8_kv_append_run(m->device, &d.pages, &d.batch, &op,
                                                    FP8_LAUNCH_OVERLAP)));
    FP8_TRY(FP8_IN_RANGE("attention", fp8_decode_run(plan, &d, m->shared.data, m->shared.bytes)));
done:
    return st;
}

/* *o = what attention leaves for the o Linear, *descale where it is codes. */
static fp8_status attention_block(pass *p, int64_t index, fp8_tensor *o, const float **descale) {
    const fp8_model *m = p->m;
    fp8_attention_io io = {.o = m->scratch.attn};
    fp8_status st = FP8_OK;
    fp8_tensor qkv[3];
    fp8_sink sink;

    *o = view(p, io.o, m->config.num_heads * m->config.head_dim);
    *descale = NULL;
    find_qkv(p, index, qkv);
    if (!p->projected) FP8_TRY(norm_and_project(p, index, qkv));
    p->projected = 0;
    if (joins_sequences(p, index)) {
        io.q = qkv[0].data;
        io.k = qkv[1].data;
        io.v = qkv[2].data;
    } else if (!p->paged)
        FP8_TRY(FP8_IN_RANGE("heads", place_heads(p, index, qkv, &io)));
    FP8_TRY(fp8_pass_tap(p, index, FP8_POINT_Q, &qkv[0]));
    FP8_TRY(fp8_pass_tap(p, index, FP8_POINT_K, &qkv[1]));
    FP8_TRY(fp8_pass_tap(p, index, FP8_POINT_V, &qkv[2]));
    if (o_codes(p, index)) {
        FP8_TRY(fp8_linear_sink(m->layers[index].linears[FP8_LINEAR_O], &sink, descale, NULL,
                                NULL));
        o->dtype = FP8_DTYPE_E4M3;
        io.o_scale = sink.scale;
    }
    if (p->paged) FP8_TRY(append_and_attend(p, index, qkv, &io));
    else FP8_TRY(FP8_IN_RANGE("attention", attend(p, index, &io)));
    FP8_TRY(fp8_pass_tap(p, index, FP8_POINT_O_INPUT, o));
done:
    return st;
}

/* ---- MLP ------------------------------------------------------------------------------------- */

static fp8_status mixture_block(pass *p, int64_t index) {
    const fp8_layer *layer = &p->m->layers[index];
    fp8_status st = FP8_OK;
    input in;

    FP8_TRY(norm(p, &in, NULL, &layer->norm2, &layer->norm2_bias, index, FP8_POINT_UP_INPUT));
    FP8_TRY(fp8_pass_tap(p, index, FP8_POINT_UP_INPUT, &p->y));
    FP8_TRY(fp8_mixture_run(p->m, index, &p->y, p->tap));
    FP8_TRY(norm_after(p, &layer->norm2_after));
    p->pending = 1;
done:
    return st;
}

/* What the down Linear reads, from gate and up, rows `stride` apart: by a producer, or left by the
 * up Linear. */
static fp8_status activate(pass *p, int64_t index, const fp8_tensor ys[2], int64_t stride,
                           int done_already, input *in) {
    const fp8_model *m = p->m;
    fp8_linear *const *linears = m->layers[index].linears;
    const fp8_linear *down = linears[FP8_LINEAR_DOWN];
    const int gated = linears[FP8_LINEAR_GATE] != NULL;
    const int quantized = fp8_linear_input_scaling(down) != FP8_INPUT_DENSE;
    const fp8_tensor *from = &ys[!gated]; /* what the activation is of, and where values go */
    const fp8_tensor inner = stride ? view(p, m->scratch.gate, m->config.intermediate_size) : *from;
    const int64_t width = m->config.intermediate_size;
    const fp8_act act = {.act = m->config.act, .rounded = !quantized, .dtype = m->type,
                         .rows = p->tokens, .cols = width, .x = from->data,
                         .up = gated ? ys[1].data : NULL, .x_stride = stride, .up_stride = stride};
    fp8_status st = FP8_OK;

    FP8_TRY(open_input(p, in, quantized ? down : NULL, inner.data, width));
    if (done_already) in->x = ys[1];
    else {
        in->sink.amax = slot_of(p, index, FP8_POINT_DOWN_INPUT, &in->sink.first);
        FP8_TRY(fp8_produce_act(m->device, &in->sink, &act, FP8_LAUNCH_OVERLAP));
    }
    FP8_TRY(fp8_pass_tap(p, index, FP8_POINT_DOWN_INPUT, &inner));
done:
    return st;
}

/* The call by which gate and up, joined, leave what the down Linear reads at *inner: the activation
 * and a scale that is known are at the store. 0: apart they take less time. */
static int gates(const pass *p, int64_t index, fp8_linear_call *call, input *inner) {
    const fp8_model *m = p->m;
    const fp8_layer *layer = &m->layers[index];
    const fp8_linear *joined = joined_of(p, layer->joined_up);
    const fp8_linear *down = layer->linears[FP8_LINEAR_DOWN];
    const fp8_input_scaling scaling = fp8_linear_input_scaling(down);
    const int silu = m->config.act == FP8_ACT_SILU;

    if (!joined || p->tap || (!silu && m->config.act != FP8_ACT_GELU_TANH)) return 0;
    if (scaling != FP8_INPUT_STATIC && scaling != FP8_INPUT_DENSE) return 0;
    *inner = (input){.x = view(p, m->scratch.gate, m->config.intermediate_size)};
    if (scaling == FP8_INPUT_STATIC) {
        if (fp8_linear_sink(down, &inner->sink, &inner->x_descale, NULL, NULL) != FP8_OK) return 0;
        inner->x.dtype = FP8_DTYPE_E4M3; /* not to scratch.codes, where the product's input is */
    }
    *call = (fp8_linear_call){.accumulate = m->accumulate,
                              .activation = silu ? FP8_GEMM_SWIGLU : FP8_GEMM_GEGLU_TANH,
                              .y_scale = inner->sink.scale};
    return fp8_linear_gates(joined, p->tokens, inner->x.dtype, call);
}

/* Gate and up of `in`: apart (*stride 0), or side by side in rows of *stride. */
static fp8_status gate_up(const pass *p, int64_t index, const input *in, fp8_linear_call call,
                          fp8_tensor ys[2], int64_t *stride) {
    const fp8_model *m = p->m;
    fp8_linear *const *linears = m->layers[index].linears;
    const fp8_linear *joined = joined_of(p, m->layers[index].joined_up);
    const fp8_linear_call plain = {.accumulate = m->accumulate};
    fp8_status st = FP8_OK;

    *stride = 0;
    if (joined) {
        void *const room = m->scratch.joined_up ? m->scratch.joined_up : m->scratch.gate;
        const fp8_tensor y = view(p, room, fp8_linear_out(joined));
        *stride = fp8_linear_out(joined);
        ys[0].data = y.data;
        ys[1].data = (char *)y.data + (size_t)ys[0].shape[1] * fp8_dtype_size(m->type);
        return linear(p, joined, &y, &in->x, in->x_descale, plain);
    }
    if (linears[FP8_LINEAR_GATE])
        FP8_TRY(linear(p, linears[FP8_LINEAR_GATE], &ys[0], &in->x, in->x_descale, plain));
    FP8_TRY(linear(p, linears[FP8_LINEAR_UP], &ys[1], &in->x, in->x_descale, call));
done:
    return st;
}

static fp8_status mlp_block(pass *p, int64_t index) {
    const fp8_model *m = p->m;
    const fp8_layer *layer = &m->layers[index];
    fp8_linear *const *linears = layer->linears;
    const int64_t width = m->config.intermediate_size;
    fp8_tensor ys[2] = {view(p, m->scratch.gate, width), view(p, m->scratch.up, width)};
    fp8_linear_call call = call_of(p, index, FP8_LINEAR_UP, &ys[1].dtype), gated;
    fp8_status st = FP8_OK;
    int64_t stride = 0;
    input in, inner;

    FP8_TRY(norm(p, &in, layer->share_up ? first_of(&linears[FP8_LINEAR_GATE]) : NULL,
                 &layer->norm2, &layer->norm2_bias, index, FP8_POINT_UP_INPUT));
    FP8_TRY(fp8_pass_tap(p, index, FP8_POINT_UP_INPUT, &p->y));
    FP8_TRY(recast(p, index, FP8_LINEAR_GATE, FP8_LINEAR_UP));
    if (gates(p, index, &gated, &inner)) {
        FP8_TRY(FP8_IN_RANGE("gate, up, activation", linear(p, layer->joined_up, &inner.x, &in.x,
                                                            in.x_descale, gated)));
    } else {
        FP8_TRY(FP8_IN_RANGE("gate and up", gate_up(p, index, &in, call, ys, &stride)));
        FP8_TRY(FP8_IN_RANGE("activation", activate(p, index, ys, stride,
                                                    call.activation != FP8_GEMM_IDENTITY, &inner)));
    }
    FP8_TRY(FP8_IN_RANGE("down", bring(p, index, FP8_LINEAR_DOWN, &inner.x, inner.x_descale)));
done:
    return st;
}

fp8_status fp8_layer_forward(pass *p, int64_t index) {
    const int mixture = p->m->layers[index].mixture.experts != NULL;
    const float *descale;
    fp8_status st;
    fp8_tensor o;

    FP8_TRY(FP8_IN_RANGE("attention block", attention_block(p, index, &o, &descale)));
    if (fp8_layer_is_chained(p, index))
        return FP8_IN_RANGE("chain", fp8_layer_run_chain(p, index, &o));
    FP8_TRY(FP8_IN_RANGE("o", bring(p, index, FP8_LINEAR_O, &o, descale)));
    FP8_TRY(FP8_IN_RANGE("MLP block", mixture ? mixture_block(p, index) : mlp_block(p, index)));
done:
    return st;
}
