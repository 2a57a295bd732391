/* What a build without CUDA has instead of the benchmarks. */
#include "bench/bench.h"

#if !FP8_CUDA
fp8_status fp8_bench_attention(fp8_bench_table *out, fp8_device *d,
                               const fp8_bench_options *options) {
    (void)out;
    (void)d;
    (void)options;
    return FP8_FAIL(FP8_EUNSUPPORTED, "bench attention: this build is without CUDA");
}

fp8_status fp8_bench_flux(fp8_bench_table *out, fp8_device *d, const fp8_bench_options *options) {
    (void)out;
    (void)d;
    (void)options;
    return FP8_FAIL(FP8_EUNSUPPORTED, "bench flux: this build is without CUDA");
}

fp8_status fp8_bench_linear(fp8_bench_table *out, fp8_device *d, const fp8_bench_options *options) {
    (void)out;
    (void)d;
    (void)options;
    return FP8_FAIL(FP8_EUNSUPPORTED, "bench linear: this build is without CUDA");
}

fp8_status fp8_bench_linear_large(fp8_bench_table *out, fp8_device *d,
                                  const fp8_bench_options *options) {
    (void)out;
    (void)d;
    (void)options;
    return FP8_FAIL(FP8_EUNSUPPORTED, "bench linear-large: this build is without CUDA");
}

fp8_status fp8_bench_decode(fp8_bench_table *out, fp8_device *d, const fp8_bench_options *options) {
    (void)out;
    (void)d;
    (void)options;
    return FP8_FAIL(FP8_EUNSUPPORTED, "bench decode: this build is without CUDA");
}

fp8_status fp8_bench_quant(fp8_bench_table *out, fp8_device *d, const fp8_bench_options *options) {
    (void)out;
    (void)d;
    (void)options;
    return FP8_FAIL(FP8_EUNSUPPORTED, "bench quant: this build is without CUDA");
}

fp8_status fp8_bench_block(fp8_bench_table *out, fp8_device *d, const fp8_bench_options *options) {
    (void)out;
    (void)d;
    (void)options;
    return FP8_FAIL(FP8_EUNSUPPORTED, "bench block: this build is without CUDA");
}

fp8_status fp8_bench_append(fp8_bench_table *out, fp8_device *d,
                            const fp8_bench_options *options) {
    (void)out;
    (void)d;
    (void)options;
    return FP8_FAIL(FP8_EUNSUPPORTED, "bench append: this build is without CUDA");
}
#endif
