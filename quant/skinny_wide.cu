/* quant/skinny_wide.cu - E4M3 products for up to 128 tokens on Hopper, wide tiles of weights.
 *
 * Computes   v = act(alpha * a_descale[t] * b_descale[n] * sum_k x[t, k] W[n, k] + bias[n])
 *                + residual[t, n], or, gated, act(column j) * (column n / 2 + j);
 *            y[t, n] = round(v) or cast(v * d_scale);  d_amax = max |v|
 * Shapes     x [tokens, k] E4M3, tokens 1 .. 128; W [n, k] E4M3, any n and k, rows on 16 bytes; y
 *            [tokens, n] F32, BF16, F16 or E4M3
 * Bound      memory: n * k bytes of W once, as skinny.cu. x passes from the L2 cache to each tile
 *            again, tokens over rows of a tile as many bytes as W: some 9 TB/s in all were seen, so
 *            that is no limit; what x takes of shared memory is W's no more
 * Tiling     tokens are the M of wgmma, rows of W its N in steps of 8, so that a tile has up to 256
 *            rows. With up to 64 tokens a warpgroup has half of the rows, else half of the tokens.
 *            W and x have rings of their own. Where tiles are few, a cluster's blocks take a part
 *            of K each. Units of 16 tokens by 16 rows of sums go, through shared memory where the
 *            ring was, to the block that stores them: pair u to rank u % splits
 * Numerics   Hopper's FP8 products keep about 14 bits of a running sum and truncate: every 128 of K
 *            they start from zero and are added in FP32. Partial sums are added by rank
 * Overlap    as skinny.cu: W fills its ring while the kernel before still runs
 * Registers  95 or 96 of 96 with two blocks a multiprocessor, up to 146 of 168 with one; no spills
 *            (ptxas 13.0, sm_90a)
 *
 *   ring of W   slot of the last unit is the last one: what lies in the first slots is done some
 *               units before the end, and takes the partial sums of other blocks from then on
 */
#include "core/launch.cuh"
#include "quant/skinny_wide_cuda.h"
#include "quant/store_device.cuh"

/* The instructions exist for this one architecture; for others the kernel is empty. */
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define WIDE_SM90 1
#include "quant/skinny_sm90.cuh"
#else
#define WIDE_SM90 0
#endif

using namespace fp8;

/* ---- constants ------------------------------------------------------------------------------- */

enum {
    BLOCK_K = WIDE_BLOCK_K, /* one byte an element: the width of a swizzled box */
    K_STEP = 32,            /* of one product */
    WARPGROUP = 128,
    WG_TOKENS = 64, /* the M of wgmma */
    CONSUMERS = WIDE_WARPS * 32,
    THREADS = CONSUMERS + 32,
    SHARE = 16 * 8, /* floats of sums of a warp and 8 rows of W */
    PAIR = 2 * SHARE,
    CONSUMER_BARRIER = 1 /* named barriers; 0 is __syncthreads */
};

/* The part of shared memory that is not operands. */
struct wide_control {
    uint64_t w_full[WIDE_MAX_STAGES], x_full[WIDE_MAX_STAGES], empty[WIDE_MAX_STAGES];
    uint64_t received[WIDE_WARPS]; /* the peers' partial sums of what this warp stores */
    uint64_t ready;                /* all blocks of the cluster can take partial sums */
    float scale[WIDE_MAX_ROWS], bias[WIDE_MAX_ROWS]; /* of the tile's rows of W */
    float token_scale[WIDE_MAX_TOKENS];
};
static_assert(sizeof(wide_control) <= WIDE_CONTROL_BYTES, "WIDE_CONTROL_BYTES is too small");

#if WIDE_SM90

/* What is compiled: T tokens, C chunks of N rows a warpgroup. */
template <int T, int N, int C> struct wide_shape {
    static constexpr int TOKENS = T, CHUNK = N, CHUNKS = C;
    static constexpr int WG_ROWS = N * C, ROWS = T == WG_TOKENS ? 2 * WG_ROWS : WG_ROWS;
    static constexpr int SHARES = WG_ROWS / 8, PAIRS = (SHARES + 1) / 2; /* of a warp */
};

