/* A decoder block alone: a model of one layer without embedding and logits, whose Linears and norms
 * are the caller's. The wiring is that of layer.c. */
#include "model/block.h"

#include <math.h>
#include <stdlib.h>

#include "model/model_impl.h"

struct fp8_block {
    fp8_model *model;
    fp8_family family;
    fp8_layer layer;
    fp8_decode_plan *plan; /* of the last forward over pages, made for `planned` */
    fp8_decode_options planned;
};

/* ---- checks ---------------------------------------------------------------------------------- */

static fp8_status check_tensor(const fp8_block_spec *s, const fp8_device *d, const char *name,
                               const fp8_tensor *t, int64_t size, int needed) {
    char shape[128];

    if (!t->data && !needed) return FP8_OK;
    if (t->data && t->ndim == 1 && t->shape[0] == size && t->dtype == s->compute &&
        t->place == fp8_device_place(d))
        return FP8_OK;
    return FP8_FAIL(FP8_EINVAL, "block: %s is %s %s%s, expected %s [%lld] in the place of the "
                    "device", name, fp8_dtype_name(t->dtype),
                    fp8_shape_text(shape, sizeof shape, t->shape, t->ndim),
                    t->data ? "" : " without data", fp8_dtype_name(s->compute), (long long)size);
}

static fp8_status check_norms(const fp8_block_spec *s, const fp8_device *d) {
    const struct {
        const char *name;
        const fp8_tensor *t;
        int64_t size;
        int needed;
    } norms[] = {
        {"norm1", &s->norm1, s->hidden, 1},
        {"norm1_bias", &s->norm1_bias, s->hidden, 0},
        {"norm2", &s->norm2, s->hidden, 1},
        {"norm2_bias", &s->norm2_bias, s->hidden, 0},
        {"q_norm", &s->q_norm, s->head_dim, 0},
        {"k_norm", &s->k_norm, s->head_dim, 0},
        {"norm1_after", &s->norm1_after, s->hidden, 0},
        {"norm2_after", &s->norm2_after, s->hidden, 0},
    };
    fp8_status st = FP8_OK;

    for (size_t i = 0; i < sizeof norms / sizeof *norms; i++)
        FP8_TRY(check_tensor(s, d, norms[i].name, norms[i].t, norms[i].size, norms[i].needed));
done:
    return st;
}

static fp8_status check_linear(const fp8_block_spec *s, const char *name, const fp8_linear *l,
                               int64_t in, int64_t out) {
    fp8_input_scaling scaling;

    if (!l) return FP8_FAIL(FP8_EINVAL, "block: no Linear for %s", name);
    if (fp8_linear_in(l) != in || fp8_linear_out(l) != out || fp8_linear_compute(l) != s->compute)
        return FP8_FAIL(FP8_EINVAL, "block: %s is %lld -> %lld in %s, expected %lld -> %lld in %s",
                        name, (long long)fp8_linear_in(l), (long long)fp8_linear_out(l),
                        fp8_dtype_name(fp8_linear_compute(l)), (long long)in, (long long)out,
                        fp8_dtype_name(s->compute));
    scaling = fp8_linear_input_scaling(l);
    if (scaling == FP8_INPUT_CURRENT || scaling == FP8_INPUT_DELAYED)
        return FP8_FAIL(FP8_EINVAL, "block: the input of %s is scaled by all of it, or by the "
                        "caller; expected DENSE, STATIC, DYNAMIC or GROUPS", name);
    return FP8_OK;
}

static fp8_status check_linears(const fp8_block_spec *s) {
    const int64_t q = s->num_heads * s->head_dim, kv = s->num_kv_heads * s->head_dim;
    const int64_t inner = s->up ? fp8_linear_out(s->up) : 0;
    fp8_status st;

    FP8_TRY(check_linear(s, "q", s->q, s->hidden, q));
    FP8_TRY(check_linear(s, "k", s->k, s->hidden, kv));
    FP8_TRY(check_linear(s, "v", s->v, s->hidden, kv));
    FP8_TRY(check_linear(s, "o", s->o, q, s->hidden));
    FP8_TRY(check_linear(s, "up", s->up, s->hidden, inner));
    if (s->gate) FP8_TRY(check_linear(s, "gate", s->gate, s->hidden, inner));
    FP8_TRY(check_linear(s, "down", s->down, inner, s->hidden));
    if (s->joined_qkv)
        FP8_TRY(check_linear(s, "joined_qkv", s->joined_qkv, s->hidden, q + 2 * kv));
    if (s->joined_up)
        FP8_TRY(check_linear(s, "joined_up", s->joined_up, s->hidden, 2 * inner));
    if (s->joined_up && !s->gate)
        return FP8_FAIL(FP8_EINVAL, "block: gate and up joined, but no gate");
done:
    return st;
}

