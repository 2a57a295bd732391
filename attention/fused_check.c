/* What the fused backend serves: by cuDNN's release notes, and by what was tried with 9.14 and 9.19
 * on Hopper (docs/NOTES.md). */
#include <stdio.h>

#include "attention/fused.h"

/* cudnnGetVersion() from which something holds, or up to which it fails. */
enum {
    VERSION_MIN = 90000,          /* below, keys must come in multiples of 64 */
    VERSION_OFFSETS = 90600,      /* 64-bit offsets of packed tokens; bottom-right diagonal for any
                                   * lengths */
    VERSION_BROKEN_FIRST = 91000, /* wrong results in 9.10.0 and 9.10.1 */
    VERSION_BROKEN_LAST = 91001,
    VERSION_WINDOW_ALONE = 91002, /* a window without the causal mask beside it */
    VERSION_SINK = 91300,
    VERSION_OFFSETS_AMPERE = 91801, /* packed tokens below compute capability 90 */
    VERSION_LONG_WINDOW_BROKEN = 91400, /* such a window over more than 1024 keys: wrong */
    VERSION_FP8 = 91400, /* tried here; older ones promise less */
    VERSION_NARROW_HEADS = 91900, /* FP8 of d 32 and 64 in 9.14.0: relative L2 0.5 to 28 in 10
                                   * shapes of 512 tiles of queries and more, right in 15 of up to
                                   * 128; right in 9.19 */
    NARROW_D = 128,
    FEW_TILES = 128,
    TILE_QUERIES = 128,
    LONG_WINDOW = 1024,
    MAX_D = 256
};

static int is_fp8(const fp8_attention_options *o) { return o->q_dtype == FP8_DTYPE_E4M3; }

static int varies(const fp8_attention_options *o) {
    return o->padding || fp8_attention_layout_is_packed(o->layout);
}

static int is_causal(const fp8_attention_options *o) {
    return o->mask == FP8_MASK_CAUSAL || o->mask == FP8_MASK_CAUSAL_BOTTOM_RIGHT;
}

/* Some query may see no key though its sequence has some. */
static int may_be_blind(const fp8_attention_options *o) {
    const int left = o->window_left >= 0, right = o->window_right >= 0;
    if (o->mask == FP8_MASK_CAUSAL)
        return left && (varies(o) || o->max_q - o->window_left > o->max_kv);
    return (o->mask == FP8_MASK_CAUSAL_BOTTOM_RIGHT || left || right) &&
           (varies(o) || o->max_q > o->max_kv);
}

int attention_fused_unfinished(const fp8_attention_options *o) {
    return varies(o) || may_be_blind(o);
}

static fp8_status check_fp8_formula(const fp8_attention_options *o) {
    if (o->bias != FP8_BIAS_NONE)
        return FP8_FAIL(FP8_EUNSUPPORTED, "a bias in FP8, where cuDNN's is wrong");
    if (o->softcap != 0.0f)
        return FP8_FAIL(FP8_EUNSUPPORTED, "softcap in FP8, where cuDNN's is wrong");
    if (o->sink != FP8_SINK_NONE) return FP8_FAIL(FP8_EUNSUPPORTED, "a sink in FP8");
    if (may_be_blind(o))
        return FP8_FAIL(FP8_EUNSUPPORTED,
                        "queries that may see no key in FP8 (a window or the bottom-right diagonal "
                        "over %s), at which cuDNN may hang",
                        varies(o) ? "lengths that differ" : "fewer keys than queries");
    return FP8_OK;
}

