/* quant/gemm_store.cu - the store of a matrix product where cuBLASLt cannot make it itself.
 *
 * Computes   v = act(alpha * a_descale[i] * b_descale[j] * sums[i, j] + bias[j]) + residual[i, j],
 *            or, gated, act(v of column j) * v of column n / 2 + j;
 *            d[i, j] = round(v) or cast(v * d_scale), d_amax = max(d_amax, |v|)
 * Shapes     sums F32 [batch, rows, n] with a row stride, D [batch, m, n] F32 | BF16 | F16 | E4M3
 * Bound      memory: 4 bytes read (most of them from the L2 cache) and 1 to 4 written an element,
 *            the residual read
 * Tiling     a block a stretch of a row: row scale once a thread, columns coalesced
 * Numerics   F32, rounded once; in place is safe, each element is read and written by one thread
 */
#include "quant/gemm_cuda.h"
#include "quant/store_device.cuh"

using namespace fp8;

enum { THREADS = 256, BLOCKS_PER_SM = 8 };

/* What the store needs to know, with pointers to the first row stored. */
struct store_args {
    const float *sums; /* NULL: all 0 */
    const float *a_descale, *b_descale;
    const void *bias, *residual;
    const float *d_scale;
    float *d_amax;
    int64_t rows, n, batch, sums_ld, sums_stride, ldd, d_stride, ldr, r_stride;
    int64_t half; /* columns of D of a gated product, else 0 */
    float alpha;
    fp8_dtype bias_dtype, residual_dtype;
    bool a_vector, b_vector, gelu, silu;
};

template <typename T>
static __device__ __forceinline__ void put(T *out, float v, float scale) {
    (void)scale;
    *out = from_float<T>(v);
}
template <> __device__ __forceinline__ void put(uint8_t *out, float v, float scale) {
    *out = encode(v, scale, false);
}

/* Where the columns of one row are. */
struct store_row_args {
    const float *sums;
    const void *residual;
    int64_t residual_at; /* first element of the row */
    float row_scale, d_scale;
};

/* Column j with its descale and bias. */
static __device__ __forceinline__ float sum_at(const store_row_args &row, const store_args &s,
                                               int64_t j) {
    const float scale = s.b_vector ? __fmul_rn(row.row_scale, s.b_descale[j]) : row.row_scale;
    const float v = row.sums ? __fmul_rn(row.sums[j], scale) : 0.0f;
    return s.bias ? __fadd_rn(v, real_at(s.bias, s.bias_dtype, j)) : v;
}

/* One row of D; returns the bits of the largest finite |v| that this thread saw. */
template <typename T>
static __device__ __forceinline__ uint32_t store_row(T *out, const store_row_args &row,
                                                     const store_args &s) {
    uint32_t amax = 0;
    for (int64_t j = threadIdx.x; j < (s.half ? s.half : s.n); j += THREADS) {
        float v = sum_at(row, s, j);
        if (s.gelu || s.silu) v = activate(v, s.silu);
        if (s.half) v = __fmul_rn(v, sum_at(row, s, s.half + j));
        if (s.residual)
            v = __fadd_rn(v, real_at(s.residual, s.residual_dtype, row.residual_at + j));
        if (is_finite_bits(magnitude_bits(v))) amax = max(amax, magnitude_bits(v));
        put(out + j, v, row.d_scale);
    }
    return amax;
}

/* grid: (rows, batch), each strided. */
template <typename T>
static __global__ void __launch_bounds__(THREADS)
store_kernel(T *d, const store_args s) {
    const float b = s.b_descale && !s.b_vector ? *s.b_descale : 1.0f;
    uint32_t amax = 0;

    for (int64_t batch = blockIdx.y; batch < s.batch; batch += gridDim.y)
        for (int64_t i = blockIdx.x; i < s.rows; i += gridDim.x) {
            const float a = s.a_descale ? s.a_descale[s.a_vector ? i : 0] : 1.0f;
            const store_row_args row = {
                s.sums ? s.sums + batch * s.sums_stride + i * s.sums_ld : NULL, s.residual,
                batch * s.r_stride + i * s.ldr, __fmul_rn(__fmul_rn(s.alpha, a), b),
                s.d_scale ? *s.d_scale : 1.0f};
            amax = max(amax, store_row(d + batch * s.d_stride + i * s.ldd, row, s));
        }
    if (!s.d_amax) return;
    amax = warp_max(amax);
    if (threadIdx.x % 32 == 0) atomicMax(reinterpret_cast<unsigned *>(s.d_amax), amax);
}

static __global__ void __launch_bounds__(THREADS)
repeat_kernel(float *__restrict__ out, const float *__restrict__ scalar, int64_t n) {
    const float value = scalar ? *scalar : 1.0f;
    const int64_t total = (int64_t)gridDim.x * THREADS;
    for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < n; i += total)
        out[i] = value;
}

/* ---- launchers ------------------------------------------------------------------------------ */

static store_args make_args(const fp8_gemm *g, const float *sums, int64_t ld, int64_t stride,
                            int64_t row0, int64_t rows) {
    const bool in_sums = g->scaling == FP8_GEMM_BLOCKS; /* descales are in the sums already */
    const bool a_vector = g->a_descale && g->a_descale_count > 1;
    const size_t residual_size = fp8_dtype_size(g->residual_dtype);
    store_args s = {};

    s.sums = sums;
    s.rows = rows, s.n = g->n, s.batch = g->batch > 1 ? g->batch : 1;
    s.sums_ld = ld, s.sums_stride = stride, s.ldd = g->ldd, s.d_stride = g->d_stride;
    s.alpha = g->alpha;
    s.bias = g->bias, s.bias_dtype = g->bias_dtype;
    s.gelu = g->activation == FP8_GEMM_GELU_TANH || g->activation == FP8_GEMM_GEGLU_TANH;
    s.silu = g->activation == FP8_GEMM_SWIGLU;
    s.half = fp8_gemm_is_gated(g->activation) ? g->n / 2 : 0;
    s.d_scale = g->d_scale, s.d_amax = g->d_amax;
    if (g->residual) {
        s.residual = static_cast<const char *>(g->residual) + row0 * g->ldr * residual_size;
        s.residual_dtype = g->residual_dtype, s.ldr = g->ldr, s.r_stride = g->r_stride;
    }
    if (in_sums) return s;
    s.a_descale = a_vector ? g->a_descale + row0 : g->a_descale, s.a_vector = a_vector;
    s.b_descale = g->b_descale, s.b_vector = g->b_descale && g->b_descale_count > 1;
    return s;
}

extern "C" fp8_status fp8_cuda_gemm_store(fp8_device *d, const fp8_gemm *g, const float *sums,
                                          int64_t ld, int64_t stride, int64_t row0, int64_t rows) {
    const cudaStream_t stream = fp8_device_stream(d);
    const store_args s = make_args(g, sums, ld, stride, row0, rows);
    fp8_status st = FP8_OK;
    dim3 grid(1, (unsigned)(s.batch < 65535 ? s.batch : 65535));

    FP8_TRY(grid_for(rows, BLOCKS_PER_SM, &grid.x));
    if (g->d_dtype == FP8_DTYPE_E4M3)
        store_kernel<uint8_t><<<grid, THREADS, 0, stream>>>(
            static_cast<uint8_t *>(g->d) + row0 * g->ldd, s);
    else
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