static int has_codes(const fp8_block_spec *s) { return s->q_descale > 0; }

static fp8_status check_spec(const fp8_block_spec *s, const fp8_device *d) {
    const float descales[3] = {s->q_descale, s->k_descale, s->v_descale};
    fp8_status st = FP8_OK;

    if (s->hidden < 1 || s->head_dim < 1 || s->num_kv_heads < 1 ||
        s->num_heads % s->num_kv_heads || s->num_heads < 1 || s->max_tokens < 1 ||
        s->max_tokens > INT32_MAX / 4 || s->max_position < 0)
        return FP8_FAIL(FP8_EINVAL, "block: hidden %lld, %lld heads, %lld of keys, of %lld, %lld "
                        "tokens", (long long)s->hidden, (long long)s->num_heads,
                        (long long)s->num_kv_heads, (long long)s->head_dim,
                        (long long)s->max_tokens);
    if (s->rotary_dim < 0 || s->rotary_dim % 2 || s->rotary_dim > s->head_dim ||
        (s->rotary_dim && !(s->rope_theta > 0)))
        return FP8_FAIL(FP8_EINVAL, "block: %lld of %lld elements turn, theta %g",
                        (long long)s->rotary_dim, (long long)s->head_dim, s->rope_theta);
    if (s->compute != FP8_DTYPE_BF16 &&
        (s->compute != FP8_DTYPE_F32 || fp8_device_place(d) != FP8_PLACE_CPU))
        return FP8_FAIL(FP8_EINVAL, "block: computes in %s on %s, expected BF16, or F32 on the CPU",
                        fp8_dtype_name(s->compute), fp8_device_name(d));
    for (int i = 0; i < 3; i++)
        if (!isfinite(descales[i]) || descales[i] < 0 || (descales[i] > 0) != has_codes(s))
            return FP8_FAIL(FP8_EINVAL, "block: descales %g, %g, %g of q, k, v, expected all "
                            "positive or all 0", (double)descales[0], (double)descales[1],
                            (double)descales[2]);
    FP8_TRY(check_norms(s, d));
    FP8_TRY(check_linears(s));
done:
    return st;
}

/* ---- making ---------------------------------------------------------------------------------- */

/* Any Linear with codes: the scratch then has room for them; for those in groups most. */
static fp8_scheme scheme_of(const fp8_block_spec *s) {
    const fp8_linear *const all[] = {s->q, s->k, s->v, s->o, s->gate, s->up, s->down};
    fp8_scheme scheme = FP8_SCHEME_NONE;

    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        const fp8_input_scaling scaling =
            all[i] ? fp8_linear_input_scaling(all[i]) : FP8_INPUT_DENSE;
        if (scaling == FP8_INPUT_GROUPS) return FP8_SCHEME_BLOCK;
        if (scaling != FP8_INPUT_DENSE) scheme = FP8_SCHEME_TENSOR;
    }
    return scheme;
}

static void take_config(fp8_model *m, const fp8_block_spec *s) {
    fp8_model_config *c = &m->config;

    c->num_layers = 1;
    c->hidden_size = s->hidden;
    c->intermediate_size = fp8_linear_out(s->up);
    c->num_heads = s->num_heads;
    c->num_kv_heads = s->num_kv_heads;
    c->head_dim = s->head_dim;
    c->norm_eps = (double)s->norm_eps;
    c->act = s->act;
    c->rope.type = s->rotary_dim ? FP8_ROPE_DEFAULT : FP8_ROPE_NONE;
    c->rope.theta = s->rope_theta;
    c->rotary_dim = s->rotary_dim;
    c->attention_scale = (double)s->attention_scale;
    c->softcap = (double)s->softcap;
    c->layer_window[0] = s->window;
    m->quant.scheme = scheme_of(s);
    m->quant.kv_fp8 = has_codes(s);
    m->quant.attention = has_codes(s) ? FP8_ATTENTION_DPA : FP8_ATTENTION_NONE;
    m->type = s->compute;
    m->max_tokens = s->max_tokens;
    m->steps = s->steps == FP8_BLOCK_SINGLE ? FP8_STEPS_SINGLE : FP8_STEPS_AT_STORE;
    m->accumulate = s->accumulate;
    m->backend = s->backend;
    m->quantize_p = s->quantize_p;
    m->attention_precision = s->precision;
    m->joins_sequences = 1;
}