static fp8_status check_fp8(const fp8_attention_options *o, const attention_target *t) {
    if (t->capability != 90)
        return FP8_FAIL(FP8_EUNSUPPORTED, "FP8 on compute capability %d: it was tried on 90 alone",
                        t->capability);
    if (t->cudnn_version < VERSION_FP8)
        return FP8_FAIL(FP8_EUNSUPPORTED, "FP8 before 9.14, which was not tried");
    if (o->o_dtype != FP8_DTYPE_E4M3)
        return FP8_FAIL(FP8_EUNSUPPORTED, "FP8 in and %s out: cuDNN writes E4M3 alone",
                        fp8_dtype_name(o->o_dtype));
    if (o->precision != FP8_ATTENTION_FAST)
        return FP8_FAIL(FP8_EUNSUPPORTED,
                        "sums of FP8 products are never promoted to FP32, expected precision fast");
    if (!o->quantize_p)
        return FP8_FAIL(FP8_EUNSUPPORTED, "P is rounded to E4M3, and quantize_p is not set");
    if (o->granularity != FP8_DESCALE_TENSOR)
        return FP8_FAIL(FP8_EUNSUPPORTED, "descales a head, expected one a tensor");
    if (o->max_q == 1) return FP8_FAIL(FP8_EUNSUPPORTED, "one query in FP8");
    return check_fp8_formula(o);
}

static fp8_status check_types(const fp8_attention_options *o, const attention_target *t) {
    if (o->q_dtype != o->kv_dtype)
        return FP8_FAIL(FP8_EUNSUPPORTED, "Q in %s over K, V in %s, expected one type",
                        fp8_dtype_name(o->q_dtype), fp8_dtype_name(o->kv_dtype));
    if (o->quantize != FP8_QUANTIZE_NOT)
        return FP8_FAIL(FP8_EUNSUPPORTED, "%s to be quantized: cuDNN takes E4M3 codes",
                        fp8_dtype_name(o->q_dtype));
    if (is_fp8(o)) return check_fp8(o, t);
    if (o->q_dtype != FP8_DTYPE_BF16 && o->q_dtype != FP8_DTYPE_F16)
        return FP8_FAIL(FP8_EUNSUPPORTED, "%s, expected E4M3, BF16 or F16",
                        fp8_dtype_name(o->q_dtype));
    if (o->o_dtype != o->q_dtype)
        return FP8_FAIL(FP8_EUNSUPPORTED, "%s in and %s out, expected one type",
                        fp8_dtype_name(o->q_dtype), fp8_dtype_name(o->o_dtype));
    if (o->quantize_p)
        return FP8_FAIL(FP8_EUNSUPPORTED, "P in E4M3 with operands in %s",
                        fp8_dtype_name(o->q_dtype));
    if (o->want_amax) return FP8_FAIL(FP8_EUNSUPPORTED, "amax, which cuDNN finds in FP8 only");
    return FP8_OK;
}

static fp8_status check_strides(const fp8_attention_options *o) {
    const int64_t unit = 16 / (int64_t)fp8_dtype_size(o->q_dtype);
    const struct {
        const char *name;
        fp8_strides x;
    } all[4] = {{"q", o->q}, {"k", o->k}, {"v", o->v}, {"o", o->o}};
    for (int i = 0; i < 4; i++)
        if (all[i].x.batch % unit || all[i].x.token % unit || all[i].x.head % unit)
            return FP8_FAIL(FP8_EUNSUPPORTED,
                            "strides of %s %lld %lld %lld (batch, token, head), expected multiples "
                            "of %lld",
                            all[i].name, (long long)all[i].x.batch, (long long)all[i].x.token,
                            (long long)all[i].x.head, (long long)unit);
    return FP8_OK;
}

static fp8_status check_shape(const fp8_attention_options *o) {
    const int unit = is_fp8(o) ? 16 : 8;
    if (o->num_seqs == 0 || o->max_q == 0 || o->max_kv == 0)
        return FP8_FAIL(FP8_EUNSUPPORTED, "an empty shape");
    if (o->max_q > INT32_MAX / o->num_seqs)
        return FP8_FAIL(FP8_EUNSUPPORTED, "%lld sequences of %lld queries: beyond 2^31",
                        (long long)o->num_seqs, (long long)o->max_q);
    if (o->d_qk % unit || o->d_v % unit || o->d_qk > MAX_D || o->d_v > MAX_D)
        return FP8_FAIL(FP8_EUNSUPPORTED, "d_qk %d, d_v %d, expected multiples of %d up to %d",
                        o->d_qk, o->d_v, unit, MAX_D);
    return check_strides(o);
}

