/* attention/flash.cu - FP8 attention on Hopper: E4M3 Q, K, V and P on the tensor cores, the softmax
 * and every sum across tiles of keys in FP32, O in BF16.
 *
 * Computes   S = Q K^T;  p = 2^(S * c - max + 8), c = scale * q_descale * k_descale / ln 2
 *            O = bf16((sum_j e4m3(p_j) V_j) * v_descale / sum_j p_j), 0 for a row that sees no key
 * Shapes     Q [total_q, h, d], K [total_kv, h_kv, d], O [total_q, h, d] packed; V transposed by
 *            flash_v.cu; d 64, 128, 256; bottom-right causal, window, grouped heads
 * Numerics   Hopper's FP8 products keep about 14 bits of their running sum and truncate, which over
 *            8k keys of one sign is 15 % (measured, H200). So P V of one tile of 128 keys starts
 *            from zero and joins O in FP32 (promotion): O <- O * alpha + T, one FMA where the
 *            rescale by alpha = 2^(old max - max) is due anyway. Keys are walked from the last tile
 *            to the first: a first token that attracts all attention then comes last, and does not
 *            push the others' p below E4M3's range before they are summed. p <= 2^8 < 448.
 *            The sum is of the unrounded p.
 *
 * Tiling     a block takes 128 queries of one head: a producer warp that copies (TMA), and two
 *            warpgroups of 64 rows each. K [128, d] and V^T [d, 128] come in STAGES-deep rings.
 *            Blocks are persistent and fetch their next item from a counter.
 *
 * Time       of one block, d = 128 (products_S = Q K^T, 64 x 128 x 128; products_T = P V):
 *
 *   producer    K0 V0 K1 V1 K2 V2 ...                      as stages become free
 *   tensor      S0a S0b | S1a T0a | S1b T0b | S2a T1a | S2b T1b | ...
 *   warps a         softmax 0 ....  softmax 1, O += T0 ....  softmax 2, O += T1
 *   warps b               softmax 0 ....  softmax 1, O += T0 ....  softmax 2
 *
 *            T of tile i - 1 runs under the softmax of tile i in the same warpgroup, and one
 *            warpgroup's products under the other's exponentials. Nothing makes them alternate:
 *            barriers that do cost 1 to 4 %. d = 256 has no registers to hold S and T at once:
 *            there a warpgroup's turn is T of tile i, in four chunks of 64 columns, then S of tile
 *            i + 1, and named barriers pass the turn on, which gains 4 %.
 *
 * Registers  of a consumer's 232:  d 64: S 64, T 32, O 32, P 16;  d 128: S 64, T 64, O 64, P 16;
 *            d 256: O 128, P 16 and either S 64 or T 2 x 32. No spills (ptxas 13.0, sm_90a)
 * Shared     d 64: Q 8 K + 4 x (8 + 8) K = 72 K;  d 128: 16 + 4 x (16 + 16) = 144 K;
 *            d 256: 32 + 3 x (32 + 32) = 224 K of 227
 * Bound      cycles of one SM for 128 x 128 scores: products 8 d (8192 flop a cycle), exponentials
 *            1024 (16 a cycle), instructions issued 1700 + 4 d over 4 schedulers' 2 warps each, so
 *            about 850 + 2 d. d 64 is bound by the exponentials, d 128 by both, d 256 by products.
 *            At 1.83 GHz on 132 SMs (b, h, d, s; floor; measured on an H200, V's transposition
 *            included; docs/NOTES.md has the rest):
 *              1, 24, 128,  4224 none      219 GFLOP    0.111 ms    0.253 ms
 *              4, 16, 128,  4096 none      550          0.278       0.639
 *              1, 16, 128, 16384 none     2199          1.111       2.557
 *              1, 16, 128, 16384 causal   1100          0.556       1.318
 *              1,  8, 256, 16384 none     2199          1.111       2.081
 *              4, 32,  64,  4096 none      550          0.555       1.056
 *            The floors assume 1979 TFLOP/s; products alone, limited by power, reach 1386. At
 *            d 128 neither pipe is full: a warpgroup's step is a chain of some 2100 cycles (320 to
 *            issue products, 220 waiting for S, 145 until known to need no mask, 320 for the
 *            maximum, 1100 for exponentials, promotion and packing).
 */
