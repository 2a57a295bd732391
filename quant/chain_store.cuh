/* quant/chain_store.cuh - private: what becomes of a chain's sums. Those of a step that does not
 * add are scaled, activated and stored as they leave the registers. Those that are added pass
 * through memory (the L2 cache), one plane [tokens, out] of FP32 for each part of K: then a block
 * has a whole row, and adds, norms and quantizes it.
 *
 * Sums of 8 tokens by a tile's rows are a group, four of a thread: rows r and r + 8 (r = lane / 4
 * of its warp's 16) of tokens 2 (lane % 4) and + 1. */
#ifndef FP8_QUANT_CHAIN_STORE_CUH
#define FP8_QUANT_CHAIN_STORE_CUH
#include "quant/chain_device.cuh"

namespace fp8 {

/* silu: x / (1 + e^-x), else GELU by tanh: x / (1 + e^-2u); as near as e^x is, some 2 ulp. */
static __device__ __forceinline__ float activated(float x, bool silu) {
    const float u = 0.7978845608028654f * fmaf(0.044715f * x * x, x, x);
    return __fdividef(x, 1.0f + __expf(silu ? -x : -2.0f * u));
}

static __device__ __forceinline__ bool is_gated(const chain_stage &s) {
    return s.activation >= FP8_GEMM_SWIGLU;
}

/* Of a thread's two rows of a tile; gated, of gate and of up of one column. */
struct row_terms {
    float scale[2], bias[2], code_scale;
};

/* First column of D that this lane stores, of a group's first row. */
static __device__ __forceinline__ int32_t column_of(const chain_stage &s, int32_t tile) {
    const int32_t row = tile * s.rows + (int32_t)threadIdx.x / 32 * WARP_ROWS;
    return (is_gated(s) ? row / 2 : row) + (int32_t)threadIdx.x % 4 * 2;
}

/* Does this warp have rows of a tile? */
static __device__ __forceinline__ bool has_rows(const chain_stage &s) {
    return (int32_t)threadIdx.x / 32 * WARP_ROWS < s.rows;
}

static __device__ __forceinline__ float descale_of(const chain_stage &s, int32_t row) {
    const float x = s.x_descale ? *s.x_descale : 1.0f;
    return s.w_descale ? __fmul_rn(x, s.w_descale[s.w_vector ? row : 0]) : x;
}

static __device__ __forceinline__ row_terms load_terms(const chain_stage &s, int32_t tile) {
    const bool gated = is_gated(s);
    const int32_t first = column_of(s, tile) - threadIdx.x % 4 * 2 + threadIdx.x % 32 / 4;
    row_terms t;

#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int32_t row = min(first + (gated ? i * s.columns : 8 * i), s.out - 1);
        t.scale[i] = descale_of(s, row);
        t.bias[i] = s.bias ? real_at(s.bias, s.bias_dtype, row) : 0.0f;
    }
    t.code_scale = s.code_scale ? *s.code_scale : 1.0f;
    return t;
}

/* v of tokens 2 q and 2 q + 1 of row lane / 4 -> those of token lane / 4, rows 2 q and 2 q + 1. */
static __device__ __forceinline__ float2 turned(float a, float b) {
    const uint32_t u = __float_as_uint(a), v = __float_as_uint(b);
    const uint32_t low = transposed(__byte_perm(u, v, 0x5410));
    const uint32_t high = transposed(__byte_perm(u, v, 0x7632));
    return make_float2(__uint_as_float(__byte_perm(low, high, 0x5410)),
                       __uint_as_float(__byte_perm(low, high, 0x7632)));
}

static __device__ __forceinline__ void put_codes(const chain_args &p, const chain_stage &s,
                                                 float2 v, float scale, int32_t token,
                                                 int32_t column) {
    const float2 scaled = make_float2(__fmul_rn(v.x, scale), __fmul_rn(v.y, scale));
    if (token < p.tokens && column < s.columns)
        *reinterpret_cast<uint16_t *>(s.codes + (int64_t)token * s.columns + column) =
            __nv_cvt_float2_to_fp8x2(scaled, __NV_SATFINITE, __NV_E4M3);
}

/* ---- steps that do not add ------------------------------------------------------------------- */

/* The sums of group g to where they go. */
static __device__ __forceinline__ void put_group(const float v[4], const chain_args &p,
                                                 const chain_stage &s, const row_terms &t,
                                                 int32_t first, int32_t g) {
    const int32_t token = 8 * g + threadIdx.x % 32 / 4;
    float w[4];

#pragma unroll
    for (int i = 0; i < 4; i++)
        w[i] = __fadd_rn(__fmul_rn(v[i], t.scale[i / 2]), t.bias[i / 2]);
    if (is_gated(s)) {
        const bool silu = s.activation == FP8_GEMM_SWIGLU;
        const float2 made = turned(__fmul_rn(activated(w[0], silu), w[2]),
                                   __fmul_rn(activated(w[1], silu), w[3]));
        put_codes(p, s, made, t.code_scale, token, first);
        return;
    }
    if (s.activation == FP8_GEMM_GELU_TANH)
#pragma unroll
        for (int i = 0; i < 4; i++) w[i] = activated(w[i], false);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int32_t column = first + 8 * i;
        const float2 made = turned(w[2 * i], w[2 * i + 1]);

        if (!s.y) put_codes(p, s, made, t.code_scale, token, column);
        else if (token < p.tokens && column < s.out)
            *reinterpret_cast<uint32_t *>(s.y + (int64_t)token * s.out + column) =
                pack_bf16(made.x, made.y);
    }
}