static void take_layer(fp8_layer *l, const fp8_block_spec *s) {
    l->norm1 = s->norm1;
    l->norm1_bias = s->norm1_bias;
    l->norm2 = s->norm2;
    l->norm2_bias = s->norm2_bias;
    l->q_norm = s->q_norm;
    l->k_norm = s->k_norm;
    l->norm1_after = s->norm1_after;
    l->norm2_after = s->norm2_after;
    l->linears[FP8_LINEAR_Q] = s->q;
    l->linears[FP8_LINEAR_K] = s->k;
    l->linears[FP8_LINEAR_V] = s->v;
    l->linears[FP8_LINEAR_O] = s->o;
    l->linears[FP8_LINEAR_GATE] = s->gate;
    l->linears[FP8_LINEAR_UP] = s->up;
    l->linears[FP8_LINEAR_DOWN] = s->down;
    l->joined_qkv = s->joined_qkv;
    l->joined_up = s->joined_up;
    fp8_layer_share_inputs(l);
}

fp8_status fp8_block_create(fp8_block **out, fp8_device *d, const fp8_block_spec *spec) {
    fp8_block *b = NULL;
    fp8_model *m = NULL;
    fp8_status st = FP8_OK;

    *out = NULL;
    FP8_TRY(check_spec(spec, d));
    b = calloc(1, sizeof *b);
    m = b ? calloc(1, sizeof *m) : NULL;
    if (!m) {
        st = FP8_FAIL(FP8_ENOMEM, "block");
        goto done;
    }
    b->model = m;
    b->family.norm = spec->norm;
    b->family.linears[FP8_LINEAR_GATE] = spec->gate ? "gate" : NULL;
    m->device = d;
    m->family = &b->family;
    m->layers = &b->layer;
    take_config(m, spec);
    take_layer(&b->layer, spec);
    if (has_codes(spec)) {
        const float descales[3] = {spec->q_descale, spec->k_descale, spec->v_descale};
        FP8_TRY(fp8_model_place_kv_scales(m, descales, &b->layer.kv_scales));
        b->layer.one_kv_scale = descales[0] == descales[1] && descales[0] == descales[2];
    }
    FP8_TRY(fp8_model_create_scratch(m));
    if (spec->joined_qkv)
        FP8_TRY(fp8_model_make_room(m, spec->joined_qkv, &m->scratch.joined_qkv));
    if (spec->joined_up) FP8_TRY(fp8_model_make_room(m, spec->joined_up, &m->scratch.joined_up));
    FP8_TRY(fp8_layer_make_chain(m, 0));
    FP8_TRY(fp8_rope_extend(m, spec->max_position));
    *out = b;
    b = NULL;
done:
    fp8_block_destroy(b);
    return st;
}

void fp8_block_destroy(fp8_block *b) {
    if (!b) return;
    fp8_decode_plan_destroy(b->plan);
    fp8_chain_destroy(b->layer.chain);
    if (b->model) b->model->layers = NULL; /* its Linears are not the model's */
    fp8_model_destroy(b->model);
    free(b);
}

/* ---- running --------------------------------------------------------------------------------- */

static fp8_status check_rows(const fp8_model *m, const char *name, const fp8_tensor *x,
                             int64_t most) {
    char shape[128];

    if (x->ndim != 2 || x->shape[1] != m->config.hidden_size || x->dtype != m->type ||
        x->place != fp8_device_place(m->device) || x->shape[0] < 1 || x->shape[0] > most)
        return FP8_FAIL(FP8_EINVAL, "block: %s is %s %s, expected %s [1 to %lld, %lld] in the "
                        "place of the device", name, fp8_dtype_name(x->dtype),
                        fp8_shape_text(shape, sizeof shape, x->shape, x->ndim),
                        fp8_dtype_name(m->type), (long long)most,
                        (long long)m->config.hidden_size);
    return FP8_OK;
}

