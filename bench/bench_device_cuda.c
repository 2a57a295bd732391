/* Random operands on a device, and what the device can do: the rates that limits are made of. */
#include <cuda_runtime_api.h>
#include <stdlib.h>
#include <string.h>

#include "bench/bench_impl.h"
#include "core/cuda_check.h"
#include "quant/quant.h"

enum { GEMM_SIZE = 8192, GEMM_ROUNDS = 15 };

fp8_status bench_upload_normal(fp8_device *d, uint16_t **host, void **device, int64_t n,
                               uint64_t seed, int32_t most, float *amax) {
    fp8_status st = FP8_OK;
    *host = malloc((size_t)n * sizeof **host);
    if (!*host) return FP8_FAIL(FP8_ENOMEM, "bench: %lld elements", (long long)n);
    FP8_TRY(bench_normal(*host, n, seed, most, amax, fp8_device_pool(d)));
    FP8_TRY(fp8_device_alloc(d, device, (size_t)n * sizeof **host));
    FP8_TRY(fp8_device_upload(d, *device, *host, (size_t)n * sizeof **host));
done:
    return st;
}

typedef struct gemm_call {
    fp8_device *d;
    fp8_gemm g;
    void *workspace;
    size_t bytes;
} gemm_call;

static fp8_status call_gemm(void *ctx) {
    const gemm_call *c = ctx;
    return fp8_gemm_run(c->d, &c->g, c->workspace, c->bytes);
}

fp8_status bench_measure_rates(bench_rates *out, fp8_device *d,
                               const fp8_bench_options *options) {
    const int64_t n = GEMM_SIZE;
    const fp8_bench_options rounds = {.rounds = GEMM_ROUNDS, .interrupted = options->interrupted};
    gemm_call c = {.d = d};
    uint16_t *host = NULL, *host_b = NULL;
    void *bf16 = NULL, *bf16_b = NULL, *a = NULL, *b = NULL, *o = NULL;
    bench_contender contender = {.call = call_gemm, .ctx = &c};
    float amax;
    double mhz;
    fp8_status st;

    FP8_TRY_CUDA(cudaDeviceGetAttribute(&out->sms, cudaDevAttrMultiProcessorCount,
                                        fp8_device_index(d)));
    FP8_TRY(bench_upload_normal(d, &host, &bf16, n * n, 9, 1, &amax));
    FP8_TRY(bench_upload_normal(d, &host_b, &bf16_b, n * n, 10, 1, &amax));
    FP8_TRY(fp8_device_alloc(d, &a, (size_t)(n * n)));
    FP8_TRY(fp8_device_alloc(d, &b, (size_t)(n * n)));
    FP8_TRY(fp8_device_alloc(d, &o, (size_t)(n * n) * 2));
    FP8_TRY(fp8_quantize(d, a, FP8_DTYPE_E4M3, bf16, FP8_DTYPE_BF16, n * n, NULL));
    FP8_TRY(fp8_quantize(d, b, FP8_DTYPE_E4M3, bf16_b, FP8_DTYPE_BF16, n * n, NULL));
    c.g = (fp8_gemm){.m = n, .n = n, .k = n, .a = a, .b = b, .d = o, .lda = n, .ldb = n, .ldd = n,
                     .a_dtype = FP8_DTYPE_E4M3, .b_dtype = FP8_DTYPE_E4M3,
                     .d_dtype = FP8_DTYPE_BF16, .alpha = 1.0f, .accumulate = FP8_ACCUMULATE_FAST};
    if (!fp8_gemm_supported(d, &c.g)) goto done; /* the limit stays unknown */
    c.bytes = fp8_gemm_workspace_size(d, &c.g);
    FP8_TRY(fp8_device_alloc(d, &c.workspace, c.bytes));
    FP8_TRY(bench_race(d, &contender, 1, &rounds, &mhz));
    out->fp8_flops = 2.0 * (double)n * (double)n * (double)n / (contender.ms * 1e-3);
done:
    free(host);
    free(host_b);
    fp8_device_free(d, bf16);
    fp8_device_free(d, bf16_b);
    fp8_device_free(d, a);
    fp8_device_free(d, b);
    fp8_device_free(d, o);
    fp8_device_free(d, c.workspace);
    return st;
}
