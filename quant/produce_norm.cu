/* quant/produce_norm.cu - RMS and layer norm of rows, residual added, into a sink.
 *
 * Computes   h = round(x + residual), of rows from elsewhere where that is asked (an embedding, the
 *            last tokens of sequences); v = norm(h) as produce.h says; codes, values, amax of v
 * Shapes     x, residual, h, v [rows, cols]; weight, bias [cols]
 * Bound      memory: BF16 to codes 3 bytes an element, 7 with a residual; weights from cache.
 *            16384 x 4096: 201 MB, at the H200's copy rate of 4.27 TB/s 47 us
 * Tiling     a team of threads has a row in registers, read once, whatever is computed; its warps
 *            meet at one barrier. Many rows: four pieces of eight elements a thread at 64
 *            registers, so that eight blocks of 4096 columns are on a multiprocessor and wait by
 *            turns. Few rows: one piece, for the shortest way through. Rows past 16384 columns or
 *            not in pieces: a block each, read again from the caches
 * Numerics   F32, the variance about the mean; sums in a fixed order; the root is rsqrt.approx (2
 *            units in the last place). RMS: no product is contracted with a sum in what is normed
 */
#include "quant/norm_layer.cuh"
#include "quant/norm_own.cuh"

using namespace fp8;

/* ---- constants ------------------------------------------------------------------------------ */

enum {
    FEW_ROWS = 264,   /* up to here latency counts, not bytes: two blocks on each of 132 */
    FEW_PIECES = 1024 /* of a row of one piece a thread */
};

/* ---- kernels -------------------------------------------------------------------------------- */

/* grid: rows. */
template <typename T>
static __global__ void __launch_bounds__(ANY_THREADS, 4)
norm_any_kernel(norm_args<T> a, sink_args<T> s) {
    __shared__ team_scratch scratch;
    const int64_t row = blockIdx.x;
    float sum = 0.0f, mean = 0.0f, rstd;

    let_next_start();
    wait_for_previous();
    const int64_t source = a.from ? a.from[row] : row;
    const T *const x = a.x + source * a.x_stride;
    const T *const y = a.residual + source * a.residual_stride;
    const auto make = [&](int64_t c) {
        float v = to_float(x[c]);
        if (a.multiplier != 1.0f) v = round_to<T>(__fmul_rn(v, a.multiplier));
        return a.residual ? round_to<T>(__fadd_rn(v, to_float(y[c]))) : v;
    };
    T *const kept = a.h ? a.h + row * a.h_stride : nullptr; /* may be x or y, which are gone then */
    const auto h = [&](int64_t c) { return kept ? to_float(kept[c]) : make(c); };
    if (kept) walk_row(a.cols, [&](int64_t c) { kept[c] = from_float<T>(make(c)); });
    if (a.kind == FP8_NORM_LAYER) {
        walk_row(a.cols, [&](int64_t c) { sum += h(c); });
        mean = team_sum<true>(sum, ANY_THREADS, scratch.first) * a.per_col;
        sum = 0.0f;
    }
    walk_row(a.cols, [&](int64_t c) {
        const float v = h(c) - mean;
        sum += v * v;
    });
    rstd = rsqrtf(fmaf(team_sum<true>(sum, ANY_THREADS, scratch.second), a.per_col, a.eps));
    put_any<false>(s, row, a.cols, &scratch, [&](int64_t c) {
        const float w = to_float(a.weight[c]), b = a.bias ? to_float(a.bias[c]) : -0.0f;
        if (a.kind != FP8_NORM_LAYER) return scaled_rms(a, h(c), w, rstd);
        return fmaf(__fmul_rn(__fsub_rn(h(c), mean), rstd), w, b);
    });
}

/* ---- launcher ------------------------------------------------------------------------------- */

static constexpr bool is_layer(int mode) { return mode != ANY_MODE && (mode & LAYER_MODE) != 0; }

template <typename T, int N, int MODE>
static fp8_status launch_known(fp8_device *d, const norm_args<T> &a, const sink_args<T> &s,
                               fp8_launch how) {
    typedef typename std::conditional<is_layer(MODE), layer_op<N, MODE>,
                                      norm_op<T, N, MODE>>::type op;
    const int threads = N == 1 ? 256 : 128; /* of a block of several teams */
    const row_tile t = tile_of(a.rows, a.cols / PIECE, N, 1, threads, MODE != ANY_MODE);
    return launch_rows("produce_norm", d, how, op{a}, s, t);
}

template <typename T, int N, int MODE>
static fp8_status launch_own(fp8_device *d, const norm_args<T> &a, const sink_args<T> &s,
                             fp8_launch how) {
    if constexpr (is_layer(MODE)) {
        return launch_known<T, N, MODE>(d, a, s, how);
    } else {
        const row_tile t = tile_of(a.rows, a.cols / PIECE, N, 1, N == 1 ? 256 : 128, true);
        const int64_t blocks = (t.rows + t.rows_per_block - 1) / t.rows_per_block;
        return launch("produce_norm", norm_own_kernel<T, N, MODE>, dim3((unsigned)blocks),
                      dim3((unsigned)t.threads), 0, d, how, a, s, t);
    }
}

