/* attention/decode_pages_finish.cuh - private: from the sums of a block's warps to outputs, or to
 * a part of an item that the block which comes last adds up, in the order of parts. */
#ifndef FP8_ATTENTION_DECODE_PAGES_FINISH_CUH
#define FP8_ATTENTION_DECODE_PAGES_FINISH_CUH
#include "attention/decode_pages_tile.cuh"

enum { CONSUMER_BARRIER = 1 };

template <class T> static __device__ __forceinline__ void consumers_sync() {
    named_sync(CONSUMER_BARRIER, T::CONSUMERS);
}

/* Where row r of a segment goes. */
struct row_place {
    int32_t token, head;
};

static __device__ __forceinline__ row_place row_at(const decode_pages_args &p,
                                                   const segment_info &g, int32_t r) {
    const int32_t row = g.row0 + r;
    return {g.q_begin + row / p.group, g.head_kv * p.group + row % p.group};
}

static __device__ __forceinline__ int64_t output_at(const decode_pages_args &p,
                                                    const row_place &x, int32_t d_v) {
    return (int64_t)x.token * p.o_token + (int64_t)x.head * d_v;
}

/* What O's sums are multiplied by, given the row's maximum and sum in powers of 2; writes its
 * LSE if asked to. */
static __device__ __forceinline__ float row_factor(const decode_pages_args &p, const row_place &x,
                                                   float most, float sum, float value_scale,
                                                   bool writes) {
    const bool empty = sum == 0.0f;
    float top = empty ? -INFINITY : most, total = sum, weight = 1.0f;

    if (p.sink || p.off_by_one) {
        const float sink = p.sink ? p.sink[x.head] * LOG2_E : 0.0f, m = fmaxf(top, sink);
        weight = exp2f(top - m);
        total = sum * weight + exp2f(sink - m);
        top = m;
    }
    if (writes && p.lse)
        p.lse[(int64_t)x.head * p.total_q + x.token] =
            total == 0.0f ? -INFINITY : (top + log2f(total)) * (1.0f / LOG2_E);
    return empty ? 0.0f : weight / total * value_scale;
}

static __device__ __forceinline__ void store_pair(const decode_pages_args &p, int64_t at, float a,
                                                  float b) {
    if (p.o_dtype == FP8_DTYPE_E4M3)
        *reinterpret_cast<uint16_t *>(static_cast<uint8_t *>(p.o) + at) =
            (uint16_t)pack_e4m3(a, b, 0.0f, 0.0f);
    else
        *reinterpret_cast<uint32_t *>(static_cast<uint16_t *>(p.o) + at) =
            p.o_dtype == FP8_DTYPE_BF16 ? pack_bf16(a, b) : pack_f16(a, b);
}

template <class T>
static __device__ __forceinline__ float *part_sums(const decode_pages_args &p, int32_t slot) {
    return p.parts + (int64_t)slot * T::ROWS * T::D_V;
}

/* Of a row: maximum, sum of exponentials. */
template <class T>
static __device__ __forceinline__ float2 *part_stats(const decode_pages_args &p, int32_t slot,
                                                     int32_t row) {
    return reinterpret_cast<float2 *>(p.part_stats) + (int64_t)slot * T::ROWS + row;
}

/* ---- the warps of a block -------------------------------------------------------------------- */

/* One row's maximum and sum: to where a part is kept, or to what finishes O. */
template <class T>
static __device__ __forceinline__ void close_row(const decode_pages_args &p, const segment_info &g,
                                                 finish_memory<T> &f, int32_t r, float most,
                                                 float sum) {
    const bool there = is_row(p, g, r);
    f.to[r] = -1;
    if (g.parts > 1) {
        *part_stats<T>(p, g.slot, r) = make_float2(most, sum);
    } else if (there) {
        const row_place x = row_at(p, g, r);
        f.to[r] = output_at(p, x, T::D_V);
        f.factor[r] = row_factor(p, x, most, sum, g.value_scale, true);
    }
}

