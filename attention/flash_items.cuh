/* attention/flash_items.cuh - private: the items of work of the flash kernels: which tile of
 * queries, which keys its rows see, where they lie; and the rings between a block's warps. Included
 * inside the sm_90a guard. */
#ifndef FP8_ATTENTION_FLASH_ITEMS_CUH
#define FP8_ATTENTION_FLASH_ITEMS_CUH
#include "attention/flash.h"
#include "core/sm90.cuh"

/* ---- items ----------------------------------------------------------------------------------- */

/* Keys [key_begin, key_end) that row r of an item sees. */
static __device__ __forceinline__ int32_t key_begin(const flash_item &it, int32_t r) {
    return max(0, it.begin + r);
}
static __device__ __forceinline__ int32_t key_end(const flash_item &it, int32_t r) {
    return min(it.s_kv, it.end + r);
}

/* The descales of an item; 1 without codes. factor is never 0, so that -Inf stays -Inf where a
 * descale is 0; NaN stays. */
static __device__ void find_descales(const flash_params &p, flash_item &it) {
    const int32_t index = p.granularity == FP8_DESCALE_TENSOR ? 0
                          : p.granularity == FP8_DESCALE_HEAD
                              ? it.kv_head
                              : it.seq * p.num_kv_heads + it.kv_head;
    it.factor = p.scale * 1.44269504f;
    it.v_descale = 1.0f;
    if (!p.q_descale) return;
    it.factor *= p.q_descale[index] * p.k_descale[index];
    it.v_descale = p.v_descale[index];
    if (it.factor < 1e-30f) it.factor = 1e-30f;
}

/* attention_sequence in 32 bits, which every total here fits: the producer has few registers. */
static __device__ __forceinline__ int32_t find_sequence(const int32_t *starts,
                                                        const int32_t *lengths, int32_t s,
                                                        int32_t total, int32_t longest,
                                                        int32_t *begin) {
    int32_t length = longest;
    *begin = 0;
    if (starts) {
        *begin = max(0, min(starts[s], total));
        if (!lengths) length = max(*begin, min(starts[s + 1], total)) - *begin;
    }
    if (lengths) length = lengths[s];
    if (starts) length = min(length, total - *begin);
    return max(0, min(length, longest));
}

/* rows <= 0 when the run has no such tile. */
template <int ROWS, int KEYS>
static __device__ void find_item(flash_item &it, const flash_params &p, int32_t index) {
    const bool is_short = index < p.short_items;
    const int32_t tiles = p.tiles - (p.short_items > 0), in_bands = index - p.short_items;
    const int32_t band_begin = in_bands / (p.band * tiles) * p.band;
    const int32_t band = min(p.band, p.units - band_begin);
    const int32_t in_band = in_bands - band_begin * tiles;
    const int32_t unit = is_short ? index : band_begin + in_band % band;
    const int32_t tile = is_short ? p.tiles - 1 : tiles - 1 - in_band / band;
    int32_t s_q, diagonal, lo, hi, kv_begin;

    it.head = unit % p.num_heads;
    it.kv_head = it.head / (p.num_heads / p.num_kv_heads);
    it.seq = unit / p.num_heads;
    it.first = tile * ROWS;
    s_q = find_sequence(p.q_starts, p.q_lengths, it.seq, (int32_t)p.total_q, p.max_q, &it.q_begin);
    it.valid = min(s_q - it.first, (int32_t)ROWS);
    it.rows = p.q_starts ? it.valid : min(p.max_q - it.first, (int32_t)ROWS);
    it.q_row = (p.q_packed ? it.q_begin : 0) + it.first;
    it.s_kv = find_sequence(p.kv_starts, p.kv_lengths, it.seq, (int32_t)p.total_kv, p.max_kv,
                            &kv_begin);
    it.kv_row = p.kv_packed ? kv_begin : 0;
    diagonal = p.top_left ? it.first : it.first + it.s_kv - s_q;
    it.begin = diagonal - p.left;
    it.end = diagonal + p.right + 1;
    lo = key_begin(it, 0);
    hi = it.valid > 0 ? key_end(it, it.valid - 1) : 0;
    it.first_tile = lo / KEYS;
    it.num_tiles = hi > lo ? (hi + KEYS - 1) / KEYS - it.first_tile : 0;
    it.slot = -1;
    it.clear_begin = (key_begin(it, ROWS - 1) + KEYS - 1) / KEYS;
    it.clear_end = max(0, key_end(it, 0)) / KEYS;
}