static fp8_status check_tokens(const fp8_model *m, const fp8_tensor *y, const fp8_tensor *x) {
    fp8_status st;

    FP8_TRY(check_rows(m, "x", x, m->max_tokens));
    FP8_TRY(check_rows(m, "y", y, x->shape[0]));
    if (y->shape[0] != x->shape[0])
        return FP8_FAIL(FP8_EINVAL, "block: y of %lld tokens for x of %lld",
                        (long long)y->shape[0], (long long)x->shape[0]);
done:
    return st;
}

static fp8_status check_batch(const fp8_model *m, const fp8_tensor *y, const fp8_tensor *x,
                              const fp8_block_batch *b) {
    fp8_status st;

    FP8_TRY(check_tokens(m, y, x));
    if (!b->starts || (m->config.rotary_dim && !b->positions))
        return FP8_FAIL(FP8_EINVAL, "block: no starts, or no positions to turn by");
    if (b->num_seqs < 1 || b->max_len < 1 || b->max_len > x->shape[0] ||
        (b->equal ? b->num_seqs * b->max_len != x->shape[0] : b->num_seqs > x->shape[0]))
        return FP8_FAIL(FP8_EINVAL, "block: %lld sequences of %s%lld tokens, found %lld in all",
                        (long long)b->num_seqs, b->equal ? "" : "up to ", (long long)b->max_len,
                        (long long)x->shape[0]);
done:
    return st;
}

fp8_status fp8_block_forward(fp8_block *b, const fp8_tensor *y, const fp8_tensor *x,
                             const fp8_block_batch *batch, const struct fp8_tap *tap) {
    fp8_model *m = b->model;
    fp8_pass p = {.m = m, .tap = tap, .positions = batch->positions, .x = *x, .out = *y, .y = *x};
    fp8_status st = FP8_OK;

    FP8_TRY(check_batch(m, y, x, batch));
    p.tokens = x->shape[0];
    p.num_seqs = batch->num_seqs;
    p.max_len = batch->max_len;
    p.uniform = batch->equal;
    p.y.data = m->scratch.y;
    m->inputs.starts = (int32_t *)(uintptr_t)batch->starts; /* only read */
    m->inputs.positions = (int32_t *)(uintptr_t)batch->positions;
    FP8_TRY(fp8_layer_forward(&p, 0));
    FP8_TRY(fp8_pass_settle(&p));
done:
    return st;
}

static fp8_status check_pages(const fp8_model *m, const fp8_tensor *x, const int32_t *positions,
                              const fp8_kv_pages *pages, const fp8_kv_batch *batch) {
    const fp8_dtype type = m->quant.kv_fp8 ? FP8_DTYPE_E4M3 : m->type;

    if (pages->dtype != type || pages->granularity != FP8_DESCALE_TENSOR)
        return FP8_FAIL(FP8_EINVAL, "block: pages of %s, expected %s with a descale a tensor",
                        fp8_dtype_name(pages->dtype), fp8_dtype_name(type));
    if (pages->num_kv_heads != m->config.num_kv_heads || pages->d_qk != m->config.head_dim ||
        pages->d_v != m->config.head_dim)
        return FP8_FAIL(FP8_EINVAL, "block: pages of %d heads of %d and %d, expected %lld of %lld",
                        (int)pages->num_kv_heads, (int)pages->d_qk, (int)pages->d_v,
                        (long long)m->config.num_kv_heads, (long long)m->config.head_dim);
    if (batch->total_q != x->shape[0] || (m->config.rotary_dim && !positions))
        return FP8_FAIL(FP8_EINVAL, "block: a batch of %lld tokens for x of %lld, or no positions "
                        "to turn by", (long long)batch->total_q, (long long)x->shape[0]);
    return FP8_OK;
}

static int same_sizes(const fp8_decode_options *a, const fp8_decode_options *b) {
    return a->num_seqs == b->num_seqs && a->max_q == b->max_q && a->max_kv == b->max_kv &&
           a->total_q == b->total_q && a->page_size == b->page_size;
}

