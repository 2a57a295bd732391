/* quant/produce_act.cu - activations, alone or gated, and plain casts of rows, into a sink.
 *
 * Computes   v = act(x), act(x) * up, or x; codes, values, amax of v
 * Shapes     x, up, v [rows, cols]
 * Bound      memory: BF16 to codes gated 5 bytes an element, 3 else. 4096 x 14336 gated: 294 MB,
 *            at the H200's copy rate of 4.27 TB/s 69 us. SiLU takes some 25 instructions an element
 *            of the 35 that the memory leaves time for
 * Tiling     pieces of eight elements a thread. With one scale, or one a group, a row is cut into
 *            segments of equal size, a block each; with one scale a token a block has the row in
 *            registers. Rows past 32768 columns (a token's scale) or not in pieces: a block each,
 *            an element at a time, made twice
 * Numerics   F32. Exponentials and reciprocals by the special-function unit (ex2.approx,
 *            rcp.approx: 2 units in the last place, subnormals kept): e^y is off by 2^-22 + |y|
 *            2^-23, far below half a step of E4M3 or BF16. erff is the accurate one
 */
#include "quant/produce_ops.cuh"

using namespace fp8;

/* ---- constants ------------------------------------------------------------------------------ */

enum {
    THREADS = 256,   /* at most, of a block that has a segment; and of the kernel for any row */
    MAX_TEAM = 1024, /* x 4 pieces x 8 = 32768 columns with a token's scale */
    FEW_PIECES = 512 * THREADS /* up to here one piece a thread: latency counts, not bytes */
};

/* ---- device helpers ------------------------------------------------------------------------- */

/* Values of the pieces first .. first + 1 (or one) of a thread; those not there become 0. */
template <bool CAST, int N, typename T>
static __device__ __forceinline__ void load_values(float (&v)[N][PIECE], const act_args<T> &a,
                                                   const share &mine, int first) {
    piece<T> x[N] = {}, up[N] = {};

#pragma unroll
    for (int i = 0; i < N; i++) {
        if (!mine.has(first + i)) continue;
        x[i] = load_piece(a.x + mine.row * a.x_stride, mine.at(first + i));
        if (!CAST && a.up)
            up[i] = load_piece(a.up + mine.row * a.up_stride, mine.at(first + i));
    }
#pragma unroll
    for (int i = 0; i < N; i++) {
        float u[PIECE];
        widen_piece(v[i], x[i]);
        if (CAST) continue;
        widen_piece(u, up[i]);
        act_values<T, PIECE>(v[i], u, a);
    }
}

/* ---- kernels -------------------------------------------------------------------------------- */

/* block: a team; grid: rows x segments, segments first. CAST: v = x, a NaN keeps its sign. */
template <typename T, int N, bool CAST>
static __global__ void __launch_bounds__(MAX_TEAM)
act_kernel(act_args<T> a, sink_args<T> s, int team, int segments) {
    __shared__ float scratch[MAX_WARPS];
    const int64_t row = team < (int)blockDim.x
                            ? (int64_t)blockIdx.x * ((int)blockDim.x / team) + threadIdx.x / team
                            : blockIdx.x / segments;
    const int segment = team < (int)blockDim.x ? 0 : blockIdx.x % segments;
    const int begin = segment * team * N, n_pieces = (int)(a.cols / PIECE);
    const share mine = {row, (int)threadIdx.x % team, team, begin, row < a.rows ? n_pieces : 0};
    enum { BATCH = N == 2 ? 2 : 1 }; /* pieces loaded together: four leave no registers for two */
    float v[N][PIECE];

    wait_for_previous();
    let_next_start();
#pragma unroll
    for (int first = 0; first < N; first += BATCH) {
        load_values<CAST>(reinterpret_cast<float(&)[BATCH][PIECE]>(v[first]), a, mine, first);
        asm volatile("" ::: "memory"); /* the next loads stay behind: registers */
    }
    put<CAST>(s, mine, v, scratch);
}

/* grid: rows. */
template <typename T, bool CAST>
static __global__ void __launch_bounds__(THREADS, 4)
act_any_kernel(act_args<T> a, sink_args<T> s) {
    __shared__ float scratch[MAX_WARPS];
    const int64_t row = blockIdx.x;

    wait_for_previous();
    let_next_start();
    put_any<CAST>(s, row, a.cols, scratch, [&](int64_t c) {
        float v = to_float(a.x[row * a.x_stride + c]);
        const float u = !CAST && a.up ? to_float(a.up[row * a.up_stride + c]) : 0.0f;
        if (!CAST) act_values<T, 1>(&v, &u, a);
        return v;
    });
}

