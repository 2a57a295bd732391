/* quant/produce_norm.cu - RMS and layer norm of rows, residual added, into a sink.
 *
 * Computes   h = round(x + residual); v = norm(h) as produce.h says; codes, values, amax of v
 * Shapes     x, residual, h, v [rows, cols]; weight, bias [cols]
 * Bound      memory: BF16 to codes 3 bytes an element, 7 with a residual; weights from cache.
 *            16384 x 4096: 201 MB, at the H200's copy rate of 4.27 TB/s 47 us
 * Tiling     a team of threads has a row in registers as it was read, once, whatever is computed.
 *            Many rows: four pieces of eight elements a thread at 64 registers, so that
 *            16 blocks of 4096 columns are on a multiprocessor and wait by turns. Few rows: one
 *            piece, for the shortest way through. Rows past 16384 columns or not in pieces: a
 *            block each, read again from the caches
 * Numerics   F32, the variance about the mean; sums in a fixed order; the root is rsqrt.approx (2
 *            units in the last place). No product is contracted with a sum in what is normed
 */
#include "quant/produce_device.cuh"

using namespace fp8;

/* ---- constants ------------------------------------------------------------------------------ */

enum {
    FEW_ROWS = 264,   /* up to here latency counts, not bytes: two blocks on each of 132 */
    FEW_PIECES = 1024 /* of a row of one piece a thread */
};

/* Modes, beside those of the sink. */
enum { LAYER_MODE = NUM_SINK_MODES, ADD_MODE = 2 * NUM_SINK_MODES };

/* ---- device helpers ------------------------------------------------------------------------- */

template <typename T> struct norm_args {
    const T *x, *residual, *weight, *bias;
    T *h;
    int64_t x_stride, residual_stride, h_stride, rows, cols;
    fp8_norm_kind kind;
    float eps, per_col; /* per_col = 1 / cols */
    bool rounded;
};

template <typename T>
static __device__ __forceinline__ float normalize(const norm_args<T> &a, float h, float w, float b,
                                                  float mean, float rstd) {
    if (a.kind == FP8_NORM_RMS) {
        const float v = __fmul_rn(h, rstd);
        return __fmul_rn(a.rounded ? round_to<T>(v) : v, w);
    }
    if (a.kind == FP8_NORM_RMS_PLUS)
        return __fmul_rn(__fmul_rn(h, rstd), __fadd_rn(1.0f, w));
    h = __fmul_rn(__fmul_rn(__fsub_rn(h, mean), rstd), w);
    return a.bias ? __fadd_rn(h, b) : h;
}

