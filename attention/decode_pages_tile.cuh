/* attention/decode_pages_tile.cuh - private: how keys and values of a tile lie in shared memory,
 * their copies, and one warp's work on its keys of a tile.
 *
 * K   [panel of K_PITCH bytes of d][key][K_PITCH], V [page][panel of V_PITCH bytes of keys]
 *     [d_v][V_PITCH], each with the swizzle of its pitch. */
#ifndef FP8_ATTENTION_DECODE_PAGES_TILE_CUH
#define FP8_ATTENTION_DECODE_PAGES_TILE_CUH
#include <cuda_fp16.h>

#include "attention/decode_pages_shape.cuh"
#include "attention/decode_pages_sm90.cuh"
#include "attention/decode_pages_walk.cuh"

template <int PITCH>
static __device__ __forceinline__ int32_t swizzle(int32_t row) {
    return PITCH == 128 ? row % 8 : row / 2 % 4;
}

/* ---- copies ---------------------------------------------------------------------------------- */

/* Page numbers of a segment, 32 ahead of their use. */
struct page_window {
    int32_t base, now, next;
};

static __device__ __forceinline__ int32_t page_at(const decode_pages_args &p, int32_t s,
                                                  int32_t i) {
    const int32_t lane = threadIdx.x % 32;
    return i + lane < p.max_pages ? __ldcg(p.page_table + s * p.max_pages + i + lane) : 0;
}

static __device__ __forceinline__ void pages_open(page_window &w, const decode_pages_args &p,
                                                  int32_t s, int32_t i) {
    w.base = i;
    w.now = page_at(p, s, i);
    w.next = page_at(p, s, i + 32);
}

static __device__ __forceinline__ int32_t page_of(page_window &w, const decode_pages_args &p,
                                                  int32_t s, int32_t i) {
    int32_t page;
    if (i >= w.base + 32) {
        w.base += 32;
        w.now = w.next;
        w.next = page_at(p, s, w.base + 32);
    }
    page = __shfl_sync(0xffffffffu, w.now, i - w.base);
    return min(max(page, 0), p.num_pages - 1);
}

/* The map for `keys` keys from a page's `token` on: whole spans have the whole page's. */
template <class T>
static __device__ __forceinline__ int32_t map_for(int32_t token, int32_t keys) {
    constexpr int QUARTER = T::PAGE / DECODE_PAGES_QUARTERS;
    return keys < T::SPAN ? (token + keys - 1) / QUARTER : DECODE_PAGES_QUARTERS - 1;
}

/* One tile of a head; all lanes of the copying warp. Of a sequence's last keys' quarter of a page
 * what lies beyond is not read. */
template <class T>
static __device__ __forceinline__ void copy_tile(uint8_t *stage, uint64_t *full, page_window &w,
                                                 const decode_pages_args &p, int32_t s,
                                                 int32_t kv_len, int32_t head, int32_t tile,
                                                 uint64_t policy) {
    const int32_t key = tile * T::TILE;
    const int32_t parts = min(max(div_up(kv_len - key, T::SPAN), 0), T::SPANS);
    const bool leads = threadIdx.x % 32 == 0;
    const uint32_t to = shared_address(stage);

    if (leads && parts == 0) barrier_arrive(full);
    if (leads && parts > 0)
        barrier_expect(full, parts * (T::K_PANELS * T::K_PART + T::V_PART));
#pragma unroll
    for (int i = 0; i < T::SPANS; i++) {
        if (i >= parts) break;
        const int32_t at = key + i * T::SPAN, page = page_of(w, p, s, at / T::PAGE);
        const int32_t token = at % T::PAGE, map = map_for<T>(token, kv_len - at);
        if (!leads) continue;
#pragma unroll
        for (int c = 0; c < T::K_PANELS; c++)
            copy_box_4d(to + c * T::TILE * T::K_PITCH + i * T::K_PART, p.k_map + map, full,
                        c * T::K_PITCH / T::BYTES, token, head, page, policy);
#pragma unroll
        for (int c = 0; c < T::V_PANELS; c++)
            copy_box_3d(to + T::K_BYTES + i * T::V_PART + c * T::D_V * T::V_PITCH, p.v_map + map,
                        full, token + c * T::V_PITCH / T::BYTES, head * T::D_V, page, policy);
    }
}

/* ---- queries --------------------------------------------------------------------------------- */

