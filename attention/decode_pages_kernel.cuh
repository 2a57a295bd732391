/* attention/decode_pages_kernel.cuh - private: the kernels over pages: one warp that copies, others
 * that attend, and where the kernel appends, one that makes queries and the new tokens' K and V. */
#ifndef FP8_ATTENTION_DECODE_PAGES_KERNEL_CUH
#define FP8_ATTENTION_DECODE_PAGES_KERNEL_CUH
#include "attention/decode_pages_shape.cuh"

/* The instructions exist for this one architecture; for others the kernel is empty, and
 * decode_pages_cuda.c finds out. */
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define DECODE_SM90 1
#include "attention/decode_pages_append.cuh"
#include "attention/decode_pages_finish.cuh"
#else
#define DECODE_SM90 0
#endif

#if DECODE_SM90

/* ---- the copying warp ------------------------------------------------------------------------ */

struct ring_place {
    int32_t at;
    uint32_t parity;
};

template <int COUNT>
static __device__ __forceinline__ void ring_next(ring_place &x) {
    const bool wraps = ++x.at == COUNT;
    if (wraps) x.at = 0;
    x.parity ^= wraps;
}

/* Of a KV head, as they are read; nothing waits for them yet. */
struct scales {
    float q, k, v, o;
};

static __device__ __forceinline__ scales scales_of(const decode_pages_args &p, int32_t head_kv) {
    const int32_t i = p.descale_by_head ? head_kv : 0;
    return {p.q_descale ? p.q_descale[i] : 1.0f, p.k_descale ? p.k_descale[i] : 1.0f,
            p.v_descale ? p.v_descale[i] : 1.0f, p.o_scale ? *p.o_scale : 1.0f};
}

/* What copies need; the rest is found while the first of them is under way. */
static __device__ __forceinline__ segment_info begin_info(const decode_pages_args &p,
                                                          const walk &w, const segment &g,
                                                          int32_t rows) {
    const int32_t block = g.item / p.num_kv_heads;
    segment_info x;
    x.q_begin = w.q.q_begin;
    x.q_len = w.q.q_len;
    x.kv_len = w.q.kv_len;
    x.row0 = block * rows;
    x.head_kv = g.item - block * p.num_kv_heads;
    x.first = g.first;
    x.tiles = g.tiles;
    x.item = g.s * p.row_blocks * p.num_kv_heads + g.item;
    return x;
}

/* Brings a segment's queries; returns how many bytes `told` is to expect of them. */
template <class T>
static __device__ __forceinline__ int32_t bring_queries(decode_control<T> &c,
                                                        const decode_pages_args &p,
                                                        const segment_info &g,
                                                        const ring_place &at) {
    const int32_t lane = threadIdx.x % 32, bytes = p.q_dtype == FP8_DTYPE_E4M3 ? 1 : 2;
    const bool brings = lane < T::ROWS && is_row(p, g, lane);
    const int32_t rows = __popc(__ballot_sync(0xffffffffu, brings));

    barrier_wait(c.read + at.at, at.parity);
    if (brings) copy_row<T>(c.q[at.at][lane], c.told + at.at, p, g, lane, bytes);
    return rows * T::D_QK * bytes;
}

/* Tells the others of a segment. NOTE: queries may be there before they are expected; the phase
 * does not end before this arrival. */
template <class T>
static __device__ __forceinline__ void tell(decode_control<T> &c, const segment_info &g,
                                            int32_t bytes, ring_place &at) {
    if (threadIdx.x % 32 == 0) {
        c.info[at.at] = g;
        barrier_expect(c.told + at.at, bytes);
    }
    __syncwarp();
    ring_next<SEGMENTS>(at);
}

/* Tiles of a segment that are copied before the kernel before has ended: as many as the ring holds
 * of those without a token of this call, which an append before may be writing. Where the kernel
 * appends itself, what it has of the new token does not come out of the pages. */
template <class T, bool APPENDS>
static __device__ __forceinline__ int32_t early_tiles(const segment_info &x) {
    const int32_t old = APPENDS ? x.tiles : (x.kv_len - x.q_len) / T::TILE - x.first;
    return max(min(min(old, x.tiles), (int32_t)T::STAGES), 0);
}

/* APPENDS: queries are another warp's. With `early`:
 *
 *   kernels before   ...  x of the new tokens, their append
 *   this warp        lengths | walk | pages | first tiles | wait | queries, tell | further tiles */
