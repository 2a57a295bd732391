/* quant/cast.cu - casts between F32, BF16, F16 and FP8 with one scale for all.
 *
 * Computes   codes[i] = cast(x[i] * scale);  x[i] = round(code[i] * descale)
 * Shapes     n elements
 * Bound      memory: BF16 3 bytes an element either way, F32 5. n = 2^28 BF16: 0.81 GB; at the
 *            H200's copy rate of 4.27 TB/s 0.19 ms
 * Tiling     a thread takes 16 bytes of the wide type, quantizing UNROLL of them, and ends
 * Numerics   product in F32, one rounding; see cast_device.cuh
 */
#include "quant/cast_device.cuh"
#include "quant/cuda_ops.h"

using namespace fp8;

/* ---- constants ------------------------------------------------------------------------------ */

/* Blocks that end after one look: 95 % of the copy's rate, where blocks that stay and stride
 * through everything had 81 to 89 (dequantize, H200). BLOCKS_PER_SM: where nothing is aligned. */
enum { THREADS = 256, BLOCKS_PER_SM = 8, UNROLL = 2 };

/* ---- kernels -------------------------------------------------------------------------------- */

/* N codes as one load or store. */
template <int N> struct alignas(N) codes_of {
    uint32_t word[N / 4];
};

/* A NaN keeps its sign, which takes the slower steps. */
template <typename T>
static __device__ __forceinline__ void dequantize4(T *out, uint32_t codes, float descale,
                                                   bool e5m2) {
    float v[4];

    decode4(v, codes, e5m2);
    if (any_special_code(codes, e5m2)) {
#pragma unroll
        for (int k = 0; k < 4; k++) out[k] = from_float<T>(scaled(v[k], descale));
        return;
    }
#pragma unroll
    for (int k = 0; k < 4; k++) v[k] = __fmul_rn(v[k], descale);
    narrow4(out, v);
}

template <typename T>
static __global__ void __launch_bounds__(THREADS)
quantize_kernel(uint8_t *__restrict__ codes, bool e5m2, const T *__restrict__ x, int64_t n,
                int64_t n_vec, const float *__restrict__ scale_ptr) {
    enum { N = vector16<T>::COUNT };
    const float scale = scale_ptr ? *scale_ptr : 1.0f;
    const int64_t tid = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    const int64_t total = (int64_t)gridDim.x * THREADS;

    const int64_t first = (int64_t)blockIdx.x * THREADS * UNROLL + threadIdx.x;
    vector16<T> in[UNROLL];

#pragma unroll
    for (int u = 0; u < UNROLL; u++)
        if (first + u * THREADS < n_vec)
            in[u] = reinterpret_cast<const vector16<T> *>(x)[first + u * THREADS];
#pragma unroll
    for (int u = 0; u < UNROLL; u++) {
        codes_of<N> out;
        float v[N];
        if (first + u * THREADS >= n_vec) continue;
#pragma unroll
        for (int k = 0; k < N; k++) v[k] = to_float(in[u].at[k]);
#pragma unroll
        for (int w = 0; w < N / 4; w++) out.word[w] = encode4<true>(v + 4 * w, scale, e5m2);
        reinterpret_cast<codes_of<N> *>(codes)[first + u * THREADS] = out;
    }
    for (int64_t i = n_vec * N + tid; i < n; i += total)
        codes[i] = encode(to_float(x[i]), scale, e5m2);
}

template <typename T>
static __global__ void __launch_bounds__(THREADS)
dequantize_kernel(T *__restrict__ x, const uint8_t *__restrict__ codes, bool e5m2, int64_t n,
                  int64_t n_vec, const float *__restrict__ descale_ptr) {
    enum { N = vector16<T>::COUNT };
    const float descale = descale_ptr ? *descale_ptr : 1.0f;
    const int64_t tid = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    const int64_t total = (int64_t)gridDim.x * THREADS;

    if (tid < n_vec) {
        const codes_of<N> in = reinterpret_cast<const codes_of<N> *>(codes)[tid];
        vector16<T> out;
#pragma unroll
        for (int w = 0; w < N / 4; w++) dequantize4(out.at + 4 * w, in.word[w], descale, e5m2);
        reinterpret_cast<vector16<T> *>(x)[tid] = out;
    }
    for (int64_t i = n_vec * N + tid; i < n; i += total)
        x[i] = from_float<T>(scaled(decode(codes[i], e5m2), descale));
}

/* ---- launchers ------------------------------------------------------------------------------ */

/* Whole vectors of n elements when both ends allow them. `codes` needs only the alignment of its
 * own vector, which 16 bytes imply. */
template <typename T> static int64_t whole_vectors(const void *x, const void *codes, int64_t n) {
    const bool fits = aligned16(x) && (uintptr_t)codes % vector16<T>::COUNT == 0;
    return fits ? n / vector16<T>::COUNT : 0;
}

/* Each of n_vec vectors has its thread, `unroll` a thread; without any, the machine is filled. */
static fp8_status blocks_of(int64_t n, int64_t n_vec, int unroll, unsigned *blocks) {
    const int64_t each = THREADS * unroll, many = (n_vec + each - 1) / each;

    if (n_vec == 0) return grid_for((n + THREADS * 4 - 1) / (THREADS * 4), BLOCKS_PER_SM, blocks);
    if (many > INT32_MAX)
        return FP8_FAIL(FP8_EINVAL, "cast: %lld elements are too many", (long long)n);
    *blocks = (unsigned)many;
    return FP8_OK;
}

extern "C" fp8_status fp8_cuda_quantize(fp8_device *d, uint8_t *codes, fp8_dtype to, const void *x,
                                        fp8_dtype from, int64_t n, const float *scale) {
    const cudaStream_t stream = fp8_device_stream(d);
    const bool e5m2 = to == FP8_DTYPE_E5M2;
    fp8_status st = FP8_OK;
    int64_t n_vec = 0;
    unsigned blocks = 0;

    FP8_FOR_REAL(from, n_vec = whole_vectors<T>(x, codes, n));
    FP8_TRY(blocks_of(n, n_vec, UNROLL, &blocks));
    FP8_FOR_REAL(from, quantize_kernel<T><<<blocks, THREADS, 0, stream>>>(
                           codes, e5m2, static_cast<const T *>(x), n, n_vec, scale));
    FP8_TRY(fp8_cuda_launched("quantize", stream));
done:
    return st;
}

extern "C" fp8_status fp8_cuda_dequantize(fp8_device *d, void *x, fp8_dtype to,
                                          const uint8_t *codes, fp8_dtype from, int64_t n,
                                          const float *descale) {
    const cudaStream_t stream = fp8_device_stream(d);
    const bool e5m2 = from == FP8_DTYPE_E5M2;
    fp8_status st = FP8_OK;
    int64_t n_vec = 0;
    unsigned blocks = 0;

    FP8_FOR_REAL(to, n_vec = whole_vectors<T>(x, codes, n));
    FP8_TRY(blocks_of(n, n_vec, 1, &blocks));
    FP8_FOR_REAL(to, dequantize_kernel<T><<<blocks, THREADS, 0, stream>>>(
                         static_cast<T *>(x), codes, e5m2, n, n_vec, descale));
    FP8_TRY(fp8_cuda_launched("dequantize", stream));
done:
    return st;
}
