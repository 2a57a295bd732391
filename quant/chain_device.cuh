/* quant/chain_device.cuh - private: what the parts of the chain's kernel share: rings, shares of
 * the work, counters that blocks wait for. Included once, inside the sm_90a guard. */
#ifndef FP8_QUANT_CHAIN_DEVICE_CUH
#define FP8_QUANT_CHAIN_DEVICE_CUH
#include "quant/chain_cuda.h"
#include "quant/skinny_sm90.cuh"
#include "quant/store_device.cuh"

namespace fp8 {

enum {
    WARPGROUP = 128,
    CHAIN_WARPS = 8, /* that multiply */
    CONSUMERS = CHAIN_WARPS * 32,
    WG_ROWS = 64,   /* the M of wgmma */
    WARP_ROWS = 16,
    K_STEP = 32,    /* of one product */
    MAX_X_STAGES = 16,
    CONSUMER_BARRIER = 1 /* named barriers; 0 is __syncthreads */
};

struct chain_control {
    uint64_t w_full[CHAIN_W_UNITS], w_empty[CHAIN_W_UNITS];
    uint64_t x_full[MAX_X_STAGES], x_empty[MAX_X_STAGES];
    float sums[2][CHAIN_WARPS]; /* of a row's norm */
    uint32_t ticket;
    int32_t w_bytes[CHAIN_W_UNITS], w_end[CHAIN_W_UNITS]; /* the copying thread's: see w_ring */
};

/* What a block does in a step: tiles first, first + step, ..; units [begin, begin + count) of K. */
struct block_share {
    int32_t part, first, step, begin, count;
};

static __device__ __forceinline__ block_share share_of(const chain_stage &s) {
    const int32_t block = blockIdx.x;
    block_share b;
    b.part = block % s.splits;
    b.first = block / s.splits;
    b.step = (int32_t)gridDim.x / s.splits;
    if (b.first >= b.step) b.first = s.tiles; /* of no team */
    b.begin = s.units * b.part / s.splits;
    b.count = s.units * (b.part + 1) / s.splits - b.begin;
    return b;
}

/* ---- counters -------------------------------------------------------------------------------- */

/* Adds to a counter what this thread, and those it has met at a barrier, wrote before. */
SM90 void counter_add(uint32_t *counter) {
    asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
}
SM90 void counter_wait(const uint32_t *counter, uint32_t target) {
    uint32_t now;
    do {
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(now) : "l"(counter) : "memory");
    } while (now < target);
}

/* ---- BF16 pairs that other blocks wrote: past the first-level cache -------------------------- */

SM90 uint32_t load_pair(const uint16_t *at) {
    return __ldcg(reinterpret_cast<const unsigned int *>(at));
}
SM90 float pair_low(uint32_t pair) { return __uint_as_float(pair << 16); }
SM90 float pair_high(uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); }

} /* namespace fp8 */
#endif
