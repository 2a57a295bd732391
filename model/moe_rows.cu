/* model/moe_rows.cu - rows of a mixture of experts on CUDA (ops.h).
 *
 * Computes   the experts of each token with their weights; its rows, sorted by expert; the sum of
 *            what experts made of them
 * Shapes     logits [t, e] F32, rows [t * k, hidden]; t to 32768, e to 256, k to 16
 * Bound      combine: memory, (k + 1) * 2 bytes an element of x; 4096 x 4096 of k 2 are 101 MB,
 *            24 us at 4.27 TB/s (H200 copy, measured). choose: latency, 2 k e compares in a row;
 *            sort: e passes over t * k indices out of L2
 * Tiling     choose: a thread a token. sort: a block an expert, which counts the rows of those
 *            before it and then places its own by ballots, in order. combine: a thread an element
 * Numerics   the CPU's steps in their order; expf differs by its last bits
 */
#include <cuda_bf16.h>

#include "model/moe_impl.h"
#include "model/ops_cuda.cuh"

enum { THREADS = 256, CHOOSE_THREADS = 64, WARP = 32, WARPS = THREADS / WARP };

static __device__ inline float round_bf16(float v) {
    return __bfloat162float(__float2bfloat16_rn(v));
}

static __global__ void __launch_bounds__(CHOOSE_THREADS) choose_kernel(fp8_route r) {
    const int64_t t = (int64_t)blockIdx.x * CHOOSE_THREADS + threadIdx.x;

    if (t >= r.tokens) return;
    float *p = r.logits + t * r.experts, *weights = r.weights + t * r.per_token;
    fp8_moe_softmax(p, r.experts);
    fp8_moe_choose(r.chosen + t * r.per_token, weights, p, r.experts, r.per_token, r.normalize);
    for (int64_t c = 0; r.to == FP8_DTYPE_BF16 && c < r.per_token; c++)
        weights[c] = round_bf16(weights[c]);
}

/* The sum of every thread's n. */
static __device__ int32_t block_sum(int32_t n, int32_t *warps) {
    int32_t sum = 0;

    for (int step = WARP / 2; step > 0; step /= 2) n += __shfl_xor_sync(~0u, n, step);
    if (threadIdx.x % WARP == 0) warps[threadIdx.x / WARP] = n;
    __syncthreads();
    for (int w = 0; w < WARPS; w++) sum += warps[w];
    __syncthreads();
    return sum;
}

static __global__ void __launch_bounds__(THREADS) sort_kernel(fp8_route r, int32_t rows) {
    const int32_t expert = (int32_t)blockIdx.x, lane = threadIdx.x % WARP;
    const int32_t warp = (int32_t)threadIdx.x / WARP;
    __shared__ int32_t warps[WARPS];
    int32_t before = 0, next;

    for (int32_t i = (int32_t)threadIdx.x; i < rows; i += THREADS) before += r.chosen[i] < expert;
    next = block_sum(before, warps);
    if (threadIdx.x == 0) {
        r.begin[expert] = next;
        if (expert == 0) r.begin[r.experts] = rows;
    }
    for (int32_t first = 0; first < rows; first += THREADS) {
        const int32_t i = first + (int32_t)threadIdx.x;
        const int mine = i < rows && r.chosen[i] == expert;
        const unsigned votes = __ballot_sync(~0u, mine);
        int32_t row = next + __popc(votes & ((1u << lane) - 1u));
        if (lane == 0) warps[warp] = __popc(votes);
        __syncthreads();
        for (int w = 0; w < WARPS; w++) {
            row += w < warp ? warps[w] : 0;
            next += warps[w];
        }
        __syncthreads();
        if (mine) {
            r.places[i] = row;
            r.from[row] = i / (int32_t)r.per_token;
        }
    }
}

static __device__ inline float load(const float *x, int64_t i) { return x[i]; }
static __device__ inline float load(const __nv_bfloat16 *x, int64_t i) {
    return __bfloat162float(x[i]);
}
static __device__ inline float rounded(const float *, float v) { return v; }
static __device__ inline float rounded(const __nv_bfloat16 *, float v) { return round_bf16(v); }
static __device__ inline void store(float *x, float v) { *x = v; }
static __device__ inline void store(__nv_bfloat16 *x, float v) { *x = __float2bfloat16_rn(v); }

template <typename T>
static __global__ void __launch_bounds__(THREADS) combine_kernel(T *x, fp8_combine c) {
    const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    const T *rows = static_cast<const T *>(c.rows), *shared = static_cast<const T *>(c.shared);

    if (i >= c.tokens * c.hidden) return;
    const int64_t t = i / c.hidden, col = i % c.hidden;
    float sum = 0.0f;
    for (int64_t e = t * c.per_token; e < (t + 1) * c.per_token; e++) {
        const float y = load(rows, c.places[e] * c.hidden + col);
        sum = rounded(x, __fadd_rn(sum, rounded(x, __fmul_rn(y, c.weights[e]))));
    }
    if (shared) {
        const float open = rounded(x, 1.0f / (1.0f + expf(-c.shared_gate[t])));
        sum = rounded(x, __fadd_rn(sum, rounded(x, __fmul_rn(load(shared, i), open))));
    }
    store(x + i, sum);
}

/* ---- launchers ----------------------------------------------------------------------------- */

fp8_status fp8_route_cuda(fp8_device *d, const fp8_route *r) {
    const fp8_stream stream = fp8_device_stream(d);
    fp8_status st = FP8_OK;

    FP8_TRY(fp8_moe_check_route(r));
    if (r->tokens > 0) {
        const int64_t blocks = (r->tokens + CHOOSE_THREADS - 1) / CHOOSE_THREADS;
        choose_kernel<<<(unsigned)blocks, CHOOSE_THREADS, 0, stream>>>(*r);
        FP8_TRY(fp8_cuda_launched("route", stream));
    }
    sort_kernel<<<(unsigned)r->experts, THREADS, 0, stream>>>(*r,
                                                              (int32_t)(r->tokens * r->per_token));
    FP8_TRY(fp8_cuda_launched("sort by expert", stream));
    FP8_TRY(fp8_device_download(d, r->host_begin, r->begin,
                                (size_t)(r->experts + 1) * sizeof *r->begin));
done:
    return st;
}

fp8_status fp8_combine_cuda(fp8_device *d, void *x, const fp8_combine *c) {
    const int64_t blocks = (c->tokens * c->hidden + THREADS - 1) / THREADS;
    const fp8_stream stream = fp8_device_stream(d);
    fp8_status st = FP8_OK;

    FP8_TRY(fp8_moe_check_combine(x, c));
    if (blocks == 0) return FP8_OK;
    if (blocks > INT32_MAX)
        return FP8_FAIL(FP8_EINVAL, "combine: %lld elements", (long long)(c->tokens * c->hidden));
    if (c->dtype == FP8_DTYPE_BF16)
        combine_kernel<<<(unsigned)blocks, THREADS, 0, stream>>>(
            static_cast<__nv_bfloat16 *>(x), *c);
    else
        combine_kernel<<<(unsigned)blocks, THREADS, 0, stream>>>(static_cast<float *>(x), *c);
    st = fp8_cuda_launched("combine", stream);
done:
    return st;
}