template <typename T, int N, int OP>
static fp8_status launch_sink(fp8_device *d, const norm_args<T> &a, const sink_args<T> &s, int sink,
                              fp8_launch how) {
    switch (sink) {
    case MODE_ONE_SCALE: return launch_known<T, N, OP + MODE_ONE_SCALE>(d, a, s, how);
    case MODE_TOKEN: return launch_own<T, N, OP + MODE_TOKEN>(d, a, s, how);
    case MODE_GROUP: return launch_own<T, N, OP + MODE_GROUP>(d, a, s, how);
    default: return launch_known<T, N, OP + MODE_VALUES>(d, a, s, how);
    }
}

/* The ways that occur in models by their own kernel, all else by one that asks as it runs. */
template <int N, typename T>
static fp8_status launch_mode(fp8_device *d, const norm_args<T> &a, const sink_args<T> &s,
                              fp8_launch how) {
    const int sink = a.cols < 32 * PIECE ? ANY_MODE : sink_mode(s);

    if constexpr (is_bf16<T>()) {
        if (sink != ANY_MODE && a.kind == FP8_NORM_LAYER)
            return a.residual ? launch_sink<T, N, LAYER_MODE + ADD_MODE>(d, a, s, sink, how)
                              : launch_sink<T, N, LAYER_MODE>(d, a, s, sink, how);
        if (sink != ANY_MODE)
            return a.residual ? launch_sink<T, N, ADD_MODE>(d, a, s, sink, how)
                              : launch_sink<T, N, 0>(d, a, s, sink, how);
    }
    if constexpr (is_bf16<T>() && N == 4)
        if (is_observed(s) && a.kind != FP8_NORM_LAYER && a.residual)
            return launch_known<T, N, ADD_MODE + MODE_OBSERVED>(d, a, s, how);
    return launch_known<T, (N == 1 ? 1 : 2), ANY_MODE>(d, a, s, how);
}

/* Rows from elsewhere: an embedding, or those of a step that make an id. */
template <typename T>
static bool gathers(const norm_args<T> &a, const sink_args<T> &s) {
    const int sink = a.cols < 32 * PIECE ? ANY_MODE : sink_mode(s);
    return is_bf16<T>() && sink != ANY_MODE && sink != MODE_OBSERVED;
}

template <typename T>
static fp8_status launch_from(fp8_device *d, const norm_args<T> &a, const sink_args<T> &s,
                              fp8_launch how) {
    return a.residual ? launch_sink<T, 1, FROM_MODE + ADD_MODE>(d, a, s, sink_mode(s), how)
                      : launch_sink<T, 1, FROM_MODE>(d, a, s, sink_mode(s), how);
}

template <typename T>
static fp8_status launch_norm(fp8_device *d, const fp8_sink *out, const fp8_norm *n,
                              fp8_launch how);

/* Many rows of an embedding: to h, and their norm (H200: 2048 x 4096 in 8 + 7 us, and in 69 by a
 * block a row that takes its elements one at a time). */
template <typename T>
static fp8_status launch_apart(fp8_device *d, const fp8_sink *out, const fp8_norm *n,
                               fp8_launch how) {
    const fp8_embedding rows = {n->dtype, n->rows,       n->cols, n->x,
                                n->from,  n->multiplier, nullptr, nullptr};
    fp8_norm plain = *n;
    fp8_status st = FP8_OK;

    FP8_TRY(fp8_cuda_embed(d, n->h, &rows, how));
    plain.x = n->h;
    plain.h = nullptr;
    plain.from = nullptr;
    plain.multiplier = 1.0f;
    FP8_TRY(launch_norm<T>(d, out, &plain, FP8_LAUNCH_OVERLAP));
done:
    return st;
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
                            1.0f / (float)n->cols,
                            n->rounded != 0,
                            n->from,
                            n->multiplier};
    const bool fits = n->cols % PIECE == 0 && rows_fit(a.x, a.x_stride) &&
                      rows_fit(a.residual, a.residual_stride) &&
                      (!a.h || rows_fit<T>(a.h, a.h_stride)) && aligned16(a.weight) &&
                      aligned16(a.bias) && sink_fits<T>(out);
    const int64_t n_pieces = n->cols / PIECE;
    const sink_args<T> s = sink_of<T>(out);

    const bool few = n->rows <= FEW_ROWS && n_pieces <= FEW_PIECES;
    const bool known = !a.from || (few && a.kind != FP8_NORM_LAYER && gathers<T>(a, s));

    if (!known && !a.residual && a.h && a.x_stride == a.cols && a.h_stride == a.cols)
        return launch_apart<T>(d, out, n, how);
    if (!fits || !known || n_pieces > 512 * 4) /* threads and pieces of the others */
        return launch("produce_norm", norm_any_kernel<T>, dim3((unsigned)n->rows),
                      dim3(ANY_THREADS), 0, d, how, a, s);
    if constexpr (is_bf16<T>())
        if (a.from) return launch_from(d, a, s, how);
    if (n_pieces < 32 || few) return launch_mode<1>(d, a, s, how);
    return launch_mode<4>(d, a, s, how);
}

extern "C" fp8_status fp8_cuda_produce_norm(fp8_device *d, const fp8_sink *out,
                                            const fp8_norm *norm, fp8_launch launch) {
    FP8_FOR_REAL(norm->dtype, return launch_norm<T>(d, out, norm, launch));
}