/* Maxima and sums of all warps to weights of warps, and rows closed. Ends before a barrier. */
template <class T>
static __device__ __forceinline__ void weigh_warps(const sums<T> &a, const decode_pages_args &p,
                                                   const segment_info &g, finish_memory<T> &f) {
    const int32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int n = 0; n < T::NT; n++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
            float v = a.sum[n][e];
#pragma unroll
            for (int off = 4; off < 32; off <<= 1) v += __shfl_xor_sync(0xffffffffu, v, off);
            if (lane >= 4) continue;
            f.most[warp][8 * n + 2 * lane + e] = a.most[n][e];
            f.sum[warp][8 * n + 2 * lane + e] = v;
        }
    consumers_sync<T>();
    if ((int32_t)threadIdx.x < T::WARPS * T::ROWS) {
        const int32_t r = threadIdx.x % T::ROWS, w = threadIdx.x / T::ROWS;
        float m = f.most[0][r], total = 0.0f;
#pragma unroll
        for (int i = 1; i < T::WARPS; i++) m = fmaxf(m, f.most[i][r]);
        f.weight[w][r] = exp2_fast(f.most[w][r] - m);
        if (w != 0) return;
#pragma unroll
        for (int i = 0; i < T::WARPS; i++)
            total = fmaf(exp2_fast(f.most[i][r] - m), f.sum[i][r], total);
        close_row<T>(p, g, f, r, m, total);
    }
}

template <class T>
static __device__ __forceinline__ void fill_slab(const sums<T> &a, finish_memory<T> &f, int round) {
    const int32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int r = 0; r < T::D_V / T::ROUND_D; r++) {
        if (r != round) continue;
#pragma unroll
        for (int i = 0; i < T::ROUND_D / 16; i++)
#pragma unroll
            for (int n = 0; n < T::NT; n++)
#pragma unroll
                for (int j = 0; j < 4; j++)
                    f.slab[warp][8 * n + 2 * t + j % 2][16 * i + g + j / 2 * 8] =
                        a.o[r * (T::ROUND_D / 16) + i][n][j];
    }
}

template <class T>
static __device__ __forceinline__ float2 add_warps(const finish_memory<T> &f, int32_t row,
                                                   int32_t d) {
    float2 v = make_float2(0.0f, 0.0f);
#pragma unroll
    for (int w = 0; w < T::WARPS; w++) {
        const float2 x = *reinterpret_cast<const float2 *>(&f.slab[w][row][d]);
        v.x = fmaf(f.weight[w][row], x.x, v.x);
        v.y = fmaf(f.weight[w][row], x.y, v.y);
    }
    return v;
}

/* ---- the parts of an item -------------------------------------------------------------------- */

/* A lane's share of a row of a part. */
template <int N>
static __device__ __forceinline__ void load_share(float (&y)[N], const float *row) {
    const float *from = row + threadIdx.x % 32 * N;
    if constexpr (N == 2) {
        const float2 v = __ldcg(reinterpret_cast<const float2 *>(from));
        y[0] = v.x, y[1] = v.y;
    } else {
#pragma unroll
        for (int i = 0; i < N; i += 4) {
            const float4 v = __ldcg(reinterpret_cast<const float4 *>(from + i));
            y[i] = v.x, y[i + 1] = v.y, y[i + 2] = v.z, y[i + 3] = v.w;
        }
    }
}

/* Columns of O that a warp adds at a time. */
template <class T> static constexpr int STRIP = T::D_V < 128 ? T::D_V : 128;

