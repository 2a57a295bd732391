/* attention/flash_block.cuh - private: a block of flash.cu: its constants, its shared memory. */
#ifndef FP8_ATTENTION_FLASH_BLOCK_CUH
#define FP8_ATTENTION_FLASH_BLOCK_CUH
#include "attention/flash.h"

/* ---- constants ------------------------------------------------------------------------------- */

enum {
    BLOCK_M = FLASH_BLOCK_M,
    BLOCK_N = FLASH_BLOCK_N,
    WARPGROUP = 128, /* threads */
    CONSUMERS = 2,   /* warpgroups of 64 rows, the M of wgmma */
    WG_ROWS = BLOCK_M / CONSUMERS,
    CONSUMER_WARPS = CONSUMERS * WARPGROUP / 32,
    THREADS = (1 + CONSUMERS) * WARPGROUP,
    /* 65536 registers: 384 threads start with 168; 128 * (40 + 2 * 232) = 64512 */
    PRODUCER_REGISTERS = 40,
    CONSUMER_REGISTERS = 232,
    K_STEP = 32,     /* bytes a product contracts over */
    TURN_BARRIER = 1 /* named barriers 1 and 2; 0 is __syncthreads */
};

#define P_OFFSET 8.0f /* p is at most 2^8 */
#define P_LARGEST 256.0f

template <int D>
struct flash_shape {
    static constexpr int STAGES = D == 256 ? 3 : 4;
    /* width of a swizzled column block */
    static constexpr int ROW_BYTES = D % 128 ? 64 : 128;
    static constexpr int COLUMN_BLOCKS = D / ROW_BYTES;
};

/* Operands are [column blocks][rows][ROW_BYTES], V^T [d][128 keys]; all swizzled by the copy.
 * AS_IS: V comes as it lies, like K, and this block turns it: flash_turn.cuh. */
template <int D, bool AS_IS>
struct flash_shared {
    static constexpr bool BY_INDEX = true; /* items without a counter too */
    static constexpr bool OWN_ITEM = true; /* the producer has registers to describe one in */
    static constexpr int STAGES = AS_IS && D == 256 ? 2 : flash_shape<D>::STAGES;
    alignas(1024) uint8_t q[BLOCK_M * D];
    alignas(1024) uint8_t k[STAGES][BLOCK_N * D];
    alignas(1024) uint8_t v[STAGES][D * BLOCK_N];
    alignas(8) uint64_t q_full, q_empty; /* q_full: item too */
    uint64_t k_full[STAGES], k_empty[STAGES], v_full[STAGES], v_empty[STAGES];
    flash_item items[2]; /* of an item's parity: consumers store item n while n + 1 is described */
    uint64_t v_came, v_turned; /* AS_IS: of as_is */
    int32_t v_keys;            /* of as_is, of the sequence; -1: no more tiles */
    alignas(1024) uint8_t as_is[AS_IS ? D * BLOCK_N : 16];
};

template <int D, bool AS_IS>
static constexpr size_t shared_bytes = sizeof(flash_shared<D, AS_IS>) + 1024; /* to align it */

#endif
