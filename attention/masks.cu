/* attention/masks.cu - masks brought into the form of attention.h, and the Hadamard rotation.
 *
 * Computes   bias[i] = mask[i] ? -inf : 0
 *            lengths[r] = count of zeros of mask[r, :], starts = their exclusive sums
 *            y[r, :] = H (signs * x[r, :]) / sqrt(d)
 * Shapes     n; [b, s]; [rows, d], d = 64, 128, 256
 * Bound      memory. Hadamard, BF16: 4 bytes an element; 24 heads x 4608 tokens x 128 are 57 MB,
 *            13 us at the H200's copy rate of 4.27 TB/s
 * Tiling     Hadamard: a lane holds 8 elements of a row, d / 8 lanes a row: three steps of the
 *            butterfly in registers, the other three to five by shuffles
 * Numerics   F32, one multiplication, log2(d) additions an element, one rounding
 */
#include "attention/element.cuh"
#include "attention/masks_cuda.h"
#include "core/cuda_check.h"

using namespace attention;

/* ---- constants ------------------------------------------------------------------------------- */

enum { THREADS = 256, SCAN_THREADS = 1024, MAX_BLOCKS = 65535 };

/* ---- masks ----------------------------------------------------------------------------------- */

static __global__ void __launch_bounds__(THREADS)
mask_to_bias_kernel(float *__restrict__ bias, const uint8_t *__restrict__ mask, int64_t n) {
    for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < n;
         i += (int64_t)gridDim.x * THREADS)
        bias[i] = mask[i] ? -INFINITY : 0.0f;
}

/* A block a sequence, grid-stride. */
static __global__ void __launch_bounds__(THREADS)
count_kernel(int32_t *__restrict__ counts, const uint8_t *__restrict__ mask, int64_t b,
             int64_t s) {
    __shared__ int warp_sums[THREADS / WARP];
    for (int64_t row = blockIdx.x; row < b; row += gridDim.x) {
        int count = 0;
        for (int64_t i = threadIdx.x; i < s; i += THREADS) count += mask[row * s + i] == 0;
        for (int off = WARP / 2; off > 0; off >>= 1)
            count += __shfl_xor_sync(0xffffffffu, count, off);
        if (threadIdx.x % WARP == 0) warp_sums[threadIdx.x / WARP] = count;
        __syncthreads();
        if (threadIdx.x == 0) {
            for (int w = 1; w < THREADS / WARP; w++) count += warp_sums[w];
            counts[row] = count;
        }
        __syncthreads();
    }
}

/* One block. starts[i + 1] = sum of counts[0 .. i]; counts may be starts + 1. */
static __global__ void __launch_bounds__(SCAN_THREADS)
starts_kernel(int32_t *starts, const int32_t *counts, int64_t b) {
    __shared__ int32_t warp_sums[SCAN_THREADS / WARP];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    int32_t before = 0;

    if (threadIdx.x == 0) starts[0] = 0;
    for (int64_t at = 0; at < b; at += SCAN_THREADS) {
        const int64_t i = at + threadIdx.x;
        int32_t sum = i < b ? counts[i] : 0, warps_before = 0, all = 0;
        for (int off = 1; off < WARP; off <<= 1) {
            const int32_t y = __shfl_up_sync(0xffffffffu, sum, off);
            if (lane >= off) sum += y;
        }
        if (lane == WARP - 1) warp_sums[warp] = sum;
        __syncthreads();
        for (int w = 0; w < SCAN_THREADS / WARP; w++) {
            if (w < warp) warps_before += warp_sums[w];
            all += warp_sums[w];
        }
        if (i < b) starts[i + 1] = before + warps_before + sum;
        before += all;
        __syncthreads(); /* NOTE: warp_sums is written again */
    }
}

/* ---- Hadamard -------------------------------------------------------------------------------- */

/* Warps take WARP / LANES rows at a time, grid-stride. whole: rows lie on 16 bytes. All lanes of a
 * row have read it before one of them writes: y may be x. */
