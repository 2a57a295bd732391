/* What the fused backend serves, by cuDNN's release notes. */
#include <stdio.h>

#include "attention/fused.h"

/* cudnnGetVersion() from which something holds, or up to which it fails. */
enum {
    VERSION_MIN = 90000,          /* below, keys must come in multiples of 64 */
    VERSION_SHIFTED = 90600,      /* bottom-right diagonal for any lengths */
    VERSION_BROKEN_FIRST = 91000, /* wrong results in 9.10.0 and 9.10.1 */
    VERSION_BROKEN_LAST = 91001,
    VERSION_WINDOW_ALONE = 91002, /* a window without the causal mask beside it */
    MAX_D = 256
};

static fp8_status check_types(const fp8_attention_options *o) {
    if (o->q_dtype == FP8_DTYPE_E4M3 || o->kv_dtype == FP8_DTYPE_E4M3 ||
        o->quantize != FP8_QUANTIZE_NOT)
        return FP8_FAIL(FP8_EUNSUPPORTED, "FP8 through cuDNN is not there yet");
    if (o->q_dtype != FP8_DTYPE_BF16 || o->o_dtype != FP8_DTYPE_BF16)
        return FP8_FAIL(FP8_EUNSUPPORTED, "%s in, %s out, expected BF16",
                        fp8_dtype_name(o->q_dtype), fp8_dtype_name(o->o_dtype));
    if (o->quantize_p) return FP8_FAIL(FP8_EUNSUPPORTED, "P in E4M3 is not there yet");
    return FP8_OK;
}

static fp8_status check_strides(const fp8_attention_options *o) {
    const struct {
        const char *name;
        fp8_strides x;
    } all[4] = {{"q", o->q}, {"k", o->k}, {"v", o->v}, {"o", o->o}};
    for (int i = 0; i < 4; i++)
        if (all[i].x.batch % 8 || all[i].x.token % 8 || all[i].x.head % 8)
            return FP8_FAIL(FP8_EUNSUPPORTED,
                            "strides of %s %lld %lld %lld (batch, token, head), expected multiples "
                            "of 8",
                            all[i].name, (long long)all[i].x.batch, (long long)all[i].x.token,
                            (long long)all[i].x.head);
    return FP8_OK;
}

static fp8_status check_shape(const fp8_attention_options *o) {
    if (fp8_attention_layout_is_packed(o->layout) || o->padding)
        return FP8_FAIL(FP8_EUNSUPPORTED, "lengths that may differ");
    if (o->num_seqs == 0 || o->max_q == 0 || o->max_kv == 0)
        return FP8_FAIL(FP8_EUNSUPPORTED, "an empty shape");
    if (o->d_qk % 8 || o->d_v % 8 || o->d_qk > MAX_D || o->d_v > MAX_D)
        return FP8_FAIL(FP8_EUNSUPPORTED, "d_qk %d, d_v %d, expected multiples of 8 up to %d",
                        o->d_qk, o->d_v, MAX_D);
    return check_strides(o);
}

static fp8_status check_formula(const fp8_attention_options *o) {
    if (o->mask == FP8_MASK_ARBITRARY) return FP8_FAIL(FP8_EUNSUPPORTED, "an arbitrary mask");
    if (o->mask == FP8_MASK_CAUSAL && o->max_q != o->max_kv)
        return FP8_FAIL(FP8_EUNSUPPORTED, "top-left causal with %lld queries over %lld keys",
                        (long long)o->max_q, (long long)o->max_kv);
    if (o->mask != FP8_MASK_NONE && o->max_q > o->max_kv)
        return FP8_FAIL(FP8_EUNSUPPORTED, "causal with %lld queries over %lld keys: some see none",
                        (long long)o->max_q, (long long)o->max_kv);
    if (o->mask == FP8_MASK_NONE && (o->window_left >= 0 || o->window_right >= 0))
        return FP8_FAIL(FP8_EUNSUPPORTED, "a window without the causal mask");
    if (o->bias != FP8_BIAS_NONE) return FP8_FAIL(FP8_EUNSUPPORTED, "a bias");
    if (o->softcap > 0.0f) return FP8_FAIL(FP8_EUNSUPPORTED, "softcap");
    if (o->sink != FP8_SINK_NONE) return FP8_FAIL(FP8_EUNSUPPORTED, "a sink");
    if (o->want_lse || o->want_amax) return FP8_FAIL(FP8_EUNSUPPORTED, "LSE or amax");
    return FP8_OK;
}

static fp8_status check_version(const fp8_attention_options *o, size_t version) {
    const char *what = NULL;
    if (version < VERSION_MIN) what = "before 9.0";
    else if (version >= VERSION_BROKEN_FIRST && version <= VERSION_BROKEN_LAST)
        what = "with wrong results in its attention";
    else if (version < VERSION_SHIFTED && o->max_q != o->max_kv && attention_fused_causal(o))
        what = "before 9.6: no bottom-right causal mask";
    else if (version < VERSION_SHIFTED && attention_fused_window(o))
        what = "before 9.6: no sliding window";
    else if (version < VERSION_WINDOW_ALONE && attention_fused_window(o) &&
             !attention_fused_causal(o))
        what = "before 9.10.2: no sliding window for one query";
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
    FP8_TRY(check_types(o));
    FP8_TRY(check_shape(o));
    FP8_TRY(check_formula(o));
    FP8_TRY(check_version(o, version));
done:
    return st;
}
