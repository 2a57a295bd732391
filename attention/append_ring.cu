/* attention/append_ring.cu - the append of many rows (Hopper): blocks that stay, rows on their way
 * to shared memory while others are worked on. Of sizes and alignment as append.cu, which hands
 * over; heads of 128 or 256, as most models have them (is_plain).
 *
 * Computes   as append.cu
 * Bound      memory, as append.cu. There a warp walks to starts, lengths, table and angles for
 *            eight rows of its own, as long as the rows take; here one warp does it for all
 * Tiling     a warp a chunk of 32 / lanes heads of q or k, whose weight, descale and place are
 *            found once; `warps` of them, a team, have a row; one more warp asks the copy engine
 *            for rows of q and k and their angles. Beside them four warps turn the block's
 *            share of V's tiles, which they ask for two tiles ahead
 *
 *   asks     row 0 | row 1 | row 2 | row 3 | ...         into the next slot
 *   team 0   row 0         | row 2         | ...
 *   team 1           row 1         | row 3 | ...
 *   V        tile 0          | tile 1          | ...
 *
 * Numerics   as append.cu
 */
#include "attention/append_values.cuh"
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#include "core/sm90.cuh"
#endif

using namespace attention;

namespace {

/* ---- constants ------------------------------------------------------------------------------ */

enum {
    RING_WARPS = 20, /* that have rows, at most; with the others at 72 registers */
    LEAST_WARPS = 18, /* fewer: append.cu */
    RING_TEAMS = 8,  /* at most */
    RING_SLOTS = 16, /* at most */
    TILE_STAGES = 2,
    TILE_BYTES = TILE_TOKENS * TILE_COLUMNS * 2, /* of x; rows of 256 */
    TILE_TEAM = TILE_THREADS / 2,
    TILE_BARRIER = 1,
    RING_THREADS = (RING_WARPS + 1) * WARP + TILE_TEAM,
    RING_BYTES = 225 << 10, /* of shared memory; the rest of 227 KiB is ring_control */
    LEAST_ROWS = 28,        /* a block; fewer: append.cu, by its time as well at 2048 rows */
    VALUE_SHARE = 4         /* columns of q and k to one of V, or V would be waited for */
};

/* How a call is cut up; a slot has q, k, cosines and sines of a row. */
struct ring_shape {
    int lanes_log, warps, teams, slots, q_chunks;
    int tiles, slabs; /* of V */
    int q_row;        /* elements of q_out */
    uint32_t q_bytes, k_bytes, table_bytes, slot_bytes, stages_at, tile_at;
};

struct ring_control {
    uint64_t full[RING_SLOTS], empty[RING_SLOTS], tile_full[TILE_STAGES];
    int64_t k_at[RING_SLOTS]; /* of the row's K in the pages, without its head; APPEND_... */
};

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

/* ---- the warp that asks ---------------------------------------------------------------------- */

SM90 void copy_bytes(void *to, const void *from, uint32_t bytes, uint64_t *bar) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"
                 " [%0], [%1], %2, [%3];" ::"r"(shared_address(to)),
                 "l"(from), "r"(bytes), "r"(shared_address(bar))
                 : "memory");
}

/* More bytes to wait for, before they are asked for; arrives not. */
SM90 void barrier_expect_more(uint64_t *bar, uint32_t bytes) {
    asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(
                     shared_address(bar)),
                 "r"(bytes)
                 : "memory");
}

/* As sequence_of, of a lane's own row: which of 32 parts of the starts, from one look of all lanes,
 * then in that part. All lanes come here. */
