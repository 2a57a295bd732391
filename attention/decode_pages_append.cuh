/* attention/decode_pages_append.cuh - private: the append within attention over pages, one new
 * token a sequence: warps make the queries of each segment from what the projections left, where
 * otherwise they are copied, and, where a segment has its item's last tile, the token's K and V:
 * into their places in the pages, and beside the queries, from where the warp that attends to that
 * key puts them into the tile. What comes out is what an append (append_once.cu, whose functions
 * these are) and a kernel after it would leave, byte for byte.
 *
 *   copying warp   lengths | walk | pages |   copies ... tells         | copies ...
 *   these warps    lengths | walk | x, angles, page | make, tell       | the next one's
 *
 * so that the wait for x and angles lies beside that for the first tile. A warp alone issues an
 * instruction every four or five clocks: where registers allow, there are three that take turns. */
#ifndef FP8_ATTENTION_DECODE_PAGES_APPEND_CUH
#define FP8_ATTENTION_DECODE_PAGES_APPEND_CUH
#include <type_traits>

#include "attention/append_unit.cuh"
#include "attention/decode_pages_tile.cuh"

/* ---- the token in its tile ------------------------------------------------------------------- */

/* To shared memory. */
static __device__ __forceinline__ void store_one(uint32_t to, uint8_t x) {
    asm volatile("st.shared.u8 [%0], %1;" ::"r"(to), "r"((uint32_t)x) : "memory");
}
static __device__ __forceinline__ void store_one(uint32_t to, uint16_t x) {
    asm volatile("st.shared.u16 [%0], %1;" ::"r"(to), "h"(x) : "memory");
}
static __device__ __forceinline__ void store_16(uint32_t to, const uint4 &x) {
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(x.x), "r"(x.y),
                 "r"(x.z), "r"(x.w)
                 : "memory");
}

/* Where this warp has the token's key, which nobody else reads; and V to its page. All lanes.
 * NOTE: a column of V is a byte of many sectors, each of which memory must bring for the byte to be
 * put in. Now that the tile is here, they are in L2. */
template <class T>
static __device__ __forceinline__ void put_token(uint32_t stage, int32_t warp,
                                                 const fresh_token<T> &x, void *pages) {
    typedef std::conditional_t<T::FP8, uint8_t, uint16_t> value_type;
    constexpr int PER_PANEL = T::K_PITCH / 16, AT_ONCE = T::D_V < 128 ? 2 : 4;
    const int32_t lane = threadIdx.x % 32, key = x.key, within = key % T::SPAN * T::BYTES;
    const uint32_t v = stage + T::K_BYTES + key / T::SPAN * T::V_PART +
                       within / T::V_PITCH * T::D_V * T::V_PITCH + within % 16 +
                       lane * T::V_PITCH +
                       (within % T::V_PITCH / 16 ^ swizzle<T::V_PITCH>(lane)) * 16;

    if (key < 0 || key / (16 * T::KT) != warp) return;
    static_assert(T::K_ROW <= 32 * 16, "16 bytes a lane"); /* and rows 32 apart stir alike */
    if (lane < T::K_ROW / 16)
        store_16(stage + lane / PER_PANEL * T::TILE * T::K_PITCH + key * T::K_PITCH +
                     (lane % PER_PANEL ^ swizzle<T::K_PITCH>(key)) * 16,
                 reinterpret_cast<const uint4 *>(x.k)[lane]);
    const bool keeps = x.keeps;
    value_type *page = static_cast<value_type *>(pages) + x.v_at + lane * T::PAGE;
#pragma unroll 1
    for (int32_t row = 0; row < T::D_V; row += 32 * AT_ONCE) {
        value_type value[AT_ONCE];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++)
            value[i] = reinterpret_cast<const value_type *>(x.v)[lane + row + 32 * i];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            store_one(v + (row + 32 * i) * T::V_PITCH, value[i]);
            if (keeps) page[(row + 32 * i) * T::PAGE] = value[i];
        }
    }
    proxy_fence(); /* the stage's next copy comes after this */
    __syncwarp();
}

/* ---- the warps that make them ---------------------------------------------------------------- */

