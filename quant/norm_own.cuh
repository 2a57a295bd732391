/* quant/norm_own.cuh - private: the RMS norm of rows whose codes have a scale a row or a group.
 *
 * r = 1 / rms is the same for a row: max |h r w| is r max |h w|, and the codes of h r w by their
 * own scale are those of h w, up to a few roundings. So h w is all that is kept, sum and maximum
 * meet at one barrier, and codes of groups wait for none. */
#ifndef FP8_QUANT_NORM_OWN_CUH
#define FP8_QUANT_NORM_OWN_CUH
#include "quant/norm_device.cuh"

namespace fp8 {

/* What a team's warps tell each other at the one barrier of a row. */
struct row_figures {
    float sum;
    uint32_t most;
};

template <int WARPS>
static __device__ __forceinline__ row_figures join_figures(row_figures f, int team,
                                                           row_figures *scratch) {
    f.sum = sum_over(f.sum, 32);
    f.most = warp_max(f.most);
    if (team <= 32) return f;
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = f;
    __syncthreads();
    f = figure_of<WARPS>(scratch, row_figures{});
    f.most = warp_max(f.most);
    f.sum = sum_over(f.sum, WARPS);
    return f;
}

/* The largest of each of a thread's N groups over 16 lanes, of which a lane gets that of its piece
 * piece_of(lane): lanes share the work of maxima and divisions. */
template <int N> static __device__ __forceinline__ int piece_of(int lane) {
    static_assert(N == 1 || N == 4, "pieces");
    return N == 1 ? 0 : lane % 2 * 2 + lane / 2 % 2;
}

template <int N>
static __device__ __forceinline__ uint32_t group_most(const uint32_t (&piece)[N]) {
    const int lane = (int)threadIdx.x % 32;
    uint32_t most = piece[0];

    if (N == 4) {
        const bool odd = lane & 1, second = lane & 2;
        const uint32_t a = __shfl_xor_sync(0xffffffffu, odd ? piece[0] : piece[N - 2], 1);
        const uint32_t b = __shfl_xor_sync(0xffffffffu, odd ? piece[N / 3] : piece[N - 1], 1);
        const uint32_t low = max(odd ? piece[N - 2] : piece[0], a);
        const uint32_t high = max(odd ? piece[N - 1] : piece[N / 3], b);
        most = max(second ? high : low, __shfl_xor_sync(0xffffffffu, second ? low : high, 2));
    }
#pragma unroll
    for (int off = N; off < GROUP_PIECES; off *= 2)
        most = max(most, __shfl_xor_sync(0xffffffffu, most, off));
    return most;
}

/* A row whose figures are not plain, or that rounds on the way: step by step, read again. */
template <typename T, int N, int MODE>
static __device__ __forceinline__ void put_row_slowly(const norm_args<T> &a,
                                                      const sink_args<T> &s, const share &all,
                                                      team_scratch *scratch) {
    typedef norm_op<T, 1, MODE> op_one;
    const op_one op = {a};
    const T *h = op.adds() ? a.h + all.row * a.h_stride : a.x + all.row * a.x_stride;
    const auto ask = [&](typename op_one::held &k, int i) {
        const share mine = {all.row, all.lane, all.team, all.at(i) - all.lane, all.end};
        piece<T> p = {};
        op.ask(k, mine);
        if (op_one::FROM) {
            op.read(k, mine);
            return mine;
        }
        if (mine.has(0)) p = load_piece(h, mine.at(0));
        widen_piece(k.h[0], p);
        return mine;
    };
    typename op_one::held k;
    float v[1][PIECE], scale[1], sum = 0.0f;
    uint32_t most = 0, ignored = 0;

#pragma unroll 1
    for (int i = 0; i < N; i++) {
        ask(k, i);
        sum += op.sum_of_squares(k);
    }
    k.rstd = rsqrtf(fmaf(team_sum<true>(sum, all.team, scratch->second), a.per_col, a.eps));
    if (MODE % NUM_SINK_MODES == MODE_TOKEN) {
#pragma unroll 1
        for (int i = 0; i < N; i++) {
            const share mine = ask(k, i);
            op.values(v, k, mine, 0);
            most = max(most, finite_amax<PIECE>(v[0], &ignored));
        }
        most = team_max<true>(most, all.team, scratch->most);
        scale[0] = own_scale(most, s.q_max,
                             all.lane == 0 && all.end > 0 ? s.descale + all.row : nullptr);
    }
#pragma unroll 1
    for (int i = 0; i < N; i++) {
        const share mine = ask(k, i);
        op.values(v, k, mine, 0);
        if (MODE % NUM_SINK_MODES == MODE_GROUP)
            scale_groups<true>(s, mine, 0, v, scale, &most, &ignored);
        store_pieces<false, MODE>(s, mine, 0, v, scale);
    }
}

template <typename T, int N, int MODE>
static __global__ void __launch_bounds__(N == 1 ? 1024 : 512, N == 1 ? 1 : 2)
norm_own_kernel(const norm_args<T> a, const sink_args<T> s, const row_tile t) {
    typedef norm_op<T, N, MODE> op_all;
    const bool by_token = MODE % NUM_SINK_MODES == MODE_TOKEN;
    __shared__ team_scratch scratch;
    __shared__ row_figures figures[MAX_WARPS];
    const int lane = (int)threadIdx.x & ((1 << t.shift) - 1), group = (int)threadIdx.x >> t.shift;
    const int64_t row = (int64_t)blockIdx.x * t.rows_per_block + group;
    share mine = {row, lane, t.team, 0, t.n_pieces};
    const op_all op = {a};
    typename op_all::held held;
    piece<T> weight[N] = {};
    float(&v)[N][PIECE] = held.h, scale[N];
    uint32_t most[N], own = 0;
    row_figures f = {0.0f, 0};

    const auto ask = [&] {
#pragma unroll
        for (int i = 0; i < N; i++)
            if (mine.has(i)) weight[i] = load_piece(a.weight, mine.at(i));
    };
    if (!op.adds()) ask(); /* else the registers are needed twice */
    else if (op_all::FROM) op.find(held, mine);
    let_next_start();
    wait_for_previous();
    if (row >= t.rows) mine.end = 0;
    op.read(held, mine);
    if (op.adds()) ask();
    /* the first piece of the group that this lane has the largest of */
    const int at = piece_of<N>(lane) * t.team + lane / GROUP_PIECES * GROUP_PIECES;
#pragma unroll
    for (int i = 0; i < N; i++) {
        float w[PIECE], sum[2] = {};
        widen_piece(w, weight[i]);
        if (a.kind == FP8_NORM_RMS_PLUS) {
#pragma unroll
            for (int e = 0; e < PIECE; e++) w[e] = __fadd_rn(1.0f, w[e]);
        }
#pragma unroll
        for (int e = 0; e < PIECE; e++) {
            sum[e % 2] = fmaf(v[i][e], v[i][e], sum[e % 2]);
            v[i][e] = __fmul_rn(v[i][e], w[e]);
        }
        f.sum += sum[0] + sum[1];
        most[i] = largest_bits<PIECE>(v[i]);
        f.most = max(f.most, most[i]);
    }
    if (!by_token) {
        own = group_most(most);
        if (at < mine.end && !is_plain(own)) f.sum = NAN; /* tells all */
        const float mine_scale = fp8_scale_quotient(s.q_max, __uint_as_float(own));
#pragma unroll
        for (int i = 0; i < N; i++)
            scale[i] = __shfl_sync(0xffffffffu, mine_scale, i / 2 + i % 2 * 2, GROUP_PIECES);
        store_pieces<false, MODE>(s, mine, 0, v, scale);
    }
    f = join_figures<op_all::WARPS>(f, t.team, figures);
    f.sum = rsqrtf(fmaf(f.sum, a.per_col, a.eps));
    const bool rounds = a.rounded && a.kind != FP8_NORM_RMS_PLUS; /* which never rounds here */
    if (rounds || !is_plain(__float_as_uint(f.sum)) || (by_token && !is_plain(f.most))) {
        put_row_slowly<T, N, MODE>(a, s, mine, &scratch);
        return;
    }
    if (by_token) {
        scale[0] = fp8_scale_quotient(s.q_max, __uint_as_float(f.most));
#pragma unroll
        for (int i = 1; i < N; i++) scale[i] = scale[0];
        store_pieces<false, MODE>(s, mine, 0, v, scale);
        if (lane == 0 && mine.end > 0)
            s.descale[row] = fp8_scale_quotient(__fmul_rn(__uint_as_float(f.most), f.sum), s.q_max);
        return;
    }
    if (lane % GROUP_PIECES < N && at < mine.end)
        s.descale[row * s.descale_row + at / GROUP_PIECES * s.descale_group] =
            fp8_scale_quotient(__fmul_rn(__uint_as_float(own), f.sum), s.q_max);
}

} /* namespace fp8 */
#endif