__device__ __forceinline__ int own_sequence(const append_args &g, int row) {
    const int n = (int)g.batch.num_seqs, part = (n + WARP - 1) / WARP;
    const int last = ((int)threadIdx.x % WARP + 1) * part; /* of a lane's part */
    const int start = last <= n ? g.batch.q_starts[last] : INT32_MAX;
    int low = 0, high;

    for (int step = WARP / 2; step > 0; step /= 2)
        if (__shfl_sync(0xffffffffu, start, low + step - 1) <= row) low += step;
    if (__shfl_sync(0xffffffffu, start, low) <= row) low++;
    low *= part;
    high = min(n, low + part - 1); /* the last of the part is beyond the row, or n is */
    while (low < high) {
        const int middle = (low + high) / 2;
        if (g.batch.q_starts[middle + 1] <= row) low = middle + 1;
        else high = middle;
    }
    return low;
}

template <typename T>
__device__ __forceinline__ void ask_for_heads(const append_args &g, const ring_shape &r, int row,
                                              unsigned char *slot, uint64_t *full) {
    const T *q = static_cast<const T *>(g.a.q.x) + row * g.a.q.token_stride;
    const T *k = static_cast<const T *>(g.a.k.x) + row * g.a.k.token_stride;
    barrier_expect_more(full, r.q_bytes + r.k_bytes);
    if (r.q_bytes) copy_bytes(slot, q, r.q_bytes, full);
    if (r.k_bytes) copy_bytes(slot + r.q_bytes, k, r.k_bytes, full);
}

/* The block's rows one after the other, each into the next slot; the heads of the first, which
 * depend on nothing, at once. Lane l finds the place of the l-th of 32 rows. */
template <typename T>
__device__ __forceinline__ void ask_for_rows(const append_args &g, const ring_shape &r,
                                             unsigned char *memory, ring_control *c) {
    const int lane = (int)threadIdx.x % WARP, rows = (int)g.batch.total_q;
    const int step = (int)gridDim.x, half = g.a.rotary_dim / 2;
    int64_t mine = 0;
    uint32_t parity = 1; /* of a slot's last readers: nobody yet */
    int position = 0, slot = 0, row = (int)blockIdx.x;

    if (lane < r.slots && row + lane * step < rows)
        ask_for_heads<T>(g, r, row + lane * step, memory + (uint32_t)lane * r.slot_bytes,
                         &c->full[lane]);
    for (int i = 0; row < rows; i++, row += step) {
        if (i % WARP == 0) {
            const int own = min(row + lane * step, rows - 1);
            const append_place p = place_of(g, own, own_sequence(g, own));
            const int64_t token = p.key & (g.pages.page_size - 1);
            mine = p.page < 0 ? p.page : p.page * g.pages.k_page + token * g.pages.d_qk;
            position = half > 0 ? (int)position_of(g, own, p.key) : 0;
        }
        const int64_t k_at = __shfl_sync(0xffffffffu, mine, i % WARP);
        const int64_t angle = (int64_t)__shfl_sync(0xffffffffu, position, i % WARP) * half;
        if (lane == 0) {
            unsigned char *to = memory + (uint32_t)slot * r.slot_bytes;
            unsigned char *tables = to + r.q_bytes + r.k_bytes;
            uint64_t *full = &c->full[slot];
            barrier_wait(&c->empty[slot], parity);
            c->k_at[slot] = k_at;
            if (i >= r.slots) ask_for_heads<T>(g, r, row, to, full);
            barrier_expect(full, 2 * r.table_bytes);
            if (r.table_bytes) {
                copy_bytes(tables, g.a.cos + angle, r.table_bytes, full);
                copy_bytes(tables + r.table_bytes, g.a.sin + angle, r.table_bytes, full);
            }
        }
        __syncwarp();
        if (++slot == r.slots) {
            slot = 0;
            parity ^= 1;
        }
    }
}

/* ---- the teams ------------------------------------------------------------------------------- */

/* A lane's share of its warp's chunk: what is the same for every row. */
struct chunk_work {
    unit_place at;
    raw_unit weight;
    float scale;
    uint32_t from; /* of its elements, in a slot; bytes */
    uint8_t *to;   /* of row 0 of q, or of token 0 of page 0 */
    bool is_q, codes, normed;
};