static fp8_status plan_pages(fp8_block *b, const fp8_kv_pages *pages, const fp8_kv_batch *batch) {
    fp8_model *m = b->model;
    fp8_decode_options o = fp8_decode_options_of(m, pages, m->config.layer_window[0],
                                                 fp8_layer_takes_codes(m, 0));
    fp8_status st = FP8_OK;

    o.num_seqs = batch->num_seqs;
    o.max_q = batch->max_q;
    o.max_kv = batch->max_kv;
    o.total_q = batch->total_q;
    if (b->plan && same_sizes(&o, &b->planned)) return FP8_OK;
    fp8_decode_plan_destroy(b->plan);
    b->plan = NULL;
    b->planned = o;
    FP8_TRY(fp8_decode_plan_create(&b->plan, m->device, &o));
    FP8_TRY(fp8_model_reserve(m, 0, fp8_decode_workspace_size(b->plan)));
done:
    return st;
}

/* On the CPU a chain's steps cost what those apart do, and tests see them. */
static fp8_chains chains_of(const fp8_model *m) {
    if (m->steps == FP8_STEPS_SINGLE) return FP8_CHAINS_NEVER;
    return fp8_device_place(m->device) == FP8_PLACE_CPU ? FP8_CHAINS_ALWAYS : FP8_CHAINS_IN_ONE;
}

fp8_status fp8_block_forward_pages(fp8_block *b, const fp8_tensor *y, const fp8_tensor *x,
                                   const int32_t *positions, const fp8_kv_pages *pages,
                                   const fp8_kv_batch *batch) {
    fp8_model *m = b->model;
    const float *scales = b->layer.kv_scales;
    fp8_kv_pages own = *pages;
    const fp8_paged paged = {.batch = *batch, .pages = &own, .plans = &b->plan,
                             .q_codes = m->quant.attention != FP8_ATTENTION_NONE,
                             .o_codes = fp8_layer_takes_codes(m, 0), .joined = 1,
                             .chains = chains_of(m)};
    fp8_pass p = {.m = m, .paged = &paged, .positions = positions, .x = *x, .out = *y, .y = *x,
                  .tokens = x->shape[0], .num_seqs = batch->num_seqs, .max_len = batch->max_q};
    fp8_status st = FP8_OK;

    FP8_TRY(check_tokens(m, y, x));
    FP8_TRY(check_pages(m, x, positions, pages, batch));
    FP8_TRY(plan_pages(b, pages, batch));
    if (scales) {
        own.k_descale = scales + 3 * FP8_SCALE_STEP;
        own.v_descale = scales + 5 * FP8_SCALE_STEP;
    }
    p.y.data = m->scratch.y;
    FP8_TRY(fp8_layer_forward(&p, 0));
    FP8_TRY(fp8_pass_settle(&p));
done:
    return st;
}

fp8_status fp8_block_tune(fp8_block *b, int64_t tokens) {
    fp8_model *m = b->model;
    const fp8_tensor residual = {.data = m->scratch.x, .dtype = m->type};
    const fp8_linear *const joined[2] = {b->layer.joined_qkv, b->layer.joined_up};
    const fp8_linear_call plain = {.accumulate = m->accumulate};
    fp8_linear_call whole;
    fp8_status st = FP8_OK;
    fp8_dtype type;

    for (int k = 0; k < FP8_NUM_LINEAR_KINDS; k++) {
        const fp8_linear *l = b->layer.linears[k];
        fp8_dtype y;
        const fp8_linear_call call = fp8_layer_call(m, 0, (fp8_linear_kind)k, &residual, &y);
        if (l)
            FP8_TRY(fp8_linear_tune(l, &tokens, 1, tokens, y, &call, m->workspace.data,
                                    m->workspace.bytes));
    }
    whole = fp8_layer_joined_call(m, 0, &type);
    if (joined[0] && type != m->type)
        FP8_TRY(fp8_linear_tune(joined[0], &tokens, 1, tokens, type, &whole, m->workspace.data,
                                m->workspace.bytes));
    for (int i = 0; i < 2; i++)
        if (joined[i])
            FP8_TRY(fp8_linear_tune(joined[i], &tokens, 1, tokens, m->type, &plain,
                                    m->workspace.data, m->workspace.bytes));
done:
    return st;
}

fp8_attention_backend fp8_block_backend(const fp8_block *b) {
    const fp8_plan_slot *last = &b->model->plans[0];
    for (int i = 1; i < FP8_MAX_PLANS; i++)
        if (b->model->plans[i].used > last->used) last = &b->model->plans[i];
    return last->plan ? fp8_attention_plan_backend(last->plan) : FP8_BACKEND_AUTO;
}