#include "attention/flash.h"
#include "core/cuda_check.h"

/* The instructions exist for this one architecture; for others the kernel is empty, and
 * attention_flash_prepare finds out. */
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define FLASH_SM90 1
#include "attention/flash_sm90.cuh"
#else
#define FLASH_SM90 0
#endif

/* ---- constants ------------------------------------------------------------------------------- */

enum {
    BLOCK_M = FLASH_BLOCK_M,
    BLOCK_N = FLASH_BLOCK_N,
    WARPGROUP = 128, /* threads */
    CONSUMERS = 2,   /* warpgroups of 64 rows, the M of wgmma */
    WG_ROWS = BLOCK_M / CONSUMERS,
    CONSUMER_WARPS = CONSUMERS * WARPGROUP / 32,
    THREADS = (1 + CONSUMERS) * WARPGROUP,
    /* 65536 registers: 384 threads start with 168; 128 * (40 + 2 * 232) = 64512 */
    PRODUCER_REGISTERS = 40,
    CONSUMER_REGISTERS = 232,
    EMPTY_REGISTERS = 64, /* the kernel of other architectures, which is empty, has fewer */
    K_STEP = 32,     /* bytes a product contracts over */
    TURN_BARRIER = 1 /* named barriers 1 and 2; 0 is __syncthreads */
};

#define P_OFFSET 8.0f /* p is at most 2^8 */

/* A tile of queries of one head, resolved by the producer. Row r sees the keys from
 * max(0, diagonal + r - window) to before clamp(diagonal + r, 0, s_kv). */
typedef struct flash_item {
    int32_t rows; /* 0: no more items */
    int32_t head, kv_head, seq;
    int32_t s_kv, diagonal;
    int32_t first_tile, num_tiles; /* of keys that any row sees */
    int64_t q_row, kv_row;         /* first token in Q, in K */
} flash_item;

template <int D>
struct flash_shape {
    static constexpr int STAGES = D == 256 ? 3 : 4;
    static constexpr int ROW_BYTES = D < 128 ? D : 128; /* width of a swizzled column block */
    static constexpr int COLUMN_BLOCKS = D / ROW_BYTES;
};

/* Operands are [column blocks][rows][ROW_BYTES], V^T [d][128 keys]; all swizzled by the copy. */
template <int D>
struct flash_shared {
    static constexpr int STAGES = flash_shape<D>::STAGES;
    alignas(1024) uint8_t q[BLOCK_M * D];
    alignas(1024) uint8_t k[STAGES][BLOCK_N * D];
    alignas(1024) uint8_t v[STAGES][D * BLOCK_N];
    alignas(8) uint64_t q_full, q_empty; /* q_full: item too */
    uint64_t k_full[STAGES], k_empty[STAGES], v_full[STAGES], v_empty[STAGES];
    flash_item items[2]; /* of an item's parity: consumers store item n while n + 1 is described */
};

template <int D>
static constexpr size_t shared_bytes = sizeof(flash_shared<D>) + 1024; /* to align the start */

#if FLASH_SM90

/* ---- items ----------------------------------------------------------------------------------- */

static __device__ int32_t clamp(int32_t x, int32_t low, int32_t high) {
    return max(low, min(x, high));
}

/* Keys [key_begin, key_end) that row r of an item sees. */
static __device__ int32_t key_begin(const flash_params &p, const flash_item &it, int32_t r) {
    return max(0, it.diagonal + r - p.window);
}
static __device__ int32_t key_end(const flash_item &it, int32_t r) {
    return clamp(it.diagonal + r, 0, it.s_kv);
}