template <typename T>
__device__ __forceinline__ chunk_work chunk_of(const append_args &g, const ring_shape &r,
                                               int chunk) {
    const fp8_kv_pages &p = g.pages;
    chunk_work w;

    w.is_q = chunk < r.q_chunks;
    const int heads = w.is_q ? g.a.num_heads : p.num_kv_heads;
    w.at = place_unit(w.is_q ? chunk : chunk - r.q_chunks, r.lanes_log, heads, p.d_qk,
                      g.a.rotary_dim, g.a.rope == FP8_ROPE_HALVES);
    const int head = min(w.at.head, heads - 1);
    const T *weight = static_cast<const T *>(w.is_q ? g.a.q.norm_weight : g.a.k.norm_weight);
    const float *descale = w.is_q ? g.a.q_descale : p.k_descale;
    const int group = w.is_q ? head / (g.a.num_heads / p.num_kv_heads) : head;
    const int64_t first = (int64_t)head * (w.is_q ? 1 : p.page_size) * p.d_qk + w.at.low;
    w.codes = (w.is_q ? g.a.q_dtype : p.dtype) == FP8_DTYPE_E4M3;
    w.normed = weight != nullptr;
    w.weight = load_unit(weight + w.at.low, w.at.apart, w.normed);
    w.scale = w.codes ? __frcp_rn(descale[p.granularity == FP8_DESCALE_HEAD ? group : 0]) : 1.0f;
    w.from = (w.is_q ? 0 : r.q_bytes) + (uint32_t)(head * p.d_qk + w.at.low) * (uint32_t)sizeof(T);
    w.to = static_cast<uint8_t *>(w.is_q ? g.a.q_out : p.k) + (w.codes ? first : first * 2);
    return w;
}

/* norm_unit of x r w over heads of LANES threads, the same to the bit: d is a power of two. */
template <typename T, int LANES>
__device__ __forceinline__ void norm_plain(float eps, float (&v)[UNIT], const raw_unit &weight) {
    float sum = 0.0f, w[UNIT];

#pragma unroll
    for (int k = 0; k < UNIT; k++) sum += v[k] * v[k];
#pragma unroll
    for (int off = LANES / 2; off > 0; off /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, off);
    const float rstd = __frcp_rn(__fsqrt_rn(sum * (1.0f / (LANES * UNIT)) + eps));
    widen_unit<T>(w, weight);
#pragma unroll
    for (int k = 0; k < UNIT; k++) v[k] = __fmul_rn(__fmul_rn(v[k], rstd), w[k]);
}

/* A chunk of one row, from its slot. */
template <typename T, int LANES>
__device__ __forceinline__ void put_chunk(const append_args &g, const ring_shape &r,
                                          const chunk_work &w, const unsigned char *slot, int row,
                                          int64_t k_at) {
    float v[UNIT];

    widen_unit<T>(v, load_unit(reinterpret_cast<const T *>(slot + w.from), w.at.apart, true));
    if (w.normed) norm_plain<T, LANES>(g.a.eps, v, w.weight);
    if (w.at.turns) {
        const float *cos = reinterpret_cast<const float *>(slot + r.q_bytes + r.k_bytes);
        rotate_unit(true, v, load_angles(cos, cos + r.table_bytes / 4, 0, w.at, 0));
    }
    if (!w.at.there || (!w.is_q && k_at < 0)) return;
    const int64_t at = w.is_q ? (int64_t)row * r.q_row : k_at;
    store_unit<T>(w.to + (w.codes ? at : at * 2), w.codes, 0, w.at.apart, w.scale, v);
}

