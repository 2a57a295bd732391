/* model/ops_cuda.cu - rounding and soft cap of logits on CUDA; and the table of all operations.
 *
 * Computes   x = the nearest BF16, as F32;   x = cap * tanh(x / cap), each step so rounded
 * Shapes     x [n] F32
 * Bound      memory: 8 bytes an element; 512 x 128256 are 525 MB, no faster than 123 us at 4.27
 *            TB/s (H200 copy, measured)
 * Tiling     a thread takes 16 bytes and ends; what is not 16-byte aligned goes singly
 * Numerics   rounding as the CPU, bit for bit; tanhf differs by its last bits
 */
#include <cuda_bf16.h>

#include "model/ops_cuda.cuh"

enum { THREADS = 256 };

static __device__ inline float round_bf16(float v) {
    return __bfloat162float(__float2bfloat16_rn(v));
}

static __global__ void __launch_bounds__(THREADS) round_kernel(float *x, int64_t n_vec, int64_t n) {
    const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x, single = n_vec * QUAD + i;

    if (i < n_vec) {
        const float4 v = reinterpret_cast<const float4 *>(x)[i];
        reinterpret_cast<float4 *>(x)[i] =
            make_float4(round_bf16(v.x), round_bf16(v.y), round_bf16(v.z), round_bf16(v.w));
    }
    if (single < n) x[single] = round_bf16(x[single]);
}

static __global__ void __launch_bounds__(THREADS) softcap_kernel(float *x, float cap, int64_t n) {
    const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i < n) x[i] = round_bf16(round_bf16(tanhf(round_bf16(x[i] / cap))) * cap);
}

/* ---- launchers ----------------------------------------------------------------------------- */

fp8_status fp8_ops_check(const char *operation, const fp8_tensor *t, fp8_dtype dtype,
                         int64_t count) {
    char shape[128];

    if (t->dtype == dtype && t->place == FP8_PLACE_CUDA && fp8_tensor_count(t) == count &&
        (t->data || count == 0))
        return FP8_OK;
    return FP8_FAIL(FP8_EINVAL, "%s: expected %lld elements of %s on the device, found %s %s%s",
                    operation, (long long)count, fp8_dtype_name(dtype), fp8_dtype_name(t->dtype),
                    fp8_shape_text(shape, sizeof shape, t->shape, t->ndim),
                    t->place == FP8_PLACE_CUDA ? "" : " on the host");
}

static fp8_status cuda_round(fp8_device *d, const fp8_tensor *x, fp8_dtype to) {
    const int64_t n = fp8_tensor_count(x), step = THREADS * QUAD;
    const int64_t n_vec = reinterpret_cast<uintptr_t>(x->data) % 16 == 0 ? n / QUAD : 0;
    const int64_t blocks = n_vec > 0 ? (n + step - 1) / step : (n + THREADS - 1) / THREADS;
    fp8_status st = FP8_OK;

    FP8_TRY(fp8_ops_check("round", x, FP8_DTYPE_F32, n));
    if (to == FP8_DTYPE_F32) return FP8_OK;
    if (to != FP8_DTYPE_BF16) return FP8_FAIL(FP8_EINVAL, "round: to %s", fp8_dtype_name(to));
    if (n == 0) return FP8_OK;
    if (blocks > INT32_MAX)
        return FP8_FAIL(FP8_EINVAL, "round: %lld elements", (long long)n);
    round_kernel<<<(unsigned)blocks, THREADS, 0, fp8_device_stream(d)>>>((float *)x->data, n_vec,
                                                                         n);
    st = fp8_cuda_launched("round", fp8_device_stream(d));
done:
    return st;
}

static fp8_status cuda_softcap(fp8_device *d, const fp8_tensor *x, float cap, fp8_dtype to) {
    const int64_t n = fp8_tensor_count(x), blocks = (n + THREADS - 1) / THREADS;
    fp8_status st = FP8_OK;

    FP8_TRY(fp8_ops_check("softcap", x, FP8_DTYPE_F32, n));
    if (to != FP8_DTYPE_BF16) return FP8_FAIL(FP8_EINVAL, "softcap: to %s", fp8_dtype_name(to));
    if (n == 0) return FP8_OK;
    if (blocks > INT32_MAX)
        return FP8_FAIL(FP8_EINVAL, "softcap: %lld elements", (long long)n);
    softcap_kernel<<<(unsigned)blocks, THREADS, 0, fp8_device_stream(d)>>>((float *)x->data, cap,
                                                                           n);
    st = fp8_cuda_launched("softcap", fp8_device_stream(d));
done:
    return st;
}

extern "C" const fp8_ops *fp8_ops_cuda(void) {
    static const fp8_ops ops = {cuda_round, cuda_softcap, fp8_score_cuda, fp8_route_cuda,
                                fp8_combine_cuda};
    return &ops;
}
