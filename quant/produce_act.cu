/* quant/produce_act.cu - activations, alone or gated, and plain casts of rows, into a sink.
 *
 * Computes   v = act(x), act(x) * up, or x; codes, values, amax of v
 * Shapes     x, up, v [rows, cols]
 * Bound      memory: BF16 to codes gated 5 bytes an element, 3 else. 4096 x 14336 gated: 294 MB,
 *            at the H200's copy rate of 4.27 TB/s 69 us. SiLU takes some 25 instructions an element
 *            of the 35 that the memory leaves time for
 * Tiling     four pieces of eight elements a thread, few rows one or two; a row is cut into
 *            segments of equal size, a block each. With one scale a token the row is in registers:
 *            of a block, up to eight pieces a thread; on Hopper of blocks that stay, the next rows
 *            on their way (many rows, quant/produce_ring.cuh), or of a cluster of two (few of more
 *            than 8192 columns), so that twice as many multiprocessors work. Rows too long for that
 *            or not in pieces: a block each, an element at a time, made twice
 * Numerics   F32. Exponentials and reciprocals by the special-function unit (ex2.approx,
 *            rcp.approx: 2 units in the last place, subnormals kept): e^y is off by 2^-22 + |y|
 *            2^-23, far below half a step of E4M3 or BF16. erf by a polynomial, see normal_mass
 */
#include "quant/produce_ring.cuh"

using namespace fp8;

/* ---- constants ------------------------------------------------------------------------------ */

enum {
    SEGMENT_THREADS = 256, /* at most, of a block that has a segment */
    FEW_PIECES = 1536,     /* a multiprocessor: up to here latency counts, not bytes */
    FEW_SHORT = 2048       /* of a row: up to here blocks of one piece a thread are few enough */
};

/* Modes, beside those of the sink: 1 + the activation, or a cast. */
enum { CAST_MODE = 0, ACT_MODE = NUM_SINK_MODES, PLAIN_MODE = 8 * NUM_SINK_MODES };

/* ---- device helpers ------------------------------------------------------------------------- */

template <typename T> struct act_args {
    const T *x, *up;
    int64_t x_stride, up_stride, rows, cols;
    fp8_activation act;
    bool rounded;
};

static __device__ __forceinline__ float power_of_two(float z) {
    float e;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(e) : "f"(z)); /* what is lost is lost in 1 + e */
    return e;
}

/* x / (1 + 2^z). A quarter of the sum is inverted, so that no reciprocal is subnormal, which the
 * instruction alone would flush and four more keep. */
static __device__ __forceinline__ float gate(float x, float z) {
    float r;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(fmaf(power_of_two(z), 0.25f, 0.25f)));
    return x * 0.25f * r;
}

/* The same for one element, or for N: two with one reciprocal, of the product of their sums; where
 * one lies past 2^62, each with its own. The special-function unit is what they wait for. */
template <int N> static __device__ __forceinline__ void gate_all(float *x, const float *z) {
    if constexpr (N > 1) {
        float most = z[0];
#pragma unroll
        for (int k = 1; k < N; k++) asm("max.NaN.f32 %0, %0, %1;" : "+f"(most) : "f"(z[k]));
        if (most < 62.0f) {
#pragma unroll
            for (int k = 0; k < N; k += 2) {
                const float a = 1.0f + power_of_two(z[k]), b = 1.0f + power_of_two(z[k + 1]);
                float r;
                asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(a * b));
                x[k] *= r * b;
                x[k + 1] *= r * a;
            }
            return;
        }
    }
#pragma unroll
    for (int k = 0; k < N; k++) x[k] = gate(x[k], z[k]);
}

/* The normal distribution's mass below x: y = |x| / sqrt 2, erfc(y) / 2 = t p(t) e^(-y^2) with
 * t = 1 / (1 + 0.4 y), p fitted over y in 0 .. 5 to 0.23 * 2^-24; 3 * 2^-24 with the roundings, 2
 * more with those of the approximate instructions. A branch less than erff, and a third of its
 * instructions. */