/* What a block does: of K the units [begin, begin + count) of one tile. first: slot of unit 0. */
struct wide_part {
    int32_t rank, tile, begin, count, first;
};

/* The row of W that is row r of the tile: as they lie, or chunks of gate and up in turn. */
template <typename S>
static __device__ __forceinline__ int32_t row_of(const wide_args &p, const wide_part &b,
                                                 int32_t r) {
    const int32_t chunk = r / S::CHUNK;
    if (!p.gated) return b.tile * S::ROWS + r;
    return chunk % 2 * p.columns + b.tile * (S::ROWS / 2) + chunk / 2 * S::CHUNK + r % S::CHUNK;
}

/* ---- producer: one thread -------------------------------------------------------------------- */

template <typename S>
static __device__ __forceinline__ void load_w(const wide_args &p, const wide_part &b, int32_t unit,
                                              int32_t slot, uint8_t *ring, wide_control &c) {
    uint8_t *to = ring + slot * (S::ROWS * BLOCK_K);
    const int32_t k = (b.begin + unit) * BLOCK_K;
    const uint64_t policy = policy_evict_first();

    barrier_expect(c.w_full + slot, S::ROWS * BLOCK_K);
    if (!p.gated) {
        copy_box_2d(to, &p.w_map, c.w_full + slot, k, b.tile * S::ROWS, policy);
        return;
    }
#pragma unroll 1
    for (int r = 0; r < S::ROWS; r += S::CHUNK)
        copy_box_2d(to + r * BLOCK_K, &p.w_map, c.w_full + slot, k, row_of<S>(p, b, r), policy);
}

template <typename S>
static __device__ __forceinline__ void load_x(const wide_args &p, const wide_part &b, int32_t unit,
                                              int32_t slot, uint8_t *x_ring, wide_control &c) {
    barrier_expect(c.x_full + slot, S::TOKENS * BLOCK_K);
    copy_box_2d(x_ring + slot * (S::TOKENS * BLOCK_K), &p.x_map, c.x_full + slot,
                (b.begin + unit) * BLOCK_K, 0, policy_evict_last());
}

/* Tells all blocks of the cluster that the first slots, which take partial sums, are done with. */
template <typename S>
static __device__ __forceinline__ void announce(const wide_args &p, const wide_part &b,
                                                wide_control &c) {
    const int32_t slots = (p.pair_slots * WIDE_PAIR_BYTES + S::ROWS * BLOCK_K - 1) /
                          (S::ROWS * BLOCK_K);
    for (int32_t s = 0; s < slots; s++) {
        const int32_t last = b.count - p.stages + s; /* that lies there */
        if (last >= 0) barrier_wait(c.empty + s, (uint32_t)(last / p.stages) & 1);
    }
    cluster_wait(); /* all blocks of the cluster have started */
    for (int32_t r = 0; r < p.splits; r++) barrier_arrive_at(&c.ready, (uint32_t)r);
}

template <typename S>
static __device__ __forceinline__ void produce(const wide_args &p, const wide_part &b,
                                               uint8_t *ring, uint8_t *x_ring, wide_control &c) {
    ring_place at = {b.first, 0};
    int32_t x_slot = 0;

    dependencies_wait();
    for (int32_t i = 0; i < min(b.count, p.x_stages); i++) load_x<S>(p, b, i, i, x_ring, c);
    if (b.count - p.lead <= p.stages) dependents_launch();
    for (int32_t i = 0; i + p.x_stages < b.count; i++) { /* unit i is done with: what comes there */
        barrier_wait(c.empty + at.slot, at.parity);
        load_x<S>(p, b, i + p.x_stages, x_slot, x_ring, c);
        if (i + p.stages < b.count) load_w<S>(p, b, i + p.stages, at.slot, ring, c);
        if (i + p.stages == b.count - p.lead) dependents_launch();
        at.next(p.stages, b.first);
        if (++x_slot == p.x_stages) x_slot = 0;
    }
    if (p.splits > 1) announce<S>(p, b, c);
}

/* ---- consumers: sums ------------------------------------------------------------------------- */

