/* What the kernels over pages serve. */
#include <stdio.h>

#include "attention/decode_pages_limits.h"

static int is_16_bits(fp8_dtype t) { return t == FP8_DTYPE_BF16 || t == FP8_DTYPE_F16; }

static int has_kernel(int32_t d_qk, int32_t d_v) {
#define X(qk, v)                                                                                   \
    if (d_qk == (qk) && d_v == (v)) return 1;
    DECODE_PAGES_HEADS(X)
#undef X
    return 0;
}

static fp8_status check_types(const fp8_decode_options *o) {
    if (o->kv_dtype != FP8_DTYPE_E4M3 && !is_16_bits(o->kv_dtype))
        return FP8_FAIL(FP8_EUNSUPPORTED, "pages of %s, expected F8_E4M3, BF16 or F16",
                        fp8_dtype_name(o->kv_dtype));
    if (o->q_dtype != FP8_DTYPE_E4M3 && !is_16_bits(o->q_dtype))
        return FP8_FAIL(FP8_EUNSUPPORTED, "q_dtype %s, expected F8_E4M3, BF16 or F16",
                        fp8_dtype_name(o->q_dtype));
    if (o->o_dtype != FP8_DTYPE_E4M3 && !is_16_bits(o->o_dtype))
        return FP8_FAIL(FP8_EUNSUPPORTED, "o_dtype %s, expected BF16, F16 or F8_E4M3",
                        fp8_dtype_name(o->o_dtype));
    return FP8_OK;
}

/* Rows in whole vectors. */
static fp8_status check_tokens(const char *name, int64_t token, fp8_dtype dtype) {
    const int64_t unit = DECODE_PAGES_VECTOR / (int64_t)fp8_dtype_size(dtype);
    if (token % unit)
        return FP8_FAIL(FP8_EUNSUPPORTED, "tokens of %s are %lld elements apart, expected a "
                                          "multiple of %lld",
                        name, (long long)token, (long long)unit);
    return FP8_OK;
}

/* Units of 64 keys, blocks of 8 rows: no kernel has smaller ones. */
static fp8_status check_sizes(const fp8_decode_options *o) {
    const int64_t group = o->num_heads / o->num_kv_heads;
    int64_t items, units;

    if (o->max_q > FP8_DECODE_ROWS)
        return FP8_FAIL(FP8_EUNSUPPORTED, "up to %lld queries a sequence, expected up to %d",
                        (long long)o->max_q, FP8_DECODE_ROWS);
    if (o->max_kv > DECODE_PAGES_MAX_KEYS)
        return FP8_FAIL(FP8_EUNSUPPORTED, "up to %lld keys, expected up to %d",
                        (long long)o->max_kv, DECODE_PAGES_MAX_KEYS);
    if (__builtin_mul_overflow(o->num_seqs, (o->max_q * group + 7) / 8 * o->num_kv_heads,
                               &items) ||
        __builtin_mul_overflow(items, (o->max_kv + 63) / 64 + 1, &units) ||
        units > DECODE_PAGES_MAX_UNITS)
        return FP8_FAIL(FP8_EUNSUPPORTED,
                        "%lld sequences of %lld queries, %d heads, %lld keys: more than %d tiles",
                        (long long)o->num_seqs, (long long)o->max_q, o->num_heads,
                        (long long)o->max_kv, DECODE_PAGES_MAX_UNITS);
    return FP8_OK;
}

fp8_status decode_pages_check(const fp8_decode_options *o, const attention_target *t,
                              char about[ATTENTION_REASON_BYTES]) {
    fp8_status st;

    if (t->place != FP8_PLACE_CUDA || t->capability != 90)
        return FP8_FAIL(FP8_EUNSUPPORTED, "compute capability %d.%d, expected 9.0",
                        t->capability / 10, t->capability % 10);
    if (!has_kernel(o->d_qk, o->d_v))
        return FP8_FAIL(FP8_EUNSUPPORTED, "d_qk %d, d_v %d, expected 64, 128 or 256 for both, or "
                                          "192 and 128", o->d_qk, o->d_v);
    FP8_TRY(check_types(o));
    FP8_TRY(check_tokens("q", o->q_token, o->q_dtype));
    FP8_TRY(check_tokens("o", o->o_token, o->o_dtype));
    FP8_TRY(check_sizes(o));
    snprintf(about, ATTENTION_REASON_BYTES, "sm_90a, d %d", o->d_qk);
done:
    return st;
}