/* rows <= 0 when the sequence has no such tile. */
static __device__ flash_item find_item(const flash_params &p, int32_t index) {
    const int32_t band_begin = index / (p.band * p.tiles) * p.band;
    const int32_t band = min(p.band, p.units - band_begin);
    const int32_t in_band = index - band_begin * p.tiles;
    const int32_t unit = band_begin + in_band % band;
    const int32_t first = (p.tiles - 1 - in_band / band) * BLOCK_M;
    int64_t begin;
    int32_t s_q, lo, hi;
    flash_item it;

    it.head = unit % p.num_heads;
    it.kv_head = it.head / (p.num_heads / p.num_kv_heads);
    it.seq = unit / p.num_heads;
    s_q = (int32_t)attention_sequence(p.q_starts, it.seq, p.total_q, p.max_q, &begin);
    it.q_row = begin + first;
    it.rows = min(s_q - first, (int32_t)BLOCK_M);
    it.s_kv = (int32_t)attention_sequence(p.kv_starts, it.seq, p.total_kv, p.max_kv, &it.kv_row);
    it.diagonal = p.causal ? first + it.s_kv - s_q + 1 : it.s_kv;
    lo = key_begin(p, it, 0);
    hi = key_end(it, it.rows - 1);
    it.first_tile = lo / BLOCK_N;
    it.num_tiles = hi > lo ? (hi + BLOCK_N - 1) / BLOCK_N - it.first_tile : 0;
    return it;
}

/* ---- rings ----------------------------------------------------------------------------------- */

/* A place in a ring of stages, and the parity of its current round. */
struct ring_place {
    int32_t stage;
    uint32_t parity;
};

template <int STAGES>
static __device__ ring_place next_place(ring_place r) {
    const bool wrap = r.stage + 1 == STAGES;
    return {wrap ? 0 : r.stage + 1, r.parity ^ (wrap ? 1u : 0u)};
}

/* One arrival a warp: each warp's products have finished when its own wait returns. */
static __device__ void release(uint64_t *empty) {
    __syncwarp();
    if (threadIdx.x % 32 == 0) barrier_arrive(empty);
}

/* ---- producer -------------------------------------------------------------------------------- */

/* One thread: for each item Q, then K and V of its tiles from the last to the first. */
template <int D>
static __device__ void produce(const flash_params &p, flash_shared<D> &s) {
    constexpr int ROW_BYTES = flash_shape<D>::ROW_BYTES, BLOCKS = flash_shape<D>::COLUMN_BLOCKS;
    constexpr int STAGES = flash_shape<D>::STAGES;
    ring_place place = {0, 0};
    uint32_t q_parity = 0;

    for (int32_t index = blockIdx.x, next; ; index = next) {
        const bool more = index < p.num_items;
        flash_item it = {};
        next = more ? (int32_t)gridDim.x + atomicAdd(p.next_item, 1) : 0;
        if (more) {
            it = find_item(p, index);
            if (it.rows <= 0) continue;
        }
        barrier_wait(&s.q_empty, q_parity ^ 1);
        s.items[q_parity] = it;
        q_parity ^= 1;
        if (it.num_tiles == 0) {
            barrier_arrive(&s.q_full);
        } else {
            barrier_expect(&s.q_full, sizeof s.q);
            for (int b = 0; b < BLOCKS; b++)
                copy_box_3d(s.q + b * BLOCK_M * ROW_BYTES, &p.q_map, &s.q_full, b * ROW_BYTES,
                            it.head, (int32_t)it.q_row);
        }
        if (!more) return;
        const int32_t v_row = (it.seq * p.num_kv_heads + it.kv_head) * D;
        for (int32_t i = it.num_tiles - 1; i >= 0; i--) {
            const int32_t key = (it.first_tile + i) * BLOCK_N;
            barrier_wait(&s.k_empty[place.stage], place.parity ^ 1);
            barrier_expect(&s.k_full[place.stage], sizeof s.k[0]);
            for (int b = 0; b < BLOCKS; b++)
                copy_box_3d(s.k[place.stage] + b * BLOCK_N * ROW_BYTES, &p.k_map,
                            &s.k_full[place.stage], b * ROW_BYTES, it.kv_head,
                            (int32_t)it.kv_row + key);
            barrier_wait(&s.v_empty[place.stage], place.parity ^ 1);
            barrier_expect(&s.v_full[place.stage], sizeof s.v[0]);
            copy_box_2d(s.v[place.stage], &p.v_map, &s.v_full[place.stage], key, v_row);
            place = next_place<STAGES>(place);
        }
    }
}

