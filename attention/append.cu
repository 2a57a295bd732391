/* attention/append.cu - norm, RoPE and cast of new tokens into pages and query, one launch for all.
 *
 * Computes   per head of q and k: h * r * w (or (1 + w)), (a, b) -> (a cos - b sin, b cos + a sin);
 *            codes or 16-bit reals of q packed, of k and v in their pages, v turned
 * Shapes     x [rows, heads, d] of each part, strides any; pages as attention/cache.h has them
 * Bound      memory: BF16 to codes 3 bytes an element; 8192 tokens of 32 + 8 + 8 heads of 128:
 *            151 MB, at the H200's copy rate of 4.27 TB/s 35 us
 * Tiling     a thread has 16 elements of a head: eight and the eight half a rotation later, or 16
 *            that follow each other; `lanes` threads, a power of two, make a head, 32 / lanes heads
 *            of one part a warp, which keeps its heads for eight tokens, the next loaded before the
 *            last is done; V by tiles in blocks of their own (append_values.cuh), which come last:
 *            they are shorter, and fill the last wave. Decoding: append_once.cu. What is not in
 *            units of 16: append_any.cu
 * Numerics   F32; the rotation is not contracted, as on the CPU; sums in a fixed order
 */
#include "attention/append_values.cuh"

using namespace attention;

namespace {

/* ---- constants ------------------------------------------------------------------------------ */

enum { RUN = 8 }; /* tokens a warp has */

/* How a call is cut up. */
struct append_shape {
    int lanes_log;           /* of threads a head, to 2 */
    int q_chunks, chunks;    /* warps' worth of heads a token: of q, of q and k */
    int64_t tasks;           /* of all warps, without the tiles */
    int tiles, slabs;        /* of V */
};

/* ---- device helpers ------------------------------------------------------------------------- */

/* What a thread does for every token of its heads of q or k. */
template <typename T> struct head_work {
    const T *x; /* at element `low` of row 0 */
    unit_place at;
    bool is_q, codes;
};

template <typename T>
__device__ __forceinline__ const fp8_append_heads &heads_of(const append_args &g,
                                                            const head_work<T> &w) {
    return w.is_q ? g.a.q : g.a.k;
}

template <typename T>
__device__ __forceinline__ head_work<T> work_of(const append_args &g, const append_shape &s,
                                                int chunk) {
    const fp8_kv_pages &c = g.pages;
    head_work<T> w;

    w.is_q = chunk < s.q_chunks;
    const fp8_append_heads &h = w.is_q ? g.a.q : g.a.k;
    w.at = place_unit(w.is_q ? chunk : chunk - s.q_chunks, s.lanes_log,
                      w.is_q ? g.a.num_heads : c.num_kv_heads, c.d_qk, g.a.rotary_dim,
                      g.a.rope == FP8_ROPE_HALVES);
    w.x = static_cast<const T *>(h.x) + w.at.head * h.head_stride + w.at.low;
    w.codes = (w.is_q ? g.a.q_dtype : c.dtype) == FP8_DTYPE_E4M3;
    return w;
}

/* The descale of the thread's heads, 1 for real types. */
template <typename T>
__device__ __forceinline__ float descale_of(const append_args &g, const head_work<T> &w) {
    const float *descale = w.is_q ? g.a.q_descale : g.pages.k_descale;
    if (!w.codes || !w.at.there) return 1.0f;
    if (g.pages.granularity != FP8_DESCALE_HEAD) return descale[0];
    return descale[w.is_q ? w.at.head / (g.a.num_heads / g.pages.num_kv_heads) : w.at.head];
}

/* One token of a warp's heads: normed, turned. */
template <typename T>
__device__ __forceinline__ void make_unit(const append_args &g, const append_shape &s,
                                          const head_work<T> &w, const raw_unit &raw, int position,
                                          float (&v)[UNIT]) {
    const T *weight = static_cast<const T *>(heads_of(g, w).norm_weight);
    widen_unit<T>(v, raw);
    if (weight)
        norm_unit<T>(g.a, v, load_unit(weight + w.at.low, w.at.apart, w.at.there), g.pages.d_qk,
                     1 << s.lanes_log);
    if (w.at.turns)
        rotate_unit(g.a.rope == FP8_ROPE_HALVES, v,
                    load_angles(g.a.cos, g.a.sin, g.a.rotary_dim, w.at, position));
}

/* To its place. */
template <typename T>
__device__ __forceinline__ void put_unit(const append_args &g, const head_work<T> &w, float scale,
                                         int row, append_place p, const float (&v)[UNIT],
                                         float *most, uint32_t *others) {
    const fp8_kv_pages &c = g.pages;

    if (!w.at.there) return;
    if (heads_of(g, w).amax) *most = fmaxf(*most, finite_amax<UNIT>(v, others));
    if (!w.is_q && p.page < 0) return;
    const int64_t at = w.is_q
                           ? ((int64_t)row * g.a.num_heads + w.at.head) * c.d_qk
                           : kv_k_offset(&c, p.page, w.at.head, p.key & (c.page_size - 1));
    store_unit<T>(w.is_q ? g.a.q_out : c.k, w.codes, at + w.at.low, w.at.apart, scale, v);
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
    raw_unit ahead = load_unit(x, w.at.apart, w.at.there);
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
        if (t + 1 < rows) ahead = load_unit(x, w.at.apart, w.at.there);
        if (p.page == APPEND_NOBODY) continue;
        float v[UNIT];
        make_unit(g, s, w, raw, at, v);
        put_unit(g, w, scale, row0 + t, p, v, &most, &others);
    }
    if (h.amax) join_amax(h.amax, most, others);
}

