/* bench_reference.cu - attention in FP32, as plain as it can be.
 *
 * Computes  o[s, i, h, :] = sum_j softmax_j(q k_j / sqrt(d)) v_j, one warp a row, a lane d / 32
 *           columns, keys one after the other with a running maximum.
 * Shapes    q, o [b, s_q, h, d]; k, v [b, s_kv, h_kv, d]
 * Bound     instructions: it is a yardstick of errors, not of time.
 * Numerics  BF16 in, FP32 throughout. */
#include <cuda_bf16.h>

#include "bench/bench_impl.h"
#include "core/cuda_check.h"

namespace {

enum { WARPS = 8, LANES = 32 };

__device__ float warp_sum(float x) {
    for (int step = LANES / 2; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}

template <int COLUMNS>
__global__ void reference(float *o, const __nv_bfloat16 *q, const __nv_bfloat16 *k,
                          const __nv_bfloat16 *v, bench_shape x, float scale) {
    const int64_t row = (int64_t)blockIdx.x * WARPS + threadIdx.x / LANES;
    const int lane = threadIdx.x % LANES, d = COLUMNS * LANES;
    const int64_t head = blockIdx.y, s = blockIdx.z, kv_head = head / (x.h / x.h_kv);
    const int64_t at = ((s * x.s_q + row) * x.h + head) * d + lane;
    float mine[COLUMNS], sum[COLUMNS] = {0}, max = -INFINITY, total = 0;

    if (row >= x.s_q) return;
    for (int c = 0; c < COLUMNS; c++) mine[c] = __bfloat162float(q[at + c * LANES]);
    for (int64_t j = 0; j < x.s_kv; j++) {
        const int64_t from = ((s * x.s_kv + j) * x.h_kv + kv_head) * d + lane;
        float dot = 0, next, keep, p;
        for (int c = 0; c < COLUMNS; c++) dot += mine[c] * __bfloat162float(k[from + c * LANES]);
        dot = warp_sum(dot) * scale;
        next = fmaxf(max, dot);
        keep = expf(max - next);
        p = expf(dot - next);
        total = total * keep + p;
        for (int c = 0; c < COLUMNS; c++)
            sum[c] = sum[c] * keep + p * __bfloat162float(v[from + c * LANES]);
        max = next;
    }
    for (int c = 0; c < COLUMNS; c++) o[at + c * LANES] = sum[c] / total;
}

} // namespace

extern "C" fp8_status bench_reference(float *o, const void *q, const void *k, const void *v,
                                      const bench_shape *x, fp8_stream stream) {
    const dim3 grid((unsigned)((x->s_q + WARPS - 1) / WARPS), (unsigned)x->h, (unsigned)x->b);
    const float scale = 1.0f / sqrtf((float)x->d_qk);
    const auto *bq = (const __nv_bfloat16 *)q, *bk = (const __nv_bfloat16 *)k;
    const auto *bv = (const __nv_bfloat16 *)v;
    if (x->d_qk != x->d_v || (x->d_qk != 64 && x->d_qk != 128))
        return FP8_FAIL(FP8_EINVAL, "bench: reference of d_qk %lld, d_v %lld, expected 64 or 128",
                        (long long)x->d_qk, (long long)x->d_v);
    if (x->d_qk == 64)
        reference<2><<<grid, WARPS * LANES, 0, stream>>>(o, bq, bk, bv, *x, scale);
    else reference<4><<<grid, WARPS * LANES, 0, stream>>>(o, bq, bk, bv, *x, scale);
    return fp8_cuda_launched("bench_reference", stream);
}
