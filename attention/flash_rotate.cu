/* attention/flash_rotate.cu - Q and K of the flash backend rotated by a Hadamard matrix on their
 * way to E4M3 codes: an outlier in one column spreads over all of its block, and S = Q K^T stays.
 *
 * Computes   r[c] = sum_i (-1)^popcount(i & c) x[i] / sqrt(B) in each block of B columns;
 *            codes e4m3(r / descale), their columns in an order of their own, the same in Q and K;
 *            amax of the finite |r| of each group of heads that shares a descale
 * Shapes     as rows of flash_prologue.cu; B 32, 64 or 128, the largest that divides d_qk
 * Bound      memory, as there: 3 bytes an element, 2 for the amax
 * Tiling     a warp takes 16 rows by B columns. H_B is H_(B/16) x H_16: the H_16 part is a product
 *            of the tensor cores with a matrix of signs, whose sums come out as F32 with the same
 *            place of each block of 16 in the same thread, so that the rest is additions there.
 *            Loads are 16 bytes: which bit of a column's number plays which part is free, as
 *            a permutation of these bits on the way in is one of the columns on the way out.
 *            A tile is FLASH_TILE rows; blocks stay and take equal runs of tiles: once the products
 *            have taken a tile in, the next one is asked for, and comes while the sums of this one
 *            are added and stored. Codes with scales of the data at hand are made from the last
 *            tile of a run to its first: what was read last for the amax is still in L2
 * Numerics   BF16 and F16 by +-1 are exact, sums F32, one rounding to E4M3; NaN and Inf spoil their
 *            block of the row
 * Registers  at B 128: sums 64, loads under way 32. No spills (ptxas 13.0, sm_90a)
 */
#include "attention/flash.h"
#include "attention/flash_launch.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define FLASH_SM90 1
#include "attention/flash_tile.cuh"
#include "attention/warp_product.cuh"
#else
#define FLASH_SM90 0
#endif

enum {
    ROWS = 16,                           /* of a warp: the M of the product */
    THREADS = FLASH_TILE / ROWS * 32,
    LOAD = 8,                            /* elements of 16 bytes */
    QUAD = 4 * LOAD,                     /* columns that four lanes load at once */
    BLOCKS_PER_SM = 2
};

#if FLASH_SM90

/* Signs H[k][n] and H[k + 1][n] of H_16, k even, as +-1. */
template <bool F16>
static __device__ __forceinline__ uint32_t signs(int32_t k, int32_t n) {
    const uint32_t one = F16 ? 0x3c00u : 0x3f80u;
    const uint32_t low = __popc(k & n) % 2, high = __popc((k + 1) & n) % 2;
    return (one | low << 15) | (one | high << 15) << 16;
}

/* The products with H_16: sum[k][n][2 h + e] of a lane's rows g = lane / 4 and g + 8, unscaled; k a
 * block of 16 columns. NOTE: of the 8 elements of a load, bit 0 of their number is bit 0 of the
 * product's k, bit 1 its bit 3, bit 2 tells two products apart; the lane in its quad is bits 1 and
 * 2. */
template <int B, bool F16>
static __device__ __forceinline__ void take_products(float (&sum)[B / 16][2][4],
                                                     const uint4 (&x)[B / QUAD][2],
                                                     const uint32_t (&h)[2][2]) {
#pragma unroll
    for (int j = 0; j < B / QUAD; j++)
#pragma unroll
        for (int n = 0; n < 2; n++) {
            float(&even)[4] = sum[2 * j][n], (&odd)[4] = sum[2 * j + 1][n];
#pragma unroll
            for (int i = 0; i < 4; i++) even[i] = odd[i] = 0.0f;
            warp_product<!F16>(even, x[j][0].x, x[j][1].x, x[j][0].y, x[j][1].y, h[n][0], h[n][1]);
            warp_product<!F16>(odd, x[j][0].z, x[j][1].z, x[j][0].w, x[j][1].w, h[n][0], h[n][1]);
        }
}

/* The rest, H_(B/16) of the blocks of 16: k becomes a frequency. */
template <int B>
static __device__ __forceinline__ void add_blocks(float (&sum)[B / 16][2][4]) {
#pragma unroll
    for (int step = 1; step < B / 16; step *= 2)
#pragma unroll
        for (int k = 0; k < B / 16; k++) {
            if (k & step) continue;
#pragma unroll
            for (int i = 0; i < 8; i++) {
                float &a = sum[k][i / 4][i % 4], &b = sum[k + step][i / 4][i % 4];
                const float both = a + b;
                b = a - b;
                a = both;
            }
        }
}

