/* quant/observe.cu - what calibration measures: amax of an activation, and the error of a static
 * scale.
 *
 * Computes   observe: max |x| over finite x, the same without first rows, count of the others; on
 *            request a histogram of |x|
 *            measure: sums of x^2 and (x - qdq(x))^2, counts, a histogram of |x|
 * Shapes     x [rows, cols], row stride any
 * Bound      memory, one read: BF16 [4096, 4096] is 34 MB, at the H200's 4.55 TB/s read rate 7.4
 *            us. Runs at every observed point of every layer, so nothing is launched twice. With
 *            bins: an increment in shared memory an element, 32 lanes of one instruction at a
 *            time, as many cycles as there are different bins among them
 * Tiling     a row is cut into segments of UNROLL x 32 vectors of 16 bytes; warps take segments,
 *            grid-stride, so that the division into row and segment is paid once in 2 KiB.
 *            A row that is not 16-byte aligned is read element by element, still coalesced
 * Numerics   maxima of float bits and integer counts are exact in any order. The double sums go to
 *            a slot a block and are added in order by one thread: the same on every GPU, every run
 */
#include "quant/cast_device.cuh"
#include "quant/cuda_ops.h"

using namespace fp8;

/* ---- constants ------------------------------------------------------------------------------ */

enum {
    THREADS = 256,
    WARPS = THREADS / 32,
    BLOCKS_PER_SM = 8, /* 64 warps: all an SM holds */
    BINS_BLOCKS_PER_SM = 4, /* each adds its bins to the one histogram at its end */
    UNROLL = 4,        /* loads of 16 bytes in flight a thread */
    FIRST_INFINITE = 0x7f800000 >> 20, /* the bin where infinity lies, and NaN above */
    MEASURE_BLOCKS = 512 /* fixed, so that the order of the sums is */
};

/* ---- device helpers ------------------------------------------------------------------------- */

/* What both kernels walk over. */
template <typename T> struct rows_view {
    const T *x;
    int64_t rows, cols, stride, segments; /* segments a row */
};

enum { SEGMENT_VECTORS = UNROLL * 32 };

/* Calls visit(value) for this lane's elements of a segment of a row. */
template <typename T, typename F>
static __device__ __forceinline__ void visit_segment(const rows_view<T> &v, int64_t row,
                                                     int64_t segment, F visit) {
    enum { N = vector16<T>::COUNT };
    const T *x = v.x + row * v.stride;
    const int lane = threadIdx.x % 32;
    const int64_t begin = segment * SEGMENT_VECTORS * N;
    const int64_t end = min(begin + (int64_t)SEGMENT_VECTORS * N, v.cols);
    const bool aligned = (uintptr_t)x % VECTOR_BYTES == 0;
    const int n_vec = aligned ? (int)(end - begin) / N : 0;
    const vector16<T> *from = reinterpret_cast<const vector16<T> *>(x + begin) + lane;
    vector16<T> in[UNROLL];

#pragma unroll
    for (int u = 0; u < UNROLL; u++)
        if (u * 32 + lane < n_vec) in[u] = from[u * 32];
#pragma unroll
    for (int u = 0; u < UNROLL; u++) {
        if (u * 32 + lane >= n_vec) break;
#pragma unroll
        for (int k = 0; k < N; k++) visit(to_float(in[u].at[k]));
    }
    for (int64_t c = begin + n_vec * N + lane; c < end; c += 32) visit(to_float(x[c]));
}

/* Most blocks find nothing larger than what is there: look before the atomic. */
static __device__ void raise_to(float *slot, uint32_t bits) {
    uint32_t *u = reinterpret_cast<uint32_t *>(slot);
    if (bits > *reinterpret_cast<volatile uint32_t *>(u)) atomicMax(u, bits);
}

/* ---- observe -------------------------------------------------------------------------------- */

