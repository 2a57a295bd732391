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
 *            Block of FLASH_TILE rows
 * Numerics   BF16 and F16 by +-1 are exact, sums F32, one rounding to E4M3; NaN and Inf spoil their
 *            block of the row
 * Registers  at B 128: sums 64, 16 loads of them under way 32. No spills (ptxas 13.0, sm_90a)
 */
#include "attention/flash.h"
#include "attention/flash_launch.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define FLASH_SM90 1
#include "attention/flash_tile.cuh"
#include "core/sm90.cuh"
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

/* d[16, 8] += A[16, 16] B[16, 8]: mma's registers. */
template <bool F16>
static __device__ __forceinline__ void warp_product(float (&d)[4], uint32_t a0, uint32_t a1,
                                                    uint32_t a2, uint32_t a3, uint32_t b0,
                                                    uint32_t b1) {
    if constexpr (F16)
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, "
                     "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                     : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
    else
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, "
                     "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                     : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

/* Signs H[k][n] and H[k + 1][n] of H_16, k even, as +-1. */
template <bool F16>
static __device__ __forceinline__ uint32_t signs(int32_t k, int32_t n) {
    const uint32_t one = F16 ? 0x3c00u : 0x3f80u;
    const uint32_t low = __popc(k & n) % 2, high = __popc((k + 1) & n) % 2;
    return (one | low << 15) | (one | high << 15) << 16;
}

/* sum[k][n][2 h + e]: of a lane's rows g = lane / 4 and g + 8, unscaled; k a block of 16 columns
 * before the last stages, a frequency after them. NOTE: of the 8 elements of a load, bit 0 of their
 * number is bit 0 of the product's k, bit 1 its bit 3, bit 2 tells two products apart; the lane in
 * its quad is bits 1 and 2. */
template <int B, bool F16>
static __device__ __forceinline__ void rotate_rows(float (&sum)[B / 16][2][4],
                                                   const uint4 (&x)[B / QUAD][2]) {
    const int32_t g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    uint32_t h[2][2];

#pragma unroll
    for (int n = 0; n < 2; n++)
#pragma unroll
        for (int k = 0; k < 2; k++) h[n][k] = signs<F16>(8 * k + 2 * t, 8 * n + g);
#pragma unroll
    for (int j = 0; j < B / QUAD; j++)
#pragma unroll
        for (int n = 0; n < 2; n++) {
            float(&even)[4] = sum[2 * j][n], (&odd)[4] = sum[2 * j + 1][n];
#pragma unroll
            for (int i = 0; i < 4; i++) even[i] = odd[i] = 0.0f;
            warp_product<F16>(even, x[j][0].x, x[j][1].x, x[j][0].y, x[j][1].y, h[n][0], h[n][1]);
            warp_product<F16>(odd, x[j][0].z, x[j][1].z, x[j][0].w, x[j][1].w, h[n][0], h[n][1]);
        }
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

/* Both rows in codes, B / 4 bytes of each next to one another. */
template <int B>
static __device__ __forceinline__ void store_tile(const float (&sum)[B / 16][2][4],
                                                  const flash_operand &x, const tile &t,
                                                  int32_t row, float scale) {
    uint8_t *to = x.codes + (((int64_t)t.seq * x.heads + t.head) * x.pitch + row) * x.d +
                  t.column + threadIdx.x % 4 * (B / 4);
#pragma unroll
    for (int h = 0; h < 2; h++) {
        if (row + 8 * h >= t.s) continue;
#pragma unroll
        for (int k = 0; k < B / 16; k += 2) { /* 8 codes */
            const float(&a)[2][4] = sum[k], (&b)[2][4] = sum[k + 1];
            const int e = 2 * h;
            *reinterpret_cast<uint2 *>(to + 8 * h * x.d + 4 * k) = make_uint2(
                pack_e4m3(a[0][e] * scale, a[0][e + 1] * scale, a[1][e] * scale,
                          a[1][e + 1] * scale),
                pack_e4m3(b[0][e] * scale, b[0][e + 1] * scale, b[1][e] * scale,
                          b[1][e + 1] * scale));
        }
    }
}

/* The largest finite |r| of the block's tile, into its group's slot. */
template <int B>
static __device__ __forceinline__ void observe_sums(const float (&sum)[B / 16][2][4],
                                                    const flash_prologue &p,
                                                    const flash_operand &x, const tile &t,
                                                    float norm) {
    uint32_t top = 0;
#pragma unroll
    for (int i = 0; i < B / 2; i++) {
        const uint32_t bits = __float_as_uint(sum[i / 8][i / 4 % 2][i % 4] * norm) & 0x7fffffffu;
        top = max(top, bits < 0x7f800000u ? bits : 0);
    }
    top = __reduce_max_sync(0xffffffffu, top);
    if (threadIdx.x % 32 == 0 && top) atomicMax(x.amax + descale_index(p, x, t), top);
}

#endif /* FLASH_SM90 */

/* grid: the tiles of Q and K; block: THREADS. OBSERVE: the amax alone. */
template <int B, bool F16, bool OBSERVE>
static __global__ void __launch_bounds__(THREADS, BLOCKS_PER_SM)
rotate_kernel(const __grid_constant__ flash_prologue p) {
#if FLASH_SM90
    const int32_t index = (int32_t)blockIdx.x, which = index >= p.x[0].blocks;
    const float norm = B == 128 ? 0.0883883476f : B == 64 ? 0.125f : 0.176776695f; /* B^-1/2 */
    uint4 loaded[B / QUAD][2];
    float sum[B / 16][2][4];

    dependents_launch();
    dependencies_wait();
    const flash_operand &x = p.x[which];
    const tile t = find_tile(p, x, index - which * p.x[0].blocks);
    const int32_t row = t.first + (int32_t)threadIdx.x / 32 * ROWS + threadIdx.x % 32 / 4;
    if (!OBSERVE && x.amax && t.first == 0 && t.s == 0) (void)scale_of(p, x, t);
    if (t.first >= t.s) return;
    load_tile<B>(loaded, x, t, row);
    rotate_rows<B, F16>(sum, loaded);
    if constexpr (OBSERVE) observe_sums<B>(sum, p, x, t, norm);
    else store_tile<B>(sum, x, t, row, scale_of(p, x, t) * norm);
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
                                             const flash_queue *to) {
    const rotate_entry entry = p->part == 128  ? entry_for<128>(p->f16, observe)
                               : p->part == 64 ? entry_for<64>(p->f16, observe)
                                               : entry_for<32>(p->f16, observe);
    const int64_t blocks = (int64_t)p->x[0].blocks + p->x[1].blocks;
    if (blocks == 0) return FP8_OK;
    return flash_launch(observe ? "flash attention, amax of rotated" : "flash attention, rotated",
                        entry, blocks, THREADS, 0, to, *p);
}
