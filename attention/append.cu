/* attention/append.cu - norm, RoPE and cast of new tokens into pages and query, one launch for all.
 *
 * Computes   per head of q and k: h * r * w (or (1 + w)), (a, b) -> (a cos - b sin, b cos + a sin);
 *            codes or 16-bit reals of q packed, of k and v in their pages, v turned
 * Shapes     x [rows, heads, d] of each part, strides any; pages as attention/cache.h has them
 * Bound      memory: BF16 to codes 3 bytes an element; 8192 tokens of 32 + 8 + 8 heads of 128:
 *            151 MB, at the H200's copy rate of 4.27 TB/s 35 us
 * Tiling     a thread has 16 elements of a head: eight and the eight half a rotation later, or 16
 *            that follow each other; `lanes` threads, a power of two, make a head, 32 / lanes heads
 *            of one part a warp. Decoding: a warp once, V likewise, its codes stored one by one.
 *            Longer runs: eight tokens a block, whose warps take their heads in turns, the next
 *            loaded before the last is done; V by tiles in blocks of their own (append_values.cuh),
 *            which come first. What is not in units of 16: append_any.cu
 * Numerics   F32; the rotation is not contracted, as on the CPU; sums in a fixed order
 */
#include "attention/append_values.cuh"

using namespace attention;

namespace {

/* ---- constants ------------------------------------------------------------------------------ */

enum {
    PIECE = 8, /* 16 bytes of x */
    UNIT = 2 * PIECE,
    WARPS = TILE_THREADS / WARP,
    BLOCK_ROWS = WARPS, /* rows a block where V has tiles: a warp finds the place of each */
    PART_Q = 0,
    PART_K,
    PART_V,
    PARTS
};

/* How a call is cut up. */
struct append_shape {
    int lanes;          /* threads a head */
    int chunks[PARTS];  /* warps' worth of heads a token; of V 0 where it has tiles */
    int all_chunks, block_rows;
    int blocks_a_row;   /* where block_rows is 1 */
    int tiles, slabs;   /* of V */
};

/* ---- device helpers ------------------------------------------------------------------------- */

/* One warp's work on a token: heads head .. head + 32 / lanes - 1 of a part. */
struct work {
    int row, part, head;
};

struct raw_unit {
    uint4 low, high;
};

struct unit {
    int low, high; /* the thread's elements low .. low + 7 and high .. high + 7 */
    bool turns;
};

__device__ __forceinline__ work work_of(const append_shape &s, int row, int chunk, int lane) {
    work w = {row, PART_Q, 0};
    while (chunk >= s.chunks[w.part]) chunk -= s.chunks[w.part++];
    w.head = chunk * (WARP / s.lanes) + lane / s.lanes;
    return w;
}

__device__ __forceinline__ unit unit_of(const append_args &g, int part, int slot) {
    const bool turns = part != PART_V && slot * UNIT < g.a.rotary_dim;
    const bool halves = turns && g.a.rope == FP8_ROPE_HALVES;
    unit u;
    u.low = slot * (halves ? PIECE : UNIT);
    u.high = u.low + (halves ? g.a.rotary_dim / 2 : PIECE);
    u.turns = turns;
    return u;
}

__device__ __forceinline__ const fp8_append_heads &heads_of(const append_args &g, int part) {
    return part == PART_Q ? g.a.q : part == PART_K ? g.a.k : g.a.v;
}

/* Whether the thread has elements at all. */
__device__ __forceinline__ bool is_there(const append_args &g, const work &w, int slot) {
    const int heads = w.part == PART_Q ? g.a.num_heads : g.pages.num_kv_heads;
    return w.head < heads && slot * UNIT < (w.part == PART_V ? g.pages.d_v : g.pages.d_qk);
}

template <typename T>
__device__ __forceinline__ raw_unit load_unit(const append_args &g, const work &w, int slot) {
    const fp8_append_heads &h = heads_of(g, w.part);
    const unit u = unit_of(g, w.part, slot);
    const T *x = static_cast<const T *>(h.x) + w.row * h.token_stride + w.head * h.head_stride;
    raw_unit r = {};
    if (!is_there(g, w, slot)) return r;
    r.low = *reinterpret_cast<const uint4 *>(x + u.low);
    r.high = *reinterpret_cast<const uint4 *>(x + u.high);
    return r;
}

/* RMS norm of a head over its lanes. */
template <typename T>
__device__ __forceinline__ void norm_unit(const append_args &g, float (&v)[2][PIECE],
                                          const void *weight, const unit &u, int lanes,
                                          bool there) {
    const T *weights = static_cast<const T *>(weight);
    float sum = 0.0f, w[2][PIECE] = {}, r;
    if (there) {
        widen8<T>(w[0], *reinterpret_cast<const uint4 *>(weights + u.low));
        widen8<T>(w[1], *reinterpret_cast<const uint4 *>(weights + u.high));
    }
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int k = 0; k < PIECE; k++) sum += v[i][k] * v[i][k];
    for (int off = lanes / 2; off > 0; off /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, off);
    r = 1.0f / sqrtf(sum / (float)g.pages.d_qk + g.a.eps);
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int k = 0; k < PIECE; k++) v[i][k] = norm_value(g.a, v[i][k], r, w[i][k]);
}