/* ---- launchers ------------------------------------------------------------------------------ */

static row_tile choose_tile(int64_t rows, int64_t cols, fp8_sink_scaling scaling, bool fits) {
    const int64_t n_pieces = cols / PIECE;
    const bool whole = scaling == FP8_SINK_TOKEN;
    row_tile tile = {1, 1, THREADS, 1};
    int64_t need;

    if (!fits || cols % PIECE || (whole && n_pieces > 4 * MAX_TEAM))
        return {0, THREADS, THREADS, 1};
    if (n_pieces >= 32) tile.pieces = rows * n_pieces > FEW_PIECES ? 2 : 1;
    if (whole && tile.pieces == 2) tile.pieces = 4; /* two blocks or more on an SM */
    while (whole && n_pieces > (int64_t)tile.pieces * MAX_TEAM) tile.pieces *= 2;
    if (!whole) tile.segments = (int)((n_pieces + THREADS * tile.pieces - 1) /
                                      (THREADS * tile.pieces));
    need = (n_pieces + tile.segments * tile.pieces - 1) / (tile.segments * tile.pieces);
    while (tile.team < need && tile.team < 32) tile.team *= 2;
    if (need > 32) tile.team = tile.threads = (int)(need + 31) / 32 * 32;
    else if (tile.segments > 1) tile.threads = tile.team = 32;
    return tile;
}

template <typename T, bool CAST>
static fp8_status launch_act(fp8_device *d, const fp8_sink *out, const act_args<T> &a,
                             fp8_launch how) {
    static const char *const name = CAST ? "produce_cast" : "produce_act";
    const sink_args<T> s = sink_of<T>(out);
    const bool fits = rows_fit(a.x, a.x_stride) && rows_fit(a.up, a.up_stride) && sink_fits<T>(out);
    const row_tile tile = choose_tile(a.rows, a.cols, s.scaling, fits);
    const int64_t blocks = tile_blocks(tile, a.rows);
    const dim3 grid((unsigned)blocks), block((unsigned)tile.threads);
    const auto kernel = tile.pieces == 4   ? act_kernel<T, 4, CAST>
                        : tile.pieces == 2 ? act_kernel<T, 2, CAST>
                                           : act_kernel<T, 1, CAST>;

    if (blocks > INT32_MAX)
        return FP8_FAIL(FP8_EINVAL, "%s: [%lld, %lld] is too large", name, (long long)a.rows,
                        (long long)a.cols);
    if (tile.pieces == 0)
        return launch(name, act_any_kernel<T, CAST>, grid, block, 0, d, how, a, s);
    return launch(name, kernel, grid, block, 0, d, how, a, s, tile.team, tile.segments);
}

extern "C" fp8_status fp8_cuda_produce_act(fp8_device *d, const fp8_sink *out, const fp8_act *act,
                                           fp8_launch launch) {
    int served = 0;
    fp8_status st = FP8_OK;

    if (fp8_rings_wanted()) st = fp8_cuda_rings_act(d, out, act, launch, &served);
    if (st != FP8_OK || served) return st;
    FP8_FOR_REAL(act->dtype,
                 const act_args<T> a = {static_cast<const T *>(act->x),
                                        static_cast<const T *>(act->up), act->x_stride,
                                        act->up_stride, act->rows, act->cols, act->act,
                                        act->rounded != 0};
                 return launch_act<T, false>(d, out, a, launch));
}

extern "C" fp8_status fp8_cuda_produce_cast(fp8_device *d, const fp8_sink *out, const void *x,
                                            fp8_dtype dtype, int64_t rows, int64_t cols,
                                            int64_t x_stride, fp8_launch launch) {
    int served = 0;
    fp8_status st = FP8_OK;

    if (fp8_rings_wanted())
        st = fp8_cuda_rings_cast(d, out, x, dtype, rows, cols, x_stride, launch, &served);
    if (st != FP8_OK || served) return st;
    FP8_FOR_REAL(dtype,
                 const act_args<T> a = {static_cast<const T *>(x), nullptr, x_stride, 0, rows,
                                        cols, FP8_ACT_RELU, false};
                 return launch_act<T, true>(d, out, a, launch));
}