/* A strip of a row of an item: all its parts, by number. All lanes. */
template <class T>
static __device__ __forceinline__ void add_row(const decode_pages_args &p, const segment_info &g,
                                               int32_t r, int32_t strip) {
    constexpr int SHARE = STRIP<T> / 32;
    constexpr int BATCH = (T::D_V > 128 ? 16 : 32) / SHARE; /* loads under way */
    const int32_t lane = threadIdx.x % 32;
    const row_place place = row_at(p, g, r);
    const int32_t column = strip * STRIP<T>;
    const int64_t to = output_at(p, place, T::D_V) + column + SHARE * lane;
    const float2 none = make_float2(NONE, 0.0f);
    float2 stats = lane < g.parts ? __ldcg(part_stats<T>(p, slot_of(p, g, lane), r)) : none;
    float most = stats.x, sum = 0.0f, weight = 0.0f, v[SHARE] = {}, factor;

    for (int32_t j = lane + 32; j < g.parts; j += 32)
        most = fmaxf(most, __ldcg(part_stats<T>(p, slot_of(p, g, j), r)).x);
    for (int32_t j0 = 0; j0 < g.parts; j0 += BATCH) {
        float y[BATCH][SHARE];
#pragma unroll
        for (int i = 0; i < BATCH; i++)
            if (j0 + i < g.parts)
                load_share(y[i], part_sums<T>(p, slot_of(p, g, j0 + i)) + r * T::D_V + column);
        if (j0 == 0)
#pragma unroll
            for (int off = 16; off > 0; off >>= 1)
                most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, off));
        if (j0 % 32 == 0) {
            const int32_t j = j0 + lane;
            if (j0 > 0)
                stats = j < g.parts ? __ldcg(part_stats<T>(p, slot_of(p, g, j), r)) : none;
            weight = exp2_fast(stats.x - most);
            sum = fmaf(weight, stats.y, sum);
        }
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            const float w = __shfl_sync(0xffffffffu, weight, (j0 + i) % 32);
            if (j0 + i >= g.parts) break;
#pragma unroll
            for (int k = 0; k < SHARE; k++) v[k] = fmaf(w, y[i][k], v[k]);
        }
    }
#pragma unroll
    for (int off = 16; off > 0; off >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, off);
    factor = row_factor(p, place, most, sum, g.value_scale, lane == 0 && strip == 0);
#pragma unroll
    for (int k = 0; k < SHARE; k += 2) store_pair(p, to + k, v[k] * factor, v[k + 1] * factor);
}

/* Counts the parts that this block has written; where one is its item's last, the counter is 0
 * again and the item is added up. */
template <class T>
static __device__ __forceinline__ void settle(const decode_pages_args &p, int32_t count,
                                              finish_memory<T> &f) {
    constexpr int STRIPS = T::D_V / STRIP<T>;
    const int32_t i = threadIdx.x;
    consumers_sync<T>();
    if (i < count) {
        int32_t *arrived = p.arrived + f.pending[i].item;
        __threadfence(); /* of all that the block wrote before the barrier */
        const bool last = atomicAdd(arrived, 1) == f.pending[i].parts - 1;
        if (last) *arrived = 0;
        f.last[i] = last;
        __threadfence();
    }
    consumers_sync<T>();
    for (int32_t k = 0; k < count; k++)
        for (int32_t at = i / 32; f.last[k] && at < T::ROWS * STRIPS; at += T::WARPS)
            if (is_row(p, f.pending[k], at / STRIPS))
                add_row<T>(p, f.pending[k], at / STRIPS, at % STRIPS);
    consumers_sync<T>(); /* pending may be written again */
}

/* ---- the end of a segment -------------------------------------------------------------------- */

/* O of the segment's rows, or its part; `pending` counts parts. */
template <class T>
static __device__ __forceinline__ void finish(const sums<T> &a, const decode_pages_args &p,
                                              const segment_info &g, finish_memory<T> &f,
                                              int32_t &pending) {
    weigh_warps<T>(a, p, g, f);
#pragma unroll 1
    for (int round = 0; round < T::D_V / T::ROUND_D; round++) {
        fill_slab<T>(a, f, round);
        consumers_sync<T>();
#pragma unroll
        for (int e = threadIdx.x * 2; e < T::ROWS * T::ROUND_D; e += 2 * T::CONSUMERS) {
            const int32_t r = e / T::ROUND_D, d = e % T::ROUND_D, at = round * T::ROUND_D + d;
            const float2 v = add_warps<T>(f, r, d);
            if (g.parts > 1)
                *reinterpret_cast<float2 *>(part_sums<T>(p, g.slot) + r * T::D_V + at) = v;
            else if (f.to[r] >= 0)
                store_pair(p, f.to[r] + at, v.x * f.factor[r], v.y * f.factor[r]);
        }
        consumers_sync<T>();
    }
    if (g.parts == 1) return;
    if (threadIdx.x == 0) f.pending[pending] = g;
    pending++;
}
#endif
