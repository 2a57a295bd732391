/* quant/skinny_store.cuh - private: what a block of skinny.cu is, and its work behind the sums:
 * terms, residual, results. Included by that one file. */
#ifndef FP8_QUANT_SKINNY_STORE_CUH
#define FP8_QUANT_SKINNY_STORE_CUH
#include "quant/skinny_cuda.h"
#include "quant/store_device.cuh"

/* The instructions exist for this one architecture; for others the kernel is empty, and
 * skinny_available finds out. */
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define SKINNY_SM90 1
#include "quant/skinny_sm90.cuh"
#else
#define SKINNY_SM90 0
#endif

using namespace fp8;

/* ---- constants ------------------------------------------------------------------------------- */

enum {
    ROWS = SKINNY_ROWS,
    BLOCK_K = SKINNY_BLOCK_K, /* one byte an element: the width of a swizzled box */
    K_STEP = 32,              /* of one product */
    WARPGROUP = 128,
    WG_ROWS = 64, /* the M of wgmma */
    WARP_ROWS = 16,
    CONSUMERS = SKINNY_WARPS * 32,
    THREADS = CONSUMERS + 32,
    SHARE = 8 * WARP_ROWS, /* floats of partial sums that go to one owner */
    EMPTY_REGISTERS = 32,  /* the kernel of other architectures, which is empty, has fewer */
    CONSUMER_BARRIER = 1,  /* named barriers; 0 is __syncthreads */
    WARPGROUP_BARRIER = 2
};

/* The part of shared memory that is not operands or results. */
struct skinny_control {
    uint64_t full[SKINNY_MAX_STAGES];
    uint64_t empty[SKINNY_MAX_STAGES];
    uint64_t received[SKINNY_WARPS]; /* the peers' partial sums of what this warp owns */
    float token_scale[SKINNY_MAX_TOKENS];
};
static_assert(sizeof(skinny_control) <= SKINNY_CONTROL_BYTES, "SKINNY_CONTROL_BYTES is too small");

#if SKINNY_SM90

/* What a block does: tiles first, first + step, ..; of K the units [begin, begin + count). */
struct block_share {
    int32_t rank, first, step, begin, count, total; /* total: units of all its tiles */
};

/* Number of the share of partial sums that is 8 tokens j of this warp's rows. Share u is the
 * business of rank u % splits, the (u / splits)-th there. */
template <int TOKENS>
static __device__ __forceinline__ int32_t share_index(int32_t j) {
    return (int32_t)threadIdx.x / 32 * (TOKENS / 8) + j;
}

/* Has this warp rows of the tile? */
static __device__ __forceinline__ bool has_rows(const skinny_args &p) {
    return (int32_t)threadIdx.x / 32 * WARP_ROWS < p.rows;
}

/* ---- consumers: results ---------------------------------------------------------------------- */

/* more = the residual where this thread has results. It comes as the first x does: nothing waits
 * for it alone. */
template <int TOKENS, typename T>
static __device__ __forceinline__ void load_elements(float (&more)[TOKENS / 2],
                                                     const skinny_args &p, const block_share &b,
                                                     int32_t row) {
    const T *from = static_cast<const T *>(p.residual);
#pragma unroll
    for (int j = 0; j < TOKENS / 8; j++) {
        if (p.splits > 1 && share_index<TOKENS>(j) % p.splits != b.rank) continue;
#pragma unroll
        for (int i = 0; i < 4; i++)
            more[4 * j + i] = to_float(
                from[min(8 * j + 2 * ((int32_t)threadIdx.x % 4) + i % 2, p.tokens - 1) * p.ldr +
                     min(row + i / 2 * 8, p.n - 1)]);
    }
}

template <int TOKENS>
static __device__ __forceinline__ void load_residual(float (&more)[TOKENS / 2],
                                                     const skinny_args &p, const block_share &b,
                                                     int32_t row) {
#pragma unroll
    for (int i = 0; i < TOKENS / 2; i++) more[i] = 0.0f;
    if (!p.residual) return;
    if (p.residual_dtype == FP8_DTYPE_F32) load_elements<TOKENS, float>(more, p, b, row);
    else if (p.residual_dtype == FP8_DTYPE_BF16)
        load_elements<TOKENS, __nv_bfloat16>(more, p, b, row);
    else load_elements<TOKENS, __half>(more, p, b, row);
}

/* Of a thread's two rows. */
struct row_terms {
    float scale[2], bias[2];
};