/* The products of one chunk of a unit, started. */
template <typename S>
static __device__ __forceinline__ void start_chunk(float (&sum)[S::CHUNK / 2], uint32_t x,
                                                   uint32_t w) {
    products_begin();
    product_start(sum, x, w);
#pragma unroll
    for (int k = 1; k < BLOCK_K / K_STEP; k++) product(sum, x + 2 * k, w + 2 * k);
    products_commit();
}

template <typename S>
static __device__ __forceinline__ void add_chunk(float (&main)[S::CHUNK / 2],
                                                 float (&sum)[S::CHUNK / 2]) {
#pragma unroll
    for (int r = 0; r < S::CHUNK / 2; r++) main[r] += sum[r];
}

/* Where the consumers are in both rings. */
struct wide_reader {
    ring_place w, x;
    uint32_t w0, x0; /* operands of this warpgroup in the first slots */
};

/* Waits for a unit and returns where its operands are. */
template <typename S>
static __device__ __forceinline__ uint2 next_unit(const wide_args &p, const wide_part &b,
                                                  wide_reader &r, wide_control &c) {
    const uint2 at = {r.w0 + r.w.slot * (S::ROWS * BLOCK_K / 16),
                      r.x0 + r.x.slot * (S::TOKENS * BLOCK_K / 16)};
    barrier_wait(c.w_full + r.w.slot, r.w.parity);
    barrier_wait(c.x_full + r.x.slot, r.x.parity);
    r.w.next(p.stages, b.first);
    r.x.next(p.x_stages, 0);
    return at;
}

static __device__ __forceinline__ void free_unit(const wide_args &p, int32_t &slot,
                                                 wide_control &c) {
    if (threadIdx.x % 32 == 0) barrier_arrive(c.empty + slot);
    if (++slot == p.stages) slot = 0;
}

/* main = sums of this block's K. NOTE: with two sums, one added while the next is made, ptxas 13.0
 * sets the products one after the other (C7514). */
template <typename S>
static __device__ __forceinline__ void accumulate(float (&main)[S::CHUNKS][S::CHUNK / 2],
                                                  const wide_args &p, const wide_part &b,
                                                  const uint8_t *ring, const uint8_t *x_ring,
                                                  wide_control &c) {
    const int32_t group = (int32_t)threadIdx.x / WARPGROUP;
    const int32_t w_row = S::TOKENS == WG_TOKENS ? group * S::WG_ROWS : 0;
    const int32_t x_row = S::TOKENS == WG_TOKENS ? 0 : group * WG_TOKENS;
    wide_reader r = {{b.first, 0}, {0, 0}, operand_low(ring + w_row * BLOCK_K),
                     operand_low(x_ring + x_row * BLOCK_K)};
    int32_t done = b.first;
    float sum[S::CHUNK / 2];

#pragma unroll
    for (int j = 0; j < S::CHUNKS; j++)
#pragma unroll
        for (int i = 0; i < S::CHUNK / 2; i++) main[j][i] = 0.0f;
    for (int32_t i = 0; i < b.count; i++) {
        const uint2 at = next_unit<S>(p, b, r, c);
#pragma unroll
        for (int j = 0; j < S::CHUNKS; j++) {
            start_chunk<S>(sum, at.y, at.x + j * (S::CHUNK * BLOCK_K / 16));
            products_wait<0>();
            pin(sum);
            if (j == S::CHUNKS - 1) free_unit(p, done, c);
            add_chunk<S>(main[j], sum);
        }
    }
}

/* ---- consumers: sums to where they are stored ------------------------------------------------ */

/* The floats of this lane in rank r's part of the pair u of the tile, on the block that has it. */
static __device__ __forceinline__ float *place_of(const wide_args &p, float *sums, int32_t u,
                                                  int32_t r) {
    return sums + (u / p.splits * p.splits + r) * PAIR + threadIdx.x % 32 * 4;
}

template <typename S>
static __device__ __forceinline__ void expect_sums(const wide_args &p, const wide_part &b,
                                                   wide_control &c) {
    const int32_t warp = (int32_t)threadIdx.x / 32;
    int32_t shares = 0;
    for (int s = 0; s < S::SHARES; s++)
        shares += (warp * S::PAIRS + s / 2) % p.splits == b.rank;
    barrier_expect(c.received + warp, shares * (p.splits - 1) * SHARE * (int32_t)sizeof(float));
}

