#include "attention/scores_cpu.h"

#include "core/half.h"

int attention_cpu_adjusts(const fp8_attention_options *o) {
    return o->mask == FP8_MASK_ARBITRARY || o->bias != FP8_BIAS_NONE || o->softcap > 0.0f;
}

static float bias_at(const cpu_scores *x, int64_t i) {
    switch (x->options->bias_dtype) {
    case FP8_DTYPE_BF16: return fp8_bf16_to_f32(((const uint16_t *)x->bias)[i]);
    case FP8_DTYPE_F16: return fp8_f16_to_f32(((const uint16_t *)x->bias)[i]);
    default: return ((const float *)x->bias)[i];
    }
}

/* What of a row does not change from key to key. */
typedef struct row_terms {
    int64_t mask_row, bias_row, diagonal;
    float slope;
} row_terms;

/* s = scale * q.k comes in. */
static float adjusted(const cpu_scores *x, const row_terms *r, int64_t key, float s) {
    const fp8_attention_options *o = x->options;
    if (o->mask == FP8_MASK_ARBITRARY && x->mask[r->mask_row + key]) return -INFINITY;
    if (o->bias == FP8_BIAS_PRE_SCALE) s += o->scale * bias_at(x, r->bias_row + key);
    if (o->softcap > 0.0f) s = o->softcap * tanhf(s / o->softcap);
    if (o->bias == FP8_BIAS_POST_SCALE) s += bias_at(x, r->bias_row + key);
    if (o->bias == FP8_BIAS_ALIBI) s += r->slope * (float)(key - r->diagonal);
    return s;
}

void attention_cpu_adjust(const void *ctx, attention_tile *t, int64_t first, int64_t keys) {
    const cpu_scores *x = ctx;
    const fp8_attention_options *o = x->options;

    for (int64_t i = 0; i < t->rows; i++) {
        const int64_t token = (x->first_row + i) / x->group;
        const int64_t head = x->kv_head * x->group + (x->first_row + i) % x->group;
        const int64_t lo = t->lo[i] > first ? t->lo[i] : first;
        const int64_t hi = t->hi[i] < first + keys ? t->hi[i] : first + keys;
        row_terms r = {.diagonal = attention_diagonal(o, token, x->s_q, x->s_kv)};
        if (lo >= hi) continue;
        r.mask_row = attention_bias_offset(o, o->mask_shape, x->seq, head, token, 0);
        r.bias_row = attention_bias_offset(o, o->bias_shape, x->seq, head, token, 0);
        if (o->bias == FP8_BIAS_ALIBI)
            r.slope = x->slopes ? x->slopes[head]
                                : attention_alibi_slope((int32_t)head, o->num_heads);
        for (int64_t key = lo; key < hi; key++) {
            float *s = t->s + (key - first) * TILE_ROWS + i;
            *s = adjusted(x, &r, key, *s);
        }
    }
}
