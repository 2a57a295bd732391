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
#include "model/layer_impl.h"

typedef fp8_pass pass;

fp8_tensor fp8_pass_view(const pass *p, void *data, int64_t width) {
    return fp8_tensor_view(data, p->m->type, fp8_device_place(p->m->device), p->tokens, width);
}

fp8_status fp8_pass_tap(pass *p, int64_t layer, fp8_point point, const fp8_tensor *x) {
    const unsigned bit = 1u << point;
    const int joined = (p->joined & bit) != 0;

    p->joined &= ~bit;
    if (joined || !p->tap || !p->tap->on) return FP8_OK;
    return p->tap->on(p->tap->ctx, (int32_t)layer, point, x);
}

fp8_amax_slot *fp8_pass_slot(pass *p, int64_t layer, fp8_point point, const uint8_t **first) {
    fp8_amax_slot *slot = NULL;

    if (p->tap && p->tap->slot)
        slot = p->tap->slot(p->tap->ctx, (int32_t)layer, point, first);
    if (slot) p->joined |= 1u << point;
    return slot;
}

/* ---- Linears --------------------------------------------------------------------------------- */

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
    if (!dense && !(fp8_linear_makes_codes(up) && fp8_linear_makes_codes(down))) return;
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
    if (kind <= FP8_LINEAR_V && fp8_linear_makes_codes(layer->linears[kind])) {
        c.y_scale = heads_scale(m, layer, kind);
        if (c.y_scale) *y = FP8_DTYPE_E4M3;
    }
    if (kind == FP8_LINEAR_UP) add_activation(m, layer, &c, y);
    if ((kind == FP8_LINEAR_O && !layer->norm1_after.data) ||
        (kind == FP8_LINEAR_DOWN && !layer->norm2_after.data))
        c.residual = residual;
    return c;
}

fp8_linear_call fp8_pass_call(const pass *p, int64_t index, fp8_linear_kind kind, fp8_dtype *y) {
    *y = p->m->type;
    if (p->tap || (p->paged && kind <= FP8_LINEAR_V)) /* append quantizes what goes into pages */
        return (fp8_linear_call){.accumulate = p->m->accumulate};
    return fp8_layer_call(p->m, index, kind, &p->x, y);
}

fp8_status fp8_pass_linear(const pass *p, const fp8_linear *l, const fp8_tensor *y,
                           const fp8_tensor *x, const float *x_descale, fp8_linear_call call) {
    call.x_descale = x_descale;
    return fp8_linear_apply(l, y, x, &call, p->m->workspace.data, p->m->workspace.bytes);
}

fp8_status fp8_pass_recast(const pass *p, int64_t index, fp8_linear_kind first,
                           fp8_linear_kind last) {
    const fp8_layer *layer = &p->m->layers[index];
    fp8_status st = FP8_OK;

    for (int k = first; k <= (int)last; k++)
        if (layer->values[k])
            FP8_TRY(fp8_linear_recast(layer->linears[k], layer->values[k], p->m->type));
done:
    return st;
}

/* The sink for the input of `l` (NULL: of no Linear), `width` wide. Values go to `dense`: always
 * where there are no codes, else where a tap may look at them. */
