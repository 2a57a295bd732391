/* What the flash backend serves. */
#include <stdio.h>

#include "attention/flash_limits.h"

static int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

static fp8_status check_types(const fp8_attention_options *o) {
    if (o->q_dtype != FP8_DTYPE_E4M3 || o->kv_dtype != FP8_DTYPE_E4M3)
        return FP8_FAIL(FP8_EUNSUPPORTED, "q_dtype %s, kv_dtype %s, expected F8_E4M3",
                        fp8_dtype_name(o->q_dtype), fp8_dtype_name(o->kv_dtype));
    if (o->o_dtype != FP8_DTYPE_BF16)
        return FP8_FAIL(FP8_EUNSUPPORTED, "o_dtype %s, expected BF16", fp8_dtype_name(o->o_dtype));
    if (o->granularity != FP8_DESCALE_TENSOR)
        return FP8_FAIL(FP8_EUNSUPPORTED, "descales of heads");
    if (!o->quantize_p)
        return FP8_FAIL(FP8_EUNSUPPORTED, "P is rounded to E4M3 here, and quantize_p is not set");
    return FP8_OK;
}

static fp8_status check_shape(const fp8_attention_options *o) {
    const int64_t items =
        ceil_div(o->max_q, FLASH_BLOCK_M) * o->num_heads; /* below 2^31 * 2^24: no overflow */

    if (o->d_qk != o->d_v || (o->d_qk != 64 && o->d_qk != 128 && o->d_qk != 256))
        return FP8_FAIL(FP8_EUNSUPPORTED, "d_qk %d, d_v %d, expected both 64, 128 or 256", o->d_qk,
                        o->d_v);
    if (o->max_q > FLASH_MAX_LENGTH || o->max_kv > FLASH_MAX_LENGTH)
        return FP8_FAIL(FP8_EUNSUPPORTED, "lengths up to %lld x %lld, expected up to %d",
                        (long long)o->max_q, (long long)o->max_kv, FLASH_MAX_LENGTH);
    if (items > FLASH_MAX_ITEMS || o->num_seqs * items > FLASH_MAX_ITEMS)
        return FP8_FAIL(FP8_EUNSUPPORTED, "%lld sequences of %lld tiles, expected up to %d in all",
                        (long long)o->num_seqs, (long long)items, FLASH_MAX_ITEMS);
    if (o->num_seqs * o->num_kv_heads * (int64_t)o->d_v > INT32_MAX ||
        o->num_seqs * o->num_kv_heads * ceil_div(o->max_kv, FLASH_BLOCK_N) > INT32_MAX)
        return FP8_FAIL(FP8_EUNSUPPORTED, "%lld sequences of %d KV heads, %lld x %d: beyond 2^31",
                        (long long)o->num_seqs, o->num_kv_heads, (long long)o->max_kv, o->d_v);
    return FP8_OK;
}

static fp8_status check_strides(const fp8_attention_options *o) {
    if (!fp8_attention_layout_is_packed(o->layout))
        return FP8_FAIL(FP8_EUNSUPPORTED, "layout %s, expected packed tokens",
                        fp8_attention_layout_name(o->layout));
    if (o->q.head != o->d_qk || o->k.head != o->d_qk || o->v.head != o->d_v || o->o.head != o->d_v)
        return FP8_FAIL(FP8_EUNSUPPORTED,
                        "head strides of q, k, v, o %lld %lld %lld %lld, expected %d",
                        (long long)o->q.head, (long long)o->k.head, (long long)o->v.head,
                        (long long)o->o.head, o->d_qk);
    return FP8_OK;
}

static fp8_status check_formula(const fp8_attention_options *o) {
    const int causal = o->mask == FP8_MASK_CAUSAL_BOTTOM_RIGHT;
    if (o->mask == FP8_MASK_ARBITRARY) return FP8_FAIL(FP8_EUNSUPPORTED, "an arbitrary mask");
    if (o->mask == FP8_MASK_CAUSAL) return FP8_FAIL(FP8_EUNSUPPORTED, "a top-left causal mask");
    if (!causal && (o->window_left >= 0 || o->window_right >= 0))
        return FP8_FAIL(FP8_EUNSUPPORTED, "a window without the causal mask");
    if (o->bias != FP8_BIAS_NONE) return FP8_FAIL(FP8_EUNSUPPORTED, "a bias");
    if (o->softcap > 0.0f) return FP8_FAIL(FP8_EUNSUPPORTED, "softcap");
    if (o->sink != FP8_SINK_NONE) return FP8_FAIL(FP8_EUNSUPPORTED, "a sink");
    if (o->want_lse || o->want_amax) return FP8_FAIL(FP8_EUNSUPPORTED, "LSE or amax");
    if (!(o->scale > 0.0f))
        return FP8_FAIL(FP8_EUNSUPPORTED, "scale %g, expected a positive one", (double)o->scale);
    if (o->precision != FP8_ATTENTION_EXACT || o->promote_keys > FLASH_BLOCK_N)
        return FP8_FAIL(FP8_EUNSUPPORTED, "sums are promoted every %d keys here", FLASH_BLOCK_N);
    return FP8_OK;
}

fp8_status attention_flash_check(const fp8_attention_options *o, const attention_target *t,
                                 char about[ATTENTION_REASON_BYTES]) {
    fp8_status st;

    if (t->place != FP8_PLACE_CUDA) return FP8_FAIL(FP8_EUNSUPPORTED, "the device is the CPU");
    if (t->capability != 90)
        return FP8_FAIL(FP8_EUNSUPPORTED, "compute capability %d, expected 90", t->capability);
    FP8_TRY(check_types(o));
    FP8_TRY(check_shape(o));
    FP8_TRY(check_strides(o));
    FP8_TRY(check_formula(o));
    snprintf(about, ATTENTION_REASON_BYTES, "sm_90a, d %d", o->d_v);
done:
    return st;
}