/* ---- consumers: products --------------------------------------------------------------------- */

/* S = Q K^T over d, issued and committed. */
template <int D>
static __device__ __forceinline__ void issue_scores(float (&scores)[64], uint64_t q, uint64_t k) {
    constexpr int ROW_BYTES = flash_shape<D>::ROW_BYTES, STEPS = ROW_BYTES / K_STEP;
    products_begin();
#pragma unroll
    for (int i = 0; i < D / K_STEP; i++) {
        const int block = i / STEPS, within = i % STEPS * K_STEP;
        const uint64_t q_step = q + (block * BLOCK_M * ROW_BYTES + within) / 16;
        const uint64_t k_step = k + (block * BLOCK_N * ROW_BYTES + within) / 16;
        if (i == 0) product_start(scores, q_step, k_step, 0);
        else product(scores, q_step, k_step, 1);
    }
    products_commit();
}

/* T = P V for 2 N columns of V, issued and committed; N registers. */
template <int N>
static __device__ __forceinline__ void issue_output(float (&sum)[N], const uint32_t (&prob)[16],
                                                    uint64_t v) {
    products_begin();
    product_start(sum, prob, v, 0);
#pragma unroll
    for (int i = 1; i < BLOCK_N / K_STEP; i++)
        product(sum, prob + 4 * i, v + i * K_STEP / 16, 1);
    products_commit();
}

/* The same into registers that were in use until now. `never` is 0, which the compiler must not
 * know: it then takes this for a sum that goes on, and does not issue it before the last one is
 * read, into registers that there are not. */
template <int N>
static __device__ __forceinline__ void issue_output_again(float (&sum)[N],
                                                          const uint32_t (&prob)[16], uint64_t v,
                                                          int never) {
    products_begin();
    product(sum, prob, v, never);
#pragma unroll
    for (int i = 1; i < BLOCK_N / K_STEP; i++)
        product(sum, prob + 4 * i, v + i * K_STEP / 16, 1);
    products_commit();
}

/* ---- consumers: softmax ---------------------------------------------------------------------- */

/* Of a thread's two rows, r and r + 8 of its warp's 16. max is in units of S. */
struct row_state {
    float max[2];
    float sum[2][2]; /* of even and of odd columns */
    float alpha[2];  /* by which O is due to shrink */
    float offset[2]; /* p = 2^(S * factor + offset) */
};

/* S of key = first + column is made -Inf where its row does not see it. `row` is the thread's first
 * row in the item; the test before it is the same for a whole warp. */
static __device__ __forceinline__ void mask_scores(float (&scores)[64], const flash_params &p,
                                                   const flash_item &it, int32_t row,
                                                   int32_t first) {
    const int32_t lane = threadIdx.x % 32, warp_row = row - lane / 4;
    if (first + BLOCK_N <= key_end(it, warp_row) && first >= key_begin(p, it, warp_row + 15))
        return;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int32_t shift = first + 2 * (lane % 4);
        const int32_t lo = key_begin(p, it, row + 8 * h) - shift;
        const int32_t hi = key_end(it, row + 8 * h) - shift;
#pragma unroll
        for (int j = 0; j < 16; j++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                float &x = scores[4 * j + 2 * h + e];
                x = 8 * j + e >= lo && 8 * j + e < hi ? x : -INFINITY;
            }
    }
}

/* Takes the maximum of one tile of scores in; factor turns S into a base-2 exponent. Four chains,
 * of both rows by even and odd columns, hide each other's latency. Where nothing was seen yet the
 * maximum is -Inf; exponents are then taken against 0, so that 2^-Inf = 0 comes out, not NaN. */