static fp8_status open_input(const pass *p, fp8_layer_input *in, const fp8_linear *l, void *dense,
                             int64_t width) {
    fp8_scratch *s = &p->m->scratch;
    fp8_status st = FP8_OK;

    *in = (fp8_layer_input){.x = fp8_pass_view(p, dense, width)};
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

fp8_status fp8_pass_norm_into(pass *p, fp8_layer_input *in, const fp8_linear *l,
                              const fp8_tensor *weight, const fp8_tensor *bias, int64_t layer,
                              fp8_point point) {
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
    if (p->ids) {
        n.x = p->m->embed.data;
        n.from = p->ids;
        n.multiplier = p->m->embed_multiplier;
        n.h = p->x.data;
    }
    if (p->from) {
        n.from = p->from;
        n.h = NULL;
    }
    p->pending = 0;
    FP8_TRY(open_input(p, in, l, p->y.data, width));
    if (layer >= 0) in->sink.amax = fp8_pass_slot(p, layer, point, &in->sink.first);
    FP8_TRY(FP8_IN_RANGE(p->ids ? "embedding" : "norm",
                         fp8_produce_norm(p->m->device, &in->sink, &n,
                                          p->ids ? FP8_LAUNCH_ORDERED : FP8_LAUNCH_OVERLAP)));
    p->ids = NULL;
done:
    return st;
}

fp8_status fp8_pass_norm(pass *p, const fp8_tensor *weight, const fp8_tensor *bias) {
    fp8_layer_input in;
    return fp8_pass_norm_into(p, &in, NULL, weight, bias, -1, FP8_POINT_LM_HEAD_INPUT);
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
    const fp8_linear_call call = fp8_pass_call(p, index, kind, &type);

    FP8_TRY(fp8_pass_recast(p, index, kind, kind));
    FP8_TRY(fp8_pass_linear(p, layer->linears[kind], call.residual ? &p->out : &p->y, x,
                            x_descale, call));
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

/* ---- MLP ------------------------------------------------------------------------------------- */

static fp8_status mixture_block(pass *p, int64_t index) {
    const fp8_layer *layer = &p->m->layers[index];
    fp8_status st = FP8_OK;
    fp8_layer_input in;

    FP8_TRY(fp8_pass_norm_into(p, &in, NULL, &layer->norm2, &layer->norm2_bias, index,
                               FP8_POINT_UP_INPUT));
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
                           int done_already, fp8_layer_input *in) {
    const fp8_model *m = p->m;
    fp8_linear *const *linears = m->layers[index].linears;
    const fp8_linear *down = linears[FP8_LINEAR_DOWN];
    const int gated = linears[FP8_LINEAR_GATE] != NULL;
    const int quantized = fp8_linear_input_scaling(down) != FP8_INPUT_DENSE;
    const fp8_tensor *from = &ys[!gated]; /* what the activation is of, and where values go */
    const int64_t width = m->config.intermediate_size;
    const fp8_tensor inner = stride ? fp8_pass_view(p, m->scratch.gate, width) : *from;
    const fp8_act act = {.act = m->config.act, .rounded = !quantized, .dtype = m->type,
                         .rows = p->tokens, .cols = width, .x = from->data,
                         .up = gated ? ys[1].data : NULL, .x_stride = stride, .up_stride = stride};
    fp8_status st = FP8_OK;

    FP8_TRY(open_input(p, in, quantized ? down : NULL, inner.data, width));
    if (done_already) in->x = ys[1];
    else {
        in->sink.amax = fp8_pass_slot(p, index, FP8_POINT_DOWN_INPUT, &in->sink.first);
        FP8_TRY(fp8_produce_act(m->device, &in->sink, &act, FP8_LAUNCH_OVERLAP));
    }
    FP8_TRY(fp8_pass_tap(p, index, FP8_POINT_DOWN_INPUT, &inner));
done:
    return st;
}

/* The call by which gate and up, joined, leave what the down Linear reads at *inner: the activation
 * and a scale that is known are at the store. 0: apart they take less time. */
static int gates(const pass *p, int64_t index, fp8_linear_call *call, fp8_layer_input *inner) {
    const fp8_model *m = p->m;
    const fp8_layer *layer = &m->layers[index];
    const fp8_linear *joined = fp8_pass_joined(p, layer->joined_up);
    const fp8_linear *down = layer->linears[FP8_LINEAR_DOWN];
    const fp8_input_scaling scaling = fp8_linear_input_scaling(down);
    const int silu = m->config.act == FP8_ACT_SILU;

    if (!joined || p->tap || (!silu && m->config.act != FP8_ACT_GELU_TANH)) return 0;
    if (scaling != FP8_INPUT_STATIC && scaling != FP8_INPUT_DENSE) return 0;
    *inner = (fp8_layer_input){.x = fp8_pass_view(p, m->scratch.gate, m->config.intermediate_size)};
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
static fp8_status gate_up(const pass *p, int64_t index, const fp8_layer_input *in,
                          fp8_linear_call call, fp8_tensor ys[2], int64_t *stride) {
    const fp8_model *m = p->m;
    fp8_linear *const *linears = m->layers[index].linears;
    const fp8_linear *joined = fp8_pass_joined(p, m->layers[index].joined_up);
    const fp8_linear_call plain = {.accumulate = m->accumulate};
    fp8_status st = FP8_OK;

    *stride = 0;
    if (joined) {
        void *const room = m->scratch.joined_up ? m->scratch.joined_up : m->scratch.gate;
        const fp8_tensor y = fp8_pass_view(p, room, fp8_linear_out(joined));
        *stride = fp8_linear_out(joined);
        ys[0].data = y.data;
        ys[1].data = (char *)y.data + (size_t)ys[0].shape[1] * fp8_dtype_size(m->type);
        return fp8_pass_linear(p, joined, &y, &in->x, in->x_descale, plain);
    }
    if (linears[FP8_LINEAR_GATE])
        FP8_TRY(fp8_pass_linear(p, linears[FP8_LINEAR_GATE], &ys[0], &in->x, in->x_descale, plain));
    FP8_TRY(fp8_pass_linear(p, linears[FP8_LINEAR_UP], &ys[1], &in->x, in->x_descale, call));
done:
    return st;
}

static fp8_status mlp_block(pass *p, int64_t index) {
    const fp8_model *m = p->m;
    const fp8_layer *layer = &m->layers[index];
    fp8_linear *const *linears = layer->linears;
    const int64_t width = m->config.intermediate_size;
    fp8_tensor ys[2] = {fp8_pass_view(p, m->scratch.gate, width),
                        fp8_pass_view(p, m->scratch.up, width)};
    fp8_linear_call call = fp8_pass_call(p, index, FP8_LINEAR_UP, &ys[1].dtype), gated;
    fp8_status st = FP8_OK;
    int64_t stride = 0;
    fp8_layer_input in, inner;

    FP8_TRY(fp8_pass_norm_into(p, &in,
                               layer->share_up ? fp8_first_linear(&linears[FP8_LINEAR_GATE]) : NULL,
                               &layer->norm2, &layer->norm2_bias, index, FP8_POINT_UP_INPUT));
    FP8_TRY(fp8_pass_tap(p, index, FP8_POINT_UP_INPUT, &p->y));
    FP8_TRY(fp8_pass_recast(p, index, FP8_LINEAR_GATE, FP8_LINEAR_UP));
    if (gates(p, index, &gated, &inner)) {
        FP8_TRY(FP8_IN_RANGE("gate, up, activation",
                             fp8_pass_linear(p, layer->joined_up, &inner.x, &in.x, in.x_descale,
                                             gated)));
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

    FP8_TRY(FP8_IN_RANGE("attention block", fp8_layer_attention(p, index, &o, &descale)));
    if (fp8_layer_is_chained(p, index))
        return FP8_IN_RANGE("chain", fp8_layer_run_chain(p, index, &o));
    FP8_TRY(FP8_IN_RANGE("o", bring(p, index, FP8_LINEAR_O, &o, descale)));
    FP8_TRY(FP8_IN_RANGE("MLP block", mixture ? mixture_block(p, index) : mlp_block(p, index)));
done:
    return st;
}
