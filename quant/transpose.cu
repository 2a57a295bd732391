/* quant/transpose.cu - codes turned, and reals quantized and turned.
 *
 * Computes   out[c, r] = in[r, c];  out[c, r] = cast(x[r, c] * scale), codes[r, c] the same
 * Shapes     in, x, codes [rows, cols]; out [cols, rows]
 * Bound      memory: codes 2 bytes an element, BF16 3 (4 with codes): [16384, 16384] of BF16
 *            0.81 GB, at the H200's copy rate of 4.27 TB/s 0.19 ms
 * Tiling     a block turns TILE x TILE codes. A thread loads 16 bytes of each of four rows and
 *            turns 4 x 4 codes in registers, so that shared memory sees words (four rows of a
 *            column). Loads and stores cover 128 bytes or more of a row at a time. Tiles that
 *            follow each other write neighbouring bytes; whole tiles compare nothing with the
 *            edges, which took 12 % of the time. What is not aligned to 16 bytes goes an element
 *            at a time
 * Numerics   as cast.cu
 */
#include <string.h>
#include "core/bytes.cuh"
#include "quant/cast_device.cuh"
#include "quant/cuda_ops.h"

using namespace fp8;

/* ---- constants ------------------------------------------------------------------------------ */

enum { TILE = 128, WORDS = TILE / 4, THREADS = 256 };

/* Blocks an SM: as many as their registers allow without spilling. */
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#define VECTOR_BLOCKS 2
#else
#define VECTOR_BLOCKS (sizeof(T) > 1 ? 4 : FIT == TILES ? 5 : 3)
#endif

/* ---- device helpers ------------------------------------------------------------------------- */

/* Where the word of column c, rows 4g .. 4g + 3 lies. Threads that store together differ in c by
 * multiples of N and in the low two bits of g: the swizzle spreads them over all 32 banks, and
 * leaves four words in a row together, which are read together. */
template <int N> static __device__ __forceinline__ int slot_of(int c, int g) {
    return c * WORDS + (g ^ ((c / N & 7) * 4));
}

/* Four codes of a row: of reals, and of codes. */
template <typename T>
static __device__ __forceinline__ uint32_t codes_of(const T *x, float scale, bool e5m2) {
    float v[4];
#pragma unroll
    for (int k = 0; k < 4; k++) v[k] = to_float(x[k]);
    return encode4<true>(v, scale, e5m2);
}
template <>
__device__ __forceinline__ uint32_t codes_of(const uint8_t *x, float scale, bool e5m2) {
    (void)scale, (void)e5m2;
    return x[0] | (uint32_t)x[1] << 8 | (uint32_t)x[2] << 16 | (uint32_t)x[3] << 24;
}

/* N words as one store. */
template <int N> struct alignas(4 * N) words {
    uint32_t at[N];
};

/* How much of a tile is known to fit. */
enum fitting {
    ELEMENTS, /* nothing: an element at a time */
    VECTORS,  /* 16-byte loads, and stores of as many codes */
    TILES     /* and nothing lies outside the matrix */
};

template <typename T, fitting FIT> struct matrix {
    const T *x;
    int64_t rows, cols;
};

/* Elements [r, c .. c + N); 0 outside the matrix. */
template <typename T, fitting FIT>
static __device__ __forceinline__ vector16<T> load(const matrix<T, FIT> &m, int64_t r,
                                                   int64_t c) {
    enum { N = vector16<T>::COUNT };
    vector16<T> v = {};
    const T *from = m.x + r * m.cols + c;

    if (FIT != TILES && (r >= m.rows || c >= m.cols)) return v;
    if (FIT != ELEMENTS) { /* the path for constants: may move up over stores to shared memory */
        const uint4 bits = __ldg(reinterpret_cast<const uint4 *>(from));
        memcpy(&v, &bits, sizeof v);
    }
#pragma unroll
    for (int k = 0; k < N; k++)
        if (FIT == ELEMENTS && c + k < m.cols) v.at[k] = from[k];
    return v;
}

/* ---- kernel --------------------------------------------------------------------------------- */