/* B operands of all products with K, in the order of d that the codes' matrices bring. */
template <class T> struct queries {
    uint32_t b[T::K_STEPS][T::NT][2];
    float scale[T::NT][2]; /* of rows 8 n + 2 t + e */
};

/* Of a thread's rows, 8 n + 2 t + e: the key that is the query's own, and the slope. Rows beyond a
 * sequence's have some, which nobody reads. */
template <class T> struct row_terms {
    int32_t at[T::NT][2];
    float slope[T::NT][2];
};

/* Rows of a segment that are queries of its sequence. */
static __device__ __forceinline__ bool is_row(const decode_pages_args &p, const segment_info &g,
                                              int32_t r) {
    return (g.row0 + r) / p.group < g.q_len;
}

/* Row r to its place in shared memory; `bar` expects it. */
template <class T>
static __device__ __forceinline__ void copy_row(uint8_t *to, uint64_t *bar,
                                                const decode_pages_args &p,
                                                const segment_info &g, int32_t r, int32_t bytes) {
    const int32_t row = g.row0 + r;
    const int64_t at = (int64_t)(g.q_begin + row / p.group) * p.q_token +
                       (int64_t)(g.head_kv * p.group + row % p.group) * T::D_QK;
    copy_bytes(to, static_cast<const uint8_t *>(p.q) + at * bytes, T::D_QK * bytes, bar);
}

/* 2^e with 2^e <= |x| < 2^(e + 1), e from -126 to 126, for x of these bits of BF16. */
static __device__ __forceinline__ float power_below(uint32_t bits) {
    return __uint_as_float(min(max(bits << 16 & 0x7f800000u, 0x00800000u), 0x7e800000u));
}

/* Two BF16 of a word, divided, as F16. */
static __device__ __forceinline__ uint32_t divided(uint32_t both, float divide) {
    return pack_f16(__uint_as_float(both << 16) * divide,
                    __uint_as_float(both & 0xffff0000u) * divide);
}

/* Words of a row in 16 bits, as they lie; returns the largest |x|'s bits (BF16's order). */
template <class T>
static __device__ __forceinline__ uint32_t load_words(uint32_t (&b)[T::K_STEPS][T::NT][2], int n,
                                                      const uint8_t *row, bool there) {
    const int32_t t = threadIdx.x % 4;
    uint32_t most = 0;
#pragma unroll
    for (int k = 0; k < T::K_STEPS; k++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int32_t d = 16 * k + (T::FP8 ? 4 * t + 2 * h : 2 * t + 8 * h);
            const uint32_t word = *reinterpret_cast<const uint32_t *>(row + 2 * d);
            b[k][n][h] = there ? word : 0u;
            most = __vmaxu2(most, b[k][n][h] & 0x7fff7fffu);
        }
    return max(most & 0xffffu, most >> 16);
}

template <class T>
static __device__ __forceinline__ void load_codes(uint32_t (&b)[T::K_STEPS][T::NT][2], int n,
                                                  const uint8_t *row, bool there) {
#pragma unroll
    for (int k = 0; k < T::K_STEPS; k++) {
        const uint32_t word =
            *reinterpret_cast<const uint32_t *>(row + 16 * k + threadIdx.x % 4 * 4);
        widen_e4m3(b[k][n][0], b[k][n][1], there ? word : 0u);
    }
}

/* Over codes, queries in BF16 become F16 after division by a power of 2 near their row's largest
 * value, which scale takes back: nothing is lost but what is 2^-14 of that and less. Rows that are
 * none are 0. */
template <class T>
static __device__ __forceinline__ void load_queries(queries<T> &x, const decode_pages_args &p,
                                                    const segment_info &g,
                                                    const uint8_t (*rows)[T::Q_PITCH]) {
    const int32_t lane = threadIdx.x % 32, t = lane % 4;
#pragma unroll
    for (int n = 0; n < T::NT; n++) {
        const int32_t r = 8 * n + lane / 4;
        const bool there = is_row(p, g, r);
        float unit = 1.0f;
        if (T::FP8 && p.q_dtype == FP8_DTYPE_E4M3) {
            load_codes<T>(x.b, n, rows[r], there);
        } else {
            uint32_t most = load_words<T>(x.b, n, rows[r], there);
            if (T::FP8 && p.q_dtype == FP8_DTYPE_BF16) {
                most = max(most, __shfl_xor_sync(0xffffffffu, most, 1));
                most = max(most, __shfl_xor_sync(0xffffffffu, most, 2));
                unit = power_below(most);
                const float divide = __uint_as_float(0x7f000000u - __float_as_uint(unit));
#pragma unroll
                for (int k = 0; k < T::K_STEPS; k++)
#pragma unroll
                    for (int h = 0; h < 2; h++) x.b[k][n][h] = divided(x.b[k][n][h], divide);
            }
        }
        unit *= g.score_scale;
        x.scale[n][0] = __shfl_sync(0xffffffffu, unit, 8 * t);
        x.scale[n][1] = __shfl_sync(0xffffffffu, unit, 8 * t + 4);
    }
}

