/* model/norm_cuda.cu - RMS and layer norm of BF16 rows.
 *
 * Computes   RMS       y = round(w * round(x * r)),      r = 1 / sqrt(mean(x^2) + eps)
 *            RMS_PLUS  y = round((1 + w) * x * r)
 *            LAYER     y = round((x - mean) * r * w + b), r = 1 / sqrt(mean((x - mean)^2) + eps)
 * Shapes     x, y [rows, cols] BF16 (y may be x); w, b [cols] BF16
 * Bound      memory: 4 bytes an element, w and b from cache; 8192 x 4096: 134 MB, no faster than
 *            31 us at 4.27 TB/s (H200 copy, measured)
 * Tiling     a team of threads has one row in registers, at most VECTORS 16-byte pieces a thread:
 *            read once, whatever is computed. Teams of 32 or fewer share a warp (rows of q and k
 *            norms are 64 to 256 long), larger ones are a block. Four pieces a thread keep 128 KiB
 *            in flight on an SM, one piece only 32. Rows past 16384 columns, or not 16-byte
 *            aligned, are read again from the caches by a block, one element at a time
 * Numerics   F32 throughout, the variance about the mean, not as E[x^2] - mean^2; sums in a fixed
 *            order. Division and root are IEEE, as on the CPU
 */
#include "model/ops_cuda.cuh"

/* ---- constants ----------------------------------------------------------------------------- */

enum {
    THREADS = 256,  /* of a block that holds several teams, and of the kernel for any row */
    MAX_TEAM = 512, /* 512 * 4 * 8 = 16384 columns */
    VECTORS = 4
};

/* ---- device helpers ------------------------------------------------------------------------ */

/* Sum over a team: a power of two within a warp, or the whole block. Every thread gets it. */
static __device__ float team_sum(float v, int team, float *scratch) {
    for (int off = (team < 32 ? team : 32) / 2; off > 0; off /= 2)
        v += __shfl_xor_sync(0xffffffffu, v, off);
    if (team <= 32) return v;
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = v;
    __syncthreads();
    v = 0.0f;
    for (int warp = 0; warp < team / 32; warp++) v += scratch[warp];
    __syncthreads(); /* scratch is written again by the next sum */
    return v;
}

static __device__ float normalize(float x, float w, float b, fp8_norm_kind kind, float mean,
                                  float rstd) {
    switch (kind) {
    case FP8_NORM_RMS: return round_bf16(x * rstd) * w;
    case FP8_NORM_RMS_PLUS: return x * rstd * (1.0f + w);
    case FP8_NORM_LAYER: return (x - mean) * rstd * w + b;
    }
    return 0.0f;
}

/* ---- kernels ------------------------------------------------------------------------------- */

/* block: teams * team threads; a row a team. cols = 8 * n_vec <= 8 * N * team. */
template <int N>
static __global__ void __launch_bounds__(MAX_TEAM)
norm_kernel(bf16 *y, const bf16 *x, const bf16 *__restrict__ w, const bf16 *__restrict__ b,
            int64_t rows, int n_vec, int team, fp8_norm_kind kind, float eps) {
    __shared__ float scratch[MAX_TEAM / 32];
    const int lane = (int)threadIdx.x % team;
    const int64_t row = (int64_t)blockIdx.x * ((int)blockDim.x / team) + (int)threadIdx.x / team;
    const int mine = row < rows ? n_vec : 0; /* past the end: keeps step with its warp */
    const int64_t at = row * n_vec;
    const float cols = (float)(n_vec * VEC);
    float v[VEC], g[VEC], h[VEC] = {0}, sum = 0.0f, mean = 0.0f, rstd;
    uint4 raw[N];

#pragma unroll
    for (int i = 0; i < N; i++) {
        raw[i] = make_uint4(0, 0, 0, 0);
        if (i * team + lane < mine)
            raw[i] = reinterpret_cast<const uint4 *>(x)[at + i * team + lane];
    }
    if (kind == FP8_NORM_LAYER) {
#pragma unroll
        for (int i = 0; i < N; i++) {
            unpack8(v, raw[i]);
#pragma unroll
            for (int k = 0; k < VEC; k++) sum += v[k]; /* pieces past the row are zero */
        }
        mean = team_sum(sum, team, scratch) / cols;
        sum = 0.0f;
    }
#pragma unroll
    for (int i = 0; i < N; i++) {
        if (i * team + lane >= mine) continue;
        unpack8(v, raw[i]);
#pragma unroll
        for (int k = 0; k < VEC; k++) sum += (v[k] - mean) * (v[k] - mean);
    }
    rstd = 1.0f / sqrtf(team_sum(sum, team, scratch) / cols + eps);
#pragma unroll
    for (int i = 0; i < N; i++) {
        const int piece = i * team + lane;
        if (piece >= mine) continue;
        unpack8(v, raw[i]);
        unpack8(g, reinterpret_cast<const uint4 *>(w)[piece]);
        if (b) unpack8(h, reinterpret_cast<const uint4 *>(b)[piece]);
#pragma unroll
        for (int k = 0; k < VEC; k++) v[k] = normalize(v[k], g[k], h[k], kind, mean, rstd);
        reinterpret_cast<uint4 *>(y)[at + piece] = pack8(v);
    }
}

