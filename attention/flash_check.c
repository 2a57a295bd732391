/* What the flash backend serves. */
#include <stdio.h>

#include "attention/flash_limits.h"

static int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

static int is_16_bits(fp8_dtype t) { return t == FP8_DTYPE_BF16 || t == FP8_DTYPE_F16; }

static fp8_status check_types(const fp8_attention_options *o) {
    const int q_codes = o->q_dtype == FP8_DTYPE_E4M3, kv_codes = o->kv_dtype == FP8_DTYPE_E4M3;

    if ((!q_codes && !is_16_bits(o->q_dtype)) || (!kv_codes && !is_16_bits(o->kv_dtype)))
        return FP8_FAIL(FP8_EUNSUPPORTED, "q_dtype %s, kv_dtype %s, expected F8_E4M3, BF16 or F16",
                        fp8_dtype_name(o->q_dtype), fp8_dtype_name(o->kv_dtype));
    if (q_codes != kv_codes && o->quantize == FP8_QUANTIZE_NOT)
        return FP8_FAIL(FP8_EUNSUPPORTED, "Q in %s with K and V in %s, and quantize is not set",
                        fp8_dtype_name(o->q_dtype), fp8_dtype_name(o->kv_dtype));
    if (o->o_dtype != FP8_DTYPE_E4M3 && !is_16_bits(o->o_dtype))
        return FP8_FAIL(FP8_EUNSUPPORTED, "o_dtype %s, expected BF16, F16 or F8_E4M3",
                        fp8_dtype_name(o->o_dtype));
    if (!flash_is_16(o) && !o->quantize_p)
        return FP8_FAIL(FP8_EUNSUPPORTED, "P is rounded to E4M3 here, and quantize_p is not set");
    if (flash_is_16(o) && o->quantize_p)
        return FP8_FAIL(FP8_EUNSUPPORTED, "P stays in %s here, and quantize_p is set",
                        fp8_dtype_name(o->q_dtype));
    return FP8_OK;
}

static fp8_status check_shape(const fp8_attention_options *o) {
    const int64_t items =
        ceil_div(o->max_q, FLASH_BLOCK_M) * o->num_heads; /* below 2^31 * 2^24: no overflow */
    const int64_t parts = ceil_div(o->d_qk > o->d_v ? o->d_qk : o->d_v, flash_part(o));
    const int64_t q_tiles = o->num_seqs * ceil_div(o->max_q + 1, FLASH_TILE) * parts;
    const int64_t kv_tiles = o->num_seqs * ceil_div(o->max_kv + 1, FLASH_TILE) * parts;
    const int32_t unit = flash_is_16(o) ? 8 : 16; /* elements of a vector */

    if (o->d_qk > 256 || o->d_v > 256 || o->d_qk % unit || o->d_v % unit)
        return FP8_FAIL(FP8_EUNSUPPORTED, "d_qk %d, d_v %d, expected multiples of %d up to 256",
                        o->d_qk, o->d_v, unit);
    if (o->o_dtype == FP8_DTYPE_E4M3 && o->d_v % FLASH_VECTOR)
        return FP8_FAIL(FP8_EUNSUPPORTED, "d_v %d, expected a multiple of %d for O in F8_E4M3",
                        o->d_v, FLASH_VECTOR);
    if (o->max_q > FLASH_MAX_LENGTH || o->max_kv > FLASH_MAX_LENGTH)
        return FP8_FAIL(FP8_EUNSUPPORTED, "lengths up to %lld x %lld, expected up to %d",
                        (long long)o->max_q, (long long)o->max_kv, FLASH_MAX_LENGTH);
    if (items > FLASH_MAX_ITEMS || o->num_seqs * items > FLASH_MAX_ITEMS)
        return FP8_FAIL(FP8_EUNSUPPORTED, "%lld sequences of %lld tiles, expected up to %d in all",
                        (long long)o->num_seqs, (long long)items, FLASH_MAX_ITEMS);
    if (o->num_seqs * o->num_kv_heads * (int64_t)o->d_v > INT32_MAX ||
        q_tiles > INT32_MAX / 3 / o->num_heads || kv_tiles > INT32_MAX / 3 / o->num_kv_heads)
        return FP8_FAIL(FP8_EUNSUPPORTED,
                        "%lld sequences of %d and %d heads, %lld and %lld x %d: beyond 2^31",
                        (long long)o->num_seqs, o->num_heads, o->num_kv_heads,
                        (long long)o->max_q, (long long)o->max_kv, o->d_v);
    return FP8_OK;
}