static __device__ __forceinline__ float slope_of(const decode_pages_args &p, int32_t head) {
    return p.alibi_slopes ? p.alibi_slopes[head] : attention_alibi_slope(head, p.num_heads);
}

/* ONE: of one query a sequence, no ALiBi. */
template <class T, bool ONE>
static __device__ __forceinline__ void load_terms(row_terms<T> &x, const decode_pages_args &p,
                                                  const segment_info &g) {
    const int32_t t = threadIdx.x % 4;
#pragma unroll
    for (int n = 0; n < T::NT; n++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
            const int32_t row = g.row0 + 8 * n + 2 * t + e;
            x.at[n][e] = ONE ? g.kv_len - 1 : g.kv_len - g.q_len + row / p.group;
            x.slope[n][e] =
                !ONE && p.alibi ? slope_of(p, g.head_kv * p.group + row % p.group) : 0.0f;
        }
}

/* ---- one warp's keys of a tile --------------------------------------------------------------- */

template <class T> struct sums {
    float o[T::D_V / 16][T::NT][4]; /* O^T: rows of d_v, columns of queries */
    float most[T::NT][2], sum[T::NT][2]; /* sum: of this thread's keys */
};

/* Where this lane's share of operands begins. */
template <class T> struct lane_places {
    uint32_t k, v[T::KT]; /* 32 j bytes of a panel of K further: k ^ 32 j */
};

/* Key of a warp's 16 that stands in row r of its product: matrices of codes bring bytes in fours,
 * so that rows 2t, 2t + 1, 8 + 2t, 9 + 2t of P^T must be keys 4t .. 4t + 3. */
template <class T>
static __device__ __forceinline__ int32_t key_of_row(int32_t r) {
    return T::FP8 ? r % 8 / 2 * 4 + r % 2 + r / 8 * 2 : r;
}

template <class T>
static __device__ __forceinline__ lane_places<T> places_of_lane(int32_t warp) {
    const int32_t lane = threadIdx.x % 32;
    lane_places<T> x;
    const int32_t key = warp * 16 * T::KT + key_of_row<T>(lane % 16);
    x.k = key * T::K_PITCH + (lane / 16 ^ swizzle<T::K_PITCH>(key)) * 16;
#pragma unroll
    for (int kt = 0; kt < T::KT; kt++) {
        const int32_t first = (warp * T::KT + kt) * 16, within = first % T::SPAN * T::BYTES;
        const int32_t row = T::FP8 ? lane : lane % 16;
        const int32_t chunk = within % T::V_PITCH / 16 + (T::FP8 ? 0 : lane / 16);
        x.v[kt] = T::K_BYTES + first / T::SPAN * T::V_PART +
                  within / T::V_PITCH * T::D_V * T::V_PITCH + row * T::V_PITCH +
                  (chunk ^ swizzle<T::V_PITCH>(row)) * 16;
    }
    return x;
}

