/* quant/produce_norm.cu - RMS and layer norm of rows, residual added, into a sink.
 *
 * Computes   h = round(x + residual); v = norm(h) as produce.h says; codes, values, amax of v
 * Shapes     x, residual, h, v [rows, cols]; weight, bias [cols]
 * Bound      memory: BF16 to codes 3 bytes an element, 7 with a residual; weights from cache.
 *            16384 x 4096: 201 MB, at the H200's copy rate of 4.27 TB/s 47 us
 * Tiling     a team of threads has one row in registers, at most four pieces of eight elements a
 *            thread, read once whatever is computed: teams of 32 or fewer share a warp, larger ones
 *            are a block. Many rows: four pieces a thread, 64 bytes in flight; few rows: one, for
 *            the shortest way through. Rows past 16384 columns or not in pieces: a block each, read
 *            again from the caches
 * Numerics   F32, the variance about the mean; sums in a fixed order; IEEE division and root. No
 *            product is contracted with a sum, as on the CPU
 */
#include "quant/produce_ops.cuh"

using namespace fp8;

/* ---- constants ------------------------------------------------------------------------------ */

enum {
    THREADS = 256,   /* of a block that holds several teams, and of the kernel for any row */
    MAX_TEAM = 1024, /* of one or two pieces a thread: 16384 columns */
    WIDE_TEAM = 512, /* of four pieces a thread, which take more registers */
    FEW_ROWS = 512   /* up to here every block is resident at once: latency counts, not bytes */
};

/* ---- device helpers ------------------------------------------------------------------------- */

/* Pieces of h into v: x, or the sum, which is stored. Pieces that are not there stay zero. */
template <int N, typename T>
static __device__ __forceinline__ void load_stream(float (&v)[N][PIECE], const norm_args<T> &a,
                                                   const share &mine) {
    piece<T> x[N] = {}, y[N] = {};

#pragma unroll
    for (int i = 0; i < N; i++)
        if (mine.has(i)) x[i] = load_piece(a.x + mine.row * a.x_stride, mine.at(i));
    if (a.residual) {
#pragma unroll
        for (int i = 0; i < N; i++)
            if (mine.has(i))
                y[i] = load_piece(a.residual + mine.row * a.residual_stride, mine.at(i));
    }
#pragma unroll
    for (int i = 0; i < N; i++) {
        float sum[PIECE];
        widen_piece(v[i], x[i]);
        if (!a.residual) continue;
        widen_piece(sum, y[i]);
#pragma unroll
        for (int k = 0; k < PIECE; k++) v[i][k] = round_to<T>(__fadd_rn(v[i][k], sum[k]));
        if (mine.has(i)) store_piece(a.h + mine.row * a.h_stride, mine.at(i), v[i]);
    }
}

/* ---- kernels -------------------------------------------------------------------------------- */

/* block: a team, or several; the weights are constants, and asked for before the wait where a
 * thread has only one piece of them. */
template <typename T, int N>
static __global__ void __launch_bounds__(N == 4 ? WIDE_TEAM : MAX_TEAM)
norm_kernel(norm_args<T> a, sink_args<T> s, int team) {
    __shared__ float scratch[3][MAX_WARPS];
    const int64_t row = (int64_t)blockIdx.x * ((int)blockDim.x / team) + (int)threadIdx.x / team;
    const int n_pieces = row < a.rows ? (int)(a.cols / PIECE) : 0; /* past the end: keeps step */
    const share mine = {row, (int)threadIdx.x % team, team, 0, n_pieces};
    const float cols = (float)a.cols;
    float v[N][PIECE], sum = 0.0f, mean = 0.0f, rstd;
    piece<T> w = {};

    if (N == 1 && mine.has(0)) w = load_piece(a.weight, mine.at(0));
    wait_for_previous();
    let_next_start();
    load_stream(v, a, mine);
    if (a.kind == FP8_NORM_LAYER) {
#pragma unroll
        for (int i = 0; i < N; i++)
#pragma unroll
            for (int k = 0; k < PIECE; k++) sum += v[i][k];
        mean = team_sum(sum, team, scratch[0]) / cols;
        sum = 0.0f;
    }
#pragma unroll
    for (int i = 0; i < N; i++)
#pragma unroll
        for (int k = 0; k < PIECE; k++)
            if (mine.has(i)) sum += (v[i][k] - mean) * (v[i][k] - mean);
    rstd = 1.0f / sqrtf(team_sum(sum, team, scratch[1]) / cols + a.eps);
#pragma unroll
    for (int i = 0; i < N; i++) {
        float g[PIECE], b[PIECE] = {0};
        if (!mine.has(i)) continue;
        if (N > 1) w = load_piece(a.weight, mine.at(i));
        widen_piece(g, w);
        if (a.bias) widen_piece(b, load_piece(a.bias, mine.at(i)));
#pragma unroll
        for (int k = 0; k < PIECE; k++)
            v[i][k] = normalize(a, v[i][k], g[k], b[k], mean, rstd);
    }
    put<false>(s, mine, v, scratch[2]);
}

