/* attention/flash_wide_parts.cuh - private: what a block of flash_wide.cu works on, and how two
 * of them add up an item that is cut between them. Included once, inside the sm_90a guard.
 *
 * Items of the same length leave multiprocessors idle in their last wave: 4608 queries of 24 heads
 * are 576 tiles of 192 on 132 of them, 4.36 waves. So the first items, between one and two a block,
 * are laid end to end and cut into stretches of the same length, one a block: none is shorter than
 * an item, so it has one cut at most. What is left, whole waves, the blocks take one by one. */
#ifndef FP8_ATTENTION_FLASH_WIDE_PARTS_CUH
#define FP8_ATTENTION_FLASH_WIDE_PARTS_CUH
#include "attention/flash_items.cuh"

/* ---- which items ----------------------------------------------------------------------------- */

/* Where the stretch of a block begins, in tiles of keys. */
static __device__ __forceinline__ int32_t stretch_begin(const flash_params &p, int32_t block) {
    return block * p.stretch + min(block, p.longer);
}

/* Of an item, the tiles from `from` to before `to` of `all`, counted from its last, scaled to what
 * it has. */
static __device__ __forceinline__ void cut_item(flash_item &it, int32_t from, int32_t to,
                                                int32_t all) {
    const int32_t n = it.num_tiles;
    const int32_t begin = from * n / all, count = to * n / all - begin;
    it.first_tile += n - begin - count;
    it.num_tiles = count;
    if (count < n) it.slot = (int32_t)blockIdx.x - (from > 0);
    if (count == 0 && (n > 0 || from > 0)) it.rows = 0; /* it is whole in another block */
}

/* Items of one block: those of its stretch, then whole ones. LATER: codes may come first. */
template <bool LATER>
struct wide_walk {
    const flash_later &later;
    int32_t at; /* in the stretch; behind it ~ the next whole item */

    __device__ __forceinline__ wide_walk(const flash_params &p, const flash_later &l)
        : later(l), at(p.split > 0 ? stretch_begin(p, (int32_t)blockIdx.x)
                                   : ~(int32_t)blockIdx.x) {}

    /* As item_walk. */
    template <int ROWS>
    __device__ __forceinline__ bool take(const flash_params &p, flash_item &it, uint32_t) {
        int32_t index = ~at, from = 0, to = 1, all = 1;
        bool last = true; /* of the stretch, or behind it */
        if (index >= p.num_items) return false;
        if (at >= 0) {
            const int32_t shorts = p.short_items * p.short_tiles;
            const int32_t left = stretch_begin(p, (int32_t)blockIdx.x + 1) - at;
            const bool is_short = at < shorts;
            all = is_short ? p.short_tiles : p.key_tiles;
            from = at - (is_short ? 0 : shorts);
            index = from / all;
            from -= index * all;
            index += is_short ? 0 : p.short_items;
            last = left <= all - from;
            to = last ? from + left : all;
            at += to - from;
        }
        if (last) at = ~((p.split > 0 ? p.split : (int32_t)gridDim.x) + atomicAdd(p.next_item, 1));
        find_item<ROWS, BLOCK_N>(it, p, index);
        cut_item(it, from, to, all);
        if (LATER && later.groups > 0) wait_for_group(later, it);
        return true;
    }
};

/* ---- two parts of an item -------------------------------------------------------------------- */

enum { PART_READY = 4 }; /* in a counter of arrivals, which counts to 2 */

/* O and the sums of another part, to be multiplied by `mine` and `other`, the same bytes whichever
 * of the two is here. */
template <int D>
static __device__ __forceinline__ void add_part(float (&out)[D / 2], wide_rows &rows,
                                                const float4 *part) {
    constexpr int THREADS = wide_shape<D>::CONSUMERS * WARPGROUP;
    const float4 x = __ldcg(part + D / 8 * THREADS);
    const float offsets[2] = {x.x, x.y}, sums[2] = {x.z, x.w};
    float mine[2], other[2];

#pragma unroll
    for (int h = 0; h < 2; h++) {
        const float least = fminf(rows.offset[h], offsets[h]); /* Inf: has seen no key */
        mine[h] = rows.offset[h] == least ? 1.0f : exp2_fast(least - rows.offset[h]);
        other[h] = offsets[h] == least ? 1.0f : exp2_fast(least - offsets[h]);
        rows.sum[h] = __fadd_rn(__fmul_rn(rows.sum[h], mine[h]), __fmul_rn(sums[h], other[h]));
        rows.offset[h] = least;
    }
    shrink(out, mine);
    pin(out);
#pragma unroll
    for (int i = 0; i < D / 8; i++) {
        if (i % 4 == 0) __syncwarp(); /* or ptxas loads more at once than there are registers for */
        const float4 y = __ldcg(part + i * THREADS);
        const float from[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
        for (int k = 0; k < 4; k++)
            out[4 * i + k] = __fadd_rn(out[4 * i + k], __fmul_rn(from[k], other[k / 2]));
    }
}

/* Of an item in two parts: false for the warp that comes first, which leaves its part; the other
 * one adds it to its own. Neither waits for a block that may not run: who comes first is there. */
template <int D>
static __device__ __forceinline__ bool join_parts(float (&out)[D / 2], wide_rows &rows,
                                                  const flash_params &p, int32_t slot) {
    constexpr int THREADS = wide_shape<D>::CONSUMERS * WARPGROUP;
    int32_t *arrived = p.arrived + slot * (THREADS / 32) + thread_index() / 32;
    float4 *part = reinterpret_cast<float4 *>(p.pieces) +
                   (int64_t)slot * ((D / 8 + 1) * THREADS) + thread_index();
    int32_t before = 0;

    if (threadIdx.x % 32 == 0) before = atomicAdd(arrived, 1);
    if (__any_sync(0xffffffffu, before > 0)) {
        while (!__all_sync(0xffffffffu, load_acquire(arrived) & PART_READY)) {}
        add_part<D>(out, rows, part);
        return true;
    }
#pragma unroll
    for (int i = 0; i < D / 8; i++)
        part[i * THREADS] =
            make_float4(out[4 * i], out[4 * i + 1], out[4 * i + 2], out[4 * i + 3]);
    part[D / 8 * THREADS] =
        make_float4(rows.offset[0], rows.offset[1], rows.sum[0], rows.sum[1]);
    __threadfence();
    __syncwarp();
    if (threadIdx.x % 32 == 0) atomicAdd(arrived, (int32_t)PART_READY);
    return false;
}
#endif
