/* quant/norm_device.cuh - private: what the norm kernels share: their arguments, sums over a row,
 * and the norm of rows in registers for rows_kernel. */
#ifndef FP8_QUANT_NORM_DEVICE_CUH
#define FP8_QUANT_NORM_DEVICE_CUH
#include "quant/produce_device.cuh"

namespace fp8 {

/* Modes, beside those of the sink. */
enum {
    LAYER_MODE = NUM_SINK_MODES,
    ADD_MODE = 2 * NUM_SINK_MODES,
    FROM_MODE = 4 * NUM_SINK_MODES /* rows from elsewhere; else they are where they lie */
};

template <typename T> struct norm_args {
    const T *x, *residual, *weight, *bias;
    T *h;
    int64_t x_stride, residual_stride, h_stride, rows, cols;
    fp8_norm_kind kind;
    float eps, per_col; /* per_col = 1 / cols */
    bool rounded;
    const int32_t *from;
    float multiplier;
};

template <typename T>
static __device__ __forceinline__ float scaled_rms(const norm_args<T> &a, float h, float w,
                                                   float rstd) {
    const float v = __fmul_rn(h, rstd);
    if (a.kind == FP8_NORM_RMS_PLUS) return __fmul_rn(v, __fadd_rn(1.0f, w));
    return __fmul_rn(a.rounded ? round_to<T>(v) : v, w);
}

/* Far from all limits: products and quotients of two such numbers round once and nothing else. */
static __device__ __forceinline__ bool is_plain(uint32_t bits) {
    const uint32_t least = 0x21800000u, most = 0x5d800000u; /* 2^-60, 2^60 */
    return bits - least <= most - least;
}

/* The sum over every `lanes` lanes, a power of two, in a fixed order. */
static __device__ __forceinline__ float sum_over(float v, int lanes) {
    for (int off = lanes / 2; off > 0; off /= 2) v += __shfl_xor_sync(0xffffffffu, v, off);
    return v;
}

/* What a block's warps found, at most LANES of them, a lane each, over and over. */
template <int LANES, typename F>
static __device__ __forceinline__ F figure_of(const F *scratch, F none) {
    const int i = (int)threadIdx.x % LANES;
    return i < (int)blockDim.x / 32 ? scratch[i] : none;
}

/* A warp's share of a row: its sum and mean, and the squares about that mean. */
struct alignas(16) row_moments {
    float sum, mean, squares, count;
};

/* For rows_kernel. */
template <typename T, int N, int KNOWN> struct norm_op {
    typedef T real;
    enum {
        MODE = KNOWN,
        PIECES = N,
        KEEP_NAN_SIGN = 0,
        THREADS = MODE == ANY_MODE || N == 1 ? 1024 : 512,
        WARPS = THREADS / 32,
        FROM = MODE != ANY_MODE && (MODE & FROM_MODE) != 0,
        MADE_TWICE = MODE % NUM_SINK_MODES == MODE_TOKEN,
        BLOCKS = N == 4 && !MADE_TWICE ? 2 : 1,
        STEP = N < BATCH ? N : BATCH,
        /* weights of half the pieces at a time, where there are few registers */
        FEW_LEFT = N > 2 && MODE != MODE_ONE_SCALE && MODE != MODE_VALUES,
        AT_ONCE = MODE == ANY_MODE ? 1 : FEW_LEFT ? 2 : STEP,
        BY_AMAX = MODE == ANY_MODE || (MODE % NUM_SINK_MODES != MODE_ONE_SCALE &&
                                       MODE % NUM_SINK_MODES != MODE_VALUES)
    };
    norm_args<T> a;

    struct held {
        float h[N][PIECE], offset, rstd; /* LAYER, once normed: h less something, and the rest */
        piece<T> weight;                 /* where there is one piece */
        int64_t source;                  /* FROM: the row of x and residual */
    };

    __device__ __forceinline__ bool is_layer() const {
        return MODE == ANY_MODE ? a.kind == FP8_NORM_LAYER : (MODE & LAYER_MODE) != 0;
    }
    __device__ __forceinline__ bool adds() const {
        return MODE == ANY_MODE ? a.residual != nullptr : (MODE & ADD_MODE) != 0;
    }

    __device__ __forceinline__ void ask(held &k, const share &mine) const {
        if (N == 1 && mine.has(0)) k.weight = load_piece(a.weight, mine.at(0));
        if (FROM && adds()) find(k, mine);
    }

    __device__ __forceinline__ void find(held &k, const share &mine) const {
        k.source = mine.row < a.rows ? a.from[mine.row] : 0;
    }

    /* h = x, or what is made of it, which is stored. */
    __device__ __forceinline__ void read(held &k, const share &mine) const {
        if (FROM && !adds()) find(k, mine); /* ids that the kernel before may have made */
        const int64_t row = FROM ? k.source : mine.row;
        const T *x = a.x + row * a.x_stride, *y = a.residual + row * a.residual_stride;
#pragma unroll
        for (int first = 0; first < N; first += STEP) {
            piece<T> p[STEP] = {}, q[STEP] = {};
#pragma unroll
            for (int i = 0; i < STEP; i++)
                if (mine.has(first + i)) {
                    p[i] = load_piece(x, mine.at(first + i));
                    if (adds()) q[i] = load_piece(y, mine.at(first + i));
                }
#pragma unroll
            for (int i = 0; i < STEP; i++) {
                float w[PIECE];
                if (FROM) multiply(p[i]);
                widen_piece(k.h[first + i], p[i]);
                if (adds()) {
                    widen_piece(w, q[i]);
#pragma unroll
                    for (int e = 0; e < PIECE; e++)
                        k.h[first + i][e] = __fadd_rn(k.h[first + i][e], w[e]);
                    p[i] = narrow_piece<T>(k.h[first + i]);
                    widen_piece(k.h[first + i], p[i]);
                }
                if ((FROM ? a.h != nullptr : adds()) && mine.has(first + i))
                    put_piece(a.h + mine.row * a.h_stride, mine.at(first + i), p[i]);
            }
        }
    }

    __device__ __forceinline__ void multiply(piece<T> &p) const {
        float v[PIECE];
        if (a.multiplier == 1.0f) return;
        widen_piece(v, p);
#pragma unroll
        for (int e = 0; e < PIECE; e++) v[e] = __fmul_rn(v[e], a.multiplier);
        p = narrow_piece<T>(v);
    }

    static __device__ __forceinline__ float sum_of_squares(const held &k) {
        float sum[4] = {};
#pragma unroll
        for (int i = 0; i < N; i++)
#pragma unroll
            for (int e = 0; e < PIECE; e++) sum[e % 4] = fmaf(k.h[i][e], k.h[i][e], sum[e % 4]);
        return (sum[0] + sum[1]) + (sum[2] + sum[3]);
    }

    /* Mean of the row, and the sum of squares about it. A warp takes its own mean first, and h less
     * that is what is kept: the shares are joined at one barrier, and nothing cancels. */
    __device__ __forceinline__ float moments(held &k, const share &mine, float *mean) const {
        __shared__ row_moments scratch[MAX_WARPS];
        const int lanes = MODE != ANY_MODE || mine.team > 32 ? 32 : mine.team;
        const int begin = mine.lane & -lanes;
        row_moments m = {};
        float sum[4] = {};
        int pieces = 0;

#pragma unroll
        for (int i = 0; i < N; i++) {
            pieces += min(max(mine.end - (mine.begin + i * mine.team + begin), 0), lanes);
#pragma unroll
            for (int e = 0; e < PIECE; e++) sum[e % 4] += k.h[i][e]; /* 0 where there is nothing */
        }
        m.sum = sum_over((sum[0] + sum[1]) + (sum[2] + sum[3]), lanes);
        m.count = (float)(pieces * PIECE);
        *mean = m.mean = pieces > 0 ? __fdividef(m.sum, m.count) : 0.0f;
#pragma unroll
        for (int e = 0; e < 4; e++) sum[e] = 0.0f;
#pragma unroll
        for (int i = 0; i < N; i++) {
#pragma unroll
            for (int e = 0; e < PIECE; e++) {
                k.h[i][e] = __fsub_rn(k.h[i][e], m.mean);
                if (mine.has(i)) sum[e % 4] = fmaf(k.h[i][e], k.h[i][e], sum[e % 4]);
            }
        }
        k.offset = 0.0f;
        m.squares = sum_over((sum[0] + sum[1]) + (sum[2] + sum[3]), lanes);
        if (mine.team <= 32) return m.squares;
        if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = m;
        __syncthreads();
        m = figure_of<WARPS>(scratch, row_moments{});
        const float all = sum_over(m.sum, WARPS) * a.per_col, apart = m.mean - all;
        k.offset = *mean - all;
        return sum_over(m.count > 0.0f ? fmaf(m.count * apart, apart, m.squares) : 0.0f,
                        WARPS);
    }

    __device__ __forceinline__ void load(held &k, const share &mine, team_scratch *scratch) const {
        float squares, mean;
        read(k, mine);
        if (is_layer()) squares = moments(k, mine, &mean);
        else squares = team_sum<MODE != ANY_MODE>(sum_of_squares(k), mine.team, scratch->second);
        k.rstd = rsqrtf(fmaf(squares, a.per_col, a.eps));
        if (is_layer()) k.offset *= k.rstd;
    }

    /* Values made before are made again: registers for them and for the weights there are not. */
    __device__ __forceinline__ void forget(held &k) const {
#pragma unroll
        for (int i = 0; i < N; i++)
#pragma unroll
            for (int e = 0; e < PIECE; e++) asm volatile("" : "+f"(k.h[i][e]));
        asm volatile("" ::: "memory");
    }

    /* Of what is not there 0, where a maximum is taken, else anything. */
    template <int COUNT>
    __device__ __forceinline__ void values(float (&v)[COUNT][PIECE], const held &k,
                                           const share &mine, int first) const {
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            const bool has = mine.has(first + i);
            piece<T> weight = {};
            float w[PIECE];
            if (N == 1) weight = k.weight;
            else if (has) weight = load_piece(a.weight, mine.at(first + i));
            widen_piece(w, weight);
            if (is_layer()) {
                float b[PIECE];
                bias_of(b, mine, first + i);
#pragma unroll
                for (int e = 0; e < PIECE; e++)
                    v[i][e] = fmaf(fmaf(k.h[first + i][e], k.rstd, k.offset), w[e], b[e]);
            } else if (!a.rounded && a.kind == FP8_NORM_RMS) {
#pragma unroll
                for (int e = 0; e < PIECE; e++)
                    v[i][e] = __fmul_rn(__fmul_rn(k.h[first + i][e], k.rstd), w[e]);
            } else {
#pragma unroll
                for (int e = 0; e < PIECE; e++)
                    v[i][e] = scaled_rms(a, k.h[first + i][e], w[e], k.rstd);
            }
#pragma unroll
            for (int e = 0; e < PIECE; e++)
                if (BY_AMAX && !has) v[i][e] = 0.0f;
        }
    }

    /* -0, which changes no sum, where there is none. */
    __device__ __forceinline__ void bias_of(float b[PIECE], const share &mine, int i) const {
        if constexpr (is_bf16<T>()) {
            piece<T> bias = {{{0x80008000u, 0x80008000u, 0x80008000u, 0x80008000u}}};
            if (a.bias && mine.has(i)) bias = load_piece(a.bias, mine.at(i));
            widen_piece(b, bias);
        } else {
#pragma unroll
            for (int e = 0; e < PIECE; e++) b[e] = -0.0f;
            if (a.bias && mine.has(i)) widen_piece(b, load_piece(a.bias, mine.at(i)));
        }
    }
};

} /* namespace fp8 */
#endif