template <typename T, bool BINS>
static __global__ void __launch_bounds__(THREADS)
observe_kernel(fp8_amax_slot *__restrict__ slot, fp8_magnitudes *__restrict__ all_bins,
               rows_view<T> v, const uint8_t *__restrict__ first) {
    __shared__ uint32_t part[3][WARPS], bins[BINS ? FP8_ERROR_BINS : 1];
    const int warp = threadIdx.x / 32;
    const int64_t units = v.rows * v.segments, step = (int64_t)gridDim.x * WARPS;
    uint32_t amax = 0, later = 0, others = 0;

    if (BINS) {
        for (int b = threadIdx.x; b < FP8_ERROR_BINS; b += THREADS) bins[b] = 0;
        __syncthreads();
    }
    for (int64_t unit = (int64_t)blockIdx.x * WARPS + warp; unit < units; unit += step) {
        const int64_t row = unit / v.segments;
        uint32_t most = 0;
        visit_segment(v, row, unit % v.segments, [&](float x) {
            const uint32_t u = magnitude_bits(x);
            const bool finite = is_finite_bits(u);
            most = max(most, finite ? u : 0u);
            others += !finite;
            if (BINS) atomicAdd(&bins[u >> 20], 1u); /* what is not finite is left there */
        });
        amax = max(amax, most);
        if (!first || !first[row]) later = max(later, most);
    }
    amax = warp_max(amax);
    later = warp_max(later);
    others = warp_sum(others);
    if (threadIdx.x % 32 == 0) {
        part[0][warp] = amax;
        part[1][warp] = later;
        part[2][warp] = others;
    }
    __syncthreads();
    for (int b = threadIdx.x; BINS && b < FIRST_INFINITE; b += THREADS)
        if (bins[b])
            atomicAdd(reinterpret_cast<unsigned long long *>(&all_bins->bins[b]),
                      (unsigned long long)bins[b]);
    if (threadIdx.x != 0) return;
    for (int w = 1; w < WARPS; w++) {
        amax = max(amax, part[0][w]);
        later = max(later, part[1][w]);
        others += part[2][w];
    }
    raise_to(&slot->amax, amax);
    raise_to(&slot->amax_without_first, later);
    if (others) atomicAdd(&slot->nonfinite, others);
}

/* ---- error of a static scale ---------------------------------------------------------------- */

static __device__ double warp_sum(double v) {
    for (int off = 16; off > 0; off >>= 1) v += __shfl_xor_sync(0xffffffffu, v, off);
    return v;
}

/* sums [MEASURE_BLOCKS][2]: this block's signal and noise. */
template <typename T>
static __global__ void __launch_bounds__(THREADS)
measure_kernel(fp8_error_stats *__restrict__ out, double *__restrict__ sums, rows_view<T> v,
               bool e5m2, float q_max, const float *__restrict__ scale_ptr,
               const float *__restrict__ descale_ptr) {
    __shared__ uint32_t bins[FP8_ERROR_BINS];
    __shared__ double part[2][WARPS];
    __shared__ unsigned long long counted, over;
    const float scale = *scale_ptr, descale = *descale_ptr;
    const int warp = threadIdx.x / 32;
    const int64_t units = v.rows * v.segments, step = (int64_t)gridDim.x * WARPS;
    double signal = 0, noise = 0;
    unsigned long long count = 0, clipped = 0;

    for (int b = threadIdx.x; b < FP8_ERROR_BINS; b += THREADS) bins[b] = 0;
    if (threadIdx.x == 0) counted = over = 0;
    __syncthreads();
    for (int64_t unit = (int64_t)blockIdx.x * WARPS + warp; unit < units; unit += step)
        visit_segment(v, unit / v.segments, unit % v.segments, [&](float x) {
            const uint32_t u = magnitude_bits(x);
            if (!is_finite_bits(u)) return;
            const float back = __fmul_rn(decode(encode(x, scale, e5m2), e5m2), descale);
            const double error = (double)x - (double)back;
            signal += (double)x * (double)x;
            noise += error * error;
            count++;
            clipped += fabsf(__fmul_rn(x, scale)) > q_max;
            atomicAdd(&bins[u >> 20], 1u);
        });
    signal = warp_sum(signal);
    noise = warp_sum(noise);
    if (threadIdx.x % 32 == 0) {
        part[0][warp] = signal;
        part[1][warp] = noise;
    }
    atomicAdd(&counted, count);
    atomicAdd(&over, clipped);
    __syncthreads();
    for (int b = threadIdx.x; b < FP8_ERROR_BINS; b += THREADS)
        if (bins[b])
            atomicAdd(reinterpret_cast<unsigned long long *>(&out->bins[b]),
                      (unsigned long long)bins[b]);
    if (threadIdx.x != 0) return;
    for (int w = 1; w < WARPS; w++) {
        signal += part[0][w];
        noise += part[1][w];
    }
    sums[2 * blockIdx.x] = signal;
    sums[2 * blockIdx.x + 1] = noise;
    atomicAdd(reinterpret_cast<unsigned long long *>(&out->count), counted);
    atomicAdd(reinterpret_cast<unsigned long long *>(&out->clipped), over);
}

