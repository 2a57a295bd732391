/* attention/append_once.cu - the append when decoding: up to FP8_DECODE_ROWS tokens a sequence, a
 * row of x by itself. Of sizes and alignment as append.cu, which hands over.
 *
 * Computes   as append.cu
 * Bound      latency: 64 tokens of 32 + 8 + 8 heads of 128 are 1.2 MB; what counts is how many
 *            loads wait for each other (lengths, then angles) and how many instructions come before
 *            the first; and V turned, each byte of which is a write of a sector: 262144 of them for
 *            64 tokens of 16 heads of 256
 * Tiling     a warp has heads of q or k of one row as append.cu has them, or 32, 64 or 128 columns
 *            of V, lanes side by side: as few as leave all of V's warps room at once, since stores
 *            of a warp follow each other. Blocks take a row's warps in turns, heads before V
 * Order      all that is known of a row is asked for at once, before anything waits: x, norm
 *            weights, descales, the sequence of the row's own number and, lane by lane, up to
 *            QUAD * 32 of its pages, of which one is picked when its length is there
 * Numerics   as append.cu
 */
#include "attention/append_unit.cuh"

using namespace attention;

namespace {

/* ---- constants ------------------------------------------------------------------------------ */

enum {
    BLOCKS = 264,       /* of a launch, about: each costs 1.3 ns (docs/NOTES.md) */
    MAX_WARPS = 16,     /* of a block */
    MAX_COLUMNS = 4,    /* of V a lane */
    VALUE_WARPS = 2048, /* that V has at most, if a lane then has no more than MAX_COLUMNS */
    QUAD = 4            /* pages that a lane reads of a table */
};

/* One of q, k, v. */
struct part {
    const void *x, *weight; /* weight NULL: not normed */
    const float *descale;   /* NULL: real types */
    void *to;
    fp8_amax_slot *amax;
    int64_t token_stride, head_stride, page; /* elements; page: from one page to the next */
    int heads;
    int group; /* heads that share a descale; 0: all */
};

/* What is read of append_args, in few lines of memory: all of it is fetched anew a launch. */
struct once_args {
    const int32_t *starts, *lengths, *table, *positions; /* positions NULL: keys */
    int num_seqs, max_pages, page_shift, num_pages, num_positions;
    int early; /* a warp reads all of a sequence's pages at once */
    int value_warps, q_chunks, chunks, lanes_log, d, rotary_dim, halves;
    int columns, d_v;    /* of V */
    unsigned per_column; /* 2^32 / d_v, rounded up */
    part q, k, v;
    const float *cos, *sin;
    append_args all; /* for the norm, and for rows whose number is not their sequence's */
};

/* ---- which token a row is -------------------------------------------------------------------- */

/* What is read of a row before anything is known of it: the sequence of its number, and of its
 * pages four a lane. */
struct guess {
    int begin, end, length;
    int4 pages;
};

__device__ __forceinline__ guess guess_row(const once_args &g, int row) {
    const int s = row < g.num_seqs ? row : 0, page = (int)threadIdx.x % WARP * QUAD;
    const int32_t *table = g.table + (int64_t)s * g.max_pages;
    guess x = {g.starts[s], g.starts[s + 1], g.lengths[s], {}};
    if (g.early && page < g.max_pages) x.pages = *reinterpret_cast<const int4 *>(table + page);
    return x;
}

__device__ __forceinline__ append_token token_of(const once_args &g, int row, const guess &x) {
    if (row < g.num_seqs && x.begin == row && x.end == row + 1) return {row, x.length - 1};
    return token_of(g.all, row, sequence_of(g.all, row));
}

/* As page_of(g.all, t). All lanes. */
__device__ __forceinline__ int page_of(const once_args &g, int row, const guess &x,
                                       append_token t) {
    const int i = t.key >> g.page_shift;
    if (t.seq != row || !g.early) return page_of(g.all, t);
    const int low = i & 1 ? x.pages.y : x.pages.x, high = i & 1 ? x.pages.w : x.pages.z;
    const int page = __shfl_sync(0xffffffffu, i & 2 ? high : low, i / QUAD % WARP);
    return t.key >= 0 && i < g.max_pages && page >= 0 && page < g.num_pages ? page
                                                                            : APPEND_NOWHERE;
}

__device__ __forceinline__ float descale_of(const part &p, int head, bool there) {
    if (!there || !p.descale) return 1.0f;
    return p.descale[p.group ? head / p.group : 0];
}

/* ---- kernel ---------------------------------------------------------------------------------- */

/* Heads of q or k of one row. */
template <typename T>
__device__ __forceinline__ void append_heads(const once_args &g, int row, int chunk,
                                             const guess &first) {
    const bool is_q = chunk < g.q_chunks;
    const part &p = is_q ? g.q : g.k;
    const unit_place w = place_unit(is_q ? chunk : chunk - g.q_chunks, g.lanes_log, p.heads, g.d,
                                    g.rotary_dim, g.halves);
    const T *x = static_cast<const T *>(p.x) + row * p.token_stride + w.head * p.head_stride;
    const T *weight = static_cast<const T *>(p.weight);
    const raw_unit raw = load_unit(x + w.low, w.apart, w.there);
    const raw_unit weights = load_unit(weight + w.low, w.apart, w.there && weight);
    const float descale = descale_of(p, w.head, w.there);
    const append_token t = token_of(g, row, first);
    const int at = g.positions ? g.positions[row] : t.key;
    const angles turn = load_angles(g.cos, g.sin, g.rotary_dim, w,
                                    min(max(at, 0), g.num_positions - 1));
    const int page = is_q ? 0 : page_of(g, row, first, t);
    const int token = t.key & ((1 << g.page_shift) - 1);
    uint32_t others = 0;
    float most = 0.0f, v[UNIT];

    if (t.seq < 0) return;
    widen_unit<T>(v, raw);
    if (weight) norm_unit<T>(g.all.a, v, weights, g.d, 1 << g.lanes_log);
    if (w.turns) rotate_unit(g.halves, v, turn);
    if (p.amax && w.there) most = finite_amax<UNIT>(v, &others);
    if (p.amax) join_amax(p.amax, most, others);
    if (!w.there || page < 0) return;
    const int64_t to = is_q ? ((int64_t)row * p.heads + w.head) * g.d
                            : page * p.page + ((int64_t)(w.head << g.page_shift) + token) * g.d;
    store_unit<T>(p.to, p.descale != NULL, to + w.low, w.apart, __frcp_rn(descale), v);
}

/* COLUMNS columns a lane of V of one row. */
template <typename T, int COLUMNS>
__device__ __forceinline__ void append_columns(const once_args &g, int row, int chunk,
                                               const guess &first) {
    const part &p = g.v;
    const int column = chunk * COLUMNS * WARP + (int)threadIdx.x % WARP;
    const T *x = static_cast<const T *>(p.x) + row * p.token_stride;
    float v[COLUMNS], descale[COLUMNS];
    uint32_t others = 0;

#pragma unroll
    for (int k = 0; k < COLUMNS; k++) {
        const int c = column + k * WARP, head = (int)__umulhi((unsigned)c, g.per_column);
        const bool there = c < g.columns;
        v[k] = there ? widen(x[head * p.head_stride + c - head * g.d_v]) : 0.0f;
        descale[k] = descale_of(p, head, there);
    }
    const append_token t = token_of(g, row, first);
    const int page = page_of(g, row, first, t);
    if (t.seq < 0) return;
    if (p.amax) join_amax(p.amax, finite_amax<COLUMNS>(v, &others), others);
    if (page < 0) return;
    const int64_t at = page * p.page + (t.key & ((1 << g.page_shift) - 1)) +
                       ((int64_t)column << g.page_shift);
#pragma unroll
    for (int k = 0; k < COLUMNS; k++) {
        const int64_t to = at + (k * WARP << g.page_shift);
        const float four[4] = {v[k], 0.0f, 0.0f, 0.0f};
        if (column + k * WARP >= g.columns) break;
        if (p.descale)
            static_cast<uint8_t *>(p.to)[to] = (uint8_t)encode4(four, __frcp_rn(descale[k]));
        else narrow(static_cast<T *>(p.to) + to, v[k]);
    }
}

/* grid: rows, then blocks of a row, which take its warps' tasks in turns. */
template <typename T, int COLUMNS>
__global__ void __launch_bounds__(MAX_WARPS * WARP)
append_once_kernel(const __grid_constant__ once_args g) {
    const int task = (int)(threadIdx.x / WARP * gridDim.y + blockIdx.y), row = (int)blockIdx.x;

    fp8::let_next_start();
    fp8::wait_for_previous();
    if (task >= g.value_warps + g.chunks) return;
    const guess first = guess_row(g, row);
    if (task < g.chunks) append_heads<T>(g, row, task, first);
    else append_columns<T, COLUMNS>(g, row, task - g.chunks, first);
}

/* ---- launcher ------------------------------------------------------------------------------- */

/* Empty where h has no x. group: heads a KV head. */
part part_of(const append_args &g, const fp8_append_heads *h, void *to, const float *descale,
             bool codes, int64_t page, int heads, int group) {
    part p = {};
    if (!h->x) return p;
    p.x = h->x;
    p.weight = h->norm_weight;
    p.descale = codes ? descale : NULL;
    p.to = to;
    p.amax = h->amax;
    p.token_stride = h->token_stride;
    p.head_stride = h->head_stride;
    p.page = page;
    p.heads = heads;
    p.group = g.pages.granularity == FP8_DESCALE_HEAD ? group : 0;
    return p;
}

once_args args_of(const append_args &g, int columns) {
    const fp8_kv_pages &c = g.pages;
    const fp8_kv_append &a = g.a;
    const int kv_heads = c.num_kv_heads;
    const bool codes = c.dtype == FP8_DTYPE_E4M3;
    once_args o = {};

    o.starts = g.batch.q_starts;
    o.lengths = g.batch.kv_lengths;
    o.table = g.batch.page_table;
    o.positions = a.positions;
    o.num_seqs = g.batch.max_q > 0 ? (int)g.batch.num_seqs : 0;
    o.max_pages = (int)g.batch.max_pages;
    o.page_shift = g.page_shift;
    o.early = o.max_pages % QUAD == 0 && o.max_pages <= QUAD * WARP &&
              (uintptr_t)o.table % sizeof(int4) == 0;
    o.num_pages = (int)c.num_pages;
    o.num_positions = (int)attention_clamp(a.num_positions, 0, INT32_MAX);
    o.lanes_log = append_lanes_log(c.d_qk);
    o.q_chunks = a.q.x ? append_chunks(a.num_heads, o.lanes_log) : 0;
    o.chunks = o.q_chunks + (a.k.x ? append_chunks(kv_heads, o.lanes_log) : 0);
    o.d = c.d_qk;
    o.rotary_dim = a.rotary_dim;
    o.halves = a.rope == FP8_ROPE_HALVES;
    o.columns = a.v.x ? kv_heads * c.d_v : 0;
    o.value_warps = (o.columns + columns * WARP - 1) / (columns * WARP);
    o.d_v = c.d_v;
    o.per_column = (unsigned)(((INT64_C(1) << 32) + c.d_v - 1) / c.d_v);
    o.q = part_of(g, &a.q, a.q_out, a.q_descale, a.q_dtype == FP8_DTYPE_E4M3, 0, a.num_heads,
                  a.num_heads / kv_heads);
    o.k = part_of(g, &a.k, c.k, c.k_descale, codes, c.k_page, kv_heads, 1);
    o.v = part_of(g, &a.v, c.v, c.v_descale, codes, c.v_page, kv_heads, 1);
    o.cos = a.cos;
    o.sin = a.sin;
    o.all = g;
    return o;
}

/* Of V a lane: 1, 2 or 4. */
int columns_a_lane(const append_args &g) {
    const int64_t values = g.batch.total_q * g.pages.num_kv_heads * g.pages.d_v;
    int columns = 1;
    while (columns < MAX_COLUMNS && values > (int64_t)VALUE_WARPS * WARP * columns) columns *= 2;
    return columns;
}

/* Warps of a block, for about BLOCKS in all. */
int warps_of_block(int64_t rows, int tasks) {
    const int64_t warps = (rows * tasks + BLOCKS - 1) / BLOCKS;
    return warps < 2 ? 2 : warps > MAX_WARPS ? MAX_WARPS : (int)warps;
}

template <typename T, int COLUMNS>
fp8_status launch_once(fp8_device *d, const append_args &g, fp8_launch how) {
    const once_args o = args_of(g, COLUMNS);
    const int tasks = o.chunks + o.value_warps, warps = warps_of_block(g.batch.total_q, tasks);
    const dim3 grid((unsigned)g.batch.total_q, (unsigned)((tasks + warps - 1) / warps));
    return fp8::launch("append", append_once_kernel<T, COLUMNS>, grid,
                       dim3((unsigned)(warps * WARP)), 0, d, how, o);
}

template <typename T>
fp8_status launch_values(fp8_device *d, const append_args &g, fp8_launch how) {
    const int columns = columns_a_lane(g);
    if (columns == 1) return launch_once<T, 1>(d, g, how);
    if (columns == 2) return launch_once<T, 2>(d, g, how);
    return launch_once<T, MAX_COLUMNS>(d, g, how);
}

} /* namespace */

fp8_status attention::append_once(fp8_device *d, const append_args &g, fp8_launch how) {
    if (g.a.dtype == FP8_DTYPE_BF16) return launch_values<__nv_bfloat16>(d, g, how);
    return launch_values<__half>(d, g, how);
}