template <class T, bool APPENDS>
static __device__ __forceinline__ void produce(uint8_t *data, decode_control<T> &c,
                                               const decode_pages_args &p) {
    const uint64_t policy = p.row_blocks > 1 ? policy_evict_normal() : policy_evict_first();
    ring_place at = {0, 1}, told = {0, 1};
    bool waited = !p.early;
    segment_info x = {};
    page_window pages;
    walk w;
    const auto copy = [&](const segment &g, int32_t i) {
        barrier_wait(c.empty + at.at, at.parity);
        copy_tile<T>(data + at.at * T::STAGE_BYTES, c.full + at.at, pages, p, g.s, x.kv_len,
                     x.head_kv, g.first + i, policy);
        ring_next<T::STAGES>(at);
    };

    if (waited) dependencies_wait();
    const cut all = make_cut<T::TILE, T::ROWS>(w, p);
    const range r = range_at(all, blockIdx.x);
    if (r.begin < r.end) walk_to<T::TILE, T::ROWS>(w, p, r.begin);
    for (int32_t unit = r.begin; unit < r.end;) {
        const segment g = segment_at<T::TILE, T::ROWS>(w, p, unit, r.end);
        unit += g.count;
        if (g.tiles == 0) continue;
        pages_open(pages, p, g.s, g.first * T::TILE / T::PAGE);
        x = begin_info(p, w, g, T::ROWS);
        const scales by = scales_of(p, x.head_kv);
        const int32_t ahead = waited ? 0 : early_tiles<T, APPENDS>(x);
        int32_t bytes = 0;
        for (int32_t i = 0; i < ahead; i++) copy(g, i);
        if (!waited) dependencies_wait();
        waited = true;
        if constexpr (APPENDS) barrier_wait(c.read + told.at, told.parity);
        else bytes = bring_queries<T>(c, p, x, told);
        if (ahead == 0) copy(g, 0);
        x.score_scale = p.scale * by.q * by.k;
        x.value_scale = by.v * by.o;
        place_part(x, p, g, w, all);
        tell<T>(c, x, bytes, told);
        for (int32_t i = max(ahead, 1); i < g.tiles; i++) copy(g, i);
    }
    if (!waited) dependencies_wait();
    x.tiles = 0;
    barrier_wait(c.read + told.at, told.parity);
    tell<T>(c, x, 0, told);
}

/* ---- the others ------------------------------------------------------------------------------ */

/* This warp's keys of all tiles of a segment. APPENDS: where it has the new one, that comes out of
 * `fresh`, and goes to the pages. */
template <class T, bool APPENDS>
static __device__ __forceinline__ void take_segment(sums<T> &a, const decode_pages_args &p,
                                                    decode_control<T> &c, const segment_info &g,
                                                    const uint8_t (*rows)[T::Q_PITCH],
                                                    const lane_places<T> &places, uint32_t data,
                                                    int32_t warp, ring_place &at,
                                                    const fresh_token<T> *fresh, void *v_pages) {
    const int32_t q_len = APPENDS ? 1 : g.q_len; /* known, it saves registers */
    /* tiles that every row sees whole lie between clear and hidden */
    const int32_t low = max(g.kv_len - q_len - p.window_left, 0);
    const int32_t clear = max(g.kv_len - 1 - p.window_left, 0);
    const int32_t hidden = APPENDS || !p.causal ? g.kv_len : g.kv_len - q_len + 1;
    const int32_t end = (g.first + g.tiles) * T::TILE, kv_len = g.kv_len; /* the loop reads no g */
    queries<T> q;
    row_terms<T> x;

    load_queries<T>(q, p, g, rows);
    load_terms<T, APPENDS>(x, p, g);
    memset(a.o, 0, sizeof a.o);
#pragma unroll
    for (int n = 0; n < T::NT; n++)
#pragma unroll
        for (int e = 0; e < 2; e++) a.most[n][e] = NONE, a.sum[n][e] = 0.0f;
    for (int32_t key = g.first * T::TILE; key < end; key += T::TILE) {
        barrier_wait(c.full + at.at, at.parity);
        if constexpr (APPENDS)
            if (key + T::TILE == end)
                put_token<T>(data + at.at * T::STAGE_BYTES, warp, *fresh, v_pages);
        take_tile<T>(a, q, x, p, places, data + at.at * T::STAGE_BYTES, key + warp * 16 * T::KT,
                     key < clear || key + T::TILE > hidden, low, kv_len);
        __syncwarp();
        if (threadIdx.x % 32 == 0) barrier_arrive(c.empty + at.at);
        ring_next<T::STAGES>(at);
    }
}