/* The item after a block's item `index`, its own of an odd or an even round: from the counter;
 * without one (BY_INDEX), every other round of the grid in reverse, so that under a causal mask,
 * longest first, all blocks get as much. */
template <bool BY_INDEX>
static __device__ __forceinline__ int32_t item_after(const flash_params &p, int32_t index,
                                                     uint32_t odd) {
    const int32_t blocks = (int32_t)gridDim.x, block = (int32_t)blockIdx.x;
    if (!BY_INDEX || p.next_item) return blocks + atomicAdd(p.next_item, 1);
    return index + 1 + 2 * (odd ? block : blocks - 1 - block);
}

/* The items of one block, one after the other. */
template <bool BY_INDEX>
struct item_walk {
    int32_t index; /* of the next */

    __device__ explicit item_walk(const flash_params &) : index((int32_t)blockIdx.x) {}

    /* The next item, in an odd or an even round of the block's; false: there are no more. With
     * rows <= 0 there is nothing to do for it. */
    template <int ROWS>
    __device__ bool take(const flash_params &p, flash_item &it, uint32_t odd) {
        const int32_t now = index;
        if (now >= p.num_items) return false;
        index = item_after<BY_INDEX>(p, now, odd);
        find_item<ROWS, FLASH_BLOCK_N>(it, p, now);
        return true;
    }
};

/* The items of one block in an order that the host made. */
struct order_walk {
    const uint16_t *item;
    int32_t left;

    __device__ explicit order_walk(const flash_order &o)
        : item(o.item + o.begin[blockIdx.x]),
          left(o.begin[blockIdx.x + 1] - o.begin[blockIdx.x]) {}

    /* As item_walk. */
    template <int ROWS>
    __device__ bool take(const flash_params &p, flash_item &it, uint32_t) {
        if (left-- <= 0) return false;
        find_item<ROWS, FLASH_BLOCK_N>(it, p, *item++);
        return true;
    }
};

/* ---- rings ----------------------------------------------------------------------------------- */

/* A place in a ring of stages, and the parity of its current round. */
struct ring_place {
    int32_t stage;
    uint32_t parity;
};

template <int STAGES>
static __device__ __forceinline__ ring_place next_place(ring_place r) {
    const bool wrap = r.stage + 1 == STAGES;
    return {wrap ? 0 : r.stage + 1, r.parity ^ (wrap ? 1u : 0u)};
}

/* One arrival a warp: each warp's products have finished when its own wait returns. */
static __device__ __forceinline__ void release(uint64_t *empty) {
    __syncwarp();
    if (threadIdx.x % 32 == 0) barrier_arrive(empty);
}

/* One arrival a lane, each of which has read the item by itself: compute-sanitizer's racecheck
 * credits an arrival to the lane that makes it, not to those that it waited for. */
static __device__ __forceinline__ void release_item(uint64_t *q_empty) { barrier_arrive(q_empty); }

/* ---- masks ----------------------------------------------------------------------------------- */

/* S of key = first + column is made -Inf where its row does not see it. `row` is the thread's first
 * row in the item; the test before it is the same for a whole warp. */
template <int N>
static __device__ __forceinline__ void mask_scores(float (&scores)[N], const flash_item &it,
                                                   int32_t row, int32_t first) {
    const int32_t lane = threadIdx.x % 32, warp_row = row - lane / 4;
    if (first + 2 * N <= key_end(it, warp_row) && first >= key_begin(it, warp_row + 15)) return;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int32_t shift = first + 2 * (lane % 4);
        const int32_t lo = key_begin(it, row + 8 * h) - shift;
        const int32_t hi = key_end(it, row + 8 * h) - shift;
#pragma unroll
        for (int j = 0; j < N / 4; j++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                float &x = scores[4 * j + 2 * h + e];
                x = 8 * j + e >= lo && 8 * j + e < hi ? x : -INFINITY;
            }
    }
}
#endif
