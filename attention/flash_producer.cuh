/* attention/flash_producer.cuh - private: the items of flash.cu's grid, the rings between a block's
 * warps, and the producer that fills them. Included once, inside the sm_90a guard. */
#ifndef FP8_ATTENTION_FLASH_PRODUCER_CUH
#define FP8_ATTENTION_FLASH_PRODUCER_CUH
#include "attention/flash_block.cuh"
#include "attention/flash_sm90.cuh"

/* ---- items ----------------------------------------------------------------------------------- */

static __device__ int32_t clamp(int32_t x, int32_t low, int32_t high) {
    return max(low, min(x, high));
}

/* Keys [key_begin, key_end) that row r of an item sees. */
static __device__ int32_t key_begin(const flash_params &p, const flash_item &it, int32_t r) {
    return max(0, it.diagonal + r - p.window);
}
static __device__ int32_t key_end(const flash_item &it, int32_t r) {
    return clamp(it.diagonal + r, 0, it.s_kv);
}

/* rows <= 0 when the sequence has no such tile. */
static __device__ flash_item find_item(const flash_params &p, int32_t index) {
    const int32_t band_begin = index / (p.band * p.tiles) * p.band;
    const int32_t band = min(p.band, p.units - band_begin);
    const int32_t in_band = index - band_begin * p.tiles;
    const int32_t unit = band_begin + in_band % band;
    const int32_t first = (p.tiles - 1 - in_band / band) * BLOCK_M;
    int64_t begin;
    int32_t s_q, lo, hi;
    flash_item it;

    it.head = unit % p.num_heads;
    it.kv_head = it.head / (p.num_heads / p.num_kv_heads);
    it.seq = unit / p.num_heads;
    s_q = (int32_t)attention_sequence(p.q_starts, p.q_lengths, it.seq, p.total_q, p.max_q, &begin);
    it.q_row = begin + first;
    it.rows = min(s_q - first, (int32_t)BLOCK_M);
    it.s_kv = (int32_t)attention_sequence(p.kv_starts, p.kv_lengths, it.seq, p.total_kv, p.max_kv,
                                          &it.kv_row);
    it.diagonal = p.causal ? first + it.s_kv - s_q + 1 : it.s_kv;
    lo = key_begin(p, it, 0);
    hi = key_end(it, it.rows - 1);
    it.first_tile = lo / BLOCK_N;
    it.num_tiles = hi > lo ? (hi + BLOCK_N - 1) / BLOCK_N - it.first_tile : 0;
    return it;
}

/* ---- rings ----------------------------------------------------------------------------------- */

/* A place in a ring of stages, and the parity of its current round. */
struct ring_place {
    int32_t stage;
    uint32_t parity;
};

template <int STAGES>
static __device__ ring_place next_place(ring_place r) {
    const bool wrap = r.stage + 1 == STAGES;
    return {wrap ? 0 : r.stage + 1, r.parity ^ (wrap ? 1u : 0u)};
}

/* One arrival a warp: each warp's products have finished when its own wait returns. */
static __device__ void release(uint64_t *empty) {
    __syncwarp();
    if (threadIdx.x % 32 == 0) barrier_arrive(empty);
}

/* ---- producer -------------------------------------------------------------------------------- */

/* One thread: for each item Q, then K and V of its tiles from the last to the first. */
template <int D>
static __device__ void produce(const flash_params &p, flash_shared<D> &s) {
    constexpr int ROW_BYTES = flash_shape<D>::ROW_BYTES, BLOCKS = flash_shape<D>::COLUMN_BLOCKS;
    constexpr int STAGES = flash_shape<D>::STAGES;
    ring_place place = {0, 0};
    uint32_t q_parity = 0;

    for (int32_t index = blockIdx.x, next; ; index = next) {
        const bool more = index < p.num_items;
        flash_item it = {};
        next = more ? (int32_t)gridDim.x + atomicAdd(p.next_item, 1) : 0;
        if (more) {
            it = find_item(p, index);
            if (it.rows <= 0) continue;
        }
        barrier_wait(&s.q_empty, q_parity ^ 1);
        s.items[q_parity] = it;
        q_parity ^= 1;
        if (it.num_tiles == 0) {
            barrier_arrive(&s.q_full);
        } else {
            barrier_expect(&s.q_full, sizeof s.q);
            for (int b = 0; b < BLOCKS; b++)
                copy_box_3d(s.q + b * BLOCK_M * ROW_BYTES, &p.q_map, &s.q_full, b * ROW_BYTES,
                            it.head, (int32_t)it.q_row);
        }
        if (!more) return;
        const int32_t v_row = (it.seq * p.num_kv_heads + it.kv_head) * D;
        for (int32_t i = it.num_tiles - 1; i >= 0; i--) {
            const int32_t key = (it.first_tile + i) * BLOCK_N;
            barrier_wait(&s.k_empty[place.stage], place.parity ^ 1);
            barrier_expect(&s.k_full[place.stage], sizeof s.k[0]);
            for (int b = 0; b < BLOCKS; b++)
                copy_box_3d(s.k[place.stage] + b * BLOCK_N * ROW_BYTES, &p.k_map,
                            &s.k_full[place.stage], b * ROW_BYTES, it.kv_head,
                            (int32_t)it.kv_row + key);
            barrier_wait(&s.v_empty[place.stage], place.parity ^ 1);
            barrier_expect(&s.v_full[place.stage], sizeof s.v[0]);
            copy_box_2d(s.v[place.stage], &p.v_map, &s.v_full[place.stage], key, v_row);
            place = next_place<STAGES>(place);
        }
    }
}

#endif
