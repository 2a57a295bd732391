/* quant/cast_groups.cu - casts with one scale a row or a column.
 *
 * Computes   descale[g] = amax_g / max, codes = cast(x * (max / amax_g)), and back
 * Shapes     x, codes [rows, cols]; descale [rows] (axis 0) or [cols] (axis 1)
 * Bound      memory: rows are read twice, the second time out of the L1 or L2 cache: BF16 3 bytes
 *            an element as in cast.cu. Columns: 5 bytes (two reads)
 * Tiling     rows: a block a row. Columns: a thread a column, blocks stacked down the rows, joined
 *            by an atomic maximum; made once a checkpoint, so kept plain
 * Numerics   the maximum is one of integers: exact in any order
 */
#include "quant/cast_device.cuh"
#include "quant/cuda_ops.h"
#include "quant/scale_pair.h"

using namespace fp8;

/* ---- constants ------------------------------------------------------------------------------ */

enum { THREADS = 256, WARPS = THREADS / 32, ROWS_PER_BLOCK = 256, BLOCKS_PER_SM = 8 };

/* ---- device helpers ------------------------------------------------------------------------- */

/* Scale and descale from the bits of an amax; both 1 for 0. */
static __device__ void group_scale(uint32_t amax_bits, float q_max, float *scale, float *descale) {
    *scale = *descale = 1.0f;
    if (amax_bits > 0) fp8_scale_pair(q_max, __uint_as_float(amax_bits), scale, descale);
}

/* The maximum over the block, in every thread. */
static __device__ uint32_t block_max(uint32_t v) {
    __shared__ uint32_t part[WARPS];
    v = warp_max(v);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = v;
    __syncthreads();
    v = part[0];
    for (int w = 1; w < WARPS; w++) v = max(v, part[w]);
    return v;
}

static __device__ __forceinline__ uint32_t finite_magnitude(float x) {
    const uint32_t u = magnitude_bits(x);
    return is_finite_bits(u) ? u : 0u;
}

/* ---- kernels -------------------------------------------------------------------------------- */

/* grid: rows. n_vec: whole vectors a row, 0 where rows are not aligned. */
template <typename T>
static __global__ void __launch_bounds__(THREADS)
quantize_rows_kernel(uint8_t *__restrict__ codes, bool e5m2, float q_max,
                     float *__restrict__ descale, const T *__restrict__ x, int64_t cols,
                     int64_t n_vec) {
    enum { N = vector16<T>::COUNT };
    const int64_t row = blockIdx.x;
    const T *x_row = x + row * cols;
    uint8_t *codes_row = codes + row * cols;
    uint32_t most = 0;
    float scale, down;

    for (int64_t v = threadIdx.x; v < n_vec; v += THREADS) {
        const vector16<T> in = reinterpret_cast<const vector16<T> *>(x_row)[v];
#pragma unroll
        for (int k = 0; k < N; k++) most = max(most, finite_magnitude(to_float(in.at[k])));
    }
    for (int64_t c = n_vec * N + threadIdx.x; c < cols; c += THREADS)
        most = max(most, finite_magnitude(to_float(x_row[c])));
    group_scale(block_max(most), q_max, &scale, &down);
    if (threadIdx.x == 0) descale[row] = down;
    for (int64_t v = threadIdx.x; v < n_vec; v += THREADS) {
        const vector16<T> in = reinterpret_cast<const vector16<T> *>(x_row)[v];
#pragma unroll
        for (int k = 0; k < N; k += 4) {
            uchar4 out;
            out.x = encode(to_float(in.at[k]), scale, e5m2);
            out.y = encode(to_float(in.at[k + 1]), scale, e5m2);
            out.z = encode(to_float(in.at[k + 2]), scale, e5m2);
            out.w = encode(to_float(in.at[k + 3]), scale, e5m2);
            reinterpret_cast<uchar4 *>(codes_row + v * N)[k / 4] = out;
        }
    }
    for (int64_t c = n_vec * N + threadIdx.x; c < cols; c += THREADS)
        codes_row[c] = encode(to_float(x_row[c]), scale, e5m2);
}

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
    const cudaStream_t stream = fp8_device_stream(d);
    const bool e5m2 = to == FP8_DTYPE_E5M2;
    const float q_max = fp8_max_of(to);
    const int64_t count = VECTOR_BYTES / (int64_t)fp8_dtype_size(from);
    const bool fits = aligned16(x) && (uintptr_t)codes % 4 == 0 && cols % count == 0;
    fp8_status st = FP8_OK;

    if (axis == 1)
        return quantize_columns(d, codes, e5m2, q_max, descale, x, from, rows, cols);
    if (rows > INT32_MAX) {
        st = FP8_FAIL(FP8_EINVAL, "quantize_groups: %lld rows", (long long)rows);
        goto done;
    }
    FP8_FOR_REAL(from, quantize_rows_kernel<T><<<(unsigned)rows, THREADS, 0, stream>>>(
                           codes, e5m2, q_max, descale, static_cast<const T *>(x), cols,
                           fits ? cols / count : 0));
    FP8_TRY(fp8_cuda_launched("quantize_groups by rows", stream));
done:
    return st;
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