/* One thread a sum, in the order of the blocks. */
static __global__ void add_sums_kernel(fp8_error_stats *__restrict__ out,
                                       const double *__restrict__ sums, unsigned blocks) {
    double total = 0;
    for (unsigned b = 0; b < blocks; b++) total += sums[2 * b + threadIdx.x];
    if (threadIdx.x == 0) out->signal += total;
    else out->noise += total;
}

/* ---- launchers ------------------------------------------------------------------------------ */

template <typename T>
static rows_view<T> view_of(const void *x, int64_t rows, int64_t cols, int64_t stride) {
    const int64_t per = (int64_t)SEGMENT_VECTORS * vector16<T>::COUNT;
    return {static_cast<const T *>(x), rows, cols, stride, (cols + per - 1) / per};
}

/* Blocks that have a segment for every warp. */
template <typename T> static int64_t blocks_wanted(const rows_view<T> &v) {
    return (v.rows * v.segments + WARPS - 1) / WARPS;
}

template <typename T>
static fp8_status launch_observe(cudaStream_t stream, fp8_amax_slot *out, fp8_magnitudes *bins,
                                 const rows_view<T> &v, const uint8_t *first) {
    unsigned blocks = 0;
    fp8_status st = grid_for(blocks_wanted(v), bins ? BINS_BLOCKS_PER_SM : BLOCKS_PER_SM, &blocks);
    if (st != FP8_OK) return st;
    if (bins) observe_kernel<T, true><<<blocks, THREADS, 0, stream>>>(out, bins, v, first);
    else observe_kernel<T, false><<<blocks, THREADS, 0, stream>>>(out, bins, v, first);
    return fp8_cuda_launched("observe", stream);
}

extern "C" fp8_status fp8_cuda_observe(fp8_device *d, fp8_amax_slot *out, fp8_magnitudes *bins,
                                       const void *x, fp8_dtype dtype, int64_t rows, int64_t cols,
                                       int64_t stride, const uint8_t *first) {
    FP8_FOR_REAL(dtype, return launch_observe(fp8_device_stream(d), out, bins,
                                              view_of<T>(x, rows, cols, stride), first));
}

extern "C" size_t fp8_cuda_measure_error_workspace(const fp8_device *d) {
    (void)d;
    return MEASURE_BLOCKS * 2 * sizeof(double);
}

template <typename T>
static fp8_status launch_measure(cudaStream_t stream, fp8_error_stats *out, const rows_view<T> &v,
                                 fp8_dtype to, const float *scale, const float *descale,
                                 double *sums) {
    const int64_t wanted = blocks_wanted(v), most = MEASURE_BLOCKS;
    const unsigned blocks = (unsigned)(wanted < most ? wanted : most);
    fp8_status st;

    measure_kernel<T><<<blocks, THREADS, 0, stream>>>(out, sums, v, to == FP8_DTYPE_E5M2,
                                                      fp8_max_of(to), scale, descale);
    st = fp8_cuda_launched("measure_error", stream);
    if (st != FP8_OK) return st;
    add_sums_kernel<<<1, 2, 0, stream>>>(out, sums, blocks);
    return fp8_cuda_launched("measure_error, sums", stream);
}

extern "C" fp8_status fp8_cuda_measure_error(fp8_device *d, fp8_error_stats *out, const void *x,
                                             fp8_dtype dtype, int64_t rows, int64_t cols,
                                             int64_t stride, fp8_dtype to, const float *scale,
                                             const float *descale, void *workspace) {
    FP8_FOR_REAL(dtype, return launch_measure(fp8_device_stream(d), out,
                                              view_of<T>(x, rows, cols, stride), to, scale,
                                              descale, static_cast<double *>(workspace)));
}