/* Block (THREADS); grid: tiles, down first where `line` is a column of them. codes may be NULL. */
template <typename T, fitting FIT>
static __global__ void __launch_bounds__(THREADS, FIT != ELEMENTS ? VECTOR_BLOCKS : 2)
transpose_kernel(uint8_t *__restrict__ out, uint8_t *__restrict__ codes, matrix<T, FIT> m,
                 unsigned line, bool down, bool out_vectors, const float *__restrict__ scale_ptr,
                 bool e5m2) {
    enum { N = vector16<T>::COUNT, CHUNKS = TILE / (8 * N) };
    __shared__ alignas(16) uint32_t tile[TILE * WORDS];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const unsigned along = blockIdx.x % line, beside = blockIdx.x / line;
    const int64_t r0 = (int64_t)(down ? along : beside) * TILE;
    const int64_t c0 = (int64_t)(down ? beside : along) * TILE;
    const int g = warp * 4 + lane / 8;
    const float scale = scale_ptr ? *scale_ptr : 1.0f;

#pragma unroll
    for (int chunk = 0; chunk < CHUNKS; chunk++) {
        const int c = chunk * 8 * N + lane % 8 * N;
        vector16<T> in[4];
        alignas(16) uint32_t word[4][N / 4];
#pragma unroll
        for (int i = 0; i < 4; i++) in[i] = load(m, r0 + 4 * g + i, c0 + c);
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < N / 4; j++) word[i][j] = codes_of(in[i].at + 4 * j, scale, e5m2);
#pragma unroll
        for (int j = 0; j < N / 4; j++) {
            uint32_t turned[4];
            turn_bytes(turned, word[0][j], word[1][j], word[2][j], word[3][j]);
#pragma unroll
            for (int k = 0; k < 4; k++) tile[slot_of<N>(c + 4 * j + k, g)] = turned[k];
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int64_t r = r0 + 4 * g + i, at = r * m.cols + c0 + c;
            if (!codes || (FIT != TILES && r >= m.rows)) continue;
            if (FIT == TILES || (FIT == VECTORS && c0 + c < m.cols))
                *reinterpret_cast<words<N / 4> *>(codes + at) =
                    *reinterpret_cast<const words<N / 4> *>(word[i]);
#pragma unroll
            for (int k = 0; k < N; k++)
                if (FIT == ELEMENTS && c0 + c + k < m.cols)
                    codes[at + k] = (uint8_t)(word[i][k / 4] >> (k % 4 * 8));
        }
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < TILE / 32; i++) {
        const int c = i * 32 + g, q = lane % 8;
        const uint4 v = *reinterpret_cast<const uint4 *>(&tile[slot_of<N>(c, 4 * q)]);
        const uint32_t word[4] = {v.x, v.y, v.z, v.w};
        const int64_t r = r0 + 16 * q, at = (c0 + c) * m.rows + r;
        if (FIT != TILES && (c0 + c >= m.cols || r >= m.rows)) continue;
        if (FIT == TILES || out_vectors) *reinterpret_cast<uint4 *>(out + at) = v;
#pragma unroll
        for (int k = 0; k < 16; k++)
            if (FIT != TILES && !out_vectors && r + k < m.rows)
                out[at + k] = (uint8_t)(word[k / 4] >> (k % 4 * 8));
    }
}

/* ---- launchers ------------------------------------------------------------------------------ */

template <typename T>
static fp8_status launch_transpose(fp8_device *d, const char *what, uint8_t *out, uint8_t *codes,
                                   const T *x, int64_t rows, int64_t cols, const float *scale,
                                   bool e5m2) {
    enum { N = vector16<T>::COUNT };
    const int64_t across = (cols + TILE - 1) / TILE, down = (rows + TILE - 1) / TILE;
    const int64_t tiles = across * down;
    const bool down_first = !codes; /* rows of `out` grow, unless rows of codes do beside them */
    const bool vectors = aligned16(x) && cols % N == 0 && (uintptr_t)codes % N == 0;
    const bool out_vectors = rows % 16 == 0 && aligned16(out);
    const bool whole = vectors && out_vectors && rows % TILE == 0 && cols % TILE == 0;
    const cudaStream_t stream = fp8_device_stream(d);
    const auto run = [&](auto kernel, auto m) {
        kernel<<<(unsigned)tiles, THREADS, 0, stream>>>(
            out, codes, m, (unsigned)(down_first ? down : across), down_first, out_vectors, scale,
            e5m2);
    };

    if (tiles > INT32_MAX)
        return FP8_FAIL(FP8_EINVAL, "%s: [%lld, %lld] is too large", what, (long long)rows,
                        (long long)cols);
    if (whole) run(transpose_kernel<T, TILES>, matrix<T, TILES>{x, rows, cols});
    else if (vectors) run(transpose_kernel<T, VECTORS>, matrix<T, VECTORS>{x, rows, cols});
    else run(transpose_kernel<T, ELEMENTS>, matrix<T, ELEMENTS>{x, rows, cols});
    return fp8_cuda_launched(what, stream);
}

extern "C" fp8_status fp8_cuda_transpose_codes(fp8_device *d, uint8_t *out, const uint8_t *in,
                                               int64_t rows, int64_t cols) {
    return launch_transpose<uint8_t>(d, "transpose_codes", out, nullptr, in, rows, cols, nullptr,
                                     false);
}

extern "C" fp8_status fp8_cuda_quantize_transposed(fp8_device *d, uint8_t *codes_t, uint8_t *codes,
                                                   fp8_dtype to, const void *x, fp8_dtype from,
                                                   int64_t rows, int64_t cols,
                                                   const float *scale) {
    FP8_FOR_REAL(from, return launch_transpose<T>(d, "quantize_transposed", codes_t, codes,
                                                  static_cast<const T *>(x), rows, cols, scale,
                                                  to == FP8_DTYPE_E5M2));
}