template <typename T, int LANES>
__device__ __forceinline__ void put_rows(const append_args &g, const ring_shape &r,
                                         const unsigned char *memory, ring_control *c, int team,
                                         int chunk) {
    const chunk_work w = chunk_of<T>(g, r, chunk);
    const int step = (int)gridDim.x * r.teams;
    uint32_t parity = 0;
    int slot = team;

    for (int row = (int)blockIdx.x + (int)gridDim.x * team; row < g.batch.total_q; row += step) {
        barrier_wait(&c->full[slot], parity);
        const int64_t k_at = c->k_at[slot];
        if (k_at != APPEND_NOBODY)
            put_chunk<T, LANES>(g, r, w, memory + (uint32_t)slot * r.slot_bytes, row, k_at);
        barrier_arrive(&c->empty[slot]); /* every lane: racecheck credits none but those */
        slot += r.teams;
        if (slot >= r.slots) {
            slot -= r.slots;
            parity ^= 1;
        }
    }
}

/* ---- V --------------------------------------------------------------------------------------- */

/* x of a tile of V into a stage: two rows a lane. One warp. */
template <typename T>
__device__ __forceinline__ void ask_for_tile(const append_args &g, const ring_shape &r, int index,
                                             unsigned char *stage, uint64_t *full) {
    const int row0 = index / r.slabs * TILE_TOKENS, column0 = index % r.slabs * TILE_COLUMNS;
    const int columns = min(TILE_COLUMNS, g.pages.num_kv_heads * g.pages.d_v - column0);
    const int rows = min(TILE_TOKENS, (int)g.batch.total_q - row0);
    const T *x = static_cast<const T *>(g.a.v.x) + column0;

    if (threadIdx.x % WARP == 0) barrier_expect(full, (uint32_t)(rows * columns) * sizeof(T));
    __syncwarp();
    for (int i = (int)threadIdx.x % WARP; i < rows; i += WARP)
        copy_bytes(stage + i * TILE_COLUMNS * (int)sizeof(T), x + (row0 + i) * g.a.v.token_stride,
                   (uint32_t)columns * sizeof(T), full);
}

/* A tile from its stage, turned. */
template <typename T, typename Q>
__device__ __forceinline__ void turn_tile(const append_args &g, value_tile<Q> *t, tile_team team,
                                          const unsigned char *stage, int column0, int columns,
                                          int first) {
    const int piece = team.tid % TILE_PIECES, head = (column0 + piece * 8) / g.pages.d_v;
    const uint4 *x = reinterpret_cast<const uint4 *>(stage) + piece;

    if (piece * 8 >= columns) return;
    const float scale = scale_of(g.pages, g.pages.dtype, g.pages.v_descale, head);
#pragma unroll 1
    for (int quad = team.tid / TILE_PIECES; quad < TILE_QUADS; quad += team.threads / TILE_PIECES) {
        uint4 raw[4];
#pragma unroll
        for (int k = 0; k < 4; k++)
            raw[k] = x[((quad * 4 + k - first) & (TILE_TOKENS - 1)) * TILE_PIECES];
        turn<T>(t, raw, piece, quad, scale);
    }
}