static __device__ __forceinline__ float normal_mass(float x) {
    const float log2e = 1.44269504088896341f;
    float t, e, p = -0.10012818f;
    asm("rcp.approx.ftz.f32 %0, %1;"
        : "=f"(t)
        : "f"(fmaf(fabsf(x), 0.4f * 0.70710678118654752f, 1.0f)));
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(e) : "f"(-0.5f * log2e * x * x));
    p = fmaf(t, p, 0.35456793f);
    p = fmaf(t, p, -0.18544490f);
    p = fmaf(t, p, 0.23412996f);
    p = fmaf(t, p, 0.080914557f);
    p = fmaf(t, p, 0.11596062f);
    return 0.5f + copysignf(0.5f - p * t * e, x);
}

/* The forms of core/mathfn.h: no cancellation near -1, -0 and NaN kept. */
template <int N>
static __device__ __forceinline__ void activate(float *v, fp8_activation act) {
    const float log2e = 1.44269504088896341f;
    float z[N];
    switch (act) {
    case FP8_ACT_SILU:
#pragma unroll
        for (int k = 0; k < N; k++) z[k] = -log2e * v[k];
        gate_all<N>(v, z);
        return;
    case FP8_ACT_GELU_TANH:
#pragma unroll
        for (int k = 0; k < N; k++) {
            const float twice = -2.0f * 0.7978845608028654f * log2e;
            z[k] = v[k] * fmaf(twice * 0.044715f, v[k] * v[k], twice);
        }
        gate_all<N>(v, z);
        return;
    case FP8_ACT_GELU_ERF:
#pragma unroll
        for (int k = 0; k < N; k++) v[k] *= normal_mass(v[k]);
        return;
    case FP8_ACT_RELU:
#pragma unroll
        for (int k = 0; k < N; k++) v[k] = v[k] < 0.0f ? 0.0f : v[k];
        return;
    }
}

template <typename T, int N>
static __device__ __forceinline__ void act_values(float *v, const float *up, const act_args<T> &a,
                                                  fp8_activation act, bool gated) {
    activate<N>(v, act);
    if (!gated) return;
#pragma unroll
    for (int k = 0; k < N; k++) v[k] = (a.rounded ? round_to<T>(v[k]) : v[k]) * up[k];
}

