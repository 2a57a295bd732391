/* Attention plans. Making one may take long and may need a larger workspace, so they are kept, a
 * few of them, by what the batch looks like. Lengths that vary are rounded up to powers of two:
 * a growing cache then asks for a new plan only when its length doubles. */
#include "model/model_impl.h"

static int64_t power_of_two(int64_t n) {
    int64_t p = 16;
    while (p < n) p *= 2;
    return p;
}

/* The options that vary between the batches and layers of one model. */
static int same(const fp8_attention_options *a, const fp8_attention_options *b) {
    return a->num_seqs == b->num_seqs && a->max_q == b->max_q && a->max_kv == b->max_kv &&
           a->window_left == b->window_left && a->layout == b->layout;
}

fp8_status fp8_plan_get(fp8_model *m, fp8_attention_plan **out,
                        const fp8_attention_options *options) {
    fp8_attention_options wanted = *options;
    fp8_plan_slot *slot = &m->plans[0];
    fp8_attention_plan *plan = NULL;
    fp8_status st = FP8_OK;

    if (fp8_attention_layout_is_packed(wanted.layout)) {
        wanted.max_q = wanted.max_q > 1 ? power_of_two(wanted.max_q) : 1;
        wanted.max_kv = power_of_two(wanted.max_kv);
    }
    m->tick++;
    for (int i = 0; i < FP8_MAX_PLANS; i++) {
        fp8_plan_slot *s = &m->plans[i];
        if (s->plan && same(&s->options, &wanted)) {
            s->used = m->tick;
            *out = s->plan;
            return FP8_OK;
        }
        if (s->used < slot->used) slot = s;
    }
    FP8_TRY(fp8_attention_plan_create(&plan, m->device, &wanted));
    FP8_TRY(fp8_model_reserve(m, 0, fp8_attention_workspace_size(plan)));
    fp8_attention_plan_destroy(slot->plan);
    *slot = (fp8_plan_slot){plan, wanted, m->tick};
    *out = plan;
    plan = NULL;
done:
    fp8_attention_plan_destroy(plan);
    return st;
}

void fp8_plans_destroy(fp8_model *m) {
    for (int i = 0; i < FP8_MAX_PLANS; i++) {
        fp8_attention_plan_destroy(m->plans[i].plan);
        m->plans[i] = (fp8_plan_slot){0};
    }
}

/* ---- over pages ------------------------------------------------------------------------------ */

fp8_decode_options fp8_decode_options_of(const fp8_model *m, const fp8_kv_pages *pages,
                                         int64_t window, int o_codes) {
    const fp8_model_config *c = &m->config;
    const int codes = pages->dtype == FP8_DTYPE_E4M3 && m->quant.attention != FP8_ATTENTION_NONE;
    fp8_decode_options o = FP8_DECODE_OPTIONS;

    o.num_heads = (int32_t)c->num_heads;
    o.num_kv_heads = (int32_t)c->num_kv_heads;
    o.d_qk = o.d_v = (int32_t)c->head_dim;
    o.page_size = pages->page_size;
    o.q_dtype = codes ? FP8_DTYPE_E4M3 : m->type;
    o.kv_dtype = pages->dtype;
    o.o_dtype = o_codes ? FP8_DTYPE_E4M3 : m->type;
    o.window_left = window > 0 ? window - 1 : -1; /* a model's window counts the query itself */
    o.scale = (float)c->attention_scale;
    o.softcap = (float)c->softcap;
    o.quantize_p = fp8_device_place(m->device) == FP8_PLACE_CUDA; /* what its kernels ask for */
    return o;
}

int fp8_layer_takes_codes(const fp8_model *m, int64_t index) {
    return fp8_device_place(m->device) == FP8_PLACE_CUDA &&
           fp8_linear_input_scaling(m->layers[index].linears[FP8_LINEAR_O]) == FP8_INPUT_STATIC;
}
