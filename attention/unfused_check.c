/* What the unfused backend serves. */
#include <stdio.h>

#include "attention/attention_impl.h"

static fp8_status check_types(const fp8_attention_options *o) {
    const fp8_dtype all[2] = {o->q_dtype, o->kv_dtype};
    for (int i = 0; i < 2; i++)
        if (all[i] != FP8_DTYPE_BF16 && all[i] != FP8_DTYPE_E4M3)
            return FP8_FAIL(FP8_EUNSUPPORTED, "%s operands, expected BF16 or F8_E4M3",
                            fp8_dtype_name(all[i]));
    if (o->o_dtype != FP8_DTYPE_BF16)
        return FP8_FAIL(FP8_EUNSUPPORTED, "o_dtype %s, expected BF16", fp8_dtype_name(o->o_dtype));
    if (o->quantize != FP8_QUANTIZE_NOT) return FP8_FAIL(FP8_EUNSUPPORTED, "operands to quantize");
    if (o->granularity != FP8_DESCALE_TENSOR)
        return FP8_FAIL(FP8_EUNSUPPORTED, "descales of heads");
    return FP8_OK;
}

fp8_status attention_unfused_check(const fp8_attention_options *o, const attention_target *t,
                                   char about[ATTENTION_REASON_BYTES]) {
    fp8_status st;
    if (t->place != FP8_PLACE_CUDA) return FP8_FAIL(FP8_EUNSUPPORTED, "the device is the CPU");
    FP8_TRY(check_types(o));
    if (o->padding) return FP8_FAIL(FP8_EUNSUPPORTED, "padding");
    if (o->mask == FP8_MASK_ARBITRARY) return FP8_FAIL(FP8_EUNSUPPORTED, "an arbitrary mask");
    if (o->bias != FP8_BIAS_NONE) return FP8_FAIL(FP8_EUNSUPPORTED, "a bias");
    if (o->softcap > 0.0f) return FP8_FAIL(FP8_EUNSUPPORTED, "softcap");
    if (o->sink != FP8_SINK_NONE) return FP8_FAIL(FP8_EUNSUPPORTED, "a sink");
    if (o->want_lse || o->want_amax) return FP8_FAIL(FP8_EUNSUPPORTED, "LSE or amax");
    snprintf(about, ATTENTION_REASON_BYTES, "cuBLASLt, softmax in FP32");
done:
    return st;
}
