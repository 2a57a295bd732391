/* attention/flash_turn.cuh - private: V of a tile of keys, as it lies, to V^T with its keys in the
 * order of flash_prologue.cu: for short sequences, whose V is read a few times, so that a pass over
 * it would cost a good part of attending. Included once, inside the sm_90a guard. */
#ifndef FP8_ATTENTION_FLASH_TURN_CUH
#define FP8_ATTENTION_FLASH_TURN_CUH
#include "attention/flash_block.cuh"
#include "attention/flash_items.cuh"

enum { TURN_WARPS = 3 }; /* of the producer's four */

/* Four 8 x 8 matrices of 16 bits, transposed: lane l gives the address of row l % 8 of matrix
 * l / 8, and gets of each matrix the elements (2 (l % 4), l / 4) and (2 (l % 4) + 1, l / 4). */
static __device__ __forceinline__ void load_turned(uint32_t (&x)[4], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(address)
                 : "memory");
}

/* The way back, not transposed: lane l's words are columns 2 (l % 4) and the next of row l / 4. */
static __device__ __forceinline__ void store_matrices(uint32_t address, uint32_t a, uint32_t b,
                                                      uint32_t c, uint32_t d) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address),
                 "r"(a), "r"(b), "r"(c), "r"(d)
                 : "memory");
}

/* 32 keys by 16 columns: a 16-bit element is two columns of a key, so what comes turned has two
 * keys of two columns in a word; bytes 0 and 2 of it are of the even column. Keys from `end` become
 * 0, whatever lies there: their p of 0 would make NaN of NaN. */
template <int D>
static __device__ __forceinline__ void turn_unit(uint8_t *to, const uint8_t *from, int32_t keys,
                                                 int32_t columns, int32_t end) {
    constexpr int ROW_BYTES = flash_shape<D>::ROW_BYTES;
    const int32_t lane = threadIdx.x % 32, key = keys + lane;
    const int32_t block = columns / ROW_BYTES, chunk = columns % ROW_BYTES / 16;
    const int32_t swizzle = ROW_BYTES == 128 ? key % 8 : key / 2 % 4;
    const int32_t column = columns + lane % 8 * 2 + lane / 8 % 2; /* even, odd, even, odd */
    const int32_t half = keys / 16 + lane / 16;
    uint32_t x[4];

    load_turned(x, shared_address(from + (block * BLOCK_N + key) * ROW_BYTES +
                                  (chunk ^ swizzle) * 16));
    if (keys + 32 > end) {
#pragma unroll
        for (int m = 0; m < 4; m++) {
            const int32_t first = keys + 8 * m + lane % 4 * 2;
            x[m] &= (first < end ? 0xffffu : 0) | (first + 1 < end ? 0xffff0000u : 0);
        }
    }
    store_matrices(shared_address(to + column * BLOCK_N + (half ^ column % 8) * 16),
                   __byte_perm(x[0], x[1], 0x6420), __byte_perm(x[0], x[1], 0x7531),
                   __byte_perm(x[2], x[3], 0x6420), __byte_perm(x[2], x[3], 0x7531));
}

/* Warps 0 .. TURN_WARPS - 1: every tile that comes, until there are no more. */
template <int D, class SHARED>
static __device__ void turn_tiles(SHARED &s, int32_t warp) {
    constexpr int UNITS = BLOCK_N / 32 * (D / 16);
    ring_place place = {0, 0};

    for (uint32_t parity = 0; ; parity ^= 1) {
        barrier_wait(&s.v_came, parity);
        const int32_t end = s.v_keys;
        if (end < 0) return;
        barrier_wait(&s.v_empty[place.stage], place.parity ^ 1);
        for (int32_t i = warp; i < UNITS; i += TURN_WARPS)
            turn_unit<D>(s.v[place.stage], s.as_is, i % (BLOCK_N / 32) * 32,
                         i / (BLOCK_N / 32) * 16, end);
        proxy_fence(); /* products read what was stored */
        release(&s.v_turned);
        release(&s.v_full[place.stage]);
        place = next_place<SHARED::STAGES>(place);
    }
}
#endif