/* For rows_kernel. CAST: v = x, a NaN keeps its sign. */
template <typename T, bool CAST, int N, int KNOWN> struct act_op {
    typedef T real;
    enum {
        MODE = KNOWN,
        PIECES = N,
        KEEP_NAN_SIGN = CAST,
        SEGMENT = MODE != ANY_MODE && MODE % NUM_SINK_MODES != MODE_TOKEN,
        THREADS = N < BATCH ? 1024 : SEGMENT || MODE == ANY_MODE ? SEGMENT_THREADS : 512,
        /* 4 blocks where it is little memory that each asks for, or much to compute */
        MORE = MODE >= PLAIN_MODE || MODE / NUM_SINK_MODES == 1 + FP8_ACT_GELU_ERF,
        BLOCKS = N == 4 && SEGMENT ? 3 + MORE : 1,
        STEP = N < BATCH ? N : BATCH,
        AT_ONCE = MODE == ANY_MODE && N > 2 ? 2 : STEP,
        RING_THREADS = 1024,
        INPUTS = CAST || MODE >= PLAIN_MODE ? 1 : 2
    };
    act_args<T> a;

    struct held {
        float v[N][PIECE];
    };

    __device__ __forceinline__ bool gated() const {
        return MODE == ANY_MODE ? a.up != nullptr : MODE < PLAIN_MODE;
    }
    __device__ __forceinline__ fp8_activation act() const {
        return MODE == ANY_MODE ? a.act : (fp8_activation)(MODE % PLAIN_MODE / NUM_SINK_MODES - 1);
    }

    __device__ __forceinline__ void ask(held &, const share &) const {}

    __device__ __forceinline__ void load(held &k, const share &mine, team_scratch *) const {
        const T *x = a.x + mine.row * a.x_stride, *up = a.up + mine.row * a.up_stride;
#pragma unroll
        for (int first = 0; first < N; first += STEP) {
            piece<T> p[STEP] = {}, q[STEP] = {};
#pragma unroll
            for (int i = 0; i < STEP; i++)
                if (mine.has(first + i)) {
                    p[i] = load_piece(x, mine.at(first + i));
                    if (!CAST && gated()) q[i] = load_piece(up, mine.at(first + i));
                }
#pragma unroll
            for (int i = 0; i < STEP; i++) {
                float w[PIECE];
                widen_piece(k.v[first + i], p[i]);
                if (CAST) continue;
                widen_piece(w, q[i]);
                act_values<T, PIECE>(k.v[first + i], w, a, act(), gated());
            }
        }
    }

    /* For ring_kernel. */
    __device__ __forceinline__ const T *input(int i, int64_t row) const {
        return i ? a.up + row * a.up_stride : a.x + row * a.x_stride;
    }
    __device__ __forceinline__ void take(float (&v)[N][PIECE], const share &mine,
                                         const T *slot) const {
#pragma unroll
        for (int i = 0; i < N; i++) {
            piece<T> p = {}, q = {};
            float w[PIECE];
            if (mine.has(i)) {
                p = load_piece(slot, mine.at(i));
                if (INPUTS == 2) q = load_piece(slot, mine.end + mine.at(i));
            }
            widen_piece(v[i], p);
            if (CAST) continue;
            widen_piece(w, q);
            act_values<T, PIECE>(v[i], w, a, act(), gated());
        }
    }

    __device__ __forceinline__ void forget(held &) const {} /* its values are what it holds */

    template <int COUNT>
    __device__ __forceinline__ void values(float (&v)[COUNT][PIECE], const held &k, const share &,
                                           int first) const {
#pragma unroll
        for (int i = 0; i < COUNT; i++)
#pragma unroll
            for (int e = 0; e < PIECE; e++) v[i][e] = k.v[first + i][e];
    }
};

/* ---- kernels -------------------------------------------------------------------------------- */

/* grid: rows. */
template <typename T, bool CAST>
static __global__ void __launch_bounds__(ANY_THREADS, 4)
act_any_kernel(act_args<T> a, sink_args<T> s) {
    __shared__ team_scratch scratch;
    const int64_t row = blockIdx.x;

    let_next_start();
    wait_for_previous();
    put_any<CAST>(s, row, a.cols, &scratch, [&](int64_t c) {
        float v = to_float(a.x[row * a.x_stride + c]);
        const float u = !CAST && a.up ? to_float(a.up[row * a.up_stride + c]) : 0.0f;
        if (!CAST) act_values<T, 1>(&v, &u, a, a.act, a.up != nullptr);
        return v;
    });
}

/* ---- launchers ------------------------------------------------------------------------------ */

static const char *const names[] = {"produce_act", "produce_cast"};

template <typename T, bool CAST>
static fp8_status launch_long(fp8_device *d, const act_args<T> &a, const sink_args<T> &s,
                              fp8_launch how) {
    return launch(names[CAST], act_any_kernel<T, CAST>, dim3((unsigned)a.rows), dim3(ANY_THREADS),
                  0, d, how, a, s);
}

template <typename T, bool CAST, int N, int MODE>
static fp8_status launch_known(fp8_device *d, const act_args<T> &a, const sink_args<T> &s,
                               fp8_launch how) {
    typedef act_op<T, CAST, N, MODE> op;
    const int64_t n_pieces = a.cols / PIECE;
    const bool whole = s.scaling == FP8_SINK_TOKEN;
    const int64_t segments = whole ? 1 : (n_pieces + SEGMENT_THREADS * N - 1) /
                                             (SEGMENT_THREADS * N);
    const row_tile t = tile_of(a.rows, n_pieces, N, (int)segments, SEGMENT_THREADS,
                               MODE != ANY_MODE);
    return launch_rows(names[CAST], d, how, op{a}, s, t);
}

