/* attention/flash16_block.cuh - private: a block of flash16.cu and flash16_any.cu: constants,
 * shapes, shared memory. */
#ifndef FP8_ATTENTION_FLASH16_BLOCK_CUH
#define FP8_ATTENTION_FLASH16_BLOCK_CUH
#include "attention/flash.h"

/* ---- constants ------------------------------------------------------------------------------- */

enum {
    WARPGROUP = 128,      /* threads */
    WG_ROWS = 64,         /* of a warpgroup: the M of wgmma */
    K_STEP = 16,          /* elements a product contracts over */
    COLUMN_BLOCK = 64,    /* elements of a swizzled row */
    TURN_BARRIER = 1      /* named barriers from 1 on, one a consumer; 0 is __syncthreads */
};

/* Head sizes D_QK and D_V; ANY: the run's may be smaller, and scores may have terms; EARLY: a bias
 * comes a tile early. */
template <int QK, int V, bool IS_ANY, bool IS_EARLY = false>
struct flash16_shape {
    static constexpr bool ANY = IS_ANY, EARLY = IS_EARLY;
    static constexpr int D_QK = QK, D_V = V;
    static constexpr int ROWS = ANY ? 128 : FLASH16_ROWS(V);
    static constexpr int KEYS = ANY ? FLASH16_ANY_KEYS(V, EARLY) : FLASH16_KEYS(V);
    static constexpr int CONSUMERS = ROWS / WG_ROWS; /* warpgroups */
    static constexpr int CONSUMER_WARPS = CONSUMERS * WARPGROUP / 32;
    static constexpr int THREADS = (1 + CONSUMERS) * WARPGROUP;
    static constexpr int STAGES = QK == 64 ? 4 : 2;
    /* 65536 in all: 128 * (32 + 3 * 160) = 65536, 128 * (40 + 2 * 232) = 64512 and 128 * (56 + 2 *
     * 224) likewise */
    static constexpr bool THREE = CONSUMERS == 3, WIDE = V == 256 && !ANY;
    static constexpr int PRODUCER_REGISTERS = THREE ? 32 : WIDE ? 56 : 40;
    static constexpr int CONSUMER_REGISTERS = THREE ? 160 : WIDE ? 224 : 232;
};

/* Operands are [column blocks][tokens][COLUMN_BLOCK], swizzled by the copy. */
template <class SHAPE>
struct flash16_shared {
    static constexpr int STAGES = SHAPE::STAGES, KEYS = SHAPE::KEYS;
    alignas(1024) uint16_t q[SHAPE::ROWS * SHAPE::D_QK];
    alignas(1024) uint16_t k[STAGES][KEYS * SHAPE::D_QK];
    alignas(1024) uint16_t v[STAGES][KEYS * SHAPE::D_V];
    alignas(8) uint64_t q_full, q_empty; /* q_full: item too */
    uint64_t k_full[STAGES], k_empty[STAGES], v_full[STAGES], v_empty[STAGES];
    uint64_t tail;       /* V of a tile that is not all of the sequence has come */
    flash_item items[2]; /* of an item's parity: consumers store item n while n + 1 is described */
};

template <class SHAPE>
static constexpr size_t shared_bytes = sizeof(flash16_shared<SHAPE>) + 1024; /* to align it */

#endif