static __device__ __forceinline__ void raise_maximum(const float (&scores)[64], row_state &rows,
                                                     float factor) {
    float top[4] = {rows.max[0], scores[1], rows.max[1], scores[3]};
#pragma unroll
    for (int i = 0; i < 64; i++) top[i % 4] = fmaxf(top[i % 4], scores[i]);
#pragma unroll
    for (int h = 0; h < 2; h++) top[h] = fmaxf(top[2 * h], top[2 * h + 1]);
#pragma unroll
    for (int step = 1; step <= 2; step *= 2)
#pragma unroll
        for (int h = 0; h < 2; h++)
            top[h] = fmaxf(top[h], __shfl_xor_sync(0xffffffffu, top[h], step));
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const float base = top[h] == -INFINITY ? 0.0f : top[h];
        rows.offset[h] = fmaf(-base, factor, P_OFFSET);
        rows.alpha[h] = exp2_fast((rows.max[h] - base) * factor);
        rows.max[h] = top[h];
        rows.sum[h][0] *= rows.alpha[h];
        rows.sum[h][1] *= rows.alpha[h];
    }
}

/* S -> p in place, and into the sum, for half 0 or 1 of the columns. */
template <int HALF>
static __device__ __forceinline__ void exponentials(float (&scores)[64], row_state &rows,
                                                    float factor) {
#pragma unroll
    for (int i = 32 * HALF; i < 32 * HALF + 32; i++) {
        scores[i] = exp2_fast(fmaf(scores[i], factor, rows.offset[i / 2 % 2]));
        rows.sum[i / 2 % 2][i % 2] += scores[i];
    }
}

/* p of half 0 or 1 of the columns as the left operand of the next product, in the order of keys of
 * flash_v.cu. */
template <int HALF>
static __device__ __forceinline__ void pack_scores(uint32_t (&prob)[16],
                                                   const float (&scores)[64]) {
#pragma unroll
    for (int i = 4 * HALF; i < 4 * HALF + 4; i++) /* half k-steps: 16 keys */
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const float *x = scores + 8 * i + 2 * h;
            prob[2 * i + h] = pack_e4m3(x[0], x[1], x[4], x[5]);
        }
}

/* A whole tile of scores, where nothing else waits to be done. */
static __device__ __forceinline__ void softmax_step(uint32_t (&prob)[16], float (&scores)[64],
                                                    row_state &rows, float factor) {
    raise_maximum(scores, rows, factor);
    exponentials<0>(scores, rows, factor);
    pack_scores<0>(prob, scores);
    exponentials<1>(scores, rows, factor);
    pack_scores<1>(prob, scores);
}

/* O = O * alpha + T. */
template <int N>
static __device__ __forceinline__ void promote(float *out, const float (&sum)[N],
                                               const float (&alpha)[2]) {
#pragma unroll
    for (int i = 0; i < N; i++) out[i] = fmaf(out[i], alpha[i / 2 % 2], sum[i]);
}

/* ---- consumers: the walk over an item's tiles ------------------------------------------------ */

/* What a consumer warpgroup carries from item to item. */
struct consumer {
    int32_t index;    /* of the warpgroup */
    int32_t row;      /* of the thread, in a tile of queries */
    float factor;     /* S to base-2 exponent */
    ring_place place; /* of the next tile */
};

/* d 64 and 128: S of a tile and T of the one before it are in flight together. NOTE: between the
 * first half of the softmax and the wait for T stands a loop, the wait for V: without it the
 * compiler moves the wait for T up, before what is to run under it. */
