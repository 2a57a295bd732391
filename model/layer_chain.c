/* All of a layer behind attention as one chain of Linears (quant/chain.h), for steps over pages of
 * few tokens:
 *
 *   o  -> x += ..  -> norm2 -> gate, up -> activation -> down  -> x += ..
 *      -> the next layer's norm1 -> its q, k, v, where its append reads them
 *
 * Its numbers are those of the steps in layer.c but for roundings: what is added is not rounded
 * before, and neither are gate and up. */
#include <assert.h>

#include "model/model_impl.h"

/* ---- making ---------------------------------------------------------------------------------- */

/* The activation that a product of up, or of gate and up joined, does; IDENTITY: none does it. */
static fp8_gemm_activation activation_of(const fp8_model *m, const fp8_layer *l) {
    const int gated = l->linears[FP8_LINEAR_GATE] != NULL;

    if (m->config.act == FP8_ACT_SILU) return gated ? FP8_GEMM_SWIGLU : FP8_GEMM_IDENTITY;
    if (m->config.act != FP8_ACT_GELU_TANH) return FP8_GEMM_IDENTITY;
    return gated ? FP8_GEMM_GEGLU_TANH : FP8_GEMM_GELU_TANH;
}

/* Codes that are made anew in every pass. */
static int is_cast(const fp8_layer *l) {
    for (int k = 0; k < FP8_NUM_LINEAR_KINDS; k++)
        if (l->values[k]) return 1;
    return 0;
}

/* l adds to the residual stream, and the norm of that is what the next step reads; NULL: none. */
static fp8_chain_step adding(const fp8_model *m, const fp8_linear *l, const fp8_tensor *norm,
                             const fp8_tensor *bias) {
    return (fp8_chain_step){.linear = l,
                            .adds = 1,
                            .norm_weight = norm ? norm->data : NULL,
                            .norm_bias = norm ? bias->data : NULL,
                            .norm = m->family->norm,
                            .eps = (float)m->config.norm_eps};
}

/* *out = o, MLP and `next`'s q, k and v (NULL: none); NULL: this is not what chains are made of. */
static fp8_status try_chain(fp8_chain **out, fp8_model *m, const fp8_layer *l,
                            const fp8_layer *next) {
    const fp8_linear *up = l->linears[FP8_LINEAR_GATE] ? l->joined_up : l->linears[FP8_LINEAR_UP];
    const fp8_chain_step steps[4] = {
        adding(m, l->linears[FP8_LINEAR_O], &l->norm2, &l->norm2_bias),
        {.linear = up, .activation = activation_of(m, l)},
        adding(m, l->linears[FP8_LINEAR_DOWN], next ? &next->norm1 : NULL,
               next ? &next->norm1_bias : NULL),
        {.linear = next ? next->joined_qkv : NULL}};
    const fp8_status st = fp8_chain_create(out, m->device, steps, next ? 4 : 3);

    return st == FP8_EUNSUPPORTED ? FP8_OK : st;
}

fp8_status fp8_layer_make_chain(fp8_model *m, int64_t index) {
    fp8_layer *l = &m->layers[index];
    const fp8_layer *next = index + 1 < m->config.num_layers ? l + 1 : NULL;
    const int64_t tokens = m->max_tokens < FP8_CHAIN_MAX_TOKENS ? m->max_tokens
                                                                : FP8_CHAIN_MAX_TOKENS;
    fp8_status st = FP8_OK;

    if (l->chain || l->mixture.experts || l->norm1_after.data || l->norm2_after.data) return FP8_OK;
    if (is_cast(l) || activation_of(m, l) == FP8_GEMM_IDENTITY) return FP8_OK;
    if (l->linears[FP8_LINEAR_GATE] && !l->joined_up) return FP8_OK;
    if (next && next->joined_qkv && !is_cast(next)) FP8_TRY(try_chain(&l->chain, m, l, next));
    l->projects = l->chain != NULL;
    if (!l->chain) FP8_TRY(try_chain(&l->chain, m, l, NULL));
    if (l->chain)
        FP8_TRY(fp8_model_reserve(m, fp8_chain_workspace_size(l->chain, tokens), 0));
done:
    return st;
}

/* ---- running --------------------------------------------------------------------------------- */

int fp8_layer_is_chained(const fp8_pass *p, int64_t index) {
    const fp8_chain *c = p->m->layers[index].chain;

    if (!c || !p->paged || !p->paged->joined || p->tap || p->tokens > FP8_CHAIN_MAX_TOKENS)
        return 0;
    if (p->paged->chains == FP8_CHAINS_IN_ONE) return fp8_chain_is_one_launch(c, p->tokens, NULL);
    return p->paged->chains == FP8_CHAINS_ALWAYS;
}

/* Attention's output as codes for the o Linear. */
static fp8_status open_codes(const fp8_pass *p, int64_t index, fp8_tensor *x, const fp8_tensor *o) {
    const float *descale;
    fp8_status st = FP8_OK;
    fp8_sink sink;

    *x = *o;
    if (o->dtype == FP8_DTYPE_E4M3) return FP8_OK;
    FP8_TRY(fp8_linear_sink(p->m->layers[index].linears[FP8_LINEAR_O], &sink, &descale,
                            p->m->scratch.codes, NULL));
    FP8_TRY(fp8_produce_cast(p->m->device, &sink, o->data, o->dtype, o->shape[0], o->shape[1], 0,
                             FP8_LAUNCH_OVERLAP));
    x->data = sink.codes;
    x->dtype = FP8_DTYPE_E4M3;
done:
    return st;
}

fp8_status fp8_layer_run_chain(fp8_pass *p, int64_t index, const fp8_tensor *o) {
    const fp8_model *m = p->m;
    const fp8_layer *l = &m->layers[index];
    const size_t bytes = (size_t)fp8_tensor_count(&p->x) * fp8_dtype_size(m->type);
    fp8_chain_call call = {.h = &p->out, .workspace = m->workspace.data,
                           .workspace_bytes = m->workspace.bytes};
    fp8_status st = FP8_OK;
    fp8_tensor x, y;

    assert(!p->pending); /* the norm before attention has added it */
    FP8_TRY(open_codes(p, index, &x, o));
    call.x = &x;
    if (l->projects) {
        y = fp8_pass_joined_qkv(p, index + 1);
        call.y = &y;
    }
    if (p->x.data != p->out.data)
        FP8_TRY(fp8_device_copy(m->device, p->out.data, p->x.data, bytes));
    FP8_TRY(fp8_chain_run(l->chain, &call));
    p->x = p->out;
    p->projected = l->projects;
done:
    return st;
}
