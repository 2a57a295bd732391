/* Attention's part of a layer: q, k and v from the norm of the stream, their heads on the way to
 * attention (norm, RoPE, codes; a cache or pages), attention, and what it leaves for the o
 * Linear. */
#include "core/range.h"
#include "model/layer_impl.h"

typedef fp8_pass pass;

/* ---- q, k and v ------------------------------------------------------------------------------ */

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

fp8_tensor fp8_pass_joined_qkv(const pass *p, int64_t index) {
    const fp8_scratch *s = &p->m->scratch;
    return fp8_pass_view(p, s->joined_qkv ? s->joined_qkv : s->q,
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
                      fp8_linear_makes_codes(layer->joined_qkv));
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
    return joins_sequences(p, index) ? l : fp8_pass_joined(p, l);
}

/* q, k and v from their Linears: values in the scratch, or codes where attention reads them. */
static fp8_status project(const pass *p, int64_t index, fp8_tensor qkv[3],
                          const fp8_layer_input *in) {
    const fp8_model *m = p->m;
    fp8_linear *const *linears = m->layers[index].linears;
    const fp8_linear *joined = joined_qkv_of(p, index);
    const void *rows;
    fp8_status st = FP8_OK;

    FP8_TRY(fp8_pass_recast(p, index, FP8_LINEAR_Q, FP8_LINEAR_V));
    if (joined) {
        fp8_tensor y = fp8_pass_joined_qkv(p, index);
        fp8_linear_call call = {.accumulate = m->accumulate};
        if (joins_sequences(p, index)) call = fp8_layer_joined_call(m, index, &y.dtype);
        return fp8_pass_linear(p, joined, &y, &in->x, in->x_descale, call);
    }
    for (int i = 0; i < 3; i++) {
        const fp8_linear_call call = fp8_pass_call(p, index, (fp8_linear_kind)(FP8_LINEAR_Q + i),
                                                   &qkv[i].dtype);
        if (qkv[i].dtype == FP8_DTYPE_E4M3)
            qkv[i].data = i == 0 ? m->scratch.q_codes
                                 : kv_place(p, index, i == 2, i == 1 ? m->scratch.k_codes
                                                                     : m->scratch.v_codes, &rows);
        FP8_TRY(fp8_pass_linear(p, linears[FP8_LINEAR_Q + i], &qkv[i], &in->x, in->x_descale,
                                call));
    }
done:
    return st;
}

/* q, k and v of norm1 of p->x, which has taken what was pending. */
static fp8_status norm_and_project(pass *p, int64_t index, fp8_tensor qkv[3]) {
    const fp8_layer *layer = &p->m->layers[index];
    fp8_status st = FP8_OK;
    fp8_layer_input in;

    FP8_TRY(fp8_pass_norm_into(
        p, &in, layer->share_qkv ? fp8_first_linear(&layer->linears[FP8_LINEAR_Q]) : NULL,
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

    qkv[0] = fp8_pass_view(p, m->scratch.q, q_width);
    qkv[1] = fp8_pass_view(p, m->scratch.k, kv_width);
    qkv[2] = fp8_pass_view(p, m->scratch.v, kv_width);
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
    if (op.q.heads) op.q.amax = fp8_pass_slot(p, index, FP8_POINT_Q, &op.first);
    if (op.k.heads) op.k.amax = fp8_pass_slot(p, index, FP8_POINT_K, &op.first);
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
    const fp8_linear *joined = fp8_pass_joined(p, layer->joined_qkv);
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
           fp8_linear_makes_codes(p->m->layers[layer].linears[FP8_LINEAR_O]);
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

/* A step into and over its pages. Two launches: behind a product, attention that begins while the
 * append runs takes less time than one that appends itself, from 1 sequence to 256 (docs/NOTES.md,
 * Decode attention that begins early). */
static fp8_status append_and_attend(const pass *p, int64_t index, const fp8_tensor qkv[3],
                                    const fp8_attention_io *io) {
    const fp8_model *m = p->m;
    const int codes = p->paged->q_codes;
    const fp8_kv_append op = append_of(p, index, qkv);
    const fp8_decode_io d = {
        .pages = p->paged->pages[index],
        .batch = p->paged->batch,
        .o = io->o,
        .o_scale = io->o_scale,
        .q = codes ? (void *)m->scratch.q_codes : m->scratch.q,
        .q_descale = codes ? m->layers[index].kv_scales + FP8_SCALE_STEP : NULL};
    fp8_status st = FP8_OK;

    FP8_TRY(FP8_IN_RANGE("heads", fp8_kv_append_run(m->device, &d.pages, &d.batch, &op,
                                                    FP8_LAUNCH_OVERLAP)));
    FP8_TRY(FP8_IN_RANGE("attention", fp8_decode_run(p->paged->plans[index], &d, m->shared.data,
                                                     m->shared.bytes)));
done:
    return st;
}

fp8_status fp8_layer_attention(pass *p, int64_t index, fp8_tensor *o, const float **descale) {
    const fp8_model *m = p->m;
    fp8_attention_io io = {.o = m->scratch.attn};
    fp8_status st = FP8_OK;
    fp8_tensor qkv[3];
    fp8_sink sink;

    *o = fp8_pass_view(p, io.o, m->config.num_heads * m->config.head_dim);
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