/* A lane's part of a tile: its two rows' loads, 0 beyond the sequence. */
template <int B>
static __device__ __forceinline__ void load_tile(uint4 (&x)[B / QUAD][2], const flash_operand &in,
                                                 const tile &t, int32_t row) {
    const uint16_t *from = static_cast<const uint16_t *>(in.from) + element(in, t, row) +
                           threadIdx.x % 4 * LOAD;
#pragma unroll
    for (int j = 0; j < B / QUAD; j++)
#pragma unroll
        for (int h = 0; h < 2; h++)
            x[j][h] = row + 8 * h < t.s
                          ? __ldg(reinterpret_cast<const uint4 *>(from + 8 * h * in.at.token +
                                                                  j * QUAD))
                          : make_uint4(0, 0, 0, 0);
}

/* Where a lane's codes go: its first row's, and how many of its two rows there are. */
struct target {
    uint8_t *to;
    int32_t rows;
    float scale;
};

/* Bytes that a lane stores at once. */
template <int B> static constexpr int STORE = B / 4 < 16 ? B / 4 : 16;

template <int B>
static __device__ __forceinline__ target target_of(const flash_prologue &p, const flash_operand &x,
                                                   const tile &t, int32_t row) {
    uint8_t *to = x.codes + (((int64_t)t.seq * x.heads + t.head) * x.pitch + row) * x.d +
                  t.column + threadIdx.x % 4 * STORE<B>;
    return {to, (row < t.s) + (row + 8 < t.s), scale_of(p, x, t)};
}

/* Row h, block of 16 columns k, in codes: four of them. */
template <int B>
static __device__ __forceinline__ uint32_t codes_of(const float (&sum)[B / 16][2][4], int k, int h,
                                                    float scale) {
    const float(&a)[2][4] = sum[k];
    return pack_e4m3(a[0][2 * h] * scale, a[0][2 * h + 1] * scale, a[1][2 * h] * scale,
                     a[1][2 * h + 1] * scale);
}

/* Both rows in codes. Four lanes store what follows each other, whole sectors; the order of columns
 * is free. */
template <int B>
static __device__ __forceinline__ void store_tile(const float (&sum)[B / 16][2][4],
                                                  const target &at, int32_t d, float norm) {
    const float scale = at.scale * norm;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        if (h >= at.rows) continue;
        uint8_t *to = at.to + 8 * h * d;
        if constexpr (STORE<B> == 8) {
            *reinterpret_cast<uint2 *>(to) =
                make_uint2(codes_of<B>(sum, 0, h, scale), codes_of<B>(sum, 1, h, scale));
        } else {
#pragma unroll
            for (int k = 0; k < B / 16; k += 4)
                *reinterpret_cast<uint4 *>(to + 16 * k) = make_uint4(
                    codes_of<B>(sum, k, h, scale), codes_of<B>(sum, k + 1, h, scale),
                    codes_of<B>(sum, k + 2, h, scale), codes_of<B>(sum, k + 3, h, scale));
        }
    }
}

/* Bits of the largest finite |r| among a thread's. */
template <int B>
static __device__ __forceinline__ uint32_t largest_of(const float (&sum)[B / 16][2][4],
                                                      float norm) {
    float top = 0.0f;
#pragma unroll
    for (int i = 0; i < B / 2; i++) /* no NaN is the larger of two */
        top = fmaxf(top, fabsf(sum[i / 8][i / 4 % 2][i % 4]));
    if (top == INFINITY) {
        top = 0.0f;
#pragma unroll
        for (int i = 0; i < B / 2; i++) {
            const float x = fabsf(sum[i / 8][i / 4 % 2][i % 4]);
            top = fmaxf(top, x < INFINITY ? x : 0.0f);
        }
    }
    return __float_as_uint(top * norm);
}

/* A tile of Q or K. */
struct place {
    int32_t index, which;
    tile t;
};

static __device__ __forceinline__ place place_at(const flash_prologue &p, int32_t index) {
    const int32_t which = index >= p.x[0].blocks;
    return {index, which, find_tile(p, p.x[which], index - which * p.x[0].blocks)};
}

/* To the next tile or the one before, mostly of the same head. */
static __device__ __forceinline__ void move_on(place &at, const flash_prologue &p, int32_t step) {
    const flash_operand &x = p.x[at.which];
    const int32_t first = at.t.first + step * FLASH_TILE;
    if (x.d != p.part || first < 0 || first >= x.pitch) {
        at = place_at(p, at.index + step);
        return;
    }
    at.index += step;
    at.t.first = first;
}