template <typename S>
static __device__ __forceinline__ void hand_over(const float (&main)[S::CHUNKS][S::CHUNK / 2],
                                                 const wide_args &p, const wide_part &b,
                                                 float *sums, wide_control &c) {
    const int32_t warp = (int32_t)threadIdx.x / 32;
    constexpr int EACH = S::CHUNK / 8; /* shares of a chunk */
#pragma unroll
    for (int s = 0; s < S::SHARES; s++) {
        const float *v = main[s / EACH] + s % EACH * 4;
        const int32_t u = warp * S::PAIRS + s / 2, owner = u % p.splits;
        float *to = place_of(p, sums, u, b.rank) + s % 2 * SHARE;
        if (owner == b.rank)
            *reinterpret_cast<float4 *>(to) = make_float4(v[0], v[1], v[2], v[3]);
        else
            store_at(to, c.received + warp, (uint32_t)owner, v);
    }
}

/* ---- consumers: results ---------------------------------------------------------------------- */

/* A lane's part of a pair: elements i of rows t0 (i / 2 even) and t0 + 8 of D, columns
 * n0 + 8 (i / 4) + i % 2. */
struct wide_place {
    int32_t token, row, column, count; /* row: of the tile, of `column`; count: 8, or 4 of v */
};

static __device__ __forceinline__ int32_t token_of(const wide_place &at, int i) {
    return at.token + i / 2 % 2 * 8;
}
static __device__ __forceinline__ int32_t column_of(const wide_place &at, int i) {
    return at.column + i / 4 * 8 + i % 2;
}
static __device__ __forceinline__ bool is_there(const wide_args &p, const wide_place &at, int i) {
    return i < at.count && token_of(at, i) < p.tokens && column_of(at, i) < p.columns;
}

/* All loads at once: one after the other, each would wait for memory under full load. Where there
 * is no element, another. */
template <typename T>
static __device__ __forceinline__ void load_elements(float (&r)[8], const wide_args &p,
                                                     const wide_place &at) {
    T raw[8];
#pragma unroll
    for (int i = 0; i < 8; i++)
        raw[i] = static_cast<const T *>(p.residual)[min(token_of(at, i), p.tokens - 1) * p.ldr +
                                                    min(column_of(at, i), p.columns - 1)];
#pragma unroll
    for (int i = 0; i < 8; i++) r[i] = to_float(raw[i]);
}

static __device__ __forceinline__ void load_residual(float (&r)[8], const wide_args &p,
                                                     const wide_place &at) {
    if (p.residual_dtype == FP8_DTYPE_F32) load_elements<float>(r, p, at);
    else if (p.residual_dtype == FP8_DTYPE_BF16) load_elements<__nv_bfloat16>(r, p, at);
    else load_elements<__half>(r, p, at);
}

/* Sums to values: descales and bias of the tile's rows from `row` on. */
static __device__ __forceinline__ void add_terms(float (&v)[8], int32_t row,
                                                 const float (&token)[2], const wide_control &c) {
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const int32_t r = row + i / 4 * 8 + i % 2;
        v[i] = __fadd_rn(__fmul_rn(v[i], __fmul_rn(token[i / 2 % 2], c.scale[r])), c.bias[r]);
    }
}

/* The bits of the largest finite |v|. */
static __device__ __forceinline__ uint32_t amax_of(const float (&v)[8], const wide_args &p,
                                                   const wide_place &at) {
    uint32_t amax = 0;
#pragma unroll
    for (int i = 0; i < 8; i++)
        if (is_there(p, at, i) && is_finite_bits(magnitude_bits(v[i])))
            amax = max(amax, magnitude_bits(v[i]));
    return amax;
}

static __device__ __forceinline__ void store_one(const wide_args &p, int64_t at, float v,
                                                 float scale) {
    if (p.d_dtype == FP8_DTYPE_F32) static_cast<float *>(p.d)[at] = v;
    else if (p.d_dtype == FP8_DTYPE_BF16)
        static_cast<__nv_bfloat16 *>(p.d)[at] = from_float<__nv_bfloat16>(v);
    else if (p.d_dtype == FP8_DTYPE_F16) static_cast<__half *>(p.d)[at] = from_float<__half>(v);
    else static_cast<uint8_t *>(p.d)[at] = encode(v, scale, false);
}

