/* quant/produce_rings.cu - norms, activations and casts of rows in blocks that stay.
 *
 * Computes   as produce_norm.cu and produce_act.cu
 * Shapes     rows of at most 16384 columns, with a token's scale on Hopper 65536
 * Bound      as there: memory
 * Tiling     two pieces of eight elements a thread, those of two more rows on their way by cp.async
 *            to shared memory that each thread reads alone; few rows: one piece, read when it is
 *            needed. Rows of activations are cut into segments of equal size, a block each; with a
 *            token's scale the blocks of a row are a cluster and share their amax
 * Numerics   as there; the sums of a norm are in another fixed order
 */
#include <stdlib.h>

#include "quant/rings_device.cuh"

namespace fp8 {
namespace rings {

/* ---- constants ------------------------------------------------------------------------------ */

enum {
    THREADS = 256,   /* of a block that holds several teams, and most of one with a segment */
    TEAM = 512,      /* most threads of a norm's row with one piece each, or of a token's part */
    RESIDENT = 1024, /* threads a multiprocessor holds at 64 registers */
    MAX_CLUSTER = 8,
    FEW_ROWS = 264,   /* up to here a norm's latency counts: two blocks on each of 132 */
    FEW_PIECES = 1024 /* a multiprocessor: likewise of activations */
};

/* ---- norm ------------------------------------------------------------------------------------ */

/* For rows_kernel. */
template <typename T> struct norm_op {
    typedef T real;
    enum { INPUTS = 2, KEEP_NAN_SIGN = 0 };
    norm_args<T> a;

    __device__ __forceinline__ const T *input(int n, int64_t row) const {
        if (n == 0) return a.x + row * a.x_stride;
        return a.residual ? a.residual + row * a.residual_stride : nullptr;
    }

    /* v = h: x, or the sum, which is stored. */
    template <int N>
    __device__ __forceinline__ void load(float (&v)[N][PIECE], const piece<T> (&from)[N][INPUTS],
                                         const share &mine) const {
#pragma unroll
        for (int i = 0; i < N; i++) {
            float y[PIECE];
            widen_piece(v[i], from[i][0]);
            if (!a.residual) continue;
            widen_piece(y, from[i][1]);
#pragma unroll
            for (int k = 0; k < PIECE; k++) v[i][k] = round_to<T>(__fadd_rn(v[i][k], y[k]));
            if (mine.has(i)) store_piece(a.h + mine.row * a.h_stride, mine.at(i), v[i]);
        }
    }

    /* sum of (v - mean)^2, or of v, over the thread's pieces. */
    template <int N>
    static __device__ __forceinline__ float sum_of(const float (&v)[N][PIECE], const share &mine,
                                                   float mean, bool squares) {
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < N; i++)
#pragma unroll
            for (int k = 0; k < PIECE; k++) {
                const float x = v[i][k] - mean;
                if (mine.has(i)) sum += squares ? x * x : x;
            }
        return sum;
    }

    template <int N>
    __device__ __forceinline__ void values(float (&v)[N][PIECE], const piece<T> (&from)[N][INPUTS],
                                           const share &mine, team_scratch *scratch) const {
        const float cols = (float)a.cols;
        float mean = 0.0f, rstd;

        load(v, from, mine);
        if (a.kind == FP8_NORM_LAYER)
            mean = team_sum(sum_of(v, mine, 0.0f, false), mine.team, scratch->first) / cols;
        rstd = team_sum(sum_of(v, mine, mean, true), mine.team, scratch->second) / cols;
        rstd = 1.0f / sqrtf(rstd + a.eps);
#pragma unroll
        for (int i = 0; i < N; i++) {
            float w[PIECE], b[PIECE] = {};
            if (!mine.has(i)) continue;
            widen_piece(w, load_piece(a.weight, mine.at(i)));
            if (a.bias) widen_piece(b, load_piece(a.bias, mine.at(i)));
            normalize_piece(v[i], w, b, mean, rstd);
        }
    }