/* The thread's eight angles are in a row of the tables, whatever the form. */
__device__ __forceinline__ void rotate_unit(const append_args &g, float (&v)[2][PIECE], int slot,
                                            int64_t position) {
    const int64_t at = position * (g.a.rotary_dim / 2) + slot * PIECE;
    float cos[PIECE], sin[PIECE];
#pragma unroll
    for (int k = 0; k < PIECE; k += 4) {
        *reinterpret_cast<float4 *>(cos + k) = *reinterpret_cast<const float4 *>(g.a.cos + at + k);
        *reinterpret_cast<float4 *>(sin + k) = *reinterpret_cast<const float4 *>(g.a.sin + at + k);
    }
#pragma unroll
    for (int k = 0; k < PIECE; k++) {
        if (g.a.rope == FP8_ROPE_HALVES) rotate(&v[0][k], &v[1][k], cos[k], sin[k]);
        else rotate(&v[k / 4][k % 4 * 2], &v[k / 4][k % 4 * 2 + 1], cos[k], sin[k]);
    }
}

/* Eight values that follow each other: codes or 16-bit reals. */
template <typename T>
__device__ __forceinline__ void store_piece(void *base, bool codes, int64_t at, const float *v,
                                            float scale) {
    if (codes) {
        const uint2 c = make_uint2(encode4(v, scale), encode4(v + 4, scale));
        *reinterpret_cast<uint2 *>(static_cast<uint8_t *>(base) + at) = c;
    } else {
        store_as(static_cast<T *>(base) + at, v, PIECE, true);
    }
}

/* ... and as elements of V, page_size apart. */
template <typename T>
__device__ __forceinline__ void store_turned(void *base, bool codes, int64_t at, int64_t step,
                                             const float *v, float scale) {
    const uint32_t c[2] = {encode4(v, scale), encode4(v + 4, scale)};
#pragma unroll
    for (int k = 0; k < PIECE; k++) {
        if (codes) static_cast<uint8_t *>(base)[at + k * step] = (uint8_t)(c[k / 4] >> k % 4 * 8);
        else narrow(static_cast<T *>(base) + at + k * step, v[k]);
    }
}