/* Threads a head, and heads that a warp makes at once: a chunk. */
template <class T> struct head_lanes {
    static constexpr int LOG = T::D_QK == 256 ? 4 : T::D_QK == 128 ? 3 : 2, AT_ONCE = 32 >> LOG;
    static_assert(attention::UNIT << LOG == T::D_QK, "threads a head");
};

/* Positions of the sequences that a walk has read, asked for before it is known which is next. */
struct positions {
    int32_t window, mine; /* of walk; of the lane's sequence */
};

static __device__ __forceinline__ void positions_read(positions &x, const decode_pages_args &p,
                                                      const decode_append_args &n,
                                                      const walk &w) {
    const int32_t row = min(max(w.mine.begin, 0), p.total_q - 1);
    x.window = w.window;
    x.mine = n.positions ? __ldcg(n.positions + row) : max(w.mine.keys, 0) - 1;
}

/* What is known of a segment's token. */
struct token_place {
    int32_t row, head_kv, row0, heads; /* of x; of the segment; heads: of Q, then K's if `last` */
    int32_t key, page;                 /* key -1: there is none; page -1: it has no place */
    int32_t position;
    bool last; /* the segment has the item's last tile */
};

template <class T>
static __device__ __forceinline__ token_place token_place_of(const decode_pages_args &p,
                                                             const decode_append_args &n,
                                                             const walk &w, const segment &g,
                                                             const positions &at) {
    const int32_t block = g.item / p.num_kv_heads, from = w.s - w.window;
    token_place t;
    t.row = w.q.q_begin;
    t.head_kv = g.item - block * p.num_kv_heads;
    t.row0 = block * T::ROWS;
    t.last = g.first + g.tiles == w.q.first + w.q.tiles;
    t.heads = min(T::ROWS, p.group - t.row0) + t.last;
    t.key = max(__shfl_sync(0xffffffffu, w.mine.keys, from), 0) - 1;
    t.position = min(max(__shfl_sync(0xffffffffu, at.mine, from), 0), n.num_positions - 1);
    t.page = -1;
    if (t.last && t.key >= 0 && t.key / T::PAGE < p.max_pages)
        t.page = __ldcg(p.page_table + w.s * p.max_pages + t.key / T::PAGE);
    return t;
}

static __device__ __forceinline__ float descale_of(const decode_pages_args &p, const float *of,
                                                   int32_t head_kv) {
    return of ? of[p.descale_by_head ? head_kv : 0] : 1.0f;
}

/* A lane's share of a chunk, as it is read; nothing waits for it yet. */
struct head_source {
    attention::unit_place at;
    attention::raw_unit raw, weight;
    attention::angles turn;
    float descale;
    bool is_k, normed;
};

template <class T, typename X>
static __device__ __forceinline__ head_source head_source_of(const decode_pages_args &p,
                                                             const decode_append_args &n,
                                                             const token_place &t, int chunk) {
    head_source s;
    s.at = attention::place_unit(chunk, head_lanes<T>::LOG, t.heads, T::D_QK, n.rotary_dim,
                                 n.halves);
    s.is_k = t.last && s.at.head == t.heads - 1;
    const X *x = static_cast<const X *>(s.is_k ? n.k.x : n.q.x);
    const X *weight = static_cast<const X *>(s.is_k ? n.k.weight : n.q.weight);
    const int32_t head = s.is_k ? t.head_kv : t.head_kv * p.group + t.row0 + s.at.head;
    const int64_t token = (int64_t)t.row * (s.is_k ? n.k.token_stride : n.q.token_stride);
    const int64_t within = (int64_t)head * (s.is_k ? n.k.head_stride : n.q.head_stride);
    s.raw = attention::load_unit(x + token + within + s.at.low, s.at.apart, s.at.there);
    s.normed = weight;
    s.weight = attention::load_unit(weight + s.at.low, s.at.apart, s.at.there && s.normed);
    s.turn = attention::load_angles(n.cos, n.sin, n.rotary_dim, s.at, t.position);
    s.descale = descale_of(p, s.is_k ? p.k_descale : n.q_descale, t.head_kv);
    return s;
}