/* Four columns a lane and token: even lanes those of the first share, odd ones of the second. All
 * lanes of a warp come here. */
static __device__ __forceinline__ void store_fours(const float (&v)[8], const wide_args &p,
                                                   const wide_place &at, float scale) {
    const bool odd = threadIdx.x % 2;
    const int32_t column = at.column + (odd ? 6 : 0);
    if (p.d_dtype == FP8_DTYPE_E4M3) {
        const uint32_t low = encode4<false>(v, scale, false);
        const uint32_t high = encode4<false>(v + 4, scale, false);
        const uint32_t other = __shfl_xor_sync(0xffffffffu, odd ? low : high, 1);
        const uint32_t a = odd ? other : low, b = odd ? high : other;
#pragma unroll
        for (int h = 0; h < 2; h++)
            if (at.token + 8 * h < p.tokens && column < p.columns)
                *reinterpret_cast<uint32_t *>(static_cast<uint8_t *>(p.d) +
                                              (at.token + 8 * h) * p.ldd + column) =
                    __byte_perm(a, b, h ? 0x7632 : 0x5410);
        return;
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const uint32_t low = pack_bf16(v[2 * h], v[2 * h + 1]);
        const uint32_t high = pack_bf16(v[4 + 2 * h], v[5 + 2 * h]);
        const uint32_t other = __shfl_xor_sync(0xffffffffu, odd ? low : high, 1);
        if (at.token + 8 * h < p.tokens && column < p.columns)
            *reinterpret_cast<uint2 *>(static_cast<uint16_t *>(p.d) +
                                       (at.token + 8 * h) * p.ldd + column) =
                make_uint2(odd ? other : low, odd ? high : other);
    }
}

/* v = this lane's part of a pair of shares, of which `count` floats are there. */
static __device__ __forceinline__ void load_pair(float (&v)[8], const wide_args &p,
                                                 const float *from, int32_t count) {
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = 0.0f;
    for (int32_t r = 0; r < p.splits; r++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            if (4 * h >= count) break;
            const float4 x = *reinterpret_cast<const float4 *>(from + r * PAIR + h * SHARE);
            v[4 * h] += x.x, v[4 * h + 1] += x.y, v[4 * h + 2] += x.z, v[4 * h + 3] += x.w;
        }
}

/* The values of D of one pair; gated ones take the pair of up, a chunk further, too. */
template <typename S>
static __device__ __forceinline__ void finish(float (&v)[8], const wide_args &p,
                                              const wide_place &at, const float *from,
                                              const float (&token)[2], wide_control &c) {
    float more[8];

    if (p.residual) load_residual(more, p, at);
    if (p.splits > 1) barrier_wait(c.received + threadIdx.x / 32, 0);
    load_pair(v, p, from, at.count);
    add_terms(v, at.row, token, c);
    if (p.activation != FP8_GEMM_IDENTITY) {
#pragma unroll
        for (int i = 0; i < 8; i++) v[i] = activate(v[i], p.activation == FP8_GEMM_SWIGLU);
    }
    if (p.gated) {
        float up[8];
        load_pair(up, p, from + S::CHUNK / 8 * SHARE, at.count);
        add_terms(up, at.row + S::CHUNK, token, c);
#pragma unroll
        for (int i = 0; i < 8; i++) v[i] = __fmul_rn(v[i], up[i]);
    }
    if (!p.residual) return;
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = __fadd_rn(v[i], more[i]);
}

/* What this warp has of the tile, pair by pair. A loop of little code: unrolled over registers it
 * is slower, as every instruction is fetched to run once. */