static __device__ __forceinline__ row_terms load_terms(const skinny_args &p, int32_t row) {
    row_terms t;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int32_t n = min(row + 8 * h, p.n - 1);
        t.scale[h] = p.b_descale ? p.b_descale[p.b_vector ? n : 0] : 1.0f;
        t.bias[h] = p.bias ? real_at(p.bias, p.bias_dtype, n) : 0.0f;
    }
    return t;
}

template <int TOKENS>
static __device__ __forceinline__ void finish(float (&main)[TOKENS / 2], const skinny_args &p,
                                              const skinny_control &c, const row_terms &t) {
#pragma unroll
    for (int j = 0; j < TOKENS / 8; j++) {
        const float2 a = *reinterpret_cast<const float2 *>(c.token_scale + 8 * j +
                                                           2 * (threadIdx.x % 4));
        const float token[2] = {__fmul_rn(p.alpha, a.x), __fmul_rn(p.alpha, a.y)};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float &v = main[4 * j + i];
            v = __fadd_rn(__fmul_rn(v, __fmul_rn(token[i % 2], t.scale[i / 2])), t.bias[i / 2]);
        }
    }
}

/* BF16 through shared memory, a warp's 16 rows by all tokens at once. */
template <int TOKENS>
static __device__ __forceinline__ void store_copied(const float (&main)[TOKENS / 2],
                                                    const skinny_args &p, uint8_t *boxes,
                                                    int32_t row) {
    const int32_t lane = threadIdx.x % 32;
    uint8_t *box = boxes + threadIdx.x / 32 * (TOKENS * WARP_ROWS * 2);
    uint8_t *to = box + lane % 8 * (WARP_ROWS * 2) + lane / 8 % 2 * 16;

    if (lane == 0) boxes_read();
    __syncwarp();
    if constexpr (TOKENS == 8) {
        store_transposed(to, pack_bf16(main[0], main[1]), pack_bf16(main[2], main[3]));
    } else {
#pragma unroll
        for (int j = 0; j < TOKENS / 8; j += 2) {
            const float *v = main + 4 * j;
            store_transposed(to + 8 * (j + lane / 16) * (WARP_ROWS * 2), pack_bf16(v[0], v[1]),
                             pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7]));
        }
    }
    proxy_fence();
    __syncwarp();
    if (lane == 0) store_box_2d(&p.d_map, box, row, 0);
}

static __device__ __forceinline__ void store_one(const skinny_args &p, int32_t token, int32_t n,
                                                 float v) {
    const int64_t at = token * p.ldd + n;
    if (token >= p.tokens || n >= p.n) return;
    if (p.d_dtype == FP8_DTYPE_F32) static_cast<float *>(p.d)[at] = v;
    else if (p.d_dtype == FP8_DTYPE_BF16)
        static_cast<__nv_bfloat16 *>(p.d)[at] = from_float<__nv_bfloat16>(v);
    else static_cast<__half *>(p.d)[at] = from_float<__half>(v);
}

/* 8 tokens of a warp's 16 rows from `row` on, BF16 in pairs: n and ldd are even. */
static __device__ __forceinline__ void store_pairs(const float *v, const skinny_args &p,
                                                   int32_t token, int32_t row) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const uint32_t pair = transposed(pack_bf16(v[2 * h], v[2 * h + 1]));
        if (token < p.tokens && row + 8 * h < p.n)
            *reinterpret_cast<uint32_t *>(static_cast<uint16_t *>(p.d) + token * p.ldd + row +
                                          8 * h) = pair;
    }
}

/* What this block owns, straight from registers. */
template <int TOKENS>
static __device__ __forceinline__ void store(const float (&main)[TOKENS / 2], const skinny_args &p,
                                             const block_share &b, int32_t row) {
    const int32_t lane = threadIdx.x % 32, q = lane % 4;
    const bool pairs = p.d_dtype == FP8_DTYPE_BF16 && p.n % 2 == 0 && p.ldd % 2 == 0 &&
                       (reinterpret_cast<uintptr_t>(p.d) & 3) == 0;
#pragma unroll
    for (int j = 0; j < TOKENS / 8; j++) {
        if (8 * j >= p.tokens) break;
        if (p.splits > 1 && share_index<TOKENS>(j) % p.splits != b.rank) continue;
        if (pairs) {
            store_pairs(main + 4 * j, p, 8 * j + lane / 4, row + 2 * q);
            continue;
        }
#pragma unroll
        for (int i = 0; i < 4; i++)
            store_one(p, 8 * j + 2 * q + i % 2, row + lane / 4 + i / 2 * 8, main[4 * j + i]);
    }
}

#endif /* SKINNY_SM90 */
#endif
