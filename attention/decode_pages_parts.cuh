/* attention/decode_pages_parts.cuh - private: parts of an item where a split is given: kept in the
 * workspace, counted, and added up by the block that comes last, in the order of parts. */
#ifndef FP8_ATTENTION_DECODE_PAGES_PARTS_CUH
#define FP8_ATTENTION_DECODE_PAGES_PARTS_CUH
#include "attention/decode_pages_output.cuh"

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

/* Columns d .. d + 3 of a row of a part. */
template <class T>
static __device__ __forceinline__ void keep_part(const decode_pages_args &p, int32_t slot,
                                                 int32_t r, int32_t d, const row_sums &x) {
    *reinterpret_cast<float4 *>(part_sums<T>(p, slot) + r * T::D_V + d) = x.v;
    if (d == 0) *part_stats<T>(p, slot, r) = make_float2(x.most, x.sum);
}

/* A lane's columns of a row of a part, from global memory or from where they were copied to. */
template <int N, bool COPIED>
static __device__ __forceinline__ void load_share(float (&y)[N], const float *from) {
    if constexpr (N == 2) {
        const float2 *at = reinterpret_cast<const float2 *>(from);
        const float2 v = COPIED ? *at : __ldcg(at);
        y[0] = v.x, y[1] = v.y;
    } else {
        const float4 *at = reinterpret_cast<const float4 *>(from);
        const float4 v = COPIED ? *at : __ldcg(at);
        y[0] = v.x, y[1] = v.y, y[2] = v.z, y[3] = v.w;
    }
}

/* A strip of a row of an item: all its parts, by number. All lanes. COPIED: by way of `area`, so
 * that all of up to AT_ONCE parts are on their way at a time; otherwise four. */
template <class T, bool COPIED>
static __device__ __forceinline__ void add_row(const decode_pages_args &p, const segment_info &g,
                                               int32_t r, int32_t strip, float *area) {
    constexpr int SHARE = T::STRIP / 32;
    constexpr int AT_ONCE = COPIED ? T::AREA / T::WARPS / (T::STRIP * 4) : 1 << 30;
    const int32_t lane = threadIdx.x % 32, column = strip * T::STRIP;
    const row_place place = row_at(p, g, r);
    float most = NONE, sum = 0.0f, v[SHARE] = {}, factor;

    for (int32_t j0 = 0; j0 < g.parts; j0 += AT_ONCE) {
        const int32_t n = min(AT_ONCE, g.parts - j0);
        float m = most, again;
        if constexpr (COPIED) {
            __syncwarp(); /* all have read what was there */
#pragma unroll 4
            for (int32_t i = 0; i < n && lane < T::STRIP / 4; i++)
                copy_async(area + i * T::STRIP + 4 * lane,
                           part_sums<T>(p, slot_of(p, g, j0 + i)) + r * T::D_V + column + 4 * lane);
        }
        for (int32_t i = lane; i < n; i += 32)
            m = fmaxf(m, __ldcg(part_stats<T>(p, slot_of(p, g, j0 + i), r)).x);
#pragma unroll
        for (int off = 16; off > 0; off >>= 1) m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, off));
        again = exp2_fast(most - m);
        sum *= again;
#pragma unroll
        for (int k = 0; k < SHARE; k++) v[k] *= again;
        most = m;
        if constexpr (COPIED) {
            copies_wait();
            __syncwarp();
        }
#pragma unroll 4
        for (int32_t i = 0; i < n; i++) {
            const int32_t slot = slot_of(p, g, j0 + i);
            const float2 stats = __ldcg(part_stats<T>(p, slot, r));
            const float weight = exp2_fast(stats.x - most);
            float y[SHARE];
            load_share<SHARE, COPIED>(
                y, (COPIED ? area + i * T::STRIP : part_sums<T>(p, slot) + r * T::D_V + column) +
                       SHARE * lane);
            sum = fmaf(weight, stats.y, sum);
#pragma unroll
            for (int k = 0; k < SHARE; k++) v[k] = fmaf(weight, y[k], v[k]);
        }
    }
    factor = row_factor(p, place, most, sum, g.value_scale, lane == 0 && strip == 0);
    const int64_t to = output_at(p, place, T::D_V) + column + SHARE * lane;
#pragma unroll
    for (int k = 0; k < SHARE; k += 2)
        store_pair(p, to + k, v[k] * factor, v[k + 1] * factor);
}

/* Counts the parts that this block has written; where one is its item's last, the counter is 0
 * again and the item is added up. COPIED: `area` is free. */
template <class T, bool COPIED>
static __device__ __forceinline__ void settle(const decode_pages_args &p, int32_t count,
                                              finish_memory<T> &f, uint8_t *area) {
    constexpr int STRIPS = T::D_V / T::STRIP;
    const int32_t i = threadIdx.x, warp = i / 32;
    float *mine = reinterpret_cast<float *>(area) + warp * (T::AREA / T::WARPS / 4);

    if (i < count) { /* finish ended with a barrier: all that the block wrote is before this */
        int32_t *arrived = p.arrived + f.pending[i].item;
        __threadfence();
        const bool last = atomicAdd(arrived, 1) == f.pending[i].parts - 1;
        if (last) *arrived = 0;
        f.last[i] = last;
        __threadfence();
    }
    consumers_sync<T>();
    for (int32_t k = 0; k < count; k++)
        for (int32_t at = warp; f.last[k] && at < T::ROWS * STRIPS; at += T::WARPS)
            if (is_row(p, f.pending[k], at / STRIPS))
                add_row<T, COPIED>(p, f.pending[k], at / STRIPS, at % STRIPS, mine);
    consumers_sync<T>(); /* pending may be written again */
}
#endif