template <int D>
static __device__ __forceinline__ void attend_overlapped(float (&out)[D / 2], row_state &rows,
                                                         const flash_params &p,
                                                         flash_shared<D> &s, consumer &c,
                                                         const flash_item &it) {
    constexpr int STAGES = flash_shape<D>::STAGES, ROW_BYTES = flash_shape<D>::ROW_BYTES;
    const uint64_t q = operand<ROW_BYTES>(s.q + c.index * WG_ROWS * ROW_BYTES);
    float scores[64], sum[D / 2];
    uint32_t prob[16];
    int32_t first = (it.first_tile + it.num_tiles - 1) * BLOCK_N;

    barrier_wait(&s.k_full[c.place.stage], c.place.parity);
    issue_scores<D>(scores, q, operand<ROW_BYTES>(s.k[c.place.stage]));
    products_wait<0>();
    pin(scores);
    release(&s.k_empty[c.place.stage]);
    if (it.num_tiles == 1) release(&s.q_empty);
    mask_scores(scores, p, it, c.row, first);
    softmax_step(prob, scores, rows, c.factor);
    barrier_wait(&s.v_full[c.place.stage], c.place.parity);

    for (int32_t i = it.num_tiles - 1; i > 0; i--) {
        const ring_place last = c.place;
        const float alpha[2] = {rows.alpha[0], rows.alpha[1]};

        c.place = next_place<STAGES>(c.place);
        first -= BLOCK_N;
        barrier_wait(&s.k_full[c.place.stage], c.place.parity);
        issue_scores<D>(scores, q, operand<ROW_BYTES>(s.k[c.place.stage]));
        issue_output(sum, prob, operand<128>(s.v[last.stage]));
        products_wait<1>(); /* S */
        pin(scores);
        release(&s.k_empty[c.place.stage]);
        if (i == 1) release(&s.q_empty);
        mask_scores(scores, p, it, c.row, first);
        raise_maximum(scores, rows, c.factor);
        exponentials<0>(scores, rows, c.factor);
        pin(scores);
        barrier_wait(&s.v_full[c.place.stage], c.place.parity); /* for the next step */
        products_wait<0>();                                     /* T */
        pin(sum);
        pin(prob);
        release(&s.v_empty[last.stage]);
        promote(out, sum, alpha);
        exponentials<1>(scores, rows, c.factor); /* interleaved with promote, pack */
        pack_scores<0>(prob, scores);
        pack_scores<1>(prob, scores);
    }
    issue_output(sum, prob, operand<128>(s.v[c.place.stage]));
    products_wait<0>();
    pin(sum);
    release(&s.v_empty[c.place.stage]);
    promote(out, sum, rows.alpha);
    c.place = next_place<STAGES>(c.place);
}

/* Turns at d 256: a warpgroup issues its products of a step while the other has none to issue. */
static __device__ void take_turn(const consumer &c) {
    named_sync(TURN_BARRIER + c.index, CONSUMERS * WARPGROUP);
}
static __device__ void pass_turn(const consumer &c) {
    named_arrive(TURN_BARRIER + 1 - c.index, CONSUMERS * WARPGROUP);
}

/* d 256: T in chunks of 64 columns, two of them in flight, each added to O when it is there. */
static __device__ __forceinline__ void add_output(float (&out)[128], uint32_t (&prob)[16],
                                                  uint64_t v, const float (&alpha)[2], int never) {
    constexpr int CHUNK = 64 * BLOCK_N / 16;
    float even[32], odd[32];

    issue_output(even, prob, v);
    issue_output(odd, prob, v + CHUNK);
    products_wait<1>();
    pin(even);
    promote(out, even, alpha);
    issue_output_again(even, prob, v + 2 * CHUNK, never);
    products_wait<1>();
    pin(odd);
    promote(out + 32, odd, alpha);
    issue_output_again(odd, prob, v + 3 * CHUNK, never);
    products_wait<1>();
    pin(even);
    promote(out + 64, even, alpha);
    products_wait<0>();
    pin(odd);
    pin(prob);
    promote(out + 96, odd, alpha);
}