/* fresh: [SEGMENTS] where the kernel appends, v_pages: to what. */
template <class T, bool APPENDS>
static __device__ __forceinline__ void consume(uint8_t *data, decode_control<T> &c,
                                               const decode_pages_args &p,
                                               const fresh_token<T> *fresh, void *v_pages) {
    const int32_t warp = __shfl_sync(0xffffffffu, (int32_t)threadIdx.x / 32, 0);
    const lane_places<T> places = places_of_lane<T>(warp);
    ring_place at = {0, 0}, told = {0, 0};
    int32_t pending = 0;

    dependencies_wait();
    for (bool more = true; more;) {
        const segment_info &g = c.info[told.at];
        barrier_wait(c.told + told.at, told.parity);
        more = g.tiles > 0;
        if (more) {
            sums<T> a;
            take_segment<T, APPENDS>(a, p, c, g, c.q[told.at], places, shared_address(data), warp,
                                     at, fresh + (APPENDS ? told.at : 0), v_pages);
            finish<T>(a, p, g, c.finish, pending);
        }
        barrier_arrive(c.read + told.at); /* every lane: racecheck credits none but those */
        ring_next<SEGMENTS>(told);
        if (p.unit_tiles && (pending == PENDING || (!more && pending > 0))) {
            if (more) settle<T, false>(p, pending, c.finish, NULL);
            else settle<T, true>(p, pending, c.finish, data); /* the ring is empty now */
            pending = 0;
        }
    }
    /* without a given split a range has two parts at most */
    for (int32_t k = 0; k < pending; k++) take_share<T>(p, c.finish.pending[k]);
}

/* ---- a block --------------------------------------------------------------------------------- */

/* tells: arrivals that make a segment known. */
template <class T>
static __device__ __forceinline__ void open_block(decode_control<T> &c, const decode_pages_args &p,
                                                  int tells) {
    dependents_launch();
    if (threadIdx.x == 0) {
        for (int i = 0; i < T::STAGES; i++) {
            barrier_init(c.full + i, 1);
            barrier_init(c.empty + i, T::WARPS);
        }
        for (int i = 0; i < SEGMENTS; i++) {
            barrier_init(c.told + i, tells);
            barrier_init(c.read + i, T::CONSUMERS);
        }
        barrier_init_done();
    }
    if (threadIdx.x == T::CONSUMERS) {
        prefetch_map(p.k_map + DECODE_PAGES_QUARTERS - 1);
        prefetch_map(p.v_map + DECODE_PAGES_QUARTERS - 1);
    }
    __syncthreads();
}

/* x of real pages is of their type. */
template <class T>
static __device__ __forceinline__ void make_of(append_control<T> &c, const decode_pages_args &p,
                                               const decode_append_args &n) {
    if constexpr (T::FP8) {
        if (n.dtype == FP8_DTYPE_BF16) make<T, __nv_bfloat16>(c, p, n);
        else make<T, __half>(c, p, n);
    } else if constexpr (T::BF16) {
        make<T, __nv_bfloat16>(c, p, n);
    } else {
        make<T, __half>(c, p, n);
    }
}

#endif /* DECODE_SM90 */

template <class T>
static __global__ void __launch_bounds__(T::THREADS, T::PER_SM)
decode_pages_kernel_of(const __grid_constant__ decode_pages_args p) {
#if DECODE_SM90
    extern __shared__ uint8_t raw[];
    uint8_t *data = raw + (1024 - (shared_address(raw) & 1023)) % 1024;
    decode_control<T> &c = *reinterpret_cast<decode_control<T> *>(data + T::AREA);

    open_block<T>(c, p, 1);
    if (threadIdx.x < T::CONSUMERS) consume<T, false>(data, c, p, NULL, NULL);
    else produce<T, false>(data, c, p);
#endif
}

template <class T>
static __global__ void __launch_bounds__(T::APPEND_THREADS, T::PER_SM)
decode_append_kernel_of(const __grid_constant__ decode_pages_args p,
                        const __grid_constant__ decode_append_args n) {
#if DECODE_SM90
    extern __shared__ uint8_t raw[];
    uint8_t *data = raw + (1024 - (shared_address(raw) & 1023)) % 1024;
    append_control<T> &c = *reinterpret_cast<append_control<T> *>(data + T::AREA);

    open_block<T>(c.rest, p, 1 + 32 * T::MAKERS); /* every thread for itself */
    if (threadIdx.x < T::CONSUMERS) consume<T, true>(data, c.rest, p, c.fresh, n.v_pages);
    else if (threadIdx.x < T::THREADS) produce<T, true>(data, c.rest, p);
    else make_of<T>(c, p, n);
#endif
}
#endif
