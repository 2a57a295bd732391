/* What the unfused backend serves: every option, on a CUDA device. */
#include <stdio.h>

#include "attention/attention_impl.h"

enum { MIN_CAPABILITY = 75 };

fp8_status attention_unfused_check(const fp8_attention_options *o, const attention_target *t,
                                   char about[ATTENTION_REASON_BYTES]) {
    const int64_t group = o->num_heads / o->num_kv_heads;
    if (t->place != FP8_PLACE_CUDA) return FP8_FAIL(FP8_EUNSUPPORTED, "the device is the CPU");
    if (t->capability < MIN_CAPABILITY)
        return FP8_FAIL(FP8_EUNSUPPORTED, "compute capability %d.%d, expected 7.5 or newer",
                        t->capability / 10, t->capability % 10);
    if (o->hadamard)
        return FP8_FAIL(FP8_EUNSUPPORTED, "hadamard: Q and K are not rotated here");
    if (o->max_q > INT32_MAX / group)
        return FP8_FAIL(FP8_EUNSUPPORTED, "%lld queries by %lld heads to a KV head, 2^31 or more",
                        (long long)o->max_q, (long long)group);
    snprintf(about, ATTENTION_REASON_BYTES, "cuBLASLt, softmax in FP32");
    return FP8_OK;
}