template <typename T, int LANES>
static __global__ void __launch_bounds__(THREADS)
hadamard_kernel(T *y, const T *x, const float *__restrict__ signs, int64_t rows, bool whole) {
    enum { D = LANES * VEC, ROWS = THREADS / LANES };
    const int lane = threadIdx.x % LANES;
    const float norm = D == 64 ? 0.125f : D == 128 ? 0.08838834764831845f : 0.0625f;
    const int64_t step = (int64_t)gridDim.x * ROWS;
    float sign[VEC];

    load_as(sign, signs + lane * VEC, VEC, false);
#pragma unroll
    for (int i = 0; i < VEC; i++) sign[i] *= norm;
    for (int64_t row0 = (int64_t)blockIdx.x * ROWS; row0 < rows; row0 += step) {
        const int64_t row = row0 + threadIdx.x / LANES;
        const int64_t at = row * D + lane * VEC;
        float v[VEC];

        load_as(v, x + at, row < rows ? int64_t(VEC) : 0, whole && row < rows);
#pragma unroll
        for (int i = 0; i < VEC; i++) v[i] *= sign[i];
#pragma unroll
        for (int step = 1; step < VEC; step *= 2)
#pragma unroll
            for (int i = 0; i < VEC; i++)
                if ((i & step) == 0) {
                    const float a = v[i], b = v[i + step];
                    v[i] = a + b;
                    v[i + step] = a - b;
                }
#pragma unroll
        for (int step = 1; step < LANES; step *= 2)
#pragma unroll
            for (int i = 0; i < VEC; i++)
                v[i] = fmaf(v[i], (lane & step) ? -1.0f : 1.0f,
                            __shfl_xor_sync(0xffffffffu, v[i], step));
        if (row < rows) store_as(y + at, v, VEC, whole);
    }
}

/* ---- launchers ------------------------------------------------------------------------------- */

static unsigned blocks_for(int64_t units) {
    if (units < 1) return 1;
    return units < MAX_BLOCKS ? (unsigned)units : (unsigned)MAX_BLOCKS;
}

extern "C" fp8_status attention_cuda_mask_to_bias(fp8_device *d, float *bias, const uint8_t *mask,
                                                  int64_t n) {
    const cudaStream_t stream = fp8_device_stream(d);
    mask_to_bias_kernel<<<blocks_for((n + THREADS - 1) / THREADS), THREADS, 0, stream>>>(bias, mask,
                                                                                         n);
    return fp8_cuda_launched("attention mask to bias", stream);
}

extern "C" fp8_status attention_cuda_padding_to_lengths(fp8_device *d, int32_t *starts,
                                                        int32_t *lengths, const uint8_t *mask,
                                                        int64_t b, int64_t s) {
    const cudaStream_t stream = fp8_device_stream(d);
    int32_t *counts = lengths ? lengths : starts + 1;
    fp8_status st = FP8_OK;

    if (b > 0) {
        count_kernel<<<blocks_for(b), THREADS, 0, stream>>>(counts, mask, b, s);
        FP8_TRY(fp8_cuda_launched("attention padding to lengths", stream));
    }
    if (!starts) goto done;
    starts_kernel<<<1, SCAN_THREADS, 0, stream>>>(starts, counts, b);
    FP8_TRY(fp8_cuda_launched("attention lengths to starts", stream));
done:
    return st;
}

template <typename T>
static void launch_hadamard(void *y, const void *x, const float *signs, int64_t rows,
                            int32_t head_dim, cudaStream_t stream) {
    const bool whole = ((uintptr_t)x | (uintptr_t)y) % 16 == 0;
    const unsigned blocks = blocks_for((rows * head_dim + THREADS * VEC - 1) / (THREADS * VEC));
    T *to = static_cast<T *>(y);
    const T *from = static_cast<const T *>(x);
    if (head_dim == 64)
        hadamard_kernel<T, 8><<<blocks, THREADS, 0, stream>>>(to, from, signs, rows, whole);
    else if (head_dim == 128)
        hadamard_kernel<T, 16><<<blocks, THREADS, 0, stream>>>(to, from, signs, rows, whole);
    else hadamard_kernel<T, 32><<<blocks, THREADS, 0, stream>>>(to, from, signs, rows, whole);
}

extern "C" fp8_status attention_cuda_hadamard(fp8_device *d, void *y, const void *x,
                                              fp8_dtype dtype, const float *signs, int64_t rows,
                                              int32_t head_dim) {
    const cudaStream_t stream = fp8_device_stream(d);
    if (dtype == FP8_DTYPE_BF16)
        launch_hadamard<__nv_bfloat16>(y, x, signs, rows, head_dim, stream);
    else if (dtype == FP8_DTYPE_F16)
        launch_hadamard<__half>(y, x, signs, rows, head_dim, stream);
    else launch_hadamard<float>(y, x, signs, rows, head_dim, stream);
    return fp8_cuda_launched("attention hadamard", stream);
}
