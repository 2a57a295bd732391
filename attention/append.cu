/* attention/append.cu - norm, RoPE and cast of new tokens into pages and query, one launch for all.
 *
 * Computes   per head of q and k: h * r * w (or (1 + w)), (a, b) -> (a cos - b sin, b cos + a sin);
 *            codes or 16-bit reals of q packed, of k and v in their pages, v turned
 * Shapes     x [rows, heads, d] of each part, strides any; pages as attention/cache.h has them
 * Bound      memory: BF16 to codes 3 bytes an element; 8192 tokens of 32 + 8 + 8 heads of 128:
 *            151 MB, at the H200's copy rate of 4.27 TB/s 35 us
 * Tiling     a thread has 16 elements of a head: eight and the eight half a rotation later, or 16
 *            that follow each other; `lanes` threads, a power of two, make a head, 32 / lanes heads
 *            of one part a warp. Longer runs: a warp keeps its heads for eight tokens, the next
 *            loaded before the last is done; V by tiles in blocks of their own (append_values.cuh),
 *            which come last: they are shorter, and fill the last wave. Decoding: a warp has one
 *            token; of V 64 columns, stored one by one: each is a sector of its own, so they are
 *            spread over all multiprocessors. What is not in units of 16: append_any.cu
 * Numerics   F32; the rotation is not contracted, as on the CPU; sums in a fixed order
 */
#include "attention/append_values.cuh"

using namespace attention;