/* Any row: a block of THREADS each. */
static __global__ void __launch_bounds__(THREADS)
norm_any_kernel(bf16 *y, const bf16 *x, const bf16 *__restrict__ w, const bf16 *__restrict__ b,
                int64_t cols, fp8_norm_kind kind, float eps) {
    __shared__ float scratch[THREADS / 32];
    const bf16 *row = x + blockIdx.x * cols;
    bf16 *out = y + blockIdx.x * cols;
    float sum = 0.0f, mean = 0.0f, rstd;

    if (kind == FP8_NORM_LAYER) {
        for (int64_t i = threadIdx.x; i < cols; i += THREADS) sum += __bfloat162float(row[i]);
        mean = team_sum(sum, THREADS, scratch) / (float)cols;
        sum = 0.0f;
    }
    for (int64_t i = threadIdx.x; i < cols; i += THREADS) {
        const float v = __bfloat162float(row[i]) - mean;
        sum += v * v;
    }
    rstd = 1.0f / sqrtf(team_sum(sum, THREADS, scratch) / (float)cols + eps);
    for (int64_t i = threadIdx.x; i < cols; i += THREADS) {
        const float bias = b ? __bfloat162float(b[i]) : 0.0f;
        out[i] = __float2bfloat16_rn(normalize(__bfloat162float(row[i]), __bfloat162float(w[i]),
                                               bias, kind, mean, rstd));
    }
}

/* ---- launcher ------------------------------------------------------------------------------ */

typedef struct norm_tile {
    int vectors; /* pieces a thread; 0: the kernel for any row */
    int team, threads;
} norm_tile;

static norm_tile choose_tile(int64_t cols, int aligned) {
    const int64_t n_vec = cols / VEC;
    norm_tile tile = {n_vec < 32 ? 1 : VECTORS, 1, THREADS};
    int64_t need;

    if (!aligned || cols % VEC || n_vec > (int64_t)MAX_TEAM * VECTORS) {
        tile.vectors = 0;
        return tile;
    }
    need = (n_vec + tile.vectors - 1) / tile.vectors;
    while (tile.team < need && tile.team < 32) tile.team *= 2;
    if (need > 32) tile.team = tile.threads = (int)(need + 31) / 32 * 32;
    return tile;
}

fp8_status fp8_norm_cuda(fp8_device *d, const fp8_tensor *y, const fp8_tensor *x,
                         const fp8_tensor *w, const fp8_tensor *b, fp8_norm_kind kind, float eps) {
    const int64_t rows = x->shape[0], cols = x->shape[1];
    bf16 *out = (bf16 *)y->data;
    const bf16 *in = (const bf16 *)x->data, *weight = (const bf16 *)w->data;
    const bf16 *bias = b && kind == FP8_NORM_LAYER ? (const bf16 *)b->data : nullptr;
    const norm_tile tile = choose_tile(cols, aligned16(out) && aligned16(in) &&
                                                 aligned16(weight) && aligned16(bias));
    const int64_t per_block = tile.vectors ? tile.threads / tile.team : 1;
    const int64_t blocks = (rows + per_block - 1) / per_block;
    const fp8_stream stream = fp8_device_stream(d);
    fp8_status st = FP8_OK;

    FP8_TRY(fp8_ops_check("norm", x, FP8_DTYPE_BF16, rows * cols));
    FP8_TRY(fp8_ops_check("norm", y, FP8_DTYPE_BF16, rows * cols));
    FP8_TRY(fp8_ops_check("norm", w, FP8_DTYPE_BF16, cols));
    if (bias) FP8_TRY(fp8_ops_check("norm", b, FP8_DTYPE_BF16, cols));
    if (blocks > INT32_MAX)
        return FP8_FAIL(FP8_EINVAL, "norm: %lld rows", (long long)rows);
    if (rows == 0 || cols == 0) return FP8_OK;

    if (tile.vectors == VECTORS)
        norm_kernel<VECTORS><<<(unsigned)blocks, tile.threads, 0, stream>>>(
            out, in, weight, bias, rows, (int)(cols / VEC), tile.team, kind, eps);
    else if (tile.vectors == 1)
        norm_kernel<1><<<(unsigned)blocks, tile.threads, 0, stream>>>(
            out, in, weight, bias, rows, (int)(cols / VEC), tile.team, kind, eps);
    else
        norm_any_kernel<<<(unsigned)blocks, THREADS, 0, stream>>>(out, in, weight, bias, cols, kind,
                                                                  eps);
    st = fp8_cuda_launched("norm", stream);
done:
    return st;
}