/* For rows_kernel. */
template <typename T, int N, int KNOWN> struct norm_op {
    typedef T real;
    enum {
        MODE = KNOWN,
        PIECES = N,
        KEEP_NAN_SIGN = 0,
        THREADS = MODE == ANY_MODE || N == 1 ? 1024 : 512,
        MADE_TWICE = MODE % NUM_SINK_MODES == MODE_TOKEN,
        BLOCKS = N == 4 && !MADE_TWICE ? 2 : 1,
        STEP = N < BATCH ? N : BATCH,
        AT_ONCE = (MODE == ANY_MODE || MADE_TWICE) && N > 2 ? 2 : STEP
    };
    norm_args<T> a;

    struct held {
        piece<T> h[N], weight; /* weight: where there is one piece */
        float mean, rstd;
    };

    __device__ __forceinline__ bool is_layer() const {
        return MODE == ANY_MODE ? a.kind == FP8_NORM_LAYER : (MODE & LAYER_MODE) != 0;
    }
    __device__ __forceinline__ bool adds() const {
        return MODE == ANY_MODE ? a.residual != nullptr : (MODE & ADD_MODE) != 0;
    }

    __device__ __forceinline__ void ask(held &k, const share &mine) const {
        if (N == 1 && mine.has(0)) k.weight = load_piece(a.weight, mine.at(0));
    }

    /* h = x, or the rounded sum, which is stored. */
    __device__ __forceinline__ void read(held &k, const share &mine) const {
        const T *x = a.x + mine.row * a.x_stride, *y = a.residual + mine.row * a.residual_stride;
#pragma unroll
        for (int i = 0; i < N; i++) {
            k.h[i] = {};
            if (!adds() && mine.has(i)) k.h[i] = load_piece(x, mine.at(i));
        }
        if (!adds()) return;
#pragma unroll
        for (int first = 0; first < N; first += STEP) {
            piece<T> p[STEP] = {}, q[STEP] = {};
#pragma unroll
            for (int i = 0; i < STEP; i++)
                if (mine.has(first + i)) {
                    p[i] = load_piece(x, mine.at(first + i));
                    q[i] = load_piece(y, mine.at(first + i));
                }
#pragma unroll
            for (int i = 0; i < STEP; i++) {
                float v[PIECE], w[PIECE];
                widen_piece(v, p[i]);
                widen_piece(w, q[i]);
#pragma unroll
                for (int e = 0; e < PIECE; e++) v[e] = __fadd_rn(v[e], w[e]);
                k.h[first + i] = narrow_piece<T>(v);
                if (mine.has(first + i))
                    put_piece(a.h + mine.row * a.h_stride, mine.at(first + i), k.h[first + i]);
            }
        }
    }

    /* Sum of (h - mean)^2, or of h, over the thread's pieces. */
    __device__ __forceinline__ float sum_of(const held &k, const share &mine, bool squares) const {
        float sum[4] = {};
#pragma unroll
        for (int i = 0; i < N; i++) {
            float v[PIECE];
            widen_piece(v, k.h[i]);
            if (is_layer() && !mine.has(i)) continue;
#pragma unroll
            for (int e = 0; e < PIECE; e++) {
                if (is_layer() && squares) v[e] -= k.mean;
                sum[e % 4] = squares ? fmaf(v[e], v[e], sum[e % 4]) : sum[e % 4] + v[e];
            }
        }
        return (sum[0] + sum[1]) + (sum[2] + sum[3]);
    }

    __device__ __forceinline__ void load(held &k, const share &mine, team_scratch *scratch) const {
        const bool whole = MODE != ANY_MODE;
        read(k, mine);
        k.mean = 0.0f;
        if (is_layer())
            k.mean = team_sum<whole>(sum_of(k, mine, false), mine.team, scratch->first) *
                     a.per_col;
        k.rstd = team_sum<whole>(sum_of(k, mine, true), mine.team, scratch->second);
        k.rstd = rsqrtf(fmaf(k.rstd, a.per_col, a.eps));
    }

    /* Values made before are made again: registers for them and for the weights there are not. */
    __device__ __forceinline__ void forget(held &k) const {
#pragma unroll
        for (int i = 0; i < N; i++) {
            uint32_t *word = reinterpret_cast<uint32_t *>(&k.h[i]);
#pragma unroll
            for (size_t e = 0; e < sizeof k.h[i] / 4; e++) asm volatile("" : "+r"(word[e]));
        }
        asm volatile("" ::: "memory");
    }

    template <int COUNT>
    __device__ __forceinline__ void values(float (&v)[COUNT][PIECE], const held &k,
                                           const share &mine, int first) const {
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            float w[PIECE], b[PIECE] = {};
            widen_piece(v[i], k.h[first + i]);
            if (!mine.has(first + i)) continue; /* 0 */
            widen_piece(w, N == 1 ? k.weight : load_piece(a.weight, mine.at(first + i)));
            if (is_layer() && a.bias) widen_piece(b, load_piece(a.bias, mine.at(first + i)));
            normalize_piece(v[i], w, b, k);
        }
    }

    /* The forms that occur most are told apart once for eight elements. */
    __device__ __forceinline__ void normalize_piece(float v[PIECE], const float w[PIECE],
                                                    const float b[PIECE], const held &k) const {
        if (!is_layer() && !a.rounded && a.kind == FP8_NORM_RMS) {
#pragma unroll
            for (int e = 0; e < PIECE; e++) v[e] = __fmul_rn(__fmul_rn(v[e], k.rstd), w[e]);
            return;
        }
        if (is_layer()) {
#pragma unroll
            for (int e = 0; e < PIECE; e++) {
                v[e] = __fmul_rn(__fmul_rn(__fsub_rn(v[e], k.mean), k.rstd), w[e]);
                if (a.bias) v[e] = __fadd_rn(v[e], b[e]);
            }
            return;
        }
#pragma unroll
        for (int e = 0; e < PIECE; e++) v[e] = normalize(a, v[e], w[e], b[e], k.mean, k.rstd);
    }
};