/* d 256: a turn is T of a tile, then S of the next. */
static __device__ __forceinline__ void attend_chunked(float (&out)[128], row_state &rows,
                                                      const flash_params &p, flash_shared<256> &s,
                                                      consumer &c, const flash_item &it) {
    constexpr int STAGES = flash_shape<256>::STAGES;
    const uint64_t q = operand<128>(s.q + c.index * WG_ROWS * 128);
    float scores[64];
    uint32_t prob[16];

    take_turn(c);
    for (int32_t i = it.num_tiles - 1; i >= 0; i--) {
        barrier_wait(&s.k_full[c.place.stage], c.place.parity);
        issue_scores<256>(scores, q, operand<128>(s.k[c.place.stage]));
        pass_turn(c);
        products_wait<0>();
        pin(scores);
        release(&s.k_empty[c.place.stage]);
        if (i == 0) release(&s.q_empty);
        mask_scores(scores, p, it, c.row, (it.first_tile + i) * BLOCK_N);
        softmax_step(prob, scores, rows, c.factor);
        barrier_wait(&s.v_full[c.place.stage], c.place.parity);
        take_turn(c);
        add_output(out, prob, operand<128>(s.v[c.place.stage]), rows.alpha, p.num_items < 0);
        release(&s.v_empty[c.place.stage]);
        c.place = next_place<STAGES>(c.place);
    }
    pass_turn(c);
}

/* ---- consumers: output ----------------------------------------------------------------------- */

/* Lanes 4 q .. 4 q + 3 hold in word[k] their part of column block k; afterwards lane 4 q + t
 * holds block t whole. */
static __device__ __forceinline__ void transpose_quad(uint32_t (&word)[4]) {
#pragma unroll
    for (int step = 1; step <= 2; step *= 2) {
        const bool upper = threadIdx.x & step;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int low = step == 1 ? 2 * i : i, high = low + step;
            const uint32_t got =
                __shfl_xor_sync(0xffffffffu, upper ? word[low] : word[high], step);
            word[low] = upper ? got : word[low];
            word[high] = upper ? word[high] : got;
        }
    }
}

/* O = bf16(out * v_descale / sum), 0 for a row that saw no key, whatever V holds (0 * NaN). A quad
 * of lanes writes 64 contiguous bytes of a row. */
template <int D>
static __device__ __forceinline__ void store_output(const float (&out)[D / 2],
                                                    const row_state &rows, const flash_params &p,
                                                    const consumer &c, const flash_item &it) {
    const float v_descale = *p.v_descale;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int32_t row = c.row + 8 * h;
        float sum = rows.sum[h][0] + rows.sum[h][1], norm;
        uint16_t *to = p.o + (it.q_row + row) * p.o_stride + (int64_t)it.head * D;
        sum += __shfl_xor_sync(0xffffffffu, sum, 1);
        sum += __shfl_xor_sync(0xffffffffu, sum, 2);
        norm = sum == 0.0f ? 0.0f : v_descale / sum;
#pragma unroll
        for (int j = 0; j < D / 8; j += 4) {
            uint32_t word[4];
#pragma unroll
            for (int k = 0; k < 4; k++) {
                const float *x = out + 4 * (j + k) + 2 * h;
                word[k] = norm == 0.0f ? 0 : pack_bf16(x[0] * norm, x[1] * norm);
            }
            transpose_quad(word);
            if (row < it.rows)
                *reinterpret_cast<uint4 *>(to + 8 * (j + threadIdx.x % 4)) =
                    make_uint4(word[0], word[1], word[2], word[3]);
        }
    }
}

template <int D>
static __device__ __forceinline__ void consume(const flash_params &p, flash_shared<D> &s,
                                               int32_t index) {
    const int32_t thread = threadIdx.x % WARPGROUP;
    consumer c = {index, index * WG_ROWS + thread / 32 * 16 + thread % 32 / 4, 0.0f, {0, 0}};
    uint32_t q_parity = 0;

    /* S * factor: never 0, so that -Inf stays -Inf when a descale is 0; NaN stays. */
    c.factor = p.scale * *p.q_descale * *p.k_descale * 1.44269504f;
    if (c.factor < 1e-30f) c.factor = 1e-30f;
    if (D == 256 && index == 1) pass_turn(c); /* the first turn is warpgroup 0's */
    for (;;) {
        row_state rows = {{-INFINITY, -INFINITY}, {}, {}, {}};
        float out[D / 2];

        barrier_wait(&s.q_full, q_parity);
        const flash_item &it = s.items[q_parity]; /* stays there: registers are few */
        q_parity ^= 1;
        if (it.rows == 0) return;
#pragma unroll
        for (int i = 0; i < D / 2; i++) out[i] = 0.0f;
        if (it.num_tiles == 0) release(&s.q_empty);
        else if constexpr (D == 256) attend_chunked(out, rows, p, s, c, it);
        else attend_overlapped<D>(out, rows, p, s, c, it);
        store_output<D>(out, rows, p, c, it);
    }
}