/* T: of x; C, Q: an element of V's pages, and four. grid: runs of q and k, then tiles of V. */
template <typename T, typename C, typename Q>
__global__ void __launch_bounds__(TILE_THREADS, 3)
append_runs_kernel(const __grid_constant__ append_args g, const __grid_constant__ append_shape s) {
    __shared__ value_tile<Q> tile;
    const int runs = (int)gridDim.x - s.tiles, block = (int)blockIdx.x;
    const int64_t task = (int64_t)block * (TILE_THREADS / WARP) + threadIdx.x / WARP;

    fp8::let_next_start();
    fp8::wait_for_previous();
    if (block >= runs)
        append_values<T, C>(g, &tile, {(int)threadIdx.x, TILE_THREADS, 0}, block - runs, s.slabs);
    else if (task < s.tasks) append_run<T>(g, s, (int)task);
}

/* ---- launcher ------------------------------------------------------------------------------- */

append_shape shape_of(const append_args &g) {
    const fp8_kv_pages &p = g.pages;
    const int64_t rows = g.batch.total_q;
    const int columns = g.a.k.x ? p.num_kv_heads * p.d_v : 0;
    append_shape s = {};

    s.lanes_log = append_lanes_log(p.d_qk);
    s.q_chunks = g.a.q.x ? append_chunks(g.a.num_heads, s.lanes_log) : 0;
    s.chunks = s.q_chunks + (g.a.k.x ? append_chunks(p.num_kv_heads, s.lanes_log) : 0);
    s.slabs = (columns + TILE_COLUMNS - 1) / TILE_COLUMNS;
    s.tiles = (int)((rows + TILE_TOKENS - 1) / TILE_TOKENS) * s.slabs;
    s.tasks = (rows + RUN - 1) / RUN * s.chunks;
    return s;
}

template <typename T>
fp8_status launch_runs(fp8_device *d, const append_args &g, fp8_launch how) {
    const append_shape s = shape_of(g);
    const int warps = TILE_THREADS / WARP;
    const int64_t blocks = s.tiles + (s.tasks + warps - 1) / warps;
    const dim3 grid((unsigned)blocks), block(TILE_THREADS);

    if (s.tasks > INT32_MAX || blocks > INT32_MAX)
        return FP8_FAIL(FP8_EUNSUPPORTED, "append: %lld rows are more than one launch can take",
                        (long long)g.batch.total_q);
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
    fp8_status st = FP8_OK;
    int taken = 0;

    if (!append_fits_units(pages, append)) return append_any(d, g, launch);
    if (batch->max_q <= FP8_DECODE_ROWS) return append_once(d, g, launch);
    st = append_ring(d, g, launch, &taken);
    if (taken || st != FP8_OK) return st;
    if (append->dtype == FP8_DTYPE_BF16) return launch_runs<__nv_bfloat16>(d, g, launch);
    return launch_runs<__half>(d, g, launch);
}
