/* quant/cast_groups.cu - casts with one scale a row or a column.
 *
 * Computes   descale[g] = amax_g / max, codes = cast(x * (max / amax_g)), and back
 * Shapes     x, codes [rows, cols]; descale [rows] (axis 0) or [cols] (axis 1)
 * Bound      memory: BF16 by rows 3 bytes an element, by columns 5 (two reads)
 * Tiling     rows: a producer (produce_act.cu). Columns: a thread a column, blocks stacked down the
 *            rows, joined by an atomic maximum; made once a checkpoint, so kept plain
 * Numerics   the maximum is one of integers: exact in any order
 */
#include "quant/cast_device.cuh"
#include "quant/gemm_cuda.h"
#include "quant/produce_impl.h"
#include "quant/scale_pair.h"

using namespace fp8;

/* ---- constants ------------------------------------------------------------------------------ */

enum { THREADS = 256, ROWS_PER_BLOCK = 256, BLOCKS_PER_SM = 8 };

/* ---- device helpers ------------------------------------------------------------------------- */

/* Scale and descale from the bits of an amax; both 1 for 0. */
static __device__ void group_scale(uint32_t amax_bits, float q_max, float *scale, float *descale) {
    *scale = *descale = 1.0f;
    if (amax_bits > 0) fp8_scale_pair(q_max, __uint_as_float(amax_bits), scale, descale);
}

static __device__ __forceinline__ uint32_t finite_magnitude(float x) {
    const uint32_t u = magnitude_bits(x);
    return is_finite_bits(u) ? u : 0u;
}

/* ---- kernels -------------------------------------------------------------------------------- */

/* grid: (columns / THREADS, rows / ROWS_PER_BLOCK). amax holds 0 before. */
template <typename T>
static __global__ void __launch_bounds__(THREADS)
column_amax_kernel(uint32_t *__restrict__ amax, const T *__restrict__ x, int64_t rows,
                   int64_t cols) {
    const int64_t c = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    const int64_t begin = (int64_t)blockIdx.y * ROWS_PER_BLOCK;
    const int64_t end = min(begin + ROWS_PER_BLOCK, rows);
    uint32_t most = 0;

    if (c >= cols) return;
    for (int64_t r = begin; r < end; r++)
        most = max(most, finite_magnitude(to_float(x[r * cols + c])));
    atomicMax(&amax[c], most);
}

template <typename T>
static __global__ void __launch_bounds__(THREADS)
encode_columns_kernel(uint8_t *__restrict__ codes, bool e5m2, float q_max,
                      const uint32_t *__restrict__ amax, const T *__restrict__ x, int64_t rows,
                      int64_t cols) {
    const int64_t c = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    const int64_t begin = (int64_t)blockIdx.y * ROWS_PER_BLOCK;
    const int64_t end = min(begin + ROWS_PER_BLOCK, rows);
    float scale, descale;

    if (c >= cols) return;
    group_scale(amax[c], q_max, &scale, &descale);
    for (int64_t r = begin; r < end; r++)
        codes[r * cols + c] = encode(to_float(x[r * cols + c]), scale, e5m2);
}

/* In place: the bits of each amax become its descale. */
static __global__ void __launch_bounds__(THREADS) column_descale_kernel(float *descale, float q_max,
                                                                        int64_t cols) {
    const int64_t c = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    float scale, down;
    if (c >= cols) return;
    group_scale(__float_as_uint(descale[c]), q_max, &scale, &down);
    descale[c] = down;
}

template <typename T>
static __global__ void __launch_bounds__(THREADS)
dequantize_groups_kernel(T *__restrict__ x, const uint8_t *__restrict__ codes, bool e5m2,
                         const float *__restrict__ descale, int64_t rows, int64_t cols,
                         int32_t axis) {
    for (int64_t r = blockIdx.x; r < rows; r += gridDim.x)
        for (int64_t c = threadIdx.x; c < cols; c += THREADS) {
            const float value = decode(codes[r * cols + c], e5m2);
            x[r * cols + c] = from_float<T>(scaled(value, descale[axis ? c : r]));
        }
}

/* ---- launchers ------------------------------------------------------------------------------ */

static fp8_status quantize_columns(fp8_device *d, uint8_t *codes, bool e5m2, float q_max,
                                   float *descale, const void *x, fp8_dtype from, int64_t rows,
                                   int64_t cols) {
    const cudaStream_t stream = fp8_device_stream(d);
    const dim3 grid((unsigned)((cols + THREADS - 1) / THREADS),
                    (unsigned)((rows + ROWS_PER_BLOCK - 1) / ROWS_PER_BLOCK));
    uint32_t *amax = reinterpret_cast<uint32_t *>(descale); /* until the last kernel */
    fp8_status st = FP8_OK;

    if (grid.y > 65535u || cols > INT32_MAX) {
        st = FP8_FAIL(FP8_EINVAL, "quantize_groups: [%lld, %lld] by columns is too large",
                      (long long)rows, (long long)cols);
        goto done;
    }
    FP8_TRY(fp8_device_fill(d, descale, 0, (size_t)cols * sizeof *descale));
    if (rows > 0) {
        FP8_FOR_REAL(from, column_amax_kernel<T><<<grid, THREADS, 0, stream>>>(
                               amax, static_cast<const T *>(x), rows, cols));
        FP8_FOR_REAL(from, encode_columns_kernel<T><<<grid, THREADS, 0, stream>>>(
                               codes, e5m2, q_max, amax, static_cast<const T *>(x), rows, cols));
    }
    column_descale_kernel<<<grid.x, THREADS, 0, stream>>>(descale, q_max, cols);
    FP8_TRY(fp8_cuda_launched("quantize_groups by columns", stream));
done:
    return st;
}

extern "C" fp8_status fp8_cuda_quantize_groups(fp8_device *d, uint8_t *codes, fp8_dtype to,
                                               float *descale, const void *x, fp8_dtype from,
                                               int64_t rows, int64_t cols, int32_t axis) {
    const fp8_sink out = {codes, cols, to, FP8_SINK_TOKEN, nullptr, descale, 0, 0, nullptr, 0,
                          nullptr, nullptr};

    if (axis == 1)
        return quantize_columns(d, codes, to == FP8_DTYPE_E5M2, fp8_max_of(to), descale, x, from,
                                rows, cols);
    if (rows > INT32_MAX || cols > INT32_MAX)
        return FP8_FAIL(FP8_EINVAL, "quantize_groups: [%lld, %lld] is too large", (long long)rows,
                        (long long)cols);
    if (cols == 0) return fp8_cuda_repeat(d, descale, nullptr, rows);
    return fp8_cuda_produce_cast(d, &out, x, from, rows, cols, cols, FP8_LAUNCH_ORDERED);
}

extern "C" fp8_status fp8_cuda_dequantize_groups(fp8_device *d, void *x, fp8_dtype to,
                                                 const uint8_t *codes, fp8_dtype from,
                                                 const float *descale, int64_t rows, int64_t cols,
                                                 int32_t axis) {
    const cudaStream_t stream = fp8_device_stream(d);
    fp8_status st = FP8_OK;
    unsigned blocks = 0;

    FP8_TRY(grid_for(rows, BLOCKS_PER_SM, &blocks));
    FP8_FOR_REAL(to, dequantize_groups_kernel<T><<<blocks, THREADS, 0, stream>>>(
                         static_cast<T *>(x), codes, from == FP8_DTYPE_E5M2, descale, rows, cols,
                         axis));
    FP8_TRY(fp8_cuda_launched("dequantize_groups", stream));
done:
    return st;
}
