/* attention/decode_pages_finish.cuh - private: from the sums of a block's warps to outputs, or to
 * a part of an item. */
#ifndef FP8_ATTENTION_DECODE_PAGES_FINISH_CUH
#define FP8_ATTENTION_DECODE_PAGES_FINISH_CUH
#include "attention/decode_pages_exchange.cuh"
#include "attention/decode_pages_parts.cuh"

/* ---- the warps of a block -------------------------------------------------------------------- */

/* A warp's maxima and sums, of all its keys. */
template <class T>
static __device__ __forceinline__ void leave_stats(const sums<T> &a, finish_memory<T> &f) {
    const int32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int n = 0; n < T::NT; n++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
            float v = a.sum[n][e];
#pragma unroll
            for (int off = 4; off < 32; off <<= 1) v += __shfl_xor_sync(0xffffffffu, v, off);
            if (lane < 4) f.stats[warp][8 * n + 2 * lane + e] = make_float2(a.most[n][e], v);
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
static __device__ __forceinline__ row_sums add_warps(const finish_memory<T> &f, int32_t row,
                                                     int32_t d) {
    row_sums x = {NONE, 0.0f, make_float4(0.0f, 0.0f, 0.0f, 0.0f)};
#pragma unroll
    for (int w = 0; w < T::WARPS; w++) x.most = fmaxf(x.most, f.stats[w][row].x);
#pragma unroll
    for (int w = 0; w < T::WARPS; w++) {
        const float2 stats = f.stats[w][row];
        const float weight = exp2_fast(stats.x - x.most);
        x.sum = fmaf(weight, stats.y, x.sum);
        add_weighted(x.v, weight, *reinterpret_cast<const float4 *>(&f.slab[w][row][d]));
    }
    return x;
}

/* ---- the end of a segment -------------------------------------------------------------------- */

/* Columns d .. d + 3 of row r: O, or the part's. */
template <class T>
static __device__ __forceinline__ void put_columns(const decode_pages_args &p,
                                                   const segment_info &g, int32_t r, int32_t d,
                                                   const row_sums &x) {
    if (!is_row(p, g, r)) return;
    if (g.parts == 1) put_output<T>(p, g, r, d, x);
    else if (p.unit_tiles) keep_part<T>(p, g.slot, r, d, x);
    else send<T>(p, g.slot, r, d, x);
}

/* O of the segment's rows, or its part; `pending` counts parts. Ends with a barrier. */
template <class T>
static __device__ __forceinline__ void finish(const sums<T> &a, const decode_pages_args &p,
                                              const segment_info &g, finish_memory<T> &f,
                                              int32_t &pending) {
    leave_stats<T>(a, f);
#pragma unroll 1
    for (int round = 0; round < T::D_V / T::ROUND_D; round++) {
        fill_slab<T>(a, f, round);
        consumers_sync<T>();
#pragma unroll
        for (int e = threadIdx.x * 4; e < T::ROWS * T::ROUND_D; e += 4 * T::CONSUMERS) {
            const int32_t r = e / T::ROUND_D, d = e % T::ROUND_D;
            put_columns<T>(p, g, r, round * T::ROUND_D + d, add_warps<T>(f, r, d));
        }
        if (g.parts > 1 && round == 0 && threadIdx.x == 0) f.pending[pending] = g;
        consumers_sync<T>();
    }
    pending += g.parts > 1;
}
#endif