/* Normed and turned. All lanes. */
template <class T, typename X>
static __device__ __forceinline__ void make_head(float (&v)[attention::UNIT],
                                                 const decode_append_args &n,
                                                 const head_source &s) {
    attention::widen_unit<X>(v, s.raw);
    if (n.q.weight || n.k.weight) {
        float normed[attention::UNIT];
        fp8_kv_append a = {};
        a.norm = (fp8_norm_kind)n.norm;
        a.rounded = n.rounded;
        a.eps = n.eps;
        a.dtype = (fp8_dtype)n.dtype;
#pragma unroll
        for (int k = 0; k < attention::UNIT; k++) normed[k] = v[k];
        attention::norm_unit<X>(a, normed, s.weight, T::D_QK, 1 << head_lanes<T>::LOG);
#pragma unroll
        for (int k = 0; k < attention::UNIT; k++) v[k] = s.normed ? normed[k] : v[k];
    }
    if (s.at.turns) attention::rotate_unit(n.halves, v, s.turn);
}

/* To where the others of the block read it. */
template <class T, typename X>
static __device__ __forceinline__ void put_head(append_control<T> &c, int32_t slot,
                                                const decode_append_args &n, const head_source &s,
                                                const float (&v)[attention::UNIT]) {
    const bool codes = s.is_k ? T::FP8 : n.q_descale != NULL;
    if (!s.at.there) return;
    attention::store_unit<X>(s.is_k ? c.fresh[slot].k : c.rest.q[slot][s.at.head], codes, s.at.low,
                             s.at.apart, __frcp_rn(s.descale), v);
}

/* K to its page, by the lanes that made it. */
template <class T, typename X>
static __device__ __forceinline__ void keep_key(const decode_append_args &n, const token_place &t,
                                                const head_source &s,
                                                const float (&v)[attention::UNIT]) {
    const int64_t to = t.page * n.k_page +
                       (int64_t)(t.head_kv * T::PAGE + t.key % T::PAGE) * T::D_QK;
    if (!s.at.there || !s.is_k) return;
    attention::store_unit<X>(n.k_pages, T::FP8, to + s.at.low, s.at.apart, __frcp_rn(s.descale),
                             v);
}

/* A lane's eight columns of V, as they are kept. */
template <class T> struct value_words {
    uint32_t at[2 * T::BYTES];
};

template <class T, typename X>
static __device__ __forceinline__ value_words<T> make_values(const uint4 &raw, float descale) {
    value_words<T> w;
    float v[8];
    attention::widen8<X>(v, raw);
    if constexpr (T::FP8) {
        const float scale = __frcp_rn(descale);
        w.at[0] = attention::encode4(v, scale);
        w.at[1] = attention::encode4(v + 4, scale);
    } else {
        attention::eight<X> e;
#pragma unroll
        for (int k = 0; k < 8; k++) attention::narrow(&e.at[k], v[k]);
        const uint4 u = reinterpret_cast<const uint4 &>(e);
        w.at[0] = u.x, w.at[1] = u.y, w.at[2] = u.z, w.at[3] = u.w;
    }
    return w;
}

template <class T>
static __device__ __forceinline__ void put_values(fresh_token<T> &x, const value_words<T> &w) {
    const int32_t column = threadIdx.x % 32 * 8;
    uint32_t *to = reinterpret_cast<uint32_t *>(x.v + column * T::BYTES);
    if (column >= T::D_V) return;
#pragma unroll
    for (int k = 0; k < 2 * T::BYTES; k++) to[k] = w.at[k];
}

template <class T>
static __device__ __forceinline__ int64_t values_at(const decode_append_args &n,
                                                    const token_place &t) {
    return t.page * n.v_page + (int64_t)t.head_kv * T::D_V * T::PAGE + t.key % T::PAGE;
}

template <class T>
static __device__ __forceinline__ void keep_values(const decode_append_args &n,
                                                   const token_place &t,
                                                   const value_words<T> &w) {
    const int32_t column = threadIdx.x % 32 * 8;
    const int64_t to = values_at<T>(n, t) + column * T::PAGE;
    if (column >= T::D_V) return;
#pragma unroll
    for (int k = 0; k < 8; k++) {
        if constexpr (T::FP8)
            static_cast<uint8_t *>(n.v_pages)[to + k * T::PAGE] =
                (uint8_t)(w.at[k / 4] >> k % 4 * 8);
        else
            static_cast<uint16_t *>(n.v_pages)[to + k * T::PAGE] =
                (uint16_t)(w.at[k / 2] >> k % 2 * 16);
    }
}

