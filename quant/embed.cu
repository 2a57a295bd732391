/* quant/embed.cu - rows of an embedding table by token id.
 *
 * Computes   x[t] = round(table[ids[t]] * multiplier) (+ positions_table[positions[t]], rounded)
 * Shapes     x [tokens, cols]; tables [rows, cols]
 * Bound      memory: BF16 4 bytes an element; 16384 x 4096: 268 MB, at the H200's copy rate of 4.27
 *            TB/s 63 us
 * Tiling     pieces of eight elements, four a thread or one; a row is cut into segments of equal
 *            size, a block each. Rows that are not aligned: a block each, an element at a time
 * Numerics   F32, a rounding a step; a row that is only copied keeps its bits, NaN payloads too
 */
#include "quant/produce_device.cuh"

using namespace fp8;

/* ---- constants ------------------------------------------------------------------------------ */

enum { THREADS = 256, FEW_PIECES = 512 * THREADS };

/* ---- kernels -------------------------------------------------------------------------------- */

template <typename T> struct embed_args {
    T *x;
    const T *table, *positions_table;
    const int32_t *ids, *positions;
    int64_t cols;
    float multiplier;
    int segments;
};

/* grid: tokens x segments, segments first. */
template <typename T, int N>
static __global__ void __launch_bounds__(THREADS) embed_kernel(embed_args<T> e) {
    const int64_t token = blockIdx.x / e.segments, n_pieces = e.cols / PIECE;
    const int64_t begin = (int64_t)(blockIdx.x % e.segments) * blockDim.x * N + threadIdx.x;
    const T *row, *add = nullptr;
    piece<T> in[N] = {};

    wait_for_previous();
    let_next_start();
    row = e.table + e.ids[token] * e.cols;
    if (e.positions_table) add = e.positions_table + e.positions[token] * e.cols;
#pragma unroll
    for (int i = 0; i < N; i++)
        if (begin + i * blockDim.x < n_pieces) in[i] = load_piece(row, begin + i * blockDim.x);
#pragma unroll
    for (int i = 0; i < N; i++) {
        const int64_t at = begin + i * blockDim.x;
        float v[PIECE], p[PIECE];
        if (at >= n_pieces) continue;
        if (e.multiplier == 1.0f && !add) {
            put_piece(e.x + token * e.cols, at, in[i]);
            continue;
        }
        widen_piece(v, in[i]);
        if (add) widen_piece(p, load_piece(add, at));
#pragma unroll
        for (int k = 0; k < PIECE; k++) {
            v[k] = __fmul_rn(v[k], e.multiplier);
            if (add) v[k] = __fadd_rn(round_to<T>(v[k]), p[k]);
        }
        store_piece(e.x + token * e.cols, at, v);
    }
}

/* grid: tokens. */
template <typename T>
static __global__ void __launch_bounds__(THREADS, 4) embed_any_kernel(embed_args<T> e) {
    const int64_t token = blockIdx.x;
    const T *row, *add = nullptr;

    wait_for_previous();
    let_next_start();
    row = e.table + e.ids[token] * e.cols;
    if (e.positions_table) add = e.positions_table + e.positions[token] * e.cols;
    for (int64_t c = threadIdx.x; c < e.cols; c += THREADS) {
        float v = __fmul_rn(to_float(row[c]), e.multiplier);
        if (add) v = __fadd_rn(round_to<T>(v), to_float(add[c]));
        e.x[token * e.cols + c] =
            e.multiplier == 1.0f && !add ? row[c] : from_float<T>(v);
    }
}

/* ---- launcher ------------------------------------------------------------------------------- */

template <typename T>
static fp8_status launch_embed(fp8_device *d, void *x, const fp8_embedding *given,
                               fp8_launch how) {
    embed_args<T> e = {static_cast<T *>(x),
                       static_cast<const T *>(given->table),
                       static_cast<const T *>(given->positions_table),
                       given->ids,
                       given->positions,
                       given->cols,
                       given->multiplier,
                       1};
    const int64_t n_pieces = e.cols / PIECE;
    const bool fits = e.cols % PIECE == 0 && aligned16(e.x) && aligned16(e.table) &&
                      aligned16(e.positions_table);
    const int many = given->tokens * n_pieces > FEW_PIECES && n_pieces >= 128 ? 4 : 1;
    const int64_t segments = (n_pieces + THREADS * many - 1) / (THREADS * many);
    const int64_t blocks = given->tokens * (fits ? segments : 1);

    if (blocks > INT32_MAX)
        return FP8_FAIL(FP8_EINVAL, "embed: %lld tokens of %lld", (long long)given->tokens,
                        (long long)e.cols);
    if (!fits)
        return launch("embed", embed_any_kernel<T>, dim3((unsigned)blocks), dim3(THREADS), 0, d,
                      how, e);
    e.segments = (int)segments;
    const int64_t threads = (n_pieces + segments * many - 1) / (segments * many);
    return launch("embed", many == 4 ? embed_kernel<T, 4> : embed_kernel<T, 1>,
                  dim3((unsigned)blocks), dim3((unsigned)((threads + 31) / 32 * 32)), 0, d, how, e);
}

extern "C" fp8_status fp8_cuda_embed(fp8_device *d, void *x, const fp8_embedding *e,
                                     fp8_launch launch) {
    FP8_FOR_REAL(e->dtype, return launch_embed<T>(d, x, e, launch));
}