    __device__ __forceinline__ void normalize_piece(float v[PIECE], const float w[PIECE],
                                                    const float b[PIECE], float mean,
                                                    float rstd) const {
        if (a.kind == FP8_NORM_RMS && !a.rounded) {
#pragma unroll
            for (int k = 0; k < PIECE; k++) v[k] = __fmul_rn(__fmul_rn(v[k], rstd), w[k]);
            return;
        }
#pragma unroll
        for (int k = 0; k < PIECE; k++) v[k] = normalize(a, v[k], w[k], b[k], mean, rstd);
    }
};

/* 0: a row does not fit a block; 1: few rows, or short ones; 2: many. */
static int norm_pieces(int64_t rows, int64_t n_pieces, bool fits) {
    if (!fits || n_pieces > 2 * RESIDENT) return 0;
    return n_pieces > TEAM || (rows > FEW_ROWS && n_pieces >= 32) ? 2 : 1;
}

template <typename T>
static fp8_status launch_norm(fp8_device *d, const fp8_sink *out, const fp8_norm *n,
                              fp8_launch how, int *served) {
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
    const bool fits = n->cols % PIECE == 0 && rows_fit(a.x, a.x_stride) &&
                      rows_fit(a.residual, a.residual_stride) &&
                      (!a.residual || rows_fit<T>(a.h, a.h_stride)) && aligned16(a.weight) &&
                      aligned16(a.bias) && sink_fits<T>(out);
    const int pieces = norm_pieces(n->rows, n->cols / PIECE, fits);
    const row_tile t = tile_of(n->rows, n->cols / PIECE, pieces ? pieces : 1, 1, THREADS);
    const sink_args<T> s = sink_of<T>(out);

    *served = pieces > 0;
    if (pieces == 0) return FP8_OK;
    return launch_rows<norm_op<T>>("produce_norm", d, how, {a}, s, t, RESIDENT, 1);
}

/* ---- activation, cast ------------------------------------------------------------------------ */

/* For rows_kernel. CAST: v = x, a NaN keeps its sign. */
template <typename T, bool CAST> struct act_op {
    typedef T real;
    enum { INPUTS = CAST ? 1 : 2, KEEP_NAN_SIGN = CAST };
    act_args<T> a;

    __device__ __forceinline__ const T *input(int n, int64_t row) const {
        if (n == 0) return a.x + row * a.x_stride;
        return a.up ? a.up + row * a.up_stride : nullptr;
    }

    template <int N>
    __device__ __forceinline__ void values(float (&v)[N][PIECE], const piece<T> (&from)[N][INPUTS],
                                           const share &mine, team_scratch *scratch) const {
        (void)mine, (void)scratch;
#pragma unroll
        for (int i = 0; i < N; i++) {
            float up[PIECE];
            widen_piece(v[i], from[i][0]);
            if (CAST) continue;
            widen_piece(up, from[i][INPUTS - 1]);
            act_values<T, PIECE>(v[i], up, a);
        }
    }
};

/* pieces 0: rows do not fit. */
static row_tile act_tile(const fp8_device *d, int64_t rows, int64_t n_pieces, bool whole,
                            bool few) {
    const int team = whole ? TEAM : THREADS, pieces = few || n_pieces < 64 ? 1 : 2;
    const int64_t each = (int64_t)team * pieces, needed = (n_pieces + each - 1) / each;
    const int most = fp8_device_capability(d) >= 90 ? MAX_CLUSTER : 1;
    row_tile t = {};
    int cluster = 1;

    if (!whole) return tile_of(rows, n_pieces, pieces, (int)needed, THREADS);
    while (cluster < needed && cluster < most) cluster *= 2;
    if (cluster >= needed) return tile_of(rows, n_pieces, pieces, cluster, THREADS);
    if (n_pieces <= (int64_t)RESIDENT * 2 * cluster) /* a block fills a multiprocessor */
        return tile_of(rows, n_pieces, 2, cluster, THREADS);
    return t;
}

template <typename T, bool CAST>
static fp8_status launch_act(fp8_device *d, const fp8_sink *out, const act_args<T> &a,
                             fp8_launch how, int *served) {
    static const char *const name = CAST ? "produce_cast" : "produce_act";
    typedef act_op<T, CAST> op;
    const sink_args<T> s = sink_of<T>(out);
    const bool fits = a.cols % PIECE == 0 && rows_fit(a.x, a.x_stride) &&
                      rows_fit(a.up, a.up_stride) && sink_fits<T>(out);
    const bool whole = s.scaling == FP8_SINK_TOKEN;
    const int64_t n_pieces = a.cols / PIECE;
    fp8_status st = FP8_OK;
    row_tile t = {};
    int sms = 0;

    FP8_TRY_CUDA(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount,
                                        fp8_device_index(d)));
    if (fits)
        t = act_tile(d, a.rows, n_pieces, whole, a.rows * n_pieces <= (int64_t)sms * FEW_PIECES);
    *served = t.pieces > 0;
    if (!*served) goto done;
    st = launch_rows<op>(name, d, how, {a}, s, t, RESIDENT, whole ? t.segments : 1);
done:
    return st;
}

} /* namespace rings */
} /* namespace fp8 */

using namespace fp8;

/* ---- what the other files call --------------------------------------------------------------- */

extern "C" int fp8_rings_wanted(void) {
    const char *v = getenv("FP8_PRODUCER_RINGS");
    return v && v[0] == '1';
}

extern "C" fp8_status fp8_cuda_rings_norm(fp8_device *d, const fp8_sink *out, const fp8_norm *norm,
                                          fp8_launch launch, int *served) {
    FP8_FOR_REAL(norm->dtype, return rings::launch_norm<T>(d, out, norm, launch, served));
}

extern "C" fp8_status fp8_cuda_rings_act(fp8_device *d, const fp8_sink *out, const fp8_act *act,
                                         fp8_launch launch, int *served) {
    FP8_FOR_REAL(act->dtype,
                 const act_args<T> a = {static_cast<const T *>(act->x),
                                        static_cast<const T *>(act->up), act->x_stride,
                                        act->up_stride, act->rows, act->cols, act->act,
                                        act->rounded != 0};
                 return rings::launch_act<T, false>(d, out, a, launch, served));
}

extern "C" fp8_status fp8_cuda_rings_cast(fp8_device *d, const fp8_sink *out, const void *x,
                                          fp8_dtype dtype, int64_t rows, int64_t cols,
                                          int64_t x_stride, fp8_launch launch, int *served) {
    FP8_FOR_REAL(dtype,
                 const act_args<T> a = {static_cast<const T *>(x), nullptr, x_stride, 0, rows,
                                        cols, FP8_ACT_RELU, false};
                 return rings::launch_act<T, true>(d, out, a, launch, served));
}