template <typename S>
static __device__ __forceinline__ uint32_t store(const wide_args &p, const wide_part &b,
                                                 float *sums, int32_t first_token,
                                                 wide_control &c) {
    const float token[2] = {__fmul_rn(p.alpha, c.token_scale[first_token]),
                            __fmul_rn(p.alpha, c.token_scale[first_token + 8])};
    const int32_t warp = (int32_t)threadIdx.x / 32, group = warp / 4, lane = threadIdx.x % 32;
    const int32_t wg_row = S::TOKENS == WG_TOKENS ? group * S::WG_ROWS : 0;
    const int32_t column0 = (b.tile * S::ROWS + wg_row) / (p.gated ? 2 : 1);
    const int32_t shares = S::SHARES / (p.gated ? 2 : 1), u0 = warp * S::PAIRS;
    const float scale = p.d_scale ? *p.d_scale : 1.0f;
    uint32_t amax = 0;

#pragma unroll 1
    for (int32_t s = (b.rank - u0 % p.splits + p.splits) % p.splits; 2 * s < shares;
         s += p.splits) {
        const int32_t in_group = 16 * s + 2 * (lane % 4);
        const wide_place at = {first_token, wg_row + in_group, column0 + in_group,
                               2 * s + 1 < shares ? 8 : 4};
        float v[8];

        finish<S>(v, p, at, place_of(p, sums, u0 + s, 0), token, c);
        if (p.d_amax) amax = max(amax, amax_of(v, p, at));
        if (p.vectors && at.count == 8) {
            store_fours(v, p, at, scale);
            continue;
        }
#pragma unroll
        for (int i = 0; i < 8; i++)
            if (is_there(p, at, i))
                store_one(p, token_of(at, i) * p.ldd + column_of(at, i), v[i], scale);
    }
    return amax;
}

/* Descales and biases of the tile's rows: constants as W is. */
template <typename S>
static __device__ __forceinline__ void load_rows(const wide_args &p, const wide_part &b,
                                                 wide_control &c) {
    for (int32_t r = threadIdx.x; r < S::ROWS; r += CONSUMERS) {
        const int32_t n = min(row_of<S>(p, b, r), p.n - 1);
        c.scale[r] = p.b_descale ? p.b_descale[p.b_vector ? n : 0] : 1.0f;
        c.bias[r] = p.bias ? real_at(p.bias, p.bias_dtype, n) : 0.0f;
    }
}

/* The descales of tokens, on their way while the sums are made. */
template <typename S>
static __device__ __forceinline__ void fetch_tokens(const wide_args &p, wide_control &c) {
    for (int32_t t = threadIdx.x; t < S::TOKENS; t += CONSUMERS) {
        const int32_t from = p.a_vector ? min(t, p.tokens - 1) : 0;
        if (p.a_descale) copy_word(c.token_scale + t, p.a_descale + from);
        else c.token_scale[t] = 1.0f;
    }
}

template <typename S>
static __device__ __forceinline__ void consume(const wide_args &p, const wide_part &b,
                                               uint8_t *ring, const uint8_t *x_ring,
                                               wide_control &c) {
    const int32_t warp = (int32_t)threadIdx.x / 32, lane = threadIdx.x % 32;
    const int32_t first = S::TOKENS == WG_TOKENS ? warp % 4 * 16 : warp * 16; /* warp's tokens */
    float *sums = reinterpret_cast<float *>(ring);
    float main[S::CHUNKS][S::CHUNK / 2];
    uint32_t amax = 0;

    if (!p.early) dependencies_wait();
    load_rows<S>(p, b, c);
    if (p.splits > 1 && lane == 0 && first < p.tokens) expect_sums<S>(p, b, c);
    dependencies_wait();
    fetch_tokens<S>(p, c);
    accumulate<S>(main, p, b, ring, x_ring, c);
    copied_words();
    if (p.splits > 1) {
        cluster_wait();
        barrier_wait(&c.ready, 0);
    }
    named_sync(CONSUMER_BARRIER, CONSUMERS); /* scales are there, the ring is done with */
    if (first >= p.tokens) return;
    hand_over<S>(main, p, b, sums, c);
    __syncwarp();
    amax = store<S>(p, b, sums, first + lane / 4, c);
    if (!p.d_amax) return;
    amax = warp_max(amax);
    if (lane == 0) atomicMax(reinterpret_cast<unsigned *>(p.d_amax), amax);
}

#endif /* WIDE_SM90 */

/* ---- kernel ---------------------------------------------------------------------------------- */

/* grid: a cluster of p.splits blocks a tile; block: 8 warps that multiply, one that copies. NOTE: a
 * block may end before its peers: all that is sent to it or arrives at its barriers it has waited
 * for. */
