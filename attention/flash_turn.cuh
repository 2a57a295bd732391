/* attention/flash_turn.cuh - private: V of a tile of keys, as it lies, to V^T with its keys in the
 * order of flash_prologue.cu: for short sequences, whose V is read a few times, so that a pass over
 * it would cost a good part of attending. Included once, inside the sm_90a guard. */
#ifndef FP8_ATTENTION_FLASH_TURN_CUH
#define FP8_ATTENTION_FLASH_TURN_CUH
#include "attention/flash_block.cuh"
#include "attention/flash_items.cuh"

enum {
    TURN_WARPS = 3,        /* of the producer's four */
    TURN_BATCH = 4,        /* blocks of 32 keys under way at once */
    TURN_WARPS_BARRIER = 3 /* after flash.cu's */
};

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

/* The thread's number among those that turn, warps 1 to 3 of their warpgroup. Volatile, so that it
 * is found anew where it is used, not kept in a register. */
static __device__ __forceinline__ int32_t turn_thread() {
    int32_t thread;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
    return thread % WARPGROUP - 32;
}

/* Keys from `end` of a tile become 0, whatever lies there: their p of 0 would make NaN of NaN. */
template <int D>
static __device__ __forceinline__ void clear_keys(uint8_t *tile, int32_t end) {
    constexpr int ROW_BYTES = flash_shape<D>::ROW_BYTES, VECTORS = ROW_BYTES / 16;
    for (int b = 0; b < flash_shape<D>::COLUMN_BLOCKS; b++) {
        uint4 *rows = reinterpret_cast<uint4 *>(tile + b * BLOCK_N * ROW_BYTES);
#pragma unroll 1 /* registers are few */
        for (int32_t i = end * VECTORS + turn_thread(); i < BLOCK_N * VECTORS; i += TURN_WARPS * 32)
            rows[i] = make_uint4(0, 0, 0, 0);
    }
    named_sync(TURN_WARPS_BARRIER, TURN_WARPS * 32);
}

/* All keys by 16 columns, 32 keys at a time, TURN_BATCH of these under way at once: a 16-bit
 * element is two columns of a key, so what comes turned has two keys of two columns in a word;
 * bytes 0 and 2 of it are of the even column. 32 keys on is the same swizzle in V, and in V^T two
 * 16-byte chunks on. */
template <int D>
static __device__ __forceinline__ void turn_columns(uint8_t *to, const uint8_t *from,
                                                    int32_t columns) {
    constexpr int ROW_BYTES = flash_shape<D>::ROW_BYTES, UNITS = BLOCK_N / 32;
    const int32_t lane = threadIdx.x % 32;
    const int32_t block = columns / ROW_BYTES, chunk = columns % ROW_BYTES / 16;
    const int32_t swizzle = ROW_BYTES == 128 ? lane % 8 : lane / 2 % 4;
    const int32_t column = columns + lane % 8 * 2 + lane / 8 % 2; /* even, odd, even, odd */
    const uint32_t source = shared_address(from + (block * BLOCK_N + lane) * ROW_BYTES +
                                           (chunk ^ swizzle) * 16);
    const uint32_t target =
        shared_address(to + column * BLOCK_N + (lane / 16 ^ column % 8) * 16);

#pragma unroll
    for (int u = 0; u < UNITS; u += TURN_BATCH) {
        uint32_t x[TURN_BATCH][4];
#pragma unroll
        for (int i = 0; i < TURN_BATCH; i++)
            load_turned(x[i], source + (u + i) * 32 * ROW_BYTES);
#pragma unroll
        for (int i = 0; i < TURN_BATCH; i++)
            store_matrices(target ^ (u + i) * 32, __byte_perm(x[i][0], x[i][1], 0x6420),
                           __byte_perm(x[i][0], x[i][1], 0x7531),
                           __byte_perm(x[i][2], x[i][3], 0x6420),
                           __byte_perm(x[i][2], x[i][3], 0x7531));
    }
}

/* What lies there, read by the lane that arrives in release(): so the read comes before the arrival
 * in program order, for racecheck too, which follows single threads. */
static __device__ __forceinline__ int32_t keys_of_warp(const int32_t &keys) {
    int32_t mine = 0;
    if (threadIdx.x % 32 == 0) mine = keys;
    return __shfl_sync(0xffffffffu, mine, 0);
}

/* TURN_WARPS warps: every tile that comes, until there are no more. */
template <int D, class SHARED>
static __device__ void turn_tiles(SHARED &s) {
    ring_place place = {0, 0};

    for (uint32_t parity = 0; ; parity ^= 1) {
        barrier_wait(&s.v_came, parity);
        const int32_t end = keys_of_warp(s.v_keys);
        if (end < 0) return;
        barrier_wait(&s.v_empty[place.stage], place.parity ^ 1);
        if (end < BLOCK_N) clear_keys<D>(s.as_is, end);
#pragma unroll 1 /* registers are few */
        for (int32_t i = turn_thread() / 32; i < D / 16; i += TURN_WARPS)
            turn_columns<D>(s.v[place.stage], s.as_is, 16 * i);
        proxy_fence(); /* products read what was stored */
        release(&s.v_turned);
        release(&s.v_full[place.stage]);
        place = next_place<SHARED::STAGES>(place);
    }
}
#endif