namespace {

/* ---- constants ------------------------------------------------------------------------------ */

enum {
    PIECE = 8, /* 16 bytes of x */
    UNIT = 2 * PIECE,
    RUN = 8,             /* tokens a warp has in a longer run */
    ONCE_THREADS = 64,   /* of a block when decoding; measured: 64 and 2 of V before 128 and 4 */
    VALUES_A_LANE = 2,   /* of V when decoding */
    VALUES = VALUES_A_LANE * WARP
};

/* How a call is cut up. */
struct append_shape {
    int lanes_log;           /* of threads a head, to 2 */
    int q_chunks, chunks;    /* warps' worth of heads a token: of q, of q and k */
    int value_warps;         /* decoding: warps of V a token */
    unsigned per_column;     /* decoding: 2^32 / d_v, rounded up */
    int64_t tasks;           /* of all warps, without the tiles */
    int tiles, slabs;        /* of V in longer runs */
};

/* ---- device helpers ------------------------------------------------------------------------- */

struct raw_unit {
    uint4 low, high;
};

/* What a thread does for every token of its heads of q or k. */
template <typename T> struct head_work {
    const T *x; /* at element `low` of row 0 */
    int head, slot, low, apart; /* elements low .. + 7 and low + apart .. + 7 */
    bool is_q, codes, turns, there;
};

template <typename T>
__device__ __forceinline__ const fp8_append_heads &heads_of(const append_args &g,
                                                            const head_work<T> &w) {
    return w.is_q ? g.a.q : g.a.k;
}

template <typename T>
__device__ __forceinline__ head_work<T> work_of(const append_args &g, const append_shape &s,
                                                int chunk) {
    const int lane = (int)threadIdx.x % WARP, heads_log = 5 - s.lanes_log; /* of a warp */
    const fp8_kv_pages &c = g.pages;
    head_work<T> w;

    w.is_q = chunk < s.q_chunks;
    const fp8_append_heads &h = w.is_q ? g.a.q : g.a.k;
    const int heads = w.is_q ? g.a.num_heads : c.num_kv_heads;
    const fp8_dtype dtype = w.is_q ? g.a.q_dtype : c.dtype;
    w.head = ((w.is_q ? chunk : chunk - s.q_chunks) << heads_log) + (lane >> s.lanes_log);
    w.slot = lane & ((1 << s.lanes_log) - 1);
    w.there = w.head < heads && w.slot * UNIT < c.d_qk;
    w.turns = w.there && w.slot * UNIT < g.a.rotary_dim;
    const bool halves = w.slot * UNIT < g.a.rotary_dim && g.a.rope == FP8_ROPE_HALVES;
    w.low = w.slot * (halves ? PIECE : UNIT);
    w.apart = halves ? g.a.rotary_dim / 2 : PIECE;
    w.x = static_cast<const T *>(h.x) + w.head * h.head_stride + w.low;
    w.codes = dtype == FP8_DTYPE_E4M3;
    return w;
}

template <typename T>
__device__ __forceinline__ raw_unit load_unit(const T *x, int apart, bool there) {
    raw_unit r = {};
    if (!there) return r;
    r.low = *reinterpret_cast<const uint4 *>(x);
    r.high = *reinterpret_cast<const uint4 *>(x + apart);
    return r;
}

/* The descale of the thread's heads, 1 for real types. */
template <typename T>
__device__ __forceinline__ float descale_of(const append_args &g, const head_work<T> &w) {
    const float *descale = w.is_q ? g.a.q_descale : g.pages.k_descale;
    if (!w.codes || !w.there) return 1.0f;
    if (g.pages.granularity != FP8_DESCALE_HEAD) return descale[0];
    return descale[w.is_q ? w.head / (g.a.num_heads / g.pages.num_kv_heads) : w.head];
}

/* RMS norm of a head over its lanes. */
template <typename T>
__device__ __forceinline__ void norm_unit(const append_args &g, float (&v)[UNIT],
                                          const head_work<T> &h, int lanes) {
    const bool plus = g.a.norm == FP8_NORM_RMS_PLUS;
    const T *weights = static_cast<const T *>(heads_of(g, h).norm_weight);
    const raw_unit raw = load_unit(weights + h.low, h.apart, h.there);
    float sum = 0.0f, w[UNIT], r;

    widen8<T>(w, raw.low);
    widen8<T>(w + PIECE, raw.high);
#pragma unroll
    for (int k = 0; k < UNIT; k++) sum += v[k] * v[k];
    for (int off = lanes / 2; off > 0; off /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, off);
    r = 1.0f / sqrtf(sum / (float)g.pages.d_qk + g.a.eps);
    if (g.a.rounded) {
#pragma unroll
        for (int k = 0; k < UNIT; k++) v[k] = norm_value(g.a, v[k], r, w[k]);
        return;
    }
#pragma unroll
    for (int k = 0; k < UNIT; k++)
        v[k] = __fmul_rn(__fmul_rn(v[k], r), plus ? __fadd_rn(1.0f, w[k]) : w[k]);
}

/* The thread's eight angles are in a row of the tables, whatever the form. */
struct angles {
    float4 cos[PIECE / 4], sin[PIECE / 4];
};

template <typename T>
__device__ __forceinline__ angles load_angles(const append_args &g, const head_work<T> &w,
                                              int position) {
    const int64_t at = (int64_t)position * (g.a.rotary_dim / 2) + w.slot * PIECE;
    angles a = {};
    if (!w.turns) return a;
#pragma unroll
    for (int k = 0; k < PIECE / 4; k++) {
        a.cos[k] = reinterpret_cast<const float4 *>(g.a.cos + at)[k];
        a.sin[k] = reinterpret_cast<const float4 *>(g.a.sin + at)[k];
    }
    return a;
}

__device__ __forceinline__ void rotate_unit(const append_args &g, float (&v)[UNIT],
                                            const angles &a) {
    const bool halves = g.a.rope == FP8_ROPE_HALVES;
#pragma unroll
    for (int k = 0; k < PIECE; k += 4) {
        const float4 c = a.cos[k / 4], s = a.sin[k / 4];
        const float cos[4] = {c.x, c.y, c.z, c.w}, sin[4] = {s.x, s.y, s.z, s.w};
        if (halves) {
#pragma unroll
            for (int i = 0; i < 4; i++) rotate(v + k + i, v + PIECE + k + i, cos[i], sin[i]);
        } else {
#pragma unroll
            for (int i = 0; i < 4; i++)
                rotate(v + 2 * (k + i), v + 2 * (k + i) + 1, cos[i], sin[i]);
        }
    }
}

/* Elements at .. + 7 and at + apart .. + 7: codes or 16-bit reals. */
template <typename T>
__device__ __forceinline__ void store_unit(void *base, const head_work<T> &w, int64_t at,
                                           float scale, const float (&v)[UNIT]) {
    if (w.codes) {
        uint8_t *to = static_cast<uint8_t *>(base) + at;
        *reinterpret_cast<uint2 *>(to) = make_uint2(encode4(v, scale), encode4(v + 4, scale));
        *reinterpret_cast<uint2 *>(to + w.apart) =
            make_uint2(encode4(v + 8, scale), encode4(v + 12, scale));
    } else {
        T *to = static_cast<T *>(base) + at;
        store_as(to, v, PIECE, true);
        store_as(to + w.apart, v + PIECE, PIECE, true);
    }
}

/* A unit as F32, normed. */
template <typename T>
__device__ __forceinline__ void widen_unit(const append_args &g, const append_shape &s,
                                           const head_work<T> &w, const raw_unit &raw,
                                           float (&v)[UNIT]) {
    widen8<T>(v, raw.low);
    widen8<T>(v + PIECE, raw.high);
    if (heads_of(g, w).norm_weight) norm_unit(g, v, w, 1 << s.lanes_log);
}

/* One token of a warp's heads to its place. */
template <typename T>
__device__ __forceinline__ void put_unit(const append_args &g, const head_work<T> &w, float scale,
                                         int row, append_place p, const float (&v)[UNIT],
                                         float *most, uint32_t *others) {
    const fp8_kv_pages &c = g.pages;

    if (!w.there) return;
    if (heads_of(g, w).amax) *most = fmaxf(*most, finite_amax<UNIT>(v, others));
    if (w.is_q)
        store_unit(g.a.q_out, w, ((int64_t)row * g.a.num_heads + w.head) * c.d_qk + w.low, scale,
                   v);
    else if (p.page >= 0)
        store_unit(c.k, w, kv_k_offset(&c, p.page, w.head, p.key & (c.page_size - 1)) + w.low,
                   scale, v);
}

/* ---- kernels -------------------------------------------------------------------------------- */

/* A warp's heads of a longer run: RUN rows. Lane l finds the place of row l. */
template <typename T>
__device__ void append_run(const append_args &g, const append_shape &s, int task) {
    const int row0 = task / s.chunks * RUN, lane = (int)threadIdx.x % WARP;
    const int rows = min(RUN, (int)g.batch.total_q - row0);
    const head_work<T> w = work_of<T>(g, s, task % s.chunks);
    const fp8_append_heads &h = heads_of(g, w);
    const T *x = w.x + row0 * h.token_stride;
    raw_unit ahead = load_unit(x, w.apart, w.there);
    const float scale = __fdiv_rn(1.0f, descale_of(g, w));
    append_place mine = {0, APPEND_NOBODY};
    uint32_t others = 0;
    float most = 0.0f;
    int position = 0, seq = sequence_of(g, row0);

    if (lane < rows) {
        while (seq < g.batch.num_seqs && g.batch.q_starts[seq + 1] <= row0 + lane) seq++;
        mine = place_of(g, row0 + lane, seq);
        if (g.a.rotary_dim > 0) position = (int)position_of(g, row0 + lane, mine.key);
    }
    for (int t = 0; t < rows; t++) {
        const raw_unit raw = ahead;
        const append_place p = {__shfl_sync(0xffffffffu, mine.key, t),
                                __shfl_sync(0xffffffffu, mine.page, t)};
        const int at = __shfl_sync(0xffffffffu, position, t);
        x += h.token_stride;
        if (t + 1 < rows) ahead = load_unit(x, w.apart, w.there);
        if (p.page == APPEND_NOBODY) continue;
        float v[UNIT];
        widen_unit(g, s, w, raw, v);
        if (w.turns) rotate_unit(g, v, load_angles(g, w, at));
        put_unit(g, w, scale, row0 + t, p, v, &most, &others);
    }
    if (h.amax) join_amax(h.amax, most, others);
}

/* Decoding: heads of q or k of one row. All that can be asked for at once is, before anything
 * waits: x, descale and the sequence; then its page and the angles. */
template <typename T>
__device__ __forceinline__ void append_heads_once(const append_args &g, const append_shape &s,
                                                  int row, int chunk) {
    const append_guess guess = guess_row(g, row);
    const head_work<T> w = work_of<T>(g, s, chunk);
    const fp8_append_heads &h = heads_of(g, w);
    const raw_unit raw = load_unit(w.x + row * h.token_stride, w.apart, w.there);
    const float descale = descale_of(g, w);
    const append_token t = token_of_row(g, row, guess);
    const int page = w.is_q ? APPEND_NOWHERE : table_page(g, t);
    const angles turn = load_angles(
        g, w, g.a.rotary_dim > 0 ? (int)position_of(g, row, t.key) : 0);
    const append_place p = {t.key, is_page(g, page) ? page : APPEND_NOWHERE};
    uint32_t others = 0;
    float most = 0.0f, v[UNIT];

    if (t.seq < 0) return;
    widen_unit(g, s, w, raw, v);
    if (w.turns) rotate_unit(g, v, turn);
    put_unit(g, w, __fdiv_rn(1.0f, descale), row, p, v, &most, &others);
    if (h.amax) join_amax(h.amax, most, others);
}

/* Decoding: VALUES columns of V of one row, lanes side by side. */
template <typename T>
__device__ __forceinline__ void append_values_once(const append_args &g, const append_shape &s,
                                                   int row, int chunk) {
    const fp8_kv_pages &c = g.pages;
    const append_guess guess = guess_row(g, row);
    const int columns = c.num_kv_heads * c.d_v, lane = (int)threadIdx.x % WARP;
    const bool codes = c.dtype == FP8_DTYPE_E4M3;
    const T *x = static_cast<const T *>(g.a.v.x) + row * g.a.v.token_stride;
    float v[VALUES_A_LANE], descale[VALUES_A_LANE];
    uint32_t others = 0;

#pragma unroll
    for (int k = 0; k < VALUES_A_LANE; k++) {
        const int column = chunk * VALUES + k * WARP + lane;
        const int head = (int)__umulhi((unsigned)column, s.per_column);
        v[k] = 0.0f;
        descale[k] = 1.0f;
        if (column >= columns) continue;
        v[k] = widen(x[head * g.a.v.head_stride + column - head * c.d_v]);
        if (codes) descale[k] = c.v_descale[c.granularity == FP8_DESCALE_HEAD ? head : 0];
    }
    const append_token t = token_of_row(g, row, guess);
    const int page = table_page(g, t);
    if (t.seq < 0) return;
    if (g.a.v.amax) join_amax(g.a.v.amax, finite_amax<VALUES_A_LANE>(v, &others), others);
    if (!is_page(g, page)) return;
    const int64_t at = page * c.v_page + (t.key & (c.page_size - 1));
#pragma unroll
    for (int k = 0; k < VALUES_A_LANE; k++) {
        const int column = chunk * VALUES + k * WARP + lane;
        const int64_t to = at + (int64_t)column * c.page_size;
        const float scale = __fdiv_rn(1.0f, descale[k]), four[4] = {v[k], 0.0f, 0.0f, 0.0f};
        if (column >= columns) break;
        if (codes) static_cast<uint8_t *>(c.v)[to] = (uint8_t)encode4(four, scale);
        else narrow(static_cast<T *>(c.v) + to, v[k]);
    }
}

/* grid: rows, warps of a row. */
template <typename T>
__global__ void __launch_bounds__(ONCE_THREADS)
append_once_kernel(const __grid_constant__ append_args g, const __grid_constant__ append_shape s) {
    const int chunk = (int)(blockIdx.y * (ONCE_THREADS / WARP) + threadIdx.x / WARP);
    const int row = (int)blockIdx.x;

    fp8::wait_for_previous();
    fp8::let_next_start();
    if (chunk < s.value_warps) append_values_once<T>(g, s, row, chunk);
    else if (chunk < s.value_warps + s.chunks)
        append_heads_once<T>(g, s, row, chunk - s.value_warps);
}

/* T: of x; C, Q: an element of V's pages, and four. grid: runs of q and k, then tiles of V. */
template <typename T, typename C, typename Q>
__global__ void __launch_bounds__(TILE_THREADS, 3)
append_runs_kernel(const __grid_constant__ append_args g, const __grid_constant__ append_shape s) {
    __shared__ value_tile<Q> tile;
    const int runs = (int)gridDim.x - s.tiles, block = (int)blockIdx.x;
    const int64_t task = (int64_t)block * (TILE_THREADS / WARP) + threadIdx.x / WARP;

    fp8::wait_for_previous();
    fp8::let_next_start();
    if (block >= runs) append_values<T, C>(g, &tile, block - runs, s.slabs);
    else if (task < s.tasks) append_run<T>(g, s, (int)task);
}

/* ---- launcher ------------------------------------------------------------------------------- */

bool aligned16(const void *p) { return (uintptr_t)p % 16 == 0; }

/* x of 16-bit elements in vectors. */
bool heads_fit(const fp8_append_heads &h, int64_t d) {
    return !h.x || (aligned16(h.x) && aligned16(h.norm_weight) && h.token_stride % PIECE == 0 &&
                    h.head_stride % PIECE == 0 && d % UNIT == 0 && d <= WARP * UNIT);
}

bool serves(const fp8_kv_pages *p, const fp8_kv_append *a) {
    return a->dtype != FP8_DTYPE_F32 && heads_fit(a->q, p->d_qk) && heads_fit(a->k, p->d_qk) &&
           heads_fit(a->v, p->d_v) && a->rotary_dim % UNIT == 0 && aligned16(a->cos) &&
           aligned16(a->sin) && aligned16(a->q_out) && aligned16(p->k) && aligned16(p->v) &&
           p->k_page % UNIT == 0 && p->v_page % UNIT == 0;
}

append_shape shape_of(const append_args &g) {
    const fp8_kv_pages &p = g.pages;
    const int64_t rows = g.batch.total_q;
    const int columns = g.a.k.x ? p.num_kv_heads * p.d_v : 0;
    append_shape s = {};

    while ((UNIT << s.lanes_log) < p.d_qk) s.lanes_log++;
    const int at_once = WARP >> s.lanes_log;
    s.q_chunks = g.a.q.x ? (g.a.num_heads + at_once - 1) / at_once : 0;
    s.chunks = s.q_chunks + (g.a.k.x ? (p.num_kv_heads + at_once - 1) / at_once : 0);
    if (g.batch.max_q <= FP8_DECODE_ROWS) {
        s.value_warps = (columns + VALUES - 1) / VALUES;
        s.per_column = (unsigned)(((INT64_C(1) << 32) + p.d_v - 1) / p.d_v);
        s.tasks = rows * (s.chunks + s.value_warps);
    } else {
        s.slabs = (columns + TILE_COLUMNS - 1) / TILE_COLUMNS;
        s.tiles = (int)((rows + TILE_TOKENS - 1) / TILE_TOKENS) * s.slabs;
        s.tasks = (rows + RUN - 1) / RUN * s.chunks;
    }
    return s;
}

template <typename T>
fp8_status launch_append(fp8_device *d, const append_args &g, fp8_launch how) {
    const append_shape s = shape_of(g);
    const bool once = g.batch.max_q <= FP8_DECODE_ROWS;
    const int threads = once ? (int)ONCE_THREADS : (int)TILE_THREADS, warps = threads / WARP;
    const int64_t blocks = s.tiles + (s.tasks + warps - 1) / warps;
    const unsigned a_row = (unsigned)((s.chunks + s.value_warps + warps - 1) / warps);
    const dim3 grid = once ? dim3((unsigned)g.batch.total_q, a_row) : dim3((unsigned)blocks);
    const dim3 block((unsigned)threads);

    if (s.tasks > INT32_MAX || blocks > INT32_MAX)
        return FP8_FAIL(FP8_EUNSUPPORTED, "append: %lld rows are more than one launch can take",
                        (long long)g.batch.total_q);
    if (once) return fp8::launch("append", append_once_kernel<T>, grid, block, 0, d, how, g, s);
    if (g.pages.dtype == FP8_DTYPE_E4M3)
        return fp8::launch("append", append_runs_kernel<T, uint8_t, uint32_t>, grid, block, 0, d,
                           how, g, s);
    return fp8::launch("append", append_runs_kernel<T, T, uint2>, grid, block, 0, d, how, g, s);
}

} /* namespace */

extern "C" fp8_status append_run_cuda(fp8_device *d, const fp8_kv_pages *pages,
                                      const fp8_kv_batch *batch, const fp8_kv_append *append,
                                      fp8_launch launch) {
    const append_args g = {*pages, *batch, *append, pages->page_size == 64 ? 6 : 7};

    if (!serves(pages, append)) return append_any(d, g, launch);
    if (append->dtype == FP8_DTYPE_BF16) return launch_append<__nv_bfloat16>(d, g, launch);
    return launch_append<__half>(d, g, launch);
}