template <int TOKENS>
static __device__ __forceinline__ void put_tile(const float (&main)[TOKENS / 2],
                                                const chain_args &p, const chain_stage &s,
                                                const row_terms &t, int32_t tile) {
    const int32_t first = column_of(s, tile);

#pragma unroll
    for (int g = 0; g < TOKENS / 8; g++)
        if (8 * g < p.tokens) put_group(main + 4 * g, p, s, t, first, g);
}

/* ---- steps that add -------------------------------------------------------------------------- */

/* A part's sums of a tile to its plane. */
template <int TOKENS>
static __device__ __forceinline__ void leave_tile(const float (&main)[TOKENS / 2],
                                                  const chain_args &p, const chain_stage &s,
                                                  int32_t part, int32_t tile) {
    const int32_t first = column_of(s, tile), row = (int32_t)threadIdx.x % 32 / 4;
    float *const plane = p.sums + (int64_t)part * p.tokens * s.out;

#pragma unroll
    for (int g = 0; g < TOKENS / 8; g++) {
        const int32_t token = 8 * g + row;
        if (8 * g >= p.tokens) break;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const float2 v = turned(main[4 * g + 2 * i], main[4 * g + 2 * i + 1]);
            if (token < p.tokens && first + 8 * i < s.out)
                __stcg(reinterpret_cast<float2 *>(plane + (int64_t)token * s.out + first + 8 * i),
                       v);
        }
    }
}

/* The sum of v over all consumers. */
static __device__ __forceinline__ float sum_over_block(float v, float *scratch) {
    float sum = 0.0f;
#pragma unroll
    for (int off = 16; off > 0; off >>= 1) v += __shfl_xor_sync(0xffffffffu, v, off);
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = v;
    named_sync(CONSUMER_BARRIER, CONSUMERS);
#pragma unroll
    for (int i = 0; i < CHAIN_WARPS; i++) sum += scratch[i];
    return sum;
}

/* A thread has every 256th vector of 8 columns of a row. */
enum { PIECE = 8, FEW_PIECES = 2, MANY_PIECES = CHAIN_MAX_COLUMNS / PIECE / CONSUMERS };

static __device__ __forceinline__ void widen(float v[PIECE], const uint4 &in) {
    const uint32_t word[4] = {in.x, in.y, in.z, in.w};
#pragma unroll
    for (int i = 0; i < 4; i++) v[2 * i] = pair_low(word[i]), v[2 * i + 1] = pair_high(word[i]);
}

static __device__ __forceinline__ uint4 *h_at(const chain_stage &s, int32_t row) {
    return reinterpret_cast<uint4 *>(s.h + (int64_t)row * s.out);
}

/* The vector of a row that is this thread's i-th; the last one where there is none. */
static __device__ __forceinline__ int32_t piece_at(const chain_stage &s, int i) {
    return min((int32_t)threadIdx.x + i * CONSUMERS, s.out / PIECE - 1);
}
static __device__ __forceinline__ bool has_piece(const chain_stage &s, int i) {
    return (int32_t)threadIdx.x + i * CONSUMERS < s.out / PIECE;
}

static __device__ __forceinline__ uint4 norm_weight_at(const chain_stage &s, int i) {
    return reinterpret_cast<const uint4 *>(s.norm_weight)[piece_at(s, i)];
}

enum { PAIR = 2 };

/* after = h with the parts' sums added, of vectors i and i + 1: all they need is on its way at
 * once. `scale` is the descale, but for w_vector. */
static __device__ __forceinline__ void add_sums(uint4 after[PAIR], const chain_args &p,
                                                const chain_stage &s, float scale, int32_t row,
                                                int i) {
    const int64_t plane = (int64_t)p.tokens * s.out / 4;
    const float4 *from = reinterpret_cast<const float4 *>(p.sums + (int64_t)row * s.out);
    float4 part[PAIR][CHAIN_MAX_SPLITS][2];
    uint4 before[PAIR];

#pragma unroll
    for (int k = 0; k < PAIR; k++) {
        const int32_t at = piece_at(s, i + k);
        before[k] = __ldcg(h_at(s, row) + at);
#pragma unroll
        for (int n = 0; n < CHAIN_MAX_SPLITS; n++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                part[k][n][half] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
                if (n < s.splits) part[k][n][half] = __ldcg(from + n * plane + 2 * at + half);
            }
    }
#pragma unroll
    for (int k = 0; k < PAIR; k++) {
        const int32_t column = PIECE * piece_at(s, i + k);
        float v[PIECE], w[PIECE];
        widen(w, before[k]);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float4 sum = part[k][0][half];
#pragma unroll
            for (int n = 1; n < CHAIN_MAX_SPLITS; n++) {
                sum.x += part[k][n][half].x, sum.y += part[k][n][half].y;
                sum.z += part[k][n][half].z, sum.w += part[k][n][half].w;
            }
            v[4 * half] = sum.x, v[4 * half + 1] = sum.y;
            v[4 * half + 2] = sum.z, v[4 * half + 3] = sum.w;
        }
#pragma unroll
        for (int e = 0; e < PIECE; e++) {
            const float by = s.w_vector ? __fmul_rn(scale, s.w_descale[column + e]) : scale;
            v[e] = __fmul_rn(v[e], by);
            if (s.bias) v[e] = __fadd_rn(v[e], real_at(s.bias, s.bias_dtype, column + e));
            v[e] = __fadd_rn(v[e], w[e]);
        }
        after[k] = make_uint4(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]),
                              pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7]));
    }
}