/* s = K Q^T of the warp's keys. */
template <class T>
static __device__ __forceinline__ void scores(float (&s)[T::KT][T::NT][4], const queries<T> &q,
                                              const lane_places<T> &at, uint32_t stage) {
    constexpr int PER_PANEL = T::K_PITCH / 32, LOADS = T::K_ROW / 32;
    float other[T::KT][T::NT][4];
#pragma unroll
    for (int kt = 0; kt < T::KT; kt++)
#pragma unroll
        for (int n = 0; n < T::NT; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) s[kt][n][i] = other[kt][n][i] = 0.0f;
#pragma unroll
    for (int j = 0; j < LOADS; j++)
#pragma unroll
        for (int kt = 0; kt < T::KT; kt++) {
            uint32_t r[4];
            load_matrices(r, stage + (at.k ^ j % PER_PANEL * 32) +
                                 j / PER_PANEL * T::TILE * T::K_PITCH + kt * 16 * T::K_PITCH);
            if constexpr (T::FP8) {
                uint32_t l[4], h[4];
#pragma unroll
                for (int i = 0; i < 4; i++) widen_e4m3(l[i], h[i], r[i]);
#pragma unroll
                for (int n = 0; n < T::NT; n++) {
                    warp_product<false>(s[kt][n], l[0], l[1], h[0], h[1], q.b[2 * j][n][0],
                                        q.b[2 * j][n][1]);
                    warp_product<false>(other[kt][n], l[2], l[3], h[2], h[3],
                                        q.b[2 * j + 1][n][0], q.b[2 * j + 1][n][1]);
                }
            } else {
#pragma unroll
                for (int n = 0; n < T::NT; n++)
                    warp_product<T::BF16>(j % 2 ? other[kt][n] : s[kt][n], r[0], r[1], r[2], r[3],
                                          q.b[j][n][0], q.b[j][n][1]);
            }
        }
#pragma unroll
    for (int kt = 0; kt < T::KT; kt++)
#pragma unroll
        for (int n = 0; n < T::NT; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) s[kt][n][i] += other[kt][n][i];
}

/* 1 - 2 / (e^2x + 1), x in units of 1 / (2 log2 e). */
static __device__ __forceinline__ float tanh_of(float x2) {
    float r;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(exp2_fast(x2) + 1.0f));
    return fmaf(-2.0f, r, 1.0f);
}

/* Scores in powers of 2, with their cap, slope and what is not seen. `key`: of the warp's first. */
template <class T>
static __device__ __forceinline__ void shape_scores(float (&s)[T::KT][T::NT][4],
                                                    const queries<T> &q, const row_terms<T> &x,
                                                    const decode_pages_args &p, int32_t key,
                                                    bool hides, int32_t kv_len) {
    const bool bends = p.softcap != 0.0f, slopes = p.alibi;
    const float cap = p.softcap * LOG2_E;
    const int32_t g = threadIdx.x % 32 / 4, first = key + key_of_row<T>(g);
#pragma unroll
    for (int kt = 0; kt < T::KT; kt++)
#pragma unroll
        for (int n = 0; n < T::NT; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) s[kt][n][i] *= q.scale[n][i % 2];
    if (!bends && !slopes && !hides) return;
#pragma unroll
    for (int kt = 0; kt < T::KT; kt++)
#pragma unroll
        for (int n = 0; n < T::NT; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int e = i % 2;
                const int32_t j = first + 16 * kt + i / 2 * (T::FP8 ? 2 : 8);
                float &v = s[kt][n][i];
                if (bends) v = cap * tanh_of(v);
                if (slopes) v = fmaf(x.slope[n][e] * LOG2_E, (float)(j - x.at[n][e]), v);
                if (hides && (j < x.at[n][e] - p.window_left ||
                              j >= (p.causal ? x.at[n][e] + 1 : kv_len)))
                    v = -INFINITY;
            }
}

/* New maxima where one grew by more than SLACK since the last ones; sums follow. */
template <class T>
static __device__ __forceinline__ void raise_maxima(sums<T> &a, const float (&s)[T::KT][T::NT][4]) {
    float most[T::NT][2];
    bool more = false;
#pragma unroll
    for (int n = 0; n < T::NT; n++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
            float &m = most[n][e];
            m = fmaxf(s[0][n][e], s[0][n][e + 2]);
#pragma unroll
            for (int kt = 1; kt < T::KT; kt++) m = fmaxf(m, fmaxf(s[kt][n][e], s[kt][n][e + 2]));
            more |= m > a.most[n][e] + SLACK;
        }
    if (!__any_sync(0xffffffffu, more)) return;
#pragma unroll
    for (int n = 0; n < T::NT; n++) {
        float alpha[2];
#pragma unroll
        for (int e = 0; e < 2; e++) {
            float &m = most[n][e];
#pragma unroll
            for (int off = 4; off < 32; off <<= 1)
                m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, off));
            if (!(m > a.most[n][e] + SLACK)) m = a.most[n][e]; /* a row does not hang on others */
            alpha[e] = exp2_fast(a.most[n][e] - m);
            a.most[n][e] = m;
            a.sum[n][e] *= alpha[e];
        }
#pragma unroll
        for (int i = 0; i < T::D_V / 16; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) a.o[i][n][j] *= alpha[j % 2];
    }
}

