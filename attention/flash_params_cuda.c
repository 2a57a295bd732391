/* What the kernels of the flash backend are told of a plan: flash_params and flash_prologue, but
 * what hangs on a run or on the order of items. */
#include "attention/flash_state.h"

/* K and V that are worked on at once: a good third of the H200's L2 */
enum { BAND_BYTES = 16 << 20 };

static int32_t bound_of(int64_t keys) {
    return keys < 0 || keys > FLASH_NO_WINDOW ? FLASH_NO_WINDOW : (int32_t)keys;
}

/* The most keys between promotions. */
static int32_t promote_keys(const fp8_attention_options *o) {
    const int32_t own = o->d_v == 64 ? FLASH_PROMOTE_KEYS : FLASH_CENTRE_KEYS;
    const int32_t keys = o->promote_keys > 0 ? o->promote_keys : own;
    return keys < FLASH_BLOCK_N ? FLASH_BLOCK_N : keys < FLASH_MAX_LENGTH ? keys : FLASH_MAX_LENGTH;
}

/* What of the terms a run does not change. */
static void fill_terms(flash_terms *t, const fp8_attention_options *o) {
    const float log2_e = 1.44269504f;
    const int64_t plane = o->max_q * o->max_kv;
    const int by_seq[] = {0, 0, 1, 1}, by_head[] = {0, 1, 0, 1}; /* of fp8_attention_bias_shape */

    t->changes = flash_has_terms(o);
    t->mask_head = by_head[o->mask_shape] ? plane : 0;
    t->mask_seq = by_seq[o->mask_shape] ? plane * (by_head[o->mask_shape] ? o->num_heads : 1) : 0;
    t->bias_head = by_head[o->bias_shape] ? plane : 0;
    t->bias_seq = by_seq[o->bias_shape] ? plane * (by_head[o->bias_shape] ? o->num_heads : 1) : 0;
    t->bias_dtype = (int32_t)o->bias_dtype;
    t->bias_first = o->bias == FP8_BIAS_PRE_SCALE;
    t->bias_factor = t->bias_first ? o->scale * log2_e : log2_e;
    t->alibi = o->bias == FP8_BIAS_ALIBI;
    t->has_sink = o->sink != FP8_SINK_NONE;
    t->cap = o->softcap * log2_e;
}

static void fill_params(flash_params *a, const fp8_attention_options *o) {
    const int packed = fp8_attention_layout_is_packed(o->layout);
    const int causal = o->mask == FP8_MASK_CAUSAL || o->mask == FP8_MASK_CAUSAL_BOTTOM_RIGHT;
    const int64_t keys = o->max_kv > 0 ? o->max_kv : 1;
    const int64_t group = o->num_heads / o->num_kv_heads;
    const int64_t units = o->num_seqs * o->num_heads;
    const int64_t band =
        BAND_BYTES * group / (keys * (o->d_qk + o->d_v) * (flash_is_16(o) ? 2 : 1));

    a->o_at = o->o;
    a->num_seqs = (int32_t)o->num_seqs;
    a->num_heads = o->num_heads;
    a->num_kv_heads = o->num_kv_heads;
    a->max_q = (int32_t)o->max_q;
    a->max_kv = (int32_t)o->max_kv;
    a->q_packed = packed && (flash_is_16(o) || o->q_dtype == FP8_DTYPE_E4M3);
    a->kv_packed = packed && (flash_is_16(o) || o->kv_dtype == FP8_DTYPE_E4M3);
    a->v_as_is = flash_v_as_is(o);
    a->tiles = (int32_t)flash_ceil_div(o->max_q, flash_rows_of_tile(o));
    a->units = (int32_t)units;
    a->band = (int32_t)(band < 1 ? 1 : band > units ? units : band);
    a->num_items = (int32_t)(units * a->tiles);
    a->top_left = o->mask == FP8_MASK_CAUSAL;
    a->left = bound_of(o->window_left);
    a->right = causal ? 0 : bound_of(o->window_right);
    a->granularity = (int32_t)o->granularity;
    a->o_dtype = (int32_t)o->o_dtype;
    a->promote_keys = o->precision == FP8_ATTENTION_FAST ? INT32_MAX : promote_keys(o);
    a->promote_mask = 0;
    while (a->promote_mask < a->promote_keys / FLASH_BLOCK_N / 2)
        a->promote_mask = 2 * a->promote_mask + 1;
    a->scale = o->scale;
    a->d_v = o->d_v;
    fill_terms(&a->terms, o);
}

/* What the prologue does with one of Q, K, V. */
static void fill_operand(flash_operand *x, const fp8_attention_options *o, fp8_dtype dtype,
                         fp8_strides at, int32_t heads, int32_t d, int64_t longest,
                         int transposed) {
    const int64_t pitch = flash_ceil_div(longest > 0 ? longest : 1, FLASH_TILE) * FLASH_TILE;
    x->at = at;
    x->heads = heads;
    x->d = d;
    x->longest = (int32_t)longest;
    x->pitch = (int32_t)pitch;
    x->is_codes = dtype == FP8_DTYPE_E4M3;
    x->transposed = transposed;
    if (x->is_codes && !transposed) return;
    x->blocks = (int32_t)(o->num_seqs * heads * (pitch / FLASH_TILE) * (d / flash_part(o)));
}

static void fill_prologue(flash_prologue *p, const fp8_attention_options *o) {
    p->part = flash_part(o);
    p->num_kv_heads = o->num_kv_heads;
    p->granularity = (int32_t)o->granularity;
    p->num_descales = o->granularity == FP8_DESCALE_TENSOR ? 1
                      : o->granularity == FP8_DESCALE_HEAD
                          ? o->num_kv_heads
                          : (int32_t)o->num_seqs * o->num_kv_heads;
    p->f16 = o->q_dtype == FP8_DTYPE_F16 || o->kv_dtype == FP8_DTYPE_F16;
    p->backwards = o->quantize == FP8_QUANTIZE_CURRENT;
    if (flash_is_16(o)) return;
    fill_operand(&p->x[0], o, o->q_dtype, o->q, o->num_heads, o->d_qk, o->max_q, 0);
    fill_operand(&p->x[1], o, o->kv_dtype, o->k, o->num_kv_heads, o->d_qk, o->max_kv, 0);
    if (flash_v_as_is(o)) p->x[2].is_codes = 1;
    else fill_operand(&p->x[2], o, o->kv_dtype, o->v, o->num_kv_heads, o->d_v, o->max_kv, 1);
}

void attention_flash_fill(flash_state *f, const fp8_attention_options *o) {
    fill_params(&f->params, o);
    fill_prologue(&f->prologue, o);
}