/* Strides of sizes above 1 in whole vectors, below the 2^40 bytes of a tensor map. */
static fp8_status check_strides(const char *name, fp8_strides x, fp8_dtype dtype, int64_t seqs,
                                int64_t tokens, int64_t heads) {
    const int64_t all[3][2] = {{seqs, x.batch}, {tokens, x.token}, {heads, x.head}};
    const int64_t size = (int64_t)fp8_dtype_size(dtype), end = ((int64_t)1 << 40) / size;

    for (int i = 0; i < 3; i++)
        if (all[i][0] > 1 && (all[i][1] % (FLASH_VECTOR / size) || all[i][1] >= end))
            return FP8_FAIL(FP8_EUNSUPPORTED,
                            "strides of %s (batch %lld, token %lld, head %lld), expected multiples "
                            "of %lld below %lld",
                            name, (long long)x.batch, (long long)x.token, (long long)x.head,
                            (long long)(FLASH_VECTOR / size), (long long)end);
    return FP8_OK;
}

static fp8_status check_all_strides(const fp8_attention_options *o) {
    const int packed = fp8_attention_layout_is_packed(o->layout);
    const int64_t seqs = packed ? 1 : o->num_seqs; /* tokens of a packed layout: any number */
    const int64_t s_q = packed ? 2 : o->max_q, s_kv = packed ? 2 : o->max_kv;
    fp8_status st;

    FP8_TRY(check_strides("q", o->q, o->q_dtype, seqs, s_q, o->num_heads));
    FP8_TRY(check_strides("k", o->k, o->kv_dtype, seqs, s_kv, o->num_kv_heads));
    FP8_TRY(check_strides("v", o->v, o->kv_dtype, seqs, s_kv, o->num_kv_heads));
    FP8_TRY(check_strides("o", o->o, o->o_dtype, seqs, s_q, o->num_heads));
done:
    return st;
}

static fp8_status check_formula(const fp8_attention_options *o) {
    if (!(o->scale > 0.0f))
        return FP8_FAIL(FP8_EUNSUPPORTED, "scale %g, expected a positive one", (double)o->scale);
    if (o->hadamard && o->d_qk % 32)
        return FP8_FAIL(FP8_EUNSUPPORTED, "hadamard over d_qk %d, expected a multiple of 32",
                        o->d_qk);
    if (o->promote_keys > 0 && o->promote_keys < FLASH_BLOCK_N)
        return FP8_FAIL(FP8_EUNSUPPORTED, "promote_keys %d, expected 0 or at least %d",
                        o->promote_keys, FLASH_BLOCK_N);
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
    FP8_TRY(check_all_strides(o));
    FP8_TRY(check_formula(o));
    snprintf(about, ATTENTION_REASON_BYTES, "sm_90a, d %d, %s", o->d_qk,
             flash_is_16(o) ? fp8_dtype_name(o->q_dtype) : "F8_E4M3");
done:
    return st;
}

/* Where cuDNN was the faster one, if it serves (H200; docs/NOTES.md): long sequences of head size
 * 256 in 16 bits; there too the terms but for ALiBi and biases in F32, and head sizes of flash_any
 * but for values narrower than keys; in FP8 head sizes between 64 and 128. */
int attention_flash_yields(const fp8_attention_options *o) {
    const int alibi = o->bias == FP8_BIAS_ALIBI;
    const int f32 = o->bias != FP8_BIAS_NONE && !alibi && o->bias_dtype == FP8_DTYPE_F32;

    if (!flash_is_any(o)) return flash_is_16(o) && o->d_v == 256 && o->max_q > FLASH16_YIELDS;
    if (!flash_is_16(o)) return o->d_qk == o->d_v && o->d_v > 64 && o->d_v < 128;
    if (o->softcap > 0.0f || o->sink != FP8_SINK_NONE) return 1;
    return !alibi && !f32 && o->d_v >= o->d_qk;
}