/* The block's share of V's tiles, which lie side by side: mostly of the same tokens. */
template <typename T, typename C, typename Q>
__device__ __forceinline__ void put_values(const append_args &g, const ring_shape &r,
                                           unsigned char *memory, ring_control *c, int tid) {
    const tile_team team = {tid, TILE_TEAM, TILE_BARRIER};
    const int begin = (int)((int64_t)r.tiles * blockIdx.x / gridDim.x);
    const int end = (int)((int64_t)r.tiles * (blockIdx.x + 1) / gridDim.x);
    value_tile<Q> *t = reinterpret_cast<value_tile<Q> *>(memory + r.tile_at);
    unsigned char *stages = memory + r.stages_at;
    int tokens = -1, first = 0;

    for (int i = 0; tid < WARP && i < TILE_STAGES && begin + i < end; i++)
        ask_for_tile<T>(g, r, begin + i, stages + i * TILE_BYTES, &c->tile_full[i]);
    for (int index = begin; index < end; index++) {
        const int stage = (index - begin) % TILE_STAGES, column0 = index % r.slabs * TILE_COLUMNS;
        const int columns = min(TILE_COLUMNS, g.pages.num_kv_heads * g.pages.d_v - column0);
        if (index / r.slabs != tokens) {
            const int row0 = index / r.slabs * TILE_TOKENS, seq = sequence_of(g, row0);
            const bool one = tile_rows(g, row0, seq, &first);
            find_places(g, t, team, row0, seq, one, first);
            team.sync();
            find_whole(t, team, one);
            tokens = index / r.slabs;
        }
        barrier_wait(&c->tile_full[stage], (index - begin) / TILE_STAGES % 2);
        turn_tile<T>(g, t, team, stages + stage * TILE_BYTES, column0, columns, first);
        team.sync();
        if (tid < WARP && index + TILE_STAGES < end)
            ask_for_tile<T>(g, r, index + TILE_STAGES, stages + stage * TILE_BYTES,
                            &c->tile_full[stage]);
        store_chunks<C>(g, t, team, column0, columns);
        store_rest<C>(g, t, team, column0, columns);
        team.sync();
    }
}
#endif

/* ---- kernel ---------------------------------------------------------------------------------- */

/* T: of x; C, Q: an element of V's pages, and four; LANES: threads a head. grid: the
 * multiprocessors. */
template <typename T, typename C, typename Q, int LANES>
__global__ void __launch_bounds__(RING_THREADS, 1)
append_ring_kernel(const __grid_constant__ append_args g, const __grid_constant__ ring_shape r) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    extern __shared__ __align__(128) unsigned char memory[];
    __shared__ ring_control c;
    const int warp = (int)threadIdx.x / WARP, rows = r.warps * r.teams; /* warps that have rows */

    if (threadIdx.x < RING_SLOTS) {
        barrier_init(&c.full[threadIdx.x], 1);
        barrier_init(&c.empty[threadIdx.x], r.warps * WARP);
    }
    if (threadIdx.x < TILE_STAGES) barrier_init(&c.tile_full[threadIdx.x], 1);
    barrier_init_done();
    __syncthreads();
    fp8::let_next_start();
    fp8::wait_for_previous();
    if (warp < rows) put_rows<T, LANES>(g, r, memory, &c, warp / r.warps, warp % r.warps);
    else if (warp == rows) ask_for_rows<T>(g, r, memory, &c);
    else put_values<T, C, Q>(g, r, memory, &c, (int)threadIdx.x - (rows + 1) * WARP);
#endif
}

/* ---- launcher ------------------------------------------------------------------------------- */

/* As most models have it: halves turn together, and a norm is x r w, not rounded. */
bool is_plain(const fp8_kv_append &a) {
    const bool normed = (a.q.x && a.q.norm_weight) || (a.k.x && a.k.norm_weight);
    return a.rope == FP8_ROPE_HALVES && (!normed || (a.norm == FP8_NORM_RMS && !a.rounded));
}