/* One scale a token, a row in a cluster of two blocks. */
template <typename T, int MODE>
static fp8_status launch_pair(fp8_device *d, const act_args<T> &a, const sink_args<T> &s,
                              fp8_launch how) {
    typedef act_op<T, false, 2, MODE> op;
    const row_tile t = tile_of(a.rows, a.cols / PIECE, op::PIECES, 2, SEGMENT_THREADS, true);
    return launch_clusters(names[0], rows_kernel<op>, 2, dim3((unsigned)a.rows * 2),
                           dim3((unsigned)t.threads), 0, d, how, op{a}, s, t);
}

/* One scale a token, long or many rows, where a block a row is not the best: many rows by blocks
 * that stay, few long ones by two blocks each. *taken 0: it is. */
template <typename T, int MODE>
static fp8_status launch_token(fp8_device *d, const act_args<T> &a, const sink_args<T> &s, int sms,
                               fp8_launch how, int *taken) {
    typedef act_op<T, false, 4, MODE> many;
    const int64_t n_pieces = a.cols / PIECE;
    const ring_tile r = ring_of<T>(a.rows, n_pieces, (int)(n_pieces + 127) / 128 * 32, many::INPUTS,
                                   many::RING_THREADS, sms);

    *taken = fp8_device_capability(d) >= 90 && (r.stages || a.rows * 2 <= sms);
    if (!*taken) return FP8_OK;
    if (r.stages)
        return launch_ring(names[0], token_ring_kernel<many>, sms, r, d, how, many{a}, s, r);
    return launch_pair<T, MODE>(d, a, s, how);
}

/* The ways that occur in models by their own kernel, all else by one that asks as it runs. MANY:
 * pieces a thread with one scale a token. */
template <typename T, bool CAST, int N, int MANY, int OP>
static fp8_status launch_sink(fp8_device *d, const act_args<T> &a, const sink_args<T> &s, int sink,
                              int sms, fp8_launch how) {
    int taken = 0;

    switch (sink) {
    case MODE_ONE_SCALE: return launch_known<T, CAST, N, OP + MODE_ONE_SCALE>(d, a, s, how);
    case MODE_TOKEN:
        if constexpr (!CAST && N > 1) {
            const fp8_status st = launch_token<T, OP + MODE_TOKEN>(d, a, s, sms, how, &taken);
            if (taken || st != FP8_OK) return st;
        }
        return launch_known<T, CAST, MANY, OP + MODE_TOKEN>(d, a, s, how);
    case MODE_GROUP: return launch_known<T, CAST, N, OP + MODE_GROUP>(d, a, s, how);
    default: return launch_known<T, CAST, N, OP + MODE_VALUES>(d, a, s, how);
    }
}