/* cuDNN adds slope * (column - row). The row's share changes the LSE only. */
static fp8_status check_alibi(const fp8_attention_options *o) {
    if (!o->want_lse || o->mask == FP8_MASK_CAUSAL || (!varies(o) && o->max_q == o->max_kv))
        return FP8_OK;
    return FP8_FAIL(FP8_EUNSUPPORTED, "ALiBi from the bottom-right corner with LSE");
}

static fp8_status check_formula(const fp8_attention_options *o) {
    if (o->mask == FP8_MASK_ARBITRARY) return FP8_FAIL(FP8_EUNSUPPORTED, "an arbitrary mask");
    if (o->bias == FP8_BIAS_PRE_SCALE)
        return FP8_FAIL(FP8_EUNSUPPORTED, "a bias inside the product with scale");
    if (o->bias == FP8_BIAS_ALIBI) return check_alibi(o);
    return FP8_OK;
}

static int has_narrow_heads(const fp8_attention_options *o) {
    const int64_t tiles = (o->max_q + TILE_QUERIES - 1) / TILE_QUERIES * o->num_heads;
    return is_fp8(o) && (o->d_qk < NARROW_D || o->d_v < NARROW_D) &&
           tiles > FEW_TILES / o->num_seqs;
}

static fp8_status check_version(const fp8_attention_options *o, const attention_target *t) {
    const size_t version = t->cudnn_version;
    const int left = o->window_left >= 0, band = left || o->window_right >= 0;
    const char *what = NULL;
    if (version < VERSION_MIN) what = "before 9.0";
    else if (version >= VERSION_BROKEN_FIRST && version <= VERSION_BROKEN_LAST)
        what = "with wrong results in its attention";
    else if (version < VERSION_OFFSETS && (varies(o) || band || o->max_q != o->max_kv))
        what = "before 9.6: no lengths, windows or diagonals but the plain causal one";
    else if (version < VERSION_OFFSETS_AMPERE && varies(o) && t->capability < 90)
        what = "before 9.18.1: no lengths below compute capability 90";
    else if (version < VERSION_WINDOW_ALONE && band && !is_causal(o))
        what = "before 9.10.2: no window without a causal mask";
    else if (version < VERSION_SINK && o->sink != FP8_SINK_NONE) what = "before 9.13: no sink";
    else if (version == VERSION_LONG_WINDOW_BROKEN && left && !is_causal(o) &&
             o->max_kv > LONG_WINDOW)
        what = "(9.14.0) that is wrong in windows over more than 1024 keys";
    else if (version < VERSION_NARROW_HEADS && has_narrow_heads(o))
        what = "before 9.19: FP8 of head sizes below 128 is wrong in more than 128 tiles";
    return what ? FP8_FAIL(FP8_EUNSUPPORTED, "a version %s", what) : FP8_OK;
}

fp8_status attention_fused_check(const fp8_attention_options *o, const attention_target *t,
                                 char about[ATTENTION_REASON_BYTES]) {
    const size_t version = t->cudnn_version;
    fp8_status st;

    if (t->place != FP8_PLACE_CUDA) return FP8_FAIL(FP8_EUNSUPPORTED, "the device is the CPU");
    snprintf(about, ATTENTION_REASON_BYTES, "cuDNN %zu.%zu.%zu", version / 10000,
             version / 100 % 100, version % 100);
    if (t->capability < 80)
        return FP8_FAIL(FP8_EUNSUPPORTED, "compute capability %d, expected 80 or newer",
                        t->capability);
    FP8_TRY(check_types(o, t));
    FP8_TRY(check_shape(o));
    FP8_TRY(check_formula(o));
    FP8_TRY(check_version(o, t));
done:
    return st;
}
