/* What the gathered backend serves: what fp8_attention does, on CUDA, within 32-bit rows. */
#include <stdio.h>

#include "attention/decode_impl.h"

fp8_status decode_gathered_check(const fp8_decode_options *o, const attention_target *t,
                                 char about[ATTENTION_REASON_BYTES]) {
    if (t->place != FP8_PLACE_CUDA) return FP8_FAIL(FP8_EUNSUPPORTED, "the device is the CPU");
    if (o->num_seqs > 65535)
        return FP8_FAIL(FP8_EUNSUPPORTED, "%lld sequences, expected up to 65535",
                        (long long)o->num_seqs);
    if (o->num_seqs * o->max_kv > INT32_MAX)
        return FP8_FAIL(FP8_EUNSUPPORTED, "%lld sequences of up to %lld keys, expected below 2^31 "
                                          "in all", (long long)o->num_seqs, (long long)o->max_kv);
    snprintf(about, ATTENTION_REASON_BYTES, "pages copied, then attention");
    return FP8_OK;
}