#endif /* FLASH_SM90 */

/* ---- kernel ---------------------------------------------------------------------------------- */

/* grid: persistent blocks, one a multiprocessor; block: the producer's warpgroup, then the two
 * consumers'. */
template <int D>
static __global__ void __launch_bounds__(THREADS, 1)
flash_kernel(const __grid_constant__ flash_params p) {
#if FLASH_SM90
    extern __shared__ uint8_t raw[];
    flash_shared<D> &s = *reinterpret_cast<flash_shared<D> *>(
        raw + (1024 - shared_address(raw) % 1024) % 1024);
    const int32_t warpgroup = __shfl_sync(0xffffffffu, (int32_t)threadIdx.x / WARPGROUP, 0);

    if (threadIdx.x == 0) {
        prefetch_map(&p.q_map);
        prefetch_map(&p.k_map);
        prefetch_map(&p.v_map);
        barrier_init(&s.q_full, 1);
        barrier_init(&s.q_empty, CONSUMER_WARPS);
        for (int i = 0; i < flash_shape<D>::STAGES; i++) {
            barrier_init(&s.k_full[i], 1);
            barrier_init(&s.v_full[i], 1);
            barrier_init(&s.k_empty[i], CONSUMER_WARPS);
            barrier_init(&s.v_empty[i], CONSUMER_WARPS);
        }
        barrier_init_done();
    }
    __syncthreads();
    if (warpgroup == 0) {
        registers_shrink<PRODUCER_REGISTERS>();
        if (threadIdx.x == 0) produce<D>(p, s);
    } else {
        registers_grow<CONSUMER_REGISTERS>();
        consume<D>(p, s, warpgroup - 1);
    }
#endif
}

/* ---- host launchers -------------------------------------------------------------------------- */

typedef void (*flash_entry)(const flash_params);

static flash_entry entry_of(int32_t d, size_t *bytes) {
    switch (d) {
    case 64: *bytes = shared_bytes<64>; return flash_kernel<64>;
    case 128: *bytes = shared_bytes<128>; return flash_kernel<128>;
    case 256: *bytes = shared_bytes<256>; return flash_kernel<256>;
    default: return NULL;
    }
}

extern "C" fp8_status attention_flash_prepare(int32_t d) {
    fp8_status st = FP8_OK;
    cudaFuncAttributes a;
    size_t bytes;
    const flash_entry entry = entry_of(d, &bytes);

    if (!entry) return FP8_FAIL(FP8_EUNSUPPORTED, "d %d, expected 64, 128 or 256", d);
    FP8_TRY_CUDA(cudaFuncGetAttributes(&a, entry));
    if (a.numRegs < EMPTY_REGISTERS)
        return FP8_FAIL(FP8_EUNSUPPORTED, "this build holds no sm_90a code");
    FP8_TRY_CUDA(cudaFuncSetAttribute(entry, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      (int)bytes));
done:
    return st;
}

extern "C" fp8_status attention_flash_launch(const flash_params *p, int32_t d, int32_t blocks,
                                             fp8_stream stream) {
    size_t bytes = 0;
    const flash_entry entry = entry_of(d, &bytes);
    entry<<<(unsigned)blocks, THREADS, bytes, stream>>>(*p);
    return fp8_cuda_launched("flash attention", stream);
}