/* A warp's share of a segment, warp `mine` of MAKERS: chunks of heads in turns, and V. What is read
 * for the first of them is asked for before anything waits; pages are written when all has been
 * told, and V with its tile (put_token). */
template <class T, typename X>
static __device__ __forceinline__ void make_share(append_control<T> &c, const decode_pages_args &p,
                                                  const decode_append_args &n, token_place t,
                                                  int32_t kv_len, int32_t mine, int32_t slot,
                                                  uint32_t parity) {
    const int32_t column = threadIdx.x % 32 * 8, at_once = head_lanes<T>::AT_ONCE;
    const int32_t chunks = (t.heads + at_once - 1) / at_once;
    const bool has_v = t.last && chunks % T::MAKERS == mine;
    const bool has_k = t.last && (chunks - 1) % T::MAKERS == mine; /* in its last chunk */
    float descale = 1.0f, v[attention::UNIT];
    value_words<T> values = {};
    head_source s = {};
    uint4 raw = {};

    if (has_v && column < T::D_V)
        raw = *reinterpret_cast<const uint4 *>(
            static_cast<const X *>(n.v.x) + (int64_t)t.row * n.v.token_stride +
            (int64_t)t.head_kv * n.v.head_stride + column);
    if (has_v) descale = descale_of(p, p.v_descale, t.head_kv);
#pragma unroll 1
    for (int32_t i = mine; i < chunks; i += T::MAKERS) {
        s = head_source_of<T, X>(p, n, t, i);
        barrier_wait(c.rest.read + slot, parity);
        make_head<T, X>(v, n, s);
        put_head<T, X>(c, slot, n, s, v);
    }
    if (t.page >= p.num_pages) t.page = -1;
    barrier_wait(c.rest.read + slot, parity);
    if (has_v) {
        values = make_values<T, X>(raw, descale);
        put_values<T>(c.fresh[slot], values);
    }
    const bool is_read = t.page >= 0 && t.key == kv_len - 1; /* lengths may be beyond that */
    if (mine == 0) {
        c.fresh[slot].key = is_read ? t.key % T::TILE : -1;
        c.fresh[slot].keeps = t.row0 == 0;
        c.fresh[slot].v_at = values_at<T>(n, t);
    }
    barrier_arrive(c.rest.told + slot);
    if (t.page < 0 || t.row0 > 0) return; /* one segment of an item writes */
    if (has_k) keep_key<T, X>(n, t, s, v);
    if (has_v && !is_read) keep_values<T>(n, t, values);
}

template <class T, typename X>
static __device__ void make(append_control<T> &c, const decode_pages_args &p,
                            const decode_append_args &n) {
    const int32_t mine = __shfl_sync(0xffffffffu, (int32_t)threadIdx.x / 32, 0) - T::WARPS - 1;
    int32_t slot = 0;
    uint32_t parity = 1;
    bool waited = !p.early;
    positions at;
    walk w;

    if (waited) dependencies_wait();
    const cut all = make_cut<T::TILE, T::ROWS>(w, p);
    const range r = range_at(all, blockIdx.x);
    positions_read(at, p, n, w);
    if (r.begin < r.end) walk_to<T::TILE, T::ROWS>(w, p, r.begin);
    for (int32_t unit = r.begin; unit < r.end;) {
        const segment g = segment_at<T::TILE, T::ROWS>(w, p, unit, r.end);
        unit += g.count;
        if (g.tiles == 0) continue;
        if (at.window != w.window) positions_read(at, p, n, w);
        const token_place t = token_place_of<T>(p, n, w, g, at);
        if (!waited) dependencies_wait();
        waited = true;
        make_share<T, X>(c, p, n, t, w.q.kv_len, mine, slot, parity);
        slot = (slot + 1) % SEGMENTS;
        parity ^= slot == 0;
    }
    barrier_wait(c.rest.read + slot, parity); /* and the end, which the copying warp tells of */
    barrier_arrive(c.rest.told + slot);
}
#endif