/* ---- kernels -------------------------------------------------------------------------------- */

/* grid: rows. */
template <typename T>
static __global__ void __launch_bounds__(ANY_THREADS, 4)
norm_any_kernel(norm_args<T> a, sink_args<T> s) {
    __shared__ team_scratch scratch;
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
        mean = team_sum<true>(sum, ANY_THREADS, scratch.first) * a.per_col;
        sum = 0.0f;
    }
    walk_row(a.cols, [&](int64_t c) {
        const float v = to_float(h[c]) - mean;
        sum += v * v;
    });
    rstd = rsqrtf(fmaf(team_sum<true>(sum, ANY_THREADS, scratch.second), a.per_col, a.eps));
    put_any<false>(s, row, a.cols, &scratch, [&](int64_t c) {
        return normalize(a, to_float(h[c]), to_float(a.weight[c]),
                         a.bias ? to_float(a.bias[c]) : 0.0f, mean, rstd);
    });
}

/* ---- launcher ------------------------------------------------------------------------------- */

template <typename T, int N, int MODE>
static fp8_status launch_known(fp8_device *d, const norm_args<T> &a, const sink_args<T> &s,
                               fp8_launch how) {
    typedef norm_op<T, N, MODE> op;
    const int threads = N == 1 ? 256 : 128; /* of a block of several teams */
    const row_tile t = tile_of(a.rows, a.cols / PIECE, N, 1, threads, MODE != ANY_MODE);
    return launch_rows("produce_norm", d, how, op{a}, s, t);
}

template <typename T, int N, int OP>
static fp8_status launch_sink(fp8_device *d, const norm_args<T> &a, const sink_args<T> &s, int sink,
                              fp8_launch how) {
    switch (sink) {
    case MODE_ONE_SCALE: return launch_known<T, N, OP + MODE_ONE_SCALE>(d, a, s, how);
    case MODE_TOKEN: return launch_known<T, N, OP + MODE_TOKEN>(d, a, s, how);
    case MODE_GROUP: return launch_known<T, N, OP + MODE_GROUP>(d, a, s, how);
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
                            n->rounded != 0};
    const bool fits = n->cols % PIECE == 0 && rows_fit(a.x, a.x_stride) &&
                      rows_fit(a.residual, a.residual_stride) &&
                      (!a.residual || rows_fit<T>(a.h, a.h_stride)) && aligned16(a.weight) &&
                      aligned16(a.bias) && sink_fits<T>(out);
    const int64_t n_pieces = n->cols / PIECE;
    const sink_args<T> s = sink_of<T>(out);

    if (!fits || n_pieces > 512 * 4) /* threads and pieces of the others */
        return launch("produce_norm", norm_any_kernel<T>, dim3((unsigned)n->rows),
                      dim3(ANY_THREADS), 0, d, how, a, s);
    if (n_pieces < 32 || (n->rows <= FEW_ROWS && n_pieces <= FEW_PIECES))
        return launch_mode<1>(d, a, s, how);
    return launch_mode<4>(d, a, s, how);
}

extern "C" fp8_status fp8_cuda_produce_norm(fp8_device *d, const fp8_sink *out,
                                            const fp8_norm *norm, fp8_launch launch) {
    FP8_FOR_REAL(norm->dtype, return launch_norm<T>(d, out, norm, launch));
}