template <typename T, bool CAST, int N, int MANY>
static fp8_status launch_mode(fp8_device *d, const act_args<T> &a, const sink_args<T> &s, int sms,
                              fp8_launch how) {
    const int sink = a.cols < 32 * PIECE ? ANY_MODE : sink_mode(s);
    enum {
        SWIGLU = ACT_MODE * (1 + FP8_ACT_SILU),
        GEGLU = ACT_MODE * (1 + FP8_ACT_GELU_TANH),
        GELU = PLAIN_MODE + ACT_MODE * (1 + FP8_ACT_GELU_TANH),
        GEGLU_ERF = ACT_MODE * (1 + FP8_ACT_GELU_ERF),
        GELU_ERF = PLAIN_MODE + ACT_MODE * (1 + FP8_ACT_GELU_ERF)
    };

    if constexpr (is_bf16<T>()) {
        if (sink != ANY_MODE && CAST)
            return launch_sink<T, true, N, MANY, CAST_MODE>(d, a, s, sink, sms, how);
        if (sink != ANY_MODE && a.act == FP8_ACT_SILU && a.up)
            return launch_sink<T, false, N, MANY, SWIGLU>(d, a, s, sink, sms, how);
        if (sink != ANY_MODE && a.act == FP8_ACT_GELU_TANH)
            return a.up ? launch_sink<T, false, N, MANY, GEGLU>(d, a, s, sink, sms, how)
                        : launch_sink<T, false, N, MANY, GELU>(d, a, s, sink, sms, how);
        if (sink != ANY_MODE && a.act == FP8_ACT_GELU_ERF)
            return a.up ? launch_sink<T, false, N, MANY, GEGLU_ERF>(d, a, s, sink, sms, how)
                        : launch_sink<T, false, N, MANY, GELU_ERF>(d, a, s, sink, sms, how);
    }
    if constexpr (is_bf16<T>() && !CAST && N == 4) {
        if (is_observed(s) && a.act == FP8_ACT_SILU && a.up)
            return launch_known<T, false, N, SWIGLU + MODE_OBSERVED>(d, a, s, how);
        if (is_observed(s) && a.act == FP8_ACT_GELU_TANH && a.up)
            return launch_known<T, false, N, GEGLU + MODE_OBSERVED>(d, a, s, how);
    }
    if (s.scaling != FP8_SINK_TOKEN)
        return launch_known<T, CAST, (N == 1 ? 1 : 2), ANY_MODE>(d, a, s, how);
    if (MANY > 1 && a.cols > SEGMENT_THREADS * MANY * PIECE)
        return launch_long<T, CAST>(d, a, s, how);
    return launch_known<T, CAST, MANY, ANY_MODE>(d, a, s, how);
}

template <typename T, bool CAST>
static fp8_status launch_act(fp8_device *d, const fp8_sink *out, const act_args<T> &a,
                             fp8_launch how) {
    const sink_args<T> s = sink_of<T>(out);
    const bool fits = a.cols % PIECE == 0 && rows_fit(a.x, a.x_stride) &&
                      rows_fit(a.up, a.up_stride) && sink_fits<T>(out);
    const bool whole = s.scaling == FP8_SINK_TOKEN;
    const int64_t n_pieces = a.cols / PIECE;
    fp8_status st = FP8_OK;
    int sms = 0;
    bool few, pairs; /* pairs: of blocks have a row, see launch_token */

    FP8_TRY_CUDA(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount,
                                        fp8_device_index(d)));
    few = a.rows * n_pieces <= (int64_t)sms * FEW_PIECES;
    pairs = a.up && a.rows * 2 <= sms && fp8_device_capability(d) >= 90;
    if (!fits || (whole && n_pieces > 512 * 8))
        st = launch_long<T, CAST>(d, a, s, how);
    else if (few && !whole && a.up && n_pieces > FEW_SHORT)
        st = launch_mode<T, CAST, 2, 2>(d, a, s, sms, how);
    else if (n_pieces < 32 || (few && (!whole || n_pieces <= 1024)))
        st = launch_mode<T, CAST, 1, 1>(d, a, s, sms, how);
    else if (few && n_pieces <= 512 * 4 && !pairs)
        st = launch_mode<T, CAST, 1, 2>(d, a, s, sms, how);
    else
        st = launch_mode<T, CAST, 4, 8>(d, a, s, sms, how);
done:
    return st;
}

extern "C" fp8_status fp8_cuda_produce_act(fp8_device *d, const fp8_sink *out, const fp8_act *act,
                                           fp8_launch launch) {
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
    FP8_FOR_REAL(dtype,
                 const act_args<T> a = {static_cast<const T *>(x), nullptr, x_stride, 0, rows,
                                        cols, FP8_ACT_RELU, false};
                 return launch_act<T, true>(d, out, a, launch));
}