/* slots 0: not for append_ring_kernel. */
ring_shape ring_of(const append_args &g, int sms, size_t tile_bytes) {
    const fp8_kv_pages &p = g.pages;
    const fp8_kv_append &a = g.a;
    const int columns = a.k.x ? p.num_kv_heads * p.d_v : 0;
    const int heads = (a.q.x ? a.num_heads : 0) + (a.k.x ? p.num_kv_heads : 0);
    const uint32_t token = (uint32_t)p.d_qk * 2;
    ring_shape r = {};
    int chunks, slots;

    r.lanes_log = append_lanes_log(p.d_qk);
    r.q_chunks = a.q.x ? append_chunks(a.num_heads, r.lanes_log) : 0;
    chunks = r.q_chunks + (a.k.x ? append_chunks(p.num_kv_heads, r.lanes_log) : 0);
    if (!is_plain(a) || (p.d_qk != 8 * UNIT && p.d_qk != 16 * UNIT) || chunks < 1 ||
        chunks > RING_WARPS || a.q.amax || a.k.amax || a.v.amax ||
        (a.q.x && a.q.head_stride != p.d_qk) || (a.k.x && a.k.head_stride != p.d_qk) ||
        (a.v.x && a.v.head_stride != p.d_v))
        return r;
    r.warps = chunks;
    r.teams = RING_WARPS / chunks < RING_TEAMS ? RING_WARPS / chunks : RING_TEAMS;
    r.slabs = (columns + TILE_COLUMNS - 1) / TILE_COLUMNS;
    r.tiles = (int)((g.batch.total_q + TILE_TOKENS - 1) / TILE_TOKENS) * r.slabs;
    r.q_bytes = a.q.x ? (uint32_t)a.num_heads * token : 0;
    r.k_bytes = a.k.x ? (uint32_t)p.num_kv_heads * token : 0;
    r.q_row = a.num_heads * p.d_qk;
    r.table_bytes = (uint32_t)a.rotary_dim / 2 * 4;
    r.slot_bytes = (r.q_bytes + r.k_bytes + 2 * r.table_bytes + 127) / 128 * 128;
    slots = (int)((RING_BYTES - TILE_STAGES * TILE_BYTES - tile_bytes) / r.slot_bytes);
    if (slots > RING_SLOTS) slots = RING_SLOTS;
    r.stages_at = (uint32_t)slots * r.slot_bytes;
    r.tile_at = r.stages_at + TILE_STAGES * TILE_BYTES;
    if (r.warps * r.teams >= LEAST_WARPS && columns * VALUE_SHARE <= heads * p.d_qk &&
        slots >= 2 && slots >= r.teams && g.batch.total_q >= (int64_t)sms * LEAST_ROWS &&
        g.batch.total_q < INT32_MAX / 2)
        r.slots = slots;
    return r;
}

template <typename T, typename C, typename Q>
fp8_status launch_ring(fp8_device *d, const append_args &g, fp8_launch how, int sms, int *taken) {
    const ring_shape r = ring_of(g, sms, sizeof(value_tile<Q>));
    const auto kernel = r.lanes_log == 3 ? append_ring_kernel<T, C, Q, 8>
                                         : append_ring_kernel<T, C, Q, 16>;
    const size_t bytes = r.tile_at + sizeof(value_tile<Q>);
    const unsigned threads = (unsigned)((r.warps * r.teams + 1) * WARP + TILE_TEAM);
    fp8_status st = FP8_OK;

    *taken = r.slots > 0;
    if (!*taken) return FP8_OK;
    FP8_TRY_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      (int)bytes));
    st = fp8::launch("append", kernel, dim3((unsigned)sms), dim3(threads), bytes, d, how, g, r);
done:
    return st;
}

template <typename T>
fp8_status launch_pages(fp8_device *d, const append_args &g, fp8_launch how, int sms, int *taken) {
    if (g.pages.dtype == FP8_DTYPE_E4M3)
        return launch_ring<T, uint8_t, uint32_t>(d, g, how, sms, taken);
    return launch_ring<T, T, uint2>(d, g, how, sms, taken);
}

} /* namespace */

fp8_status attention::append_ring(fp8_device *d, const append_args &g, fp8_launch how,
                                  int *taken) {
    fp8_status st = FP8_OK;
    int sms = 0;

    *taken = 0;
    if (fp8_device_capability(d) < 90) goto done;
    FP8_TRY_CUDA(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount,
                                        fp8_device_index(d)));
    if (g.a.dtype == FP8_DTYPE_BF16) st = launch_pages<__nv_bfloat16>(d, g, how, sms, taken);
    else st = launch_pages<__half>(d, g, how, sms, taken);
done:
    return st;
}