template <typename T>
__device__ __forceinline__ void store_unit(const append_args &g, const work &w, const unit &u,
                                           const append_place &p, const float (&v)[2][PIECE]) {
    const fp8_kv_pages &c = g.pages;
    const bool codes = c.dtype == FP8_DTYPE_E4M3;
    const int slot = p.key & (c.page_size - 1);

    if (w.part == PART_Q) {
        const int group = g.a.num_heads / c.num_kv_heads;
        const int64_t at = ((int64_t)w.row * g.a.num_heads + w.head) * c.d_qk;
        const float scale = scale_of(c, g.a.q_dtype, g.a.q_descale, w.head / group);
        store_piece<T>(g.a.q_out, g.a.q_dtype == FP8_DTYPE_E4M3, at + u.low, v[0], scale);
        store_piece<T>(g.a.q_out, g.a.q_dtype == FP8_DTYPE_E4M3, at + u.high, v[1], scale);
    } else if (p.page < 0) {
        return;
    } else if (w.part == PART_K) {
        const int64_t at = kv_k_offset(&c, p.page, w.head, slot);
        const float scale = scale_of(c, c.dtype, c.k_descale, w.head);
        store_piece<T>(c.k, codes, at + u.low, v[0], scale);
        store_piece<T>(c.k, codes, at + u.high, v[1], scale);
    } else {
        const int64_t at = kv_v_offset(&c, p.page, w.head, slot);
        const float scale = scale_of(c, c.dtype, c.v_descale, w.head);
        store_turned<T>(c.v, codes, at + (int64_t)u.low * c.page_size, c.page_size, v[0], scale);
        store_turned<T>(c.v, codes, at + (int64_t)u.high * c.page_size, c.page_size, v[1], scale);
    }
}

/* One warp's work on a token that is in a sequence. */
template <typename T>
__device__ __forceinline__ void finish_unit(const append_args &g, const append_shape &s,
                                            const work &w, const raw_unit &raw,
                                            const append_place &p) {
    const int slot = (int)threadIdx.x % s.lanes;
    const fp8_append_heads &h = heads_of(g, w.part);
    const unit u = unit_of(g, w.part, slot);
    const bool there = is_there(g, w, slot);
    float v[2][PIECE];

    widen8<T>(v[0], raw.low);
    widen8<T>(v[1], raw.high);
    if (h.norm_weight) norm_unit<T>(g, v, h.norm_weight, u, s.lanes, there);
    if (u.turns && there) rotate_unit(g, v, slot, position_of(g, w.row, p.key));
    if (h.amax) {
        uint32_t others = 0;
        float most = finite_amax<PIECE>(v[0], &others);
        most = fmaxf(most, finite_amax<PIECE>(v[1], &others));
        join_amax(h.amax, there ? most : 0.0f, there ? others : 0);
    }
    if (there) store_unit<T>(g, w, u, p, v);
}

/* ---- kernels -------------------------------------------------------------------------------- */

/* Decoding: `index` is a row and a share of its chunks; a warp has one. */
template <typename T>
__device__ void append_row_once(const append_args &g, const append_shape &s, int index) {
    const int row = index / s.blocks_a_row, lane = (int)threadIdx.x % WARP;
    const int chunk = index % s.blocks_a_row * WARPS + (int)threadIdx.x / WARP;

    if (chunk >= s.all_chunks) return;
    const work w = work_of(s, row, chunk, lane);
    const raw_unit raw = load_unit<T>(g, w, lane % s.lanes);
    const append_place p = place_of_row(g, row);
    if (p.page != APPEND_NOBODY) finish_unit<T>(g, s, w, raw, p);
}

/* BLOCK_ROWS rows from index * BLOCK_ROWS on, without V. */
template <typename T>
__device__ void append_rows(const append_args &g, const append_shape &s, append_place *places,
                            int index) {
    const int row0 = index * BLOCK_ROWS, lane = (int)threadIdx.x % WARP;
    const int warp = (int)threadIdx.x / WARP, slot = lane % s.lanes;
    const int rows = min(BLOCK_ROWS, (int)g.batch.total_q - row0), count = rows * s.all_chunks;
    raw_unit raw = {}, ahead = {};

    if (warp < count)
        raw = load_unit<T>(g, work_of(s, row0 + warp / s.all_chunks, warp % s.all_chunks, lane),
                           slot);
    if (warp < rows) {
        const append_place p = place_of(g, row0 + warp, sequence_of(g, row0 + warp));
        if (lane == 0) places[warp] = p;
    }
    __syncthreads();
    for (int i = warp; i < count; i += WARPS, raw = ahead) {
        const work w = work_of(s, row0 + i / s.all_chunks, i % s.all_chunks, lane);
        const append_place p = places[i / s.all_chunks];
        const int next = i + WARPS;
        if (next < count)
            ahead = load_unit<T>(g, work_of(s, row0 + next / s.all_chunks, next % s.all_chunks,
                                            lane), slot);
        if (p.page != APPEND_NOBODY) finish_unit<T>(g, s, w, raw, p);
        if (next < count)
            ahead = load_unit<T>(g, work_of(s, row0 + next / s.all_chunks, next % s.all_chunks,
                                            lane), slot);
    }
}

