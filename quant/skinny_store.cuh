/* quant/skinny_store.cuh - private: what a block of skinny.cu is, and its work behind the sums:
 * terms, residual, activation, results. Included by that one file. */
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
    FETCH_CLOCKS = 500, /* between two units to the L2 cache: the share a block has of memory */
    EMPTY_REGISTERS = 32,  /* the kernel of other architectures, which is empty, has fewer */
    CONSUMER_BARRIER = 1,  /* named barriers; 0 is __syncthreads */
    WARPGROUP_BARRIER = 2
};

/* The part of shared memory that is not operands or results. */
struct skinny_control {
    uint64_t full[SKINNY_MAX_STAGES];
    uint64_t empty[SKINNY_MAX_STAGES];
    uint64_t early[SKINNY_MAX_STAGES]; /* paced: W of the first units, whose x comes later */
    uint64_t started;                  /* the kernels before have ended */
    uint64_t received[SKINNY_WARPS]; /* the peers' partial sums of what this warp owns */
    float token_scale[SKINNY_MAX_TOKENS];
    float d_scale;
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
                     min(row + i / 2 * 8, p.columns - 1)]);
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

/* Of a thread's two rows: of W, or, gated, gate and up of a column of D. */
struct row_terms {
    float scale[2], bias[2];
};

template <bool GATED>
static __device__ __forceinline__ row_terms load_terms(const skinny_args &p, int32_t row) {
    row_terms t;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int32_t n = GATED ? min(row, p.columns - 1) + h * p.columns
                                : min(row + 8 * h, p.columns - 1);
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
    if (token >= p.tokens || n >= p.columns) return;
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
        if (token < p.tokens && row + 8 * h < p.columns)
            *reinterpret_cast<uint32_t *>(static_cast<uint16_t *>(p.d) + token * p.ldd + row +
                                          8 * h) = pair;
    }
}

/* What this block owns, straight from registers. */
template <int TOKENS>
static __device__ __forceinline__ void store(const float (&main)[TOKENS / 2], const skinny_args &p,
                                             const block_share &b, int32_t row) {
    const int32_t lane = threadIdx.x % 32, q = lane % 4;
#pragma unroll
    for (int j = 0; j < TOKENS / 8; j++) {
        if (8 * j >= p.tokens) break;
        if (p.splits > 1 && share_index<TOKENS>(j) % p.splits != b.rank) continue;
        if (p.pairs) {
            store_pairs(main + 4 * j, p, 8 * j + lane / 4, row + 2 * q);
            continue;
        }
#pragma unroll
        for (int i = 0; i < 4; i++)
            store_one(p, 8 * j + 2 * q + i % 2, row + lane / 4 + i / 2 * 8, main[4 * j + i]);
    }
}

/* ---- consumers: gated results ---------------------------------------------------------------- */

/* Of two groups of 8 tokens a lane has elements (2 q, t) and (2 q + 1, t) of each, token by column,
 * in v; the codes of (t, 2 q) and (t, 2 q + 1) of the first are in the low half of what it gets. */
static __device__ __forceinline__ uint32_t transposed_codes(const float (&v)[4], float scale) {
    const uint32_t codes = encode4<false>(v, scale, false);
    return __byte_perm(transposed(__byte_perm(codes, 0, 0x3120)), 0, 0x3120);
}

static __device__ __forceinline__ void store_code(const skinny_args &p, int32_t token,
                                                  int32_t column, float v, float scale) {
    if (token < p.tokens && column < p.columns)
        static_cast<uint8_t *>(p.d)[token * p.ldd + column] = encode(v, scale, false);
}

static __device__ __forceinline__ void store_code_pair(const skinny_args &p, int32_t token,
                                                       int32_t column, uint32_t pair) {
    if (token < p.tokens && column < p.columns)
        *reinterpret_cast<uint16_t *>(static_cast<uint8_t *>(p.d) + token * p.ldd + column) =
            (uint16_t)pair;
}

static __device__ __forceinline__ void store_value_pair(const skinny_args &p, int32_t token,
                                                        int32_t column, float low, float high) {
    const uint32_t pair = transposed(pack_bf16(low, high));
    if (token < p.tokens && column < p.columns)
        *reinterpret_cast<uint32_t *>(static_cast<uint16_t *>(p.d) + token * p.ldd + column) = pair;
}

/* v = act(gate) * up of two groups of 8 tokens. Four at once, as each alone waits for itself. */
template <bool SILU>
static __device__ __forceinline__ void gate_four(float (&v)[4], const float (&gate)[4],
                                                 const float (&up)[4]) {
#pragma unroll
    for (int i = 0; i < 4; i++) v[i] = __fmul_rn(activate(gate[i], SILU), up[i]);
}

/* Tokens from `token` on and 8 more, this warp's 8 columns from `column` on. */
static __device__ __forceinline__ void store_four(const float (&v)[4], const skinny_args &p,
                                                  int32_t token, int32_t column, float scale) {
    const int32_t t = threadIdx.x % 32 / 4, q = threadIdx.x % 4;

    if (!p.pairs) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int32_t at = token + i / 2 * 8 + 2 * q + i % 2;
            if (p.d_dtype == FP8_DTYPE_E4M3) store_code(p, at, column + t, v[i], scale);
            else store_one(p, at, column + t, v[i]);
        }
    } else if (p.d_dtype == FP8_DTYPE_E4M3) {
        const uint32_t codes = transposed_codes(v, scale);
        store_code_pair(p, token + t, column + 2 * q, codes);
        store_code_pair(p, token + 8 + t, column + 2 * q, codes >> 16);
    } else {
        store_value_pair(p, token + t, column + 2 * q, v[0], v[1]);
        store_value_pair(p, token + 8 + t, column + 2 * q, v[2], v[3]);
    }
}

/* act(gate) * up of a warp's 8 columns from `column` on. NOTE: the registers move and the code
 * stays: unrolled it would be fetched to run once, which takes longer (measured: docs/NOTES.md). */
template <int TOKENS>
static __device__ __forceinline__ void store_gated(float (&main)[TOKENS / 2], const skinny_args &p,
                                                   float scale, int32_t column) {
    constexpr int SECOND = TOKENS > 8 ? 4 : 0; /* sums of the second group: none, what is there */
#pragma unroll 1
    for (int32_t token = 0; token < p.tokens; token += 16) {
        const float gate[4] = {main[0], main[1], main[SECOND], main[SECOND + 1]};
        const float up[4] = {main[2], main[3], main[SECOND + 2], main[SECOND + 3]};
        float v[4];

        if (p.activation == FP8_GEMM_SWIGLU) gate_four<true>(v, gate, up);
        else gate_four<false>(v, gate, up);
        store_four(v, p, token, column, scale);
#pragma unroll
        for (int i = 0; i + 8 < TOKENS / 2; i++) main[i] = main[i + 8];
    }
}

#endif /* SKINNY_SM90 */
#endif
