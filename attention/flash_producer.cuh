/* attention/flash_producer.cuh - private: the producer of flash.cu and flash_wide.cu, which fills
 * the rings of its block. Included inside the sm_90a guard. */
#ifndef FP8_ATTENTION_FLASH_PRODUCER_CUH
#define FP8_ATTENTION_FLASH_PRODUCER_CUH
#include "attention/flash_block.cuh"
#include "attention/flash_items.cuh"
#include "attention/flash_sm90.cuh"

/* ---- producer -------------------------------------------------------------------------------- */

/* Where the producer describes an item before the block's place for it is free: in a kernel whose
 * producer has few registers, in shared memory. */
template <class SHARED>
static __device__ __forceinline__ flash_item &coming_item(SHARED &s, flash_item &own) {
    if constexpr (SHARED::OWN_ITEM) return own;
    else return s.coming;
}

/* One thread: for each item of ROWS queries that `walk` gives, Q, then K and V of its tiles from
 * the last to the first. D: of Q and K as they are copied. AS_IS: V is copied like K, for
 * turn_tiles.
 * ANY: d_v of V is given by the run. */
template <int D, int ROWS, bool AS_IS, bool ANY = false, class SHARED, class WALK>
static __device__ void produce(const flash_params &p, SHARED &s, WALK walk) {
    constexpr int ROW_BYTES = flash_shape<D>::ROW_BYTES, BLOCKS = flash_shape<D>::COLUMN_BLOCKS;
    constexpr int STAGES = SHARED::STAGES;
    ring_place place = {0, 0};
    uint32_t q_parity = 0, v_parity = 0;

    dependents_launch();
    for (;;) {
        flash_item own;
        flash_item &it = coming_item(s, own);
        const bool more = walk.template take<ROWS>(p, it, q_parity);
        if (!more) it.rows = it.num_tiles = 0;
        if (more && it.rows <= 0) continue;
        barrier_wait(&s.q_empty, q_parity ^ 1);
        if (ANY && more) find_descales(p, it); /* there are no registers to do it later */
        if (it.num_tiles > 0)
            for (int b = 0; b < BLOCKS; b++)
                copy_box_4d(s.q + b * ROWS * ROW_BYTES, &p.q_map, &s.q_full, b * ROW_BYTES,
                            it.head, it.q_row, p.q_packed ? 0 : it.seq);
        if (!ANY && more) find_descales(p, it); /* Q is on its way meanwhile */
        s.items[q_parity] = it;
        q_parity ^= 1;
        if (it.num_tiles == 0) barrier_arrive(&s.q_full);
        else barrier_expect(&s.q_full, sizeof s.q);
        if (!more) break;
        const int32_t v_row = (it.seq * p.num_kv_heads + it.kv_head) * (ANY ? p.d_v : D);
#pragma unroll 1 /* unrolled it needs more registers than there are */
        for (int32_t i = it.num_tiles - 1; i >= 0; i--) {
            const int32_t key = (it.first_tile + i) * BLOCK_N;
            barrier_wait(&s.k_empty[place.stage], place.parity ^ 1);
            barrier_expect(&s.k_full[place.stage], sizeof s.k[0]);
            for (int b = 0; b < BLOCKS; b++)
                copy_box_4d(s.k[place.stage] + b * BLOCK_N * ROW_BYTES, &p.k_map,
                            &s.k_full[place.stage], b * ROW_BYTES, it.kv_head, it.kv_row + key,
                            p.kv_packed ? 0 : it.seq);
            if constexpr (AS_IS) {
                barrier_wait(&s.v_turned, v_parity ^ 1);
                s.v_keys = it.s_kv - key;
                barrier_expect(&s.v_came, sizeof s.as_is);
                for (int b = 0; b < BLOCKS; b++)
                    copy_box_4d(s.as_is + b * BLOCK_N * ROW_BYTES, &p.v_map, &s.v_came,
                                b * ROW_BYTES, it.kv_head, it.kv_row + key,
                                p.kv_packed ? 0 : it.seq);
                v_parity ^= 1;
            } else {
                barrier_wait(&s.v_empty[place.stage], place.parity ^ 1);
                barrier_expect(&s.v_full[place.stage], sizeof s.v[0]);
                copy_box_2d(s.v[place.stage], &p.v_map, &s.v_full[place.stage], key, v_row);
            }
            place = next_place<STAGES>(place);
        }
    }
    if constexpr (AS_IS) {
        barrier_wait(&s.v_turned, v_parity ^ 1);
        s.v_keys = -1;
        barrier_arrive(&s.v_came);
    }
}

#endif