/* Bits of V's operands that are keys of the sequence: of 4 codes, or of keys 2t, 2t + 1 (and 8
 * further) of 16 bits. */
template <class T>
static __device__ __forceinline__ void keep_of(uint32_t (&keep)[2], int32_t key, int32_t low,
                                               int32_t high) {
    const int32_t t = threadIdx.x % 4;
    keep[0] = keep[1] = 0;
    if constexpr (T::FP8) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int32_t j = key + 4 * t + i;
            if (j >= low && j < high) keep[0] |= 0xffu << 8 * i;
        }
        keep[1] = keep[0];
    } else {
#pragma unroll
        for (int h = 0; h < 2; h++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const int32_t j = key + 2 * t + 8 * h + i;
                if (j >= low && j < high) keep[h] |= 0xffffu << 16 * i;
            }
    }
}

/* o += V^T P^T; `early`: the first loads of the warp's first 16 keys. */
template <class T, bool PARTIAL>
static __device__ __forceinline__ void add_values(sums<T> &a, const uint32_t (&b)[T::KT][T::NT][2],
                                                  const uint32_t (&early)[T::EARLY][4],
                                                  const lane_places<T> &at, uint32_t stage,
                                                  int32_t key, int32_t low, int32_t high) {
#pragma unroll
    for (int kt = 0; kt < T::KT; kt++) {
        uint32_t keep[2];
        if (PARTIAL) keep_of<T>(keep, key + 16 * kt, low, high);
#pragma unroll
        for (int i = 0; i < T::V_LOADS; i++) {
            uint32_t r[4];
            if (kt == 0 && i < T::EARLY) {
#pragma unroll
                for (int j = 0; j < 4; j++) r[j] = early[i][j];
            } else {
                load_matrices(r, stage + at.v[kt] + i * T::LOAD_D * T::V_PITCH);
            }
            if (PARTIAL)
#pragma unroll
                for (int j = 0; j < 4; j++) r[j] &= keep[j / 2];
            if constexpr (T::FP8) {
                uint32_t l[4], h[4];
#pragma unroll
                for (int j = 0; j < 4; j++) widen_e4m3(l[j], h[j], r[j]);
#pragma unroll
                for (int n = 0; n < T::NT; n++) {
                    warp_product<false>(a.o[2 * i][n], l[0], l[1], h[0], h[1], b[kt][n][0],
                                        b[kt][n][1]);
                    warp_product<false>(a.o[2 * i + 1][n], l[2], l[3], h[2], h[3], b[kt][n][0],
                                        b[kt][n][1]);
                }
            } else {
#pragma unroll
                for (int n = 0; n < T::NT; n++)
                    warp_product<T::BF16>(a.o[i][n], r[0], r[1], r[2], r[3], b[kt][n][0],
                                          b[kt][n][1]);
            }
        }
    }
}

/* key: of the warp's first in this tile; low .. high - 1: keys that some row sees. */
template <class T>
static __device__ __forceinline__ void take_tile(sums<T> &a, const queries<T> &q,
                                                 const row_terms<T> &x, const decode_pages_args &p,
                                                 const lane_places<T> &at, uint32_t stage,
                                                 int32_t key, bool hides, int32_t low,
                                                 int32_t high) {
    float s[T::KT][T::NT][4];
    uint32_t b[T::KT][T::NT][2], early[T::EARLY][4];

    scores<T>(s, q, at, stage);
#pragma unroll
    for (int i = 0; i < T::EARLY; i++)
        load_matrices(early[i], stage + at.v[0] + i * T::LOAD_D * T::V_PITCH);
    shape_scores<T>(s, q, x, p, key, hides, high);
    raise_maxima<T>(a, s);
#pragma unroll
    for (int kt = 0; kt < T::KT; kt++)
#pragma unroll
        for (int n = 0; n < T::NT; n++) {
            float(&v)[4] = s[kt][n];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                v[i] = exp2_fast(v[i] - a.most[n][i % 2]);
                a.sum[n][i % 2] += v[i];
            }
#pragma unroll
            for (int h = 0; h < 2; h++)
                b[kt][n][h] = turn_matrix(T::BF16 ? pack_bf16(v[2 * h], v[2 * h + 1])
                                                  : pack_f16(v[2 * h], v[2 * h + 1]));
        }
    if (hides) add_values<T, true>(a, b, early, at, stage, key, low, high);
    else add_values<T, false>(a, b, early, at, stage, key, low, high);
}
#endif
