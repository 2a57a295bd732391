/* quant/gemm_store.cu - the store of a matrix product where cuBLASLt cannot make it itself.
 *
 * Computes   d[i, j] = round(alpha * a_descale[i] * b_descale[j] * sums[i, j] + bias[j])
 * Shapes     sums F32 [batch, rows, n] with a row stride, D [batch, m, n] F32 | BF16 | F16
 * Bound      memory: 4 bytes read (most of them from the L2 cache) and 2 or 4 written an element
 * Tiling     a block a stretch of a row: row scale once a thread, columns coalesced
 * Numerics   F32, rounded once; in place is safe, each element is read and written by one thread
 */
#include "quant/cast_device.cuh"
#include "quant/gemm_cuda.h"

using namespace fp8;

enum { THREADS = 256, BLOCKS_PER_SM = 8 };

/* What the store needs to know, with pointers to the first row stored. */
struct store_args {
    const float *sums; /* NULL: all 0 */
    const float *a_descale, *b_descale;
    const void *bias;
    int64_t rows, n, batch, sums_ld, sums_stride, ldd, d_stride;
    float alpha;
    fp8_dtype bias_dtype;
    bool a_vector, b_vector;
};

static __device__ __forceinline__ float bias_at(const store_args &s, int64_t j) {
    if (!s.bias) return 0.0f;
    if (s.bias_dtype == FP8_DTYPE_F32) return static_cast<const float *>(s.bias)[j];
    if (s.bias_dtype == FP8_DTYPE_BF16)
        return to_float(static_cast<const __nv_bfloat16 *>(s.bias)[j]);
    return to_float(static_cast<const __half *>(s.bias)[j]);
}

/* One row of D. */
template <typename T>
static __device__ __forceinline__ void store_row(T *out, const float *sums, const store_args &s,
                                                 float row_scale) {
    for (int64_t j = threadIdx.x; j < s.n; j += THREADS) {
        const float scale = s.b_vector ? __fmul_rn(row_scale, s.b_descale[j]) : row_scale;
        const float value = sums ? __fmul_rn(sums[j], scale) : 0.0f;
        out[j] = from_float<T>(s.bias ? __fadd_rn(value, bias_at(s, j)) : value);
    }
}

/* grid: (rows, batch), each strided. */
template <typename T>
static __global__ void __launch_bounds__(THREADS, 6) /* 40 registers: 32 spill on sm_80 */
store_kernel(T *d, const store_args s) {
    const float b = s.b_descale && !s.b_vector ? *s.b_descale : 1.0f;

    for (int64_t batch = blockIdx.y; batch < s.batch; batch += gridDim.y)
        for (int64_t row = blockIdx.x; row < s.rows; row += gridDim.x) {
            const float a = s.a_descale ? s.a_descale[s.a_vector ? row : 0] : 1.0f;
            const float *sums = s.sums ? s.sums + batch * s.sums_stride + row * s.sums_ld : NULL;
            store_row(d + batch * s.d_stride + row * s.ldd, sums, s,
                      __fmul_rn(__fmul_rn(s.alpha, a), b));
        }
}

static __global__ void __launch_bounds__(THREADS)
repeat_kernel(float *__restrict__ out, const float *__restrict__ scalar, int64_t n) {
    const float value = scalar ? *scalar : 1.0f;
    const int64_t total = (int64_t)gridDim.x * THREADS;
    for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < n; i += total)
        out[i] = value;
}

/* ---- launchers ------------------------------------------------------------------------------ */

extern "C" fp8_status fp8_cuda_gemm_store(fp8_device *d, const fp8_gemm *g, const float *sums,
                                          int64_t ld, int64_t stride, int64_t row0, int64_t rows) {
    const cudaStream_t stream = fp8_device_stream(d);
    const bool a_vector = g->a_descale && g->a_descale_count > 1;
    const bool b_vector = g->b_descale && g->b_descale_count > 1;
    const int64_t batch = g->batch > 1 ? g->batch : 1;
    const store_args s = {sums, a_vector ? g->a_descale + row0 : g->a_descale, g->b_descale,
                          g->bias, rows, g->n, batch, ld, stride, g->ldd, g->d_stride, g->alpha,
                          g->bias_dtype, a_vector, b_vector};
    fp8_status st = FP8_OK;
    dim3 grid(1, (unsigned)(batch < 65535 ? batch : 65535));

    FP8_TRY(grid_for(rows, BLOCKS_PER_SM, &grid.x));
    FP8_FOR_REAL(g->d_dtype, store_kernel<T><<<grid, THREADS, 0, stream>>>(
                                 static_cast<T *>(g->d) + row0 * g->ldd, s));
    FP8_TRY(fp8_cuda_launched("gemm store", stream));
done:
    return st;
}

extern "C" fp8_status fp8_cuda_repeat(fp8_device *d, float *out, const float *scalar, int64_t n) {
    const cudaStream_t stream = fp8_device_stream(d);
    fp8_status st = FP8_OK;
    unsigned blocks = 0;

    FP8_TRY(grid_for((n + THREADS - 1) / THREADS, BLOCKS_PER_SM, &blocks));
    repeat_kernel<<<blocks, THREADS, 0, stream>>>(out, scalar, n);
    FP8_TRY(fp8_cuda_launched("gemm repeat", stream));
done:
    return st;
}