/* Codes of the norm of a row, of which a thread has these vectors. */
template <int PIECES>
static __device__ __forceinline__ void norm_row(const uint4 (&held)[PIECES],
                                                const uint4 (&weight)[PIECES],
                                                const chain_stage &s, float code_scale,
                                                int32_t row, chain_control &c) {
    const float per_column = 1.0f / (float)s.out;
    float sum = 0.0f, squares = 0.0f, mean = 0.0f, rstd;

    if (s.norm == FP8_NORM_LAYER) {
#pragma unroll
        for (int i = 0; i < PIECES; i++) {
            float v[PIECE];
            if (!has_piece(s, i)) continue;
            widen(v, held[i]);
#pragma unroll
            for (int e = 0; e < PIECE; e++) sum += v[e];
        }
        mean = sum_over_block(sum, c.sums[1]) * per_column;
    }
#pragma unroll
    for (int i = 0; i < PIECES; i++) {
        float v[PIECE];
        if (!has_piece(s, i)) continue;
        widen(v, held[i]);
#pragma unroll
        for (int e = 0; e < PIECE; e++)
            squares = fmaf(__fsub_rn(v[e], mean), __fsub_rn(v[e], mean), squares);
    }
    rstd = rsqrtf(fmaf(sum_over_block(squares, c.sums[0]), per_column, s.eps));
#pragma unroll
    for (int i = 0; i < PIECES; i++) {
        float v[PIECE], w[PIECE], b[PIECE] = {};
        if (!has_piece(s, i)) continue;
        widen(v, held[i]);
        widen(w, PIECES == FEW_PIECES ? weight[i] : norm_weight_at(s, i));
        if (s.norm_bias)
            widen(b, reinterpret_cast<const uint4 *>(s.norm_bias)[piece_at(s, i)]);
#pragma unroll
        for (int e = 0; e < PIECE; e++) {
            if (s.norm == FP8_NORM_RMS_PLUS) w[e] = __fadd_rn(1.0f, w[e]);
            v[e] = __fmul_rn(__fmul_rn(__fsub_rn(v[e], mean), rstd), w[e]);
            if (s.norm == FP8_NORM_LAYER) v[e] = __fadd_rn(v[e], b[e]);
        }
        reinterpret_cast<uint2 *>(s.codes + (int64_t)row * s.out)[piece_at(s, i)] =
            make_uint2(encode4<false>(v, code_scale, false),
                       encode4<false>(v + 4, code_scale, false));
    }
    named_sync(CONSUMER_BARRIER, CONSUMERS); /* the scratch is free again */
}

/* The rows of h that are this block's, once all sums are there, and the codes of their norms. */
template <int PIECES>
static __device__ __forceinline__ void add_rows(const chain_args &p, const chain_stage &s,
                                                const uint32_t *added, chain_control &c) {
    const float x = s.x_descale ? *s.x_descale : 1.0f;
    const float scale = s.w_descale && !s.w_vector ? __fmul_rn(x, *s.w_descale) : x;
    const float code_scale = s.code_scale ? *s.code_scale : 1.0f;
    uint4 weight[PIECES];

#pragma unroll
    for (int i = 0; i < PIECES; i++) { /* of many there is no room for all */
        weight[i] = make_uint4(0, 0, 0, 0);
        if (s.norm_weight && PIECES == FEW_PIECES) weight[i] = norm_weight_at(s, i);
    }
    if (threadIdx.x == 0) counter_wait(added, gridDim.x);
    named_sync(CONSUMER_BARRIER, CONSUMERS);
    for (int32_t row = blockIdx.x; row < p.tokens; row += gridDim.x) {
        uint4 held[PIECES];
#pragma unroll
        for (int i = 0; i < PIECES; i += PAIR) add_sums(held + i, p, s, scale, row, i);
#pragma unroll
        for (int i = 0; i < PIECES; i++)
            if (has_piece(s, i)) h_at(s, row)[piece_at(s, i)] = held[i];
        if (s.norm_weight) norm_row(held, weight, s, code_scale, row, c);
    }
}

} /* namespace fp8 */
#endif
