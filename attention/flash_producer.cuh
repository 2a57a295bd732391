/* attention/flash_producer.cuh - private: the producer of flash.cu, which fills the rings of its
 * block. Included once, inside the sm_90a guard. */
#ifndef FP8_ATTENTION_FLASH_PRODUCER_CUH
#define FP8_ATTENTION_FLASH_PRODUCER_CUH
#include "attention/flash_block.cuh"
#include "attention/flash_items.cuh"
#include "attention/flash_sm90.cuh"

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
            it = find_item<BLOCK_M, BLOCK_N>(p, index);
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
                copy_box_4d(s.q + b * BLOCK_M * ROW_BYTES, &p.q_map, &s.q_full, b * ROW_BYTES,
                            it.head, it.q_row, p.q_packed ? 0 : it.seq);
        }
        if (!more) return;
        const int32_t v_row = (it.seq * p.num_kv_heads + it.kv_head) * D;
        for (int32_t i = it.num_tiles - 1; i >= 0; i--) {
            const int32_t key = (it.first_tile + i) * BLOCK_N;
            barrier_wait(&s.k_empty[place.stage], place.parity ^ 1);
            barrier_expect(&s.k_full[place.stage], sizeof s.k[0]);
            for (int b = 0; b < BLOCKS; b++)
                copy_box_4d(s.k[place.stage] + b * BLOCK_N * ROW_BYTES, &p.k_map,
                            &s.k_full[place.stage], b * ROW_BYTES, it.kv_head, it.kv_row + key,
                            p.kv_packed ? 0 : it.seq);
            barrier_wait(&s.v_empty[place.stage], place.parity ^ 1);
            barrier_expect(&s.v_full[place.stage], sizeof s.v[0]);
            copy_box_2d(s.v[place.stage], &p.v_map, &s.v_full[place.stage], key, v_row);
            place = next_place<STAGES>(place);
        }
    }
}

#endif