template <int TOKENS, int CHUNK, int CHUNKS, int RESIDENT>
static __global__ void __launch_bounds__(THREADS, RESIDENT)
wide_kernel(const __grid_constant__ wide_args p) {
#if WIDE_SM90
    typedef wide_shape<TOKENS, CHUNK, CHUNKS> S;
    extern __shared__ __align__(1024) uint8_t ring[];
    uint8_t *x_ring = ring + p.stages * (S::ROWS * BLOCK_K);
    wide_control &c = *reinterpret_cast<wide_control *>(x_ring +
                                                        p.x_stages * (S::TOKENS * BLOCK_K));
    const int32_t warp = __shfl_sync(0xffffffffu, (int32_t)threadIdx.x / 32, 0);
    wide_part b;

    b.rank = (int32_t)blockIdx.x % p.splits;
    b.tile = (int32_t)blockIdx.x / p.splits;
    b.begin = (int32_t)((int64_t)p.units * b.rank / p.splits);
    b.count = (int32_t)((int64_t)p.units * (b.rank + 1) / p.splits) - b.begin;
    b.first = (p.stages - b.count % p.stages) % p.stages;
    if (threadIdx.x == CONSUMERS) {
        if (p.lead == WIDE_RELEASE_AT_START) dependents_launch();
        for (int i = 0; i < p.stages; i++) {
            barrier_init(c.w_full + i, 1);
            barrier_init(c.x_full + i, 1);
            barrier_init(c.empty + i, WIDE_WARPS);
        }
        for (int i = 0; i < WIDE_WARPS; i++) barrier_init(c.received + i, 1);
        barrier_init(&c.ready, p.splits);
        barrier_init_done();
        if (!p.early) dependencies_wait();
        for (int32_t i = 0, slot = b.first; i < min(b.count, p.stages); i++) {
            load_w<S>(p, b, i, slot, ring, c);
            if (++slot == p.stages) slot = 0;
        }
    }
    __syncwarp();
    __syncthreads();
    if (p.splits > 1) cluster_arrive();
    if (warp < WIDE_WARPS) {
        consume<S>(p, b, ring, x_ring, c);
    } else {
        if (threadIdx.x == CONSUMERS) produce<S>(p, b, ring, x_ring, c);
        else if (p.splits > 1) cluster_wait();
    }
#endif
}

/* ---- host launchers -------------------------------------------------------------------------- */

typedef void (*wide_entry)(const wide_args);

static const struct wide_compiled {
    int32_t tokens, rows, resident;
    wide_entry entry;
} compiled[] = {
    {64, 96, 2, wide_kernel<64, 48, 1, 2>},    {64, 112, 2, wide_kernel<64, 56, 1, 2>},
    {64, 128, 2, wide_kernel<64, 64, 1, 2>},   {64, 192, 2, wide_kernel<64, 48, 2, 2>},
    {64, 224, 2, wide_kernel<64, 56, 2, 2>},   {64, 256, 1, wide_kernel<64, 64, 2, 1>},
    {128, 96, 2, wide_kernel<128, 48, 2, 2>},  {128, 112, 2, wide_kernel<128, 56, 2, 2>},
    {128, 128, 1, wide_kernel<128, 64, 2, 1>},
};

static const wide_compiled *find_compiled(const wide_tile *t) {
    for (const wide_compiled &c : compiled)
        if (c.tokens == t->tokens && c.rows == t->rows && c.resident >= t->resident) return &c;
    return NULL;
}

extern "C" int wide_is_compiled(const wide_tile *t) { return find_compiled(t) != NULL; }

extern "C" fp8_status wide_launch(fp8_device *d, const wide_args *a, const wide_tile *t,
                                  fp8_launch how) {
    const wide_entry entry = find_compiled(t)->entry;
    const size_t shared = wide_shared_bytes(t);
    fp8_status st = FP8_OK;

    FP8_TRY_CUDA(cudaFuncSetAttribute(entry, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      (int)shared));
    FP8_TRY(launch_clusters("skinny wide gemm", entry, (unsigned)t->splits,
                            dim3((unsigned)(a->tiles * t->splits)), dim3(THREADS), shared, d, how,
                            *a));
done:
    return st;
}