/* grid: rows. */
template <typename T>
static __global__ void __launch_bounds__(THREADS, 4)
norm_any_kernel(norm_args<T> a, sink_args<T> s) {
    __shared__ float scratch[3][MAX_WARPS];
    const int64_t row = blockIdx.x;
    const T *h = a.residual ? a.h + row * a.h_stride : a.x + row * a.x_stride;
    float sum = 0.0f, mean = 0.0f, rstd;

    wait_for_previous();
    let_next_start();
    if (a.residual)
        walk_row(a.cols, [&](int64_t c) {
            const float x = to_float(a.x[row * a.x_stride + c]);
            const float y = to_float(a.residual[row * a.residual_stride + c]);
            a.h[row * a.h_stride + c] = from_float<T>(__fadd_rn(x, y));
        });
    if (a.kind == FP8_NORM_LAYER) {
        walk_row(a.cols, [&](int64_t c) { sum += to_float(h[c]); });
        mean = team_sum(sum, THREADS, scratch[0]) / (float)a.cols;
        sum = 0.0f;
    }
    walk_row(a.cols, [&](int64_t c) {
        const float v = to_float(h[c]) - mean;
        sum += v * v;
    });
    rstd = 1.0f / sqrtf(team_sum(sum, THREADS, scratch[1]) / (float)a.cols + a.eps);
    put_any<false>(s, row, a.cols, scratch[2], [&](int64_t c) {
        return normalize(a, to_float(h[c]), to_float(a.weight[c]),
                         a.bias ? to_float(a.bias[c]) : 0.0f, mean, rstd);
    });
}

/* ---- launcher ------------------------------------------------------------------------------- */

static row_tile choose_tile(int64_t rows, int64_t cols, bool fits) {
    const int64_t n_pieces = cols / PIECE;
    row_tile tile = {1, 1, THREADS, 1};
    int64_t need;

    if (!fits || cols % PIECE || n_pieces > 2 * MAX_TEAM) return {0, THREADS, THREADS, 1};
    if (n_pieces >= 32) tile.pieces = rows > FEW_ROWS ? 4 : n_pieces > MAX_TEAM ? 2 : 1;
    need = (n_pieces + tile.pieces - 1) / tile.pieces;
    while (tile.team < need && tile.team < 32) tile.team *= 2;
    if (need > 32) tile.team = tile.threads = (int)(need + 31) / 32 * 32;
    return tile;
}

template <typename T>
static fp8_status launch_norm(fp8_device *d, const fp8_sink *out, const fp8_norm *n,
                              fp8_launch how) {
    const norm_args<T> a = {static_cast<const T *>(n->x),
                            static_cast<const T *>(n->residual),
                            static_cast<const T *>(n->weight),
                            static_cast<const T *>(n->bias),
                            static_cast<T *>(n->h),
                            n->x_stride,
                            n->residual_stride,
                            n->h_stride,
                            n->rows,
                            n->cols,
                            n->kind,
                            n->eps,
                            n->rounded != 0};
    const bool fits = rows_fit(a.x, a.x_stride) && rows_fit(a.residual, a.residual_stride) &&
                      (!a.residual || rows_fit<T>(a.h, a.h_stride)) && aligned16(a.weight) &&
                      aligned16(a.bias) && sink_fits<T>(out);
    const row_tile tile = choose_tile(n->rows, n->cols, fits);
    const dim3 grid((unsigned)tile_blocks(tile, n->rows)), block((unsigned)tile.threads);
    const sink_args<T> s = sink_of<T>(out);

    const auto kernel = tile.pieces == 4   ? norm_kernel<T, 4>
                        : tile.pieces == 2 ? norm_kernel<T, 2>
                                           : norm_kernel<T, 1>;

    if (tile.pieces == 0)
        return launch("produce_norm", norm_any_kernel<T>, grid, block, 0, d, how, a, s);
    return launch("produce_norm", kernel, grid, block, 0, d, how, a, s, tile.team);
}

extern "C" fp8_status fp8_cuda_produce_norm(fp8_device *d, const fp8_sink *out,
                                            const fp8_norm *norm, fp8_launch launch) {
    int served = 0;
    fp8_status st = FP8_OK;

    if (fp8_rings_wanted()) st = fp8_cuda_rings_norm(d, out, norm, launch, &served);
    if (st != FP8_OK || served) return st;
    FP8_FOR_REAL(norm->dtype, return launch_norm<T>(d, out, norm, launch));
}
