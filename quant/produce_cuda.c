/* Producers that have no CUDA half yet. */
#include "quant/produce_impl.h"

static fp8_status missing(const char *what) {
    return FP8_FAIL(FP8_EUNSUPPORTED, "%s: not on CUDA yet", what);
}

fp8_status fp8_cuda_produce_norm(fp8_device *d, const fp8_sink *out, const fp8_norm *norm,
                                 fp8_launch launch) {
    (void)d, (void)out, (void)norm, (void)launch;
    return missing("produce_norm");
}

fp8_status fp8_cuda_produce_act(fp8_device *d, const fp8_sink *out, const fp8_act *act,
                                fp8_launch launch) {
    (void)d, (void)out, (void)act, (void)launch;
    return missing("produce_act");
}

fp8_status fp8_cuda_produce_cast(fp8_device *d, const fp8_sink *out, const void *x,
                                 fp8_dtype dtype, int64_t rows, int64_t cols, int64_t x_stride,
                                 fp8_launch launch) {
    (void)d, (void)out, (void)x, (void)dtype, (void)rows, (void)cols, (void)x_stride;
    (void)launch;
    return missing("produce_cast");
}

fp8_status fp8_cuda_produce_qkv(fp8_device *d, const fp8_qkv *qkv, fp8_launch launch) {
    (void)d, (void)qkv, (void)launch;
    return missing("produce_qkv");
}

fp8_status fp8_cuda_delayed_update(fp8_device *d, const fp8_delayed *state,
                                   const fp8_recipe *recipe, fp8_dtype to, fp8_launch launch) {
    (void)d, (void)state, (void)recipe, (void)to, (void)launch;
    return missing("delayed_update");
}

fp8_status fp8_cuda_embed(fp8_device *d, void *x, const fp8_embedding *e, fp8_launch launch) {
    (void)d, (void)x, (void)e, (void)launch;
    return missing("embed");
}

fp8_status fp8_cuda_top_k(fp8_device *d, int32_t *ids, float *values, const void *logits,
                          fp8_dtype dtype, int64_t rows, int64_t vocab, int64_t stride, int32_t k,
                          fp8_launch launch) {
    (void)d, (void)ids, (void)values, (void)logits, (void)dtype, (void)rows, (void)vocab;
    (void)stride, (void)k, (void)launch;
    return missing("top_k");
}