static __device__ __forceinline__ int32_t row_of(const place &at) {
    return at.t.first + (int32_t)threadIdx.x / 32 * ROWS + threadIdx.x % 32 / 4;
}

static __device__ __forceinline__ uint32_t *slot_of(const flash_prologue &p, const place &at) {
    const flash_operand &x = p.x[at.which];
    return x.amax + descale_index(p, x, at.t);
}

static __device__ __forceinline__ void join_slot(uint32_t *slot, uint32_t top) {
    top = __reduce_max_sync(0xffffffffu, top);
    if (threadIdx.x % 32 == 0 && top) atomicMax(slot, top);
}

#endif /* FLASH_SM90 */

/* block: THREADS. OBSERVE: the amax alone. */
template <int B, bool F16, bool OBSERVE>
static __global__ void __launch_bounds__(THREADS, BLOCKS_PER_SM)
rotate_kernel(const __grid_constant__ flash_prologue p) {
#if FLASH_SM90
    const float norm = B == 128 ? 0.0883883476f : B == 64 ? 0.125f : 0.176776695f; /* B^-1/2 */
    const int64_t tiles = (int64_t)p.x[0].blocks + p.x[1].blocks;
    const int32_t begin = (int32_t)(tiles * blockIdx.x / gridDim.x);
    const int32_t end = (int32_t)(tiles * (blockIdx.x + 1) / gridDim.x);
    const int32_t step = p.backwards && !OBSERVE ? -1 : 1;
    const int32_t g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    const bool beside = p.beside && (OBSERVE || !p.backwards); /* it started when all before V's
                                                                * launch had ended, and needs no
                                                                * more */
    uint4 loaded[B / QUAD][2];
    float sum[B / 16][2][4];
    uint32_t h[2][2], top = 0, *slot = NULL;

#pragma unroll
    for (int n = 0; n < 2; n++)
#pragma unroll
        for (int k = 0; k < 2; k++) h[n][k] = signs<F16>(8 * k + 2 * t, 8 * n + g);
    dependents_launch();
    if (!beside) dependencies_wait();
    place next = place_at(p, step > 0 ? begin : end - 1);
    load_tile<B>(loaded, p.x[next.which], next.t, row_of(next));
    for (int32_t left = end - begin; left > 0; left--) {
        target to = {};
        const int32_t d = p.x[next.which].d;
        if constexpr (OBSERVE) {
            uint32_t *const here = slot_of(p, next);
            if (here != slot && slot) join_slot(slot, top), top = 0;
            slot = here;
        } else {
            to = target_of<B>(p, p.x[next.which], next.t, row_of(next));
        }
        take_products<B, F16>(sum, loaded, h);
        if (left > 1) {
            move_on(next, p, step);
            load_tile<B>(loaded, p.x[next.which], next.t, row_of(next));
        }
        add_blocks<B>(sum);
        if constexpr (OBSERVE) top = max(top, largest_of<B>(sum, norm));
        else store_tile<B>(sum, to, d, norm);
    }
    if (OBSERVE && slot) join_slot(slot, top);
    if (beside && blockIdx.x == 0) dependencies_wait(); /* the next launch waits for this alone */
#endif
}

/* ---- host launchers -------------------------------------------------------------------------- */

typedef void (*rotate_entry)(const flash_prologue);

template <int B>
static rotate_entry entry_for(int f16, bool observe) {
    if (f16) return observe ? rotate_kernel<B, true, true> : rotate_kernel<B, true, false>;
    return observe ? rotate_kernel<B, false, true> : rotate_kernel<B, false, false>;
}

extern "C" fp8_status attention_flash_rotate(const flash_prologue *p, int observe,
                                             int32_t num_sms, const flash_queue *to) {
    const rotate_entry entry = p->part == 128  ? entry_for<128>(p->f16, observe)
                               : p->part == 64 ? entry_for<64>(p->f16, observe)
                                               : entry_for<32>(p->f16, observe);
    const int64_t tiles = (int64_t)p->x[0].blocks + p->x[1].blocks;
    const int64_t room = (int64_t)num_sms * BLOCKS_PER_SM, blocks = tiles < room ? tiles : room;
    if (tiles == 0) return FP8_OK;
    return flash_launch(observe ? "flash attention, amax of rotated" : "flash attention, rotated",
                        entry, blocks, THREADS, 0, to, *p);
}