/* Decoding. grid: rows, each blocks_a_row times. */
template <typename T>
__global__ void __launch_bounds__(TILE_THREADS)
append_once_kernel(const __grid_constant__ append_args g, const __grid_constant__ append_shape s) {
    fp8::wait_for_previous();
    fp8::let_next_start();
    append_row_once<T>(g, s, (int)blockIdx.x);
}

/* T: of x; C, Q: an element of V's pages, and four. grid: tiles of V, then blocks of rows. */
template <typename T, typename C, typename Q>
__global__ void __launch_bounds__(TILE_THREADS, 3)
append_runs_kernel(const __grid_constant__ append_args g, const __grid_constant__ append_shape s) {
    __shared__ union {
        value_tile<Q> tile;
        append_place places[BLOCK_ROWS];
    } shared;
    const int index = (int)blockIdx.x - s.tiles;

    fp8::wait_for_previous();
    fp8::let_next_start();
    if (index < 0) append_values<T, C>(g, &shared.tile, (int)blockIdx.x, s.slabs);
    else append_rows<T>(g, s, shared.places, index);
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

append_shape shape_of(const fp8_kv_pages *p, const fp8_kv_batch *b, const fp8_kv_append *a) {
    const int tiled = b->max_q > FP8_DECODE_ROWS;
    const int64_t d = p->d_qk > p->d_v ? p->d_qk : p->d_v;
    append_shape s = {1, {0, 0, 0}, 0, tiled ? BLOCK_ROWS : 1, 1, 0, 1};

    while (s.lanes * UNIT < d) s.lanes *= 2;
    const int at_once = WARP / s.lanes;
    const int kv = a->k.x ? (p->num_kv_heads + at_once - 1) / at_once : 0;
    s.chunks[PART_Q] = a->q.x ? (a->num_heads + at_once - 1) / at_once : 0;
    s.chunks[PART_K] = kv;
    s.chunks[PART_V] = tiled ? 0 : kv;
    s.all_chunks = s.chunks[PART_Q] + s.chunks[PART_K] + s.chunks[PART_V];
    s.blocks_a_row = (s.all_chunks + WARPS - 1) / WARPS;
    s.slabs = (p->num_kv_heads * p->d_v + TILE_COLUMNS - 1) / TILE_COLUMNS;
    if (tiled && a->k.x)
        s.tiles = (int)((b->total_q + TILE_TOKENS - 1) / TILE_TOKENS) * s.slabs;
    return s;
}

template <typename T>
fp8_status launch_append(fp8_device *d, const append_args &g, fp8_launch how) {
    const append_shape s = shape_of(&g.pages, &g.batch, &g.a);
    const int64_t rows = s.block_rows == 1
                             ? g.batch.total_q * s.blocks_a_row
                             : (g.batch.total_q + BLOCK_ROWS - 1) / BLOCK_ROWS;
    const int64_t blocks = s.tiles + rows;

    if (blocks > INT32_MAX)
        return FP8_FAIL(FP8_EUNSUPPORTED, "append: %lld rows are more than one launch can take",
                        (long long)g.batch.total_q);
    if (s.block_rows == 1)
        return fp8::launch("append", append_once_kernel<T>, dim3((unsigned)blocks),
                           dim3(TILE_THREADS), 0, d, how, g, s);
    if (g.pages.dtype == FP8_DTYPE_E4M3)
        return fp8::launch("append", append_runs_kernel<T, uint8_t, uint32_t>,
                           dim3((unsigned)blocks), dim3(TILE_THREADS), 0, d, how, g, s);
    return fp8::launch("append", append_runs_kernel<T, T, uint2>, dim3((unsigned)blocks),
                       dim3(TILE_THREADS), 0, d, how, g, s);
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
